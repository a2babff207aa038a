//! A shop: an HTTP server that sells by L402, with real tokens and invoices, and does otherwise what the test says.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use axum::{body::Bytes, extract::Request, response::Response, serve::Listener};
use bytes::BytesMut;
use farebox_lightning::clock::{Clock as _, SystemClock};
use farebox_protocol::{PaymentHash, Presented, RootKey};
use futures_util::StreamExt as _;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::Net;
use super::mint::Draft;

/// So much of a request's body is kept.
const BODY_BYTES_KEPT: usize = 1 << 20;

/// Payment numbers are never used twice in one test program.
static NUMBER: AtomicU64 = AtomicU64::new(1);

/// What a handler works with.
pub(crate) struct Till {
    net: Net,
    pub(crate) root_key: RootKey,
    pub(crate) requests: AtomicUsize,
    pub(crate) minted: AtomicUsize,
    pub(crate) served: AtomicUsize,
}

/// A request that has been read whole.
pub(crate) struct Asked {
    pub(crate) method: http::Method,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    /// The beginning of a long one.
    pub(crate) body: Bytes,
    /// The length of all of it.
    pub(crate) bytes: u64,
}

/// A running shop; it closes when it is dropped.
pub(crate) struct Shop {
    pub(crate) url: String,
    pub(crate) till: Arc<Till>,
    stop: CancellationToken,
}

impl Till {
    /// A new invoice that can be paid in this network.
    pub(crate) fn draft(&self, sat: u64) -> Draft {
        let draft = Draft::new(NUMBER.fetch_add(1, Ordering::SeqCst), sat, SystemClock.now());
        self.publish(&draft);
        draft
    }

    pub(crate) fn publish(&self, draft: &Draft) {
        let path = self.net.path().join(format!("invoices/{}", draft.payment_hash()));
        fs::write(path, draft.preimage().expose_hex().as_str()).unwrap();
    }

    /// The 402 of a shop that works.
    pub(crate) fn challenge(&self, service: &str, sat: u64) -> Response {
        let values = self.draft(sat).challenge(&self.root_key, service).header_values();
        self.minted.fetch_add(1, Ordering::SeqCst);
        challenge(&values)
    }

    /// The payment behind a credential that is good: signature, proof and all.
    pub(crate) fn paid(&self, headers: &HeaderMap) -> Option<PaymentHash> {
        let Presented::Credentials(credentials) = Presented::read(headers) else { return None };
        let credential = credentials.first()?;
        let token = credential.tokens.first()?;
        token.verify(&self.root_key).ok()?;
        let hash = token.identifier().ok()?.payment_hash;
        credential.preimage.pays(&hash).then_some(hash)
    }

    /// Whether a credential's token is for `service`.
    pub(crate) fn is_for(&self, headers: &HeaderMap, service: &str) -> bool {
        let Presented::Credentials(credentials) = Presented::read(headers) else { return false };
        let wanted = format!("services={service}:0");
        credentials.iter().flat_map(|c| &c.tokens).any(|token| token.caveats().any(|c| c == wanted))
    }

    pub(crate) fn serve(&self, body: &'static str) -> Response {
        self.served.fetch_add(1, Ordering::SeqCst);
        Response::new(body.into())
    }
}

/// A 402 with these challenges.
pub(crate) fn challenge(values: &[String]) -> Response {
    let mut response = Response::new("pay first".into());
    *response.status_mut() = StatusCode::PAYMENT_REQUIRED;
    for value in values {
        response.headers_mut().append(header::WWW_AUTHENTICATE, HeaderValue::from_str(value).unwrap());
    }
    response
}

pub(crate) fn status(code: u16) -> Response {
    let mut response = Response::new("".into());
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}

pub(crate) fn redirect(code: u16, to: &str) -> Response {
    let mut response = status(code);
    response.headers_mut().insert(header::LOCATION, HeaderValue::from_str(to).unwrap());
    response
}

impl Shop {
    /// A shop that sells everything under `svc` for 100 sat and serves `goods`.
    pub(crate) async fn open(net: &Net) -> Self {
        Self::with(net, |till, asked| match till.paid(&asked.headers) {
            Some(_) => till.serve("goods"),
            None => till.challenge("svc", 100),
        })
        .await
    }

    /// A shop that answers as `handler` says.
    pub(crate) async fn with(
        net: &Net,
        handler: impl Fn(&Till, &Asked) -> Response + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        Self::on(listener, url, net, handler)
    }

    /// The same behind any kind of listener, which is reached at `url`.
    pub(crate) fn on<L: Listener<Addr: std::fmt::Debug>>(
        listener: L,
        url: String,
        net: &Net,
        handler: impl Fn(&Till, &Asked) -> Response + Send + Sync + 'static,
    ) -> Self {
        let till = Arc::new(Till {
            net: net.clone(),
            root_key: RootKey::from_bytes([3; 32]),
            requests: AtomicUsize::new(0),
            minted: AtomicUsize::new(0),
            served: AtomicUsize::new(0),
        });
        let (own, handler) = (till.clone(), Arc::new(handler));
        let app = axum::Router::new().fallback(move |request: Request| {
            let (till, handler) = (own.clone(), handler.clone());
            async move {
                let (parts, body) = request.into_parts();
                let (mut pieces, mut body, mut bytes) = (body.into_data_stream(), BytesMut::new(), 0);
                while let Some(piece) = pieces.next().await {
                    let piece = piece.unwrap();
                    bytes += piece.len() as u64;
                    body.extend_from_slice(&piece[..piece.len().min(BODY_BYTES_KEPT - body.len())]);
                }
                let body = body.freeze();
                till.requests.fetch_add(1, Ordering::SeqCst);
                let path = parts.uri.path().to_owned();
                handler(&till, &Asked { method: parts.method, path, headers: parts.headers, body, bytes })
            }
        });
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        // The tracker is let go: the task ends with the shop, or with the test's runtime.
        TaskTracker::new().spawn(async move {
            tokio::select! {
                () = stopped => {}
                _ = axum::serve(listener, app) => {}
            }
        });
        Self { url, till, stop }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    pub(crate) fn minted(&self) -> usize {
        self.till.minted.load(Ordering::SeqCst)
    }

    pub(crate) fn served(&self) -> usize {
        self.till.served.load(Ordering::SeqCst)
    }

    pub(crate) fn requests(&self) -> usize {
        self.till.requests.load(Ordering::SeqCst)
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
