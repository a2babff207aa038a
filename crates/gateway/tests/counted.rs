//! Requests that are counted: what each costs its buyer, however it ends.

#![expect(clippy::unwrap_used, reason = "an error is how a test fails")]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Router, body::Body, extract::Request as Received, response::IntoResponse};
use bytes::Bytes;
use farebox_gateway::{UpstreamConfig, UpstreamUrl};
use futures_util::{FutureExt, StreamExt, future::join_all, stream};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use support::{
    Rig, ask, config,
    counted::requests,
    http1, pieces, request,
    socket::{Place, by_hand},
    upstream::{Recorder, Upstream},
    within,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::{Notify, watch},
};

/// Of a call whose answer isn't nothing.
const MESSAGE: Option<&[u8]> = Some(b"\0\0\0\0\x05whole");

/// An upstream that does as the path says.
async fn moody() -> Upstream {
    async fn answer(request: Received) -> axum::response::Response {
        let path = request.uri().path().to_owned();
        let grpc = |messages: Option<&'static [u8]>, status: &'static str| {
            let told = HeaderMap::from_iter([(
                http::HeaderName::from_static("grpc-status"),
                HeaderValue::from_static(status),
            )]);
            let kind = ("content-type", "application/grpc");
            let Some(messages) = messages else {
                return ([kind], told, Body::empty()).into_response();
            };
            let data = Frame::data(Bytes::from_static(messages));
            let frames = [Ok::<_, std::io::Error>(data), Ok(Frame::trailers(told))];
            // Over HTTP/1.1 a server sends only those that it has announced.
            let announced = ("trailer", "grpc-status");
            ([kind, announced], Body::new(StreamBody::new(stream::iter(frames)))).into_response()
        };
        match path.as_str() {
            "/500" => (StatusCode::INTERNAL_SERVER_ERROR, "broken").into_response(),
            "/503-stream" => {
                let never = stream::iter([Ok::<_, std::io::Error>("so")]).chain(stream::pending());
                (StatusCode::SERVICE_UNAVAILABLE, Body::from_stream(never)).into_response()
            }
            "/404" => (StatusCode::NOT_FOUND, "no such thing").into_response(),
            "/204" => StatusCode::NO_CONTENT.into_response(),
            "/304" => StatusCode::NOT_MODIFIED.into_response(),
            "/never" => std::future::pending().await,
            "/silent" => {
                let first = stream::iter([Ok::<_, std::io::Error>("begun")]);
                Body::from_stream(first.chain(stream::pending())).into_response()
            }
            "/cut" => {
                let broken = stream::iter([Ok("begun"), Err(std::io::Error::other("gone"))]);
                Body::from_stream(broken).into_response()
            }
            "/call/well" => grpc(MESSAGE, "0"),
            "/call/not-found" => grpc(None, "5"),
            "/call/too-late" => grpc(MESSAGE, "4"),
            "/call/unavailable" => grpc(None, "14"),
            "/call/internal" => grpc(Some(b"\0\0\0\0\x05half"), "13"),
            "/call/internal-later" => grpc(MESSAGE, "13"),
            "/call/unknown-later" => grpc(MESSAGE, "2"),
            "/call/lost" => {
                let broken = stream::iter([Ok("begun"), Err(std::io::Error::other("gone"))]);
                ([("content-type", "application/grpc")], Body::from_stream(broken)).into_response()
            }
            _ => "well".into_response(),
        }
    }
    Upstream::serve(Router::new().fallback(answer)).await
}

/// A rig in which nobody waits for long.
async fn hasty(url: &str, count: u64) -> Rig {
    let mut route = requests(url, count);
    route.upstream.head_timeout = Some(Duration::from_millis(150));
    route.upstream.idle_timeout = Some(Duration::from_millis(150));
    Rig::counting(config(vec![route])).await
}

#[tokio::test]
async fn of_64_clients_who_race_for_the_last_ten_requests_ten_are_answered() {
    let (count, held) = (Arc::new(AtomicUsize::new(0)), watch::channel(false).0);
    let (counted, holding) = (count.clone(), Arc::new(held));
    let release = holding.clone();
    let answer = move |request: Received| {
        let (counted, mut released) = (counted.clone(), holding.subscribe());
        async move {
            counted.fetch_add(1, SeqCst);
            if request.uri().path() == "/held" {
                let _ = released.wait_for(|released| *released).await;
            }
            "well"
        }
    };
    let upstream = Upstream::serve(Router::new().fallback(answer)).await;
    for version in [1, 2] {
        for path in ["/held", "/quick"] {
            release.send_replace(false);
            count.store(0, SeqCst);
            let rig = Rig::counting(config(vec![requests(&upstream.url(), 20)])).await;
            let bought = rig.purchase("/").await;
            for _ in 0..10 {
                let answer = rig.send(version, request("GET", "/quick", &[bought.header()])).await;
                assert_eq!(answer.status(), 200);
                answer.into_body().collect().await.unwrap();
            }
            assert_eq!(rig.spent(&bought).await, 10);
            assert_eq!(count.swap(0, SeqCst), 10);
            let refused = AtomicUsize::new(0);
            let clients = (0..64).map(|_| async {
                let answer = rig.send(version, request("GET", path, &[bought.header()])).await;
                let (parts, body) = answer.into_parts();
                match parts.status.as_u16() {
                    200 => assert_eq!(within(body.collect()).await.unwrap().to_bytes(), "well"),
                    429 => {
                        assert_eq!(parts.headers["farebox-code"], "units_in_flight");
                        assert!(parts.headers.contains_key("retry-after"));
                    }
                    402 => assert_eq!(parts.headers["farebox-code"], "units_spent"),
                    other => panic!("{other}"),
                }
                // While ten are held, everybody else is told that it may yet come to them.
                if parts.status != 200 && refused.fetch_add(1, SeqCst) + 1 == 54 {
                    release.send_replace(true);
                }
                parts.status.as_u16()
            });
            let answers = within(join_all(clients)).await;
            let how_many = |status| answers.iter().filter(|answer| **answer == status).count();
            assert_eq!((how_many(200), count.load(SeqCst)), (10, 10), "{path} over HTTP/{version}");
            if path == "/held" {
                assert_eq!(how_many(429), 54);
            }
            let balance = rig.settled(&bought).await;
            assert_eq!((balance.spent(), balance.left(), balance.written_off()), (20, 0, 0));
        }
    }
}

#[tokio::test]
async fn to_ask_for_money_back_costs_nothing_where_none_is_paid_back() {
    let upstream = moody().await;
    let rig = hasty(&upstream.url(), 10).await;
    let bought = rig.purchase("/").await;
    let refund = request("GET", "/.well-known/farebox/refund", &[bought.header()]);
    let answer = rig.send(1, refund).await;
    assert_eq!(
        (answer.status(), &answer.headers()["farebox-code"]),
        (StatusCode::NOT_FOUND, &"refunds_not_offered".parse().unwrap())
    );
    let balance = rig.paywall.ledger().balance(&bought.hash);
    assert_eq!(balance.map_or(0, |balance| balance.spent()), 0);
}

/// What these paths cost of what was bought, by both versions of HTTP on either side.
async fn check(paths: &[&str], headers: &[(&str, &str)], want: u64) {
    let upstream = moody().await;
    for url in [upstream.url(), upstream.h2c()] {
        // Short time-outs are for upstreams that never answer: one that is only slow, as on a busy machine, costs nothing, too.
        let rig = if want == 0 {
            hasty(&url, 1_000).await
        } else {
            Rig::counting(config(vec![requests(&url, 1_000)])).await
        };
        let bought = rig.purchase("/").await;
        for version in [1, 2] {
            for path in paths {
                let before = rig.paywall.ledger().balance(&bought.hash).map_or(0, |balance| balance.spent());
                let headers: Vec<_> = headers.iter().copied().chain([bought.header()]).collect();
                let answer = rig.send(version, request("POST", path, &headers)).await;
                let _ = within(answer.into_body().collect()).await;
                let spent = rig.spent(&bought).await - before;
                assert_eq!(spent, want, "{path} over HTTP/{version} at {url}");
            }
        }
    }
}

#[tokio::test]
async fn an_answer_costs_a_request_whatever_it_says() {
    check(&["/", "/404", "/204", "/304"], &[], 1).await;
}

#[tokio::test]
async fn what_the_upstream_does_not_serve_costs_nothing() {
    check(&["/500", "/503-stream", "/never", "/silent", "/cut"], &[], 0).await;
}

#[tokio::test]
async fn a_call_is_charged_by_its_own_status() {
    let kind = [("content-type", "application/grpc"), ("te", "trailers")];
    check(&["/call/well", "/call/not-found", "/call/too-late"], &kind, 1).await;
    check(&["/call/unavailable", "/call/internal", "/call/lost"], &kind, 0).await;
    // Not all that failed was for nothing: a spoilt message at its end would make any stream free.
    check(&["/call/internal-later", "/call/unknown-later"], &kind, 1).await;
    // The buyer's own deadline passes, before the upstream has been silent for too long.
    let [kind, te] = kind;
    check(&["/never"], &[kind, te, ("grpc-timeout", "50m")], 1).await;
}

#[tokio::test]
async fn an_answer_without_a_body_is_whole_at_once() {
    let upstream = moody().await;
    let rig = hasty(&upstream.url(), 9).await;
    let bought = rig.purchase("/").await;
    for method in ["HEAD", "GET"] {
        let answer = ask(rig.addr, request(method, "/204", &[bought.header()])).await;
        assert_eq!(answer.status(), 204);
        let left: u64 = answer.headers()["farebox-left"].to_str().unwrap().parse().unwrap();
        assert_eq!(left, rig.settled(&bought).await.left());
    }
    assert_eq!(rig.spent(&bought).await, 2);
}

#[tokio::test]
async fn an_upstream_that_is_not_there_costs_nothing() {
    let gone = { TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap() };
    let rig = hasty(&format!("http://{gone}"), 5).await;
    let bought = rig.purchase("/").await;
    assert_eq!(ask(rig.addr, request("GET", "/", &[bought.header()])).await.status(), 502);
    assert_eq!(rig.spent(&bought).await, 0);
    rig.metric(r#"farebox_uncharged_requests_total{service="api",unit="request"} 1"#).await;
}

#[tokio::test]
async fn who_hangs_up_pays_for_what_has_been_sent_on() {
    let begun = Arc::new(Notify::new());
    let begins = begun.clone();
    let answer = move |request: Received| {
        let begins = begins.clone();
        async move {
            if request.uri().path() == "/before" {
                begins.notify_one();
                std::future::pending::<()>().await;
            }
            let first = stream::iter([Ok::<_, std::io::Error>("begun")]);
            Body::from_stream(first.chain(stream::pending()))
        }
    };
    let upstream = Upstream::serve(Router::new().fallback(answer)).await;
    let rig = Rig::counting(config(vec![requests(&upstream.url(), 100)])).await;
    let bought = rig.purchase("/").await;
    let mut spent = 0;
    for version in [1, 2] {
        tokio::select! {
            _ = rig.send(version, request("GET", "/before", &[bought.header()])) => panic!("there is no answer"),
            () = within(begun.notified()) => {}
        }
        spent += 1;
        assert_eq!(rig.spent(&bought).await, spent, "before the answer, over HTTP/{version}");
        let mut answer = rig.send(version, request("GET", "/within", &[bought.header()])).await.into_body();
        within(answer.frame()).await.unwrap().unwrap();
        drop(answer);
        spent += 1;
        assert_eq!(rig.spent(&bought).await, spent, "in the middle of it, over HTTP/{version}");
    }
    rig.metric(r#"farebox_charged_requests_total{service="api",unit="request"} 4"#).await;
    rig.metric(r#"farebox_charged_units_total{service="api",unit="request"} 4"#).await;
}

#[tokio::test]
async fn who_hangs_up_before_anything_was_sent_on_pays_nothing() {
    // It takes connections and says nothing, so no request can be sent to it by TLS.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut route = requests(&format!("https://{}", silent.local_addr().unwrap()), 5);
    route.upstream.tls = farebox_gateway::UpstreamTls::InsecureSkipVerify;
    let rig = Rig::counting(config(vec![route])).await;
    let bought = rig.purchase("/").await;
    for version in [1, 2] {
        tokio::select! {
            _ = rig.send(version, request("GET", "/", &[bought.header()])) => panic!("there is no answer"),
            accepted = within(silent.accept()) => drop(accepted.unwrap()),
        }
        assert_eq!(rig.spent(&bought).await, 0, "over HTTP/{version}");
    }
}

#[tokio::test]
async fn what_the_gateway_refuses_costs_nothing_and_an_upload_given_up_costs_a_request() {
    let begun = Arc::new(Notify::new());
    let begins = begun.clone();
    let answer = move |request: Received| {
        let begins = begins.clone();
        async move {
            let mut upload = request.into_body();
            while let Some(Ok(_)) = upload.frame().await {
                begins.notify_one();
            }
        }
    };
    let upstream = Upstream::serve(Router::new().fallback(answer)).await;
    let mut route = requests(&upstream.url(), 50);
    route.request_bytes_max = Some(10);
    let rig = Rig::counting(config(vec![route])).await;
    let bought = rig.purchase("/").await;
    for version in [1, 2] {
        let upload =
            stream::iter([&b"12345"[..], b"678901"].map(|piece| Frame::data(Bytes::from_static(piece))));
        let large = request("POST", "/", &[bought.header()]).map(|_| pieces(upload));
        let answer = rig.send(version, large).await;
        assert_eq!(answer.status(), 413, "over HTTP/{version}");
        assert_eq!(rig.spent(&bought).await, 0, "over HTTP/{version}");
    }
    while begun.notified().now_or_never().is_some() {}
    let mut socket = tokio::net::TcpStream::connect(rig.addr).await.unwrap();
    let head = format!(
        "POST / HTTP/1.1\r\nhost: localhost\r\nauthorization: {}\r\ncontent-length: 9\r\n\r\n12345",
        bought.credential
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    within(begun.notified()).await;
    socket.shutdown().await.unwrap();
    let mut told = Vec::new();
    let _ = within(socket.read_to_end(&mut told)).await;
    assert_eq!(rig.spent(&bought).await, 1);
}

/// What it costs to get most of an answer while the request is still on its way, and then to spoil the rest of that.
async fn spoilt_upload(spoil: &'static [u8], bytes_max: Option<u64>) {
    let upstream = moody().await;
    for url in [upstream.url(), upstream.h2c()] {
        let mut route = requests(&url, 5);
        route.request_bytes_max = bytes_max;
        route.upstream.idle_timeout = Some(Duration::from_millis(150));
        let rig = Rig::counting(config(vec![route])).await;
        let bought = rig.purchase("/").await;
        let mut socket = tokio::net::TcpStream::connect(rig.addr).await.unwrap();
        let head = format!(
            "POST /silent HTTP/1.1\r\nhost: localhost\r\nauthorization: {}\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n",
            bought.credential
        );
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut told = Vec::new();
        while !told.windows(5).any(|piece| piece == b"begun") {
            assert_ne!(within(socket.read_buf(&mut told)).await.unwrap(), 0);
        }
        socket.write_all(spoil).await.unwrap();
        let _ = within(socket.read_to_end(&mut told)).await;
        assert_eq!(rig.spent(&bought).await, 1, "{url}");
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_because_its_request_does_is_not_had_for_nothing() {
    // No length of a chunk.
    spoilt_upload(b"nonsense\r\n", None).await;
    // More than is taken.
    spoilt_upload(b"20\r\n01234567890123456789012345678901\r\n", Some(10)).await;
    // Nothing more, and the upstream waits for it.
    spoilt_upload(b"", None).await;
}

#[tokio::test]
async fn a_request_that_is_sent_again_elsewhere_is_charged_once() {
    let dies = Place::new();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    // It reads the request and hangs up.
    let _dying = by_hand(&dies.path, move |mut socket| {
        let counted = counted.clone();
        async move {
            let mut some = [0; 64];
            let _ = socket.read(&mut some).await;
            counted.fetch_add(1, SeqCst);
        }
    });
    let lives = Place::live();
    let urls = [dies.url(), lives.url()].map(|url| url.parse::<UpstreamUrl>().unwrap());
    let mut route = requests("http://localhost", 5);
    route.upstream =
        UpstreamConfig { urls: urls.into(), ..UpstreamConfig::new(lives.url().parse().unwrap()) };
    let rig = Rig::counting(config(vec![route])).await;
    let bought = rig.purchase("/").await;
    for _ in 0..4 {
        assert_eq!(ask(rig.addr, request("GET", "/", &[bought.header()])).await.status(), 200);
    }
    assert!(count.load(SeqCst) > 0, "the other one was asked");
    assert_eq!(rig.spent(&bought).await, 4);
}

#[tokio::test]
async fn what_is_left_outlives_a_restart() {
    let upstream = Recorder::start().await;
    let services = || config(vec![requests(&upstream.url(), 3)]);
    let rig = Rig::counting(services()).await;
    let bought = rig.purchase("/").await;
    let other = rig.purchase("/").await;
    for _ in 0..2 {
        assert_eq!(ask(rig.addr, request("GET", "/", &[bought.header()])).await.status(), 200);
    }
    rig.metric("farebox_ledger_unwritten 0").await;
    let rig = rig.again(services()).await;
    let answer = ask(rig.addr, request("GET", "/", &[bought.header()])).await;
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["farebox-left"]),
        (200, &HeaderValue::from_static("0"))
    );
    let answer = ask(rig.addr, request("GET", "/", &[bought.header()])).await;
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["farebox-code"]),
        (402, &HeaderValue::from_static("units_spent"))
    );
    assert_eq!(ask(rig.addr, request("GET", "/", &[other.header()])).await.status(), 200);
    assert_eq!(rig.spent(&bought).await, 3);
}

#[tokio::test]
async fn a_request_that_a_stop_cuts_off_costs_nothing() {
    let begun = Arc::new(Notify::new());
    let begins = begun.clone();
    let answer = move || {
        begins.notify_one();
        std::future::pending::<&'static str>()
    };
    let upstream = Upstream::serve(Router::new().fallback(answer)).await;
    let mut settings = config(vec![requests(&upstream.url(), 3)]);
    settings.timeouts.drain = Duration::from_millis(20);
    let rig = Rig::counting(settings).await;
    let bought = rig.purchase("/").await;
    let mut client = http1(rig.addr).await;
    let asking = client.send_request(request("GET", "/", &[bought.header()]));
    let paywall = rig.paywall.clone();
    let stopping = async {
        within(begun.notified()).await;
        rig.stop().await.unwrap_err()
    };
    let (cut, _) = tokio::join!(asking, stopping);
    cut.unwrap_err();
    let balance = paywall.ledger().balance(&bought.hash).unwrap();
    assert_eq!((balance.spent(), balance.reserved()), (0, 0));
}

#[tokio::test]
async fn while_the_books_cannot_be_written_nothing_is_counted_and_passes_go_on() {
    let upstream = Recorder::start().await;
    let services = || {
        let mut pass = support::service("pass", &upstream.url());
        pass.matcher.path_prefixes = vec!["/pass".parse().unwrap()];
        config(vec![pass, requests(&upstream.url(), 9)])
    };
    let rig = Rig::counting(services()).await;
    let (pass, bought) = (rig.buy("/pass").await, rig.purchase("/").await);
    // A write is given up after seconds only.
    let trouble = async |rig: &Rig, is_there: u8| {
        let line = format!("farebox_trouble{{task=\"ledger\"}} {is_there}");
        let told = async {
            while !rig.ops("/metrics").await.1.contains(&line) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        within(told).await;
    };
    let ask_for = async |rig: &Rig, path, credential: &str| {
        ask(rig.addr, request("GET", path, &[("authorization", credential)])).await
    };
    assert_eq!(ask_for(&rig, "/pass", &pass).await.status(), 200);
    assert_eq!(ask_for(&rig, "/", &bought.credential).await.status(), 200);
    rig.metric("farebox_ledger_unwritten 0").await;
    let (status, said) = rig.ops("/readyz").await;
    assert!(status == 200 && said.contains(r#""counted_access":true"#), "{said}");

    // Somebody else holds the books.
    let other = rusqlite::Connection::open(rig.books()).unwrap();
    other.busy_timeout(support::PATIENCE).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert_eq!(ask_for(&rig, "/", &bought.credential).await.status(), 200, "nobody has noticed as yet");
    trouble(&rig, 1).await;
    let (status, said) = rig.ops("/readyz").await;
    assert_eq!(status, 503);
    assert!(
        said.contains(r#""counted_access":false"#) && said.contains("charges can't be written"),
        "{said}"
    );
    let refused = ask_for(&rig, "/", &bought.credential).await;
    assert_eq!(
        (refused.status().as_u16(), &refused.headers()["farebox-code"]),
        (503, &HeaderValue::from_static("ledger_unavailable"))
    );
    assert!(refused.headers().contains_key("retry-after"));
    assert_eq!(ask_for(&rig, "/pass", &pass).await.status(), 200);

    other.execute_batch("ROLLBACK").unwrap();
    drop(other);
    trouble(&rig, 0).await;
    assert_eq!(ask_for(&rig, "/", &bought.credential).await.status(), 200);
    assert_eq!(rig.spent(&bought).await, 3);
    let rig = rig.again(services()).await;
    assert_eq!(ask_for(&rig, "/", &bought.credential).await.headers()["farebox-left"], "5");
}

#[tokio::test]
async fn a_pass_has_no_bill() {
    let upstream = Upstream::echo().await;
    let rig = Rig::counting(config(vec![support::service("api", &upstream.url())])).await;
    let credential = rig.buy("/").await;
    let answer = ask(rig.addr, request("GET", "/", &[("authorization", &credential)])).await;
    assert_eq!(answer.status(), 200);
    assert!(!answer.headers().contains_key("farebox-left"));
    assert_eq!(rig.paywall.ledger().health().accounts, 0);
    let (_, page) = rig.ops("/metrics").await;
    assert!(!page.contains("farebox_charged_requests_total{"), "{page}");
}
