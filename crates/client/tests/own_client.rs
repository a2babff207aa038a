//! A reqwest client of the caller's own that pays, and one that follows redirects where it must not.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

mod support;

use bytes::Bytes;
use farebox_client::PayExt as _;
use futures_util::stream;
use http::header;
use reqwest::redirect::Policy;
use support::{Shop, World, shop::redirect, told};

fn client(policy: Policy) -> reqwest::Client {
    _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().redirect(policy).build().unwrap()
}

#[tokio::test]
async fn what_its_client_asks_for_is_bought_once() {
    let world = World::new();
    let engine = world.engine();
    let shop = Shop::open(&world.net).await;
    let client = client(Policy::none());
    let first = client.post(shop.url("/")).body("a question").send_paid(&engine).await.unwrap();
    let receipt = first.purchase.unwrap();
    assert_eq!(first.credential, Some(receipt.payment_hash));
    assert_eq!(first.response.text().await.unwrap(), "goods");
    let again = client.get(shop.url("/b")).send_paid(&engine).await.unwrap();
    assert_eq!((again.purchase, again.credential), (None, Some(receipt.payment_hash)));
    assert_eq!(world.net.payments().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_32_at_once_one_pays() {
    let world = World::new();
    let engine = world.engine();
    let shop = Shop::open(&world.net).await;
    let client = client(Policy::none());
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..32 {
        let (client, engine, url) = (client.clone(), engine.clone(), shop.url(&format!("/{number}")));
        tasks.spawn(async move { told(client.get(url).send_paid(&engine).await).await });
    }
    while let Some(answer) = tasks.join_next().await {
        assert_eq!(answer.unwrap(), "200 goods");
    }
    assert_eq!(world.net.payments().len(), 1);
}

#[tokio::test]
async fn a_stream_buys_nothing_and_is_let_in_with_what_is_held() {
    let world = World::new();
    let engine = world.engine();
    let shop = Shop::open(&world.net).await;
    let client = client(Policy::none());
    let stream = || {
        let pieces = stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"a")), Ok(Bytes::new())]);
        client.put(shop.url("/")).body(reqwest::Body::wrap_stream(pieces))
    };
    assert_eq!(told(stream().send_paid(&engine).await).await, "body_gone none");
    assert!(world.net.payments().is_empty());
    assert_eq!(told(client.get(shop.url("/")).send_paid(&engine).await).await, "200 goods");
    assert_eq!(told(stream().send_paid(&engine).await).await, "200 goods");
}

#[tokio::test]
async fn money_that_another_origin_asks_for_after_a_redirect_is_not_paid() {
    let world = World::new();
    let engine = world.engine();
    let shop = Shop::open(&world.net).await;
    let there = shop.url("/");
    let here = Shop::with(&world.net, move |_, _| redirect(302, &there)).await;
    let follows = client(Policy::default());
    assert_eq!(told(follows.get(here.url("/")).send_paid(&engine).await).await, "other_origin none");
    assert!(world.net.payments().is_empty());
    let stays = client(Policy::none());
    assert_eq!(stays.get(here.url("/")).send_paid(&engine).await.unwrap().response.status(), 302);
}

#[tokio::test]
async fn a_client_that_follows_with_a_credential_is_an_error_and_the_other_end_does_not_get_it() {
    let world = World::new();
    let engine = world.engine();
    let there = Shop::with(&world.net, |till, asked| {
        assert!(!asked.headers.contains_key(header::AUTHORIZATION), "reqwest takes it out");
        till.serve("elsewhere")
    })
    .await;
    let to = there.url("/");
    let here = Shop::with(&world.net, move |till, asked| match till.paid(&asked.headers) {
        None => till.challenge("svc", 100),
        Some(_) if asked.path == "/moved" => redirect(307, &to),
        Some(_) => till.serve("goods"),
    })
    .await;
    let follows = client(Policy::default());
    assert_eq!(told(follows.get(here.url("/")).send_paid(&engine).await).await, "200 goods");
    assert_eq!(told(follows.get(here.url("/moved")).send_paid(&engine).await).await, "redirect none");
}

#[tokio::test]
async fn what_cannot_be_built_or_is_not_http_is_said() {
    let world = World::new();
    let engine = world.engine();
    let client = client(Policy::none());
    assert_eq!(told(client.get("not an address").send_paid(&engine).await).await, "address none");
    assert_eq!(told(client.get("ftp://example.com/").send_paid(&engine).await).await, "address none");
}
