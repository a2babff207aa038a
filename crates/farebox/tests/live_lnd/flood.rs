//! Asking without paying: what it costs the gateway (nothing on disk), and what it costs lnd (little, and not for long).

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use farebox_tests::{Lnd, Program, Seller, regtest};
use reqwest::StatusCode;
use tokio::time::timeout;

use crate::{FAREBOX, sale::open};

/// Who asks at once.
const BUYERS: usize = 16;
/// How long lnd may have what nobody has paid.
const CLEARING_MAX: Duration = Duration::from_secs(600);

/// Asks until there are `count` answers, and throws them away: how often each status came. That lnd did not make an invoice in
/// time is none: on a busy machine that happens.
async fn ask(url: &str, count: usize) -> BTreeMap<StatusCode, usize> {
    let mut buyers = tokio::task::JoinSet::new();
    for buyer in 0..BUYERS {
        let (client, url) = (reqwest::Client::new(), url.to_owned());
        let share = count / BUYERS + usize::from(buyer < count % BUYERS);
        buyers.spawn(async move {
            let mut seen = Vec::with_capacity(share);
            while seen.len() < share {
                let response = client.get(&url).send().await.unwrap();
                if response.status() != StatusCode::SERVICE_UNAVAILABLE {
                    seen.push(response.status());
                }
                response.bytes().await.unwrap();
            }
            seen
        });
    }
    let mut counts = BTreeMap::new();
    while let Some(seen) = buyers.join_next().await {
        for status in seen.unwrap() {
            *counts.entry(status).or_default() += 1;
        }
    }
    counts
}

/// How many bytes a process has caused to be written to a disk.
fn written(program: &Program) -> u64 {
    let io = fs::read_to_string(format!("/proc/{}/io", program.pid())).unwrap();
    let line = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).unwrap();
    line.parse().unwrap()
}

/// Every file below `dir`, with its size.
fn files(dir: &Path) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.display().to_string(), fs::metadata(&path).unwrap().len());
        }
    }
    found
}

/// Waits until lnd has as many invoices as it had.
async fn until_cleared(lnd: &Lnd, before: usize) {
    let mut left = 0;
    let cleared = timeout(CLEARING_MAX, async {
        loop {
            left = lnd.invoices().await;
            if left == before {
                return;
            }
        }
    });
    let cleared = cleared.await;
    assert!(cleared.is_ok(), "lnd still has {left} invoices, not {before}");
}

/// Asks so often without paying, and waits until nothing of it is left.
pub(crate) async fn check(name: &str, count: usize, expiry_secs: u64) {
    let regtest = regtest().await;
    let lnd = regtest.another(name, &[]).await;
    let minting =
        format!("minting: {{ per-client: 1000000/s, total: 1000000/s, invoice-expiry: {expiry_secs}s }}\n");
    let seller = Seller::with_lnd(FAREBOX, &lnd, &lnd.macaroon("invoice"), &minting);
    let (gateway, url) = open(&seller).await;
    // The one by which farebox knows the node.
    let at_first = lnd.invoices().await;
    assert!(at_first <= 1, "{at_first}");
    let before = (written(&gateway), files(&seller.dir.path().join("state")));

    let begun = tokio::time::Instant::now();
    let answers = ask(&url, count).await;
    let took = begun.elapsed();
    assert_eq!(answers, BTreeMap::from([(StatusCode::PAYMENT_REQUIRED, count)]));
    let kept = lnd.invoices().await;
    assert!(kept > at_first);
    let after = (written(&gateway), files(&seller.dir.path().join("state")));
    assert_eq!(before, after, "an unpaid challenge writes nothing");
    until_cleared(&lnd, at_first).await;
    println!(
        "{count} unpaid challenges in {:.1} s: {kept} invoices in lnd, {at_first} as before {:.1} s later",
        took.as_secs_f32(),
        (begun.elapsed() - took).as_secs_f32()
    );
    assert_eq!(before.0, written(&gateway), "clearing up writes nothing either");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: needs Go"]
async fn unpaid_challenges_write_nothing_and_leave_nothing_in_lnd() {
    check("flooded", 1_000, 15).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: needs Go"]
async fn a_client_costs_lnd_no_more_than_its_budget() {
    const BUDGET: usize = 40;
    let regtest = regtest().await;
    let lnd = regtest.another("pestered", &[]).await;
    let minting = format!("minting: {{ per-client: {BUDGET}/h, total: 1000000/s }}\n");
    let seller = Seller::with_lnd(FAREBOX, &lnd, &lnd.macaroon("invoice"), &minting);
    let (_gateway, url) = open(&seller).await;
    let at_first = lnd.invoices().await;
    let answers = ask(&url, 1_000).await;
    let refused = answers.get(&StatusCode::TOO_MANY_REQUESTS).copied().unwrap_or_default();
    assert!(refused >= 1_000 - BUDGET, "{answers:?}");
    assert_eq!(refused + answers.get(&StatusCode::PAYMENT_REQUIRED).copied().unwrap_or_default(), 1_000);
    let cost = lnd.invoices().await - at_first;
    assert!(cost <= BUDGET, "1,000 asks cost lnd {cost} invoices, the budget is {BUDGET}");
}
