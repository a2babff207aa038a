//! Freebies and paths that sell nothing, over real sockets: who counts as one network, what uses one up, what gives it back.

#![expect(clippy::unwrap_used, reason = "an error is how a test fails")]

mod support;

use std::{
    net::SocketAddr,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
};

use axum::{Router, routing};
use farebox_gateway::{GatewayConfig, ServiceRoute};
use farebox_paywall::Freebies;
use futures_util::future::join_all;
use http::StatusCode;
use support::{Rig, ask, get, http1, http2, request, service, upstream::Upstream, within};

fn giving(requests: u32, upstream: &str) -> ServiceRoute {
    let mut route = service("api", upstream);
    let requests = NonZeroU32::new(requests).unwrap();
    route.service.freebies = Some(Freebies { requests, per: None, keep: false });
    route
}

fn behind_a_proxy(route: ServiceRoute) -> GatewayConfig {
    let mut config = support::config(vec![route]);
    config.trusted_proxies = vec!["127.0.0.1/32".parse().unwrap()];
    config
}

async fn code(addr: SocketAddr, headers: &[(&str, &str)]) -> (u16, String) {
    let answer = get(addr, "/x", headers).await;
    let code = answer.headers().get("farebox-code").map_or("", |code| code.to_str().unwrap());
    (answer.status().as_u16(), code.to_owned())
}

#[tokio::test]
async fn the_first_requests_pass_and_say_so_and_the_next_is_asked_to_pay() {
    let upstream = Upstream::echo().await;
    let rig = Rig::new(vec![giving(2, &upstream.url())]).await;
    let given = get(rig.addr, "/x", &[("origin", "https://app.example.com")]).await;
    assert_eq!(given.status(), StatusCode::OK);
    assert_eq!(given.headers()["farebox-code"], "freebie");
    assert_eq!(given.headers()["access-control-allow-origin"], "*");
    let exposed = given.headers()["access-control-expose-headers"].to_str().unwrap();
    assert!(exposed.contains("Farebox-Code"), "{exposed}");
    assert_eq!(code(rig.addr, &[]).await, (200, "freebie".to_owned()));
    assert_eq!(rig.node.made(), 0);
    assert_eq!(code(rig.addr, &[]).await, (402, "payment_required".to_owned()));
    let paid = rig.buy("/x").await;
    assert_eq!(code(rig.addr, &[("authorization", &paid)]).await, (200, String::new()));
    let metrics = rig.ops("/metrics").await.1;
    assert!(metrics.contains("freebie"), "{metrics}");
}

#[tokio::test]
async fn nobody_gets_more_by_naming_other_addresses() {
    let upstream = Upstream::echo().await;
    let rig = Rig::new(vec![giving(1, &upstream.url())]).await;
    assert_eq!(code(rig.addr, &[("x-forwarded-for", "198.51.100.1")]).await.0, 200);
    for (name, value) in [
        ("x-forwarded-for", "198.51.100.2"),
        ("x-forwarded-for", "203.0.113.1, 127.0.0.1"),
        ("forwarded", "for=203.0.113.9"),
        ("x-real-ip", "203.0.113.9"),
    ] {
        assert_eq!(code(rig.addr, &[(name, value)]).await.0, 402, "{name}: {value}");
    }
}

#[tokio::test]
async fn behind_a_trusted_proxy_each_network_has_its_own() {
    let upstream = Upstream::echo().await;
    let rig = Rig::with(behind_a_proxy(giving(1, &upstream.url()))).await;
    for (client, status) in [
        ("2001:db8:7:1::1", 200),
        ("2001:db8:7:2::1", 402),
        ("2001:db8:8::1", 200),
        ("192.0.2.1", 200),
        ("192.0.2.200", 402),
        ("::ffff:192.0.2.9", 402),
        ("192.0.3.1", 200),
        // What stands before the address that the proxy added is the client's own word.
        ("198.51.100.7, 192.0.3.9", 402),
    ] {
        assert_eq!(code(rig.addr, &[("x-forwarded-for", client)]).await.0, status, "{client}");
    }
}

#[tokio::test]
async fn of_many_at_once_one_gets_the_last() {
    let upstream = Upstream::echo().await;
    let rig = Rig::new(vec![giving(1, &upstream.url())]).await;
    let answers = join_all((0..24).map(|_| code(rig.addr, &[]))).await;
    assert_eq!(answers.iter().filter(|(status, _)| *status == 200).count(), 1, "{answers:?}");
}

#[tokio::test]
async fn an_upstream_that_fails_costs_no_freebie() {
    let status = Arc::new(AtomicU16::new(500));
    let answering = status.clone();
    let router = Router::new().fallback(routing::any(move || {
        let status = StatusCode::from_u16(answering.load(Ordering::Relaxed)).unwrap();
        async move { status }
    }));
    let upstream = Upstream::serve(router).await;
    let rig = Rig::new(vec![giving(1, &upstream.url())]).await;
    for failing in [500, 503, 599] {
        status.store(failing, Ordering::Relaxed);
        for _ in 0..3 {
            assert_eq!(code(rig.addr, &[]).await, (failing, String::new()));
        }
    }
    // An answer is an answer, also one that says no.
    status.store(404, Ordering::Relaxed);
    assert_eq!(code(rig.addr, &[]).await, (404, "freebie".to_owned()));
    assert_eq!(code(rig.addr, &[]).await.0, 402);
}

#[tokio::test]
async fn an_upstream_that_is_not_there_costs_no_freebie() {
    let nobody = {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        socket.local_addr().unwrap()
    };
    let rig = Rig::new(vec![giving(1, &format!("http://{nobody}"))]).await;
    for _ in 0..3 {
        assert_eq!(code(rig.addr, &[]).await, (502, "upstream_unreachable".to_owned()));
    }
}

#[tokio::test]
async fn a_client_that_goes_away_has_used_its_freebie() {
    let asked = Arc::new(tokio::sync::Notify::new());
    let notes = asked.clone();
    let router = Router::new().fallback(routing::any(move || {
        notes.notify_one();
        std::future::pending::<()>()
    }));
    let upstream = Upstream::serve(router).await;
    let rig = Rig::new(vec![giving(1, &upstream.url())]).await;
    let mut sender = http1(rig.addr).await;
    let left = tokio::time::timeout(std::time::Duration::from_secs(20), async {
        tokio::select! {
            _ = sender.send_request(request("POST", "/x", &[])) => panic!("nobody answers"),
            () = asked.notified() => {}
        }
    });
    left.await.unwrap();
    drop(sender);
    assert_eq!(code(rig.addr, &[]).await.0, 402);
}

#[tokio::test]
async fn preflights_heads_and_options_use_none() {
    let upstream = Upstream::echo().await;
    let rig = Rig::new(vec![giving(1, &upstream.url())]).await;
    let preflight = [("origin", "https://a.example"), ("access-control-request-method", "GET")];
    assert_eq!(ask(rig.addr, request("OPTIONS", "/x", &preflight)).await.status(), 204);
    for method in ["HEAD", "OPTIONS"] {
        let answer = ask(rig.addr, request(method, "/x", &[])).await;
        assert_eq!(answer.status(), 402, "{method}");
        assert!(!answer.headers().contains_key("www-authenticate"));
    }
    assert_eq!(code(rig.addr, &[]).await.0, 200);
    assert_eq!(code(rig.addr, &[]).await.0, 402);
}

#[tokio::test]
async fn counts_outlive_a_change_of_the_services() {
    let upstream = Upstream::echo().await;
    let rig = Rig::new(vec![giving(1, &upstream.url())]).await;
    assert_eq!(code(rig.addr, &[]).await.0, 200);
    rig.reload.services(vec![giving(1, &upstream.url())]).unwrap();
    assert_eq!(code(rig.addr, &[]).await.0, 402);
    rig.reload.services(vec![giving(2, &upstream.url())]).unwrap();
    assert_eq!(code(rig.addr, &[]).await.0, 200);
    assert_eq!(code(rig.addr, &[]).await.0, 402);
}

#[tokio::test]
async fn a_path_that_sells_nothing_answers_401_to_whatever_comes() {
    let upstream = Upstream::echo().await;
    let mut route = giving(5, &upstream.url());
    route.service.no_challenge_paths = vec!["/poll/*".parse().unwrap()];
    let rig = Rig::new(vec![route]).await;
    for method in ["GET", "HEAD", "POST", "OPTIONS", "DELETE"] {
        let answer = ask(rig.addr, request(method, "/poll/x", &[("origin", "https://a.example")])).await;
        assert_eq!(answer.status(), 401, "{method}");
        assert_eq!(answer.headers()["www-authenticate"], "L402 version=\"0\", error=\"token_required\"");
        assert_eq!(answer.headers()["access-control-allow-origin"], "*");
        let exposed = answer.headers()["access-control-expose-headers"].to_str().unwrap();
        assert!(exposed.contains("WWW-Authenticate"), "{exposed}");
    }
    let call = [("content-type", "application/grpc"), ("te", "trailers")];
    let mut connection = http2(rig.addr).await;
    let mut asked = request("POST", "/poll/x", &call);
    asked.headers_mut().remove("host");
    *asked.uri_mut() = format!("http://{}/poll/x", rig.addr).parse().unwrap();
    let denied = within(connection.send_request(asked)).await.unwrap();
    assert_eq!((denied.status().as_u16(), &denied.headers()["grpc-status"]), (200, &"13".parse().unwrap()));
    assert_ne!(denied.headers()["grpc-message"], "payment required");
    assert_eq!(rig.node.made(), 0);
    for _ in 0..5 {
        assert_eq!(code(rig.addr, &[]).await.1, "freebie");
    }
    let paid = rig.buy("/x").await;
    assert_eq!(get(rig.addr, "/poll/x", &[("authorization", &paid)]).await.status(), 200);
}
