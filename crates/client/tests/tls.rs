//! TLS: the engine brings its own roots and crypto provider, whatever the process has installed, and a credential that
//! was shown over TLS never goes on in the clear.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

mod support;

use std::sync::Arc;

use axum::serve::Listener;
use farebox_client::{Engine, EngineConfig, HttpConfig};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use support::shop::{Asked, Till, redirect};
use support::{Shop, World, get, told};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// A listener that speaks TLS. Who fails the handshake is dropped.
struct TlsListener(TcpListener, TlsAcceptor);

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = self.0.accept().await.unwrap();
            if let Ok(stream) = self.1.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.0.local_addr()
    }
}

/// A shop at `https://localhost:…`, and the certificate to trust.
async fn shop(
    world: &World,
    handler: impl Fn(&Till, &Asked) -> axum::response::Response + Send + Sync + 'static,
) -> (Shop, CertificateDer<'static>) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = made.cert.der().clone();
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let listener = TlsListener(listener, TlsAcceptor::from(Arc::new(config)));
    (Shop::on(listener, url, &world.net, handler), certificate)
}

fn engine(world: &World, trusted: Vec<CertificateDer<'static>>) -> Engine {
    let config = world.config();
    let http = HttpConfig { extra_roots: trusted, ..config.http.clone() };
    Engine::open(EngineConfig { http, ..config }).unwrap()
}

#[tokio::test]
async fn a_purchase_goes_over_tls_without_a_provider_in_the_process() {
    assert!(rustls::crypto::CryptoProvider::get_default().is_none());
    let world = World::new();
    let (shop, certificate) = shop(&world, |till, asked| match till.paid(&asked.headers) {
        Some(_) => till.serve("goods"),
        None => till.challenge("svc", 100),
    })
    .await;
    let engine = engine(&world, vec![certificate]);
    assert_eq!(told(engine.fetch(get(&shop.url("/"))).await).await, "200 goods");
    assert_eq!(engine.purchases().await.unwrap()[0].origin.to_string(), shop.url);
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_is_refused() {
    let world = World::new();
    let (shop, _) = shop(&world, |till, _| till.serve("goods")).await;
    assert_eq!(told(engine(&world, vec![]).fetch(get(&shop.url("/"))).await).await, "network none");
}

#[tokio::test]
async fn a_redirect_to_plain_http_is_not_followed_once_a_credential_was_shown() {
    let world = World::new();
    let clear = Shop::with(&world.net, |till, _| till.serve("in the clear")).await;
    let to = clear.url("/");
    let (shop, certificate) = shop(&world, move |till, asked| match till.paid(&asked.headers) {
        Some(_) => redirect(302, &to),
        None if asked.path == "/free" => redirect(302, &to),
        None => till.challenge("svc", 100),
    })
    .await;
    let engine = engine(&world, vec![certificate]);
    assert_eq!(told(engine.fetch(get(&shop.url("/free"))).await).await, "200 in the clear");
    assert_eq!(told(engine.fetch(get(&shop.url("/"))).await).await, "redirect spent");
    assert_eq!((clear.requests(), world.net.payments().len()), (1, 1));
}
