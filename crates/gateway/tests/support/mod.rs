//! What the tests of this crate share: a gateway on real sockets, upstreams that tell what they received, a buyer, and a
//! *double* of a Lightning node, which signs real invoices with no channel behind them. Real nodes take its place in the
//! workspace's own tests.
#![allow(dead_code, unreachable_pub, reason = "each test file is a crate of its own and uses a part of this")]

pub mod counted;
pub mod frames;
pub mod node;
pub mod socket;
pub mod tls;
pub mod upstream;
pub mod websocket;

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use farebox_gateway::{
    Gateway, GatewayConfig, GatewayError, Listen, OpsConfig, Reload, ServiceRoute, Timeouts, UpstreamConfig,
};
use farebox_lightning::clock::SystemClock;
use farebox_paywall::{
    Keyring, Paywall, PaywallConfig, Rate, Service,
    receipt::{ReceiptKey, Receipts},
    refund::Refunds,
    store::sqlite::SqliteStore,
};
use farebox_protocol::{Credential, MintSecret, Msat, Network, Offer, OfferedChallenge, Scheme};
use futures_util::{Stream, StreamExt};
use http::{HeaderMap, Request, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use self::node::Node;

/// How long anything in these tests may take before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A gateway that runs.
pub struct Rig {
    pub addr: SocketAddr,
    pub addrs: Vec<SocketAddr>,
    pub ops: SocketAddr,
    pub node: Arc<Node>,
    pub paywall: Arc<Paywall>,
    pub reload: Reload,
    pub stop: CancellationToken,
    run: Option<JoinHandle<Result<(), GatewayError>>>,
    /// The paywall's own work, where it is done.
    beside: Option<(CancellationToken, JoinHandle<()>)>,
    books: TempDir,
}

/// A service of this name at this upstream, with the rest by default.
pub fn service(name: &str, upstream: &str) -> ServiceRoute {
    let service = Service::new(name.parse().unwrap(), Msat::new(10_000), Offer::Forever);
    ServiceRoute::new(service, UpstreamConfig::new(upstream.parse().unwrap()))
}

/// A service that costs nothing.
pub fn free(name: &str, upstream: &str) -> ServiceRoute {
    let mut route = service(name, upstream);
    route.service.auth = farebox_paywall::Auth::Off;
    route
}

/// A configuration on ports that the system chooses.
pub fn config(services: Vec<ServiceRoute>) -> GatewayConfig {
    let any = "127.0.0.1:0".parse().unwrap();
    GatewayConfig {
        listen: vec![Listen::new(any)],
        ops: Some(OpsConfig { addr: any, hosts: Vec::new() }),
        workers: 2,
        services,
        timeouts: Timeouts { drain: PATIENCE, ..Timeouts::default() },
        ..GatewayConfig::default()
    }
}

impl Rig {
    pub async fn new(services: Vec<ServiceRoute>) -> Self {
        Self::with(config(services)).await
    }

    pub async fn with(config: GatewayConfig) -> Self {
        Self::on(config, tempfile::tempdir().unwrap(), |_, _, _| {}).await
    }

    /// One whose books are written, and that signs receipts with this key.
    pub async fn signing(config: GatewayConfig, key: ReceiptKey) -> Self {
        let sign = |gateway: &Gateway, paywall: &Arc<Paywall>, _: &Path| {
            gateway.sign_receipts(Receipts::new(paywall.clone(), key, None));
        };
        Self::on(config, tempfile::tempdir().unwrap(), sign).await.and_count()
    }

    /// One whose books are written, and that pays money back, from files that lie beside them.
    pub async fn paying_back(
        config: GatewayConfig,
        refunds: impl FnOnce(Arc<Paywall>, &Path) -> Arc<Refunds>,
    ) -> Self {
        let pay_back = |gateway: &Gateway, paywall: &Arc<Paywall>, directory: &Path| {
            gateway.pay_back(refunds(paywall.clone(), directory));
        };
        Self::on(config, tempfile::tempdir().unwrap(), pay_back).await.and_count()
    }

    /// One whose books are written, too.
    pub async fn counting(config: GatewayConfig) -> Self {
        Self::with(config).await.and_count()
    }

    /// Stops it in order, and starts another one on the same books.
    pub async fn again(mut self, config: GatewayConfig) -> Self {
        self.stop.cancel();
        within(self.run.take().unwrap()).await.unwrap().unwrap();
        if let Some((stop, beside)) = self.beside.take() {
            stop.cancel();
            within(beside).await.unwrap();
        }
        // Whatever else it held is let go of first: books belong to one.
        let books = { self }.books;
        Self::on(config, books, |_, _, _| {}).await.and_count()
    }

    fn and_count(mut self) -> Self {
        let (stop, paywall) = (CancellationToken::new(), self.paywall.clone());
        let stopped = stop.clone();
        let run = async move { paywall.run(stopped).await };
        self.beside = Some((stop, tokio_util::task::TaskTracker::new().spawn(run)));
        self
    }

    /// One with something to it before it begins.
    async fn on(
        config: GatewayConfig,
        books: TempDir,
        and: impl FnOnce(&Gateway, &Arc<Paywall>, &Path),
    ) -> Self {
        let node = Arc::new(Node::default());
        let store = Arc::new(SqliteStore::open(&books.path().join("books.sqlite")).unwrap());
        let many = std::num::NonZeroU32::new(1_000_000).unwrap();
        let settings = PaywallConfig {
            mint_per_client: Rate::per_second(many),
            mint_total: Rate::per_second(many),
            ..PaywallConfig::new(Network::Regtest)
        };
        let keyring = Keyring::single(MintSecret::from_bytes([7; 32]));
        let paywall =
            Paywall::open(settings, keyring, node.clone(), store, Arc::new(SystemClock)).await.unwrap();
        let gateway = Gateway::bind(config, paywall.clone()).unwrap();
        and(&gateway, &paywall, books.path());
        let (addrs, ops, reload) = (gateway.addrs(), gateway.ops_addr().unwrap(), gateway.reload());
        let stop = CancellationToken::new();
        let run = Some(tokio_util::task::TaskTracker::new().spawn(gateway.run(stop.clone())));
        Self { addr: addrs[0], addrs, ops, node, paywall, reload, stop, run, beside: None, books }
    }

    /// Where its books are.
    pub fn books(&self) -> std::path::PathBuf {
        self.books.path().join("books.sqlite")
    }

    /// Stops the gateway and says how that went.
    pub async fn stop(mut self) -> Result<(), GatewayError> {
        self.stop.cancel();
        within(self.run.take().unwrap()).await.unwrap()
    }

    /// Asks, pays, and gives back the value of the `Authorization` header.
    pub async fn buy(&self, path: &str) -> String {
        self.buy_as(path, Scheme::L402).await
    }

    pub async fn buy_as(&self, path: &str, scheme: Scheme) -> String {
        let response = get(self.addr, path, &[]).await;
        assert_eq!(response.status(), 402, "{response:?}");
        self.credential(response.headers(), scheme)
    }

    /// Pays a challenge.
    pub fn credential(&self, challenge: &HeaderMap, scheme: Scheme) -> String {
        let values = challenge.get_all(header::WWW_AUTHENTICATE).iter().map(|value| value.as_bytes());
        let challenge = OfferedChallenge::read_all(values).remove(0);
        let macaroon = challenge.macaroon().unwrap();
        let preimage = self.node.pay(&macaroon.identifier().unwrap().payment_hash);
        Credential { tokens: vec![macaroon], preimage }.header_value(scheme).to_string()
    }

    /// What the operations listener says: status and body.
    pub async fn ops(&self, path: &str) -> (u16, String) {
        let response = get(self.ops, path, &[]).await;
        (response.status().as_u16(), String::from_utf8(response.into_body().to_vec()).unwrap())
    }

    /// Waits until the metrics hold this line.
    pub async fn metric(&self, line: &str) {
        let mut metrics = String::new();
        for _ in 0..400 {
            metrics = self.ops("/metrics").await.1;
            if metrics.lines().any(|have| have == line) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("no `{line}` in\n{metrics}");
    }
}

/// Fails the test instead of hanging.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("this took too long")
}

pub type Sender1 = hyper::client::conn::http1::SendRequest<BoxBody<Bytes, hyper::Error>>;
pub type Sender2 = hyper::client::conn::http2::SendRequest<BoxBody<Bytes, hyper::Error>>;

/// No body, or a whole one.
pub fn body(bytes: impl Into<Bytes>) -> BoxBody<Bytes, hyper::Error> {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

/// A body of these pieces, one after the other.
pub fn pieces<S>(frames: S) -> BoxBody<Bytes, hyper::Error>
where
    S: Stream<Item = Frame<Bytes>> + Send + Sync + 'static,
{
    BodyExt::boxed(StreamBody::new(frames.map(Ok)))
}

/// An HTTP/1.1 connection.
pub async fn http1(addr: SocketAddr) -> Sender1 {
    let stream = TcpStream::connect(addr).await.unwrap();
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio_util::task::TaskTracker::new().spawn(connection);
    sender
}

/// An HTTP/2 connection in clear text.
pub async fn http2(addr: SocketAddr) -> Sender2 {
    let stream = TcpStream::connect(addr).await.unwrap();
    let io = TokioIo::new(stream);
    let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio_util::task::TaskTracker::new().spawn(connection);
    sender
}

/// One request on a connection of its own, its answer collected.
pub async fn ask(addr: SocketAddr, request: Request<BoxBody<Bytes, hyper::Error>>) -> Response<Bytes> {
    within(async {
        let response = http1(addr).await.send_request(request).await.unwrap();
        let (parts, body) = response.into_parts();
        Response::from_parts(parts, body.collect().await.unwrap().to_bytes())
    })
    .await
}

pub fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> Request<BoxBody<Bytes, hyper::Error>> {
    let mut request = Request::builder().method(method).uri(path).header(header::HOST, "localhost");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(body("")).unwrap()
}

pub async fn get(addr: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Response<Bytes> {
    ask(addr, request("GET", path, headers)).await
}

/// Sends these bytes as they are and collects whatever comes back until the other side closes, or, if it doesn't, until
/// `enough` has been answered.
pub async fn raw(addr: SocketAddr, bytes: &[u8], enough: &str) -> String {
    within(async {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        // The other side may refuse before it has read everything.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(read) => answer.extend_from_slice(&buffer[..read]),
            }
            if !enough.is_empty() && String::from_utf8_lossy(&answer).contains(enough) {
                break;
            }
        }
        String::from_utf8_lossy(&answer).into_owned()
    })
    .await
}
