//! The wallet door: phoenixd's HTTP API over any [`Receive`] and any wallet, so that other programs can use the node
//! inside farebox: gateways without one of their own, scripts with curl, and every client that knows phoenixd.
//!
//! It keeps what phoenixd keeps (Basic authentication with an empty user, forms in, JSON out, whole satoshi) and adds
//! fields that others ignore. All payments go through [`Outgoing`], so a caller who hangs up stops nothing and no hash is
//! paid twice. Everybody needs the password, loopback included; there is no CORS, and no page of another site gets in by
//! its name (DNS rebinding) or by a form (Origin).

mod auth;
mod incoming;
mod outgoing;

use std::{collections::VecDeque, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State},
    http::{HeaderValue, StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use farebox_protocol::Invoice;
use parking_lot::Mutex;

use crate::{
    FeeControl, Receive,
    clock::Clock,
    outgoing::Outgoing,
    phoenixd::{
        Secret,
        wire::{DoorFacts, NodeInfo},
    },
};

/// The longest form that is read: an invoice is far below it.
const BODY_MAX: usize = 16 << 10;

/// How the door is kept.
#[derive(Clone, Debug)]
pub struct DoorConfig {
    /// Opens everything: creating invoices, reading, paying.
    pub password: Secret,
    /// Creates invoices and reads, but does not pay.
    pub limited_password: Option<Secret>,
    /// Where the door listens: with the loopback names, what a `Host` header may say.
    pub listen: SocketAddr,
    /// More names or addresses under which the door is reached, such as a container's.
    pub hosts: Vec<String>,
    /// How long `payinvoice` waits for the outcome. The payment goes on all the same.
    pub pay_timeout: Duration,
}

impl DoorConfig {
    /// A door at `listen` that opens to `password`, and waits a minute for a payment.
    pub fn new(listen: SocketAddr, password: Secret) -> Self {
        Self {
            password,
            limited_password: None,
            listen,
            hosts: Vec::new(),
            pay_timeout: Duration::from_secs(60),
        }
    }
}

struct Door {
    receive: Arc<dyn Receive>,
    outgoing: Outgoing,
    clock: Arc<dyn Clock>,
    config: DoorConfig,
    minted: Mutex<VecDeque<Invoice>>,
}

/// The door over a node that can be paid and a machine that pays. Serve it on `config.listen`.
pub fn router(
    receive: Arc<dyn Receive>,
    outgoing: Outgoing,
    clock: Arc<dyn Clock>,
    config: DoorConfig,
) -> Router {
    let door = Arc::new(Door { receive, outgoing, clock, config, minted: Mutex::default() });
    Router::new()
        .route("/getinfo", get(info))
        .route("/getbalance", get(outgoing::balance))
        .route("/createinvoice", post(incoming::create))
        .route("/payments/incoming", get(incoming::list))
        .route("/payments/incoming/{hash}", get(incoming::lookup))
        .route("/payinvoice", post(outgoing::pay))
        .route("/payments/outgoingbyhash/{hash}", get(outgoing::lookup))
        .fallback(async || refuse(StatusCode::NOT_FOUND, "Unknown endpoint"))
        .method_not_allowed_fallback(async || refuse(StatusCode::METHOD_NOT_ALLOWED, "Invalid http method"))
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(middleware::map_response(no_store))
        .layer(middleware::from_fn_with_state(Arc::clone(&door), auth::admit))
        .with_state(door)
}

/// Who the node is, and what its wallet can do beyond phoenixd.
async fn info(State(door): State<Arc<Door>>) -> Response {
    let Some(receive) = door.receive.facts() else {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "the node has not been reached yet");
    };
    let pay = door.outgoing.facts();
    // phoenixd's is a public key, and its clients may parse it; a backend may name more than that.
    let key = receive.node.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
    Json(NodeInfo {
        node_id: key.to_owned(),
        chain: receive.network.name().to_owned(),
        channels: Vec::new(),
        version: format!("farebox {}", env!("CARGO_PKG_VERSION")),
        farebox: Some(DoorFacts {
            node: receive.node,
            wallet: pay.wallet.0,
            fees_exact: pay.fee_control == FeeControl::Exact,
            // A durable journal refuses after a restart as before; one in memory forgets, and then it's up to the wallet.
            refuses_paid_hash: door.outgoing.durable() || pay.refuses_paid_hash,
            grace_secs: receive.grace.as_secs(),
        }),
    })
    .into_response()
}

/// Answers hold preimages.
async fn no_store(mut response: Response) -> Response {
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// A form or query that can't be read. axum tells a bad field (422) from a bad body; phoenixd says 400 to both.
fn unreadable(status: StatusCode, text: String) -> Response {
    refuse(if status == StatusCode::UNPROCESSABLE_ENTITY { StatusCode::BAD_REQUEST } else { status }, text)
}

/// An error with its causes: who opens the door may read them.
fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// A refusal as phoenixd words it: plain text.
fn refuse(status: StatusCode, text: impl Into<String>) -> Response {
    (status, text.into() + "\n").into_response()
}
