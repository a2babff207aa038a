//! Connections that begin a request and never end it: one more header line for each of them, again and again.

use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
};

use anyhow::Result;

use super::budget::Budget;
use crate::load::http1;

const CONNECTIONS: usize = 4000;
const SOURCES: usize = 200;

/// How many connections it opened.
pub(super) fn run(to: SocketAddr, budget: &mut Budget<'_>) -> Result<u64> {
    let mut connections: Vec<Option<TcpStream>> = (0..CONNECTIONS).map(|_| None).collect();
    let mut opened = 0;
    loop {
        for (index, connection) in connections.iter_mut().enumerate() {
            if index % 8 == 0 && !budget.goes_on()? {
                return Ok(opened);
            }
            let dripped = connection.as_mut().map(|socket| socket.write_all(b"x-a: b\r\n"));
            if !matches!(dripped, Some(Ok(()))) {
                *connection = open(index, to).ok();
                opened += u64::from(connection.is_some());
            }
        }
    }
}

fn open(index: usize, to: SocketAddr) -> Result<TcpStream> {
    let from = IpAddr::V4(Ipv4Addr::new(127, 0, 2, u8::try_from(index % SOURCES)?));
    let mut socket = http1::connect(Some(from), to)?;
    // A drip that doesn't fit counts as one that failed: no attacker waits.
    socket.write_all(b"GET / HTTP/1.1\r\nhost: bench\r\n")?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
