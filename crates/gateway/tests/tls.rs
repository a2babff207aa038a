//! What a listener shows over TLS and what it wants to see, on real sockets.

#![expect(clippy::unwrap_used, reason = "an error is how a test fails")]

mod support;

use std::{fs, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use farebox_gateway::{
    Certificate, ClientCertificates, Gateway, GatewayConfig, Listen, Tls, TlsFiles, TlsVersion,
};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{ClientConfig, HandshakeKind, ProtocolVersion, client::WebPkiServerVerifier, crypto::ring};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use support::{Rig, free, request, tls::Client, upstream::Upstream, within};
use tempfile::TempDir;
use tokio::{io::AsyncReadExt, net::TcpStream};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Writes a self-signed certificate for these names, and gives it back as it will be shown.
fn write(dir: &TempDir, as_name: &str, names: &[&str]) -> (TlsFiles, Vec<u8>) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let files = TlsFiles {
        cert: dir.path().join(format!("{as_name}.pem")),
        key: dir.path().join(format!("{as_name}-key.pem")),
    };
    fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    fs::write(&files.cert, made.cert.pem()).unwrap();
    (files, made.cert.der().to_vec())
}

fn config(tls: Tls, upstream: &Upstream) -> GatewayConfig {
    let listen = vec![Listen { tls: Some(tls), ..Listen::new("127.0.0.1:0".parse().unwrap()) }];
    GatewayConfig { listen, ..support::config(vec![free("api", &upstream.url())]) }
}

/// The certificate that is shown to who asks for this name; an address is not asked for.
async fn shown(addr: SocketAddr, name: &'static str) -> Vec<u8> {
    let client = Client::default();
    connect(&client.connector(), addr, name).await.unwrap();
    client.shown()
}

async fn connect(
    connector: &TlsConnector,
    addr: SocketAddr,
    name: &'static str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let socket = TcpStream::connect(addr).await?;
    within(connector.connect(ServerName::try_from(name).unwrap(), socket)).await
}

/// Asks once and gives back what the upstream was told.
async fn ask(stream: TlsStream<TcpStream>) -> Result<String, hyper::Error> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio_util::task::TaskTracker::new().spawn(connection);
    let response = within(sender.send_request(request("GET", "/", &[]))).await?;
    Ok(String::from_utf8_lossy(&response.into_body().collect().await?.to_bytes()).into_owned())
}

#[tokio::test]
async fn the_name_that_a_client_asks_for_chooses_the_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let (first, first_shown) = write(&dir, "first", &["first.example"]);
    let (wild, wild_shown) = write(&dir, "wild", &["*.shop.example", "shop.example"]);
    let (exact, exact_shown) = write(&dir, "exact", &["api.shop.example"]);
    let upstream = Upstream::echo().await;
    let certificates = [first, wild, exact].map(Certificate::Files).to_vec();
    let tls = Tls { certificates, ..Tls::new(Certificate::SelfSigned { names: Vec::new() }) };
    let rig = Rig::with(config(tls, &upstream)).await;
    for (name, want) in [
        ("first.example", &first_shown),
        ("api.shop.example", &exact_shown),
        ("www.shop.example", &wild_shown),
        ("shop.example", &wild_shown),
        ("deep.www.shop.example", &first_shown),
        ("elsewhere.example", &first_shown),
        // No name at all.
        ("127.0.0.1", &first_shown),
    ] {
        assert!(shown(rig.addr, name).await == *want, "{name}");
    }
    // The name in the handshake decides nothing but that: any host may be asked for.
    let stream = connect(&Client::default().connector(), rig.addr, "shop.example").await.unwrap();
    assert!(ask(stream).await.unwrap().contains("x-forwarded-proto: https"));
}

#[tokio::test]
async fn a_self_signed_certificate_is_made_for_the_names_given() {
    let upstream = Upstream::echo().await;
    for (names, good, bad) in [
        (vec![], "localhost", "elsewhere.example"),
        (vec![], "127.0.0.1", "10.0.0.1"),
        (vec!["dev.example".to_owned(), "10.1.2.3".to_owned()], "10.1.2.3", "localhost"),
    ] {
        let rig = Rig::with(config(Tls::new(Certificate::SelfSigned { names }), &upstream)).await;
        let shown = CertificateDer::from(shown(rig.addr, good).await);
        let mut roots = rustls::RootCertStore::empty();
        roots.add(shown).unwrap();
        let provider = Arc::new(ring::default_provider());
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
        let strict = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_webpki_verifier(verifier)
            .with_no_client_auth();
        let strict = TlsConnector::from(Arc::new(strict));
        ask(connect(&strict, rig.addr, good).await.unwrap()).await.unwrap();
        assert!(connect(&strict, rig.addr, bad).await.is_err());
    }
}

#[tokio::test]
async fn a_version_that_is_too_old_is_refused() {
    let upstream = Upstream::echo().await;
    for (oldest, tls12) in [(TlsVersion::V1_2, true), (TlsVersion::V1_3, false)] {
        let tls = Tls { oldest, ..Tls::new(Certificate::SelfSigned { names: Vec::new() }) };
        let rig = Rig::with(config(tls, &upstream)).await;
        let old = Client { version: Some(&rustls::version::TLS12), ..Client::default() };
        assert_eq!(connect(&old.connector(), rig.addr, "localhost").await.is_ok(), tls12);
        let new = connect(&Client::default().connector(), rig.addr, "localhost").await.unwrap();
        assert_eq!(new.get_ref().1.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    }
}

#[tokio::test]
async fn a_session_is_resumed_in_both_versions() {
    let upstream = Upstream::echo().await;
    let rig = Rig::with(config(Tls::new(Certificate::SelfSigned { names: Vec::new() }), &upstream)).await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let connector = Client { version: Some(version), ..Client::default() }.connector();
        let first = connect(&connector, rig.addr, "localhost").await.unwrap();
        assert_eq!(first.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
        // The ticket comes with the first answer, if not before.
        ask(first).await.unwrap();
        let second = connect(&connector, rig.addr, "localhost").await.unwrap();
        assert_eq!(second.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed), "{version:?}");
        ask(second).await.unwrap();
    }
}

/// An authority in a file, and a client with a certificate of it.
fn authority(path: &Path) -> Client {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(["somebody".to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    fs::write(path, authority.pem()).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Client { certificate: Some((certificate.der().clone(), key)), ..Client::default() }
}

#[tokio::test]
async fn where_clients_must_show_a_certificate_only_those_of_the_authority_get_in() {
    let upstream = Upstream::echo().await;
    let dir = tempfile::tempdir().unwrap();
    let ours = authority(&dir.path().join("ca.pem"));
    let foreign = authority(&dir.path().join("other.pem"));
    let clients = ClientCertificates::Required { ca: dir.path().join("ca.pem") };
    let tls = Tls { clients, ..Tls::new(Certificate::SelfSigned { names: Vec::new() }) };
    let rig = Rig::with(config(tls, &upstream)).await;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for (client, is_let_in) in [(&ours, true), (&foreign, false), (&Client::default(), false)] {
            let mut config = client.config();
            config.resumption = rustls::client::Resumption::disabled();
            let stream = connect(&TlsConnector::from(Arc::new(config)), rig.addr, "localhost").await;
            // In TLS 1.3 a client is done before its certificate was looked at.
            let answer = match stream {
                Ok(stream) => ask(stream).await.is_ok(),
                Err(_) => false,
            };
            assert_eq!(answer, is_let_in, "{version:?}");
        }
    }
    rig.metric("farebox_connections 0").await;
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_without_a_restart() {
    let upstream = Upstream::echo().await;
    let dir = tempfile::tempdir().unwrap();
    let (files, old) = write(&dir, "it", &["localhost"]);
    let tls = Tls { reread: Duration::from_millis(5), ..Tls::new(Certificate::Files(files.clone())) };
    let rig = Rig::with(config(tls, &upstream)).await;
    let kept = connect(&Client::default().connector(), rig.addr, "localhost").await.unwrap();
    assert!(shown(rig.addr, "localhost").await == old);
    // The key comes later than the certificate, as with most tools that renew them.
    let made =
        rcgen::generate_simple_self_signed(["localhost".to_owned(), "also.example".to_owned()]).unwrap();
    fs::write(&files.cert, made.cert.pem()).unwrap();
    for _ in 0..10 {
        assert!(shown(rig.addr, "localhost").await == old);
    }
    fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    within(async {
        while shown(rig.addr, "localhost").await != made.cert.der().to_vec() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // Connections from before go on.
    ask(kept).await.unwrap();
}

#[tokio::test]
async fn a_handshake_that_never_ends_does() {
    let upstream = Upstream::echo().await;
    let mut config = config(Tls::new(Certificate::SelfSigned { names: Vec::new() }), &upstream);
    config.timeouts.handshake = Duration::from_millis(50);
    let rig = Rig::with(config).await;
    let mut silent = TcpStream::connect(rig.addr).await.unwrap();
    assert_eq!(within(silent.read(&mut [0; 64])).await.unwrap(), 0);
    // Clear text gets an alert, or nothing, and never an answer in clear text.
    let said = support::raw(rig.addr, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "").await;
    assert!(!said.contains("HTTP"), "{said}");
    rig.metric("farebox_connections 0").await;
}

#[tokio::test]
async fn files_that_cannot_be_used_stop_the_start_and_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let (one, _) = write(&dir, "one", &["localhost"]);
    let (other, _) = write(&dir, "other", &["localhost"]);
    let crossed = TlsFiles { key: other.key, ..one };
    let rig = Rig::new(vec![free("api", "http://localhost:1")]).await;
    let upstream = Upstream::echo().await;
    let Err(error) =
        Gateway::bind(config(Tls::new(Certificate::Files(crossed)), &upstream), rig.paywall.clone())
    else {
        panic!("bound")
    };
    let said = error.to_string();
    assert!(said.contains("one.pem") && said.contains("other-key.pem"), "{said}");
    assert!(said.ends_with("the key is not the one that the certificate was made for"), "{said}");
}
