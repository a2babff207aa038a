//! `farebox demo`: the whole thing in one command, on a simulated chain: a seller's and a buyer's Lightning node, an API,
//! the gateway before it, and one purchase told step by step. With `--config` it sells what a seller's own file says.
//!
//! The coins are worthless and the chain lives in this process; channels, payments, invoices, tokens and the gateway are
//! the real ones. All that is kept lies in a temporary directory, which is removed at the end.

mod commands;
mod counters;
mod goods;
mod stage;
mod story;
mod tell;

use std::{collections::BTreeSet, num::NonZeroU64, path::PathBuf, process::ExitCode, time::Duration};

use farebox_gateway::UpstreamUrl;
use farebox_protocol::{Msat, Offer};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::{
    commands::{Buyer, Commands},
    counters::Counter,
    goods::Goods,
    stage::Stage,
    story::Wish,
    tell::{Ready, Teller},
};
use super::Usage;
use crate::{logging, runtime};

/// How long requests and payments under way may take at the end.
const DRAIN: Duration = Duration::from_secs(2);

/// Sell an API over Lightning on a simulated chain, and buy from it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The story is printed for people; --json prints it as JSON lines.

With --config, everything is sold as that file says: offers, costs, limits, refunds, receipts. Only
what belongs to the machine it is meant for is the demo's own, and said: the node, the network, the
addresses, the mint secret and the state directory. Nothing is asked of the node that the file names.

Examples:
  farebox demo                                           sell the sample API, buy once, then stay up
  farebox demo --once                                    buy once, then exit
  farebox demo --upstream http://127.0.0.1:3000          sell your own API
  farebox demo --requests 3                              one payment buys three requests
  farebox demo --credit --cost 4sat                      10 sat of credit, 4 sat a request
  farebox demo --config farebox.yaml                     sell what your configuration says
  farebox demo --config farebox.yaml --echo              the same, without your APIs
  farebox demo --once --json | jq -r '.authorization // empty'")]
pub(crate) struct Args {
    /// Exit after the story
    #[arg(long)]
    once: bool,
    /// Sell this API instead of the sample: http://, https:// or h2c://, host and port
    #[arg(long, value_name = "URL")]
    upstream: Option<UpstreamUrl>,
    /// Sell what this configuration says, with the demo's own node in the place of `lightning`
    #[arg(long, value_name = "FILE", conflicts_with_all = ["upstream", "price", "requests", "credit", "cost"])]
    config: Option<PathBuf>,
    /// Answer in the place of every API that is sold: what came in, as JSON, with a usage object; `?bytes=5000` makes it as
    /// long, `?tokens=200` says how much output was used, `?status=503` fails
    #[arg(long, conflicts_with = "upstream")]
    echo: bool,
    /// What the story asks for [default: the first path of the first service that has to be paid]
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
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
    let mut goods = Goods::gather(args, tell).await?;
    let chosen = choose(args.path.as_deref(), &mut goods.counters)?;
    tell.step(format_args!("start a chain, two Lightning nodes, an API and the gateway"));
    let stage = Stage::set(&goods, tell).await?;
    let outcome = tell_story(args, tell, stop, &stage, &goods, chosen).await;
    // Whatever happened, everything is taken down in order: LDK aborts the process if its runtime goes first.
    let struck = stage.strike().await;
    outcome.and(struck)
}

/// The service that the story buys from: the first one that has to be paid, or that has `path`, which it is then asked for.
/// None where everything is free.
fn choose(path: Option<&str>, counters: &mut [Counter]) -> anyhow::Result<Option<usize>> {
    let for_sale = |counter: &Counter| counter.is_paid && !counter.is_silent;
    let Some(path) = path else { return Ok(counters.iter().position(for_sale)) };
    let is_path = path.starts_with('/');
    let Some(at) = counters.iter().position(|counter| is_path && for_sale(counter) && counter.has(path))
    else {
        let sold: BTreeSet<_> = counters
            .iter()
            .filter(|counter| for_sale(counter))
            .map(|counter| counter.path.as_str())
            .collect();
        let sold = sold.into_iter().collect::<Vec<_>>().join("`, `");
        let message = match sold.as_str() {
            "" => format!("--path: nothing is sold at `{path}`, as everything is free; leave it out"),
            sold => format!("--path: nothing is sold at `{path}`; write one that begins with `{sold}`"),
        };
        return Err(Usage(message).into());
    };
    path.clone_into(&mut counters[at].path);
    Ok(Some(at))
}

async fn tell_story(
    args: &Args,
    tell: &Teller,
    stop: &CancellationToken,
    stage: &Stage,
    goods: &Goods,
    chosen: Option<usize>,
) -> anyhow::Result<()> {
    tell.ready(&Ready {
        gateway: &stage.gateway_url,
        upstream: &stage.upstream_url,
        wallet_url: &stage.wallet_url,
        wallet_password: stage.wallet_password.expose(),
        ops_url: &stage.ops_url,
        data_dir: &stage.data_dir(),
        counters: &goods.counters,
        replaced: &goods.replaced,
    });
    let wish = chosen.and_then(|at| goods.counters.get(at)).map(|counter| Wish {
        url: format!("{}{}", stage.gateway_url, counter.path),
        method: counter.method.clone(),
        host: counter.host.clone(),
        freebies: counter.freebies,
    });
    let bought = match &wish {
        Some(wish) => tokio::select! {
            bought = story::run(wish, &stage.outgoing, tell) => Some((wish, bought?)),
            () = stop.cancelled() => return Ok(()),
        },
        None => {
            tell.nothing("there is nothing to buy: everything is free");
            None
        }
    };
    if args.once {
        return Ok(());
    }
    let bought = bought.as_ref().map(|(wish, bought)| (*wish, bought));
    let buyer = Buyer::settle(stage, bought).await?;
    tell.commands(&buyer.file, &Commands { stage, goods, buyer: &buyer, bought });
    stop.cancelled().await;
    Ok(())
}
