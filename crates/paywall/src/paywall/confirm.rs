//! Whether the payment behind a token has settled, for sellers who want to know that before they serve it.
//!
//! A preimage proves little to who shares a node with people that may read its invoices: they know it before anybody has
//! paid. The books are asked first and then the nodes, all of them at once, since a token doesn't say which one made its
//! invoice. What has settled stays settled, so a yes is remembered, in fixed memory, and the next use asks nobody; a no is
//! not. Off, this costs nothing and knows nothing.

use std::time::Duration;

use farebox_lightning::{Incoming, ReceiveError};
use farebox_protocol::PaymentHash;
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    sync::Semaphore,
    time::{self, Instant},
};

use super::Paywall;
use crate::{decide::Settled, seen::Seen};

/// How many payments are remembered as settled. 8 bytes each.
const REMEMBERED: usize = 65_536;
/// How many tokens the nodes are asked about at once. Who has to wait does so within `invoice_timeout`.
const ASKED_MAX: usize = 32;
/// A buyer who has just paid can be here before the seller's node has written it down. For so long it is asked again.
const WRITING: Duration = Duration::from_secs(2);
/// How soon, for the first time; then after twice as long each time.
const AGAIN_AFTER: Duration = Duration::from_millis(50);

/// What is known of payments without asking anybody; empty where nobody wants to know.
pub(super) struct Settlements(Option<Wanted>);

struct Wanted {
    /// A false yes would be access for nothing: see [`Seen`] for why a hash that nobody chose never looks like another.
    settled: Seen,
    asking: Semaphore,
}

impl Settlements {
    pub(super) fn new(are_wanted: bool) -> Self {
        let wanted = || Wanted { settled: Seen::new(REMEMBERED), asking: Semaphore::new(ASKED_MAX) };
        Self(are_wanted.then(wanted))
    }

    /// What is known of this one.
    pub(super) fn known(&self, hash: &PaymentHash) -> Settled {
        match &self.0 {
            None => Settled::Unneeded,
            Some(wanted) if wanted.settled.contains(hash) => Settled::Yes,
            Some(_) => Settled::Unasked,
        }
    }
}

impl Paywall {
    /// Whether this payment has settled. Takes `store_timeout` and `invoice_timeout` at most.
    pub(super) async fn confirm(&self, hash: PaymentHash) -> Settled {
        let Some(wanted) = &self.settlements.0 else { return Settled::Unneeded };
        let by_books = self.on_the_books(hash).await;
        let settled = match by_books {
            Settled::Yes => Settled::Yes,
            unknown => {
                let asked = time::timeout(self.config.invoice_timeout, self.by_nodes(wanted, hash)).await;
                match asked.unwrap_or(Settled::Unreadable) {
                    // The node that was paid may be gone. Only books that can be read say that it never was.
                    Settled::No => unknown,
                    said => said,
                }
            }
        };
        if settled == Settled::Yes {
            wanted.settled.insert(&hash);
        }
        settled
    }

    async fn on_the_books(&self, hash: PaymentHash) -> Settled {
        match time::timeout(self.config.store_timeout, self.store.purchase(hash)).await {
            Ok(Ok(Some(purchase))) if purchase.settled_at.is_some() => Settled::Yes,
            Ok(Ok(_)) => Settled::No,
            Ok(Err(error)) => {
                tracing::warn!(%error, "whether a payment is on the books could not be looked up");
                Settled::Unreadable
            }
            Err(_) => {
                tracing::warn!(
                    "whether a payment is on the books could not be looked up in time (`store_timeout`)"
                );
                Settled::Unreadable
            }
        }
    }

    /// Asks the nodes until one knows of it, or none has known for long enough.
    async fn by_nodes(&self, wanted: &Wanted, hash: PaymentHash) -> Settled {
        let (begun, mut pause) = (Instant::now(), AGAIN_AFTER);
        loop {
            let said = {
                let Ok(_permit) = wanted.asking.acquire().await else { return Settled::Unreadable };
                self.by_each_node(hash).await
            };
            if said != Settled::No || begun.elapsed() + pause > WRITING {
                return said;
            }
            time::sleep(pause).await;
            pause *= 2;
        }
    }

    /// Asks every node once.
    async fn by_each_node(&self, hash: PaymentHash) -> Settled {
        let asked = self.nodes.iter().map(|node| async move {
            // A node on another network is out, whatever it says.
            node.facts()?;
            node.receive().lookup(hash).await
        });
        let mut answers = asked.collect::<FuturesUnordered<_>>();
        let mut settled = Settled::No;
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(Incoming::Settled { .. }) => return Settled::Yes,
                Ok(_) => {}
                Err(error) => {
                    settled = Settled::Unreadable;
                    unanswered(&error);
                }
            }
        }
        settled
    }
}

fn unanswered(error: &ReceiveError) {
    tracing::debug!(%error, "a node could not be asked whether a payment has settled");
}

#[cfg(test)]
mod tests;
