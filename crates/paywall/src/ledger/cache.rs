//! The accounts in memory: a bounded number, each as it is on the books plus what isn't written yet.
//!
//! An account is *pinned* while anything of it is known nowhere else: a reservation, a debit that is not on the disk, a
//! load that others wait for. What is pinned is never forgotten, so that reading an account from the store can't bring
//! back units that have been used; when all there is room for is pinned, a newcomer is refused.

use std::collections::HashMap;

use farebox_protocol::{PaymentHash, ServiceName};
use tokio_util::sync::CancellationToken;

use super::law::{Balance, Charged};
use crate::store::accounts::{Account, Allotment, Debit, KeptAnswer, Unit};

/// Some of the accounts, behind one lock.
#[derive(Default)]
pub(super) struct Shard {
    index: HashMap<PaymentHash, usize>,
    places: Vec<Option<Place>>,
    free: Vec<usize>,
    /// Where the search for somebody to forget goes on.
    hand: usize,
    /// Accounts with debits to be written, oldest first.
    pub(super) unwritten: std::collections::VecDeque<PaymentHash>,
}

struct Place {
    hash: PaymentHash,
    entry: Entry,
}

/// What is known of one account.
pub(super) enum Entry {
    /// Somebody is reading it; the token is cancelled when that is over, however it ended.
    Loading(CancellationToken),
    /// It is here.
    Here(Box<Live>),
}

/// An account at work.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) service: ServiceName,
    unit: Unit,
    pub(super) balance: Balance,
    /// Reservations and refunds that hold it here.
    pub(super) pins: u64,
    /// What isn't on its way to the disk yet.
    pub(super) debit: Sum,
    /// Answers that go to the disk with it.
    pub(super) answers: Vec<KeptAnswer>,
    /// Whether a debit of it is on its way to the disk.
    pub(super) writing: bool,
    /// Spared once by the search for somebody to forget.
    used: bool,
}

/// Debits of one account, added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) requests: u64,
    pub(super) units: u64,
    pub(super) written_off: u64,
}

/// There is no room: everything is pinned.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

impl Live {
    pub(super) fn new(account: &Account) -> Self {
        let (service, balance) = (account.service.clone(), account.balance);
        Self {
            service,
            unit: account.unit,
            balance,
            pins: 0,
            debit: Sum::default(),
            answers: Vec::new(),
            writing: false,
            used: true,
        }
    }

    /// Whether it is the account of this sale. Who has a secret of ours can write another one over the same payment.
    pub(super) fn is_of(&self, service: &ServiceName, allotment: Allotment) -> bool {
        (self.unit, self.balance.sold()) == (allotment.unit, allotment.units) && self.service == *service
    }

    fn is_pinned(&self) -> bool {
        self.pins > 0 || self.writing || !self.debit.is_zero()
    }
}

impl Sum {
    pub(super) fn is_zero(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn add(&mut self, charged: Charged) {
        self.requests += 1;
        self.units += charged.spent;
        self.written_off = self.written_off.saturating_add(charged.written_off);
    }

    /// Takes it all, to be written.
    pub(super) fn take(&mut self, hash: PaymentHash, service: &ServiceName) -> Debit {
        let Self { requests, units, written_off } = std::mem::take(self);
        Debit { hash, service: service.clone(), requests, units, written_off }
    }
}

impl Shard {
    /// An account that is here.
    pub(super) fn live(&mut self, hash: &PaymentHash) -> Option<&mut Live> {
        match self.entry(hash)? {
            Entry::Here(live) => {
                live.used = true;
                Some(live)
            }
            Entry::Loading(_) => None,
        }
    }

    pub(super) fn entry(&mut self, hash: &PaymentHash) -> Option<&mut Entry> {
        let at = *self.index.get(hash)?;
        self.places[at].as_mut().map(|place| &mut place.entry)
    }

    /// Puts an account in its place, which may be taken from another one that nothing holds here.
    pub(super) fn put(&mut self, hash: PaymentHash, entry: Entry, places_max: usize) -> Result<(), Full> {
        if let Some(here) = self.entry(&hash) {
            *here = entry;
            return Ok(());
        }
        let place = Some(Place { hash, entry });
        let at = match self.free.pop() {
            Some(at) => at,
            None if self.places.len() < places_max => {
                self.places.push(None);
                self.places.len() - 1
            }
            None => self.forget_one().ok_or(Full)?,
        };
        self.places[at] = place;
        self.index.insert(hash, at);
        Ok(())
    }

    pub(super) fn remove(&mut self, hash: &PaymentHash) -> Option<Entry> {
        let at = self.index.remove(hash)?;
        self.free.push(at);
        self.places[at].take().map(|place| place.entry)
    }

    /// Forgets an account that nothing holds here and that was not used since the hand came by last.
    fn forget_one(&mut self) -> Option<usize> {
        // Twice around: the first time may only have taken everybody's mark.
        for _ in 0..self.places.len() * 2 {
            let at = self.hand;
            self.hand = (at + 1) % self.places.len();
            let Some(Place { hash, entry: Entry::Here(live) }) = &mut self.places[at] else { continue };
            if live.is_pinned() {
                continue;
            }
            if !std::mem::take(&mut live.used) {
                self.index.remove(hash);
                self.places[at] = None;
                return Some(at);
            }
        }
        None
    }

    /// How many accounts are here.
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }
}
