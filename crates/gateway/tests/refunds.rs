//! What the operator is told of money that is paid back, asked over sockets while it is on its way.

#![expect(clippy::unwrap_used, reason = "an error is how a test fails")]

mod support;

use std::{sync::Arc, time::Duration};

use farebox_lightning::{
    Ask, Outcome, Pay, PayError, PayFacts, PayRequest, Receive,
    clock::SystemClock,
    lnaddress::{AddressError, LightningAddress, Resolve},
};
use farebox_paywall::{
    price::Cost,
    refund::{PATH, RefundConfig, Refunds},
    store::accounts::{RefundId, RefundOf, RefundOrder},
};
use farebox_protocol::{Invoice, Msat, PaymentHash, Timestamp};
use futures_util::future::BoxFuture;
use http::Request;
use parking_lot::Mutex;
use serde_json::{Value, json};
use support::{
    Rig, ask, body, config,
    counted::{credit, requests},
    get,
    node::{self, Node},
    upstream::Upstream,
    within,
};

/// Sends what it is asked to and says nothing more, until it is told how that ended.
#[derive(Default)]
struct Wallet {
    ended: Mutex<Option<Outcome>>,
    is_asked: Mutex<bool>,
}

impl Pay for Wallet {
    fn facts(&self) -> PayFacts {
        node::of_a_wallet()
    }

    fn pay(&self, _: PayRequest) -> BoxFuture<'_, Result<Outcome, PayError>> {
        *self.is_asked.lock() = true;
        Box::pin(async { Ok(Outcome::InFlight) })
    }

    fn lookup(&self, _: PaymentHash) -> BoxFuture<'_, Result<Outcome, PayError>> {
        let outcome = match *self.is_asked.lock() {
            false => Outcome::NotFound,
            true => self.ended.lock().clone().unwrap_or(Outcome::InFlight),
        };
        Box::pin(async move { Ok(outcome) })
    }

    fn balance(&self) -> BoxFuture<'_, Result<Msat, PayError>> {
        Box::pin(async { Ok(Msat::MAX) })
    }
}

/// Nobody asks for a Lightning address here.
struct NoAddresses;

impl Resolve for NoAddresses {
    fn invoice<'a>(
        &'a self,
        _: &'a LightningAddress,
        _: Msat,
    ) -> BoxFuture<'a, Result<Invoice, AddressError>> {
        unreachable!("no address was named")
    }
}

/// A gateway that pays back, once it has a wallet.
async fn rig(upstream: &Upstream) -> (Rig, Arc<Refunds>) {
    let routes = vec![credit(&upstream.url(), 100_000, Cost::Fixed(Msat::new(10_000)))];
    let mut refunds = None;
    let rig = Rig::paying_back(config(routes), |paywall, directory| {
        let settings = RefundConfig {
            answer_within: Duration::from_millis(20),
            ..RefundConfig::new(Msat::new(1_000_000))
        };
        let path = directory.join("refunds.sqlite");
        let (resolver, clock) = (Arc::new(NoAddresses), Arc::new(SystemClock));
        let opened = Refunds::open(&path, paywall, resolver, clock, settings).unwrap();
        refunds = Some(opened.clone());
        opened
    })
    .await;
    (rig, refunds.unwrap())
}

async fn told(rig: &Rig) -> Value {
    let (status, ready) = rig.ops("/readyz").await;
    assert_eq!(status, 200, "refunds are no reason to send buyers elsewhere");
    serde_json::from_str::<Value>(&ready).unwrap()["refunds"].clone()
}

/// Until the operator is told of so many, in every place that tells of them.
async fn is_told(rig: &Rig, open: usize, stuck: usize) {
    within(async {
        while told(rig).await != json!({ "open": open, "stuck": stuck }) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    rig.metric(&format!("farebox_refunds_open {open}")).await;
    rig.metric(&format!("farebox_refunds_stuck {stuck}")).await;
}

async fn post(rig: &Rig, credential: &str, to: &Invoice) -> (u16, Value) {
    let request = Request::post(PATH)
        .header("host", "localhost")
        .header("authorization", credential)
        .body(body(json!({ "to": to.as_str() }).to_string()))
        .unwrap();
    let answer = ask(rig.addr, request).await;
    (answer.status().as_u16(), serde_json::from_slice(answer.body()).unwrap())
}

#[tokio::test]
async fn money_on_its_way_back_is_told_of_until_it_has_arrived() {
    let upstream = Upstream::echo().await;
    let (rig, refunds) = rig(&upstream).await;
    is_told(&rig, 0, 0).await;
    let bought = rig.purchase("/").await;
    assert_eq!(get(rig.addr, "/", &[bought.header()]).await.status(), 200);
    rig.node.settle(&bought.hash, 100_000);
    let buyer = Node::numbered_from(1_000);
    let invoice =
        |msat| Ask { amount: Msat::new(msat), expiry: Duration::from_secs(600), description: String::new() };
    let invoice = buyer.invoice(invoice(50_000)).await.unwrap();
    assert_eq!(
        post(&rig, &bought.credential, &invoice).await.1["code"],
        "refund_unavailable",
        "no wallet yet"
    );

    let wallet = Arc::new(Wallet::default());
    refunds.pay_from(wallet.clone()).await.unwrap();
    let asked = async {
        loop {
            match post(&rig, &bought.credential, &invoice).await {
                // The books follow the node.
                (409, told) if told["code"] == "refund_unsettled" => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                answer => return answer,
            }
        }
    };
    let (status, answer) = within(asked).await;
    assert_eq!((status, &answer["state"]), (202, &json!("open")), "{answer}");
    is_told(&rig, 1, 0).await;

    let preimage = buyer.pay(&invoice.payment_hash());
    *wallet.ended.lock() = Some(Outcome::Settled { preimage, fee: Msat::new(1_000) });
    is_told(&rig, 0, 0).await;
    let path = format!("{PATH}?id={}", answer["id"].as_str().unwrap());
    let answer = get(rig.addr, &path, &[bought.header()]).await;
    let answer: Value = serde_json::from_slice(answer.body()).unwrap();
    assert_eq!((&answer["state"], &answer["fee_msat"]), (&json!("paid"), &json!(1_000)));
    let left = get(rig.addr, PATH, &[bought.header()]).await;
    let left: Value = serde_json::from_slice(left.body()).unwrap();
    assert_eq!(left["credit_msat"], 39_000, "{left}");
    rig.stop().await.unwrap();
}

#[tokio::test]
async fn money_that_only_a_person_can_explain_is_told_of_as_stuck() {
    let upstream = Upstream::echo().await;
    let (rig, refunds) = rig(&upstream).await;
    let bought = rig.purchase("/").await;
    assert_eq!(get(rig.addr, "/", &[bought.header()]).await.status(), 200);
    // As a gateway has begun it whose journal of refunds was lost.
    let order = RefundOrder {
        id: RefundId([1; 16]),
        hash: bought.hash,
        of: RefundOf::Credit,
        amount: Msat::new(40_000),
        at: Timestamp::from_secs(1),
    };
    rig.paywall.ledger().begin_refund(order).await.unwrap();
    is_told(&rig, 0, 0).await;
    refunds.pay_from(Arc::new(Wallet::default())).await.unwrap();
    is_told(&rig, 1, 1).await;
    // What it holds buys nothing; the rest does.
    for status in [200, 200, 200, 200, 200, 402] {
        assert_eq!(get(rig.addr, "/", &[bought.header()]).await.status(), status);
    }
    rig.stop().await.unwrap();
}

#[tokio::test]
async fn where_nothing_is_paid_back_there_is_nothing_to_tell() {
    let upstream = Upstream::echo().await;
    let rig = Rig::new(vec![requests(&upstream.url(), 9)]).await;
    assert_eq!(told(&rig).await, Value::Null);
    rig.metric("farebox_refunds_open 0").await;
    rig.metric("farebox_refunds_stuck 0").await;
    rig.stop().await.unwrap();
}
