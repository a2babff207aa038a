//! Uploads whose bytes have a price: they go as far as their buyer's credit, and their upstream hears of no byte that nobody
//! pays for.

#![expect(clippy::unwrap_used, reason = "an error is how a test fails")]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Router, body::Body, extract::Request as Received, response::IntoResponse};
use bytes::Bytes;
use farebox_gateway::ServiceRoute;
use farebox_paywall::price::{Meter, PerMillion};
use futures_util::{Stream, StreamExt, stream};
use http::HeaderMap;
use http_body::Frame;
use http_body_util::BodyExt;
use support::{
    Rig, ask, body, config,
    counted::{Bought, credit, metered},
    pieces, raw, request,
    upstream::{Recorder, Upstream},
    websocket::{Over, Puppet, open},
    within,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{
        Notify,
        mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    },
};

/// Two msat for each byte of a request.
const RATE: u64 = 2;

/// Sells so much credit for uploads, of which 1,000 msat are set aside before they begin.
fn uploads(url: &str, msat: u64) -> ServiceRoute {
    let meter = Meter::Bytes { request: PerMillion(RATE * 1_000_000), response: PerMillion(0) };
    credit(url, msat, metered(1_000, meter))
}

/// What has become of an upload at its upstream.
#[derive(Clone, Copy, Debug, Default)]
struct Got {
    bytes: u64,
    /// Its end has come as well.
    is_whole: bool,
}

/// Tells it, however the upload ends, and meanwhile how many bytes there were of all.
struct Telling(UnboundedSender<Got>, Got, Arc<AtomicU64>);

impl Telling {
    fn note(&mut self, frame: Option<&Result<Frame<Bytes>, axum::Error>>) {
        match frame {
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
                self.1.bytes += bytes;
                self.2.fetch_add(bytes, SeqCst);
            }
            Some(Err(_)) => {}
            None => self.1.is_whole = true,
        }
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        let _ = self.0.send(self.1);
    }
}

/// Reads what it gets and then answers, or under `/echo` at once, with each piece that it has got. Tells what it got.
async fn reader() -> (Upstream, UnboundedReceiver<Got>, Arc<AtomicU64>) {
    let ((tell, told), heard) = (unbounded_channel(), Arc::<AtomicU64>::default());
    let hears = heard.clone();
    let answer = move |request: Received| {
        let mut telling = Telling(tell.clone(), Got::default(), hears.clone());
        async move {
            let (parts, mut upload) = request.into_parts();
            if parts.uri.path() == "/echo" {
                let kind = parts.headers.get("content-type").cloned().unwrap();
                let next = |(mut upload, mut telling): (Body, Telling)| async {
                    let frame = upload.frame().await;
                    telling.note(frame.as_ref());
                    let data = frame?.ok()?.into_data().ok()?;
                    Some((Ok::<_, std::io::Error>(data), (upload, telling)))
                };
                let echo = Body::from_stream(stream::unfold((upload, telling), next));
                return ([("content-type", kind)], echo).into_response();
            }
            loop {
                let frame = upload.frame().await;
                telling.note(frame.as_ref());
                if !matches!(frame, Some(Ok(_))) {
                    return "thanks".into_response();
                }
            }
        }
    };
    (Upstream::serve(Router::new().fallback(answer)).await, told, heard)
}

/// So many pieces of 100 bytes, one after the other. None of them says how many there are.
fn parts(count: usize) -> impl Stream<Item = Frame<Bytes>> + Send + Sync + 'static {
    let piece = stream::repeat_with(|| Frame::data(Bytes::from_static(&[b'x'; 100]))).take(count);
    // However fast they are taken, others get their turn.
    piece.then(async |piece| {
        tokio::task::yield_now().await;
        piece
    })
}

/// Uploads so many such pieces.
async fn upload(
    rig: &Rig,
    version: u8,
    path: &str,
    bought: &Bought,
    kind: &str,
    count: usize,
) -> http::Response<hyper::body::Incoming> {
    let headers = [bought.header(), ("content-type", kind), ("te", "trailers")];
    rig.send(version, request("POST", path, &headers).map(|_| pieces(parts(count)))).await
}

/// Status and code.
fn said<B>(answer: &http::Response<B>) -> (u16, &str) {
    let code = answer.headers().get("farebox-code").map_or("", |code| code.to_str().unwrap());
    (answer.status().as_u16(), code)
}

#[tokio::test]
async fn an_upload_ends_where_nothing_is_left_to_pay_for_it() {
    let (upstream, mut told, _) = reader().await;
    for url in [upstream.url(), upstream.h2c()] {
        for (version, kind) in [(1, "text/plain"), (2, "text/plain"), (2, "application/grpc")] {
            let rig = Rig::counting(config(vec![uploads(&url, 20_000)])).await;
            let bought = rig.purchase("/").await;
            let answer = upload(&rig, version, "/", &bought, kind, usize::MAX).await;
            let case = format!("{kind} over HTTP/{version} at {url}");
            match kind {
                "application/grpc" => {
                    assert_eq!(said(&answer), (200, "credit_exhausted"), "{case}");
                    assert_eq!(answer.headers()["grpc-status"], "8", "{case}");
                }
                _ => assert_eq!(said(&answer), (402, "credit_exhausted"), "{case}"),
            }
            let got = within(told.recv()).await.unwrap();
            let balance = rig.settled(&bought).await;
            assert!(!got.is_whole, "{case}: {got:?}");
            // Over HTTP/1.1 pieces are put together, and the one that goes beyond what is left doesn't pass.
            let (spent, passed) = (balance.spent(), got.bytes * RATE);
            assert!(passed <= spent && spent <= 20_000, "{case}: {passed} of {spent}");
            assert!(balance.holds() && balance.written_off() == 0, "{case}: {balance:?}");
            let class = if kind == "application/grpc" { "2xx" } else { "4xx" };
            rig.metric(&format!(
                r#"farebox_requests_total{{service="api",code="credit_exhausted",class="{class}"}} 1"#
            ))
            .await;
            rig.metric(r#"farebox_written_off_units_total{service="api",unit="msat"} 0"#).await;
        }
    }
}

#[tokio::test]
async fn an_upload_that_costs_all_there_is_comes_to_its_end() {
    let (upstream, mut told, _) = reader().await;
    for url in [upstream.url(), upstream.h2c()] {
        for version in [1, 2] {
            let rig = Rig::counting(config(vec![uploads(&url, 10_000)])).await;
            let bought = rig.purchase("/").await;
            let answer = upload(&rig, version, "/", &bought, "text/plain", 50).await;
            assert_eq!(said(&answer), (200, ""), "over HTTP/{version} at {url}");
            within(answer.into_body().collect()).await.unwrap();
            let got = within(told.recv()).await.unwrap();
            assert_eq!((got.bytes, got.is_whole), (5_000, true));
            let balance = rig.settled(&bought).await;
            assert_eq!((balance.spent(), balance.left(), balance.written_off()), (10_000, 0, 0));
        }
    }
}

#[tokio::test]
async fn an_upload_that_announces_more_than_can_be_paid_is_refused_before_its_upstream_hears_of_it() {
    let upstream = Recorder::start().await;
    let rig = Rig::counting(config(vec![uploads(&upstream.url(), 10_000)])).await;
    let bought = rig.purchase("/").await;
    let asking = |length: usize| request("POST", "/", &[bought.header()]).map(|_| body(vec![b'x'; length]));
    let expecting = |length: usize| {
        let credential = &bought.credential;
        format!(
            "POST / HTTP/1.1\r\nhost: localhost\r\nauthorization: {credential}\r\ncontent-length: {length}\r\n\
             expect: 100-continue\r\nconnection: close\r\n\r\n"
        )
    };
    for version in [1, 2] {
        // No purchase would do.
        assert_eq!(said(&rig.send(version, asking(5_001)).await), (413, "upload_too_dear"));
    }
    let answer = raw(rig.addr, expecting(5_001).as_bytes(), "").await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "no leave to go on is given: {answer}");
    assert_eq!((upstream.connections(), rig.spent(&bought).await), (0, 0));

    assert_eq!(said(&ask(rig.addr, asking(1_000)).await), (200, ""));
    assert_eq!(rig.spent(&bought).await, 2_000);
    let head = upstream.received();
    for version in [1, 2] {
        // Another one would.
        let answer = rig.send(version, asking(4_001)).await;
        assert_eq!(said(&answer), (402, "units_short"));
        assert!(answer.headers().contains_key("www-authenticate"));
        let told = within(answer.into_body().collect()).await.unwrap().to_bytes();
        let told: serde_json::Value = serde_json::from_slice(&told).unwrap();
        assert_eq!((&told["left"], &told["needed"]), (&8_000.into(), &8_002.into()));
    }
    let answer = raw(rig.addr, expecting(4_001).as_bytes(), "").await;
    assert!(answer.starts_with("HTTP/1.1 402 "), "{answer}");
    assert_eq!(upstream.received(), head, "it has heard of nothing else");
    assert_eq!(said(&ask(rig.addr, asking(4_000)).await), (200, ""));
    let balance = rig.settled(&bought).await;
    assert_eq!((balance.spent(), balance.left(), balance.written_off()), (10_000, 0, 0));
}

#[tokio::test]
async fn uploads_side_by_side_draw_on_the_same_credit() {
    for is_http2 in [false, true] {
        let (upstream, mut told, heard) = reader().await;
        let url = if is_http2 { upstream.h2c() } else { upstream.url() };
        let rig = Rig::counting(config(vec![uploads(&url, 100_000)])).await;
        let bought = rig.purchase("/").await;
        let all = (0..8).map(|each| upload(&rig, 1 + each % 2, "/", &bought, "text/plain", usize::MAX));
        let mut begun = 0;
        for answer in futures_util::future::join_all(all).await {
            match said(&answer) {
                (402, "credit_exhausted") => begun += 1,
                // What is left is in the others' hands by now.
                (429, "units_in_flight") | (402, "units_spent" | "units_short") => {}
                other => panic!("{other:?}"),
            }
        }
        assert!(begun > 0);
        let balance = rig.settled(&bought).await;
        assert!(balance.holds() && balance.written_off() == 0, "{balance:?}");
        // Of one that was cut off with its first bytes the upstream may not have heard.
        assert!(!within(told.recv()).await.unwrap().is_whole);
        while let Ok(got) = told.try_recv() {
            assert!(!got.is_whole, "{got:?}");
        }
        let passed = heard.load(SeqCst) * RATE;
        assert!(passed <= balance.spent() && balance.spent() <= 100_000, "{passed} of {balance:?}");
    }
}

#[tokio::test]
async fn an_answer_beside_an_upload_ends_with_it() {
    let (upstream, mut told, _) = reader().await;
    for url in [upstream.url(), upstream.h2c()] {
        for (version, kind) in [(1, "text/plain"), (2, "text/plain"), (2, "application/grpc")] {
            let case = format!("{kind} over HTTP/{version} at {url}");
            let rig = Rig::counting(config(vec![uploads(&url, 20_000)])).await;
            let bought = rig.purchase("/").await;
            let begun = Arc::new(Notify::new());
            let waits = begun.clone();
            let rest = stream::once(async move { waits.notified().await }).flat_map(|()| parts(usize::MAX));
            let headers = [bought.header(), ("content-type", kind), ("te", "trailers")];
            let asking = request("POST", "/echo", &headers).map(|_| pieces(parts(3).chain(rest)));
            let answer = rig.send(version, asking).await;
            assert_eq!(answer.status(), 200, "{case}");
            begun.notify_one();
            let (mut body, mut trailers, mut is_broken) = (answer.into_body(), HeaderMap::new(), false);
            while let Some(frame) = within(body.frame()).await {
                match frame.map(Frame::into_trailers) {
                    Ok(Ok(told)) => trailers = told,
                    Ok(Err(_)) => {}
                    Err(_) => {
                        is_broken = true;
                        break;
                    }
                }
            }
            if kind == "application/grpc" {
                assert_eq!(trailers["grpc-status"], "8", "{case}");
                assert_eq!(trailers["farebox-code"], "credit_exhausted", "{case}");
            } else {
                assert!(is_broken, "{case}");
            }
            let got = within(told.recv()).await.unwrap();
            assert!(!got.is_whole, "{case}: {got:?}");
            let balance = rig.settled(&bought).await;
            assert!(got.bytes * RATE <= balance.spent() && balance.written_off() == 0, "{case}: {balance:?}");
            rig.metric(r#"farebox_requests_total{service="api",code="credit_exhausted",class="2xx"} 1"#)
                .await;
        }
    }
}

/// A buyer who has begun an upload without saying how long it is, over HTTP/1.1, and has heard an answer that ends so.
async fn answered(rig: &Rig, bought: &Bought, end: &str) -> TcpStream {
    let mut stream = TcpStream::connect(rig.addr).await.unwrap();
    let head = format!(
        "POST / HTTP/1.1\r\nhost: localhost\r\nauthorization: {}\r\ntransfer-encoding: chunked\r\n\r\n",
        bought.credential
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&chunk()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(end.as_bytes()) {
        let read = within(stream.read_buf(&mut answer)).await.unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&answer));
    }
    stream
}

/// 100 bytes.
fn chunk() -> Vec<u8> {
    format!("64\r\n{}\r\n", "x".repeat(100)).into_bytes()
}

#[tokio::test]
async fn an_upload_that_goes_on_after_its_answer_is_paid_to_its_end() {
    let upstream = Recorder::start().await;
    let rig = Rig::counting(config(vec![uploads(&upstream.url(), 10_000)])).await;
    let bought = rig.purchase("/").await;
    let mut stream = answered(&rig, &bought, "ok").await;
    for _ in 0..9 {
        stream.write_all(&chunk()).await.unwrap();
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    let balance = rig.settled(&bought).await;
    assert_eq!((balance.spent(), balance.left()), (2_000, 8_000));
    within(async {
        while !upstream.received().ends_with("0\r\n\r\n") {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn an_upload_that_goes_on_after_its_answer_ends_where_nothing_is_left_to_pay_for_it() {
    let upstream = Recorder::start().await;
    let rig = Rig::counting(config(vec![uploads(&upstream.url(), 10_000)])).await;
    let bought = rig.purchase("/").await;
    let mut stream = answered(&rig, &bought, "ok").await;
    while within(stream.write_all(&chunk())).await.is_ok() {
        tokio::task::yield_now().await;
    }
    let balance = rig.settled(&bought).await;
    assert!(balance.spent() <= 10_000 && balance.written_off() == 0, "{balance:?}");
    let received = upstream.received();
    let bytes = received.bytes().filter(|byte| *byte == b'x').count() as u64;
    assert!(bytes * RATE <= balance.spent() + 100, "{bytes} of {balance:?}");
    assert!(!received.contains("\r\n0\r\n"), "its end has not come");
}

#[tokio::test]
async fn an_upstream_that_has_answered_and_reads_no_more_does_not_keep_what_its_buyer_has_left() {
    const SHORT: Duration = Duration::from_millis(150);
    // A service that bears any silence bears none there.
    for idle_timeout in [Some(SHORT), None] {
        let upstream = Puppet::start().await;
        let mut route = uploads(&upstream.url(), 100_000_000);
        route.upstream.idle_timeout = idle_timeout;
        let mut config = config(vec![route]);
        config.timeouts.outlived = SHORT;
        let rig = Rig::counting(config).await;
        let bought = rig.purchase("/").await;
        let answers = async {
            let (mut socket, _) = upstream.accept().await;
            socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            socket
        };
        let (mut stream, _socket) = tokio::join!(answered(&rig, &bought, "ok"), answers);
        let writes = async { while stream.write_all(&chunk()).await.is_ok() {} };
        tokio::select! {
            balance = rig.settled(&bought) => {
                assert!(balance.spent() >= 100 * RATE && balance.left() > 0, "{balance:?}");
            }
            () = async { writes.await; std::future::pending().await } => {}
        }
    }
}

#[tokio::test]
async fn an_upload_that_its_upstream_refuses_early_costs_what_has_passed_of_it_and_a_failure_nothing() {
    for (answer, end, is_free) in [
        (&b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 5\r\n\r\nlarge"[..], "large", false),
        (b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\ndown", "down", true),
    ] {
        let upstream = Recorder::answering(answer).await;
        let rig = Rig::counting(config(vec![uploads(&upstream.url(), 10_000)])).await;
        let bought = rig.purchase("/").await;
        let mut stream = answered(&rig, &bought, end).await;
        if is_free {
            assert_eq!(rig.spent(&bought).await, 0);
            // The bill is settled, so nobody pays for more, and no more is sent on.
            while within(stream.write_all(&chunk())).await.is_ok() {
                tokio::task::yield_now().await;
            }
            assert!(!upstream.received().contains("\r\n0\r\n"));
            continue;
        }
        for _ in 0..4 {
            stream.write_all(&chunk()).await.unwrap();
        }
        within(async {
            while upstream.received().bytes().filter(|byte| *byte == b'x').count() < 500 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        drop(stream);
        assert_eq!(rig.spent(&bought).await, 500 * RATE);
    }
}

#[tokio::test]
async fn a_buyer_who_hangs_up_in_the_middle_of_an_upload_pays_what_has_passed() {
    let (upstream, mut told, heard) = reader().await;
    for url in [upstream.url(), upstream.h2c()] {
        for version in [1, 2] {
            let rig = Rig::counting(config(vec![uploads(&url, 10_000)])).await;
            let bought = rig.purchase("/").await;
            let stops = parts(3).chain(stream::pending());
            let asking = request("POST", "/", &[bought.header()]).map(|_| pieces(stops));
            heard.store(0, SeqCst);
            let all_heard = async {
                while heard.load(SeqCst) < 300 {
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                answer = rig.send(version, asking) => panic!("{answer:?}"),
                () = within(all_heard) => {}
            }
            assert!(!within(told.recv()).await.unwrap().is_whole);
            assert_eq!(rig.spent(&bought).await, 300 * RATE, "over HTTP/{version} at {url}");
        }
    }
}

#[tokio::test]
async fn an_upload_under_a_key_is_read_first_and_refused_as_a_whole() {
    let (upstream, mut told, _) = reader().await;
    let rig = Rig::counting(config(vec![uploads(&upstream.url(), 10_000)])).await;
    let bought = rig.purchase("/").await;
    let keyed = async |version, count| {
        let headers = [bought.header(), ("idempotency-key", "once")];
        let answer = rig.send(version, request("POST", "/", &headers).map(|_| pieces(parts(count)))).await;
        let (status, code) = said(&answer);
        let (told, is_replayed) =
            ((status, code.to_owned()), answer.headers().contains_key("idempotent-replayed"));
        let _ = within(answer.into_body().collect()).await;
        (told.0, told.1, is_replayed)
    };
    for version in [1, 2] {
        assert_eq!(keyed(version, 51).await, (402, "credit_exhausted".to_owned(), false));
        assert_eq!(rig.spent(&bought).await, 0);
    }
    assert!(told.try_recv().is_err(), "nobody has heard of it");
    // What cost nothing left the key to another request.
    assert_eq!(keyed(1, 40).await, (200, String::new(), false));
    assert!(within(told.recv()).await.unwrap().is_whole);
    assert_eq!(keyed(2, 40).await, (200, String::new(), true));
    assert_eq!(rig.spent(&bought).await, 8_000);
}

#[tokio::test]
async fn a_tunnel_takes_no_more_from_its_client_than_is_paid() {
    let upstream = Puppet::start().await;
    for over in [Over::Http1, Over::Http2] {
        let rig = Rig::counting(config(vec![uploads(&upstream.url(), 100_000)])).await;
        let bought = rig.purchase("/").await;
        let headers = [bought.header()];
        let (opened, (mut server, _)) =
            tokio::join!(open(over, rig.addr, "/", &headers), upstream.agree(b""));
        let mut client = opened.tunnel();
        let talks = async {
            while client.write_all(&[1; 1_000]).await.is_ok() {
                tokio::task::yield_now().await;
            }
        };
        let mut got = Vec::new();
        let listens = async {
            let _ = server.read_to_end(&mut got).await;
        };
        within(async { tokio::join!(talks, listens) }).await;
        let balance = rig.settled(&bought).await;
        assert_eq!((balance.spent(), balance.left()), (100_000, 0), "{over:?}");
        // What is passed on in one turn.
        let lost = balance.written_off();
        assert!(balance.holds() && lost <= (128 << 10) * RATE, "{over:?}: {balance:?}");
        assert!(got.len() as u64 * RATE <= 100_000 + lost, "{over:?}: {} of {balance:?}", got.len());
    }
}

#[tokio::test]
async fn an_upload_that_grows_too_large_or_stops_halfway_costs_what_has_passed_of_it() {
    let (upstream, mut told, heard) = reader().await;
    for url in [upstream.url(), upstream.h2c()] {
        for version in [1, 2] {
            for stops in [false, true] {
                let mut route = uploads(&url, 10_000);
                if stops {
                    route.upstream.idle_timeout = Some(Duration::from_millis(400));
                } else {
                    route.request_bytes_max = Some(399);
                }
                let rig = Rig::counting(config(vec![route])).await;
                let bought = rig.purchase("/").await;
                heard.store(0, SeqCst);
                // The fourth piece comes once the others have arrived: one too many, or never.
                let hears = heard.clone();
                let last = stream::once(async move {
                    while hears.load(SeqCst) < 300 {
                        tokio::task::yield_now().await;
                    }
                    if stops {
                        std::future::pending::<()>().await;
                    }
                    Frame::data(Bytes::from_static(&[b'x'; 100]))
                });
                let asking = request("POST", "/", &[bought.header()]);
                let answer = rig.send(version, asking.map(|_| pieces(parts(3).chain(last)))).await;
                let want = if stops { 408 } else { 413 };
                assert_eq!(answer.status(), want, "over HTTP/{version} at {url}");
                assert!(!within(told.recv()).await.unwrap().is_whole);
                assert_eq!(rig.spent(&bought).await, 300 * RATE, "{want} over HTTP/{version} at {url}");
            }
        }
    }
}
