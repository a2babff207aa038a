//! What a client may say over HTTP/2 beside its requests: as much as the work that it has done takes, and no flood of it. The
//! arithmetic is tested beside it (`listen/chatter.rs`); here are sockets, and others on the same worker.

#![expect(clippy::unwrap_used, reason = "an error is how a test fails")]

mod support;

use axum::{
    Router,
    body::Body,
    extract::Request,
    routing::{get as getting, post},
};
use bytes::Bytes;
use farebox_gateway::{Certificate, GatewayConfig, Listen, Tls};
use futures_util::{StreamExt, stream};
use support::{
    Rig,
    frames::{
        ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, GOAWAY, HEADERS,
        INITIAL_WINDOW_SIZE, PING, PRIORITY, RST_STREAM, SETTINGS, UNKNOWN, WINDOW_UPDATE, Wire, field,
        fields, frame,
    },
    free, get,
    upstream::{Upstream, echo},
    websocket::{Over, Puppet, open},
    within,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

/// How much `/large` is.
const LARGE: usize = 64 << 20;

/// An upstream with something large, something that sends back what it gets piece by piece, and something that never answers.
async fn upstream() -> Upstream {
    let large = || async {
        let piece = Bytes::from(vec![7; 64 << 10]);
        let pieces = stream::repeat(piece).take(LARGE >> 16);
        Body::from_stream(pieces.map(Ok::<_, std::convert::Infallible>))
    };
    let back = |request: Request| async { Body::from_stream(request.into_body().into_data_stream()) };
    let routes = Router::new()
        .route("/large", getting(large))
        .route("/back", post(back))
        .route("/never", getting(std::future::pending::<()>))
        .fallback(echo);
    Upstream::serve(routes).await
}

/// A gateway of one worker, so that everybody shares it.
async fn rig(upstream: &Upstream) -> Rig {
    let service = free("api", &upstream.h2c());
    Rig::with(GatewayConfig { workers: 1, ..support::config(vec![service]) }).await
}

fn asking(method: &str, path: &str) -> Vec<u8> {
    let mut block = vec![if method == "GET" { 0x82 } else { 0x83 }, 0x86];
    field(&mut block, ":path", path);
    field(&mut block, ":authority", "localhost");
    block
}

/// Whoever was closed has been told why, unless the end came first.
fn was_told(code: Option<u32>) -> bool {
    code.is_none_or(|code| code == ENHANCE_YOUR_CALM)
}

#[tokio::test]
async fn a_flood_of_any_kind_ends_its_connection_and_nobody_elses() {
    let upstream = upstream().await;
    let rig = rig(&upstream).await;
    for (kind, flood) in [
        ("ping", frame(PING, 0, 0, &[0; 8])),
        // Answers to what nobody asked: nothing goes back.
        ("ping", frame(PING, ACK, 0, &[0; 8])),
        ("settings", frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff])),
        ("priority", frame(PRIORITY, 0, 3, &[0, 0, 0, 0, 1])),
        ("unknown", frame(UNKNOWN, 0, 0, &[0; 8])),
        ("window_update", frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes())),
        ("rst_stream", frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes())),
        // hyper has a limit of its own for these, below ours.
        (
            "abuse",
            [frame(HEADERS, END_HEADERS, 3, &asking("POST", "/back")), frame(DATA, 0, 3, b"").repeat(200)]
                .concat(),
        ),
        (
            "abuse",
            [frame(HEADERS, 0, 3, &fields("GET", &[])), frame(CONTINUATION, 0, 3, b"").repeat(200)].concat(),
        ),
    ] {
        let before = counted(&rig, kind).await;
        let mut wire = Wire::connect(rig.addr, &[]).await;
        // A request that was answered, as anybody's would be, changes nothing.
        wire.get(1).await;
        within(wire.until(DATA, 1)).await.unwrap();
        let others = async {
            for _ in 0..3 {
                assert_eq!(get(rig.addr, "/", &[]).await.status(), 200);
            }
        };
        let flood = if kind == "abuse" { flood } else { flood.repeat(100) };
        let (ended, ()) = tokio::join!(within(wire.flood(&flood, 1_000_000)), others);
        assert!(ended.is_some_and(was_told), "{kind}: {ended:?}");
        rig.metric(&format!("farebox_connections_flooded_total{{kind=\"{kind}\"}} {}", before + 1)).await;
        assert_eq!(get(rig.addr, "/", &[]).await.status(), 200);
    }
    rig.metric("farebox_connections 0").await;
}

async fn counted(rig: &Rig, kind: &str) -> u64 {
    let page = rig.ops("/metrics").await.1;
    let name = format!("farebox_connections_flooded_total{{kind=\"{kind}\"}} ");
    page.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_flood_behind_tls_is_no_other() {
    let upstream = upstream().await;
    let tls = Tls::new(Certificate::SelfSigned { names: Vec::new() });
    let config = support::config(vec![free("api", &upstream.h2c())]);
    let listen = Listen { tls: Some(tls), ..config.listen[0].clone() };
    let rig = Rig::with(GatewayConfig { listen: vec![listen], ..config }).await;
    let mut client = support::tls::Client::default().config();
    client.alpn_protocols = vec![b"h2".to_vec()];
    let socket = TcpStream::connect(rig.addr).await.unwrap();
    let name = "localhost".try_into().unwrap();
    let socket = within(TlsConnector::from(std::sync::Arc::new(client)).connect(name, socket)).await.unwrap();
    let mut wire = Wire::begin(socket, &[]).await;
    wire.get(1).await;
    within(wire.until(DATA, 1)).await.unwrap();
    let ended = within(wire.flood(&frame(PING, 0, 0, &[0; 8]).repeat(100), 1_000_000)).await;
    assert!(ended.is_some_and(was_told), "{ended:?}");
    rig.metric("farebox_connections_flooded_total{kind=\"ping\"} 1").await;
    rig.metric("farebox_connections 0").await;
}

#[tokio::test]
async fn requests_that_are_taken_back_one_by_one_end_the_connection_too() {
    let upstream = upstream().await;
    let rig = rig(&upstream).await;
    let mut wire = Wire::connect(rig.addr, &[]).await;
    let mut code = None;
    'all: for stream in (1..20_000).step_by(2) {
        // Taken up before it is taken back, as the answer to the PING shows: so hyper doesn't see a flood of them.
        wire.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &asking("GET", "/never"))).await;
        wire.send(&frame(PING, 0, 0, &[1; 8])).await;
        loop {
            match within(wire.next()).await {
                Some(frame) if frame.kind == PING && frame.payload == [1; 8] => break,
                Some(frame) if frame.kind == GOAWAY => code = Some(frame.code()),
                Some(_) => {}
                None => break 'all,
            }
        }
        assert!(stream < 19_000, "it goes on and on");
        wire.send(&frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())).await;
    }
    assert!(was_told(code), "{code:?}");
    assert_eq!(get(rig.addr, "/", &[]).await.status(), 200);
    rig.metric("farebox_connections 0").await;
    let page = rig.ops("/metrics").await.1;
    let flooded = page.lines().filter(|line| line.starts_with("farebox_connections_flooded_total"));
    assert!(flooded.filter(|line| line.ends_with(" 1")).count() == 1, "{page}");
}

#[tokio::test]
async fn a_large_download_may_be_acknowledged_bit_by_bit() {
    let upstream = upstream().await;
    let rig = rig(&upstream).await;
    let mut wire = Wire::connect(rig.addr, &[(INITIAL_WINDOW_SIZE, 65_535)]).await;
    wire.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &asking("GET", "/large"))).await;
    let (mut taken, mut acknowledged) = (0, 0);
    while taken < LARGE {
        let piece = within(wire.until(DATA, 1)).await.expect("it goes on").payload.len();
        taken += piece;
        // As by a client that reads 2 KiB at a time, for the stream and for the connection.
        let mut open = Vec::new();
        for start in (0..piece).step_by(2 << 10) {
            let by = u32::try_from((piece - start).min(2 << 10)).unwrap().to_be_bytes();
            open.extend(frame(WINDOW_UPDATE, 0, 1, &by));
            open.extend(frame(WINDOW_UPDATE, 0, 0, &by));
            acknowledged += 2;
        }
        wire.send(&open).await;
    }
    assert!(taken == LARGE && acknowledged >= 2 * (LARGE >> 11), "{taken} {acknowledged}");
}

#[tokio::test]
async fn many_small_messages_each_way_may_be_acknowledged_and_timed_one_by_one() {
    let upstream = upstream().await;
    let rig = rig(&upstream).await;
    let mut wire = Wire::connect(rig.addr, &[]).await;
    wire.send(&frame(HEADERS, END_HEADERS, 1, &asking("POST", "/back"))).await;
    // A message of gRPC with two bytes in it.
    let message = [0, 0, 0, 0, 2, 8, 1];
    let by = 7_u32.to_be_bytes();
    let each = [
        frame(DATA, 0, 1, &message),
        frame(WINDOW_UPDATE, 0, 1, &by),
        frame(WINDOW_UPDATE, 0, 0, &by),
        frame(PING, 0, 0, &[0; 8]),
    ]
    .concat();
    for _ in 0..2_000 {
        wire.send(&each).await;
        assert_eq!(within(wire.until(DATA, 1)).await.expect("it goes on").payload, message);
    }
    wire.send(&frame(DATA, END_STREAM, 1, b"")).await;
    within(wire.until(DATA, 1)).await.expect("its end");
}

#[tokio::test]
async fn what_goes_through_a_tunnel_may_look_like_anything() {
    let upstream = Puppet::start().await;
    let rig = Rig::new(vec![free("api", &upstream.url())]).await;
    let flood =
        [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(PING, 0, 0, &[0; 8]).repeat(20_000)].concat();
    for over in [Over::Http1, Over::Http2] {
        let (opened, (mut server, _)) = tokio::join!(open(over, rig.addr, "/", &[]), upstream.agree(b""));
        let mut client = opened.tunnel();
        let mut arrived = vec![0; flood.len()];
        let (sent, read) =
            within(async { tokio::join!(client.write_all(&flood), server.read_exact(&mut arrived)) }).await;
        sent.unwrap();
        read.unwrap();
        assert!(arrived == flood, "{over:?}");
    }
}
