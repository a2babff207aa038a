//! Bytes on the wire: what can be read in two ways is refused, or put into one unambiguous message, and what the upstream
//! receives is what was decided on.

#![expect(clippy::unwrap_used, reason = "an error is how a test fails")]

mod support;

use bytes::Bytes;
use farebox_gateway::{GatewayConfig, Matcher};
use futures_util::stream;
use http::{HeaderMap, HeaderName, HeaderValue, Request, header};
use http_body::Frame;
use http_body_util::BodyExt;
use support::{
    Rig, free, http2, raw, request, service,
    upstream::{Recorder, Upstream},
    within,
};

/// `/free` costs nothing, everything else does; both go to the same upstream.
async fn rig(upstream: &Recorder) -> Rig {
    let mut open = free("open", &upstream.url());
    open.matcher = Matcher { path_prefixes: vec!["/free".parse().unwrap()], ..Matcher::default() };
    Rig::new(vec![open, service("paid", &upstream.url())]).await
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("none")
}

/// The request lines that the upstream saw.
fn lines(received: &str) -> Vec<String> {
    received.lines().filter(|line| line.ends_with(" HTTP/1.1")).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_length_and_chunks_together_are_one_message_and_end_the_connection() {
    let upstream = Recorder::start().await;
    let rig = rig(&upstream).await;
    for head in [
        "POST /free HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST /free HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n",
        "POST /free HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding:\tChunked\r\n\r\n",
    ] {
        let bytes = format!("{head}0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n");
        // Reads to the end: the gateway closes the connection.
        let answer = raw(rig.addr, bytes.as_bytes(), "").await;
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{head}\n{answer}");
    }
    let received = upstream.received();
    assert!(!received.contains("smuggled"), "{received}");
    assert!(!received.to_lowercase().contains("content-length: 4"), "{received}");
}

#[tokio::test]
async fn a_message_without_one_clear_length_is_refused() {
    let upstream = Recorder::start().await;
    let rig = rig(&upstream).await;
    for framing in [
        "Content-Length: 4\r\nContent-Length: 5",
        "Content-Length: 4, 5",
        "Content-Length: +4",
        "Content-Length: -1",
        "Content-Length: 0x4",
        "Content-Length: 99999999999999999999999",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding: chunked\r\n X: folded",
        "X: folded\r\n obs",
        "X\r: a",
        "X\0: a",
        " X: a",
    ] {
        let bytes = format!("POST /free HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\nabcd");
        let answer = raw(rig.addr, bytes.as_bytes(), "").await;
        assert_eq!(status(&answer), "400", "{framing}\n{answer}");
    }
    assert_eq!(upstream.received(), "");
}

#[tokio::test]
async fn what_other_parsers_stumble_over_reaches_the_upstream_in_plain_form() {
    let upstream = Recorder::start().await;
    let rig = rig(&upstream).await;
    // Bare line feeds, and the same length said twice.
    raw(rig.addr, b"GET /free/lf HTTP/1.1\nHost: a\nX-One: 1\n\n", "ok").await;
    let twice = b"POST /free/twice HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi";
    raw(rig.addr, twice, "ok").await;
    let received = upstream.received();
    assert_eq!(lines(&received), ["GET /free/lf HTTP/1.1", "POST /free/twice HTTP/1.1"]);
    assert_eq!(received.matches('\n').count(), received.matches("\r\n").count(), "{received:?}");
    assert_eq!(received.to_lowercase().matches("content-length: 2").count(), 1, "{received}");
}

#[tokio::test]
async fn there_is_one_host_or_the_request_is_refused() {
    let upstream = Recorder::start().await;
    let rig = rig(&upstream).await;
    for head in [
        "GET /free HTTP/1.1\r\n",
        "GET /free HTTP/1.1\r\nHost: a\r\nHost: b\r\n",
        "GET /free HTTP/1.1\r\nHost: a\r\nHost: a\r\n",
        "GET /free HTTP/1.1\r\nHost: \r\n",
        "GET /free HTTP/1.1\r\nHost: a,b\r\n",
        "GET /free HTTP/1.1\r\nHost: user@a\r\n",
        "GET http://a/free HTTP/1.1\r\nHost: b\r\n",
        "GET http://a/free HTTP/1.1\r\n",
    ] {
        let answer = raw(rig.addr, format!("{head}\r\n").as_bytes(), "").await;
        assert_eq!(status(&answer), "400", "{head}\n{answer}");
        assert!(answer.contains("\"code\":\"host_refused\""), "{answer}");
    }
    assert_eq!(upstream.received(), "");
    for head in ["GET /free HTTP/1.0\r\n", "GET http://a:80/free HTTP/1.1\r\nHost: A\r\n"] {
        let answer = raw(rig.addr, format!("{head}\r\n").as_bytes(), "ok").await;
        assert_eq!(status(&answer), "200", "{head}\n{answer}");
    }
}

/// The upstream must never receive a path that the gateway took for another one.
#[tokio::test]
async fn no_spelling_of_a_paid_path_passes_as_a_free_one() {
    let upstream = Recorder::start().await;
    let rig = rig(&upstream).await;
    for path in [
        "/free/../paid",
        "/free/%2e%2e/paid",
        "/free/.%2E/paid",
        "/free/..%2fpaid",
        "/free/..%5cpaid",
        "/free/..\\paid",
        "/free\\..\\paid",
        "/free/..;/paid",
        "/free/..;x=1/paid",
        "/free%2f..%2fpaid",
        "/free/./../paid",
        "/free//../../paid",
        "//paid",
        "/./paid",
        "/%70aid",
        "/paid%00/free",
        "/free/%00/../../paid",
        "/free/..%c0%af..paid%2f",
        "http://a/free/../paid",
        "/freedom",
        "/FREE",
        "/free%20/../paid",
    ] {
        let bytes = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let answer = raw(rig.addr, bytes.as_bytes(), "").await;
        assert!(["400", "402"].contains(&status(&answer)), "{path}\n{answer}");
    }
    assert_eq!(upstream.received(), "");
}

#[tokio::test]
async fn the_upstream_gets_the_path_that_was_decided_on() {
    let upstream = Recorder::start().await;
    let rig = rig(&upstream).await;
    for (path, want) in [
        ("/paid/../free/x", "/free/x"),
        ("//free//x", "/free/x"),
        ("/%66ree/x?q=/../%2e&r=a%20b", "/free/x?q=/../%2e&r=a%20b"),
        ("/free/caf%c3%a9", "/free/caf%C3%A9"),
        // Which offer is chosen is for us.
        ("/free/x?a=%2e&farebox-offer=large&&b", "/free/x?a=%2e&&b"),
        ("/free/./x?farebox-offer=", "/free/x"),
        ("/free/x?farebox-offers=1&x=farebox-offer=1", "/free/x?farebox-offers=1&x=farebox-offer=1"),
        ("http://a/free", "/free"),
        ("/free#/../paid", "/free"),
    ] {
        let bytes = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
        let before = lines(&upstream.received()).len();
        let answer = raw(rig.addr, bytes.as_bytes(), "ok").await;
        assert_eq!(status(&answer), "200", "{path}\n{answer}");
        assert_eq!(lines(&upstream.received())[before..], [format!("GET {want} HTTP/1.1")]);
    }
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let upstream = Recorder::start().await;
    let rig = rig(&upstream).await;
    let fat = format!("GET /free HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(40_000));
    let many = format!("GET /free HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: 1\r\n".repeat(200));
    let long = format!("GET /free/{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(70_000));
    for bytes in [fat, many, long] {
        let answer = raw(rig.addr, bytes.as_bytes(), "").await;
        assert!(["431", "414"].contains(&status(&answer)), "{answer}");
    }
    assert_eq!(upstream.received(), "");
}

#[tokio::test]
async fn tunnels_and_traces_are_refused_before_anybody_pays() {
    let upstream = Recorder::start().await;
    let rig = rig(&upstream).await;
    for (head, code) in [
        ("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n", ""),
        ("TRACE /paid HTTP/1.1\r\nHost: a\r\n", "method_refused"),
    ] {
        let answer = raw(rig.addr, format!("{head}Connection: close\r\n\r\n").as_bytes(), "").await;
        assert!(["400", "501"].contains(&status(&answer)), "{head}\n{answer}");
        assert!(answer.contains(code), "{answer}");
    }
    // An offer of another HTTP version is passed over in silence.
    let offer = "GET /free HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
                 HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n";
    let answer = raw(rig.addr, offer.as_bytes(), "ok").await;
    assert_eq!(status(&answer), "200", "{answer}");
    assert!(!upstream.received().to_lowercase().contains("upgrade"), "{}", upstream.received());
    assert_eq!(rig.node.made(), 0);
}

/// Some servers drop parameters, most decode more than they must before they look for the one who answers.
#[tokio::test]
async fn a_path_that_another_server_would_route_to_another_service_is_refused() {
    let upstream = Recorder::start().await;
    let mut dear = service("dear", &upstream.url());
    dear.matcher = Matcher {
        path_prefixes: ["/dear", "/@me", "/v1/x:y"].map(|path| path.parse().unwrap()).to_vec(),
        ..Matcher::default()
    };
    let rig = Rig::new(vec![dear, free("rest", &upstream.url())]).await;
    for path in ["/dear;x", "/dear;x=1/y", "/dear%3Bx", "/%40me", "/;a/dear", "/v1;a/x%3ay", "/%40me;b/c"] {
        let bytes = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
        let answer = raw(rig.addr, bytes.as_bytes(), "").await;
        assert_eq!(status(&answer), "400", "{path}\n{answer}");
        assert!(answer.contains("\"code\":\"path_refused\""), "{answer}");
    }
    assert_eq!(upstream.received(), "");
    for path in ["/rest;x=1/y", "/deary;x", "/a%2Cb", "/a%20b"] {
        let bytes = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let answer = raw(rig.addr, bytes.as_bytes(), "").await;
        assert_eq!(status(&answer), "200", "{path}\n{answer}");
    }
    // Paid for or not, what is asked for under it is one service's.
    let dear = raw(rig.addr, b"GET /dear/a;b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "").await;
    assert_eq!(status(&dear), "402", "{dear}");
}

#[tokio::test]
async fn a_body_in_chunks_arrives_whatever_the_method() {
    let upstream = Upstream::echo().await;
    for url in [upstream.url(), upstream.h2c()] {
        let rig = Rig::new(vec![free("search", &url)]).await;
        for method in ["GET", "POST", "DELETE"] {
            let head = format!(
                "{method} / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n"
            );
            let bytes = format!("{head}\r\n5\r\nquery\r\n0\r\n\r\n");
            let answer = raw(rig.addr, bytes.as_bytes(), "").await;
            assert!(answer.contains("\"body\":\"query\""), "{method} {url}\n{answer}");
        }
    }
}

#[tokio::test]
async fn trailers_say_nothing_that_headers_may_not() {
    let echo = |request: axum::extract::Request| async move {
        let trailers = request.into_body().collect().await.unwrap().trailers().cloned().unwrap_or_default();
        let mut names: Vec<String> = trailers.keys().map(ToString::to_string).collect();
        names.sort();
        names.join(" ")
    };
    let upstream = Upstream::serve(axum::Router::new().fallback(echo)).await;
    let names = [
        "x-sum",
        "x-api-key",
        "x_api_key",
        "farebox-token-id",
        "farebox_service",
        "x-forwarded-for",
        "forwarded",
        "authorization",
        "macaroon",
    ];
    for url in [upstream.url(), upstream.h2c()] {
        let mut route = free("sums", &url);
        route.headers =
            vec![(HeaderName::from_static("x-api-key"), HeaderValue::from_static("the-operators"))];
        let rig = Rig::new(vec![route]).await;
        let forged: HeaderMap = names
            .iter()
            .map(|name| (HeaderName::from_static(name), HeaderValue::from_static("forged")))
            .collect();
        let body =
            support::pieces(stream::iter([Frame::data(Bytes::from_static(b"up")), Frame::trailers(forged)]));
        let asked =
            Request::post("http://localhost/").header("trailer", names.join(", ")).body(body).unwrap();
        let answer = within(http2(rig.addr).await.send_request(asked)).await.unwrap();
        let got = within(answer.into_body().collect()).await.unwrap().to_bytes();
        // `macaroon` is somebody else's unless it reads as one of ours.
        let got: Vec<&str> =
            std::str::from_utf8(&got).unwrap().split(' ').filter(|name| *name != "macaroon").collect();
        assert_eq!(got, ["x-sum"], "{url}");
    }
}

#[tokio::test]
async fn a_length_said_twice_over_http2_is_said_once() {
    let upstream = Recorder::start().await;
    let rig = rig(&upstream).await;
    let asked = Request::post("http://a/free")
        .header(header::CONTENT_LENGTH, "2")
        .header(header::CONTENT_LENGTH, "2")
        .body(support::body("hi"))
        .unwrap();
    let answer = within(http2(rig.addr).await.send_request(asked)).await.unwrap();
    assert_eq!(answer.status(), 200);
    let received = upstream.received();
    assert_eq!(received.matches("content-length").count(), 1, "{received}");
}

/// What an upstream answers, and what the client gets of it: status and body, or that it was broken off.
#[tokio::test]
async fn an_answer_that_can_be_read_in_two_ways_is_put_into_one() {
    for (answer, want) in [
        (
            "200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            "200 hello",
        ),
        (
            "200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 9\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            "200 hello",
        ),
        ("200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nhi", "200 hi"),
        ("200 OK\r\ncontent-length: 2, 2\r\n\r\nhi", "200 hi"),
        ("200 OK\r\ncontent-length: 2\r\n\r\nhiHTTP/1.1 200 OK\r\n\r\n", "200 hi"),
        ("103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", "200 hi"),
        ("200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nhi", "502"),
        ("200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", "502"),
        ("200 OK\r\nx: a\r\n folded\r\ncontent-length: 2\r\n\r\nhi", "502"),
        ("101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nraw", "502"),
    ] {
        let wire = format!("HTTP/1.1 {answer}").into_bytes().leak();
        let upstream = Recorder::answering(wire).await;
        let config = support::config(vec![free("files", &upstream.url())]);
        let rig = Rig::with(GatewayConfig { workers: 1, ..config }).await;
        // Twice, so that whatever is left of the first answer would be taken for the second.
        for target in ["/", "/", "http://localhost/", "http://localhost/"] {
            let asked = request("GET", target, &[]);
            let response = if target == "/" {
                within(support::http1(rig.addr).await.send_request(asked)).await
            } else {
                within(http2(rig.addr).await.send_request(asked)).await
            };
            let (head, body) = response.unwrap().into_parts();
            let body = within(body.collect()).await.unwrap().to_bytes();
            let lengths = head.headers.get_all(header::CONTENT_LENGTH).iter().count();
            assert!(lengths <= 1, "{answer:?}");
            let got = format!("{} {}", head.status.as_u16(), String::from_utf8_lossy(&body));
            assert!(got == want || (want == "502" && got.starts_with("502 ")), "{answer:?}: {got}");
        }
    }
}

#[tokio::test]
async fn an_answer_that_was_cut_never_looks_whole() {
    for (answer, kind) in [
        ("content-length: 9\r\n\r\nhi", "text/plain"),
        ("transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n", "text/plain"),
        // Whatever the question calls itself, and where trailers aren't what ends a stream.
        ("transfer-encoding: chunked\r\n\r\n2\r\nhi\r\n", "application/grpc"),
        (
            "content-type: application/grpc-web+proto\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n",
            "application/grpc-web+proto",
        ),
    ] {
        let wire = format!("HTTP/1.1 200 OK\r\n{answer}").into_bytes().leak();
        let upstream = Recorder::closing(wire).await;
        let rig = Rig::new(vec![free("files", &upstream.url())]).await;
        for target in ["/", "http://localhost/"] {
            let asked = request("GET", target, &[("content-type", kind), ("te", "trailers")]);
            let response = if target == "/" {
                within(support::http1(rig.addr).await.send_request(asked)).await
            } else {
                within(http2(rig.addr).await.send_request(asked)).await
            };
            let body = within(response.unwrap().into_body().collect()).await;
            assert!(body.is_err(), "{answer:?} {target}: {body:?}");
        }
    }
}
