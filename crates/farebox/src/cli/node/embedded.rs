//! Starting the embedded node, opening its wallet door, and ending both in order.

use std::{
    fmt, fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use farebox_lightning::{
    Health, Pay, Receive,
    clock::SystemClock,
    config::{ChainSettings, ConfigProblem, EmbeddedSettings, LightningConfig},
    door::{self, DoorConfig},
    embedded::{ChainSource, EmbeddedConfig, EmbeddedNode, Seed, Storage},
    outgoing::{Outgoing, OutgoingConfig, sqlite::SqliteIntents},
    phoenixd::Secret,
};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::{Args, Chain};
use crate::{cli::Usage, logging, output::Reader, runtime, state};

/// How often the chain is asked what is new.
const SYNC_EVERY: Duration = Duration::from_secs(30);
/// How long payments under way may take to end when the node stops. What isn't over by then is looked up at the next start.
const STOP_WITHIN: Duration = Duration::from_secs(30);

/// Where the node can be reached.
#[derive(Debug, Serialize)]
struct Listening {
    event: &'static str,
    network: String,
    node_id: String,
    /// The wallet's HTTP API.
    url: String,
    password_file: PathBuf,
    /// An address of its on-chain wallet, to put money on; none while the chain can't be reached.
    address: Option<String>,
    /// Why it doesn't run yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting: Option<String>,
}

impl fmt::Display for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "node      {} on {}", self.node_id, self.network)?;
        writeln!(f, "wallet    {}", self.url)?;
        write!(f, "password  in {}", self.password_file.display())?;
        if let Some(address) = &self.address {
            write!(f, "\naddress   {address}")?;
        }
        if let Some(waiting) = &self.waiting {
            write!(f, "\nwaiting   {waiting}")?;
        }
        Ok(())
    }
}

pub(crate) fn run(args: Args, reader: Reader) -> anyhow::Result<ExitCode> {
    args.check()?;
    logging::start("info")?;
    runtime::block_on(serve(args, reader))
}

async fn serve(args: Args, reader: Reader) -> anyhow::Result<ExitCode> {
    let stop = CancellationToken::new();
    let signals = runtime::stop_on_signal(stop.clone());
    state::make_private(&args.dir)?;
    let password_file = args.dir.join("http-password");
    let password = password(&password_file)?;
    // Before the node: a port that is taken should cost no start of a node.
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("cannot listen on `{}`; choose another with --listen", args.listen))?;
    let listen = listener.local_addr()?;
    let intents = Arc::new(SqliteIntents::open(&args.dir.join("outgoing.sqlite"))?);
    let node = EmbeddedNode::start(EmbeddedConfig {
        network: args.network,
        chain: args.chain.source()?,
        storage: Storage::Directory(args.dir.clone()),
        seed: Seed::File(args.dir.join("seed")),
        listen: args.peer_listen,
        alias: args.alias,
        rapid_gossip: args.rapid_gossip,
        sync_every: Some(SYNC_EVERY),
    })
    .await?;

    let clock = Arc::new(SystemClock);
    let outgoing =
        Outgoing::new(Arc::clone(&node) as Arc<dyn Pay>, intents, clock.clone(), OutgoingConfig::default());
    let door = DoorConfig { hosts: args.hosts, ..DoorConfig::new(listen, password) };
    let router = door::router(Arc::clone(&node) as Arc<dyn Receive>, outgoing.clone(), clock, door);
    reader.print(&listening(&node, listen, password_file).await)?;

    let door = async {
        outgoing.resume().await?;
        axum::serve(listener, router).with_graceful_shutdown(stop.clone().cancelled_owned()).await?;
        anyhow::Ok(())
    };
    let outcome = tokio::select! {
        outcome = door => outcome,
        uncaught = signals => uncaught.map(|never| match never {}),
    };
    let all_ended = outgoing.stop(STOP_WITHIN).await;
    node.stop().await;
    outcome?;
    if !all_ended {
        tracing::warn!("payments are still under way; the next start follows them up");
    }
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

async fn listening(node: &EmbeddedNode, listen: SocketAddr, password_file: PathBuf) -> Listening {
    let address = node.with_ldk(|ldk| ldk.onchain_payment().new_address()).await;
    let address = address.ok().and_then(Result::ok).map(|address| address.to_string());
    let waiting = match node.health() {
        Health::Ready => None,
        Health::Down(why) => Some(why),
    };
    Listening {
        event: "listening",
        network: Pay::facts(node).network.to_string(),
        node_id: node.node_id().to_string(),
        url: format!("http://{listen}"),
        password_file,
        address,
        waiting,
    }
}

/// The password of the door, made on the first start.
fn password(path: &Path) -> anyhow::Result<Secret> {
    let named = |what: &str| format!("cannot {what} the password `{}`", path.display());
    if !path.exists() {
        let fresh = Secret::generate()
            .map_err(|error| anyhow::anyhow!("the system gives no random bytes: {error}"))?;
        write_private(path, fresh.expose()).with_context(|| named("make"))?;
    }
    let text = Zeroizing::new(fs::read_to_string(path).with_context(|| named("read"))?);
    let text = text.trim_end();
    anyhow::ensure!(
        text.len() >= 16,
        "`{}` holds no password of 16 characters or more; remove the file",
        path.display()
    );
    check_private(path)?;
    Ok(Secret::new(text))
}

/// Writes a new file that only its owner can read; one that has appeared meanwhile is kept.
fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        file => {
            let mut file = file?;
            io::Write::write_all(&mut file, format!("{text}\n").as_bytes())?;
            file.sync_all()
        }
    }
}

/// Whoever reads the password can spend the money.
fn check_private(path: &Path) -> anyhow::Result<()> {
    #[cfg(unix)]
    {
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path)?.permissions());
        let path = path.display();
        anyhow::ensure!(
            mode & 0o077 == 0,
            "`{path}` can be read by other users, and whoever reads it can spend; run `chmod 600` on it"
        );
    }
    Ok(())
}

impl Args {
    /// Holds the flags against what a configuration file must keep to, too: a node would try a wrong address for ever.
    fn check(&self) -> Result<(), Usage> {
        let chain = match (&self.chain.esplora, &self.chain.electrum) {
            (Some(url), _) => Some(ChainSettings::Esplora(url.clone())),
            (_, Some(url)) => Some(ChainSettings::Electrum(url.clone())),
            _ => None,
        };
        let settings = EmbeddedSettings {
            network: self.network,
            // A Bitcoin Core has no address to judge, and this one passes.
            chain: chain.unwrap_or_else(|| ChainSettings::Esplora("http://bitcoind.invalid".to_owned())),
            dir: None,
            seed_file: None,
            listen: self.peer_listen,
            alias: self.alias.clone(),
            rapid_gossip: self.rapid_gossip.clone(),
        };
        LightningConfig::Embedded(settings).check().map_err(|problem| {
            Usage(match problem {
                ConfigProblem::Scheme { key, value, expected } => {
                    format!("--{key}: `{value}` doesn't begin with one of {expected}")
                }
                ConfigProblem::PortZero => {
                    "--peer-listen: peers must know the port, so it can't be 0; usually it is 9735".to_owned()
                }
                other => other.to_string(),
            })
        })
    }
}

impl Chain {
    fn source(&self) -> anyhow::Result<ChainSource> {
        match (
            &self.esplora,
            &self.electrum,
            &self.bitcoind,
            &self.bitcoind_user,
            &self.bitcoind_password_file,
        ) {
            (Some(url), ..) => Ok(ChainSource::Esplora { url: url.clone() }),
            (_, Some(url), ..) => Ok(ChainSource::Electrum { url: url.clone() }),
            (_, _, Some(at), Some(user), Some(file)) => {
                let (host, port) =
                    at.rsplit_once(':').context("--bitcoind wants HOST:PORT, like 127.0.0.1:8332")?;
                let port = port.parse().with_context(|| format!("`{port}` is not a port"))?;
                let password = fs::read_to_string(file).map(Zeroizing::new);
                let password = password.with_context(|| format!("cannot read `{}`", file.display()))?;
                Ok(ChainSource::Bitcoind {
                    host: host.to_owned(),
                    port,
                    user: user.clone(),
                    password: Zeroizing::new(password.trim_end().to_owned()),
                    rest: None,
                })
            }
            // clap has made sure of one of them.
            _ => anyhow::bail!("the chain is missing; name --esplora, --electrum or --bitcoind"),
        }
    }
}
