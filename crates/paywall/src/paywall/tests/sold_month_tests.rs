//! Limits by the month that a seller sells: signed, told before they are paid for, kept; and what holders say of capabilities.

use farebox_protocol::{Monthly, Sale, caveat::Most};

use super::{tier_tests::with_tiers, *};
use crate::price::Ending;

const READ: Method = Method::GET;
const WRITE: Method = Method::POST;

fn requests(capability: &str, most: u64) -> Monthly {
    Monthly { capability: capability.parse().unwrap(), most: Most::Requests(most) }
}

/// Reading is cheap and limited, writing dear and limited to more.
async fn shop() -> Shop {
    let mut shop = Shop::open().await;
    with_tiers(&mut shop.service);
    shop.service.menu.monthly = vec![requests("read", 2)];
    shop.service.menu.tiers[0].offers[0].monthly = vec![requests("read", 4), requests("write", 1)];
    assert_eq!(shop.service.validate(), Ok(()));
    shop
}

/// The token that such a request is asked to pay for, as headers that show it paid; the token; and what the answer said.
async fn buy(
    shop: &Shop,
    method: &Method,
    headers: &HeaderMap,
) -> (HeaderMap, Macaroon, Preimage, serde_json::Value) {
    let answer = answer(shop.ask(method, "/x", headers).await);
    assert_eq!(answer.status, StatusCode::PAYMENT_REQUIRED, "{answer:?}");
    let (macaroon, invoice) = read_challenge(&answer);
    let preimage = shop.node.preimage(&invoice.payment_hash());
    let body = serde_json::from_slice(&answer.body).unwrap();
    (credential(&macaroon, &preimage), macaroon, preimage, body)
}

/// Is served so many times, and then refused for the month.
async fn used_up_after(shop: &Shop, method: &Method, headers: &HeaderMap, times: u64) {
    for _ in 0..times {
        let Admission::Pass(_, Some(mut bill)) = shop.ask(method, "/x", headers).await else { panic!() };
        bill.sent();
        bill.end(Ending::Whole);
    }
    let refused = answer(shop.ask(method, "/x", headers).await);
    assert_eq!((refused.status, refused.code), (StatusCode::PAYMENT_REQUIRED, Code::LimitReached));
}

#[tokio::test(start_paused = true)]
async fn what_is_sold_with_a_limit_says_so_and_is_kept_to_it() {
    let shop = shop().await;
    let (headers, token, _, body) = buy(&shop, &READ, &HeaderMap::new()).await;
    let told = serde_json::json!([{ "capability": "read", "unit": "request", "most": 2 }]);
    assert_eq!(body["monthly"], told);
    assert_eq!((&body["offers"][0]["monthly"], body["offers"][1].get("monthly")), (&told, None));
    assert!(token.caveats().any(|caveat| caveat == "read_monthly_requests=2"), "{token:?}");
    let invoice: farebox_protocol::Invoice = body["invoice"].as_str().unwrap().parse().unwrap();
    let description = invoice.description().unwrap();
    assert!(description.starts_with("weather: access without end, limited by the month ["), "{description}");

    used_up_after(&shop, &READ, &headers, 2).await;
    // Another purchase has months of its own, and the next month is another.
    let (again, ..) = buy(&shop, &READ, &headers).await;
    used_up_after(&shop, &READ, &again, 2).await;
    shop.clock.set(shop.paywall.ledger().month().ends_at());
    used_up_after(&shop, &READ, &headers, 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_was_sold_stays_whatever_is_sold_today() {
    let mut shop = shop().await;
    let (headers, token, preimage, _) = buy(&shop, &READ, &HeaderMap::new()).await;
    shop.service.menu.monthly.clear();
    used_up_after(&shop, &READ, &headers, 2).await;
    shop.service.menu.monthly = vec![requests("read", 9)];
    used_up_after(&shop, &READ, &headers, 0).await;
    // A holder makes it less and never more.
    token.attenuate("read_monthly_requests=3").unwrap_err();
    let lent = token.attenuate("read_monthly_requests=1").unwrap();
    used_up_after(&shop, &READ, &credential(&lent, &preimage), 0).await;
    let (unlimited, ..) = buy(&shop, &READ, &HeaderMap::new()).await;
    used_up_after(&shop, &READ, &unlimited, 9).await;
}

#[tokio::test(start_paused = true)]
async fn a_better_token_begins_its_months_anew_and_ends_the_older_one() {
    let shop = shop().await;
    let (older, ..) = buy(&shop, &READ, &HeaderMap::new()).await;
    used_up_after(&shop, &READ, &older, 2).await;
    let mut upgrading = older.clone();
    upgrading.insert(UPGRADE_HEADER, HeaderValue::from_static("true"));
    let (better, token, _, body) = buy(&shop, &WRITE, &upgrading).await;
    assert!(body["replaces"].is_string(), "one that is limited is whole: {body}");
    assert_eq!(Sale::of(&token).unwrap().monthly, [requests("read", 4), requests("write", 1)]);
    used_up_after(&shop, &WRITE, &better, 1).await;
    used_up_after(&shop, &READ, &better, 4).await;
    check(&shop.ask(&READ, "/x", &older).await, Code::TokenRevoked);
}

#[tokio::test(start_paused = true)]
async fn who_holds_a_limited_token_as_it_was_sold_holds_the_whole() {
    let shop = shop().await;
    let (headers, token, preimage, _) = buy(&shop, &READ, &HeaderMap::new()).await;
    assert!(shop.paywall.holder(&headers).is_ok());
    let lent = token.attenuate("read_monthly_requests=2").unwrap();
    assert!(shop.paywall.holder(&credential(&lent, &preimage)).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_limit_for_a_capability_that_is_not_there_is_never_passed_over() {
    let mut shop = shop().await;
    let (_, token, preimage, _) = buy(&shop, &READ, &HeaderMap::new()).await;
    let narrowed = |caveat: &str| credential(&token.attenuate(caveat).unwrap(), &preimage);
    for mistyped in ["raed_monthly_requests=1", "raed_monthly_volume_sats=1", "raed_valid_until=4000000000"] {
        // The second time from memory.
        for _ in 0..2 {
            let refused = answer(shop.ask(&READ, "/x", &narrowed(mistyped)).await);
            assert_eq!((refused.status, refused.code), (StatusCode::PAYMENT_REQUIRED, Code::CaveatUnknown));
        }
    }
    check(&shop.ask(&READ, "/x", &narrowed("write_monthly_requests=1")).await, Code::Pass);
    check(&shop.ask(&READ, "/x", &narrowed("weather_valid_until=4000000000")).await, Code::Pass);

    // The seller calls it something else: what the mint wrote is given up, what a holder relies on is not.
    shop.service.menu = crate::Menu::default();
    let (plain, paid) = shop.buy().await;
    let lent = plain.attenuate("read_monthly_requests=1").unwrap();
    check(&shop.get(&credential(&lent, &paid)).await, Code::CaveatUnknown);
    check(&shop.get(&credential(&plain, &paid)).await, Code::Pass);
}

#[tokio::test(start_paused = true)]
async fn what_the_seller_has_given_up_is_limited_no_more() {
    let mut shop = Shop::open().await;
    let all = crate::Capability { name: "all".parse().unwrap(), methods: Vec::new(), paths: Vec::new() };
    shop.service.menu.capabilities = vec![all];
    shop.service.menu.monthly = vec![requests("all", 1)];
    assert_eq!(shop.service.validate(), Ok(()));
    let (headers, ..) = buy(&shop, &READ, &HeaderMap::new()).await;
    used_up_after(&shop, &READ, &headers, 1).await;
    shop.service.menu = crate::Menu::default();
    for _ in 0..3 {
        let Admission::Pass(_, None) = shop.ask(&READ, "/x", &headers).await else {
            panic!("paid for is paid for")
        };
    }
}
