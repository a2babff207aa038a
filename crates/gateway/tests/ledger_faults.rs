//! A gateway at work whose disk fails for a while: what is counted is answered with 503 and a time to come again, passes and
//! sales go on, nobody is charged for more or less than was served, and it needs no restart.
//!
//! Each story is a process of its own.

#![expect(clippy::unwrap_used, reason = "an error is how a test fails")]

#[path = "../../paywall/src/ledger/tests/faults/broken.rs"]
mod broken;
mod support;

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    time::Duration,
};

use axum::Router;
use broken::{Broken, run};
use futures_util::future::join_all;
use support::{
    Rig, config,
    counted::{Bought, requests},
    get, service,
    upstream::Upstream,
    within,
};

#[test]
fn a_gateway_whose_kernel_refuses_to_write_serves_passes_and_loses_no_unit() {
    run("too large");
}

#[test]
fn a_gateway_whose_books_are_held_by_another_process_serves_passes_and_loses_no_unit() {
    run("held");
}

#[test]
#[ignore = "proof: run by `cargo xtask prove disk`; mounts a small file system"]
fn a_gateway_whose_file_system_is_full_serves_passes_and_loses_no_unit() {
    run("full");
}

#[test]
#[ignore = "proof: run by `cargo xtask prove disk`; the superuser alone can make a file unchangeable"]
fn a_gateway_whose_books_can_not_be_changed_any_more_serves_passes_and_loses_no_unit() {
    run("unchangeable");
}

/// What buyers have had.
#[derive(Default)]
struct Served {
    counted: AtomicU64,
    refused: AtomicU64,
    passes: AtomicU64,
    over: AtomicBool,
}

impl Served {
    async fn use_up(&self, rig: &Rig, bought: &Bought) {
        while !self.over.load(SeqCst) {
            let answer = get(rig.addr, "/", &[bought.header()]).await;
            match answer.status().as_u16() {
                200 => self.counted.fetch_add(1, SeqCst),
                503 => {
                    assert!(answer.headers().contains_key("retry-after"), "{answer:?}");
                    assert_eq!(answer.headers()["farebox-code"], "ledger_unavailable");
                    self.refused.fetch_add(1, SeqCst)
                }
                _ => panic!("{answer:?}"),
            };
        }
    }

    async fn pass(&self, rig: &Rig, pass: &Bought) {
        while !self.over.load(SeqCst) {
            assert_eq!(get(rig.addr, "/pass", &[pass.header()]).await.status(), 200);
            self.passes.fetch_add(1, SeqCst);
        }
    }
}

#[tokio::test]
#[ignore = "the process whose disk fails, started by the tests above"]
async fn the_child() {
    let (fault, _) = broken::told();
    let upstream = Upstream::serve(Router::new().fallback(async || "well")).await;
    let mut passes = service("passes", &upstream.url());
    passes.matcher.path_prefixes.push("/pass".parse().unwrap());
    let services = || config(vec![passes.clone(), requests(&upstream.url(), 1 << 40)]);
    let rig = Rig::counting(services()).await;
    let (pass, bought, later) =
        (rig.purchase("/pass").await, rig.purchase("/").await, rig.purchase("/").await);
    let served = Served::default();
    let unwritten = || rig.paywall.ledger().health();
    let story = async {
        until(|| served.counted.load(SeqCst) >= 100 && served.passes.load(SeqCst) >= 20).await;
        let broken = Broken::begin(&fault, &rig.books());
        until(|| unwritten().writing.is_some() && served.refused.load(SeqCst) >= 20).await;
        let (counted, passes) = (served.counted.load(SeqCst), served.passes.load(SeqCst));
        until(|| served.refused.load(SeqCst) >= 60 && served.passes.load(SeqCst) >= passes + 20).await;
        assert_eq!(served.counted.load(SeqCst), counted, "what could not be charged");
        // Sales need no books, but who has bought counted requests waits for them.
        assert_eq!(get(rig.addr, "/", &[]).await.status(), 402);
        assert_eq!(get(rig.addr, "/", &[later.header()]).await.status(), 503);
        let (trouble, waiting) = (unwritten().writing.unwrap(), unwritten().unwritten);
        let mended = tokio::time::Instant::now();
        drop(broken);
        until(|| served.counted.load(SeqCst) >= counted + 50).await;
        assert_eq!(get(rig.addr, "/", &[later.header()]).await.status(), 200);
        println!("\n{fault}: {trouble}; {waiting} waited, served again after {:?}", mended.elapsed());
        served.over.store(true, SeqCst);
    };
    let buyers = join_all((0..4).map(|_| served.use_up(&rig, &bought)));
    tokio::join!(story, buyers, served.pass(&rig, &pass));

    let rig = rig.again(services()).await;
    let store = rig.paywall.store();
    let spent = async |bought: &Bought| store.account(bought.hash).await.unwrap().unwrap().balance.spent();
    assert_eq!(spent(&bought).await, served.counted.load(SeqCst));
    assert_eq!(spent(&later).await, 1);
    assert_eq!(store.audit().await.unwrap().breaches, [""; 0]);
    rig.stop().await.unwrap();
}

async fn until(so: impl Fn() -> bool) {
    within(async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
