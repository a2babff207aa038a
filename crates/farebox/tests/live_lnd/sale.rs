//! What is sold through a real lnd is paid from another, served and booked, whatever becomes of the gateway meanwhile.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use farebox_tests::{Challenge, Lnd, Program, Seller, ask_with, peers, regtest};

use crate::{FAREBOX, books};

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

/// A macaroon of the five calls that being paid takes, made by the very command that farebox prints.
fn baked(lnd: &Lnd) -> PathBuf {
    let macaroon = lnd.macaroon("five");
    let printed = Command::new(FAREBOX)
        .args(["lnd", "bake", "--network", "regtest", "--lnddir"])
        .arg(lnd.dir())
        .arg("--save-to")
        .arg(&macaroon)
        .output()
        .unwrap();
    assert!(printed.status.success(), "{printed:?}");
    let command = String::from_utf8(printed.stdout).unwrap();
    assert_eq!(command.matches("uri:/").count(), 5, "{command}");
    let run = Command::new("sh")
        .args(["-c", &command])
        .env("PATH", format!("{}:/usr/bin:/bin", peers("lnd").display()))
        .env("HOME", lnd.dir())
        .env("LNCLI_RPCSERVER", lnd.rpc())
        .output()
        .unwrap();
    assert!(run.status.success(), "{command}{run:?}");
    macaroon
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: needs Go"]
async fn a_live_check_says_who_the_node_is_and_advises_it() {
    let regtest = regtest().await;
    let lnd = &regtest.seller;
    let seller = Seller::with_lnd(FAREBOX, lnd, &lnd.macaroon("invoice"), "");
    let told = Command::new(FAREBOX)
        .args(["check", "--live", "--json"])
        .arg(seller.dir.path().join("farebox.yaml"))
        .output()
        .unwrap();
    let report: serde_json::Value =
        serde_json::from_slice(&told.stdout).unwrap_or_else(|_| panic!("{told:?}"));
    let node = &report["live"][0];
    assert_eq!((&node["what"], &node["ok"]), (&"lnd".into(), &true.into()), "{report}");
    assert!(node["found"].as_str().unwrap().contains(lnd.node()), "{report}");
    assert!(node["advice"][0].as_str().unwrap().contains("gc-canceled-invoices-on-the-fly"), "{report}");
    assert_eq!(report["valid"], true, "the upstream takes connections, too: {report}");

    let locked_out = Seller::with_lnd(FAREBOX, lnd, &lnd.macaroon("readonly"), "");
    let told = Command::new(FAREBOX)
        .args(["check", "--live", "--human"])
        .arg(locked_out.dir.path().join("farebox.yaml"))
        .output()
        .unwrap();
    assert_eq!(told.status.code(), Some(1), "{told:?}");
}

/// Starts a gateway and waits until it can sell: the process, and its address.
pub(crate) async fn open(seller: &Seller) -> (Program, String) {
    let (gateway, addrs) = seller.serve_ready().await;
    (gateway, format!("http://{}", addrs[0]))
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
    check(&regtest.buyer, &regtest.seller, &baked(&regtest.seller)).await;
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
async fn who_has_a_preimage_from_the_nodes_own_books_is_served_once_it_is_paid() {
    let regtest = regtest().await;
    let lnd = &regtest.seller;
    let verifying = "minting: { verify-settled: true }\n";
    let seller = Seller::with_lnd(FAREBOX, lnd, &lnd.macaroon("invoice"), verifying);
    let (_gateway, url) = open(&seller).await;
    let challenge = Challenge::ask(&url).await;
    let hash = challenge.invoice.payment_hash();
    let preimage = lnd.preimage(&challenge.invoice).await;
    assert!(preimage.pays(&hash));
    let authorization = challenge.authorization(&preimage);
    let (status, body) = ask_with(&url, &authorization).await;
    assert_eq!(status.as_u16(), 401, "{body}");
    assert!(body.contains("payment_unsettled"), "{body}");
    assert_eq!((seller.upstream.served(), books::row(&seller, hash)), (0, None));

    regtest.buyer.pay(&challenge.invoice).await;
    assert_eq!(ask_with(&url, &authorization).await.0, 200);
    books::until(Some(books::sold_once()), || books::row(&seller, hash)).await;

    // Where nobody asks for it, the preimage is proof enough.
    let seller = Seller::with_lnd(FAREBOX, lnd, &lnd.macaroon("invoice"), "");
    let (_gateway, url) = open(&seller).await;
    let challenge = Challenge::ask(&url).await;
    let authorization = challenge.authorization(&lnd.preimage(&challenge.invoice).await);
    assert_eq!(ask_with(&url, &authorization).await.0, 200);
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
