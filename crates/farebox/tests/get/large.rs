//! A download of a gibibyte takes no more memory than one of a mebibyte. `cargo xtask prove download` runs it.

use std::process::Stdio;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::Response;
use futures_util::stream::{self, StreamExt as _};
use http::{HeaderValue, header};

use super::{Buyer, Shop};

const MIB: u64 = 1 << 20;

/// The most memory that `farebox get` had while it wrote a file of so many bytes, in KiB.
#[cfg(target_os = "linux")]
async fn peak(bytes: u64) -> u64 {
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
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_farebox"))
        .args(["get", "-o", file.to_str().unwrap(), &shop.url("/film")])
        .env_clear()
        .env("HOME", buyer.world.directory.path())
        .env("FAREBOX_WALLET_URL", &buyer.wallet_url)
        .env("FAREBOX_WALLET_PASSWORD", "password")
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
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
    assert!(ended.success(), "{ended}");
    assert_eq!((std::fs::metadata(&file).unwrap().len(), buyer.payments()), (bytes, 1));
    peak
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "prove: writes a gibibyte; `cargo xtask prove download`"]
async fn a_gibibyte_takes_no_more_memory_than_a_mebibyte() {
    let (small, large) = (peak(MIB).await, peak(1024 * MIB).await);
    println!("the most memory, of 1 MiB: {small} KiB; of 1 GiB: {large} KiB");
    assert!(small > 0 && large < small + 16 * 1024, "of 1 MiB: {small} KiB, of 1 GiB: {large} KiB");
}
