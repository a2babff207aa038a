//! The engine against a shop over real sockets: what is paid, how often, and what the caller is told.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

mod support;

use std::sync::atomic::Ordering;

use bytes::Bytes;
use farebox_client::{Engine, EngineConfig, Limits, Short, Shortfall, Unit};
use farebox_protocol::Msat;
use http::header;
use support::{Shop, World, get, told};

#[tokio::test]
async fn a_resource_is_bought_once_and_then_free() {
    let world = World::new();
    let engine = world.engine();
    let shop = Shop::open(&world.net).await;

    let first = engine.fetch(get(&shop.url("/a"))).await.unwrap();
    let receipt = first.purchase.clone().unwrap();
    assert_eq!((receipt.price, receipt.fee), (Msat::new(100_000), Msat::new(1_000)));
    assert_eq!(receipt.service, "svc");
    assert_eq!(first.credential, Some(receipt.payment_hash));
    assert_eq!(first.response.text().await.unwrap(), "goods");

    for path in ["/a", "/a?page=2", "/b", "/b/c/d"] {
        let again = engine.fetch(get(&shop.url(path))).await.unwrap();
        assert_eq!((again.purchase, again.credential), (None, Some(receipt.payment_hash)), "{path}");
    }
    assert_eq!(world.net.payments().len(), 1);
    assert_eq!(shop.minted(), 1);
}

#[tokio::test]
async fn another_process_uses_what_this_one_has_bought() {
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    assert_eq!(told(world.engine().fetch(get(&shop.url("/"))).await).await, "200 goods");
    assert_eq!(told(world.engine().fetch(get(&shop.url("/"))).await).await, "200 goods");
    assert_eq!(world.net.payments().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_requests_at_once_one_pays() {
    let world = World::new();
    let engine = world.engine();
    let shop = Shop::open(&world.net).await;
    let mut requests = tokio::task::JoinSet::new();
    for number in 0..10 {
        let (engine, url) = (engine.clone(), shop.url(&format!("/{number}?q={number}")));
        requests.spawn(async move { told(engine.fetch(get(&url)).await).await });
    }
    while let Some(answer) = requests.join_next().await {
        assert_eq!(answer.unwrap(), "200 goods");
    }
    assert_eq!(world.net.payments().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_engines_on_one_journal_one_pays() {
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let (engine, url) = (world.engine(), shop.url("/"));
        requests.spawn(async move { told(engine.fetch(get(&url)).await).await });
    }
    while let Some(answer) = requests.join_next().await {
        assert_eq!(answer.unwrap(), "200 goods");
    }
    assert_eq!(world.net.payments().len(), 1);
}

#[tokio::test]
async fn two_services_of_one_server_keep_a_token_each() {
    let world = World::new();
    let engine = world.engine();
    let shop = Shop::with(&world.net, |till, asked| {
        let service = asked.path.trim_start_matches('/').split('/').next().unwrap().to_owned();
        match till.paid(&asked.headers) {
            Some(_) if till.is_for(&asked.headers, &service) => till.serve("goods"),
            _ => till.challenge(&service, 100),
        }
    })
    .await;
    for path in ["/one", "/two", "/one", "/two", "/one/more", "/two/more"] {
        assert_eq!(told(engine.fetch(get(&shop.url(path))).await).await, "200 goods", "{path}");
    }
    assert_eq!(world.net.payments().len(), 2);
}

#[tokio::test]
async fn a_token_that_has_been_used_up_is_bought_anew() {
    let world = World::new();
    let engine = world.engine();
    // Each token opens twice.
    let left = parking_lot::Mutex::new(std::collections::HashMap::new());
    let shop = Shop::with(&world.net, move |till, asked| {
        let Some(hash) = till.paid(&asked.headers) else { return till.challenge("svc", 100) };
        match left.lock().entry(hash).or_insert(2) {
            0 => till.challenge("svc", 100),
            left => {
                *left -= 1;
                till.serve("goods")
            }
        }
    })
    .await;
    for _ in 0..5 {
        assert_eq!(told(engine.fetch(get(&shop.url("/"))).await).await, "200 goods");
    }
    assert_eq!(world.net.payments().len(), 3);
    let states: Vec<_> = engine.tokens().await.unwrap().iter().map(|row| row.state).collect();
    assert_eq!(states, ["honoured", "used_up", "used_up"]);
}

#[tokio::test]
async fn credit_that_is_too_little_for_one_request_pays_for_the_next_that_takes_less() {
    let world = World::new();
    let engine = world.engine();
    // Each token has three units; a deletion takes them all.
    let left = parking_lot::Mutex::new(std::collections::HashMap::new());
    let shop = Shop::with(&world.net, move |till, asked| {
        let Some(hash) = till.paid(&asked.headers) else { return till.challenge("svc", 100) };
        let needed = if asked.method == http::Method::DELETE { 3 } else { 1 };
        match left.lock().entry(hash).or_insert(3) {
            left if *left < needed => {
                let code = if *left == 0 { "units_spent" } else { "units_short" };
                let mut answer = till.challenge("svc", 100);
                answer.headers_mut().insert("farebox-code", header::HeaderValue::from_static(code));
                answer
            }
            left => {
                *left -= needed;
                till.serve("goods")
            }
        }
    })
    .await;
    for method in ["GET", "DELETE", "GET", "GET"] {
        let request = http::Request::builder().method(method).uri(shop.url("/")).body(Bytes::new()).unwrap();
        assert_eq!(told(engine.fetch(request).await).await, "200 goods", "{method}");
    }
    assert_eq!(world.net.payments().len(), 2, "three and three units, for six");
    let states: Vec<_> = engine.tokens().await.unwrap().iter().map(|row| row.state).collect();
    assert_eq!(states, ["used_up", "honoured"]);
}

#[tokio::test]
async fn a_pass_of_a_lower_tier_is_kept_where_another_method_needs_a_higher_one() {
    let world = World::new();
    let shop = Shop::with(&world.net, |till, asked| match till.paid(&asked.headers) {
        Some(_) if asked.method == http::Method::GET => till.serve("goods"),
        Some(_) => {
            let mut answer = till.challenge("svc", 900);
            answer.headers_mut().insert("farebox-code", header::HeaderValue::from_static("tier_outgrown"));
            answer
        }
        None => till.challenge("svc", 100),
    })
    .await;
    let engine = world.engine();
    assert_eq!(told(engine.fetch(get(&shop.url("/"))).await).await, "200 goods");
    // The higher tier isn't bought, for whatever reason.
    let poor = Engine::open(EngineConfig { wallet: None, ..world.config() }).unwrap();
    let post = http::Request::post(shop.url("/")).body(Bytes::new()).unwrap();
    assert_eq!(told(poor.fetch(post).await).await, "no_wallet none");
    assert_eq!(told(engine.fetch(get(&shop.url("/"))).await).await, "200 goods");
    assert_eq!(world.net.payments().len(), 1, "what was bought for reading still reads");
}

#[tokio::test]
async fn a_limit_that_is_reached_is_told_with_its_end() {
    let world = World::new();
    // Each token opens once a month.
    let used = parking_lot::Mutex::new(std::collections::HashSet::new());
    let shop = Shop::with(&world.net, move |till, asked| {
        let paid = till.paid(&asked.headers);
        if paid.is_some_and(|hash| used.lock().insert(hash)) {
            return till.serve("goods");
        }
        let mut answer = till.challenge("svc", 100);
        if paid.is_some() {
            answer.headers_mut().insert("farebox-code", header::HeaderValue::from_static("limit_reached"));
            *answer.body_mut() = r#"{"limit":{"capability":"read","unit":"request","most":1,"used":1,"needed":1,"ends_at":4102444800}}"#.into();
        }
        answer
    })
    .await;
    let engine = world.engine();
    let first = engine.fetch(get(&shop.url("/"))).await.unwrap().credential.unwrap();

    let poor = Engine::open(EngineConfig { wallet: None, ..world.config() }).unwrap();
    let error = poor.fetch(get(&shop.url("/"))).await.unwrap_err();
    assert_eq!((error.code(), error.reason()), ("no_wallet", Some("limit_reached")));
    let again = engine.fetch(get(&shop.url("/"))).await.unwrap();
    assert!(again.purchase.is_some());
    for shortfalls in [error.shortfalls(), &again.shortfalls] {
        let [Shortfall { payment_hash, of: Short::Month(Some(month)), .. }] = shortfalls else {
            panic!("{shortfalls:?}")
        };
        assert_eq!((*payment_hash, month.capability.as_str()), (first, "read"));
        assert_eq!((month.unit, month.most, month.used), (Unit::Request, 1, 1));
        assert_eq!(month.ends_at.secs(), 4_102_444_800);
    }
}

#[tokio::test]
async fn a_journal_that_fails_after_the_payment_loses_nothing() {
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    let engine = world.engine();
    let file = rusqlite::Connection::open(world.journal()).unwrap();
    file.execute_batch(
        "CREATE TRIGGER disk_full BEFORE UPDATE ON outgoing_payments WHEN NEW.state = 'settled'
         BEGIN SELECT RAISE(FAIL, 'disk full'); END",
    )
    .unwrap();
    let fetched = engine.fetch(get(&shop.url("/"))).await.unwrap();
    assert!(fetched.purchase.is_some());
    assert_eq!(fetched.response.text().await.unwrap(), "goods");
    assert_eq!(engine.purchases().await.unwrap()[0].state, "sent");

    // Another process, once the disk has room again.
    file.execute_batch("DROP TRIGGER disk_full").unwrap();
    assert_eq!(told(world.engine().fetch(get(&shop.url("/"))).await).await, "200 goods");
    assert_eq!(world.net.payments().len(), 1);
}

#[tokio::test]
async fn a_journal_that_cannot_be_written_pays_nothing() {
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    let wallet = world.wallet();
    let engine = world.engine_with(wallet.clone());
    let file = rusqlite::Connection::open(world.journal()).unwrap();
    file.execute_batch(
        "CREATE TRIGGER disk_full BEFORE UPDATE ON outgoing_payments WHEN NEW.state = 'sent'
         BEGIN SELECT RAISE(FAIL, 'disk full'); END",
    )
    .unwrap();
    assert_eq!(told(engine.fetch(get(&shop.url("/"))).await).await, "payment_failed none");
    assert_eq!(wallet.asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_request_body_is_sent_again_with_the_credential() {
    let world = World::new();
    let engine = world.engine();
    let shop = Shop::with(&world.net, |till, asked| {
        assert_eq!((asked.method.as_str(), &asked.body[..]), ("POST", &b"question"[..]));
        assert_eq!(asked.headers["x-mine"], "a, b");
        match till.paid(&asked.headers) {
            Some(_) => till.serve("answer"),
            None => till.challenge("svc", 100),
        }
    })
    .await;
    let request = http::Request::post(shop.url("/ask"))
        .header("x-mine", "a, b")
        .body(Bytes::from_static(b"question"))
        .unwrap();
    assert_eq!(told(engine.fetch(request).await).await, "200 answer");
}

/// What a shop with one strange habit is told, and that nothing was paid.
#[tokio::test]
async fn without_a_wallet_a_price_is_told_and_nothing_paid() {
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    let engine = Engine::open(EngineConfig { wallet: None, ..world.config() }).unwrap();
    let error = engine.fetch(get(&shop.url("/"))).await.unwrap_err();
    assert_eq!(error.to_string(), "the price is 100 sat, and there is no wallet to pay it with");
}

#[tokio::test]
async fn a_quote_tells_the_price_and_asks_no_wallet() {
    let world = World::new();
    let wallet = world.wallet();
    let shop = Shop::with(&world.net, |till, asked| {
        assert!(!asked.headers.contains_key(header::AUTHORIZATION));
        till.challenge("svc", 2_000)
    })
    .await;
    let engine = world.engine_with(wallet.clone());
    let quote = engine.quote(get(&shop.url("/"))).await.unwrap();
    assert_eq!(quote.offer.unwrap().price, Msat::new(2_000_000));
    assert_eq!(quote.refusal.unwrap().code(), "over_price_limit");
    assert_eq!(wallet.asked.load(Ordering::SeqCst), 0);
    assert_eq!(engine.purchases().await.unwrap().len(), 0);
}

#[tokio::test]
async fn zero_means_zero() {
    let world = World::new();
    let shop = Shop::with(&world.net, |till, _| till.challenge("svc", 1)).await;
    let limits = Limits { per_payment: Msat::ZERO, fee_max: Msat::ZERO };
    let engine = Engine::open(EngineConfig { limits, ..world.config() }).unwrap();
    assert_eq!(told(engine.fetch(get(&shop.url("/"))).await).await, "over_price_limit none");
}

#[tokio::test]
async fn an_authorization_of_the_callers_own_is_kept_and_nothing_is_bought() {
    let world = World::new();
    let engine = world.engine();
    let shop = Shop::open(&world.net).await;
    assert_eq!(told(engine.fetch(get(&shop.url("/"))).await).await, "200 goods");
    let request = http::Request::get(shop.url("/")).header("authorization", "Bearer mine");
    let request = request.body(Bytes::new()).unwrap();
    assert_eq!(told(engine.fetch(request).await).await, "authorization_taken none");
    assert_eq!(world.net.payments().len(), 1);
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_an_error_without_its_address() {
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    let url = shop.url("/?secret=1");
    drop(shop);
    let engine = world.engine();
    let error = loop {
        // The listener closes a moment after the shop.
        match engine.fetch(get(&url)).await {
            Ok(_) => tokio::task::yield_now().await,
            Err(error) => break error,
        }
    };
    assert_eq!((error.code(), error.retryable()), ("network", true));
    let chain = format!("{error} {:?}", anyhow_like(&error));
    assert!(!chain.contains("secret"), "{chain}");
}

/// The texts of an error and its sources.
fn anyhow_like(error: &dyn std::error::Error) -> Vec<String> {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect()
}
