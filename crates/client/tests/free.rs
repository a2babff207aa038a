//! A request that costs nothing leaves the journal alone, and still notices what others buy meanwhile.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

mod support;

use std::path::Path;

use farebox_client::PayExt as _;
use farebox_client::tower::PayLayer;
use http_body_util::Empty;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use support::{Shop, World, get, told};
use tower::{Layer as _, ServiceExt as _};

/// Tells how often anybody has written to a file.
struct Writes(rusqlite::Connection);

impl Writes {
    fn of(journal: &Path) -> Self {
        Self(rusqlite::Connection::open(journal).unwrap())
    }

    fn version(&self) -> i64 {
        self.0.query_row("PRAGMA data_version", [], |row| row.get(0)).unwrap()
    }
}

#[tokio::test]
async fn what_is_free_costs_no_write_by_any_of_the_ways_to_ask() {
    let world = World::new();
    let engine = world.engine();
    let shop = Shop::with(&world.net, |till, _| till.serve("free")).await;
    _ = rustls::crypto::ring::default_provider().install_default();
    let own = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
    let own = own.build().unwrap();
    let layer = PayLayer::new(engine.clone()).layer(Client::builder(TokioExecutor::new()).build_http());
    let writes = Writes::of(&world.journal());
    let before = writes.version();
    for number in 0..10 {
        let url = shop.url(&format!("/{number}"));
        assert_eq!(told(engine.fetch(get(&url)).await).await, "200 free");
        assert_eq!(told(own.get(&url).send_paid(&engine).await).await, "200 free");
        let request = http::Request::get(&url).body(Empty::<bytes::Bytes>::new()).unwrap();
        assert_eq!(layer.clone().oneshot(request).await.unwrap().status(), 200);
    }
    assert_eq!(writes.version(), before);
    assert_eq!(shop.requests(), 30);
}

#[tokio::test]
async fn what_another_process_buys_is_shown_by_the_next_request() {
    let world = World::new();
    let (engine, other) = (world.engine(), world.engine());
    let shop = Shop::with(&world.net, |till, asked| match till.paid(&asked.headers) {
        None if asked.path == "/paid" => till.challenge("svc", 100),
        _ => till.serve("goods"),
    })
    .await;
    // It knows by now that it holds nothing there.
    for _ in 0..2 {
        assert_eq!(told(engine.fetch(get(&shop.url("/free"))).await).await, "200 goods");
    }
    assert_eq!(told(other.fetch(get(&shop.url("/paid"))).await).await, "200 goods");
    let before = shop.requests();
    let fetched = engine.fetch(get(&shop.url("/paid"))).await.unwrap();
    assert!(fetched.credential.is_some());
    assert_eq!((shop.requests() - before, shop.minted()), (1, 1));
}

#[tokio::test]
async fn a_credential_that_was_accepted_here_before_costs_no_write() {
    let world = World::new();
    let engine = world.engine();
    let shop = Shop::open(&world.net).await;
    assert_eq!(told(engine.fetch(get(&shop.url("/a"))).await).await, "200 goods");
    let writes = Writes::of(&world.journal());
    let before = writes.version();
    for _ in 0..5 {
        assert_eq!(told(engine.fetch(get(&shop.url("/a?page=2"))).await).await, "200 goods");
    }
    assert_eq!(writes.version(), before);
}
