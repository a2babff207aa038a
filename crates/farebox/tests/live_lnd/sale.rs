//! What is sold through a real lnd is paid from another, served and booked, whatever becomes of the gateway meanwhile.

use std::path::Path;

use farebox_tests::{Challenge, Lnd, Program, Seller, ask_with, regtest};

use crate::{FAREBOX, books};

/// All that being paid takes.
const FIVE: &[&str] = &[
    "/lnrpc.Lightning/AddInvoice",
    "/lnrpc.Lightning/LookupInvoice",
    "/lnrpc.Lightning/SubscribeInvoices",
    "/lnrpc.Lightning/DeleteCanceledInvoice",
    "/invoicesrpc.Invoices/CancelInvoice",
];

async fn check(buyer: &Lnd, lnd: &Lnd, macaroon: &Path) {
    let seller = Seller::with_lnd(FAREBOX, lnd, macaroon, "");
    let (gateway, url) = open(&seller).await;
    let challenge = Challenge::ask(&url).await;
    let hash = challenge.invoice.payment_hash();
    assert_eq!(books::row(&seller, hash), None);
    let authorization = challenge.authorization(&buyer.pay(&challenge.invoice).await);
    let (status, body) = ask_with(&url, &authorization).await;
    assert_eq!((status.as_u16(), body.as_str()), (200, "served /"));
    books::until(Some(books::sold_once()), || books::row(&seller, hash)).await;

    // Paid before the restart, first used after it.
    let unused = Challenge::ask(&url).await;
    let later = unused.authorization(&buyer.pay(&unused.invoice).await);
    let (code, _) = gateway.interrupt();
    assert_eq!(code, Some(0));
    let (_gateway, url) = seller.serve();
    for authorization in [&authorization, &later] {
        assert_eq!(ask_with(&url, authorization).await.0, 200);
    }
    for hash in [hash, unused.invoice.payment_hash()] {
        books::until(Some(books::sold_once()), || books::row(&seller, hash)).await;
    }
    assert_eq!(books::counts(&seller), (2, 2), "two payments, each booked once");
    assert_eq!(seller.upstream.served(), 3);
}

/// Starts a gateway and waits until it can sell: it may not have spoken to its node yet when it begins to listen.
pub(crate) async fn open(seller: &Seller) -> (Program, String) {
    let (gateway, told) = seller.serve_told();
    let ready = format!("{}/readyz", told["ops"].as_str().unwrap());
    let opening = async {
        while reqwest::get(&ready).await.unwrap().status() != 200 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), opening).await.unwrap();
    (gateway, format!("http://{}", told["listen"][0].as_str().unwrap()))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: needs Go"]
async fn what_is_paid_is_served_and_booked_once_with_lnds_own_invoice_macaroon() {
    let regtest = regtest().await;
    check(&regtest.buyer, &regtest.seller, &regtest.seller.macaroon("invoice")).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: needs Go"]
async fn what_is_paid_is_served_and_booked_once_with_five_permissions() {
    let regtest = regtest().await;
    let five = regtest.seller.bake("five", FIVE).await;
    check(&regtest.buyer, &regtest.seller, &five).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: needs Go"]
async fn the_first_settlement_ever_is_booked_though_nobody_was_listening() {
    let regtest = regtest().await;
    let lnd = regtest.another("first", &[]).await;
    let seller = Seller::with_lnd(FAREBOX, &lnd, &lnd.macaroon("invoice"), "");
    let (gateway, url) = open(&seller).await;
    let challenge = Challenge::ask(&url).await;
    gateway.kill();
    let preimage = regtest.buyer.pay(&challenge.invoice).await;

    let (_gateway, url) = seller.serve();
    let hash = challenge.invoice.payment_hash();
    books::until(Some((1, 10_000)), || books::row(&seller, hash).map(|row| (row.payments, row.paid_msat)))
        .await;
    assert_eq!(books::cursor(&seller), 1);
    assert_eq!(ask_with(&url, &challenge.authorization(&preimage)).await.0, 200);
    books::until(Some(books::sold_once()), || books::row(&seller, hash)).await;
    assert_eq!(books::counts(&seller), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: needs Go"]
async fn what_the_node_is_paid_for_by_others_is_passed_over() {
    let regtest = regtest().await;
    let lnd = regtest.another("shared", &[]).await;
    let seller = Seller::with_lnd(FAREBOX, &lnd, &lnd.macaroon("invoice"), "");
    let (_gateway, url) = open(&seller).await;
    let ours = Challenge::ask(&url).await;
    for memo in ["", "coffee", "farebox api"] {
        let theirs = lnd.invoice(10_000, memo).await;
        regtest.buyer.pay(&theirs).await;
    }
    regtest.buyer.pay(&ours.invoice).await;
    books::until(4, || books::cursor(&seller)).await;
    assert_eq!(books::counts(&seller), (1, 1));
    let row = books::row(&seller, ours.invoice.payment_hash()).unwrap();
    assert_eq!((row.paid_msat, row.payments), (10_000, 1));
}
