//! Upstreams with several addresses: which one a request goes to, when it goes on to another one, and when an address is
//! left out and comes back.

#![expect(clippy::unwrap_used, reason = "an error is how a test fails")]

mod support;

use std::{
    fmt::{Debug, Write as _},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use farebox_gateway::{Gateway, HealthCheck, ServiceRoute};
use parking_lot::Mutex;
use support::{
    Rig, ask, body, free, get, request,
    socket::{Place, by_hand},
    within,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    task::JoinSet,
};
use tracing::field::{Field, Visit};
use tracing_subscriber::{Layer, layer::Context, prelude::*};

/// What this process has logged about upstreams, each event as one line.
static LOG: LazyLock<Lines> = LazyLock::new(|| {
    let lines = Lines::default();
    tracing_subscriber::registry().with(lines.clone()).init();
    lines
});

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, " {field}={value:?}").unwrap();
    }
}

impl<S: tracing::Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if !event.metadata().target().starts_with("farebox_gateway::upstream") {
            return;
        }
        let mut line = Line(event.metadata().level().to_string());
        event.record(&mut line);
        self.0.lock().push(line.0);
    }
}

/// The lines about this address, by their levels.
fn logged(place: &Place) -> Vec<String> {
    let lines = LOG.0.lock();
    let about = lines.iter().filter(|line| line.contains(&place.url()));
    about.map(|line| line.split(' ').next().unwrap().to_owned()).collect()
}

/// A service at all these places. An address that is left out is tried again soon.
fn at(places: &[&Place]) -> ServiceRoute {
    LazyLock::force(&LOG);
    let mut route = free("api", &places[0].url());
    route.upstream.urls = places.iter().map(|place| place.url().parse().unwrap()).collect();
    route.upstream.eject_for = Duration::from_millis(20);
    route
}

fn post(path: &str) -> http::Request<http_body_util::combinators::BoxBody<bytes::Bytes, hyper::Error>> {
    let mut request = request("POST", path, &[]);
    *request.body_mut() = body("precious");
    request
}

/// Does something over and over until it says that it is enough.
async fn until<A: Future<Output = bool>>(mut attempt: impl FnMut() -> A) {
    within(async {
        while !attempt().await {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn requests_one_after_the_other_are_spread_evenly() {
    let places = [Place::live(), Place::live(), Place::live()];
    let rig = Rig::new(vec![at(&[&places[0], &places[1], &places[2]])]).await;
    for _ in 0..30 {
        assert_eq!(get(rig.addr, "/", &[]).await.status(), 200);
    }
    assert_eq!(places.each_ref().map(Place::requests), [10, 10, 10]);
}

#[tokio::test]
async fn a_request_goes_where_the_fewest_are_in_flight() {
    let (slow, quick) = (Place::live(), Place::live());
    let rig = Rig::new(vec![at(&[&slow, &quick])]).await;
    let mut held = JoinSet::new();
    for count in 1..=6 {
        held.spawn(get(rig.addr, "/hold", &[]));
        until(|| async { slow.requests() + quick.requests() == count }).await;
    }
    assert_eq!((slow.requests(), quick.requests()), (3, 3));
    // Those at one address end, those at the other go on.
    quick.release();
    for _ in 0..3 {
        assert_eq!(within(held.join_next()).await.unwrap().unwrap().status(), 200);
    }
    for _ in 0..10 {
        assert_eq!(get(rig.addr, "/", &[]).await.status(), 200);
    }
    assert_eq!((slow.requests(), quick.requests()), (3, 13));
    slow.release();
}

#[tokio::test]
async fn an_address_that_is_dead_is_noticed_by_nobody_left_out_and_taken_back() {
    let (mut dead, live) = (Place::new(), Place::live());
    let rig = Rig::new(vec![at(&[&dead, &live])]).await;
    for round in 0..20 {
        // It was never sent, so it may be anything.
        let response = ask(rig.addr, post("/order")).await;
        assert_eq!(response.status(), 200, "{round}");
        assert!(String::from_utf8_lossy(response.body()).contains("precious"), "{round}");
    }
    assert_eq!(live.requests(), 20);
    assert_eq!(logged(&dead), ["WARN"], "once for all of them");
    dead.rise();
    until(|| async {
        assert_eq!(get(rig.addr, "/", &[]).await.status(), 200);
        dead.requests() > 0
    })
    .await;
    assert_eq!(logged(&dead), ["WARN", "INFO"]);
    // It has its share again.
    let (before, before_live) = (dead.requests(), live.requests());
    for _ in 0..10 {
        assert_eq!(get(rig.addr, "/", &[]).await.status(), 200);
    }
    assert_eq!((dead.requests() - before, live.requests() - before_live), (5, 5));
    assert_eq!(logged(&live), [""; 0]);
}

#[tokio::test]
async fn an_address_that_dies_with_all_its_connections_is_noticed_by_nobody() {
    let (mut mortal, live) = (Place::live(), Place::live());
    let rig = Rig::new(vec![at(&[&mortal, &live])]).await;
    for _ in 0..10 {
        assert_eq!(get(rig.addr, "/", &[]).await.status(), 200);
    }
    mortal.fall().await;
    for round in 0..20 {
        assert_eq!(get(rig.addr, "/", &[]).await.status(), 200, "{round}");
    }
    assert_eq!(logged(&mortal), ["WARN"]);
}

/// Takes a request's head and closes without a word. How often.
fn mute(place: &Place) -> (Arc<AtomicUsize>, JoinSet<()>) {
    let heads = Arc::new(AtomicUsize::new(0));
    let count = heads.clone();
    let serving = by_hand(&place.path, move |mut socket: UnixStream| {
        let count = count.clone();
        async move {
            let mut seen = Vec::new();
            while !seen.windows(4).any(|window| window == b"\r\n\r\n") {
                if socket.read_buf(&mut seen).await.unwrap_or(0) == 0 {
                    return;
                }
            }
            count.fetch_add(1, SeqCst);
        }
    });
    (heads, serving)
}

#[tokio::test]
async fn what_may_have_been_heard_goes_on_to_another_address_only_if_it_may_be_heard_twice() {
    let (silent, live) = (Place::new(), Place::live());
    let (heads, _serving) = mute(&silent);
    let mut route = at(&[&silent, &live]);
    route.upstream.failures_max = 1000;
    let rig = Rig::new(vec![route]).await;
    let mut refused = 0;
    for _ in 0..10 {
        let response = ask(rig.addr, post("/order")).await;
        if response.status() != 200 {
            assert_eq!(response.status(), 502);
            assert_eq!(response.headers()["farebox-code"], "upstream_failed");
            refused += 1;
        }
    }
    // Each order was seen once, here or there.
    assert_eq!((refused, heads.load(SeqCst), live.requests()), (5, 5, 5));
    // What does no more when it is heard twice is answered, whoever was asked first.
    for method in ["GET", "PUT", "DELETE"] {
        for _ in 0..4 {
            assert_eq!(ask(rig.addr, request(method, "/", &[])).await.status(), 200, "{method}");
        }
    }
    assert_eq!((heads.load(SeqCst), live.requests()), (5 + 6, 5 + 12));
}

#[tokio::test]
async fn an_address_that_breaks_off_before_any_answer_is_left_out() {
    let (silent, live) = (Place::new(), Place::live());
    let (heads, _serving) = mute(&silent);
    let mut route = at(&[&silent, &live]);
    route.upstream.eject_for = Duration::from_secs(3600);
    let rig = Rig::new(vec![route]).await;
    for _ in 0..20 {
        assert_eq!(get(rig.addr, "/", &[]).await.status(), 200);
    }
    assert_eq!((heads.load(SeqCst), live.requests()), (3, 20));
    assert_eq!(logged(&silent), ["WARN"]);
}

#[tokio::test]
async fn an_address_that_takes_requests_and_never_answers_is_left_out() {
    let (stuck, live) = (Place::live(), Place::live());
    let mut route = at(&[&stuck, &live]);
    route.upstream.eject_for = Duration::from_secs(3600);
    route.upstream.failures_max = 1;
    // One request waits for so long; all others have as long to be answered.
    route.upstream.head_timeout = Some(Duration::from_secs(1));
    let rig = Rig::new(vec![route]).await;
    let waiting = get(rig.addr, "/hold", &[]).await;
    assert_eq!((waiting.status().as_u16(), stuck.requests()), (504, 1));
    live.release();
    for _ in 0..10 {
        assert_eq!(get(rig.addr, "/hold", &[]).await.status(), 200);
    }
    assert_eq!((stuck.requests(), live.requests()), (1, 10));
    assert_eq!(logged(&stuck), ["WARN"]);
}

#[tokio::test]
async fn with_all_addresses_down_each_is_asked_and_the_first_to_return_is_found_at_once() {
    let mut places = [Place::new(), Place::new()];
    let mut route = at(&[&places[0], &places[1]]);
    route.upstream.eject_for = Duration::from_secs(3600);
    let rig = Rig::new(vec![route]).await;
    for _ in 0..10 {
        let response = get(rig.addr, "/", &[]).await;
        assert_eq!(response.status(), 502);
        assert_eq!(response.headers()["farebox-code"], "upstream_unreachable");
    }
    for place in &places {
        assert_eq!(logged(place), ["WARN"]);
    }
    // Both are left out for an hour, and yet the next request finds the one that is there.
    places[1].rise();
    for _ in 0..4 {
        assert_eq!(get(rig.addr, "/", &[]).await.status(), 200);
    }
    assert_eq!(logged(&places[1]), ["WARN", "INFO"]);
    assert_eq!(places[1].requests(), 4);
}

#[tokio::test]
async fn one_address_alone_is_never_left_out() {
    let mut only = Place::new();
    let mut route = at(&[&only]);
    route.upstream.eject_for = Duration::from_secs(3600);
    let rig = Rig::new(vec![route]).await;
    for _ in 0..10 {
        assert_eq!(get(rig.addr, "/", &[]).await.status(), 502);
    }
    only.rise();
    assert_eq!(get(rig.addr, "/", &[]).await.status(), 200);
    assert_eq!(logged(&only), ["WARN", "INFO"]);
}

#[tokio::test]
async fn an_answer_in_between_and_the_failures_are_not_in_a_row() {
    let (place, live) = (Place::new(), Place::live());
    let answered = Arc::new(AtomicUsize::new(0));
    // Two connections fail, the third answers, and so on.
    let count = answered.clone();
    let _serving = by_hand(&place.path, move |mut socket: UnixStream| {
        let turn = count.fetch_add(1, SeqCst);
        async move {
            let mut head = [0; 1024];
            let _ = socket.read(&mut head).await;
            if turn % 3 == 2 {
                let _ = socket.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").await;
            }
        }
    });
    let rig = Rig::new(vec![at(&[&place, &live])]).await;
    for _ in 0..40 {
        assert!(get(rig.addr, "/", &[]).await.status().is_success());
    }
    assert_eq!(answered.load(SeqCst), 20);
    assert_eq!(logged(&place), [""; 0]);
}

#[tokio::test]
async fn a_health_check_leaves_an_address_out_and_takes_it_back() {
    let (frail, live) = (Place::live(), Place::live());
    let mut route = at(&[&frail, &live]);
    let every = Duration::from_millis(2);
    route.upstream.health =
        Some(HealthCheck { path: "/healthz".to_owned(), every, timeout: Duration::from_secs(5) });
    let rig = Rig::new(vec![route.clone()]).await;
    until(|| async { frail.seen.checks.load(SeqCst) > 0 && live.seen.checks.load(SeqCst) > 0 }).await;
    assert_eq!(get(rig.addr, "/", &[]).await.status(), 200);

    frail.seen.is_unwell.store(1, SeqCst);
    until(|| async { !logged(&frail).is_empty() }).await;
    let before = frail.requests();
    for _ in 0..20 {
        assert_eq!(get(rig.addr, "/", &[]).await.status(), 200);
    }
    assert_eq!(frail.requests(), before, "it answers requests, but says that it should have none");

    frail.seen.is_unwell.store(0, SeqCst);
    until(|| async {
        assert_eq!(get(rig.addr, "/", &[]).await.status(), 200);
        frail.requests() > before
    })
    .await;
    assert_eq!(logged(&frail), ["WARN", "INFO"]);

    // The checks go with what they check.
    let next = Place::live();
    let mut other = at(&[&next]);
    other.upstream.health = route.upstream.health.clone();
    rig.reload.services(vec![other]).unwrap();
    until(|| async { next.seen.checks.load(SeqCst) > 2 }).await;
    let last = live.seen.checks.load(SeqCst);
    let seen = next.seen.checks.load(SeqCst);
    until(|| async { next.seen.checks.load(SeqCst) > seen + 20 }).await;
    assert_eq!(live.seen.checks.load(SeqCst), last);

    // And they end with the gateway: beside one that runs on, it asks no more.
    rig.stop().await.unwrap();
    let last = next.seen.checks.load(SeqCst);
    let clock = Place::live();
    let mut running = at(&[&clock]);
    running.upstream.health = route.upstream.health;
    let _running = Rig::new(vec![running]).await;
    until(|| async { clock.seen.checks.load(SeqCst) > 20 }).await;
    assert_eq!(next.seen.checks.load(SeqCst), last);
}

#[tokio::test]
async fn with_all_unwell_all_are_asked() {
    let places = [Place::live(), Place::live()];
    let mut route = at(&[&places[0], &places[1]]);
    for place in &places {
        place.seen.is_unwell.store(1, SeqCst);
    }
    route.upstream.health = Some(HealthCheck {
        path: "/healthz".to_owned(),
        every: Duration::from_secs(3600),
        timeout: Duration::from_secs(5),
    });
    let rig = Rig::new(vec![route]).await;
    until(|| async { places.iter().all(|place| logged(place) == ["WARN"]) }).await;
    for _ in 0..10 {
        assert_eq!(get(rig.addr, "/", &[]).await.status(), 200);
    }
    assert_eq!(places.each_ref().map(Place::requests), [5, 5]);
}

#[test]
fn an_upstream_that_could_never_work_is_refused_by_name() {
    let refusal = |change: fn(&mut ServiceRoute)| {
        let mut route = free("api", "http://app");
        change(&mut route);
        Gateway::check(&[route]).unwrap_err().to_string()
    };
    let health = |path: &str| HealthCheck {
        path: path.to_owned(),
        every: Duration::from_secs(1),
        timeout: Duration::from_secs(1),
    };
    let text = refusal(|route| route.upstream.urls.clear());
    assert!(text.contains("has no address"), "{text}");
    let text = refusal(|route| route.upstream.urls.push("h2c://APP:80".parse().unwrap()));
    assert!(text.contains("`h2c://APP:80` is listed twice"), "{text}");
    let text = refusal(|route| route.upstream.connections_max = Some(0));
    assert!(text.contains("`connections_max`") && text.contains("zero"), "{text}");
    let text = refusal(|route| route.upstream.failures_max = 0);
    assert!(text.contains("`failures_max`"), "{text}");
    let text = refusal(|route| route.upstream.eject_for = Duration::ZERO);
    assert!(text.contains("`eject_for`"), "{text}");
    for path in ["", "healthz", "http://app/healthz", "/a b", "/a#b"] {
        let mut route = free("api", "http://app");
        route.upstream.health = Some(health(path));
        let text = Gateway::check(&[route]).unwrap_err().to_string();
        assert!(text.contains(&format!("`{path}` is not a path")), "{text}");
    }
}
