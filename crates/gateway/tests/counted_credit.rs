//! Credit that is drawn down by use: what is read of requests and answers, and what it costs.

#![expect(clippy::unwrap_used, reason = "an error is how a test fails")]

mod support;

use std::sync::Arc;

use axum::{Router, body::Body, extract::Request as Received, response::IntoResponse};
use bytes::Bytes;
use farebox_paywall::{
    Freebies, RouteCost,
    price::{Meter, PerMillion},
};
use futures_util::{StreamExt, stream};
use http::{HeaderName, HeaderValue, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt;
use parking_lot::Mutex;
use serde_json::{Value, json};
use support::{
    Rig, ask, body, config,
    counted::{Bought, credit, metered, usage},
    get, pieces, request,
    upstream::Upstream,
    websocket::{Over, Puppet, open},
    within,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Two msat for each byte of a request, three for each of an answer.
fn by_bytes() -> Meter {
    Meter::Bytes { request: PerMillion(2_000_000), response: PerMillion(3_000_000) }
}

/// A model: answers in JSON or, if asked to, in events, and says what was used where it was asked for that.
async fn model(heard: Arc<Mutex<Vec<Value>>>) -> Upstream {
    let answer = move |request: Received| async move {
        let (parts, upload) = request.into_parts();
        let upload = upload.collect().await.unwrap().to_bytes();
        let line = |name: &str| parts.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        heard.lock().push(json!({
            "encoding": line("accept-encoding"), "length": line("content-length"), "bytes": upload.len(),
        }));
        let asked: Value = serde_json::from_slice(&upload).unwrap_or_default();
        let used = json!({"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18});
        if asked["stream"] != true {
            return axum::Json(json!({"choices": [], "usage": used})).into_response();
        }
        let event = |data: Value| Ok::<_, std::io::Error>(format!("data: {data}\n\n"));
        let mut events: Vec<_> = (0..5).map(|_| event(json!({"choices": ["word"]}))).collect();
        if parts.uri.path() == "/endless" {
            let never = stream::iter(events).chain(stream::pending());
            return ([("content-type", "text/event-stream")], Body::from_stream(never)).into_response();
        }
        if parts.uri.path() == "/cut" {
            events.push(Err(std::io::Error::other("gone")));
        }
        if asked["stream_options"]["include_usage"] == true {
            events.push(event(json!({"choices": [], "usage": used})));
        }
        events.push(Ok("data: [DONE]\n\n".to_owned()));
        let kind = [("content-type", "text/event-stream; charset=utf-8")];
        (kind, Body::from_stream(stream::iter(events))).into_response()
    };
    Upstream::serve(Router::new().fallback(answer)).await
}

/// Asks a model.
async fn prompt(rig: &Rig, version: u8, path: &str, bought: &Bought, prompt: &str) -> http::Response<Bytes> {
    let headers = [bought.header(), ("content-type", "application/json"), ("accept-encoding", "gzip, br")];
    let asking = request("POST", path, &headers).map(|_| body(prompt.to_owned()));
    let (parts, answer) = rig.send(version, asking).await.into_parts();
    let answer = within(answer.collect()).await.map(|answer| answer.to_bytes()).unwrap_or_default();
    http::Response::from_parts(parts, answer)
}

#[tokio::test]
async fn bytes_are_charged_both_ways() {
    let answer = |request: Received| async move {
        request.into_body().collect().await.unwrap();
        "0123456789"
    };
    let upstream = Upstream::serve(Router::new().fallback(answer)).await;
    for url in [upstream.url(), upstream.h2c()] {
        let rig = Rig::counting(config(vec![credit(&url, 100_000, metered(100, by_bytes()))])).await;
        let bought = rig.purchase("/").await;
        for (version, before) in [(1, 0), (2, 1_230)] {
            // 600 up and 10 down.
            let upload =
                stream::iter([[7; 400].to_vec(), [8; 200].to_vec()].map(Bytes::from).map(Frame::data));
            let asking = request("POST", "/", &[bought.header()]).map(|_| pieces(upload));
            let answer = rig.send(version, asking).await;
            assert_eq!(within(answer.into_body().collect()).await.unwrap().to_bytes(), "0123456789");
            assert_eq!(rig.spent(&bought).await - before, 600 * 2 + 10 * 3, "over HTTP/{version} at {url}");
        }
        rig.metric(r#"farebox_charged_units_total{service="api",unit="msat"} 2460"#).await;
        rig.metric(r#"farebox_charged_requests_total{service="api",unit="msat"} 2"#).await;
    }
}

#[tokio::test]
async fn what_the_upstream_says_that_it_costs_is_charged_and_not_passed_on() {
    let answer = |request: Received| async move {
        match request.uri().path() {
            "/dear" => ([("x-cost", "70 msat"), ("x-else", "1")], "dear").into_response(),
            "/bare" => ([("x-cost", "5"), ("x-else", "1")], "bare").into_response(),
            "/silent" => ([("x-else", "1")], "silent").into_response(),
            _ => (StatusCode::BAD_GATEWAY, [("x-cost", "70"), ("x-else", "1")], "broken").into_response(),
        }
    };
    let upstream = Upstream::serve(Router::new().fallback(answer)).await;
    let cost = metered(50, Meter::Header(HeaderName::from_static("x-cost")));
    let rig = Rig::counting(config(vec![credit(&upstream.url(), 100_000, cost)])).await;
    let bought = rig.purchase("/").await;
    let mut spent = 0;
    for version in [1, 2] {
        for (path, cost) in [("/dear", 70), ("/bare", 5), ("/silent", 50), ("/broken", 0)] {
            let answer = rig.send(version, request("GET", path, &[bought.header()])).await;
            assert!(
                !answer.headers().contains_key("x-cost") && answer.headers().contains_key("x-else"),
                "{path}"
            );
            within(answer.into_body().collect()).await.unwrap();
            spent += cost;
            assert_eq!(rig.spent(&bought).await, spent, "{path} over HTTP/{version}");
        }
    }
}

#[tokio::test]
async fn what_a_request_would_cost_is_told_to_nobody_who_need_not_pay_for_it() {
    let answer = || async { ([("x-cost", "70"), ("x-dear", "700"), ("x-else", "1")], "answer") };
    let upstream = Upstream::serve(Router::new().fallback(answer)).await;
    let header = |name| metered(50, Meter::Header(HeaderName::from_static(name)));
    let mut route = credit(&upstream.url(), 100_000, header("x-cost"));
    route.service.costs.routes = vec![RouteCost {
        methods: Vec::new(),
        paths: vec!["/dear".parse().unwrap()],
        cost: Arc::new(header("x-dear")),
    }];
    route.service.freebies = Some(Freebies { requests: 2.try_into().unwrap(), per: None, keep: false });
    route.service.free_paths = vec!["/free".parse().unwrap()];
    let rig = Rig::counting(config(vec![route])).await;
    for path in ["/", "/dear", "/free"] {
        let answer = get(rig.addr, path, &[]).await;
        assert_eq!(answer.status(), 200, "{path}");
        let told: Vec<_> = ["x-cost", "x-dear", "x-else"]
            .into_iter()
            .filter(|name| answer.headers().contains_key(*name))
            .collect();
        assert_eq!(told, ["x-else"], "{path}");
    }
    assert_eq!(get(rig.addr, "/", &[]).await.status(), 402);
}

#[tokio::test]
async fn a_model_is_paid_by_what_it_says_was_used() {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let upstream = model(heard.clone()).await;
    for url in [upstream.url(), upstream.h2c()] {
        let rig = Rig::counting(config(vec![credit(&url, 100_000, metered(1_000, usage()))])).await;
        let bought = rig.purchase("/").await;
        let mut spent = 0;
        for version in [1, 2] {
            for asking in [r#"{"a":1}"#, r#"{"stream":true}"#, r#"{"stream":true,"stream_options":{}}"#] {
                let answer = prompt(&rig, version, "/", &bought, asking).await;
                assert_eq!(answer.status(), 200);
                spent += 11 + 7 * 2;
                assert_eq!(rig.spent(&bought).await, spent, "{asking} over HTTP/{version} at {url}");
            }
        }
    }
    for heard in heard.lock().iter() {
        assert_eq!(heard["encoding"], "identity");
        assert_eq!(heard["length"], heard["bytes"].to_string());
    }
}

#[tokio::test]
async fn a_buyer_who_wants_no_usage_told_pays_the_reserve() {
    let upstream = model(Arc::default()).await;
    let rig = Rig::counting(config(vec![credit(&upstream.url(), 100_000, metered(1_000, usage()))])).await;
    let bought = rig.purchase("/").await;
    let asking = r#"{"stream":true,"stream_options":{"include_usage":false}}"#;
    assert_eq!(prompt(&rig, 1, "/", &bought, asking).await.status(), 200);
    assert_eq!(rig.spent(&bought).await, 1_000);
}

#[tokio::test]
async fn a_stream_that_breaks_off_is_free_and_one_that_is_left_costs_what_has_passed() {
    let upstream = model(Arc::default()).await;
    for url in [upstream.url(), upstream.h2c()] {
        let rig = Rig::counting(config(vec![credit(&url, 100_000, metered(1_000, usage()))])).await;
        let bought = rig.purchase("/").await;
        let mut spent = 0;
        for version in [1, 2] {
            prompt(&rig, version, "/cut", &bought, r#"{"stream":true}"#).await;
            assert_eq!(rig.spent(&bought).await, spent, "cut, over HTTP/{version} at {url}");

            let headers = [bought.header(), ("content-type", "application/json")];
            let asking = request("POST", "/endless", &headers).map(|_| body(r#"{"stream":true}"#));
            let mut answer = rig.send(version, asking).await.into_body();
            let mut told = Vec::new();
            while told.windows(4).filter(|window| window == b"word").count() < 5 {
                told.extend_from_slice(&within(answer.frame()).await.unwrap().unwrap().into_data().unwrap());
            }
            drop(answer);
            // Five events, and four bytes of the request for each unit, with the question that was put into it.
            let asked = r#"{"stream_options":{"include_usage":true},"stream":true}"#.len() as u64;
            spent += asked.div_ceil(4) + 5 * 2;
            assert_eq!(rig.spent(&bought).await, spent, "left, over HTTP/{version} at {url}");
        }
    }
}

#[tokio::test]
async fn an_answer_is_whole_with_the_last_byte_that_was_announced() {
    // The stream of HTTP/2 goes on, and nobody waits for that.
    let answer = || async {
        let announced = [("content-type", "application/json"), ("content-length", "7")];
        let told = stream::iter([Ok::<_, std::io::Error>(r#"{"a":1}"#)]);
        (announced, Body::from_stream(told.chain(stream::pending())))
    };
    let upstream = Upstream::serve(Router::new().fallback(answer)).await;
    let route = credit(&upstream.h2c(), 100_000, metered(1_000, usage()));
    let rig = Rig::counting(config(vec![route])).await;
    let bought = rig.purchase("/").await;
    let answer = within(rig.send(1, request("GET", "/", &[bought.header()])).await.into_body().collect());
    assert_eq!(answer.await.unwrap().to_bytes(), r#"{"a":1}"#);
    assert_eq!(rig.spent(&bought).await, 1_000, "it tells no usage, so it costs the reserve");
}

#[tokio::test]
async fn a_body_that_is_too_large_or_no_plain_json_goes_on_as_it_came() {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let upstream = model(heard.clone()).await;
    let rig = Rig::counting(config(vec![credit(&upstream.url(), 100_000, metered(1_000, usage()))])).await;
    let bought = rig.purchase("/").await;
    let large = format!(r#"{{"stream":true,"x":"{}"}}"#, "y".repeat(1 << 20));
    for version in [1, 2] {
        prompt(&rig, version, "/", &bought, &large).await;
        assert_eq!(heard.lock().pop().unwrap()["bytes"], large.len());
        // Without a length, so that it turns out late.
        let (first, second) = large.split_at(1 << 19);
        let frames = [first, second].map(|piece| Frame::data(Bytes::from(piece.to_owned())));
        let headers = [bought.header(), ("content-type", "application/json")];
        let asking = request("POST", "/", &headers).map(|_| pieces(stream::iter(frames)));
        let answer = rig.send(version, asking).await;
        assert_eq!(answer.status(), 200);
        within(answer.into_body().collect()).await.unwrap();
        assert_eq!(heard.lock().pop().unwrap()["bytes"], large.len());
        let small = r#"{"stream":true}"#;
        let asking =
            request("POST", "/", &[bought.header(), ("content-type", "text/plain")]).map(|_| body(small));
        within(rig.send(version, asking).await.into_body().collect()).await.unwrap();
        assert_eq!(heard.lock().pop().unwrap()["bytes"], small.len());
    }
}

#[tokio::test]
async fn a_request_that_is_read_first_may_be_slow_and_must_come_in_time() {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let upstream = model(heard.clone()).await;
    let mut route = credit(&upstream.url(), 100_000, metered(1_000, usage()));
    route.upstream.idle_timeout = Some(std::time::Duration::from_millis(200));
    let rig = Rig::counting(config(vec![route])).await;
    let bought = rig.purchase("/").await;
    for version in [1, 2] {
        let first = stream::iter([Frame::data(Bytes::from_static(br#"{"stream":"#))]);
        let headers = [bought.header(), ("content-type", "application/json")];
        let asking = request("POST", "/", &headers).map(|_| pieces(first.chain(stream::pending())));
        assert_eq!(rig.send(version, asking).await.status(), 408, "over HTTP/{version}");
        assert_eq!(rig.spent(&bought).await, 0);
    }
    assert!(heard.lock().is_empty(), "nothing was sent on");
}

#[tokio::test]
async fn what_costs_more_than_there_is_left_is_written_off() {
    let answer = || async { [("x-cost", "500")] };
    let upstream = Upstream::serve(Router::new().fallback(answer)).await;
    let cost = metered(60, Meter::Header(HeaderName::from_static("x-cost")));
    let rig = Rig::counting(config(vec![credit(&upstream.url(), 100, cost)])).await;
    let bought = rig.purchase("/").await;
    assert_eq!(ask(rig.addr, request("GET", "/", &[bought.header()])).await.status(), 200);
    let balance = rig.settled(&bought).await;
    assert_eq!((balance.spent(), balance.left(), balance.written_off()), (100, 0, 400));
    rig.metric(r#"farebox_written_off_units_total{service="api",unit="msat"} 400"#).await;
    let refused = ask(rig.addr, request("GET", "/", &[bought.header()])).await;
    assert_eq!(
        (refused.status().as_u16(), &refused.headers()["farebox-code"]),
        (402, &HeaderValue::from_static("units_spent"))
    );
}

/// Answers without end in pieces of 100 bytes, each a message of gRPC, and says that it is what was sent to it.
async fn endless() -> Upstream {
    let answer = |request: Received| async move {
        let kind = request.headers().get("content-type").cloned();
        let kind = kind.unwrap_or(HeaderValue::from_static("text/event-stream"));
        let mut piece = vec![b'.'; 100];
        piece[..5].copy_from_slice(&[0, 0, 0, 0, 95]);
        // However fast it is read, it never ends.
        let pieces =
            stream::repeat_with(move || Ok::<_, std::io::Error>(piece.clone())).then(async |piece| {
                tokio::task::yield_now().await;
                piece
            });
        ([("content-type", kind)], Body::from_stream(pieces))
    };
    Upstream::serve(Router::new().fallback(answer)).await
}

#[tokio::test]
async fn a_stream_ends_where_nothing_is_left_to_pay_for_it() {
    let upstream = endless().await;
    for url in [upstream.url(), upstream.h2c()] {
        for (version, kind) in [(1, "text/plain"), (2, "text/plain"), (2, "application/grpc")] {
            let route = credit(&url, 10_000, metered(1_000, by_bytes()));
            let rig = Rig::counting(config(vec![route])).await;
            let bought = rig.purchase("/").await;
            let headers = [bought.header(), ("content-type", kind), ("te", "trailers")];
            let answer = rig.send(version, request("GET", "/", &headers)).await;
            assert_eq!(answer.status(), 200);
            let (mut body, mut got, mut end) = (answer.into_body(), 0, None);
            while let Some(frame) = within(body.frame()).await {
                match frame.map(Frame::into_data) {
                    Ok(Ok(data)) => got += data.len() as u64,
                    Ok(Err(trailers)) => end = trailers.into_trailers().ok(),
                    Err(_) => break,
                }
            }
            let told = end.map(|end| (end["grpc-status"].clone(), end["farebox-code"].clone()));
            let want = (kind == "application/grpc").then_some(("8", "credit_exhausted"));
            let told = told.as_ref().map(|(a, b)| (a.to_str().unwrap(), b.to_str().unwrap()));
            assert_eq!(told, want, "{kind} over HTTP/{version} at {url}");
            let balance = rig.settled(&bought).await;
            assert_eq!((balance.spent(), balance.left()), (10_000, 0));
            // One piece may be more than there was to pay for it, and its rest is nobody's debt.
            let passed = balance.spent() + balance.written_off();
            assert!(passed.is_multiple_of(3) && got * 3 <= passed, "{got} arrived of {passed}");
            assert!(passed < 10_000 + (1 << 20), "{passed}");
            rig.metric(r#"farebox_requests_total{service="api",code="credit_exhausted",class="2xx"} 1"#)
                .await;
        }
    }
}

#[tokio::test]
async fn what_one_stream_uses_beyond_its_reserve_is_there_for_no_other() {
    let upstream = endless().await;
    let rig = Rig::counting(config(vec![credit(&upstream.url(), 30_000, metered(1_000, by_bytes()))])).await;
    let bought = rig.purchase("/").await;
    let mut streams = Vec::new();
    for _ in 0..8 {
        streams.push(rig.send(2, request("GET", "/", &[bought.header()])).await.into_body());
    }
    let read_out =
        streams.into_iter().map(|mut body| async move { while let Some(Ok(_)) = body.frame().await {} });
    within(futures_util::future::join_all(read_out)).await;
    let balance = rig.settled(&bought).await;
    assert_eq!((balance.spent(), balance.left()), (30_000, 0));
    assert!(balance.holds() && balance.written_off() < 8 << 20, "{balance:?}");
}

#[tokio::test]
async fn a_tunnel_ends_where_nothing_is_left_to_pay_for_it() {
    let upstream = Puppet::start().await;
    for over in [Over::Http1, Over::Http2] {
        let rig = Rig::counting(config(vec![credit(&upstream.url(), 1_000, metered(10, by_bytes()))])).await;
        let bought = rig.purchase("/").await;
        let headers = [bought.header()];
        let (opened, (mut server, _)) =
            tokio::join!(open(over, rig.addr, "/", &headers), upstream.agree(b""));
        let mut client = opened.tunnel();
        server.write_all(&[2; 300]).await.unwrap();
        within(client.read_exact(&mut [0; 300])).await.unwrap();
        client.write_all(&[1; 51]).await.unwrap();
        // Both sides find it closed, though neither has ended it.
        let _ = within(client.read_to_end(&mut Vec::new())).await;
        let _ = within(server.read_to_end(&mut Vec::new())).await;
        let balance = rig.settled(&bought).await;
        assert_eq!((balance.spent(), balance.written_off()), (1_000, 2), "{over:?}");
    }
}

#[tokio::test]
async fn an_answer_that_serves_nothing_costs_only_what_every_request_does() {
    let answer = |request: Received| async move {
        let json = [("content-type", "application/json")];
        match request.uri().path() {
            "/refused" => {
                (StatusCode::UNPROCESSABLE_ENTITY, json, r#"{"error":"no such model"}"#).into_response()
            }
            "/refused-and-told" => {
                let used = r#"{"usage":{"prompt_tokens":3,"completion_tokens":0}}"#;
                (StatusCode::BAD_REQUEST, json, used).into_response()
            }
            "/unchanged" => StatusCode::NOT_MODIFIED.into_response(),
            "/elsewhere" => (StatusCode::FOUND, [("location", "/")]).into_response(),
            "/nothing" => StatusCode::NO_CONTENT.into_response(),
            _ => (json, r#"{"choices":[]}"#).into_response(),
        }
    };
    let upstream = Upstream::serve(Router::new().fallback(answer)).await;
    let cost = farebox_paywall::price::Cost::Metered {
        reserve: farebox_protocol::Msat::new(1_000),
        base: farebox_protocol::Msat::new(5),
        meter: usage(),
    };
    for url in [upstream.url(), upstream.h2c()] {
        let rig = Rig::counting(config(vec![credit(&url, 100_000, cost.clone())])).await;
        let bought = rig.purchase("/").await;
        let mut spent = 0;
        for version in [1, 2] {
            for (method, path, cost) in [
                ("GET", "/", 1_000),
                ("HEAD", "/", 5),
                ("POST", "/refused", 5),
                ("HEAD", "/refused", 5),
                ("POST", "/refused-and-told", 8),
                ("GET", "/unchanged", 5),
                ("GET", "/elsewhere", 5),
                ("DELETE", "/nothing", 5),
            ] {
                let answer = rig.send(version, request(method, path, &[bought.header()])).await;
                within(answer.into_body().collect()).await.unwrap();
                spent += cost;
                assert_eq!(rig.spent(&bought).await, spent, "{method} {path} over HTTP/{version} at {url}");
            }
        }
    }
}

#[tokio::test]
async fn a_tunnel_costs_the_bytes_of_both_directions_whoever_ends_it() {
    let upstream = Puppet::start().await;
    for over in [Over::Http1, Over::Http2] {
        for upstream_ends in [true, false] {
            let rig =
                Rig::counting(config(vec![credit(&upstream.url(), 100_000, metered(10, by_bytes()))])).await;
            let bought = rig.purchase("/").await;
            let headers = [bought.header()];
            let (opened, (mut server, _)) =
                tokio::join!(open(over, rig.addr, "/", &headers), upstream.agree(b""));
            let mut client = opened.tunnel();
            client.write_all(&[1; 30]).await.unwrap();
            server.write_all(&[2; 500]).await.unwrap();
            within(client.read_exact(&mut [0; 500])).await.unwrap();
            within(server.read_exact(&mut [0; 30])).await.unwrap();
            if upstream_ends {
                drop(server);
                let _ = within(client.read_to_end(&mut Vec::new())).await;
                drop(client);
            } else {
                drop(client);
                let _ = within(server.read_to_end(&mut Vec::new())).await;
                drop(server);
            }
            assert_eq!(rig.spent(&bought).await, 30 * 2 + 500 * 3);
        }
    }
}

#[tokio::test]
async fn a_tunnel_is_one_request_of_those_that_were_bought() {
    let upstream = Puppet::start().await;
    let rig = Rig::counting(config(vec![support::counted::requests(&upstream.url(), 5)])).await;
    let bought = rig.purchase("/").await;
    for over in [Over::Http1, Over::Http2] {
        let headers = [bought.header()];
        let (opened, (server, _)) = tokio::join!(open(over, rig.addr, "/", &headers), upstream.agree(b""));
        drop((opened.tunnel(), server));
    }
    assert_eq!(rig.spent(&bought).await, 2);
}
