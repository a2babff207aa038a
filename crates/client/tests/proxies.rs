//! The way out: a SOCKS5 proxy that looks names up itself, one that doesn't, and an HTTP proxy that is connected through.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

mod support;
#[path = "support/tls.rs"]
mod tls_shop;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use farebox_client::{Engine, EngineConfig, HttpConfig, Proxy, Reach};
use farebox_lightning::lnaddress::public::Names;
use futures_util::{FutureExt as _, future::BoxFuture};
use support::{Shop, World, get, told};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// A proxy, what it was asked for, and where it leads instead.
struct Way {
    address: SocketAddr,
    asked: Arc<parking_lot::Mutex<Vec<String>>>,
    _serving: JoinSet<()>,
}

/// How a proxy speaks.
#[derive(Clone, Copy)]
enum Tongue {
    Socks,
    Connect,
}

impl Way {
    /// Whatever it is asked for, it leads to this machine's `port`.
    async fn to(port: u16, tongue: Tongue) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked: Arc<parking_lot::Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&asked);
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut under_way = JoinSet::new();
            loop {
                let (guest, _) = listener.accept().await.unwrap();
                let seen = Arc::clone(&seen);
                under_way.spawn(async move {
                    let (mut guest, name) = match tongue {
                        Tongue::Socks => socks(guest).await,
                        Tongue::Connect => connect(guest).await,
                    };
                    seen.lock().push(name);
                    let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
                    _ = copy_bidirectional(&mut guest, &mut server).await;
                });
            }
        });
        Self { address, asked, _serving: serving }
    }

    fn asked(&self) -> Vec<String> {
        let mut asked = self.asked.lock().clone();
        asked.dedup();
        asked
    }
}

/// RFC 1928, without a password; the name that was asked for.
async fn socks(mut guest: TcpStream) -> (TcpStream, String) {
    assert_eq!(guest.read_u8().await.unwrap(), 5);
    let mut methods = vec![0; guest.read_u8().await.unwrap().into()];
    guest.read_exact(&mut methods).await.unwrap();
    guest.write_all(&[5, 0]).await.unwrap();
    let mut head = [0; 4];
    guest.read_exact(&mut head).await.unwrap();
    assert_eq!(head[..3], [5, 1, 0]);
    let host = match head[3] {
        1 => Ipv4Addr::from(guest.read_u32().await.unwrap()).to_string(),
        3 => {
            let mut name = vec![0; guest.read_u8().await.unwrap().into()];
            guest.read_exact(&mut name).await.unwrap();
            String::from_utf8(name).unwrap()
        }
        other => panic!("address type {other}"),
    };
    let port = guest.read_u16().await.unwrap();
    guest.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await.unwrap();
    (guest, format!("{host}:{port}"))
}

/// RFC 9110, 9.3.6; what was to be connected to.
async fn connect(guest: TcpStream) -> (TcpStream, String) {
    let mut guest = BufReader::new(guest);
    let mut name = String::new();
    guest.read_line(&mut name).await.unwrap();
    let mut line = String::from("more");
    while !line.trim().is_empty() {
        line.clear();
        guest.read_line(&mut line).await.unwrap();
    }
    let mut guest = guest.into_inner();
    guest.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").await.unwrap();
    (guest, name.split(' ').nth(1).unwrap().to_owned())
}

/// One name, one answer.
struct Says([u8; 4]);

impl Names for Says {
    fn look_up<'a>(&'a self, _: &'a str) -> BoxFuture<'a, std::io::Result<Vec<IpAddr>>> {
        async { Ok(vec![IpAddr::from(self.0)]) }.boxed()
    }
}

fn engine(world: &World, proxy: Proxy, change: impl FnOnce(&mut EngineConfig)) -> Engine {
    let mut config = world.config();
    config.http = HttpConfig { proxy, ..config.http.clone() };
    change(&mut config);
    Engine::open(config).unwrap()
}

fn port(shop: &Shop) -> u16 {
    shop.url.rsplit(':').next().unwrap().parse().unwrap()
}

const ONION: &str = "http://abcdefghijklmnop.onion/";

#[tokio::test]
async fn an_onion_service_is_bought_from_by_a_proxy_that_gets_its_name() {
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    let tor = Way::to(port(&shop), Tongue::Socks).await;
    let engine = engine(&world, Proxy::Through(format!("socks5h://{}", tor.address)), |_| {});
    for _ in 0..2 {
        assert_eq!(told(engine.fetch(get(ONION)).await).await, "200 goods");
    }
    assert_eq!((tor.asked(), world.net.payments().len()), (vec!["abcdefghijklmnop.onion:80".to_owned()], 1));
}

#[tokio::test]
async fn an_onion_service_by_any_other_way_is_one_in_the_clear() {
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    let nearby: Arc<dyn Names> = Arc::new(Says([127, 0, 0, 1]));
    let plain = Way::to(port(&shop), Tongue::Socks).await;
    let url = ONION.replace(".onion", &format!(".onion:{}", port(&shop)));
    for proxy in [
        Proxy::None,
        // The name is looked up here, and whoever answers says where that is.
        Proxy::Through(format!("socks5://{}", plain.address)),
        Proxy::Through(shop.url.clone()),
    ] {
        let names = Arc::clone(&nearby);
        let engine = engine(&world, proxy.clone(), |config| config.http.names = names);
        let error = engine.fetch(get(&url)).await.unwrap_err();
        assert_eq!(error.code(), "in_the_clear", "{proxy:?}");
        assert!(error.to_string().contains("Tor"), "{error}");
    }
    let engine = engine(&world, Proxy::None, |config| {
        config.http.names = nearby;
        config.in_the_clear = true;
    });
    assert_eq!(told(engine.fetch(get(&url)).await).await, "200 goods");
    assert_eq!(world.net.payments().len(), 1);
}

#[tokio::test]
async fn a_proxy_that_wants_addresses_gets_none_that_are_private() {
    let world = World::new();
    let shop = Shop::with(&world.net, |till, _| till.serve("goods")).await;
    let way = Way::to(port(&shop), Tongue::Socks).await;
    for (ip, want) in [([127, 0, 0, 1], "private_target none"), ([1, 1, 1, 1], "200 goods")] {
        let proxy = Proxy::Through(format!("socks5://{}", way.address));
        let engine = engine(&world, proxy, |config| {
            config.http.reach = Reach::Public;
            config.http.names = Arc::new(Says(ip));
        });
        assert_eq!(told(engine.fetch(get("http://rebound.example/")).await).await, want);
    }
    assert_eq!(way.asked(), ["1.1.1.1:80"]);
}

#[tokio::test]
async fn tls_goes_through_an_http_proxy_unseen() {
    let world = World::new();
    let (shop, root) = tls_shop::shop(&world, |till, asked| match till.paid(&asked.headers) {
        Some(_) => till.serve("goods"),
        None => till.challenge("svc", 100),
    })
    .await;
    let way = Way::to(port(&shop), Tongue::Connect).await;
    let engine = engine(&world, Proxy::Through(format!("http://{}", way.address)), |config| {
        config.http.extra_roots = vec![root];
    });
    assert_eq!(told(engine.fetch(get(&shop.url("/"))).await).await, "200 goods");
    assert_eq!(way.asked(), [shop.url.trim_start_matches("https://")]);
}

#[tokio::test]
async fn plain_http_where_tls_was_meant_is_told_as_that() {
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    let url = shop.url("/?secret=1").replace("http://", "https://");
    let error = engine(&world, Proxy::None, |_| {}).fetch(get(&url)).await.unwrap_err();
    assert_eq!((error.code(), error.retryable()), ("network", false));
    assert!(error.to_string().ends_with(&format!("is it http? write `{}`", shop.url)), "{error}");
}
