//! One connection from a client, from the accepted socket to its end.

use std::{
    convert::Infallible,
    future::poll_fn,
    io,
    net::IpAddr,
    pin::{Pin, pin},
    sync::Arc,
};

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use http::{Request, Response};
use hyper::{
    body::{Body as _, Incoming},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Duration, Instant, sleep, sleep_until, timeout},
};

use super::{
    activity::{Activity, Verdict, Watched},
    bell::Bell,
    guests::{Refusal, Seat},
    proxy_protocol::{self, Source},
    sniff::{Spoken, sniff},
    streams::Streams,
};
use crate::{
    metrics::Flood,
    moment::in_one_go,
    proxy::{self, Body, Peer},
    worker::{Accepted, Worker},
};

/// HTTP/2 flow control: how much one stream, and all streams of a connection, may send before we have read it.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// How much of an answer is held for an HTTP/2 stream whose client doesn't take it.
const SEND_BUFFER_MAX: usize = 64 * 1024;
/// How many requests on one connection may break the rules of HTTP/2, each of which costs a reset.
const LOCAL_RESETS_MAX: usize = 100;
/// What hyper reserves at least, and our head limit may be below it.
const READ_BUFFER_MIN: usize = 8 * 1024;

/// How long a client that was told goodbye, and has nothing under way, may take to say a word. Over HTTP/2 it has to, which
/// one that is gone already never does.
const FAREWELL: Duration = Duration::from_secs(2);

/// When to look for the first time what a connection does, and again when it was at work as it was asked to make room.
const FIRST_LOOK: Duration = Duration::from_secs(1);

/// Serves a connection to its end. Nothing that goes wrong on it is anybody else's business.
pub(crate) async fn serve(accepted: Accepted, worker: Arc<Worker>) {
    let peer = accepted.peer;
    worker.shared.metrics.connections.accepted.increment(1);
    let speak = Box::pin(greet(accepted, worker)).await;
    let ended = match speak {
        Ok(Some(speak)) => speak.await,
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "a connection ended early");
    }
}

/// All that is left to do on a connection.
type Speak = BoxFuture<'static, io::Result<()>>;

/// Finds out whose it is and what is spoken, and gives back what speaks it, unless the connection has ended before.
///
/// Each step is boxed and gone when it is done, so that a connection takes up the room of what it does and not of the
/// largest: most are idle, and there may be many.
async fn greet(accepted: Accepted, worker: Arc<Worker>) -> io::Result<Option<Speak>> {
    let Accepted { socket, peer, is_announced, tls, mut seat } = accepted;
    let timeouts = &worker.shared.config.timeouts;
    let socket = TcpStream::from_std(socket)?;
    let mut ip = peer.ip();
    let mut speaks_for_itself = false;
    if is_announced {
        let read = whose(&socket, &mut seat, &worker);
        let Some(client) = in_time(&worker, timeouts.headers, FAREWELL, read).await? else {
            return Ok(None);
        };
        speaks_for_itself = client.is_none();
        ip = client.unwrap_or(ip);
    }
    let mut peer = Peer::new(ip, tls.is_some());
    peer.speaks_for_itself = speaks_for_itself;
    let peer = Arc::new(peer);
    let activity = Activity::new(Instant::now(), seat);
    if let Some(tls) = tls {
        let shaken = in_time(&worker, timeouts.handshake, FAREWELL, tls.accept(socket)).await;
        let failed = &worker.shared.metrics.connections.tls_failed;
        let Some(socket) = shaken.inspect_err(|_| failed.increment(1))? else { return Ok(None) };
        let is_http2 = socket.get_ref().1.alpn_protocol() == Some(b"h2");
        let spoken = if is_http2 { Spoken::Http2(Bytes::new()) } else { Spoken::Http1(Bytes::new()) };
        return Ok(speak(spoken, socket, peer, activity, &worker));
    }
    let spoken = in_time(&worker, timeouts.headers, Duration::ZERO, sniff(&socket)).await?;
    Ok(spoken.and_then(|spoken| speak(spoken, socket, peer, activity, &worker)))
}

fn speak<S>(
    spoken: Spoken,
    socket: S,
    peer: Arc<Peer>,
    activity: Arc<Activity>,
    worker: &Arc<Worker>,
) -> Option<Speak>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let worker = worker.clone();
    match spoken {
        Spoken::Http1(said) => {
            let socket = Watched::http1(socket, said, activity.clone());
            Some(serve_http1(socket, peer, activity, worker))
        }
        Spoken::Http2(said) => {
            let streams_max = worker.shared.config.limits.http2_streams_max;
            let socket = Watched::http2(socket, said, activity.clone(), streams_max);
            Some(serve_http2(socket, peer, activity, worker))
        }
        Spoken::Nothing => None,
    }
}

/// One of the steps before the first request, in its time, and when the gateway stops, in what is left of it then. `None`
/// if the connection ends over it in good order, since the gateway stops or its place is needed.
fn in_time<'a, T>(
    worker: &'a Worker,
    allowed: Duration,
    at_stop: Duration,
    step: impl Future<Output = io::Result<T>> + Send + 'a,
) -> BoxFuture<'a, io::Result<Option<T>>> {
    Box::pin(async move {
        tokio::select! {
            biased;
            done = timeout(allowed, step) => done?.map(Some),
            () = worker.draining.cancelled().then(|()| sleep(at_stop)) => Ok(None),
            // Who has just come is about to say something.
            () = sleep(allowed / 3).then(|()| worker.shared.guests.turn()) => Ok(None),
        }
    })
}

/// Reads whose connection a proxy hands over, and gives the seat to that client. `None`: the proxy's own.
async fn whose(socket: &TcpStream, seat: &mut Seat, worker: &Worker) -> io::Result<Option<IpAddr>> {
    let refused = |refusal: Refusal, error: io::Error| {
        worker.shared.metrics.connections.refused(refusal.counted());
        error
    };
    let source =
        proxy_protocol::read(socket).await.map_err(|error| refused(Refusal::NoProxyHeader, error))?;
    let Source::Client(ip) = source else { return Ok(None) };
    seat.take(ip).map_err(|refusal| refused(refusal, io::Error::other(refusal)))?;
    Ok(Some(ip))
}

/// No `async fn`, which would have room for the socket twice: as it was given, and in the connection.
fn serve_http1<S>(socket: Watched<S>, peer: Arc<Peer>, activity: Arc<Activity>, worker: Arc<Worker>) -> Speak
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limits = &worker.shared.config.limits;
    let header_bytes_max = usize::try_from(limits.header_bytes_max).unwrap_or(usize::MAX);
    let mut builder = http1::Builder::new();
    builder
        .max_header_size(header_bytes_max)
        .max_buf_size(header_bytes_max.max(READ_BUFFER_MIN))
        // Times are watched here, see `activity.rs`.
        .header_read_timeout(None);
    if limits.header_count_max != HYPER_HEADER_COUNT {
        builder.max_headers(limits.header_count_max);
    }
    let connection = builder
        .serve_connection(TokioIo::new(socket), answer(peer, activity.clone(), None, &worker))
        .with_upgrades();
    let mut connection = Box::pin(connection);
    Box::pin(async move {
        let ended = watch(connection.as_mut(), &activity, &worker).await;
        drop(connection);
        // Taken in any case, so that nothing is left of it when the connection has broken.
        match (ended, activity.take_after()) {
            (Ok(()), Some(after)) => after.await,
            (ended, _) => return ended,
        }
        Ok(())
    })
}

/// What hyper takes without being told, and without allocating.
const HYPER_HEADER_COUNT: usize = 100;

fn serve_http2<S>(socket: Watched<S>, peer: Arc<Peer>, activity: Arc<Activity>, worker: Arc<Worker>) -> Speak
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limits = &worker.shared.config.limits;
    let streams = Streams::new(worker.tasks.clone(), worker.shared.config.timeouts.write_stall);
    let connection = http2::Builder::new(streams.clone())
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.http2_streams_max)
        .max_header_list_size(limits.header_bytes_max)
        .max_pending_accept_reset_streams(limits.http2_pending_resets_max)
        .max_local_error_reset_streams(LOCAL_RESETS_MAX)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER_MAX)
        // RFC 8441: WebSockets over HTTP/2.
        .enable_connect_protocol()
        .keep_alive_interval(worker.shared.config.timeouts.keep_alive)
        .serve_connection(TokioIo::new(socket), answer(peer, activity.clone(), Some(streams), &worker));
    let mut connection = Box::pin(connection);
    Box::pin(async move {
        let ended = watch(connection.as_mut(), &activity, &worker).await;
        let abuse = || ended.as_ref().is_err_and(is_abuse).then_some(Flood::Abuse);
        if let Some(flood) = activity.flood().or_else(abuse) {
            worker.shared.metrics.connections.flooded(flood);
            return Err(io::Error::other(format!("flooded with what asks for nothing: {}", flood.as_str())));
        }
        ended
    })
}

/// Whether hyper has sent its client away for doing too much of something.
fn is_abuse(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|error| error.source());
    let of_http2 = inner.and_then(|error| error.downcast_ref::<h2::Error>());
    of_http2.is_some_and(|error| error.is_library() && error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM))
}

/// Answers each request of a connection. The future is boxed, so that a connection without a request doesn't take up the
/// room of one.
fn answer(
    peer: Arc<Peer>,
    activity: Arc<Activity>,
    streams: Option<Streams>,
    worker: &Arc<Worker>,
) -> impl hyper::service::HttpService<
    Incoming,
    ResBody = Body,
    Error = Infallible,
    Future = BoxFuture<'static, Result<Response<Body>, Infallible>>,
> + use<> {
    let worker = worker.clone();
    service_fn(move |request: Request<Incoming>| {
        let taking = streams.as_ref().map(Streams::next);
        if streams.is_none() {
            activity.bodied(!request.body().is_end_stream());
        }
        proxy::answer(request, peer.clone(), activity.request(taking), worker.clone())
    })
}

/// What both versions of HTTP have in common.
trait Drain: Future<Output = hyper::Result<()>> {
    /// Take no new requests, finish those there are.
    fn drain(self: Pin<&mut Self>);
}

impl<S, H> Drain for http1::UpgradeableConnection<TokioIo<Watched<S>>, H>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    H: hyper::service::HttpService<Incoming, ResBody = Body>,
    H::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn drain(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<S, H, E> Drain for http2::Connection<TokioIo<Watched<S>>, H, E>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    H: hyper::service::HttpService<Incoming, ResBody = Body>,
    H::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    E: hyper::rt::bounds::Http2ServerConnExec<H::Future, Body>,
{
    fn drain(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// Drives a connection to its end, and ends it when it is stuck, has nothing to do, or the gateway stops.
async fn watch(mut connection: Pin<&mut impl Drain>, activity: &Activity, worker: &Worker) -> io::Result<()> {
    let timeouts = &worker.shared.config.timeouts;
    let soon = timeouts.headers.min(FIRST_LOOK);
    let mut look = pin!(sleep_until(Instant::now() + soon));
    let mut told = pin!(worker.draining.cancelled());
    let guests = &worker.shared.guests;
    let mut turn = pin!(guests.turn());
    // Whether it is among those that may be told to make room.
    let mut is_waiting = false;
    let mut is_leaving = false;
    let mut is_draining = false;
    let mut is_finishing = false;
    let mut bell = Bell::new();
    loop {
        let event = {
            let seldom = pin!(async {
                tokio::select! {
                    biased;
                    () = told.as_mut(), if !is_draining => Event::Told,
                    () = turn.as_mut(), if is_waiting => Event::Turn,
                    () = look.as_mut() => Event::Look,
                }
            });
            tokio::select! {
                biased;
                ended = poll_fn(|context| in_one_go(|| connection.as_mut().poll(context))) => {
                    return ended.map_err(io::Error::other);
                }
                event = bell.wait(seldom) => event,
            }
        };
        match event {
            Event::Told => {
                is_draining = true;
                activity.listen();
                connection.as_mut().drain();
                look.as_mut().reset(Instant::now() + FAREWELL);
            }
            Event::Turn => {
                is_waiting = false;
                if activity.is_idle() && !is_leaving {
                    is_leaving = true;
                    connection.as_mut().drain();
                    look.as_mut().reset(Instant::now() + FAREWELL);
                } else {
                    guests.next();
                    look.as_mut().reset(Instant::now() + soon);
                }
            }
            Event::Look => match activity.judge(Instant::now(), timeouts) {
                _ if is_draining && activity.is_deserted() => return Ok(()),
                Verdict::Wait(_) | Verdict::Finish if is_leaving && activity.is_idle() => return Ok(()),
                Verdict::Wait(_) if is_draining => look.as_mut().reset(Instant::now() + FAREWELL),
                Verdict::Wait(until) => {
                    if !is_waiting && activity.is_idle_for(soon / 2) {
                        turn.set(guests.turn());
                        is_waiting = true;
                    }
                    look.as_mut().reset(until);
                }
                Verdict::Close => return Err(io::ErrorKind::TimedOut.into()),
                Verdict::Finish if is_finishing => return Err(io::ErrorKind::TimedOut.into()),
                Verdict::Finish => {
                    is_finishing = true;
                    connection.as_mut().drain();
                    look.as_mut().reset(Instant::now() + timeouts.headers);
                }
            },
        }
    }
}

/// What happens to a connection besides its requests.
enum Event {
    /// The gateway stops.
    Told,
    /// Its place is needed.
    Turn,
    /// It is time to look what it does.
    Look,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The room that a connection takes up while it is kept, besides what hyper takes for it.
    fn room<F>(_: &impl Fn(Pin<&'static mut Bare>, &'static Activity, &'static Worker) -> F) -> usize {
        size_of::<F>()
    }

    struct Bare;

    impl Future for Bare {
        type Output = hyper::Result<()>;

        fn poll(self: Pin<&mut Self>, _: &mut std::task::Context<'_>) -> std::task::Poll<hyper::Result<()>> {
            std::task::Poll::Pending
        }
    }

    impl Drain for Bare {
        fn drain(self: Pin<&mut Self>) {}
    }

    #[test]
    fn a_kept_connection_costs_little_besides_hypers_own_room() {
        fn outer<F>(_: &impl Fn(Accepted, Arc<Worker>) -> F) -> usize {
            size_of::<F>()
        }
        // Thousands are kept, and most of them do nothing. Whoever makes these larger has measured what it costs.
        let watch = room(&|connection, activity, worker| watch(connection, activity, worker));
        let serve = outer(&|accepted, worker| serve(accepted, worker));
        assert!(watch <= 640, "watching takes {watch} bytes");
        assert!(serve <= 256, "what is around it takes {serve} bytes");
        let shared = size_of::<Activity>() + size_of::<Peer>();
        assert!(shared <= 320, "what its requests share takes {shared} bytes");
    }
}
