//! What an upstream is told of a request besides what its client says: the same, each of it once, whether the connection asks
//! for the first time, and it goes through the headers, or again, and it is written as it was (`proxy/telling.rs`).

#![expect(clippy::unwrap_used, reason = "an error is how a test fails")]

mod support;

use std::sync::Arc;

use bytes::Bytes;
use farebox_gateway::ServiceRoute;
use farebox_protocol::Scheme;
use futures_util::stream;
use http::{HeaderName, HeaderValue, Request, header};
use http_body::Frame;
use http_body_util::{BodyExt, combinators::BoxBody};
use serde_json::Value;
use support::{
    Rig, Sender1, body, free, get, http1, http2, pieces, request, service,
    socket::{Place, by_hand},
    upstream::{Recorder, Upstream},
    websocket::{handshake, read_head},
    within,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
    sync::Notify,
    task::JoinSet,
};

/// How often a connection asks for the same: by headers, then in writing for the first time, then as it was.
const TURNS: usize = 4;

/// What the upstream received, in an order of its own.
fn received(answer: &[u8]) -> (Vec<String>, String) {
    let told: Value = serde_json::from_slice(answer).unwrap();
    let lines = told["headers"].as_array().unwrap().iter();
    let mut lines: Vec<String> = lines.map(|line| line.as_str().unwrap().to_owned()).collect();
    lines.sort_unstable();
    (lines, told["body"].as_str().unwrap().to_owned())
}

async fn on(client: &mut Sender1, asked: Request<BoxBody<Bytes, hyper::Error>>) -> (Vec<String>, String) {
    within(async {
        client.ready().await.unwrap();
        let answer = client.send_request(asked).await.unwrap();
        assert_eq!(answer.status(), 200);
        received(&answer.into_body().collect().await.unwrap().to_bytes())
    })
    .await
}

fn starting<'a>(lines: &'a [String], name: &str) -> Vec<&'a str> {
    let front = format!("{name}: ");
    lines.iter().filter_map(|line| line.strip_prefix(&front)).collect()
}

/// One worker, so that there is one connection to the upstream.
async fn rig(routes: Vec<ServiceRoute>) -> Rig {
    let mut config = support::config(routes);
    config.workers = 1;
    Rig::with(config).await
}

/// What clients say in the name of proxies, of operators or of ours, and what they say to have ours taken away.
const CLAIMS: [&[(&str, &str)]; 9] = [
    &[],
    &[("x-forwarded-for", "6.6.6.6"), ("forwarded", "for=6.6.6.6"), ("x-forwarded-host", "evil")],
    &[("X_Forwarded_For", "6.6.6.6"), ("x-forwarded-proto", "gopher"), ("x-real-ip", "6.6.6.6")],
    &[("farebox-service", "other"), ("farebox-token-id", "00"), ("farebox-payment-hash", "00")],
    &[("farebox_service", "other"), ("farebox-anything", "1"), ("Farebox-Token-Id", "00")],
    &[("connection", "x-forwarded-for, farebox-service, forwarded, host"), ("accept", "a/b")],
    &[("connection", "close, te"), ("te", "trailers"), ("x-original-url", "/dear")],
    &[("x-empty", ""), ("accept", "a"), ("accept", "b"), ("cookie", "a=1; b=2")],
    &[("expect", "100-continue"), ("x-forwarded-port", "1"), ("content-type", "text/plain")],
];

#[tokio::test]
async fn a_connection_that_asks_again_tells_the_same_as_one_that_asks_for_the_first_time() {
    let upstream = Upstream::echo().await;
    let rig = rig(vec![service("api", &upstream.url())]).await;
    let bought = rig.buy_as("/", Scheme::L402).await;
    let ask = |claims: &[(&str, &str)]| {
        let mut asked = request("GET", "/a?b=c", claims);
        asked.headers_mut().insert(header::AUTHORIZATION, HeaderValue::from_str(&bought).unwrap());
        asked
    };
    for claims in CLAIMS {
        let first = on(&mut http1(rig.addr).await, ask(claims)).await;
        let mut warm = http1(rig.addr).await;
        for _ in 0..TURNS {
            on(&mut warm, ask(&[])).await;
        }
        assert_eq!(on(&mut warm, ask(claims)).await, first, "{claims:?}");
        let (lines, _) = &first;
        assert_eq!(starting(lines, "x-forwarded-for"), ["127.0.0.1"], "{claims:?}");
        assert_eq!(starting(lines, "x-forwarded-proto"), ["http"], "{claims:?}");
        assert_eq!(starting(lines, "x-forwarded-host"), ["localhost"], "{claims:?}");
        assert_eq!(
            starting(lines, "forwarded"),
            ["for=127.0.0.1;host=\"localhost\";proto=http"],
            "{claims:?}"
        );
        assert_eq!(starting(lines, "farebox-service"), ["api"], "{claims:?}");
        assert_eq!(lines.iter().filter(|line| line.starts_with("farebox")).count(), 3, "{claims:?}");
        assert_eq!(starting(lines, "host").len(), 1, "{claims:?}");
        assert!(!lines.iter().any(|line| line.starts_with("authorization")), "{claims:?}");
    }
}

#[tokio::test]
async fn nobody_is_introduced_as_who_asked_before() {
    let upstream = Upstream::echo().await;
    let mut other = free("other", &upstream.url());
    other.matcher.path_prefixes = vec!["/other".parse().unwrap()];
    let rig = rig(vec![other, service("api", &upstream.url())]).await;
    let tokens = [rig.buy_as("/", Scheme::L402).await, rig.buy_as("/", Scheme::L402).await];
    // Each of two tokens, hosts and services in every order, also several times in a row.
    let mut asked = Vec::new();
    for at in 0..64_usize {
        asked.push((at & 1, at >> 1 & 1, at >> 2 & 1));
        asked.extend(vec![(at >> 3 & 1, at >> 4 & 1, at >> 5 & 1); at % 4]);
    }
    let mut client = http1(rig.addr).await;
    for (token, host, service) in asked {
        let path = ["/", "/other"][service];
        let host = ["a.test", "b.test"][host];
        let mut asked = request("GET", path, &[("authorization", &tokens[token])]);
        asked.headers_mut().insert(header::HOST, HeaderValue::from_static(host));
        let cold = {
            let mut asked = request("GET", path, &[("authorization", &tokens[token])]);
            asked.headers_mut().insert(header::HOST, HeaderValue::from_static(host));
            on(&mut http1(rig.addr).await, asked).await
        };
        let warm = on(&mut client, asked).await;
        assert_eq!(warm, cold);
        assert_eq!(starting(&warm.0, "x-forwarded-host"), [host]);
        assert_eq!(starting(&warm.0, "farebox-service"), [["api", "other"][service]]);
        assert_eq!(starting(&warm.0, "farebox-token-id").len(), 1 - service);
    }
}

#[tokio::test]
async fn bodies_of_every_size_and_kind_follow_the_head_that_they_belong_to() {
    let upstream = Upstream::echo().await;
    let rig = rig(vec![free("api", &upstream.url())]).await;
    let mut client = http1(rig.addr).await;
    for size in [0, 1, 1_000, 15 << 10, 16 << 10, 17 << 10, 400 << 10] {
        let text = "0123456789abcdef".repeat(size / 16) + &"x".repeat(size % 16);
        for is_in_pieces in [false, true] {
            for _ in 0..TURNS {
                let asked = Request::post("/").header(header::HOST, "localhost");
                let sent = if is_in_pieces {
                    let parts: Vec<_> = text.as_bytes().chunks(7_001).map(<[u8]>::to_vec).collect();
                    pieces(stream::iter(parts.into_iter().map(|part| Frame::data(part.into()))))
                } else {
                    body(text.clone())
                };
                let (lines, got) = on(&mut client, asked.body(sent).unwrap()).await;
                assert_eq!(got.len(), size);
                assert!(got == text, "a body of {size} bytes was changed");
                assert_eq!(starting(&lines, "x-forwarded-for"), ["127.0.0.1"]);
                assert_eq!(starting(&lines, "farebox-service"), ["api"]);
            }
        }
    }
}

#[tokio::test]
async fn an_operators_header_of_a_name_that_we_use_is_the_only_one() {
    let upstream = Upstream::echo().await;
    for name in ["x-forwarded-proto", "forwarded", "x_forwarded_for"] {
        let mut route = free("api", &upstream.url());
        route.headers = vec![(HeaderName::from_static(name), HeaderValue::from_static("operators"))];
        let rig = rig(vec![route]).await;
        let mut client = http1(rig.addr).await;
        let (first, _) = on(&mut client, request("GET", "/", &[])).await;
        for _ in 0..TURNS {
            let (lines, _) = on(&mut client, request("GET", "/", &[])).await;
            assert_eq!(lines, first);
            let spellings = [name, &name.replace('_', "-")].map(|name| starting(&lines, name)).concat();
            assert!(spellings.iter().all(|value| *value == "operators"), "{name}: {lines:?}");
        }
    }
}

#[tokio::test]
async fn a_connection_that_asks_for_another_host_is_told_of_with_that_one() {
    // Through the headers; the same in writing is above.
    let upstream = Upstream::echo().await;
    let mut route = free("api", &upstream.url());
    route.headers =
        vec![(HeaderName::from_static("x-forwarded-proto"), HeaderValue::from_static("operators"))];
    let rig = rig(vec![route]).await;
    let mut client = http1(rig.addr).await;
    for host in ["a.test", "a.test", "b.test", "a.test"] {
        let mut asked = request("GET", "/", &[]);
        asked.headers_mut().insert(header::HOST, HeaderValue::from_static(host));
        let (lines, _) = on(&mut client, asked).await;
        assert_eq!(starting(&lines, "x-forwarded-host"), [host]);
        assert_eq!(starting(&lines, "forwarded"), [format!("for=127.0.0.1;host=\"{host}\";proto=http")]);
    }
}

#[tokio::test]
async fn a_trusted_proxys_word_is_passed_on_with_every_request() {
    let upstream = Upstream::echo().await;
    let mut config = support::config(vec![free("api", &upstream.url())]);
    config.workers = 1;
    config.trusted_proxies = vec!["127.0.0.1/32".parse().unwrap()];
    let rig = Rig::with(config).await;
    let mut client = http1(rig.addr).await;
    for at in 0..TURNS {
        let ip = format!("9.9.9.{at}");
        let (lines, _) = on(&mut client, request("GET", "/", &[("x-forwarded-for", &ip)])).await;
        assert_eq!(starting(&lines, "x-forwarded-for"), [format!("{ip}, 127.0.0.1")]);
        assert_eq!(starting(&lines, "farebox-service"), ["api"]);
    }
}

#[tokio::test]
async fn a_request_that_is_sent_again_is_told_of_once() {
    // The first request on each connection is answered, the second is read and the connection closed.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let heads = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let mut serving = JoinSet::new();
    let seen = heads.clone();
    serving.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            for answer in [&b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"[..], b""] {
                let mut read = Vec::new();
                while !read.ends_with(b"\r\n\r\n") && stream.read_buf(&mut read).await.unwrap() > 0 {}
                seen.lock().push(String::from_utf8(read).unwrap());
                stream.write_all(answer).await.unwrap();
            }
        }
    });
    let rig = rig(vec![free("api", &format!("http://{addr}"))]).await;
    let mut client = http1(rig.addr).await;
    for _ in 0..TURNS {
        within(async {
            client.ready().await.unwrap();
            let answer = client.send_request(request("GET", "/", &[])).await.unwrap();
            assert_eq!(answer.status(), 200);
            answer.into_body().collect().await.unwrap();
        })
        .await;
    }
    let heads = heads.lock().clone();
    assert!(heads.len() > TURNS, "nothing was sent again");
    let mut all = heads.iter().map(|head| {
        let mut lines: Vec<_> = head.split_terminator("\r\n").filter(|line| !line.is_empty()).collect();
        assert_eq!(lines.remove(0), "GET / HTTP/1.1");
        lines.sort_unstable();
        lines
    });
    let first = all.next().unwrap();
    assert_eq!(first.len(), 6, "{first:?}");
    assert!(all.all(|lines| lines == first), "{heads:?}");
}

#[tokio::test]
async fn from_the_second_request_on_nothing_is_put_into_writing_again() {
    // Or all of the above would show nothing but that headers are headers.
    let upstream = Recorder::start().await;
    let rig = rig(vec![free("api", &upstream.url())]).await;
    let mut client = http1(rig.addr).await;
    for _ in 0..TURNS {
        within(async {
            client.ready().await.unwrap();
            let answer = client.send_request(request("GET", "/", &[])).await.unwrap();
            assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "ok");
        })
        .await;
    }
    let received = upstream.received();
    let second: Vec<_> =
        received.split_terminator("\r\n\r\n").map(|head| head.lines().nth(1).unwrap_or_default()).collect();
    assert!(second[0].starts_with("host: "), "{received}");
    assert!(second[1..].iter().all(|line| line.starts_with("forwarded: ")), "{received}");
    assert_eq!(second.len(), TURNS);
}

#[tokio::test]
async fn requests_that_share_a_connection_are_each_told_of_as_their_own() {
    let upstream = Place::live();
    let mut route = service("api", &upstream.url());
    // One pool for all workers, and fewer connections than there are requests.
    route.upstream.connections_max = Some(3);
    let rig = Rig::new(vec![route]).await;
    let tokens = [rig.buy_as("/", Scheme::L402).await, rig.buy_as("/", Scheme::L402).await];
    let mut asked = JoinSet::new();
    for client in [http2(rig.addr).await, http2(rig.addr).await] {
        for at in 0..60 {
            let (mut client, token) = (client.clone(), at / 2 % 2);
            let mut ask = request("GET", "/", &[("authorization", &tokens[token])]);
            let host = format!("{}.test", at / 5 % 2);
            *ask.uri_mut() = format!("http://{host}/").parse().unwrap();
            ask.headers_mut().remove(header::HOST);
            ask.headers_mut().extend(
                CLAIMS[at % CLAIMS.len()]
                    .iter()
                    .filter(|(name, _)| *name != "connection" && *name != "expect")
                    .map(|(name, value)| {
                        (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_static(value))
                    }),
            );
            asked.spawn(async move {
                let answer = within(client.send_request(ask)).await.unwrap();
                assert_eq!(answer.status(), 200);
                let (lines, _) = received(&within(answer.into_body().collect()).await.unwrap().to_bytes());
                assert_eq!(starting(&lines, "x-forwarded-for"), ["127.0.0.1"]);
                assert_eq!(starting(&lines, "x-forwarded-host"), [&host]);
                let forwarded = format!("for=127.0.0.1;host=\"{host}\";proto=http");
                assert_eq!(starting(&lines, "forwarded"), [&forwarded]);
                assert_eq!(lines.iter().filter(|line| line.starts_with("farebox")).count(), 3);
                (token, starting(&lines, "farebox-token-id")[0].to_owned())
            });
        }
    }
    let mut told = asked.join_all().await;
    told.sort();
    told.dedup();
    assert_eq!(told.len(), 2, "each token has one name, and its own: {told:?}");
}

#[tokio::test]
async fn an_upgrade_on_a_connection_that_has_asked_before_is_told_of_once() {
    let place = Place::new();
    let answer = async |mut socket: UnixStream| {
        loop {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let Ok(byte) = socket.read_u8().await else { return };
                head.push(byte);
            }
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", head.len());
            socket.write_all(&[answer.as_bytes(), &head].concat()).await.unwrap();
        }
    };
    let _upstream = by_hand(&place.path, answer);
    let rig = rig(vec![free("api", &place.url())]).await;
    let mut client = TcpStream::connect(rig.addr).await.unwrap();
    for turn in 0..TURNS {
        let asks = handshake("/", "X-Forwarded-For: 6.6.6.6\r\nFarebox-Service: other\r\n");
        // The first ones are ordinary.
        let asks = if turn < 2 { "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" } else { asks.as_str() };
        client.write_all(asks.as_bytes()).await.unwrap();
        assert!(read_head(&mut client).await.starts_with("HTTP/1.1 200 "));
        let head = read_head(&mut client).await;
        let lines: Vec<String> = head.lines().map(str::to_ascii_lowercase).collect();
        assert_eq!(starting(&lines, "x-forwarded-for"), ["127.0.0.1"], "{head}");
        assert_eq!(starting(&lines, "farebox-service"), ["api"], "{head}");
        assert_eq!(starting(&lines, "upgrade").len(), usize::from(turn > 1), "{head}");
        assert_eq!(starting(&lines, "host").len(), 1, "{head}");
    }
}

#[tokio::test]
async fn what_is_told_of_a_request_is_not_put_into_one_that_was_answered_before_it_was_read() {
    let place = Place::new();
    let goes_on = Arc::new(Notify::new());
    let heard = Arc::new(parking_lot::Mutex::new(Vec::<String>::new()));
    let (go, all) = (goes_on.clone(), heard.clone());
    let _upstream = by_hand(&place.path, move |mut socket| {
        let (go, all) = (go.clone(), all.clone());
        async move {
            let at = all.lock().len();
            all.lock().push(String::new());
            let mut answered = 0;
            let mut some = [0; 1000];
            while let Ok(read @ 1..) = socket.read(&mut some).await {
                let text = {
                    let mut all = all.lock();
                    all[at].push_str(std::str::from_utf8(&some[..read]).unwrap());
                    all[at].clone()
                };
                let is_early = text.starts_with("GET /early") && answered == 0;
                while answered < text.matches("\r\n\r\n").count() + usize::from(is_early) {
                    answered += 1;
                    socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
                }
                if is_early {
                    go.notified().await;
                }
            }
        }
    });
    let mut config = support::config(vec![free("api", &place.url())]);
    config.workers = 1;
    // More than a socket takes of which nobody reads.
    config.limits.header_bytes_max = 4 << 20;
    let rig = Rig::with(config).await;
    let asks = async |client: &mut Sender1, asked| {
        within(async {
            client.ready().await.unwrap();
            let answer = client.send_request(asked).await.unwrap();
            assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "ok");
        })
        .await;
    };
    let mut early = http1(rig.addr).await;
    asks(&mut early, request("GET", "/early", &[("a", &"x".repeat(2 << 20))])).await;
    let mut client = http1(rig.addr).await;
    let asked = async {
        for _ in 0..TURNS {
            asks(&mut client, request("GET", "/", &[])).await;
        }
    };
    asked.await;
    goes_on.notify_one();
    within(async {
        while !heard.lock()[0].contains("\r\n\r\n") {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let heard = heard.lock().clone();
    for text in &heard {
        for head in text.split_terminator("\r\n\r\n") {
            assert!(head.starts_with("GET /"));
            assert_eq!(head.matches("x-forwarded-for: ").count(), 1);
        }
    }
    assert_eq!(heard.len(), 2, "a connection that is behind is given to nobody");
}

#[tokio::test]
async fn a_request_that_goes_on_to_another_address_is_told_of_once() {
    let heads = Arc::new(parking_lot::Mutex::new(Vec::new()));
    // Each connection to the first address breaks off at its second request, or before it.
    let serve = |answers: usize, is_polite: bool| {
        let (place, all) = (Place::new(), heads.clone());
        let serving = by_hand(&place.path, move |mut socket| {
            let all = all.clone();
            async move {
                for turn in 0.. {
                    if turn == answers && !is_polite {
                        return;
                    }
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        let Ok(byte) = socket.read_u8().await else { return };
                        head.push(byte);
                    }
                    all.lock().push(String::from_utf8(head).unwrap());
                    if turn == answers {
                        return;
                    }
                    socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
                }
            }
        });
        (place, serving)
    };
    let places = [serve(0, true), serve(1, true), serve(1, false), serve(usize::MAX, true)];
    let mut route = free("api", &places[3].0.url());
    route.upstream.urls = places.iter().map(|(place, _)| place.url().parse().unwrap()).collect();
    route.upstream.failures_max = u32::MAX;
    let rig = rig(vec![route]).await;
    let mut client = http1(rig.addr).await;
    for turn in 0..8 * TURNS {
        let method = ["GET", "DELETE"][turn % 2];
        within(async {
            client.ready().await.unwrap();
            let answer = client.send_request(request(method, "/", &[("accept", "a/b")])).await.unwrap();
            assert_eq!(answer.status(), 200);
            answer.into_body().collect().await.unwrap();
        })
        .await;
    }
    let heads = heads.lock().clone();
    assert!(heads.len() > 8 * TURNS, "nothing was sent again");
    for head in heads {
        let mut names: Vec<_> = head.lines().skip(1).filter_map(|line| line.split_once(": ")).collect();
        names.sort_unstable();
        let names: Vec<_> = names.into_iter().map(|(name, _)| name).collect();
        let ours = ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"];
        assert_eq!(
            names,
            [&["accept", "farebox-service", "forwarded", "host"], &ours[..]].concat(),
            "{head}"
        );
    }
}

#[tokio::test]
async fn what_no_host_can_be_called_is_neither_asked_for_nor_kept() {
    let upstream = Upstream::echo().await;
    let rig = rig(vec![free("api", &upstream.url())]).await;
    // 253 letters are a name (RFC 1035 2.3.4), besides a final dot and a port.
    let name = |length: usize| "a.".repeat(length / 2) + &"b".repeat(length % 2);
    for (host, status) in [
        (name(253), 200),
        (name(253) + ".:65535", 200),
        (name(300), 400),
        (name(20_000), 400),
        (name(300) + ":80", 400),
        (name(300).to_uppercase(), 400),
    ] {
        let mut asked = request("GET", "/", &[]);
        asked.headers_mut().insert(header::HOST, HeaderValue::from_str(&host).unwrap());
        assert_eq!(support::ask(rig.addr, asked).await.status(), status, "{}", host.len());
    }
    assert_eq!(get(rig.addr, "/", &[]).await.status(), 200);
}
