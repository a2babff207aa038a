//! What rate limits do to requests. How they count is tested in `limit/rate`.

use std::net::Ipv4Addr;

use farebox_protocol::{Credential, Identifier, TokenId};

use super::*;
use crate::{LimitBy, RateLimit};

fn limit(by: LimitBy, count: u32) -> RateLimit {
    RateLimit { by, rate: Rate::per_minute(NonZeroU32::new(count).unwrap()), burst: None, paths: Vec::new() }
}

async fn limited_by(limit: RateLimit) -> Shop {
    let mut shop = Shop::open().await;
    shop.service.rate_limits = vec![limit];
    shop.service.free_paths = vec!["/free".parse().unwrap()];
    shop
}

#[tokio::test(start_paused = true)]
async fn a_token_that_comes_too_often_waits_as_long_as_it_is_told() {
    let shop = limited_by(limit(LimitBy::Token, 7)).await;
    let (macaroon, preimage) = shop.buy().await;
    let headers = credential(&macaroon, &preimage);
    for _ in 0..7 {
        check(&shop.get(&headers).await, Code::Pass);
    }
    for _ in 0..3 {
        let limited = answer(shop.get(&headers).await);
        assert_eq!((limited.status, limited.code), (StatusCode::TOO_MANY_REQUESTS, Code::RateLimited));
        assert_eq!(limited.headers[header::CACHE_CONTROL], "no-store");
        assert_eq!(limited.headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*");
        assert_eq!(limited.headers[crate::CODE_HEADER], "rate_limited");
        assert!(!limited.headers.contains_key(header::WWW_AUTHENTICATE), "there is nothing to pay");
        let body: serde_json::Value = serde_json::from_slice(&limited.body).unwrap();
        assert_eq!(body["code"], "rate_limited");
        assert_eq!(body["status"], 429);
        let wait: u64 = limited.headers[header::RETRY_AFTER].to_str().unwrap().parse().unwrap();
        assert_eq!(body["retry_after"], wait);
        assert!((8..=9).contains(&wait), "60 s / 7 is 8.6 s, and less where the wait before was rounded up");
        time::advance(Duration::from_secs(wait)).await;
        check(&shop.get(&headers).await, Code::Pass);
    }
}

#[tokio::test(start_paused = true)]
async fn a_grpc_call_that_comes_too_often_is_told_so_in_grpcs_own_way() {
    let shop = limited_by(limit(LimitBy::Client, 1)).await;
    let (headers, client) = (HeaderMap::new(), Ipv4Addr::LOCALHOST.into());
    let (service, method) = (&shop.service, &Method::POST);
    let request =
        Request { service, method, path: "/free", client, headers: &headers, query: None, grpc: true };
    check(&shop.paywall.admit(&request).await, Code::Free);
    let limited = answer(shop.paywall.admit(&request).await);
    assert_eq!((limited.status, limited.code), (StatusCode::OK, Code::RateLimited));
    assert_eq!(limited.headers["grpc-status"], "8", "RESOURCE_EXHAUSTED");
    assert_eq!(limited.headers["grpc-message"], Code::RateLimited.detail());
    assert_eq!(limited.headers[header::RETRY_AFTER], "60");
    assert!(limited.body.is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_has_not_paid_gets_a_challenge_and_is_counted_by_the_minting_budget_alone() {
    let shop = limited_by(limit(LimitBy::Service, 1)).await;
    let (macaroon, preimage) = shop.buy().await;
    let paid = credential(&macaroon, &preimage);
    let wrong = credential(&macaroon, &Preimage::from_bytes([9; 32]));
    for _ in 0..5 {
        check(&shop.get(&HeaderMap::new()).await, Code::PaymentRequired);
        check(&shop.get(&wrong).await, Code::PreimageWrong);
    }
    check(&shop.get(&paid).await, Code::Pass);
    check(&shop.get(&paid).await, Code::RateLimited);
    shop.challenge().await;
}

#[tokio::test(start_paused = true)]
async fn narrowed_copies_of_a_token_share_its_budget() {
    let shop = limited_by(limit(LimitBy::Token, 3)).await;
    let (macaroon, preimage) = shop.buy().await;
    let narrowed = macaroon.attenuate("farebox_method=GET").unwrap();
    check(&shop.get(&credential(&macaroon, &preimage)).await, Code::Pass);
    check(&shop.get(&credential(&narrowed, &preimage)).await, Code::Pass);
    check(&shop.get(&credential(&narrowed, &preimage)).await, Code::Pass);
    check(&shop.get(&credential(&macaroon, &preimage)).await, Code::RateLimited);
    check(&shop.get(&credential(&narrowed, &preimage)).await, Code::RateLimited);
}

#[tokio::test(start_paused = true)]
async fn of_several_tokens_the_one_that_opened_is_counted() {
    let shop = limited_by(limit(LimitBy::Token, 2)).await;
    let (good, preimage) = shop.buy().await;
    // Strangers' tokens before it change whom a forger could blame, if they were counted.
    let with_decoy = |number: u8| {
        let token_id = TokenId::from_bytes([number; 32]);
        let identifier = Identifier { token_id, ..good.identifier().unwrap() };
        let key = MintSecret::from_bytes([number; 32]).root_key(Network::Regtest, &identifier);
        let forged = Macaroon::mint(&key, &identifier, &[]);
        let credential = Credential { tokens: vec![forged, good.clone()], preimage: preimage.clone() };
        let value = credential.header_value(farebox_protocol::Scheme::L402);
        HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_str(&value).unwrap())])
    };
    check(&shop.get(&with_decoy(1)).await, Code::Pass);
    check(&shop.get(&with_decoy(2)).await, Code::Pass);
    check(&shop.get(&with_decoy(3)).await, Code::RateLimited);
}

#[tokio::test(start_paused = true)]
async fn head_is_counted_like_get() {
    let shop = limited_by(limit(LimitBy::Client, 2)).await;
    check(&shop.ask(&Method::HEAD, "/free", &HeaderMap::new()).await, Code::Free);
    check(&shop.ask(&Method::GET, "/free", &HeaderMap::new()).await, Code::Free);
    let limited = answer(shop.ask(&Method::HEAD, "/free", &HeaderMap::new()).await);
    assert_eq!(limited.code, Code::RateLimited);
    assert_eq!(limited.headers[header::RETRY_AFTER], "30");
    assert!(limited.body.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_open_service_is_limited_too() {
    let mut shop = limited_by(limit(LimitBy::Token, 2)).await;
    shop.service.auth = Auth::Off;
    check(&shop.get(&HeaderMap::new()).await, Code::Free);
    check(&shop.get(&HeaderMap::new()).await, Code::Free);
    check(&shop.get(&HeaderMap::new()).await, Code::RateLimited);
}

#[tokio::test(start_paused = true)]
async fn a_refused_request_is_not_booked_as_a_presentation() {
    let shop = limited_by(limit(LimitBy::Service, 1)).await;
    let (first, first_preimage) = shop.buy().await;
    let (second, second_preimage) = shop.buy().await;
    running(&shop.paywall, async {
        check(&shop.get(&credential(&second, &second_preimage)).await, Code::Pass);
        check(&shop.get(&credential(&first, &first_preimage)).await, Code::RateLimited);
        until_true(|| shop.paywall.health().presentations_booked == 1).await;
    })
    .await;
    assert!(shop.store.purchase(first.identifier().unwrap().payment_hash).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn when_more_come_than_are_counted_apart_the_operator_can_see_it() {
    let few = PaywallConfig { rate_subjects_max: 1, ..config() };
    let mut shop = Shop::open_with(few, Keyring::single(secret())).await;
    shop.service.auth = Auth::Off;
    shop.service.rate_limits = vec![limit(LimitBy::Client, 1)];
    let headers = HeaderMap::new();
    let ask = async |last| {
        let client: IpAddr = Ipv4Addr::new(192, 0, 2, last).into();
        let method = &Method::GET;
        let request = Request {
            service: &shop.service,
            method,
            path: "/",
            client,
            headers: &headers,
            query: None,
            grpc: false,
        };
        shop.paywall.admit(&request).await.code()
    };
    assert_eq!(ask(1).await, Code::Free);
    assert_eq!(shop.paywall.health().rate_limits_overflowed, 0);
    assert_eq!(ask(2).await, Code::Free);
    assert_eq!(ask(3).await, Code::RateLimited, "it shares with the second");
    assert_eq!(shop.paywall.health().rate_limits_overflowed, 2);
}
