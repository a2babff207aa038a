//! What HTTP means by its fields, and what the gateway does with them: what ends here, what passes, what is said anew.

#![expect(clippy::unwrap_used, reason = "an error is how a test fails")]

mod support;

use axum::{Router, extract::Request as AxumRequest, response::IntoResponse};
use farebox_gateway::{Cors, GatewayConfig, Matcher, Rewrite, ServiceRoute, UpstreamHost};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, header};
use serde_json::Value;
use support::{
    Rig, ask, body, free, get, http2, request, service,
    upstream::{Recorder, Upstream},
    within,
};

fn at(mut route: ServiceRoute, prefix: &str) -> ServiceRoute {
    route.matcher = Matcher { path_prefixes: vec![prefix.parse().unwrap()], ..Matcher::default() };
    route
}

fn told(response: &Response<bytes::Bytes>) -> Value {
    serde_json::from_slice(response.body()).unwrap_or_else(|_| panic!("{response:?}"))
}

/// The values of a header as the upstream says that it got them.
fn values(told: &Value, name: &str) -> Vec<String> {
    let lines = told["headers"].as_array().unwrap().iter().map(|line| line.as_str().unwrap());
    lines.filter_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_path_is_changed_after_it_has_been_decided_on() {
    let upstream = Upstream::echo().await;
    for url in [upstream.url(), upstream.h2c()] {
        let mut route = at(service("api", &url), "/v1");
        route.service.free_paths = vec!["/v1/docs/*".parse().unwrap()];
        route.rewrite = Rewrite {
            strip_prefix: Some("/v1".parse().unwrap()),
            add_prefix: Some("/inner".parse().unwrap()),
        };
        let rig = Rig::new(vec![route]).await;
        let answer = told(&get(rig.addr, "/v1/docs/a%2Cb/../c?q=/v1", &[]).await);
        let target = answer["target"].as_str().unwrap();
        assert!(target.ends_with("/inner/docs/c?q=/v1"), "{target}");
        // The free path is the one that was asked for, not the one that the upstream sees.
        assert_eq!(get(rig.addr, "/v1/other", &[]).await.status(), 402);
        assert_eq!(get(rig.addr, "/inner/docs/x", &[]).await.status(), 404);
        let credential = rig.buy("/v1/other").await;
        let answer = told(&get(rig.addr, "/v1", &[("authorization", &credential)]).await);
        assert!(answer["target"].as_str().unwrap().ends_with("/inner"), "{answer}");
    }
}

#[tokio::test]
async fn a_redirect_leads_back_through_the_gateway() {
    let redirect = |request: AxumRequest| async move {
        let host = request.headers().get("host").map(|host| host.to_str().unwrap().to_owned());
        let host = host.or_else(|| request.uri().authority().map(ToString::to_string)).unwrap();
        let location = match request.uri().query() {
            Some("own") => format!("http://{host}/inner/login?next=%2F"),
            Some("path") => "/inner/login".to_owned(),
            _ => "https://elsewhere.example/inner/login".to_owned(),
        };
        let headers = [("location", location), ("content-location", "/inner/here".to_owned())];
        (http::StatusCode::FOUND, headers).into_response()
    };
    let upstream = Upstream::serve(Router::new().fallback(redirect)).await;
    for url in [upstream.url(), upstream.h2c()] {
        let mut route = at(free("api", &url), "/v1");
        route.rewrite = Rewrite {
            strip_prefix: Some("/v1".parse().unwrap()),
            add_prefix: Some("/inner".parse().unwrap()),
        };
        let rig = Rig::new(vec![route]).await;
        for (query, want) in [
            ("own", "/v1/login?next=%2F"),
            ("path", "/v1/login"),
            ("other", "https://elsewhere.example/inner/login"),
        ] {
            let answer = get(rig.addr, &format!("/v1/x?{query}"), &[]).await;
            assert_eq!(answer.headers()["location"], want, "{url}");
            assert_eq!(answer.headers()["content-location"], "/v1/here");
        }
    }
}

#[tokio::test]
async fn nobody_pays_for_one_method_or_path_and_gets_another() {
    let upstream = Upstream::echo().await;
    let names = [
        "x-http-method-override",
        "x-http-method",
        "x-method-override",
        "x-original-method",
        "x-forwarded-method",
        "x-original-url",
        "x-original-uri",
        "x-rewrite-url",
        "x-forwarded-uri",
        "x-forwarded-path",
        "x-original-host",
        "x-http-host-override",
    ];
    let mut reading = free("reading", &upstream.url());
    reading.matcher.methods = vec![Method::GET, Method::OPTIONS];
    reading.cors = Cors::Upstream;
    // What a trusted proxy passes on is no less a client's.
    for trusted in [vec![], vec!["127.0.0.0/8".parse().unwrap()]] {
        let mut config = support::config(vec![reading.clone(), service("writing", &upstream.url())]);
        config.trusted_proxies = trusted;
        let rig = Rig::with(config).await;
        for name in names {
            for name in [name.to_owned(), name.replace('-', "_")] {
                let answer = told(&get(rig.addr, "/x", &[(&name, "DELETE")]).await);
                assert_eq!(answer["method"], "GET");
                assert!(!answer.to_string().contains("DELETE"), "{name}: {answer}");
            }
        }
        // It doesn't matter to us either: what is dear stays dear.
        let dear = ask(rig.addr, request("POST", "/x", &[("x-http-method-override", "GET")])).await;
        assert_eq!(dear.status(), 402);
    }
    // A form's `_method` is the upstream's matter.
    let rig = Rig::new(vec![reading]).await;
    let answer = told(&get(rig.addr, "/x?_method=PUT", &[]).await);
    assert_eq!(answer["target"], "/x?_method=PUT");
}

#[tokio::test]
async fn a_preflight_carries_no_other_method_to_the_upstream() {
    let upstream = Recorder::start().await;
    let mut route = service("paid", &upstream.url());
    route.cors = Cors::Upstream;
    let rig = Rig::new(vec![route]).await;
    let asked = [
        ("origin", "https://app.example"),
        ("access-control-request-method", "GET"),
        ("x-http-method-override", "GET"),
        ("x_http_method_override", "GET"),
    ];
    assert_eq!(ask(rig.addr, request("OPTIONS", "/", &asked)).await.status(), 200);
    let received = upstream.received();
    assert!(received.starts_with("OPTIONS / ") && !received.contains("override"), "{received}");
}

#[tokio::test]
async fn a_trusted_proxy_may_tell_by_forwarded_alone() {
    let upstream = Upstream::echo().await;
    let mut config = support::config(vec![free("weather", &upstream.url())]);
    config.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
    let rig = Rig::with(config).await;
    let said = [("forwarded", "for=6.6.6.6, for=\"[2001:db8::1]:99\";proto=https")];
    let answer = told(&get(rig.addr, "/", &said).await);
    assert_eq!(values(&answer, "x-forwarded-for"), ["2001:db8::1, 127.0.0.1"]);
    assert_eq!(values(&answer, "x-forwarded-proto"), ["https"]);
    let forwarded = values(&answer, "forwarded");
    assert_eq!(
        forwarded,
        ["for=6.6.6.6, for=\"[2001:db8::1]:99\";proto=https, for=127.0.0.1;host=\"localhost\";proto=http"]
    );
}

fn origins(headers: &HeaderMap) -> Vec<&HeaderValue> {
    headers.get_all(header::ACCESS_CONTROL_ALLOW_ORIGIN).iter().collect()
}

/// A page that can't read an answer knows neither its price nor what was wrong.
#[tokio::test]
async fn every_answer_of_the_gateway_names_one_origin() {
    let upstream = Upstream::echo().await;
    let origin = "https://app.example";
    let dead = {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    for (cors, want, has_cookies) in [
        (Cors::Any, Some("*"), false),
        (Cors::Reflect, Some(origin), true),
        (Cors::Origins(vec![HeaderValue::from_static(origin)]), Some(origin), false),
        (Cors::Origins(vec![HeaderValue::from_static("https://other.example")]), None, false),
        (Cors::Off, None, false),
        (Cors::Upstream, Some("*"), false),
    ] {
        let with = |mut route: ServiceRoute| {
            route.cors = cors.clone();
            route
        };
        let mut small = with(at(free("small", &upstream.url()), "/small"));
        small.request_bytes_max = Some(1);
        let routes = vec![
            small,
            with(at(free("dead", &dead), "/dead")),
            with(at(service("paid", &upstream.url()), "/paid")),
        ];
        let rig = Rig::new(routes).await;
        let with_origin = [("origin", origin)];
        let grpc_web = [("origin", origin), ("content-type", "application/grpc-web+proto")];
        let bad = [("origin", origin), ("authorization", "L402 bad:bad")];
        let mut large = request("POST", "/small", &with_origin);
        *large.body_mut() = body("xx");
        let answers = [
            (402, get(rig.addr, "/paid", &with_origin).await),
            (402, get(rig.addr, "/paid", &bad).await),
            (413, ask(rig.addr, large).await),
            (502, get(rig.addr, "/dead", &with_origin).await),
            (501, ask(rig.addr, request("TRACE", "/paid", &with_origin)).await),
            (200, ask(rig.addr, request("POST", "/paid/x", &grpc_web)).await),
            (200, ask(rig.addr, request("POST", "/dead/x", &grpc_web)).await),
        ];
        for (status, answer) in &answers {
            assert_eq!(answer.status(), *status, "{answer:?}");
            assert_eq!(origins(answer.headers()), Vec::from_iter(want), "{cors:?} {answer:?}");
            let allows = answer.headers().get(header::ACCESS_CONTROL_ALLOW_CREDENTIALS);
            assert_eq!(allows.is_some(), has_cookies, "{cors:?}");
            let exposed = answer.headers().get(header::ACCESS_CONTROL_EXPOSE_HEADERS);
            let exposed = exposed.map(|value| value.to_str().unwrap().to_lowercase());
            for name in ["www-authenticate", "grpc-status", "grpc-message", "retry-after"] {
                assert_eq!(exposed.as_ref().is_some_and(|names| names.contains(name)), want.is_some());
            }
        }
        // Before a service is known, there is nothing to keep from anybody.
        let nobody =
            [get(rig.addr, "/none", &with_origin).await, get(rig.addr, "/a%2Fb", &with_origin).await];
        for answer in &nobody {
            assert_eq!(origins(answer.headers()), ["*"], "{answer:?}");
        }
    }
}

#[tokio::test]
async fn a_preflight_is_granted_a_credential_and_the_network_of_a_named_page() {
    let upstream = Upstream::echo().await;
    let mut route = service("paid", &upstream.url());
    route.cors = Cors::Origins(vec![HeaderValue::from_static("https://app.example")]);
    let rig = Rig::new(vec![route]).await;
    let asked = [
        ("origin", "https://app.example"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization, content-type, grpc-metadata-macaroon"),
        ("access-control-request-private-network", "true"),
    ];
    let answer = ask(rig.addr, request("OPTIONS", "/", &asked)).await;
    assert_eq!(answer.status(), 204);
    for (name, want) in [
        ("access-control-allow-origin", "https://app.example"),
        ("access-control-allow-methods", "POST"),
        ("access-control-allow-headers", "authorization, content-type, grpc-metadata-macaroon"),
        ("access-control-allow-private-network", "true"),
    ] {
        assert_eq!(answer.headers()[name], want);
    }
}

#[tokio::test]
async fn what_lies_between_neighbours_ends_here_and_all_else_passes() {
    let upstream = Upstream::echo().await;
    for url in [upstream.url(), upstream.h2c()] {
        let mut route = free("api", &url);
        route.headers = vec![(HeaderName::from_static("x-key"), HeaderValue::from_static("operators"))];
        let rig = Rig::new(vec![route]).await;
        let mut asked = request(
            "GET",
            "/",
            &[
                ("connection", "x-key, x-hop, x-forwarded-for, forwarded, farebox-service, host, te"),
                ("x-hop", "1"),
                ("keep-alive", "timeout=5"),
                ("proxy-connection", "keep-alive"),
                ("proxy-authorization", "Basic x"),
                ("te", "trailers, gzip"),
                ("expect", "100-continue"),
                ("range", "bytes=0-1"),
                ("if-range", "\"e\""),
                ("if-none-match", "\"e\""),
                ("via", "1.1 cache"),
                ("max-forwards", "3"),
                ("x-empty", ""),
                ("cookie", "a=1; b=2"),
                ("accept", "a/b"),
                ("accept", "c/d"),
            ],
        );
        asked.headers_mut().insert("x-bytes", HeaderValue::from_bytes(b"caf\xe9").unwrap());
        let answer = told(&ask(rig.addr, asked).await);
        for gone in ["x-hop", "keep-alive", "proxy-connection", "proxy-authorization", "expect", "upgrade"] {
            assert_eq!(values(&answer, gone), [""; 0], "{url} {gone}");
        }
        for (name, want) in [
            ("x-key", vec!["operators"]),
            ("x-forwarded-for", vec!["127.0.0.1"]),
            ("farebox-service", vec!["api"]),
            ("range", vec!["bytes=0-1"]),
            ("if-range", vec!["\"e\""]),
            ("if-none-match", vec!["\"e\""]),
            ("via", vec!["1.1 cache"]),
            ("max-forwards", vec!["3"]),
            ("x-empty", vec![""]),
            ("cookie", vec!["a=1; b=2"]),
            ("accept", vec!["a/b", "c/d"]),
            ("x-bytes", vec!["caf\u{fffd}"]),
            ("te", vec!["trailers"]),
        ] {
            assert_eq!(values(&answer, name), want, "{url} {name}");
        }
    }
}

#[tokio::test]
async fn an_answers_fields_pass_but_for_those_between_neighbours() {
    let wire = b"HTTP/1.1 200 OK\r\nserver: app\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\nvia: 1.1 inner\r\n\
        set-cookie: a=1; Path=/\r\nset-cookie: b=2\r\nx-empty:\r\nx-bytes: caf\xe9\r\nX-CASE: 1\r\n\
        connection: x-inner\r\nx-inner: 1\r\nkeep-alive: timeout=5\r\nproxy-authenticate: Basic\r\n\
        proxy-connection: keep-alive\r\nupgrade: h2c\r\ncontent-length: 2\r\n\r\nok";
    let upstream = Recorder::answering(wire).await;
    let config = support::config(vec![free("api", &upstream.url())]);
    let rig = Rig::with(GatewayConfig { workers: 1, ..config }).await;
    let by_http1 = get(rig.addr, "/", &[]).await;
    let asked = Request::get("http://localhost/").body(body("")).unwrap();
    let by_http2 = within(http2(rig.addr).await.send_request(asked)).await.unwrap();
    for headers in [by_http1.headers(), by_http2.headers()] {
        for gone in ["x-inner", "keep-alive", "proxy-authenticate", "proxy-connection", "upgrade"] {
            assert!(!headers.contains_key(gone), "{gone}: {headers:?}");
        }
        for (name, want) in [
            ("server", "app"),
            ("date", "Thu, 01 Jan 1970 00:00:00 GMT"),
            ("via", "1.1 inner"),
            ("x-empty", ""),
            ("x-case", "1"),
            ("content-length", "2"),
        ] {
            assert_eq!(headers[name], want);
        }
        assert_eq!(headers["x-bytes"].as_bytes(), b"caf\xe9");
        let cookies: Vec<_> = headers.get_all("set-cookie").iter().collect();
        assert_eq!(cookies, ["a=1; Path=/", "b=2"]);
    }
}

#[tokio::test]
async fn an_upstream_that_is_told_the_host_is_told_the_one_that_was_decided_on() {
    let upstream = Upstream::echo().await;
    for url in [upstream.url(), upstream.h2c()] {
        let mut route = free("api", &url);
        route.upstream.host = UpstreamHost::Asked;
        let rig = Rig::new(vec![route]).await;
        for (said, want) in [("API.Example.com.:0080", "api.example.com:80"), ("[0:0::1]", "[::1]")] {
            let asked = Request::get("/").header("host", said).body(body("")).unwrap();
            let answer = told(&ask(rig.addr, asked).await);
            let target = answer["target"].as_str().unwrap();
            let is_told = values(&answer, "host") == [want] || target == format!("http://{want}/");
            assert!(is_told, "{answer}");
            assert_eq!(values(&answer, "x-forwarded-host"), [want]);
        }
    }
}

#[tokio::test]
async fn an_address_in_brackets_is_one_host_in_each_spelling() {
    let upstream = Upstream::echo().await;
    let mut route = free("six", &upstream.url());
    route.matcher.hosts = vec!["[2001:DB8:0:0::1]".parse().unwrap()];
    let rig = Rig::new(vec![route]).await;
    for (host, want) in
        [("[2001:db8::1]", 200), ("[2001:0db8:0:0:0:0:0:1]:99", 200), ("[2001:db8::2]", 404), ("[x]", 400)]
    {
        let asked = Request::get("/").header("host", host).body(body("")).unwrap();
        assert_eq!(ask(rig.addr, asked).await.status(), want, "{host}");
    }
}
