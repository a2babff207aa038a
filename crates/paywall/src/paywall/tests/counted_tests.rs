//! What is sold in units: counted, given back, and never served twice.

use farebox_protocol::ServiceName;

use super::*;
use crate::{
    Costs, LimitBy, RateLimit, RouteCost,
    ledger::law::Charged,
    price::{Cost, Meter, PerMillion},
};

fn requests(count: u64) -> Offer {
    Offer::Requests(count.try_into().unwrap())
}

fn fixed(msat: u64) -> Arc<Cost> {
    Arc::new(Cost::Fixed(Msat::new(msat)))
}

/// A shop that sells requests.
async fn selling(count: u64) -> Shop {
    let mut shop = Shop::open().await;
    shop.service.offer = requests(count);
    shop
}

/// A shop that sells 10,000 msat of credit, of which a request takes so much.
async fn on_credit(msat: u64) -> Shop {
    let mut shop = Shop::open().await;
    shop.service.offer = Offer::Credit;
    shop.service.costs = Costs { otherwise: Some(fixed(msat)), ..Costs::default() };
    shop
}

async fn bought(shop: &Shop) -> HeaderMap {
    let (macaroon, preimage) = shop.buy().await;
    credential(&macaroon, &preimage)
}

/// Asks, is served to the end, and says how many units are left.
async fn served(shop: &Shop, headers: &HeaderMap) -> u64 {
    let mut bill = bill(shop.get(headers).await);
    bill.sent();
    bill.answer(StatusCode::OK, &mut HeaderMap::new());
    bill.chunk(b"well");
    let left = bill.left();
    let charged = bill.end(Ending::Whole);
    assert!(charged.spent > 0);
    left
}

fn ask_of<'a>(shop: &'a Shop, headers: &'a HeaderMap) -> Request<'a> {
    let client = IpAddr::from([192, 0, 2, 1]);
    Request {
        service: &shop.service,
        method: &Method::GET,
        path: "/",
        client,
        headers,
        query: None,
        grpc: false,
    }
}

fn problem(admission: Admission) -> (StatusCode, serde_json::Value) {
    let answer = answer(admission);
    (answer.status, serde_json::from_slice(&answer.body).unwrap())
}

fn asked(shop: &Shop) -> usize {
    shop.store.asked.load(Ordering::SeqCst)
}

#[tokio::test(start_paused = true)]
async fn as_many_requests_are_served_as_were_sold_and_then_more_are_for_sale() {
    let shop = selling(3).await;
    let headers = bought(&shop).await;
    for left in [2, 1, 0] {
        assert_eq!(served(&shop, &headers).await, left);
    }
    let (status, problem) = problem(shop.get(&headers).await);
    assert_eq!(status, StatusCode::PAYMENT_REQUIRED);
    assert_eq!(problem["code"], "units_spent");
    assert_eq!(
        (&problem["left"], &problem["needed"], &problem["unit"]),
        (&0.into(), &1.into(), &"request".into())
    );
    assert!(problem["invoice"].is_string(), "{problem}");
}

#[tokio::test(start_paused = true)]
async fn what_is_counted_is_sold_as_such() {
    let mut shop = Shop::open().await;
    for (offer, terms) in [
        (requests(100), "v1;offer=requests;count=100;msat=10000"),
        (Offer::Credit, "v1;offer=credit;unit=msat;msat=10000"),
    ] {
        shop.service.offer = offer;
        shop.service.costs.otherwise = Some(fixed(1));
        let (macaroon, _) = shop.buy().await;
        assert!(macaroon.caveats().any(|caveat| caveat == format!("farebox_terms={terms}")));
        assert!(!macaroon.caveats().any(|caveat| caveat.contains("valid_until")));
    }
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_is_announced_is_set_aside_as_a_whole_or_refused() {
    let mut shop = on_credit(1).await;
    let meter = Meter::Bytes { request: PerMillion(2_000_000), response: PerMillion(0) };
    let cost = Cost::Metered { reserve: Msat::new(100), base: Msat::ZERO, meter };
    shop.service.costs.otherwise = Some(Arc::new(cost));
    let announcing = |headers: &HeaderMap, length: u64| {
        let mut headers = headers.clone();
        headers.insert(http::header::CONTENT_LENGTH, length.into());
        headers
    };
    let headers = bought(&shop).await;
    for (length, left) in [(0, 9_900), (50, 9_900), (51, 9_898), (5_000, 0)] {
        let bill = bill(shop.get(&announcing(&headers, length)).await);
        assert_eq!(bill.left(), left, "{length}");
        bill.end(Ending::Failed);
    }
    // More than a purchase is worth: buying again would not help.
    for headers in [&headers, &HeaderMap::new()] {
        let (status, problem) = problem(shop.get(&announcing(headers, 5_001)).await);
        assert_eq!((status, &problem["code"]), (StatusCode::PAYLOAD_TOO_LARGE, &"upload_too_dear".into()));
        assert!(problem["invoice"].is_null(), "{problem}");
    }
    // More than is left, and not more than another purchase is worth.
    let mut first = bill(shop.get(&headers).await);
    first.request(10);
    first.end(Ending::Whole);
    let (status, problem) = problem(shop.get(&announcing(&headers, 5_000)).await);
    assert_eq!((status, &problem["code"]), (StatusCode::PAYMENT_REQUIRED, &"units_short".into()));
    assert_eq!((&problem["left"], &problem["needed"]), (&9_980.into(), &10_000.into()));
    assert!(problem["invoice"].is_string(), "{problem}");
}

#[tokio::test(start_paused = true)]
async fn a_token_narrowed_by_its_holder_draws_from_the_same_account() {
    let shop = selling(2).await;
    let (macaroon, preimage) = shop.buy().await;
    let narrowed = macaroon.attenuate("farebox_method=GET").unwrap();
    assert_eq!(served(&shop, &credential(&narrowed, &preimage)).await, 1);
    assert_eq!(served(&shop, &credential(&macaroon, &preimage)).await, 0);
    check(&shop.get(&credential(&narrowed, &preimage)).await, Code::UnitsSpent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_who_race_for_the_last_units_as_many_win_as_there_are() {
    let shop = Arc::new(selling(10).await);
    let headers = bought(&shop).await;
    race_for_ten(&shop, &headers).await;
    check(&shop.get(&headers).await, Code::UnitsSpent);
}

#[tokio::test(start_paused = true)]
async fn what_the_buyer_got_nothing_for_comes_back() {
    let shop = selling(1).await;
    let headers = bought(&shop).await;
    drop(bill(shop.get(&headers).await));
    let mut refused = bill(shop.get(&headers).await);
    refused.sent();
    refused.answer(StatusCode::BAD_GATEWAY, &mut HeaderMap::new());
    assert_eq!(refused.end(Ending::Whole), Charged::default());
    for ending in [Ending::Broken, Ending::Failed] {
        let mut bill = bill(shop.get(&headers).await);
        bill.sent();
        bill.answer(StatusCode::OK, &mut HeaderMap::new());
        assert_eq!(bill.end(ending), Charged::default());
    }
    let mut abandoned = bill(shop.get(&headers).await);
    abandoned.sent();
    drop(abandoned);
    check(&shop.get(&headers).await, Code::UnitsSpent);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_comes_too_fast_is_not_charged() {
    let mut shop = selling(2).await;
    let rate = Rate::per_minute(NonZeroU32::MIN);
    shop.service.rate_limits = vec![RateLimit { by: LimitBy::Token, rate, burst: None, paths: Vec::new() }];
    let headers = bought(&shop).await;
    assert_eq!(served(&shop, &headers).await, 1);
    for _ in 0..3 {
        check(&shop.get(&headers).await, Code::RateLimited);
    }
    time::advance(Duration::from_secs(60)).await;
    assert_eq!(served(&shop, &headers).await, 0);
}

#[tokio::test(start_paused = true)]
async fn credit_is_drawn_down_at_the_cost_of_each_route() {
    let mut shop = on_credit(1_000).await;
    let dear = RouteCost {
        methods: vec![Method::POST],
        paths: vec!["/forecast".parse().unwrap()],
        cost: fixed(4_000),
    };
    shop.service.costs.routes.push(dear);
    let headers = bought(&shop).await;
    assert_eq!(served(&shop, &headers).await, 9_000);
    for left in [5_000, 1_000] {
        let mut bill = bill(shop.ask(&Method::POST, "/forecast", &headers).await);
        bill.sent();
        assert_eq!((bill.left(), bill.end(Ending::Whole).spent), (left, 4_000));
    }
    let (status, problem) = problem(shop.ask(&Method::POST, "/forecast", &headers).await);
    assert_eq!((status, &problem["code"]), (StatusCode::PAYMENT_REQUIRED, &"units_short".into()));
    assert_eq!(
        (&problem["left"], &problem["needed"], &problem["unit"]),
        (&1_000.into(), &4_000.into(), &"msat".into())
    );
    assert_eq!(served(&shop, &headers).await, 0, "what is left still buys what costs less");
    check(&shop.get(&headers).await, Code::UnitsSpent);
}

#[tokio::test(start_paused = true)]
async fn credit_where_nobody_says_what_a_request_costs_is_refused_and_never_free() {
    let mut shop = on_credit(1_000).await;
    let headers = bought(&shop).await;
    shop.service.costs = Costs::default();
    shop.service.offer = Offer::Forever;
    let answer = answer(shop.get(&headers).await);
    assert_eq!((answer.status, answer.code), (StatusCode::SERVICE_UNAVAILABLE, Code::CostUnknown));
    shop.service.costs.otherwise = Some(fixed(7));
    assert_eq!(served(&shop, &headers).await, 9_993, "nothing was taken meanwhile");
}

#[tokio::test(start_paused = true)]
async fn what_was_sold_is_counted_whatever_is_sold_today() {
    let mut shop = selling(2).await;
    let headers = bought(&shop).await;
    shop.service.offer = requests(1_000);
    shop.service.price = Msat::new(1);
    assert_eq!(served(&shop, &headers).await, 1);
    shop.service.offer = Offer::Forever;
    assert_eq!(served(&shop, &headers).await, 0);
    check(&shop.get(&headers).await, Code::UnitsSpent);
}

#[tokio::test(start_paused = true)]
async fn of_several_tokens_a_pass_goes_first_and_a_spent_one_makes_way() {
    let mut shop = selling(1).await;
    let (first, second) = (shop.buy().await, shop.buy().await);
    shop.service.offer = Offer::Forever;
    let pass = shop.buy().await;
    let shown = |all: &[&(Macaroon, Preimage)]| {
        let mut headers = HeaderMap::new();
        for (macaroon, preimage) in all {
            let value = credential(macaroon, preimage)[header::AUTHORIZATION].clone();
            headers.append(header::AUTHORIZATION, value);
        }
        headers
    };
    let Admission::Pass(_, None) = shop.get(&shown(&[&first, &pass])).await else {
        panic!("a pass is not counted")
    };
    let both = shown(&[&first, &second]);
    for used in [&first, &second] {
        let mut bill = bill(shop.get(&both).await);
        assert_eq!(bill.hash(), used.0.identifier().unwrap().payment_hash);
        bill.sent();
        bill.end(Ending::Whole);
    }
    check(&shop.get(&both).await, Code::UnitsSpent);
}

#[tokio::test(start_paused = true)]
async fn a_pass_asks_neither_store_nor_ledger_and_an_account_at_work_no_store() {
    let shop = Shop::open().await;
    let headers = bought(&shop).await;
    let before = asked(&shop);
    for _ in 0..10 {
        let Admission::Pass(_, None) = shop.get(&headers).await else { panic!("it passes without a bill") };
    }
    assert_eq!((asked(&shop), shop.paywall.health().ledger.accounts), (before, 0));

    let shop = selling(100).await;
    let headers = bought(&shop).await;
    served(&shop, &headers).await;
    let before = asked(&shop);
    let request = ask_of(&shop, &headers);
    for _ in 0..10 {
        let Ok(admission) = shop.paywall.admit_at_once(&request, Keys::Ignored) else {
            panic!("it is decided at once")
        };
        bill(admission).end(Ending::Whole);
    }
    assert_eq!(asked(&shop), before);
}

#[tokio::test(start_paused = true)]
async fn a_restart_keeps_what_was_used_and_gives_back_what_was_not() {
    let mut shop = selling(5).await;
    let headers = bought(&shop).await;
    running(&shop.paywall, async {
        assert_eq!(served(&shop, &headers).await, 4);
        assert_eq!(served(&shop, &headers).await, 3);
    })
    .await;
    shop.paywall = shop.reopen(Keyring::single(secret())).await;
    let mut under_way = bill(shop.get(&headers).await);
    under_way.sent();
    // As after a crash: what was under way in the former life is nobody's any more.
    shop.paywall = shop.reopen(Keyring::single(secret())).await;
    assert_eq!(served(&shop, &headers).await, 2);
}

#[tokio::test(start_paused = true)]
async fn a_ledger_that_cannot_be_asked_never_looks_like_a_spent_token() {
    let shop = selling(1).await;
    let headers = bought(&shop).await;
    for fault in [Fault::Fails, Fault::Hangs] {
        *shop.store.fault.lock() = Some(fault);
        let answer = answer(shop.get(&headers).await);
        assert_eq!((answer.status, answer.code), (StatusCode::SERVICE_UNAVAILABLE, Code::LedgerUnavailable));
        assert!(answer.headers.contains_key(header::RETRY_AFTER));
    }
    *shop.store.fault.lock() = None;
    assert_eq!(served(&shop, &headers).await, 0);
}

#[tokio::test(start_paused = true)]
async fn who_hangs_up_while_the_books_are_being_asked_leaves_nothing_reserved() {
    let shop = selling(1).await;
    let headers = bought(&shop).await;
    *shop.store.fault.lock() = Some(Fault::Hangs);
    let gone = time::timeout(Duration::from_millis(10), shop.get(&headers)).await;
    assert!(gone.is_err(), "{gone:?}");
    *shop.store.fault.lock() = None;
    assert_eq!(shop.paywall.health().ledger.accounts, 0);
    assert_eq!(served(&shop, &headers).await, 0);
}

#[tokio::test(start_paused = true)]
async fn who_is_revoked_while_served_is_served_to_the_end_and_no_more() {
    let shop = selling(3).await;
    let (macaroon, preimage) = shop.buy().await;
    let headers = credential(&macaroon, &preimage);
    let identifier = macaroon.identifier().unwrap();
    let mut under_way = bill(shop.get(&headers).await);
    under_way.sent();
    shop.paywall.revoke(identifier.hash(), "test").await.unwrap();
    check(&shop.get(&headers).await, Code::TokenRevoked);
    assert_eq!(under_way.end(Ending::Whole).spent, 1);
    let balance = shop.paywall.ledger().balance(&identifier.payment_hash).unwrap();
    assert_eq!((balance.spent(), balance.reserved(), balance.left()), (1, 0, 2));
}

#[tokio::test(start_paused = true)]
async fn who_is_revoked_while_the_account_is_being_opened_does_not_pass() {
    let shop = selling(1).await;
    let (macaroon, preimage) = shop.buy().await;
    let headers = credential(&macaroon, &preimage);
    let identifier = macaroon.identifier().unwrap();
    let request = ask_of(&shop, &headers);
    let Err(slowly) = shop.paywall.admit_at_once(&request, Keys::Ignored) else {
        panic!("the account must be opened")
    };
    shop.paywall.revoke(identifier.hash(), "test").await.unwrap();
    check(&slowly.await.unwrap(), Code::TokenRevoked);
    let balance = shop.paywall.ledger().balance(&identifier.payment_hash).unwrap();
    assert_eq!((balance.left(), balance.reserved()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn money_that_comes_late_or_twice_buys_what_was_sold_and_is_counted_once() {
    let shop = selling(2).await;
    let (macaroon, preimage) = shop.buy().await;
    let headers = credential(&macaroon, &preimage);
    let hash = macaroon.identifier().unwrap().payment_hash;
    let sales = || shop.paywall.sales()[&shop.service.name];
    running(&shop.paywall, async {
        assert_eq!(served(&shop, &headers).await, 1, "the preimage is the proof");
        assert_eq!((sales().purchases, shop.paywall.health().presentations_booked), (0, 1));
        shop.node.settle(hash, 10_000);
        until_true(|| sales().purchases == 1).await;
        shop.node.settle(hash, 10_000);
        until_true(|| sales().surplus == Msat::new(10_000)).await;
        let purchase = row(&shop, hash, |purchase| purchase.payments == 2).await;
        assert_eq!(purchase.surplus, Msat::new(10_000));
        assert_eq!(served(&shop, &headers).await, 0, "money beyond the price buys no units");
        check(&shop.get(&headers).await, Code::UnitsSpent);
    })
    .await;
    assert_eq!((sales().purchases, shop.paywall.health().presentations_booked), (1, 1));
    assert!(shop.store.audit().await.unwrap().breaches.is_empty());
}

#[tokio::test(start_paused = true)]
async fn opening_an_account_counts_a_sale_that_was_paid_before_even_where_it_does_not_reach() {
    let mut shop = on_credit(1_000).await;
    let (macaroon, preimage) = shop.buy().await;
    shop.service.costs.otherwise = Some(fixed(20_000));
    check(&shop.get(&HeaderMap::new()).await, Code::PriceInvalid);
    shop.service.price = Msat::new(20_000);
    let hash = macaroon.identifier().unwrap().payment_hash;
    running(&shop.paywall, async {
        shop.node.settle(hash, 10_000);
        until_true(|| shop.paywall.health().payments_booked == 1).await;
        check(&shop.get(&credential(&macaroon, &preimage)).await, Code::UnitsShort);
    })
    .await;
    let name: &ServiceName = &shop.service.name;
    assert_eq!(shop.paywall.sales()[name].purchases, 1);
}

#[tokio::test(start_paused = true)]
async fn a_leaked_secret_gives_no_units_that_nobody_paid_for() {
    let mut shop = selling(5).await;
    let (macaroon, preimage) = shop.buy().await;
    let headers = credential(&macaroon, &preimage);
    let identifier = macaroon.identifier().unwrap();
    running(&shop.paywall, async {
        assert_eq!(served(&shop, &headers).await, 4);
        shop.node.settle(identifier.payment_hash, 10_000);
        row(&shop, identifier.payment_hash, Purchase::is_settled).await;
    })
    .await;
    let forged = |count| {
        let sale = farebox_protocol::Sale {
            service: shop.service.name.clone(),
            tier: 0,
            terms: Terms { offer: requests(count), price: Msat::new(10_000) },
            valid_until: None,
            capabilities: None,
            monthly: Vec::new(),
            bound: None,
            replaces: None,
        };
        let key = secret().root_key(Network::Regtest, &identifier);
        Macaroon::mint(&key, &identifier, &sale.caveats().unwrap())
    };
    // Until anybody knows, the account is what the first token over this payment said.
    shop.paywall = shop.reopen(Keyring::single(secret())).await;
    check(&shop.get(&credential(&forged(1_000_000), &preimage)).await, Code::UnitsSpent);
    shop.paywall = shop.reopen(rotated(KeyState::SettledOnly { since: later(1) })).await;
    check(&shop.get(&credential(&forged(1_000_000), &preimage)).await, Code::SecretWithdrawn);
    assert_eq!(served(&shop, &headers).await, 3, "who had paid keeps what was paid for");
}

#[tokio::test(start_paused = true)]
async fn an_account_at_work_is_spent_as_what_it_was_sold_as_and_nothing_else() {
    let mut shop = on_credit(2_500).await;
    let (macaroon, preimage) = shop.buy().await;
    let identifier = macaroon.identifier().unwrap();
    assert_eq!(served(&shop, &credential(&macaroon, &preimage)).await, 7_500);
    let forged = |shop: &Shop, offer| {
        let sale = farebox_protocol::Sale {
            service: shop.service.name.clone(),
            tier: 0,
            terms: Terms { offer, price: Msat::new(10_000) },
            valid_until: None,
            capabilities: None,
            monthly: Vec::new(),
            bound: None,
            replaces: None,
        };
        let key = secret().root_key(Network::Regtest, &identifier);
        credential(&Macaroon::mint(&key, &identifier, &sale.caveats().unwrap()), &preimage)
    };
    // A request for a millisatoshi each.
    let as_requests = forged(&shop, requests(1_000_000));
    check(&shop.get(&as_requests).await, Code::UnitsSpent);
    let name = std::mem::replace(&mut shop.service.name, "dearer".parse().unwrap());
    let elsewhere = forged(&shop, Offer::Credit);
    check(&shop.get(&elsewhere).await, Code::UnitsSpent);
    shop.service.name = name;
    assert_eq!(served(&shop, &credential(&macaroon, &preimage)).await, 5_000);
}

#[tokio::test(start_paused = true)]
async fn a_ceiling_on_credit_is_for_what_a_request_takes_and_not_for_what_the_credit_cost() {
    let mut shop = on_credit(2_500).await;
    let (macaroon, preimage) = shop.buy().await;
    let for_child = |ceiling| {
        credential(
            &macaroon.attenuate(&format!("farebox_bound=GET;msat={ceiling};/forecast")).unwrap(),
            &preimage,
        )
    };
    assert_eq!(shop.service.price, Msat::new(10_000));
    assert_eq!(served(&shop, &for_child(2_500)).await, 7_500);
    check(&shop.get(&for_child(2_499)).await, Code::TokenPriceCeiling);
    // The route's own cost counts, and of a meter what it sets aside.
    let by_bytes = Meter::Bytes { request: PerMillion(1), response: PerMillion(1) };
    let metered = Cost::Metered { reserve: Msat::new(2_600), base: Msat::ZERO, meter: by_bytes };
    let route =
        RouteCost { methods: Vec::new(), paths: vec!["/forecast".parse().unwrap()], cost: Arc::new(metered) };
    shop.service.costs.routes = vec![route];
    check(&shop.get(&for_child(2_599)).await, Code::TokenPriceCeiling);
    assert_eq!(served(&shop, &for_child(2_600)).await, 4_900);
}

#[tokio::test(start_paused = true)]
async fn every_request_that_goes_on_counts_whatever_its_method_and_none_that_is_free() {
    let mut shop = selling(2).await;
    shop.service.free_paths = vec!["/health".parse().unwrap()];
    let headers = bought(&shop).await;
    let Admission::Pass(_, None) = shop.ask(&Method::GET, "/health", &headers).await else { panic!("free") };
    for method in [Method::HEAD, Method::OPTIONS] {
        let mut bill = bill(shop.ask(&method, "/forecast", &headers).await);
        bill.sent();
        assert_eq!(bill.end(Ending::Whole).spent, 1);
    }
    let answer = answer(shop.ask(&Method::HEAD, "/forecast", &headers).await);
    assert_eq!((answer.status, answer.code), (StatusCode::PAYMENT_REQUIRED, Code::UnitsSpent));
}

#[tokio::test(start_paused = true)]
async fn whenever_who_asks_hangs_up_nothing_stays_reserved() {
    let shop = selling(10_000).await;
    let (macaroon, preimage) = shop.buy().await;
    let headers = credential(&macaroon, &preimage);
    let hash = macaroon.identifier().unwrap().payment_hash;
    let ledger = shop.paywall.ledger();
    // The first takes up the account; the others wait for it, and go on when it is gone.
    for polls in 1..64 {
        let again = shop.reopen(Keyring::single(secret())).await;
        let request = ask_of(&shop, &headers);
        let mut asking = Box::pin(again.admit(&request));
        let mut other = Box::pin(again.admit(&request));
        let mut done = None;
        for _ in 0..polls {
            if let std::task::Poll::Ready(admission) = futures_util::poll!(&mut asking) {
                done = Some(admission);
                break;
            }
            assert!(futures_util::poll!(&mut other).is_pending());
            tokio::task::yield_now().await;
        }
        let is_over = done.is_some();
        drop((asking, done));
        drop(bill(other.await));
        let balance = again.ledger().balance(&hash).unwrap();
        assert_eq!((balance.left(), balance.reserved()), (10_000, 0), "after {polls} polls");
        if is_over {
            return;
        }
    }
    panic!("it never came to an end: {ledger:?}");
}

#[tokio::test(start_paused = true)]
async fn who_paid_for_any_offer_before_a_secret_leaked_is_served_after_it() {
    let mut shop = selling(5).await;
    let large = crate::Plan {
        name: "large".to_owned(),
        price: Msat::new(50_000),
        offer: requests(100),
        good_for: None,
        monthly: Vec::new(),
    };
    shop.service.menu.more = vec![large];
    let mut choosing = HeaderMap::new();
    choosing.insert(crate::OFFER_HEADER, HeaderValue::from_static("large"));
    let (macaroon, invoice) = read_challenge(&answer(shop.get(&choosing).await));
    let hash = invoice.payment_hash();
    running(&shop.paywall, async {
        shop.node.settle(hash, 50_000);
        row(&shop, hash, Purchase::is_settled).await;
    })
    .await;
    shop.paywall = shop.reopen(rotated(KeyState::SettledOnly { since: later(1) })).await;
    let headers = credential(&macaroon, &shop.node.preimage(&hash));
    assert_eq!(served(&shop, &headers).await, 99);
}
