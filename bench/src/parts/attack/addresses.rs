//! Requests of a million clients, one each, as a proxy in front would hand them on: whoever keeps something for each client
//! is made to keep a million.

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, SocketAddr},
    thread,
    time::Duration,
};

use anyhow::Result;

use super::budget::Budget;
use crate::load::http1::{self, Connection};

pub(super) const ADDRESSES: u32 = 1_000_000;
/// How many requests go in one packet; the answers are read together too, which is cheaper than one by one.
const BATCH: u32 = 50;

/// How many addresses it sent from and was answered.
pub(super) fn run(to: SocketAddr, budget: &mut Budget<'_>) -> Result<u64> {
    let mut connection = None;
    let mut sent = 0;
    while budget.goes_on()? {
        if sent == ADDRESSES {
            // Done; the clients go on for their time.
            thread::sleep(Duration::from_millis(20));
            continue;
        }
        let open = match &mut connection {
            Some(open) => open,
            None => connection.insert(Connection::new(http1::connect(None, to)?, 64 * 1024)),
        };
        if batch(open, sent).is_err() {
            // Sent once more, on a new one: it counts when all of it has been answered.
            connection = None;
            continue;
        }
        sent += BATCH;
        budget.did(u64::from(BATCH));
    }
    Ok(u64::from(sent))
}

fn batch(connection: &mut Connection, first: u32) -> Result<()> {
    let mut heads = String::new();
    for index in first..first + BATCH {
        // Any addresses do that are not this machine's.
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + index);
        write!(heads, "GET / HTTP/1.1\r\nhost: bench\r\nx-forwarded-for: {address}\r\n\r\n")?;
    }
    connection.send(heads.as_bytes())?;
    for _ in 0..BATCH {
        connection.receive()?;
    }
    Ok(())
}
