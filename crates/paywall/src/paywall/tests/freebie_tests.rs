//! What the paywall does with freebies: who gets one, what uses one up, what gives it back, and what outlives a restart.

use super::*;
use crate::{Freebies, LimitBy, RateLimit};

async fn giving(requests: u32) -> Shop {
    let mut shop = Shop::open().await;
    shop.service.freebies = Some(freebies(requests));
    shop
}

fn freebies(requests: u32) -> Freebies {
    Freebies { requests: NonZeroU32::new(requests).unwrap(), per: None, keep: false }
}

async fn ask(shop: &Shop, client: &str) -> Admission {
    ask_at(&shop.paywall, shop, client).await
}

async fn ask_at(paywall: &Paywall, shop: &Shop, client: &str) -> Admission {
    let (method, headers) = (&Method::GET, &HeaderMap::new());
    let client = client.parse().unwrap();
    let request =
        Request { service: &shop.service, method, path: "/x", client, headers, query: None, grpc: false };
    paywall.admit(&request).await
}

fn pass(admission: Admission) -> Pass {
    match admission {
        Admission::Pass(pass, _) => pass,
        Admission::Answer(answer) => panic!("{answer:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_requests_of_a_network_cost_nothing_and_the_next_ones_do() {
    let shop = giving(2).await;
    check(&ask(&shop, "192.0.2.1").await, Code::Freebie);
    check(&ask(&shop, "192.0.2.254").await, Code::Freebie);
    check(&ask(&shop, "192.0.2.7").await, Code::PaymentRequired);
    check(&ask(&shop, "::ffff:192.0.2.9").await, Code::PaymentRequired);
    check(&ask(&shop, "192.0.3.1").await, Code::Freebie);
    check(&ask(&shop, "2001:db8:1::1").await, Code::Freebie);
    check(&ask(&shop, "2001:db8:1:ffff::1").await, Code::Freebie);
    check(&ask(&shop, "2001:db8:1:2:3::1").await, Code::PaymentRequired);
    check(&ask(&shop, "2001:db8:2::1").await, Code::Freebie);
}

#[tokio::test(start_paused = true)]
async fn each_service_gives_its_own() {
    let mut shop = giving(1).await;
    check(&ask(&shop, "192.0.2.1").await, Code::Freebie);
    check(&ask(&shop, "192.0.2.1").await, Code::PaymentRequired);
    shop.service.name = "other".parse().unwrap();
    check(&ask(&shop, "192.0.2.1").await, Code::Freebie);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_holds_uses_none_and_one_that_does_not_loses_none() {
    let mut shop = giving(1).await;
    shop.service.freebies = None;
    let (macaroon, preimage) = shop.buy().await;
    shop.service.freebies = Some(freebies(2));
    for _ in 0..5 {
        check(&shop.get(&credential(&macaroon, &preimage)).await, Code::Pass);
        let wrong = credential(&macaroon, &Preimage::from_bytes([9; 32]));
        check(&shop.get(&wrong).await, Code::PreimageWrong);
    }
    let garbage = HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static("L402 x"))]);
    check(&shop.get(&garbage).await, Code::Freebie);
    check(&shop.get(&HeaderMap::new()).await, Code::Freebie);
    check(&shop.get(&garbage).await, Code::PreimageMissing);
    check(&shop.get(&credential(&macaroon, &preimage)).await, Code::Pass);
}

#[tokio::test(start_paused = true)]
async fn what_sells_nothing_gives_nothing_and_what_is_free_uses_none() {
    let mut shop = giving(1).await;
    shop.service.free_paths = vec!["/free".parse().unwrap()];
    shop.service.no_challenge_paths = vec!["/closed".parse().unwrap()];
    let none = HeaderMap::new();
    check(&shop.ask(&Method::GET, "/free", &none).await, Code::Free);
    check(&shop.ask(&Method::GET, "/closed", &none).await, Code::TokenRequired);
    for method in [Method::HEAD, Method::OPTIONS] {
        check(&shop.ask(&method, "/x", &none).await, Code::PaymentRequired);
    }
    check(&shop.ask(&Method::POST, "/x", &none).await, Code::Freebie);
    check(&shop.ask(&Method::POST, "/x", &none).await, Code::PaymentRequired);
}

#[tokio::test(start_paused = true)]
async fn a_freebie_needs_no_node_and_the_sale_after_it_does() {
    let shop = giving(1).await;
    *shop.node.mood.lock() = Mood::Down;
    check(&ask(&shop, "192.0.2.1").await, Code::Freebie);
    check(&ask(&shop, "192.0.2.1").await, Code::NodeUnavailable);
}

#[tokio::test(start_paused = true)]
async fn what_is_given_back_can_be_had_again_and_only_once() {
    let shop = giving(2).await;
    let first = pass(ask(&shop, "192.0.2.1").await).freebie.unwrap();
    let _second = pass(ask(&shop, "192.0.2.1").await);
    check(&ask(&shop, "192.0.2.1").await, Code::PaymentRequired);
    first.give_back();
    first.clone().give_back();
    check(&ask(&shop, "192.0.2.1").await, Code::Freebie);
    check(&ask(&shop, "192.0.2.1").await, Code::PaymentRequired);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_comes_too_fast_uses_none() {
    let mut shop = giving(2).await;
    let rate = Rate::per_minute(NonZeroU32::MIN);
    shop.service.rate_limits = vec![RateLimit { by: LimitBy::Client, rate, burst: None, paths: Vec::new() }];
    check(&ask(&shop, "192.0.2.1").await, Code::Freebie);
    for _ in 0..5 {
        check(&ask(&shop, "192.0.2.1").await, Code::RateLimited);
    }
    check(&ask(&shop, "192.0.2.2").await, Code::Freebie);
    check(&ask(&shop, "192.0.2.3").await, Code::PaymentRequired);
}

#[tokio::test(start_paused = true)]
async fn with_a_period_there_are_new_ones_after_it() {
    let mut shop = giving(1).await;
    shop.service.freebies = Some(Freebies { per: Some(Duration::from_secs(86_400)), ..freebies(1) });
    let early = pass(ask(&shop, "192.0.2.1").await).freebie.unwrap();
    shop.clock.set(later(86_399));
    check(&ask(&shop, "192.0.2.1").await, Code::PaymentRequired);
    shop.clock.set(later(86_400));
    check(&ask(&shop, "192.0.2.1").await, Code::Freebie);
    // One of the period before is no use in this one.
    early.give_back();
    check(&ask(&shop, "192.0.2.1").await, Code::PaymentRequired);
    // A clock that is put back gives nobody more.
    shop.clock.set(START);
    check(&ask(&shop, "192.0.2.1").await, Code::PaymentRequired);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_at_once_exactly_as_many_pass_as_there_are() {
    let shop = Arc::new(giving(3).await);
    let tracker = TaskTracker::new();
    let asking = (0..40).map(|_| {
        let shop = shop.clone();
        tracker.spawn(async move { ask(&shop, "192.0.2.1").await.code() == Code::Freebie })
    });
    let asking: Vec<_> = asking.collect();
    let mut passed = 0;
    for asked in asking {
        passed += usize::from(asked.await.unwrap());
    }
    assert_eq!(passed, 3);
}

#[tokio::test(start_paused = true)]
async fn a_full_table_gives_latecomers_one_allowance_and_nobody_a_second_one() {
    let few = PaywallConfig { freebie_networks_max: 256, ..config() };
    let mut shop = Shop::open_with(few, Keyring::single(secret())).await;
    shop.service.freebies = Some(freebies(2));
    // The node is down so that no invoices are made; whoever gets no freebie is told of the node.
    *shop.node.mood.lock() = Mood::Down;
    check(&ask(&shop, "192.0.2.1").await, Code::Freebie);
    check(&ask(&shop, "192.0.2.1").await, Code::Freebie);
    let mut given = 0;
    for net in 0..5_000_u32 {
        let client = format!("2001:db8:{net:x}::1");
        given += usize::from(ask(&shop, &client).await.code() == Code::Freebie);
    }
    assert!((200..=256 + 2).contains(&given), "{given}");
    assert_ne!(ask(&shop, "192.0.2.1").await.code(), Code::Freebie, "the table forgets nobody");
    assert_ne!(ask(&shop, "198.51.100.1").await.code(), Code::Freebie, "the latecomers' are used up");
    assert!(shop.paywall.health().freebies_overflowed > 4_000);
    // Latecomers of another service have their own.
    shop.service.name = "other".parse().unwrap();
    check(&ask(&shop, "198.51.100.1").await, Code::Freebie);
}

fn keeping(shop: &Shop) -> PaywallConfig {
    let file = Some(shop.dir.path().join("freebies"));
    let every = Duration::from_millis(10);
    PaywallConfig { freebie_file: file, freebie_write_every: every, ..config() }
}

async fn start(shop: &Shop) -> Arc<Paywall> {
    let (node, store, clock) = (shop.node.clone(), shop.store.clone(), shop.clock.clone());
    Paywall::open(keeping(shop), Keyring::single(secret()), node, store, clock).await.unwrap()
}

#[tokio::test]
async fn kept_counts_outlive_a_restart_and_others_do_not() {
    let mut shop = giving(1).await;
    let path = shop.dir.path().join("freebies");
    for (keep, after) in [(false, Code::Freebie), (true, Code::PaymentRequired)] {
        shop.service.freebies = Some(Freebies { keep, ..freebies(2) });
        let before = start(&shop).await;
        running(&before, async {
            check(&ask_at(&before, &shop, "192.0.2.1").await, Code::Freebie);
            check(&ask_at(&before, &shop, "192.0.2.1").await, Code::Freebie);
            let back = pass(ask_at(&before, &shop, "198.51.100.1").await).freebie.unwrap();
            back.give_back();
        })
        .await;
        assert_eq!(path.exists(), keep, "the last is written at the end, where anything is");
        let again = start(&shop).await;
        check(&ask_at(&again, &shop, "192.0.2.77").await, after);
        check(&ask_at(&again, &shop, "198.51.100.1").await, Code::Freebie);
        check(&ask_at(&again, &shop, "198.51.100.1").await, Code::Freebie);
        check(&ask_at(&again, &shop, "198.51.100.1").await, Code::PaymentRequired);
    }
}

#[tokio::test]
async fn what_is_counted_is_on_disk_soon_without_any_request_waiting_for_it() {
    let mut shop = giving(1).await;
    shop.service.freebies = Some(Freebies { keep: true, ..freebies(1) });
    let paywall = start(&shop).await;
    running(&paywall, async {
        check(&ask_at(&paywall, &shop, "192.0.2.1").await, Code::Freebie);
        // As after a crash: nobody has told the first to stop.
        until(async || {
            let crashed = start(&shop).await;
            (ask_at(&crashed, &shop, "192.0.2.1").await.code() == Code::PaymentRequired).then_some(())
        })
        .await;
    })
    .await;
}

#[tokio::test]
async fn a_file_that_is_no_counts_stops_the_start() {
    let shop = giving(1).await;
    let path = shop.dir.path().join("freebies");
    for content in [vec![0_u8; 10], vec![7_u8; 100_000], b"farebox freebies".repeat(512)] {
        std::fs::write(&path, content).unwrap();
        let (node, store, clock) = (shop.node.clone(), shop.store.clone(), shop.clock.clone());
        let opened = Paywall::open(keeping(&shop), Keyring::single(secret()), node, store, clock).await;
        assert!(matches!(opened, Err(OpenError::Freebies(FreebieFileError::Foreign(_)))));
    }
}

#[tokio::test]
async fn a_disk_that_fails_is_told_of_and_tried_again() {
    let mut shop = giving(1).await;
    shop.service.freebies = Some(Freebies { keep: true, ..freebies(1) });
    let gone = shop.dir.path().join("gone");
    let file = Some(gone.join("freebies"));
    let config = PaywallConfig { freebie_file: file, ..keeping(&shop) };
    let (node, store, clock) = (shop.node.clone(), shop.store.clone(), shop.clock.clone());
    let paywall = Paywall::open(config, Keyring::single(secret()), node, store, clock).await.unwrap();
    running(&paywall, async {
        check(&ask_at(&paywall, &shop, "192.0.2.1").await, Code::Freebie);
        until_true(|| paywall.health().keeping.is_some()).await;
        std::fs::create_dir(&gone).unwrap();
        until_true(|| paywall.health().keeping.is_none()).await;
    })
    .await;
    assert!(gone.join("freebies").exists());
}
