//! lnd goes away, is locked, or shows another certificate: what was paid for goes on, new sales wait, and nothing that was
//! paid meanwhile is missed or booked twice.

use std::{fs, path::PathBuf, time::Duration};

use farebox_protocol::PaymentHash;
use farebox_tests::{Challenge, Lnd, Program, Seller, Shared, ask_with, regtest, until};
use http::StatusCode;
use reqwest::header::RETRY_AFTER;
use serde_json::Value;
use tokio::time::{Instant, timeout};

use crate::{FAREBOX, books};

/// How long the gateway may take to say that it can't sell, and how long to sell again once the node is ready. Both take it
/// five seconds at most, of its own: how long it did take is printed, to be read where the machine has nothing else to do.
/// What fails is what would still be wrong on a busy one.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// These tests ask often.
const MINTING: &str = "minting: { per-client: 1000000/s, total: 1000000/s }\n";

/// A gateway in front of a node of its own, with one token sold.
struct Shop {
    regtest: Shared,
    lnd: Lnd,
    seller: Seller,
    gateway: Option<Program>,
    url: String,
    ops: String,
    /// What the gateway reads as lnd's certificate: a copy.
    cert: PathBuf,
    authorization: String,
    sold: Vec<PaymentHash>,
}

impl Shop {
    async fn open(name: &str) -> Self {
        let regtest = regtest().await;
        let lnd = regtest.another(name, &[]).await;
        let seller = Seller::with_lnd(FAREBOX, &lnd, &lnd.macaroon("invoice"), MINTING);
        let cert = seller.dir.path().join("lnd.cert");
        fs::copy(lnd.cert(), &cert).unwrap();
        let config = seller.dir.path().join("farebox.yaml");
        let text = fs::read_to_string(&config).unwrap();
        let text = text.replace(&lnd.cert().display().to_string(), &cert.display().to_string());
        fs::write(&config, text).unwrap();
        let (gateway, told) = seller.serve_told();
        let url = format!("http://{}", told["listen"][0].as_str().unwrap());
        let ops = told["ops"].as_str().unwrap().to_owned();
        let challenge = challenge(&url).await;
        let authorization = challenge.authorization(&regtest.buyer.pay(&challenge.invoice).await);
        assert_eq!(ask_with(&url, &authorization).await.0, 200);
        let sold = vec![challenge.invoice.payment_hash()];
        Self { regtest, lnd, seller, gateway: Some(gateway), url, ops, cert, authorization, sold }
    }

    /// Whether it could sell, and if not, why.
    async fn ready(&self) -> (StatusCode, String) {
        let response = reqwest::get(format!("{}/readyz", self.ops)).await.unwrap();
        let status = response.status();
        let said: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
        assert_eq!(said["paid_access"], true);
        (status, said["reasons"].to_string())
    }

    /// New sales are refused and say when to come back, what was paid for is served, and `readyz` says why, in such words.
    async fn check_closed(&self, why: &str) {
        let closed = async {
            loop {
                let asked = Instant::now();
                let response = reqwest::get(&self.url).await.unwrap();
                if response.status() == StatusCode::SERVICE_UNAVAILABLE {
                    return (response, asked.elapsed());
                }
                // Up to the moment in which the node went.
                assert_eq!(response.status(), StatusCode::PAYMENT_REQUIRED);
            }
        };
        let (response, took) = timeout(ANSWER_MAX, closed).await.unwrap();
        println!("refuses within {} ms", took.as_millis());
        let wait: u32 = response.headers()[RETRY_AFTER].to_str().unwrap().parse().unwrap();
        assert!(wait > 0);
        assert_eq!(ask_with(&self.url, &self.authorization).await.0, 200);
        until(&format!("readyz says `{why}`"), async || {
            let (status, reasons) = self.ready().await;
            status == StatusCode::SERVICE_UNAVAILABLE && reasons.contains(why)
        })
        .await;
    }

    /// It sells again soon, by itself.
    async fn check_resumed(&self) {
        let ready = Instant::now();
        let challenge = timeout(ANSWER_MAX, challenge(&self.url)).await;
        let took = ready.elapsed();
        assert!(
            challenge.is_ok(),
            "nothing is sold {took:?} after the node was ready: {:?}",
            self.ready().await
        );
        println!("sells again {} ms after the node is ready", took.as_millis());
        until("readyz says so, too", async || self.ready().await.0 == StatusCode::OK).await;
    }

    /// Asks for one more token, to be paid whenever the test likes.
    async fn ask(&mut self) -> Challenge {
        let challenge = challenge(&self.url).await;
        self.sold.push(challenge.invoice.payment_hash());
        challenge
    }

    /// Pays it as soon as there is a way.
    async fn pay(&self, challenge: &Challenge) -> String {
        self.regtest.until_payable(&self.lnd).await;
        challenge.authorization(&self.regtest.buyer.pay(&challenge.invoice).await)
    }

    /// Everything that was paid is on the books once.
    async fn check_books(&self) {
        let count = u64::try_from(self.sold.len()).unwrap();
        for hash in &self.sold {
            let paid = || books::row(&self.seller, *hash).map(|row| (row.payments, row.paid_msat));
            books::until(Some((1, 10_000)), paid).await;
        }
        assert_eq!(books::counts(&self.seller), (count, count));
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: needs Go"]
async fn a_node_that_is_stopped_stops_new_sales_until_it_is_back() {
    let mut shop = Shop::open("stopped").await;
    for _ in 0..2 {
        let earlier = shop.ask().await;
        shop.lnd.stop().await;
        shop.check_closed("can't be reached").await;
        shop.lnd.start().await;
        shop.check_resumed().await;
        let authorization = shop.pay(&earlier).await;
        assert_eq!(ask_with(&shop.url, &authorization).await.0, 200);
        shop.check_books().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: needs Go"]
async fn a_locked_wallet_stops_new_sales_until_it_is_opened() {
    let mut shop = Shop::open("locked").await;
    let earlier = shop.ask().await;
    shop.lnd.stop().await;
    shop.lnd.start_locked().await;
    assert_eq!(shop.lnd.state().await, "LOCKED");
    shop.check_closed("locked").await;
    shop.lnd.unlock().await;
    shop.lnd.until_serving().await;
    shop.check_resumed().await;
    let authorization = shop.pay(&earlier).await;
    assert_eq!(ask_with(&shop.url, &authorization).await.0, 200);
    shop.check_books().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: needs Go"]
async fn a_new_certificate_stops_new_sales_until_the_gateway_is_given_it() {
    let mut shop = Shop::open("renewed").await;
    let earlier = shop.ask().await;
    shop.lnd.stop().await;
    shop.lnd.drop_certificate();
    shop.lnd.start().await;
    shop.check_closed("another certificate").await;
    // The node is paid while the gateway can't see it.
    let authorization = shop.pay(&earlier).await;
    assert_eq!(ask_with(&shop.url, &authorization).await.0, 200);
    fs::copy(shop.lnd.cert(), &shop.cert).unwrap();
    shop.check_resumed().await;
    shop.check_books().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: needs Go"]
async fn a_gateway_whose_node_is_down_starts_and_sells_once_it_is_up() {
    let mut shop = Shop::open("late").await;
    shop.lnd.stop().await;
    let (code, _) = shop.gateway.take().unwrap().interrupt();
    assert_eq!(code, Some(0));

    let (_gateway, url) = shop.seller.serve();
    assert_eq!(ask_with(&url, &shop.authorization).await.0, 200);
    assert_eq!(reqwest::get(&url).await.unwrap().status(), 503);
    shop.lnd.start().await;
    let challenge = timeout(ANSWER_MAX, challenge(&url)).await.unwrap();
    shop.sold.push(challenge.invoice.payment_hash());
    shop.pay(&challenge).await;
    shop.check_books().await;
}

/// Asks until it is told what to pay.
async fn challenge(url: &str) -> Challenge {
    loop {
        let response = reqwest::get(url).await.unwrap();
        if response.status() != StatusCode::SERVICE_UNAVAILABLE {
            assert_eq!(response.status(), StatusCode::PAYMENT_REQUIRED);
            return Challenge::read(response.headers());
        }
    }
}
