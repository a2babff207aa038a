//! TLS: the engine brings its own roots and crypto provider, whatever the process has installed, and a credential that
//! was shown over TLS never goes on in the clear.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

mod support;
#[path = "support/tls.rs"]
mod tls_shop;

use farebox_client::{Engine, EngineConfig, HttpConfig};
use rustls::pki_types::CertificateDer;
use support::shop::redirect;
use support::{Shop, World, get, told};
use tls_shop::shop;

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
