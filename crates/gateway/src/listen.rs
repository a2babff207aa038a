//! Listening sockets: binding them, accepting from them, handing sockets to workers in turn.
//!
//! What happens on a connection is in `connection.rs`; nothing here reads a byte.

mod activity;
mod bell;
mod chatter;
pub(crate) mod connection;
mod frames;
mod guests;
mod proxy_protocol;
mod sniff;
mod streams;
mod tls;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use ipnet::IpNet;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::mpsc,
    time::{Duration, sleep},
};

use self::guests::Refusal;
pub(crate) use self::{
    activity::InFlight,
    guests::{Guests, Seat},
    tls::{Terminator, TlsError, untimely},
};
use crate::{config::Listen, metrics::Connections, worker::Accepted};

/// How many connections the system queues for us before clients have to knock again.
const BACKLOG: u32 = 4096;
/// How long to wait when the system has no descriptors left: some connection may end meanwhile.
const EXHAUSTED_WAIT: Duration = Duration::from_millis(50);

/// A bound socket.
pub(crate) struct Listener {
    socket: TcpListener,
    tls: Option<Arc<Terminator>>,
    is_announced: bool,
    addr: SocketAddr,
}

/// Hands sockets to workers, one after the other.
pub(crate) struct Hands {
    workers: Vec<mpsc::Sender<Accepted>>,
    next: AtomicUsize,
    guests: Arc<Guests>,
    metrics: Connections,
}

/// Binds a socket; must be called in a Tokio runtime.
pub(crate) fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Else a restart would have to wait until the old connections are forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)
}

impl Listener {
    /// Judges what is configured, reading its files, and binds nothing.
    pub(crate) fn check(listen: &Listen, trusted: &[IpNet]) -> Result<Option<Arc<Terminator>>, ListenError> {
        if listen.proxy_protocol && trusted.is_empty() {
            return Err(ListenError::NobodyTrusted(listen.addr));
        }
        Ok(listen.tls.as_ref().map(|tls| Terminator::new(listen.addr, tls)).transpose()?)
    }

    pub(crate) fn bind(listen: &Listen, trusted: &[IpNet]) -> Result<Self, ListenError> {
        let tls = Self::check(listen, trusted)?;
        let failed = |error| ListenError::Bind { addr: listen.addr, error };
        let socket = bind(listen.addr).map_err(failed)?;
        let addr = socket.local_addr().map_err(failed)?;
        Ok(Self { socket, tls, is_announced: listen.proxy_protocol, addr })
    }

    pub(crate) const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its TLS, if it speaks it, so that somebody keeps it current.
    pub(crate) const fn tls(&self) -> Option<&Arc<Terminator>> {
        self.tls.as_ref()
    }

    /// Accepts until dropped.
    pub(crate) async fn accept(&self, hands: &Hands) {
        loop {
            let accepted = match self.socket.accept().await {
                Ok((socket, peer)) => self.seat(socket, peer, hands).await,
                Err(error) => Err(error),
            };
            match accepted {
                Ok(Some(accepted)) => hands.give(accepted).await,
                Ok(None) => {}
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(addr = %self.addr, %error, "cannot accept connections for a moment");
                    sleep(EXHAUSTED_WAIT).await;
                }
            }
        }
    }

    /// Finds a place for a connection, unless its peer may have none. Who is refused neither waits nor makes anybody leave.
    async fn seat(&self, socket: TcpStream, peer: SocketAddr, hands: &Hands) -> io::Result<Option<Accepted>> {
        let mut seat = Seat::new(&hands.guests);
        let taken = if self.is_announced && !hands.guests.is_trusted(peer.ip()) {
            Err(Refusal::NotAProxy)
        } else {
            seat.take(peer.ip())
        };
        if let Err(refusal) = taken {
            hands.metrics.refused(refusal.counted());
            tracing::debug!(%peer, %refusal, "closed a connection");
            return Ok(None);
        }
        // Without it small messages wait for acknowledgements. A socket that refuses the option still works.
        let _ = socket.set_nodelay(true);
        let (socket, tls) = (socket.into_std()?, self.tls.as_ref().map(|tls| tls.acceptor()));
        seat.sit(hands.guests.place().await);
        Ok(Some(Accepted { socket, peer, is_announced: self.is_announced, tls, seat }))
    }
}

/// Why an address can't be listened on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    #[error("cannot listen on `{addr}`")]
    Bind {
        addr: SocketAddr,
        #[source]
        error: io::Error,
    },
    #[error(
        "the listener `{0}` expects the PROXY protocol, but no proxy is trusted: name yours among the trusted proxies"
    )]
    NobodyTrusted(SocketAddr),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl Hands {
    pub(crate) const fn new(
        workers: Vec<mpsc::Sender<Accepted>>,
        guests: Arc<Guests>,
        metrics: Connections,
    ) -> Self {
        Self { workers, next: AtomicUsize::new(0), guests, metrics }
    }

    /// Gives a socket to the next worker, or to the one after it if that one has its hands full.
    async fn give(&self, accepted: Accepted) {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        let mut accepted = accepted;
        for offset in 0..self.workers.len() {
            match self.workers[(first + offset) % self.workers.len()].try_send(accepted) {
                Ok(()) => return,
                Err(mpsc::error::TrySendError::Full(back) | mpsc::error::TrySendError::Closed(back)) => {
                    accepted = back
                }
            }
        }
        // All have; wait for the first. Closed means that the gateway is stopping, and the socket closes too.
        let _ = self.workers[first % self.workers.len()].send(accepted).await;
    }
}

/// Errors that are about the connection that was to be accepted, not about the listener.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
    )
}
