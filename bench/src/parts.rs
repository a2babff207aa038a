//! The parts of the benchmark, one per question.

pub(crate) mod attack;
pub(crate) mod bodies;
#[cfg(feature = "challenge")]
pub(crate) mod challenge;
pub(crate) mod client;
pub(crate) mod grpc;
pub(crate) mod idle;
pub(crate) mod latency;
pub(crate) mod metered;
pub(crate) mod proxy;
pub(crate) mod proxy_h2;
pub(crate) mod verify;
pub(crate) mod websocket;

use std::time::Duration;

use anyhow::Result;

use crate::{
    Setting,
    figures::{Figure, Latencies, figure},
    load::wrk::{self, Expect},
    programs::Running,
};

/// What small requests with these headers cost a proxy, over HTTP/1.1.
fn by_wrk(running: &Running, headers: &[(&'static str, String)], setting: &Setting) -> Result<Vec<Figure>> {
    let (measured, cpu) =
        running.program.cpu_while(|| wrk::run(running.address, headers, setting.time, Expect::Success))?;
    #[expect(clippy::cast_precision_loss, reason = "a few million requests at most")]
    let requests = measured.requests as f64;
    Ok(vec![
        figure("CPU", "us/request", cpu.as_secs_f64() * 1e6 / requests),
        figure("rate", "requests/s", measured.rate),
        figure("p99", "ms", measured.p99_millis),
    ])
}

/// The figures of a run that asks again as soon as it is answered.
fn closed_loop(mut latencies: Latencies, time: Duration, cpu: Duration) -> Vec<Figure> {
    #[expect(clippy::cast_precision_loss, reason = "a few million requests at most")]
    let requests = latencies.count() as f64;
    vec![
        figure("CPU", "us/request", cpu.as_secs_f64() * 1e6 / requests),
        figure("rate", "requests/s", requests / time.as_secs_f64()),
        figure("p99", "ms", latencies.millis(990)),
    ]
}
