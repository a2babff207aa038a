//! What well-behaved clients notice of an attack: the p99 of a slow open loop, alone and then under attack, at nginx and at
//! farebox in turn.
//!
//! The attackers are one thread that is held to a fifth of a core, so that what is measured is the proxy and not the fight
//! for the processor; clients come from another address than they do. The same attack hits both proxies with the same means;
//! how far it gets is for the proxies to decide.

mod addresses;
mod budget;
mod frames;
mod header_flood;
mod ping_flood;
mod rapid_reset;
mod slow_loris;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Result, anyhow};
use tokio::time::Instant;

use self::budget::Budget;
use crate::{
    Setting, descriptors,
    figures::{Figure, cold_turns, figure},
    load::{
        http1,
        open_loop::{self, Outcome, Pace},
    },
    programs::{Clients, Plan, Proxy, Running, nginx::Small},
    table::Row,
};

/// One way to be a nuisance.
struct Attack {
    name: &'static str,
    /// Attacks the address until told to stop, within the budget; how much it did, as it counts.
    run: fn(SocketAddr, &mut Budget) -> Result<u64>,
    /// What it counts.
    counts: &'static str,
    /// Whether it speaks HTTP/2.
    is_http2: bool,
    clients: Clients,
    /// How many times as long as other measurements it takes, …
    patience: u32,
    /// … again and again until it has counted so many.
    goal: u64,
}

const ATTACKS: [Attack; 5] = [
    Attack {
        name: "slow loris",
        run: slow_loris::run,
        counts: "connections",
        is_http2: false,
        clients: Clients::Any,
        patience: 2,
        goal: 0,
    },
    Attack {
        name: "header flood",
        run: header_flood::run,
        counts: "requests",
        is_http2: false,
        clients: Clients::Any,
        patience: 1,
        goal: 0,
    },
    Attack {
        name: "rapid reset",
        run: rapid_reset::run,
        counts: "streams",
        is_http2: true,
        clients: Clients::Any,
        patience: 1,
        goal: 0,
    },
    Attack {
        name: "ping flood",
        run: ping_flood::run,
        counts: "frames",
        is_http2: true,
        clients: Clients::Any,
        patience: 1,
        goal: 0,
    },
    Attack {
        name: "1M addresses",
        run: addresses::run,
        counts: "addresses",
        is_http2: false,
        clients: Clients::Limited,
        patience: 10,
        goal: addresses::ADDRESSES as u64,
    },
];

/// What the attackers may use.
const SHARE: f64 = 0.2;
const PROXIES: [Proxy; 2] = [Proxy::Nginx, Proxy::FareboxFree];
/// After so long no attack goes on, whether it has reached its goal or not.
const LIMIT: Duration = Duration::from_secs(300);
/// Where the well-behaved come from.
const WELL_BEHAVED: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 1, 1));

/// Measures both proxies under each attack, taking turns.
pub(crate) fn run(setting: &Setting) -> Result<Vec<Row>> {
    descriptors::need(6000)?;
    let upstream = Small::start()?;
    let mut all = Vec::new();
    for attack in &ATTACKS {
        let plan = Plan { clients: attack.clients, ..Plan::http1(upstream.address) };
        // A proxy that was attacked isn't attacked again: each round begins with a fresh one.
        all.extend(cold_turns(
            "attack",
            &PROXIES,
            |proxy| proxy.name(),
            |proxy| measure(&proxy.start(setting, &plan)?, attack, setting.time),
        )?);
    }
    Ok(all)
}

fn measure(running: &Running, attack: &Attack, time: Duration) -> Result<Vec<Figure>> {
    let address = running.address;
    let head = http1::head("GET", "/", &running.headers);
    let pace = Pace {
        rate: 500.0,
        connections: 16,
        threads: 16,
        time,
        from: Some(WELL_BEHAVED),
        // Some have to get in anew while the attack goes on.
        per_connection: 10,
    };
    open_loop::run(address, &head, Pace { time: Duration::from_millis(300), ..pace })?;
    let mut alone = open_loop::run(address, &head, pace)?;
    let before = running.program.resident()?;

    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let target = if attack.is_http2 { running.http2 } else { address };
    let ((done, mut attacked), peak) = running.program.peak_while(|| {
        thread::scope(|scope| {
            let attacker = scope.spawn(|| (attack.run)(target, &mut Budget::new(SHARE, &stop, &done)?));
            let attacked = bear(attack, &done, || {
                open_loop::run(address, &head, Pace { time: time * attack.patience, ..pace })
            });
            stop.store(true, Ordering::Relaxed);
            let done = attacker.join().map_err(|_| anyhow!("the attacker panicked"))?;
            Ok((done?, attacked?))
        })
    })?;
    #[expect(clippy::cast_precision_loss, reason = "a few million at most")]
    let (done, failed, growth) =
        (done as f64, attacked.failed as f64, peak.saturating_sub(before) as f64 / f64::from(1 << 20));
    let (quiet, noisy) = (alone.latencies.millis(990), attacked.latencies.millis(990));
    let what = |what: &str| format!("{}: {what}", attack.name);
    Ok(vec![
        figure(what("p99 alone"), "ms", quiet),
        figure(what("p99"), "ms", noisy),
        figure(what("p99 by alone"), "times", noisy / quiet),
        figure(what("failed"), "requests", failed),
        figure(what("done"), attack.counts, done),
        figure(what("memory"), "MiB more", growth),
    ])
}

/// Has clients come for as long as an attack goes on: once, and again until it has reached its goal.
fn bear(attack: &Attack, done: &AtomicU64, clients: impl Fn() -> Result<Outcome>) -> Result<Outcome> {
    let began = Instant::now();
    let mut all = clients()?;
    while done.load(Ordering::Relaxed) < attack.goal && began.elapsed() < LIMIT {
        eprintln!(
            "    {}: {} of {} {}",
            attack.name,
            done.load(Ordering::Relaxed),
            attack.goal,
            attack.counts
        );
        let more = clients()?;
        all.latencies.append(more.latencies);
        all.failed += more.failed;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attack_goes_on_until_it_has_reached_its_goal() {
        for attack in &ATTACKS {
            let done = AtomicU64::new(0);
            let outcome = bear(attack, &done, || {
                done.fetch_add(attack.goal.div_ceil(3), Ordering::Relaxed);
                Ok(Outcome { failed: 1, ..Outcome::default() })
            });
            let rounds = if attack.goal == 0 { 1 } else { 3 };
            assert_eq!(outcome.unwrap().failed, rounds, "{}", attack.name);
        }
    }
}
