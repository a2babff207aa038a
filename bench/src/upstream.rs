//! The upstream for everything larger than a small request, in this process: bodies of any size, unary gRPC, and a tunnel
//! that echoes.
//!
//! - `GET /bytes/N` answers with N bytes; any other `GET` with 32.
//! - `POST` reads the body to its end and answers `200`; with `content-type: application/grpc`, one message of its own
//!   and the trailers of a call that went well.
//! - `Upgrade: websocket` is granted, and what comes back through the tunnel is what was sent into it: frames are not looked
//!   at, since a tunnel doesn't.

use std::{convert::Infallible, net::SocketAddr, pin::Pin, task, thread, time::Duration};

use anyhow::Result;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, combinators::BoxBody};
use hyper::{
    body::{Body, Frame, Incoming, SizeHint},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{io, net::TcpStream, runtime, sync::oneshot};
use tokio_util::task::TaskTracker;

use crate::programs::Wire;

/// A gRPC message: not compressed, 32 bytes.
pub(crate) const GRPC_MESSAGE: &[u8; 37] = b"\0\0\0\0\x200123456789abcdef0123456789abcdef";
const CHUNK: &[u8] = &[b'x'; 64 * 1024];

/// Runs until it is dropped.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Upstream {
    /// Starts it on a thread of its own.
    pub(crate) fn start(wire: Wire) -> Result<Self> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel();
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = thread::Builder::new().name("upstream".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = accept(listener, wire) => {}
                    _ = stopped => {}
                }
            });
            runtime.shutdown_timeout(Duration::from_secs(1));
        })?;
        Ok(Self { address, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: std::net::TcpListener, wire: Wire) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    let tasks = TaskTracker::new();
    while let Ok((socket, _)) = listener.accept().await {
        let tunnels = tasks.clone();
        // A connection that fails is seen where it matters: by who asked.
        tasks.spawn(serve(socket, wire, tunnels));
    }
}

async fn serve(socket: TcpStream, wire: Wire, tunnels: TaskTracker) {
    let _ = socket.set_nodelay(true);
    let socket = TokioIo::new(socket);
    let service = service_fn(move |request| answer(request, tunnels.clone()));
    let _ = match wire {
        Wire::Http1 => http1::Builder::new().serve_connection(socket, service).with_upgrades().await,
        Wire::Http2 => {
            http2::Builder::new(TokioExecutor::new())
                .max_concurrent_streams(1000)
                .serve_connection(socket, service)
                .await
        }
    };
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

async fn answer(mut request: Request<Incoming>, tunnels: TaskTracker) -> Result<Answer, hyper::Error> {
    if let Some(protocol) = request.headers().get(header::UPGRADE).cloned() {
        let upgrade = hyper::upgrade::on(&mut request);
        tunnels.spawn(async move {
            if let Ok(upgraded) = upgrade.await {
                let (mut from, mut to) = io::split(TokioIo::new(upgraded));
                let _ = io::copy(&mut from, &mut to).await;
            }
        });
        let mut response = Response::new(Said::bytes(0).boxed());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        response.headers_mut().insert(header::UPGRADE, protocol);
        // A digest of the key is what it would be; nobody here looks at it.
        response.headers_mut().insert(header::SEC_WEBSOCKET_ACCEPT, HeaderValue::from_static("x"));
        return Ok(response);
    }
    if request.method() != Method::POST {
        let length = request.uri().path().strip_prefix("/bytes/").and_then(|number| number.parse().ok());
        return Ok(Response::new(Said::bytes(length.unwrap_or(32)).boxed()));
    }
    let is_grpc = request.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/grpc");
    let mut body = request.into_body();
    while let Some(frame) = body.frame().await {
        frame?;
    }
    let said = if is_grpc { Said::grpc() } else { Said::bytes(0) };
    let mut response = Response::new(said.boxed());
    if is_grpc {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    }
    Ok(response)
}

/// A body made while it is sent.
struct Said {
    left: u64,
    message: Option<&'static [u8]>,
    trailers: Option<HeaderMap>,
}

impl Said {
    const fn bytes(length: u64) -> Self {
        Self { left: length, message: None, trailers: None }
    }

    fn grpc() -> Self {
        let ok = HeaderMap::from_iter(
            [(header::HeaderName::from_static("grpc-status"), "0".parse())]
                .into_iter()
                .filter_map(|(name, value)| Some((name, value.ok()?))),
        );
        Self { left: 0, message: Some(GRPC_MESSAGE), trailers: Some(ok) }
    }
}

impl Body for Said {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut task::Context<'_>,
    ) -> task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(message) = self.message.take() {
            return task::Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(message)))));
        }
        if self.left > 0 {
            let length = usize::try_from(self.left).map_or(CHUNK.len(), |left| left.min(CHUNK.len()));
            self.left -= length as u64;
            return task::Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&CHUNK[..length])))));
        }
        task::Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0 && self.message.is_none() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        if self.trailers.is_some() { SizeHint::new() } else { SizeHint::with_exact(self.left) }
    }
}
