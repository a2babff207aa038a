//! What the body of a request tells its tab, and what it has to ask: whether the request has left, how much of it, and, where
//! its bytes have a price, whether anybody pays for the next piece.
//!
//! A piece of an upload that nobody pays for is not sent on: the request is broken off before it. So an upload costs its
//! seller nothing, where an answer may cost the piece with which the credit is used up. An answer may end before its request
//! does; then the bill waits for that, as long as the upload gets on, and the rest is paid like the beginning. Once the bill is
//! settled nothing more is sent on.
//!
//! Only where the request's bytes have a price is the bill shared with the body, behind a lock for which two parts of one
//! request, on one worker, hardly ever meet.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use farebox_paywall::{Bill, price::Ending, store::accounts::StoredAnswer};
use parking_lot::{MappedMutexGuard, Mutex, MutexGuard};
use tokio::{
    sync::Notify,
    time::{Duration, timeout},
};

use crate::metrics::ServiceMetrics;

/// See the module.
#[derive(Default)]
pub(crate) struct Departure {
    has_left: AtomicBool,
    bytes: AtomicU64,
    /// Boxed: most have none.
    priced: Option<Box<Priced>>,
}

/// A request whose bytes have a price.
struct Priced {
    shared: Mutex<Shared>,
    /// Told when nobody has its body any more.
    over: Notify,
}

/// Its bill.
struct Shared {
    /// There until it is settled.
    bill: Option<Box<Bill>>,
    /// Somebody has its body and may send more of it on.
    is_taken_up: bool,
    /// How its answer has ended, if the request goes on.
    ended: Option<Ended>,
}

/// How an answer has ended, and what is kept of it.
pub(super) struct Ended {
    pub(super) ending: Ending,
    pub(super) answer: Option<StoredAnswer>,
}

impl Departure {
    /// With the bill, where that is for the body to ask as well; else it comes back.
    pub(super) fn with(bill: Box<Bill>) -> (Self, Option<Box<Bill>>) {
        if !bill.counts_request() {
            return (Self::default(), Some(bill));
        }
        let shared = Mutex::new(Shared { bill: Some(bill), is_taken_up: false, ended: None });
        let priced = Some(Box::new(Priced { shared, over: Notify::new() }));
        (Self { priced, ..Self::default() }, None)
    }

    /// Whether the bytes of the request have a price.
    pub(super) const fn is_priced(&self) -> bool {
        self.priced.is_some()
    }

    /// The request leaves, or it has turned out that it didn't.
    pub(in crate::proxy) fn leaves(&self, has_left: bool) {
        self.has_left.store(has_left, Relaxed);
    }

    pub(super) fn has_left(&self) -> bool {
        self.has_left.load(Relaxed)
    }

    /// How many bytes of its body were sent on.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// So much more of it was, whoever pays for that.
    pub(super) fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Relaxed);
    }

    /// Whether so much more of it may be sent on, and counts from now on.
    pub(in crate::proxy) fn passes(&self, bytes: u64) -> bool {
        if let Some(priced) = self.priced.as_ref().filter(|_| bytes > 0) {
            let after = self.bytes().saturating_add(bytes);
            let is_paid = priced.shared.lock().bill.as_mut().is_some_and(|bill| bill.keeps_up(after));
            if !is_paid {
                return false;
            }
        }
        self.add(bytes);
        true
    }

    /// Somebody has the request's body from now on, to send it on. Whether its bytes have a price, so that they have to tell
    /// when they [let go](Self::let_go) of it.
    pub(in crate::proxy) fn take_up(&self) -> bool {
        let Some(priced) = &self.priced else { return false };
        priced.shared.lock().is_taken_up = true;
        true
    }

    /// Nobody has it any more: it has been sent to its end, or no more of it is wanted or will come.
    pub(in crate::proxy) fn let_go(&self, metrics: &ServiceMetrics) {
        let Some(priced) = &self.priced else { return };
        let mut shared = priced.shared.lock();
        shared.is_taken_up = false;
        // What has no ending yet is its tab's to settle.
        let Some(ended) = shared.ended.take() else { return };
        let Some(bill) = shared.bill.take() else { return };
        drop(shared);
        priced.over.notify_one();
        settle(bill, self.bytes(), ended, metrics);
    }

    /// The bill, if it is here and its answer hasn't ended.
    pub(super) fn bill(&self) -> Option<MappedMutexGuard<'_, Bill>> {
        let shared = self.priced.as_ref()?.shared.lock();
        if shared.ended.is_some() {
            return None;
        }
        MutexGuard::try_map(shared, |shared| shared.bill.as_deref_mut()).ok()
    }

    /// The answer has ended: settles the bill that is here, or leaves it open where the request goes on, and says so. One that
    /// isn't charged anyway is not waited for.
    pub(super) fn end(&self, ended: Ended, metrics: &ServiceMetrics) -> bool {
        let Some(mut shared) = self.priced.as_ref().map(|priced| priced.shared.lock()) else { return false };
        if shared.ended.is_some() {
            return false;
        }
        let Some(bill) = shared.bill.take() else { return false };
        if shared.is_taken_up && ended.ending == Ending::Whole && !bill.has_failed() {
            (shared.bill, shared.ended) = (Some(bill), Some(ended));
            return true;
        }
        drop(shared);
        settle(bill, self.bytes(), ended, metrics);
        false
    }

    /// Waits for the end of an upload that goes on after its answer, and settles the bill where it doesn't get on for so long:
    /// an upstream that reads nothing more must not keep what its buyer has left.
    pub(in crate::proxy) async fn outlive(&self, idle: Duration, metrics: &ServiceMetrics) {
        let Some(priced) = &self.priced else { return };
        loop {
            let before = self.bytes();
            if timeout(idle, priced.over.notified()).await.is_ok() {
                return;
            }
            if self.bytes() == before {
                return self.let_go(metrics);
            }
        }
    }
}

/// Charges what a request of so many bytes is charged.
pub(super) fn settle(mut bill: Box<Bill>, bytes: u64, ended: Ended, metrics: &ServiceMetrics) {
    bill.request(usize::try_from(bytes).unwrap_or(usize::MAX));
    metrics.charged(bill.unit(), bill.end_answered(ended.ending, ended.answer));
}
