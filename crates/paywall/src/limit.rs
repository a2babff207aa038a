//! How much, how fast: budgets for minting, the rate limits of services, and what is had for nothing.
//!
//! A budget is one number, the moment when it will be full again (GCRA, the generic cell rate algorithm): nothing has to be
//! topped up, and a budget that is full says the same as none at all. That is what lets the table of budgets forget. The
//! arithmetic stands here in three lines and is judged by `governor`'s in the tests; that crate itself takes from one
//! budget at a time, and here several must have room before any is charged.

mod attempts;
mod budget;
mod freebie;
mod rate;
mod table;

use std::{net::IpAddr, num::NonZeroU32, time::Duration};

use tokio::time::Instant;

pub use self::freebie::{Freebie, FreebieFileError};
pub(crate) use self::{
    attempts::Attempts,
    budget::MintBudget,
    freebie::FreebieCounts,
    rate::{RateLimits, Who},
};
use crate::Rate;

/// Nanoseconds since the limiter was made, by tokio's clock, which tests can pause. They last for 584 years.
type Nanos = u64;

/// How many at once, and how soon another.
#[derive(Clone, Copy, Debug)]
struct Quota {
    /// How long it takes until there is room for one more.
    each: Nanos,
    /// How far from full the budget may be and still have room for one.
    slack: Nanos,
}

/// Whom a budget belongs to. One household or server has a whole IPv6 /64 at its disposal, so that counts as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Client {
    V4([u8; 4]),
    V6Net([u8; 8]),
}

impl Quota {
    fn new(rate: Rate, burst: Option<NonZeroU32>) -> Self {
        // Rounded up, so that never more than `count` fit into `per`.
        let each = nanos(rate.per).div_ceil(rate.count.get().into()).max(1);
        let burst: u64 = burst.unwrap_or(rate.count).get().into();
        Self { each, slack: each.saturating_mul(burst - 1) }
    }

    /// When a budget that was to be full at `full_at` will be full after one more, or how long until it has room.
    fn take(self, full_at: Nanos, now: Nanos) -> Result<Nanos, Duration> {
        let missing = full_at.saturating_sub(now);
        match missing.checked_sub(self.slack) {
            None | Some(0) => Ok(now.saturating_add(missing).saturating_add(self.each)),
            Some(wait) => Err(Duration::from_nanos(wait)),
        }
    }

    /// When it will be full without the one that was taken. A moment that is past is as good as now: no more than a full
    /// budget comes of it.
    fn give_back(self, full_at: Nanos) -> Nanos {
        full_at.saturating_sub(self.each)
    }
}

impl From<IpAddr> for Client {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self::V4(v4.octets()),
            IpAddr::V6(v6) => {
                let [a, b, c, d, e, f, g, h, ..] = v6.octets();
                Self::V6Net([a, b, c, d, e, f, g, h])
            }
        }
    }
}

fn nanos(time: Duration) -> Nanos {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn since(start: Instant) -> Nanos {
    nanos(start.elapsed())
}

#[cfg(test)]
mod tests;
