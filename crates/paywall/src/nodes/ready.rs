//! Invoices made before they are asked for, for nodes that are slow to make one.
//!
//! A price is kept ready only while it is asked for: the first asker gets an invoice made on the spot, and from then on
//! a few lie ready, until nobody has asked for a while. Each is handed out once, to one buyer, and only while nothing
//! speaks against its node. One that has lain for a tenth of its life is dropped, so a buyer always has nine tenths of
//! the time that invoices are payable, and is told the exact end by the invoice itself.
//!
//! Nothing is stored, and the node is asked for no more than the budgets of minting allow: a challenge that was served
//! from here has paid for the invoice that takes the place of its own, and every other is taken from the total.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use farebox_protocol::{Invoice, Label, PaymentHash};
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

/// How many prices are kept ready; others are made on the spot.
const PRICES_MAX: usize = 64;

/// How many invoices lie ready at one node, over all prices.
const INVOICES_MAX: usize = 512;

/// How long after it was last asked for a price is kept ready.
const WARM: Duration = Duration::from_secs(600);

/// The part of its life that an invoice may lie here.
const LIE_PART: u32 = 10;

/// What an invoice is to say: all that it is asked for with, but for what is the same for all.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Wanted {
    /// What is sold, and for how much.
    pub(crate) label: Label,
    /// What it is called for people.
    pub(crate) words: String,
}

/// The invoices that lie ready at one node.
pub(crate) struct Ready {
    per_price: usize,
    lie_max: Duration,
    shelf: Mutex<Shelf>,
    /// Told when something is to be made.
    news: Notify,
}

#[derive(Default)]
struct Shelf {
    prices: HashMap<Wanted, Price>,
    /// How many invoices have been handed out for which none was made since.
    paid_for: usize,
}

struct Price {
    asked_at: Instant,
    /// Oldest first.
    invoices: VecDeque<Lying>,
}

struct Lying {
    invoice: Invoice,
    since: Instant,
}

impl Ready {
    pub(crate) fn new(per_price: usize, expiry: Duration) -> Self {
        Self { per_price, lie_max: expiry / LIE_PART, shelf: Mutex::default(), news: Notify::new() }
    }

    /// Whether there is anything to do here at all.
    pub(crate) fn is_kept(&self) -> bool {
        self.per_price > 0
    }

    /// An invoice that is from now on the caller's alone. Notes that it was asked for.
    pub(crate) fn take(&self, wanted: &Wanted) -> Option<Invoice> {
        if !self.is_kept() {
            return None;
        }
        let now = Instant::now();
        let mut shelf = self.shelf.lock();
        shelf.clean(now, self.lie_max);
        let taken = match shelf.prices.get_mut(wanted) {
            Some(price) => {
                price.asked_at = now;
                price.invoices.pop_front().map(|lying| lying.invoice)
            }
            None => {
                if shelf.prices.len() < PRICES_MAX {
                    let price = Price { asked_at: now, invoices: VecDeque::new() };
                    shelf.prices.insert(wanted.clone(), price);
                }
                None
            }
        };
        if taken.is_some() {
            shelf.paid_for = (shelf.paid_for + 1).min(INVOICES_MAX);
        }
        drop(shelf);
        self.news.notify_one();
        taken
    }

    /// What is to be made next: the price with the fewest.
    pub(crate) fn missing(&self) -> Option<Wanted> {
        let mut shelf = self.shelf.lock();
        shelf.clean(Instant::now(), self.lie_max);
        if shelf.len() >= INVOICES_MAX {
            return None;
        }
        let (wanted, price) = shelf.prices.iter().min_by_key(|(_, price)| price.invoices.len())?;
        (price.invoices.len() < self.per_price).then(|| wanted.clone())
    }

    /// Whether the next invoice has been paid for by a challenge that took one; if so, it is from now on.
    pub(crate) fn spend(&self) -> bool {
        let mut shelf = self.shelf.lock();
        let is_paid_for = shelf.paid_for > 0;
        shelf.paid_for = shelf.paid_for.saturating_sub(1);
        is_paid_for
    }

    /// Puts an invoice there, made at `since`. One that nobody has asked for meanwhile, or that lies there already, is
    /// dropped.
    pub(crate) fn put(&self, wanted: &Wanted, invoice: Invoice, since: Instant) {
        let mut shelf = self.shelf.lock();
        let hash = invoice.payment_hash();
        if shelf.len() >= INVOICES_MAX || shelf.holds(&hash) {
            return;
        }
        if let Some(price) =
            shelf.prices.get_mut(wanted).filter(|price| price.invoices.len() < self.per_price)
        {
            price.invoices.push_back(Lying { invoice, since });
        }
    }

    /// Drops all that lies there: its node may not be there to be paid. What was asked for is remembered.
    pub(crate) fn empty(&self) {
        self.shelf.lock().prices.values_mut().for_each(|price| price.invoices.clear());
    }

    /// How many lie there.
    pub(crate) fn len(&self) -> usize {
        self.shelf.lock().len()
    }

    /// Until something may have to be made: an invoice was taken, or some time has passed.
    pub(crate) async fn news(&self, longest: Duration) {
        // Running into the timeout is one of the two ways in which this ends well.
        let _ = tokio::time::timeout(longest, self.news.notified()).await;
    }
}

impl Shelf {
    fn clean(&mut self, now: Instant, lie_max: Duration) {
        self.prices.retain(|_, price| now.duration_since(price.asked_at) <= WARM);
        for price in self.prices.values_mut() {
            price.invoices.retain(|lying| now.duration_since(lying.since) <= lie_max);
        }
    }

    fn len(&self) -> usize {
        self.prices.values().map(|price| price.invoices.len()).sum()
    }

    fn holds(&self, hash: &PaymentHash) -> bool {
        let all = self.prices.values().flat_map(|price| &price.invoices);
        all.into_iter().any(|lying| lying.invoice.payment_hash() == *hash)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, sync::Arc, thread};

    use farebox_lightning::{Ask, Receive as _, clock::ManualClock};
    use farebox_protocol::{Msat, Offer};

    use super::*;
    use crate::testing::{Node, START};

    const EXPIRY: Duration = Duration::from_secs(600);

    fn wanted(price: u64) -> Wanted {
        let service = "weather".parse().unwrap();
        let label = Label { service, offer: Offer::Forever, price: Msat::new(price) };
        Wanted { label, words: String::new() }
    }

    fn node() -> Node {
        Node::new(Arc::new(ManualClock::new(START)), "02aa")
    }

    async fn invoice(node: &Node) -> Invoice {
        let ask = Ask { amount: Msat::new(1), expiry: EXPIRY, description: String::new() };
        node.invoice(ask).await.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn of_many_buyers_at_once_no_two_get_the_same_and_none_gets_two() {
        let (node, ready) = (node(), Ready::new(200, EXPIRY));
        assert_eq!(ready.take(&wanted(1)), None);
        for _ in 0..200 {
            ready.put(&wanted(1), invoice(&node).await, Instant::now());
        }
        assert_eq!(ready.len(), 200);
        let taken: Vec<Vec<_>> = thread::scope(|scope| {
            let buyers: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| (0..50).filter_map(|_| ready.take(&wanted(1))).collect()))
                .collect();
            buyers.into_iter().map(|buyer| buyer.join().unwrap()).collect()
        });
        let hashes: HashSet<_> = taken.iter().flatten().map(Invoice::payment_hash).collect();
        assert_eq!((taken.iter().flatten().count(), hashes.len(), ready.len()), (200, 200, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_lies_there_is_bounded_in_all_and_nothing_lies_there_twice() {
        let (node, ready) = (node(), Ready::new(100, EXPIRY));
        for price in 1..=100 {
            ready.take(&wanted(price));
        }
        for price in 1..=100 {
            for _ in 0..10 {
                ready.put(&wanted(price), invoice(&node).await, Instant::now());
            }
        }
        assert_eq!(ready.len(), INVOICES_MAX);
        assert_eq!(ready.missing(), None);
        assert!(ready.shelf.lock().prices.len() <= PRICES_MAX);

        let ready = Ready::new(2, EXPIRY);
        ready.take(&wanted(1));
        let one = invoice(&node).await;
        ready.put(&wanted(1), one.clone(), Instant::now());
        ready.put(&wanted(1), one, Instant::now());
        assert_eq!(ready.len(), 1);
        ready.put(&wanted(2), invoice(&node).await, Instant::now());
        assert_eq!(ready.len(), 1, "nobody has asked for that");
    }

    #[tokio::test(start_paused = true)]
    async fn a_buyer_has_nine_tenths_of_the_time() {
        let (node, ready) = (node(), Ready::new(2, EXPIRY));
        ready.take(&wanted(1));
        ready.put(&wanted(1), invoice(&node).await, Instant::now());
        ready.put(&wanted(1), invoice(&node).await, Instant::now());
        tokio::time::advance(EXPIRY / 10).await;
        assert!(ready.take(&wanted(1)).is_some());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(ready.take(&wanted(1)).is_none());
    }

    #[test]
    fn each_that_was_handed_out_pays_for_one() {
        let ready = Ready::new(2, EXPIRY);
        assert!(!ready.spend());
        ready.shelf.lock().paid_for = 2;
        assert!(ready.spend() && ready.spend() && !ready.spend());
    }
}
