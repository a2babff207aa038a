//! Answers that come, and end, before their requests: what becomes of the connection to the upstream, and of the others who
//! want one.

#![expect(clippy::unwrap_used, reason = "an error is how a test fails")]

mod support;

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body::Frame;
use http_body_util::{BodyExt, combinators::BoxBody};
use support::{PATIENCE, Rig, free, get, http2, request, socket::Place, upstream::Recorder, within};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc::UnboundedReceiver,
};

/// A client that has its answer and still owes the rest of its request.
async fn answered_early(rig: &Rig) -> TcpStream {
    let mut stream = TcpStream::connect(rig.addr).await.unwrap();
    stream.write_all(b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhalf").await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"ok") {
        let read = within(stream.read_buf(&mut answer)).await.unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&answer));
    }
    stream
}

/// A request over HTTP/2 whose body comes piece by piece.
fn told_later(
    method: &str,
    headers: &[(&str, &str)],
    told: UnboundedReceiver<Frame<Bytes>>,
) -> Request<BoxBody<Bytes, hyper::Error>> {
    let next = |mut told: UnboundedReceiver<_>| async { told.recv().await.map(|frame| (frame, told)) };
    let body = support::pieces(futures_util::stream::unfold(told, next));
    let mut request = request(method, "/", headers).map(|_| body);
    *request.uri_mut() = "http://localhost/".parse().unwrap();
    request
}

#[tokio::test]
async fn a_connection_whose_request_has_not_ended_is_offered_to_nobody() {
    for (connections_max, idle_connections_max) in [(Some(2), 64), (None, 1)] {
        let upstream = Recorder::start().await;
        let mut route = free("api", &upstream.url());
        route.upstream.connections_max = connections_max;
        route.upstream.idle_connections_max = idle_connections_max;
        // Longer than this test waits.
        route.upstream.connect_timeout = PATIENCE * 2;
        let mut config = support::config(vec![route]);
        config.workers = 1;
        let rig = Rig::with(config).await;
        let mut early = answered_early(&rig).await;
        for _ in 0..3 {
            assert_eq!(get(rig.addr, "/other", &[]).await.status(), 200);
        }
        assert_eq!(upstream.connections(), 2, "the others share one, besides {connections_max:?}");
        // What is left of it still goes where the beginning went.
        early.write_all(b"+half").await.unwrap();
        within(async {
            while !upstream.received().contains("+half") {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn such_a_connection_counts_among_those_that_the_upstream_takes() {
    let upstream = Recorder::start().await;
    let mut route = free("api", &upstream.url());
    route.upstream.connections_max = Some(1);
    route.upstream.connect_timeout = Duration::from_millis(200);
    let rig = Rig::new(vec![route]).await;
    let early = answered_early(&rig).await;
    assert_eq!(get(rig.addr, "/", &[]).await.headers()["farebox-code"], "upstream_busy");
    assert_eq!(upstream.connections(), 1);
    drop(early);
    while get(rig.addr, "/", &[]).await.status() != 200 {}
}

#[tokio::test]
async fn the_rest_of_a_request_that_has_its_answer_may_be_silent_as_long_as_any() {
    let upstream = Recorder::start().await;
    let mut route = free("api", &upstream.url());
    route.upstream.connections_max = Some(1);
    route.upstream.connect_timeout = PATIENCE / 2;
    route.upstream.idle_timeout = Some(Duration::from_millis(300));
    let rig = Rig::new(vec![route]).await;
    let (tell, told) = tokio::sync::mpsc::unbounded_channel();
    let mut client = http2(rig.addr).await;
    let answer = client.send_request(told_later("POST", &[], told));
    tell.send(Frame::data(Bytes::from_static(b"half"))).unwrap();
    let answer = within(answer).await.unwrap();
    assert_eq!(within(answer.into_body().collect()).await.unwrap().to_bytes(), "ok");
    // The stream stays open and says no more; its place is given to others all the same.
    assert_eq!(get(rig.addr, "/", &[]).await.status(), 200);
    assert_eq!(upstream.connections(), 2);
}

#[tokio::test]
async fn who_sends_much_without_having_paid_still_hears_the_price() {
    let rig = Rig::new(vec![support::service("api", "http://127.0.0.1:9")]).await;
    for _ in 0..20 {
        let piece = || Frame::data(Bytes::from_static(&[b'x'; 16 * 1024]));
        let much = futures_util::stream::iter((0..256).map(move |_| piece()));
        let answer = support::ask(rig.addr, request("POST", "/", &[]).map(|_| support::pieces(much))).await;
        assert_eq!(answer.status(), 402);
    }
    // Who neither sends it nor goes is not waited for in vain.
    let mut config = support::config(vec![support::service("api", "http://127.0.0.1:9")]);
    config.timeouts.headers = Duration::from_millis(200);
    let rig = Rig::with(config).await;
    let mut stream = TcpStream::connect(rig.addr).await.unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n\r\n").await.unwrap();
    within(stream.read_to_end(&mut Vec::new())).await.unwrap();
    rig.metric("farebox_connections 0").await;
}

#[tokio::test]
async fn an_upstream_that_answers_and_closes_without_reading_on_is_heard() {
    let upstream = Recorder::closing(
        b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 5\r\n\r\nlarge",
    )
    .await;
    let rig = Rig::new(vec![free("api", &upstream.url())]).await;
    for _ in 0..30 {
        let piece = || Frame::data(Bytes::from_static(&[b'x'; 16 * 1024]));
        let much = futures_util::stream::iter((0..64).map(move |_| piece()));
        let answer = support::ask(rig.addr, request("POST", "/", &[]).map(|_| support::pieces(much))).await;
        assert_eq!((answer.status().as_u16(), &answer.body()[..]), (413, &b"large"[..]));
    }
}

#[tokio::test]
async fn a_body_whose_end_is_told_after_its_last_byte_leaves_a_connection_for_others() {
    let upstream = Place::live();
    let rig = {
        let mut config = support::config(vec![free("api", &upstream.url())]);
        config.workers = 1;
        Rig::with(config).await
    };
    for _ in 0..5 {
        // Over HTTP/2 as well: there the end may come in an empty frame of its own.
        let (tell, told) = tokio::sync::mpsc::unbounded_channel();
        let mut client = http2(rig.addr).await;
        let answer = client.send_request(told_later("POST", &[("content-length", "4")], told));
        tell.send(Frame::data(Bytes::from_static(b"body"))).unwrap();
        let answer = within(answer).await.unwrap();
        assert_eq!(answer.status(), 200);
        within(answer.into_body().collect()).await.unwrap();
        drop(tell);
    }
    assert_eq!(upstream.connections(), 1);
}
