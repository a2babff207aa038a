//! Real processes, really killed: at every named edge, suspended, and several at once. At most one payment, and what was
//! paid for is delivered.
//!
//! The buyers are this very program, started again with a variable that makes [`the_buyer_that_other_tests_start`] buy.
//! They share a wallet double whose books are files (see `support::wallet`): no money moves, but each move is counted.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

mod support;

use std::collections::BTreeSet;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use farebox_client::{Engine, EngineConfig, FAILPOINTS};
use farebox_lightning::outgoing;
use support::{Mood, Net, Shop, WalletDouble, World, config, get, told};

const URL: &str = "FAREBOX_TEST_URL";
const JOURNAL: &str = "FAREBOX_TEST_JOURNAL";
const NET: &str = "FAREBOX_TEST_NET";
const MOOD: &str = "FAREBOX_TEST_MOOD";
const PROOF: &str = "FAREBOX_TEST_PROOF";

/// What the wallet can tell of a payment that it doesn't find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proof {
    /// That it was never sent.
    Unsent,
    /// Nothing, but it refuses to pay a hash twice.
    RefusesTwice,
    /// Nothing at all.
    None,
}

/// One buyer, in a process of its own.
fn buyer(world: &World, shop: &Shop, mood: Mood, proof: Proof) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "the_buyer_that_other_tests_start", "--nocapture", "--test-threads=1"])
        .env(URL, shop.url("/goods"))
        .env(JOURNAL, world.journal())
        .env(NET, world.net.path())
        .env(MOOD, format!("{mood:?}"))
        .env(PROOF, format!("{proof:?}"))
        .env_remove("FAREBOX_FAILPOINT")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// What a buyer said: the line that it marked.
fn said(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.split_once("BUYER: "));
    line.map_or_else(|| format!("nothing, {}", output.status), |(_, said)| said.to_owned())
}

#[test]
fn the_buyer_that_other_tests_start() {
    let Ok(url) = std::env::var(URL) else { return };
    let var = |name| std::env::var(name).unwrap();
    let mood = [Mood::Prompt, Mood::Slow, Mood::Mute, Mood::Stranded, Mood::Lost]
        .into_iter()
        .find(|mood| format!("{mood:?}") == var(MOOD))
        .unwrap();
    let mut wallet = WalletDouble::new(Net::at(var(NET))).in_mood(mood);
    (wallet.facts.proves_unsent, wallet.facts.refuses_paid_hash) = match var(PROOF).as_str() {
        "Unsent" => (true, false),
        "RefusesTwice" => (false, true),
        _ => (false, false),
    };
    let config = EngineConfig { wallet: Some(Arc::new(wallet)), ..config(var(JOURNAL).as_ref()) };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let answer = runtime.block_on(async {
        let engine = Engine::open(config).unwrap();
        let answer = told(engine.fetch(get(&url)).await).await;
        engine.close(std::time::Duration::from_secs(5)).await;
        answer
    });
    println!("BUYER: {answer}");
}

/// Kills a buyer at `point`, lets another one go on, and tells what that one was told and how much was paid.
fn killed_at(
    runtime: &tokio::runtime::Handle,
    point: &str,
    mood: Mood,
    proof: Proof,
) -> (bool, String, usize) {
    let world = World::new();
    let shop = runtime.block_on(Shop::open(&world.net));
    let first = buyer(&world, &shop, mood, proof).env("FAREBOX_FAILPOINT", point).output().unwrap();
    let was_killed = !first.status.success();
    let second = buyer(&world, &shop, mood, proof).output().unwrap();
    (was_killed, said(&second), world.net.payments().len())
}

fn all_points() -> impl Iterator<Item = &'static str> {
    FAILPOINTS.iter().chain(outgoing::FAILPOINTS).copied()
}

/// Kills a buyer at every point there is, and tells at which it passed by.
fn kill_everywhere(
    mood: Mood,
    proof: Proof,
    check: impl Fn(&str, &str, usize) + Sync,
) -> BTreeSet<&'static str> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let points: Vec<_> = all_points().collect();
    let killed = parking_lot::Mutex::new(BTreeSet::new());
    std::thread::scope(|scope| {
        for lane in points.chunks(points.len().div_ceil(4)) {
            let (killed, runtime, check) = (&killed, runtime.handle(), &check);
            scope.spawn(move || {
                for point in lane {
                    let (was_killed, answer, payments) = killed_at(runtime, point, mood, proof);
                    check(point, &answer, payments);
                    if was_killed {
                        killed.lock().insert(*point);
                    }
                }
            });
        }
    });
    killed.into_inner()
}

#[test]
fn a_buyer_killed_anywhere_pays_once_and_gets_its_goods() {
    for proof in [Proof::Unsent, Proof::RefusesTwice] {
        let killed = kill_everywhere(Mood::Prompt, proof, |point, answer, payments| {
            assert_eq!((answer, payments), ("200 goods", 1), "{point}, {proof:?}");
        });
        for point in
            FAILPOINTS.iter().chain(&["outgoing-after-sent", "outgoing-after-pay", "outgoing-after-settle"])
        {
            assert!(killed.contains(point), "no buyer passed by `{point}`");
        }
    }
}

#[test]
fn a_buyer_with_a_slow_wallet_killed_anywhere_pays_once_and_gets_its_goods() {
    let killed = kill_everywhere(Mood::Slow, Proof::RefusesTwice, |point, answer, payments| {
        assert_eq!((answer, payments), ("200 goods", 1), "{point}");
    });
    for point in ["outgoing-after-lookup", "outgoing-after-unknown"] {
        assert!(killed.contains(point), "no buyer passed by `{point}`");
    }
}

#[test]
fn a_buyer_whose_wallet_proves_nothing_never_pays_twice() {
    let undecided: parking_lot::Mutex<BTreeSet<String>> = parking_lot::Mutex::default();
    kill_everywhere(Mood::Prompt, Proof::None, |point, answer, payments| match answer {
        "200 goods" => assert_eq!(payments, 1, "{point}"),
        // The one stretch where nobody can know: the journal says `sent`, the wallet has never heard of it.
        "payment_unknown unknown" => {
            assert_eq!(payments, 0, "{point}");
            undecided.lock().insert(point.to_owned());
        }
        other => panic!("{other} after {point}"),
    });
    let between: BTreeSet<_> = ["outgoing-after-sent", "outgoing-before-pay"].map(str::to_owned).into();
    assert_eq!(undecided.into_inner(), between);
}

#[test]
fn a_buyer_whose_wallet_fails_spends_nothing_wherever_it_is_killed() {
    let killed = kill_everywhere(Mood::Stranded, Proof::Unsent, |point, answer, payments| {
        assert_eq!((answer, payments), ("payment_failed none", 0), "{point}");
    });
    for point in ["outgoing-before-fail", "outgoing-after-fail"] {
        assert!(killed.contains(point), "no buyer passed by `{point}`");
    }
}

#[test]
fn of_many_processes_at_once_one_pays() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let world = World::new();
    let shop = runtime.block_on(Shop::open(&world.net));
    let buyers: Vec<_> =
        (0..6).map(|_| buyer(&world, &shop, Mood::Prompt, Proof::None).spawn().unwrap()).collect();
    for buyer in buyers {
        assert_eq!(said(&buyer.wait_with_output().unwrap()), "200 goods");
    }
    assert_eq!(world.net.payments().len(), 1);
}
