//! WebSockets in both versions of HTTP: servers that echo, and clients. The frames are those of a WebSocket library; for
//! tests of single bytes there is an upstream that says what the test says.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt, Empty};
use hyper::{body::Incoming, ext::Protocol, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ServerConfig, crypto::ring};
use rustls_pki_types::PrivateKeyDer;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        self,
        handshake::derive_accept_key,
        protocol::{Role, WebSocketConfig},
    },
};

use super::{http2, within};

/// Which version of HTTP is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    Http1,
    Http2,
}

/// The key of every client here, with its proof.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// Bytes in both directions.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

pub type Socket = WebSocketStream<Box<dyn Io>>;

/// Room for the largest message of these tests.
pub fn roomy() -> WebSocketConfig {
    WebSocketConfig::default().max_message_size(Some(64 << 20)).max_frame_size(Some(64 << 20))
}

/// What a client has got: bytes in both directions, or another answer.
pub enum Opened {
    Tunnel(HeaderMap, Box<dyn Io>),
    Refused(Response<Bytes>),
}

impl Opened {
    #[track_caller]
    pub fn tunnel(self) -> Box<dyn Io> {
        match self {
            Self::Tunnel(_, io) => io,
            Self::Refused(answer) => panic!("expected a tunnel, got {answer:?}"),
        }
    }

    #[track_caller]
    pub fn refused(self) -> Response<Bytes> {
        match self {
            Self::Tunnel(headers, _) => panic!("expected a refusal, got a tunnel with {headers:?}"),
            Self::Refused(answer) => answer,
        }
    }
}

/// Asks for a WebSocket.
pub async fn open(over: Over, addr: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Opened {
    let mut request = match over {
        Over::Http1 => Request::builder()
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::CONNECTION, "keep-alive, Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_KEY, KEY),
        Over::Http2 => Request::builder()
            .method(Method::CONNECT)
            .uri(format!("http://localhost{path}"))
            .extension(Protocol::from_static("websocket")),
    };
    request = request.header(header::SEC_WEBSOCKET_VERSION, "13");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Empty::new().map_err(|never| match never {}).boxed()).unwrap();
    within(async {
        let mut answer = match over {
            Over::Http1 => upgradeable(addr).await.send_request(request).await.unwrap(),
            Over::Http2 => ready_for_connect(addr).await.send_request(request).await.unwrap(),
        };
        let agrees = match over {
            Over::Http1 => answer.status() == StatusCode::SWITCHING_PROTOCOLS,
            Over::Http2 => answer.status().is_success(),
        };
        if agrees {
            let io = hyper::upgrade::on(&mut answer).await.unwrap();
            return Opened::Tunnel(answer.headers().clone(), Box::new(TokioIo::new(io)));
        }
        let (head, body) = answer.into_parts();
        Opened::Refused(Response::from_parts(head, body.collect().await.unwrap().to_bytes()))
    })
    .await
}

/// A connection over HTTP/1.1 that can go on in another protocol.
async fn upgradeable(addr: SocketAddr) -> super::Sender1 {
    let stream = TcpStream::connect(addr).await.unwrap();
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio_util::task::TaskTracker::new().spawn(connection.with_upgrades());
    sender
}

/// A connection over HTTP/2 on which something has been answered: only then it is known what the other side takes.
async fn ready_for_connect(addr: SocketAddr) -> super::Sender2 {
    let mut sender = http2(addr).await;
    // The gateway's own answer, whatever is served.
    let request =
        Request::builder().method(Method::TRACE).uri("http://localhost/").body(super::body("")).unwrap();
    sender.send_request(request).await.unwrap().into_body().collect().await.unwrap();
    sender
}

/// A WebSocket, with the frames of a library.
pub async fn connect(over: Over, addr: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Socket {
    let io = open(over, addr, path, headers).await.tunnel();
    WebSocketStream::from_raw_socket(io, Role::Client, Some(roomy())).await
}

/// Echoes every message.
pub struct Echo {
    pub addr: SocketAddr,
    scheme: &'static str,
    _tasks: JoinSet<()>,
}

impl Echo {
    pub async fn start(over: Over) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                match over {
                    Over::Http1 => open.spawn(serve_http1(socket)),
                    Over::Http2 => open.spawn(serve_http2(socket, over)),
                };
            }
        });
        let scheme = if over == Over::Http1 { "http" } else { "h2c" };
        Self { addr, scheme, _tasks: tasks }
    }

    /// One that speaks both versions behind TLS, and takes WebSockets in this one only.
    pub async fn behind_tls(over: Over) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let acceptor = acceptor.clone();
                open.spawn(async move {
                    let Ok(socket) = acceptor.accept(socket).await else { return };
                    if socket.get_ref().1.alpn_protocol() == Some(b"h2") {
                        serve_http2(socket, over).await;
                    } else if over == Over::Http1 {
                        serve_http1(socket).await;
                    }
                });
            }
        });
        Self { addr, scheme: "https", _tasks: tasks }
    }

    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.addr)
    }
}

async fn serve_http1<S: Io>(socket: S) {
    if let Ok(socket) = tokio_tungstenite::accept_async_with_config(socket, Some(roomy())).await {
        echo(socket).await;
    }
}

async fn echo<S: Io>(mut socket: WebSocketStream<S>) {
    while let Some(Ok(message)) = socket.next().await {
        let is_message = message.is_text() || message.is_binary();
        if is_message && socket.send(message).await.is_err() {
            return;
        }
    }
}

/// Answers whatever isn't a WebSocket in its place with 418.
async fn serve_http2<S: Io + 'static>(socket: S, over: Over) {
    let answer = service_fn(|mut request: Request<Incoming>| async move {
        let protocol = request.extensions().get::<Protocol>().map(|protocol| protocol.as_str().to_owned());
        let is_right = request.method() == Method::CONNECT
            && request.version() == Version::HTTP_2
            && protocol.as_deref() == Some("websocket")
            && !request.headers().contains_key(header::SEC_WEBSOCKET_KEY)
            && !request.headers().contains_key(header::UPGRADE);
        let mut response = Response::new(Empty::<Bytes>::new());
        if !is_right {
            *response.status_mut() = StatusCode::IM_A_TEAPOT;
            return Ok::<_, std::convert::Infallible>(response);
        }
        let upgraded = hyper::upgrade::on(&mut request);
        tokio_util::task::TaskTracker::new().spawn(async move {
            let io = TokioIo::new(upgraded.await.unwrap());
            echo(WebSocketStream::from_raw_socket(io, Role::Server, Some(roomy())).await).await;
        });
        Ok(response)
    });
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    if over == Over::Http2 {
        builder.enable_connect_protocol();
    }
    let _ = builder.serve_connection(TokioIo::new(socket), answer).await;
}

/// An upstream over HTTP/1.1 that says what a test says.
pub struct Puppet(TcpListener);

impl Puppet {
    pub async fn start() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.0.local_addr().unwrap())
    }

    /// The next connection and the head of its first request.
    pub async fn accept(&self) -> (TcpStream, String) {
        within(async {
            let (mut socket, _) = self.0.accept().await.unwrap();
            let head = read_head(&mut socket).await;
            (socket, head)
        })
        .await
    }

    /// The same, answered with consent to a WebSocket and, in the same piece, `first`.
    pub async fn agree(&self, first: &[u8]) -> (TcpStream, String) {
        let (mut socket, head) = self.accept().await;
        let key = line(&head, "sec-websocket-key").expect("a key");
        let accept = derive_accept_key(key.as_bytes());
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\
             Sec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        socket.write_all(&[answer.as_bytes(), first].concat()).await.unwrap();
        (socket, head)
    }
}

/// Reads up to the empty line and not a byte further.
pub async fn read_head(socket: &mut (impl AsyncRead + Unpin)) -> String {
    within(async {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(socket.read_u8().await.unwrap());
        }
        String::from_utf8(head).unwrap()
    })
    .await
}

/// The value of a line in a head.
pub fn line<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.lines().filter_map(|line| line.split_once(": "));
    lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

/// The bytes of a handshake over HTTP/1.1, with these lines besides.
pub fn handshake(path: &str, lines: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n{lines}\r\n"
    )
}

/// A message in this many frames, the first of them of this kind.
pub fn fragments(message: &[u8], pieces: usize) -> Vec<tungstenite::Message> {
    use tungstenite::protocol::frame::{
        Frame,
        coding::{Data, OpCode},
    };
    let size = message.len().div_ceil(pieces);
    let chunks: Vec<&[u8]> = message.chunks(size).collect();
    let frame = |(at, chunk): (usize, &&[u8])| {
        let kind = if at == 0 { Data::Binary } else { Data::Continue };
        let payload = Bytes::copy_from_slice(chunk);
        tungstenite::Message::Frame(Frame::message(payload, OpCode::Data(kind), at + 1 == chunks.len()))
    };
    chunks.iter().enumerate().map(frame).collect()
}
