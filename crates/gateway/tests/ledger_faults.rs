//! A gateway at work whose disk fails for a while: what is counted is answered with 503 and a time to come again, passes and
//! sales go on, nobody is charged for more or less than was served, and it needs no restart.
//!
//! Each story is a process of its own, because what it does to itself would happen to the tests beside it too.

#![expect(clippy::unwrap_used, reason = "an error is how a test fails")]

#[path = "../../paywall/src/ledger/tests/faults/broken.rs"]
mod broken;
mod support;

use std::{
    process::Command,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    time::Duration,
};

use axum::Router;
use broken::Broken;
use futures_util::future::join_all;
use support::{
    Rig, config,
    counted::{Bought, requests},
    get, service,
    upstream::Upstream,
    within,
};

/// Tells the child what becomes of its disk.
const FAULT: &str = "FAREBOX_TEST_FAULT";

#[test]
fn a_gateway_whose_kernel_refuses_to_write_serves_passes_and_loses_no_unit() {
    // Who writes beyond the limit is killed, unless it was ignored before the program began.
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' XFSZ; exec \"$@\"", "sh"]);
    run("too large", shell);
}

#[test]
fn a_gateway_whose_books_are_held_by_another_process_serves_passes_and_loses_no_unit() {
    run("held", Command::new("env"));
}

#[test]
#[ignore = "proof: run by `cargo xtask prove disk`; mounts a small file system"]
fn a_gateway_whose_file_system_is_full_serves_passes_and_loses_no_unit() {
    let mut mounted = Command::new("unshare");
    let mount = "mount -t tmpfs -o size=3m none \"$TMPDIR\" && exec \"$@\"";
    mounted.args(["--map-root-user", "--mount", "sh", "-c", mount, "sh"]);
    run("full", mounted);
}

#[test]
#[ignore = "proof: run by `cargo xtask prove disk`; the superuser alone can make a file unchangeable"]
fn a_gateway_whose_books_can_not_be_changed_any_more_serves_passes_and_loses_no_unit() {
    run("unchangeable", Command::new("env"));
}

/// Runs the child by a program that starts what is behind its arguments.
fn run(fault: &str, mut with: Command) {
    let dir = tempfile::tempdir().unwrap();
    with.arg(std::env::current_exe().unwrap())
        .args(["--exact", "the_child", "--ignored", "--nocapture"])
        .env("TMPDIR", dir.path())
        .env(FAULT, fault);
    let done = with.output().unwrap();
    let told = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{told}{}", String::from_utf8_lossy(&done.stderr));
    println!("{}", told.lines().find(|line| line.starts_with(fault)).expect("the child has run"));
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
    let fault = std::env::var(FAULT).expect("started by its test");
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
        let broken = Broken::begin(&fault, &rig.books(), "broken::the_holder");
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
