//! What has become of a payment that somebody began: another request, or a process that was killed.
//!
//! Nothing is paid here. A wallet's "not found" counts as *never sent* only when the process that was about to send is
//! certain to be gone, or is this one and has ended trying.

use std::time::Duration;

use farebox_lightning::Outcome;
use farebox_lightning::outgoing::{Ended, Failure, Intent, Intents as _, Paid, State};
use farebox_protocol::PaymentHash;
use tokio::time;

use super::{Fault, JournalError, Shared};
use crate::purchase::Order;

/// How long one lookup may take.
pub(super) const LOOKUP_TIMEOUT: Duration = Duration::from_secs(20);

/// The wait between lookups.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// What has become of it.
pub(super) enum Settled {
    /// How it ended, as far as is known.
    Ended(Ended),
    /// Nobody knows, but the wallet may be asked to pay the same invoice again: it refuses a hash that it has paid.
    PayAgain(String),
}

impl Shared {
    /// Finds out about every payment that is open.
    pub(super) async fn settle_all(&self) -> Result<(), Fault> {
        for order in self.journal(super::Journal::unsettled).await? {
            self.settle(&order).await?;
        }
        Ok(())
    }

    /// Closes an open payment as not made, unless somebody may be at it.
    pub(super) async fn write_off(&self, hash: PaymentHash) -> Result<bool, Fault> {
        let Some(begun) = self.journal(move |journal| journal.begun(&hash)).await? else {
            return self.write_off_elsewhere(hash).await;
        };
        let row = self.payment(hash).await?;
        if !row.state.is_open() {
            return Ok(false);
        }
        if !begun.holder.is_gone() && !self.journal.is_own(&begun.holder) {
            return Err(Fault::Busy(Duration::ZERO));
        }
        if self.outgoing.as_ref().is_some_and(|outgoing| outgoing.is_asking(&hash)) {
            return Err(Fault::Busy(Duration::ZERO));
        }
        let failure = Failure { reason: crate::journal::WRITTEN_OFF.to_owned(), unsent: false };
        Ok(matches!(self.close(row, failure).await?, Settled::Ended(Ended::NotPaid(_))))
    }

    /// Finds out how the payment of `order` ended, waiting for a while if it is under way, and writes it down.
    pub(super) async fn settle(&self, order: &Order) -> Result<Settled, Fault> {
        let hash = order.payment_hash();
        let deadline = time::Instant::now() + self.config.patience;
        loop {
            let settled = self.look(hash).await?;
            match settled {
                Settled::Ended(Ended::Unknown { .. }) if time::Instant::now() + LOOK_AGAIN < deadline => {
                    time::sleep(LOOK_AGAIN).await;
                }
                settled => return Ok(settled),
            }
        }
    }

    pub(super) async fn look(&self, hash: PaymentHash) -> Result<Settled, Fault> {
        let unknown = |reason: String| Ok(Settled::Ended(Ended::Unknown { reason }));
        let Some(outgoing) = &self.outgoing else {
            return unknown("there is no wallet to ask".to_owned());
        };
        // Read before anything is asked: what is concluded below is about this attempt, and is not written to a later one.
        let row = self.payment(hash).await?;
        let Some(begun) = self.journal(move |journal| journal.begun(&hash)).await? else {
            return unknown("the journal doesn't know it".to_owned());
        };
        // If a task of this process follows it, that task knows best.
        match time::timeout(self.config.patience, outgoing.wait(hash)).await {
            Ok(Ok(Some(ended @ (Ended::Settled(_) | Ended::NotPaid(_))))) => {
                return Ok(Settled::Ended(ended));
            }
            Ok(Ok(Some(Ended::Unknown { .. }) | None)) => {}
            Ok(Err(error)) => return Err(JournalError::from(error).into()),
            Err(_) => return unknown("it is under way".to_owned()),
        }
        let facts = outgoing.facts();
        let same_wallet = facts.wallet == begun.wallet;
        let nobody_sends = begun.holder.is_gone() || self.journal.is_own(&begun.holder);
        let answer = time::timeout(LOOKUP_TIMEOUT, outgoing.wallet().lookup(hash)).await;
        match answer {
            Ok(Ok(Outcome::Settled { preimage, fee })) if preimage.pays(&hash) => {
                let (proof, now) = (preimage.clone(), self.now());
                self.payments(move |payments| payments.settle(&hash, &proof, fee, now)).await?;
                Ok(Settled::Ended(Ended::Settled(Paid { preimage, fee, on_disk: true })))
            }
            Ok(Ok(Outcome::Settled { .. })) => unknown("the wallet's proof of payment is none".to_owned()),
            Ok(Ok(Outcome::InFlight)) => unknown("it is under way".to_owned()),
            Ok(Err(error)) => unknown(error.to_string()),
            Err(_) => unknown("the wallet did not answer in time".to_owned()),
            Ok(Ok(_)) if !same_wallet => {
                unknown(format!("it was begun with wallet `{}`; use that one", begun.wallet))
            }
            // An earlier attempt may be what has failed, and this one be about to be sent, or on its way to the wallet.
            Ok(Ok(Outcome::Failed(reason))) if row.attempt <= 1 || (nobody_sends && facts.proves_unsent) => {
                self.close(row, Failure { reason, unsent: false }).await
            }
            Ok(Ok(_)) if !nobody_sends => unknown("another process may be about to send it".to_owned()),
            Ok(Ok(Outcome::NotFound)) if facts.proves_unsent => {
                let reason = "the wallet has never sent it".to_owned();
                self.close(row, Failure { reason, unsent: true }).await
            }
            Ok(Ok(_)) => {
                let reason = "the wallet doesn't know this attempt, which proves nothing here".to_owned();
                if facts.refuses_paid_hash { Ok(Settled::PayAgain(reason)) } else { unknown(reason) }
            }
        }
    }

    /// Writes down that nothing was paid, unless the row has moved meanwhile: then that counts.
    async fn close(&self, row: Intent, failure: Failure) -> Result<Settled, Fault> {
        let (hash, why, now) = (row.hash, failure.clone(), self.now());
        if let State::Recorded | State::Sent | State::Unknown { .. } = row.state
            && self.payments(move |payments| payments.fail(&row, &why, now)).await.is_ok()
        {
            return Ok(Settled::Ended(Ended::NotPaid(failure)));
        }
        Ok(Settled::Ended(match self.payment(hash).await?.state {
            State::Settled { preimage, fee } => Ended::Settled(Paid { preimage, fee, on_disk: true }),
            State::Failed(failure) => Ended::NotPaid(failure),
            State::Recorded | State::Sent | State::Unknown { .. } => {
                Ended::Unknown { reason: "somebody else has moved it".to_owned() }
            }
        }))
    }

    async fn payment(&self, hash: PaymentHash) -> Result<Intent, Fault> {
        let row = self.payments(move |payments| payments.find(&hash)).await?;
        row.ok_or_else(|| JournalError::Corrupt { hash, what: "it has no payment" }.into())
    }

    /// Lets `work` use the payments of the journal where blocking is allowed.
    pub(super) async fn payments<T: Send + 'static>(
        &self,
        work: impl FnOnce(&super::SqliteIntents) -> Result<T, farebox_lightning::outgoing::IntentError>
        + Send
        + 'static,
    ) -> Result<T, Fault> {
        let payments = self.payments.clone();
        match self.tasks.spawn_blocking(move || work(&payments)).await {
            Ok(done) => Ok(done.map_err(JournalError::from)?),
            Err(_) => Err(Fault::Closing),
        }
    }
}
