//! Redirects: what goes along to where, and what is paid on the way.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

mod support;

use bytes::Bytes;
use http::header;
use support::shop::redirect;
use support::{Shop, World, get, told};

#[tokio::test]
async fn a_402_behind_a_redirect_is_bought_from_the_one_who_asks() {
    let world = World::new();
    let engine = world.engine();
    let seller = Shop::open(&world.net).await;
    let to = seller.url("/there");
    let guide = Shop::with(&world.net, move |_, asked| {
        assert!(!asked.headers.contains_key(header::AUTHORIZATION), "a credential went astray");
        redirect(307, &to)
    })
    .await;
    for _ in 0..2 {
        assert_eq!(told(engine.fetch(get(&guide.url("/"))).await).await, "200 goods");
    }
    assert_eq!(world.net.payments().len(), 1);
    let row = &engine.purchases().await.unwrap()[0];
    assert_eq!(row.origin.to_string(), seller.url);
}

#[tokio::test]
async fn a_credential_does_not_follow_a_redirect_to_another_origin() {
    let world = World::new();
    let engine = world.engine();
    let stranger = Shop::with(&world.net, |till, asked| {
        assert!(!asked.headers.contains_key(header::AUTHORIZATION), "a credential went astray");
        till.serve("free")
    })
    .await;
    let to = stranger.url("/there");
    let seller = Shop::with(&world.net, move |till, asked| match till.paid(&asked.headers) {
        Some(_) => redirect(302, &to),
        None => till.challenge("svc", 100),
    })
    .await;
    let fetched = engine.fetch(get(&seller.url("/"))).await.unwrap();
    assert!(fetched.purchase.is_some());
    assert_eq!(fetched.response.text().await.unwrap(), "free");
}

#[tokio::test]
async fn one_request_pays_one_server() {
    let world = World::new();
    let engine = world.engine();
    let second = Shop::open(&world.net).await;
    let to = second.url("/there");
    let first = Shop::with(&world.net, move |till, asked| match till.paid(&asked.headers) {
        Some(_) => redirect(302, &to),
        None => till.challenge("svc", 100),
    })
    .await;
    assert_eq!(told(engine.fetch(get(&first.url("/"))).await).await, "second_purchase spent");
    assert_eq!(world.net.payments().len(), 1);
}

#[tokio::test]
async fn a_callers_authorization_stays_with_the_origin_it_was_given_for() {
    let world = World::new();
    let engine = world.engine();
    let stranger = Shop::with(&world.net, |till, asked| {
        for name in ["authorization", "cookie", "macaroon", "token", "grpc-metadata-macaroon"] {
            assert!(!asked.headers.contains_key(name), "`{name}` went astray");
        }
        till.serve("free")
    })
    .await;
    let to = stranger.url("/there");
    let guide = Shop::with(&world.net, move |_, _| redirect(302, &to)).await;
    let request = http::Request::get(guide.url("/"))
        .header("authorization", "Bearer x")
        .header("cookie", "a=b")
        .header("macaroon", "c")
        .header("token", "d")
        .header("grpc-metadata-macaroon", "e");
    assert_eq!(told(engine.fetch(request.body(Bytes::new()).unwrap()).await).await, "200 free");
}

#[tokio::test]
async fn a_post_becomes_a_get_where_it_should_and_nowhere_else() {
    for (code, method) in [(301, "GET"), (302, "GET"), (303, "GET"), (307, "POST"), (308, "POST")] {
        let world = World::new();
        let engine = world.engine();
        let shop = Shop::with(&world.net, move |till, asked| {
            if asked.path == "/there" {
                assert_eq!(asked.method.as_str(), method, "{code}");
                assert_eq!(asked.body.is_empty(), method == "GET");
                return till.serve("there");
            }
            redirect(code, "/there")
        })
        .await;
        let request = http::Request::post(shop.url("/")).body(Bytes::from_static(b"body")).unwrap();
        assert_eq!(told(engine.fetch(request).await).await, "200 there", "{code}");
    }
}

#[tokio::test]
async fn a_circle_ends() {
    let world = World::new();
    let shop = Shop::with(&world.net, |_, _| redirect(302, "/again")).await;
    assert_eq!(told(world.engine().fetch(get(&shop.url("/"))).await).await, "redirect none");
    assert_eq!(shop.requests(), 11);
}

#[tokio::test]
async fn a_redirect_to_what_is_not_http_is_an_error() {
    let world = World::new();
    let shop = Shop::with(&world.net, |_, _| redirect(302, "file:///etc/passwd")).await;
    assert_eq!(told(world.engine().fetch(get(&shop.url("/"))).await).await, "redirect none");
}
