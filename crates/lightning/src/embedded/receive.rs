//! Being paid: invoices from the minter, settlements from the book.

use std::sync::Arc;
use std::time::Duration;

use farebox_protocol::{Invoice, Msat, PaymentHash};
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use tokio::sync::watch;

use super::node::{EmbeddedNode, NotRunning, Shared};
use crate::{Ask, Cursor, Health, Incoming, Receive, ReceiveError, ReceiveFacts, Settlement};

/// LDK adds two hours to an invoice's expiry and compares with the time in block headers, which lags behind the clock by
/// the age of the newest block. The third hour is for that.
const GRACE: Duration = Duration::from_secs(3 * 3_600);
/// How many settlements are read at a time.
const BATCH: u32 = 256;

impl From<NotRunning> for ReceiveError {
    fn from(error: NotRunning) -> Self {
        Self::Unavailable(error.0)
    }
}

impl Receive for EmbeddedNode {
    fn facts(&self) -> Option<ReceiveFacts> {
        Some(ReceiveFacts {
            network: self.shared.network(),
            node: self.shared.name(),
            grace: GRACE,
            granularity: Msat::new(1),
            is_shared: false,
        })
    }

    fn invoice(&self, ask: Ask) -> BoxFuture<'_, Result<Invoice, ReceiveError>> {
        Box::pin(async move {
            match self.health() {
                Health::Ready => self.shared.minter.mint(&ask, self.shared.clock.now()),
                // It could be minted all the same, but not paid.
                Health::Down(why) => Err(ReceiveError::Unavailable(why)),
            }
        })
    }

    fn lookup(&self, hash: PaymentHash) -> BoxFuture<'_, Result<Incoming, ReceiveError>> {
        Box::pin(async move { Ok(self.shared.book(move |book| book.received(hash)).await?) })
    }

    fn settlements(&self, after: Cursor) -> BoxStream<'_, Result<Settlement, ReceiveError>> {
        let newest = self.shared.book.newest().subscribe();
        let reader = Reader { shared: Arc::clone(&self.shared), after, newest, failed: false };
        let batches = stream::unfold(reader, |mut reader| async move {
            if reader.failed {
                return None;
            }
            let batch = reader.next().await;
            reader.failed = batch.is_err();
            Some((batch, reader))
        });
        let settlements = batches.flat_map(|batch| {
            stream::iter(match batch {
                Ok(batch) => batch.into_iter().map(Ok).collect(),
                Err(error) => vec![Err(error)],
            })
        });
        settlements.boxed()
    }

    fn health(&self) -> Health {
        self.shared.health.borrow().clone()
    }
}

impl Shared {
    /// Node and book: the cursors, and what isn't found, are this book's only.
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.minter.node_id(), self.book.id())
    }
}

/// Reads the log in batches and waits at its end.
struct Reader {
    shared: Arc<Shared>,
    after: Cursor,
    newest: watch::Receiver<Cursor>,
    failed: bool,
}

impl Reader {
    /// At least one settlement.
    async fn next(&mut self) -> Result<Vec<Settlement>, ReceiveError> {
        loop {
            // Marked as seen before reading: what is booked in between wakes us again.
            self.newest.borrow_and_update();
            let after = self.after;
            let batch = self.shared.book(move |book| book.received_after(after, BATCH)).await?;
            if let Some(last) = batch.last() {
                self.after = last.cursor;
                return Ok(batch);
            }
            tokio::select! {
                () = self.shared.stop.cancelled() => {
                    return Err(ReceiveError::Unavailable("the node has been stopped".into()));
                }
                // The sender is in `shared`, so it never closes.
                _ = self.newest.changed() => {}
            }
        }
    }
}
