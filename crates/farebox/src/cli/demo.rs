//! `farebox demo`: the whole thing in one command, on a simulated chain: a seller's and a buyer's Lightning node, an API,
//! the gateway before it, and one purchase told step by step.
//!
//! The coins are worthless and the chain lives in this process; channels, payments, invoices, tokens and the gateway are
//! the real ones. All that is kept lies in a temporary directory, which is removed at the end.

mod stage;
mod story;
mod tell;

use std::{fmt, num::NonZeroU64, process::ExitCode};

use anyhow::Context as _;
use farebox_gateway::UpstreamUrl;
use farebox_protocol::{Msat, Offer};
use tokio::{
    net::{TcpStream, UnixStream},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use self::{
    stage::Stage,
    tell::{Ready, Teller},
};
use crate::{logging, runtime};

/// Sell an API over Lightning on a simulated chain, and buy from it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The story is printed for people; --json prints it as JSON lines.

Examples:
  farebox demo                                           sell the sample API, buy once, then stay up
  farebox demo --once                                    buy once, then exit
  farebox demo --upstream http://127.0.0.1:3000          sell your own API
  farebox demo --requests 3                              one payment buys three requests
  farebox demo --credit --cost 4sat                      10 sat of credit, 4 sat a request
  farebox demo --once --json | jq -r '.authorization // empty'")]
pub(crate) struct Args {
    /// Exit after the story
    #[arg(long)]
    once: bool,
    /// Sell this API instead of the sample: http://, https:// or h2c://, host and port
    #[arg(long, value_name = "URL")]
    upstream: Option<UpstreamUrl>,
    /// What one payment costs, like 10sat or 1500msat; it opens the API for as long as the demo runs, if nothing else is
    /// said
    #[arg(long, value_name = "AMOUNT", default_value = "10sat")]
    price: Msat,
    /// How many requests one payment buys
    #[arg(long, value_name = "NUMBER", conflicts_with = "credit")]
    requests: Option<NonZeroU64>,
    /// One payment buys as much credit, to be drawn down by use
    #[arg(long, requires = "cost")]
    credit: bool,
    /// What a request takes from credit, like 500msat
    #[arg(long, value_name = "AMOUNT", requires = "credit")]
    cost: Option<Msat>,
}

impl Args {
    /// What one payment buys.
    fn offer(&self) -> Offer {
        match self.requests {
            Some(count) => Offer::Requests(count),
            None if self.credit => Offer::Credit,
            None => Offer::Forever,
        }
    }
}

/// Tells the story; `started` is when the process was, and `json` asks for JSON lines.
pub(crate) fn run(args: Args, started: Instant, json: bool) -> anyhow::Result<ExitCode> {
    logging::start("warn")?;
    runtime::block_on(play(args, Teller::new(started, json)))
}

async fn play(args: Args, tell: Teller) -> anyhow::Result<ExitCode> {
    let stop = CancellationToken::new();
    tokio::select! {
        outcome = perform(&args, &tell, &stop) => outcome.map(|()| ExitCode::SUCCESS),
        signals = runtime::stop_on_signal(stop.clone()) => signals.map(|never| match never {}),
    }
}

async fn perform(args: &Args, tell: &Teller, stop: &CancellationToken) -> anyhow::Result<()> {
    if let Some(upstream) = &args.upstream {
        reach(upstream).await?;
    }
    tell.step(format_args!("start a chain, two Lightning nodes, an API and the gateway"));
    let stage = Stage::set(args, tell).await?;
    let outcome = tell_story(args, tell, stop, &stage).await;
    // Whatever happened, everything is taken down in order: LDK aborts the process if its runtime goes first.
    let struck = stage.strike().await;
    outcome.and(struck)
}

/// Makes sure that there is something to sell, before anybody pays for it.
async fn reach(upstream: &UpstreamUrl) -> anyhow::Result<()> {
    let connected = match upstream.socket() {
        Some(path) => UnixStream::connect(path).await.map(drop),
        None => {
            let host = upstream.authority().host().trim_start_matches('[').trim_end_matches(']');
            TcpStream::connect((host, upstream.port())).await.map(drop)
        }
    };
    connected.with_context(|| {
        format!("nothing answers at `{upstream}`; start your API first, or correct --upstream")
    })
}

async fn tell_story(
    args: &Args,
    tell: &Teller,
    stop: &CancellationToken,
    stage: &Stage,
) -> anyhow::Result<()> {
    tell.ready(&Ready {
        gateway: &stage.gateway_url,
        upstream: &stage.upstream_url,
        wallet_url: &stage.wallet_url,
        wallet_password: stage.wallet_password.expose(),
        ops_url: &stage.ops_url,
        data_dir: &stage.data_dir(),
    });
    let url = format!("{}{}", stage.gateway_url, stage.example_path);
    let bought = tokio::select! {
        bought = story::run(&url, &stage.outgoing, tell) => bought?,
        () = stop.cancelled() => return Ok(()),
    };
    if args.once {
        return Ok(());
    }
    tell.commands(&Commands { stage, url: &url, authorization: &bought.authorization, offer: args.offer() });
    stop.cancelled().await;
    Ok(())
}

/// What a person can paste into another terminal.
struct Commands<'a> {
    stage: &'a Stage,
    url: &'a str,
    authorization: &'a str,
    offer: Offer,
}

impl fmt::Display for Commands<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stage, url, authorization, offer } = self;
        let (again, twice) = if offer.is_counted() {
            ("`farebox-left` tells how much of it is left", "run it again, it buys anew when nothing is left")
        } else {
            ("the token is a pass, it costs nothing more", "run it twice, the second costs nothing")
        };
        let show = if offer.is_counted() { "-i " } else { "" };
        let (wallet, password) = (&stage.wallet_url, stage.wallet_password.expose());
        let program = std::env::current_exe().unwrap_or_else(|_| "farebox".into());
        let program = program.display();
        write!(
            f,
            "
the demo stays up; Ctrl-C ends it. In another terminal:

  # what was just bought, again: {again}
  curl {show}'{url}' -H 'Authorization: {authorization}'

  # the same by hand: ask, and see what it costs
  curl -i '{url}'

  # pay the invoice from that answer with the buyer's wallet: `paymentPreimage` is the proof
  curl -u ':{password}' {wallet}/payinvoice -d invoice=INVOICE

  # ask again with both
  curl '{url}' -H 'Authorization: L402 TOKEN:PREIMAGE'

  # or all of it in one command; {twice}
  export FAREBOX_WALLET_URL={wallet} FAREBOX_WALLET_PASSWORD={password} FAREBOX_JOURNAL={dir}/journal.sqlite
  {program} get '{url}'

  # the seller's books
  {program} ledger list --state-dir {dir}

  # what the gateway counts
  curl {ops}/metrics
",
            dir = stage.data_dir(),
            ops = stage.ops_url,
        )
    }
}
