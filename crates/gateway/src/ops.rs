//! For the operator alone: is it alive, is it ready, what has it counted. On a listener of its own, with nothing else.
//!
//! *Healthy* means that the process serves; *ready* means that it can also sell. A node or store in trouble makes it
//! unready, and the answer says what still works: what has been paid for.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE, HOST},
};
use http_body_util::Full;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{Duration, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::OpsConfig,
    gateway::Shared,
    listen::{self, ListenError},
    metrics::Format,
};

const CONNECTIONS_MAX: usize = 64;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// The bound listener.
pub(crate) struct Ops {
    socket: TcpListener,
    addr: SocketAddr,
    hosts: Vec<String>,
}

/// What its connections share.
struct Desk {
    shared: Arc<Shared>,
    draining: CancellationToken,
    hosts: Vec<String>,
}

impl Ops {
    pub(crate) fn bind(config: OpsConfig) -> Result<Self, ListenError> {
        let failed = |error| ListenError::Bind { addr: config.addr, error };
        let socket = listen::bind(config.addr).map_err(failed)?;
        let addr = socket.local_addr().map_err(failed)?;
        let hosts = config.hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        Ok(Self { socket, addr, hosts })
    }

    pub(crate) const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Answers until dropped.
    pub(crate) async fn serve(self, shared: Arc<Shared>, draining: CancellationToken) {
        let desk = Arc::new(Desk { shared, draining, hosts: self.hosts });
        let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = JoinSet::new();
        loop {
            let permit = permits.clone().acquire_owned().await.expect("the semaphore is never closed");
            match self.socket.accept().await {
                Ok((socket, _)) => {
                    let desk = desk.clone();
                    connections.spawn(async move {
                        converse(socket, desk).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections for operations for a moment");
                    sleep(ACCEPT_AGAIN).await;
                }
            }
            while connections.try_join_next().is_some() {}
        }
    }
}

async fn converse(socket: TcpStream, desk: Arc<Desk>) {
    let answer = service_fn(move |request| {
        let desk = desk.clone();
        async move { Ok::<_, Infallible>(desk.answer(&request)) }
    });
    // Whoever asks here sees for themselves when the connection breaks.
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(socket), answer)
        .await;
}

impl Desk {
    fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        if !self.is_for_us(request) {
            let hint = "this host is not one of ours; list it under the operations listener's `hosts`\n";
            return text(StatusCode::MISDIRECTED_REQUEST, "text/plain", hint.to_owned());
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET and HEAD\n".to_owned());
        }
        match request.uri().path() {
            "/healthz" => text(StatusCode::OK, "text/plain", "ok\n".to_owned()),
            "/readyz" => self.readiness(),
            "/metrics" => {
                let format = Format::wanted(request.headers());
                let Shared { metrics, services, paywall, refunds, .. } = &*self.shared;
                let refunds = refunds.get().map(|refunds| refunds.health());
                let page = metrics.render(&services.load(), paywall, refunds, format);
                text(StatusCode::OK, format.media_type(), page)
            }
            _ => text(StatusCode::NOT_FOUND, "text/plain", "/healthz, /readyz, /metrics\n".to_owned()),
        }
    }

    fn readiness(&self) -> Response<Full<Bytes>> {
        let health = self.shared.paywall.health();
        let mut reasons = reasons(&health);
        if self.draining.is_cancelled() {
            reasons.push("the gateway is stopping".to_owned());
        }
        let is_ready = reasons.is_empty();
        let refunds = self.shared.refunds.get().map(|refunds| refunds.health());
        let refunds = refunds.map(|refunds| json!({ "open": refunds.open, "stuck": refunds.stuck }));
        let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let body = json!({
            "ready": is_ready,
            "new_sales": is_ready,
            "paid_access": true,
            "counted_access": health.ledger.writing.is_none(),
            "reasons": reasons,
            "degraded": degraded(&health),
            "refunds": refunds,
        });
        text(status, "application/json", format!("{body}\n"))
    }

    /// A browser sends the name that it was told to ask for: an address or a name of ours is fine, a name that a web
    /// page brought along isn't.
    fn is_for_us<B>(&self, request: &Request<B>) -> bool {
        let mut named = request.headers().get_all(HOST).iter();
        let (Some(host), None) = (named.next(), named.next()) else { return false };
        let Ok(host) = host.to_str() else { return false };
        let host = host.to_ascii_lowercase();
        if host.parse::<SocketAddr>().is_ok() {
            return true;
        }
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.parse::<u16>().is_ok() && !name.contains(':') => name,
            _ => &host,
        };
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        bare.parse::<IpAddr>().is_ok() || name == "localhost" || self.hosts.iter().any(|ours| ours == name)
    }
}

fn text(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// What is wrong with single nodes of several. It is no reason to send buyers elsewhere as long as another one sells.
fn degraded(health: &farebox_paywall::Health) -> Vec<String> {
    let mut said = Vec::new();
    for node in health.nodes.iter().filter(|_| health.nodes.len() > 1) {
        let name = &node.name;
        if let farebox_lightning::Health::Down(why) = &node.node {
            said.push(format!("`{name}` is down: {why}"));
        }
        if let Some(why) = &node.minting {
            said.push(format!("`{name}` makes no invoices: {why}"));
        }
        if let Some(why) = &node.settling {
            said.push(format!("settlements of `{name}` aren't being booked: {why}"));
        }
    }
    said
}

/// What keeps new sales from being made or booked, in words for the operator.
fn reasons(health: &farebox_paywall::Health) -> Vec<String> {
    let node = match &health.node {
        farebox_lightning::Health::Ready => None,
        farebox_lightning::Health::Down(why) => Some(format!("the node is down: {why}")),
    };
    let said = [
        ("challenges can't be made", &health.minting),
        ("settlements aren't being booked", &health.settling),
        ("first presentations aren't being booked", &health.presenting),
        ("revocations aren't being read", &health.revoking),
        ("counts of freebies aren't being written", &health.keeping),
        ("charges can't be written, so nothing that is counted is served", &health.ledger.writing),
    ];
    let troubles =
        said.into_iter().filter_map(|(what, why)| why.as_ref().map(|why| format!("{what}: {why}")));
    node.into_iter().chain(troubles).collect()
}
