//! A small request over HTTP/1.1 through each proxy: 64 keep-alive connections, an answer of 32 bytes.
//!
//! The figure that counts is the proxy's CPU time per request: the load generator and the upstream share the cores, so the
//! rate says more about the machine.

use anyhow::Result;

use crate::{
    Setting,
    figures::taking_turns,
    parts::by_wrk,
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
        |running| by_wrk(running, &running.headers, setting),
    )
}
