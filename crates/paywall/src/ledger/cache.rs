//! What is in memory of the books, the accounts among it: a bounded number, each as it is on the books plus what isn't
//! written yet.
//!
//! An account is *pinned* while anything of it is known nowhere else: a reservation, a debit that is not on the disk, a
//! load that others wait for. What is pinned is never forgotten, so that reading an account from the store can't bring
//! back units that have been used; when all there is room for is pinned, a newcomer is refused.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
};

use farebox_protocol::{PaymentHash, ServiceName};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::law::{Balance, Charged};
use crate::store::accounts::{Account, Allotment, Debit, KeptAnswer, Place as AccountPlace, Unit};

/// How many locks share what is here.
pub(super) const SHARDS: usize = 16;

/// What is kept in memory by its key, and read from the store when it is first asked for.
pub(super) struct Cache<K, V> {
    shards: [Mutex<Shard<K, V>>; SHARDS],
}

/// What something is known by.
pub(super) trait Key: Copy + Eq + Hash {
    /// The payment that it belongs to.
    fn payment(&self) -> &PaymentHash;
}

/// Something that is kept in memory.
pub(super) trait Kept {
    /// Whether anything of it is known nowhere else.
    fn is_pinned(&self) -> bool;

    /// Spared once by the search for something to forget.
    fn used(&mut self) -> &mut bool;
}

/// Some of it, behind one lock.
pub(super) struct Shard<K, V> {
    index: HashMap<K, usize>,
    places: Vec<Option<Place<K, V>>>,
    free: Vec<usize>,
    /// Where the search for something to forget goes on.
    hand: usize,
    /// What has something to be written, oldest first.
    pub(super) unwritten: VecDeque<K>,
}

struct Place<K, V> {
    key: K,
    entry: Entry<V>,
}

/// What is known under one key.
enum Entry<V> {
    /// Somebody is reading it; the token is cancelled when that is over, however it ended.
    Loading(CancellationToken),
    /// It is here.
    Here(Box<V>),
}

/// An account at work.
#[derive(Debug)]
pub(super) struct Live {
    service: ServiceName,
    place: Option<AccountPlace>,
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
            place: account.place,
            unit: account.unit,
            balance,
            pins: 0,
            debit: Sum::default(),
            answers: Vec::new(),
            writing: false,
            used: true,
        }
    }

    /// Takes what is to be written of it.
    pub(super) fn take(&mut self, hash: PaymentHash, answers: &mut Vec<KeptAnswer>) -> Debit {
        answers.append(&mut self.answers);
        self.writing = true;
        let Sum { requests, units, written_off } = std::mem::take(&mut self.debit);
        Debit { hash, place: self.place, service: self.service.clone(), requests, units, written_off }
    }

    /// Whether it is the account of this sale. Who has a secret of ours can write another one over the same payment.
    pub(super) fn is_of(&self, service: &ServiceName, allotment: Allotment) -> bool {
        (self.unit, self.balance.sold()) == (allotment.unit, allotment.units) && self.service == *service
    }
}

impl Key for PaymentHash {
    fn payment(&self) -> &PaymentHash {
        self
    }
}

impl Kept for Live {
    fn is_pinned(&self) -> bool {
        self.pins > 0 || self.writing || !self.debit.is_zero()
    }

    fn used(&mut self) -> &mut bool {
        &mut self.used
    }
}

impl Sum {
    pub(super) fn is_zero(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn add(&mut self, charged: Charged) {
        self.requests = self.requests.saturating_add(1);
        self.units = self.units.saturating_add(charged.spent);
        self.written_off = self.written_off.saturating_add(charged.written_off);
    }
}

impl<K: Key, V: Kept> Cache<K, V> {
    pub(super) fn new() -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::new(Shard::new())) }
    }

    pub(super) fn shard(&self, key: &K) -> &Mutex<Shard<K, V>> {
        &self.shards[usize::from(key.payment().as_bytes()[0]) % SHARDS]
    }

    /// All of it, beginning anywhere.
    pub(super) fn shards_from(&self, first: u64) -> impl Iterator<Item = &Mutex<Shard<K, V>>> {
        let first = usize::try_from(first % SHARDS as u64).unwrap_or_default();
        self.shards.iter().cycle().skip(first).take(SHARDS)
    }

    /// How much is here.
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().index.len()).sum()
    }

    /// Works on what something holds in memory.
    pub(super) fn held<T>(&self, key: &K, work: impl FnOnce(&mut V) -> T) -> T {
        work(self.shard(key).lock().live(key).expect("what is held is never forgotten"))
    }

    /// Does something with what is under a key as soon as it is here, reading it where it isn't; however many want it at
    /// once, one of them reads. With what reading it has told, where this is the one.
    pub(super) async fn at_work<T, X, E: From<Full>>(
        &self,
        key: K,
        places_max: usize,
        may: impl Fn() -> Result<(), E>,
        load: impl Future<Output = Result<(V, X), E>>,
        work: impl FnOnce(&mut V) -> T,
    ) -> Result<(T, Option<X>), E> {
        loop {
            may()?;
            let loading = {
                let mut shard = self.shard(&key).lock();
                match shard.entry(&key) {
                    Some(Entry::Here(live)) => return Ok((work(live), None)),
                    Some(Entry::Loading(over)) => Err(over.clone()),
                    None => Ok(self.begin_loading(&mut shard, key, places_max)?),
                }
            };
            match loading {
                Ok(loading) => {
                    let (live, told) = load.await?;
                    return Ok((loading.done(live, work), Some(told)));
                }
                Err(over) => over.cancelled().await,
            }
        }
    }

    fn begin_loading(
        &self,
        shard: &mut Shard<K, V>,
        key: K,
        places_max: usize,
    ) -> Result<Loading<'_, K, V>, Full> {
        let over = CancellationToken::new();
        shard.put(key, Entry::Loading(over.clone()), places_max.div_ceil(SHARDS))?;
        Ok(Loading { cache: self, key, over })
    }
}

/// Something that is being read. Dropped, it makes way for the next who tries.
struct Loading<'a, K: Key, V: Kept> {
    cache: &'a Cache<K, V>,
    key: K,
    over: CancellationToken,
}

impl<K: Key, V: Kept> Loading<'_, K, V> {
    fn done<T>(self, live: V, work: impl FnOnce(&mut V) -> T) -> T {
        let mut shard = self.cache.shard(&self.key).lock();
        let entry = shard.entry(&self.key).expect("a place that is being read into is never forgotten");
        *entry = Entry::Here(Box::new(live));
        let Entry::Here(live) = entry else { unreachable!("put there just now") };
        work(live)
    }
}

impl<K: Key, V: Kept> Drop for Loading<'_, K, V> {
    fn drop(&mut self) {
        let mut shard = self.cache.shard(&self.key).lock();
        if let Some(Entry::Loading(_)) = shard.entry(&self.key) {
            shard.remove(&self.key);
        }
        self.over.cancel();
    }
}

impl<K: Key, V: Kept> Shard<K, V> {
    fn new() -> Self {
        let (index, places, free) = (HashMap::new(), Vec::new(), Vec::new());
        Self { index, places, free, hand: 0, unwritten: VecDeque::new() }
    }

    /// What is here under a key.
    pub(super) fn live(&mut self, key: &K) -> Option<&mut V> {
        match self.entry(key)? {
            Entry::Here(live) => {
                *live.used() = true;
                Some(live)
            }
            Entry::Loading(_) => None,
        }
    }

    fn entry(&mut self, key: &K) -> Option<&mut Entry<V>> {
        let at = *self.index.get(key)?;
        self.places[at].as_mut().map(|place| &mut place.entry)
    }

    /// Puts something in its place, which may be taken from something else that nothing holds here.
    fn put(&mut self, key: K, entry: Entry<V>, places_max: usize) -> Result<(), Full> {
        if let Some(here) = self.entry(&key) {
            *here = entry;
            return Ok(());
        }
        let place = Some(Place { key, entry });
        let at = match self.free.pop() {
            Some(at) => at,
            None if self.places.len() < places_max => {
                self.places.push(None);
                self.places.len() - 1
            }
            None => self.forget_one().ok_or(Full)?,
        };
        self.places[at] = place;
        self.index.insert(key, at);
        Ok(())
    }

    fn remove(&mut self, key: &K) {
        if let Some(at) = self.index.remove(key) {
            self.free.push(at);
            self.places[at] = None;
        }
    }

    /// Forgets something that nothing holds here and that was not used since the hand came by last.
    fn forget_one(&mut self) -> Option<usize> {
        // Twice around: the first time may only have taken everybody's mark.
        for _ in 0..self.places.len() * 2 {
            let at = self.hand;
            self.hand = (at + 1) % self.places.len();
            let Some(Place { key, entry: Entry::Here(live) }) = &mut self.places[at] else { continue };
            if live.is_pinned() {
                continue;
            }
            if !std::mem::take(live.used()) {
                self.index.remove(key);
                self.places[at] = None;
                return Some(at);
            }
        }
        None
    }
}
