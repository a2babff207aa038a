//! Requests at a fixed rate, whether or not earlier ones have been answered: how users come.
//!
//! Each request has a time at which it is due, and its latency is counted from then, also when it had to wait for its
//! turn: a proxy that stalls can't hide the requests that nobody could send meanwhile. (A generator that asks again
//! when it is answered would pause with the proxy; this is known as coordinated omission.) Threads that look and rest,
//! since the kernel's timers are finer than the runtime's, which count in milliseconds.

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
    /// The threads that share them. One costs least of the machine; with one for each connection, none has to wait while
    /// another is being made.
    pub(crate) threads: u32,
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
/// How long to rest when there is nothing to send. The kernel makes about twice as much of it.
const REST: Duration = Duration::from_micros(50);

/// One connection, and the request on it that waits for its answer.
#[derive(Default)]
struct Slot {
    connection: Option<Connection>,
    used: u32,
    due: Option<Instant>,
}

/// Sends `head` again and again, at `pace`.
pub(crate) fn run(to: SocketAddr, head: &[u8], pace: Pace) -> Result<Outcome> {
    let start = Instant::now() + Duration::from_millis(50);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..pace.threads)
            .map(|index| {
                let builder = thread::Builder::new().name("client".to_owned()).stack_size(128 * 1024);
                builder.spawn_scoped(scope, move || share(to, head, pace, start, index))
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

/// What one of the threads has to do: each request goes to a connection that is free, or waits until one is.
fn share(to: SocketAddr, head: &[u8], pace: Pace, start: Instant, index: u32) -> Outcome {
    let mut outcome = Outcome::default();
    let mut slots: Vec<Slot> = (0..pace.connections / pace.threads).map(|_| Slot::default()).collect();
    let end = start + pace.time;
    let mut turn = 0;
    loop {
        let now = Instant::now();
        let next = start + due(pace, turn, index);
        let is_over = next >= end;
        if is_over && slots.iter().all(|slot| slot.due.is_none()) {
            return outcome;
        }
        // Past the grace nothing is sent or awaited any more; all that was due is known to have failed now.
        let is_late = now >= end + GRACE;
        let is_due = !is_over && now >= next;
        let free = slots.iter_mut().find(|slot| slot.due.is_none()).filter(|_| is_due);
        if let Some(slot) = free {
            slot.due = Some(next);
            turn += 1;
            if is_late || slot.send(to, head, pace).is_err() {
                slot.finish(&mut outcome, false);
            }
            continue;
        }
        for slot in slots.iter_mut().filter(|slot| slot.due.is_some()) {
            match slot.connection.as_mut().map_or(Ok(None), Connection::try_receive) {
                Ok(None) if !is_late => {}
                Ok(Some((status, _))) => slot.finish(&mut outcome, status == 200),
                Ok(None) | Err(_) => slot.finish(&mut outcome, false),
            }
        }
        thread::sleep(if is_over || is_due { REST } else { next.saturating_duration_since(now).min(REST) });
    }
}

impl Slot {
    fn send(&mut self, to: SocketAddr, head: &[u8], pace: Pace) -> Result<()> {
        if self.used >= pace.per_connection {
            *self = Self { due: self.due, ..Self::default() };
        }
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => {
                let socket = http1::connect(pace.from, to)?;
                socket.set_nonblocking(true)?;
                self.connection.insert(Connection::new(socket, 4096))
            }
        };
        self.used += 1;
        connection.send(head)
    }

    fn finish(&mut self, outcome: &mut Outcome, is_ok: bool) {
        let due = self.due.take();
        outcome.latencies.push(due.map_or(Duration::ZERO, |due| due.elapsed()));
        if !is_ok {
            outcome.failed += 1;
            *self = Self::default();
        }
    }
}

/// When the thread `index` has to send its request `turn`, from the start: the threads take turns.
fn due(pace: Pace, turn: u32, index: u32) -> Duration {
    let nth = f64::from(turn) * f64::from(pace.threads) + f64::from(index);
    Duration::from_secs_f64(nth / pace.rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_take_turns_at_even_intervals() {
        let pace = Pace {
            rate: 1000.0,
            connections: 8,
            threads: 4,
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
