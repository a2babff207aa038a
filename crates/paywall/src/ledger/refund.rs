//! Units that go back to the buyer as money: set aside on the disk before anything is paid, and until it is certain how the
//! payment ended.
//!
//! Paying is the business of `lightning::outgoing`. What is begun here comes to its end in a task of the ledger, whether or
//! not anybody waits for it: a store that doesn't answer is asked again, under the same id, until it is known what it did.

use std::{num::NonZeroU64, sync::Arc};

use farebox_protocol::{Msat, PaymentHash, Timestamp};
use parking_lot::Mutex;
use tokio::time;
use tokio_util::sync::CancellationToken;

use super::{
    Ledger, Refused, Reservation, Unavailable,
    law::{Balance, Refund},
    writer::RETRY_MAX,
};
use crate::{
    store::{
        StoreError,
        accounts::{RefundId, RefundMark, RefundOf, RefundOrder, RefundRow},
    },
    trouble::Backoff,
};

/// Why a refund was not begun or ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RefundError {
    /// There isn't so much, or it is reserved.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The store refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The same refund is being begun or ended just now.
    #[error("this refund is being worked on; ask again")]
    UnderWay,
    /// The ledger's task was cut off.
    #[error("the ledger has ended; ask again after its next start")]
    Ended,
}

/// The refunds that a task is working on.
#[derive(Default)]
pub(super) struct Refunding(Mutex<std::collections::HashSet<RefundId>>);

/// A refund that nobody else works on.
struct Claim {
    ledger: Arc<Ledger>,
    id: RefundId,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.ledger.refunding.0.lock().remove(&self.id);
    }
}

impl Ledger {
    /// Sets money aside for a refund. Asking again with the same order is no error and sets nothing more aside; after
    /// [`RefundError::UnderWay`], asking again is how to find out.
    ///
    /// # Errors
    ///
    /// When there isn't so much, or the books can't tell.
    pub async fn begin_refund(self: &Arc<Self>, order: RefundOrder) -> Result<(), RefundError> {
        let claim = self.claim(order.id)?;
        if let Some(row) = self.refund(order.id).await? {
            let same = RefundOrder { at: order.at, ..row.order } == order;
            return if same { Ok(()) } else { Err(StoreError::OtherRefund.into()) };
        }
        let reservation = match (order.of, NonZeroU64::new(order.amount.get())) {
            (RefundOf::Surplus, _) => None,
            (RefundOf::Credit, None) => return Err(StoreError::NotThere.into()),
            (RefundOf::Credit, Some(units)) => {
                let taken = self.at_work(order.hash, None, |live| self.take(order.hash, live, units));
                Some(taken.await?.0?)
            }
        };
        self.finish(claim, move |ledger| async move {
            let begun = ledger.insist(|| ledger.store.begin_refund(order)).await;
            match (&begun, reservation) {
                (Ok(()), Some(reservation)) => reservation.refund(),
                (_, reservation) => reservation.into_iter().for_each(Reservation::release),
            }
            begun
        })
        .await
    }

    /// Books how a refund ended. Asking again is no error; the first end stays.
    ///
    /// # Errors
    ///
    /// When there is no such refund, a part of it is nothing, or the books can't tell.
    pub async fn end_refund(self: &Arc<Self>, id: RefundId, end: Refund) -> Result<RefundRow, RefundError> {
        let claim = self.claim(id)?;
        let row = self.refund(id).await?.ok_or(StoreError::NotThere)?;
        if row.ended.is_some() {
            return Ok(row);
        }
        let RefundOrder { hash, of, .. } = row.order;
        let pin = match of {
            RefundOf::Surplus => None,
            RefundOf::Credit => match self.at_work(hash, None, |live| live.pins += 1).await {
                Ok(_) => Some(Pin { ledger: Arc::clone(self), hash }),
                // Its account isn't opened yet, and what isn't there has nothing in memory.
                Err(Refused::OtherSale) if row.missing > Msat::ZERO => None,
                Err(refused) => return Err(refused.into()),
            },
        };
        // What is set aside in the account is known once that is in memory: opening it may have set aside what was missing.
        let amount = match row.missing {
            Msat::ZERO => row.order.amount,
            _ => self.refund(id).await?.ok_or(StoreError::NotThere)?.order.amount,
        };
        let at = self.clock.now();
        self.finish(claim, move |ledger| async move {
            let ended = ledger.insist(|| ledger.store.end_refund(id, end, at)).await;
            if let (Ok(_), Some(pin)) = (&ended, &pin) {
                ledger.held(&pin.hash, |live| live.balance.end_refund(amount.get(), end));
            }
            ended
        })
        .await
    }

    /// Books a refund that was sent while these books, which are older, didn't know of it: one that was paid at this moment,
    /// or that may have been. What its purchase has is taken at once, and what it will have as soon as it has it. Asking
    /// again is no error and takes nothing more.
    ///
    /// # Errors
    ///
    /// When the books know another refund by this id, or can't tell.
    pub async fn add_refund(
        self: &Arc<Self>,
        order: RefundOrder,
        paid_at: Option<Timestamp>,
    ) -> Result<RefundRow, RefundError> {
        let claim = self.claim(order.id)?;
        let is_new = |row: &RefundRow| match row.ended {
            Some((Refund::Failed, _)) => paid_at.is_some() && row.missing == Msat::ZERO,
            _ => false,
        };
        if let Some(row) = self.refund(order.id).await?
            && !is_new(&row)
        {
            return Ok(row);
        }
        let taken = match order.of {
            RefundOf::Surplus => None,
            RefundOf::Credit => {
                let take = |balance: &mut Balance| balance.reserve_some(order.amount.get());
                let taken = self.at_work(order.hash, None, |live| {
                    live.pins += 1;
                    take(&mut live.balance)
                });
                match taken.await {
                    Ok((units, _)) => Some((Pin { ledger: Arc::clone(self), hash: order.hash }, units)),
                    // There is no account yet, or none of credit.
                    Err(Refused::OtherSale) => None,
                    Err(refused) => return Err(refused.into()),
                }
            }
        };
        let limit = taken.as_ref().map(|(_, units)| Msat::new(*units));
        self.finish(claim, move |ledger| async move {
            let added = ledger.insist(|| ledger.store.add_refund(order, paid_at, limit)).await;
            if let Some((pin, units)) = &taken {
                let booked = match &added {
                    Ok(Some(row)) => row.order.amount.get().min(*units),
                    Ok(None) | Err(_) => 0,
                };
                ledger.held(&pin.hash, |live| {
                    live.balance.release(units - booked);
                    live.balance.begin_refund(booked);
                    if paid_at.is_some() {
                        live.balance.end_refund(booked, Refund::Paid);
                    }
                });
            }
            added
        })
        .await?
        // Its account was opened just now.
        .ok_or(RefundError::UnderWay)
    }

    /// Those of these refunds of which the books know nothing, or only that they came to nothing.
    ///
    /// # Errors
    ///
    /// When the books can't tell.
    pub async fn unknown_refunds(&self, ids: Vec<RefundId>) -> Result<Vec<RefundId>, RefundError> {
        self.asked(self.store.unknown_refunds(ids)).await
    }

    /// Up to where the journal of refunds is known to be on these books.
    ///
    /// # Errors
    ///
    /// When the books can't tell.
    pub async fn refund_mark(&self) -> Result<Option<RefundMark>, RefundError> {
        self.asked(self.store.refund_mark()).await
    }

    /// Says so.
    ///
    /// # Errors
    ///
    /// When the books can't be written.
    pub async fn mark_refunds(&self, mark: RefundMark) -> Result<(), RefundError> {
        self.asked(self.store.mark_refunds(mark)).await
    }

    /// One refund, as the books have it.
    ///
    /// # Errors
    ///
    /// When the books can't tell.
    pub async fn refund(&self, id: RefundId) -> Result<Option<RefundRow>, RefundError> {
        self.asked(self.store.refund(id)).await
    }

    /// Refunds that have not ended, oldest first: those that a crash has cut off, right after a start.
    ///
    /// # Errors
    ///
    /// When the books can't tell.
    pub async fn open_refunds(&self, rows_max: u16) -> Result<Vec<RefundRow>, RefundError> {
        self.asked(self.store.open_refunds(rows_max)).await
    }

    /// Within the store's time.
    async fn asked<T>(
        &self,
        question: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, RefundError> {
        self.is_available().map_err(Refused::from)?;
        let patience = self.config.store_timeout;
        let answer = time::timeout(patience, question).await;
        Ok(answer.map_err(|_| Refused::from(Unavailable::TimedOut(patience)))??)
    }

    fn claim(self: &Arc<Self>, id: RefundId) -> Result<Claim, RefundError> {
        let is_free = self.refunding.0.lock().insert(id);
        is_free.then(|| Claim { ledger: Arc::clone(self), id }).ok_or(RefundError::UnderWay)
    }

    /// Does the work in a task of the ledger's own: who asked may go away, and doesn't wait longer than for anything else.
    async fn finish<T: Send + 'static, W>(
        self: &Arc<Self>,
        claim: Claim,
        work: impl FnOnce(Arc<Self>) -> W,
    ) -> Result<T, RefundError>
    where
        W: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let work = work(Arc::clone(self));
        let task = self.tasks.spawn(async move {
            let done = work.await;
            drop(claim);
            done
        });
        match time::timeout(self.config.store_timeout, task).await {
            Ok(done) => Ok(done.map_err(|_| RefundError::Ended)??),
            Err(_) => Err(RefundError::UnderWay),
        }
    }

    /// Asks the store until it says what it did. An error that isn't about the question leaves that open: a commit may have
    /// failed after it was on the disk.
    async fn insist<T, A>(&self, ask: impl Fn() -> A) -> Result<T, StoreError>
    where
        A: Future<Output = Result<T, StoreError>>,
    {
        let (mut backoff, never) = (Backoff::up_to(RETRY_MAX), CancellationToken::new());
        loop {
            match time::timeout(self.config.store_timeout, ask()).await {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(error)) if error.is_final() => return Err(error),
                Ok(Err(_)) | Err(_) => backoff.wait(&never).await,
            }
        }
    }
}

/// Holds an account in memory.
struct Pin {
    ledger: Arc<Ledger>,
    hash: PaymentHash,
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.ledger.held(&self.hash, |live| live.pins -= 1);
    }
}
