//! Makes the books say what has left: at each start they are compared with the journal of refunds, before anything is served.
//!
//! Books that were brought back from an older copy know nothing of refunds that were paid since, and would have the money
//! spent or paid back a second time. So what the journal says has left, or may have, is booked where they don't know it
//! ([`Ledger::add_refund`](crate::ledger::Ledger::add_refund)). A mark in the books says from which row on that is to be
//! asked; it goes back with them.
//!
//! Not here: what the books know and the journal doesn't (`work`, and a person), and refunds that end in both.

use std::sync::atomic::Ordering;

use farebox_lightning::outgoing::{IntentError, State as Sent, sqlite};
use farebox_protocol::{Msat, Timestamp};

use super::{
    Refunds, State,
    journal::{Entry, Journal},
};
use crate::{
    ledger::RefundError,
    store::accounts::{RefundMark, RefundOrder},
    trouble::Backoff,
};

/// Rows that are looked for in the books at once: no more than a slow disk finds within the time that the books have.
const PAGE: u32 = 256;

/// Why the books and the journal could not be compared. Until they have been, nothing is paid back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompareError {
    /// The journal.
    #[error("the journal of refunds can't be read")]
    Journal(#[from] IntentError),
    /// The books.
    #[error("refunds can't be compared with the books")]
    Books(#[from] RefundError),
}

/// What a comparison has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Rows of the journal that were looked for in the books.
    pub looked_for: u64,
    /// Of those, the ones that weren't there and are now.
    pub added: u64,
    /// What they came to.
    pub amount: Msat,
    /// Of which their purchases had nothing to take it from: it is lost to the seller, unless their tokens come yet.
    pub missing: Msat,
}

impl Refunds {
    /// Books all that has left, or may have, and that the books don't know. Call it before anything is served from them; what
    /// is served meanwhile may spend what was paid back. Asking again is no error, and cheap.
    ///
    /// # Errors
    ///
    /// When the journal or the books can't be used.
    pub async fn compare(&self) -> Result<Compared, CompareError> {
        let ledger = self.paywall.ledger();
        let mut compared = Compared::default();
        let mark = ledger.refund_mark().await?;
        let (mut after, upto) =
            self.read(move |journal| Ok((journal.after(mark)?, journal.last_ended()?))).await?;
        loop {
            let page = self.read(move |journal| journal.paid_after(after, PAGE)).await?;
            let Some((place, ..)) = page.last() else { break };
            after = *place;
            compared.looked_for += page.len() as u64;
            let unknown =
                ledger.unknown_refunds(page.iter().map(|(_, entry, _)| entry.wanted.id).collect()).await?;
            // In the order of the page.
            let mut unknown = unknown.into_iter().peekable();
            for (_, entry, paid_at) in page {
                if unknown.next_if_eq(&entry.wanted.id).is_some() {
                    self.add(&entry, Some(paid_at), &mut compared).await?;
                }
            }
        }
        for entry in self.read(sent).await? {
            if ledger.refund(entry.wanted.id).await?.is_none() {
                self.add(&entry, None, &mut compared).await?;
            }
        }
        if let Some(upto) = upto.filter(|upto| Some(*upto) != mark) {
            ledger.mark_refunds(upto).await?;
        }
        if compared.added > 0 {
            let Compared { added, amount, missing, .. } = compared;
            tracing::error!(
                code = "refunds_missed",
                added,
                %amount,
                %missing,
                "the books are older than the journal of refunds; what had left is booked now"
            );
        }
        self.compared.store(true, Ordering::Release);
        Ok(compared)
    }

    async fn add(
        &self,
        entry: &Entry,
        paid_at: Option<Timestamp>,
        compared: &mut Compared,
    ) -> Result<(), CompareError> {
        let order = entry.order();
        let mut backoff = Backoff::default();
        let row = loop {
            match self.paywall.ledger().add_refund(order, paid_at).await {
                Err(RefundError::UnderWay) => backoff.wait(&self.stop).await,
                done => break done?,
            }
            if self.stop.is_cancelled() {
                return Err(RefundError::UnderWay.into());
            }
        };
        compared.added += 1;
        compared.amount = compared.amount.saturating_add(order.amount);
        compared.missing = compared.missing.saturating_add(row.missing);
        let (refund, amount, taken, missing) =
            (hex::encode(order.id.0), order.amount, row.order.amount, row.missing);
        if row.missing == Msat::ZERO {
            tracing::warn!(
                code = "refund_missed",
                refund,
                %amount,
                "a refund has left that the books didn't know; it is booked"
            );
        } else {
            tracing::error!(
                code = "refund_missed",
                refund,
                %amount,
                %taken,
                %missing,
                "a refund has left that the books didn't know, and its purchase has less; `farebox refund list` shows it"
            );
        }
        Ok(())
    }

    /// Uses the journal where blocking is allowed.
    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Journal) -> Result<T, IntentError> + Send + 'static,
    ) -> Result<T, IntentError> {
        let journal = self.journal.clone();
        let done = self.runtime.spawn_blocking(move || work(&journal)).await;
        done.unwrap_or(Err(IntentError::Interrupted))
    }
}

/// Those that haven't ended and whose payment may have been made.
fn sent(journal: &Journal) -> Result<Vec<Entry>, IntentError> {
    let mut sent = Vec::new();
    for entry in journal.open_entries()? {
        let intent = sqlite::find(&journal.connection().lock(), &entry.wanted.payment)?;
        if intent.is_some_and(|intent| {
            matches!(intent.state, Sent::Sent | Sent::Unknown { .. } | Sent::Settled { .. })
        }) {
            sent.push(entry);
        }
    }
    Ok(sent)
}

impl Entry {
    /// As the books are told: what has left, or what is set aside.
    pub(super) const fn order(&self) -> RefundOrder {
        let amount = match self.state {
            State::Paid { fee } => self.wanted.amount.saturating_add(fee),
            State::Open | State::Failed { .. } => self.held(),
        };
        RefundOrder {
            id: self.wanted.id,
            hash: self.wanted.purchase,
            of: self.wanted.of,
            amount,
            at: self.asked_at,
        }
    }
}

impl Journal {
    /// Behind which row to begin, where the books say that all up to this mark is there: from the first one, where the mark is of
    /// another journal, or of rows that this copy has lost.
    fn after(&self, mark: Option<RefundMark>) -> Result<u64, IntentError> {
        let Some(mark) = mark else { return Ok(0) };
        Ok(if self.place(mark.id)? == Some(mark.place) { mark.place } else { 0 })
    }
}
