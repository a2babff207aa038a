//! Makes the books say what has left: at each start they are compared with the journal of refunds, before anything is served.
//!
//! Books that were brought back from an older copy know nothing of refunds that were paid since, and would have the money
//! spent or paid back a second time. So what the journal says has left, or may have, is booked where they don't know it
//! ([`Ledger::add_refund`](crate::ledger::Ledger::add_refund)). A mark in the books says from which row on that is to be
//! asked; it goes back with them.
//!
//! Before that, what has ended here and not there ends there: what a failed one gives back is what a later one may have been
//! paid of.
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
    ledger::{RefundError, law::Refund},
    store::accounts::{RefundMark, RefundOrder, RefundRow},
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
        // First of all: what comes back there may be what a later one was paid of.
        self.end_ended().await?;
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
        for (entry, fee) in self.read(sent).await? {
            let row = ledger.refund(entry.wanted.id).await?;
            match (row.map(|row| row.ended), fee) {
                (None, _) => self.add(&entry, None, &mut compared).await?,
                // Somebody said that it wasn't paid while this journal was lost, and the wallet says that it was.
                (Some(Some((Refund::Failed, _))), Some(fee)) => {
                    let paid = Entry { state: State::Paid { fee }, ..entry };
                    self.add(&paid, Some(self.clock.now()), &mut compared).await?;
                }
                _ => {}
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

    /// Books the end of refunds that the books hold money for and that have ended here. A row here ends after that there, so this
    /// happens only where the books are the older copy.
    async fn end_ended(&self) -> Result<(), CompareError> {
        let ledger = self.paywall.ledger();
        loop {
            let mut ended = 0;
            for row in ledger.open_refunds(u16::MAX).await? {
                let id = row.order.id;
                let end = match self.read(move |journal| journal.find(id)).await?.map(|entry| entry.end()) {
                    // Somebody will bring it to its end, or have a word to say of it.
                    None | Some(None) => continue,
                    Some(Some(end)) => end,
                };
                self.patiently(|| ledger.end_refund(id, end)).await?;
                ended += 1;
                tracing::warn!(
                    code = "refund_reconciled",
                    refund = hex::encode(id.0),
                    "the books hold money for a refund that has ended; its end is booked"
                );
            }
            // There may be more than are told at once.
            if ended == 0 {
                return Ok(());
            }
        }
    }

    /// Asks again for as long as the same refund is being worked on.
    pub(super) async fn patiently<A>(&self, ask: impl Fn() -> A) -> Result<RefundRow, RefundError>
    where
        A: Future<Output = Result<RefundRow, RefundError>>,
    {
        let mut backoff = Backoff::default();
        loop {
            match ask().await {
                Err(RefundError::UnderWay) => backoff.wait(&self.stop).await,
                done => return done,
            }
            if self.stop.is_cancelled() {
                return Err(RefundError::UnderWay);
            }
        }
    }

    async fn add(
        &self,
        entry: &Entry,
        paid_at: Option<Timestamp>,
        compared: &mut Compared,
    ) -> Result<(), CompareError> {
        let order = entry.order();
        let row = self.patiently(|| self.paywall.ledger().add_refund(order, paid_at)).await?;
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

/// Those that haven't ended and whose payment may have been made; what the route cost where it certainly was.
fn sent(journal: &Journal) -> Result<Vec<(Entry, Option<Msat>)>, IntentError> {
    let mut sent = Vec::new();
    for entry in journal.open_entries()? {
        let intent = sqlite::find(&journal.connection().lock(), &entry.wanted.payment)?;
        match intent.map(|intent| intent.state) {
            Some(Sent::Settled { fee, .. }) => sent.push((entry, Some(fee))),
            Some(Sent::Sent | Sent::Unknown { .. }) => sent.push((entry, None)),
            _ => {}
        }
    }
    Ok(sent)
}

impl Entry {
    /// How the books are told that it ended; `None` while it hasn't.
    fn end(&self) -> Option<Refund> {
        match self.state {
            State::Open => None,
            State::Paid { fee } => Some(Refund::Part(self.wanted.amount.saturating_add(fee))),
            State::Failed { .. } => Some(Refund::Failed),
        }
    }

    /// As the books are told: what has left, or what is set aside. What a route cost beyond that is not the buyer's.
    pub(super) fn order(&self) -> RefundOrder {
        let amount = match self.state {
            State::Paid { fee } => self.wanted.amount.saturating_add(fee).min(self.held()),
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
