//! Where an engine goes that may only call public servers: not to this machine and not to the network around it, by whichever
//! way it is sent there.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

mod support;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use farebox_client::{Engine, EngineConfig, HttpConfig, Proxy, Reach};
use farebox_lightning::lnaddress::public::Names;
use futures_util::{FutureExt as _, future::BoxFuture};
use support::shop::redirect;
use support::{Shop, World, get, told};

/// Answers with one list after another, and with the last one from then on.
struct Answers(Vec<Vec<IpAddr>>, AtomicUsize);

impl Answers {
    fn new(lists: &[&[&str]]) -> Arc<Self> {
        let lists = lists.iter().map(|list| list.iter().map(|ip| ip.parse().unwrap()).collect());
        Arc::new(Self(lists.collect(), AtomicUsize::new(0)))
    }

    fn asked(&self) -> usize {
        self.1.load(Ordering::SeqCst)
    }
}

impl Names for Answers {
    fn look_up<'a>(&'a self, _: &'a str) -> BoxFuture<'a, std::io::Result<Vec<IpAddr>>> {
        let number = self.1.fetch_add(1, Ordering::SeqCst).min(self.0.len() - 1);
        async move { Ok(self.0[number].clone()) }.boxed()
    }
}

fn engine(world: &World, reach: Reach, names: Arc<dyn Names>, proxy: Proxy) -> Engine {
    let config = world.config();
    let http = HttpConfig { reach, names, proxy, ..config.http.clone() };
    Engine::open(EngineConfig { http, in_the_clear: true, ..config }).unwrap()
}

fn public_only(world: &World, names: Arc<dyn Names>) -> Engine {
    engine(world, Reach::Public, names, Proxy::None)
}

#[tokio::test]
async fn a_private_address_is_not_called_in_whichever_spelling() {
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    let port = shop.url.rsplit(':').next().unwrap();
    let names = Answers::new(&[&["127.0.0.1"]]);
    let engine = public_only(&world, names.clone());
    for host in [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "[::ffff:127.0.0.1]",
        "[::1]",
        "localhost",
        "a.localhost",
    ] {
        let url = format!("http://{host}:{port}/");
        assert_eq!(told(engine.fetch(get(&url)).await).await, "private_target none", "{host}");
        assert_eq!(engine.quote(get(&url)).await.unwrap_err().code(), "private_target", "{host}");
    }
    assert_eq!((shop.requests(), names.asked()), (0, 0));
}

#[tokio::test]
async fn a_name_with_an_address_that_is_not_public_is_not_called() {
    for list in [&["127.0.0.1"][..], &["10.0.0.1"], &["::1"], &["1.1.1.1", "127.0.0.1"], &["::ffff:7f00:1"]] {
        let world = World::new();
        let shop = Shop::open(&world.net).await;
        let url = shop.url("/").replace("127.0.0.1", "rebound.example");
        let engine = public_only(&world, Answers::new(&[list]));
        let error = engine.fetch(get(&url)).await.unwrap_err();
        assert_eq!((error.code(), error.retryable()), ("private_target", false), "{list:?}");
        assert_eq!(shop.requests(), 0, "{list:?}");
    }
}

#[tokio::test]
async fn what_was_checked_is_what_is_connected_to() {
    // A name is looked up once for a connection: there is no second answer that could be another.
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    let url = shop.url("/").replace("127.0.0.1", "shop.example");
    let names = Answers::new(&[&["127.0.0.1"], &["::1"]]);
    let engine = engine(&world, Reach::Anywhere, names.clone(), Proxy::None);
    assert_eq!(told(engine.fetch(get(&url)).await).await, "200 goods");
    assert_eq!(names.asked(), 1);
}

#[tokio::test]
async fn a_redirect_from_a_public_server_to_a_private_one_is_not_followed() {
    // The proxy stands for the internet: whatever it is asked, it sends the caller home.
    let world = World::new();
    let inner = Shop::open(&world.net).await;
    for host in ["127.0.0.1", "localhost", "0x7f.1"] {
        let to = inner.url("/secret").replace("127.0.0.1", host);
        let internet = Shop::with(&world.net, move |_, _| redirect(302, &to)).await;
        let proxy = Proxy::Through(internet.url.clone());
        let engine = engine(&world, Reach::Public, Answers::new(&[&["1.1.1.1"]]), proxy);
        let told = told(engine.fetch(get("http://public.example/")).await).await;
        assert_eq!((told.as_str(), internet.requests()), ("private_target none", 1), "{host}");
    }
    assert_eq!(inner.requests(), 0);
}

#[tokio::test]
async fn a_proxy_may_be_near_and_what_is_asked_of_it_may_not() {
    let world = World::new();
    let internet = Shop::with(&world.net, |till, _| till.serve("from afar")).await;
    let proxy = internet.url.replace("127.0.0.1", "proxy.example");
    let names = Answers::new(&[&["127.0.0.1"]]);
    let engine = engine(&world, Reach::Public, names, Proxy::Through(proxy));
    assert_eq!(told(engine.fetch(get("http://public.example/")).await).await, "200 from afar");
    for near in ["http://proxy.example/", "http://10.0.0.1/", "http://router/"] {
        assert_eq!(told(engine.fetch(get(near)).await).await, "private_target none", "{near}");
    }
    assert_eq!(internet.requests(), 1);
}
