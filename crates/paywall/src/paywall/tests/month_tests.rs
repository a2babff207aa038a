//! Limits by the month, as buyers meet them.

use std::sync::Arc;

use super::*;
use crate::{Costs, price::Cost, store::accounts::Accounts};

/// A shop whose requests all take the capability `read`, those that write `write` as well.
async fn shop(offer: Offer) -> Shop {
    let mut shop = Shop::open().await;
    shop.service.offer = offer;
    let capability = |name: &str, methods| {
        let name = name.parse().unwrap();
        crate::Capability { name, methods, paths: Vec::new() }
    };
    shop.service.menu.capabilities =
        vec![capability("read", Vec::new()), capability("write", vec![Method::POST])];
    shop
}

fn cost(msat: u64) -> Costs {
    Costs { otherwise: Some(Arc::new(Cost::Fixed(Msat::new(msat)))), ..Costs::default() }
}

/// A credential over a token that a holder has narrowed so.
fn narrowed((macaroon, preimage): &(Macaroon, Preimage), caveats: &[&str]) -> HeaderMap {
    let narrow = |token: Macaroon, caveat: &&str| token.attenuate(caveat).unwrap();
    credential(&caveats.iter().fold(macaroon.clone(), narrow), preimage)
}

/// Asks and is served to the end.
async fn serve(shop: &Shop, headers: &HeaderMap) -> HeaderMap {
    let mut bill = bill(shop.get(headers).await);
    bill.sent();
    let mut told = HeaderMap::new();
    bill.answer(StatusCode::OK, &mut told);
    bill.end(Ending::Whole);
    told
}

#[track_caller]
fn limit(admission: Admission) -> serde_json::Value {
    let answer = answer(admission);
    assert_eq!((answer.status, answer.code), (StatusCode::PAYMENT_REQUIRED, Code::LimitReached));
    let problem: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert!(problem["invoice"].is_string(), "{problem}");
    problem["limit"].clone()
}

#[tokio::test(start_paused = true)]
async fn a_pass_that_is_limited_is_good_for_so_much_a_month_and_says_when_that_ends() {
    for offer in [Offer::Forever, Offer::Duration(Duration::from_secs(90 * 86_400))] {
        let shop = shop(offer).await;
        let bought = shop.buy().await;
        let headers = narrowed(&bought, &["read_monthly_requests=3"]);
        for _ in 0..3 {
            assert!(!serve(&shop, &headers).await.contains_key(crate::LEFT_HEADER), "a pass counts nothing");
        }
        let ends_at = shop.paywall.ledger().month().ends_at();
        let want = serde_json::json!({
            "capability": "read", "unit": "request", "most": 3, "used": 3, "needed": 1, "ends_at": ends_at.secs(),
        });
        assert_eq!(limit(shop.get(&headers).await), want);
        // The whole token is as good as ever, and so is one that is limited in something else.
        check(&shop.get(&credential(&bought.0, &bought.1)).await, Code::Pass);
        serve(&shop, &narrowed(&bought, &["read_monthly_requests=9"])).await;
        check(&shop.get(&narrowed(&bought, &["write_monthly_requests=0"])).await, Code::Pass);
        shop.clock.set(ends_at);
        serve(&shop, &headers).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_limited_pass_is_on_the_books_and_what_it_used_outlives_the_process() {
    let mut shop = shop(Offer::Forever).await;
    let bought = shop.buy().await;
    let headers = narrowed(&bought, &["read_monthly_requests=2"]);
    let hash = bought.0.identifier().unwrap().payment_hash;
    running(&shop.paywall, async {
        serve(&shop, &headers).await;
        row(&shop, hash, |row| row.presented_at.is_some()).await;
    })
    .await;
    shop.paywall = shop.reopen(Keyring::single(secret())).await;
    serve(&shop, &headers).await;
    limit(shop.get(&headers).await);
}

#[tokio::test(start_paused = true)]
async fn a_pass_without_a_limit_for_the_request_asks_neither_store_nor_ledger() {
    let shop = shop(Offer::Forever).await;
    let bought = shop.buy().await;
    let whole = credential(&bought.0, &bought.1);
    let other = narrowed(&bought, &["write_monthly_requests=1", "write_monthly_volume_sats=1"]);
    let asked = || shop.store.asked.load(Ordering::SeqCst);
    let before = asked();
    for headers in [&whole, &other, &whole, &other] {
        let Admission::Pass(_, None) = shop.get(headers).await else { panic!("it passes without a bill") };
    }
    assert_eq!(asked(), before);
    // One that is limited asks once, and then no more.
    let limited = narrowed(&bought, &["read_monthly_requests=9"]);
    serve(&shop, &limited).await;
    assert_eq!(asked(), before + 1);
    serve(&shop, &limited).await;
    assert_eq!(asked(), before + 1);
}

#[tokio::test(start_paused = true)]
async fn of_several_limits_for_the_same_the_strictest_binds() {
    let shop = shop(Offer::Forever).await;
    let bought = shop.buy().await;
    let headers = narrowed(
        &bought,
        &["read_monthly_requests=9", "read_monthly_requests=2", "write_monthly_requests=1"],
    );
    for _ in 0..2 {
        serve(&shop, &headers).await;
    }
    assert_eq!(limit(shop.get(&headers).await)["most"], 2);
    // Wider than before is no narrowing.
    let wider = bought.0.attenuate("read_monthly_requests=2").unwrap();
    wider.attenuate("read_monthly_requests=3").unwrap_err();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_who_race_for_the_last_of_a_month_as_many_win_as_there_are() {
    let shop = Arc::new(shop(Offer::Requests(100.try_into().unwrap())).await);
    let headers = narrowed(&shop.buy().await, &["read_monthly_requests=10"]);
    race_for_ten(&shop, &headers).await;
    limit(shop.get(&headers).await);
}

#[tokio::test(start_paused = true)]
async fn what_the_buyer_got_nothing_for_counts_in_no_month() {
    let shop = shop(Offer::Forever).await;
    let headers = narrowed(&shop.buy().await, &["read_monthly_requests=1"]);
    drop(bill(shop.get(&headers).await));
    let mut failed = bill(shop.get(&headers).await);
    check(&shop.get(&headers).await, Code::UnitsInFlight);
    failed.sent();
    failed.answer(StatusCode::BAD_GATEWAY, &mut HeaderMap::new());
    failed.end(Ending::Whole);
    let mut abandoned = bill(shop.get(&headers).await);
    abandoned.sent();
    drop(abandoned);
    limit(shop.get(&headers).await);
}

#[tokio::test(start_paused = true)]
async fn money_in_a_month_is_what_credit_pays_what_requests_were_bought_for_and_what_a_pass_would_cost() {
    // 10,000 msat of credit at 400 each; 100 requests for 10,000 msat; and a pass where the route costs 250.
    for (offer, costs, used) in [
        (Offer::Credit, cost(400), 800),
        (Offer::Requests(100.try_into().unwrap()), Costs::default(), 1_000),
        (Offer::Forever, cost(250), 1_000),
    ] {
        let mut shop = shop(offer).await;
        shop.service.costs = costs;
        let headers = narrowed(&shop.buy().await, &["read_monthly_volume_sats=1"]);
        let each =
            if offer == Offer::Credit { 2 } else { used / if offer == Offer::Forever { 250 } else { 100 } };
        for _ in 0..each {
            serve(&shop, &headers).await;
        }
        let limit = limit(shop.get(&headers).await);
        assert_eq!(
            (&limit["unit"], &limit["most"], &limit["used"]),
            (&"msat".into(), &1_000.into(), &used.into())
        );
    }
    // Nobody says what a request costs: that is no reason to count nothing.
    let shop = shop(Offer::Forever).await;
    let headers = narrowed(&shop.buy().await, &["read_monthly_volume_sats=1"]);
    check(&shop.get(&headers).await, Code::CostUnknown);
}

#[tokio::test(start_paused = true)]
async fn months_that_cannot_be_read_never_look_like_a_limit_that_is_reached() {
    let shop = shop(Offer::Forever).await;
    let bought = shop.buy().await;
    let headers = narrowed(&bought, &["read_monthly_requests=1"]);
    for fault in [Fault::Fails, Fault::Hangs] {
        *shop.store.fault.lock() = Some(fault);
        let answer = answer(shop.get(&headers).await);
        assert_eq!((answer.status, answer.code), (StatusCode::SERVICE_UNAVAILABLE, Code::LedgerUnavailable));
        assert!(answer.retry_after.is_some() && !answer.headers.contains_key(header::WWW_AUTHENTICATE));
        check(&shop.get(&credential(&bought.0, &bought.1)).await, Code::Pass);
    }
    *shop.store.fault.lock() = None;
    serve(&shop, &headers).await;
    let hash = bought.0.identifier().unwrap().payment_hash;
    shop.paywall.ledger().flush().await.unwrap();
    let month = shop.paywall.ledger().month();
    assert_eq!(shop.store.uses(hash, month).await.unwrap()[0].used, 1);
}
