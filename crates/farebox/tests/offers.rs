//! What is sold in units, by the program itself and over real Lightning: requests that run out, credit that is drawn down,
//! and the offer that a buyer chooses.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

use farebox_protocol::Msat;
use farebox_tests::{Challenge, Seller, ask_with};
use serde_json::Value;

const FAREBOX: &str = env!("CARGO_BIN_EXE_farebox");
const LISTEN: &str = "[\"127.0.0.1:0\"]";

/// The 402 to a request with this much in its headers.
async fn challenged(url: &str, offer: Option<&str>) -> (Challenge, Value) {
    let mut request = reqwest::Client::new().get(url);
    if let Some(offer) = offer {
        request = request.header("farebox-offer", offer);
    }
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 402);
    (Challenge::read(answer.headers()), answer.json().await.unwrap())
}

/// How often a request with this credential is answered by the upstream, before it is asked to pay again; and with what code.
async fn served(url: &str, authorization: &str) -> (usize, String) {
    for count in 0..100 {
        let (status, body) = ask_with(url, authorization).await;
        if status != 200 {
            assert_eq!(status, 402, "{body}");
            let problem: Value = serde_json::from_str(&body).unwrap();
            return (count, problem["code"].as_str().unwrap().to_owned());
        }
    }
    panic!("it never ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn three_requests_are_sold_and_the_fourth_is_asked_to_pay() {
    let services = "  - { name: api, upstream: 'http://UPSTREAM', price: 10sat, offer: { requests: 3 } }\n";
    let seller = Seller::with_services(FAREBOX, LISTEN, services);
    let (_gateway, url) = seller.serve();
    let (challenge, body) = challenged(&url, None).await;
    assert_eq!((&body["offer"], &body["requests"]), (&"requests".into(), &3.into()), "{body}");
    assert_eq!(body.get("offers"), None, "there is nothing to choose");
    let authorization = challenge.pay().await;
    assert_eq!(served(&url, &authorization).await, (3, "units_spent".to_owned()));
    assert_eq!(seller.upstream.served(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn credit_is_drawn_down_by_what_each_request_costs() {
    let services = "  - name: api
    upstream: http://UPSTREAM
    price: 10sat
    offer: credit
    cost: 2sat
    costs: [{ paths: [/dear], cost: 5sat }]
";
    let seller = Seller::with_services(FAREBOX, LISTEN, services);
    let (_gateway, url) = seller.serve();
    let (challenge, body) = challenged(&url, None).await;
    assert_eq!((&body["offer"], &body["credit_msat"]), (&"credit".into(), &10_000.into()), "{body}");
    let authorization = challenge.pay().await;
    assert_eq!(ask_with(&format!("{url}/dear"), &authorization).await.0, 200);
    // Five are left: two cheap ones, and one that nothing can be had for.
    assert_eq!(served(&url, &authorization).await, (2, "units_short".to_owned()));
    assert_eq!(seller.upstream.served(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pass_is_sold_with_a_limit_for_the_month_and_kept_to_it() {
    let services = "  - name: api
    upstream: http://UPSTREAM
    price: 10sat
    cost: 2sat
    capabilities: [{ name: all }]
    monthly: { all: { requests: 5, volume: 6sat } }
";
    let seller = Seller::with_services(FAREBOX, LISTEN, services);
    let (_gateway, url) = seller.serve();
    let (challenge, body) = challenged(&url, None).await;
    assert_eq!(body["offer"], "forever");
    let limit =
        |unit: &str, most: u64| serde_json::json!({ "capability": "all", "unit": unit, "most": most });
    assert_eq!(body["monthly"], serde_json::json!([limit("request", 5), limit("msat", 6_000)]));
    let authorization = challenge.pay().await;
    assert_eq!(served(&url, &authorization).await, (3, "limit_reached".to_owned()));
    assert_eq!(seller.upstream.served(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buyer_chooses_by_header_or_by_query() {
    let services = "  - name: api
    upstream: http://UPSTREAM
    price: 10sat
    offer: { requests: 1 }
    offers: [{ name: large, price: 30sat, offer: { requests: 4 }, good-for: 30d }]
";
    let seller = Seller::with_services(FAREBOX, LISTEN, services);
    let (_gateway, url) = seller.serve();
    let chosen = format!("{url}?city=x&farebox-offer=large");
    for (url, header) in [(url.as_str(), Some("large")), (chosen.as_str(), None)] {
        let (challenge, body) = challenged(url, header).await;
        assert_eq!(challenge.invoice.amount(), Some(Msat::new(30_000)));
        assert_eq!(body["offer_name"], "large");
        let names: Vec<&Value> =
            body["offers"].as_array().unwrap().iter().map(|offer| &offer["name"]).collect();
        assert_eq!(names, ["default", "large"]);
        let authorization = challenge.pay().await;
        assert_eq!(served(url, &authorization).await, (4, "units_spent".to_owned()));
    }
    let (challenge, _) = challenged(&url, None).await;
    assert_eq!(challenge.invoice.amount(), Some(Msat::new(10_000)), "the first is what nobody chose");
    let answer = reqwest::get(format!("{url}?farebox-offer=huge")).await.unwrap();
    assert_eq!(answer.status(), 400);
}

/// What `farebox get` says of a request that it doesn't pay, and how it ends.
async fn dry_run(url: &str, arguments: &[&str]) -> (Option<i32>, Value) {
    let home = tempfile::tempdir().unwrap();
    let mut command = tokio::process::Command::new(FAREBOX);
    command.args(["get", "--json"]).args(arguments).arg(url).env_clear().env("HOME", home.path());
    let output = command.output().await.unwrap();
    let text = if output.stdout.is_empty() { &output.stderr } else { &output.stdout };
    (output.status.code(), serde_json::from_slice(text).unwrap_or_else(|_| panic!("{output:?}")))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_program_that_buys_reads_the_menu_and_orders_from_it() {
    let services = "  - name: api
    upstream: http://UPSTREAM
    price: 10sat
    offer: { duration: 1h }
    offers: [{ name: large, price: 30sat, offer: { requests: 4 }, good-for: 30d }]
";
    let seller = Seller::with_services(FAREBOX, LISTEN, services);
    let (_gateway, url) = seller.serve();
    let (exit, told) = dry_run(&url, &["--dry-run"]).await;
    assert_eq!((exit, &told["offer"]["amount_msat"]), (Some(10), &10_000.into()), "{told}");
    let large = &told["offers"][1];
    assert_eq!((&told["offers"][0]["duration_secs"], &large["name"]), (&3_600.into(), &"large".into()));
    assert_eq!((&large["price_msat"], &large["requests"]), (&30_000.into(), &4.into()));
    let (_, told) = dry_run(&url, &["--dry-run", "--offer", "large"]).await;
    assert_eq!(told["offer"]["amount_msat"], 30_000);
    let (exit, told) = dry_run(&url, &["--no-pay", "--offer", "huge"]).await;
    assert_eq!((exit, &told["code"]), (Some(7), &"offer_unknown".into()), "{told}");
}
