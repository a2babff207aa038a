//! The layer that pays, over real clients and sockets: what it sends, what it buys, and how often.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

mod support;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use axum::{Router, extract::Request as Incoming, response::IntoResponse as _};
use bytes::Bytes;
use farebox_client::tower::{BodyFactory, Paid, Pay, PayLayer, Replay};
use farebox_client::{Engine, EngineConfig, Fault, FetchError, Limits, Money, Origin};
use farebox_protocol::Msat;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use hyper_util::{client::legacy, client::legacy::connect::HttpConnector, rt::TokioExecutor};
use support::{Shop, World, money};
use tokio::sync::Notify;
use tower::{Layer as _, Service, ServiceBuilder, ServiceExt as _, service_fn};

type Anything = BoxBody<Bytes, Infallible>;
type Client = legacy::Client<HttpConnector, Replay<Anything>>;

fn client() -> Client {
    legacy::Client::builder(TokioExecutor::new()).build_http()
}

fn paying(engine: &Engine) -> Pay<Client> {
    PayLayer::new(engine.clone()).layer(client())
}

fn whole(bytes: impl Into<Bytes>) -> Anything {
    Full::new(bytes.into()).boxed()
}

fn get(url: &str) -> Request<Anything> {
    Request::get(url).body(whole("")).unwrap()
}

fn post(url: &str, body: Anything) -> Request<Anything> {
    Request::post(url).body(body).unwrap()
}

/// The answer as text, or what went wrong: `over_price_limit none`.
async fn told<S, R>(service: S, request: Request<Anything>) -> String
where
    S: Service<Request<Anything>, Response = Response<R>, Error = FetchError>,
    R: http_body::Body<Error: std::fmt::Debug>,
{
    match service.oneshot(request).await {
        Ok(answer) => {
            let status = answer.status().as_u16();
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            format!("{status} {}", String::from_utf8_lossy(&body))
        }
        Err(error) => format!("{} {}", error.code(), money(&error)),
    }
}

/// A shop that asks for money before it has read a body, and tells how long the bodies of those who paid are.
async fn scales(shop: &Shop, asked: Arc<Notify>) -> String {
    let till = shop.till.clone();
    let app = Router::new().fallback(move |request: Incoming| {
        let (till, asked) = (till.clone(), asked.clone());
        async move {
            if till.paid(request.headers()).is_none() {
                asked.notify_one();
                return till.challenge("scales", 100);
            }
            let bytes = request.into_body().collect().await.unwrap().to_bytes();
            let is_whole = bytes.iter().zip(0..).all(|(byte, at): (_, usize)| *byte == pattern(at));
            format!("{} {is_whole}", bytes.len()).into_response()
        }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    tokio_util::task::TaskTracker::new().spawn(async move { axum::serve(listener, app).await });
    url
}

#[expect(clippy::cast_possible_truncation, reason = "a remainder by 251 is a byte")]
fn pattern(at: usize) -> u8 {
    (at % 251) as u8
}

fn bytes(from: usize, to: usize) -> Bytes {
    (from..to).map(pattern).collect()
}

#[tokio::test]
async fn what_is_asked_for_is_bought_once_and_said_in_the_extensions() {
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    let mut client = paying(&world.engine());

    let answer = client.ready().await.unwrap().call(get(&shop.url("/a"))).await.unwrap();
    let paid = answer.extensions().get::<Paid>().unwrap().clone();
    let receipt = paid.receipt.unwrap();
    assert_eq!((receipt.price, receipt.fee), (Msat::new(100_000), Msat::new(1_000)));
    assert_eq!(receipt.payment_hash, paid.credential);
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "goods");

    let again = client.ready().await.unwrap().call(get(&shop.url("/b"))).await.unwrap();
    let again = again.extensions().get::<Paid>().unwrap();
    assert_eq!((&again.receipt, again.credential), (&None, paid.credential));
    assert_eq!((world.net.payments().len(), shop.minted()), (1, 1));
}

#[tokio::test]
async fn what_is_free_says_nothing_of_money() {
    let world = World::new();
    let shop = Shop::with(&world.net, |till, _| till.serve("free")).await;
    let answer = paying(&world.engine()).oneshot(get(&shop.url("/"))).await.unwrap();
    assert!(answer.extensions().get::<Paid>().is_none());
    assert_eq!(shop.requests(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_32_tasks_on_one_layer_and_on_two_layers_over_one_journal_one_pays() {
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    let layers = [paying(&world.engine()), paying(&world.engine())];
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..64 {
        let (client, url) = (layers[number % 2].clone(), shop.url(&format!("/{number}")));
        tasks.spawn(async move { told(client, get(&url)).await });
    }
    while let Some(answer) = tasks.join_next().await {
        assert_eq!(answer.unwrap(), "200 goods");
    }
    assert_eq!(world.net.payments().len(), 1);
}

#[tokio::test]
async fn an_answer_nobody_waits_for_any_more_is_paid_for_once_and_kept() {
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    let mut wallet = support::WalletDouble::new(world.net.clone());
    wallet.gate = tokio::sync::Semaphore::new(0);
    let wallet = Arc::new(wallet);
    let engine = world.engine_with(wallet.clone());

    let mut answer = Box::pin(paying(&engine).oneshot(get(&shop.url("/"))));
    while wallet.asked.load(Ordering::SeqCst) == 0 {
        assert!((&mut answer).now_or_never().is_none());
        tokio::task::yield_now().await;
    }
    drop(answer);
    wallet.gate.add_permits(10);
    assert_eq!(told(paying(&engine), get(&shop.url("/"))).await, "200 goods");
    assert_eq!((world.net.payments().len(), wallet.asked.load(Ordering::SeqCst)), (1, 1));
}

#[tokio::test]
async fn a_request_can_be_dropped_wherever_it_waits() {
    for polls in 0..60 {
        let world = World::new();
        let shop = Shop::open(&world.net).await;
        let engine = world.engine();
        let mut answer = Box::pin(paying(&engine).oneshot(get(&shop.url("/"))));
        for _ in 0..polls {
            if (&mut answer).now_or_never().is_some() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(answer);
        assert_eq!(
            told(paying(&engine), get(&shop.url("/"))).await,
            "200 goods",
            "dropped after {polls} polls"
        );
        assert_eq!(world.net.payments().len(), 1, "dropped after {polls} polls");
    }
}

/// Panics when it is called without having said that it is ready.
struct Strict<S> {
    service: S,
    is_ready: bool,
}

impl<S: Clone> Clone for Strict<S> {
    fn clone(&self) -> Self {
        Self { service: self.service.clone(), is_ready: false }
    }
}

impl<S: Service<R>, R> Service<R> for Strict<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        let polled = self.service.poll_ready(cx);
        self.is_ready |= polled.is_ready();
        polled
    }

    fn call(&mut self, request: R) -> S::Future {
        assert!(std::mem::replace(&mut self.is_ready, false), "it was not asked");
        self.service.call(request)
    }
}

#[tokio::test]
async fn the_service_beneath_is_asked_whether_it_is_ready_before_each_time() {
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    let strict = Strict { service: client(), is_ready: false };
    let mut client = PayLayer::new(world.engine()).layer(strict);
    for _ in 0..3 {
        let answer = client.ready().await.unwrap().call(get(&shop.url("/"))).await.unwrap();
        assert_eq!(answer.status(), 200);
    }
}

#[tokio::test]
async fn while_somebody_pays_their_place_in_the_service_beneath_is_free() {
    let world = World::new();
    let shop = Shop::with(&world.net, |till, asked| match till.paid(&asked.headers) {
        None if asked.path == "/paid" => till.challenge("svc", 100),
        _ => till.serve("goods"),
    })
    .await;
    let mut wallet = support::WalletDouble::new(world.net.clone());
    wallet.gate = tokio::sync::Semaphore::new(0);
    let wallet = Arc::new(wallet);
    let engine = world.engine_with(wallet.clone());
    let one_at_a_time =
        ServiceBuilder::new().layer(PayLayer::new(engine)).buffer(4).concurrency_limit(1).service(client());

    let buyer = tokio::task::JoinSet::from_iter([told(one_at_a_time.clone(), get(&shop.url("/paid")))]);
    while wallet.asked.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(told(one_at_a_time, get(&shop.url("/free"))).await, "200 goods");
    wallet.gate.add_permits(1);
    assert_eq!(buyer.join_all().await, ["200 goods"]);
}

#[tokio::test]
async fn a_body_arrives_whole_with_the_credential() {
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    let url = scales(&shop, Arc::default()).await;
    let client = paying(&world.engine());
    assert_eq!(told(client.clone(), post(&url, whole(bytes(0, 60_000)))).await, "200 60000 true");
    assert_eq!(world.net.payments().len(), 1);
}

#[tokio::test]
async fn what_was_not_read_when_the_money_was_asked_for_is_sent_after_what_was() {
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    let asked = Arc::new(Notify::new());
    let url = scales(&shop, asked.clone()).await;
    // What comes second is there only once the first has been answered.
    let second = async move {
        asked.notified().await;
        Frame::data(bytes(1_000, 3_000))
    };
    let body = stream::iter([Frame::data(bytes(0, 1_000))]).chain(stream::once(second));
    let body = BoxBody::new(StreamBody::new(body.map(Ok)));
    assert_eq!(told(paying(&world.engine()), post(&url, body)).await, "200 3000 true");
}

#[tokio::test]
async fn a_body_beyond_the_limit_buys_nothing_and_passes_whole_where_a_credential_is_held() {
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    let url = scales(&shop, Arc::default()).await;
    let client = PayLayer::new(world.engine()).body_max(1_000).layer(client());
    let large = || post(&url, whole(bytes(0, 1_001)));

    assert_eq!(told(client.clone(), large()).await, "body_gone none");
    assert_eq!(world.net.payments(), [""; 0]);
    assert_eq!(told(client.clone(), post(&url, whole(bytes(0, 1_000)))).await, "200 1000 true");
    assert_eq!(told(client.clone(), large()).await, "200 1001 true");
    assert_eq!(told(client, post(&url, whole(bytes(0, 3_000_000)))).await, "200 3000000 true");
    assert_eq!(world.net.payments().len(), 1);
}

#[tokio::test]
async fn whoever_makes_the_body_anew_may_have_it_as_large_as_they_like() {
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    let url = scales(&shop, Arc::default()).await;
    let made = Arc::new(AtomicUsize::new(0));
    let count = made.clone();
    let factory = BodyFactory::new(move || {
        count.fetch_add(1, Ordering::SeqCst);
        whole(bytes(0, 200_000))
    });
    let mut request = post(&url, whole(""));
    request.extensions_mut().insert(factory);
    assert_eq!(told(paying(&world.engine()), request).await, "200 200000 true");
    assert_eq!(made.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn redirects_are_the_callers_business() {
    let world = World::new();
    let shop = Shop::with(&world.net, |_, _| support::shop::redirect(302, "/elsewhere")).await;
    let answer = paying(&world.engine()).oneshot(get(&shop.url("/"))).await.unwrap();
    assert_eq!((answer.status(), shop.requests()), (StatusCode::FOUND, 1));
}

/// A service that answers as the shop would, whoever is asked.
fn shop_everywhere(
    shop: &Shop,
) -> impl Service<
    Request<Replay<Anything>>,
    Response = Response<axum::body::Body>,
    Error = Infallible,
    Future: Send,
> + Clone
+ Send
+ 'static {
    let till = shop.till.clone();
    service_fn(move |request: Request<Replay<Anything>>| {
        let answer = match till.paid(request.headers()) {
            Some(_) => till.serve("goods"),
            None => till.challenge("svc", 100),
        };
        std::future::ready(Ok(answer))
    })
}

#[tokio::test]
async fn a_service_of_one_origin_takes_relative_addresses_and_refuses_those_of_others() {
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    let origin: Origin = "https://api.example.com".parse().unwrap();
    let client = PayLayer::for_origin(world.engine(), origin.clone()).layer(shop_everywhere(&shop));
    assert_eq!(told(client.clone(), get("/a?b")).await, "200 goods");
    assert_eq!(told(client.clone(), get("https://api.example.com/a")).await, "200 goods");
    for other in ["https://example.com/a", "http://api.example.com/a", "https://api.example.com:444/"] {
        assert_eq!(told(client.clone(), get(other)).await, "address none", "{other}");
    }
    let anybody = PayLayer::new(world.engine()).layer(shop_everywhere(&shop));
    assert_eq!(told(anybody, get("/a")).await, "address none");
    assert_eq!(world.net.payments().len(), 1);
}

#[tokio::test]
async fn nothing_is_bought_or_shown_in_the_clear() {
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    let client = PayLayer::new(world.engine()).layer(shop_everywhere(&shop));
    assert_eq!(told(client.clone(), get("http://api.example.com/")).await, "in_the_clear none");
    assert_eq!(told(client.clone(), get("https://api.example.com/")).await, "200 goods");
    assert_eq!(told(client, get("http://api.example.com/")).await, "in_the_clear none");
}

#[tokio::test]
async fn an_authorization_of_the_callers_own_stays_and_buys_nothing() {
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    let mut request = get(&shop.url("/"));
    request.headers_mut().insert(header::AUTHORIZATION, HeaderValue::from_static("Bearer mine"));
    assert_eq!(told(paying(&world.engine()), request).await, "authorization_taken none");
}

#[tokio::test]
async fn the_rules_of_the_engine_hold() {
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    let limits = Limits { per_payment: Msat::new(99_000), ..Limits::default() };
    let engine = Engine::open(EngineConfig { limits, ..world.config() }).unwrap();
    assert_eq!(told(paying(&engine), get(&shop.url("/"))).await, "over_price_limit none");
}

#[tokio::test]
async fn an_error_of_the_service_beneath_comes_out_with_what_became_of_the_money() {
    #[derive(Debug, thiserror::Error)]
    #[error("the cable is cut")]
    struct Cut;

    let world = World::new();
    let shop = Shop::open(&world.net).await;
    let till = shop.till.clone();
    let service = service_fn(move |request: Request<Replay<Anything>>| {
        std::future::ready(match till.paid(request.headers()) {
            Some(_) => Err(Cut),
            None => Ok(till.challenge("svc", 100)),
        })
    });
    let error =
        PayLayer::new(world.engine()).layer(service).oneshot(get("https://a.example/")).await.unwrap_err();
    let Fault::Service(inner) = error.fault() else { panic!("{error:?}") };
    assert!(inner.is::<Cut>());
    assert!(matches!(error.money(), Money::Spent { .. }));
    assert!(error.retryable());
}
