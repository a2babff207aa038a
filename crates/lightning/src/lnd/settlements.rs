//! Follows lnd's settlements, which have a sequence of their own: the cursor is lnd's `settle_index`.
//!
//! lnd replays what lies above an index, but for 0 it replays nothing, and a subscription from 1 is never told of 1 itself,
//! not even when it happens. So the very first settlement of a node has to be found in another way, once: among the
//! *invoices* from the first on, each of which is replayed as it is now. Once it has been told, or is known to be gone,
//! settlements are followed from there. They are told in rising order only: whoever keeps the last cursor has all before.
//!
//! That holds for one database. A node that was restored from its seed keeps its key and counts from 1 again, and would be
//! passed over until it comes to the old place. So who goes on from a place first asks for the settlement *at* it, which lnd
//! replays at once and never deletes; where it doesn't come, all there is is told from the beginning. Too much is told
//! rather than too little: what has been told before is recognised by its place and its hash.

use farebox_protocol::{Msat, PaymentHash, Timestamp};
use futures_util::stream::{self, BoxStream, StreamExt as _};
use tokio::time;
use tonic::Streaming;

use super::{
    Node,
    client::CallError,
    rpc::lnrpc::{self, InvoiceSubscription, invoice::InvoiceState},
};
use crate::{Cursor, ReceiveError, Settlement};

const METHOD: &str = "lnrpc.Lightning/SubscribeInvoices";

/// Above all places there will ever be: invoices that are made are not told. Some of lnd's databases count with a sign.
const NONE_MADE: u64 = i64::MAX as u64;

pub(super) fn follow(node: &Node, after: Cursor) -> BoxStream<'_, Result<Settlement, ReceiveError>> {
    let follower = Follower {
        node,
        last: after.0,
        is_searched: after.0 > 0,
        // The first one is never replayed, and of what lies before it nothing could have been lost.
        is_remembered: after.0 < 2,
        phase: Phase::Closed,
    };
    stream::unfold(Some(follower), |follower| async move {
        let mut follower = follower?;
        match follower.next().await {
            Ok(settlement) => Some((Ok(settlement), Some(follower))),
            Err(error) => {
                follower.node.watch.note(&error);
                Some((Err(super::receive_error(error)), None))
            }
        }
    })
    .boxed()
}

struct Follower<'a> {
    node: &'a Node,
    /// The last settlement that was told.
    last: u64,
    /// The first settlement has been told, or can't be.
    is_searched: bool,
    /// The node has the settlement that was told last, as far as that can be known.
    is_remembered: bool,
    phase: Phase,
}

enum Phase {
    Closed,
    /// Looks for the first settlement, by the invoices in the order in which they were made.
    Searching {
        told: Streaming<lnrpc::Invoice>,
        marker: Option<u64>,
    },
    /// Waits for the settlement that was told last, to see that it is still there.
    Remembering(Streaming<lnrpc::Invoice>),
    Following(Streaming<lnrpc::Invoice>),
}

impl Follower<'_> {
    async fn next(&mut self) -> Result<Settlement, CallError> {
        loop {
            match &mut self.phase {
                Phase::Closed => self.open().await?,
                Phase::Following(told) => {
                    let invoice = receive(told).await?;
                    if let Some(settlement) = settlement(&invoice).filter(|new| new.cursor.0 > self.last) {
                        self.last = settlement.cursor.0;
                        return Ok(settlement);
                    }
                }
                Phase::Remembering(_) => self.remember().await?,
                Phase::Searching { told, marker } => {
                    let invoice = receive(told).await?;
                    let place = settlement(&invoice).map_or(0, |settlement| settlement.cursor.0);
                    if place == 1 || marker.is_some_and(|marker| invoice.add_index >= marker) {
                        (self.is_searched, self.phase) = (true, Phase::Closed);
                    } else if place > 1 && marker.is_none() {
                        // There has been a first one. It is further on in the replay, or nowhere: what is made now comes
                        // after all that is replayed.
                        *marker = Some(self.node.mark().await?);
                    }
                    if place == 1 {
                        self.last = 1;
                        return settlement(&invoice).ok_or_else(|| CallError::Said("…".to_owned()));
                    }
                }
            }
        }
    }

    /// Waits for the settlement that was told last. Where it doesn't come within the time of a call, or something else does,
    /// all is told from the beginning.
    async fn remember(&mut self) -> Result<(), CallError> {
        let Phase::Remembering(mut told) = std::mem::replace(&mut self.phase, Phase::Closed) else {
            return Ok(());
        };
        self.is_remembered = true;
        let first = async {
            loop {
                if let Some(settlement) = settlement(&receive(&mut told).await?) {
                    return Ok::<_, CallError>(settlement.cursor.0);
                }
            }
        };
        let first = time::timeout(self.node.client.deadline(), first).await.ok().transpose()?;
        if first == Some(self.last) {
            self.phase = Phase::Following(told);
            return Ok(());
        }
        tracing::error!(
            place = self.last,
            "lnd does not know the settlement that was booked last: has it been restored without its invoices? All that it \
             knows is read again; what the books hold another payment in the place of is not booked, and counted in \
             `farebox_settlements_conflicting_total`"
        );
        (self.last, self.is_searched) = (0, false);
        Ok(())
    }

    async fn open(&mut self) -> Result<(), CallError> {
        self.node.watch.ready().await;
        let from = if !self.is_remembered {
            InvoiceSubscription { add_index: NONE_MADE, settle_index: self.last - 1 }
        } else if self.is_searched {
            InvoiceSubscription { add_index: NONE_MADE, settle_index: self.last.max(1) }
        } else {
            InvoiceSubscription { add_index: 1, settle_index: 0 }
        };
        let request = self.node.client.request(from)?;
        let mut lightning = self.node.client.lightning();
        // No deadline: lnd answers when it has something to tell. That it is still there, the connection's pings ask.
        let opened = lightning.subscribe_invoices(request).await;
        let told = opened.map_err(|status| CallError::of(&status, METHOD))?.into_inner();
        self.phase = match (self.is_remembered, self.is_searched) {
            (false, _) => Phase::Remembering(told),
            (true, true) => Phase::Following(told),
            (true, false) => Phase::Searching { told, marker: None },
        };
        Ok(())
    }
}

impl Node {
    /// Has an invoice made that nobody will pay. Its place among all that were made.
    async fn mark(&self) -> Result<u64, CallError> {
        let marker = lnrpc::Invoice {
            memo: "farebox looks where this node's invoices end; nobody is asked to pay this one".to_owned(),
            value_msat: 1,
            expiry: 60,
            ..lnrpc::Invoice::default()
        };
        let slot = self.open.reserve();
        let made = self.add_invoice(marker).await?;
        if let (Some(slot), Ok(hash)) = (slot, made.r_hash.as_slice().try_into()) {
            slot.discard(PaymentHash::from_bytes(hash));
        }
        Ok(made.add_index)
    }
}

async fn receive(told: &mut Streaming<lnrpc::Invoice>) -> Result<lnrpc::Invoice, CallError> {
    match told.message().await {
        Ok(Some(invoice)) => Ok(invoice),
        Ok(None) => Err(CallError::Unreachable("it has closed its stream of settlements".to_owned())),
        Err(status) => Err(CallError::of(&status, METHOD)),
    }
}

/// What an invoice says of its settlement. An invoice that can be paid many times (AMP) has no settlement of its own.
fn settlement(invoice: &lnrpc::Invoice) -> Option<Settlement> {
    let is_told = invoice.state() == InvoiceState::Settled && invoice.settle_index > 0 && !invoice.is_amp;
    is_told.then_some(())?;
    Some(Settlement {
        cursor: Cursor(invoice.settle_index),
        hash: PaymentHash::from_bytes(invoice.r_hash.as_slice().try_into().ok()?),
        amount: paid(invoice),
        at: settled_at(invoice),
        description: Some(invoice.memo.clone()),
    })
}

/// What arrived. lnd's amounts have a sign that they never use.
pub(super) fn paid(invoice: &lnrpc::Invoice) -> Msat {
    Msat::new(u64::try_from(invoice.amt_paid_msat).unwrap_or_default())
}

pub(super) fn settled_at(invoice: &lnrpc::Invoice) -> Timestamp {
    Timestamp::from_secs(u64::try_from(invoice.settle_date).unwrap_or_default())
}
