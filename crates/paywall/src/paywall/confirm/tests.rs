use std::sync::atomic::Ordering;

use farebox_protocol::{Macaroon, Preimage};
use http::{HeaderMap, StatusCode, header};

use super::*;
use crate::{
    Admission, Code, Keyring, PaywallConfig,
    store::{Arrival, Store as _},
    testing::{Fault, Mood, Node, Shop, config, credential, secret},
};

fn verifying() -> PaywallConfig {
    PaywallConfig { verify_settled: true, ..config() }
}

async fn shop() -> Shop {
    Shop::open_with(verifying(), Keyring::single(secret())).await
}

/// A token whose preimage is known, and nobody has paid.
async fn known_but_unpaid(shop: &Shop) -> (HeaderMap, PaymentHash) {
    let (macaroon, preimage): (Macaroon, Preimage) = shop.buy().await;
    (credential(&macaroon, &preimage), preimage.payment_hash())
}

fn looked_up(node: &Node) -> usize {
    node.looked_up.load(Ordering::SeqCst)
}

fn asked_of_the_store(shop: &Shop) -> usize {
    shop.store.asked.load(Ordering::SeqCst)
}

#[track_caller]
fn check_unconfirmed(admission: &Admission) {
    assert_eq!(admission.code(), Code::PaymentUnconfirmed, "{admission:?}");
    let Admission::Answer(answer) = admission else { panic!("{admission:?}") };
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.headers.contains_key(header::RETRY_AFTER));
    assert!(!answer.headers.contains_key(header::WWW_AUTHENTICATE));
}

#[tokio::test(start_paused = true)]
async fn where_nobody_wants_to_know_nobody_is_asked() {
    let shop = Shop::open().await;
    let (headers, _) = known_but_unpaid(&shop).await;
    let before = asked_of_the_store(&shop);
    assert_eq!(shop.get(&headers).await.code(), Code::Pass);
    assert_eq!((looked_up(&shop.node), asked_of_the_store(&shop)), (0, before));
}

#[tokio::test(start_paused = true)]
async fn a_preimage_whose_invoice_is_unpaid_opens_nothing_until_it_is_paid() {
    let shop = shop().await;
    let (headers, hash) = known_but_unpaid(&shop).await;
    let made = shop.node.asked.lock().len();
    let Admission::Answer(answer) = shop.get(&headers).await else { panic!("passed") };
    assert_eq!((answer.status, answer.code), (StatusCode::UNAUTHORIZED, Code::PaymentUnsettled));
    assert_eq!(shop.node.asked.lock().len(), made, "who may be about to pay is offered no other invoice");

    shop.node.settle(hash, 10_000);
    assert_eq!(shop.get(&headers).await.code(), Code::Pass);
    // What is remembered is the payment, not the request: nobody is asked from now on, whether they answer or not.
    let before = (looked_up(&shop.node), asked_of_the_store(&shop));
    *shop.node.mood.lock() = Mood::Down;
    *shop.store.fault.lock() = Some(Fault::Fails);
    for _ in 0..3 {
        assert_eq!(shop.get(&headers).await.code(), Code::Pass);
    }
    assert_eq!((looked_up(&shop.node), asked_of_the_store(&shop)), before);
}

#[tokio::test(start_paused = true)]
async fn a_buyer_may_be_quicker_than_the_sellers_node() {
    let shop = shop().await;
    let (headers, hash) = known_but_unpaid(&shop).await;
    let later = async {
        time::sleep(WRITING / 2).await;
        shop.node.settle(hash, 10_000);
    };
    let (admission, ()) = tokio::join!(shop.get(&headers), later);
    assert_eq!(admission.code(), Code::Pass);
}

#[tokio::test(start_paused = true)]
async fn what_is_on_the_books_needs_no_node() {
    let shop = shop().await;
    let (headers, hash) = known_but_unpaid(&shop).await;
    let settlement = farebox_lightning::Settlement {
        cursor: farebox_lightning::Cursor(1),
        hash,
        amount: farebox_protocol::Msat::new(10_000),
        at: crate::testing::START,
        description: None,
    };
    let arrival = Arrival { settlement, claimed: None };
    shop.store.settle("02aa", vec![arrival], farebox_lightning::Cursor(1)).await.unwrap();
    *shop.node.mood.lock() = Mood::Silent;
    assert_eq!(shop.get(&headers).await.code(), Code::Pass);
    assert_eq!(looked_up(&shop.node), 0);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_found_out_is_no_fault_of_the_token() {
    let shop = shop().await;
    let (headers, hash) = known_but_unpaid(&shop).await;
    for mood in [Mood::Down, Mood::Silent] {
        *shop.node.mood.lock() = mood;
        let (begun, limits) = (Instant::now(), verifying());
        check_unconfirmed(&shop.get(&headers).await);
        assert!(begun.elapsed() <= limits.store_timeout + limits.invoice_timeout, "{mood:?}");
    }
    *shop.node.mood.lock() = Mood::Well;
    for fault in [Fault::Fails, Fault::Hangs] {
        *shop.store.fault.lock() = Some(fault);
        check_unconfirmed(&shop.get(&headers).await);
    }
    // The node's word is enough.
    shop.node.settle(hash, 10_000);
    assert_eq!(shop.get(&headers).await.code(), Code::Pass);
}

#[tokio::test(start_paused = true)]
async fn of_several_nodes_one_that_was_paid_is_enough() {
    let (shop, nodes) = Shop::open_over(verifying(), &["03bb", "04cc"]).await;
    let (headers, hash) = known_but_unpaid(&shop).await;
    *nodes[0].mood.lock() = Mood::Silent;
    *nodes[2].mood.lock() = Mood::Down;
    check_unconfirmed(&shop.get(&headers).await);
    nodes[1].settle(hash, 10_000);
    let begun = Instant::now();
    assert_eq!(shop.get(&headers).await.code(), Code::Pass);
    assert!(begun.elapsed() < WRITING, "a silent node keeps nobody waiting");

    // Coins of another network are none.
    nodes.iter().for_each(|node| *node.mood.lock() = Mood::Well);
    let (headers, hash) = known_but_unpaid(&shop).await;
    nodes[1].settle(hash, 10_000);
    *nodes[1].network.lock() = farebox_protocol::Network::Testnet;
    check_unconfirmed(&shop.get(&headers).await);
}

#[tokio::test(start_paused = true)]
async fn nobody_is_asked_about_a_token_that_something_else_forbids() {
    let shop = shop().await;
    let (macaroon, _) = shop.buy().await;
    let wrong = credential(&macaroon, &Preimage::from_bytes([9; 32]));
    let before = asked_of_the_store(&shop);
    assert_eq!(shop.get(&wrong).await.code(), Code::PreimageWrong);
    assert_eq!((looked_up(&shop.node), asked_of_the_store(&shop)), (0, before));
}
