//! Requests with heads as large as anybody takes: 90 lines of 300 bytes, on a few connections, as fast as it goes.

use std::net::SocketAddr;

use anyhow::Result;

use super::budget::Budget;
use crate::load::http1::{self, Connection};

const CONNECTIONS: usize = 32;

/// How many requests it sent.
pub(super) fn run(to: SocketAddr, budget: &mut Budget<'_>) -> Result<u64> {
    let mut connections: Vec<Option<Connection>> = (0..CONNECTIONS).map(|_| None).collect();
    let lines: Vec<_> = (0..90).map(|_| ("x-a-header-of-no-use", "x".repeat(280))).collect();
    let head = http1::head("GET", "/", &lines);
    let mut sent = 0;
    loop {
        for connection in &mut connections {
            if !budget.goes_on()? {
                return Ok(sent);
            }
            if connection.is_none() {
                *connection = http1::connect(None, to).ok().map(|socket| Connection::new(socket, 8192));
            }
            // Whatever is answered, it was work. Who is cut off comes again.
            let answered = connection.as_mut().map(|connection| connection.exchange(&head));
            sent += u64::from(answered.is_some());
            if !matches!(answered, Some(Ok((200, _)))) {
                *connection = None;
            }
        }
    }
}
