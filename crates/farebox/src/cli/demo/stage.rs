//! Everything that the demo runs, started in the order that costs the least time and taken down in the order that loses
//! nothing.
//!
//! The nodes come first: LDK looks at its first payment two seconds after a node's start, whatever happens meanwhile.

use std::{
    fs::Permissions,
    io,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::Arc,
};

use anyhow::{Context as _, Result};
use axum::Router;
use farebox_gateway::{Gateway, GatewayConfig, Listen, OpsConfig, UpstreamConfig};
use farebox_lightning::{
    Pay, Receive,
    clock::{Clock, SystemClock},
    door::{self, DoorConfig},
    outgoing::{Outgoing, OutgoingConfig, sqlite::SqliteIntents},
    phoenixd::Secret,
    sim::{Net, NetConfig},
};
use farebox_paywall::{
    Paywall, PaywallConfig,
    receipt::{ReceiptKey, Receipts},
    store::sqlite::SqliteStore,
};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    DRAIN,
    goods::{Behind, Goods},
    tell::Teller,
};
use crate::{refunds, runtime, sample, state};

/// Where things listen, if nobody else does.
const GATEWAY_PORT: u16 = 8402;
const SAMPLE_PORT: u16 = 8403;
const OPS_PORT: u16 = 9402;
const WALLET_PORT: u16 = 9740;

/// The running demo.
pub(super) struct Stage {
    pub(super) gateway_url: String,
    pub(super) upstream_url: String,
    pub(super) ops_url: String,
    pub(super) wallet_url: String,
    pub(super) wallet_password: Secret,
    /// Through which the buyer's money leaves.
    pub(super) outgoing: Outgoing,
    net: Net,
    dir: TempDir,
    stop: CancellationToken,
    tasks: JoinSet<Result<()>>,
}

impl Stage {
    /// Starts everything that sells these.
    pub(super) async fn set(goods: &Goods, tell: &Teller) -> Result<Self> {
        let net = Net::start(NetConfig::default()).await.context("cannot start the simulated network")?;
        match Self::around(&net, goods, tell).await {
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

    async fn around(net: &Net, goods: &Goods, tell: &Teller) -> Result<Parts> {
        // With a seller's configuration, the wallet in it opens the seller's own API.
        let dir = tempfile::Builder::new()
            .prefix("farebox-demo-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir()
            .context("cannot make a temporary directory")?;
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);

        let mut services = goods.gateway.services.clone();
        let router = match goods.behind {
            Behind::Upstream => None,
            Behind::Sample => Some(("the sample API", sample::router(Arc::clone(&clock)))),
            Behind::Echo => Some(("the echo", sample::echo::router())),
        };
        if let Some((what, router)) = router {
            let listener = listen(SAMPLE_PORT, what, tell).await?;
            let url = format!("http://{}", listener.local_addr()?).parse()?;
            serve(&mut tasks, listener, router, &stop);
            services.iter_mut().for_each(|route| route.upstream = UpstreamConfig::new(Clone::clone(&url)));
        }
        let upstream_url = services.first().and_then(|route| Some(route.upstream.urls.first()?.to_string()));

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
        let paywall = paywall(dir.path(), goods.paywall.clone(), node, clock).await?;
        let config = GatewayConfig {
            listen: vec![Listen::new(free(GATEWAY_PORT, "the gateway", tell).await?)],
            ops: Some(OpsConfig {
                addr: free(OPS_PORT, "the operations listener", tell).await?,
                hosts: Vec::new(),
            }),
            services,
            ..goods.gateway.clone()
        };
        let gateway = Gateway::bind(config, Arc::clone(&paywall))?;
        let gateway_url =
            gateway.addrs().first().map(|addr| format!("http://{addr}")).context("no address")?;
        let ops_url =
            gateway.ops_addr().map(|addr| format!("http://{addr}")).context("no operations address")?;
        if let Some(seller) = goods.signs_receipts_as.clone() {
            let key = ReceiptKey::load_or_create(&state::receipt_key(dir.path()))?;
            gateway.sign_receipts(Receipts::new(Arc::clone(&paywall), key, Some(seller)));
        }
        if let Some(refunds) = refunds::open(goods.refunds.clone(), &paywall, dir.path()).await? {
            refunds.pay_from(Arc::clone(&net.seller) as Arc<dyn Pay>).await?;
            gateway.pay_back(Arc::clone(&refunds));
            let told = stop.clone();
            tasks.spawn(async move {
                told.cancelled().await;
                refunds.stop(DRAIN).await;
                Ok(())
            });
        }
        let told = stop.clone();
        tasks.spawn(async move { Ok(runtime::sell(gateway, &paywall, &told).await?) });

        Ok(Parts {
            gateway_url,
            upstream_url: upstream_url.context("no service")?,
            ops_url,
            wallet_url: format!("http://{wallet}"),
            wallet_password,
            outgoing,
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
    dir: TempDir,
    stop: CancellationToken,
    tasks: JoinSet<Result<()>>,
}

impl Parts {
    fn with(self, net: Net) -> Stage {
        let Self { gateway_url, upstream_url, ops_url, wallet_url, wallet_password, .. } = self;
        let Self { outgoing, dir, stop, tasks, .. } = self;
        Stage {
            gateway_url,
            upstream_url,
            ops_url,
            wallet_url,
            wallet_password,
            outgoing,
            net,
            dir,
            stop,
            tasks,
        }
    }
}

async fn paywall(
    dir: &Path,
    config: PaywallConfig,
    node: Arc<dyn Receive>,
    clock: Arc<dyn Clock>,
) -> Result<Arc<Paywall>> {
    let keyring = state::keyring(dir, &[])?;
    let store = SqliteStore::open(&state::books(dir))?;
    let config = PaywallConfig { freebie_file: Some(state::freebies(dir)), ..config };
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
