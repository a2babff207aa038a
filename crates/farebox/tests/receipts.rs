//! A receipt over real Lightning, by the program itself: bought with the buyer's node, signed by the seller's gateway, fetched
//! by the buyer and checked without either.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

#[path = "cli/common.rs"]
#[expect(dead_code, reason = "what other tests of commands need")]
mod common;

use std::{fs, path::Path, time::Duration};

use common::{Ran, run, run_with_input};
use farebox_paywall::store::sqlite::SqliteStore;
use farebox_protocol::PaymentHash;
use farebox_tests::{Challenge, Seller, ask_with};
use serde_json::Value;

const FAREBOX: &str = env!("CARGO_BIN_EXE_farebox");

/// Until the money of a payment, and what it bought, are on the books.
async fn booked(seller: &Seller, hash: PaymentHash) {
    let books = SqliteStore::open_to_inspect(&seller.dir.path().join("state/books.sqlite")).unwrap();
    let booked = async {
        loop {
            let entry = books.entry(hash).unwrap();
            if entry.is_some_and(|entry| entry.purchase.sold.is_some() && entry.purchase.is_settled()) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), booked).await.unwrap();
}

fn fetch(home: &Path, hash: PaymentHash, args: &[&str]) -> Ran {
    run(home, &[&["receipts", "fetch", &hash.to_string()], args].concat(), &[])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_tells_the_limits_by_the_month_that_were_bought() {
    let services = "  - name: api
    upstream: http://UPSTREAM
    price: 10sat
    capabilities: [{ name: all }]
    monthly: { all: { requests: 5 } }
receipts:
  seller: Weather Inc.
";
    let seller = Seller::with_services(FAREBOX, "[\"127.0.0.1:0\"]", services);
    let (_gateway, url) = seller.serve();
    let challenge = Challenge::ask(&url).await;
    let (hash, authorization) = (challenge.invoice.payment_hash(), challenge.pay().await);
    assert_eq!(ask_with(&url, &authorization).await.0, 200);
    booked(&seller, hash).await;

    let buyer = tempfile::tempdir().unwrap();
    let home = buyer.path();
    let held = run_with_input(home, &["tokens", "import", "-", "--origin", &url], &authorization);
    assert_eq!(held.code, 0, "{held:?}");
    let fetched = fetch(home, hash, &["-o", "receipt.txt"]);
    assert_eq!(fetched.code, 0, "{fetched:?}");
    let verified = run(home, &["receipt", "verify", "receipt.txt"], &[]);
    for told in [&fetched.stdout, &verified.stdout] {
        let told: Value = serde_json::from_str(told).unwrap();
        assert_eq!(
            told["monthly"],
            serde_json::json!([{ "capability": "all", "unit": "request", "most": 5 }])
        );
    }
    let verified = run(home, &["receipt", "verify", "receipt.txt", "--human"], &[]);
    assert!(verified.stdout.contains("limited to    at most 5 requests a month of `all`\n"), "{verified:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buyer_fetches_the_receipt_of_what_was_bought_and_anybody_can_check_it() {
    let seller = Seller::new(FAREBOX, "receipts:\n  seller: Weather Inc.\n");
    let (gateway, url) = seller.serve();
    let challenge = Challenge::ask(&url).await;
    let (hash, authorization) = (challenge.invoice.payment_hash(), challenge.pay().await);
    assert_eq!(ask_with(&url, &authorization).await.0, 200);
    booked(&seller, hash).await;

    let buyer = tempfile::tempdir().unwrap();
    let home = buyer.path();
    let held = run_with_input(home, &["tokens", "import", "-", "--origin", &url], &authorization);
    assert_eq!(held.code, 0, "{held:?}");
    let fetched = fetch(home, hash, &["-o", "receipt.txt"]);
    assert_eq!(fetched.code, 0, "{fetched:?}");
    let told: Value = serde_json::from_str(&fetched.stdout).unwrap();
    assert_eq!((&told["seller"], &told["paid_msat"]), (&"Weather Inc.".into(), &10_000.into()), "{told}");
    let key = told["key"].as_str().unwrap();
    let published = reqwest::get(format!("{url}/.well-known/farebox/receipt-key")).await.unwrap();
    assert_eq!(published.text().await.unwrap().trim(), key);
    gateway.kill();

    // Nobody is there any more, and nobody is needed.
    assert_eq!(fetch(home, hash, &[]).code, 1);
    let verified = run(home, &["receipt", "verify", "receipt.txt", "--key", key], &[]);
    assert_eq!(verified.code, 0, "{verified:?}");
    let row: Value = serde_json::from_str(&verified.stdout).unwrap();
    assert_eq!((&row["payment_hash"], &row["network"]), (&hash.to_string().into(), &"regtest".into()));

    // What the seller makes by hand says the same, by the same key, in the same name.
    let config = seller.dir.path().join("farebox.yaml").display().to_string();
    let by_hand = run(home, &["receipt", "make", &hash.to_string(), "--config", &config], &[]);
    let lines = |text: &str| -> Vec<String> {
        let kept = |line: &&str| !line.starts_with("issued-at: ") && !line.starts_with("signature: ");
        text.lines().filter(kept).map(str::to_owned).collect()
    };
    let receipt = fs::read_to_string(home.join("receipt.txt")).unwrap();
    assert_eq!(lines(&by_hand.stdout), lines(&receipt), "{by_hand:?}");
    let (token, preimage) = authorization.strip_prefix("L402 ").unwrap().split_once(':').unwrap();
    assert!(!receipt.contains(token) && !receipt.contains(preimage));
}
