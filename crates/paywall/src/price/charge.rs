//! Who pays for what a request has cost, by how it ended: the rule of the house, as one pure function.
//!
//! | the request ended | the cost is known | only estimated | unreadable |
//! |---|---|---|---|
//! | whole: the answer went to its end | the cost | the estimate, up to the reserve | the reserve |
//! | abandoned: the buyer hung up | the cost | the estimate, up to the reserve | nothing |
//! | broken: the upstream stopped in mid-answer | nothing | nothing | nothing |
//! | failed: no answer, time-out, 5xx | nothing | nothing | nothing |
//!
//! A fixed price is always known, and so is a price by bytes: that of the bytes that passed. Usage is known once the answer
//! has told it, and *estimated* when the buyer didn't wait for that: one unit of output for each event of a stream, or for
//! each [`BYTES_PER_UNIT`] bytes of any other answer, and one of input for each [`BYTES_PER_UNIT`] bytes of the request. So
//! hanging up neither makes an answer free nor costs the buyer the maximum. Usage that a stream told before it went on is no
//! more than a part of it. A whole answer that doesn't tell its usage costs
//! the reserve, which is the price that the seller has set for not knowing; one that serves nothing (3xx, 4xx, 204, to `HEAD`)
//! and is silent counts as known, at the fixed part ([`Metering`](super::Metering)).
//!
//! What is due is taken from the reserve, then from whatever else the buyer has left. What exceeds both is *written off*: it
//! stands beside the law of the ledger, and no later payment makes up for it. So the most that a seller can lose by one
//! request is what it costs beyond its reserve, and a reserve is chosen accordingly.

use farebox_protocol::Msat;

/// How many bytes count as one unit of usage where nothing better is known.
pub const BYTES_PER_UNIT: u64 = 4;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The upstream's answer has passed to its end. Answers with 4xx are answers.
    Whole,
    /// The buyer hung up after its request had been sent on: before the answer's end, or before its beginning.
    Abandoned,
    /// The upstream broke off, or fell silent, in the middle of its answer.
    Broken,
    /// There was no answer, or one with 5xx, or not in time; or the request never left.
    Failed,
}

/// What is known of what a request has cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observed {
    /// This.
    Known(Msat),
    /// About this, to go by what has passed.
    Estimated(Msat),
    /// Nothing.
    Unreadable,
}

/// Who pays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Charge {
    /// The buyer, of what was reserved. The rest of that is given back.
    pub from_reserve: Msat,
    /// The buyer, of what else is left.
    pub from_left: Msat,
    /// Nobody.
    pub written_off: Msat,
}

/// What is due: by the table above, before anybody asks whether it is there.
pub fn due(reserve: Msat, observed: Observed, ending: Ending) -> Msat {
    match (ending, observed) {
        (Ending::Broken | Ending::Failed, _) | (Ending::Abandoned, Observed::Unreadable) => Msat::ZERO,
        (Ending::Whole | Ending::Abandoned, Observed::Known(cost)) => cost,
        (Ending::Whole | Ending::Abandoned, Observed::Estimated(cost)) => cost.min(reserve),
        (Ending::Whole, Observed::Unreadable) => reserve,
    }
}

/// Who pays what. `left` is what the buyer has beside the reserve.
pub fn settle_cost(reserve: Msat, left: Msat, observed: Observed, ending: Ending) -> Charge {
    let due = due(reserve, observed, ending);
    let from_reserve = due.min(reserve);
    let beyond = due.saturating_sub(from_reserve);
    let from_left = beyond.min(left);
    Charge { from_reserve, from_left, written_off: beyond.saturating_sub(from_left) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ENDINGS: [Ending; 4] = [Ending::Whole, Ending::Abandoned, Ending::Broken, Ending::Failed];

    /// With 10 reserved and 5 left: what is taken of each, and what is written off.
    #[track_caller]
    fn check(observed: Observed, ending: Ending, want: (u64, u64, u64)) {
        let Charge { from_reserve, from_left, written_off } =
            settle_cost(Msat::new(10), Msat::new(5), observed, ending);
        assert_eq!((from_reserve.get(), from_left.get(), written_off.get()), want, "{observed:?} {ending:?}");
    }

    #[test]
    fn the_cost_is_taken_from_the_reserve_then_from_what_is_left_then_from_nobody() {
        for ending in [Ending::Whole, Ending::Abandoned] {
            let known = |cost| Observed::Known(Msat::new(cost));
            check(known(0), ending, (0, 0, 0));
            check(known(7), ending, (7, 0, 0));
            check(known(10), ending, (10, 0, 0));
            check(known(12), ending, (10, 2, 0));
            check(known(15), ending, (10, 5, 0));
            check(known(99), ending, (10, 5, 84));
        }
    }

    #[test]
    fn an_abandoned_stream_costs_what_has_passed_and_never_more_than_the_reserve() {
        let estimated = |cost| Observed::Estimated(Msat::new(cost));
        check(estimated(3), Ending::Abandoned, (3, 0, 0));
        check(estimated(99), Ending::Abandoned, (10, 0, 0));
        check(Observed::Unreadable, Ending::Abandoned, (0, 0, 0));
    }

    #[test]
    fn a_whole_answer_whose_usage_nobody_can_read_costs_the_reserve() {
        check(Observed::Unreadable, Ending::Whole, (10, 0, 0));
        check(Observed::Estimated(Msat::new(4)), Ending::Whole, (4, 0, 0));
    }

    #[test]
    fn what_the_upstream_didnt_serve_costs_nothing() {
        for ending in [Ending::Broken, Ending::Failed] {
            for observed in
                [Observed::Known(Msat::new(9)), Observed::Estimated(Msat::new(9)), Observed::Unreadable]
            {
                check(observed, ending, (0, 0, 0));
            }
        }
    }

    proptest! {
        #[test]
        fn nobody_pays_what_isnt_due_or_what_isnt_there(
            reserve in any::<u64>(), left in any::<u64>(), cost in any::<u64>(), kind in 0..3, ending in 0..4_usize,
        ) {
            let (reserve, left, cost) = (Msat::new(reserve), Msat::new(left), Msat::new(cost));
            let observed = [Observed::Known(cost), Observed::Estimated(cost), Observed::Unreadable]
                [usize::try_from(kind).unwrap()];
            let charge = settle_cost(reserve, left, observed, ENDINGS[ending]);
            prop_assert!(charge.from_reserve <= reserve && charge.from_left <= left);
            prop_assert!(charge.from_left == Msat::ZERO || charge.from_reserve == reserve);
            prop_assert!(charge.written_off == Msat::ZERO || charge.from_left == left);
            let sum = charge.from_reserve.get() as u128 + charge.from_left.get() as u128
                + charge.written_off.get() as u128;
            prop_assert_eq!(sum, u128::from(due(reserve, observed, ENDINGS[ending]).get()));
        }
    }
}
