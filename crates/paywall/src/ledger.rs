//! What has become of what was sold in units: the ledger that never lies.
//!
//! For each counted purchase it holds `sold = spent + reserved + refunding + refunded + left`, in memory and on the disk.
//! A request reserves before it is forwarded, and commits or releases when its answer is known; exactly one gets the last
//! unit. Both happen in memory and wait for nothing: the books belong to one process, and a crash gives back what it had
//! reserved anyway. Debits go to the disk in groups ([`Ledger::run`]); a crash loses at most the last ones, in the buyer's
//! favour. An account begins with the signed terms that it was sold on, when their token is first presented, and is read
//! when it is first needed, so that starting takes no longer with many.
//!
//! Not here: what a request costs, and how its answer ended. Not for passes either, which nothing counts.

use std::{
    num::NonZeroU64,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use farebox_lightning::clock::Clock;
use farebox_protocol::{PaymentHash, ServiceName};
use parking_lot::Mutex;
use tokio::time;
use tokio_util::task::TaskTracker;

use crate::store::{
    Presentation, Sale, StoreError,
    accounts::{Account, Accounts, Allotment, KeptAnswer},
};

mod answers;
mod cache;
pub mod law;
pub mod month;
mod refund;
mod reservation;
mod writer;

pub use answers::{ANSWER_BYTES_MAX, FirstTime, Repeat};
pub use refund::RefundError;
pub use reservation::Reservation;
pub use writer::Unwritten;

use cache::{Cache, Full, Live};
use law::{Balance, Charged, Short};
use month::Reached;
use writer::Writing;

/// How a ledger behaves.
#[derive(Clone, Copy, Debug)]
pub struct LedgerConfig {
    /// How many accounts are kept in memory. Some 300 bytes each. More than are at work at one time, or requests for the
    /// others are refused.
    pub accounts_max: usize,
    /// How many commits may wait to be written before nothing new is reserved: with those of requests under way just then, the
    /// most that a crash can lose. Room for a group, and for what comes while it is written: at 40,000 requests a second
    /// some 300 wait on a busy disk, and 8,000 when it holds its breath for a fifth of a second.
    pub unwritten_max: usize,
    /// How long to wait for the store.
    pub store_timeout: Duration,
    /// How long writing what is left may take at the end.
    pub flush_timeout: Duration,
    /// How long an answer is kept for who repeats the request.
    pub answers_kept: Duration,
    /// How much memory answers may take until they are written. What doesn't fit isn't kept.
    pub answers_bytes_max: usize,
}

/// The accounts of all counted purchases.
pub struct Ledger {
    config: LedgerConfig,
    store: Arc<dyn Accounts>,
    clock: Arc<dyn Clock>,
    accounts: Cache<PaymentHash, Live>,
    months: Cache<month::Key, month::Live>,
    month: Mutex<month::Present>,
    writing: Writing,
    answers: answers::Answers,
    refunding: refund::Refunding,
    /// What must come to its end although nobody waits for it.
    tasks: TaskTracker,
}

/// Why units could not be reserved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// All has been used, or what is left doesn't reach.
    #[error("`{left}` units are left, which is not enough")]
    UsedUp {
        /// What is left.
        left: u64,
    },
    /// What is left is reserved by requests under way, and some of it may come back.
    #[error("all units left are reserved by requests under way")]
    InFlight,
    /// This payment bought something else.
    #[error("this payment is on the books for another sale")]
    OtherSale,
    /// A limit of the token for this month leaves too little.
    #[error(transparent)]
    Limited(#[from] Box<Reached>),
    /// It can't be told just now.
    #[error("the ledger can't be asked just now: {0}")]
    Unavailable(#[from] Unavailable),
}

/// Why the ledger can't say. A reason to answer 503, never to sell again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// Debits can't be written, so no new ones are begun.
    #[error("debits can't be written")]
    NotWriting,
    /// More accounts are at work than there is room for.
    #[error("more accounts are at work than `accounts_max`")]
    Full,
    /// The account could not be read or opened.
    #[error("the account could not be read")]
    Store(#[source] StoreError),
    /// The account could not be read in time.
    #[error("the account could not be read within {} s (`store_timeout`)", .0.as_secs())]
    TimedOut(Duration),
    /// Another process writes these books now, or this one is about to end.
    #[error("this ledger has ended")]
    Ended,
}

/// What was reserved, and what that completes on the books.
#[derive(Debug)]
pub struct Reserved {
    /// The units.
    pub reservation: Reservation,
    /// Sales that were completed by opening the account.
    pub sales: Vec<Sale>,
}

/// How the ledger is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LedgerHealth {
    /// Why debits aren't being written.
    pub writing: Option<String>,
    /// Commits that are not on the disk: what a crash just now would lose.
    pub unwritten: usize,
    /// Accounts in memory.
    pub accounts: usize,
}

impl From<Full> for Refused {
    fn from(Full: Full) -> Self {
        Self::Unavailable(Unavailable::Full)
    }
}

impl LedgerConfig {
    /// The usual settings.
    pub const fn new() -> Self {
        Self {
            accounts_max: 65_536,
            unwritten_max: 16_384,
            store_timeout: Duration::from_secs(2),
            flush_timeout: Duration::from_secs(5),
            answers_kept: Duration::from_secs(86_400),
            answers_bytes_max: 16 << 20,
        }
    }
}

impl Default for LedgerConfig {
    fn default() -> Self {
        Self::new()
    }
}

impl Ledger {
    /// Opens the ledger: begins its epoch, and reads nothing else. Wait for it with a limit.
    ///
    /// # Errors
    ///
    /// When the store can't be written.
    pub async fn open(
        config: LedgerConfig,
        store: Arc<dyn Accounts>,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, StoreError> {
        let epoch = store.begin_epoch(clock.now()).await?;
        Ok(Arc::new(Self {
            config,
            store,
            clock,
            accounts: Cache::new(),
            months: Cache::new(),
            month: Mutex::default(),
            writing: Writing::new(epoch),
            answers: answers::Answers::new(config.answers_bytes_max),
            refunding: refund::Refunding::default(),
            tasks: TaskTracker::new(),
        }))
    }

    /// Sets units of an account aside, if it is in memory and of this sale; `None` where it isn't in memory. Waits for
    /// nothing.
    ///
    /// # Errors
    ///
    /// When there are no more units, or none just now, when it is of another sale, and while the books can't tell.
    pub fn reserve_of_at_once(
        self: &Arc<Self>,
        hash: &PaymentHash,
        service: &ServiceName,
        allotment: Allotment,
        units: NonZeroU64,
    ) -> Option<Result<Reservation, Refused>> {
        if let Err(unavailable) = self.is_available() {
            return Some(Err(unavailable.into()));
        }
        let mut shard = self.accounts.shard(hash).lock();
        let live = shard.live(hash)?;
        if !live.is_of(service, allotment) {
            return Some(Err(Refused::OtherSale));
        }
        Some(self.take(*hash, live, units))
    }

    /// The same, for who knows that it is of this sale.
    pub fn reserve_at_once(
        self: &Arc<Self>,
        hash: &PaymentHash,
        units: NonZeroU64,
    ) -> Option<Result<Reservation, Refused>> {
        if let Err(unavailable) = self.is_available() {
            return Some(Err(unavailable.into()));
        }
        let mut shard = self.accounts.shard(hash).lock();
        Some(self.take(*hash, shard.live(hash)?, units))
    }

    /// Sets units of an account aside. Opens the account on its first use, from the terms that were signed.
    ///
    /// # Errors
    ///
    /// When there are no more units, or none just now; and whenever the books can't tell.
    pub async fn reserve(
        self: &Arc<Self>,
        presentation: Presentation,
        allotment: Allotment,
        units: NonZeroU64,
    ) -> Result<Reserved, Refused> {
        let mut sales = Vec::new();
        let reserved = self.reserve_telling(presentation, allotment, units, |told| sales = told).await;
        Ok(Reserved { reservation: reserved?, sales })
    }

    /// The same, and tells what was completed by opening the account also where the units are refused.
    ///
    /// # Errors
    ///
    /// As above.
    pub async fn reserve_telling(
        self: &Arc<Self>,
        presentation: Presentation,
        allotment: Allotment,
        units: NonZeroU64,
        opened: impl FnOnce(Vec<Sale>),
    ) -> Result<Reservation, Refused> {
        let hash = presentation.hash;
        let service = presentation.sold.service.clone();
        if let Some(outcome) = self.reserve_of_at_once(&hash, &service, allotment, units) {
            return outcome;
        }
        let terms = Some((presentation, allotment));
        let taken = |live: &mut Live| match live.is_of(&service, allotment) {
            true => self.take(hash, live, units),
            // Another sale was presented while this one waited for its account.
            false => Err(Refused::OtherSale),
        };
        let (outcome, sales) = self.at_work(hash, terms, taken).await?;
        if let Some(sales) = sales {
            opened(sales);
        }
        outcome
    }

    /// What is left of an account: neither used nor in use. Opens the account where nobody has used it yet, and says what that
    /// completes.
    ///
    /// # Errors
    ///
    /// When the payment bought something else, or the books can't tell.
    pub async fn left(
        &self,
        presentation: Presentation,
        allotment: Allotment,
    ) -> Result<(u64, Vec<Sale>), Refused> {
        let (hash, service) = (presentation.hash, presentation.sold.service.clone());
        let left = |live: &mut Live| live.is_of(&service, allotment).then_some(live.balance.left());
        let (left, sales) = self.at_work(hash, Some((presentation, allotment)), left).await?;
        Ok((left.ok_or(Refused::OtherSale)?, sales.unwrap_or_default()))
    }

    fn is_available(&self) -> Result<(), Unavailable> {
        if self.writing.is_over() {
            return Err(Unavailable::Ended);
        }
        if self.writing.failing.load(Ordering::Acquire)
            || self.writing.unwritten.load(Ordering::Acquire) >= self.config.unwritten_max
        {
            return Err(Unavailable::NotWriting);
        }
        Ok(())
    }

    fn take(
        self: &Arc<Self>,
        hash: PaymentHash,
        live: &mut Live,
        units: NonZeroU64,
    ) -> Result<Reservation, Refused> {
        match live.balance.reserve(units.get()) {
            Ok(()) => {
                live.pins += 1;
                Ok(Reservation::new(Arc::clone(self), hash, units, live.balance.left()))
            }
            Err(Short::InFlight) => Err(Refused::InFlight),
            Err(Short::UsedUp) => Err(Refused::UsedUp { left: live.balance.left() }),
        }
    }

    /// Does something with an account as soon as it is in memory, within the store's time. With sales where the account was
    /// opened for it.
    async fn at_work<T>(
        &self,
        hash: PaymentHash,
        terms: Option<(Presentation, Allotment)>,
        work: impl FnOnce(&mut Live) -> T,
    ) -> Result<(T, Option<Vec<Sale>>), Refused> {
        let load = async {
            let (account, sales) = self.load(hash, terms).await?;
            Ok((Live::new(&account), sales))
        };
        let may = || Ok(self.is_available()?);
        let found = self.accounts.at_work(hash, self.config.accounts_max, may, load, work);
        let (done, sales) = self.in_time(found).await?;
        Ok((done, sales.flatten()))
    }

    /// Within the store's time.
    async fn in_time<T>(&self, asked: impl Future<Output = Result<T, Refused>>) -> Result<T, Refused> {
        let patience = self.config.store_timeout;
        time::timeout(patience, asked).await.map_err(|_| Unavailable::TimedOut(patience))?
    }

    async fn load(
        &self,
        hash: PaymentHash,
        terms: Option<(Presentation, Allotment)>,
    ) -> Result<(Account, Option<Vec<Sale>>), Refused> {
        let found = self.store.account(hash).await.map_err(Unavailable::Store)?;
        let Some((presentation, allotment)) = terms else {
            return Ok((found.ok_or(Refused::OtherSale)?, None));
        };
        if let Some(account) = found {
            let same = (account.unit, account.balance.sold()) == (allotment.unit, allotment.units);
            let fits = same && account.service == presentation.sold.service;
            return if fits { Ok((account, None)) } else { Err(Refused::OtherSale) };
        }
        let opened = self.store.open_account(presentation, allotment).await.map_err(Unavailable::Store)?;
        Ok((opened.account.ok_or(Refused::OtherSale)?, Some(opened.sales)))
    }

    fn release(&self, hash: &PaymentHash, units: NonZeroU64) {
        self.held(hash, |live| {
            live.balance.release(units.get());
            live.pins -= 1;
        });
    }

    fn commit(
        &self,
        hash: &PaymentHash,
        units: NonZeroU64,
        charge: u64,
        answer: Option<KeptAnswer>,
    ) -> Charged {
        let mut shard = self.accounts.shard(hash).lock();
        let live = shard.live(hash).expect("what is held is never forgotten");
        let charged = live.balance.commit(units.get(), charge);
        debug_assert!(live.balance.holds(), "{:?}", live.balance);
        live.pins -= 1;
        let is_first = live.debit.is_zero();
        live.debit.add(charged);
        live.answers.extend(answer);
        if is_first {
            shard.unwritten.push_back(*hash);
        }
        // Counted before it can be gathered.
        self.writing.add_one();
        drop(shard);
        self.writing.wake.notify_one();
        charged
    }

    /// Works on an account that something holds in memory.
    fn held<T>(&self, hash: &PaymentHash, work: impl FnOnce(&mut Live) -> T) -> T {
        let mut shard = self.accounts.shard(hash).lock();
        let live = shard.live(hash).expect("what is held is never forgotten");
        let done = work(live);
        debug_assert!(live.balance.holds(), "{:?}", live.balance);
        done
    }

    /// The balance of an account, if it is in memory.
    pub fn balance(&self, hash: &PaymentHash) -> Option<Balance> {
        self.accounts.shard(hash).lock().live(hash).map(|live| live.balance)
    }

    /// How it is doing.
    pub fn health(&self) -> LedgerHealth {
        LedgerHealth {
            writing: self.writing.trouble.text(),
            unwritten: self.writing.unwritten.load(Ordering::Acquire),
            accounts: self.accounts.len(),
        }
    }
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger")
            .field("config", &self.config)
            .field("health", &self.health())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
