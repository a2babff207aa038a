//! What takes minutes: `cargo xtask prove lnd-flood`, `cargo xtask prove lnd-history`.

use std::time::Duration;

use farebox_tests::{Lnd, Program, Seller, regtest};
use futures_util::{StreamExt as _, stream};
use reqwest::header::{HeaderMap, HeaderValue};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::{FAREBOX, books, flood};

/// How many are asked for, or paid, at once.
const AT_ONCE: usize = 32;
/// What lies behind the node: paid, open for a year, and expired, which lnd calls cancelled.
const SETTLED: usize = 5_000;
const OPEN: usize = 100_000;
const EXPIRED: usize = 95_000;
/// How long a gateway may take to start.
const START_MAX: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "prove: takes minutes; `cargo xtask prove lnd-flood`"]
async fn twenty_thousand_unpaid_challenges_write_nothing_and_leave_nothing_in_lnd() {
    flood::check("drowned", 20_000, 60).await;
}

/// Makes so many invoices that can be paid for `secs`, and answers their texts.
async fn make(lnd: &Lnd, count: usize, secs: u64) -> Vec<String> {
    let macaroon = hex::encode(std::fs::read(lnd.macaroon("admin")).unwrap());
    let mut headers = HeaderMap::new();
    headers.insert("Grpc-Metadata-macaroon", HeaderValue::from_str(&macaroon).unwrap());
    let client = reqwest::Client::builder().danger_accept_invalid_certs(true).default_headers(headers);
    let client = client.build().unwrap();
    let url = format!("{}/v1/invoices", lnd.rest());
    let wanted = json!({ "value_msat": "1000", "memo": "somebody else's", "expiry": secs.to_string() });
    let making = stream::iter(0..count).map(|_| async {
        let made = client.post(&url).json(&wanted).send().await.unwrap();
        let made: Value = serde_json::from_str(&made.text().await.unwrap()).unwrap();
        made["payment_request"].as_str().unwrap().to_owned()
    });
    making.buffer_unordered(AT_ONCE).collect().await
}

/// Starts the gateway: how long until it listens, and until it can sell.
async fn start(seller: &Seller) -> (Program, Duration, Duration) {
    let begun = Instant::now();
    let (gateway, told) = seller.serve_told();
    let listening = begun.elapsed();
    let ready = format!("{}/readyz", told["ops"].as_str().unwrap());
    let opening = async {
        while reqwest::get(&ready).await.unwrap().status() != 200 {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(60), opening).await.unwrap();
    (gateway, listening, begun.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "prove: takes minutes; `cargo xtask prove lnd-history`"]
async fn a_long_history_behind_the_node_does_not_delay_the_start() {
    let regtest = regtest().await;
    let lnd = regtest.another("old", &[]).await;
    let begun = Instant::now();
    let to_pay = make(&lnd, SETTLED, 31_536_000).await;
    make(&lnd, EXPIRED, 1).await;
    make(&lnd, OPEN, 31_536_000).await;
    println!("{} invoices after {:.0} s", lnd.invoices().await, begun.elapsed().as_secs_f32());
    let buyer = &regtest.buyer;
    let paying = stream::iter(to_pay).map(|invoice| async move {
        let invoice = invoice.parse().unwrap();
        // Every place in the channel may be taken for a moment.
        while buyer.try_pay(&invoice).await.is_err() {}
    });
    paying.buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
    println!("{SETTLED} of them paid after {:.0} s", begun.elapsed().as_secs_f32());
    assert!(lnd.invoices().await >= SETTLED + OPEN + EXPIRED);

    let seller = Seller::with_lnd(FAREBOX, &lnd, &lnd.macaroon("invoice"), "");
    for which in ["first", "second"] {
        let (gateway, listening, selling) = start(&seller).await;
        println!(
            "{which} start: listens after {} ms, sells after {} ms",
            listening.as_millis(),
            selling.as_millis()
        );
        assert!(selling < START_MAX, "{selling:?}");
        // Read in the background, and none of it is ours.
        books::until(u64::try_from(SETTLED).unwrap(), || books::cursor(&seller)).await;
        assert_eq!(books::counts(&seller), (0, 0));
        assert_eq!(gateway.interrupt().0, Some(0));
    }
}
