//! A small request over HTTP/1.1 through each proxy: 64 keep-alive connections, an answer of 32 bytes.
//!
//! The figure that counts is the proxy's CPU time per request: the load generator and the upstream share the cores, so the
//! rate says more about the machine.

use anyhow::Result;

use crate::{
    Setting,
    figures::{figure, taking_turns},
    load::wrk::{self, Expect},
    programs::{self, Plan, nginx::Small},
    table::Row,
};

/// Measures all proxies, taking turns.
pub(crate) fn run(setting: &Setting) -> Result<Vec<Row>> {
    let upstream = Small::start()?;
    let proxies = programs::start_all(&programs::ALL, setting, &Plan::http1(upstream.address))?;
    taking_turns(
        "proxy",
        &proxies,
        |running| running.proxy.name(),
        |running| {
            let (measured, cpu) = running
                .program
                .cpu_while(|| wrk::run(running.address, &running.headers, setting.time, Expect::Success))?;
            #[expect(clippy::cast_precision_loss, reason = "a few million requests at most")]
            let requests = measured.requests as f64;
            Ok(vec![
                figure("CPU", "us/request", cpu.as_secs_f64() * 1e6 / requests),
                figure("rate", "requests/s", measured.rate),
                figure("p99", "ms", measured.p99_millis),
            ])
        },
    )
}
