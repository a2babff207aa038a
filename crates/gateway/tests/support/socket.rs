//! Upstreams at Unix sockets: an address that can be dead, alive and dead again, without anybody else taking it meanwhile.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use axum::{Json, Router, extract::Request, http::StatusCode, response::Response};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    net::UnixListener,
    sync::watch,
    task::{AbortHandle, JoinSet},
};

use super::upstream::echo;

/// A place for a socket, and what has happened there.
pub struct Place {
    pub path: PathBuf,
    pub seen: Seen,
    serving: Option<JoinSet<()>>,
    _dir: TempDir,
}

/// What a server has seen, over all its lives.
#[derive(Clone, Default)]
pub struct Seen {
    /// Connections made.
    pub connections: Arc<AtomicUsize>,
    /// Connections open now, and the most there were.
    pub open: Arc<AtomicUsize>,
    pub open_max: Arc<AtomicUsize>,
    /// Requests, without those to `/healthz`.
    pub requests: Arc<AtomicUsize>,
    /// Requests to `/healthz`.
    pub checks: Arc<AtomicUsize>,
    /// Whether `/healthz` is answered 500.
    pub is_unwell: Arc<AtomicUsize>,
    /// Requests to `/hold` that are being held, until told otherwise.
    pub held: Arc<AtomicUsize>,
    release: Arc<watch::Sender<bool>>,
}

impl Place {
    /// Nobody is there as yet.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { path: dir.path().join("app.sock"), seen: Seen::default(), serving: None, _dir: dir }
    }

    /// Somebody is.
    pub fn live() -> Self {
        let mut place = Self::new();
        place.rise();
        place
    }

    pub fn url(&self) -> String {
        format!("unix:{}", self.path.display())
    }

    /// Serves from now on, by HTTP/1.1 and HTTP/2.
    pub fn rise(&mut self) {
        let listener = listen(&self.path);
        let seen = self.seen.clone();
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut open = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let counted = seen.connected();
                let router = router(seen.clone());
                open.spawn(async move {
                    let _counted = counted;
                    let builder = auto::Builder::new(TokioExecutor::new());
                    let answer = TowerToHyperService::new(router);
                    let _ = builder.serve_connection(TokioIo::new(socket), answer).await;
                });
            }
        });
        self.serving = Some(serving);
    }

    /// Ends at once, with all connections.
    pub async fn fall(&mut self) {
        if let Some(mut serving) = self.serving.take() {
            serving.shutdown().await;
        }
    }

    pub fn requests(&self) -> usize {
        self.seen.requests.load(SeqCst)
    }

    pub fn connections(&self) -> usize {
        self.seen.connections.load(SeqCst)
    }

    /// Answers whatever is held, and whatever comes.
    pub fn release(&self) {
        self.seen.release.send_replace(true);
    }
}

/// Listens where somebody may have listened before.
pub fn listen(path: &Path) -> UnixListener {
    let _ = std::fs::remove_file(path);
    UnixListener::bind(path).unwrap()
}

struct Counted(Seen);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, SeqCst);
    }
}

impl Seen {
    fn connected(&self) -> Counted {
        self.connections.fetch_add(1, SeqCst);
        let open = self.open.fetch_add(1, SeqCst) + 1;
        self.open_max.fetch_max(open, SeqCst);
        Counted(self.clone())
    }
}

fn router(seen: Seen) -> Router {
    Router::new().fallback(move |request: Request| answer(seen, request))
}

async fn answer(seen: Seen, request: Request) -> Result<Json<Value>, Response<String>> {
    if request.uri().path() == "/healthz" {
        seen.checks.fetch_add(1, SeqCst);
        if seen.is_unwell.load(SeqCst) > 0 {
            let mut unwell = Response::new(String::new());
            *unwell.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            return Err(unwell);
        }
        return Ok(Json(Value::Null));
    }
    seen.requests.fetch_add(1, SeqCst);
    if request.uri().path() == "/hold" {
        seen.held.fetch_add(1, SeqCst);
        let _ = seen.release.subscribe().wait_for(|released| *released).await;
        seen.held.fetch_sub(1, SeqCst);
    }
    Ok(echo(request).await)
}

/// Answers each connection at this socket by hand.
pub fn by_hand<F, A>(path: &Path, answer: F) -> JoinSet<()>
where
    F: Fn(tokio::net::UnixStream) -> A + Send + 'static,
    A: Future<Output = ()> + Send + 'static,
{
    let listener = listen(path);
    let mut serving = JoinSet::new();
    let _: AbortHandle = serving.spawn(async move {
        let mut open = JoinSet::new();
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            open.spawn(answer(socket));
        }
    });
    serving
}
