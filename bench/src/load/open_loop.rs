//! Requests at a fixed rate, whether or not earlier ones have been answered: how users come.
//!
//! Each request has a time at which it is due, and its latency is counted from then, also when it had to wait for its
//! turn: a proxy that stalls can't hide the requests that nobody could send meanwhile. (A generator that asks again
//! when it is answered would pause with the proxy; this is known as coordinated omission.) A thread for each
//! connection, since the kernel's timers are finer than the runtime's, which count in milliseconds.

use std::{
    net::{IpAddr, SocketAddr},
    thread,
    time::Duration,
};

use anyhow::{Result, anyhow};
use tokio::time::Instant;

use super::http1::{self, Connection};
use crate::figures::Latencies;

/// How fast to ask, and for how long.
#[derive(Clone, Copy)]
pub(crate) struct Pace {
    /// Requests per second, all connections together.
    pub(crate) rate: f64,
    pub(crate) connections: u32,
    pub(crate) time: Duration,
    /// The address to come from, if not just any.
    pub(crate) from: Option<IpAddr>,
    /// After how many requests a connection is made anew. At least one.
    pub(crate) per_connection: u32,
}

/// How it went.
#[derive(Default)]
pub(crate) struct Outcome {
    /// Of all requests, those that failed too: these by the time at which that was known.
    pub(crate) latencies: Latencies,
    /// Requests that got no answer, or one with a status other than 200.
    pub(crate) failed: u64,
}

/// How long after its end a run waits for what is late.
const GRACE: Duration = Duration::from_secs(5);

/// Sends `head` again and again, at `pace`.
pub(crate) fn run(to: SocketAddr, head: &[u8], pace: Pace) -> Result<Outcome> {
    let start = Instant::now() + Duration::from_millis(50);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..pace.connections)
            .map(|index| {
                let builder = thread::Builder::new().name("client".to_owned()).stack_size(128 * 1024);
                builder.spawn_scoped(scope, move || one(to, head, pace, start, index))
            })
            .collect::<Result<_, _>>()?;
        let mut all = Outcome::default();
        for thread in threads {
            let outcome = thread.join().map_err(|_| anyhow!("a client panicked"))?;
            all.latencies.append(outcome.latencies);
            all.failed += outcome.failed;
        }
        Ok(all)
    })
}

fn one(to: SocketAddr, head: &[u8], pace: Pace, start: Instant, index: u32) -> Outcome {
    let mut outcome = Outcome::default();
    let mut connection = None;
    let mut used = 0;
    for turn in 0.. {
        let due = due(pace, turn, index);
        if due >= pace.time {
            break;
        }
        let due = start + due;
        let wait = due.saturating_duration_since(Instant::now());
        if !wait.is_zero() {
            thread::sleep(wait);
        }
        // Past the grace nothing is sent any more; all that was due is known to have failed now.
        let is_ok = start.elapsed() < pace.time + GRACE
            && exchange(&mut connection, to, head, pace).is_ok_and(|status| status == 200);
        outcome.latencies.push(due.elapsed());
        used += 1;
        if !is_ok {
            outcome.failed += 1;
        }
        if !is_ok || used >= pace.per_connection {
            (connection, used) = (None, 0);
        }
    }
    outcome
}

fn exchange(connection: &mut Option<Connection>, to: SocketAddr, head: &[u8], pace: Pace) -> Result<u16> {
    let connection = match connection {
        Some(connection) => connection,
        None => connection.insert(Connection::new(http1::connect(pace.from, to)?, 4096)),
    };
    Ok(connection.exchange(head)?.0)
}

/// When the connection `index` has to send its request `turn`, from the start: the connections take turns.
fn due(pace: Pace, turn: u32, index: u32) -> Duration {
    let nth = f64::from(turn) * f64::from(pace.connections) + f64::from(index);
    Duration::from_secs_f64(nth / pace.rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_take_turns_at_even_intervals() {
        let pace = Pace {
            rate: 1000.0,
            connections: 4,
            time: Duration::from_secs(1),
            from: None,
            per_connection: 1,
        };
        let mut dues: Vec<_> =
            (0..3).flat_map(|turn| (0..4).map(move |index| due(pace, turn, index))).collect();
        dues.sort_unstable();
        let even: Vec<_> = (0..12).map(Duration::from_millis).collect();
        assert_eq!(dues, even);
    }
}
