//! The connections that one worker holds to one upstream.
//!
//! An HTTP/1.1 connection carries one request at a time and comes back when its answer has been read to the end. An
//! HTTP/2 connection is shared up to the number of streams that the upstream allows; when all are full, another one is
//! made, since a request beyond the limit would wait for a stream to end, which may be never.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use futures_util::future::BoxFuture;
use http::{Request, Response};
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1, http2},
};
use parking_lot::Mutex;
use tokio::{
    sync::Semaphore,
    time::{Duration, Instant},
};

use super::{
    SendError,
    connect::{Begun, Connector},
};
use crate::{config::UpstreamConfig, proxy::RequestBody, worker::Worker};

type Http1 = http1::SendRequest<RequestBody>;

/// A request that has been sent, until the head of its answer is there.
pub(super) type Exchange = BoxFuture<'static, Result<Response<Incoming>, TrySendError<Request<RequestBody>>>>;

/// See the module.
pub(crate) struct Pool {
    held: Mutex<Held>,
    /// One connection is made at a time where it will carry many requests: a burst must not make one each.
    making: Semaphore,
    idle_max: usize,
    keep_alive: Duration,
}

#[derive(Default)]
struct Held {
    /// The one used last stands last, and is taken first: the others get a chance to grow old.
    http1: Vec<(Http1, Instant)>,
    http2: Vec<Arc<Http2>>,
    /// The upstream has turned out to speak HTTP/1.1.
    is_http1: bool,
}

/// One shared connection.
pub(crate) struct Http2 {
    sender: http2::SendRequest<RequestBody>,
    /// How many streams the upstream allows.
    streams_max: Arc<AtomicUsize>,
    streams: AtomicUsize,
    used: Mutex<Instant>,
}

/// A connection for one request.
pub(crate) enum Connection {
    Http1(Http1),
    Http2(Stream),
}

/// One stream's share of a connection.
pub(crate) struct Stream(Arc<Http2>);

/// Keeps a connection taken while an answer is read from it. Dropped early, it closes the connection (HTTP/1.1) or gives
/// up the stream (HTTP/2).
pub(crate) struct Lease {
    taken: Option<Connection>,
    pool: Arc<Pool>,
}

impl Pool {
    pub(super) fn new(config: &UpstreamConfig) -> Self {
        Self {
            held: Mutex::default(),
            making: Semaphore::new(1),
            idle_max: config.idle_connections_max,
            keep_alive: config.keep_alive,
        }
    }

    /// A connection that is there already.
    pub(super) fn checkout(&self) -> Option<Connection> {
        let mut held = self.held.lock();
        if let Some(stream) = held.free_stream() {
            return Some(Connection::Http2(stream));
        }
        let now = Instant::now();
        let mut at = held.http1.len();
        while at > 0 {
            at -= 1;
            let (sender, since) = &held.http1[at];
            if sender.is_closed() || now.duration_since(*since) >= self.keep_alive {
                held.http1.swap_remove(at);
            } else if sender.is_ready() {
                return Some(Connection::Http1(held.http1.remove(at).0));
            }
            // Else it has only just come back, and its own task hasn't run since.
        }
        None
    }

    /// A new connection, or a place on one that somebody else has made meanwhile.
    pub(super) async fn connect(
        self: &Arc<Self>,
        connector: &Connector,
        worker: &Worker,
    ) -> Result<Connection, SendError> {
        if connector.is_http1() || self.held.lock().is_http1 {
            return Ok(self.hold(connector.begin(worker).await?));
        }
        let _turn = self.making.acquire().await.expect("the semaphore is never closed");
        if let Some(stream) = self.held.lock().free_stream() {
            return Ok(Connection::Http2(stream));
        }
        Ok(self.hold(connector.begin(worker).await?))
    }

    fn hold(&self, begun: Begun) -> Connection {
        let mut held = self.held.lock();
        match begun {
            Begun::Http1(sender) => {
                held.is_http1 = true;
                Connection::Http1(sender)
            }
            Begun::Http2 { sender, streams_max } => {
                let used = Mutex::new(Instant::now());
                let http2 = Arc::new(Http2 { sender, streams_max, streams: AtomicUsize::new(0), used });
                held.is_http1 = false;
                held.http2.push(http2.clone());
                Connection::Http2(Stream::open(http2))
            }
        }
    }

    fn put_back(&self, sender: Http1) {
        let mut held = self.held.lock();
        if !sender.is_closed() && held.http1.len() < self.idle_max {
            held.http1.push((sender, Instant::now()));
        }
    }

    /// Offers a connection to nobody any more: it didn't take a request.
    pub(super) fn forget(&self, connection: &Connection) {
        if let Connection::Http2(stream) = connection {
            self.held.lock().http2.retain(|http2| !Arc::ptr_eq(http2, &stream.0));
        }
    }

    /// Lets go of connections that are closed or that nobody has used for a while.
    pub(super) fn prune(&self) {
        let now = Instant::now();
        let mut held = self.held.lock();
        held.http1
            .retain(|(sender, since)| !sender.is_closed() && now.duration_since(*since) < self.keep_alive);
        held.http2.retain(|http2| {
            let is_used = http2.streams.load(Ordering::Relaxed) > 0;
            let is_young = now.duration_since(*http2.used.lock()) < self.keep_alive;
            !http2.sender.is_closed() && (is_used || is_young)
        });
    }
}

impl Held {
    fn free_stream(&mut self) -> Option<Stream> {
        if self.http2.is_empty() {
            return None;
        }
        self.http2.retain(|http2| !http2.sender.is_closed());
        let free = self.http2.iter().find(|http2| {
            http2.streams.load(Ordering::Relaxed) < http2.streams_max.load(Ordering::Relaxed)
        })?;
        Some(Stream::open(free.clone()))
    }
}

impl Connection {
    /// Sends a request at once, whether what is returned is polled or not. It is boxed since it has room for the whole
    /// request, and whoever awaits it would get as large.
    pub(super) fn send(&mut self, request: Request<RequestBody>) -> Exchange {
        match self {
            Self::Http1(sender) => Box::pin(sender.try_send_request(request)),
            Self::Http2(stream) => Box::pin(stream.0.sender.clone().try_send_request(request)),
        }
    }

    pub(super) fn into_lease(self, pool: &Arc<Pool>) -> Lease {
        Lease { taken: Some(self), pool: pool.clone() }
    }
}

impl Stream {
    fn open(http2: Arc<Http2>) -> Self {
        http2.streams.fetch_add(1, Ordering::Relaxed);
        Self(http2)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.0.streams.fetch_sub(1, Ordering::Relaxed) == 1 {
            *self.0.used.lock() = Instant::now();
        }
    }
}

impl Lease {
    /// The answer has been read to its end.
    pub(crate) fn finish(&mut self) {
        if let Some(Connection::Http1(sender)) = self.taken.take() {
            self.pool.put_back(sender);
        }
    }
}
