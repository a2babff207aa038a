//! An API to sell: a real HTTP server that answers any path and counts what reaches it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use axum::{Router, extract::Request, http::HeaderMap};
use parking_lot::Mutex;

/// The running API. It ends with the test binary.
pub struct Upstream {
    /// Where it listens.
    pub addr: SocketAddr,
    served: Arc<AtomicUsize>,
    last: Arc<Mutex<HeaderMap>>,
}

impl Upstream {
    /// Starts an API that answers `served PATH`.
    pub fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        let served = Arc::new(AtomicUsize::new(0));
        let last = Arc::new(Mutex::new(HeaderMap::new()));
        let (counted, kept) = (Arc::clone(&served), Arc::clone(&last));
        let answer = move |request: Request| {
            counted.fetch_add(1, Ordering::SeqCst);
            *kept.lock() = request.headers().clone();
            let body = format!("served {}", request.uri().path());
            async move { body }
        };
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                axum::serve(listener, Router::new().fallback(answer)).await.unwrap();
            });
        });
        Self { addr, served, last }
    }

    /// How many requests have reached it.
    pub fn served(&self) -> usize {
        self.served.load(Ordering::SeqCst)
    }

    /// The headers of the last request.
    pub fn last_headers(&self) -> HeaderMap {
        self.last.lock().clone()
    }
}
