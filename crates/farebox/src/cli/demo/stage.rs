//! Everything that the demo runs, started in the order that costs the least time and taken down in the order that loses
//! nothing.
//!
//! The nodes come first: LDK looks at its first payment two seconds after a node's start, whatever happens meanwhile.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroU32,
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use axum::Router;
use farebox_gateway::{
    Gateway, GatewayConfig, Listen, OpsConfig, ServiceRoute, Timeouts, UpstreamConfig, UpstreamUrl,
};
use farebox_lightning::{
    Pay, Receive,
    clock::{Clock, SystemClock},
    door::{self, DoorConfig},
    outgoing::{Outgoing, OutgoingConfig, sqlite::SqliteIntents},
    phoenixd::Secret,
    sim::{Net, NetConfig},
};
use farebox_paywall::{Paywall, PaywallConfig, Rate, Service, price::Cost, store::sqlite::SqliteStore};
use farebox_protocol::Network;
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{Args, tell::Teller};
use crate::{runtime, sample, state};

/// Where things listen, if nobody else does.
const GATEWAY_PORT: u16 = 8402;
const SAMPLE_PORT: u16 = 8403;
const OPS_PORT: u16 = 9402;
const WALLET_PORT: u16 = 9740;

/// How long requests and payments under way may take at the end.
const DRAIN: Duration = Duration::from_secs(2);

/// The running demo.
pub(super) struct Stage {
    pub(super) gateway_url: String,
    pub(super) upstream_url: String,
    pub(super) ops_url: String,
    pub(super) wallet_url: String,
    pub(super) wallet_password: Secret,
    /// Through which the buyer's money leaves.
    pub(super) outgoing: Outgoing,
    /// What the story asks for.
    pub(super) example_path: &'static str,
    net: Net,
    dir: TempDir,
    stop: CancellationToken,
    tasks: JoinSet<Result<()>>,
}

impl Stage {
    /// Starts everything.
    pub(super) async fn set(args: &Args, tell: &Teller) -> Result<Self> {
        let net = Net::start(NetConfig::default()).await.context("cannot start the simulated network")?;
        match Self::around(&net, args, tell).await {
            Ok(parts) => Ok(parts.with(net)),
            Err(error) => {
                net.stop().await;
                Err(error)
            }
        }
    }

    /// The temporary directory.
    pub(super) fn data_dir(&self) -> String {
        self.dir.path().display().to_string()
    }

    /// Ends everything: requests in flight first, then payments, then the nodes.
    pub(super) async fn strike(mut self) -> Result<()> {
        self.stop.cancel();
        let mut outcome = Ok(());
        while let Some(ended) = self.tasks.join_next().await {
            outcome = outcome.and(ended.map_err(anyhow::Error::from).flatten());
        }
        self.outgoing.stop(DRAIN).await;
        self.net.stop().await;
        let path = self.dir.path().to_owned();
        self.dir.close().with_context(|| format!("cannot remove `{}`", path.display()))?;
        outcome
    }

    async fn around(net: &Net, args: &Args, tell: &Teller) -> Result<Parts> {
        let dir = tempfile::Builder::new()
            .prefix("farebox-demo-")
            .tempdir()
            .context("cannot make a temporary directory")?;
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);

        let (upstream, example_path) = match &args.upstream {
            Some(url) => (url.clone(), "/"),
            None => {
                let listener = listen(SAMPLE_PORT, "the sample API", tell).await?;
                let url = format!("http://{}", listener.local_addr()?);
                serve(&mut tasks, listener, sample::router(Arc::clone(&clock)), &stop);
                (url.parse()?, "/v1/sun?lat=52.52&lon=13.40")
            }
        };

        let wallet_password = Secret::generate().map_err(|error| io::Error::other(error.to_string()))?;
        let listener = listen(WALLET_PORT, "the buyer's wallet", tell).await?;
        let wallet = listener.local_addr()?;
        let intents = SqliteIntents::open(&dir.path().join("outgoing.sqlite"))?;
        let buyer = Arc::clone(&net.buyer);
        let outgoing = Outgoing::new(
            Arc::clone(&buyer) as Arc<dyn Pay>,
            Arc::new(intents),
            Arc::clone(&clock),
            OutgoingConfig::default(),
        );
        let door = door::router(
            buyer as Arc<dyn Receive>,
            outgoing.clone(),
            Arc::clone(&clock),
            DoorConfig::new(wallet, wallet_password.clone()),
        );
        serve(&mut tasks, listener, door, &stop);

        let node = Arc::clone(&net.seller) as Arc<dyn Receive>;
        let paywall = paywall(dir.path(), node, clock).await?;
        let config = GatewayConfig {
            listen: vec![Listen::new(free(GATEWAY_PORT, "the gateway", tell).await?)],
            ops: Some(OpsConfig {
                addr: free(OPS_PORT, "the operations listener", tell).await?,
                hosts: Vec::new(),
            }),
            services: vec![service(args, upstream.clone())?],
            timeouts: Timeouts { drain: DRAIN, ..Timeouts::default() },
            ..GatewayConfig::default()
        };
        let gateway = Gateway::bind(config, Arc::clone(&paywall))?;
        let gateway_url =
            gateway.addrs().first().map(|addr| format!("http://{addr}")).context("no address")?;
        let ops_url =
            gateway.ops_addr().map(|addr| format!("http://{addr}")).context("no operations address")?;
        let told = stop.clone();
        tasks.spawn(async move { Ok(runtime::sell(gateway, &paywall, &told).await?) });

        Ok(Parts {
            gateway_url,
            upstream_url: upstream.to_string(),
            ops_url,
            wallet_url: format!("http://{wallet}"),
            wallet_password,
            outgoing,
            example_path,
            dir,
            stop,
            tasks,
        })
    }
}

/// All but the nodes, which must be stopped if anything here can't be started.
struct Parts {
    gateway_url: String,
    upstream_url: String,
    ops_url: String,
    wallet_url: String,
    wallet_password: Secret,
    outgoing: Outgoing,
    example_path: &'static str,
    dir: TempDir,
    stop: CancellationToken,
    tasks: JoinSet<Result<()>>,
}

impl Parts {
    fn with(self, net: Net) -> Stage {
        let Self { gateway_url, upstream_url, ops_url, wallet_url, wallet_password, .. } = self;
        let Self { outgoing, example_path, dir, stop, tasks, .. } = self;
        Stage {
            gateway_url,
            upstream_url,
            ops_url,
            wallet_url,
            wallet_password,
            outgoing,
            example_path,
            net,
            dir,
            stop,
            tasks,
        }
    }
}

fn service(args: &Args, upstream: UpstreamUrl) -> Result<ServiceRoute> {
    let name = if args.upstream.is_some() { "api" } else { "sun" };
    let mut service = Service::new(name.parse()?, args.price, args.offer());
    service.costs.otherwise = args.cost.map(|cost| Arc::new(Cost::Fixed(cost)));
    if args.upstream.is_none() {
        service.free_paths = vec!["/".parse()?];
    }
    service.validate().context(if args.credit { "--price and --cost" } else { "--price" })?;
    Ok(ServiceRoute::new(service, UpstreamConfig::new(upstream)))
}

async fn paywall(dir: &Path, node: Arc<dyn Receive>, clock: Arc<dyn Clock>) -> Result<Arc<Paywall>> {
    let keyring = state::keyring(dir, &[])?;
    let store = SqliteStore::open(&state::books(dir))?;
    let config = PaywallConfig {
        // One person plays with it, perhaps with a load generator.
        mint_per_client: Rate::per_second(const { NonZeroU32::new(100_000).expect("above zero") }),
        mint_total: Rate::per_second(const { NonZeroU32::new(100_000).expect("above zero") }),
        ..PaywallConfig::new(Network::Regtest)
    };
    Ok(Paywall::open(config, keyring, node, Arc::new(store), clock).await?)
}

fn serve(tasks: &mut JoinSet<Result<()>>, listener: TcpListener, router: Router, stop: &CancellationToken) {
    let stop = stop.clone();
    tasks.spawn(async move {
        let serving = axum::serve(listener, router).with_graceful_shutdown(stop.clone().cancelled_owned());
        let drained = async {
            stop.cancelled().await;
            tokio::time::sleep(DRAIN).await;
        };
        // A connection that somebody keeps open must not keep the demo from ending.
        tokio::select! {
            outcome = serving.into_future() => Ok(outcome?),
            () = drained => Ok(()),
        }
    });
}

/// A listener on the usual port, or on a free one if that is taken.
async fn listen(port: u16, what: &str, tell: &Teller) -> Result<TcpListener> {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
        Ok(listener) => Ok(listener),
        Err(_) => {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
                .await
                .with_context(|| format!("cannot find a free port for {what}"))?;
            tell.warn(format_args!("port {port} is taken; {what} is on {}", listener.local_addr()?));
            Ok(listener)
        }
    }
}

/// The same for somebody who wants an address and not a listener.
async fn free(port: u16, what: &str, tell: &Teller) -> Result<SocketAddr> {
    Ok(listen(port, what, tell).await?.local_addr()?)
}
