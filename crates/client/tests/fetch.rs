//! The engine against a shop over real sockets: what is paid, how often, and what the caller is told.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

mod support;

use std::sync::{Arc, atomic::Ordering};
use std::time::Duration;

use bytes::Bytes;
use farebox_client::{Engine, EngineConfig, Limits, Money};
use farebox_protocol::{Msat, Network};
use http::{HeaderValue, header};
use support::mint::Draft;
use support::shop::{Asked, Till, challenge, redirect, status};
use support::{Mood, Shop, WalletDouble, World, get, told};

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
    assert_eq!(states, ["honoured", "dead", "dead"]);
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
async fn check_unpaid(
    handler: impl Fn(&Till, &Asked) -> axum::response::Response + Send + Sync + 'static,
    want: &str,
) {
    let world = World::new();
    let wallet = world.wallet();
    let engine = world.engine_with(wallet.clone());
    let shop = Shop::with(&world.net, handler).await;
    assert_eq!(told(engine.fetch(get(&shop.url("/"))).await).await, want);
    assert_eq!(wallet.asked.load(Ordering::SeqCst), 0, "the wallet was asked");
    assert_eq!(engine.purchases().await.unwrap().len(), 0, "something was recorded");
}

#[tokio::test]
async fn an_invoice_without_an_amount_is_not_paid() {
    let handler = |till: &Till, _: &_| {
        let draft = Draft { amount: None, ..till.draft(1) };
        challenge(&draft.challenge(&till.root_key, "svc").header_values())
    };
    check_unpaid(handler, "amount_missing none").await;
}

#[tokio::test]
async fn an_invoice_that_cannot_be_read_is_not_paid() {
    let handler = |till: &Till, _: &_| {
        let values = till.draft(1).challenge(&till.root_key, "svc").header_values();
        challenge(&values.map(|value| value.replace("lnbcrt", "lnxx")))
    };
    check_unpaid(handler, "invoice_unreadable none").await;
}

#[tokio::test]
async fn coins_of_another_network_are_not_paid() {
    let handler = |till: &Till, _: &_| {
        let draft = Draft { network: Network::Mainnet, ..till.draft(1) };
        challenge(&draft.challenge(&till.root_key, "svc").header_values())
    };
    check_unpaid(handler, "wrong_network none").await;
}

#[tokio::test]
async fn a_price_above_the_limit_is_not_paid() {
    check_unpaid(|till, _| till.challenge("svc", 1_001), "over_price_limit none").await;
}

#[tokio::test]
async fn a_price_claimed_elsewhere_changes_nothing() {
    // A body, a header or a parameter that says `1` beside an invoice of 2,000 sat.
    let handler = |till: &Till, _: &_| {
        let mut response = till.challenge("svc", 2_000);
        response.headers_mut().insert("x-price-sats", HeaderValue::from_static("1"));
        *response.body_mut() = r#"{"priceSats":1,"price_sats":1}"#.into();
        response
    };
    check_unpaid(handler, "over_price_limit none").await;
}

#[tokio::test]
async fn a_challenge_beside_another_status_is_not_paid() {
    let handler = |till: &Till, _: &_| {
        let mut response = till.challenge("svc", 1);
        *response.status_mut() = http::StatusCode::OK;
        response
    };
    check_unpaid(handler, "200 pay first").await;
    let handler = |till: &Till, _: &_| {
        let mut response = till.challenge("svc", 1);
        *response.status_mut() = http::StatusCode::UNAUTHORIZED;
        response
    };
    check_unpaid(handler, "401 pay first").await;
}

#[tokio::test]
async fn a_token_of_another_invoice_is_not_paid() {
    let handler = |till: &Till, _: &_| {
        let token = till.draft(1).macaroon(&till.root_key, &[]).to_base64();
        challenge(&[format!("L402 token=\"{token}\", invoice=\"{}\"", till.draft(1).invoice())])
    };
    check_unpaid(handler, "other_invoice none").await;
}

#[tokio::test]
async fn every_form_of_challenge_in_the_wild_is_understood() {
    type Form = fn(&str, &str) -> Vec<String>;
    let forms: [(&str, Form); 9] = [
        ("the specification's", |t, i| vec![format!("L402 version=\"0\", token=\"{t}\", invoice=\"{i}\"")]),
        ("aperture's", |t, i| {
            vec![
                format!("LSAT macaroon=\"{t}\", invoice=\"{i}\""),
                format!("L402 macaroon=\"{t}\", invoice=\"{i}\""),
            ]
        }),
        ("LSAT alone", |t, i| vec![format!("LSAT macaroon=\"{t}\", invoice=\"{i}\"")]),
        ("behind another scheme", |t, i| {
            vec![
                "Payment id=\"a\", realm=\"b\", method=\"lightning\", request=\"e30\"".to_owned(),
                format!("L402 macaroon=\"{t}\", invoice=\"{i}\""),
            ]
        }),
        ("folded into one line", |t, i| {
            vec![format!("Payment id=\"a\", LSAT macaroon=\"{t}\", invoice=\"{i}\", Basic realm=\"x\"")]
        }),
        ("another order", |t, i| vec![format!("L402 invoice=\"{i}\", foo=\"bar\", token=\"{t}\"")]),
        ("without quotes", |t, i| vec![format!("L402 token={t}, invoice={i}")]),
        ("single quotes and no commas", |t, i| vec![format!("l402 token='{t}' invoice='{i}'")]),
        ("url-safe", |t, i| {
            let t = t.replace('+', "-").replace('/', "_").replace('=', "");
            vec![format!("L402 token=\"{t}\", invoice=\"{i}\"")]
        }),
    ];
    for (name, form) in forms {
        let world = World::new();
        let engine = world.engine();
        let shop = Shop::with(&world.net, move |till, asked| match till.paid(&asked.headers) {
            Some(_) => till.serve("goods"),
            None => {
                let draft = till.draft(1);
                let token = draft.macaroon(&till.root_key, &[]).to_base64();
                challenge(&form(&token, draft.invoice().as_str()))
            }
        })
        .await;
        assert_eq!(told(engine.fetch(get(&shop.url("/"))).await).await, "200 goods", "{name}");
    }
}

#[tokio::test]
async fn a_token_that_cannot_be_read_is_sent_back_as_it_came() {
    let world = World::new();
    let engine = world.engine();
    let shop = Shop::with(&world.net, |till, asked| {
        let shown = asked.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        match shown.and_then(|value| value.strip_prefix("L402 opaque.To-ken_1~:")) {
            Some(preimage) if preimage.len() == 64 => till.serve("goods"),
            _ => challenge(&[format!(
                "L402 token=\"opaque.To-ken_1~\", invoice=\"{}\"",
                till.draft(1).invoice()
            )]),
        }
    })
    .await;
    for _ in 0..2 {
        assert_eq!(told(engine.fetch(get(&shop.url("/"))).await).await, "200 goods");
    }
    assert_eq!(world.net.payments().len(), 1);
}

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

mod redirects {
    use super::*;

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
}

#[tokio::test]
async fn closing_waits_for_a_payment_under_way() {
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    let engine = world.engine();
    assert_eq!(told(engine.fetch(get(&shop.url("/"))).await).await, "200 goods");
    assert!(engine.close(Duration::from_secs(5)).await);
}
