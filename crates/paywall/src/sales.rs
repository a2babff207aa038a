//! What has been sold since the start, service by service: for the metrics. The books are what counts.

use std::collections::BTreeMap;

use farebox_protocol::{Msat, ServiceName};
use parking_lot::Mutex;

use crate::store::Sale;

/// What one service has sold since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sales {
    /// Challenges made. Most are never paid.
    pub challenges: u64,
    /// Purchases of which both the payment and the token are on the books.
    pub purchases: u64,
    /// What was paid for them, surplus included.
    pub paid: Msat,
    /// What was paid beyond their price.
    pub surplus: Msat,
}

/// Counts sales. It has an entry for each service that was ever sold under a live secret, and grows by nothing else.
#[derive(Debug, Default)]
pub(crate) struct Tally(Mutex<BTreeMap<ServiceName, Sales>>);

impl Tally {
    pub(crate) fn challenged(&self, service: &ServiceName) {
        self.with(service, |sales| sales.challenges += 1);
    }

    pub(crate) fn sold(&self, sold: &[Sale]) {
        for sale in sold {
            self.with(&sale.service, |sales| {
                sales.purchases += u64::from(sale.is_first);
                // Counters may wrap; money on the books doesn't.
                sales.paid = Msat::new(sales.paid.get().wrapping_add(sale.paid.get()));
                sales.surplus = Msat::new(sales.surplus.get().wrapping_add(sale.surplus.get()));
            });
        }
    }

    pub(crate) fn by_service(&self) -> BTreeMap<ServiceName, Sales> {
        self.0.lock().clone()
    }

    fn with(&self, service: &ServiceName, change: impl FnOnce(&mut Sales)) {
        let mut tally = self.0.lock();
        match tally.get_mut(service) {
            Some(sales) => change(sales),
            None => change(tally.entry(service.clone()).or_default()),
        }
    }
}
