//! The flags that people bring from curl and lnget: what they mean here, and that none is passed over.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::response::Response;
use http::{HeaderValue, StatusCode};

use super::support::shop::{Asked, Till};
use super::{Buyer, Mood, Shop, error, exit, json, sells};

#[tokio::test]
async fn what_is_asked_for_in_curls_words_is_what_is_sent() {
    let buyer = Buyer::new().await;
    let asked: Arc<parking_lot::Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&asked);
    let shop = Shop::with(&buyer.world.net, move |till, asked| {
        let header = |name: &str| asked.headers.get(name).map_or("-", |value| value.to_str().unwrap());
        let (agent, kind) = (header("user-agent"), header("content-type"));
        seen.lock().push(format!("{} {agent} {kind} {}", asked.method, String::from_utf8_lossy(&asked.body)));
        till.serve("goods")
    })
    .await;
    let url = shop.url("/");
    let upload = buyer.path("upload");
    std::fs::write(&upload, "whole").unwrap();
    for (arguments, want) in [
        (
            &["-L", "-s", "-A", "me/1", "--prefer-scheme", "l402", "--payment-timeout", "60s"][..],
            "GET me/1 - ",
        ),
        (&["--data-binary", "x", "-A", "me"], "POST me application/x-www-form-urlencoded x"),
        (&["-d", "{}", "--content-type", "application/json", "-A", "me"], "POST me application/json {}"),
        (&["-T", upload.to_str().unwrap(), "-A", "me"], "PUT me - whole"),
        (&["-I", "-A", "me"], "HEAD me - "),
        (&["-X", "DELETE", "-A", "me", "--no-progress", "--print-body"], "DELETE me - "),
    ] {
        let output = buyer.get(&[arguments, &[&url]].concat()).await;
        assert_eq!(exit(&output), 0, "{arguments:?} {output:?}");
        assert_eq!(asked.lock().pop().as_deref(), Some(want), "{arguments:?}");
    }
}

#[tokio::test]
async fn the_head_of_an_answer_is_printed_where_that_is_asked_for() {
    let buyer = Buyer::new().await;
    let shop = Shop::with(&buyer.world.net, |till, _| {
        let mut response = till.serve("goods");
        response.headers_mut().insert("x-kind", HeaderValue::from_static("soft"));
        response
    })
    .await;
    let url = shop.url("/");
    for (flag, body) in [("-i", "goods"), ("-I", "")] {
        let printed = String::from_utf8(buyer.get(&[flag, &url]).await.stdout).unwrap();
        let (head, rest) = printed.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("x-kind: soft"), "{head}");
        assert_eq!(rest, body);
    }
    let told = json(&buyer.get(&["-i", "--json", &url]).await);
    let headers = told["headers"].as_array().unwrap();
    assert!(headers.contains(&serde_json::json!(["x-kind", "soft"])), "{told}");
}

#[tokio::test]
async fn what_is_not_done_here_is_refused_with_the_reason_and_before_anything_is_sent() {
    let buyer = Buyer::new().await;
    let shop = Shop::with(&buyer.world.net, sells("goods")).await;
    let url = shop.url("/");
    let with_a_name = url.replace("http://", "http://me:word@");
    for (arguments, word) in [
        (&["-k", &url][..], "--cacert"),
        (&["-u", "me:word", &url], "authorization"),
        (&["-b", "a=b", &url], "cookie"),
        (&["-F", "a=@b", &url], "-d @FILE"),
        (&["-O", &url], "-o"),
        (&["-v", &url], "FAREBOX_LOG"),
        (&["--max-time", "0", &url], "write seconds"),
        (&["-i", "-o", "x", &url], "cannot be used with"),
        (&[&with_a_name], "user name"),
    ] {
        let output = buyer.get(arguments).await;
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(exit(&output), 2, "{arguments:?} {told}");
        assert!(told.contains(word) && !told.contains("me:word"), "{arguments:?} {told}");
    }
    assert_eq!((shop.requests(), buyer.payments()), (0, 0));
}

#[tokio::test]
async fn plain_http_without_a_scheme_is_told_how_to_write_it() {
    let buyer = Buyer::new().await;
    let shop = Shop::with(&buyer.world.net, sells("goods")).await;
    let output = buyer.get(&[shop.url.trim_start_matches("http://")]).await;
    assert_eq!(exit(&output), 4);
    let told = error(&output)["message"].as_str().unwrap().to_owned();
    assert!(told.contains(&format!("is it http? write `{}`", shop.url)), "{told}");
}

#[tokio::test]
async fn a_time_that_is_up_says_what_became_of_the_money() {
    // A server that doesn't answer, and a wallet that falls silent.
    let buyer = Buyer::new().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mute = format!("http://{}/", listener.local_addr().unwrap());
    let output = buyer.get(&["-m", "0.3", &mute]).await;
    let told = error(&output);
    assert_eq!((exit(&output), &told["code"], &told["retryable"]), (4, &"timeout".into(), &true.into()));
    assert_eq!(told["money"], serde_json::json!({ "state": "none" }));

    let buyer = Buyer::in_mood(Mood::Lost).await;
    let shop = Shop::with(&buyer.world.net, sells("goods")).await;
    let output = buyer.get(&["-m", "1", &shop.url("/")]).await;
    let told = error(&output);
    assert_eq!((exit(&output), &told["code"]), (8, &"payment_unknown".into()), "{told}");
    assert_eq!(
        (&told["money"]["state"], &told["money"]["amount_msat"]),
        (&"unknown".into(), &100_000.into())
    );
    assert_eq!(told["money"]["payment_hash"].as_str().unwrap().len(), 64);

    // Paid, and then no answer: the next call has what was paid for.
    let buyer = Buyer::new().await;
    let paid = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&paid);
    let shop = Shop::with(&buyer.world.net, move |till, asked| match till.paid(&asked.headers) {
        None => till.challenge("svc", 100),
        Some(_) if seen.fetch_add(1, Ordering::SeqCst) == 0 => Response::new(axum::body::Body::from_stream(
            futures_util::stream::pending::<std::io::Result<&str>>(),
        )),
        Some(_) => till.serve("goods"),
    })
    .await;
    let output = buyer.get(&["-m", "3", &shop.url("/")]).await;
    let told = error(&output);
    assert_eq!((exit(&output), &told["code"]), (4, &"timeout".into()), "{told}");
    assert_eq!(told["money"]["state"], "spent");
    assert_eq!(buyer.get(&[&shop.url("/")]).await.stdout, b"goods");
    assert_eq!(buyer.payments(), 1);
}

/// As a farebox gateway with two offers answers.
fn menu(till: &Till, asked: &Asked) -> Response {
    if till.paid(&asked.headers).is_some() {
        let mut response = till.serve("goods");
        response.headers_mut().insert("farebox-left", HeaderValue::from_static("9"));
        response.headers_mut().insert("farebox-left-unit", HeaderValue::from_static("request"));
        return response;
    }
    let price = match asked.headers.get("farebox-offer").map(|value| value.to_str().unwrap()) {
        None | Some("one") => 100,
        Some("ten") => 900,
        Some(_) => {
            let mut response = Response::new("{}".into());
            *response.status_mut() = StatusCode::BAD_REQUEST;
            response.headers_mut().insert("farebox-code", HeaderValue::from_static("offer_unknown"));
            return response;
        }
    };
    let mut response = till.challenge("svc", price);
    let offers = r#"{"offers":[{"name":"one","price_msat":100000,"offer":"duration","duration_secs":60},
        {"name":"ten\u001b[2J","price_msat":1,"offer":"requests","requests":10,"good_for_secs":600,
         "monthly":[{"capability":"read","unit":"request","most":5},{"capability":"read","unit":"msat","most":2000}]}],
        "offer_name":"one","offer":"duration","duration_secs":60,"price_msat":100000,
        "monthly":[{"capability":"read","unit":"request","most":7}]}"#;
    *response.body_mut() = offers.into();
    response
}

#[tokio::test]
async fn of_several_offers_all_are_told_and_the_one_that_is_named_is_bought() {
    let buyer = Buyer::new().await;
    let shop = Shop::with(&buyer.world.net, menu).await;
    let url = shop.url("/");
    let dry = buyer.get(&["--dry-run", &url]).await;
    let told = json(&dry);
    assert_eq!((exit(&dry), &told["offers"][1]["price_msat"]), (10, &1.into()));
    assert_eq!((&told["offers"][0]["name"], &told["offers"][1]["requests"]), (&"one".into(), &10.into()));
    let printed = buyer.get(&["--dry-run", "--human", &url]).await.stdout;
    let printed = String::from_utf8(printed).unwrap();
    assert!(printed.contains("\n  one: 100 sat for access for 1 minute (this one)\n"), "{printed}");
    let asked = "the seller says that this buys access for 1 minute, at most 7 requests a month of `read`\n";
    assert!(printed.contains(asked), "{printed}");
    let ten =
        "10 requests, good for 10 minutes, at most 5 requests a month of `read`, 2 sat a month of `read`\n";
    assert!(printed.contains(ten) && !printed.contains('\u{1b}'), "{printed}");

    let unknown = buyer.get(&["--offer", "hundred", &url]).await;
    assert_eq!((exit(&unknown), error(&unknown)["code"].as_str()), (7, Some("offer_unknown")));
    // Whatever the list says, the price is the invoice's.
    let dear = buyer.get(&["--offer", "ten", "--max-cost", "500sat", &url]).await;
    assert_eq!((exit(&dear), error(&dear)["code"].as_str()), (7, Some("over_price_limit")));
    let said = "--max-cost raises it as far as the policy allows, and --dry-run tells whether there are other offers";
    assert!(error(&dear)["message"].as_str().unwrap().ends_with(said), "{dear:?}");
    assert_eq!(buyer.payments(), 0);
    let bought = json(&buyer.get(&["--offer", "ten", "--json", &url]).await);
    assert_eq!((&bought["payment"]["amount_msat"], &bought["left"]), (&900_000.into(), &9.into()));
    assert_eq!(bought["left_unit"], "request");
    let again = buyer.get(&["--human", &url]).await;
    assert!(
        String::from_utf8_lossy(&again.stderr).contains("9 requests left of what was bought\n"),
        "{again:?}"
    );
    assert_eq!(buyer.payments(), 1);
}

#[tokio::test]
async fn asking_for_a_price_takes_no_longer_than_it_may() {
    let buyer = Buyer::new().await;
    // Connections stand, and nobody takes them.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", silent.local_addr().unwrap());
    let output = buyer.get(&["--dry-run", "--max-time", "0.2", &url]).await;
    assert_eq!((exit(&output), error(&output)["code"].as_str()), (4, Some("timeout")));
}
