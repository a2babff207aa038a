//! Who may come in, how many, and how long they may take: over HTTP/1.1 and on accept. HTTP/2 has `http2_abuse.rs`.

#![expect(clippy::unwrap_used, reason = "an error is how a test fails")]

mod support;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, routing};
use farebox_gateway::{ClientLists, GatewayConfig};
use http_body_util::BodyExt;
use support::{Rig, free, get, http1, http2, raw, request, service, upstream::Upstream, within};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
};

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

fn lists(allow: &[&str], block: &[&str]) -> ClientLists {
    let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    ClientLists { allow: nets(allow), block: nets(block) }
}

async fn rig(upstream: &Upstream, change: impl FnOnce(&mut GatewayConfig)) -> Rig {
    let mut config = support::config(vec![free("api", &upstream.url())]);
    change(&mut config);
    Rig::with(config).await
}

/// A connection that has been answered once and is kept.
async fn kept(addr: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert!(within(stream.read(&mut [0; 4096])).await.unwrap() > 0);
    stream
}

#[tokio::test]
async fn who_is_not_welcome_is_closed_at_once_and_counted() {
    let upstream = Upstream::echo().await;
    for (lists, is_welcome) in [
        (lists(&["127.0.0.0/8"], &[]), true),
        (lists(&["::ffff:127.0.0.0/104"], &[]), true),
        (lists(&[], &["10.0.0.0/8"]), true),
        (lists(&["10.0.0.0/8"], &[]), false),
        (lists(&["127.0.0.0/8"], &["127.0.0.1/32"]), false),
        (lists(&[], &["::ffff:127.0.0.1/128"]), false),
    ] {
        let rig = rig(&upstream, |config| config.clients = lists.clone()).await;
        let answer = raw(rig.addr, GET, "").await;
        assert_eq!(answer.starts_with("HTTP/1.1 200"), is_welcome, "{lists:?}: {answer}");
        if !is_welcome {
            assert_eq!(answer, "");
            rig.metric("farebox_connections_refused_total{reason=\"blocked\"} 1").await;
        }
    }
}

#[tokio::test]
async fn a_client_for_whom_a_trusted_proxy_speaks_is_told_that_it_is_refused_before_anything_is_minted() {
    let upstream = Upstream::echo().await;
    let mut paid = service("paid", &upstream.url());
    paid.service.free_paths = vec!["/free".parse().unwrap()];
    let mut config = support::config(vec![paid]);
    config.trusted_proxies = vec!["::ffff:127.0.0.1/128".parse().unwrap()];
    config.clients = lists(&["192.0.2.0/24"], &["192.0.2.66/32"]);
    let rig = Rig::with(config).await;
    for (client, path, status) in [
        ("192.0.2.1", "/", 402),
        ("192.0.2.1", "/free", 200),
        ("192.0.2.66", "/", 403),
        ("192.0.2.66", "/free", 403),
        ("198.51.100.1", "/", 403),
        ("::ffff:192.0.2.66", "/", 403),
        ("::ffff:192.0.2.1", "/free", 200),
    ] {
        let answer = get(rig.addr, path, &[("x-forwarded-for", client)]).await;
        assert_eq!(answer.status(), status, "{client} {path}");
        if status == 403 {
            assert_eq!(answer.headers()["farebox-code"], "client_refused");
            assert!(!answer.headers().contains_key("www-authenticate"));
        }
    }
    // The proxy for itself is a client like any other.
    assert_eq!(get(rig.addr, "/", &[]).await.status(), 403);
    assert_eq!(rig.node.made(), 1, "one invoice, for the one that may buy");
    // gRPC has its own form.
    let call = [("content-type", "application/grpc"), ("x-forwarded-for", "192.0.2.66")];
    let refused = get(rig.addr, "/", &call).await;
    assert_eq!((refused.status().as_u16(), &refused.headers()["grpc-status"]), (200, &"7".parse().unwrap()));
    assert_eq!(refused.headers()["farebox-code"], "client_refused");
}

#[tokio::test]
async fn a_service_has_its_own_list() {
    let upstream = Upstream::echo().await;
    let mut inner = service("inner", &upstream.url());
    inner.matcher.path_prefixes = vec!["/inner".parse().unwrap()];
    inner.clients = lists(&["10.0.0.0/8"], &[]);
    let rig = Rig::new(vec![inner, free("rest", &upstream.url())]).await;
    let refused = get(rig.addr, "/inner", &[]).await;
    assert_eq!(
        (refused.status().as_u16(), &refused.headers()["farebox-code"]),
        (403, &"client_refused".parse().unwrap())
    );
    assert_eq!(refused.headers()["access-control-allow-origin"], "*", "a page may read why");
    assert_eq!(get(rig.addr, "/", &[]).await.status(), 200);
    assert_eq!(rig.node.made(), 0);
    rig.metric("farebox_requests_total{service=\"inner\",code=\"client_refused\",class=\"4xx\"} 1").await;
}

#[tokio::test]
async fn one_client_holds_so_many_connections_and_no_more() {
    let upstream = Upstream::echo().await;
    let rig = rig(&upstream, |config| config.limits.connections_per_client_max = 3).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(kept(rig.addr).await);
    }
    assert_eq!(raw(rig.addr, GET, "").await, "");
    rig.metric("farebox_connections_refused_total{reason=\"too_many\"} 1").await;
    held.pop();
    // Each try has its own patience; the seat is given back as soon as the gateway has seen the end.
    while raw(rig.addr, GET, "").await.is_empty() {}
}

#[tokio::test]
async fn a_trusted_proxy_holds_as_many_as_it_needs() {
    let upstream = Upstream::echo().await;
    let rig = rig(&upstream, |config| {
        config.limits.connections_per_client_max = 1;
        config.trusted_proxies = vec!["127.0.0.1/32".parse().unwrap()];
    })
    .await;
    let mut held = Vec::new();
    for _ in 0..20 {
        held.push(kept(rig.addr).await);
    }
    rig.metric("farebox_connections 20").await;
}

#[tokio::test]
async fn in_a_full_house_who_asks_for_nothing_makes_room() {
    let (begun, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (told, wait) = (begun.clone(), go.clone());
    let slow = move || {
        let (told, wait) = (told.clone(), wait.clone());
        async move {
            told.notify_one();
            wait.notified().await;
            "done"
        }
    };
    let routes =
        Router::new().route("/slow", routing::get(slow)).route("/", routing::get(|| async { "quick" }));
    let upstream = Upstream::serve(routes).await;
    let rig = rig(&upstream, |config| {
        config.limits.connections_max = 2;
        // It also says how soon a connection is looked at.
        config.timeouts.headers = Duration::from_millis(600);
    })
    .await;

    // One at work, one that is kept.
    let mut busy = http1(rig.addr).await;
    let asking = busy.send_request(request("GET", "/slow", &[]));
    let answer = async {
        let answer = asking.await.unwrap();
        answer.into_body().collect().await.unwrap().to_bytes()
    };
    let others = async {
        within(begun.notified()).await;
        // For each that comes, one goes.
        let mut idle = kept(rig.addr).await;
        for _ in 0..2 {
            let next = kept(rig.addr).await;
            assert_eq!(within(idle.read(&mut [0; 64])).await.unwrap(), 0);
            idle = next;
        }
        let mut by_http2 = http2(rig.addr).await;
        let sent = by_http2.send_request(request("GET", "http://localhost/", &[]));
        assert_eq!(within(sent).await.unwrap().status(), 200);
        let _next = kept(rig.addr).await;
        let closed = async {
            while by_http2.ready().await.is_ok() && !by_http2.is_closed() {
                tokio::task::yield_now().await;
            }
        };
        within(closed).await;
        go.notify_one();
    };
    let (answer, ()) = tokio::join!(answer, others);
    assert_eq!(answer, "done", "who was at work has noticed nothing");
}

#[tokio::test]
async fn a_head_may_be_sent_slowly_but_not_for_ever() {
    let upstream = Upstream::echo().await;
    let rig = rig(&upstream, |config| config.timeouts.headers = Duration::from_millis(100)).await;
    let mut stream = TcpStream::connect(rig.addr).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n").await.unwrap();
    // Each byte shows good will, and none of them buys more time.
    within(async {
        let mut byte = [0];
        loop {
            tokio::select! {
                read = stream.read(&mut byte) => break assert!(matches!(read, Ok(0) | Err(_)), "{read:?}"),
                () = tokio::time::sleep(Duration::from_millis(5)) => {}
            }
            if stream.write_all(b"x").await.is_err() {
                break;
            }
        }
    })
    .await;
    rig.metric("farebox_connections 0").await;
}

#[tokio::test]
async fn heads_that_are_too_large_or_have_too_many_lines_are_refused() {
    let upstream = Upstream::echo().await;
    let rig = rig(&upstream, |config| config.limits.header_count_max = 50).await;
    let with = |lines: &str| format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{lines}\r\n");
    let answer = async |lines: String| raw(rig.addr, with(&lines).as_bytes(), "").await;
    assert!(answer("x: 1\r\n".repeat(48)).await.starts_with("HTTP/1.1 200"));
    assert!(answer("x: 1\r\n".repeat(49)).await.starts_with("HTTP/1.1 431"));
    assert!(answer(format!("x: {}\r\n", "1".repeat(31 << 10))).await.starts_with("HTTP/1.1 200"));
    let large = answer(format!("x: {}\r\n", "1".repeat(33 << 10))).await;
    assert!(large.starts_with("HTTP/1.1 431") || large.is_empty(), "{large}");
    // And one that never ends.
    let mut stream = TcpStream::connect(rig.addr).await.unwrap();
    let line = [b'x'; 4096];
    within(async { while stream.write_all(&line).await.is_ok() {} }).await;
    rig.metric("farebox_connections 0").await;
}

#[tokio::test]
async fn requests_that_are_sent_ahead_wait_in_the_socket_and_not_in_memory() {
    // Large answers fill the sockets quickly.
    let upstream = Upstream::serve(Router::new().fallback(|| async { vec![0_u8; 1 << 20] })).await;
    let rig = rig(&upstream, |config| config.timeouts.write_stall = Duration::from_millis(200)).await;
    let mut greedy = TcpStream::connect(rig.addr).await.unwrap();
    let many = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".repeat(1000);
    // It sends and never reads: what it may send is what the sockets hold, and then it is let go.
    within(async { while greedy.write_all(&many).await.is_ok() {} }).await;
    assert!(raw(rig.addr, GET, "").await.starts_with("HTTP/1.1 200"));
    rig.metric("farebox_connections 0").await;
}

#[tokio::test]
async fn what_stands_beside_the_data_of_a_chunked_body_is_bounded() {
    let upstream = Upstream::echo().await;
    let rig = rig(&upstream, |_| {}).await;
    let post = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (begin, again) in [
        // An extension that never ends, extensions without end, a trailer that never ends, trailers without end.
        (&b"1;"[..], &[b'x'; 1024][..]),
        (b"", b"1;some=extension-or-other\r\nx\r\n"),
        (b"0\r\nx: ", &[b'x'; 1024]),
        (b"0\r\n", b"trailer: and another one\r\n"),
    ] {
        let mut stream = TcpStream::connect(rig.addr).await.unwrap();
        stream.write_all(&[&post[..], begin].concat()).await.unwrap();
        // A million times would be 16 MiB and more.
        let mut sent = 0;
        within(async {
            while sent < 1_000_000 && stream.write_all(again).await.is_ok() {
                sent += 1;
            }
        })
        .await;
        assert!(sent < 1_000_000, "{:?}", String::from_utf8_lossy(begin));
    }
    rig.metric("farebox_connections 0").await;
}

#[tokio::test]
async fn a_body_that_never_comes_is_not_waited_for_by_those_who_have_not_paid() {
    let upstream = Upstream::echo().await;
    let rig = Rig::new(vec![service("api", &upstream.url())]).await;
    for announced in ["Content-Length: 1000000", "Content-Length: 1000000\r\nExpect: 100-continue"] {
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\n{announced}\r\n\r\n");
        // The answer comes before the body, and with it the end.
        let answer = raw(rig.addr, head.as_bytes(), "").await;
        assert!(answer.starts_with("HTTP/1.1 402"), "{answer}");
        assert!(!answer.contains("100 Continue"), "{answer}");
    }
    rig.metric("farebox_connections 0").await;
}

#[tokio::test]
async fn a_body_that_stalls_is_given_the_time_that_its_service_gives() {
    let upstream = Upstream::echo().await;
    let mut route = free("api", &upstream.url());
    route.upstream.idle_timeout = Some(Duration::from_millis(100));
    let rig = Rig::new(vec![route]).await;
    for expect in ["", "Expect: 100-continue\r\n"] {
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n{expect}\r\nhalf");
        let answer = raw(rig.addr, head.as_bytes(), "").await;
        assert!(answer.contains("HTTP/1.1 408") && answer.contains("body_stalled"), "{answer}");
    }
    rig.metric("farebox_connections 0").await;
}
