//! gRPC as headers, frames and bytes: what client libraries hide, and what every one of them depends on.

#![expect(clippy::unwrap_used, reason = "an error is how a test fails")]

mod support;

use std::{
    convert::Infallible,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, extract::Request as HttpRequest, routing::any};
use bytes::Bytes;
use farebox_gateway::{Matcher, ServiceRoute};
use farebox_paywall::{LimitBy, Rate, RateLimit};
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use support::{
    Rig, Sender2, body, free, http2,
    node::Mood,
    pieces, request, service,
    upstream::{Recorder, Upstream, echo},
    within,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::JoinSet,
};

/// A message of five bytes, as it goes over the wire: not compressed, five bytes long.
const HELLO: &[u8] = b"\0\0\0\0\x05hello";

/// A call to `path`, with these headers besides those that every call has.
fn call(rig: &Rig, path: &str, headers: &[(&str, &str)]) -> Request<BoxBody<Bytes, hyper::Error>> {
    let mut request = Request::post(format!("http://{}{path}", rig.addr))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(body(HELLO)).unwrap()
}

/// The headers of an answer that must be of the gateway's own making: a status in them, and nothing behind them.
async fn refused(client: &mut Sender2, request: Request<BoxBody<Bytes, hyper::Error>>) -> HeaderMap {
    let answer = within(client.send_request(request)).await.unwrap();
    assert_eq!(answer.status(), 200, "{answer:?}");
    assert!(answer.body().is_end_stream(), "{answer:?}");
    let headers = answer.headers().clone();
    assert_eq!(headers["content-type"], "application/grpc");
    // Percent-encoded or plain: what is plain needs no decoding, so it must have no percent sign.
    let message = headers["grpc-message"].as_bytes();
    let is_plain = |byte: &u8| matches!(byte, b' '..=b'~') && *byte != b'%';
    assert!(!message.is_empty() && message.iter().all(is_plain), "{headers:?}");
    headers
}

fn at(prefix: &str, route: ServiceRoute) -> ServiceRoute {
    let matcher = Matcher { path_prefixes: vec![prefix.parse().unwrap()], ..Matcher::default() };
    ServiceRoute { matcher, ..route }
}

#[tokio::test]
async fn every_answer_of_the_gateways_own_has_a_grpc_status() {
    let upstream =
        Upstream::serve(Router::new().route("/slow/call", any(std::future::pending::<()>)).fallback(echo))
            .await;
    let gone = Upstream::echo().await;
    let gone_addr = gone.h2c();
    gone.kill().await;

    let garbled = Recorder::closing(b"nonsense\r\n\r\n").await;

    let mut slow = free("slow", &upstream.h2c());
    slow.upstream.idle_timeout = Some(Duration::from_millis(50));
    let mut small = free("small", &upstream.h2c());
    small.request_bytes_max = Some(4);
    let mut busy = free("busy", &upstream.h2c());
    busy.service.rate_limits = vec![RateLimit {
        by: LimitBy::Service,
        rate: Rate::per_minute(NonZeroU32::MIN),
        burst: None,
        paths: Vec::new(),
    }];
    let rig = Rig::new(vec![
        at("/paid", service("paid", &upstream.h2c())),
        at("/gone", free("gone", &gone_addr)),
        at("/garbled", free("garbled", &garbled.url())),
        at("/slow", slow),
        at("/small", small),
        at("/busy", busy),
    ])
    .await;
    let mut client = http2(rig.addr).await;

    let paid = rig.buy("/paid/call").await;
    let (token, _) = paid.rsplit_once(':').unwrap();
    let unpaid = format!("{token}:{}", "00".repeat(32));
    within(client.send_request(call(&rig, "/busy/call", &[]))).await.unwrap();
    let in_pieces = Request::post(format!("http://{}/small/call", rig.addr))
        .header("content-type", "application/grpc")
        .body(pieces(stream::iter([&HELLO[..4], &HELLO[4..]]).map(|piece| Frame::data(piece.into()))))
        .unwrap();
    let mut trace = call(&rig, "/paid/call", &[]);
    *trace.method_mut() = http::Method::TRACE;

    for (request, status, code) in [
        (call(&rig, "/paid/call", &[]), "13", "payment_required"),
        (call(&rig, "/paid/call", &[("authorization", "L402 nonsense")]), "13", "preimage_missing"),
        (call(&rig, "/paid/call", &[("authorization", &unpaid)]), "13", "preimage_wrong"),
        (call(&rig, "/paid%2fcall", &[]), "3", "path_refused"),
        (call(&rig, "/nowhere/call", &[]), "12", "no_service"),
        (trace, "12", "method_refused"),
        (call(&rig, "/small/call", &[("content-length", "10")]), "8", "body_too_large"),
        (in_pieces, "8", "body_too_large"),
        (call(&rig, "/busy/call", &[]), "8", "rate_limited"),
        (call(&rig, "/gone/call", &[]), "14", "upstream_unreachable"),
        (call(&rig, "/garbled/call", &[]), "14", "upstream_failed"),
        (call(&rig, "/slow/call", &[]), "4", "upstream_timeout"),
        (call(&rig, "/slow/call", &[("grpc-timeout", "1m")]), "4", "deadline_exceeded"),
    ] {
        let case = format!("{request:?}");
        let headers = refused(&mut client, request).await;
        assert_eq!(
            (headers["grpc-status"].as_bytes(), headers["farebox-code"].as_bytes()),
            (status.as_bytes(), code.as_bytes()),
            "{case}\n{headers:?}"
        );
    }

    for (mood, status, code) in [(Mood::Down, "14", "node_unavailable"), (Mood::Panicking, "13", "internal")]
    {
        *rig.node.mood.lock() = mood;
        let headers = refused(&mut client, call(&rig, "/paid/call", &[])).await;
        assert_eq!(headers["grpc-status"], status, "{headers:?}");
        assert_eq!(headers["farebox-code"], code);
    }
}

/// An answer of the upstream: these headers, these pieces, these trailers.
fn answer(headers: &[(&'static str, &'static str)], frames: Vec<Frame<Bytes>>) -> Response<Body> {
    let frames = stream::iter(frames.into_iter().map(Ok::<_, Infallible>));
    let mut response = Response::new(Body::new(StreamBody::new(frames)));
    for (name, value) in headers {
        response.headers_mut().append(*name, HeaderValue::from_static(value));
    }
    response
}

#[tokio::test]
async fn a_status_without_a_message_stays_in_the_headers_and_as_it_was_encoded() {
    const MESSAGE: &str = "%09caf%C3%A9 at 100%25%0D%0A";
    let refuses = || async {
        let headers = [
            ("content-type", "application/grpc+proto"),
            ("grpc-status", "9"),
            ("grpc-message", MESSAGE),
            ("why-bin", "AAEC/w"),
        ];
        let mut response = answer(&headers, Vec::new());
        *response.body_mut() = Body::empty();
        response
    };
    let upstream = Upstream::serve(Router::new().fallback(refuses)).await;
    let rig = Rig::new(vec![free("api", &upstream.h2c())]).await;
    let answer = within(http2(rig.addr).await.send_request(call(&rig, "/x/y", &[]))).await.unwrap();
    // One frame of headers that ends the stream: "trailers only".
    assert!(answer.body().is_end_stream());
    for (name, value) in [
        ("content-type", "application/grpc+proto"),
        ("grpc-status", "9"),
        ("grpc-message", MESSAGE),
        ("why-bin", "AAEC/w"),
    ] {
        assert_eq!(answer.headers()[name], value);
    }
}

#[tokio::test]
async fn metadata_passes_both_ways_value_by_value_whatever_its_bytes() {
    let repeats = |request: HttpRequest| async move {
        let headers = request.headers().clone();
        let mut trailers =
            HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
        for (name, value) in headers.iter().filter(|(name, _)| name.as_str().starts_with("x-")) {
            trailers.append(name, value.clone());
        }
        let frames = vec![Frame::data(Bytes::from_static(HELLO)), Frame::trailers(trailers)];
        let mut response = answer(&[("content-type", "application/grpc")], frames);
        for name in ["te", "grpc-encoding", "grpc-accept-encoding", "user-agent", "x-some-bin"] {
            for value in headers.get_all(name) {
                response
                    .headers_mut()
                    .append(HeaderName::try_from(format!("x-saw-{name}")).unwrap(), value.clone());
            }
        }
        response
    };
    let upstream = Upstream::serve(Router::new().fallback(repeats)).await;
    let rig = Rig::new(vec![free("api", &upstream.h2c())]).await;
    let sent = [
        ("x-some-bin", "AAECAwT/"),
        // Without padding, and with two values in one line: both are for the two ends alone to take apart.
        ("x-some-bin", "/w,AA=="),
        ("x-some", "  leading and trailing  "),
        ("x-some", ""),
        ("grpc-encoding", "gzip"),
        ("grpc-accept-encoding", "identity,deflate,gzip"),
        ("user-agent", "grpc-test/1.0"),
    ];
    let answer = within(http2(rig.addr).await.send_request(call(&rig, "/x/y", &sent))).await.unwrap();
    let (head, answer) = answer.into_parts();
    let collected = within(answer.collect()).await.unwrap();
    let trailers = collected.trailers().unwrap().clone();
    assert_eq!(collected.to_bytes(), HELLO);
    let values = |headers: &HeaderMap, name: &str| -> Vec<Vec<u8>> {
        headers.get_all(name).iter().map(|value| value.as_bytes().to_owned()).collect()
    };
    for name in ["x-some-bin", "x-some"] {
        let wanted: Vec<_> = sent
            .iter()
            .filter(|(sent, _)| *sent == name)
            .map(|(_, value)| value.as_bytes().to_owned())
            .collect();
        assert_eq!(values(&trailers, name), wanted, "{name}");
    }
    assert_eq!(values(&head.headers, "x-saw-x-some-bin"), values(&trailers, "x-some-bin"));
    for (name, value) in [
        ("te", "trailers"),
        ("grpc-encoding", "gzip"),
        ("grpc-accept-encoding", "identity,deflate,gzip"),
        ("user-agent", "grpc-test/1.0"),
    ] {
        assert_eq!(head.headers[format!("x-saw-{name}")], value);
    }
}

#[tokio::test]
async fn grpc_web_passes_as_the_bytes_that_it_is() {
    // A message, then the status as the last message of the body: flag 0x80.
    const WEB: &[u8] = b"\0\0\0\0\x05hello\x80\0\0\0\x0fgrpc-status: 0\r\n";
    let web = |request: HttpRequest| async move {
        let kind = request.headers()["content-type"].clone();
        let asked = request.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(asked, HELLO);
        let mut response = answer(&[], vec![Frame::data(Bytes::from_static(WEB))]);
        response.headers_mut().insert("content-type", kind);
        response
    };
    let upstream = Upstream::serve(Router::new().fallback(web)).await;
    for url in [upstream.url(), upstream.h2c()] {
        let rig = Rig::new(vec![at("/free", free("free", &url)), service("paid", &url)]).await;
        for kind in ["application/grpc-web", "application/grpc-web+proto", "application/grpc-web-text"] {
            let ask = |path: &str| {
                let mut request = request("POST", path, &[("content-type", kind), ("x-grpc-web", "1")]);
                *request.body_mut() = body(HELLO);
                request
            };
            let answer = support::ask(rig.addr, ask("/free/x")).await;
            assert_eq!(
                (answer.status().as_u16(), answer.headers()["content-type"].as_bytes()),
                (200, kind.as_bytes())
            );
            assert_eq!(answer.body(), WEB);

            // Its clients read the status of an answer without a body from the headers.
            let denial = support::ask(rig.addr, ask("/x/y")).await;
            assert_eq!(denial.status(), 200);
            assert_eq!(denial.headers()["content-type"], "application/grpc-web");
            assert_eq!(denial.headers()["grpc-status"], "13");
            assert!(denial.headers().contains_key("www-authenticate"));
            assert!(denial.body().is_empty());
        }
    }
}

#[tokio::test]
async fn a_client_may_ask_as_often_as_it_likes_whether_we_are_still_there() {
    let upstream = Upstream::echo().await;
    let rig = Rig::new(vec![free("api", &upstream.h2c())]).await;
    let socket = TcpStream::connect(rig.addr).await.unwrap();
    let (client, mut connection) = h2::client::handshake(socket).await.unwrap();
    let mut pings = connection.ping_pong().unwrap();
    let mut driver = JoinSet::new();
    driver.spawn(async move { connection.await.unwrap() });
    for _ in 0..1000 {
        within(pings.ping(h2::Ping::opaque())).await.unwrap();
    }
    let mut client = within(client.ready()).await.unwrap();
    let request = Request::get(format!("http://{}/still/here", rig.addr)).body(()).unwrap();
    let (answer, _) = client.send_request(request, true).unwrap();
    assert_eq!(within(answer).await.unwrap().status(), 200);
}

/// A server that can be told to say goodbye on its first connection: what has begun there ends there, and nothing new
/// begins. Asked for `/long`, it says `hello`, and more when it is told to.
struct Leaving {
    addr: String,
    leave: Arc<Notify>,
    more: Arc<Notify>,
    connections: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Leaving {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = format!("h2c://{}", listener.local_addr().unwrap());
        let (leave, more) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let connections = Arc::new(AtomicUsize::new(0));
        let (told, goes_on, counted) = (leave.clone(), more.clone(), connections.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let is_first = counted.fetch_add(1, Ordering::SeqCst) == 0;
                let (told, goes_on) = (told.clone(), goes_on.clone());
                open.spawn(async move {
                    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                        let is_long = request.uri().path() == "/api/long";
                        let goes_on = goes_on.clone();
                        async move { Ok::<_, Infallible>(talk(is_long.then_some(goes_on))) }
                    });
                    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(socket), service);
                    let mut connection = std::pin::pin!(connection);
                    tokio::select! {
                        _ = connection.as_mut() => return,
                        () = told.notified(), if is_first => connection.as_mut().graceful_shutdown(),
                    }
                    let _ = connection.await;
                });
            }
        });
        Self { addr, leave, more, connections, _tasks: tasks }
    }
}

fn talk(goes_on: Option<Arc<Notify>>) -> Response<Body> {
    let hello = || Ok::<_, Infallible>(Frame::data(Bytes::from_static(HELLO)));
    let end = stream::once(async move {
        if let Some(goes_on) = goes_on {
            goes_on.notified().await;
        }
        Ok(Frame::trailers(HeaderMap::from_iter([(
            HeaderName::from_static("grpc-status"),
            HeaderValue::from_static("0"),
        )])))
    });
    let mut response = Response::new(Body::new(StreamBody::new(stream::iter([hello()]).chain(end))));
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}

#[tokio::test]
async fn a_server_that_says_goodbye_is_called_anew_and_what_had_begun_is_finished() {
    let upstream = Leaving::start().await;
    let mut config = support::config(vec![free("api", &upstream.addr)]);
    config.workers = 1;
    let rig = Rig::with(config).await;
    let mut client = http2(rig.addr).await;
    let mut long = within(client.send_request(call(&rig, "/api/long", &[]))).await.unwrap().into_body();
    assert_eq!(within(long.frame()).await.unwrap().unwrap().into_data().unwrap(), HELLO);
    upstream.leave.notify_one();
    // The goodbye takes its time to arrive; no call may suffer from where it finds it.
    while upstream.connections.load(Ordering::SeqCst) == 1 {
        let answer = within(client.send_request(call(&rig, "/api/short", &[]))).await.unwrap();
        let whole = within(answer.into_body().collect()).await.unwrap();
        assert_eq!(whole.trailers().unwrap()["grpc-status"], "0");
    }
    upstream.more.notify_one();
    let rest = within(long.collect()).await.unwrap();
    assert_eq!(rest.trailers().unwrap()["grpc-status"], "0", "what had begun was cut");
}
