//! Large bodies over HTTP/1.1: a few connections, each with one body after the other.

use std::{net::SocketAddr, thread, time::Duration};

use anyhow::{Result, anyhow, ensure};
use tokio::time::Instant;

use super::http1::{self, Connection};

const CHUNK: usize = 64 * 1024;

/// Which way a body goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// In the answer.
    Down,
    /// In the request.
    Up,
}

/// What to send.
#[derive(Clone, Copy)]
pub(crate) struct Bulk {
    pub(crate) way: Way,
    /// Bytes of one body.
    pub(crate) size: u64,
    pub(crate) connections: usize,
    /// No body begins after this time; at least one per connection does.
    pub(crate) time: Duration,
}

/// Bytes that went through, and how long they took.
pub(crate) fn run(to: SocketAddr, headers: &[(&str, String)], bulk: Bulk) -> Result<(u64, Duration)> {
    let start = Instant::now();
    let bytes = thread::scope(|scope| {
        let threads: Vec<_> =
            (0..bulk.connections).map(|_| scope.spawn(move || one(to, headers, bulk, start))).collect();
        let mut all = 0;
        for thread in threads {
            all += thread.join().map_err(|_| anyhow!("a client panicked"))??;
        }
        anyhow::Ok(all)
    })?;
    Ok((bytes, start.elapsed()))
}

fn one(to: SocketAddr, headers: &[(&str, String)], bulk: Bulk, start: Instant) -> Result<u64> {
    let chunk = vec![b'x'; CHUNK];
    let mut connection = Connection::new(http1::connect(None, to)?, CHUNK);
    let head = match bulk.way {
        Way::Down => http1::head("GET", &format!("/bytes/{}", bulk.size), headers),
        Way::Up => {
            let mut headers = headers.to_vec();
            headers.push(("content-length", bulk.size.to_string()));
            http1::head("POST", "/", &headers)
        }
    };
    let mut bytes = 0;
    loop {
        connection.send(&head)?;
        if bulk.way == Way::Up {
            let mut left = bulk.size;
            while left > 0 {
                let length = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
                connection.send(&chunk[..length])?;
                left -= length as u64;
            }
        }
        let (status, length) = connection.receive()?;
        ensure!(status == 200, "an answer had the status {status}");
        ensure!(bulk.way == Way::Up || length == bulk.size, "{length} bytes instead of {}", bulk.size);
        bytes += bulk.size;
        if start.elapsed() >= bulk.time {
            return Ok(bytes);
        }
    }
}
