//! The yardstick: the least that a reverse proxy built on hyper can be, in the shape of farebox's gateway.
//!
//! `bare-proxy LISTEN h1|h2 UPSTREAM h1|h2`. One accept loop hands sockets in turn to two workers; each is one
//! current-thread runtime with connections of its own to the upstream, kept alive. No routing, no metrics, no log, no
//! time-outs, no verification, no headers changed but `Host`: what farebox costs beyond this is what farebox does.

use std::{convert::Infallible, env, error::Error, net::SocketAddr, pin::Pin, sync::Arc, task, thread};

use futures_util::future::BoxFuture;
use http::{HeaderValue, Request, Response, StatusCode, Uri, Version, header::HOST, uri::PathAndQuery};
use http_body_util::Either;
use hyper::{
    body::{Body, Frame, Incoming, SizeHint},
    client, server,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::{net::TcpStream, runtime, sync::mpsc};
use tokio_util::task::TaskTracker;

type Failure = Box<dyn Error + Send + Sync>;
type Http1 = client::conn::http1::SendRequest<Incoming>;
type Http2 = client::conn::http2::SendRequest<Incoming>;
type Answer = Response<Either<Leased, String>>;

const WORKERS: usize = 2;

/// Where requests go, and the connections of one worker to it.
struct Upstream {
    addr: SocketAddr,
    host: HeaderValue,
    is_http2: bool,
    http1: Mutex<Vec<Http1>>,
    http2: Mutex<Option<Http2>>,
    tasks: TaskTracker,
}

/// A body that gives its connection back when it has been read.
struct Leased {
    body: Incoming,
    lease: Option<(Http1, Arc<Upstream>)>,
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [listen, front, upstream, back] = arguments.as_slice() else {
        return Err("usage: bare-proxy LISTEN h1|h2 UPSTREAM h1|h2".into());
    };
    let (is_http2, addr, back) = (front == "h2", upstream.parse()?, back == "h2");
    let mut workers = Vec::new();
    for _ in 0..WORKERS {
        let (sockets, handed) = mpsc::channel(256);
        thread::spawn(move || work(handed, is_http2, addr, back));
        workers.push(sockets);
    }
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(listen.parse()?)?;
        let listener = socket.listen(4096)?;
        for worker in workers.iter().cycle() {
            let (socket, _) = listener.accept().await?;
            socket.set_nodelay(true)?;
            worker.send(socket.into_std()?).await?;
        }
        Ok(())
    })
}

fn work(
    mut handed: mpsc::Receiver<std::net::TcpStream>,
    is_http2: bool,
    addr: SocketAddr,
    back: bool,
) -> Result<(), Failure> {
    let upstream = Arc::new(Upstream {
        addr,
        host: addr.to_string().parse()?,
        is_http2: back,
        http1: Mutex::default(),
        http2: Mutex::default(),
        tasks: TaskTracker::new(),
    });
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        while let Some(socket) = handed.recv().await {
            let socket = TokioIo::new(TcpStream::from_std(socket)?);
            let service = {
                let upstream = upstream.clone();
                service_fn(move |request| answer(request, upstream.clone()))
            };
            // A connection that fails is its client's business.
            upstream.tasks.spawn(async move {
                let _ = if is_http2 {
                    let builder = server::conn::http2::Builder::new(TokioExecutor::new());
                    builder.serve_connection(socket, service).await
                } else {
                    server::conn::http1::Builder::new().serve_connection(socket, service).await
                };
            });
        }
        Ok(())
    })
}

fn answer(
    request: Request<Incoming>,
    upstream: Arc<Upstream>,
) -> BoxFuture<'static, Result<Answer, Infallible>> {
    Box::pin(async move {
        Ok(upstream.send(request).await.unwrap_or_else(|error| {
            let mut response = Response::new(Either::Right(error.to_string()));
            *response.status_mut() = StatusCode::BAD_GATEWAY;
            response
        }))
    })
}

impl Upstream {
    async fn send(self: Arc<Self>, mut request: Request<Incoming>) -> Result<Answer, Failure> {
        if self.is_http2 {
            let target = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
            *request.uri_mut() = format!("http://{}{target}", self.addr).parse::<Uri>()?;
            *request.version_mut() = Version::HTTP_2;
            request.headers_mut().remove(HOST);
            let response = self.stream().await?.send_request(request).await?;
            return Ok(response.map(|body| Either::Left(Leased { body, lease: None })));
        }
        if request.version() == Version::HTTP_2 {
            let target = request.uri().path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
            *request.uri_mut() = target.into();
            *request.version_mut() = Version::HTTP_11;
        }
        request.headers_mut().insert(HOST, self.host.clone());
        let mut sender = self.connection().await?;
        let response = sender.send_request(request).await?;
        Ok(response.map(|body| {
            let mut leased = Leased { body, lease: Some((sender, self)) };
            let is_empty = leased.is_end_stream();
            leased.give_back_if(is_empty);
            Either::Left(leased)
        }))
    }

    async fn connection(&self) -> Result<Http1, Failure> {
        {
            let mut kept = self.http1.lock();
            // The one used last comes first, unless its own task hasn't run since.
            while let Some(at) = kept.iter().rposition(|sender| sender.is_ready() || sender.is_closed()) {
                let sender = kept.remove(at);
                if sender.is_ready() {
                    return Ok(sender);
                }
            }
        }
        let socket = TcpStream::connect(self.addr).await?;
        socket.set_nodelay(true)?;
        let (sender, connection) = client::conn::http1::handshake(TokioIo::new(socket)).await?;
        self.tasks.spawn(connection);
        Ok(sender)
    }

    async fn stream(&self) -> Result<Http2, Failure> {
        if let Some(sender) = self.http2.lock().clone().filter(|sender| !sender.is_closed()) {
            return Ok(sender);
        }
        let socket = TcpStream::connect(self.addr).await?;
        socket.set_nodelay(true)?;
        let (sender, connection) =
            client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await?;
        self.tasks.spawn(connection);
        *self.http2.lock() = Some(sender.clone());
        Ok(sender)
    }
}

impl Leased {
    fn give_back_if(&mut self, is_over: bool) {
        if let Some((sender, upstream)) = self.lease.take_if(|_| is_over) {
            upstream.http1.lock().push(sender);
        }
    }
}

impl Body for Leased {
    type Data = bytes::Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
    ) -> task::Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        let is_over = matches!(polled, task::Poll::Ready(None)) || self.body.is_end_stream();
        self.give_back_if(is_over);
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
