//! A reservation: units set aside for one request, until it is known what the request has cost.

use std::{num::NonZeroU64, sync::Arc};

use farebox_protocol::PaymentHash;

use super::{FirstTime, Ledger, law::Charged};
use crate::store::accounts::StoredAnswer;

/// Units set aside for one request.
///
/// It ends once, and whatever happens: by [`commit`](Self::commit), by [`release`](Self::release), or by being dropped, as
/// happens when a buyer hangs up or a task panics. Dropped, it charges what is [`due`](Self::due): nothing, until somebody
/// says otherwise. None of that waits, so nothing is lost by dropping it anywhere.
#[must_use = "dropped, it charges only what is due"]
pub struct Reservation {
    ledger: Arc<Ledger>,
    hash: PaymentHash,
    units: NonZeroU64,
    /// What was left beside it when it was made.
    left: u64,
    due: u64,
    ended: bool,
}

impl Reservation {
    pub(super) const fn new(ledger: Arc<Ledger>, hash: PaymentHash, units: NonZeroU64, left: u64) -> Self {
        Self { ledger, hash, units, left, due: 0, ended: false }
    }

    /// Of which payment.
    pub const fn hash(&self) -> PaymentHash {
        self.hash
    }

    /// How many units are set aside.
    pub const fn units(&self) -> u64 {
        self.units.get()
    }

    /// How many units were left beside these when they were set aside.
    pub const fn left(&self) -> u64 {
        self.left
    }

    /// Says what is charged if this is dropped from now on: what the buyer has had already.
    pub const fn due(&mut self, units: u64) {
        self.due = units;
    }

    /// Charges for the request. What exceeds the reservation is taken from what the buyer has left, and what exceeds that
    /// is written off.
    pub fn commit(mut self, units: u64) -> Charged {
        self.ended = true;
        self.ledger.commit(&self.hash, self.units, units, None)
    }

    /// The same, and keeps the answer for who repeats the request: both are written together, or neither. `None` stands
    /// for an answer that is too large to be kept; who repeats its request is told so, and not charged.
    pub fn commit_answered(mut self, units: u64, first: FirstTime, answer: Option<StoredAnswer>) -> Charged {
        self.ended = true;
        let kept = first.keep(answer);
        self.ledger.commit(&self.hash, self.units, units, Some(kept))
    }

    /// Gives all units back.
    pub fn release(mut self) {
        self.ended = true;
        self.ledger.release(&self.hash, self.units);
    }

    /// Hands the units over to a refund, which ends them from now on.
    pub(super) fn refund(mut self) {
        self.ended = true;
        self.ledger.held(&self.hash, |live| {
            live.balance.begin_refund(self.units.get());
            live.pins -= 1;
        });
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        match self.due {
            0 => self.ledger.release(&self.hash, self.units),
            due => drop(self.ledger.commit(&self.hash, self.units, due, None)),
        }
    }
}

impl std::fmt::Debug for Reservation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reservation")
            .field("hash", &self.hash)
            .field("units", &self.units)
            .field("due", &self.due)
            .finish_non_exhaustive()
    }
}
