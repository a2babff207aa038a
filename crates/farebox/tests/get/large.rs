//! A gibibyte, down or up, takes no more memory than a mebibyte. `cargo xtask prove download` runs what takes long.

#![cfg(target_os = "linux")]

use std::process::Stdio;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::Response;
use futures_util::stream::{self, StreamExt as _};
use http::{HeaderValue, header};
use tokio::io::AsyncWriteExt as _;

use super::{Buyer, Shop};

const MIB: u64 = 1 << 20;

/// The most memory that `farebox get` had with these arguments, in KiB. It pays once.
async fn peak(buyer: &Buyer, arguments: &[&str]) -> u64 {
    peak_of(buyer, arguments, 0).await
}

/// The same with so many bytes on its standard input.
async fn peak_of(buyer: &Buyer, arguments: &[&str], mut input: u64) -> u64 {
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_farebox"))
        .arg("get")
        .args(arguments)
        .env_clear()
        .env("HOME", buyer.world.directory.path())
        .env("FAREBOX_WALLET_URL", &buyer.wallet_url)
        .env("FAREBOX_WALLET_PASSWORD", "password")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut feeding = tokio::task::JoinSet::new();
    feeding.spawn(async move {
        let piece = [7; 64 * 1024];
        while input > 0 {
            let next = usize::try_from(input).unwrap_or(usize::MAX).min(piece.len());
            stdin.write_all(&piece[..next]).await.unwrap();
            input -= next as u64;
        }
    });
    let status = format!("/proc/{}/status", child.id().unwrap());
    let mut peak = 0;
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    let ended = loop {
        tokio::select! {
            ended = child.wait() => break ended.unwrap(),
            _ = ticks.tick() => {
                let text = std::fs::read_to_string(&status).unwrap_or_default();
                let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
                let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
                peak = peak.max(kib.unwrap_or(0));
            }
        }
    };
    feeding.join_all().await;
    assert!(ended.success(), "{ended}");
    assert_eq!(buyer.payments(), 1);
    peak
}

/// The most memory while it wrote a file of so many bytes.
async fn down(bytes: u64) -> u64 {
    let buyer = Buyer::new().await;
    let shop = Shop::with(&buyer.world.net, move |till, asked| {
        if till.paid(&asked.headers).is_none() {
            return till.challenge("svc", 100);
        }
        let piece = Bytes::from_static(&[7; 64 * 1024]);
        let pieces = usize::try_from(bytes).unwrap() / piece.len();
        let body = stream::repeat(piece).take(pieces).map(Ok::<_, std::io::Error>);
        let mut response = Response::new(Body::from_stream(body));
        response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(bytes));
        response.headers_mut().insert(header::ETAG, HeaderValue::from_static("\"one\""));
        response
    })
    .await;
    let file = buyer.path("film");
    let peak = peak(&buyer, &["-o", file.to_str().unwrap(), &shop.url("/film")]).await;
    assert_eq!(std::fs::metadata(&file).unwrap().len(), bytes);
    peak
}

/// The most memory while it sent a file of so many bytes, for the price and once more.
async fn up(bytes: u64) -> u64 {
    let buyer = Buyer::new().await;
    let shop = Shop::with(&buyer.world.net, move |till, asked| {
        assert_eq!(asked.bytes, bytes);
        match till.paid(&asked.headers) {
            Some(_) => till.serve("taken"),
            None => till.challenge("svc", 100),
        }
    })
    .await;
    let file = buyer.path("film");
    // All of it is a hole, which takes no room.
    std::fs::File::create(&file).unwrap().set_len(bytes).unwrap();
    let peak = peak(&buyer, &["-T", file.to_str().unwrap(), &shop.url("/film")]).await;
    assert_eq!(shop.requests(), 2);
    peak
}

/// The most memory while it sent so many bytes from standard input, for the price and once more.
async fn piped(bytes: u64) -> u64 {
    let buyer = Buyer::new().await;
    let shop = Shop::with(&buyer.world.net, move |till, asked| {
        assert_eq!(asked.bytes, bytes);
        match till.paid(&asked.headers) {
            Some(_) => till.serve("taken"),
            None => till.challenge("svc", 100),
        }
    })
    .await;
    peak_of(&buyer, &["-T", "-", &shop.url("/film")], bytes).await
}

#[track_caller]
fn check(small: u64, large: u64) {
    println!("the most memory, of 1 MiB: {small} KiB; of the large one: {large} KiB");
    assert!(small > 0 && large < small + 16 * 1024, "of 1 MiB: {small} KiB, of the large one: {large} KiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prove: writes a gibibyte; `cargo xtask prove download`"]
async fn a_gibibyte_takes_no_more_memory_than_a_mebibyte() {
    check(down(MIB).await, down(1024 * MIB).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_of_64_mebibytes_takes_no_more_memory_than_one_of_a_mebibyte() {
    check(up(MIB).await, up(64 * MIB).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_by_standard_input_is_in_memory_once() {
    let (small, large) = (piped(MIB).await, piped(64 * MIB).await);
    println!("the most memory, of 1 MiB: {small} KiB; of 64 MiB: {large} KiB");
    assert!(small > 0 && large < small + 80 * 1024, "of 1 MiB: {small} KiB, of 64 MiB: {large} KiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prove: sends a gibibyte; `cargo xtask prove download`"]
async fn a_gibibyte_that_is_sent_takes_no_more_memory_than_a_mebibyte() {
    check(up(MIB).await, up(1024 * MIB).await);
}
