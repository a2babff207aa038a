//! Money back to who paid it: what is left of credit, and what came beyond a price.
//!
//! A refund goes to the holder of the whole token and to nobody else. It is written down, then set aside in the ledger, then
//! paid through `lightning::outgoing`, then booked; each step is on disk before the next one begins, so a crash pays at most
//! once, and the next start brings to an end what it finds ([`Refunds::pay_from`]). Money whose fate isn't known stays set
//! aside. The buyer bears what the route costs, up to a limit that is set aside with the amount, and gets back what it
//! didn't cost. One refund of a purchase at a time, one try for an invoice, and so much a day for all of them.
//!
//! Not here: which part of the money is left (the ledger), and how a payment is made and followed (`lightning::outgoing`).

mod amount;
mod at_work;
mod compare;
mod front;
mod journal;
mod records;
mod work;

use std::{
    fmt,
    path::Path,
    str::FromStr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use farebox_lightning::{
    Outcome, Pay,
    clock::Clock,
    lnaddress::{AddressError, LightningAddress, Resolve},
    outgoing::{IntentError, Outgoing, OutgoingConfig, sqlite::SqliteIntents},
};
use farebox_protocol::{Invoice, Msat, PaymentHash};
use http::HeaderMap;
use sha2::{Digest as _, Sha256};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
    time,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use amount::{FeeLimit, LEAST};
pub use compare::{CompareError, Compared};
pub use front::{BODY_BYTES_MAX, PATH, not_offered};
pub use records::{Record, Records, RecordsError, Verdict, Which, Word, WordError};

use at_work::{AtWork, Try};
use journal::{Entry, Journal, Recorded, State, Wanted, Way};

use crate::{
    Paywall,
    limit::Attempts,
    paywall::{Bought, Holder, NoHolder, NotBought},
    store::accounts::{RefundId, RefundOf},
};

/// How long an invoice must be good for, so that a route can be looked for.
const EXPIRY_LEFT: Duration = Duration::from_secs(20);
/// How long a payment may take before its outcome is looked up instead of waited for.
const PAY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a wallet may take to say whether it knows an invoice.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);
/// Refunds that may be judged at once; to addresses as many again.
const AT_ONCE_MAX: usize = 32;
/// How long a refund waits for its turn to be judged.
const TURN_WITHIN: Duration = Duration::from_secs(2);
/// Questions how much there is that may be answered at once. Apart from those, so that asking much keeps nobody from money.
const LOOKS_MAX: usize = 8;

/// How money is paid back.
#[derive(Clone, Debug)]
pub struct RefundConfig {
    /// What a route may cost.
    pub fee_max: FeeLimit,
    /// What all refunds of 24 hours may come to, with what their routes may cost.
    pub daily_max: Msat,
    /// How long a request waits for its payment's end before it is told that it is under way.
    pub answer_within: Duration,
}

/// Where buyers ask for their money. Cheap to share; one for each process.
pub struct Refunds {
    paywall: Arc<Paywall>,
    config: RefundConfig,
    intents: SqliteIntents,
    journal: Journal,
    resolver: Arc<dyn Resolve>,
    clock: Arc<dyn Clock>,
    outgoing: OnceLock<Outgoing>,
    attempts: Attempts,
    at_work: AtWork,
    at_once: Arc<Semaphore>,
    /// Apart from those: whose server may be as slow as it likes keeps nobody with an invoice from money.
    addresses: Arc<Semaphore>,
    looks: Semaphore,
    pending: work::Pending,
    /// Whether the books are known to say all that has left.
    compared: AtomicBool,
    /// Work goes on there although the front door that asked has gone.
    runtime: Handle,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// What a buyer asks for.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// An invoice, or a Lightning address.
    pub to: String,
    /// How much shall arrive; all that can, if nothing is said. An invoice says it itself.
    pub amount: Option<Msat>,
    /// From what; where nothing is said from credit, and where there is none, from the surplus.
    pub of: Option<RefundOf>,
    /// A name by which the same request is known again, for an address; an invoice is one by itself.
    pub key: Option<String>,
}

/// A refund, as its buyer is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Which.
    pub id: RefundId,
    /// From what.
    pub of: RefundOf,
    /// What arrives.
    pub amount: Msat,
    /// What the route may cost.
    pub fee_max: Msat,
    /// How far it is.
    pub state: Progress,
}

/// How far a refund is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Being paid, or perhaps paid; its money is set aside.
    Open,
    /// The money has arrived.
    Paid {
        /// What the route cost.
        fee: Msat,
    },
    /// It has not, and everything is the buyer's again.
    Failed,
}

/// What could be had back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refundable {
    /// Credit that is neither used nor in use.
    pub credit: Msat,
    /// What came beyond the price, and wasn't paid back.
    pub surplus: Msat,
    /// The largest invoice that the larger of both pays.
    pub most: Msat,
    /// What its route may cost.
    pub fee_max: Msat,
    /// Refunds so far, newest first.
    pub refunds: Vec<Told>,
}

/// How refunds are doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RefundHealth {
    /// Refunds that haven't ended.
    pub open: usize,
    /// Of those, the ones of which nobody finds out any more whether they were paid: a person has to say it.
    pub stuck: usize,
}

/// Why no money is paid back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RefundRefusal {
    /// No credential.
    #[error("show the token and its preimage: `Authorization: L402 <token>:<preimage>`")]
    CredentialMissing,
    /// One that proves nothing.
    #[error("the credential is not one token with its preimage, sold here")]
    CredentialWrong,
    /// The token was revoked, or its secret has leaked.
    #[error("nothing is paid back for this token; ask the seller")]
    TokenWithdrawn,
    /// A holder has narrowed the token.
    #[error("money is paid back to the holder of the whole token; use the one this was made from")]
    TokenNarrowed,
    /// The request makes no sense.
    #[error("{0}")]
    Malformed(&'static str),
    /// Another refund is under way.
    #[error("another refund of this purchase is under way; wait for its end")]
    UnderWay,
    /// The payment has not arrived on the books.
    #[error("the payment has not arrived on the books yet; ask again later")]
    Unsettled,
    /// There is not so much.
    #[error("at most {most} can be paid back, with {fee_max} for the route")]
    TooMuch {
        /// The largest amount that can be asked for.
        most: Msat,
        /// What its route may cost.
        fee_max: Msat,
    },
    /// Not worth a route.
    #[error("{LEAST} is the least that is paid back")]
    TooLittle,
    /// The invoice can't be paid.
    #[error("this invoice is not paid: {0}")]
    Invoice(&'static str),
    /// The address leads to no invoice.
    #[error(transparent)]
    Address(AddressError),
    /// There is no such refund.
    #[error("there is no such refund of this purchase")]
    Unknown,
    /// Too many tries.
    #[error("too many tries; ask again later")]
    TooOften(Duration),
    /// The day's money is used up.
    #[error("as much as may be in a day has been paid back; ask again later")]
    DayUsedUp,
    /// Not just now.
    #[error("money can't be paid back just now; ask again later")]
    Unavailable,
}

impl RefundConfig {
    /// The usual limits, with this much a day.
    pub const fn new(daily_max: Msat) -> Self {
        Self { fee_max: FeeLimit::USUAL, daily_max, answer_within: Duration::from_secs(20) }
    }
}

impl Refunds {
    /// Opens the journal of refunds at `path`. Nothing is paid before [`pay_from`](Self::pay_from). Must be called in the
    /// runtime that the work shall be done in, which outlives the front doors'. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// When the file can't be used.
    pub fn open(
        path: &Path,
        paywall: Arc<Paywall>,
        resolver: Arc<dyn Resolve>,
        clock: Arc<dyn Clock>,
        config: RefundConfig,
    ) -> Result<Arc<Self>, IntentError> {
        let intents = SqliteIntents::open(path)?;
        Ok(Arc::new(Self {
            journal: Journal::open(&intents)?,
            paywall,
            config,
            intents,
            resolver,
            clock,
            outgoing: OnceLock::new(),
            attempts: Attempts::default(),
            at_work: AtWork::default(),
            at_once: Arc::new(Semaphore::new(AT_ONCE_MAX)),
            addresses: Arc::new(Semaphore::new(AT_ONCE_MAX)),
            looks: Semaphore::new(LOOKS_MAX),
            pending: work::Pending::default(),
            compared: AtomicBool::new(false),
            runtime: Handle::current(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }))
    }

    /// Brings to an end what an earlier run has begun, then pays from this wallet whoever asks.
    ///
    /// # Errors
    ///
    /// When the journal or the books can't be used; asking again is no error.
    pub async fn pay_from(self: &Arc<Self>, wallet: Arc<dyn Pay>) -> Result<(), CompareError> {
        if !self.compared.load(Ordering::Acquire) {
            self.compare().await?;
        }
        let intents = Arc::new(self.intents.clone());
        // Some 8 s of look-ups that prove nothing: then it can be tried again, or is left to a person.
        let config = OutgoingConfig { empty_lookups_max: 5, ..OutgoingConfig::default() };
        let outgoing = Outgoing::new(wallet, intents, Arc::clone(&self.clock), config);
        self.resume(&outgoing).await?;
        _ = self.outgoing.set(outgoing);
        Ok(())
    }

    /// How refunds are doing.
    pub fn health(&self) -> RefundHealth {
        self.pending.health()
    }

    /// Takes no more requests and waits up to `limit` for those under way. What hasn't ended is brought to its end by the
    /// next start.
    pub async fn stop(&self, limit: Duration) {
        self.stop.cancel();
        self.tasks.close();
        let payments = async {
            if let Some(outgoing) = self.outgoing.get() {
                outgoing.stop(limit).await;
            }
        };
        _ = time::timeout(limit, async { tokio::join!(payments, self.tasks.wait()) }).await;
    }

    /// Pays money back, or says why not. Asking the same again is asking once. A caller who goes away stops nothing.
    ///
    /// # Errors
    ///
    /// When nothing is paid back for this request.
    pub async fn ask(self: &Arc<Self>, headers: &HeaderMap, wish: Wish) -> Result<Told, RefundRefusal> {
        let holder = self.holder(headers)?;
        let (Some(outgoing), false) = (self.outgoing.get().cloned(), self.stop.is_cancelled()) else {
            return Err(RefundRefusal::Unavailable);
        };
        let to: To = wish.to.parse()?;
        // One try for each purchase, before it takes anybody's room.
        let trying = self.at_work.begin(holder.identifier.payment_hash).ok_or(RefundRefusal::UnderWay)?;
        let room = match to {
            To::Invoice(_) => &self.at_once,
            To::Address(_) => &self.addresses,
        };
        // In the order in which they came: who asks again and again comes last each time.
        let permit = time::timeout(TURN_WITHIN, Arc::clone(room).acquire_owned()).await;
        let Ok(Ok(permit)) = permit else { return Err(RefundRefusal::Unavailable) };
        let this = Arc::clone(self);
        let work = async move { this.work_on(&holder, wish, to, outgoing, (trying, permit)).await };
        self.tasks.spawn_on(work, &self.runtime).await.unwrap_or(Err(RefundRefusal::Unavailable))
    }

    /// How far a refund is.
    ///
    /// # Errors
    ///
    /// When there is no such refund of this purchase, or it can't be told.
    pub async fn progress(&self, headers: &HeaderMap, id: RefundId) -> Result<Told, RefundRefusal> {
        let purchase = self.holder(headers)?.identifier.payment_hash;
        let found = self.journal(move |journal| journal.find(id)).await?;
        let found = found.filter(|entry| entry.wanted.purchase == purchase);
        found.map(Told::from).ok_or(RefundRefusal::Unknown)
    }

    /// What could be had back, and what was.
    ///
    /// # Errors
    ///
    /// When there is no holder, no money, or it can't be told.
    pub async fn refundable(&self, headers: &HeaderMap) -> Result<Refundable, RefundRefusal> {
        let holder = self.holder(headers)?;
        let _permit = self.looks.try_acquire().map_err(|_| RefundRefusal::Unavailable)?;
        let bought = self.bought(&holder).await?;
        let purchase = holder.identifier.payment_hash;
        let refunds = self.journal(move |journal| journal.of(purchase)).await?;
        let (credit, surplus) = (Msat::new(bought.credit), self.surplus(&bought).await?);
        let most = self.config.fee_max.largest_within(credit.max(surplus));
        let fee_max = self.config.fee_max.of(most);
        let refunds = refunds.into_iter().map(Told::from).collect();
        Ok(Refundable { credit, surplus, most, fee_max, refunds })
    }

    fn holder(&self, headers: &HeaderMap) -> Result<Holder, RefundRefusal> {
        self.paywall.holder(headers).map_err(|why| match why {
            NoHolder::Nothing => RefundRefusal::CredentialMissing,
            NoHolder::Malformed | NoHolder::Unknown | NoHolder::PreimageWrong => {
                RefundRefusal::CredentialWrong
            }
            NoHolder::Revoked | NoHolder::Withdrawn => RefundRefusal::TokenWithdrawn,
            NoHolder::Narrowed => RefundRefusal::TokenNarrowed,
        })
    }

    async fn bought(&self, holder: &Holder) -> Result<Bought, RefundRefusal> {
        Ok(self.paywall.bought(holder, self.clock.now()).await?)
    }

    async fn surplus(&self, bought: &Bought) -> Result<Msat, RefundRefusal> {
        let (hash, surplus) = (bought.purchase.hash, bought.purchase.surplus);
        let taken = self.journal(move |journal| journal.surplus_taken(hash)).await?;
        Ok(Msat::new(surplus.get().saturating_sub(taken.get())))
    }

    /// From the request to a refund on disk, and on to its end or to the end of the asker's patience.
    async fn work_on(
        self: &Arc<Self>,
        holder: &Holder,
        wish: Wish,
        to: To,
        outgoing: Outgoing,
        room: (Try, OwnedSemaphorePermit),
    ) -> Result<Told, RefundRefusal> {
        let purchase = holder.identifier.payment_hash;
        let known = to.key(&wish).map(|key| id_of(&purchase, &key));
        if let Some(id) = known
            && let Some(entry) = self.journal(move |journal| journal.find(id)).await?
        {
            return wish.again(entry);
        }
        let earlier = self.journal(move |journal| journal.of(purchase)).await?;
        if earlier.iter().any(|entry| entry.state == State::Open) {
            return Err(RefundRefusal::UnderWay);
        }
        let bought = self.bought(holder).await?;
        // From here on somebody's server may be called, and the wallet asked.
        self.attempts.take(purchase).map_err(RefundRefusal::TooOften)?;
        let (of, total) = match wish.of {
            Some(RefundOf::Credit) => (RefundOf::Credit, Msat::new(bought.credit)),
            None if bought.credit > 0 => (RefundOf::Credit, Msat::new(bought.credit)),
            Some(RefundOf::Surplus) | None => (RefundOf::Surplus, self.surplus(&bought).await?),
        };
        let (invoice, amount) = self.destination(to, wish.amount, total).await?;
        let fee_max = self.config.fee_max.of(amount);
        self.judge(&invoice, fee_max, &purchase, &outgoing).await?;

        let payment = invoice.payment_hash();
        // An address gives another invoice each time, so without a name each request is one of its own.
        let id = known.unwrap_or_else(|| id_of(&purchase, payment.as_bytes()));
        // The books may have outlived the journal. What they hold, or have ended, for this name is not set aside for it again.
        let booked = self.paywall.ledger().refund(id).await.map_err(|_| RefundRefusal::Unavailable)?;
        if let Some(row) = booked {
            return match self.journal(move |journal| journal.find(id)).await? {
                Some(entry) => wish.again(entry),
                None if row.ended.is_none() => Err(RefundRefusal::UnderWay),
                None => Err(RefundRefusal::Malformed(
                    "an earlier request of this `id` or invoice has ended; use a new one",
                )),
            };
        }
        let wanted = Wanted { id, purchase, of, amount, fee_max, payment };
        let (daily_max, now) = (self.config.daily_max, self.clock.now());
        let way = Way { wallet: outgoing.facts().wallet, expires: invoice.expires_at() };
        let entry = match self.journal(move |journal| journal.record(&wanted, &way, daily_max, now)).await? {
            Recorded::New(entry) => entry,
            Recorded::Known(entry) => return wish.again(entry),
            Recorded::UnderWay => return Err(RefundRefusal::UnderWay),
            Recorded::InvoiceUsed => return Err(RefundRefusal::Invoice("it was used for another refund")),
            Recorded::DayUsedUp => return Err(RefundRefusal::DayUsedUp),
        };
        // From here on the row keeps others out, and waiting takes no room.
        drop(room);
        let work = Arc::clone(self).carry_out(entry.clone(), invoice, outgoing);
        let work = self.tasks.spawn(work);
        let ended = time::timeout(self.config.answer_within, work).await;
        let state = ended.ok().and_then(Result::ok).unwrap_or(State::Open);
        Ok(Entry { state, ..entry }.into())
    }

    /// The invoice to pay, and what it is over.
    async fn destination(
        &self,
        to: To,
        asked: Option<Msat>,
        total: Msat,
    ) -> Result<(Invoice, Msat), RefundRefusal> {
        let limit = self.config.fee_max;
        let most = limit.largest_within(total);
        let within = |amount: Msat| match amount {
            amount if amount > most => Err(RefundRefusal::TooMuch { most, fee_max: limit.of(most) }),
            amount if amount < LEAST => Err(RefundRefusal::TooLittle),
            amount => Ok(amount),
        };
        match to {
            To::Invoice(invoice) => {
                let amount = invoice.amount().ok_or(RefundRefusal::Invoice("it names no amount"))?;
                if asked.is_some_and(|asked| asked != amount) {
                    return Err(RefundRefusal::Invoice("it is over another amount than was asked for"));
                }
                Ok((invoice, within(amount)?))
            }
            To::Address(address) => {
                // Most services behind addresses take whole satoshi only.
                let whole = Msat::new(most.get() / 1_000 * 1_000);
                let amount = within(asked.unwrap_or(whole))?;
                let invoice =
                    self.resolver.invoice(&address, amount).await.map_err(RefundRefusal::Address)?;
                if invoice.amount() != Some(amount) {
                    return Err(RefundRefusal::Invoice("it is over another amount than was asked for"));
                }
                Ok((invoice, amount))
            }
        }
    }

    /// Whether this invoice may be paid at all.
    async fn judge(
        &self,
        invoice: &Invoice,
        fee_max: Msat,
        purchase: &PaymentHash,
        outgoing: &Outgoing,
    ) -> Result<(), RefundRefusal> {
        let refuse = |why| Err(RefundRefusal::Invoice(why));
        let (hash, amount) = (invoice.payment_hash(), invoice.amount().unwrap_or(Msat::ZERO));
        let facts = outgoing.facts();
        if invoice.network() != self.paywall.network() || invoice.network() != facts.network {
            return refuse("it is for another network");
        }
        if invoice.is_expired(self.clock.now().saturating_add(EXPIRY_LEFT)) {
            return refuse("it has expired, or is about to");
        }
        if self.paywall.is_our_node(&invoice.payee()) {
            return refuse("it is the seller's own");
        }
        if hash == *purchase || self.paywall.is_ours(hash).await? {
            return refuse("its payment hash is on the seller's books");
        }
        if facts.fee_control.fee_max(amount, fee_max) > fee_max {
            tracing::warn!(
                "the wallet can't be held to the fee limit of a refund; raise it (`refunds.fee-max`)"
            );
            return Err(RefundRefusal::Unavailable);
        }
        // Paid before, past this journal, it would count as paid again.
        match time::timeout(LOOKUP_TIMEOUT, outgoing.wallet().lookup(hash)).await {
            Ok(Ok(Outcome::NotFound)) => Ok(()),
            Ok(Ok(_)) => refuse("it was paid before, or tried"),
            Ok(Err(_)) | Err(_) => Err(RefundRefusal::Unavailable),
        }
    }

    /// Uses the journal where blocking is allowed.
    async fn journal<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Journal) -> Result<T, IntentError> + Send + 'static,
    ) -> Result<T, RefundRefusal> {
        let journal = self.journal.clone();
        match self.tasks.spawn_blocking_on(move || work(&journal), &self.runtime).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => {
                tracing::error!(%error, "the journal of refunds can't be used");
                Err(RefundRefusal::Unavailable)
            }
            Err(_) => Err(RefundRefusal::Unavailable),
        }
    }
}

impl Wish {
    /// What there is to say where the same was asked for before. What contradicts it is another request.
    fn again(&self, entry: Entry) -> Result<Told, RefundRefusal> {
        let Wanted { of, amount, .. } = entry.wanted;
        if self.amount.is_some_and(|asked| asked != amount) || self.of.is_some_and(|asked| asked != of) {
            return Err(RefundRefusal::Malformed(
                "an earlier request of this `id` or invoice was for another amount or source; use a new one",
            ));
        }
        Ok(entry.into())
    }
}

/// Where a refund goes.
enum To {
    Invoice(Invoice),
    Address(LightningAddress),
}

impl FromStr for To {
    type Err = RefundRefusal;

    fn from_str(text: &str) -> Result<Self, RefundRefusal> {
        if text.contains('@') {
            return text.parse().map(Self::Address).map_err(RefundRefusal::Address);
        }
        let invoice = text.strip_prefix("lightning:").unwrap_or(text);
        Invoice::parse(invoice).map(Self::Invoice).map_err(|_| RefundRefusal::Invoice("it can't be read"))
    }
}

impl To {
    /// By what the same request is known again.
    fn key(&self, wish: &Wish) -> Option<Vec<u8>> {
        match (self, &wish.key) {
            (Self::Invoice(invoice), _) => Some(invoice.payment_hash().as_bytes().to_vec()),
            (Self::Address(_), key) => key.as_ref().map(|key| key.as_bytes().to_vec()),
        }
    }
}

/// Belongs to one purchase, so that nobody can take another's name.
fn id_of(purchase: &PaymentHash, key: &[u8]) -> RefundId {
    let digest =
        Sha256::new_with_prefix(b"farebox refund v1").chain_update(purchase.as_bytes()).chain_update(key);
    let mut id = [0; 16];
    id.copy_from_slice(&digest.finalize()[..16]);
    RefundId(id)
}

impl From<NotBought> for RefundRefusal {
    fn from(why: NotBought) -> Self {
        match why {
            NotBought::Unsettled => Self::Unsettled,
            NotBought::OtherSale => Self::TokenWithdrawn,
            NotBought::Unavailable(error) => {
                tracing::warn!(error, "a refund can't be judged: the books can't be asked");
                Self::Unavailable
            }
        }
    }
}

impl From<Entry> for Told {
    fn from(entry: Entry) -> Self {
        let Wanted { id, of, amount, fee_max, .. } = entry.wanted;
        let state = match entry.state {
            State::Open => Progress::Open,
            State::Paid { fee } => Progress::Paid { fee },
            State::Failed { .. } => Progress::Failed,
        };
        Self { id, of, amount, fee_max, state }
    }
}

impl fmt::Debug for Refunds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Refunds").field("config", &self.config).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
