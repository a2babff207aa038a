//! One connection from a client, from the accepted socket to its end.

use std::{convert::Infallible, io, net::SocketAddr, pin::Pin, sync::Arc};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Duration, Instant, sleep_until, timeout},
};
use tokio_rustls::TlsAcceptor;

use super::{
    activity::{Activity, Verdict, Watched},
    sniff::{Spoken, sniff},
};
use crate::{
    proxy::{self, Body, Peer},
    worker::{Accepted, Worker},
};

/// HTTP/2 flow control: how much one stream, and all streams of a connection, may send before we have read it.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// How much of an answer is held for an HTTP/2 stream whose client doesn't take it.
const SEND_BUFFER_MAX: usize = 64 * 1024;
/// What hyper reserves at least, and our head limit may be below it.
const READ_BUFFER_MIN: usize = 8 * 1024;

/// How long a client that was told goodbye, and has nothing under way, may take to say a word. Over HTTP/2 it has to, which
/// one that is gone already never does.
const FAREWELL: Duration = Duration::from_secs(2);

/// Serves a connection to its end. Nothing that goes wrong on it is anybody else's business.
pub(crate) async fn serve(accepted: Accepted, worker: Arc<Worker>) {
    let Accepted { socket, peer, tls, permit } = accepted;
    let connections = worker.shared.metrics.connections.clone();
    connections.accepted.increment(1);
    connections.open.increment(1);
    if let Err(error) = greet(socket, peer, tls, &worker).await {
        tracing::debug!(%peer, %error, "a connection ended early");
    }
    connections.open.decrement(1);
    drop(permit);
}

/// Finds out what is spoken, then speaks it.
///
/// Each way is boxed, so that a connection takes up the room of what it speaks and not of the largest: most are idle, and
/// there may be many.
async fn greet(
    socket: std::net::TcpStream,
    peer: SocketAddr,
    tls: Option<TlsAcceptor>,
    worker: &Arc<Worker>,
) -> io::Result<()> {
    let timeouts = &worker.shared.config.timeouts;
    let socket = TcpStream::from_std(socket)?;
    let peer = Arc::new(Peer::new(peer.ip(), tls.is_some()));
    let activity = Activity::new(Instant::now());
    if let Some(tls) = tls {
        let socket = Box::pin(timeout(timeouts.handshake, tls.accept(socket))).await??;
        return if socket.get_ref().1.alpn_protocol() == Some(b"h2") {
            let socket = Watched::http2(socket, Bytes::new(), activity.clone());
            Box::pin(serve_http2(socket, peer, activity, worker)).await
        } else {
            let socket = Watched::http1(socket, Bytes::new(), activity.clone());
            Box::pin(serve_http1(socket, peer, activity, worker)).await
        };
    }
    let spoken = tokio::select! {
        spoken = timeout(timeouts.headers, sniff(&socket)) => spoken??,
        () = worker.draining.cancelled() => Spoken::Nothing,
    };
    match spoken {
        Spoken::Http1(said) => {
            let socket = Watched::http1(socket, said, activity.clone());
            Box::pin(serve_http1(socket, peer, activity, worker)).await
        }
        Spoken::Http2(said) => {
            let socket = Watched::http2(socket, said, activity.clone());
            Box::pin(serve_http2(socket, peer, activity, worker)).await
        }
        Spoken::Nothing => Ok(()),
    }
}

async fn serve_http1<S>(
    socket: Watched<S>,
    peer: Arc<Peer>,
    activity: Arc<Activity>,
    worker: &Arc<Worker>,
) -> io::Result<()>
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
        .serve_connection(TokioIo::new(socket), answer(peer, activity.clone(), worker))
        .with_upgrades();
    let ended = watch(connection, &activity, worker).await;
    // Taken in any case, so that nothing is left of it when the connection has broken.
    match (ended, activity.take_after()) {
        (Ok(()), Some(after)) => after.await,
        (ended, _) => return ended,
    }
    Ok(())
}

/// What hyper takes without being told, and without allocating.
const HYPER_HEADER_COUNT: usize = 100;

async fn serve_http2<S>(
    socket: Watched<S>,
    peer: Arc<Peer>,
    activity: Arc<Activity>,
    worker: &Arc<Worker>,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limits = &worker.shared.config.limits;
    let connection = http2::Builder::new(worker.tasks.clone())
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.http2_streams_max)
        .max_header_list_size(limits.header_bytes_max)
        .max_pending_accept_reset_streams(limits.http2_pending_resets_max)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER_MAX)
        // RFC 8441: WebSockets over HTTP/2.
        .enable_connect_protocol()
        .keep_alive_interval(worker.shared.config.timeouts.keep_alive)
        .serve_connection(TokioIo::new(socket), answer(peer, activity.clone(), worker));
    watch(connection, &activity, worker).await
}

/// Answers each request of a connection. The future is boxed, so that a connection without a request doesn't take up the
/// room of one.
fn answer(
    peer: Arc<Peer>,
    activity: Arc<Activity>,
    worker: &Arc<Worker>,
) -> impl hyper::service::HttpService<
    Incoming,
    ResBody = Body,
    Error = Infallible,
    Future = BoxFuture<'static, Result<Response<Body>, Infallible>>,
> + use<> {
    let worker = worker.clone();
    service_fn(move |request: Request<Incoming>| {
        proxy::answer(request, peer.clone(), activity.request(), worker.clone())
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
async fn watch(connection: impl Drain, activity: &Activity, worker: &Worker) -> io::Result<()> {
    let timeouts = &worker.shared.config.timeouts;
    let mut connection = std::pin::pin!(connection);
    let mut look = std::pin::pin!(sleep_until(Instant::now()));
    let mut told = std::pin::pin!(worker.draining.cancelled());
    let mut is_draining = false;
    let mut is_finishing = false;
    loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => return ended.map_err(io::Error::other),
            () = told.as_mut(), if !is_draining => {
                is_draining = true;
                activity.listen();
                connection.as_mut().drain();
                look.as_mut().reset(Instant::now() + FAREWELL);
            }
            () = look.as_mut() => match activity.judge(Instant::now(), timeouts) {
                _ if is_draining && activity.is_deserted() => return Ok(()),
                Verdict::Wait(_) if is_draining => look.as_mut().reset(Instant::now() + FAREWELL),
                Verdict::Wait(until) => look.as_mut().reset(until),
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
