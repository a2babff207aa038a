//! One thread with one runtime: connections handed to it stay with it, and so do the upstream connections they use.
//!
//! A runtime per core instead of one that steals work, since the stealing costs more than verifying a token does. All
//! the same everything is `Send`: that costs nothing measurable, and the paywall can be shared. Work is handed out
//! round-robin by the accept loop, which spreads it more evenly than `SO_REUSEPORT` does.

use std::{io, net::SocketAddr, sync::Arc, thread};

use tokio::{
    runtime,
    sync::{mpsc, oneshot},
    time::{Duration, Instant, interval, timeout_at},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    gateway::Shared,
    listen::{Seat, connection},
    timers::Timers,
};

/// How many accepted sockets may wait for a worker.
const HANDED_MAX: usize = 256;
const PRUNE_EVERY: Duration = Duration::from_secs(5);

/// What the tasks of one worker know.
pub(crate) struct Worker {
    /// Which one this is.
    pub(crate) index: usize,
    /// Owns whatever is spawned here.
    pub(crate) tasks: Tasks,
    /// Clients' connections, and requests of other workers on upstream connections of this one: it ends after them.
    pub(crate) connections: TaskTracker,
    pub(crate) shared: Arc<Shared>,
    pub(crate) timers: Timers,
    /// Cancelled when connections should end as soon as their requests are answered.
    pub(crate) draining: CancellationToken,
}

/// The tasks of one worker, as hyper wants to spawn them.
#[derive(Clone, Default)]
pub(crate) struct Tasks(TaskTracker);

/// A socket that has been accepted.
pub(crate) struct Accepted {
    pub(crate) socket: std::net::TcpStream,
    pub(crate) peer: SocketAddr,
    /// Whether the peer is a proxy that says first whose connection this is.
    pub(crate) is_announced: bool,
    pub(crate) tls: Option<TlsAcceptor>,
    /// Counts the connection against the limits until it ends.
    pub(crate) seat: Seat,
}

/// What the rest of the gateway holds of a worker.
pub(crate) struct Handle {
    pub(crate) sockets: mpsc::Sender<Accepted>,
    /// How many connections were cut short, once the worker has ended.
    pub(crate) ended: oneshot::Receiver<usize>,
    pub(crate) thread: thread::JoinHandle<()>,
}

impl Tasks {
    pub(crate) fn spawn<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        drop(self.0.spawn(task));
    }
}

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        drop(self.0.spawn(task));
    }
}

/// Starts a worker. It ends when `draining` is cancelled and its connections are done, or `drain` after that, or at once
/// when `cut` is cancelled.
pub(crate) fn start(
    index: usize,
    shared: Arc<Shared>,
    draining: CancellationToken,
    cut: CancellationToken,
) -> io::Result<Handle> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let (sockets, handed) = mpsc::channel(HANDED_MAX);
    let (tell, ended) = oneshot::channel();
    let thread = thread::Builder::new().name(format!("farebox-worker-{index}")).spawn(move || {
        let worker = Arc::new(Worker {
            index,
            tasks: Tasks::default(),
            connections: TaskTracker::new(),
            shared,
            timers: Timers::default(),
            draining,
        });
        let connections = runtime.block_on(async {
            tokio::select! {
                connections = work(worker, handed) => connections,
                () = cut.cancelled() => 0,
            }
        });
        // Whatever still runs is dropped with the runtime. Blocking look-ups of names are not waited for.
        runtime.shutdown_background();
        let _ = tell.send(connections);
    })?;
    Ok(Handle { sockets, ended, thread })
}

/// Serves until told to drain, then until the last connection has ended or time is up. How many were left then.
async fn work(worker: Arc<Worker>, mut handed: mpsc::Receiver<Accepted>) -> usize {
    let connections = worker.connections.clone();
    let mut prune = interval(PRUNE_EVERY);
    loop {
        tokio::select! {
            accepted = handed.recv() => {
                let Some(accepted) = accepted else { break };
                connections.spawn(connection::serve(accepted, worker.clone()));
            }
            _ = prune.tick() => worker.shared.services.load().prune(worker.index),
            () = worker.draining.cancelled() => break,
        }
    }
    // Sockets accepted before the listener closed are still owed an answer.
    handed.close();
    while let Some(accepted) = handed.recv().await {
        connections.spawn(connection::serve(accepted, worker.clone()));
    }
    connections.close();
    let deadline = Instant::now() + worker.shared.config.timeouts.drain;
    match timeout_at(deadline, connections.wait()).await {
        Ok(()) => 0,
        Err(_) => connections.len(),
    }
}
