//! Large bodies: how much goes through per second and per second of CPU time, and how much memory the proxy takes for one
//! that is larger than it could hold.

use anyhow::Result;

use crate::{
    Setting,
    figures::{Figure, figure, rows, taking_turns},
    load::bulk::{self, Bulk, Way},
    programs::{self, Plan, Proxy, Running, Wire},
    table::Row,
    upstream::Upstream,
};

const SIZE: u64 = 10 << 20;
const HUGE: u64 = 1 << 30;
const CONNECTIONS: usize = 4;

/// Measures all proxies, taking turns, one way and then the other.
pub(crate) fn run(setting: &Setting) -> Result<Vec<Row>> {
    let upstream = Upstream::start(Wire::Http1)?;
    let proxies = programs::start_all(&programs::ALL, setting, &Plan::http1(upstream.address))?;
    let mut all = Vec::new();
    for way in [Way::Down, Way::Up] {
        let bulk = Bulk { way, size: SIZE, connections: CONNECTIONS, time: setting.time };
        all.extend(taking_turns("bodies", &proxies, name, |running| speed(running, bulk))?);
    }
    // Memory isn't noisy: once is enough.
    let names: Vec<_> = proxies.iter().map(name).collect();
    for way in [Way::Down, Way::Up] {
        let measured = proxies.iter().map(|running| memory(running, way)).collect::<Result<_>>()?;
        all.extend(rows("bodies", &names, &[measured]));
    }
    Ok(all)
}

const fn name(running: &Running) -> &'static str {
    Proxy::name(running.proxy)
}

fn speed(running: &Running, bulk: Bulk) -> Result<Vec<Figure>> {
    let ((bytes, took), cpu) =
        running.program.cpu_while(|| bulk::run(running.address, &running.headers, bulk))?;
    let megabytes = mib(bytes);
    let (rate, cost) = match bulk.way {
        Way::Down => ("10 MiB answers, rate", "10 MiB answers, CPU"),
        Way::Up => ("10 MiB uploads, rate", "10 MiB uploads, CPU"),
    };
    Ok(vec![
        figure(rate, "MiB/s", megabytes / took.as_secs_f64()),
        figure(cost, "us/MiB", cpu.as_secs_f64() * 1e6 / megabytes),
    ])
}

fn memory(running: &Running, way: Way) -> Result<Vec<Figure>> {
    let bulk = Bulk { way, size: HUGE, connections: 1, time: std::time::Duration::ZERO };
    let before = running.program.resident()?;
    let (_, peak) = running.program.peak_while(|| bulk::run(running.address, &running.headers, bulk))?;
    let (most, growth) = match way {
        Way::Down => ("1 GiB answer, memory at most", "1 GiB answer, growth"),
        Way::Up => ("1 GiB upload, memory at most", "1 GiB upload, growth"),
    };
    Ok(vec![figure(most, "MiB", mib(peak)), figure(growth, "MiB", mib(peak.saturating_sub(before)))])
}

#[expect(clippy::cast_precision_loss, reason = "far less than 2^53 bytes")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
