//! Requests that their buyers repeat under an `Idempotency-Key`: answered once, charged once.

#![expect(clippy::unwrap_used, reason = "an error is how a test fails")]

mod support;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use axum::{Router, body::Body, extract::Request as Received, response::IntoResponse};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Response, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt;
use support::{
    Rig, body, config,
    counted::{Bought, credit, metered, requests, usage},
    pieces, request,
    upstream::Upstream,
    within,
};
use tokio::sync::{Notify, watch};

/// An upstream that numbers its answers, and answers `/held` when it is told to.
struct Numbering {
    upstream: Upstream,
    answered: Arc<AtomicUsize>,
    begun: Arc<Notify>,
    release: watch::Sender<bool>,
}

impl Numbering {
    async fn start() -> Self {
        let (answered, begun) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let release = watch::channel(false).0;
        let (count, begins, released) = (answered.clone(), begun.clone(), release.subscribe());
        let answer = move |request: Received| {
            let (count, begins, mut released) = (count.clone(), begins.clone(), released.clone());
            async move {
                let (parts, upload) = request.into_parts();
                upload.collect().await.unwrap();
                let number = count.fetch_add(1, SeqCst) + 1;
                begins.notify_one();
                let hold = async move { released.wait_for(|released| *released).await.map(|_| ()) };
                match parts.uri.path() {
                    "/held" => drop(hold.await),
                    "/500" => {
                        return (StatusCode::INTERNAL_SERVER_ERROR, format!("{number}")).into_response();
                    }
                    "/404" => return (StatusCode::NOT_FOUND, format!("{number}")).into_response(),
                    "/large" => return "x".repeat((64 << 10) + 1).into_response(),
                    "/slowly" => {
                        let first = stream::iter([Ok::<_, std::io::Error>(format!("{number}"))]);
                        let rest = stream::once(async move {
                            drop(hold.await);
                            Ok(" and no more".to_owned())
                        });
                        return Body::from_stream(first.chain(rest)).into_response();
                    }
                    _ => {}
                }
                (StatusCode::CREATED, [("x-number", number.to_string())], format!("number {number}"))
                    .into_response()
            }
        };
        let upstream = Upstream::serve(Router::new().fallback(answer)).await;
        Self { upstream, answered, begun, release }
    }

    fn answered(&self) -> usize {
        self.answered.load(SeqCst)
    }

    async fn rig(&self, count: u64) -> Rig {
        Rig::counting(config(vec![requests(&self.upstream.url(), count)])).await
    }
}

/// A request with a key.
async fn ask(rig: &Rig, version: u8, bought: &Bought, path: &str, key: &str, text: &str) -> Response<Bytes> {
    let headers = [bought.header(), ("idempotency-key", key)];
    let asking = request("POST", path, &headers).map(|_| body(text.to_owned()));
    let (parts, answer) = rig.send(version, asking).await.into_parts();
    Response::from_parts(parts, within(answer.collect()).await.unwrap().to_bytes())
}

fn code(answer: &Response<Bytes>) -> (u16, &str) {
    (answer.status().as_u16(), answer.headers().get("farebox-code").map_or("", |code| code.to_str().unwrap()))
}

#[tokio::test]
async fn a_request_that_is_repeated_gets_its_answer_again_and_is_charged_once() {
    let upstream = Numbering::start().await;
    let rig = upstream.rig(2).await;
    let bought = rig.purchase("/").await;
    for (version, number) in [(1, "number 1"), (2, "number 2")] {
        let key = format!("key-{version}");
        let first = ask(&rig, version, &bought, "/a?b", &key, "text").await;
        assert_eq!((first.status().as_u16(), &first.body()[..]), (201, number.as_bytes()));
        assert!(!first.headers().contains_key("idempotent-replayed"));
        rig.settled(&bought).await;
        for _ in 0..3 {
            let again = ask(&rig, version, &bought, "/a?b", &key, "text").await;
            assert_eq!((again.status().as_u16(), &again.body()[..]), (201, number.as_bytes()));
            assert_eq!(again.headers()["x-number"], first.headers()["x-number"]);
            assert_eq!(again.headers()["content-length"], first.headers()["content-length"]);
            assert_eq!(again.headers()["idempotent-replayed"], "true");
            assert!(!again.headers().contains_key("farebox-left"));
        }
    }
    assert_eq!((upstream.answered(), rig.spent(&bought).await), (2, 2));
    assert_eq!(code(&ask(&rig, 1, &bought, "/a?b", "another", "text").await), (402, "units_spent"));
    // Also with nothing left, and after a restart.
    let rig = rig.again(config(vec![requests(&upstream.upstream.url(), 2)])).await;
    let again = ask(&rig, 1, &bought, "/a?b", "key-1", "text").await;
    assert_eq!((again.status().as_u16(), &again.body()[..]), (201, &b"number 1"[..]));
    assert_eq!(upstream.answered(), 2);
}

#[tokio::test]
async fn a_key_stands_for_one_request_of_one_purchase() {
    let upstream = Numbering::start().await;
    let rig = upstream.rig(9).await;
    let (bought, other) = (rig.purchase("/").await, rig.purchase("/").await);
    assert_eq!(ask(&rig, 1, &bought, "/a", "key", "text").await.status(), 201);
    rig.settled(&bought).await;
    for (path, text) in [("/b", "text"), ("/a?", "text"), ("/a", "texts"), ("/a", "")] {
        assert_eq!(
            code(&ask(&rig, 1, &bought, path, "key", text).await),
            (422, "key_reused"),
            "{path} {text}"
        );
    }
    assert_eq!(
        ask(&rig, 1, &other, "/b", "key", "text").await.status(),
        201,
        "others have keys of their own"
    );
    assert_eq!(rig.spent(&bought).await, 1);
}

#[tokio::test]
async fn while_one_is_under_way_its_like_is_refused_and_not_charged() {
    let upstream = Numbering::start().await;
    let rig = upstream.rig(9).await;
    let bought = rig.purchase("/").await;
    let (first, ()) = tokio::join!(ask(&rig, 1, &bought, "/held", "key", "text"), async {
        within(upstream.begun.notified()).await;
        let again = ask(&rig, 2, &bought, "/held", "key", "text").await;
        assert_eq!(code(&again), (409, "key_in_use"));
        assert!(again.headers().contains_key("retry-after"));
        assert_eq!(code(&ask(&rig, 2, &bought, "/held", "key", "else").await), (422, "key_reused"));
        upstream.release.send_replace(true);
    });
    assert_eq!(first.status(), 201);
    assert_eq!((upstream.answered(), rig.spent(&bought).await), (1, 1));
}

#[tokio::test]
async fn what_was_not_served_may_be_tried_again_under_its_key() {
    let upstream = Numbering::start().await;
    let rig = upstream.rig(9).await;
    let bought = rig.purchase("/").await;
    for number in 1..4 {
        let answer = ask(&rig, 1, &bought, "/500", "key", "text").await;
        assert_eq!((answer.status().as_u16(), answer.body()), (500, &Bytes::from(number.to_string())));
        assert_eq!(rig.spent(&bought).await, 0);
    }
}

#[tokio::test]
async fn what_costs_nothing_and_serves_nothing_takes_no_room_under_its_key() {
    let upstream = Numbering::start().await;
    let route = credit(&upstream.upstream.url(), 9_000, metered(1_000, usage()));
    let rig = Rig::counting(config(vec![route])).await;
    let bought = rig.purchase("/").await;
    for number in 1..4 {
        let answer = ask(&rig, 1, &bought, "/404", "key", "text").await;
        assert_eq!((answer.status().as_u16(), answer.body()), (404, &Bytes::from(number.to_string())));
        assert_eq!(rig.spent(&bought).await, 0);
    }
}

#[tokio::test]
async fn an_answer_that_is_too_large_to_keep_is_refused_again_and_not_charged_again() {
    let upstream = Numbering::start().await;
    let rig = upstream.rig(9).await;
    let bought = rig.purchase("/").await;
    assert_eq!(ask(&rig, 1, &bought, "/large", "key", "text").await.body().len(), (64 << 10) + 1);
    rig.settled(&bought).await;
    for _ in 0..2 {
        assert_eq!(code(&ask(&rig, 1, &bought, "/large", "key", "text").await), (409, "answer_not_kept"));
    }
    assert_eq!((upstream.answered(), rig.spent(&bought).await), (1, 1));
}

#[tokio::test]
async fn a_buyer_who_was_cut_off_finds_the_answer_under_the_key() {
    let upstream = Numbering::start().await;
    let rig = upstream.rig(9).await;
    let bought = rig.purchase("/").await;
    for version in [1, 2] {
        for path in ["/held", "/slowly"] {
            upstream.release.send_replace(false);
            let key = format!("{path} {version}");
            let headers = [bought.header(), ("idempotency-key", &key)];
            let asking = rig.send(version, request("POST", path, &headers).map(|_| body("text")));
            if path == "/held" {
                tokio::select! {
                    _ = asking => panic!("it is held"),
                    () = within(upstream.begun.notified()) => {}
                }
            } else {
                let mut answer = asking.await.into_body();
                within(answer.frame()).await.unwrap().unwrap();
                within(upstream.begun.notified()).await;
            }
            let so_far = upstream.answered();
            // The gateway waits in the buyer's place.
            upstream.release.send_replace(true);
            rig.settled(&bought).await;
            let again = ask(&rig, version, &bought, path, &key, "text").await;
            let want =
                if path == "/held" { format!("number {so_far}") } else { format!("{so_far} and no more") };
            assert_eq!(again.body(), &Bytes::from(want), "{path} over HTTP/{version}");
            assert_eq!(upstream.answered(), so_far);
            assert_eq!(rig.spent(&bought).await, so_far as u64);
        }
    }
}

#[tokio::test]
async fn a_key_that_is_none_and_a_body_that_cannot_be_compared_are_refused() {
    let upstream = Numbering::start().await;
    let rig = upstream.rig(9).await;
    let bought = rig.purchase("/").await;
    for version in [1, 2] {
        for key in ["", &"x".repeat(256)] {
            assert_eq!(code(&ask(&rig, version, &bought, "/", key, "text").await), (400, "key_malformed"));
        }
        let large = "x".repeat((1 << 20) + 1);
        assert_eq!(code(&ask(&rig, version, &bought, "/", "key", &large).await), (413, "key_body_too_large"));
        // Without a length it turns out later.
        let frames = stream::iter([Frame::data(Bytes::from(large))]);
        let headers = [bought.header(), ("idempotency-key", "key")];
        let answer = rig.send(version, request("POST", "/", &headers).map(|_| pieces(frames))).await;
        assert_eq!(answer.status(), 413);
        let fits = "x".repeat(1 << 20);
        assert_eq!(ask(&rig, version, &bought, "/", &format!("{version}"), &fits).await.status(), 201);
    }
    assert_eq!(rig.spent(&bought).await, 2);
}

#[tokio::test]
async fn with_a_pass_a_key_is_the_upstreams_affair() {
    let upstream = Upstream::echo().await;
    let rig = Rig::counting(config(vec![support::service("api", &upstream.url())])).await;
    let credential = rig.buy("/").await;
    let headers = [("authorization", credential.as_str()), ("idempotency-key", "")];
    let large = "x".repeat((1 << 20) - 1);
    let answer = rig.send(1, request("POST", "/", &headers).map(|_| body(large))).await;
    assert_eq!(answer.status(), 200);
    let told = within(answer.into_body().collect()).await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&told).contains("idempotency-key: "));
}
