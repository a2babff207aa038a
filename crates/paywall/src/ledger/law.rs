//! The law of one account, and the only six things that may happen to it.
//!
//! `sold = spent + reserved + refunding + refunded + left`, after every step. `left` is counted and not derived, so that the
//! law can be broken, and therefore checked. What an upstream used beyond what the buyer had is *written off*: it stands
//! beside the law, since no unit was ever sold for it.

use farebox_protocol::Msat;

/// What became of the units of one purchase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Balance {
    sold: u64,
    spent: u64,
    reserved: u64,
    refunding: u64,
    refunded: u64,
    left: u64,
    written_off: u64,
}

/// What a commit did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Charged {
    /// Units that the buyer has paid for with it.
    pub spent: u64,
    /// Units that were used and that nobody pays for.
    pub written_off: u64,
}

/// Why units can't be reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Short {
    /// Enough may come back from requests that are under way.
    InFlight,
    /// There are not so many, whatever comes back.
    UsedUp,
}

/// An account that can't be: its parts exceed what was sold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "an account of {sold} units can't have spent {spent}, refund {refunding} and have refunded {refunded}"
)]
pub struct Unlawful {
    sold: u64,
    spent: u64,
    refunding: u64,
    refunded: u64,
}

/// An amount of each kind, in msat: what a balance is in money.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InMoney {
    /// Earned.
    pub spent: Msat,
    /// Held for requests and refunds that are under way.
    pub reserved: Msat,
    /// Paid back.
    pub refunded: Msat,
    /// Still owed to the buyer, in service.
    pub left: Msat,
}

impl Balance {
    /// An account as the books have it. Nothing is reserved: reservations are no longer-lived than the process.
    ///
    /// # Errors
    ///
    /// When the parts exceed what was sold.
    pub const fn new(
        sold: u64,
        spent: u64,
        refunding: u64,
        refunded: u64,
        written_off: u64,
    ) -> Result<Self, Unlawful> {
        let unlawful = Unlawful { sold, spent, refunding, refunded };
        let Some(used) = spent.checked_add(refunding) else { return Err(unlawful) };
        let Some(used) = used.checked_add(refunded) else { return Err(unlawful) };
        let Some(left) = sold.checked_sub(used) else { return Err(unlawful) };
        Ok(Self { sold, spent, reserved: 0, refunding, refunded, left, written_off })
    }

    /// What was bought.
    pub const fn sold(&self) -> u64 {
        self.sold
    }

    /// What was used and charged.
    pub const fn spent(&self) -> u64 {
        self.spent
    }

    /// What requests under way may yet use.
    pub const fn reserved(&self) -> u64 {
        self.reserved
    }

    /// What is on its way back to the buyer; not lost to them, and not to be had either.
    pub const fn refunding(&self) -> u64 {
        self.refunding
    }

    /// What was paid back.
    pub const fn refunded(&self) -> u64 {
        self.refunded
    }

    /// What can be had.
    pub const fn left(&self) -> u64 {
        self.left
    }

    /// What was used beyond that, and not charged.
    pub const fn written_off(&self) -> u64 {
        self.written_off
    }

    /// The law.
    pub fn holds(&self) -> bool {
        let parts = [self.spent, self.reserved, self.refunding, self.refunded, self.left];
        parts.iter().try_fold(0, |sum: u64, part| sum.checked_add(*part)) == Some(self.sold)
    }

    /// Sets units aside. All of them or none.
    pub(crate) fn reserve(&mut self, units: u64) -> Result<(), Short> {
        match self.left.checked_sub(units) {
            Some(left) => {
                self.left = left;
                self.reserved = added(self.reserved, units);
                Ok(())
            }
            None if self.left.saturating_add(self.reserved) >= units => Err(Short::InFlight),
            None => Err(Short::UsedUp),
        }
    }

    /// Sets units aside: so many, or as many as there are. How many.
    pub(crate) fn reserve_some(&mut self, units: u64) -> u64 {
        let some = units.min(self.left);
        self.left = taken(self.left, some);
        self.reserved = added(self.reserved, some);
        some
    }

    /// Ends a reservation without charge.
    pub(crate) fn release(&mut self, units: u64) {
        self.reserved = taken(self.reserved, units);
        self.left = added(self.left, units);
    }

    /// Ends a reservation with a charge. What exceeds the reservation is taken from what is left, and what exceeds that is
    /// written off.
    pub(crate) fn commit(&mut self, units: u64, charge: u64) -> Charged {
        self.release(units);
        let spent = charge.min(self.left);
        let written_off = charge - spent;
        self.left = taken(self.left, spent);
        self.spent = added(self.spent, spent);
        self.written_off = self.written_off.saturating_add(written_off);
        Charged { spent, written_off }
    }

    /// Turns a reservation into a refund that is under way.
    pub(crate) fn begin_refund(&mut self, units: u64) {
        self.reserved = taken(self.reserved, units);
        self.refunding = added(self.refunding, units);
    }

    /// Ends a refund: the money has left, or has come back.
    pub(crate) fn end_refund(&mut self, units: u64, paid: Refund) {
        self.refunding = taken(self.refunding, units);
        match paid {
            Refund::Paid => self.refunded = added(self.refunded, units),
            Refund::Part(part) => {
                let refunded = part.get().min(units);
                self.refunded = added(self.refunded, refunded);
                self.left = added(self.left, units - refunded);
            }
            Refund::Failed => self.left = added(self.left, units),
        }
    }

    /// The same in money, where `price` was paid for all. Units may not divide the price; the parts are cut where their sum
    /// is cut, so that they always add up to it.
    pub fn in_money(&self, price: Msat) -> InMoney {
        let upto = |units: u64| match self.sold {
            0 => 0,
            sold => {
                let share = u128::from(price.get()) * u128::from(units) / u128::from(sold);
                u64::try_from(share).unwrap_or(price.get())
            }
        };
        // Refunds come first: that money has been counted out to the msat.
        let refunded = upto(self.refunded);
        let spent = upto(self.refunded + self.spent);
        let reserved = upto(self.refunded + self.spent + self.reserved + self.refunding);
        InMoney {
            refunded: Msat::new(refunded),
            spent: Msat::new(spent - refunded),
            reserved: Msat::new(reserved - spent),
            left: Msat::new(price.get() - reserved),
        }
    }
}

/// How a refund ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refund {
    /// The money has arrived at the buyer's.
    Paid,
    /// So much of what had been set aside, above zero, was needed to bring it there; the rest has come back.
    Part(Msat),
    /// It certainly has not, and never will. Not for "unknown".
    Failed,
}

/// Parts of what was sold are never more than all of it; if they were, the account would have to stop, not to go round.
fn added(to: u64, units: u64) -> u64 {
    to.checked_add(units).expect("no part is more than what was sold")
}

/// A reservation is ended once, so this never goes below zero; if it did, the account would have to stop, not to lie.
fn taken(from: u64, units: u64) -> u64 {
    from.checked_sub(units).expect("what is ended was begun")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(sold: u64) -> Balance {
        Balance::new(sold, 0, 0, 0, 0).unwrap()
    }

    #[test]
    fn the_last_unit_is_reserved_once() {
        let mut balance = of(1);
        assert_eq!(balance.reserve(1), Ok(()));
        assert_eq!(balance.reserve(1), Err(Short::InFlight));
        assert_eq!(balance.commit(1, 1), Charged { spent: 1, written_off: 0 });
        assert_eq!(balance.reserve(1), Err(Short::UsedUp));
    }

    #[test]
    fn what_comes_back_can_be_had_again() {
        let mut balance = of(5);
        balance.reserve(5).unwrap();
        balance.release(5);
        balance.reserve(5).unwrap();
        assert_eq!(balance.commit(5, 2), Charged { spent: 2, written_off: 0 });
        assert_eq!((balance.left(), balance.spent()), (3, 2));
    }

    #[test]
    fn what_is_used_beyond_the_reservation_is_taken_from_what_is_left_and_then_written_off() {
        let mut balance = of(10);
        balance.reserve(4).unwrap();
        balance.reserve(3).unwrap();
        assert_eq!(balance.commit(4, 9), Charged { spent: 7, written_off: 2 });
        assert_eq!((balance.left(), balance.reserved(), balance.written_off()), (0, 3, 2), "not from others");
        assert!(balance.holds());
    }

    #[test]
    fn what_is_being_refunded_can_neither_be_spent_nor_waited_for() {
        let mut balance = of(10);
        balance.reserve(10).unwrap();
        balance.begin_refund(10);
        assert_eq!(balance.reserve(1), Err(Short::UsedUp));
        balance.end_refund(10, Refund::Failed);
        balance.reserve(1).unwrap();
        assert!(balance.holds());
    }

    #[test]
    fn what_a_refund_did_not_take_comes_back() {
        let mut balance = of(10);
        balance.reserve(8).unwrap();
        balance.begin_refund(8);
        balance.end_refund(8, Refund::Part(Msat::new(5)));
        assert_eq!((balance.refunded(), balance.left(), balance.refunding()), (5, 5, 0));
        balance.reserve(5).unwrap();
        balance.begin_refund(5);
        balance.end_refund(5, Refund::Part(Msat::new(9)));
        assert_eq!((balance.refunded(), balance.left()), (10, 0), "never more than was set aside");
        assert!(balance.holds());
    }

    #[test]
    fn the_parts_of_a_price_that_does_not_divide_add_up_to_it() {
        let balance = Balance::new(3, 1, 0, 0, 0).unwrap();
        let money = balance.in_money(Msat::new(1_000));
        assert_eq!((money.spent.get(), money.left.get()), (333, 667));
    }

    #[test]
    fn an_account_whose_parts_exceed_it_is_refused() {
        assert!(Balance::new(3, 2, 1, 1, 0).is_err());
        assert!(Balance::new(u64::MAX, u64::MAX, 1, 0, 0).is_err());
    }

    proptest! {
        #[test]
        fn the_law_holds_whatever_happens(
            sold in prop_oneof![0..50_u64, Just(u64::MAX)],
            price in 1..2_000_000_u64,
            steps in proptest::collection::vec((0..6_u8, 0..20_u64, 0..30_u64), 0..60),
        ) {
            let mut balance = of(sold);
            let (mut held, mut refunds) = (Vec::new(), Vec::new());
            for (step, units, charge) in steps {
                match step {
                    0 => if balance.reserve(units).is_ok() { held.push(units) },
                    1 => drop(held.pop().map(|units| balance.commit(units, charge))),
                    2 => drop(held.pop().map(|units| balance.release(units))),
                    3 => if let Some(units) = held.pop() {
                        balance.begin_refund(units);
                        refunds.push(units);
                    },
                    4 => if let Some(held) = held.last_mut() {
                        let (left, more) = (balance.left(), balance.reserve_some(units));
                        prop_assert_eq!(more, units.min(left));
                        *held += more;
                    },
                    _ => if let Some(units) = refunds.pop() {
                        let end = match charge % 3 {
                            0 => Refund::Paid,
                            1 => Refund::Part(Msat::new(charge)),
                            _ => Refund::Failed,
                        };
                        balance.end_refund(units, end);
                    },
                }
                prop_assert!(balance.holds(), "{balance:?}");
                prop_assert_eq!(balance.reserved(), held.iter().sum::<u64>());
                let money = balance.in_money(Msat::new(price));
                let sum = money.spent.get() + money.reserved.get() + money.refunded.get() + money.left.get();
                prop_assert_eq!(sum, price);
            }
        }
    }
}
