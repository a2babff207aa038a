//! LDK's events, one pump per node: money that came is booked before LDK is told that we know, so that a crash repeats an
//! event rather than losing it. Repetitions are the book's business.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use farebox_protocol::{Msat, PaymentHash, Preimage};
use ldk_node::{Event, Node};
use tokio::time::MissedTickBehavior;

use super::database::BookError;
use super::hints::Hints;
use super::node::Shared;
use crate::Health;

/// How often the channels are looked at without an event: peers come and go without one.
const REFRESH: Duration = Duration::from_secs(30);
/// The pause after the book or LDK's store could not be written. The event stays in the queue.
const STORE_PAUSE: Duration = Duration::from_secs(1);
/// So long without a word from the chain source, with background syncing, the node can't be trusted to see a theft.
const STALE: Duration = Duration::from_secs(3_600);

/// Handles events until the node is to stop.
pub(super) async fn pump(shared: &Arc<Shared>, node: &Arc<Node>) {
    let mut refresh = tokio::time::interval(REFRESH);
    refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let event = tokio::select! {
            () = shared.stop.cancelled() => return,
            event = node.next_event_async() => event,
            _ = refresh.tick() => {
                shared.refresh().await;
                continue;
            }
        };
        // Not in the `select!`: an event that is being booked must not be dropped half way.
        if let Err(why) = handle(shared, node, event).await {
            tracing::error!(%why, "an event of the node can't be booked; trying again");
            tokio::select! {
                () = shared.stop.cancelled() => return,
                () = tokio::time::sleep(STORE_PAUSE) => {}
            }
        }
    }
}

async fn handle(shared: &Arc<Shared>, node: &Arc<Node>, event: Event) -> Result<(), String> {
    let (booking, told) = (Arc::clone(shared), Arc::clone(node));
    let moved = matches!(
        event,
        Event::ChannelReady { .. } | Event::ChannelClosed { .. } | Event::ChannelPending { .. }
    );
    let handled = shared.runtime.spawn_blocking(move || {
        book(&booking, event).map_err(|error| error.to_string())?;
        told.event_handled().map_err(|error| error.to_string())
    });
    handled.await.map_err(|error| error.to_string())??;
    if moved {
        shared.refresh().await;
    }
    Ok(())
}

/// Where a test makes the worst happen: the money is in the book, and LDK doesn't know yet that we know. The process dies
/// there, or goes on without ever telling LDK.
#[cfg(feature = "failpoints")]
fn fail_if_asked() -> Result<(), BookError> {
    let wanted = std::env::var("FAREBOX_FAILPOINT").unwrap_or_default();
    match wanted.as_str() {
        "embedded-die-after-received" => std::process::abort(),
        "embedded-never-acknowledge" => Err(BookError::InvalidQuery),
        _ => Ok(()),
    }
}

#[cfg(not(feature = "failpoints"))]
const fn fail_if_asked() -> Result<(), BookError> {
    Ok(())
}

fn book(shared: &Shared, event: Event) -> Result<(), BookError> {
    match event {
        Event::PaymentReceived { payment_hash, amount_msat, .. } => {
            let hash = PaymentHash::from_bytes(payment_hash.0);
            let new = shared.book.book_received(hash, Msat::new(amount_msat), shared.clock.now())?;
            tracing::debug!(%hash, amount_msat, new, "payment received");
            fail_if_asked()?;
        }
        Event::PaymentSuccessful {
            payment_hash, payment_preimage: Some(preimage), fee_paid_msat, ..
        } => {
            let hash = PaymentHash::from_bytes(payment_hash.0);
            let preimage = Preimage::from_bytes(preimage.0);
            if preimage.pays(&hash) {
                shared.book.book_settled(hash, &preimage, Msat::new(fee_paid_msat.unwrap_or(0)))?;
            } else {
                tracing::error!(%hash, "LDK calls a payment successful with a preimage that is not its own");
            }
        }
        Event::PaymentFailed { payment_hash: Some(hash), reason, .. } => {
            let hash = PaymentHash::from_bytes(hash.0);
            let reason =
                reason.map_or_else(|| "LDK gave no reason".to_owned(), |reason| format!("{reason:?}"));
            shared.book.book_failed(hash, &reason)?;
        }
        Event::ChannelClosed { counterparty_node_id, reason, .. } => {
            let peer = counterparty_node_id.map(|id| id.to_string());
            let reason = reason.map(|reason| reason.to_string());
            tracing::warn!(peer, reason, "a channel was closed");
        }
        _ => {}
    }
    Ok(())
}

impl Shared {
    /// Looks at the channels: for the hints in invoices, and whether anybody can pay us at all.
    pub(super) async fn refresh(&self) {
        let now = self.clock.now();
        let looked = self
            .call(move |node| {
                let channels = node.list_channels();
                let heard = node.status().latest_lightning_wallet_sync_timestamp;
                let stale = heard.is_some_and(|heard| now.secs().saturating_sub(heard) > STALE.as_secs());
                (Hints::of(&channels), channels.iter().any(|channel| channel.is_channel_ready), stale)
            })
            .await;
        let Ok((hints, any_ready, stale)) = looked else { return };
        self.minter.set_hints(hints);
        self.set_health(if self.dead.load(Ordering::Acquire) {
            Health::Down(
                "LDK has given up, most likely because its directory can't be written; start again".into(),
            )
        } else if self.syncs_by_itself && stale {
            Health::Down("the chain source has said nothing for an hour".into())
        } else if any_ready {
            Health::Ready
        } else {
            Health::Down("no channel is ready, so nobody could pay".into())
        });
    }
}
