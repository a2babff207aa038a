//! What counting costs: a small request with a token that is good for a number of requests, beside one with a pass. Both
//! to the same farebox, HTTP/1.1, 64 keep-alive connections.
//!
//! All requests are made with *one* token, so that all workers meet at one account: the worst that buyers can do. That
//! its debits get to the disk is part of it. The ratio of the rates is what counts; a pass is the measure.

use anyhow::Result;

use crate::{
    Setting,
    figures::taking_turns,
    parts::by_wrk,
    programs::{Plan, Proxy, farebox, nginx::Small},
    table::Row,
};

/// Who asks.
struct Buyer {
    name: &'static str,
    headers: Vec<(&'static str, String)>,
}

/// Measures both, taking turns.
pub(crate) fn run(setting: &Setting) -> Result<Vec<Row>> {
    let upstream = Small::start()?;
    let running = Proxy::FareboxPaid.start(setting, &Plan::http1(upstream.address))?;
    let buyer = |name, credential| Buyer { name, headers: vec![("authorization", credential)] };
    let buyers = [
        buyer("farebox, paid", farebox::credential()?),
        buyer("farebox, counted", farebox::counted_credential()?),
    ];
    taking_turns("metered", &buyers, |buyer| buyer.name, |buyer| by_wrk(&running, &buyer.headers, setting))
}
