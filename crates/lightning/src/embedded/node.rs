//! The life of the node: start, waiting for a chain source that is down, stop.
//!
//! LDK's calls block and want a multi-threaded runtime, and dropping a running node while its runtime ends aborts the process.
//! So the node has a thread with a runtime of its own. That thread builds the node, stops it and drops it; everybody else
//! hands it closures. Dropping an [`EmbeddedNode`] only asks the thread to stop.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use farebox_protocol::Network;
use ldk_node::config::{BackgroundSyncConfig, ElectrumSyncConfig, EsploraSyncConfig};
use ldk_node::lightning::ln::msgs::SocketAddress;
use ldk_node::{BuildError, Builder, Node, NodeError};
use parking_lot::RwLock;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::{Mutex, Semaphore, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::config::{ChainSource, EmbeddedConfig, Storage};
use super::database::Book;
use super::directory::{self, DirectoryError};
use super::events;
use super::ldk_log::LdkLog;
use super::mem_store::MemStore;
use super::minter::{Minter, bitcoin_network};
use crate::Health;
use crate::clock::{Clock, SystemClock};

/// Threads of the node's runtime: one more than LDK's background processor can occupy.
const THREADS: usize = 2;
/// How many calls may block on the node at once.
const CALLS: usize = 32;
/// The first and the longest pause before another attempt to start.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// How long the runtime may take to end after the node has stopped.
const RUNTIME_END: Duration = Duration::from_secs(5);

/// A running LDK node, or one that waits for its chain source.
pub struct EmbeddedNode {
    pub(super) shared: Arc<Shared>,
    ended: watch::Receiver<()>,
}

/// What the node's thread and its callers have in common.
pub(super) struct Shared {
    pub(super) minter: Minter,
    pub(super) book: Book,
    pub(super) clock: Box<dyn Clock>,
    pub(super) health: watch::Sender<Health>,
    pub(super) stop: CancellationToken,
    pub(super) tasks: TaskTracker,
    pub(super) runtime: Handle,
    /// Set when LDK has given up although nobody stopped it.
    pub(super) dead: Arc<AtomicBool>,
    /// Whether LDK asks the chain source by itself, or only when told to.
    pub(super) syncs_by_itself: bool,
    /// Held while LDK looks for a route.
    pub(super) sending: Mutex<()>,
    node: RwLock<Option<Running>>,
    calls: Semaphore,
}

struct Running {
    node: Arc<Node>,
    since: Instant,
}

/// Why a node can't be started at all. A chain source that is down is not among these: the node waits for it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmbeddedError {
    /// The directory or the seed can't be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The book of payments can't be used.
    #[error("can't use the book of payments, `payments.sqlite`: {0}")]
    Book(#[from] rusqlite::Error),
    /// LDK refuses the configuration or its own state.
    #[error("LDK can't be set up: {0}")]
    Build(#[from] BuildError),
    /// The listening address is taken or isn't ours.
    #[error("can't listen on `{0}`; choose another address in `listen`")]
    Listen(String),
    /// A name for a node that nobody can reach.
    #[error("`alias` needs `listen`: a node that nobody can connect to is not announced")]
    AliasWithoutListen,
    /// The seed yields no key.
    #[error("the seed can't be used; make another one")]
    Seed,
    /// The keys that we derive are not the node's: its `ldk-node` is not the one this was written for.
    #[error("invoices would be for another node than this one; this is a bug")]
    KeysDiffer,
    /// The system gives no thread.
    #[error("can't start the node's thread: {0}")]
    Thread(#[from] std::io::Error),
    /// The node's thread ended before it said anything.
    #[error("the node's thread died; the log says why")]
    Died,
}

/// The node isn't running: it waits for its chain source, or it has been stopped.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the node isn't running: {0}")]
pub struct NotRunning(pub String);

impl EmbeddedNode {
    /// Starts a node. It is returned when it runs, or when its chain source turned out to be down: then it tries again by
    /// itself, and [`health`](crate::Receive::health) tells. May be called on any kind of runtime.
    pub async fn start(config: EmbeddedConfig) -> Result<Arc<Self>, EmbeddedError> {
        Self::start_with_clock(config, SystemClock).await
    }

    /// As [`start`](Self::start), with a clock for the invoices. LDK keeps its own time.
    pub async fn start_with_clock(
        config: EmbeddedConfig,
        clock: impl Clock + 'static,
    ) -> Result<Arc<Self>, EmbeddedError> {
        if config.alias.is_some() && config.listen.is_none() {
            return Err(EmbeddedError::AliasWithoutListen);
        }
        let (started, start) = oneshot::channel();
        let (end, ended) = watch::channel(());
        thread::Builder::new().name("farebox-node".into()).spawn(move || {
            live(config, Box::new(clock), started);
            drop(end);
        })?;
        let shared = start.await.map_err(|_| EmbeddedError::Died)??;
        Ok(Arc::new(Self { shared, ended }))
    }

    /// Stops the node and waits until its last byte is written and its directory is free. Again, it does nothing.
    pub async fn stop(&self) {
        self.shared.stop.cancel();
        let mut ended = self.ended.clone();
        while ended.changed().await.is_ok() {}
    }

    /// The node's public key, which is also known while it doesn't run.
    pub fn node_id(&self) -> ldk_node::bitcoin::secp256k1::PublicKey {
        self.shared.minter.node_id()
    }

    /// Mints invoices for this node, also while it doesn't run.
    pub fn minter(&self) -> &Minter {
        &self.shared.minter
    }

    /// Asks the chain source what is new, now.
    pub async fn sync(&self) -> Result<(), NotRunning> {
        let synced = self.with_ldk(|node| node.sync_wallets()).await?;
        self.shared.refresh().await;
        synced.map_err(|error| NotRunning(error.to_string()))
    }

    /// Waits until the node's health is as wanted, or the node has been stopped.
    pub async fn wait_for_health(&self, wanted: impl FnMut(&Health) -> bool) {
        let mut health = self.shared.health.subscribe();
        tokio::select! {
            // The sender lives in `self.shared`, so this can't fail.
            _ = health.wait_for(wanted) => {}
            () = self.shared.stop.cancelled() => {}
        }
    }

    /// Looks at the channels now, for route hints and health, rather than at the next event or within half a minute.
    pub async fn refresh(&self) {
        self.shared.refresh().await;
    }

    /// Uses the LDK node itself, on a thread that may block: channels, the on-chain wallet, everything that isn't paying and
    /// being paid. Its events and its lifecycle are ours: don't call `start`, `stop` or `event_handled`.
    pub async fn with_ldk<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Node) -> T + Send + 'static,
    ) -> Result<T, NotRunning> {
        self.shared.call(call).await
    }
}

impl Drop for EmbeddedNode {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

impl fmt::Debug for EmbeddedNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedNode").field("minter", &self.shared.minter).finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn network(&self) -> Network {
        self.minter.network()
    }

    /// Whether the node runs.
    pub(super) fn is_running(&self) -> bool {
        self.node.read().is_some()
    }

    /// Since when the node has been running.
    pub(super) fn running_since(&self) -> Option<Instant> {
        self.node.read().as_ref().map(|running| running.since)
    }

    /// Runs a closure with the node on a thread that may block.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Node) -> T + Send + 'static,
    ) -> Result<T, NotRunning> {
        let _permit = self.calls.acquire().await.map_err(|_| self.not_running())?;
        let node = self.node.read().as_ref().map(|running| Arc::clone(&running.node));
        let Some(node) = node else { return Err(self.not_running()) };
        let called = self.runtime.spawn_blocking(move || call(&node)).await;
        called.map_err(|_| self.not_running())
    }

    /// Runs a closure with the book on a thread that may block.
    pub(super) async fn book<T: Send + 'static>(
        self: &Arc<Self>,
        call: impl FnOnce(&Book) -> Result<T, rusqlite::Error> + Send + 'static,
    ) -> Result<T, NotRunning> {
        let shared = Arc::clone(self);
        let called = self.runtime.spawn_blocking(move || call(&shared.book)).await;
        match called {
            Ok(answer) => answer.map_err(|error| NotRunning(format!("the book of payments failed: {error}"))),
            Err(_) => Err(self.not_running()),
        }
    }

    /// Runs a task on the node's runtime; it isn't cancelled with its caller.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.tasks.spawn_on(task, &self.runtime)
    }

    pub(super) fn not_running(&self) -> NotRunning {
        match &*self.health.borrow() {
            Health::Down(why) => NotRunning(why.clone()),
            Health::Ready => NotRunning("it has been stopped".into()),
        }
    }

    pub(super) fn set_health(&self, health: Health) {
        self.health.send_if_modified(|now| {
            let changed = *now != health;
            *now = health;
            changed
        });
    }
}

/// The whole life of the node, on its own thread.
fn live(
    config: EmbeddedConfig,
    clock: Box<dyn Clock>,
    started: oneshot::Sender<Result<Arc<Shared>, EmbeddedError>>,
) {
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .thread_name("farebox-node")
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = started.send(Err(error.into()));
            return;
        }
    };
    match prepare(config, clock, &runtime) {
        Ok((shared, recipe, _lock)) => {
            runtime.block_on(run(shared, recipe, Starter(Some(started))));
            // Not `drop`: that would wait without limit for a call that hangs in LDK. The lock goes afterwards.
            runtime.shutdown_timeout(RUNTIME_END);
        }
        Err(error) => {
            let _ = started.send(Err(error));
        }
    }
}

/// Whoever waits for the node to start.
struct Starter(Option<oneshot::Sender<Result<Arc<Shared>, EmbeddedError>>>);

impl Starter {
    /// Hands the node over, once. If nobody waits for it any more, it is told to stop.
    fn hand_over(&mut self, shared: &Arc<Shared>) {
        let Some(waiting) = self.0.take() else { return };
        if waiting.send(Ok(Arc::clone(shared))).is_err() {
            shared.stop.cancel();
        }
    }

    /// Tells of a failure. Answers whether that ends the node: nobody has it who could wait for another attempt.
    fn give_up(&mut self, error: EmbeddedError) -> bool {
        let Some(waiting) = self.0.take() else { return false };
        let _ = waiting.send(Err(error));
        true
    }
}

fn prepare(
    mut config: EmbeddedConfig,
    clock: Box<dyn Clock>,
    runtime: &Runtime,
) -> Result<(Arc<Shared>, Recipe, Option<directory::Lock>), EmbeddedError> {
    let dir = match &config.storage {
        Storage::Memory => None,
        Storage::Directory(dir) => Some(dir.clone()),
    };
    let dir = dir.as_deref();
    let lock = dir.map(directory::claim).transpose()?;
    let given = std::mem::replace(&mut config.seed, super::Seed::Bytes(zeroize::Zeroizing::new([0; 64])));
    let seed = directory::seed(given, dir)?;
    let minter = Minter::new(&seed, config.network).ok_or(EmbeddedError::Seed)?;
    let (health, _) = watch::channel(Health::Down("starting".into()));
    let shared = Arc::new(Shared {
        minter,
        book: Book::open(dir)?,
        clock,
        health,
        stop: CancellationToken::new(),
        tasks: TaskTracker::new(),
        runtime: runtime.handle().clone(),
        dead: Arc::default(),
        syncs_by_itself: config.sync_every.is_some(),
        sending: Mutex::default(),
        node: RwLock::new(None),
        calls: Semaphore::new(CALLS),
    });
    Ok((shared, Recipe { config, seed, memory: MemStore::default() }, lock))
}

/// Everything needed to build the node, as often as it takes.
struct Recipe {
    config: EmbeddedConfig,
    seed: zeroize::Zeroizing<[u8; 64]>,
    memory: MemStore,
}

async fn run(shared: Arc<Shared>, recipe: Recipe, mut starter: Starter) {
    let recipe = Arc::new(recipe);
    let mut pause = RETRY.0;
    let node = loop {
        let (attempt_shared, attempt_recipe) = (Arc::clone(&shared), Arc::clone(&recipe));
        let attempt = shared.runtime.spawn_blocking(move || attempt(&attempt_shared, &attempt_recipe)).await;
        match attempt.unwrap_or(Err(Failure::Fatal(EmbeddedError::Died))) {
            Ok(node) => break node,
            Err(Failure::ChainSource(why)) => {
                tracing::warn!(%why, retry_in_secs = pause.as_secs(), "the chain source does not answer");
                shared.set_health(Health::Down(format!("the chain source does not answer: {why}")));
                starter.hand_over(&shared);
            }
            Err(Failure::Fatal(error)) => {
                tracing::error!(%error, "the node can't be started");
                shared.set_health(Health::Down(error.to_string()));
                if starter.give_up(error) {
                    return;
                }
            }
        }
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = RETRY.1.min(pause * 2);
    };
    tracing::info!(node_id = %shared.minter.node_id(), network = %shared.network(), "node started");
    *shared.node.write() = Some(Running { node: Arc::clone(&node), since: Instant::now() });
    shared.refresh().await;
    starter.hand_over(&shared);
    events::pump(&shared, &node).await;
    end(&shared, node).await;
}

/// Stops the node. Everything that may still use it has ended or is waited for.
async fn end(shared: &Shared, node: Arc<Node>) {
    shared.set_health(Health::Down("the node has been stopped".into()));
    shared.node.write().take();
    shared.tasks.close();
    shared.tasks.wait().await;
    let stopping = Arc::clone(&node);
    let stopped = shared.runtime.spawn_blocking(move || stopping.stop()).await;
    match stopped {
        Ok(Ok(())) => {
            tracing::info!("node stopped");
            // The last handle, most likely. Dropping it may block.
            let _ = shared.runtime.spawn_blocking(move || drop(node)).await;
        }
        Ok(Err(error)) => tracing::warn!(%error, "the node was not running when it was stopped"),
        Err(panic) => {
            tracing::error!(%panic, "LDK panicked while stopping");
            // Its destructor would stop it again, on a poisoned lock: a second panic that aborts the process.
            std::mem::forget(node);
        }
    }
}

enum Failure {
    ChainSource(String),
    Fatal(EmbeddedError),
}

/// Builds and starts the node. Built anew each time: `ldk-node` doesn't start an Electrum source twice.
fn attempt(shared: &Shared, recipe: &Recipe) -> Result<Arc<Node>, Failure> {
    if let ChainSource::Bitcoind { host, port, .. } = &recipe.config.chain {
        // Built without it, a new wallet would begin at the first block there ever was instead of today's.
        std::net::TcpStream::connect((host.as_str(), *port))
            .map_err(|error| Failure::ChainSource(format!("{host}:{port}: {error}")))?;
    }
    let node = recipe.build(&shared.runtime, &shared.dead).map_err(|error| Failure::Fatal(error.into()))?;
    if node.node_id() != shared.minter.node_id() {
        return Err(Failure::Fatal(EmbeddedError::KeysDiffer));
    }
    match node.start() {
        Ok(()) => Ok(Arc::new(node)),
        Err(NodeError::InvalidSocketAddress) => {
            let addr = recipe.config.listen.map(|addr| addr.to_string()).unwrap_or_default();
            Err(Failure::Fatal(EmbeddedError::Listen(addr)))
        }
        Err(error) => Err(Failure::ChainSource(error.to_string())),
    }
}

impl Recipe {
    fn build(&self, runtime: &Handle, dead: &Arc<AtomicBool>) -> Result<Node, BuildError> {
        let config = &self.config;
        let mut builder = Builder::new();
        builder
            .set_runtime(runtime.clone())
            .set_network(bitcoin_network(config.network))
            .set_entropy_seed_bytes(*self.seed)
            .set_custom_logger(Arc::new(LdkLog { dead: Arc::clone(dead) }));
        if let Some(url) = &config.rapid_gossip {
            builder.set_gossip_source_rgs(url.clone());
        } else {
            builder.set_gossip_source_p2p();
        }
        if let Some(addr) = config.listen {
            builder.set_listening_addresses(vec![SocketAddress::from(addr)])?;
        }
        if let Some(alias) = &config.alias {
            builder.set_node_alias(alias.clone())?;
        }
        self.set_chain_source(&mut builder);
        match &config.storage {
            Storage::Memory => builder.build_with_store(Arc::new(self.memory.clone())),
            Storage::Directory(dir) => {
                builder.set_storage_dir_path(text(dir)?);
                builder.build()
            }
        }
    }

    fn set_chain_source(&self, builder: &mut Builder) {
        let background_sync_config = self.config.sync_every.map(|every| BackgroundSyncConfig {
            lightning_wallet_sync_interval_secs: every.as_secs(),
            ..BackgroundSyncConfig::default()
        });
        match self.config.chain.clone() {
            ChainSource::Esplora { url } => {
                builder.set_chain_source_esplora(url, Some(EsploraSyncConfig { background_sync_config }));
            }
            ChainSource::Electrum { url } => {
                builder.set_chain_source_electrum(url, Some(ElectrumSyncConfig { background_sync_config }));
            }
            ChainSource::Bitcoind { host, port, user, password, rest: None } => {
                builder.set_chain_source_bitcoind_rpc(host, port, user, password.to_string());
            }
            ChainSource::Bitcoind { host, port, user, password, rest: Some((rest_host, rest_port)) } => {
                let password = password.to_string();
                builder.set_chain_source_bitcoind_rest(rest_host, rest_port, host, port, user, password);
            }
        }
    }
}

/// `ldk-node` takes its directory as text.
fn text(dir: &Path) -> Result<String, BuildError> {
    dir.to_str().map(str::to_owned).ok_or(BuildError::StoragePathAccessFailed)
}
