//! HTTP/2 and TLS on both sides.

#![expect(clippy::unwrap_used, reason = "an error is how a test fails")]

mod support;

use std::{
    convert::Infallible,
    io::Write as _,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use farebox_gateway::{GatewayConfig, Listen, Tls, TlsFiles, UpstreamTls};
use futures_util::stream;
use http::{Request, Response};
use http_body_util::{BodyExt, combinators::BoxBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use support::{Rig, body, free, get, http2, request, service, upstream::Upstream, within};
use tempfile::TempDir;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// A certificate for `localhost` and its key, in files.
struct Certificate {
    dir: TempDir,
}

impl Certificate {
    fn new() -> Self {
        let made =
            rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| {
            std::fs::File::create(dir.path().join(name)).unwrap().write_all(text.as_bytes()).unwrap();
        };
        write("cert.pem", made.cert.pem());
        write("key.pem", made.signing_key.serialize_pem());
        Self { dir }
    }

    fn files(&self) -> TlsFiles {
        TlsFiles { cert: self.dir.path().join("cert.pem"), key: self.dir.path().join("key.pem") }
    }

    fn connector(&self, alpn: &[&[u8]]) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.files().cert).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        TlsConnector::from(Arc::new(config))
    }

    fn acceptor(&self, alpn: &[&[u8]]) -> TlsAcceptor {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = vec![CertificateDer::from_pem_file(self.files().cert).unwrap()];
        let key = rustls_pki_types::PrivateKeyDer::from_pem_file(self.files().key).unwrap();
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }
}

/// An upstream behind TLS that says which version of HTTP it was asked in.
async fn tls_upstream(certificate: &Certificate, alpn: &[&[u8]]) -> (SocketAddr, JoinSet<()>) {
    let acceptor = certificate.acceptor(alpn);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut open = JoinSet::new();
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            open.spawn(async move {
                let Ok(stream) = acceptor.accept(socket).await else { return };
                let answer =
                    hyper::service::service_fn(|request: Request<hyper::body::Incoming>| async move {
                        Ok::<_, Infallible>(Response::new(Body::from(format!("{:?}", request.version()))))
                    });
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(stream), answer).await;
            });
        }
    });
    (addr, tasks)
}

fn with_tls(config: GatewayConfig, certificate: &Certificate) -> GatewayConfig {
    let listen = vec![Listen {
        tls: Some(Tls::new(farebox_gateway::Certificate::Files(certificate.files()))),
        ..Listen::new("127.0.0.1:0".parse().unwrap())
    }];
    GatewayConfig { listen, ..config }
}

#[tokio::test]
async fn a_client_picks_its_version_by_alpn() {
    let upstream = Upstream::echo().await;
    let certificate = Certificate::new();
    let rig = Rig::with(with_tls(support::config(vec![free("api", &upstream.url())]), &certificate)).await;
    for (alpn, picked) in
        [(&[&b"h2"[..], b"http/1.1"][..], Some(&b"h2"[..])), (&[b"http/1.1"], Some(b"http/1.1")), (&[], None)]
    {
        let socket = TcpStream::connect(rig.addr).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = within(certificate.connector(alpn).connect(name, socket)).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), picked);
        let io = TokioIo::new(stream);
        let response = if picked == Some(b"h2") {
            let (mut sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
            tokio_util::task::TaskTracker::new().spawn(connection);
            within(sender.send_request(request("GET", "https://localhost/x", &[]))).await.unwrap()
        } else {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
            tokio_util::task::TaskTracker::new().spawn(connection);
            within(sender.send_request(request("GET", "/x", &[]))).await.unwrap()
        };
        let told = response.into_body().collect().await.unwrap().to_bytes();
        let told = String::from_utf8_lossy(&told);
        assert!(told.contains("x-forwarded-proto: https"), "{told}");
        assert!(told.contains("x-forwarded-host: localhost"), "{told}");
    }
}

#[tokio::test]
async fn a_paid_request_passes_over_http2_from_end_to_end() {
    let upstream = Upstream::echo().await;
    let rig = Rig::new(vec![service("api", &upstream.h2c())]).await;
    let credential = rig.buy("/").await;
    let paid = request("GET", "http://localhost/x", &[("authorization", &credential), ("cookie", "a=1")]);
    let response = within(http2(rig.addr).await.send_request(paid)).await.unwrap();
    assert_eq!(response.status(), 200);
    let told = response.into_body().collect().await.unwrap().to_bytes();
    let told = String::from_utf8_lossy(&told);
    assert!(told.contains("HTTP/2.0") && told.contains("farebox-token-id"), "{told}");
    assert!(!told.contains("authorization"), "{told}");
}

#[tokio::test]
async fn an_upstream_behind_tls_is_verified_and_spoken_to_in_its_version() {
    let certificate = Certificate::new();
    for (alpn, version) in
        [(&[&b"h2"[..], b"http/1.1"][..], "HTTP/2.0"), (&[b"http/1.1"], "HTTP/1.1"), (&[], "HTTP/1.1")]
    {
        let (addr, _tasks) = tls_upstream(&certificate, alpn).await;
        let url = format!("https://localhost:{}", addr.port());
        let mut route = free("api", &url);
        // Nobody vouches for this certificate, so it isn't accepted …
        let rig = Rig::new(vec![route.clone()]).await;
        let refused = get(rig.addr, "/", &[]).await;
        assert_eq!(
            (refused.status().as_u16(), &refused.headers()["farebox-code"]),
            (502, &"upstream_unreachable".parse().unwrap())
        );
        // … unless the operator names an authority, or says that it doesn't matter.
        for tls in [UpstreamTls::CaFile(certificate.files().cert), UpstreamTls::InsecureSkipVerify] {
            route.upstream.tls = tls;
            rig.reload.services(vec![route.clone()]).unwrap();
            for _ in 0..3 {
                let response = get(rig.addr, "/", &[]).await;
                assert_eq!((response.status().as_u16(), &response.body()[..]), (200, version.as_bytes()));
            }
        }
        // The right authority, but for another name.
        route.upstream.tls = UpstreamTls::CaFile(certificate.files().cert);
        route.upstream.urls = vec![format!("https://127.0.0.2:{}", addr.port()).parse().unwrap()];
        rig.reload.services(vec![route]).unwrap();
        assert_eq!(get(rig.addr, "/", &[]).await.status(), 502);
    }
}

/// An upstream that allows `streams_max` streams, never ends `/endless`, and counts connections.
async fn narrow(streams_max: u32) -> (SocketAddr, Arc<AtomicUsize>, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut open = JoinSet::new();
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            count.fetch_add(1, Ordering::SeqCst);
            open.spawn(async move {
                let answer =
                    hyper::service::service_fn(|request: Request<hyper::body::Incoming>| async move {
                        let body = if request.uri().path() == "/endless" {
                            Body::from_stream(stream::pending::<Result<Bytes, Infallible>>())
                        } else {
                            Body::from("ok")
                        };
                        Ok::<_, Infallible>(Response::new(body))
                    });
                let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .max_concurrent_streams(streams_max)
                    .serve_connection(TokioIo::new(socket), answer)
                    .await;
            });
        }
    });
    (addr, connections, tasks)
}

#[tokio::test]
async fn with_all_streams_taken_for_good_another_request_is_still_answered() {
    // 100 and 97: the usual limit, and the one that the gateway assumes until it is told.
    for (limit, streams) in [(100, 150), (97, 120), (1, 5)] {
        let (addr, connections, _tasks) = narrow(limit).await;
        let mut config = support::config(vec![free("streams", &format!("h2c://{addr}"))]);
        config.limits.http2_streams_max = 1000;
        config.workers = 1;
        let rig = Rig::with(config).await;
        let client = http2(rig.addr).await;
        let mut held = JoinSet::new();
        for _ in 0..streams {
            let mut client = client.clone();
            held.spawn(async move {
                client.send_request(request("GET", "http://localhost/endless", &[])).await.unwrap()
            });
        }
        let mut endless = Vec::new();
        while let Some(response) = within(held.join_next()).await {
            endless.push(response.unwrap());
        }
        assert_eq!(endless.len(), streams);
        let unary =
            within(client.clone().send_request(request("GET", "http://localhost/unary", &[]))).await.unwrap();
        assert_eq!(within(unary.into_body().collect()).await.unwrap().to_bytes(), "ok");
        let needed = streams.div_ceil(limit as usize);
        assert!(
            (needed..=needed + 1).contains(&connections.load(Ordering::SeqCst)),
            "{limit}: {connections:?}"
        );
    }
}

/// As it comes: the upstream's usual limit, several clients within theirs, nothing configured.
#[tokio::test]
async fn with_150_endless_calls_at_the_defaults_a_unary_call_is_still_answered() {
    let (addr, connections, _tasks) = narrow(100).await;
    let mut config = support::config(vec![free("streams", &format!("h2c://{addr}"))]);
    (config.limits, config.workers) = (GatewayConfig::default().limits, GatewayConfig::default().workers);
    let rig = Rig::with(config).await;
    let call = |path: &str| {
        let grpc = [("content-type", "application/grpc"), ("te", "trailers")];
        request("POST", &format!("http://localhost{path}"), &grpc)
    };
    let mut endless = Vec::new();
    for _ in 0..3 {
        let client = http2(rig.addr).await;
        let mut held = JoinSet::new();
        for _ in 0..50 {
            let (mut client, call) = (client.clone(), call("/endless"));
            held.spawn(async move { client.send_request(call).await.unwrap() });
        }
        while let Some(response) = within(held.join_next()).await {
            endless.push(response.unwrap());
        }
    }
    assert_eq!(endless.len(), 150);
    for _ in 0..4 {
        let unary = within(http2(rig.addr).await.send_request(call("/unary"))).await.unwrap();
        assert_eq!(within(unary.into_body().collect()).await.unwrap().to_bytes(), "ok");
    }
    // A hundred at most fit on each.
    assert!(connections.load(Ordering::SeqCst) >= 2, "{connections:?}");
}

#[tokio::test]
async fn a_client_that_resets_at_once_is_shown_the_door() {
    let upstream = Upstream::echo().await;
    let rig = Rig::new(vec![free("api", &upstream.url())]).await;
    let socket = TcpStream::connect(rig.addr).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(socket).await.unwrap();
    let mut ended = tokio_util::task::TaskTracker::new().spawn(connection);
    for _ in 0..100_000 {
        if ended.is_finished() || std::future::poll_fn(|context| sender.poll_ready(context)).await.is_err() {
            break;
        }
        let Ok((_, mut stream)) =
            sender.send_request(Request::get("http://localhost/").body(()).unwrap(), true)
        else {
            break;
        };
        stream.send_reset(h2::Reason::CANCEL);
    }
    // It may find the socket closed before it has read why.
    let error = within(&mut ended).await.unwrap().unwrap_err();
    assert!(error.is_io() || error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM), "{error}");
    // Everybody else is served.
    assert_eq!(get(rig.addr, "/", &[]).await.status(), 200);
}

#[tokio::test]
async fn an_http2_connection_is_one_host_per_request_as_well() {
    let upstream = Upstream::echo().await;
    let rig = Rig::new(vec![free("api", &upstream.url())]).await;
    let twice: Request<BoxBody<Bytes, hyper::Error>> =
        Request::get("http://localhost/").header("host", "other.example").body(body("")).unwrap();
    let refused = within(http2(rig.addr).await.send_request(twice)).await.unwrap();
    assert_eq!(refused.status(), 400);
    assert_eq!(refused.headers()["farebox-code"], "host_refused");
}

#[tokio::test]
async fn a_client_that_says_nothing_or_half_a_preface_is_let_go() {
    let upstream = Upstream::echo().await;
    let mut config = support::config(vec![free("api", &upstream.url())]);
    config.timeouts.headers = Duration::from_millis(50);
    let rig = Rig::with(config).await;
    for said in ["", "PRI * HTTP/2.0\r\n", "P", "GET / HTTP/1.1\r\nHost: a\r\nX: "] {
        assert_eq!(support::raw(rig.addr, said.as_bytes(), "").await, "", "{said}");
    }
}
