//! A small request over HTTP/2 in clear text through each proxy: 8 connections of 8 streams, an answer of 32 bytes. The
//! upstream speaks HTTP/1.1, as most do.

use anyhow::Result;

use super::closed_loop;
use crate::{
    Setting,
    figures::taking_turns,
    load::http2::{self, Call},
    programs::{self, Plan, Wire, nginx::Small},
    table::Row,
};

/// Measures all proxies, taking turns.
pub(crate) fn run(setting: &Setting) -> Result<Vec<Row>> {
    let upstream = Small::start()?;
    let plan = Plan { front: Wire::Http2, ..Plan::http1(upstream.address) };
    let proxies = programs::start_all(&programs::ALL, setting, &plan)?;
    taking_turns(
        "proxy-h2",
        &proxies,
        |running| running.proxy.name(),
        |running| {
            let (latencies, cpu) = running
                .program
                .cpu_while(|| http2::run(running.address, &running.headers, Call::Get, setting.time))?;
            Ok(closed_loop(latencies, setting.time, cpu))
        },
    )
}
