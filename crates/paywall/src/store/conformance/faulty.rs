//! A store that does as it is told: it fails, forgets to answer, or does what it was asked and says that it didn't.

use std::{collections::VecDeque, sync::Arc};

use farebox_lightning::Cursor;
use farebox_protocol::{Fingerprint, Msat, PaymentHash, Timestamp};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use crate::{
    Continuity,
    ledger::{law::Refund, month::Month},
    store::{
        Arrival, Booked, Page, Presentation, Purchase, Revocation, RevocationCursor, Revoked, Sale, Store,
        StoreError,
        accounts::{
            Account, Accounts, Allotment, AnswerKey, Audit, DayOfUse, Debited, Epoch, EpochId, Group,
            KeptAnswer, MonthlyUse, Opened, RefundId, RefundMark, RefundOrder, RefundRow,
        },
        entry::Entry,
    },
};

/// What is wrong with one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// It isn't done.
    Fails(StoreError),
    /// It is done, and the answer is that it isn't.
    FailsAfterwards(StoreError),
    /// It isn't done, and nobody says so.
    Hangs,
    /// It is done, and nobody says so.
    HangsAfterwards,
}

/// A store with faults.
pub struct Faulty {
    inner: Arc<dyn Store>,
    /// One for each of the next calls.
    pub next: Mutex<VecDeque<Fault>>,
    /// For all calls after those.
    pub always: Mutex<Fault>,
}

impl Faulty {
    /// A store without faults as yet.
    pub fn new(inner: Arc<dyn Store>) -> Self {
        Self { inner, next: Mutex::default(), always: Mutex::new(Fault::None) }
    }

    /// Makes it work.
    pub fn repair(&self) {
        self.next.lock().clear();
        *self.always.lock() = Fault::None;
    }

    fn through<'a, T: Send + 'a>(
        &'a self,
        ask: impl FnOnce(&'a dyn Store) -> BoxFuture<'a, Result<T, StoreError>> + Send + 'a,
    ) -> BoxFuture<'a, Result<T, StoreError>> {
        let fault = self.next.lock().pop_front().unwrap_or_else(|| self.always.lock().clone());
        Box::pin(async move {
            match fault {
                Fault::None => ask(&*self.inner).await,
                Fault::Fails(error) => Err(error),
                Fault::Hangs => std::future::pending().await,
                Fault::FailsAfterwards(error) => ask(&*self.inner).await.and(Err(error)),
                Fault::HangsAfterwards => {
                    ask(&*self.inner).await?;
                    std::future::pending().await
                }
            }
        })
    }
}

macro_rules! through {
    ($($name:ident($($argument:ident: $type:ty),*) -> $done:ty;)*) => {
        $(fn $name(&self, $($argument: $type),*) -> BoxFuture<'_, Result<$done, StoreError>> {
            self.through(move |store| store.$name($($argument),*))
        })*
    };
}

impl Store for Faulty {
    through! {
        adopt(secrets: Vec<Fingerprint>, continuity: Continuity, now: Timestamp) -> ();
        present(presentations: Vec<Presentation>) -> Vec<Sale>;
        purchase(hash: PaymentHash) -> Option<Purchase>;
        entry(hash: PaymentHash) -> Option<Entry>;
        purchases(page: Page) -> Vec<Purchase>;
        revoke(revocation: Revocation) -> ();
        revocations(after: RevocationCursor) -> Revoked;
    }

    fn cursor(&self, node: &str) -> BoxFuture<'_, Result<Cursor, StoreError>> {
        let node = node.to_owned();
        self.through(move |store| Box::pin(async move { store.cursor(&node).await }))
    }

    fn settle(
        &self,
        node: &str,
        arrivals: Vec<Arrival>,
        to: Cursor,
    ) -> BoxFuture<'_, Result<Booked, StoreError>> {
        let node = node.to_owned();
        self.through(move |store| Box::pin(async move { store.settle(&node, arrivals, to).await }))
    }
}

impl Accounts for Faulty {
    through! {
        begin_epoch(now: Timestamp) -> EpochId;
        end_epoch(epoch: EpochId, now: Timestamp) -> ();
        epochs(rows_max: u16) -> Vec<Epoch>;
        account(hash: PaymentHash) -> Option<Account>;
        accounts(page: Page) -> Vec<Account>;
        open_account(presentation: Presentation, allotment: Allotment) -> Opened;
        uses(hash: PaymentHash, month: Month) -> Vec<MonthlyUse>;
        debit(group: Arc<Group>) -> Debited;
        kept_answer(key: AnswerKey, now: Timestamp) -> Option<KeptAnswer>;
        begin_refund(order: RefundOrder) -> ();
        end_refund(id: RefundId, end: Refund, at: Timestamp) -> RefundRow;
        refund(id: RefundId) -> Option<RefundRow>;
        open_refunds(rows_max: u16) -> Vec<RefundRow>;
        unknown_refunds(ids: Vec<RefundId>) -> Vec<RefundId>;
        add_refund(order: RefundOrder, paid_at: Option<Timestamp>, limit: Option<Msat>) -> Option<RefundRow>;
        refund_mark() -> Option<RefundMark>;
        mark_refunds(mark: RefundMark) -> ();
        days_of_use(from: u64, to: u64) -> Vec<DayOfUse>;
        audit() -> Audit;
    }
}
