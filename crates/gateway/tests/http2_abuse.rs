//! HTTP/2 as nobody means it: each way of making a server work or wait for nothing, frame by frame. What is done about it
//! is seen from outside, and somebody else on the same worker is served meanwhile.

#![expect(clippy::unwrap_used, reason = "an error is how a test fails")]

mod support;

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, body::Body, routing};
use bytes::Bytes;
use farebox_gateway::GatewayConfig;
use futures_util::{StreamExt, stream};
use support::{
    Rig,
    frames::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, HEADERS, INITIAL_WINDOW_SIZE, PING,
        RST_STREAM, SETTINGS, WINDOW_UPDATE, Wire, field, fields, frame,
    },
    free, get,
    upstream::Upstream,
    within,
};
use tokio::sync::Notify;

/// A gateway of one worker, so that everybody shares it.
async fn rig(upstream: &Upstream, change: impl FnOnce(&mut GatewayConfig)) -> Rig {
    let mut config = GatewayConfig { workers: 1, ..support::config(vec![free("api", &upstream.url())]) };
    change(&mut config);
    Rig::with(config).await
}

/// Somebody else is served, which takes no longer than it should.
async fn others_are_served(addr: SocketAddr) {
    for _ in 0..3 {
        assert_eq!(get(addr, "/", &[]).await.status(), 200);
    }
}

/// An upstream whose `/` is a megabyte, whose `/quiet` says one word, nothing until it is told to, and then another one.
async fn large() -> (Upstream, Arc<Notify>) {
    let go = Arc::new(Notify::new());
    let told = go.clone();
    let quiet = move || {
        let told = told.clone();
        let words = stream::iter(["one"]).chain(stream::once(async move {
            told.notified().await;
            "two"
        }));
        async move { Body::from_stream(words.map(|word| Ok::<_, Infallible>(Bytes::from(word)))) }
    };
    let routes = Router::new()
        .route("/", routing::get(|| async { vec![7_u8; 1 << 20] }))
        .route("/quiet", routing::get(quiet))
        .route("/post", routing::post(|body: Bytes| async move { body.len().to_string() }));
    (Upstream::serve(routes).await, go)
}

/// As `fields`, for another path.
fn asking(method: &str, path: &str) -> Vec<u8> {
    let mut block = vec![if method == "GET" { 0x82 } else { 0x83 }, 0x86];
    field(&mut block, ":path", path);
    field(&mut block, ":authority", "localhost");
    block
}

#[tokio::test]
async fn an_answer_that_its_client_does_not_take_is_cut_and_its_neighbours_are_not() {
    let (upstream, go) = large().await;
    let rig = rig(&upstream, |config| config.timeouts.write_stall = Duration::from_millis(100)).await;
    let mut wire = Wire::connect(rig.addr, &[(INITIAL_WINDOW_SIZE, 0)]).await;
    // The first is never given any room; the second has all it needs, and an upstream that is silent.
    wire.get(1).await;
    wire.send(&frame(HEADERS, END_HEADERS | END_STREAM, 3, &asking("GET", "/quiet"))).await;
    wire.open(3, 1000).await;
    assert_eq!(within(wire.until(DATA, 3)).await.unwrap().payload, b"one");
    let cut = within(wire.until(RST_STREAM, 1)).await.unwrap();
    assert_eq!(cut.code(), 8, "CANCEL");
    // A third is given room by and by: whoever takes something has all the time again.
    wire.get(5).await;
    wire.open(0, 1 << 22).await;
    let mut taken = 0;
    while taken < 1 << 20 {
        wire.open(5, 64 << 10).await;
        let mut of_this = 0;
        while of_this < 64 << 10 {
            let piece = within(wire.until(DATA, 5)).await.unwrap().payload.len();
            of_this += piece;
        }
        taken += of_this;
    }
    // And the second is still there, though nothing has come for longer than that.
    go.notify_one();
    assert_eq!(within(wire.until(DATA, 3)).await.unwrap().payload, b"two");
    others_are_served(rig.addr).await;
}

#[tokio::test]
async fn a_client_that_shuts_the_window_of_the_whole_connection_holds_nothing_for_long() {
    let (upstream, _) = large().await;
    let rig = rig(&upstream, |config| {
        config.timeouts.write_stall = Duration::from_millis(100);
        config.timeouts.keep_alive = Duration::from_millis(100);
        config.timeouts.headers = Duration::from_millis(100);
    })
    .await;
    // Streams may send much, all together the 64 KiB that nobody can forbid.
    let mut wire = Wire::connect(rig.addr, &[(INITIAL_WINDOW_SIZE, 1 << 30)]).await;
    for stream in 0..50 {
        wire.get(stream * 2 + 1).await;
    }
    let mut cut = 0;
    while cut < 50 {
        let frame = within(wire.next()).await.expect("each is cut by itself");
        cut += usize::from(frame.kind == RST_STREAM);
    }
    others_are_served(rig.addr).await;
    // With nothing under way it goes as any idle connection does.
    within(wire.ended()).await;
    rig.metric("farebox_connections 0").await;
}

#[tokio::test]
async fn requests_that_are_taken_back_at_once_end_the_connection() {
    let upstream = Upstream::echo().await;
    let rig = rig(&upstream, |_| {}).await;
    let mut wire = Wire::connect(rig.addr, &[]).await;
    let mut bytes = Vec::new();
    for stream in 0..10_000 {
        bytes.extend(frame(HEADERS, END_HEADERS | END_STREAM, stream * 2 + 1, &fields("GET", &[])));
        bytes.extend(frame(RST_STREAM, 0, stream * 2 + 1, &8_u32.to_be_bytes()));
    }
    let _ = within(wire.send(&bytes)).await;
    let code = within(wire.ended()).await;
    assert!(code.is_none_or(|code| code == ENHANCE_YOUR_CALM), "{code:?}");
    others_are_served(rig.addr).await;
    rig.metric("farebox_connections 0").await;
}

#[tokio::test]
async fn a_head_without_end_ends_the_connection() {
    let upstream = Upstream::echo().await;
    let rig = rig(&upstream, |_| {}).await;
    for piece in [&b""[..], b"\0", &[0; 1000]] {
        let mut wire = Wire::connect(rig.addr, &[]).await;
        wire.send(&frame(HEADERS, END_STREAM, 1, &fields("GET", &[]))).await;
        let ended = within(wire.flood(&frame(CONTINUATION, 0, 1, piece), 1_000_000)).await;
        assert!(ended.is_some(), "{} bytes a piece", piece.len());
    }
    others_are_served(rig.addr).await;
    rig.metric("farebox_connections 0").await;
}

#[tokio::test]
async fn a_head_that_stops_in_the_middle_is_not_waited_for() {
    let upstream = Upstream::echo().await;
    let rig = rig(&upstream, |config| {
        config.timeouts.keep_alive = Duration::from_millis(100);
        config.timeouts.headers = Duration::from_millis(100);
    })
    .await;
    let mut wire = Wire::connect(rig.addr, &[]).await;
    wire.send(&frame(HEADERS, END_STREAM, 1, &fields("GET", &[]))).await;
    within(wire.ended()).await;
    rig.metric("farebox_connections 0").await;
}

#[tokio::test]
async fn more_header_lines_than_over_http1_are_no_more_welcome() {
    let upstream = Upstream::echo().await;
    let rig = rig(&upstream, |config| config.limits.header_count_max = 50).await;
    let many = |count: usize, name: &'static str| vec![(name, "1"); count];
    for (more, status) in [
        (many(50, "x"), b"200"),
        (many(51, "x"), b"431"),
        // Browsers cut their cookies up, into what is one line.
        ([many(300, "cookie"), many(49, "x")].concat(), b"200"),
        ([many(300, "cookie"), many(50, "x")].concat(), b"431"),
    ] {
        let mut wire = Wire::connect(rig.addr, &[]).await;
        wire.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields("GET", &more))).await;
        let head = within(wire.until(HEADERS, 1)).await.unwrap();
        // `:status: 200` is one byte, others are spelled.
        let is_200 = head.payload[0] == 0x88;
        assert_eq!(is_200, status == b"200", "{} {:?}", more.len(), head.payload);
    }
}

#[tokio::test]
async fn a_head_that_unpacks_to_much_more_is_refused() {
    let upstream = Upstream::echo().await;
    let rig = rig(&upstream, |_| {}).await;
    let mut wire = Wire::connect(rig.addr, &[]).await;
    // A field of 3,000 bytes to be remembered, and then named by one byte, a thousand times: three megabytes.
    let mut block = fields("GET", &[]);
    block.push(0x40);
    for (text, bytes) in [(&b"bomb"[..], &b"bomb"[..]), (&[b'a'; 3000][..], &[b'a'; 3000][..])] {
        let mut length = Vec::new();
        field(&mut length, "", std::str::from_utf8(text).unwrap());
        // Without the marker and the empty name.
        block.extend(&length[2..length.len() - text.len()]);
        block.extend(bytes);
    }
    block.extend([0x80 | 62; 1000]);
    assert!(block.len() < 16 << 10);
    wire.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block)).await;
    let mut answers = Vec::new();
    within(async {
        while let Some(frame) = wire.next().await {
            if frame.stream == 1 || frame.kind == support::frames::GOAWAY {
                answers.push(frame);
                break;
            }
        }
    })
    .await;
    assert!(answers.iter().all(|frame| frame.kind != HEADERS || frame.payload[0] != 0x88), "{answers:?}");
    others_are_served(rig.addr).await;
    rig.metric("farebox_requests_total{service=\"api\",code=\"free\",class=\"2xx\"} 3").await;
}

#[tokio::test]
async fn a_client_that_floods_and_does_not_read_is_let_go() {
    let upstream = Upstream::echo().await;
    let rig = rig(&upstream, |config| config.timeouts.write_stall = Duration::from_millis(100)).await;
    for flood in [frame(PING, 0, 0, &[0; 8]), frame(SETTINGS, 0, 0, &[])] {
        let mut wire = Wire::narrow(rig.addr).await;
        let flood = flood.repeat(1000);
        // It is closed as one that reads would be, or if its answers have piled up before, for taking none.
        within(async { while wire.send(&flood).await {} }).await;
        others_are_served(rig.addr).await;
    }
    rig.metric("farebox_connections 0").await;
}

#[tokio::test]
async fn floods_of_tiny_pieces_of_a_body_are_ended_or_read() {
    let (upstream, _) = large().await;
    let rig = rig(&upstream, |_| {}).await;
    // Single bytes are an upload like any other as long as they are read at once; pieces without a byte are none.
    for (what, piece, times, may_be_taken) in
        [("one byte", &b"x"[..], 1000, true), ("nothing", b"", 100_000, false)]
    {
        let mut wire = Wire::connect(rig.addr, &[]).await;
        wire.send(&frame(HEADERS, END_HEADERS, 1, &asking("POST", "/post"))).await;
        let flood = frame(DATA, 0, 1, piece).repeat(100);
        let (ended, ()) = tokio::join!(within(wire.flood(&flood, times)), async {
            for _ in 0..3 {
                assert_eq!(get(rig.addr, "/", &[]).await.status(), 200);
            }
        });
        assert!(may_be_taken || ended.is_some(), "{what}");
        let is_calm = ended.flatten().is_none_or(|code| code == ENHANCE_YOUR_CALM);
        assert!(is_calm, "{what}: {ended:?}");
    }
    rig.metric("farebox_connections 0").await;
}

#[tokio::test]
async fn windows_that_overflow_and_frames_out_of_place_end_the_connection() {
    let upstream = Upstream::echo().await;
    let rig = rig(&upstream, |_| {}).await;
    for (what, bytes) in [
        ("window", frame(WINDOW_UPDATE, 0, 0, &0x7fff_ffff_u32.to_be_bytes()).repeat(2)),
        ("no increment", frame(WINDOW_UPDATE, 0, 0, &[0; 4])),
        ("data on no stream", frame(DATA, 0, 0, b"x")),
        ("data on an idle stream", frame(DATA, 0, 5, b"x")),
        ("an even stream", frame(HEADERS, END_HEADERS | END_STREAM, 2, &fields("GET", &[]))),
        ("a continuation of nothing", frame(CONTINUATION, END_HEADERS, 1, b"")),
        ("a frame too large", frame(DATA, 0, 1, &[0; (16 << 10) + 1])),
        ("settings of half a size", frame(SETTINGS, 0, 0, &[0; 3])),
    ] {
        let mut wire = Wire::connect(rig.addr, &[]).await;
        wire.send(&bytes).await;
        let ended = tokio::time::timeout(support::PATIENCE, wire.ended()).await;
        assert!(ended.is_ok(), "{what}");
    }
    others_are_served(rig.addr).await;
    rig.metric("farebox_connections 0").await;
}

#[tokio::test]
async fn one_connection_full_of_requests_leaves_the_worker_to_others() {
    let (upstream, _) = large().await;
    let rig = rig(&upstream, |_| {}).await;
    let mut wire = Wire::connect(rig.addr, &[(INITIAL_WINDOW_SIZE, 1 << 30)]).await;
    wire.open(0, 1 << 30).await;
    // More than it may have at once: the rest is refused, not queued.
    for stream in 0..200 {
        wire.get(stream * 2 + 1).await;
    }
    let all = async {
        let (mut done, mut refused, mut bytes) = (0, 0, 0_usize);
        while done + refused < 200 {
            let frame = within(wire.next()).await.unwrap();
            refused += usize::from(frame.kind == RST_STREAM);
            if frame.kind == DATA {
                bytes += frame.payload.len();
                done += usize::from(frame.flags & END_STREAM != 0);
            }
        }
        (done, refused, bytes)
    };
    let ((done, refused, bytes), ()) = tokio::join!(all, others_are_served(rig.addr));
    assert_eq!(bytes, done << 20);
    assert!(done >= 128, "{done} answered, {refused} refused");
}
