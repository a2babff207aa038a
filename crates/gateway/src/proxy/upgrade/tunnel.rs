//! Bytes both ways between a client and an upstream that have agreed on a protocol of their own.
//!
//! A tunnel that is silent holds no buffer: each piece is read onto the stack and passed on at once, and only what the
//! other side doesn't take is kept until it does; meanwhile nothing more is read. A side that ends is told so to the other,
//! which may go on talking. Silence in both directions is limited by the service, a client that takes nothing by the
//! listener; the whole is not.

use std::{
    future::poll_fn,
    io,
    mem::MaybeUninit,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use http::{Response, response};
use hyper::{
    rt::{Read, ReadBuf, Write},
    upgrade::{OnUpgrade, Upgraded},
};
use tokio::time::{Duration, Instant, Sleep, sleep_until};

use super::Asked;
use crate::{
    listen::InFlight,
    metrics::Gauge,
    proxy::{Body, access::Account},
    services::Route,
    upstream::Lease,
    worker::Worker,
};

/// How much is read at once, and so how much is kept for a side that is slow.
const PIECE: usize = 8 * 1024;
/// How many pieces are passed on before others get their turn.
const TURN: usize = 16;
/// A limit that is never reached.
const NEVER: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// A tunnel that has been agreed on, before it is opened.
pub(crate) struct Tunnel {
    client: OnUpgrade,
    upstream: OnUpgrade,
    /// The upstream's connection is never given back: it isn't one of HTTP any more.
    lease: Lease,
    is_over_http2: bool,
    route: Arc<Route>,
}

impl Tunnel {
    /// The answer that opens a tunnel.
    pub(in crate::proxy) fn answer(
        asked: &Asked,
        mut head: response::Parts,
        upstream: OnUpgrade,
        lease: Lease,
        route: Arc<Route>,
    ) -> Response<Body> {
        asked.consent(&mut head);
        let (client, is_over_http2) = (asked.client.clone(), asked.is_over_http2);
        let tunnel = Self { client, upstream, lease, is_over_http2, route };
        let mut response = Response::new(Body::switched(Box::new(tunnel)));
        *response.status_mut() = head.status;
        *response.headers_mut() = head.headers;
        response
    }

    /// Carries bytes from when the answer has been sent. An HTTP/1.1 connection becomes the tunnel, so that it is counted,
    /// limited and drained as the connection that it is; over HTTP/2 a tunnel is one stream of many, and a task of its
    /// worker's.
    pub(in crate::proxy) fn open(self: Box<Self>, account: Account, in_flight: InFlight, worker: &Worker) {
        if self.is_over_http2 {
            worker.tasks.spawn(async move {
                self.run(account).await;
                drop(in_flight);
            });
        } else {
            in_flight.then(Box::pin(self.run(account)));
        }
    }

    async fn run(self: Box<Self>, mut account: Account) {
        let Self { client, upstream, lease, route, .. } = *self;
        // If it isn't there any more, the other side hasn't said a word that could be lost.
        let (Ok(mut client), Ok(mut upstream)) = (client.await, upstream.await) else { return };
        let _open = Open::new(account.worker().shared.metrics.tunnels.clone());
        let idle = route.upstream.config().idle_timeout;
        let stall = account.worker().shared.config.timeouts.write_stall;
        let mut flow = Flow::new(idle.unwrap_or(NEVER), stall);
        let mut timer = pin!(sleep_until(flow.limit()));
        let ended = poll_fn(|context| {
            let told = &mut |passed| account.passed(passed);
            let ended = flow.poll(context, &mut client, &mut upstream, timer.as_mut(), told);
            if ended.is_pending() && account.is_exhausted() {
                account.cut_off();
                return Poll::Ready(Err(io::Error::other("nothing is left to pay for more")));
            }
            ended
        })
        .await;
        match ended {
            Ok(()) => account.complete(),
            Err(error) => tracing::debug!(service = %route.config.service.name, %error, "a tunnel was cut"),
        }
        drop(lease);
    }
}

/// How many bytes have been passed on.
#[derive(Clone, Copy, Debug)]
pub(in crate::proxy) struct Passed {
    /// To the client.
    pub(in crate::proxy) down: usize,
    /// To the upstream.
    pub(in crate::proxy) up: usize,
}

/// Counts a tunnel as long as it is open, however it ends.
struct Open(Gauge);

impl Open {
    fn new(gauge: Gauge) -> Self {
        gauge.increment(1);
        Self(gauge)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.decrement(1);
    }
}

/// Both directions, and how long they may do nothing.
struct Flow {
    down: Direction,
    up: Direction,
    idle: Duration,
    stall: Duration,
    moved: Instant,
    /// Since when the client hasn't taken what is there for it.
    stalled: Option<Instant>,
}

/// From one side to the other.
#[derive(Default)]
struct Direction {
    /// What the other side hasn't taken yet.
    kept: Bytes,
    progress: Progress,
    is_unflushed: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Progress {
    #[default]
    Flowing,
    /// The one side has ended, which the other isn't told yet.
    Ending,
    Ended,
}

/// What one look at a direction has come to.
struct Look {
    moved: usize,
    /// The other side takes nothing just now.
    is_blocked: bool,
}

impl Flow {
    fn new(idle: Duration, stall: Duration) -> Self {
        Self {
            down: Direction::default(),
            up: Direction::default(),
            idle,
            stall,
            moved: Instant::now(),
            stalled: None,
        }
    }

    /// Until when something has to happen.
    fn limit(&self) -> Instant {
        let idle = self.moved + self.idle;
        self.stalled.map_or(idle, |since| idle.min(since + self.stall))
    }

    /// Passes on whatever there is. `told` hears of what was.
    fn poll(
        &mut self,
        context: &mut Context<'_>,
        client: &mut Upgraded,
        upstream: &mut Upgraded,
        mut timer: Pin<&mut Sleep>,
        told: &mut dyn FnMut(Passed),
    ) -> Poll<io::Result<()>> {
        // In this order: what an upstream says before it goes still arrives.
        let down = self.down.poll(context, upstream, client)?;
        let up = self.up.poll(context, client, upstream);
        let passed = Passed { down: down.moved, up: up.as_ref().map_or(0, |up| up.moved) };
        if passed.down > 0 || passed.up > 0 {
            told(passed);
        }
        let up = up?;
        if self.up.progress == Progress::Ended && self.down.progress == Progress::Ended {
            return Poll::Ready(Ok(()));
        }
        if up.moved > 0 || down.moved > 0 {
            self.moved = Instant::now();
        }
        self.stalled = match self.stalled.filter(|_| down.moved == 0) {
            _ if !down.is_blocked => None,
            None => Some(Instant::now()),
            since => since,
        };
        // A timer that rings too early costs less than setting it anew with each piece.
        let limit = self.limit();
        if limit < timer.deadline() {
            timer.as_mut().reset(limit);
        }
        loop {
            ready!(timer.as_mut().poll(context));
            if self.limit() <= Instant::now() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            timer.as_mut().reset(self.limit());
        }
    }
}

impl Direction {
    fn poll(
        &mut self,
        context: &mut Context<'_>,
        from: &mut Upgraded,
        to: &mut Upgraded,
    ) -> io::Result<Look> {
        let mut look = Look { moved: 0, is_blocked: false };
        for _ in 0..TURN {
            while !self.kept.is_empty() {
                match Pin::new(&mut *to).poll_write(context, &self.kept)? {
                    Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(written) => {
                        self.kept.advance(written);
                        self.is_unflushed = true;
                        look.moved += written;
                    }
                    Poll::Pending => {
                        look.is_blocked = true;
                        return Ok(look);
                    }
                }
            }
            // Lets go of it.
            self.kept = Bytes::new();
            match self.progress {
                Progress::Ended => return Ok(look),
                Progress::Ending => {
                    look.is_blocked = Pin::new(&mut *to).poll_shutdown(context)?.is_pending();
                    if !look.is_blocked {
                        self.progress = Progress::Ended;
                    }
                    return Ok(look);
                }
                Progress::Flowing => {}
            }
            let mut space = [const { MaybeUninit::uninit() }; PIECE];
            let mut piece = ReadBuf::uninit(&mut space);
            match Pin::new(&mut *from).poll_read(context, piece.unfilled())? {
                Poll::Ready(()) if piece.filled().is_empty() => self.progress = Progress::Ending,
                Poll::Ready(()) => {
                    let mut rest = piece.filled();
                    if let Poll::Ready(written) = Pin::new(&mut *to).poll_write(context, rest)? {
                        rest = &rest[written..];
                        self.is_unflushed = true;
                        look.moved += written;
                    }
                    self.kept = Bytes::copy_from_slice(rest);
                }
                Poll::Pending => {
                    if self.is_unflushed {
                        look.is_blocked = Pin::new(&mut *to).poll_flush(context)?.is_pending();
                        self.is_unflushed = look.is_blocked;
                    }
                    return Ok(look);
                }
            }
        }
        context.waker().wake_by_ref();
        Ok(look)
    }
}
