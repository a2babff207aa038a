//! The connections that one worker holds to one address.
//!
//! An HTTP/1.1 connection carries one request at a time and comes back when its answer has been read to the end. An
//! HTTP/2 connection is shared up to the number of streams that the upstream allows; when all are full, another one is
//! made, since a request beyond the limit would wait for a stream to end, which may be never.
//!
//! An address that takes a limited number of HTTP/1.1 connections has one pool for all workers. A request needs one of
//! its seats to hold a connection, and finds either one that is unused or room for another.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use http::HeaderValue;
use hyper::client::conn::{http1, http2};
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Duration, Instant, timeout},
};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

use super::{
    SendError,
    connect::{Begun, Connector, Terms},
    gather::Written,
};
use crate::{config::UpstreamConfig, moment, proxy::RequestBody, services::unshared, worker::Worker};

/// How long an HTTP/2 connection may be silent while a request waits that is then given up, to get more requests. Where its other
/// side is gone without a word, each of them would wait as well, until one of the connection's own questions isn't answered.
const SILENCE: Duration = Duration::from_secs(5);

/// See the module.
pub(crate) struct Pool {
    /// What the address is called, in memory of this pool's own: each request counts a reference to it.
    pub(super) host: HeaderValue,
    held: Mutex<Held>,
    /// One connection is made at a time where it will carry many requests: a burst must not make one each.
    making: Semaphore,
    seats: Option<Arc<Semaphore>>,
    seats_max: usize,
    idle_max: usize,
    keep_alive: Duration,
    /// [`SILENCE`], or half the time for an answer, if that is less: the connection may have begun with the request.
    silence: Duration,
    open: Arc<AtomicUsize>,
    /// Requests that have a [`Lease`](super::Lease). Only its own worker writes here, unless it is everybody's.
    pub(super) in_flight: AtomicUsize,
}

#[derive(Default)]
struct Held {
    /// The one used last stands last, and is taken first: the others get a chance to grow old.
    http1: Vec<(Http1, Instant)>,
    http2: Vec<Arc<Http2>>,
    /// The upstream has turned out to speak HTTP/1.1.
    is_http1: bool,
}

/// A connection for one request at a time.
pub(super) struct Http1 {
    pub(super) sender: http1::SendRequest<RequestBody>,
    pub(super) written: Arc<Written>,
    /// Where their number is limited.
    seat: Option<Arc<Seat>>,
}

/// One shared connection.
pub(super) struct Http2 {
    pub(super) sender: http2::SendRequest<RequestBody>,
    pub(super) terms: Arc<Terms>,
    streams: AtomicUsize,
    used: Mutex<Instant>,
    silence: Duration,
    /// It gets no more requests.
    is_given_up: AtomicBool,
}

/// A connection for one request.
pub(super) enum Connection {
    Http1(Http1),
    Http2(Stream),
}

/// One stream's share of a connection, and since when it has that.
pub(super) struct Stream(pub(super) Arc<Http2>, Instant);

/// What a connection of a limited number holds while it is used, and until its socket is closed.
struct Seat {
    taken: Mutex<Option<Taken>>,
    /// Keeps the worker running that the connection belongs to, when another one uses it.
    home: TaskTracker,
}

struct Taken {
    _permit: OwnedSemaphorePermit,
    _guest: TaskTrackerToken,
}

/// Counts a connection from when it is begun until it has ended.
struct Open {
    count: Arc<AtomicUsize>,
    _seat: Option<Arc<Seat>>,
}

/// Which connection will do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    /// One that others have used before is as good.
    Any,
    /// A new one, since those that were there have proved stale. A stream of its own counts as new.
    New,
    /// A new one of HTTP/1.1, since the upstream's HTTP/2 doesn't take what it is for.
    Http1,
}

impl Pool {
    /// Those of one address: one for each worker, or a single one where connections are limited.
    pub(super) fn for_address(
        config: &UpstreamConfig,
        connector: &Connector,
        host: &HeaderValue,
        workers: usize,
    ) -> Box<[Arc<Self>]> {
        let limit = config.connections_max.filter(|_| connector.may_be_http1());
        let pool = |idle_max| Self {
            host: unshared(host),
            held: Mutex::default(),
            making: Semaphore::new(1),
            seats: limit.map(|max| Arc::new(Semaphore::new(max.min(Semaphore::MAX_PERMITS)))),
            seats_max: limit.unwrap_or(usize::MAX),
            idle_max,
            keep_alive: config.keep_alive,
            silence: config.head_timeout.map_or(SILENCE, |time| SILENCE.min(time / 2)),
            open: Arc::default(),
            in_flight: AtomicUsize::new(0),
        };
        let idle_max = config.idle_connections_max;
        match limit {
            Some(_) => [Arc::new(pool(idle_max.saturating_mul(workers)))].into(),
            None => (0..workers).map(|_| Arc::new(pool(idle_max))).collect(),
        }
    }

    /// A connection that is there already, for a request that came at `now`.
    pub(super) fn checkout(&self, now: Instant) -> Option<Connection> {
        let mut held = self.held.lock();
        if let Some(stream) = held.free_stream() {
            return Some(Connection::Http2(stream));
        }
        let permit = match &self.seats {
            Some(seats) => Some(seats.clone().try_acquire_owned().ok()?),
            None => None,
        };
        let mut at = held.http1.len();
        while at > 0 {
            at -= 1;
            let (http1, since) = &held.http1[at];
            if http1.sender.is_closed() || now.duration_since(*since) >= self.keep_alive {
                held.http1.swap_remove(at);
            } else if http1.sender.is_ready() {
                let (http1, _) = held.http1.remove(at);
                http1.sit(permit);
                return Some(Connection::Http1(http1));
            }
            // Else it has only just come back, and its own task hasn't run since.
        }
        None
    }

    /// A new connection, or a place on one that somebody else has made meanwhile or has come back.
    pub(super) async fn connect(
        &self,
        connector: &Connector,
        worker: &Worker,
        want: Want,
        patience: Duration,
    ) -> Result<Connection, SendError> {
        let Some(seats) = &self.seats else {
            let made = timeout(patience, self.make(connector, worker, want, None)).await;
            return made.unwrap_or(Err(SendError::ConnectTimeout));
        };
        let permit = timeout(patience, seats.clone().acquire_owned())
            .await
            .map_err(|_| SendError::Busy)?
            .expect("the semaphore is never closed");
        let mut permit = Some(permit);
        while let Some(mut http1) = self.unused(want) {
            // It may have come back so lately that its own task hasn't run since.
            if let Ok(Ok(())) = timeout(patience, http1.sender.ready()).await {
                http1.sit(permit.take());
                return Ok(Connection::Http1(http1));
            }
        }
        let seat = Arc::new(Seat { taken: Mutex::default(), home: worker.connections.clone() });
        seat.take(permit);
        let made = timeout(patience, self.make(connector, worker, want, Some(seat))).await;
        made.unwrap_or(Err(SendError::ConnectTimeout))
    }

    async fn make(
        &self,
        connector: &Connector,
        worker: &Worker,
        want: Want,
        seat: Option<Arc<Seat>>,
    ) -> Result<Connection, SendError> {
        let opened = || Open::new(&self.open, seat.clone());
        if want == Want::Http1 {
            // What is known of the upstream's HTTP/2 stays as it is.
            return match connector.without_http2().begin(&worker.tasks, opened()).await? {
                Begun::Http1(sender, written) => Ok(Connection::Http1(Http1 { sender, written, seat })),
                Begun::Http2 { .. } => Err(SendError::NoExtendedConnect),
            };
        }
        if connector.is_http1() || self.held.lock().is_http1 {
            return Ok(self.hold(connector.begin(&worker.tasks, opened()).await?, seat));
        }
        let _turn = self.making.acquire().await.expect("the semaphore is never closed");
        if let Some(stream) = self.held.lock().free_stream() {
            return Ok(Connection::Http2(stream));
        }
        Ok(self.hold(connector.begin(&worker.tasks, opened()).await?, seat))
    }

    fn hold(&self, begun: Begun, seat: Option<Arc<Seat>>) -> Connection {
        let mut held = self.held.lock();
        match begun {
            Begun::Http1(sender, written) => {
                held.is_http1 = true;
                Connection::Http1(Http1 { sender, written, seat })
            }
            Begun::Http2 { sender, terms } => {
                // The number of these is not limited.
                if let Some(seat) = seat {
                    seat.leave();
                }
                let used = Mutex::new(Instant::now());
                let (streams, is_given_up) = (AtomicUsize::new(0), AtomicBool::new(false));
                let silence = self.silence;
                let http2 = Arc::new(Http2 { sender, terms, streams, used, silence, is_given_up });
                held.is_http1 = false;
                held.http2.push(http2.clone());
                Connection::Http2(Stream::open(http2))
            }
        }
    }

    /// For one who has a seat: a connection that nobody uses. Where a new one is wanted and all are there already, one of
    /// them makes way for it.
    fn unused(&self, want: Want) -> Option<Http1> {
        let mut held = self.held.lock();
        held.http1.retain(|(http1, _)| !http1.sender.is_closed());
        if want != Want::Any {
            if self.open.load(Ordering::Relaxed) >= self.seats_max {
                held.http1.pop();
            }
            return None;
        }
        held.http1.pop().map(|(http1, _)| http1)
    }

    pub(super) fn put_back(&self, http1: Http1) {
        let mut held = self.held.lock();
        if !http1.sender.is_closed() && held.http1.len() < self.idle_max {
            let seat = http1.seat.clone();
            held.http1.push((http1, moment::now()));
            drop(held);
            // Whoever waits for a seat finds it.
            if let Some(seat) = seat {
                seat.leave();
            }
        }
        // Else its seat is free when its socket is closed.
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
        held.http1.retain(|(http1, since)| {
            !http1.sender.is_closed() && now.duration_since(*since) < self.keep_alive
        });
        held.http2.retain(|http2| {
            let is_used = http2.streams.load(Ordering::Relaxed) > 0;
            let is_young = now.duration_since(*http2.used.lock()) < self.keep_alive;
            !http2.sender.is_closed() && (is_used || is_young)
        });
    }

    /// How many connections are open, used or not.
    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

impl Held {
    fn free_stream(&mut self) -> Option<Stream> {
        if self.http2.is_empty() {
            return None;
        }
        self.http2.retain(|http2| !http2.sender.is_closed() && !http2.is_given_up.load(Ordering::Relaxed));
        let free = self.http2.iter().find(|http2| {
            http2.streams.load(Ordering::Relaxed) < http2.terms.streams_max.load(Ordering::Relaxed)
        })?;
        Some(Stream::open(free.clone()))
    }
}

impl Http1 {
    fn sit(&self, permit: Option<OwnedSemaphorePermit>) {
        if let Some(seat) = &self.seat {
            seat.take(permit);
        }
    }
}

impl Seat {
    fn take(&self, permit: Option<OwnedSemaphorePermit>) {
        let guest = self.home.token();
        *self.taken.lock() = permit.map(|permit| Taken { _permit: permit, _guest: guest });
    }

    fn leave(&self) {
        let taken = self.taken.lock().take();
        drop(taken);
    }
}

impl Open {
    fn new(count: &Arc<AtomicUsize>, seat: Option<Arc<Seat>>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self { count: count.clone(), _seat: seat }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Stream {
    fn open(http2: Arc<Http2>) -> Self {
        http2.streams.fetch_add(1, Ordering::Relaxed);
        Self(http2, moment::now())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // What was answered to its end was heard just now.
        let Self(http2, since) = self;
        if http2.terms.heard().max(*since).elapsed() >= http2.silence {
            http2.is_given_up.store(true, Ordering::Relaxed);
        }
        if self.0.streams.fetch_sub(1, Ordering::Relaxed) == 1 {
            *self.0.used.lock() = Instant::now();
        }
    }
}
