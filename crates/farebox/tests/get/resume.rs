//! Files that come in more than one go: what has come is kept, what is missing is asked for, nothing is paid twice, and no file
//! is ever made of two.

use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::{Body, Bytes};
use axum::response::Response;
use futures_util::stream::{self, StreamExt as _};
use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::support::shop::{Asked, Till};
use super::{Buyer, Shop, error, exit, json};

/// How a server treats a file.
#[derive(Clone, Copy, Default)]
struct Habits {
    /// How much of the whole it sends before the line is cut, request by request; the rest are sent whole.
    cuts: &'static [usize],
    /// What it names the version by, request by request; the last one from then on. `etag` or `last-modified` decide which.
    versions: &'static [&'static str],
    by_date: bool,
    /// It has heard of `Range`.
    ranges: bool,
    /// It sends a part whatever `If-Range` says.
    careless: bool,
    /// It says no length.
    endless: bool,
}

/// The file in this version: another one has other bytes everywhere.
fn content(version: &str) -> Vec<u8> {
    let seed = version.bytes().fold(7_u8, u8::wrapping_add);
    (0..50_000_u32).map(|i| u8::try_from(i % 251).unwrap() ^ seed).collect()
}

/// A shop that sells one file, and what it was asked: `bytes=…` or `-`, paid requests only.
struct Files {
    shop: Shop,
    asked: Arc<parking_lot::Mutex<Vec<String>>>,
}

impl Files {
    async fn open(buyer: &Buyer, habits: Habits) -> Self {
        let asked: Arc<parking_lot::Mutex<Vec<String>>> = Arc::default();
        let (seen, number) = (Arc::clone(&asked), AtomicUsize::new(0));
        let handler = move |till: &Till, request: &Asked| {
            if till.paid(&request.headers).is_none() {
                return till.challenge("svc", 100);
            }
            let number = number.fetch_add(1, Ordering::SeqCst);
            let range = request.headers.get(header::RANGE).map(|range| range.to_str().unwrap());
            seen.lock().push(range.unwrap_or("-").to_owned());
            answer(&habits, number, &request.headers)
        };
        Self { shop: Shop::with(&buyer.world.net, handler).await, asked }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().clone()
    }
}

fn answer(habits: &Habits, number: usize, headers: &HeaderMap) -> Response {
    let version = habits.versions[number.min(habits.versions.len() - 1)];
    let whole = content(version);
    let text = |name| headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap());
    let first: Option<usize> = text(header::RANGE)
        .filter(|_| habits.ranges && (habits.careless || text(header::IF_RANGE) == Some(version)))
        .map(|range| range.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse().unwrap());
    let start = first.unwrap_or(0);
    let cut = habits.cuts.get(number).copied();
    let first_piece = Bytes::copy_from_slice(&whole[start..cut.unwrap_or(whole.len())]);
    let then = stream::once(async move {
        // What was written is sent on its way before the line is cut.
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        match cut {
            Some(_) => Err(std::io::Error::other("cut")),
            None => Ok(Bytes::new()),
        }
    });
    let body = stream::iter([Ok(first_piece)]).chain(then);
    let mut response = Response::new(Body::from_stream(body));
    let mut set = |name, value: &str| {
        response.headers_mut().insert(name, HeaderValue::from_str(value).unwrap());
    };
    if !habits.endless {
        set(header::CONTENT_LENGTH, &(whole.len() - start).to_string());
    }
    if !version.is_empty() {
        set(if habits.by_date { header::LAST_MODIFIED } else { header::ETAG }, version);
    }
    if first.is_some() {
        set(header::CONTENT_RANGE, &format!("bytes {start}-{}/{}", whole.len() - 1, whole.len()));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    response
}

async fn fetch(buyer: &Buyer, files: &Files, file: &Path, more: &[&str]) -> Output {
    let url = files.shop.url("/film?key=hidden");
    buyer.get(&[&["-o", file.to_str().unwrap(), &url], more].concat()).await
}

const ETAG: Habits = Habits {
    cuts: &[],
    versions: &["\"one\""],
    by_date: false,
    ranges: true,
    careless: false,
    endless: false,
};

#[tokio::test]
async fn a_download_that_broke_off_goes_on_where_it_was_and_is_not_paid_again() {
    let by_date = Habits { versions: &["Sun, 06 Nov 1994 08:49:37 GMT"], by_date: true, ..ETAG };
    for habits in [ETAG, by_date, Habits { endless: true, ..ETAG }] {
        let buyer = Buyer::new().await;
        let files = Files::open(&buyer, Habits { cuts: &[20_000, 30_000], ..habits }).await;
        let (file, part) = (buyer.path("film"), buyer.path("film.part"));
        let broken = fetch(&buyer, &files, &file, &[]).await;
        let told = error(&broken);
        assert_eq!((exit(&broken), &told["code"], &told["retryable"]), (4, &"network".into(), &true.into()));
        assert_eq!((&told["part"], &told["part_bytes"]), (&part.to_str().into(), &20_000.into()), "{told}");
        assert!(told["message"].as_str().unwrap().contains("`-C -`"), "{told}");
        assert_eq!((file.exists(), std::fs::metadata(&part).unwrap().len()), (false, 20_000));
        let notes = std::fs::read_to_string(buyer.path("film.part.json")).unwrap();
        assert!(!notes.contains("hidden"), "{notes}");

        assert_eq!(exit(&fetch(&buyer, &files, &file, &["-C", "-"]).await), 4);
        let whole = fetch(&buyer, &files, &file, &["--continue", "--json"]).await;
        let told = json(&whole);
        assert_eq!((&told["status"], &told["bytes"]), (&206.into(), &50_000.into()), "{told}");
        assert_eq!((&told["resumed_at"], &told["paid"]), (&30_000.into(), &false.into()));
        assert!(std::fs::read(&file).unwrap() == content(habits.versions[0]));
        assert_eq!(files.asked(), ["-", "bytes=20000-", "bytes=30000-"]);
        assert!(!part.exists() && !buyer.path("film.part.json").exists());
        assert_eq!(buyer.payments(), 1);
    }
}

#[tokio::test]
async fn a_file_that_has_changed_is_fetched_anew_and_never_mixed() {
    // A server that knows `If-Range`, one that doesn't, and one that doesn't know ranges at all.
    let changes = Habits { cuts: &[20_000], versions: &["\"one\"", "\"two\""], ..ETAG };
    for (habits, asked) in [
        (changes, &["-", "bytes=20000-"][..]),
        (Habits { careless: true, ..changes }, &["-", "bytes=20000-", "-"]),
        (Habits { ranges: false, ..changes }, &["-", "bytes=20000-"]),
    ] {
        let buyer = Buyer::new().await;
        let files = Files::open(&buyer, habits).await;
        let file = buyer.path("film");
        assert_eq!(exit(&fetch(&buyer, &files, &file, &[]).await), 4);
        assert_eq!(exit(&fetch(&buyer, &files, &file, &["-C", "-"]).await), 0);
        assert!(std::fs::read(&file).unwrap() == content("\"two\""));
        assert_eq!((files.asked(), buyer.payments()), (asked.iter().map(|&s| s.to_owned()).collect(), 1));
    }
}

#[tokio::test]
async fn what_cannot_be_told_from_another_version_is_not_kept() {
    let weak = Habits { versions: &["W/\"one\""], ..ETAG };
    for habits in [weak, Habits { versions: &[""], ..ETAG }] {
        let buyer = Buyer::new().await;
        let files = Files::open(&buyer, Habits { cuts: &[20_000], ..habits }).await;
        let file = buyer.path("film");
        let broken = fetch(&buyer, &files, &file, &[]).await;
        assert_eq!((exit(&broken), error(&broken).get("part")), (4, None));
        assert!(!buyer.path("film.part").exists());
        assert_eq!(exit(&fetch(&buyer, &files, &file, &["-C", "-"]).await), 0);
        assert!(std::fs::read(&file).unwrap() == content(habits.versions[0]));
        assert_eq!(files.asked(), ["-", "-"]);
    }
}

#[tokio::test]
async fn a_part_of_something_else_is_not_gone_on_with() {
    let buyer = Buyer::new().await;
    let files = Files::open(&buyer, Habits { cuts: &[20_000], ..ETAG }).await;
    let file = buyer.path("film");
    assert_eq!(exit(&fetch(&buyer, &files, &file, &[]).await), 4);
    let output = buyer.get(&["-C", "-", "-o", file.to_str().unwrap(), &files.shop.url("/other")]).await;
    assert_eq!((exit(&output), files.asked()), (0, vec!["-".to_owned(), "-".to_owned()]));
    assert!(std::fs::read(&file).unwrap() == content("\"one\""));
}

#[tokio::test]
async fn a_part_that_is_complete_is_asked_about_once_more() {
    let buyer = Buyer::new().await;
    let files = Files::open(&buyer, Habits { cuts: &[20_000], ..ETAG }).await;
    let file = buyer.path("film");
    assert_eq!(exit(&fetch(&buyer, &files, &file, &[]).await), 4);
    // Killed between the last byte and the new name.
    std::fs::write(buyer.path("film.part"), content("\"one\"")).unwrap();
    assert_eq!(exit(&fetch(&buyer, &files, &file, &["-c"]).await), 0);
    assert_eq!(files.asked()[1], "bytes=49999-");
    assert!(std::fs::read(&file).unwrap() == content("\"one\""));
}

#[tokio::test]
async fn an_answer_that_is_no_file_leaves_the_part_alone() {
    let buyer = Buyer::new().await;
    let gone = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_gone = Arc::clone(&gone);
    let shop = Shop::with(&buyer.world.net, move |_, asked| match is_gone.load(Ordering::SeqCst) {
        true => super::status(404),
        false => answer(&Habits { cuts: &[20_000], ..ETAG }, 0, &asked.headers),
    })
    .await;
    let (file, url) = (buyer.path("film"), shop.url("/"));
    assert_eq!(exit(&buyer.get(&["-o", file.to_str().unwrap(), &url]).await), 4);
    gone.store(true, Ordering::SeqCst);
    let output = buyer.get(&["-c", "-o", file.to_str().unwrap(), &url]).await;
    assert_eq!((exit(&output), error(&output)["code"].as_str()), (22, Some("status")));
    assert_eq!((file.exists(), std::fs::metadata(buyer.path("film.part")).unwrap().len()), (false, 20_000));
}

#[tokio::test]
async fn what_makes_no_sense_with_resuming_is_said_before_anything_is_paid() {
    let buyer = Buyer::new().await;
    let files = Files::open(&buyer, ETAG).await;
    let (file, url) = (buyer.path("film"), files.shop.url("/"));
    let file = file.to_str().unwrap();
    for wrong in [
        &["-C", "-", &url][..],
        &["-C", "400", "-o", file, &url],
        &["-c", "-o", file, "-d", "x", &url],
        &["-c", "-o", file, "-H", "range: bytes=1-", &url],
        &["-c", "-o", "/dev/null", &url],
    ] {
        assert_eq!(exit(&buyer.get(wrong).await), 2, "{wrong:?}");
    }
    assert_eq!((files.shop.requests(), buyer.payments()), (0, 0));
    assert_eq!(exit(&buyer.get(&["-o", "/dev/null", &url]).await), 0);
}

#[tokio::test]
async fn a_part_of_another_representation_is_not_gone_on_with() {
    let buyer = Buyer::new().await;
    let date = &["Sun, 06 Nov 1994 08:49:37 GMT"];
    let habits = Habits { cuts: &[20_000], versions: date, by_date: true, endless: true, ..ETAG };
    let files = Files::open(&buyer, habits).await;
    let file = buyer.path("film");
    assert_eq!(exit(&fetch(&buyer, &files, &file, &["-H", "accept: text/plain"]).await), 4);
    assert_eq!(exit(&fetch(&buyer, &files, &file, &["-c", "-H", "accept: text/csv"]).await), 0);
    assert_eq!(files.asked(), ["-", "-"]);
}

#[tokio::test]
async fn the_parts_of_two_places_that_a_server_leads_to_are_not_mixed() {
    let buyer = Buyer::new().await;
    let number = AtomicUsize::new(0);
    // Both mirrors call what they have by the same name.
    let shop = Shop::with(&buyer.world.net, move |_, asked| match &*asked.path {
        "/one" => answer(&Habits { cuts: &[20_000], ..ETAG }, 0, &asked.headers),
        "/two" => {
            let mut habits = ETAG;
            habits.careless = true;
            let mut response = answer(&habits, 0, &asked.headers);
            if response.status() == StatusCode::OK {
                *response.body_mut() = Body::from(content("two"));
            }
            response
        }
        _ if number.fetch_add(1, Ordering::SeqCst) == 0 => super::support::shop::redirect(302, "/one"),
        _ => super::support::shop::redirect(302, "/two"),
    })
    .await;
    let (file, url) = (buyer.path("film"), shop.url("/"));
    assert_eq!(exit(&buyer.get(&["-o", file.to_str().unwrap(), &url]).await), 4);
    assert_eq!(exit(&buyer.get(&["-c", "-o", file.to_str().unwrap(), &url]).await), 0);
    assert!(std::fs::read(&file).unwrap() == content("two"));
}

#[tokio::test]
async fn a_part_that_nobody_asked_for_is_not_taken_for_the_whole() {
    let buyer = Buyer::new().await;
    let shop = Shop::with(&buyer.world.net, |_, _| {
        let range = [(header::CONTENT_RANGE, "bytes 5-9/10")];
        axum::response::IntoResponse::into_response((StatusCode::PARTIAL_CONTENT, range, "56789"))
    })
    .await;
    let (file, url) = (buyer.path("film"), shop.url("/"));
    let output = buyer.get(&["-o", file.to_str().unwrap(), &url]).await;
    assert_eq!((exit(&output), file.exists()), (22, false));
    let asked = buyer.get(&["-H", "range: bytes=5-", "-o", file.to_str().unwrap(), &url]).await;
    assert_eq!((exit(&asked), std::fs::read(&file).unwrap()), (0, b"56789".to_vec()));
}

#[tokio::test]
async fn what_lies_where_notes_would_be_costs_only_the_going_on() {
    let buyer = Buyer::new().await;
    let files = Files::open(&buyer, ETAG).await;
    let file = buyer.path("film");
    std::fs::create_dir(buyer.path("film.part.json")).unwrap();
    assert_eq!(exit(&fetch(&buyer, &files, &file, &[]).await), 0);
    assert!(std::fs::read(&file).unwrap() == content("\"one\""));
    assert!(!buyer.path("film.part").exists());
}
