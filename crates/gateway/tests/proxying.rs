//! What a paid request carries to the upstream, and what comes back.

#![expect(clippy::unwrap_used, reason = "an error is how a test fails")]

mod support;

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{Router, body::Body, extract::State, response::IntoResponse, routing};
use bytes::Bytes;
use farebox_gateway::{Cors, ForwardCredential, UpstreamHost};
use farebox_protocol::{Macaroon, RootKey, Scheme};
use futures_util::{StreamExt, TryStreamExt, stream};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::Value;
use support::{
    Rig, ask, body, free, get, http1, http2, pieces, raw, request, service,
    upstream::{Recorder, Upstream},
    within,
};
use tokio::sync::{Notify, mpsc};

/// What the upstream says it received.
async fn received(rig: &Rig, headers: &[(&str, &str)]) -> Vec<String> {
    let response = get(rig.addr, "/x?y=1", headers).await;
    assert_eq!(response.status(), 200, "{response:?}");
    let told: Value = serde_json::from_slice(response.body()).unwrap();
    told["headers"].as_array().unwrap().iter().map(|line| line.as_str().unwrap().to_owned()).collect()
}

fn values<'a>(lines: &'a [String], name: &str) -> Vec<&'a str> {
    lines.iter().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).collect()
}

#[tokio::test]
async fn what_is_paid_for_is_served_and_the_credential_ends_here() {
    let upstream = Upstream::echo().await;
    let rig = Rig::new(vec![service("weather", &upstream.url())]).await;
    let credential = rig.buy("/x").await;
    let lines = received(&rig, &[("authorization", &credential), ("accept", "text/x")]).await;
    assert_eq!(values(&lines, "authorization"), [""; 0]);
    assert_eq!(values(&lines, "farebox-service"), ["weather"]);
    assert_eq!(values(&lines, "farebox-token-id")[0].len(), 64);
    assert_eq!(values(&lines, "farebox-payment-hash")[0].len(), 64);
    assert_eq!(values(&lines, "accept"), ["text/x"]);
    assert_eq!(values(&lines, "host"), [upstream.addr.to_string()]);
}

#[tokio::test]
async fn an_upstream_that_wants_the_credential_gets_one_line_of_it() {
    let upstream = Upstream::echo().await;
    for (wanted, scheme) in [(ForwardCredential::L402, "L402 "), (ForwardCredential::Lsat, "LSAT ")] {
        let mut route = service("weather", &upstream.url());
        route.forward_credential = wanted;
        let rig = Rig::new(vec![route]).await;
        let credential = rig.buy_as("/x", Scheme::L402).await;
        // As some clients do: the same twice, under both names.
        let lsat = credential.replacen("L402", "LSAT", 1);
        let lines = received(&rig, &[("authorization", &lsat), ("authorization", &credential)]).await;
        let sent = values(&lines, "authorization");
        assert_eq!(sent.len(), 1, "{lines:?}");
        assert_eq!(sent[0], credential.replacen("L402 ", scheme, 1));
    }
}

#[tokio::test]
async fn an_upstream_sees_the_token_that_was_judged_and_no_other() {
    let upstream = Upstream::echo().await;
    let mut route = service("weather", &upstream.url());
    route.forward_credential = ForwardCredential::L402;
    let rig = Rig::new(vec![route]).await;
    let credential = rig.buy("/x").await;
    let (token, preimage) = credential.strip_prefix("L402 ").unwrap().split_once(':').unwrap();
    // The same identifier under somebody else's signature, saying more.
    let identifier = Macaroon::from_base64(token).unwrap().identifier().unwrap();
    let more = ["services=weather:0".to_owned(), "weather_capabilities=admin".to_owned()];
    let forged = Macaroon::mint(&RootKey::from_bytes([1; 32]), &identifier, &more).to_base64();
    for presented in [
        vec![format!("L402 {forged}:{preimage}"), credential.clone()],
        vec![format!("L402 {forged},{token}:{preimage}")],
        vec![format!("L402 {token},{forged}:{preimage}")],
    ] {
        let headers: Vec<_> = presented.iter().map(|value| ("authorization", value.as_str())).collect();
        let lines = received(&rig, &headers).await;
        assert_eq!(values(&lines, "authorization"), [&credential]);
    }
}

#[tokio::test]
async fn a_method_has_one_spelling() {
    let upstream = Upstream::echo().await;
    let mut dear = service("dear", &upstream.url());
    dear.matcher.methods = vec![Method::POST];
    let rig = Rig::new(vec![dear, free("reading", &upstream.url())]).await;
    // Some frameworks write methods in capitals before they look at them.
    for method in ["post", "Post"] {
        let response = ask(rig.addr, request(method, "/x", &[])).await;
        assert_eq!(response.status(), 501, "{method}");
        assert_eq!(response.headers()["farebox-code"], "method_refused");
    }
}

#[tokio::test]
async fn nobody_but_the_gateway_speaks_in_its_name() {
    let upstream = Upstream::echo().await;
    let mut route = service("weather", &upstream.url());
    route.headers = vec![(HeaderName::from_static("x-api-key"), HeaderValue::from_static("the-operators"))];
    let rig = Rig::new(vec![route]).await;
    let credential = rig.buy("/x").await;
    let lines = received(
        &rig,
        &[
            ("authorization", &credential),
            ("connection", "x-api-key, farebox-token-id, x-forwarded-for, farebox-service, keep-alive"),
            ("x-api-key", "the-clients"),
            ("x-api-key", "again"),
            ("x_api_key", "the-clients"),
            ("x-original-url", "/elsewhere"),
            ("x-rewrite-url", "/elsewhere"),
            ("farebox-token-id", "forged"),
            ("farebox_token_id", "forged"),
            ("x-forwarded-for", "6.6.6.6"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "evil.example"),
            ("x_forwarded_for", "6.6.6.6"),
            ("x-real-ip", "6.6.6.6"),
            ("forwarded", "for=6.6.6.6"),
        ],
    )
    .await;
    assert_eq!(values(&lines, "x-api-key"), ["the-operators"]);
    assert!(
        !lines.iter().any(|line| line.contains("the-clients") || line.contains("elsewhere")),
        "{lines:?}"
    );
    assert_eq!(values(&lines, "farebox-service"), ["weather"]);
    assert_eq!(values(&lines, "x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(values(&lines, "x-forwarded-proto"), ["http"]);
    assert_eq!(values(&lines, "x-forwarded-host"), ["localhost"]);
    assert_eq!(values(&lines, "forwarded"), ["for=127.0.0.1;host=\"localhost\";proto=http"]);
    assert!(!lines.iter().any(|line| line.contains("6.6.6.6") || line.contains("forged")), "{lines:?}");
    assert!(!lines.iter().any(|line| line.starts_with("connection")), "{lines:?}");
}

#[tokio::test]
async fn a_trusted_proxy_speaks_for_the_client() {
    let upstream = Upstream::echo().await;
    let mut config = support::config(vec![free("weather", &upstream.url())]);
    config.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    let rig = Rig::with(config).await;
    let lines =
        received(&rig, &[("x-forwarded-for", "6.6.6.6, 9.9.9.9"), ("x-forwarded-proto", "https")]).await;
    assert_eq!(values(&lines, "x-forwarded-for"), ["6.6.6.6, 9.9.9.9, 127.0.0.1"]);
    assert_eq!(values(&lines, "x-forwarded-proto"), ["https"]);
    assert_eq!(values(&lines, "forwarded"), ["for=9.9.9.9;host=\"localhost\";proto=https"]);
}

#[tokio::test]
async fn the_host_that_was_asked_for_is_kept_where_that_is_wanted() {
    let upstream = Upstream::echo().await;
    let mut route = free("weather", &upstream.url());
    route.upstream.host = UpstreamHost::Asked;
    let rig = Rig::new(vec![route.clone()]).await;
    assert_eq!(values(&received(&rig, &[]).await, "host"), ["localhost"]);
    // Over HTTP/2 it is in the target, and there is no `Host`.
    route.upstream.urls = vec![upstream.h2c().parse().unwrap()];
    rig.reload.services(vec![route]).unwrap();
    let told: Value = serde_json::from_slice(get(rig.addr, "/x", &[]).await.body()).unwrap();
    assert_eq!(told["version"], "HTTP/2.0");
    assert_eq!(told["target"], "http://localhost/x");
}

#[tokio::test]
async fn a_body_is_streamed_in_both_directions_at_once() {
    // The upstream sends each piece back as it comes, so the first answer must arrive before the last question is asked.
    let upstream = Upstream::serve(Router::new().fallback(|body: Body| async { body })).await;
    for url in [upstream.url(), upstream.h2c()] {
        let rig = Rig::new(vec![free("echo", &url)]).await;
        for version in [1, 2] {
            let (say, sent) = mpsc::channel::<Bytes>(1);
            let body = pieces(tokio_stream::wrappers::ReceiverStream::new(sent).map(Frame::data));
            let request = |target: String| Request::post(target).header(header::HOST, "localhost");
            let response = within(async {
                say.send(Bytes::from_static(b"one")).await.unwrap();
                if version == 1 {
                    http1(rig.addr)
                        .await
                        .send_request(request("/".to_owned()).body(body).unwrap())
                        .await
                        .unwrap()
                } else {
                    let target = "http://localhost/".to_owned();
                    http2(rig.addr).await.send_request(request(target).body(body).unwrap()).await.unwrap()
                }
            })
            .await;
            let mut answer = response.into_body().into_data_stream();
            assert_eq!(within(answer.next()).await.unwrap().unwrap(), "one");
            say.send(Bytes::from_static(b"two")).await.unwrap();
            assert_eq!(within(answer.next()).await.unwrap().unwrap(), "two");
            drop(say);
            let rest: Vec<Bytes> = within(answer.try_collect()).await.unwrap();
            assert_eq!(rest.concat(), b"", "{url} by HTTP/{version}");
        }
    }
}

#[tokio::test]
async fn trailers_pass_in_both_directions() {
    let trailers = |name: &'static str| {
        HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_static("1"))])
    };
    let upstream =
        Upstream::serve(Router::new().fallback(move |request: axum::extract::Request| async move {
            let got = request.into_body().collect().await.unwrap();
            let back = got.trailers().is_some_and(|got| got.contains_key("x-up"));
            let frames = [
                Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"data"))),
                Ok(Frame::trailers(trailers("x-sum"))),
            ];
            let mut response = http::Response::new(Body::new(StreamBody::new(stream::iter(frames))));
            response.headers_mut().insert("trailer", HeaderValue::from_static("x-sum"));
            response.headers_mut().insert("x-got", HeaderValue::from_static(if back { "yes" } else { "no" }));
            response
        }))
        .await;
    for url in [upstream.url(), upstream.h2c()] {
        let rig = Rig::new(vec![free("sums", &url)]).await;
        let frames = || {
            pieces(stream::iter([Frame::data(Bytes::from_static(b"up")), Frame::trailers(trailers("x-up"))]))
        };
        let head = |target: &str| {
            Request::post(target)
                .header(header::HOST, "localhost")
                .header("te", "trailers")
                .header("trailer", "x-up")
        };
        let by_http2 = head("http://localhost/").body(frames()).unwrap();
        let by_http1 = head("/").header("connection", "te").body(frames()).unwrap();
        for response in [
            within(http2(rig.addr).await.send_request(by_http2)).await.unwrap(),
            within(http1(rig.addr).await.send_request(by_http1)).await.unwrap(),
        ] {
            assert_eq!(response.headers()["x-got"], "yes");
            let collected = within(response.into_body().collect()).await.unwrap();
            assert_eq!(collected.trailers().unwrap()["x-sum"], "1");
        }
    }
}

#[tokio::test]
async fn answers_without_a_body_pass_as_they_are() {
    let answers = [
        ("HEAD", "HTTP/1.1 200 OK\r\ncontent-length: 1234\r\netag: \"e\"\r\n\r\n", 200),
        ("GET", "HTTP/1.1 204 No Content\r\netag: \"e\"\r\n\r\n", 204),
        ("GET", "HTTP/1.1 304 Not Modified\r\netag: \"e\"\r\ncontent-length: 99\r\n\r\n", 304),
    ];
    for (method, answer, status) in answers {
        let upstream = Recorder::answering(answer.as_bytes()).await;
        // One worker, hence one pool of connections.
        let config = support::config(vec![free("files", &upstream.url())]);
        let rig = Rig::with(farebox_gateway::GatewayConfig { workers: 1, ..config }).await;
        let asked = request(method, "/f", &[("if-none-match", "\"e\""), ("range", "bytes=0-1")]);
        let response = ask(rig.addr, asked).await;
        assert_eq!(response.status(), status);
        assert_eq!(response.headers()["etag"], "\"e\"");
        assert!(response.body().is_empty());
        if method == "HEAD" {
            assert_eq!(response.headers()["content-length"], "1234");
        }
        let received = upstream.received();
        assert!(
            received.contains("range: bytes=0-1") && received.contains("if-none-match: \"e\""),
            "{received}"
        );
        // The connection is fit for the next request.
        assert_eq!(ask(rig.addr, request(method, "/f", &[])).await.status(), status);
        assert_eq!(upstream.connections(), 1, "{method} {status}");
    }
}

#[tokio::test]
async fn a_range_and_its_headers_pass() {
    let answer = b"HTTP/1.1 206 Partial Content\r\ncontent-range: bytes 0-1/4\r\ncontent-length: 2\r\ncache-control: max-age=9\r\n\r\nab";
    let upstream = Recorder::answering(answer).await;
    let rig = Rig::new(vec![free("files", &upstream.url())]).await;
    let response = get(rig.addr, "/f", &[("range", "bytes=0-1")]).await;
    assert_eq!((response.status(), &response.body()[..]), (StatusCode::PARTIAL_CONTENT, &b"ab"[..]));
    assert_eq!(response.headers()["content-range"], "bytes 0-1/4");
    assert_eq!(response.headers()["cache-control"], "max-age=9");
}

#[tokio::test]
async fn head_and_options_mint_nothing() {
    let upstream = Recorder::start().await;
    let rig = Rig::new(vec![service("paid", &upstream.url())]).await;
    let head = ask(rig.addr, request("HEAD", "/", &[])).await;
    assert_eq!(head.status(), 402);
    assert!(head.body().is_empty());
    let preflight = [("origin", "https://app.example"), ("access-control-request-method", "GET")];
    let options = ask(rig.addr, request("OPTIONS", "/", &preflight)).await;
    assert_eq!(options.status(), 204);
    assert_eq!(options.headers()["access-control-allow-origin"], "*");
    ask(rig.addr, request("OPTIONS", "/", &[])).await;
    assert_eq!(rig.node.made(), 0);
    assert_eq!(upstream.received(), "");
}

#[tokio::test]
async fn a_browser_may_read_the_challenge_and_the_answer() {
    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\naccess-control-allow-origin: https://one\r\naccess-control-allow-origin: https://two\r\n\r\n";
    let upstream = Recorder::answering(answer).await;
    let friend = HeaderValue::from_static("https://app.example");
    let origins = |headers: &HeaderMap| {
        headers
            .get_all("access-control-allow-origin")
            .iter()
            .map(|value| value.to_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    for (cors, on_challenge, on_answer) in [
        (Cors::Any, vec!["*"], vec!["*"]),
        (Cors::Origins(vec![friend]), vec!["https://app.example"], vec!["https://app.example"]),
        (Cors::Off, vec![], vec![]),
        (Cors::Upstream, vec!["*"], vec!["https://one", "https://two"]),
    ] {
        let mut route = service("paid", &upstream.url());
        route.cors = cors.clone();
        let rig = Rig::new(vec![route]).await;
        let challenge = get(rig.addr, "/", &[("origin", "https://app.example")]).await;
        assert_eq!(challenge.status(), 402);
        assert_eq!(origins(challenge.headers()), on_challenge, "{cors:?}");
        let may_read = challenge.headers().get("access-control-expose-headers");
        let names_it = may_read.is_some_and(|value| value.to_str().unwrap().contains("WWW-Authenticate"));
        assert_eq!(names_it, cors != Cors::Off, "{cors:?}");
        let credential = rig.credential(challenge.headers(), Scheme::L402);
        let headers = [("origin", "https://app.example"), ("authorization", &credential)];
        let answer = get(rig.addr, "/", &headers).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(origins(answer.headers()), on_answer, "{cors:?}");
    }
}

#[tokio::test]
async fn a_preflight_that_the_upstream_answers_carries_nothing_that_is_sold() {
    // It makes no difference of methods.
    let upstream = Upstream::echo().await;
    let mut route = service("paid", &upstream.url());
    route.cors = Cors::Upstream;
    let rig = Rig::new(vec![route]).await;
    let preflight = [("origin", "https://app.example"), ("access-control-request-method", "GET")];
    let answer = ask(rig.addr, request("OPTIONS", "/", &preflight)).await;
    assert_eq!((answer.status(), answer.body().len()), (StatusCode::OK, 0));
    // No browser sends a body with it.
    let mut asked = request("OPTIONS", "/", &preflight);
    *asked.body_mut() = body("{\"do\":\"it\"}");
    assert_eq!(ask(rig.addr, asked).await.status(), 402);
}

#[tokio::test]
async fn a_client_that_waits_for_leave_sends_its_body_only_once_the_upstream_takes_it() {
    let upstream = Upstream::echo().await;
    let rig = Rig::new(vec![service("paid", &upstream.url())]).await;
    let head =
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\nConnection: close\r\n";
    // Who hasn't paid is told so instead of being asked for the body.
    let answer = raw(rig.addr, format!("{head}\r\n").as_bytes(), "").await;
    assert!(answer.starts_with("HTTP/1.1 402 "), "{answer}");
    let credential = rig.buy("/").await;
    let paid = format!("{head}Authorization: {credential}\r\n\r\n");
    let answer = raw(rig.addr, paid.as_bytes(), "100 Continue\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 100 Continue"), "{answer}");
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_before_anybody_pays_and_in_the_middle() {
    let upstream = Upstream::echo().await;
    for url in [upstream.url(), upstream.h2c()] {
        let mut route = service("paid", &url);
        route.request_bytes_max = Some(8);
        let rig = Rig::new(vec![route]).await;
        let credential = rig.buy("/").await;
        let made = rig.node.made();
        let post =
            |length: usize| Request::post("/").header("host", "a").body(body("x".repeat(length))).unwrap();
        assert_eq!(ask(rig.addr, post(9)).await.status(), 413);
        assert_eq!(rig.node.made(), made);
        let chunked = |count: usize| {
            let chunk = || Frame::data(Bytes::from_static(b"1234"));
            Request::post("/")
                .header("host", "a")
                .header("authorization", &credential)
                .body(pieces(stream::iter((0..count).map(move |_| chunk()))))
                .unwrap()
        };
        assert_eq!(ask(rig.addr, chunked(2)).await.status(), 200);
        let refused = ask(rig.addr, chunked(3)).await;
        assert_eq!(refused.status(), 413, "{refused:?}");
        assert_eq!(refused.headers()["farebox-code"], "body_too_large");
    }
}

#[tokio::test]
async fn the_first_service_that_matches_serves_and_nothing_else_is_served() {
    let upstream = Upstream::echo().await;
    let mut get_only = free("read", &upstream.url());
    get_only.matcher.methods = vec![Method::GET];
    get_only.matcher.hosts = vec!["*.example.com".parse().unwrap()];
    let rig = Rig::new(vec![get_only]).await;
    let answer = |host: &'static str, method: &'static str| {
        let request = Request::builder().method(method).uri("/").header("host", host).body(body("")).unwrap();
        ask(rig.addr, request)
    };
    assert_eq!(answer("API.Example.com.:99", "GET").await.status(), 200);
    for (host, method) in [("example.com", "GET"), ("api.example.com", "POST"), ("localhost", "GET")] {
        let refused = answer(host, method).await;
        assert_eq!(refused.status(), 404);
        assert_eq!(refused.headers()["content-type"], "application/problem+json");
        let problem: Value = serde_json::from_slice(refused.body()).unwrap();
        assert_eq!(problem["code"], "no_service");
    }
}

#[tokio::test]
async fn a_client_that_goes_away_takes_the_upstream_request_with_it() {
    #[derive(Clone, Default)]
    struct Watch {
        begun: Arc<Notify>,
        dropped: Arc<Notify>,
    }
    struct OnDrop(Arc<Notify>);
    impl Drop for OnDrop {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }
    async fn endless(State(watch): State<Watch>) -> impl IntoResponse {
        let guard = OnDrop(watch.dropped.clone());
        watch.begun.notify_one();
        let ticks =
            tokio_stream::wrappers::IntervalStream::new(tokio::time::interval(Duration::from_millis(5)));
        Body::from_stream(ticks.map(move |_| {
            let _alive = &guard;
            Ok::<_, Infallible>(Bytes::from_static(b"tick"))
        }))
    }
    async fn silent(State(watch): State<Watch>) -> &'static str {
        let _guard = OnDrop(watch.dropped.clone());
        watch.begun.notify_one();
        std::future::pending().await
    }
    let watch = Watch::default();
    let routes =
        Router::new().route("/endless", routing::get(endless)).route("/silent", routing::get(silent));
    let upstream = Upstream::serve(routes.with_state(watch.clone())).await;
    for url in [upstream.url(), upstream.h2c()] {
        let rig = Rig::new(vec![free("streams", &url)]).await;
        for path in ["/endless", "/silent"] {
            for version in [1, 2] {
                let gone = tokio_util::sync::CancellationToken::new();
                let addr = rig.addr;
                let asking = async {
                    let response = if version == 1 {
                        http1(addr).await.send_request(request("GET", path, &[])).await.unwrap()
                    } else {
                        let target = format!("http://localhost{path}");
                        http2(addr).await.send_request(request("GET", &target, &[])).await.unwrap()
                    };
                    let _ = response.into_body().into_data_stream().try_for_each(|_| async { Ok(()) }).await;
                };
                tokio::select! {
                    () = asking => panic!("the stream ended"),
                    () = async { within(watch.begun.notified()).await; gone.cancel(); } => {}
                }
                within(watch.dropped.notified()).await;
            }
        }
    }
}
