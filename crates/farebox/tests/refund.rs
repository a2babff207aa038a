//! Money back over real Lightning, by the program itself: bought with the buyer's node, paid back to it by the seller's.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

use std::{process::Command, time::Duration};

use axum::{Json, Router, extract::Query, routing::get};
use farebox_lightning::{Ask, Incoming, Receive, outgoing};
use farebox_paywall::store::{accounts::Accounts, sqlite::SqliteStore};
use farebox_protocol::{Invoice, Macaroon, Msat};
use farebox_tests::{Challenge, Program, Seller, ask_with, net};
use http::StatusCode;
use reqwest::header::AUTHORIZATION;
use serde_json::{Value, json};

const FAREBOX: &str = env!("CARGO_BIN_EXE_farebox");

/// 1,000 sat of credit, 100 sat a request.
fn seller(private_host: &str) -> Seller {
    let services = format!(
        "  - name: api
    upstream: http://UPSTREAM
    price: 1000sat
    offer: credit
    cost: 100sat
refunds:
  daily-max: 100000sat
  private-hosts: [{private_host}]
"
    );
    Seller::with_services(FAREBOX, "[\"127.0.0.1:0\"]", &services)
}

/// An invoice of the buyer's node.
async fn invoice(sat: u64) -> Invoice {
    let amount = Msat::from_sat(sat).unwrap();
    let ask = Ask { amount, expiry: Duration::from_secs(600), description: "back to me".to_owned() };
    net().net.buyer.invoice(ask).await.unwrap()
}

/// How much has arrived for it.
async fn arrived(invoice: &Invoice) -> u64 {
    match net().net.buyer.lookup(invoice.payment_hash()).await.unwrap() {
        Incoming::Settled { amount, .. } => amount.get() / 1_000,
        Incoming::Unpaid => 0,
    }
}

async fn post(url: &str, authorization: &str, body: &Value) -> reqwest::Result<(StatusCode, Value)> {
    let url = format!("{url}/.well-known/farebox/refund");
    let request = reqwest::Client::new().post(url).header(AUTHORIZATION, authorization).json(body);
    let response = request.send().await?;
    Ok((response.status(), response.json().await?))
}

async fn look(url: &str, authorization: &str, query: &str) -> Value {
    let url = format!("{url}/.well-known/farebox/refund{query}");
    let response = reqwest::Client::new().get(url).header(AUTHORIZATION, authorization).send().await.unwrap();
    response.json().await.unwrap()
}

/// As soon as money can be paid back.
async fn refund(url: &str, authorization: &str, to: &str) -> Value {
    let asked = async {
        loop {
            let (_, told) = post(url, authorization, &json!({ "to": to })).await.unwrap();
            // The wallet may come a moment after the gateway.
            if told["code"] != "refund_unavailable" {
                return told;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), asked).await.unwrap()
}

/// The law, on every row of the books of a gateway that has ended.
async fn lawful(seller: &Seller) {
    let books = SqliteStore::open(&seller.dir.path().join("state/books.sqlite")).unwrap();
    assert_eq!(books.audit().await.unwrap().breaches, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn leftover_credit_is_paid_back_to_the_buyers_node() {
    let seller = seller("");
    let (gateway, url) = seller.serve();
    let challenge = Challenge::ask(&url).await;
    let authorization = challenge.pay().await;
    for _ in 0..3 {
        assert_eq!(ask_with(&url, &authorization).await.0, 200);
    }
    // The money has to be on the books, which follow the node.
    let what = async {
        loop {
            let what = look(&url, &authorization, "").await;
            if what["code"] != "refund_unsettled" {
                return what;
            }
            tokio::task::yield_now().await;
        }
    };
    let what = tokio::time::timeout(Duration::from_secs(30), what).await.unwrap();
    assert_eq!((&what["credit_msat"], &what["surplus_msat"]), (&json!(700_000), &json!(0)), "{what}");

    // Whoever was handed a narrower token gets service, and no money.
    let bill = invoice(600).await;
    let (token, preimage) = authorization.strip_prefix("L402 ").unwrap().split_once(':').unwrap();
    let narrowed = Macaroon::from_base64(token).unwrap().attenuate("api_valid_until=4000000000").unwrap();
    let narrowed = format!("L402 {}:{preimage}", narrowed.to_base64());
    assert_eq!(ask_with(&url, &narrowed).await.0, 200);
    assert_eq!(refund(&url, &narrowed, bill.as_str()).await["code"], "refund_token_narrowed");
    assert_eq!(arrived(&bill).await, 0);

    let told = refund(&url, &authorization, bill.as_str()).await;
    assert_eq!(
        told["code"], "refund_too_much",
        "600 sat were left, and the route may cost something: {told}"
    );
    let bill = invoice(500).await;
    let told = refund(&url, &authorization, bill.as_str()).await;
    assert_eq!((&told["state"], &told["amount_msat"]), (&json!("paid"), &json!(500_000)), "{told}");
    assert_eq!(arrived(&bill).await, 500);
    assert_eq!(refund(&url, &authorization, bill.as_str()).await, told, "asked twice, paid once");
    // What the route didn't cost buys another request, and no second one.
    assert_eq!(ask_with(&url, &authorization).await.0, 200);
    assert_eq!(ask_with(&url, &authorization).await.0, 402);

    // The invoice of another challenge of this seller is no way to have it paid.
    let other = Challenge::ask(&url).await;
    let code = refund(&url, &authorization, other.invoice.as_str()).await["code"].clone();
    assert!(code == "refund_too_much" || code == "refund_invoice_refused", "{code}");
    assert_eq!(gateway.interrupt().0, Some(0));
    lawful(&seller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lightning_address_is_paid_back_to() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let callback = format!("http://{host}/pay");
    let info = json!({
        "tag": "payRequest", "callback": callback, "minSendable": 1_000, "maxSendable": 1_000_000_000, "metadata": "[]",
    });
    let pay = async |Query(query): Query<Vec<(String, u64)>>| {
        Json(json!({ "pr": invoice(query[0].1 / 1_000).await.as_str(), "routes": [] }))
    };
    let router = Router::new()
        .route("/.well-known/lnurlp/alice", get(move || async move { Json(info) }))
        .route("/pay", get(pay));
    #[expect(clippy::disallowed_methods, reason = "the server ends with the test's runtime")]
    tokio::spawn(async move { axum::serve(listener, router).await });

    let seller = seller(&format!("\"{host}\""));
    let (gateway, url) = seller.serve();
    let authorization = Challenge::ask(&url).await.pay().await;
    assert_eq!(ask_with(&url, &authorization).await.0, 200);
    let to = format!("alice@{host}");
    let paid = async {
        loop {
            let told = refund(&url, &authorization, &to).await;
            if told["code"] != "refund_unsettled" {
                return told;
            }
            tokio::task::yield_now().await;
        }
    };
    let told = tokio::time::timeout(Duration::from_secs(30), paid).await.unwrap();
    // 900 sat without 1 % and 5 sat, in whole satoshi.
    assert_eq!((&told["state"], &told["amount_msat"]), (&json!("paid"), &json!(886_000)), "{told}");
    for private in ["alice@127.0.0.1:1", "alice@localhost", "alice@10.0.0.1", "alice@169.254.169.254"] {
        let told = refund(&url, &authorization, private).await;
        assert_eq!(told["code"], "refund_address_refused", "{private}: {told}");
    }
    assert_eq!(gateway.interrupt().0, Some(0));
    lawful(&seller).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn books_from_before_a_refund_neither_pay_it_nor_sell_it_a_second_time() {
    let seller = seller("");
    let books = seller.dir.path().join("state/books.sqlite");
    let (gateway, url) = seller.serve();
    let authorization = Challenge::ask(&url).await.pay().await;
    assert_eq!(ask_with(&url, &authorization).await.0, 200);
    assert_eq!(gateway.interrupt().0, Some(0));
    let backup = std::fs::read(&books).unwrap();

    let (gateway, url) = seller.serve();
    let bill = invoice(500).await;
    let paid = async {
        loop {
            let told = refund(&url, &authorization, bill.as_str()).await;
            if told["code"] != "refund_unsettled" {
                return told;
            }
            tokio::task::yield_now().await;
        }
    };
    let told = tokio::time::timeout(Duration::from_secs(30), paid).await.unwrap();
    assert_eq!(told["state"], "paid", "{told}");
    assert_eq!(gateway.interrupt().0, Some(0));
    std::fs::write(&books, &backup).unwrap();

    // Before its wallet is there, and before anything else: also where nothing is paid back any more.
    let config = seller.dir.path().join("farebox.yaml");
    let offered = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, offered.split_once("refunds:").unwrap().0).unwrap();
    let (gateway, url) = seller.serve();
    for status in [200, 200, 200, 200, 402] {
        assert_eq!(ask_with(&url, &authorization).await.0, status);
    }
    assert_eq!(gateway.interrupt().0, Some(0));
    std::fs::write(&books, backup).unwrap();
    std::fs::write(&config, offered).unwrap();

    let (gateway, url) = seller.serve();
    for status in [200, 200, 200, 200, 402] {
        assert_eq!(ask_with(&url, &authorization).await.0, status);
    }
    assert_eq!(refund(&url, &authorization, bill.as_str()).await, told, "known, and paid once");
    let other = refund(&url, &authorization, invoice(500).await.as_str()).await;
    assert!(other["code"] == "refund_too_much" || other["code"] == "refund_unsettled", "{other}");
    assert_eq!(arrived(&bill).await, 500);
    assert_eq!(gateway.interrupt().0, Some(0));
    lawful(&seller).await;
}

/// One test, one edge after the other: each restarts the gateway on the same books.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_killed_at_any_edge_pays_back_at_most_once_and_ends_it_after_its_restart() {
    let seller = seller("");
    let mut killed = Vec::new();
    for edge in outgoing::FAILPOINTS {
        let config = seller.dir.path().join("farebox.yaml");
        let mut gateway = Program::start(
            Command::new(FAREBOX)
                .args(["--json", "serve", "--config"])
                .arg(&config)
                .env("FAREBOX_LOG", "warn")
                .env("FAREBOX_FAILPOINT", edge),
        );
        let url = format!("http://{}", gateway.event()["listen"][0].as_str().unwrap());
        let authorization = Challenge::ask(&url).await.pay().await;
        assert_eq!(ask_with(&url, &authorization).await.0, 200);
        let bill = invoice(500).await;
        let asked = async {
            loop {
                match post(&url, &authorization, &json!({ "to": bill.as_str() })).await {
                    // The gateway has died.
                    Err(_) => return true,
                    Ok((_, told)) if told["state"].is_string() => return false,
                    Ok(_) => tokio::task::yield_now().await,
                }
            }
        };
        if tokio::time::timeout(Duration::from_secs(60), asked).await.unwrap() {
            killed.push(*edge);
        }
        gateway.kill();

        let (gateway, url) = seller.serve();
        let refunds = look(&url, &authorization, "").await;
        let id =
            refunds["refunds"][0]["id"].as_str().unwrap_or_else(|| panic!("{edge}: {refunds}")).to_owned();
        let ended = async {
            loop {
                let told = look(&url, &authorization, &format!("?id={id}")).await;
                if told["state"] != "open" {
                    return told;
                }
                tokio::task::yield_now().await;
            }
        };
        let told = tokio::time::timeout(Duration::from_secs(90), ended).await.unwrap();
        let (want, left) = if told["state"] == "paid" { (500, 400_000) } else { (0, 900_000) };
        assert_eq!(arrived(&bill).await, want, "{edge}: {told}");
        assert_eq!(look(&url, &authorization, "").await["credit_msat"], left, "{edge}: {told}");
        assert_eq!(gateway.interrupt().0, Some(0));
        lawful(&seller).await;
    }
    for edge in [
        "outgoing-before-record",
        "outgoing-after-record",
        "outgoing-after-sent",
        "outgoing-after-pay",
        "outgoing-after-settle",
    ] {
        assert!(killed.contains(&edge), "nobody was killed at {edge}: {killed:?}");
    }
}
