//! Staying up: starting, stopping, changing, and what happens when something else breaks.

#![expect(clippy::unwrap_used, reason = "an error is how a test fails")]

mod support;

use std::{sync::Arc, time::Duration};

use axum::{Router, extract::State, routing};
use farebox_gateway::{Certificate, Gateway, GatewayConfig, GatewayError, Listen, Tls, TlsFiles};
use http_body_util::BodyExt;
use support::{
    Rig, ask, free, get, http1, http2,
    node::Mood,
    raw, request, service,
    upstream::{Recorder, Upstream},
    within,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
};

/// An upstream whose `/slow` answers when it is told to.
async fn slow() -> (Upstream, Arc<Notify>, Arc<Notify>) {
    #[derive(Clone)]
    struct Gate(Arc<Notify>, Arc<Notify>);
    async fn wait(State(Gate(begun, go)): State<Gate>) -> &'static str {
        begun.notify_one();
        go.notified().await;
        "done"
    }
    let (begun, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let routes =
        Router::new().route("/slow", routing::get(wait)).route("/", routing::get(|| async { "quick" }));
    (Upstream::serve(routes.with_state(Gate(begun.clone(), go.clone()))).await, begun, go)
}

#[tokio::test]
async fn a_stop_lets_requests_in_flight_finish_and_refuses_new_connections() {
    let (upstream, begun, go) = slow().await;
    let rig = Rig::new(vec![free("api", &upstream.url())]).await;
    let addr = rig.addr;
    // Connections with nothing to do end at once, whatever they speak.
    let mut idle = http1(addr).await;
    assert_eq!(within(idle.send_request(request("GET", "/", &[]))).await.unwrap().status(), 200);
    let _silent = TcpStream::connect(addr).await.unwrap();
    let mut by_http2 = http2(addr).await;
    let mut by_http1 = http1(addr).await;
    let (first, second, stopped) = tokio::join!(
        by_http1.send_request(request("GET", "/slow", &[])),
        by_http2.send_request(request("GET", "http://localhost/slow", &[])),
        async {
            within(begun.notified()).await;
            within(begun.notified()).await;
            rig.stop.cancel();
            within(async {
                while TcpStream::connect(addr).await.is_ok() {
                    tokio::task::yield_now().await
                }
            })
            .await;
            go.notify_one();
            go.notify_one();
            rig.stop().await
        }
    );
    for answer in [first.unwrap(), second.unwrap()] {
        assert_eq!(within(answer.into_body().collect()).await.unwrap().to_bytes(), "done");
    }
    stopped.unwrap();
}

#[tokio::test]
async fn a_stop_that_takes_too_long_cuts_and_says_so() {
    let (upstream, begun, _go) = slow().await;
    let mut config = support::config(vec![free("api", &upstream.url())]);
    config.timeouts.drain = Duration::from_millis(50);
    let rig = Rig::with(config).await;
    let mut client = http1(rig.addr).await;
    let asking = client.send_request(request("GET", "/slow", &[]));
    let (answer, stopped) = tokio::join!(asking, async {
        within(begun.notified()).await;
        rig.stop().await
    });
    assert!(answer.is_err(), "{answer:?}");
    assert!(matches!(stopped, Err(GatewayError::Cut { connections: 1, .. })), "{stopped:?}");
}

#[tokio::test]
async fn a_panic_answers_500_and_harms_nobody_else() {
    let upstream = Upstream::echo().await;
    let rig = Rig::new(vec![service("api", &upstream.url())]).await;
    let credential = rig.buy("/").await;
    *rig.node.mood.lock() = Mood::Panicking;
    // All on one connection, so on one worker.
    let mut client = http1(rig.addr).await;
    for _ in 0..3 {
        let defect = within(client.send_request(request("GET", "/", &[]))).await.unwrap();
        assert_eq!(defect.status(), 500);
        let problem = defect.into_body().collect().await.unwrap().to_bytes();
        assert!(String::from_utf8_lossy(&problem).contains("\"code\":\"internal\""), "{problem:?}");
        let paid = request("GET", "/", &[("authorization", &credential)]);
        let answer = within(client.send_request(paid)).await.unwrap();
        assert_eq!(answer.status(), 200);
        answer.into_body().collect().await.unwrap();
    }
    rig.metric("farebox_panics_total 3").await;
}

#[tokio::test]
async fn a_node_that_is_down_stops_new_sales_and_nothing_else() {
    let upstream = Upstream::echo().await;
    let rig = Rig::new(vec![service("api", &upstream.url())]).await;
    let credential = rig.buy("/").await;
    assert_eq!(rig.ops("/readyz").await.0, 200);

    *rig.node.mood.lock() = Mood::Down;
    let refused = get(rig.addr, "/", &[]).await;
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    assert_eq!(refused.headers()["farebox-code"], "node_unavailable");
    assert_eq!(get(rig.addr, "/", &[("authorization", &credential)]).await.status(), 200);
    let (status, said) = rig.ops("/readyz").await;
    assert_eq!(status, 503);
    assert!(said.contains("out to lunch") && said.contains("\"paid_access\":true"), "{said}");
    assert_eq!(rig.ops("/healthz").await.0, 200);

    *rig.node.mood.lock() = Mood::Well;
    assert_eq!(get(rig.addr, "/", &[]).await.status(), 402);
    assert_eq!(rig.ops("/readyz").await.0, 200);
}

#[tokio::test]
async fn an_upstream_that_is_gone_is_a_502_and_a_count() {
    let upstream = Upstream::echo().await;
    let rig = Rig::new(vec![service("api", &upstream.url())]).await;
    let credential = rig.buy("/").await;
    let paid = [("authorization", credential.as_str())];
    assert_eq!(get(rig.addr, "/", &paid).await.status(), 200);
    upstream.kill().await;
    let failed = get(rig.addr, "/", &paid).await;
    assert_eq!(failed.status(), 502);
    assert_eq!(failed.headers()["content-type"], "application/problem+json");
    assert_eq!(failed.headers()["farebox-code"], "upstream_unreachable");
    assert_eq!(failed.headers()["access-control-allow-origin"], "*");
    let said = String::from_utf8_lossy(failed.body());
    assert!(!said.contains("127.0.0.1"), "a stranger learns no address: {said}");
    rig.metric("farebox_upstream_errors_total{service=\"api\",code=\"upstream_unreachable\"} 1").await;
    rig.metric("farebox_requests_total{service=\"api\",code=\"upstream_unreachable\",class=\"5xx\"} 1").await;
    rig.metric("farebox_requests_total{service=\"api\",code=\"pass\",class=\"2xx\"} 1").await;
    rig.metric("farebox_requests_total{service=\"api\",code=\"payment_required\",class=\"4xx\"} 1").await;
}

#[tokio::test]
async fn an_upstream_that_talks_nonsense_or_not_at_all_is_reported_as_such() {
    let nonsense = Recorder::answering(b"what?\r\n\r\n").await;
    let silent = Recorder::answering(b"").await;
    let partial = Recorder::answering(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await;
    for (upstream, status, code) in [(&nonsense, 502, "upstream_failed"), (&silent, 504, "upstream_timeout")]
    {
        let mut route = free("api", &upstream.url());
        route.upstream.head_timeout = Some(Duration::from_millis(50));
        let rig = Rig::new(vec![route]).await;
        let failed = get(rig.addr, "/", &[]).await;
        assert_eq!(
            (failed.status().as_u16(), failed.headers()["farebox-code"].to_str().unwrap()),
            (status, code)
        );
    }
    let mut route = free("api", &partial.url());
    route.upstream.idle_timeout = Some(Duration::from_millis(50));
    let rig = Rig::new(vec![route]).await;
    let answer = raw(rig.addr, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "").await;
    assert!(answer.ends_with("half"), "cut, so that nobody takes it for the whole: {answer}");
}

#[tokio::test]
async fn a_kept_connection_that_the_upstream_has_closed_is_replaced_unseen() {
    // Answers once on each connection, then closes it when the next request arrives.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        let mut open = tokio::task::JoinSet::new();
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            open.spawn(async move {
                let mut buffer = [0; 4096];
                assert!(socket.read(&mut buffer).await.unwrap() > 0);
                socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
                assert!(socket.read(&mut buffer).await.is_ok());
            });
        }
    });
    let config = GatewayConfig { workers: 1, ..support::config(vec![free("api", &url)]) };
    let rig = Rig::with(config).await;
    for _ in 0..5 {
        assert_eq!(get(rig.addr, "/", &[]).await.status(), 200);
    }
    // A request that must not be sent twice isn't.
    let post = http::Request::post("/").header("host", "a").body(support::body("pay me")).unwrap();
    assert_eq!(ask(rig.addr, post).await.status(), 502);
}

#[tokio::test]
async fn connections_to_the_upstream_are_kept_and_used_again() {
    let upstream = Recorder::start().await;
    let config = GatewayConfig { workers: 1, ..support::config(vec![free("api", &upstream.url())]) };
    let rig = Rig::with(config).await;
    let mut client = http1(rig.addr).await;
    for _ in 0..20 {
        let answer = within(client.send_request(request("GET", "/", &[]))).await.unwrap();
        answer.into_body().collect().await.unwrap();
    }
    assert_eq!(upstream.connections(), 1);
}

#[tokio::test]
async fn services_change_for_the_next_request_and_not_for_the_one_under_way() {
    let (old, begun, go) = slow().await;
    let new = Upstream::echo().await;
    let rig = Rig::new(vec![free("api", &old.url())]).await;
    let mut client = http1(rig.addr).await;
    let asking = client.send_request(request("GET", "/slow", &[]));
    let (answer, ()) = tokio::join!(asking, async {
        within(begun.notified()).await;
        rig.reload.services(vec![service("api", &new.url())]).unwrap();
        assert_eq!(get(rig.addr, "/slow", &[]).await.status(), 402);
        go.notify_one();
    });
    assert_eq!(within(answer.unwrap().into_body().collect()).await.unwrap().to_bytes(), "done");
    // What is wrong changes nothing.
    assert!(rig.reload.services(vec![free("a", &new.url()), free("b", &new.url())]).is_err());
    assert_eq!(get(rig.addr, "/slow", &[]).await.status(), 402);
}

#[tokio::test]
async fn a_connection_over_the_limit_waits_for_one_to_end() {
    let (upstream, begun, go) = slow().await;
    let mut config = support::config(vec![free("api", &upstream.url())]);
    config.limits.connections_max = 1;
    let rig = Rig::with(config).await;
    let mut first = http1(rig.addr).await;
    let asking = first.send_request(request("GET", "/slow", &[]));
    let mut second = http1(rig.addr).await;
    let waiting = second.send_request(request("GET", "/", &[]));
    tokio::pin!(waiting);
    let (answer, ()) = tokio::join!(asking, async {
        within(begun.notified()).await;
        assert!(tokio::time::timeout(Duration::from_millis(200), &mut waiting).await.is_err());
        go.notify_one();
    });
    assert_eq!(within(answer.unwrap().into_body().collect()).await.unwrap().to_bytes(), "done");
    drop(first);
    assert_eq!(within(waiting).await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_connection_without_a_request_is_closed_after_a_while() {
    let upstream = Upstream::echo().await;
    let mut config = support::config(vec![free("api", &upstream.url())]);
    config.timeouts.keep_alive = Duration::from_millis(50);
    let rig = Rig::with(config).await;
    let answer = raw(rig.addr, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn a_client_that_does_not_take_its_answer_is_let_go() {
    let upstream = Upstream::serve(Router::new().fallback(|| async { vec![0_u8; 64 << 20] })).await;
    let mut config = support::config(vec![free("api", &upstream.url())]);
    config.timeouts.write_stall = Duration::from_millis(100);
    let rig = Rig::with(config).await;
    let mut client = TcpStream::connect(rig.addr).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    rig.metric("farebox_connections_accepted_total 1").await;
    // It reads nothing at all, and yet the connection ends.
    rig.metric("farebox_connections 0").await;
}

#[tokio::test]
async fn the_operations_listener_serves_three_things_to_those_who_name_it_rightly() {
    let upstream = Upstream::echo().await;
    let rig = Rig::new(vec![free("api", &upstream.url())]).await;
    let (status, metrics) = rig.ops("/metrics").await;
    assert_eq!(status, 200);
    assert!(metrics.contains("# TYPE farebox_connections gauge"), "{metrics}");
    for path in ["/", "/debug", "/metrics/x", "/api"] {
        assert_eq!(rig.ops(path).await.0, 404, "{path}");
    }
    assert_eq!(ask(rig.ops, request("POST", "/metrics", &[])).await.status(), 405);
    let named = |host: &str| format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    for (host, status) in [
        ("localhost", "200"),
        ("localhost:9000", "200"),
        ("10.1.2.3:9000", "200"),
        ("[::1]:9000", "200"),
        ("[::1]", "200"),
        ("evil.example", "421"),
        ("evil.example:9000", "421"),
        ("localhost.evil.example", "421"),
    ] {
        let answer = raw(rig.ops, named(host).as_bytes(), "").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{host}: {answer}");
    }
    // And none of it is on the listener for everybody.
    assert!(!String::from_utf8_lossy(get(rig.addr, "/metrics", &[]).await.body()).contains("# TYPE"));
}

#[tokio::test]
async fn a_configuration_that_cannot_work_stops_the_start() {
    let missing = Listen {
        addr: "127.0.0.1:0".parse().unwrap(),
        tls: Some(Tls::new(Certificate::Files(TlsFiles {
            cert: "/nonexistent/cert.pem".into(),
            key: "/nonexistent/key.pem".into(),
        }))),
        proxy_protocol: false,
    };
    let mut ca = free("api", "https://localhost");
    ca.upstream.tls = farebox_gateway::UpstreamTls::CaFile("/nonexistent/ca.pem".into());
    let error = Gateway::check(&[ca]).unwrap_err().to_string();
    assert!(error.contains("service `api`") && error.contains("/nonexistent/ca.pem"), "{error}");

    let rig = Rig::new(vec![free("api", "http://localhost:1")]).await;
    let paywall = rig.paywall.clone();
    let bind = |config: GatewayConfig| match Gateway::bind(config, paywall.clone()) {
        Ok(_) => "bound".to_owned(),
        Err(error) => error.to_string(),
    };
    let config = || support::config(vec![free("api", "http://localhost:1")]);
    assert_eq!(
        bind(GatewayConfig { listen: vec![], ..config() }),
        "there is no address to listen on; name at least one under `listen`"
    );
    assert!(bind(GatewayConfig { listen: vec![missing], ..config() }).contains("/nonexistent/cert.pem"));
    let taken = Listen::new(rig.addr);
    assert_eq!(
        bind(GatewayConfig { listen: vec![taken], ..config() }),
        format!("cannot listen on `{}`", rig.addr)
    );
}

#[tokio::test]
async fn a_client_that_has_gone_silent_does_not_hold_up_a_stop() {
    let upstream = Upstream::echo().await;
    let rig = Rig::new(vec![free("api", &upstream.url())]).await;
    // Begins HTTP/2 and never says another word, as one does that has lost its network.
    let mut silent = TcpStream::connect(rig.addr).await.unwrap();
    silent.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    within(silent.readable()).await.unwrap();
    rig.stop().await.unwrap();
}
