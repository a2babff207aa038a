//! The whole: sockets, workers, services and paywall put together, started and stopped.

use std::{
    io,
    net::SocketAddr,
    num::NonZero,
    sync::{Arc, OnceLock},
    thread,
};

use arc_swap::ArcSwap;
use farebox_paywall::{Paywall, receipt::Receipts, refund::Refunds};
use farebox_protocol::Timestamp;
use ipnet::IpNet;
use tokio::{
    sync::Notify,
    task::{JoinSet, spawn_blocking},
    time::Duration,
};
use tokio_util::sync::CancellationToken;

use crate::{
    addresses::canonical,
    config::{GatewayConfig, Limits, Listen, ServiceRoute, Timeouts},
    listen::{Guests, Hands, ListenError, Listener, untimely},
    metrics::Metrics,
    ops::Ops,
    services::{Services, ServicesError},
    upstream::health,
    worker,
};

/// A gateway whose sockets are bound: who connects is queued, and served once it runs.
pub struct Gateway {
    listeners: Vec<Listener>,
    ops: Option<Ops>,
    workers: usize,
    shared: Arc<Shared>,
}

/// Changes the services of a running gateway.
#[derive(Clone)]
pub struct Reload {
    shared: Arc<Shared>,
    workers: usize,
}

/// What all workers share.
pub(crate) struct Shared {
    pub(crate) services: ArcSwap<Services>,
    /// Told after each change of them.
    pub(crate) services_changed: Notify,
    pub(crate) paywall: Arc<Paywall>,
    /// Where buyers ask for money back, if that is offered.
    pub(crate) refunds: OnceLock<Arc<Refunds>>,
    /// Where they ask for receipts, the same.
    pub(crate) receipts: OnceLock<Arc<Receipts>>,
    pub(crate) metrics: Metrics,
    pub(crate) guests: Arc<Guests>,
    pub(crate) config: Settings,
}

/// The part of the configuration that is asked for while serving.
pub(crate) struct Settings {
    pub(crate) limits: Limits,
    pub(crate) timeouts: Timeouts,
    pub(crate) trusted_proxies: Vec<IpNet>,
}

/// Why a gateway doesn't start, or didn't stop well.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GatewayError {
    /// The services can't be served as they are configured.
    #[error(transparent)]
    Services(#[from] ServicesError),
    /// There is no address to listen on.
    #[error("there is no address to listen on; name at least one under `listen`")]
    NoAddress,
    /// An address or its certificate can't be used.
    #[error("{message}")]
    Listen {
        /// Which one, and what is wrong.
        message: String,
        /// What the system said, where it was asked.
        #[source]
        error: Option<io::Error>,
    },
    /// A worker can't be started.
    #[error("cannot start a worker thread")]
    Worker(#[source] io::Error),
    /// Requests were still in flight when the time for finishing them was up.
    #[error("{connections} connections were cut after {} s of draining; raise `drain` if they need longer", .after.as_secs())]
    Cut {
        /// How many connections.
        connections: usize,
        /// How long they had been given.
        after: Duration,
    },
    /// A worker thread has ended by itself, which is a defect.
    #[error("a worker thread has ended by itself; please report this")]
    WorkerLost,
}

impl From<ListenError> for GatewayError {
    fn from(error: ListenError) -> Self {
        let message = error.to_string();
        let error = match error {
            ListenError::Bind { error, .. } => Some(error),
            ListenError::Tls(_) | ListenError::NobodyTrusted(_) => None,
        };
        Self::Listen { message, error }
    }
}

impl Gateway {
    /// Judges the configuration and binds its sockets. Nothing is accepted yet; must be called in a Tokio runtime.
    pub fn bind(config: GatewayConfig, paywall: Arc<Paywall>) -> Result<Self, GatewayError> {
        if config.listen.is_empty() {
            return Err(GatewayError::NoAddress);
        }
        let cores = || thread::available_parallelism().map_or(1, NonZero::get);
        let workers = if config.workers == 0 { cores() } else { config.workers };
        let metrics = Metrics::new(workers);
        let services = Services::new(config.services, &metrics, workers, Vec::new())?;
        let trusted: Vec<_> = config.trusted_proxies.iter().map(canonical).collect();
        let bind = |listen| Listener::bind(listen, &trusted);
        let listeners = config.listen.iter().map(bind).collect::<Result<_, _>>()?;
        let guests = Guests::new(&config.limits, &trusted, &config.clients, metrics.connections.open.clone());
        let ops = config.ops.map(Ops::bind).transpose()?;
        let settings =
            Settings { limits: config.limits, timeouts: config.timeouts, trusted_proxies: trusted };
        let shared = Shared {
            services: ArcSwap::from_pointee(services),
            services_changed: Notify::new(),
            paywall,
            refunds: OnceLock::new(),
            receipts: OnceLock::new(),
            metrics,
            guests,
            config: settings,
        };
        Ok(Self { listeners, ops, workers, shared: Arc::new(shared) })
    }

    /// Judges services as [`Gateway::bind`] does, without touching anything outside but the files that they name.
    pub fn check(services: &[ServiceRoute]) -> Result<(), ServicesError> {
        Services::new(services.to_vec(), &Metrics::new(1), 1, Vec::new()).map(drop)
    }

    /// Judges listeners as [`Gateway::bind`] does, reading the files that they name, and binds none of them.
    pub fn check_listen(listen: &[Listen], trusted_proxies: &[IpNet]) -> Result<(), GatewayError> {
        if listen.is_empty() {
            return Err(GatewayError::NoAddress);
        }
        listen.iter().try_for_each(|listen| Listener::check(listen, trusted_proxies).map(drop))?;
        Ok(())
    }

    /// What the owner of a listener's certificates should know of their time: expired, or soon to expire, each in a sentence
    /// that names its file. Those that can't be read are [`Self::check_listen`]'s affair.
    pub fn untimely_certificates(listen: &Listen, now: Timestamp) -> Vec<String> {
        listen.tls.as_ref().map(|tls| untimely(tls, now)).unwrap_or_default()
    }

    /// The addresses listened on, in the order of the configuration, with the ports that the system chose.
    pub fn addrs(&self) -> Vec<SocketAddr> {
        self.listeners.iter().map(Listener::addr).collect()
    }

    /// The address of the operations listener, if there is one.
    pub fn ops_addr(&self) -> Option<SocketAddr> {
        self.ops.as_ref().map(Ops::addr)
    }

    /// Answers requests for money back, at [`refund::PATH`](farebox_paywall::refund::PATH) of every host, from now on.
    pub fn pay_back(&self, refunds: Arc<Refunds>) {
        // Whoever was named first stays.
        _ = self.shared.refunds.set(refunds);
    }

    /// Answers requests for receipts, at [`receipt::PATH`](farebox_paywall::receipt::PATH) of every host, and for the key that
    /// they are checked with at [`receipt::KEY_PATH`](farebox_paywall::receipt::KEY_PATH), from now on.
    pub fn sign_receipts(&self, receipts: Arc<Receipts>) {
        _ = self.shared.receipts.set(receipts);
    }

    /// For changing the services while the gateway runs.
    pub fn reload(&self) -> Reload {
        Reload { shared: self.shared.clone(), workers: self.workers }
    }

    /// Serves until `stop` is cancelled, then refuses new connections and lets requests in flight finish, up to
    /// [`Timeouts::drain`]. Dropped before that, it cuts everything.
    ///
    /// The paywall's own task is not run here: its owner keeps it running until this has returned.
    pub async fn run(self, stop: CancellationToken) -> Result<(), GatewayError> {
        let Self { listeners, ops, workers, shared } = self;
        let draining = CancellationToken::new();
        let cut = CancellationToken::new();
        let _cut_when_dropped = cut.clone().drop_guard();
        let handles = (0..workers)
            .map(|index| worker::start(index, shared.clone(), draining.child_token(), cut.child_token()))
            .collect::<io::Result<Vec<_>>>()
            .map_err(GatewayError::Worker)?;

        let mut background = JoinSet::new();
        background.spawn(check_upstreams(shared.clone()));
        for tls in listeners.iter().filter_map(Listener::tls) {
            background.spawn(tls.clone().keep_current());
        }
        if let Some(ops) = ops {
            background.spawn(ops.serve(shared.clone(), draining.clone()));
        }
        let hands = Arc::new(Hands::new(
            handles.iter().map(|handle| handle.sockets.clone()).collect(),
            shared.guests.clone(),
            shared.metrics.connections.clone(),
        ));
        let mut accepting = JoinSet::new();
        for listener in listeners {
            let hands = hands.clone();
            accepting.spawn(async move { listener.accept(&hands).await });
        }
        drop(hands);

        stop.cancelled().await;
        // Waiting for the end of these tasks closes the sockets: from here on, connections are refused.
        accepting.shutdown().await;
        draining.cancel();
        let cut = drain(handles).await?;
        background.shutdown().await;
        if cut > 0 {
            return Err(GatewayError::Cut { connections: cut, after: shared.config.timeouts.drain });
        }
        Ok(())
    }
}

impl Reload {
    /// Serves other services from the next request on. Requests in flight keep those that they began with, and upstreams
    /// that have not changed their connections. On an error nothing changes.
    pub fn services(&self, services: Vec<ServiceRoute>) -> Result<(), ServicesError> {
        let known = self.shared.services.load().upstreams();
        let services = Services::new(services, &self.shared.metrics, self.workers, known)?;
        self.shared.services.store(Arc::new(services));
        self.shared.services_changed.notify_one();
        Ok(())
    }
}

async fn check_upstreams(shared: Arc<Shared>) {
    health::watch(&shared.services, &shared.services_changed).await;
}

/// Waits for the workers. How many connections they had to cut.
async fn drain(handles: Vec<worker::Handle>) -> Result<usize, GatewayError> {
    let mut cut = 0;
    for worker::Handle { ended, thread, .. } in handles {
        cut += ended.await.map_err(|_| GatewayError::WorkerLost)?;
        // The thread has said its last word, so this is a matter of microseconds.
        let joined = spawn_blocking(|| thread.join()).await;
        joined.map_err(|_| GatewayError::WorkerLost)?.map_err(|_| GatewayError::WorkerLost)?;
    }
    Ok(cut)
}
