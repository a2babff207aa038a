//! The invoices that we have had made and that may still be open: a bounded list, and the task that clears up behind it.
//!
//! lnd cancels an invoice when it has expired, but keeps it for ever unless it is configured otherwise. What was asked for
//! and not paid would so pile up in somebody else's database. At its expiry each invoice is therefore deleted (cancelled
//! first where lnd has not done so), a few at a time. When the list is full, no more can be had: unpaid invoices are
//! bounded in number. A restart forgets the list; what it held lnd cancels by itself, and `advice` says how to have it
//! deleted, too.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use farebox_protocol::PaymentHash;
use futures_util::{StreamExt as _, stream};
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

use super::{Node, client::CallError, rpc::invoicesrpc::CancelInvoiceMsg};

/// After its expiry lnd is left this long to cancel an invoice by itself.
const SLACK: Duration = Duration::from_secs(2);
/// How many are cleared up at the same time. Each costs lnd a write.
const AT_ONCE: usize = 4;
/// When an invoice that could not be cleared up is tried again.
const AGAIN_AFTER: Duration = Duration::from_secs(30);
/// How often.
const TRIES_MAX: u8 = 5;
/// How long clearing up may delay the end of the program.
const LAST_ROUND: Duration = Duration::from_secs(5);

/// An invoice to clear up. Ordered by when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    at: Instant,
    hash: [u8; 32],
    tries: u8,
}

/// The list.
#[derive(Debug)]
pub(crate) struct Open {
    max: usize,
    list: Mutex<List>,
    /// The first entry is another one than before.
    changed: Notify,
    /// What can't be done with this macaroon or this lnd has been said.
    said: AtomicBool,
}

#[derive(Debug, Default)]
struct List {
    /// Invoices that are being made.
    reserved: usize,
    due: BinaryHeap<Reverse<Due>>,
}

/// Room for one invoice.
pub(crate) struct Slot<'a>(&'a Open);

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.0.list.lock().reserved -= 1;
    }
}

impl Slot<'_> {
    /// Notes the invoice for which this is.
    pub(crate) fn keep(self, hash: PaymentHash, expiry: Duration) {
        self.0.add(Due { at: Instant::now() + expiry + SLACK, hash: *hash.as_bytes(), tries: 0 });
    }

    /// Notes an invoice that is no longer needed.
    pub(crate) fn discard(self, hash: PaymentHash) {
        self.0.add(Due { at: Instant::now(), hash: *hash.as_bytes(), tries: 0 });
    }
}

impl Open {
    pub(crate) fn new(max: usize) -> Self {
        Self { max, list: Mutex::default(), changed: Notify::new(), said: AtomicBool::new(false) }
    }

    /// Room for one more, or `None` when the list is full.
    pub(crate) fn reserve(&self) -> Option<Slot<'_>> {
        let mut list = self.list.lock();
        let has_room = list.reserved + list.due.len() < self.max;
        has_room.then(|| {
            list.reserved += 1;
            Slot(self)
        })
    }

    /// How many invoices it holds at most.
    pub(crate) const fn max(&self) -> usize {
        self.max
    }

    fn add(&self, due: Due) {
        self.list.lock().due.push(Reverse(due));
        self.changed.notify_one();
    }

    /// When the first one is due.
    fn next(&self) -> Option<Instant> {
        self.list.lock().due.peek().map(|Reverse(due)| due.at)
    }

    /// Those that are due, at most [`AT_ONCE`]. They count as made until they are put back or dropped.
    fn take(&self) -> Vec<Due> {
        let now = Instant::now();
        let mut list = self.list.lock();
        let mut taken = Vec::with_capacity(AT_ONCE);
        while taken.len() < AT_ONCE && list.due.peek().is_some_and(|Reverse(due)| due.at <= now) {
            taken.extend(list.due.pop().map(|Reverse(due)| due));
        }
        taken
    }

    /// All are due now.
    #[cfg(test)]
    pub(super) fn expire_all(&self) {
        let mut list = self.list.lock();
        let due = std::mem::take(&mut list.due).into_iter();
        list.due = due.map(|Reverse(due)| Reverse(Due { at: Instant::now(), ..due })).collect();
        drop(list);
        self.changed.notify_one();
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.list.lock().due.len()
    }
}

/// Clears up until `stop` is cancelled, and then once more what has expired by then.
pub(crate) async fn keep_clear(node: Arc<Node>, stop: CancellationToken) {
    loop {
        let round = async {
            match node.open.next() {
                Some(at) => {
                    tokio::select! {
                        () = time::sleep_until(at) => {}
                        () = node.open.changed.notified() => return,
                    }
                    node.watch.ready().await;
                }
                None => node.open.changed.notified().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => break,
            () = round => {}
        }
        // Not given up half way: what was taken from the list would be forgotten.
        node.clear_due().await;
    }
    let last = async { while node.clear_due().await > 0 {} };
    _ = time::timeout(LAST_ROUND, last).await;
}

impl Node {
    /// Clears up a few of those that are due. How many are off the list.
    async fn clear_due(&self) -> usize {
        let due = self.open.take();
        let cleared = stream::iter(due).map(|due| async move {
            let done = self.clear(PaymentHash::from_bytes(due.hash)).await;
            let again = !done && due.tries < TRIES_MAX;
            if again {
                self.open.add(Due { at: Instant::now() + AGAIN_AFTER, tries: due.tries + 1, ..due });
            }
            !again
        });
        cleared.buffer_unordered(AT_ONCE).filter(|done| std::future::ready(*done)).count().await
    }

    /// Deletes an invoice unless it is paid. Whether there is nothing left to do about it.
    async fn clear(&self, hash: PaymentHash) -> bool {
        let mut outcome = self.delete_cancelled(hash).await;
        if matches!(&outcome, Err(CallError::Said(said)) if said.contains("not canceled")) {
            // Paid, or lnd has not cancelled it yet.
            outcome = match self.cancel(hash).await {
                Ok(()) => self.delete_cancelled(hash).await,
                Err(error) => Err(error),
            };
        }
        match outcome {
            Ok(()) => true,
            Err(CallError::Said(said)) if said.contains("not canceled") => false,
            // It is settled, or lnd has deleted it already.
            Err(CallError::Said(_) | CallError::NotFound(_)) => true,
            Err(error @ (CallError::NotPermitted(_) | CallError::Unimplemented(_))) => {
                if !self.open.said.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        why = %error,
                        "unpaid invoices stay in lnd's database, cancelled, unless it is configured with \
                         `gc-canceled-invoices-on-the-fly=true`"
                    );
                }
                // lnd may be about to cancel it, and then it can be deleted without this.
                matches!(error, CallError::NotPermitted("lnrpc.Lightning/DeleteCanceledInvoice"))
            }
            Err(error) => {
                self.watch.note(&error);
                false
            }
        }
    }

    /// Takes an invoice back.
    pub(super) async fn cancel(&self, hash: PaymentHash) -> Result<(), CallError> {
        const METHOD: &str = "invoicesrpc.Invoices/CancelInvoice";
        let request = self.client.request(CancelInvoiceMsg { payment_hash: hash.as_bytes().to_vec() })?;
        let mut invoices = self.client.invoices();
        self.client.answer(METHOD, invoices.cancel_invoice(request)).await.map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_invoice_is_cleared_up_when_it_has_expired_and_not_before() {
        let open = Open::new(10);
        for (hash, secs) in [(1, 60), (2, 5)] {
            open.reserve().unwrap().keep(PaymentHash::from_bytes([hash; 32]), Duration::from_secs(secs));
        }
        time::advance(Duration::from_secs(6)).await;
        assert!(open.take().is_empty());
        time::advance(SLACK).await;
        assert_eq!(open.take().iter().map(|due| due.hash[0]).collect::<Vec<_>>(), [2]);
        assert_eq!(open.next().unwrap() - Instant::now(), Duration::from_secs(54));
    }

    #[tokio::test(start_paused = true)]
    async fn the_list_holds_what_is_being_made_and_what_is_open() {
        let open = Open::new(2);
        let first = open.reserve().unwrap();
        let second = open.reserve().unwrap();
        assert!(open.reserve().is_none());
        drop(second);
        first.keep(PaymentHash::from_bytes([1; 32]), Duration::from_secs(5));
        assert!(open.reserve().is_some());
        let _held = open.reserve().unwrap();
        assert!(open.reserve().is_none());
        time::advance(Duration::from_secs(5) + SLACK).await;
        assert_eq!(open.take().len(), 1);
        assert!(open.reserve().is_some());
    }
}
