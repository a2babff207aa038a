//! The part of the store behind the ledger: accounts of counted purchases, debits in groups, refunds, answers kept for
//! repeated requests, and the epochs in which all that was written.
//!
//! An account begins with the signed terms of its purchase and is never written from anything else. Debits are not
//! awaited by requests, so each group carries its place in the sequence of its epoch, and the store remembers the last
//! one: a group whose acknowledgement was lost is written again without being counted again.

use std::sync::Arc;

use bytes::Bytes;
use farebox_protocol::{CapabilityName, Msat, Offer, PaymentHash, ServiceName, Terms, Timestamp};
use futures_util::future::BoxFuture;

use super::{Page, Presentation, Sale, StoreError};
use crate::ledger::{
    law::{Balance, Refund},
    month::Month,
};

/// What units are counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// Requests that the upstream has answered.
    Request,
    /// Money: prepaid credit.
    Msat,
}

/// How many units terms are good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Allotment {
    /// What they are counted in.
    pub unit: Unit,
    /// How many.
    pub units: u64,
}

/// Where a store finds an account again without looking for it. It says so itself when it reads one; to others it means
/// nothing, and neither does it in another life of the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place(pub u64);

/// The account of one counted purchase, as the books have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The payment.
    pub hash: PaymentHash,
    /// What was bought with it.
    pub service: ServiceName,
    /// What units are counted in.
    pub unit: Unit,
    /// What was paid for all of them.
    pub price: Msat,
    /// What became of them. Nothing is reserved here: reservations end with the process.
    pub balance: Balance,
    /// How many requests were charged.
    pub requests: u64,
    /// When it was opened.
    pub opened_at: Timestamp,
    /// When it was last charged.
    pub debited_at: Option<Timestamp>,
    /// Where it is, for who charges it.
    pub place: Option<Place>,
}

/// What came of opening an account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The account, new or old; `None` where this payment bought something else, which only somebody who has a secret of
    /// ours can have brought about.
    pub account: Option<Account>,
    /// What the presentation completes, as with [`Store::present`](super::Store::present).
    pub sales: Vec<Sale>,
}

/// One life of a ledger, from its start to its end. Only the newest may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EpochId(pub u64);

/// What the books say of one epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch {
    /// Which.
    pub id: EpochId,
    /// When it began.
    pub began_at: Timestamp,
    /// When it ended in order, with everything written. One without this still runs, or was cut off.
    pub ended_at: Option<Timestamp>,
    /// How many groups of debits it wrote.
    pub groups: u64,
    /// When it wrote the last of them.
    pub written_at: Option<Timestamp>,
}

/// Debits that are written together or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Who writes them.
    pub epoch: EpochId,
    /// Which group of this epoch it is; the first is 1. The one after the last one written is written, that one or an
    /// earlier one is written already, and any other is an error.
    pub number: u64,
    /// When it is written for the first time.
    pub at: Timestamp,
    /// At most one for each account.
    pub debits: Vec<Debit>,
    /// What tokens with limits by the month have used: at most one for each purchase, month, capability and unit.
    pub uses: Vec<MonthlyUse>,
    /// Answers to charged requests, for who repeats them.
    pub answers: Vec<KeptAnswer>,
}

/// What one account is charged in one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Debit {
    /// Which account.
    pub hash: PaymentHash,
    /// Where it is, as far as is known.
    pub place: Option<Place>,
    /// Its service, for the statistics.
    pub service: ServiceName,
    /// How many requests this is.
    pub requests: u64,
    /// Units to take.
    pub units: u64,
    /// Units used that nobody pays for.
    pub written_off: u64,
}

/// What tokens that are limited by the month have used of a purchase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MonthlyUse {
    /// Of which payment. It needs no account, nor need its token be on the books yet.
    pub hash: PaymentHash,
    /// In which month.
    pub month: Month,
    /// Of what.
    pub capability: CapabilityName,
    /// What it is counted in.
    pub unit: Unit,
    /// How much, in that unit.
    pub used: u64,
}

/// What a store found wrong with debits that it wrote. A ledger that works never hears of any; they must not keep the rest
/// of the group from being written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Debited {
    /// Units that the accounts didn't have, written off instead.
    pub excess: u64,
    /// Accounts that don't exist.
    pub missing: u64,
}

/// What a repeated request is known by: SHA-256 of payment hash and idempotency key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AnswerKey(pub [u8; 32]);

/// What a request was, so that another one under the same key is told apart: SHA-256 of method, path and body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestDigest(pub [u8; 32]);

/// The answer to a request that was charged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptAnswer {
    /// Under which key.
    pub key: AnswerKey,
    /// To which request.
    pub request: RequestDigest,
    /// The answer, or that it was too large to keep.
    pub answer: Option<Arc<StoredAnswer>>,
    /// Until when it is kept.
    pub until: Timestamp,
}

/// An answer as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredAnswer {
    /// Its status.
    pub status: u16,
    /// Its header fields, as `name: value` lines.
    pub headers: Bytes,
    /// Its body.
    pub body: Bytes,
}

/// Which refund. Chosen by who asks for it, so that asking twice is asking once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RefundId(pub [u8; 16]);

/// What a refund is taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefundOf {
    /// Credit that was not used. In msat, as the units of such an account are.
    Credit,
    /// Money beyond the price.
    Surplus,
}

/// Money to be paid back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefundOrder {
    /// Which refund.
    pub id: RefundId,
    /// Of which payment.
    pub hash: PaymentHash,
    /// From what.
    pub of: RefundOf,
    /// How much.
    pub amount: Msat,
    /// When it was asked for.
    pub at: Timestamp,
}

/// A refund on the books.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefundRow {
    /// What was asked for.
    pub order: RefundOrder,
    /// How it ended, where it has.
    pub ended: Option<(Refund, Timestamp)>,
    /// What belongs to it beside the order's amount and isn't taken from its purchase: these books are older than the refund, and
    /// the purchase has no more left, or isn't on them yet. Where nothing will come, the seller has lost it. Mostly nothing.
    pub missing: Msat,
}

/// A row of the journal of refunds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefundMark {
    /// Its number there.
    pub place: u64,
    /// Which refund stands in it, so that the same place of another journal isn't taken for it.
    pub id: RefundId,
}

/// What was sold and used of one service on one day (UTC) by counted purchases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DayOfUse {
    /// Days since 1970.
    pub day: u64,
    /// The service.
    pub service: ServiceName,
    /// What units are counted in.
    pub unit: Unit,
    /// Requests charged.
    pub requests: u64,
    /// Units charged.
    pub units: u64,
    /// Units written off.
    pub written_off: u64,
}

/// What an examination of all books found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// Purchases looked at.
    pub purchases: u64,
    /// Accounts looked at.
    pub accounts: u64,
    /// All money that arrived.
    pub paid: Msat,
    /// Of which beyond any price.
    pub surplus: Msat,
    /// Of which nobody has shown a token for.
    pub unattributed: Msat,
    /// The laws that are broken, each with where. Cut after a hundred.
    pub breaches: Vec<String>,
    /// The last two epochs, newest first.
    pub epochs: Vec<Epoch>,
}

/// Where the ledger keeps its accounts.
pub trait Accounts: Send + Sync {
    /// Begins an epoch. From now on no earlier one may write.
    fn begin_epoch(&self, now: Timestamp) -> BoxFuture<'_, Result<EpochId, StoreError>>;

    /// Ends an epoch in order: everything has been written. Again is no error.
    fn end_epoch(&self, epoch: EpochId, now: Timestamp) -> BoxFuture<'_, Result<(), StoreError>>;

    /// The newest epochs, newest first.
    fn epochs(&self, rows_max: u16) -> BoxFuture<'_, Result<Vec<Epoch>, StoreError>>;

    /// One account.
    fn account(&self, hash: PaymentHash) -> BoxFuture<'_, Result<Option<Account>, StoreError>>;

    /// Some accounts, newest first.
    fn accounts(&self, page: Page) -> BoxFuture<'_, Result<Vec<Account>, StoreError>>;

    /// Opens the account that these terms are good for, unless it is open; books the presentation with it.
    fn open_account(
        &self,
        presentation: Presentation,
        allotment: Allotment,
    ) -> BoxFuture<'_, Result<Opened, StoreError>>;

    /// What has been used of a purchase in one month by tokens that are limited by the month.
    fn uses(&self, hash: PaymentHash, month: Month) -> BoxFuture<'_, Result<Vec<MonthlyUse>, StoreError>>;

    /// Writes a group of debits, once. On the disk when done.
    fn debit(&self, group: Arc<Group>) -> BoxFuture<'_, Result<Debited, StoreError>>;

    /// The answer kept under a key, unless its time is up.
    fn kept_answer(
        &self,
        key: AnswerKey,
        now: Timestamp,
    ) -> BoxFuture<'_, Result<Option<KeptAnswer>, StoreError>>;

    /// Sets money aside for a refund. Again is no error; [`StoreError::NotThere`] where there isn't so much.
    fn begin_refund(&self, order: RefundOrder) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Books how a refund ended. Again is no error, and the first end stays. One of which a part was paid is `Paid` from then
    /// on, and its order's amount is that part.
    fn end_refund(
        &self,
        id: RefundId,
        end: Refund,
        at: Timestamp,
    ) -> BoxFuture<'_, Result<RefundRow, StoreError>>;

    /// One refund.
    fn refund(&self, id: RefundId) -> BoxFuture<'_, Result<Option<RefundRow>, StoreError>>;

    /// Refunds that have not ended, oldest first.
    fn open_refunds(&self, rows_max: u16) -> BoxFuture<'_, Result<Vec<RefundRow>, StoreError>>;

    /// Those of these refunds of which the books know nothing, or only that they came to nothing.
    fn unknown_refunds(&self, ids: Vec<RefundId>) -> BoxFuture<'_, Result<Vec<RefundId>, StoreError>>;

    /// Books a refund that was sent without these books, which are older: one that was paid at this moment, or may have been.
    /// It takes what its purchase has, of an account no more than `limit`; the rest is [`missing`](RefundRow::missing) until there
    /// is something. Again is no error. `None`, and nothing is done, where there is an account and no limit.
    fn add_refund(
        &self,
        order: RefundOrder,
        paid_at: Option<Timestamp>,
        limit: Option<Msat>,
    ) -> BoxFuture<'_, Result<Option<RefundRow>, StoreError>>;

    /// Up to where the journal of refunds is known to be on these books.
    fn refund_mark(&self) -> BoxFuture<'_, Result<Option<RefundMark>, StoreError>>;

    /// Says so.
    fn mark_refunds(&self, mark: RefundMark) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Use by service and day, from one day to another, both included.
    fn days_of_use(&self, from: u64, to: u64) -> BoxFuture<'_, Result<Vec<DayOfUse>, StoreError>>;

    /// Checks every law on every row. Reads everything, and takes its time.
    fn audit(&self) -> BoxFuture<'_, Result<Audit, StoreError>>;
}

impl Allotment {
    /// What terms are good for; `None` for passes, which nothing counts.
    pub const fn of(terms: &Terms) -> Option<Self> {
        match terms.offer {
            Offer::Requests(count) => Some(Self { unit: Unit::Request, units: count.get() }),
            Offer::Credit => Some(Self { unit: Unit::Msat, units: terms.price.get() }),
            Offer::Forever | Offer::Duration(_) => None,
        }
    }
}

impl Unit {
    /// As it is written in the books.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Msat => "msat",
        }
    }
}

impl std::str::FromStr for Unit {
    type Err = UnknownUnit;

    fn from_str(text: &str) -> Result<Self, UnknownUnit> {
        [Self::Request, Self::Msat]
            .into_iter()
            .find(|unit| unit.as_str() == text)
            .ok_or_else(|| UnknownUnit(text.to_owned()))
    }
}

/// A unit that isn't known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no unit; there are `request` and `msat`")]
pub struct UnknownUnit(pub String);
