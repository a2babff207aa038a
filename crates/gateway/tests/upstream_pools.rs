//! Connections to upstreams: Unix sockets, limited numbers, what a reload keeps, whose certificates are trusted.

#![expect(clippy::unwrap_used, reason = "an error is how a test fails")]

mod support;

use std::{
    convert::Infallible,
    env, fs,
    net::SocketAddr,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::body::Body;
use farebox_gateway::{Gateway, ServiceRoute, UpstreamHost, UpstreamTls};
use http::{Request, Response};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::{PrivateKeyDer, pem::PemObject};
use support::{Rig, free, get, http1, request, socket::Place, within};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UnixSocket, UnixStream},
    sync::Notify,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

fn text(response: &http::Response<bytes::Bytes>) -> String {
    String::from_utf8_lossy(response.body()).into_owned()
}

/// Waits until something has come about.
async fn until(mut is_so: impl FnMut() -> bool) {
    within(async {
        while !is_so() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// A service at this place that takes so many connections.
fn limited(place: &Place, connections_max: usize) -> ServiceRoute {
    let mut route = free("api", &place.url());
    route.upstream.connections_max = Some(connections_max);
    route
}

#[tokio::test]
async fn a_unix_socket_is_asked_in_either_version_of_http() {
    let place = Place::live();
    let by_http2 = format!("h2c+{}", place.url());
    for (url, version) in [(place.url(), "HTTP/1.1"), (by_http2, "HTTP/2.0")] {
        let mut route = free("api", &url);
        let rig = Rig::new(vec![route.clone()]).await;
        let asked = |told: &str, host: &str| {
            told.contains(version)
                && (told.contains(&format!("\"host: {host}\"")) || told.contains(&format!("http://{host}/x")))
        };
        let told = text(&get(rig.addr, "/x?y", &[]).await);
        assert!(asked(&told, "localhost"), "{told}");

        route.upstream.host = UpstreamHost::Named("shop.internal".parse().unwrap());
        rig.reload.services(vec![route.clone()]).unwrap();
        let told = text(&get(rig.addr, "/x", &[]).await);
        assert!(asked(&told, "shop.internal"), "{told}");

        route.upstream.host = UpstreamHost::Asked;
        rig.reload.services(vec![route]).unwrap();
        let mut request = request("GET", "/x", &[]);
        request.headers_mut().insert("host", "shop.example".parse().unwrap());
        let told = text(&support::ask(rig.addr, request).await);
        assert!(asked(&told, "shop.example"), "{told}");
    }
}

#[tokio::test]
async fn a_socket_that_is_not_there_is_an_upstream_that_cannot_be_reached() {
    let rig = Rig::new(vec![free("api", &Place::new().url())]).await;
    let response = get(rig.addr, "/", &[]).await;
    assert_eq!(response.status(), 502);
    assert_eq!(response.headers()["farebox-code"], "upstream_unreachable");
}

#[tokio::test]
async fn who_finds_the_queue_of_a_unix_socket_full_waits_in_front_of_it() {
    let place = Place::new();
    let socket = UnixSocket::new_stream().unwrap();
    socket.bind(&place.path).unwrap();
    let listener = socket.listen(1).unwrap();
    let mut queued = Vec::new();
    while let Ok(stream) = UnixStream::connect(&place.path).await {
        queued.push(stream);
    }
    let rig = Rig::new(vec![free("api", &place.url())]).await;
    let mut asking = JoinSet::new();
    asking.spawn(get(rig.addr, "/", &[]));
    // As long as nobody takes one out of the queue, there is no answer, not even a bad one.
    let early = tokio::time::timeout(Duration::from_millis(100), asking.join_next()).await;
    assert!(early.is_err(), "{early:?}");
    drop(queued);
    let answered = async {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            // Those that have only stood in the queue are gone by now.
            if matches!(stream.read(&mut [0; 4096]).await, Ok(1..)) {
                stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
            }
        }
    };
    let asked = tokio::select! {
        asked = within(asking.join_next()) => asked.unwrap().unwrap(),
        () = answered => unreachable!(),
    };
    assert_eq!(asked.status(), 204);
}

#[tokio::test]
async fn no_more_connections_are_made_than_the_upstream_takes() {
    let place = Place::live();
    let rig = Rig::new(vec![limited(&place, 3)]).await;
    let mut asking = JoinSet::new();
    for _ in 0..20 {
        asking.spawn(get(rig.addr, "/hold", &[]));
    }
    until(|| place.seen.held.load(SeqCst) == 3).await;
    place.release();
    // Each of the others gets one of the three when its turn comes, whichever worker it is with.
    while let Some(response) = within(asking.join_next()).await {
        assert_eq!(response.unwrap().status(), 200);
    }
    assert_eq!((place.requests(), place.connections(), place.seen.open_max.load(SeqCst)), (20, 3, 3));
}

#[tokio::test]
async fn one_connection_serves_all_workers_where_there_may_be_only_one() {
    let place = Place::live();
    let rig = Rig::new(vec![limited(&place, 1)]).await;
    for _ in 0..10 {
        assert_eq!(get(rig.addr, "/", &[]).await.status(), 200);
    }
    assert_eq!((place.requests(), place.connections()), (10, 1));
}

#[tokio::test]
async fn who_waits_in_vain_for_a_connection_is_told_that_the_service_is_busy() {
    let place = Place::live();
    let mut route = limited(&place, 1);
    route.upstream.connect_timeout = Duration::from_millis(50);
    let rig = Rig::new(vec![route]).await;
    let mut holding = JoinSet::new();
    holding.spawn(get(rig.addr, "/hold", &[]));
    until(|| place.seen.held.load(SeqCst) == 1).await;
    for _ in 0..4 {
        let refused = get(rig.addr, "/", &[]).await;
        assert_eq!(refused.status(), 503);
        assert_eq!(refused.headers()["farebox-code"], "upstream_busy");
    }
    place.release();
    assert_eq!(within(holding.join_next()).await.unwrap().unwrap().status(), 200);
    assert_eq!(get(rig.addr, "/", &[]).await.status(), 200);
}

#[tokio::test]
async fn a_client_that_goes_away_makes_room_for_another() {
    let place = Place::live();
    let rig = Rig::new(vec![limited(&place, 1)]).await;
    for _ in 0..3 {
        let mut client = http1(rig.addr).await;
        let before = place.requests();
        let asking = client.send_request(request("GET", "/hold", &[]));
        tokio::select! {
            _ = asking => panic!("it is held"),
            () = until(|| place.requests() > before) => {}
        }
        drop(client);
        assert_eq!(get(rig.addr, "/", &[]).await.status(), 200);
    }
    // The one that was held is of no more use each time; the one after it is.
    assert_eq!(place.connections(), 4);
}

#[tokio::test]
async fn with_a_limit_too_connections_that_have_gone_stale_are_noticed_by_nobody() {
    let mut place = Place::live();
    let rig = Rig::new(vec![limited(&place, 2)]).await;
    for _ in 0..5 {
        let mut asking = JoinSet::new();
        for _ in 0..4 {
            asking.spawn(get(rig.addr, "/", &[]));
        }
        while let Some(response) = within(asking.join_next()).await {
            assert_eq!(response.unwrap().status(), 200);
        }
        place.fall().await;
        place.rise();
    }
}

#[tokio::test]
async fn a_reload_keeps_the_connections_of_upstreams_that_have_not_changed() {
    let place = Place::live();
    let mut route = free("api", &place.url());
    let mut config = support::config(vec![route.clone()]);
    config.workers = 1;
    let rig = Rig::with(config).await;
    for round in 0..5 {
        assert_eq!(get(rig.addr, "/", &[]).await.status(), 200);
        route.request_bytes_max = Some(1000 + round);
        rig.reload.services(vec![route.clone()]).unwrap();
    }
    assert_eq!(place.connections(), 1);
    // Two services at one upstream share it.
    let mut second = free("second", &place.url());
    second.matcher.path_prefixes = vec!["/second".parse().unwrap()];
    rig.reload.services(vec![second, route.clone()]).unwrap();
    for path in ["/", "/second"] {
        assert_eq!(get(rig.addr, path, &[]).await.status(), 200);
    }
    assert_eq!(place.connections(), 1);
    // Another upstream, if only by a time-out, begins anew, and the old one lets go.
    route.upstream.connect_timeout = Duration::from_secs(9);
    rig.reload.services(vec![route]).unwrap();
    assert_eq!(get(rig.addr, "/", &[]).await.status(), 200);
    assert_eq!(place.connections(), 2);
    until(|| place.seen.open.load(SeqCst) == 1).await;
}

#[tokio::test]
async fn a_reload_does_not_forget_which_address_is_left_out() {
    let (mut dead, live) = (Place::new(), Place::live());
    let mut route = free("api", &dead.url());
    route.upstream.urls.push(live.url().parse().unwrap());
    route.upstream.eject_for = Duration::from_secs(3600);
    let rig = Rig::new(vec![route.clone()]).await;
    for _ in 0..10 {
        assert_eq!(get(rig.addr, "/", &[]).await.status(), 200);
    }
    dead.rise();
    route.request_bytes_max = Some(7);
    rig.reload.services(vec![route.clone()]).unwrap();
    for _ in 0..10 {
        assert_eq!(get(rig.addr, "/", &[]).await.status(), 200);
    }
    assert_eq!(dead.requests(), 0);
    route.upstream.eject_for = Duration::from_secs(1800);
    rig.reload.services(vec![route]).unwrap();
    for _ in 0..10 {
        assert_eq!(get(rig.addr, "/", &[]).await.status(), 200);
    }
    assert_eq!(dead.requests(), 5);
}

/// A certificate for `localhost` and its key, as PEM.
fn certificate() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

fn acceptor((cert, key): &(String, String), alpn: &[&[u8]]) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = vec![rustls_pki_types::CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

/// Answers `ok` behind TLS.
async fn behind_tls(certificate: &(String, String)) -> (SocketAddr, JoinSet<()>) {
    let acceptor = acceptor(certificate, &[b"http/1.1"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let mut open = JoinSet::new();
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            open.spawn(async move {
                let Ok(stream) = acceptor.accept(socket).await else { return };
                let answer = service_fn(|_| async { Ok::<_, Infallible>(Response::new(Body::from("ok"))) });
                let builder = hyper::server::conn::http1::Builder::new();
                let _ = builder.serve_connection(TokioIo::new(stream), answer).await;
            });
        }
    });
    (addr, serving)
}

#[tokio::test]
async fn a_reload_reads_the_file_of_authorities_again() {
    let certificate_then = certificate();
    let (addr, _serving) = behind_tls(&certificate_then).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ca.pem");
    fs::write(&file, &certificate_then.0).unwrap();
    let mut route = free("api", &format!("https://localhost:{}", addr.port()));
    route.upstream.tls = UpstreamTls::CaFile(file.clone());
    let rig = Rig::new(vec![route.clone()]).await;
    assert_eq!(get(rig.addr, "/", &[]).await.status(), 200);
    fs::write(&file, certificate().0).unwrap();
    rig.reload.services(vec![route.clone()]).unwrap();
    assert_eq!(get(rig.addr, "/", &[]).await.status(), 502);
    fs::write(&file, "nothing").unwrap();
    let error = rig.reload.services(vec![route]).unwrap_err().to_string();
    assert!(error.contains("there is no certificate in it"), "{error}");
}

/// Runs one test of this file once more, in a process whose machine trusts the authorities in `file`.
fn on_a_machine_that_trusts(file: &Path, test: &str, port: u16) -> String {
    let empty = tempfile::tempdir().unwrap();
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("SSL_CERT_FILE", file)
        .env("SSL_CERT_DIR", empty.path())
        .env(PORT, port.to_string())
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

const PORT: &str = "FAREBOX_TEST_UPSTREAM_PORT";

#[tokio::test]
async fn the_authorities_of_this_machine_are_trusted_where_the_operator_says_so() {
    if let Ok(port) = env::var(PORT) {
        let mut route = free("api", &format!("https://localhost:{port}"));
        route.upstream.tls = UpstreamTls::SystemRoots;
        if let Err(error) = Gateway::check(&[route.clone()]) {
            println!("refused: {error}");
            return;
        }
        let rig = Rig::new(vec![route]).await;
        println!("answered: {}", get(rig.addr, "/", &[]).await.status());
        return;
    }
    let theirs = certificate();
    let (addr, _serving) = behind_tls(&theirs).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("roots.pem");
    let test = "the_authorities_of_this_machine_are_trusted_where_the_operator_says_so";
    for (roots, want) in [
        (theirs.0, "answered: 200"),
        (certificate().0, "answered: 502"),
        (String::new(), "refused: service `api`: this machine trusts no authority"),
    ] {
        fs::write(&file, roots).unwrap();
        let path = file.clone();
        let told = tokio::task::spawn_blocking(move || on_a_machine_that_trusts(&path, test, addr.port()));
        let told = within(told).await.unwrap();
        assert!(told.contains(want), "{told}");
    }
}

#[tokio::test]
async fn a_request_that_moves_from_http2_to_http11_is_asked_for_by_its_path() {
    let certificate = certificate();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (first, second) = (acceptor(&certificate, &[b"h2"]), acceptor(&certificate, &[b"http/1.1"]));
    let heads = Arc::new(parking_lot::Mutex::new(String::new()));
    let (asked, cut) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let head = heads.clone();
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        // The first connection answers one request and is cut off in the second.
        let (socket, _) = listener.accept().await.unwrap();
        let stream = first.accept(socket).await.unwrap();
        let answer = service_fn(|_: Request<hyper::body::Incoming>| {
            let (asked, cut) = (asked.clone(), cut.clone());
            async move {
                if asked.fetch_add(1, SeqCst) > 0 {
                    cut.notify_one();
                    std::future::pending::<()>().await;
                }
                Ok::<_, Infallible>(Response::new(Body::from("ok")))
            }
        });
        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        tokio::select! {
            _ = builder.serve_connection(TokioIo::new(stream), answer) => {}
            () = cut.notified() => {}
        }
        let (socket, _) = listener.accept().await.unwrap();
        let mut stream = second.accept(socket).await.unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"\r\n\r\n") {
            stream.read_buf(&mut seen).await.unwrap();
        }
        *head.lock() = String::from_utf8_lossy(&seen).into_owned();
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
        let _ = stream.read_buf(&mut seen).await;
    });
    let mut route = free("api", &format!("https://localhost:{}", addr.port()));
    route.upstream.tls = UpstreamTls::InsecureSkipVerify;
    let mut config = support::config(vec![route]);
    config.workers = 1;
    let rig = Rig::with(config).await;
    assert_eq!(get(rig.addr, "/first", &[]).await.status(), 200);
    assert_eq!(get(rig.addr, "/second?x", &[]).await.status(), 204);
    let head = heads.lock().clone();
    assert!(head.starts_with("GET /second?x HTTP/1.1\r\n"), "{head}");
    assert!(head.to_lowercase().contains(&format!("host: localhost:{}\r\n", addr.port())), "{head}");
}
