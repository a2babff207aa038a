//! Buyers on a disk that has no room left, or with a journal that another process holds: nothing is paid unless it is written
//! down first, and what was paid for is delivered, now or next time.
//!
//! The kernel refuses the writes: a limit on the size of files stands for a full disk, at every write there is.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

mod support;

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};

use regex::Regex;
use rusqlite::Connection;
use support::buyer::{Buyer, Proof, said};
use support::{Mood, Shop, World};

#[test]
fn the_buyer_that_other_tests_start() {
    support::buyer::buy();
}

/// A buyer whose files can't grow beyond so many KiB, and then one with all the room there is.
fn with_room_for(runtime: &tokio::runtime::Handle, kib: usize) -> (String, usize, String, usize) {
    let world = World::new();
    let shop = runtime.block_on(Shop::open(&world.net));
    let buyer = || Buyer::new(&world, &shop, Mood::Prompt, Proof::RefusesTwice);
    let first = buyer().0;
    // The shell counts in 512 bytes. Whoever writes too much gets an error, as on a full disk, and no signal.
    let mut cramped = Command::new("sh");
    cramped
        .args(["-c", &format!("trap '' XFSZ; ulimit -f {}; exec \"$@\"", kib * 2), "sh"])
        .arg(first.get_program())
        .args(first.get_args())
        .envs(first.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .stdin(Stdio::null());
    let first = said(&cramped.output().unwrap());
    let paid = world.net.payments().len();
    let second = said(&buyer().output());
    (first, paid, second, world.net.payments().len())
}

#[test]
fn wherever_the_disk_is_full_nothing_is_lost_and_nothing_paid_twice() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    // Around what one purchase adds to a new journal, page by page.
    let world = World::new();
    let new = {
        let _engine = world.engine();
        usize::try_from(std::fs::metadata(world.journal().with_extension("db-wal")).unwrap().len()).unwrap()
            / 1_024
    };
    let sizes: Vec<usize> = (new - 8..new + 100).step_by(4).collect();
    let outcomes = parking_lot::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for lane in 0..4 {
            let (sizes, runtime, outcomes) = (&sizes, runtime.handle(), &outcomes);
            scope.spawn(move || {
                for &kib in sizes.iter().skip(lane).step_by(4) {
                    let (first, paid, second, in_all) = with_room_for(runtime, kib);
                    match first.as_str() {
                        "200 goods" => assert_eq!(paid, 1, "{kib} KiB"),
                        refused => {
                            assert!(refused.ends_with(" none"), "{kib} KiB: {refused}");
                            assert_eq!(paid, 0, "{kib} KiB: {refused}");
                        }
                    }
                    assert_eq!((second.as_str(), in_all), ("200 goods", 1), "{kib} KiB, after `{first}`");
                    outcomes.lock().push((kib, first));
                }
            });
        }
    });
    let mut outcomes = outcomes.into_inner();
    outcomes.sort();
    let served = |(_, first): &&(usize, String)| first == "200 goods";
    assert!(outcomes.first().is_some_and(|first| !served(&first)), "there was always room: {outcomes:?}");
    assert!(outcomes.last().is_some_and(|last| served(&last)), "there was never room: {outcomes:?}");
}

/// Somebody else's grip on the journal.
fn hold(world: &World) -> Connection {
    let held = Connection::open(world.journal()).unwrap();
    held.execute_batch("BEGIN IMMEDIATE").unwrap();
    held
}

#[test]
fn who_buys_nothing_writes_nothing() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let world = World::new();
    let shop = runtime.block_on(Shop::with(&world.net, |till, _| till.serve("for nothing")));
    let first = world.engine();
    let log = world.journal().with_extension("db-wal");
    let written = || std::fs::metadata(&log).unwrap().len();
    let before = written();
    assert!(before > 0, "nothing has been written to the log yet");
    // Another process, which opens the journal anew. Nobody need wait for somebody who buys, either.
    let held = hold(&world);
    let free = Buyer::new(&world, &shop, Mood::Prompt, Proof::None).output();
    assert_eq!(said(&free), "200 for nothing");
    assert_eq!(written(), before);
    drop((held, first));
}

#[test]
fn while_another_process_holds_the_journal_nothing_is_paid() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let world = World::new();
    let shop = runtime.block_on(Shop::open(&world.net));
    let buyer = || Buyer::new(&world, &shop, Mood::Prompt, Proof::None);
    let lost = buyer().dies_at("client-before-reserve").output();
    assert!(!lost.status.success());

    let held = hold(&world);
    let told = said(&buyer().in_a_hurry().output());
    assert!(told.ends_with(" none"), "{told}");
    assert!(world.net.payments().is_empty());
    drop(held);
    assert_eq!(said(&buyer().output()), "200 goods");
    assert_eq!(world.net.payments().len(), 1);
}

#[test]
fn what_was_paid_for_while_another_process_holds_the_journal_is_delivered() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let world = World::new();
    let shop = runtime.block_on(Shop::open(&world.net));
    let buyer = || Buyer::new(&world, &shop, Mood::Prompt, Proof::None);
    let mut first = buyer().in_a_hurry();
    first.0.env("FAREBOX_WAIT_AT", "outgoing-after-pay").stdin(Stdio::piped());
    let mut first = first.spawn();
    let mut told = BufReader::new(first.stdout.take().unwrap());
    assert!(told.by_ref().lines().any(|line| line.unwrap().starts_with("WAITING AT")));

    let held = hold(&world);
    drop(first.stdin.take());
    let mut output = first.wait_with_output().unwrap();
    told.read_to_end(&mut output.stdout).unwrap();
    assert_eq!(said(&output), "200 goods");
    drop(held);
    assert_eq!(said(&buyer().output()), "200 goods");
    assert_eq!(world.net.payments().len(), 1);
}

#[test]
#[ignore = "live: needs strace"]
fn the_disk_has_the_intent_before_the_wallet_is_asked() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let world = World::new();
    let shop = runtime.block_on(Shop::open(&world.net));
    let buyer = Buyer::new(&world, &shop, Mood::Prompt, Proof::None).0;
    let log = world.directory.path().join("calls");
    let traced = Command::new("strace")
        .args(["-f", "-y", "-qq", "-e", "trace=pwrite64,fsync,fdatasync,openat", "-o"])
        .arg(&log)
        .arg(buyer.get_program())
        .args(buyer.get_args())
        .envs(buyer.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(said(&traced), "200 goods");

    let calls = std::fs::read_to_string(&log).unwrap();
    // The double of a wallet pays by making a file.
    let (before, _) = calls.split_once("net/paid/").expect("the wallet was asked");
    let written = Regex::new(r"pwrite64\(\d+<[^>]*journal\.db-wal>").unwrap();
    let synced = Regex::new(r"f(?:data)?sync\(\d+<[^>]*journal\.db-wal>\) += 0").unwrap();
    let last = |what: &Regex| what.find_iter(before).last().map(|found| found.start());
    assert!(last(&written).is_some(), "nothing was written before the wallet was asked:\n{before}");
    assert!(last(&synced) > last(&written), "what was written last was not on the disk:\n{before}");
}
