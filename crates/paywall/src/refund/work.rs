//! Carrying a refund out, and bringing to an end what a crash has left: the part that money depends on.
//!
//! ```text
//! on disk here --> set aside in the ledger --> paid by `outgoing` --> booked in the ledger --> ended here
//! ```
//! What isn't known is asked again, and nothing is given back before it is certain that nothing was paid. A refund that was
//! set aside and never sent is given up after a crash: its buyer can ask again with a new invoice, and an old one may have
//! expired.

use std::{sync::Arc, time::Duration};

use farebox_lightning::{
    PayRequest,
    outgoing::{Ended, IntentError, Outgoing, Resolution, State as Sent},
};
use farebox_protocol::{Invoice, Msat};
use tokio::time;

use super::{Entry, PAY_TIMEOUT, Refunds, State, Wanted};
use crate::{
    ledger::{RefundError, Refused, Unavailable, law::Refund},
    store::{
        StoreError,
        accounts::{RefundId, RefundOrder},
    },
    trouble::Backoff,
};

/// The longest wait between two tries to write to the books.
const RETRY_MAX: Duration = Duration::from_secs(10);
/// How often a payment is looked at that is left to a person.
const LOOK_EVERY: Duration = Duration::from_secs(60);

impl Refunds {
    /// From the row to its end. [`State::Open`] where the end isn't seen in this run.
    pub(super) async fn carry_out(
        self: Arc<Self>,
        entry: Entry,
        invoice: Invoice,
        outgoing: Outgoing,
    ) -> State {
        let Wanted { id, amount, fee_max, .. } = entry.wanted;
        match self.set_aside(&entry).await {
            Begun::Yes => {}
            Begun::No(why) => return self.write_down(&entry, State::Failed { why }).await,
            Begun::Unknown => return State::Open,
        }
        tracing::info!(refund = name(id), %amount, %fee_max, "paying money back");
        let request = PayRequest { invoice, fee_max, timeout: PAY_TIMEOUT };
        let ended = match outgoing.pay(request).await {
            Ok(Ended::Unknown { .. }) => self.follow(&entry, &outgoing).await,
            Ok(ended) => Some(ended),
            // Nothing was paid by that call, and this was the only one for this invoice.
            Err(error) => {
                let why = error.to_string();
                Some(Ended::NotPaid(farebox_lightning::outgoing::Failure { reason: why, unsent: true }))
            }
        };
        match ended {
            Some(ended) => self.book(&entry, ended).await,
            None => State::Open,
        }
    }

    /// Brings to an end what the run before this one left open, as far as that is known; the rest is followed.
    pub(super) async fn resume(self: &Arc<Self>, outgoing: &Outgoing) -> Result<(), IntentError> {
        outgoing.resume().await?;
        let journal = self.journal.clone();
        let open = tokio::task::spawn_blocking(move || journal.open_entries()).await;
        let open = open.unwrap_or(Err(IntentError::Interrupted))?;
        for entry in open {
            tracing::info!(refund = name(entry.wanted.id), "bringing a refund to its end that was cut off");
            let (this, outgoing) = (Arc::clone(self), outgoing.clone());
            self.tasks.spawn(async move { this.finish_earlier(entry, &outgoing).await });
        }
        Ok(())
    }

    async fn finish_earlier(&self, entry: Entry, outgoing: &Outgoing) {
        let Wanted { id, payment, .. } = entry.wanted;
        let mut backoff = Backoff::up_to(RETRY_MAX);
        // What the books say of it comes first: without them, nothing was paid.
        let row = loop {
            match self.paywall.ledger().refund(id).await {
                Ok(row) => break row,
                Err(RefundError::Refused(Refused::Unavailable(Unavailable::Ended))) => return,
                Err(_) => backoff.wait(&self.stop).await,
            }
            if self.stop.is_cancelled() {
                return;
            }
        };
        let Some(row) = row else {
            let why = "cut off before anything was set aside".to_owned();
            self.write_down(&entry, State::Failed { why }).await;
            return;
        };
        let sent = loop {
            match outgoing.find(payment).await {
                Ok(found) => break found.map(|intent| intent.state),
                Err(_) => backoff.wait(&self.stop).await,
            }
            if self.stop.is_cancelled() {
                return;
            }
        };
        if let Some((end, _)) = row.ended {
            let state = match (end, sent) {
                (Refund::Failed, _) => State::Failed { why: "it was not paid".to_owned() },
                (_, Some(Sent::Settled { fee, .. })) => State::Paid { fee },
                // The books have taken so much, and the wallet's row is gone.
                _ => State::Paid {
                    fee: Msat::new(row.order.amount.get().saturating_sub(entry.wanted.amount.get())),
                },
            };
            self.write_down(&entry, state).await;
            return;
        }
        let unsent = |why: &str| {
            Ended::NotPaid(farebox_lightning::outgoing::Failure { reason: why.to_owned(), unsent: true })
        };
        let ended = match sent {
            None => Some(unsent("cut off before it was sent")),
            Some(Sent::Recorded) => {
                // So that nobody finds it later and sends it after all.
                let note = "the refund it was for was given up".to_owned();
                match outgoing.resolve(payment, Resolution::NotPaid { note }).await {
                    Ok(_) => Some(unsent("cut off before it was sent")),
                    Err(error) => {
                        tracing::warn!(refund = name(id), %error, "left for the next start");
                        None
                    }
                }
            }
            Some(_) => self.follow(&entry, outgoing).await,
        };
        if let Some(ended) = ended {
            self.book(&entry, ended).await;
        }
    }

    /// Sets the money aside, and asks until it is known whether it is.
    async fn set_aside(&self, entry: &Entry) -> Begun {
        let Wanted { id, purchase, of, .. } = entry.wanted;
        let order = RefundOrder { id, hash: purchase, of, amount: entry.held(), at: entry.asked_at };
        let (mut backoff, mut in_doubt) = (Backoff::up_to(RETRY_MAX), false);
        loop {
            match self.paywall.ledger().begin_refund(order).await {
                Ok(()) => return Begun::Yes,
                Err(RefundError::Ended) => return Begun::Unknown,
                Err(RefundError::UnderWay) => in_doubt = true,
                Err(RefundError::Refused(Refused::Unavailable(_))) if in_doubt => {}
                // What the books say of the question is an answer; that they can't be asked is none.
                Err(RefundError::Store(error)) if in_doubt && !says_no(&error) => {}
                Err(error) => return Begun::No(error.to_string()),
            }
            backoff.wait(&self.stop).await;
            if self.stop.is_cancelled() {
                return Begun::Unknown;
            }
        }
    }

    /// Waits for the end of a payment that may have been made, for as long as that takes. `None` when the program stops.
    async fn follow(&self, entry: &Entry, outgoing: &Outgoing) -> Option<Ended> {
        loop {
            let told = self.stop.run_until_cancelled(outgoing.wait(entry.wanted.payment)).await?;
            match told {
                Ok(Some(ended @ (Ended::Settled(_) | Ended::NotPaid(_)))) => return Some(ended),
                // Nobody follows it any more, or the journal can't be read; the money stays where it is.
                Ok(_) | Err(_) => match self.send_again(entry, outgoing).await {
                    Some(ended) => return Some(ended),
                    None => self.stop.run_until_cancelled(time::sleep(LOOK_EVERY)).await?,
                },
            }
        }
    }

    /// Asks a wallet that knows nothing of a payment to make it, where it would refuse to make it twice: for all that is known
    /// it never heard of it. The same invoice, and only while it can be paid.
    async fn send_again(&self, entry: &Entry, outgoing: &Outgoing) -> Option<Ended> {
        if !outgoing.facts().refuses_paid_hash {
            return None;
        }
        let sent = outgoing.find(entry.wanted.payment).await.ok()??;
        let invoice =
            Invoice::parse(&sent.invoice).ok().filter(|invoice| !invoice.is_expired(self.clock.now()))?;
        let request = PayRequest { invoice, fee_max: sent.fee_max, timeout: PAY_TIMEOUT };
        match self.stop.run_until_cancelled(outgoing.pay(request)).await? {
            Ok(ended @ (Ended::Settled(_) | Ended::NotPaid(_))) => Some(ended),
            // It wasn't sent by this call, which says nothing of the one before.
            Ok(Ended::Unknown { .. }) | Err(_) => None,
        }
    }

    /// Books the end of the payment, in the ledger first.
    async fn book(&self, entry: &Entry, ended: Ended) -> State {
        let id = entry.wanted.id;
        let (end, state) = match ended {
            Ended::Settled(paid) => {
                let part = entry.wanted.amount.saturating_add(paid.fee);
                tracing::info!(refund = name(id), amount = %entry.wanted.amount, fee = %paid.fee, "paid back");
                (Refund::Part(part), State::Paid { fee: paid.fee })
            }
            Ended::NotPaid(failure) => {
                tracing::info!(refund = name(id), why = failure.reason, "not paid back");
                (Refund::Failed, State::Failed { why: failure.reason })
            }
            Ended::Unknown { .. } => return State::Open,
        };
        let mut backoff = Backoff::up_to(RETRY_MAX);
        loop {
            match self.paywall.ledger().end_refund(id, end).await {
                Ok(_) => return self.write_down(entry, state).await,
                Err(RefundError::Ended | RefundError::Refused(Refused::Unavailable(Unavailable::Ended))) => {
                    return State::Open;
                }
                Err(RefundError::Store(error)) if error.is_final() => {
                    tracing::error!(refund = name(id), %error, "the books don't take the end of a refund");
                    return State::Open;
                }
                Err(_) => backoff.wait(&self.stop).await,
            }
            if self.stop.is_cancelled() {
                return State::Open;
            }
        }
    }

    /// Ends the row. If that fails, the next start does it from what the books say.
    async fn write_down(&self, entry: &Entry, state: State) -> State {
        let (id, ended, now) = (entry.wanted.id, state.clone(), self.clock.now());
        match self.journal(move |journal| journal.end(id, &ended, now)).await {
            Ok(()) => state,
            Err(_) => State::Open,
        }
    }
}

/// Whether money is set aside.
enum Begun {
    Yes,
    No(String),
    /// The program is stopping; the next start finds out.
    Unknown,
}

/// Whether the books have refused to set money aside, so that none is.
const fn says_no(error: &StoreError) -> bool {
    matches!(error, StoreError::NotThere | StoreError::OtherRefund | StoreError::OutOfRange(_))
}

fn name(id: RefundId) -> String {
    hex::encode(id.0)
}
