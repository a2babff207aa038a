//! How much one payment may cost. The price and the routing fee have a cap each, and zero means zero.
//!
//! The price cap is compared with the amount of the invoice alone; the fee cap with the most that the wallet may spend
//! on the route. So one payment costs at most [`Limits::total`], and never more.

use farebox_lightning::FeeControl;
use farebox_protocol::Msat;

use crate::Refusal;

/// The caps on one payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The highest price, without the fee. 1,000 sat unless changed.
    pub per_payment: Msat,
    /// The highest fee on top of the price. 10 sat unless changed.
    pub fee_max: Msat,
}

impl Default for Limits {
    fn default() -> Self {
        Self { per_payment: Msat::new(1_000_000), fee_max: Msat::new(10_000) }
    }
}

impl Limits {
    /// The most that can leave the wallet for one payment.
    pub const fn total(&self) -> Msat {
        self.per_payment.saturating_add(self.fee_max)
    }

    /// Whether `price` may be paid at all, whatever the wallet.
    pub fn allow_price(&self, price: Msat) -> Result<(), Refusal> {
        if price > self.per_payment {
            return Err(Refusal::OverPriceLimit { price, limit: self.per_payment });
        }
        Ok(())
    }

    /// The most that paying `price` can cost in fees with this wallet, if that is within the cap.
    pub fn allow_fee(&self, price: Msat, wallet: &FeeControl) -> Result<Msat, Refusal> {
        let worst = wallet.fee_max(price, self.fee_max);
        if worst > self.fee_max {
            return Err(Refusal::OverFeeLimit { worst, limit: self.fee_max });
        }
        Ok(worst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAT: u64 = 1_000;

    #[test]
    fn a_price_at_the_limit_is_paid_and_one_above_is_not() {
        let limits = Limits { per_payment: Msat::new(5 * SAT), ..Limits::default() };
        assert!(limits.allow_price(Msat::new(5 * SAT)).is_ok());
        assert!(limits.allow_price(Msat::new(5 * SAT + 1)).is_err());
    }

    #[test]
    fn zero_means_zero() {
        let limits = Limits { per_payment: Msat::ZERO, fee_max: Msat::ZERO };
        assert!(limits.allow_price(Msat::new(1)).is_err());
        assert_eq!(limits.total(), Msat::ZERO);
        let flat = FeeControl::WorstCase { base: Msat::new(1), parts_per_million: 0 };
        assert!(limits.allow_fee(Msat::new(1), &flat).is_err());
    }

    #[test]
    fn a_wallet_that_takes_no_fee_limit_is_judged_by_its_worst_case() {
        // 4 sat and 0.4 %: 8 sat on 1,000 sat is within 10 sat, 10.004 sat on 1,501 sat is not.
        let wallet = FeeControl::WorstCase { base: Msat::new(4 * SAT), parts_per_million: 4_000 };
        let limits = Limits { per_payment: Msat::MAX, ..Limits::default() };
        assert_eq!(limits.allow_fee(Msat::new(1_000 * SAT), &wallet).ok(), Some(Msat::new(8 * SAT)));
        assert!(limits.allow_fee(Msat::new(1_501 * SAT), &wallet).is_err());
    }

    #[test]
    fn a_wallet_that_keeps_to_a_limit_may_spend_all_of_it() {
        assert_eq!(
            Limits::default().allow_fee(Msat::new(1), &FeeControl::Exact).ok(),
            Some(Msat::new(10 * SAT))
        );
    }
}
