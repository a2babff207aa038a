//! Upstreams: one that tells in JSON what it received, and one that keeps every byte.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{Json, Router, extract::Request};
use hyper_util::{rt::TokioIo, server::conn::auto, service::TowerToHyperService};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinSet,
};

/// A server that ends when dropped.
pub struct Upstream {
    pub addr: SocketAddr,
    tasks: JoinSet<()>,
}

impl Upstream {
    /// Serves these routes by HTTP/1.1 and, to whom begins with it, HTTP/2.
    pub async fn serve(router: Router) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            // Not `axum::serve`, whose connections outlive it: this server can be killed.
            let mut open = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let answer = TowerToHyperService::new(router.clone());
                open.spawn(async move {
                    let builder = auto::Builder::new(Executor::default());
                    let _ = builder.serve_connection(TokioIo::new(socket), answer).await;
                });
            }
        });
        Self { addr, tasks }
    }

    /// Tells what it received.
    pub async fn echo() -> Self {
        Self::serve(Router::new().fallback(echo)).await
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub fn h2c(&self) -> String {
        format!("h2c://{}", self.addr)
    }

    /// Ends at once, with all connections.
    pub async fn kill(mut self) {
        self.tasks.shutdown().await;
    }
}

/// Ends the streams of a connection together with it.
#[derive(Clone, Default)]
struct Executor(Arc<Mutex<JoinSet<()>>>);

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future + Send + 'static,
{
    fn execute(&self, task: F) {
        self.0.lock().spawn(async move { drop(task.await) });
    }
}

/// What was received, headers as a list of `name: value`.
pub async fn echo(request: Request) -> Json<Value> {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let headers: Vec<String> = parts
        .headers
        .iter()
        .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
        .collect();
    Json(json!({
        "method": parts.method.as_str(),
        "target": parts.uri.to_string(),
        "version": format!("{:?}", parts.version),
        "headers": headers,
        "body": String::from_utf8_lossy(&body),
    }))
}

/// Keeps every byte that it receives and answers `200` to each request line that it sees.
pub struct Recorder {
    pub addr: SocketAddr,
    received: Arc<Mutex<Vec<u8>>>,
    connections: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Recorder {
    /// Answers each head of a request with these bytes.
    pub async fn answering(answer: &'static [u8]) -> Self {
        Self::with(answer, false).await
    }

    /// Answers the first head on a connection with these bytes and closes it.
    pub async fn closing(answer: &'static [u8]) -> Self {
        Self::with(answer, true).await
    }

    async fn with(answer: &'static [u8], closes: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let received = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(AtomicUsize::new(0));
        let (all, count) = (received.clone(), connections.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let all = all.clone();
                open.spawn(async move {
                    let mut seen = Vec::new();
                    let mut answered = 0;
                    let mut buffer = [0; 4096];
                    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                        seen.extend_from_slice(&buffer[..read]);
                        all.lock().extend_from_slice(&buffer[..read]);
                        while answered < heads(&seen) {
                            answered += 1;
                            if stream.write_all(answer).await.is_err() || closes {
                                return;
                            }
                        }
                    }
                });
            }
        });
        Self { addr, received, connections, _tasks: tasks }
    }

    pub async fn start() -> Self {
        Self::answering(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Everything received so far.
    pub fn received(&self) -> String {
        String::from_utf8_lossy(&self.received.lock()).into_owned()
    }

    /// How many connections were made.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

fn heads(bytes: &[u8]) -> usize {
    bytes.windows(4).filter(|window| window == b"\r\n\r\n").count()
}
