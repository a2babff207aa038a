//! Idle connections: how much memory each proxy keeps for a client that has asked once and says nothing more.
//!
//! They come from ten addresses of this machine, since farebox allows one client so many and no more.

use std::{
    net::{IpAddr, Ipv4Addr},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};

use crate::{
    Setting, descriptors,
    figures::{Figure, figure, rows},
    load::http1::{self, Connection},
    programs::{Plan, Proxy, Running, nginx::Small},
    table::Row,
};

const CONNECTIONS: u16 = 5000;
const SOURCES: u16 = 10;
/// The bare proxy first: what farebox adds to hyper's share is what can be changed.
const PROXIES: [Proxy; 5] =
    [Proxy::Bare, Proxy::Nginx, Proxy::Haproxy, Proxy::FareboxFree, Proxy::FareboxPaid];

/// Measures all proxies, one after the other.
pub(crate) fn run(setting: &Setting) -> Result<Vec<Row>> {
    // The proxy has as many again, and some towards its upstream.
    descriptors::need(u64::from(CONNECTIONS) + 1000)?;
    let upstream = Small::start()?;
    let mut measured = Vec::new();
    for proxy in PROXIES {
        measured.push(one(&proxy.start(setting, &Plan::http1(upstream.address))?)?);
    }
    Ok(rows("idle", &PROXIES.map(Proxy::name), &[measured]))
}

fn one(running: &Running) -> Result<Vec<Figure>> {
    let head = http1::head("GET", "/", &running.headers);
    // What is made for the first requests only is not the connections'.
    drop(open(running, &head, 200)?);
    let before = settled(running)?;
    let connections = open(running, &head, CONNECTIONS)?;
    let after = settled(running)?;
    drop(connections);
    #[expect(clippy::cast_precision_loss, reason = "memory sizes, for a ratio")]
    let kib = |bytes: u64| bytes as f64 / 1024.0;
    Ok(vec![
        figure("memory per connection", "KiB", kib(after.saturating_sub(before)) / f64::from(CONNECTIONS)),
        figure("memory with 5,000", "MiB", kib(after) / 1024.0),
    ])
}

fn open(running: &Running, head: &[u8], count: u16) -> Result<Vec<Connection>> {
    (0..count)
        .map(|index| {
            let [high, low] = (index % SOURCES + 1).to_be_bytes();
            let from = IpAddr::V4(Ipv4Addr::new(127, 0, high, low));
            let mut connection = Connection::new(http1::connect(Some(from), running.address)?, 1024);
            let (status, _) = connection.exchange(head)?;
            ensure!(status == 200, "{} answered {status}", running.proxy.name());
            Ok(connection)
        })
        .collect()
}

/// The memory once it no longer changes.
fn settled(running: &Running) -> Result<u64> {
    let mut last = running.program.resident()?;
    for _ in 0..10 {
        thread::sleep(Duration::from_millis(300));
        let now = running.program.resident()?;
        if now == last {
            break;
        }
        last = now;
    }
    Ok(last)
}
