//! How much is asked for, and what a request costs.
//!
//! What is asked for is a positive, bounded amount that the node can put on an invoice. What this module answers is what
//! goes into the signed terms *and* onto the invoice, so that the two can't differ.
//!
//! What a request costs matters where credit is drawn down by use: [`Cost`] says it, [`Metering`] watches one request and
//! its answer pass, and [`settle_cost`] is the rule by which the cost is charged, however the request ended. All of it is
//! arithmetic: nothing here waits, fetches or keeps a body.

use farebox_protocol::Msat;

mod ask;
mod charge;
mod cost;
mod metering;
pub mod usage;

pub use ask::{ASK_BYTES_MAX, ask_for_usage};
pub use charge::{BYTES_PER_UNIT, Charge, Ending, Observed, due, settle_cost};
pub use cost::{Cost, CostError, Meter, PerMillion, Rates, TokenRates, Units};
pub use metering::{Metered, Metering};
pub use usage::{Unreadable, UsageReader};

/// The highest price: 1,000 BTC. Above it somebody has slipped on the keyboard.
pub const PRICE_MAX: Msat = Msat::new(100_000_000_000_000);

/// The most requests that one payment can buy: the books count no further.
pub const REQUESTS_MAX: u64 = i64::MAX.unsigned_abs();

/// Whether a price can be asked for. Zero can't: it would become an invoice for any amount.
pub(crate) fn is_sellable(price: Msat) -> bool {
    price > Msat::ZERO && price <= PRICE_MAX
}

/// The price as this node can ask for it: rounded *up* to a multiple of its granularity, since rounding down could make
/// a price of 900 msat an invoice for any amount. `None` when it can't be asked for.
pub fn askable(price: Msat, granularity: Msat) -> Option<Msat> {
    let step = granularity.get().max(1);
    let asked = price.get().div_ceil(step).checked_mul(step).map(Msat::new)?;
    (is_sellable(price) && is_sellable(asked)).then_some(asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(price: u64, granularity: u64, want: Option<u64>) {
        assert_eq!(askable(Msat::new(price), Msat::new(granularity)).map(Msat::get), want);
    }

    #[test]
    fn a_price_is_rounded_up_to_what_the_node_can_ask() {
        check(1_500, 1, Some(1_500));
        check(1_500, 1_000, Some(2_000));
        check(2_000, 1_000, Some(2_000));
        check(1, 1_000, Some(1_000));
    }

    #[test]
    fn a_zero_or_absurd_price_is_never_asked_for() {
        check(0, 1_000, None);
        check(0, 1, None);
        check(PRICE_MAX.get(), 1_000, Some(PRICE_MAX.get()));
        check(PRICE_MAX.get() + 1, 1, None);
        check(u64::MAX, 1_000, None);
        check(1, u64::MAX, None);
    }

    #[test]
    fn a_node_that_claims_no_granularity_is_taken_at_one_millisatoshi() {
        check(7, 0, Some(7));
    }
}
