//! Real processes, really killed: at every named edge, suspended, and several at once. At most one payment, and what was
//! paid for is delivered.
//!
//! The buyers are this very program, started again: see `support::buyer`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

mod support;

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Stdio;
use std::time::Duration;

use farebox_client::FAILPOINTS;
use farebox_lightning::outgoing;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use support::buyer::{Buyer, Proof, said};
use support::{Mood, Shop, World};

#[test]
fn the_buyer_that_other_tests_start() {
    support::buyer::buy();
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
    let first = Buyer::new(&world, &shop, mood, proof).dies_at(point).output();
    let was_killed = !first.status.success();
    let second = Buyer::new(&world, &shop, mood, proof).output();
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
        for point in [
            "client-before-reserve",
            "client-after-reserve",
            "client-before-record",
            "client-after-record",
            "outgoing-before-sent",
            "outgoing-after-sent",
            "outgoing-before-pay",
            "outgoing-after-pay",
            "outgoing-before-settle",
            "outgoing-after-settle",
            "client-before-retry",
            "client-after-retry",
            "client-before-note",
            "client-after-note",
            "client-before-release",
            "client-after-release",
        ] {
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
fn eight_processes_of_32_tasks_each_pay_once() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let world = World::new();
    let shop = runtime.block_on(Shop::open(&world.net));
    let buyers: Vec<_> =
        (0..8).map(|_| Buyer::new(&world, &shop, Mood::Prompt, Proof::None).times(32).spawn()).collect();
    for buyer in buyers {
        assert_eq!(said(&buyer.wait_with_output().unwrap()), "200 goods");
    }
    assert_eq!(world.net.payments().len(), 1);
    assert_eq!(shop.served(), 8 * 32);
}

/// Puts a buyer to sleep at `point`, lets another one take over, and wakes the first. What the second was told and then the
/// first, and how much was paid; `None` where the first never came by.
fn suspended_at(runtime: &tokio::runtime::Handle, point: &str) -> Option<(String, String, usize)> {
    let world = World::new();
    let shop = runtime.block_on(Shop::open(&world.net));
    let buyer = || Buyer::new(&world, &shop, Mood::Prompt, Proof::Unsent);
    let mut first = buyer();
    first.0.env("FAREBOX_WAIT_AT", point).stdin(Stdio::piped());
    let mut first = first.spawn();
    let mut told = BufReader::new(first.stdout.take().unwrap());
    if told.by_ref().lines().all(|line| !line.unwrap().starts_with("WAITING AT")) {
        assert!(first.wait().unwrap().success());
        return None;
    }
    let pid = Pid::from_child(&first);
    kill_process(pid, Signal::STOP).unwrap();
    assert!(waitpid(Some(pid), WaitOptions::UNTRACED).unwrap().unwrap().1.stopped());
    // The lease is good for a minute, and the one who holds it can't renew it now.
    let second = buyer().ahead(Duration::from_secs(120)).output();
    kill_process(pid, Signal::CONT).unwrap();
    drop(first.stdin.take());
    let mut output = first.wait_with_output().unwrap();
    told.read_to_end(&mut output.stdout).unwrap();
    Some((said(&second), said(&output), world.net.payments().len()))
}

#[test]
fn a_buyer_suspended_anywhere_and_woken_again_leaves_one_payment() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let points: Vec<_> = all_points().collect();
    let (passed, undecided) =
        (parking_lot::Mutex::new(BTreeSet::new()), parking_lot::Mutex::new(BTreeSet::new()));
    std::thread::scope(|scope| {
        for lane in points.chunks(points.len().div_ceil(4)) {
            let (passed, undecided, runtime) = (&passed, &undecided, runtime.handle());
            scope.spawn(move || {
                for point in lane {
                    let Some((second, first, payments)) = suspended_at(runtime, point) else { continue };
                    assert_eq!(payments, 1, "{point}");
                    // Before it was about to pay, it has lost the right to; it says so, and that nothing was spent.
                    assert!(["200 goods", "lease_lost none"].contains(&first.as_str()), "{point}: {first}");
                    if second != "200 goods" {
                        assert_eq!(second, "payment_unknown unknown", "{point}");
                        undecided.lock().insert(*point);
                    }
                    passed.lock().insert(*point);
                }
            });
        }
    });
    // Whoever sleeps there may pay as soon as it wakes: nobody else may, and nobody can say how it ends.
    assert_eq!(undecided.into_inner(), ["outgoing-after-sent", "outgoing-before-pay"].into());
    let passed = passed.into_inner();
    for point in ["client-after-reserve", "client-after-record", "outgoing-before-sent", "outgoing-after-pay"]
    {
        assert!(passed.contains(point), "no buyer passed by `{point}`: {passed:?}");
    }
}

/// A shop where each path costs 1,000 sat.
async fn department_store(world: &World) -> Shop {
    Shop::with(&world.net, |till, asked| {
        let service = asked.path.trim_start_matches('/').to_owned();
        match till.paid(&asked.headers) {
            Some(_) if till.is_for(&asked.headers, &service) => till.serve("goods"),
            _ => till.challenge(&service, 1_000),
        }
    })
    .await
}

#[test]
fn of_five_processes_as_many_pay_as_the_budget_holds_and_a_later_one_is_told_so() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for (hour, room_for) in [(1_010, 1), (1_009, 0)] {
        let policy = format!(
            "{{ otherwise: allow, limits: {{ payment: unlimited, day: unlimited, hour: {hour}sat }} }}"
        );
        let world = World::new();
        let shop = runtime.block_on(department_store(&world));
        let buyer = |path: usize| {
            let buyer = Buyer::new(&world, &shop, Mood::Prompt, Proof::None);
            buyer.of(&shop.url(&format!("/{path}"))).under(&policy)
        };
        let buyers: Vec<_> = (0..5).map(|path| buyer(path).spawn()).collect();
        let told = buyers.into_iter().map(|buyer| said(&buyer.wait_with_output().unwrap()));
        let (paid, refused): (Vec<_>, Vec<_>) = told.partition(|said| said == "200 goods");
        assert_eq!((paid.len(), refused.len()), (room_for, 5 - room_for), "{hour}");
        assert!(refused.iter().all(|said| said == "over_budget none"), "{refused:?}");
        assert_eq!(said(&buyer(5).output()), "over_budget none");
        assert_eq!(world.net.payments().len(), room_for);
    }
}
