//! Unpaid challenges leave nothing behind: no row, no file, no memory. Against the program, with a node of its own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

use std::{collections::BTreeMap, fs, path::PathBuf};

use farebox_tests::{Seller, until_selling};
use reqwest::StatusCode;
use rusqlite::{Connection, OpenFlags};

const FAREBOX: &str = env!("CARGO_BIN_EXE_farebox");

/// Who asks at once.
const BUYERS: u64 = 16;

/// Asks `count` times for an invoice and throws each away.
async fn flood(url: &str, count: u64) {
    let mut buyers = tokio::task::JoinSet::new();
    for _ in 0..BUYERS {
        let (client, url) = (reqwest::Client::new(), url.to_owned());
        buyers.spawn(async move {
            for _ in 0..count / BUYERS {
                let response = client.get(&url).send().await.unwrap();
                assert_eq!(response.status(), StatusCode::PAYMENT_REQUIRED);
                response.bytes().await.unwrap();
            }
        });
    }
    while let Some(ended) = buyers.join_next().await {
        ended.unwrap();
    }
}

/// Every file below `dirs`.
fn files(dirs: &[PathBuf]) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = dirs.to_vec();
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { open.push(path) } else { found.push(path.display().to_string()) }
        }
    }
    found.sort();
    found
}

/// How many rows each table of each database has.
fn rows(files: &[String]) -> BTreeMap<String, i64> {
    let mut counts = BTreeMap::new();
    for file in files.iter().filter(|file| file.ends_with(".sqlite") || file.ends_with(".db")) {
        let database = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        let mut tables = database.prepare("SELECT name FROM sqlite_schema WHERE type = 'table'").unwrap();
        let tables: Vec<String> =
            tables.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
        for table in tables {
            let count = database
                .query_row(&format!("SELECT count(*) FROM \"{table}\""), [], |row| row.get(0))
                .unwrap();
            counts.insert(format!("{file} {table}"), count);
        }
    }
    counts
}

/// Resident memory of a process, in KiB.
fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Rows and files before and after, and the growth of memory in percent.
async fn check(warm_up: u64, count: u64) -> i64 {
    let (seller, net) =
        Seller::with_own_node(FAREBOX, "minting: { per-client: 1000000/s, total: 1000000/s }\n").await;
    let (gateway, url) = seller.serve();
    until_selling(&net, &url).await;
    let kept = [seller.dir.path().to_owned(), seller.node_dir().unwrap()];
    flood(&url, warm_up).await;
    let before = files(&kept);
    let (rows_before, memory_before) = (rows(&before), resident(gateway.pid()));
    assert!(!rows_before.is_empty(), "no databases among {before:?}");

    flood(&url, count).await;
    let after = files(&kept);
    assert_eq!(before, after);
    assert_eq!(rows_before, rows(&after));
    let memory = resident(gateway.pid());
    net.buyer.stop().await;
    println!("{count} unpaid challenges: {memory_before} KiB before, {memory} KiB after");
    (i64::try_from(memory).unwrap() - i64::try_from(memory_before).unwrap()) * 100
        / i64::try_from(memory_before).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn unpaid_challenges_leave_no_row_and_no_file() {
    check(320, 3_200).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "prove: takes minutes; `cargo xtask prove flood`"]
async fn a_million_unpaid_challenges_leave_no_memory_either() {
    let growth = check(50_000, 1_000_000).await;
    assert!(growth <= 5, "resident memory grew by {growth} %");
}
