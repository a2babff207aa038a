//! Connections that go on in another protocol: WebSocket over both versions of HTTP, in front of upstreams of both.

#![expect(clippy::unwrap_used, reason = "an error is how a test fails")]

mod support;

use farebox_gateway::UpstreamTls;
use farebox_protocol::Scheme;
use futures_util::{SinkExt, StreamExt};
use http::StatusCode;
use support::{
    Rig, free, get, raw, service,
    upstream::Recorder,
    websocket::{ACCEPT, Echo, Over, Puppet, connect, fragments, handshake, line, open, read_head},
    within,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_tungstenite::tungstenite::Message;

const BOTH: [Over; 2] = [Over::Http1, Over::Http2];

/// Bytes that differ from place to place.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// A client that has sent these bytes.
async fn say(rig: &Rig, bytes: &str) -> TcpStream {
    let mut socket = TcpStream::connect(rig.addr).await.unwrap();
    socket.write_all(bytes.as_bytes()).await.unwrap();
    socket
}

async fn read(socket: &mut TcpStream, length: usize) -> String {
    let mut bytes = vec![0; length];
    within(socket.read_exact(&mut bytes)).await.unwrap();
    String::from_utf8(bytes).unwrap()
}

/// What is left to be read, up to the end.
async fn rest(socket: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    within(socket.read_to_end(&mut bytes)).await.unwrap();
    String::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn messages_pass_whole_in_every_pairing_of_versions() {
    for upstream in BOTH {
        let echo = Echo::start(upstream).await;
        let rig = Rig::new(vec![free("api", &echo.url())]).await;
        for client in BOTH {
            let mut socket = connect(client, rig.addr, "/chat?x=1", &[]).await;
            for length in [0, 1, 125, 126, 65_535, 65_536, 300_000] {
                let sent = Message::binary(noise(length));
                within(socket.send(sent.clone())).await.unwrap();
                assert_eq!(within(socket.next()).await.unwrap().unwrap(), sent, "{client:?} {upstream:?}");
            }
            let message = noise(100_000);
            for frame in fragments(&message, 7) {
                within(socket.send(frame)).await.unwrap();
            }
            assert_eq!(within(socket.next()).await.unwrap().unwrap().into_data(), message);
            within(socket.send(Message::text("héllo"))).await.unwrap();
            assert_eq!(within(socket.next()).await.unwrap().unwrap(), Message::text("héllo"));
            within(socket.send(Message::Ping("are you there?".into()))).await.unwrap();
            assert_eq!(within(socket.next()).await.unwrap().unwrap(), Message::Pong("are you there?".into()));
            within(socket.close(None)).await.unwrap();
            assert!(within(socket.next()).await.unwrap().unwrap().is_close());
            assert!(within(socket.next()).await.is_none());
        }
    }
}

#[tokio::test]
async fn sixteen_megabytes_arrive_byte_for_byte_while_as_many_go_the_other_way() {
    let message = Message::binary(noise(16 << 20));
    for upstream in BOTH {
        let echo = Echo::start(upstream).await;
        let rig = Rig::new(vec![free("api", &echo.url())]).await;
        for client in BOTH {
            let (mut sink, mut stream) = connect(client, rig.addr, "/", &[]).await.split();
            let (sent, received) = within(async {
                tokio::join!(sink.send(message.clone()), async {
                    let first = stream.next().await;
                    // The library answers pings while it reads; here there are none.
                    first.unwrap()
                })
            })
            .await;
            sent.unwrap();
            assert!(received.unwrap() == message, "{client:?} {upstream:?}");
        }
    }
}

#[tokio::test]
async fn an_upgrade_that_is_not_paid_for_is_asked_to_pay_and_opens_nothing() {
    let upstream = Recorder::start().await;
    let rig = Rig::new(vec![service("api", &upstream.url())]).await;
    for over in BOTH {
        let answer = open(over, rig.addr, "/", &[]).await.refused();
        assert_eq!(answer.status(), StatusCode::PAYMENT_REQUIRED, "{over:?}");
        assert!(answer.headers().contains_key("www-authenticate"), "{answer:?}");
        assert!(!answer.headers().contains_key("upgrade"), "{answer:?}");
    }
    assert_eq!(upstream.received(), "");
}

#[tokio::test]
async fn a_paid_upgrade_is_paid_once_and_the_credential_ends_here() {
    let upstream = Puppet::start().await;
    let rig = Rig::new(vec![service("api", &upstream.url())]).await;
    for over in BOTH {
        let challenge = open(over, rig.addr, "/", &[]).await.refused();
        let credential = rig.credential(challenge.headers(), Scheme::L402);
        let made = rig.node.made();
        let headers = [("authorization", credential.as_str()), ("origin", "https://shop.example")];
        let (opened, (mut server, head)) =
            tokio::join!(open(over, rig.addr, "/chat?a=b", &headers), upstream.agree(b""));
        let mut client = opened.tunnel();
        assert!(head.starts_with("GET /chat?a=b HTTP/1.1\r\n"), "{head}");
        assert_eq!(line(&head, "connection"), Some("upgrade"));
        assert_eq!(line(&head, "upgrade"), Some("websocket"));
        assert_eq!(line(&head, "sec-websocket-version"), Some("13"));
        assert_eq!(line(&head, "origin"), Some("https://shop.example"));
        assert_eq!(line(&head, "authorization"), None, "{head}");
        assert!(line(&head, "farebox-payment-hash").is_some(), "{head}");
        for turn in ["one", "two"] {
            client.write_all(turn.as_bytes()).await.unwrap();
            assert_eq!(read(&mut server, 3).await, turn);
        }
        assert_eq!(rig.node.made(), made);
    }
}

#[tokio::test]
async fn what_both_sides_say_of_extensions_and_subprotocols_passes_between_them() {
    for over in BOTH {
        let upstream = Puppet::start().await;
        let rig = Rig::new(vec![free("api", &upstream.url())]).await;
        let headers = [
            ("sec-websocket-extensions", "permessage-deflate"),
            ("sec-websocket-protocol", "chat, superchat"),
        ];
        let asking = open(over, rig.addr, "/", &headers);
        let (opened, _server) = tokio::join!(asking, async {
            let (mut server, head) = upstream.accept().await;
            assert_eq!(line(&head, "sec-websocket-extensions"), Some("permessage-deflate"));
            assert_eq!(line(&head, "sec-websocket-protocol"), Some("chat, superchat"));
            let key = line(&head, "sec-websocket-key").unwrap();
            let accept = tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes());
            let answer = format!(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: superchat\r\n\
                 Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
            );
            server.write_all(answer.as_bytes()).await.unwrap();
            server
        });
        let support::websocket::Opened::Tunnel(headers, _client) = opened else {
            panic!("{over:?}: refused")
        };
        assert_eq!(headers["sec-websocket-protocol"], "superchat");
        assert_eq!(headers["sec-websocket-extensions"], "permessage-deflate");
        let proof = headers.get("sec-websocket-accept").map(|value| value.to_str().unwrap());
        assert_eq!(proof, (over == Over::Http1).then_some(ACCEPT));
        assert_eq!(headers.contains_key("upgrade"), over == Over::Http1);
    }
}

#[tokio::test]
async fn a_refusal_by_the_upstream_passes_with_its_body() {
    for (status, said) in [(403, "not you"), (426, "another version, please")] {
        let answer =
            format!("HTTP/1.1 {status} No\r\nContent-Length: {}\r\nX-Why: because\r\n\r\n{said}", said.len());
        let upstream = Recorder::answering(answer.leak().as_bytes()).await;
        let rig = Rig::new(vec![free("api", &upstream.url())]).await;
        for over in BOTH {
            let answer = open(over, rig.addr, "/", &[]).await.refused();
            assert_eq!(answer.status().as_u16(), status, "{over:?}");
            assert_eq!(answer.headers()["x-why"], "because");
            assert_eq!(answer.body(), said);
        }
        // The client's connection is one of HTTP as before.
        let twice = format!("{}{}", handshake("/a", ""), handshake("/b", "Connection: close\r\n"));
        let answers = raw(rig.addr, twice.as_bytes(), "").await;
        assert_eq!(answers.matches(said).count(), 2, "{answers}");
    }
}

#[tokio::test]
async fn a_switch_that_nobody_asked_for_is_no_answer() {
    let switch = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n";
    for (asked, lines) in [
        // Not asked at all.
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), "Upgrade: websocket\r\n"),
        // Offered to us alone.
        (
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n".to_owned(),
            "Upgrade: h2c\r\n",
        ),
        ("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n".to_owned(), "Upgrade: websocket\r\n"),
        // To something else than was asked.
        (handshake("/", ""), "Upgrade: h2c\r\n"),
        (handshake("/", ""), "Upgrade: websocket, h2c\r\n"),
        (handshake("/", ""), "Upgrade: websocket\r\nUpgrade: h2c\r\n"),
        (handshake("/", ""), ""),
    ] {
        let upstream = Recorder::answering(format!("{switch}{lines}\r\nraw bytes").leak().as_bytes()).await;
        let rig = Rig::new(vec![free("api", &upstream.url())]).await;
        let answer = raw(rig.addr, asked.as_bytes(), "\"code\"").await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{asked}{lines}: {answer}");
        assert!(!answer.contains("raw bytes"), "{answer}");
    }
}

#[tokio::test]
async fn over_http2_the_gateway_checks_what_the_client_cannot() {
    for accept in ["", "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"] {
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{accept}\r\n"
        );
        let upstream = Recorder::answering(answer.leak().as_bytes()).await;
        let rig = Rig::new(vec![free("api", &upstream.url())]).await;
        let answer = open(Over::Http2, rig.addr, "/", &[]).await.refused();
        assert_eq!(answer.status(), StatusCode::BAD_GATEWAY);
    }
}

/// An upstream that doesn't switch stays one of HTTP, whatever it says afterwards.
#[tokio::test]
async fn an_answer_that_does_not_switch_makes_no_tunnel() {
    let upstream = Puppet::start().await;
    let rig = Rig::new(vec![free("api", &upstream.url())]).await;
    let mut client = say(&rig, &handshake("/", "")).await;
    let (mut server, _) = upstream.accept().await;
    server.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokraw bytes").await.unwrap();
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 200 "));
    assert_eq!(read(&mut client, 2).await, "ok");
    // What the client says next is a request, and another connection gets it.
    client.write_all(b"GET /next HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    let (mut other, head) = upstream.accept().await;
    assert!(head.starts_with("GET /next "), "{head}");
    other.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnext").await.unwrap();
    let answer = rest(&mut client).await;
    assert!(answer.ends_with("next") && !answer.contains("raw"), "{answer}");
    assert_eq!(rest(&mut server).await, "");

    // Over HTTP/2 it would mean yes.
    let (opened, ()) = tokio::join!(open(Over::Http2, rig.addr, "/", &[]), async {
        let (mut server, _) = upstream.accept().await;
        server.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
        rest(&mut server).await;
    });
    assert_eq!(opened.refused().status(), StatusCode::BAD_GATEWAY);
}

#[tokio::test]
async fn a_service_without_upgrades_refuses_them_before_anything_is_sold() {
    let upstream = Recorder::start().await;
    let mut closed = service("api", &upstream.url());
    closed.upgrades = false;
    let rig = Rig::new(vec![closed]).await;
    for over in BOTH {
        let answer = open(over, rig.addr, "/", &[]).await.refused();
        assert_eq!(answer.status(), StatusCode::NOT_IMPLEMENTED, "{over:?}");
        assert_eq!(answer.headers()["farebox-code"], "upgrade_refused");
    }
    assert_eq!(rig.node.made(), 0);
    assert_eq!(upstream.received(), "");
    // Another offer may be passed over, and is.
    let offer = "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: tcp\r\n\r\n";
    assert!(raw(rig.addr, offer.as_bytes(), "\"code\"").await.starts_with("HTTP/1.1 402 "));
}

#[tokio::test]
async fn a_handshake_that_cannot_be_one_is_refused_before_anybody_pays() {
    let upstream = Recorder::start().await;
    let rig = Rig::new(vec![service("api", &upstream.url())]).await;
    let websocket = "Host: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n";
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    for head in [
        format!("POST / HTTP/1.1\r\n{websocket}{key}\r\n"),
        format!("HEAD / HTTP/1.1\r\n{websocket}{key}\r\n"),
        format!("GET / HTTP/1.1\r\n{websocket}\r\n"),
        format!("GET / HTTP/1.1\r\n{websocket}{key}{key}\r\n"),
        format!("GET / HTTP/1.1\r\n{websocket}{key}Content-Length: 6\r\n\r\nGET / "),
        format!("GET / HTTP/1.1\r\n{websocket}{key}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        format!(
            "GET / HTTP/1.1\r\n{websocket}{key}Transfer-Encoding: chunked\r\n\r\n6\r\nGET / \r\n0\r\n\r\n"
        ),
    ] {
        // Reads to the end: nothing that may come behind it is looked at.
        let smuggled = format!("{head}GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n");
        let answer = raw(rig.addr, smuggled.as_bytes(), "").await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{head}\n{answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{head}\n{answer}");
        assert!(head.starts_with("HEAD") || answer.contains("upgrade_malformed"), "{answer}");
    }
    assert_eq!(rig.node.made(), 0);
    assert_eq!(upstream.received(), "");
}

#[tokio::test]
async fn other_protocols_are_handed_over_unless_they_are_http_again() {
    let upstream = Puppet::start().await;
    let rig = Rig::new(vec![free("api", &upstream.url())]).await;
    let ask = |method: &str, offer: &str| {
        format!("{method} /exec HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: {offer}\r\n\r\n")
    };
    for (method, offer) in [("POST", "tcp"), ("GET", "h2c, acme/1.2")] {
        let mut client = say(&rig, &ask(method, offer)).await;
        let (mut server, head) = upstream.accept().await;
        let chosen = offer.split(", ").last().unwrap();
        assert_eq!(line(&head, "upgrade"), Some(chosen), "{head}");
        assert!(head.starts_with(method), "{head}");
        let consent = format!("HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: {chosen}\r\n\r\nhello");
        server.write_all(consent.as_bytes()).await.unwrap();
        assert_eq!(line(&read_head(&mut client).await, "upgrade"), Some(chosen));
        assert_eq!(read(&mut client, 5).await, "hello");
    }
    for offer in ["h2c", "HTTP/2.0", "TLS/1.2", "h2", "web socket", "a/b/c"] {
        let mut client = say(&rig, &ask("GET", offer)).await;
        let (mut server, head) = upstream.accept().await;
        assert_eq!((line(&head, "upgrade"), line(&head, "connection")), (None, None), "{offer}: {head}");
        server.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await.unwrap();
        assert!(read_head(&mut client).await.starts_with("HTTP/1.1 200 "));
    }
}

#[tokio::test]
async fn over_http2_a_websocket_is_found_and_sold_as_the_get_that_it_stands_for() {
    let upstream = Recorder::start().await;
    let mut reading = free("read", &upstream.url());
    reading.matcher.methods = vec![http::Method::GET];
    reading.matcher.path_prefixes = vec!["/open".parse().unwrap()];
    let rig = Rig::new(vec![reading, service("rest", &upstream.url())]).await;
    // Free by its path, which is read like every other.
    let answer = open(Over::Http2, rig.addr, "/open/chat", &[]).await.refused();
    assert_eq!(answer.status(), StatusCode::BAD_GATEWAY, "the upstream answers 200 instead of switching");
    for path in ["/open/../paid", "/open/%2e%2e/paid"] {
        let answer = open(Over::Http2, rig.addr, path, &[]).await.refused();
        assert!([400, 402].contains(&answer.status().as_u16()), "{path}: {answer:?}");
    }
    // A CONNECT without a protocol is none.
    let mut sender = support::http2(rig.addr).await;
    let connect = http::Request::connect("localhost:80").body(support::body("")).unwrap();
    let answer = within(sender.send_request(connect)).await.unwrap();
    assert_eq!(answer.status(), StatusCode::NOT_IMPLEMENTED);
    assert_eq!(upstream.received().matches("GET /open/chat ").count(), 1, "{}", upstream.received());
}

#[tokio::test]
async fn an_upstream_that_speaks_http2_only_and_takes_no_websockets_is_a_clear_502() {
    let upstream = support::upstream::Upstream::echo().await;
    let rig = Rig::new(vec![free("api", &upstream.h2c())]).await;
    for over in BOTH {
        let answer = open(over, rig.addr, "/", &[]).await.refused();
        assert_eq!(answer.status(), StatusCode::BAD_GATEWAY, "{over:?}");
        assert_eq!(answer.headers()["farebox-code"], "upstream_upgrade_unsupported");
    }
}

/// Which version of HTTP is spoken with an `https` upstream is settled by TLS, before anything is known of WebSockets.
#[tokio::test]
async fn an_upstream_behind_tls_is_asked_in_the_version_in_which_it_takes_websockets() {
    for upstream in BOTH {
        let echo = Echo::behind_tls(upstream).await;
        let mut route = free("api", &echo.url());
        route.upstream.tls = UpstreamTls::InsecureSkipVerify;
        let rig = Rig::new(vec![route]).await;
        for client in BOTH {
            // An ordinary request goes over HTTP/2 before and after.
            assert_eq!(get(rig.addr, "/", &[]).await.status(), StatusCode::IM_A_TEAPOT);
            let mut socket = connect(client, rig.addr, "/", &[]).await;
            within(socket.send(Message::text("hello"))).await.unwrap();
            let echoed = within(socket.next()).await.unwrap().unwrap();
            assert_eq!(echoed, Message::text("hello"), "{client:?} {upstream:?}");
            assert_eq!(get(rig.addr, "/", &[]).await.status(), StatusCode::IM_A_TEAPOT);
        }
    }
}
