//! How much of a refund arrives, and how much of it the route may cost: pure arithmetic.
//!
//! The buyer pays for the route, out of what is paid back. What is set aside is the amount of their invoice and the most that
//! the route may cost; what it doesn't cost is theirs again.

use farebox_protocol::Msat;

/// A refund below this isn't worth a route.
pub const LEAST: Msat = Msat::new(1_000);

/// The most that a route may cost: a part of the amount, and something besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeeLimit {
    /// Millionths of the amount.
    pub parts_per_million: u64,
    /// What doesn't depend on the amount.
    pub base: Msat,
}

impl FeeLimit {
    /// 1 % and 5 sat: enough for every backend there is.
    pub const USUAL: Self = Self { parts_per_million: 10_000, base: Msat::new(5_000) };

    /// The most that paying `amount` may cost, rounded up.
    pub fn of(&self, amount: Msat) -> Msat {
        let part = u128::from(amount.get()) * u128::from(self.parts_per_million);
        let part = u64::try_from(part.div_ceil(1_000_000)).unwrap_or(u64::MAX);
        self.base.saturating_add(Msat::new(part))
    }

    /// What is set aside to pay `amount`.
    pub fn with(&self, amount: Msat) -> Msat {
        amount.saturating_add(self.of(amount))
    }

    /// The largest amount that can be paid out of `total`; zero where the route alone may cost as much.
    pub fn largest_within(&self, total: Msat) -> Msat {
        let room = u128::from(total.get().saturating_sub(self.base.get())) * 1_000_000;
        let amount = room / (1_000_000 + u128::from(self.parts_per_million));
        Msat::new(u64::try_from(amount).unwrap_or(u64::MAX))
    }
}

impl Default for FeeLimit {
    fn default() -> Self {
        Self::USUAL
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_limit_is_a_part_and_something_besides() {
        assert_eq!(FeeLimit::USUAL.of(Msat::new(100_000)), Msat::new(6_000));
        assert_eq!(FeeLimit::USUAL.of(Msat::new(1)), Msat::new(5_001), "rounded up");
        assert_eq!(FeeLimit::USUAL.largest_within(Msat::new(4_000)), Msat::ZERO);
    }

    proptest! {
        #[test]
        fn the_largest_amount_fits_and_no_larger_one_does(
            total in 0..=Msat::MAX.get(),
            parts_per_million in 0..=1_000_000_u64,
            base in 0..100_000_u64,
        ) {
            let limit = FeeLimit { parts_per_million, base: Msat::new(base) };
            let amount = limit.largest_within(Msat::new(total));
            if amount > Msat::ZERO {
                prop_assert!(limit.with(amount).get() <= total);
                prop_assert!(limit.with(Msat::new(amount.get() + 1)).get() > total);
            }
        }
    }
}
