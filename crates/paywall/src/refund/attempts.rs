//! How often a purchase may be tried to be paid back: each try may make us call somebody's server, and ask the wallet. And
//! one try at a time: servers may be slow on purpose, and there is room for so many tries only.
//!
//! Only who holds a token that was sold and paid here gets this far, so the number of purchases in memory is small; when there
//! are more than there is room for, newcomers wait.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use farebox_protocol::PaymentHash;
use parking_lot::Mutex;
use tokio::time::Instant;

/// So many at once ...
const BURST: u32 = 10;
/// ... and then one each.
const EACH: Duration = Duration::from_secs(30);
/// Purchases that are remembered.
const ROOM: usize = 4_096;

/// When each purchase's budget is full again.
#[derive(Default)]
pub(crate) struct Attempts(Mutex<HashMap<PaymentHash, Instant>>);

impl Attempts {
    /// Counts one, or says how long to wait.
    pub(crate) fn take(&self, purchase: PaymentHash) -> Result<(), Duration> {
        let now = Instant::now();
        let mut full_at = self.0.lock();
        if full_at.len() >= ROOM && !full_at.contains_key(&purchase) {
            full_at.retain(|_, at| *at > now);
            if full_at.len() >= ROOM {
                return Err(EACH);
            }
        }
        let at = full_at.get(&purchase).copied().unwrap_or(now).max(now);
        let next = at + EACH;
        match next.checked_duration_since(now + EACH * BURST) {
            Some(wait) if !wait.is_zero() => Err(wait),
            _ => {
                full_at.insert(purchase, next);
                Ok(())
            }
        }
    }
}

/// The purchases that are being tried.
#[derive(Clone, Default)]
pub(super) struct AtWork(Arc<Mutex<HashSet<PaymentHash>>>);

/// A try, until it is dropped.
pub(super) struct Try {
    at_work: AtWork,
    purchase: PaymentHash,
}

impl AtWork {
    /// Begins one, if there is none.
    pub(super) fn begin(&self, purchase: PaymentHash) -> Option<Try> {
        let is_first = self.0.lock().insert(purchase);
        is_first.then(|| Try { at_work: self.clone(), purchase })
    }
}

impl Drop for Try {
    fn drop(&mut self) {
        self.at_work.0.lock().remove(&self.purchase);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn after_some_at_once_each_has_to_wait() {
        let attempts = Attempts::default();
        let purchase = PaymentHash::from_bytes([1; 32]);
        for _ in 0..BURST {
            attempts.take(purchase).unwrap();
        }
        assert_eq!(attempts.take(purchase), Err(EACH));
        attempts.take(PaymentHash::from_bytes([2; 32])).unwrap();
        tokio::time::advance(EACH).await;
        attempts.take(purchase).unwrap();
        assert_eq!(attempts.take(purchase), Err(EACH));
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded_and_comes_back() {
        let attempts = Attempts::default();
        let numbered = |number: usize| {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&number.to_le_bytes());
            PaymentHash::from_bytes(bytes)
        };
        for number in 0..ROOM {
            attempts.take(numbered(number)).unwrap();
        }
        assert!(attempts.take(numbered(ROOM)).is_err());
        assert!(attempts.take(numbered(0)).is_ok(), "who is known goes on");
        tokio::time::advance(EACH + EACH).await;
        attempts.take(numbered(ROOM)).unwrap();
    }
}
