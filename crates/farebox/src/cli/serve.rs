//! `farebox serve`: the gateway, from a configuration file or, for a single service, from flags.
//!
//! Flags are turned into the same document that a file would hold and go through the same reader and the same judgement:
//! there is one meaning of each setting, whichever way it is given.

mod phoenix;

use std::{fmt, net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc};

use farebox_gateway::{Gateway, GatewayError};
use farebox_lightning::clock::SystemClock;
use farebox_paywall::{
    Continuity, OpenError, Paywall,
    receipt::{ReceiptKey, Receipts},
    store::{StoreError, sqlite::SqliteStore},
};
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use super::Usage;
use crate::{
    config::{
        self, Config,
        problem::{Problem, located},
    },
    late::LateNodes,
    logging,
    output::Reader,
    refunds, runtime,
    sold::buys,
    state,
};

/// Run the gateway: from a configuration file, or for one service from flags
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Without --config and --upstream, farebox.yaml in the working directory is served. With --upstream,
and without a node named, the phoenixd that runs on this machine is used.

Examples:
  farebox serve
  farebox serve --upstream http://127.0.0.1:3000 --price 10sat
  farebox serve --config /etc/farebox/farebox.yaml
  farebox serve --upstream http://127.0.0.1:3000 --price 10sat --network signet \\
      --phoenixd http://127.0.0.1:9740 --phoenixd-password-file ~/.phoenix/http-password
  farebox serve --upstream http://127.0.0.1:3000 --price 50sat --duration 1h --network signet \\
      --esplora https://mempool.space/signet/api
  farebox serve --upstream http://127.0.0.1:3000 --price 100sat --requests 1000
  farebox serve --upstream http://127.0.0.1:3000 --price 100sat --credit --cost 500msat")]
pub(crate) struct Args {
    /// The configuration file
    #[arg(long, value_name = "FILE", conflicts_with = "upstream")]
    config: Option<PathBuf>,
    /// Start although the books were kept with another mint secret; tokens sold before are then worth nothing
    #[arg(long)]
    abandon_sold_tokens: bool,
    #[command(flatten)]
    quick: Quick,
}

/// One service without a file.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "One service without a file")]
struct Quick {
    /// The API to put a price on: http://, https:// or h2c://, host and port
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
    /// What one payment costs, like 10sat or 1500msat
    #[arg(long, value_name = "AMOUNT", requires = "upstream")]
    price: Option<String>,
    /// For how long one payment opens it, like 1h or 30d [default: for ever]
    #[arg(long, value_name = "DURATION", requires = "upstream", conflicts_with_all = ["requests", "credit"])]
    duration: Option<String>,
    /// How many requests one payment buys
    #[arg(long, value_name = "NUMBER", requires = "upstream", conflicts_with = "credit")]
    requests: Option<u64>,
    /// One payment buys as much credit, to be drawn down by use
    #[arg(long, requires_all = ["upstream", "cost"])]
    credit: bool,
    /// What a request takes from credit, like 500msat
    #[arg(long, value_name = "AMOUNT", requires = "credit")]
    cost: Option<String>,
    /// The name of the service [default: api]
    #[arg(long, value_name = "NAME", requires = "upstream")]
    name: Option<String>,
    /// Where buyers connect [default: 127.0.0.1:8402]
    #[arg(long, value_name = "ADDR", requires = "upstream")]
    listen: Option<String>,
    /// Where health and metrics are served, or `off` [default: 127.0.0.1:9402]
    #[arg(long, value_name = "ADDR", requires = "upstream")]
    ops: Option<String>,
    /// Where the mint secret and the books are kept [default: farebox-state]
    #[arg(long, value_name = "DIR", requires = "upstream")]
    state_dir: Option<PathBuf>,
    /// The Bitcoin network: mainnet, testnet, signet or regtest [default: mainnet]
    #[arg(long, value_name = "NETWORK", requires = "upstream")]
    network: Option<String>,
    /// Be paid by a node inside farebox that reads the chain from this Esplora server
    #[arg(long, value_name = "URL", requires = "upstream", conflicts_with = "phoenixd")]
    esplora: Option<String>,
    /// Be paid by this phoenixd, or by a `farebox node` [default: the phoenixd of ~/.phoenix/phoenix.conf]
    #[arg(long, value_name = "URL", requires_all = ["upstream", "phoenixd_password_file"])]
    phoenixd: Option<String>,
    /// The file with its password
    #[arg(long, value_name = "FILE", requires = "phoenixd")]
    phoenixd_password_file: Option<PathBuf>,
}

const NO_NODE: &str = "\
farebox needs a Lightning node to be paid. There is no ~/.phoenix/phoenix.conf of a phoenixd here; name another:
  --esplora URL                                     a node inside farebox, which reads the chain from an Esplora server
  --phoenixd URL --phoenixd-password-file FILE      a phoenixd, or a `farebox node`, that runs already";

const NOTHING_TO_SERVE: &str = "\
there is nothing to serve: no farebox.yaml here, no --config FILE, no --upstream URL. For a start:
  farebox serve --upstream http://127.0.0.1:3000 --price 10sat --network signet --esplora URL";

/// Where it can be reached.
#[derive(Debug, Serialize)]
struct Listening {
    event: &'static str,
    listen: Vec<SocketAddr>,
    /// Where health and metrics are.
    ops: Option<String>,
    services: Vec<Offered>,
}

#[derive(Debug, Serialize)]
struct Offered {
    name: String,
    /// Its addresses, with commas between them.
    upstream: String,
    /// In millisatoshi; none when it is free.
    price_msat: Option<u64>,
    price: String,
}

impl fmt::Display for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for addr in &self.listen {
            writeln!(f, "listening on {addr}")?;
        }
        if let Some(ops) = &self.ops {
            writeln!(f, "health and metrics on {ops}")?;
        }
        for (index, service) in self.services.iter().enumerate() {
            let end = if index + 1 < self.services.len() { "\n" } else { "" };
            write!(f, "  {} -> {}, {}{end}", service.name, service.upstream, service.price)?;
        }
        Ok(())
    }
}

pub(crate) fn run(args: Args, reader: Reader) -> anyhow::Result<ExitCode> {
    let (file, mut config) = args.configuration()?;
    logging::start("info")?;
    for note in &config.notes {
        tracing::warn!("{}", located(file.as_deref(), note));
    }
    if args.abandon_sold_tokens {
        config.paywall.continuity = Continuity::Abandon;
    }
    runtime::block_on(serve(config, reader))
}

impl Args {
    fn configuration(&self) -> anyhow::Result<(Option<PathBuf>, Config)> {
        if self.quick.upstream.is_some() {
            return Ok((None, self.quick.configuration()?));
        }
        let usual = PathBuf::from("farebox.yaml");
        let file = self.config.clone().or_else(|| usual.exists().then_some(usual));
        let file = file.ok_or_else(|| Usage(NOTHING_TO_SERVE.to_owned()))?;
        let config = config::load(&file)?;
        Ok((Some(file), config))
    }
}

impl Quick {
    fn configuration(&self) -> anyhow::Result<Config> {
        // Root keys hold the network, and a node on another one stops the start: nothing is sold for the wrong coins.
        let network = self.network.as_deref().unwrap_or("mainnet");
        let mut service = Map::new();
        service.insert("name".into(), json!(self.name.as_deref().unwrap_or("api")));
        insert(&mut service, "upstream", self.upstream.as_ref());
        insert(&mut service, "price", self.price.as_ref());
        if let Some(duration) = &self.duration {
            service.insert("offer".into(), json!({ "duration": duration }));
        } else if let Some(count) = self.requests {
            service.insert("offer".into(), json!({ "requests": count }));
        } else if self.credit {
            service.insert("offer".into(), json!("credit"));
        }
        insert(&mut service, "cost", self.cost.as_ref());
        let mut document = Map::new();
        document.insert("network".into(), json!(network));
        document.insert("lightning".into(), self.lightning()?);
        document.insert("services".into(), json!([service]));
        insert(&mut document, "ops", self.ops.as_ref());
        insert(&mut document, "state-dir", self.state_dir.as_ref());
        if let Some(listen) = &self.listen {
            document.insert("listen".into(), json!([listen]));
        }
        let failed = |problems: Vec<Problem>| {
            let lines = problems.iter().map(|problem| format!("{}: {}", flag(&problem.key), problem.message));
            Usage(lines.collect::<Vec<_>>().join("\nerror: "))
        };
        Ok(config::from_flags(&Value::Object(document)).map_err(failed)?)
    }

    fn lightning(&self) -> anyhow::Result<Value> {
        match (&self.esplora, &self.phoenixd) {
            (Some(url), _) => Ok(json!({ "embedded": { "chain": { "esplora": url } } })),
            (None, Some(url)) => {
                Ok(json!({ "phoenixd": { "url": url, "password": { "file": self.phoenixd_password_file } } }))
            }
            (None, None) => {
                let found = phoenix::find().ok_or_else(|| Usage(NO_NODE.to_owned()))?;
                eprintln!("note: paid through the phoenixd of `{}`, at {}", found.file.display(), found.url);
                Ok(
                    json!({ "phoenixd": { "url": found.url, "password": { "text": found.password.expose() } } }),
                )
            }
        }
    }
}

fn insert(map: &mut Map<String, Value>, key: &str, value: Option<&impl Serialize>) {
    if let Some(value) = value {
        map.insert(key.into(), json!(value));
    }
}

/// The flag that a key of the document came from.
fn flag(key: &str) -> &'static str {
    let flags = [
        ("services[0].name", "--name"),
        ("services[0].upstream", "--upstream"),
        ("services[0].price", "--price"),
        ("services[0].offer.duration", "--duration"),
        ("services[0].offer", "--requests"),
        ("services[0].cost", "--cost"),
        ("services[0]", "--price"),
        ("lightning.embedded", "--esplora"),
        ("lightning.phoenixd.url", "--phoenixd"),
        ("lightning.phoenixd", "--phoenixd-password-file"),
        ("listen", "--listen"),
        ("network", "--network"),
        ("ops", "--ops"),
        ("state-dir", "--state-dir"),
    ];
    flags.into_iter().find(|(start, _)| key.starts_with(start)).map_or("the flags", |(_, flag)| flag)
}

async fn serve(mut config: Config, reader: Reader) -> anyhow::Result<ExitCode> {
    let stop = CancellationToken::new();
    let signals = runtime::stop_on_signal(stop.clone());
    let hang_ups = runtime::pass_over_hang_ups();
    state::make_private(&config.state_dir)?;
    let keyring = state::keyring(&config.state_dir, &config.mint_secrets)?;
    let store = SqliteStore::open(&state::books(&config.state_dir))?;
    config.paywall.freebie_file = Some(state::freebies(&config.state_dir));
    let services = config.gateway.services.iter().map(offered).collect();
    let nodes =
        LateNodes::start(config.lightning, config.paywall.network, &config.base, &config.state_dir).await?;
    let backends = nodes.backends()?;
    let paywall = Paywall::open(config.paywall, keyring, backends, Arc::new(store), Arc::new(SystemClock))
        .await
        .map_err(explained)?;
    let gateway = Gateway::bind(config.gateway, Arc::clone(&paywall)).map_err(taken)?;
    let refunds = refunds::open(config.refunds, &paywall, &config.state_dir).await?;
    if let Some(refunds) = &refunds {
        gateway.pay_back(Arc::clone(refunds));
    }
    if let Some(seller) = config.signs_receipts_as {
        let key = ReceiptKey::load_or_create(&state::receipt_key(&config.state_dir))?;
        tracing::info!(key = %key.public(), "receipts are signed for buyers who ask");
        gateway.sign_receipts(Receipts::new(Arc::clone(&paywall), key, Some(seller)));
    }
    reader.print(&Listening {
        event: "listening",
        listen: gateway.addrs(),
        ops: gateway.ops_addr().map(|addr| format!("http://{addr}")),
        services,
    })?;

    let connecting = async {
        let outcome = nodes.keep_trying(&stop).await;
        if outcome.is_err() {
            stop.cancel();
        }
        outcome
    };
    let work = async {
        let paying_back = async {
            if let Some(refunds) = &refunds {
                refunds::pay_out(refunds, &nodes, &stop).await;
            }
        };
        let selling = runtime::sell(gateway, &paywall, &stop);
        let (sold, connecting, ()) = tokio::join!(selling, connecting, paying_back);
        sold.map_err(anyhow::Error::from).and(connecting)
    };
    let outcome = tokio::select! {
        outcome = work => outcome,
        uncaught = signals => uncaught.map(|never| match never {}),
        uncaught = hang_ups => uncaught.map(|never| match never {}),
    };
    // Last: the books follow them to their end.
    nodes.stop().await;
    outcome?;
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// What the paywall can't know is which flag overrules it.
fn explained(error: OpenError) -> anyhow::Error {
    let other_secrets = matches!(error, OpenError::Store(StoreError::OtherSecrets { .. }));
    let error = anyhow::Error::from(error);
    if other_secrets {
        error.context("to give the sold tokens up, start once with --abandon-sold-tokens")
    } else {
        error
    }
}

/// What the gateway can't know is where its addresses were given.
fn taken(error: GatewayError) -> anyhow::Error {
    match error {
        GatewayError::Listen { message, error: Some(error) } => anyhow::Error::from(error)
            .context(format!("{message}; choose another with --listen or --ops, or in the configuration")),
        other => other.into(),
    }
}

fn offered(route: &farebox_gateway::ServiceRoute) -> Offered {
    let service = &route.service;
    let is_free = service.auth == farebox_paywall::Auth::Off;
    let addresses: Vec<_> = route.upstream.urls.iter().map(ToString::to_string).collect();
    Offered {
        name: service.name.to_string(),
        upstream: addresses.join(", "),
        price_msat: (!is_free).then(|| service.price.get()),
        price: if is_free {
            "free".to_owned()
        } else {
            format!("{} buys {}", service.price, buys(&service.offer, service.menu.good_for))
        },
    }
}
