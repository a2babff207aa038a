//! The parts of the benchmark, one per question.

pub(crate) mod attack;
pub(crate) mod bodies;
#[cfg(feature = "challenge")]
pub(crate) mod challenge;
pub(crate) mod grpc;
pub(crate) mod idle;
pub(crate) mod latency;
pub(crate) mod metered;
pub(crate) mod proxy;
pub(crate) mod proxy_h2;
pub(crate) mod verify;
pub(crate) mod websocket;

use std::time::Duration;

use crate::figures::{Figure, Latencies, figure};

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
