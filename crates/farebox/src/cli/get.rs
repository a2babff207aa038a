//! `farebox get`: fetch, and pay where it must. Every decision about money is the `client` crate's; here is how it is
//! asked for, where the body goes, and what is said about it.
//!
//! The body goes to standard output byte for byte, everything else to standard error. `--json` puts one object on
//! standard output instead, with the body in it unless it goes to a file.

use std::{io::IsTerminal as _, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context as _;
use farebox_client::{Approve, Engine, EngineConfig, FetchError, Fetched, HttpConfig, Proxy, RequestBody};
use farebox_lightning::Pay;
use farebox_protocol::{Msat, PaymentHash};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};

use crate::{
    buyer::{self, Files},
    output::{OutputFlags, line},
    wallet::WalletFlags,
};

mod body;
mod failure;
mod late;
mod listing;
mod part;
mod person;
mod report;
mod request;

use failure::{Exit, Failure};
use part::{Answer, Download};
use report::Report;
pub(super) use request::uri;

/// How long to wait at the end for payments under way; what has not ended is in the journal.
const CLOSE: Duration = Duration::from_secs(5);

/// Fetch a URL, and pay for it over Lightning if it asks for money
#[derive(Debug, clap::Args)]
#[command(after_help = "\
What may be paid is what the policy says (`farebox policy init` begins one); without a policy,
prices up to --max-cost plus a routing fee up to --max-fee, and 10,000 sat a day. What has been
bought is kept in the journal and used again: a second call pays nothing. A call that was killed may
simply be made again.

Exit codes: 0 done; 1 other errors; 2 the command line; 3 the payment failed, nothing spent; 4 the
network; 5 paid, but the server refuses the credential; 6 status 429 with --fail; 7 not paid, by the
policy and limits; 8 nobody knows whether the payment arrived (run it again, or see --resume); 9 a
person must agree to it, and nobody has; 10 a dry run is done; 22 another status of 400 or more with
--fail. When standard error is not a terminal, errors are one line of JSON with a `code` and the
state of the `money`.

Examples:
  farebox get https://api.example.com/weather
  farebox get --dry-run https://api.example.com/weather
  farebox get -o film.mp4 --max-cost 5000sat https://media.example.com/film.mp4
  farebox get -d @question.json -H 'content-type: application/json' \\
      https://api.example.com/ask
  farebox get --wallet-url http://127.0.0.1:9740 --wallet-password-file password \\
      https://api.example.com/
  farebox get --resume")]
pub(crate) struct Args {
    /// The address; without a scheme, https
    #[arg(required_unless_present_any = ["resume", "write_off"])]
    url: Option<String>,
    #[command(flatten)]
    request: request::RequestArgs,

    /// Write the body to this file, which appears only when it is complete
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Go on with a file that an earlier call with -o has left incomplete; if there is none, it has changed meanwhile,
    /// or the server can't go on, it is fetched anew. Nothing is paid twice
    #[arg(short = 'c', long = "continue", requires = "output")]
    go_on: bool,
    /// The same as curl writes it: `-C -`. Where to go on is told by the part, so other values are refused
    #[arg(
        short = 'C',
        long = "continue-at",
        value_name = "-",
        requires = "output",
        allow_hyphen_values = true
    )]
    continue_at: Option<String>,
    /// Fail, without a body, on a status of 400 or more
    #[arg(short, long)]
    fail: bool,
    /// Print the status and the headers of the answer before its body
    #[arg(short, long, conflicts_with = "output")]
    include: bool,
    /// Say nothing but errors
    #[arg(short, long, visible_short_alias = 's', visible_alias = "silent")]
    quiet: bool,
    /// Show no progress bar; there is one only on a terminal
    #[arg(long)]
    no_progress: bool,
    /// Print the body, which is done anyway unless it goes to a file
    #[arg(long, conflicts_with = "output")]
    print_body: bool,

    #[command(flatten)]
    money: Money,
    #[command(flatten)]
    wallet: WalletFlags,
    #[command(flatten)]
    network: Network,

    #[command(flatten)]
    files: Files,
    /// Ask the wallet about payments whose outcome is not known, and list those still open; fetches nothing
    #[arg(long, conflicts_with_all = ["url", "write_off"], help_heading = "Journal")]
    resume: bool,
    /// Take your word that this payment was never made, so that its place is free again; fetches nothing
    #[arg(long, value_name = "PAYMENT_HASH", conflicts_with = "url", help_heading = "Journal")]
    write_off: Option<String>,
}

/// What may be paid.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Money")]
struct Money {
    /// The highest price, without the routing fee; 0sat pays nothing. It lowers what a policy allows and never raises it
    /// [default: what the policy says; without one, 1000sat]
    #[arg(long, value_name = "AMOUNT")]
    max_cost: Option<Msat>,
    /// The highest routing fee on top of the price [default: what the policy says; without one, 10sat]
    #[arg(long, value_name = "AMOUNT")]
    max_fee: Option<Msat>,
    /// Buy this one of several offers, by the name that --dry-run tells. What was bought before is used first
    #[arg(long, value_name = "NAME")]
    offer: Option<String>,
    /// On whose behalf: a name that rules of the policy may look at
    #[arg(long, value_name = "NAME", env = "FAREBOX_LABEL")]
    label: Option<String>,
    /// Tell the price and buy nothing: no wallet is used, no credential shown
    #[arg(long)]
    dry_run: bool,
    /// Use what has been bought before, but buy nothing
    #[arg(long, conflicts_with = "dry_run")]
    no_pay: bool,
    /// Buy once more where an earlier purchase was paid for and never honoured, and give that one up
    #[arg(long)]
    buy_again: bool,
    /// How long the wallet may try to pay, in seconds
    #[arg(long, alias = "payment-timeout", value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    pay_timeout: Duration,
}

/// How to get there.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Network")]
struct Network {
    /// Buy from, and show credentials to, servers over plain http; loopback needs no permission, nor does an onion address with
    /// a socks5h proxy
    #[arg(long)]
    allow_http: bool,
    /// Trust the certificates in this PEM file, too
    #[arg(long, value_name = "FILE")]
    cacert: Option<PathBuf>,
    /// Go through this proxy, like socks5h://127.0.0.1:9050 [default: what HTTPS_PROXY and its kin say]
    #[arg(short = 'x', long, value_name = "URL")]
    proxy: Option<String>,
    /// How long a connection may take to stand, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    connect_timeout: Duration,
    /// How long a server may be silent, in seconds: neither take more of the request's body nor send more of its answer
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    idle_timeout: Duration,
    /// How long the whole may take, in seconds. A payment that has been sent by then is waited for a few seconds more and never
    /// passed over: exit code 8 while its outcome is unknown [default: no limit]
    #[arg(short, long, value_name = "SECONDS", value_parser = seconds)]
    max_time: Option<Duration>,
}

/// Carries the command out. Its failures have exit codes of their own, so they are told here.
pub(crate) fn run(args: Args, output: OutputFlags) -> anyhow::Result<ExitCode> {
    let told = crate::runtime::block_on(async {
        let work = work(&args, output);
        tokio::select! {
            done = work => Ok(done),
            _ = tokio::signal::ctrl_c() => Ok(Err(Failure::interrupted())),
        }
    })?;
    Ok(match told {
        Ok(exit) => exit.code(),
        Err(failure) => {
            failure.tell(output);
            failure.exit.code()
        }
    })
}

async fn work(args: &Args, output: OutputFlags) -> Result<Exit, Failure> {
    let wallet = match args.money.dry_run || args.money.no_pay {
        true => Ok(None),
        false => args.wallet.connect().await,
    };
    let (wallet, no_wallet) = match wallet {
        Ok(wallet) => (wallet, None),
        // What has been bought already needs no wallet: its trouble is told only if there is something to pay.
        Err(error) => (None, Some(error)),
    };
    let pay = wallet.as_ref().map(|wallet| Arc::clone(&wallet.pay));
    let exit = match open(args, pay).map_err(Failure::usage) {
        Ok(engine) => {
            let exit = told(args, output, &engine).await;
            engine.close(CLOSE).await;
            exit
        }
        Err(failure) => Err(failure),
    };
    if let Some(wallet) = wallet {
        wallet.stop().await;
    }
    exit.map_err(|failure| if args.money.no_pay { failure } else { failure.because(no_wallet) })
}

async fn told(args: &Args, output: OutputFlags, engine: &Engine) -> Result<Exit, Failure> {
    if args.resume {
        return listing::open_payments(&engine.resume().await?, output);
    }
    if let Some(hash) = &args.write_off {
        let hash: PaymentHash =
            hash.parse().context("`--write-off` takes a payment hash").map_err(Failure::usage)?;
        let done = engine.write_off(hash).await?;
        return if done {
            Ok(Exit::Done)
        } else {
            Err(Failure::other("no_such_payment", "no open payment has this hash"))
        };
    }
    let url = args.url.as_deref().unwrap_or_default();
    let request = request::build(url, &args.request, args.money.offer.as_deref()).map_err(Failure::usage)?;
    if args.money.dry_run {
        let most = args.network.max_time.unwrap_or(Duration::MAX);
        let quote = tokio::time::timeout(most, engine.quote(request)).await;
        return listing::quote(&quote.map_err(|_| Failure::late(None))??, output);
    }
    fetch(args, output, engine, request).await
}

async fn fetch(
    args: &Args,
    output: OutputFlags,
    engine: &Engine,
    request: http::Request<RequestBody>,
) -> Result<Exit, Failure> {
    if let Some(path) = &args.output {
        body::check_writable(path).map_err(|error| Failure::other("output", &format!("{error:#}")))?;
    }
    let mut download = match &args.output {
        Some(path) => Some(Download::new(path, &request, args.goes_on()?).map_err(Failure::usage)?),
        None => None,
    };
    let started = tokio::time::Instant::now();
    let deadline = args.network.max_time.and_then(|most| started.checked_add(most));
    let asked = ask(args, engine, request, download.as_mut());
    let (fetched, answer) = match deadline {
        None => asked.await?,
        Some(deadline) => {
            let before = late::payments(engine).await?;
            match tokio::time::timeout_at(deadline, asked).await {
                Ok(asked) => asked?,
                Err(_) => return Err(late::told(engine, &before).await?),
            }
        }
    };
    let mut report = Report::of(&fetched, args.include || args.request.head);
    if !args.quiet && !output.is_json() {
        report.notes().for_each(|note| eprintln!("{note}"));
    }
    if let Some(offer) = args.money.offer.as_deref().filter(|_| report.knows_no_such_offer()) {
        return Err(Failure::no_such_offer(offer));
    }
    if (args.fail && report.status >= 400) || answer == Answer::Other {
        return Err(Failure::status(&report));
    }
    let (status, headers) = (fetched.response.status(), fetched.response.headers());
    let place = match (&args.output, download) {
        (Some(path), Some(download)) => {
            let part = download.part(answer, status, headers, fetched.response.url());
            body::Place::File(path, part.map_err(|error| Failure::other("output", &format!("{error:#}")))?)
        }
        _ if output.is_json() => body::Place::Memory,
        _ => body::Place::Stdout,
    };
    if matches!(place, body::Place::Stdout) && (args.include || args.request.head) {
        body::print_head(&fetched.response)
            .map_err(|error| Failure::other("output", &format!("{error:#}")))?;
    }
    let shown = !args.quiet && !args.no_progress && !output.is_json();
    let taken = body::take(fetched.response, place, shown, deadline).await;
    let body = taken.map_err(|error| report.broken(error))?;
    if output.is_json() {
        report.finish(body, args.output.as_deref(), started.elapsed());
        let text =
            serde_json::to_string(&report).map_err(|error| Failure::other("internal", &error.to_string()))?;
        line(&text).map_err(|error| Failure::other("output", &error.to_string()))?;
    }
    Ok(Exit::Done)
}

/// Sends the request: for the rest of a file where there is a beginning, and again for all of it where that led nowhere.
async fn ask(
    args: &Args,
    engine: &Engine,
    request: http::Request<RequestBody>,
    download: Option<&mut Download<'_>>,
) -> Result<(Fetched, Answer), Failure> {
    let explained = if args.money.no_pay { Failure::unpaid } else { Failure::of };
    let Some(download) = download else {
        return Ok((engine.fetch(request).await.map_err(|error| explained(&error))?, Answer::Whole));
    };
    let judge = |download: &Download<'_>, Fetched { response, .. }: &Fetched| {
        download.judge(response.status(), response.headers(), response.url())
    };
    let mut for_the_rest = request.clone();
    download.ask(&mut for_the_rest).map_err(Failure::usage)?;
    let fetched = engine.fetch(for_the_rest).await.map_err(|error| explained(&error))?;
    let answer = judge(download, &fetched);
    if answer != Answer::Useless {
        return Ok((fetched, answer));
    }
    download.begin_anew();
    let bought = fetched.purchase;
    let mut again = engine.fetch(request).await.map_err(|error| explained(&error))?;
    again.purchase = again.purchase.or(bought);
    let answer = judge(download, &again);
    Ok((again, answer))
}

impl Args {
    /// Whether an earlier download is to be gone on with.
    fn goes_on(&self) -> Result<bool, Failure> {
        match self.continue_at.as_deref() {
            None => Ok(self.go_on),
            Some("-") => Ok(true),
            Some(_) => Err(Failure::usage(anyhow::anyhow!(
                "-C takes `-` and nothing else: where to go on is told by the part that an earlier call has left"
            ))),
        }
    }
}

fn open(args: &Args, wallet: Option<Arc<dyn Pay>>) -> anyhow::Result<Engine> {
    let Money { max_cost, max_fee, .. } = args.money;
    let (policy, limits) = buyer::binding(args.files.policy()?, buyer::Asked { max_cost, max_fee });
    let somebody_is_there = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    let extra_roots = match &args.network.cacert {
        Some(path) => certificates(path)?,
        None => Vec::new(),
    };
    let proxy = args.network.proxy.clone().map_or(Proxy::Environment, Proxy::Through);
    let config = EngineConfig {
        limits,
        policy: Arc::new(policy),
        approver: somebody_is_there.then(|| Arc::new(person::Person) as Arc<dyn Approve>),
        label: args.money.label.clone(),
        wallet,
        http: HttpConfig {
            connect_timeout: args.network.connect_timeout,
            idle_timeout: args.network.idle_timeout,
            proxy,
            extra_roots,
            ..HttpConfig::default()
        },
        pay_timeout: args.money.pay_timeout,
        in_the_clear: args.network.allow_http,
        buy_again: args.money.buy_again,
        ..EngineConfig::new(args.files.journal()?)
    };
    Ok(Engine::open(config)?)
}

/// A time as people write it, like `10`, `0.5` or `60s`.
fn seconds(text: &str) -> Result<Duration, String> {
    let time = text
        .strip_suffix('s')
        .unwrap_or(text)
        .parse()
        .ok()
        .and_then(|secs| Duration::try_from_secs_f64(secs).ok());
    time.filter(|time| !time.is_zero())
        .ok_or_else(|| format!("`{text}` is no time; write seconds, like `10` or `0.5`"))
}

pub(super) fn certificates(path: &std::path::Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let unreadable = || format!("cannot read certificates from `{}`", path.display());
    let pem = std::fs::read(path).with_context(unreadable)?;
    let found =
        CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>().with_context(unreadable)?;
    anyhow::ensure!(!found.is_empty(), "there is no certificate in `{}`", path.display());
    Ok(found)
}

impl From<FetchError> for Failure {
    fn from(error: FetchError) -> Self {
        Self::of(&error)
    }
}
