//! The task of one payment: record, send, and follow until the wallet has said how it ended.
//!
//! Nothing here is cancelled by a caller. After the row says `sent` there are only three ways on: a proof, a failure
//! that the wallet states, or asking again.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use farebox_protocol::{Msat, PaymentHash, Preimage};
use futures_util::FutureExt as _;
use tokio::{sync::watch, time};

use super::{
    Ended, Intent, IntentError, Intents, Machine, NewIntent, OutgoingError, Paid, State, Told,
    failpoint::{Point, reach},
    intent::Failure,
    judge::{self, Verdict},
};
use crate::{FeeControl, Outcome, PayError, PayRequest};

/// How much longer than its own time limit a wallet may take to answer.
const SLACK: Duration = Duration::from_secs(5);

/// What there is to do for a payment that has been asked for.
enum Step {
    /// It has ended already.
    Ended(Ended),
    /// It was sent before: follow it.
    Follow(Intent),
    /// It may be sent, and the wallet be asked once the row says so.
    Pay {
        row: Intent,
        /// It was sent before, and nobody knows what became of that.
        is_resent: bool,
    },
}

/// Why a row is looked up.
#[derive(Clone, Copy)]
enum Since {
    /// This process has asked the wallet to pay. The wallet may be slow to note it down, so one "not found" is too few.
    ThisRun,
    /// An earlier process did, and is dead.
    AnEarlierRun,
}

impl Machine {
    /// Pays what was asked for and follows it to its end.
    pub(super) async fn pay(self: Arc<Self>, request: PayRequest, tell: watch::Sender<Told>) {
        let hash = request.invoice.payment_hash();
        match self.prepare(&request).await {
            Err(error) => self.end(&hash, &tell, Err(error)),
            Ok(Step::Ended(ended)) => self.end(&hash, &tell, Ok(ended)),
            Ok(Step::Follow(row)) => self.follow(row, Since::ThisRun, &tell).await,
            Ok(Step::Pay { row, is_resent }) => {
                reach(Point::BeforePay);
                let mut answer = self.ask_to_pay(request).await;
                reach(Point::AfterPay);
                if is_resent && let Ok(Outcome::Failed(reason)) = answer {
                    answer = self.confirmed(hash, reason).await;
                }
                match judge::paid(&row, answer) {
                    Verdict::Settled { preimage, fee } => self.settle(&row, preimage, fee, &tell).await,
                    Verdict::Failed(failure) => self.fail(&row, failure, &tell).await,
                    open => {
                        let row = self.unknown(row, open.reason(), &tell).await;
                        if self.pause(self.config.retry_first).await {
                            self.follow(row, Since::ThisRun, &tell).await;
                        }
                    }
                }
            }
        }
        self.retire(&hash, &tell);
    }

    /// Follows what an earlier process has sent.
    pub(super) async fn follow_earlier(self: Arc<Self>, row: Intent, tell: watch::Sender<Told>) {
        let hash = row.hash;
        self.follow(row, Since::AnEarlierRun, &tell).await;
        self.retire(&hash, &tell);
    }

    /// Finds out what the journal knows of this payment, puts it on disk, and marks it as sent if it may be. An `Err`
    /// means that this call has paid nothing.
    async fn prepare(&self, request: &PayRequest) -> Result<Step, OutgoingError> {
        let hash = request.invoice.payment_hash();
        let known = self.journal(move |intents| intents.find(&hash)).await.map_err(not_paid)?;
        let known = match known {
            Some(row) if !row.invoice.eq_ignore_ascii_case(request.invoice.as_str()) => {
                return Err(not_paid(IntentError::OtherInvoice(hash)));
            }
            Some(row) if row.state.is_open() => match self.look_again(row).await.map_err(not_paid)? {
                Step::Pay { row, .. } => Some(row),
                step => return Ok(step),
            },
            Some(row) if !judge::may_send(&self.wallet.facts(), &row) => {
                return Ok(Step::Ended(Ended::from_row(&row)));
            }
            known => known,
        };
        let intent = self.check(request)?;
        let row = match known {
            Some(row) => row,
            None => {
                reach(Point::BeforeRecord);
                let (new, now) = (intent.clone(), self.clock.now());
                let row = self.journal(move |intents| intents.record(&new, now)).await.map_err(not_paid)?;
                reach(Point::AfterRecord);
                if !matches!(row.state, State::Recorded) {
                    return Ok(Step::Follow(row)); // another process was quicker
                }
                row
            }
        };
        reach(Point::BeforeSent);
        let is_resent = row.state.is_open();
        let now = self.clock.now();
        let sent = self.journal(move |intents| intents.mark_sent(&row, &intent, now)).await;
        reach(Point::AfterSent);
        sent.map(|row| Step::Pay { row, is_resent }).map_err(not_paid)
    }

    /// What to do with a row that was sent before and has no task here. It may be sent again only after the wallet has
    /// said that it knows nothing of it, and if that proves something or a second payment would be refused.
    async fn look_again(&self, row: Intent) -> Result<Step, IntentError> {
        let facts = self.wallet.facts();
        let verdict = judge::looked_up(&facts, &row, self.look_up(row.hash).await);
        let now = self.clock.now();
        match verdict {
            Verdict::NotFound if judge::proves_unsent(&facts, &row) => {
                reach(Point::BeforeFail);
                let row = self.journal(move |intents| intents.fail(&row, &unsent(), now)).await?;
                reach(Point::AfterFail);
                Ok(Step::Pay { row, is_resent: false })
            }
            Verdict::NotFound if judge::may_send(&facts, &row) => {
                reach(Point::BeforeUnknown);
                let reason = "not found at the wallet, to be sent again";
                let row = self.journal(move |intents| intents.unknown(&row, reason, now)).await?;
                reach(Point::AfterUnknown);
                Ok(Step::Pay { row, is_resent: true })
            }
            _ => Ok(Step::Follow(row)),
        }
    }

    fn check(&self, request: &PayRequest) -> Result<NewIntent, OutgoingError> {
        let PayRequest { invoice, fee_max, .. } = request;
        let amount =
            invoice.amount().filter(|amount| *amount > Msat::ZERO).ok_or(OutgoingError::AmountMissing)?;
        let facts = self.wallet.facts();
        if invoice.network() != facts.network {
            return Err(OutgoingError::OtherNetwork { invoice: invoice.network(), wallet: facts.network });
        }
        let now = self.clock.now();
        if invoice.is_expired(now) {
            return Err(OutgoingError::Expired { expired: invoice.expires_at(), now });
        }
        if let FeeControl::WorstCase { .. } = facts.fee_control {
            let worst = facts.fee_control.fee_max(amount, *fee_max);
            if worst > *fee_max {
                return Err(OutgoingError::FeeLimit { limit: *fee_max, worst });
            }
        }
        Ok(NewIntent { invoice: invoice.clone(), amount, fee_max: *fee_max, wallet: facts.wallet })
    }

    async fn ask_to_pay(&self, request: PayRequest) -> Result<Outcome, PayError> {
        let limit = request.timeout + SLACK;
        // A backend that panics must not take the payment's task with it: the money may be gone all the same.
        let paying = AssertUnwindSafe(async { self.wallet.pay(request).await }).catch_unwind();
        match time::timeout(limit, paying).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(PayError::Wrong("it panicked".to_owned())),
            Err(_) => Err(PayError::TimedOut(limit)),
        }
    }

    /// What it means that an order which was given again has failed. Of the one before that says nothing: the wallet may be at
    /// it, and for that very reason have no money or patience for a second, or not be reached any more. So its own record counts.
    async fn confirmed(&self, hash: PaymentHash, reason: String) -> Result<Outcome, PayError> {
        match self.look_up(hash).await {
            Ok(Outcome::Failed(_)) => Ok(Outcome::Failed(reason)),
            Ok(Outcome::NotFound) | Err(_) => {
                Err(PayError::Unavailable(format!("{reason}; what became of the order before is not known")))
            }
            known => known,
        }
    }

    async fn look_up(&self, hash: PaymentHash) -> Result<Outcome, PayError> {
        let _permit = self.lookups.acquire().await;
        reach(Point::BeforeLookup);
        let limit = self.config.lookup_timeout;
        let asking = AssertUnwindSafe(async { self.wallet.lookup(hash).await }).catch_unwind();
        let answer = match time::timeout(limit, asking).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(PayError::Wrong("it panicked".to_owned())),
            Err(_) => Err(PayError::TimedOut(limit)),
        };
        reach(Point::AfterLookup);
        answer
    }

    /// Looks the payment up until it has ended, its answers have been empty too often, or the machine stops.
    async fn follow(&self, mut row: Intent, since: Since, tell: &watch::Sender<Told>) {
        let mut wait = self.config.retry_first;
        let mut empty = 0;
        loop {
            let facts = self.wallet.facts();
            let verdict = judge::looked_up(&facts, &row, self.look_up(row.hash).await);
            match &verdict {
                Verdict::Open(_) => {}
                _ => empty += 1,
            }
            let enough = matches!(since, Since::AnEarlierRun) || empty >= self.config.empty_lookups_max;
            let reason = match verdict {
                Verdict::Settled { preimage, fee } => return self.settle(&row, preimage, fee, tell).await,
                Verdict::Failed(failure) => return self.fail(&row, failure, tell).await,
                Verdict::NotFound if enough && judge::proves_unsent(&facts, &row) => {
                    return self.fail(&row, unsent(), tell).await;
                }
                open => open.reason(),
            };
            row = self.unknown(row, reason, tell).await;
            if empty >= self.config.empty_lookups_max {
                tracing::warn!(payment = %row.hash, wallet = %row.wallet, "left to a person: no lookup explains it");
                return;
            }
            if !self.pause(wait).await {
                return;
            }
            wait = (wait * 2).min(self.config.retry_max);
            let hash = row.hash;
            match self.journal(move |intents| intents.find(&hash)).await {
                // A person, or another process, has moved it meanwhile.
                Ok(Some(now)) if !now.state.is_open() || now.attempt != row.attempt => {
                    return self.end(&hash, tell, Ok(Ended::from_row(&now)));
                }
                Ok(_) | Err(_) => {}
            }
        }
    }

    /// Tells the caller and writes the proof down; when the disk is full, the caller has it all the same, and the
    /// writing is tried again until it succeeds.
    async fn settle(&self, row: &Intent, preimage: Preimage, fee: Msat, tell: &watch::Sender<Told>) {
        if fee > row.fee_max {
            tracing::warn!(payment = %row.hash, %fee, limit = %row.fee_max, "the wallet exceeded the fee limit");
        }
        if let State::Failed(failure) = &row.state {
            tracing::warn!(payment = %row.hash, said = failure.reason, "paid after it was called failed");
        }
        let hash = row.hash;
        let mut wait = self.config.retry_first;
        loop {
            let (proof, now) = (preimage.clone(), self.clock.now());
            reach(Point::BeforeSettle);
            let written = self.journal(move |intents| intents.settle(&hash, &proof, fee, now)).await;
            reach(Point::AfterSettle);
            let settled = |on_disk| Ok(Ended::Settled(Paid { preimage: preimage.clone(), fee, on_disk }));
            let Err(error) = written else { return self.end(&hash, tell, settled(true)) };
            tell.send_replace(Some(settled(false)));
            tracing::error!(payment = %hash, error = chain(&error), "paid, but the proof can't be written to the journal; retrying");
            // Stopping doesn't end this loop: `stop` waits as long as its caller allows.
            time::sleep(wait).await;
            wait = (wait * 2).min(self.config.retry_max);
        }
    }

    /// Writes the failure down, then tells the caller: what was kept aside isn't released before the disk agrees.
    async fn fail(&self, row: &Intent, failure: Failure, tell: &watch::Sender<Told>) {
        let mut wait = self.config.retry_first;
        loop {
            let (seen, why, now) = (row.clone(), failure.clone(), self.clock.now());
            reach(Point::BeforeFail);
            let written = self.journal(move |intents| intents.fail(&seen, &why, now)).await;
            reach(Point::AfterFail);
            match written {
                Ok(_) => self.end(&row.hash, tell, Ok(Ended::NotPaid(failure))),
                Err(IntentError::Moved { .. } | IntentError::Missing(_) | IntentError::Forbidden(_)) => {
                    let hash = row.hash;
                    let now = self.journal(move |intents| intents.find(&hash)).await;
                    let ended = match now {
                        Ok(Some(row)) => Ended::from_row(&row),
                        Ok(None) => Ended::NotPaid(failure),
                        // Another writer may have had a proof.
                        Err(error) => Ended::Unknown { reason: error.to_string() },
                    };
                    self.end(&hash, tell, Ok(ended));
                }
                Err(error) => {
                    tracing::error!(payment = %row.hash, error = chain(&error), "a failed payment can't be written to the journal; retrying");
                    let reason = "the payment has failed, but the journal can't be written".to_owned();
                    tell.send_replace(Some(Ok(Ended::Unknown { reason })));
                    if self.pause(wait).await {
                        wait = (wait * 2).min(self.config.retry_max);
                        continue;
                    }
                }
            }
            return;
        }
    }

    /// Tells the caller, and notes it on the row. If that fails the row still says `sent`, which means the same.
    async fn unknown(&self, row: Intent, reason: String, tell: &watch::Sender<Told>) -> Intent {
        let noted = matches!(&row.state, State::Unknown { reason: noted } if *noted == reason);
        let mut row = row;
        if !noted {
            let (seen, why, now) = (row.clone(), reason.clone(), self.clock.now());
            reach(Point::BeforeUnknown);
            let written = self.journal(move |intents| intents.unknown(&seen, &why, now)).await;
            reach(Point::AfterUnknown);
            match written {
                Ok(written) => row = written,
                Err(error) => {
                    tracing::warn!(payment = %row.hash, error = chain(&error), "can't note that the outcome is unknown");
                }
            }
        }
        tell.send_replace(Some(Ok(Ended::Unknown { reason })));
        row
    }

    /// Tells the last that there is to tell. Whoever asks from then on starts anew instead of joining this task.
    fn end(&self, hash: &PaymentHash, tell: &watch::Sender<Told>, told: Result<Ended, OutgoingError>) {
        self.retire(hash, tell);
        tell.send_replace(Some(told));
    }

    fn retire(&self, hash: &PaymentHash, tell: &watch::Sender<Told>) {
        let mut running = self.running.lock();
        if running.get(hash).is_some_and(|running| running.told.same_channel(&tell.subscribe())) {
            running.remove(hash);
        }
    }

    /// Lets `work` use the journal where blocking is allowed.
    pub(super) async fn journal<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Intents) -> Result<T, IntentError> + Send + 'static,
    ) -> Result<T, IntentError> {
        let intents = Arc::clone(&self.intents);
        let done = self.tasks.spawn_blocking(move || work(&*intents)).await;
        done.unwrap_or(Err(IntentError::Interrupted))
    }

    /// Waits; `false` when the machine is stopping.
    async fn pause(&self, wait: Duration) -> bool {
        self.stop.run_until_cancelled(time::sleep(wait)).await.is_some()
    }
}

fn chain(error: &IntentError) -> &(dyn std::error::Error + 'static) {
    error
}

fn unsent() -> Failure {
    Failure { reason: "the wallet has never sent it".to_owned(), unsent: true }
}

fn not_paid(error: IntentError) -> OutgoingError {
    OutgoingError::Journal(Arc::new(error))
}
