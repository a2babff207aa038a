//! What follows a payment: late settlement, failure, silence, and what nobody knows. Whatever the wallet does, one thing is paid
//! for once, and what was paid for is delivered.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

mod support;

use std::sync::{Arc, atomic::Ordering};
use std::time::Duration;

use farebox_client::{Engine, EngineConfig, Limits, Money};
use farebox_protocol::Msat;
use http::{HeaderValue, header};
use support::shop::status;
use support::{Mood, Shop, WalletDouble, World, get, told};

#[tokio::test]
async fn a_settlement_that_the_server_sees_late_is_waited_for() {
    let world = World::new();
    let engine = world.engine();
    let shop = Shop::with(&world.net, |till, asked| match till.paid(&asked.headers) {
        Some(_) if till.requests.load(Ordering::SeqCst) >= 4 => till.serve("goods"),
        _ => till.challenge("svc", 100),
    })
    .await;
    assert_eq!(told(engine.fetch(get(&shop.url("/"))).await).await, "200 goods");
    assert_eq!(world.net.payments().len(), 1);
}

#[tokio::test]
async fn a_server_that_takes_the_money_and_not_the_credential_is_paid_once() {
    let world = World::new();
    let shop = Shop::with(&world.net, |till, _| till.challenge("svc", 100)).await;
    for path in ["/a", "/a", "/b"] {
        // A new engine each time: nothing is forgotten with the process.
        let error = world.engine().fetch(get(&shop.url(path))).await.unwrap_err();
        assert_eq!(error.code(), "credential_rejected");
    }
    assert_eq!(world.net.payments().len(), 1);

    // Asked for, it is bought again.
    let engine = Engine::open(EngineConfig { buy_again: true, ..world.config() }).unwrap();
    assert_eq!(told(engine.fetch(get(&shop.url("/a"))).await).await, "credential_rejected spent");
    assert_eq!(world.net.payments().len(), 2);
}

#[tokio::test]
async fn what_was_refused_once_is_shown_again_until_it_is_honoured() {
    let world = World::new();
    let engine = world.engine();
    let shop = Shop::with(&world.net, |till, asked| match till.paid(&asked.headers) {
        Some(_) if till.requests.load(Ordering::SeqCst) > 4 => till.serve("goods"),
        _ => till.challenge("svc", 100),
    })
    .await;
    assert_eq!(told(engine.fetch(get(&shop.url("/"))).await).await, "credential_rejected spent");
    assert_eq!(told(engine.fetch(get(&shop.url("/"))).await).await, "200 goods");
    assert_eq!(world.net.payments().len(), 1);
}

#[tokio::test]
async fn a_bare_401_to_a_dead_token_leads_to_a_new_purchase() {
    // As ngx-l402 answers every bad credential.
    let world = World::new();
    let engine = world.engine();
    let shop = Shop::with(&world.net, |till, asked| {
        let served = till.served.load(Ordering::SeqCst);
        match till.paid(&asked.headers) {
            Some(_) if served == 0 || till.minted.load(Ordering::SeqCst) == 2 => till.serve("goods"),
            Some(_) => {
                let mut response = status(401);
                response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("L402"));
                response
            }
            None => till.challenge("svc", 100),
        }
    })
    .await;
    for _ in 0..2 {
        assert_eq!(told(engine.fetch(get(&shop.url("/"))).await).await, "200 goods");
    }
    assert_eq!(world.net.payments().len(), 2);
}

#[tokio::test]
async fn a_payment_that_fails_costs_nothing_and_may_be_tried_again() {
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    let stranded = Arc::new(WalletDouble::new(world.net.clone()).in_mood(Mood::Stranded));
    let error = world.engine_with(stranded).fetch(get(&shop.url("/"))).await.unwrap_err();
    assert_eq!((error.code(), error.money(), error.retryable()), ("payment_failed", &Money::None, true));
    assert_eq!(told(world.engine().fetch(get(&shop.url("/"))).await).await, "200 goods");
}

#[tokio::test]
async fn a_wallet_that_falls_silent_is_asked_again_and_not_paid_again() {
    for mood in [Mood::Mute, Mood::Slow] {
        let world = World::new();
        let shop = Shop::open(&world.net).await;
        let wallet = Arc::new(WalletDouble::new(world.net.clone()).in_mood(mood));
        let engine = world.engine_with(wallet.clone());
        assert_eq!(told(engine.fetch(get(&shop.url("/"))).await).await, "200 goods", "{mood:?}");
        assert_eq!(wallet.asked.load(Ordering::SeqCst), 1, "{mood:?}");
    }
}

#[tokio::test]
async fn an_outcome_that_nobody_knows_stops_further_purchases_at_that_place() {
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    let mut wallet = WalletDouble::new(world.net.clone()).in_mood(Mood::Lost);
    wallet.facts.refuses_paid_hash = false;
    let wallet = Arc::new(wallet);
    for _ in 0..2 {
        let engine = world.engine_with(wallet.clone());
        assert_eq!(told(engine.fetch(get(&shop.url("/"))).await).await, "payment_unknown unknown");
    }
    assert_eq!(wallet.asked.load(Ordering::SeqCst), 1);
    assert_eq!(world.engine_with(wallet).resume().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_person_may_write_off_what_nobody_knows() {
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    let mut wallet = WalletDouble::new(world.net.clone()).in_mood(Mood::Lost);
    wallet.facts.refuses_paid_hash = false;
    let engine = world.engine_with(Arc::new(wallet));
    let error = engine.fetch(get(&shop.url("/"))).await.unwrap_err();
    let Money::Unknown { payment_hash, .. } = *error.money() else { panic!("{error}") };
    assert!(world.engine().write_off(payment_hash).await.is_err(), "its process is alive");
    assert!(engine.write_off(payment_hash).await.unwrap());
    assert!(!engine.write_off(payment_hash).await.unwrap());
    assert_eq!(told(world.engine().fetch(get(&shop.url("/"))).await).await, "200 goods");
    assert_eq!(world.net.payments().len(), 1);
}

#[tokio::test]
async fn what_the_wallet_is_being_asked_for_cannot_be_written_off() {
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    let mut wallet = WalletDouble::new(world.net.clone());
    wallet.gate = tokio::sync::Semaphore::new(0);
    let wallet = Arc::new(wallet);
    let engine = world.engine_with(wallet.clone());
    let url = shop.url("/");
    let write_off = async {
        while wallet.asked.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let hash = engine.purchases().await.unwrap()[0].payment_hash;
        let refused = engine.write_off(hash).await;
        wallet.gate.add_permits(1);
        refused
    };
    let (fetched, refused) = tokio::join!(engine.fetch(get(&url)), write_off);
    assert_eq!(refused.unwrap_err().code(), "busy");
    assert_eq!(told(fetched).await, "200 goods");
}

#[tokio::test]
async fn an_earlier_payment_is_tried_again_within_the_limits_of_now() {
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    let lost = Arc::new(WalletDouble::new(world.net.clone()).in_mood(Mood::Lost));
    let begun = world.engine_with(lost).fetch(get(&shop.url("/"))).await;
    assert_eq!(told(begun).await, "payment_unknown unknown");
    let raw = rusqlite::Connection::open(world.journal()).unwrap();
    raw.execute("UPDATE purchases SET holder = 'an-earlier-boot/pid:[1]/1/1/1'", []).unwrap();

    let wallet = world.wallet();
    let limits = Limits { fee_max: Msat::ZERO, ..Limits::default() };
    let config = EngineConfig { wallet: Some(wallet.clone()), limits, ..world.config() };
    let again = Engine::open(config).unwrap().fetch(get(&shop.url("/"))).await;
    assert_eq!(told(again).await, "200 goods");
    assert_eq!((wallet.fee_max.load(Ordering::SeqCst), world.net.payments().len()), (0, 1));
}

#[tokio::test]
async fn a_failure_of_an_earlier_attempt_says_nothing_of_the_one_about_to_be_made() {
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    let lost = Arc::new(WalletDouble::new(world.net.clone()).in_mood(Mood::Lost));
    let sleeper = world.engine_with(lost);
    assert_eq!(told(sleeper.fetch(get(&shop.url("/"))).await).await, "payment_unknown unknown");
    // It has tried twice, and lives; the wallet remembers only that the first attempt failed.
    let raw = rusqlite::Connection::open(world.journal()).unwrap();
    raw.execute("UPDATE outgoing_payments SET attempt = 2", []).unwrap();

    let wallet = Arc::new(WalletDouble::new(world.net.clone()).in_mood(Mood::Forgetful));
    assert_eq!(
        told(world.engine_with(wallet.clone()).fetch(get(&shop.url("/"))).await).await,
        "payment_unknown unknown"
    );
    assert_eq!(wallet.asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_request_that_is_dropped_does_not_stop_its_payment() {
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    let mut wallet = WalletDouble::new(world.net.clone());
    wallet.gate = tokio::sync::Semaphore::new(0);
    let wallet = Arc::new(wallet);
    let engine = world.engine_with(wallet.clone());
    let asked = async {
        while wallet.asked.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    };
    let (engine_too, url) = (engine.clone(), shop.url("/"));
    tokio::select! {
        _ = engine_too.fetch(get(&url)) => panic!("the wallet has not paid yet"),
        () = asked => {}
    }
    wallet.gate.add_permits(10);
    let again = engine.fetch(get(&url)).await.unwrap();
    assert_eq!(again.response.text().await.unwrap(), "goods");
    assert_eq!(world.net.payments().len(), 1);
    assert_eq!(wallet.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn closing_waits_for_a_payment_under_way() {
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    let engine = world.engine();
    assert_eq!(told(engine.fetch(get(&shop.url("/"))).await).await, "200 goods");
    assert!(engine.close(Duration::from_secs(5)).await);
}
