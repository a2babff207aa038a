//! Latency at a rate that every proxy can bear: half of what nginx was just seen to manage, as an open loop.

use anyhow::{Result, ensure};

use crate::{
    Setting,
    figures::{figure, taking_turns},
    load::{
        http1,
        open_loop::{self, Pace},
        wrk::{self, Expect},
    },
    programs::{self, Plan, Proxy, nginx::Small},
    table::Row,
};

const PROXIES: [Proxy; 4] = [Proxy::Nginx, Proxy::Haproxy, Proxy::Bare, Proxy::FareboxPaid];

/// Measures the proxies, taking turns.
pub(crate) fn run(setting: &Setting) -> Result<Vec<Row>> {
    let upstream = Small::start()?;
    let proxies = programs::start_all(&PROXIES, setting, &Plan::http1(upstream.address))?;
    let capacity = wrk::run(proxies[0].address, &[], setting.time, Expect::Success)?.rate;
    let pace = Pace {
        rate: capacity / 2.0,
        connections: 64,
        threads: 1,
        time: setting.time,
        from: None,
        per_connection: u32::MAX,
    };
    let mut all = taking_turns(
        "latency",
        &proxies,
        |running| running.proxy.name(),
        |running| {
            let head = http1::head("GET", "/", &running.headers);
            let mut outcome = open_loop::run(running.address, &head, pace)?;
            ensure!(outcome.failed == 0, "{} of {}'s requests failed", outcome.failed, running.proxy.name());
            Ok([("p50", 500), ("p99", 990), ("p99.9", 999)]
                .map(|(what, permille)| figure(what, "ms", outcome.latencies.millis(permille)))
                .into())
        },
    )?;
    all.push(Row {
        bench: "latency",
        what: "rate".to_owned(),
        subject: "all, half of nginx's capacity".to_owned(),
        value: pace.rate,
        unit: "requests/s",
        ratio: None,
    });
    Ok(all)
}
