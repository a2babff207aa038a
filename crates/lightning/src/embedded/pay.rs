//! Paying. The book has the payment on disk before LDK is asked to send it, which is what makes "not found" a proof.
//!
//! `ldk-node` writes its own record only after sending, and reports every refusal of LDK alike, so what can be concluded from
//! it is narrow: an outcome is what an event says, or a refusal of the first attempt. In every other case the payment stays
//! "in flight", and LDK, which rebuilds its pending payments from the channels' monitors at each start, has the last word.

use std::sync::Arc;
use std::time::Duration;

use farebox_protocol::{Msat, PaymentHash, Preimage};
use futures_util::future::BoxFuture;
use ldk_node::payment::{PaymentDirection, PaymentKind, PaymentStatus};
use ldk_node::{ChannelDetails, Node, NodeError};
use lightning::ln::channelmanager::PaymentId;
use lightning::routing::router::RouteParametersConfig;
use lightning_invoice::Bolt11Invoice;
use tokio::sync::broadcast;
use tokio::time::{Instant, sleep, sleep_until};

use super::node::{EmbeddedNode, NotRunning, Shared};
use super::sent::{Begin, Sent, SentRow};
use crate::{FeeControl, Outcome, Pay, PayError, PayFacts, PayRequest, WalletId};

/// How long a payment waits for a channel that is full or whose peer is away, and how often it looks.
const SLOT_WAIT: Duration = Duration::from_secs(10);
const SLOT_LOOK: Duration = Duration::from_millis(20);
/// How often LDK may find no way although there is room, before there is none.
const NO_ROUTE_MAX: u32 = 5;
/// What LDK calls a payment that found no way, in its event.
const NO_ROUTE: &str = "RouteNotFound";
/// Stands in for a timeout that no clock can hold.
const TIMEOUT_MAX: Duration = Duration::from_secs(365 * 86_400);
/// After a restart LDK repeats events that it wasn't sure we had seen. Until then a payment that was begun earlier isn't
/// begun again: the repeated failure of the first attempt would be taken for that of the second.
const REPEATS: Duration = Duration::from_secs(5);

impl From<NotRunning> for PayError {
    fn from(error: NotRunning) -> Self {
        Self::Unavailable(error.0)
    }
}

impl Pay for EmbeddedNode {
    fn facts(&self) -> PayFacts {
        PayFacts {
            wallet: WalletId(self.shared.name()),
            network: self.shared.network(),
            // The row is committed before LDK is called, nothing deletes rows, and a lost book is another wallet.
            proves_unsent: true,
            // A settled row is answered without sending; an open one meets LDK's refusal of duplicates.
            refuses_paid_hash: true,
            fee_control: FeeControl::Exact,
        }
    }

    fn pay(&self, request: PayRequest) -> BoxFuture<'_, Result<Outcome, PayError>> {
        Box::pin(async move {
            // A task of the node's own: a caller that goes away must not leave a payment half begun.
            let task = self.shared.spawn(Payment::new(&self.shared, request).run());
            task.await.unwrap_or_else(|_| Err(PayError::Unavailable("the node has been stopped".into())))
        })
    }

    fn lookup(&self, hash: PaymentHash) -> BoxFuture<'_, Result<Outcome, PayError>> {
        Box::pin(async move {
            let row = self.shared.book(move |book| book.sent(hash)).await?;
            match row {
                Some(row) => self.shared.known(hash, row).await,
                None => self.shared.unbooked(hash).await,
            }
        })
    }

    fn balance(&self) -> BoxFuture<'_, Result<Msat, PayError>> {
        Box::pin(async move {
            let channels = self.shared.call(|node| node.list_channels()).await?;
            let usable = channels.iter().filter(|channel| channel.is_usable);
            Ok(Msat::new(usable.map(|channel| channel.outbound_capacity_msat).sum()))
        })
    }
}

impl Shared {
    /// The outcome of a payment that is in the book.
    async fn known(self: &Arc<Self>, hash: PaymentHash, row: SentRow) -> Result<Outcome, PayError> {
        match row.sent {
            Sent::Settled { preimage, fee } => Ok(Outcome::Settled { preimage, fee }),
            Sent::Failed(reason) => Ok(Outcome::Failed(reason)),
            Sent::Begun if !self.is_running() => Ok(Outcome::InFlight),
            Sent::Begun => Ok(self.settled_in_ldk(hash).await?.unwrap_or(Outcome::InFlight)),
        }
    }

    /// The outcome of a payment that is not in the book. The book may be an older copy, and LDK's records younger.
    async fn unbooked(self: &Arc<Self>, hash: PaymentHash) -> Result<Outcome, PayError> {
        let recorded = move |node: &Node| {
            let details = node.payment(&PaymentId(*hash.as_bytes()));
            details.filter(|details| details.direction == PaymentDirection::Outbound).map(|sent| sent.status)
        };
        match self.call(recorded).await? {
            None => Ok(Outcome::NotFound),
            Some(PaymentStatus::Pending) => Ok(Outcome::InFlight),
            Some(PaymentStatus::Succeeded) => {
                Ok(self.settled_in_ldk(hash).await?.unwrap_or(Outcome::InFlight))
            }
            Some(PaymentStatus::Failed) => {
                Err(PayError::Wrong("LDK knows a payment that its book doesn't: is the book a copy?".into()))
            }
        }
    }

    /// Asks LDK's records for a success whose event has not come yet. A failure in them proves nothing: see the module.
    async fn settled_in_ldk(self: &Arc<Self>, hash: PaymentHash) -> Result<Option<Outcome>, PayError> {
        let Some((preimage, fee)) = self.call(move |node| success(node, hash)).await? else {
            return Ok(None);
        };
        if !preimage.pays(&hash) {
            return Err(PayError::Wrong("LDK's preimage is not the payment's".into()));
        }
        let booked = preimage.clone();
        self.book(move |book| book.book_settled(hash, &booked, fee)).await?;
        Ok(Some(Outcome::Settled { preimage, fee }))
    }
}

fn success(node: &Node, hash: PaymentHash) -> Option<(Preimage, Msat)> {
    let details = node.payment(&PaymentId(*hash.as_bytes()))?;
    if details.direction != PaymentDirection::Outbound || details.status != PaymentStatus::Succeeded {
        return None;
    }
    let PaymentKind::Bolt11 { preimage: Some(preimage), .. } = details.kind else { return None };
    Some((Preimage::from_bytes(preimage.0), Msat::new(details.fee_paid_msat.unwrap_or(0))))
}

/// One call of `pay`.
struct Payment {
    shared: Arc<Shared>,
    request: PayRequest,
    hash: PaymentHash,
    deadline: Instant,
}

/// What an attempt to send came to.
enum Attempt {
    /// LDK has it, now or from before.
    Sent,
    /// LDK refuses, and nothing was sent by this attempt.
    Refused(String),
    /// No channel has room at this moment.
    Full,
    /// LDK found no way although there was room. A retry of its own may have taken the room before it looked.
    NoRoute,
    /// LDK may have it or not.
    Unknown(String),
}

impl Payment {
    fn new(shared: &Arc<Shared>, request: PayRequest) -> Self {
        let hash = request.invoice.payment_hash();
        let now = Instant::now();
        let deadline = now.checked_add(request.timeout).unwrap_or(now + TIMEOUT_MAX);
        Self { shared: Arc::clone(shared), request, hash, deadline }
    }

    async fn run(self) -> Result<Outcome, PayError> {
        let hash = self.hash;
        // Subscribed before the book is read: an outcome in between is not missed.
        let mut outcomes = self.shared.book.outcomes().subscribe();
        let row = self.shared.book(move |book| book.sent(hash)).await?;
        match row {
            Some(SentRow { sent: Sent::Settled { preimage, fee }, .. }) => {
                return Ok(Outcome::Settled { preimage, fee });
            }
            None | Some(SentRow { this_run: true, .. }) => {}
            Some(_) => self.wait_for_repeats().await,
        }
        let give_up = self.deadline.min(Instant::now() + SLOT_WAIT);
        loop {
            if let Some(refused) = self.send(give_up).await? {
                return Ok(refused);
            }
            match self.wait(&mut outcomes).await? {
                // The last place was taken between LDK's choice of a route and its use of it.
                Outcome::Failed(why) if why == NO_ROUTE && self.may_fit(give_up).await? => {
                    sleep(SLOT_LOOK).await
                }
                outcome => return Ok(outcome),
            }
        }
    }

    /// Waits until the book has an outcome, or time is up.
    async fn wait(&self, outcomes: &mut broadcast::Receiver<PaymentHash>) -> Result<Outcome, PayError> {
        let hash = self.hash;
        loop {
            let row = self.shared.book(move |book| book.sent(hash)).await?;
            match row.map(|row| row.sent) {
                Some(Sent::Settled { preimage, fee }) => return Ok(Outcome::Settled { preimage, fee }),
                Some(Sent::Failed(why)) => return Ok(Outcome::Failed(why)),
                Some(Sent::Begun) | None => {}
            }
            tokio::select! {
                () = sleep_until(self.deadline) => return Ok(Outcome::InFlight),
                () = self.shared.stop.cancelled() => return Ok(Outcome::InFlight),
                // Any outcome, also a missed one, is a reason to look.
                () = told(outcomes, hash) => {}
            }
        }
    }

    /// Whether a payment for which there was no route may find one in a moment.
    async fn may_fit(&self, give_up: Instant) -> Result<bool, PayError> {
        let amount = self.amount();
        Ok(Instant::now() < give_up && self.shared.call(move |node| has_funds(node, amount)).await?)
    }

    fn amount(&self) -> u64 {
        self.request.invoice.amount().map_or(0, Msat::get)
    }

    async fn wait_for_repeats(&self) {
        let Some(started) = self.shared.running_since() else { return };
        tokio::select! {
            () = sleep_until(started + REPEATS) => {}
            () = self.shared.stop.cancelled() => {}
        }
    }

    /// Begins and sends, unless somebody else has. `Some` when it is over before it began.
    async fn send(&self, give_up: Instant) -> Result<Option<Outcome>, PayError> {
        let hash = self.hash;
        let bolt11 = match self.check() {
            Ok(bolt11) => bolt11,
            Err(why) => return Ok(Some(self.refused_unless_open(why).await?)),
        };
        if !self.shared.is_running() {
            return Err(self.shared.not_running().into());
        }
        let begin = self.shared.book(move |book| book.begin(hash)).await?;
        if begin == Begin::Wait {
            return Ok(None);
        }
        let mut refusals = 0;
        let why = loop {
            match self.attempt(bolt11.clone()).await {
                Attempt::Sent => return Ok(None),
                Attempt::Unknown(why) => return Err(PayError::Unavailable(why)),
                Attempt::Refused(why) => break why,
                Attempt::NoRoute => {
                    refusals += 1;
                    if refusals >= NO_ROUTE_MAX || Instant::now() >= give_up {
                        break "no route within the fee limit".to_owned();
                    }
                    sleep(SLOT_LOOK).await;
                }
                Attempt::Full if Instant::now() >= give_up => break "no channel has room".to_owned(),
                Attempt::Full => sleep(SLOT_LOOK).await,
            }
            if self.shared.stop.is_cancelled() {
                break "the node has been stopped".to_owned();
            }
        };
        if begin == Begin::Again {
            // LDK finds fault with an invoice before it looks whether it is paying it already.
            return Ok(None);
        }
        self.shared
            .book({
                let why = why.clone();
                move |book| book.book_failed(hash, &why)
            })
            .await?;
        Ok(Some(Outcome::Failed(why)))
    }

    /// A payment that can't be begun has failed, unless it has begun already.
    async fn refused_unless_open(&self, why: String) -> Result<Outcome, PayError> {
        let hash = self.hash;
        match self.shared.book(move |book| book.sent(hash)).await? {
            Some(row) => self.shared.known(hash, row).await,
            None => Ok(Outcome::Failed(why)),
        }
    }

    fn check(&self) -> Result<Bolt11Invoice, String> {
        let invoice = &self.request.invoice;
        if invoice.amount().is_none() {
            return Err("the invoice has no amount".into());
        }
        let (theirs, ours) = (invoice.network(), self.shared.network());
        if theirs != ours {
            return Err(format!("the invoice is for {theirs}, this wallet is on {ours}"));
        }
        if invoice.is_expired(self.shared.clock.now()) {
            return Err("the invoice has expired".into());
        }
        invoice.as_str().parse().map_err(|error| format!("LDK can't read the invoice: {error}"))
    }

    async fn attempt(&self, bolt11: Bolt11Invoice) -> Attempt {
        let limits = RouteParametersConfig {
            max_total_routing_fee_msat: Some(self.request.fee_max.get()),
            ..RouteParametersConfig::default()
        };
        let amount = self.amount();
        let hash = self.hash;
        // One at a time: with others taking places meanwhile, "no route" and "full" can't be told apart.
        let sending = self.shared.sending.lock().await;
        let attempted = self.shared.call(move |node| {
            if is_full(node, amount) {
                return Attempt::Full;
            }
            match node.bolt11_payment().send(&bolt11, Some(limits)) {
                Ok(_) | Err(NodeError::DuplicatePayment) => Attempt::Sent,
                Err(NodeError::PaymentSendingFailed) => Attempt::NoRoute,
                // LDK has taken it, but the record of it could not be written.
                Err(NodeError::PersistenceFailed) => Attempt::Unknown("LDK's store can't be written".into()),
                Err(error) => Attempt::Refused(error.to_string()),
            }
        });
        let attempted = attempted.await;
        drop(sending);
        match attempted {
            Ok(Attempt::Sent) => {
                // A duplicate may be one that LDK has paid before this book began; its event won't come again.
                let _ = self.shared.settled_in_ldk(hash).await;
                Attempt::Sent
            }
            Ok(attempt) => attempt,
            // The call may have been under way when the node stopped.
            Err(error) => Attempt::Unknown(error.to_string()),
        }
    }
}

/// Whether the money is there, but not just now: every place in the channel is taken, or its peer is away.
fn is_full(node: &Node, msat: u64) -> bool {
    let stuck = |channel: &ChannelDetails| !channel.is_usable || channel.next_outbound_htlc_limit_msat < msat;
    has_funds(node, msat) && node.list_channels().iter().filter(|channel| is_rich(channel, msat)).all(stuck)
}

/// Whether one channel alone could carry the amount if it were empty.
fn has_funds(node: &Node, msat: u64) -> bool {
    node.list_channels().iter().any(|channel| is_rich(channel, msat))
}

fn is_rich(channel: &ChannelDetails, msat: u64) -> bool {
    channel.is_channel_ready && channel.outbound_capacity_msat >= msat
}

async fn told(outcomes: &mut broadcast::Receiver<PaymentHash>, hash: PaymentHash) {
    loop {
        match outcomes.recv().await {
            Ok(other) if other != hash => {}
            _ => return,
        }
    }
}
