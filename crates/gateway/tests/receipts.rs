//! Receipts for who asks for them, over real sockets: to the holder of a token that was paid for, and never at a service's cost.

#![expect(clippy::unwrap_used, reason = "an error is how a test fails")]

mod support;

use std::time::Duration;

use bytes::Bytes;
use farebox_gateway::ServiceRoute;
use farebox_paywall::{
    receipt::{Receipt, ReceiptKey, ReceiptPublicKey, SignedReceipt},
    store::sqlite::SqliteStore,
};
use farebox_protocol::Macaroon;
use futures_util::stream;
use http::{Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, combinators::BoxBody};
use support::{
    Rig, config,
    counted::{Bought, requests},
    get, http2, pieces, raw, request, service,
    upstream::{Recorder, Upstream},
    within,
};

const RECEIPT: &str = "/.well-known/farebox/receipt";
const KEY: &str = "/.well-known/farebox/receipt-key";

fn key() -> ReceiptKey {
    ReceiptKey::from_seed(&[7; 32])
}

async fn signing(services: Vec<ServiceRoute>) -> Rig {
    Rig::signing(config(services), key()).await
}

/// What this request is for, with its money on the books and its token used once.
async fn sold(rig: &Rig, path: &str, msat: u64) -> Bought {
    let bought = rig.purchase(path).await;
    rig.node.settle(&bought.hash, msat);
    assert_eq!(get(rig.addr, path, &[bought.header()]).await.status(), 200);
    let books = SqliteStore::open_to_inspect(&rig.books()).unwrap();
    let booked = async {
        loop {
            let entry = books.entry(bought.hash).unwrap();
            if entry.is_some_and(|entry| entry.purchase.sold.is_some() && entry.purchase.is_settled()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    within(booked).await;
    bought
}

async fn asked(rig: &Rig, version: u8, request: Request<BoxBody<Bytes, hyper::Error>>) -> Response<Bytes> {
    let (parts, body) = rig.send(version, request).await.into_parts();
    let body = within(body.collect()).await.unwrap().to_bytes();
    assert_eq!(parts.headers[header::CACHE_CONTROL], "no-store");
    Response::from_parts(parts, body)
}

fn text(answer: &Response<Bytes>) -> &str {
    std::str::from_utf8(answer.body()).unwrap()
}

fn code(answer: &Response<Bytes>) -> (u16, &str) {
    (answer.status().as_u16(), answer.headers()["farebox-code"].to_str().unwrap())
}

async fn receipt(rig: &Rig, bought: &Bought) -> Receipt {
    let answer = asked(rig, 1, request("POST", RECEIPT, &[bought.header()])).await;
    assert_eq!(answer.status(), 200, "{}", text(&answer));
    SignedReceipt::verify(text(&answer), Some(&key().public())).unwrap().receipt().clone()
}

#[tokio::test]
async fn a_buyer_gets_a_receipt_that_the_published_key_confirms() {
    let upstream = Upstream::echo().await;
    let rig = signing(vec![requests(&upstream.url(), 5)]).await;
    let bought = sold(&rig, "/", 12_000).await;
    for version in [1, 2] {
        let published = asked(&rig, version, request("GET", KEY, &[])).await;
        let published: ReceiptPublicKey = text(&published).parse().unwrap();
        assert_eq!(published, key().public());
        let answer = asked(&rig, version, request("POST", RECEIPT, &[bought.header()])).await;
        assert_eq!(
            (answer.status(), &answer.headers()[header::CONTENT_TYPE]),
            (StatusCode::OK, &"text/plain; charset=utf-8".parse().unwrap())
        );
        let signed = SignedReceipt::verify(text(&answer), Some(&published)).unwrap();
        let receipt = signed.receipt();
        assert_eq!((receipt.hash, receipt.service.as_ref()), (bought.hash, "api"));
        assert_eq!((receipt.price.get(), receipt.paid.get(), receipt.surplus.get()), (10_000, 12_000, 2_000));
        let units = receipt.units.unwrap();
        assert_eq!((units.sold, units.spent, units.left), (5, 1, 4), "asking costs nothing");
    }
}

#[tokio::test]
async fn where_no_receipts_are_signed_asking_costs_nothing_and_no_upstream_hears_of_it() {
    let recorder = Recorder::start().await;
    let rig = Rig::counting(config(vec![requests(&recorder.url(), 10)])).await;
    let bought = sold(&rig, "/", 10_000).await;
    let before = recorder.received();
    for (method, path) in [("POST", RECEIPT), ("GET", RECEIPT), ("GET", KEY), ("POST", KEY), ("HEAD", KEY)] {
        for version in [1, 2] {
            let answer = asked(&rig, version, request(method, path, &[bought.header()])).await;
            assert_eq!(code(&answer), (404, "receipts_not_offered"), "{method} {path}");
        }
    }
    assert_eq!(recorder.received(), before);
    assert_eq!(rig.spent(&bought).await, 1);
}

#[tokio::test]
async fn a_page_of_another_origin_may_ask_whatever_the_services_say() {
    let upstream = Upstream::echo().await;
    let mut closed = requests(&upstream.url(), 5);
    closed.cors = farebox_gateway::Cors::Off;
    let rig = signing(vec![closed]).await;
    let bought = sold(&rig, "/", 10_000).await;
    let origin = ("origin", "https://shop.example.com");
    for version in [1, 2] {
        for path in [RECEIPT, KEY, "/.well-known/farebox/refund"] {
            let asks = [
                origin,
                ("access-control-request-method", "POST"),
                ("access-control-request-headers", "authorization"),
            ];
            let leave = rig.send(version, request("OPTIONS", path, &asks)).await;
            let said = |name: &str| leave.headers()[name].to_str().unwrap();
            assert_eq!(leave.status(), 204, "{path}");
            assert_eq!(said("access-control-allow-origin"), "*");
            assert_eq!(said("access-control-allow-methods"), "POST");
            assert_eq!(said("access-control-allow-headers"), "authorization");
            assert!(!leave.headers().contains_key("access-control-allow-credentials"));
            // What asks for no leave is a question like any other.
            let plain = asked(&rig, version, request("OPTIONS", path, &[])).await;
            assert!(plain.status().is_client_error(), "{path}");
        }
        let answer = asked(&rig, version, request("POST", RECEIPT, &[origin, bought.header()])).await;
        assert_eq!(
            (answer.status(), &answer.headers()["access-control-allow-origin"]),
            (StatusCode::OK, &"*".parse().unwrap())
        );
        let refused = asked(&rig, version, request("POST", RECEIPT, &[origin])).await;
        assert_eq!(code(&refused).0, 401);
        assert_eq!(refused.headers()["access-control-allow-origin"], "*");
        assert!(
            refused.headers()["access-control-expose-headers"].to_str().unwrap().contains("Farebox-Code")
        );
    }
    assert_eq!(rig.spent(&bought).await, 1);
}

#[tokio::test]
async fn paths_beside_it_are_the_services() {
    let upstream = Upstream::echo().await;
    let rig = signing(vec![requests(&upstream.url(), 10)]).await;
    let bought = sold(&rig, "/", 10_000).await;
    for path in
        ["/.well-known/farebox/receipts", "/.well-known/farebox/receipt/", "/api/.well-known/farebox/receipt"]
    {
        let answer = get(rig.addr, path, &[bought.header()]).await;
        assert!(text(&answer).contains(path), "{answer:?}");
    }
    // Another spelling of the same path is the same path.
    let dotted =
        asked(&rig, 1, request("POST", "/x/../.well-known//farebox/receipt?of=x", &[bought.header()])).await;
    assert_eq!(dotted.status(), 200, "{}", text(&dotted));
    assert_eq!(rig.spent(&bought).await, 4);
}

#[tokio::test]
async fn of_several_services_the_credential_says_which_one_at_whatever_host_it_is_shown() {
    let upstream = Upstream::echo().await;
    let mut dear = service("dear", &upstream.url());
    dear.matcher.path_prefixes = vec!["/dear".parse().unwrap()];
    dear.service.price = farebox_protocol::Msat::new(90_000);
    let mut cheap = service("cheap", &upstream.url());
    cheap.matcher.hosts = vec!["localhost".parse().unwrap()];
    let rig = signing(vec![dear, cheap]).await;
    let (dear, cheap) = (sold(&rig, "/dear", 90_000).await, sold(&rig, "/", 10_000).await);
    for (bought, service, paid) in [(&dear, "dear", 90_000), (&cheap, "cheap", 10_000)] {
        for host in ["localhost", "of.nobody.example"] {
            let mut request = request("POST", RECEIPT, &[bought.header()]);
            request.headers_mut().insert(header::HOST, host.parse().unwrap());
            let answer = asked(&rig, 1, request).await;
            let signed = SignedReceipt::verify(text(&answer), Some(&key().public())).unwrap();
            let receipt = signed.receipt();
            assert_eq!((receipt.hash, receipt.paid.get()), (bought.hash, paid));
            assert_eq!(receipt.service.as_ref(), service);
        }
    }
    // Two at once are nobody's.
    let both = request("POST", RECEIPT, &[dear.header(), cheap.header()]);
    assert_eq!(code(&asked(&rig, 1, both).await), (401, "receipt_credential_wrong"));
}

#[tokio::test]
async fn whoever_proves_less_than_the_whole_purchase_is_told_so_and_no_more() {
    let upstream = Upstream::echo().await;
    let rig = signing(vec![service("weather", &upstream.url())]).await;
    let bought = sold(&rig, "/", 10_000).await;
    let (token, preimage) = bought.credential.strip_prefix("L402 ").unwrap().split_once(':').unwrap();
    let narrowed = Macaroon::from_base64(token).unwrap().attenuate("weather_valid_until=4000000000").unwrap();
    let narrowed = format!("L402 {}:{preimage}", narrowed.to_base64());
    let stranger = format!("L402 {token}:{}", "ab".repeat(32));
    let refused = async |credential: &str| {
        let answer = asked(&rig, 2, request("POST", RECEIPT, &[("authorization", credential)])).await;
        for told in ["weather", &bought.hash.to_string(), token, preimage] {
            assert!(!text(&answer).contains(told), "{}", text(&answer));
        }
        (answer.status().as_u16(), answer.headers()["farebox-code"].to_str().unwrap().to_owned())
    };
    assert_eq!(get(rig.addr, "/", &[("authorization", &narrowed)]).await.status(), 200);
    assert_eq!(refused(&narrowed).await, (403, "receipt_token_narrowed".to_owned()));
    assert_eq!(refused(&stranger).await, (401, "receipt_credential_wrong".to_owned()));
    assert_eq!(refused("L402 nonsense").await.0, 401);
    let unpaid = rig.purchase("/").await;
    assert_eq!(refused(&unpaid.credential).await, (404, "receipt_not_booked".to_owned()));
    let none = asked(&rig, 1, request("POST", RECEIPT, &[])).await;
    assert_eq!(code(&none), (401, "receipt_credential_missing"));
    assert_eq!(none.headers()[header::WWW_AUTHENTICATE], "L402");

    let identifier = Macaroon::from_base64(token).unwrap().identifier().unwrap();
    rig.paywall.revoke(identifier.hash(), "test").await.unwrap();
    assert_eq!(refused(&bought.credential).await, (403, "receipt_token_withdrawn".to_owned()));
}

#[tokio::test]
async fn books_that_can_not_be_read_are_no_missing_purchase() {
    let upstream = Upstream::echo().await;
    let rig = signing(vec![service("weather", &upstream.url())]).await;
    let bought = sold(&rig, "/", 10_000).await;
    let books = rusqlite::Connection::open(rig.books()).unwrap();
    books.execute_batch("ALTER TABLE refund RENAME TO lost").unwrap();
    let answer = asked(&rig, 1, request("POST", RECEIPT, &[bought.header()])).await;
    assert_eq!(code(&answer), (503, "receipt_unavailable"));
    assert_eq!(answer.headers()[header::RETRY_AFTER], "30");
    assert!(!text(&answer).contains("lost") && !text(&answer).contains("refund"), "nothing of why is told");
    books.execute_batch("ALTER TABLE lost RENAME TO refund").unwrap();
    assert_eq!(receipt(&rig, &bought).await.paid.get(), 10_000);
}

#[tokio::test]
async fn who_asks_again_and_again_has_to_wait_and_keeps_nobody_else_waiting() {
    let upstream = Upstream::echo().await;
    let rig = signing(vec![service("weather", &upstream.url())]).await;
    let (eager, other) = (sold(&rig, "/", 10_000).await, sold(&rig, "/", 10_000).await);
    for _ in 0..10 {
        receipt(&rig, &eager).await;
    }
    let answer = asked(&rig, 1, request("POST", RECEIPT, &[eager.header()])).await;
    assert_eq!(code(&answer), (429, "receipt_too_often"));
    let wait: u64 = answer.headers()[header::RETRY_AFTER].to_str().unwrap().parse().unwrap();
    assert!((1..=30).contains(&wait));
    receipt(&rig, &other).await;
    assert_eq!(get(rig.addr, "/", &[eager.header()]).await.status(), 200, "what was bought is there still");
}

#[tokio::test]
async fn pages_of_any_origin_may_read_the_answers() {
    let rig = signing(vec![service("weather", "http://127.0.0.1:1")]).await;
    for (method, path) in [("GET", KEY), ("POST", RECEIPT)] {
        let answer = asked(&rig, 1, request(method, path, &[("origin", "https://app.example")])).await;
        assert_eq!(answer.headers()[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*");
        assert!(!answer.headers().contains_key(header::ACCESS_CONTROL_ALLOW_CREDENTIALS));
    }
}

#[tokio::test]
async fn bodies_are_not_waited_for_and_methods_are_held_to() {
    let upstream = Upstream::echo().await;
    let rig = signing(vec![service("weather", &upstream.url())]).await;
    let bought = sold(&rig, "/", 10_000).await;
    // One that never comes, one that never ends.
    let head =
        format!("POST {RECEIPT} HTTP/1.1\r\nhost: localhost\r\nauthorization: {}\r\n", bought.credential);
    let promised =
        raw(rig.addr, format!("{head}content-length: 99999999999\r\n\r\n").as_bytes(), "signature: ").await;
    assert!(promised.starts_with("HTTP/1.1 200"), "{promised}");
    let begun =
        raw(rig.addr, format!("{head}transfer-encoding: chunked\r\n\r\n4\r\nwhat").as_bytes(), "signature: ")
            .await;
    assert!(begun.starts_with("HTTP/1.1 200"), "{begun}");
    let mut endless = request("POST", RECEIPT, &[bought.header()]);
    *endless.uri_mut() = format!("http://localhost{RECEIPT}").parse().unwrap();
    let piece = Bytes::from_static(&[0; 1024]);
    *endless.body_mut() = pieces(stream::repeat_with(move || Frame::data(piece.clone())));
    let answer = within(http2(rig.addr).await.send_request(endless)).await.unwrap();
    assert_eq!(answer.status(), 200);

    for (method, path, allowed) in [
        ("GET", RECEIPT, "POST"),
        ("HEAD", RECEIPT, "POST"),
        ("PUT", RECEIPT, "POST"),
        ("OPTIONS", RECEIPT, "POST"),
        ("post", RECEIPT, "POST"),
        ("POST", KEY, "GET, HEAD"),
        ("DELETE", KEY, "GET, HEAD"),
    ] {
        for version in [1, 2] {
            let answer = asked(&rig, version, request(method, path, &[bought.header()])).await;
            assert_eq!(code(&answer), (405, "receipt_method"), "{method} {path}");
            assert_eq!(answer.headers()[header::ALLOW], allowed);
        }
    }
    for version in [1, 2] {
        let answer = asked(&rig, version, request("HEAD", KEY, &[])).await;
        assert_eq!((answer.status().as_u16(), answer.body().len()), (200, 0));
    }
}
