//! How often the holder of a purchase may ask the seller for something that costs work: to be paid back, which may make us call
//! somebody's server and ask the wallet, or to have a receipt made.
//!
//! Nobody is refused because of others. Where many have asked lately, who is new takes the place of the one whose budget is
//! nearest to full, and that one's count is lost. Having newcomers wait, or share one budget, would let whoever has bought
//! enough shut out everybody else; letting them by uncounted would be a way round the count.
//!
//! To have a count lost on purpose, one must fill the eight places that a purchase may have, and nobody can tell which those
//! are. So it takes most of the table: more than 100,000 purchases, paid, and as many tries every half minute, each counted. How many
//! tries are made at once is bounded elsewhere.

use std::{
    hash::{BuildHasher, RandomState},
    sync::OnceLock,
    time::Duration,
};

use farebox_protocol::PaymentHash;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    Nanos, Quota, since,
    table::{Slot, Table},
};

/// So many at once ...
const BURST: u32 = 10;
/// ... and then one each.
const EACH: Duration = Duration::from_secs(30);
/// Purchases that are counted: 4 MiB, taken with the first try.
const ROOM: usize = 1 << 18;

/// The counts.
pub(crate) struct Attempts {
    room: usize,
    /// Keyed at random, so that nobody can aim at the place of another.
    hasher: RandomState,
    start: Instant,
    table: OnceLock<Mutex<Table>>,
}

impl Default for Attempts {
    fn default() -> Self {
        Self::with_room(ROOM)
    }
}

impl Attempts {
    fn with_room(room: usize) -> Self {
        Self { room, hasher: RandomState::new(), start: Instant::now(), table: OnceLock::new() }
    }

    /// Counts one, or says how long to wait.
    pub(crate) fn take(&self, purchase: PaymentHash) -> Result<(), Duration> {
        let each = Nanos::try_from(EACH.as_nanos()).unwrap_or(Nanos::MAX);
        let quota = Quota { each, slack: each.saturating_mul((BURST - 1).into()) };
        let (owner, now) = (self.hasher.hash_one(purchase), since(self.start));
        let mut table = self.table.get_or_init(|| Mutex::new(Table::new(self.room))).lock();
        let place = table.place(owner, now).unwrap_or_else(|| table.nearest_to_full(owner));
        let slot = table.slot(place);
        let full_at = quota.take(slot.full_at(owner), now)?;
        *slot = Slot { owner, full_at };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbered(number: usize) -> PaymentHash {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        PaymentHash::from_bytes(bytes)
    }

    #[tokio::test(start_paused = true)]
    async fn after_some_at_once_each_has_to_wait() {
        let attempts = Attempts::default();
        for _ in 0..BURST {
            attempts.take(numbered(1)).unwrap();
        }
        assert_eq!(attempts.take(numbered(1)), Err(EACH));
        attempts.take(numbered(2)).unwrap();
        tokio::time::advance(EACH).await;
        attempts.take(numbered(1)).unwrap();
        assert_eq!(attempts.take(numbered(1)), Err(EACH));
    }

    #[tokio::test(start_paused = true)]
    async fn however_many_somebody_has_bought_they_shut_nobody_out() {
        let attempts = Attempts::with_room(64);
        for _ in 0..2 * BURST {
            for number in 0..1_000 {
                _ = attempts.take(numbered(number));
            }
            assert_eq!(attempts.take(numbered(usize::MAX)), Ok(()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_count_is_not_lost_while_there_is_room_nor_to_who_has_asked_less() {
        let attempts = Attempts::with_room(8);
        let spent = |number| (0..BURST).for_each(|_| attempts.take(numbered(number)).unwrap());
        (0..7).for_each(spent);
        for newcomer in 100..1_000 {
            attempts.take(numbered(newcomer)).unwrap();
        }
        for number in 0..7 {
            assert_eq!(attempts.take(numbered(number)), Err(EACH), "{number}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn as_many_as_an_attacker_may_have_are_counted_each_for_itself() {
        let attempts = Attempts::default();
        let many = 20_000;
        for _ in 0..BURST {
            for number in 0..many {
                attempts.take(numbered(number)).unwrap();
            }
        }
        let lost = (0..many).filter(|number| attempts.take(numbered(*number)).is_ok()).count();
        assert_eq!(lost, 0, "counts that came back");
    }
}
