//! A reservation: units set aside for one request, until it is known what the request has cost.

use std::{num::NonZeroU64, sync::Arc};

use farebox_protocol::PaymentHash;

use super::{FirstTime, Ledger, law::Charged, month::Tab};
use crate::store::accounts::{KeptAnswer, StoredAnswer};

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
    /// What was left beside it when it was made; `None` where there is no account that it is taken from.
    left: Option<u64>,
    /// What it may take of limits by the month.
    tab: Option<Box<Tab>>,
    due: u64,
    ended: bool,
}

impl Reservation {
    pub(super) const fn new(ledger: Arc<Ledger>, hash: PaymentHash, units: NonZeroU64, left: u64) -> Self {
        Self { ledger, hash, units, left: Some(left), tab: None, due: 0, ended: false }
    }

    /// Of what nothing is used up of, but limited.
    pub(super) const fn of_pass(ledger: Arc<Ledger>, hash: PaymentHash, units: NonZeroU64) -> Self {
        Self { ledger, hash, units, left: None, tab: None, due: 0, ended: false }
    }

    /// The same, and what it may take of limits.
    pub(super) fn with(mut self, tab: Tab) -> Self {
        debug_assert!(self.tab.is_none(), "limits are set once");
        self.tab = Some(Box::new(tab));
        self
    }

    /// Of which payment.
    pub const fn hash(&self) -> PaymentHash {
        self.hash
    }

    /// How many units are set aside.
    pub const fn units(&self) -> u64 {
        self.units.get()
    }

    /// How many units were left beside these when they were set aside; none where a pass is only limited.
    pub fn left(&self) -> u64 {
        self.left.unwrap_or_default()
    }

    /// Whether units of an account are set aside; where a pass is only limited, none are.
    pub const fn is_of_account(&self) -> bool {
        self.left.is_some()
    }

    /// Says what is charged if this is dropped from now on: what the buyer has had already.
    pub const fn due(&mut self, units: u64) {
        self.due = units;
    }

    /// Sets up to so many units more aside: what there is, and what limits in money leave. How many there were.
    pub fn extend(&mut self, units: u64) -> u64 {
        let within = match &mut self.tab {
            Some(tab) => self.ledger.extend_tab(tab, units),
            None => units,
        };
        let more = match self.is_of_account() {
            true => self.ledger.held(&self.hash, |live| live.balance.reserve_some(within)),
            false => within,
        };
        if let Some(tab) = self.tab.as_mut().filter(|_| more < within) {
            self.ledger.shorten_tab(tab, within - more);
        }
        self.units = self.units.saturating_add(more);
        more
    }

    /// Charges for the request. What exceeds the reservation is taken from what the buyer has left, and what exceeds that
    /// is written off. A pass is charged nothing; only its limits count.
    pub fn commit(mut self, units: u64) -> Charged {
        self.charge(units, None)
    }

    /// The same, and keeps the answer for who repeats the request: both are written together, or neither. `None` stands
    /// for an answer that is too large to be kept; who repeats its request is told so, and not charged.
    pub fn commit_answered(mut self, units: u64, first: FirstTime, answer: Option<StoredAnswer>) -> Charged {
        self.charge(units, Some(first.keep(answer)))
    }

    /// Gives all units back.
    pub fn release(mut self) {
        self.give_back();
    }

    fn charge(&mut self, units: u64, answer: Option<KeptAnswer>) -> Charged {
        self.ended = true;
        match (self.tab.take(), self.is_of_account()) {
            (None, true) => self.ledger.commit(&self.hash, self.units, units, answer),
            (Some(tab), true) => {
                let charged = self.ledger.commit(&self.hash, self.units, units, answer);
                self.ledger.commit_tab(&tab, charged.spent, None);
                charged
            }
            (Some(tab), false) => {
                self.ledger.commit_tab(&tab, units, answer);
                Charged::default()
            }
            (None, false) => Charged::default(),
        }
    }

    fn give_back(&mut self) {
        self.ended = true;
        if let Some(tab) = self.tab.take() {
            self.ledger.release_tab(&tab);
        }
        if self.is_of_account() {
            self.ledger.release(&self.hash, self.units);
        }
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
        match (self.ended, self.due) {
            (true, _) => {}
            (false, 0) => self.give_back(),
            (false, due) => drop(self.charge(due, None)),
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
