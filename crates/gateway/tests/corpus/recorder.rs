//! Upstreams that keep what they receive: every byte over HTTP/1.1, every request over HTTP/2.

use std::{convert::Infallible, net::SocketAddr, sync::Arc};

use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::reading::{self, Found, Message};

/// What is spoken with the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Http1,
    Http2,
}

pub struct Recorder {
    addr: SocketAddr,
    version: Version,
    kept: Arc<Kept>,
    open: TaskTracker,
    stop: CancellationToken,
    accepting: JoinHandle<()>,
}

#[derive(Default)]
struct Kept {
    /// For each connection what came over it.
    bytes: Mutex<Vec<Arc<Mutex<Vec<u8>>>>>,
    messages: Mutex<Vec<Message>>,
}

impl Recorder {
    pub async fn start(version: Version) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (kept, open, stop) = (Arc::new(Kept::default()), TaskTracker::new(), CancellationToken::new());
        let (all, tasks, stopped) = (kept.clone(), open.clone(), stop.clone());
        let accepting = TaskTracker::new().spawn(async move {
            loop {
                let socket = tokio::select! {
                    accepted = listener.accept() => accepted.unwrap().0,
                    () = stopped.cancelled() => return,
                };
                let all = all.clone();
                match version {
                    Version::Http1 => tasks.spawn(http1(socket, all)),
                    Version::Http2 => tasks.spawn(http2(socket, all)),
                };
            }
        });
        Self { addr, version, kept, open, stop, accepting }
    }

    pub fn url(&self) -> String {
        let scheme = if self.version == Version::Http1 { "http" } else { "h2c" };
        format!("{scheme}://{}", self.addr)
    }

    /// What was received, once everybody has hung up. For HTTP/1.1, also the bytes of each connection.
    pub async fn finish(self) -> (Vec<Message>, Vec<Vec<u8>>) {
        self.stop.cancel();
        self.accepting.await.unwrap();
        self.open.close();
        self.open.wait().await;
        let connections: Vec<Vec<u8>> =
            self.kept.bytes.lock().iter().map(|bytes| bytes.lock().clone()).collect();
        let mut messages = self.kept.messages.lock().clone();
        for bytes in &connections {
            messages.extend(reading::strict(bytes).unwrap());
        }
        (messages, connections)
    }
}

async fn http1(mut socket: TcpStream, kept: Arc<Kept>) {
    let mine = Arc::new(Mutex::new(Vec::new()));
    kept.bytes.lock().push(mine.clone());
    let (mut buffer, mut unread) = ([0; 4096], Vec::new());
    while let Ok(read @ 1..) = socket.read(&mut buffer).await {
        mine.lock().extend_from_slice(&buffer[..read]);
        unread.extend_from_slice(&buffer[..read]);
        while let Ok(Found::Whole(message, length)) = reading::first(&unread) {
            unread.drain(..length);
            let body = if message.method == "HEAD" { "" } else { "ok" };
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{body}");
            if socket.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

async fn http2(socket: TcpStream, kept: Arc<Kept>) {
    let service = service_fn(|request: Request<Incoming>| {
        let kept = kept.clone();
        async move {
            let (parts, body) = request.into_parts();
            let headers = parts.headers.iter().map(|(name, value)| {
                (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
            });
            let message = Message {
                method: parts.method.to_string(),
                target: parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
                headers: headers.collect(),
                body: None,
            };
            // Kept from the start, as it may be given up in the middle.
            let at = {
                let mut messages = kept.messages.lock();
                messages.push(message);
                messages.len() - 1
            };
            if let Ok(whole) = body.collect().await {
                let forbidden =
                    ["content-length", "transfer-encoding", "host", "authorization", "x-original-url"];
                for name in whole.trailers().into_iter().flat_map(http::HeaderMap::keys) {
                    assert!(!forbidden.contains(&name.as_str()), "a trailer that frames or opens something");
                }
                kept.messages.lock()[at].body = Some(whole.to_bytes().len());
            }
            Ok::<_, Infallible>(Response::new(Full::new(bytes::Bytes::from_static(b"ok"))))
        }
    });
    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    let _ = builder.serve_connection(TokioIo::new(socket), service).await;
}
