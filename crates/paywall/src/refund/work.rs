//! Carrying a refund out, and bringing to an end what a crash has left: the part that money depends on.
//!
//! ```text
//! on disk here --> set aside in the ledger --> paid by `outgoing` --> booked in the ledger --> ended here
//! ```
//! What isn't known is asked again, and nothing is given back before it is certain that nothing was paid. A refund that was
//! set aside and never sent is given up after a crash: its buyer can ask again with a new invoice, and an old one may have
//! expired.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use farebox_lightning::{
    Outcome, PayRequest,
    outgoing::{Ended, IntentError, Outgoing, Resolution, ResolveError, State as Sent},
};
use farebox_protocol::{Invoice, Msat};
use tokio::time::{self, Instant};

use super::{Entry, LOOKUP_TIMEOUT, PAY_TIMEOUT, RefundHealth, Refunds, State, Verdict, Wanted, Way};
use crate::{
    ledger::{RefundError, Refused, Unavailable, law::Refund},
    store::{
        StoreError,
        accounts::{RefundId, RefundRow},
    },
    trouble::Backoff,
};

/// The longest wait between two tries to write to the books.
const RETRY_MAX: Duration = Duration::from_secs(10);
/// How often a payment is looked at that is left to a person.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// How long an order to pay may take from a process that has ended to a wallet that it has a connection to.
const ARRIVES_WITHIN: Duration = Duration::from_secs(5);
/// How the names of wallets begin that are asked through relays, which may keep an order for as long as they like; also behind
/// a door, or several.
const RELAYED: &str = "nwc:";
const DOOR: &str = "door:";
/// How long after its invoice has expired an order to pay may still be on its way to a wallet, or be taken by one whose clock is slow.
const STRAY: Duration = Duration::from_secs(600);

/// An invoice that can be paid for longer isn't waited for: a person can tell earlier.
const WAITED_MAX: Duration = Duration::from_secs(86_400);

/// Refunds that are being brought to their end.
#[derive(Default)]
pub(super) struct Pending {
    open: Arc<AtomicUsize>,
    stuck: Arc<AtomicUsize>,
}

/// Counts as one as long as it lives.
struct One(Arc<AtomicUsize>);

impl One {
    fn of(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for One {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Pending {
    pub(super) fn health(&self) -> RefundHealth {
        RefundHealth { open: self.open.load(Relaxed), stuck: self.stuck.load(Relaxed) }
    }
}

/// What became of a payment, by the wallet's word or a person's.
enum Fate {
    Paid { fee: Msat },
    NotPaid { why: String },
}

impl Fate {
    /// `None` where it isn't known.
    fn of(ended: Ended) -> Option<Self> {
        match ended {
            Ended::Settled(paid) => Some(Self::Paid { fee: paid.fee }),
            Ended::NotPaid(failure) => Some(Self::NotPaid { why: failure.reason }),
            Ended::Unknown { .. } => None,
        }
    }

    fn unsent(why: &str) -> Self {
        Self::NotPaid { why: why.to_owned() }
    }
}

impl Refunds {
    /// From the row to its end. [`State::Open`] where the end isn't seen in this run.
    pub(super) async fn carry_out(
        self: Arc<Self>,
        entry: Entry,
        invoice: Invoice,
        outgoing: Outgoing,
    ) -> State {
        let Wanted { id, amount, fee_max, .. } = entry.wanted;
        let _open = One::of(&self.pending.open);
        match self.set_aside(&entry).await {
            Begun::Yes => {}
            Begun::No(why) => return self.write_down(&entry, State::Failed { why }).await,
            Begun::Unknown => return State::Open,
        }
        tracing::info!(refund = name(id), %amount, %fee_max, "paying money back");
        let request = PayRequest { invoice, fee_max, timeout: PAY_TIMEOUT };
        let fate = match outgoing.pay(request).await {
            Ok(ended) => match Fate::of(ended) {
                Some(fate) => Some(fate),
                None => self.follow(&entry, &outgoing).await,
            },
            // Nothing was paid by that call, and this was the only one for this invoice.
            Err(error) => Some(Fate::unsent(&error.to_string())),
        };
        match fate {
            Some(fate) => self.book(&entry, fate).await,
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
        let this = Arc::clone(self);
        self.tasks.spawn(async move { this.reconcile().await });
        Ok(())
    }

    /// Finds what the books hold for refunds that nobody knows here. A row here comes before anything is set aside, so this happens
    /// only where the journal was lost or brought back from a backup.
    async fn reconcile(self: &Arc<Self>) {
        let mut backoff = Backoff::up_to(RETRY_MAX);
        let rows = loop {
            match self.paywall.ledger().open_refunds(u16::MAX).await {
                Ok(rows) => break rows,
                Err(RefundError::Refused(Refused::Unavailable(Unavailable::Ended))) => return,
                Err(_) => backoff.wait(&self.stop).await,
            }
            if self.stop.is_cancelled() {
                return;
            }
        };
        for row in rows {
            let id = row.order.id;
            let found = loop {
                match self.journal(move |journal| journal.find(id)).await {
                    Ok(found) => break found,
                    Err(_) => backoff.wait(&self.stop).await,
                }
                if self.stop.is_cancelled() {
                    return;
                }
            };
            // One that is open is being brought to its end; one that has ended was compared.
            if found.is_none() {
                let this = Arc::clone(self);
                self.tasks.spawn(async move { this.await_word(row).await });
            }
        }
    }

    /// Waits until a person says what became of money that the books hold for a refund nobody knows anything else of. It may
    /// have been paid, and there is no invoice to ask for.
    async fn await_word(&self, row: RefundRow) {
        let id = row.order.id;
        let (_open, _stuck) = (One::of(&self.pending.open), One::of(&self.pending.stuck));
        tracing::error!(
            code = "refund_stuck",
            refund = name(id),
            amount = %row.order.amount.saturating_add(row.missing),
            "the books hold money for a refund that the journal doesn't know; `farebox refund resolve` says what became of it"
        );
        loop {
            if let Ok(Some(word)) = self.journal(move |journal| journal.word(id)).await {
                let end = match word.verdict {
                    // Here the books know only what was set aside, route included.
                    Verdict::Paid { .. } => Refund::Paid,
                    Verdict::NotPaid => Refund::Failed,
                };
                match self.paywall.ledger().end_refund(id, end).await {
                    Ok(_) => return tracing::info!(refund = name(id), ?end, "ended by a person's word"),
                    Err(error) => tracing::warn!(refund = name(id), %error, "a person's word waits"),
                }
            }
            if self.stop.run_until_cancelled(time::sleep(LOOK_EVERY)).await.is_none() {
                return;
            }
        }
    }

    async fn finish_earlier(&self, entry: Entry, outgoing: &Outgoing) {
        let _open = One::of(&self.pending.open);
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
        let sent = loop {
            match outgoing.find(payment).await {
                Ok(found) => break found.map(|intent| intent.state),
                Err(_) => backoff.wait(&self.stop).await,
            }
            if self.stop.is_cancelled() {
                return;
            }
        };
        let ended = match (row, &sent) {
            (Some(row), _) => row.ended.map(|(end, _)| (end, row.order.amount.saturating_add(row.missing))),
            // The comparison has booked what may have left.
            (None, Some(Sent::Sent | Sent::Unknown { .. } | Sent::Settled { .. })) => {
                return tracing::error!(refund = name(id), "the books have forgotten a refund that was sent");
            }
            // Both may be older copies.
            (None, _) => {
                let state = match self.never_sent(&entry, outgoing).await {
                    Some(Fate::NotPaid { why }) => State::Failed { why },
                    Some(Fate::Paid { fee }) => self.book_missed(&entry, fee).await,
                    None => return,
                };
                self.write_down(&entry, state).await;
                return;
            }
        };
        if let Some((end, taken)) = ended {
            let state = match (end, sent) {
                // Somebody may have said so while this journal was lost: what the wallet says outweighs it.
                (Refund::Failed, Some(Sent::Sent | Sent::Unknown { .. } | Sent::Settled { .. })) => {
                    match self.stop.run_until_cancelled(outgoing.wait(payment)).await {
                        Some(Ok(Some(Ended::Settled(paid)))) => self.book_missed(&entry, paid.fee).await,
                        Some(Ok(_)) => State::Failed { why: "it was not paid".to_owned() },
                        // Not known in this run.
                        Some(Err(_)) | None => return,
                    }
                }
                (Refund::Failed, _) => State::Failed { why: "it was not paid".to_owned() },
                (_, Some(Sent::Settled { fee, .. })) => State::Paid { fee },
                // The books have taken so much, and the wallet's row is gone.
                _ => State::Paid { fee: Msat::new(taken.get().saturating_sub(entry.wanted.amount.get())) },
            };
            self.write_down(&entry, state).await;
            return;
        }
        let fate = match sent {
            None | Some(Sent::Recorded) => match self.never_sent(&entry, outgoing).await {
                Some(Fate::NotPaid { why }) => {
                    let note = "the refund it was for was given up".to_owned();
                    self.will_not_be_sent(&entry, note, outgoing).await.then_some(Fate::NotPaid { why })
                }
                fate => fate,
            },
            Some(_) => self.follow(&entry, outgoing).await,
        };
        if let Some(fate) = fate {
            self.book(&entry, fate).await;
        }
    }

    /// Books a payment of which the books know nothing, or that it came to nothing. [`State::Open`] where that isn't seen in this run.
    async fn book_missed(&self, entry: &Entry, fee: Msat) -> State {
        let paid = Entry { state: State::Paid { fee }, ..entry.clone() };
        let (order, at) = (paid.order(), self.clock.now());
        let mut backoff = Backoff::up_to(RETRY_MAX);
        loop {
            let told = self.patiently(|| self.paywall.ledger().add_refund(order, Some(at))).await;
            match told {
                Ok(row) => {
                    tracing::error!(
                        code = "refund_missed",
                        refund = name(order.id),
                        amount = %order.amount,
                        missing = %row.missing,
                        "a refund has left that the books didn't know, or didn't believe; it is booked"
                    );
                    return paid.state;
                }
                Err(RefundError::Ended | RefundError::Refused(Refused::Unavailable(Unavailable::Ended))) => {
                    return State::Open;
                }
                Err(RefundError::Store(error)) if error.is_final() => {
                    tracing::error!(refund = name(order.id), %error, "the books don't take a refund that has left");
                    return State::Open;
                }
                Err(_) => backoff.wait(&self.stop).await,
            }
            if self.stop.is_cancelled() {
                return State::Open;
            }
        }
    }

    /// What became of a payment that was never sent. So says the journal, which may be an older copy, and the wallet knows better:
    /// the one that was to pay, and no other. That it knows nothing is believed at once where that proves something, and else
    /// once it has gone on saying so for longer than an order may be on its way, or when the order would come too late
    /// wherever it has been until then. `None` when the program stops.
    async fn never_sent(&self, entry: &Entry, outgoing: &Outgoing) -> Option<Fate> {
        let Wanted { id, payment, .. } = entry.wanted;
        let (mut backoff, mut stuck) = (Backoff::up_to(LOOK_EVERY), None);
        let mut unknown_since = None;
        loop {
            let facts = outgoing.facts();
            let way = self.way(entry, outgoing).await;
            let is_theirs = way.as_ref().is_some_and(|way| way.wallet == facts.wallet);
            // Whether an order would come too late by now, or this long from now.
            let over_in = |wait: Duration| {
                let then = self.clock.now().saturating_add(wait);
                way.as_ref().is_some_and(|way| way.expires.saturating_add(STRAY) <= then)
            };
            let relayed = facts.wallet.0.trim_start_matches(DOOR).starts_with(RELAYED);
            let has_arrived =
                !relayed && unknown_since.is_some_and(|since: Instant| since.elapsed() >= ARRIVES_WITHIN);
            let is_over = facts.proves_unsent || has_arrived || over_in(Duration::ZERO);
            let look = time::timeout(LOOKUP_TIMEOUT, outgoing.wallet().lookup(payment));
            let known = match self.stop.run_until_cancelled(look).await? {
                Ok(Ok(Outcome::Settled { preimage, fee })) if preimage.pays(&payment) => {
                    Some(Fate::Paid { fee })
                }
                Ok(Ok(Outcome::NotFound)) if is_theirs && is_over => {
                    return Some(Fate::unsent("cut off before it was sent"));
                }
                Ok(Ok(Outcome::Failed(why))) if is_theirs => Some(Fate::NotPaid { why }),
                // Nothing to tell a person: it will be known.
                Ok(Ok(Outcome::InFlight)) => {
                    (stuck, unknown_since) = (None, None);
                    None
                }
                Ok(Ok(Outcome::NotFound)) if is_theirs && (!relayed || over_in(WAITED_MAX)) => {
                    stuck = None;
                    unknown_since.get_or_insert_with(Instant::now);
                    if let Some(fate) = self.told_by_hand(entry, outgoing).await {
                        return Some(fate);
                    }
                    None
                }
                Ok(_) | Err(_) => {
                    if let Some(fate) = self.told_by_hand(entry, outgoing).await {
                        return Some(fate);
                    }
                    stuck.get_or_insert_with(|| self.stuck(entry));
                    None
                }
            };
            if known.is_some() {
                tracing::error!(
                    code = "refund_reconciled",
                    refund = name(id),
                    "the wallet knows a payment that the journal says was never sent; what the wallet says is booked"
                );
                return known;
            }
            backoff.wait(&self.stop).await;
            if self.stop.is_cancelled() {
                return None;
            }
        }
    }

    /// By which way a refund was to leave, as far as that was written down.
    async fn way(&self, entry: &Entry, outgoing: &Outgoing) -> Option<Way> {
        let Wanted { id, payment, .. } = entry.wanted;
        if let Ok(Some(way)) = self.journal(move |journal| journal.way(id)).await {
            return Some(way);
        }
        let intent = outgoing.find(payment).await.ok()??;
        let invoice = Invoice::parse(&intent.invoice).ok()?;
        Some(Way { wallet: intent.wallet, expires: invoice.expires_at() })
    }

    /// Counts and tells a refund that is left to a person.
    fn stuck(&self, entry: &Entry) -> One {
        tracing::error!(
            code = "refund_stuck",
            refund = name(entry.wanted.id),
            payment = %entry.wanted.payment,
            amount = %entry.wanted.amount,
            "the wallet can't tell whether a refund was paid; look there, then say it with `farebox refund resolve`"
        );
        One::of(&self.pending.stuck)
    }

    /// Sets the money aside, and asks until it is known whether it is.
    async fn set_aside(&self, entry: &Entry) -> Begun {
        let order = entry.order();
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
    async fn follow(&self, entry: &Entry, outgoing: &Outgoing) -> Option<Fate> {
        let mut stuck = None;
        loop {
            let told = self.stop.run_until_cancelled(outgoing.wait(entry.wanted.payment)).await?;
            if let Some(fate) = told.ok().flatten().and_then(Fate::of) {
                return Some(fate);
            }
            // Nobody follows it any more, or the journal can't be read; the money stays where it is.
            if let Some(fate) = self.told_by_hand(entry, outgoing).await {
                return Some(fate);
            }
            if let Some(fate) = self.send_again(entry, outgoing).await {
                return Some(fate);
            }
            stuck.get_or_insert_with(|| self.stuck(entry));
            self.stop.run_until_cancelled(time::sleep(LOOK_EVERY)).await?;
        }
    }

    /// What a person has said, once nobody else finds out. That it wasn't paid is written beside the payment first, so that
    /// nobody sends it after all.
    async fn told_by_hand(&self, entry: &Entry, outgoing: &Outgoing) -> Option<Fate> {
        let id = entry.wanted.id;
        let word = self.journal(move |journal| journal.word(id)).await.ok()??;
        let fate = match word.verdict {
            Verdict::Paid { fee } => Fate::Paid { fee },
            Verdict::NotPaid => {
                let why = format!("said by hand: {}", word.note);
                if !self.will_not_be_sent(entry, word.note, outgoing).await {
                    return None;
                }
                Fate::NotPaid { why }
            }
        };
        tracing::warn!(code = "refund_resolved", refund = name(id), "a refund ends by a person's word");
        Some(fate)
    }

    /// Writes beside a payment that it wasn't made, so that nobody finds it later and sends it after all. Whether it stands there.
    async fn will_not_be_sent(&self, entry: &Entry, note: String, outgoing: &Outgoing) -> bool {
        match outgoing.resolve(entry.wanted.payment, Resolution::NotPaid { note }).await {
            Ok(_)
            | Err(
                ResolveError::Journal(IntentError::Missing(_))
                | ResolveError::NotOpen { state: "failed" | "unsent", .. },
            ) => true,
            Err(error) => {
                tracing::warn!(refund = name(entry.wanted.id), %error, "a refund that wasn't paid can't be ended yet");
                false
            }
        }
    }

    /// Asks a wallet that knows nothing of a payment to make it, where it would refuse to make it twice: for all that is known
    /// it never heard of it. The same invoice, and only while it can be paid.
    async fn send_again(&self, entry: &Entry, outgoing: &Outgoing) -> Option<Fate> {
        if !outgoing.facts().refuses_paid_hash {
            return None;
        }
        let sent = outgoing.find(entry.wanted.payment).await.ok()??;
        let invoice =
            Invoice::parse(&sent.invoice).ok().filter(|invoice| !invoice.is_expired(self.clock.now()))?;
        let request = PayRequest { invoice, fee_max: sent.fee_max, timeout: PAY_TIMEOUT };
        match self.stop.run_until_cancelled(outgoing.pay(request)).await? {
            Ok(ended) => Fate::of(ended),
            // It wasn't sent by this call, which says nothing of the one before.
            Err(_) => None,
        }
    }

    /// Books the end of the payment, in the ledger first.
    async fn book(&self, entry: &Entry, fate: Fate) -> State {
        let id = entry.wanted.id;
        let (end, state) = match fate {
            Fate::Paid { fee } => {
                let part = entry.wanted.amount.saturating_add(fee);
                tracing::info!(refund = name(id), amount = %entry.wanted.amount, %fee, "paid back");
                (Refund::Part(part), State::Paid { fee })
            }
            Fate::NotPaid { why } => {
                tracing::info!(refund = name(id), why, "not paid back");
                (Refund::Failed, State::Failed { why })
            }
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
