//! One try at a time to pay a purchase back: servers may be slow on purpose, and there is room for so many tries only. How often
//! one may be made is said elsewhere ([`crate::limit::Attempts`]).

use std::{collections::HashSet, sync::Arc};

use farebox_protocol::PaymentHash;
use parking_lot::Mutex;

/// The purchases that are being tried.
#[derive(Clone, Default)]
pub(super) struct AtWork(Arc<Mutex<HashSet<PaymentHash>>>);

/// A try, until it is dropped.
pub(super) struct Try {
    at_work: AtWork,
    purchase: PaymentHash,
}

impl AtWork {
    /// Begins one, if there is none.
    pub(super) fn begin(&self, purchase: PaymentHash) -> Option<Try> {
        let is_first = self.0.lock().insert(purchase);
        is_first.then(|| Try { at_work: self.clone(), purchase })
    }
}

impl Drop for Try {
    fn drop(&mut self) {
        self.at_work.0.lock().remove(&self.purchase);
    }
}
