//! A better token in the place of one that is held.

use std::sync::atomic::Ordering;

use super::{tier_tests::with_tiers, *};

const READ: Method = Method::GET;
const WRITE: Method = Method::POST;

/// A shop with a dear tier, and a cheap token of it.
async fn shop() -> (Shop, Macaroon, Preimage) {
    let mut shop = Shop::open().await;
    with_tiers(&mut shop.service);
    let (macaroon, preimage) = shop.buy().await;
    (shop, macaroon, preimage)
}

/// A credential, with the wish for more.
fn upgrading(macaroon: &Macaroon, preimage: &Preimage) -> HeaderMap {
    let mut headers = credential(macaroon, preimage);
    headers.insert(UPGRADE_HEADER, HeaderValue::from_static("true"));
    headers
}

async fn code(shop: &Shop, method: &Method, token: (&Macaroon, &Preimage)) -> Code {
    shop.ask(method, "/x", &credential(token.0, token.1)).await.code()
}

/// What such a request is asked to pay for, and the proof that it was paid.
async fn offered(shop: &Shop, headers: &HeaderMap) -> (Macaroon, Preimage, serde_json::Value) {
    let answer = answer(shop.ask(&WRITE, "/x", headers).await);
    let (macaroon, invoice) = read_challenge(&answer);
    let problem = serde_json::from_slice(&answer.body).unwrap();
    (macaroon, shop.node.preimage(&invoice.payment_hash()), problem)
}

#[tokio::test(start_paused = true)]
async fn a_better_token_keeps_the_id_and_ends_the_older_one_when_it_is_first_used() {
    let (shop, older, paid) = shop().await;
    let (better, proof, problem) = offered(&shop, &upgrading(&older, &paid)).await;
    let (was, is) = (older.identifier().unwrap(), better.identifier().unwrap());
    assert_eq!(is.token_id, was.token_id);
    assert_ne!(is.payment_hash, was.payment_hash);
    assert_eq!(problem["replaces"], was.token_id.to_string());
    assert_eq!((&problem["code"], &problem["price_msat"]), (&"tier_outgrown".into(), &500_000.into()));

    assert_eq!(
        code(&shop, &READ, (&older, &paid)).await,
        Code::Pass,
        "it is good until the better one is used"
    );
    assert_eq!(code(&shop, &WRITE, (&better, &paid)).await, Code::PreimageWrong);
    assert_eq!(code(&shop, &READ, (&older, &paid)).await, Code::Pass);
    for method in [WRITE, READ] {
        assert_eq!(code(&shop, &method, (&better, &proof)).await, Code::Pass);
        assert_eq!(code(&shop, &READ, (&older, &paid)).await, Code::TokenRevoked);
    }
    let asked = shop.store.asked.load(Ordering::SeqCst);
    assert_eq!(code(&shop, &WRITE, (&better, &proof)).await, Code::Pass);
    assert_eq!(shop.store.asked.load(Ordering::SeqCst), asked, "it is revoked once");
    let again = Shop { paywall: shop.reopen(Keyring::single(secret())).await, ..shop };
    assert_eq!(code(&again, &READ, (&older, &paid)).await, Code::TokenRevoked);
    assert_eq!(code(&again, &READ, (&better, &proof)).await, Code::Pass);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_replaced_unless_its_holder_asks_and_holds_the_whole() {
    let (mut shop, older, paid) = shop().await;
    let is_new = async |shop: &Shop, headers: &HeaderMap| {
        let (other, _, problem) = offered(shop, headers).await;
        assert!(!other.caveats().any(|caveat| caveat.starts_with("farebox_replaces")));
        other.identifier().unwrap().token_id != older.identifier().unwrap().token_id
            && problem.get("replaces").is_none()
    };
    assert!(is_new(&shop, &credential(&older, &paid)).await);
    let mut other_word = upgrading(&older, &paid);
    other_word.insert(UPGRADE_HEADER, HeaderValue::from_static("yes"));
    assert!(is_new(&shop, &other_word).await);
    let lent = older.attenuate("farebox_method=GET,POST").unwrap();
    assert!(is_new(&shop, &upgrading(&lent, &paid)).await);
    let mut unpaid = HeaderMap::new();
    unpaid.insert(UPGRADE_HEADER, HeaderValue::from_static("true"));
    assert!(is_new(&shop, &unpaid).await);
    shop.paywall.revoke(older.identifier().unwrap().hash(), "test").await.unwrap();
    assert!(is_new(&shop, &upgrading(&older, &paid)).await);

    shop.service.offer = Offer::Requests(5.try_into().unwrap());
    let (counted, proof) = shop.buy().await;
    assert!(is_new(&shop, &upgrading(&counted, &proof)).await, "what is left of it would be lost");
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_more_than_is_needed_is_served_with_what_is_there() {
    let (shop, older, paid) = shop().await;
    check(&shop.ask(&READ, "/x", &upgrading(&older, &paid)).await, Code::Pass);
}

#[tokio::test(start_paused = true)]
async fn books_that_fail_keep_nobody_from_what_was_bought_and_the_older_one_ends_at_last() {
    let (shop, older, paid) = shop().await;
    let (better, proof, _) = offered(&shop, &upgrading(&older, &paid)).await;
    for fault in [Fault::Fails, Fault::Hangs] {
        *shop.store.fault.lock() = Some(fault);
        assert_eq!(code(&shop, &WRITE, (&better, &proof)).await, Code::Pass);
        assert_eq!(code(&shop, &READ, (&older, &paid)).await, Code::TokenRevoked);
    }
    *shop.store.fault.lock() = None;
    let again = Shop { paywall: shop.reopen(Keyring::single(secret())).await, ..shop };
    assert_eq!(code(&again, &READ, (&older, &paid)).await, Code::Pass, "it could not be written");
    assert_eq!(code(&again, &READ, (&better, &proof)).await, Code::Pass);
    let again = Shop { paywall: again.reopen(Keyring::single(secret())).await, ..again };
    assert_eq!(code(&again, &READ, (&older, &paid)).await, Code::TokenRevoked);
}
