//! What a wallet's answer means for a row, as pure functions: the part of the machine where a mistake costs money.

use farebox_protocol::{Msat, Preimage};

use super::intent::{Failure, Intent, State};
use crate::{Outcome, PayError, PayFacts};

/// What an answer means.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Paid, proven.
    Settled { preimage: Preimage, fee: Msat },
    /// Not paid, says the wallet that was asked to pay.
    Failed(Failure),
    /// Nothing is known of this attempt. Whether that proves anything, [`proves_unsent`] says.
    NotFound,
    /// The answer is no use, and may be none again.
    Empty(String),
    /// Still open: ask again.
    Open(String),
}

impl Verdict {
    /// Why the outcome isn't known, for the journal.
    pub(super) fn reason(self) -> String {
        match self {
            Self::Open(reason) | Self::Empty(reason) => reason,
            Self::NotFound => "the wallet does not know this attempt, which proves nothing here".to_owned(),
            Self::Settled { .. } => "settled".to_owned(),
            Self::Failed(failure) => failure.reason,
        }
    }
}

/// What the answer to [`Pay::pay`](crate::Pay::pay) means.
pub(super) fn paid(row: &Intent, answer: Result<Outcome, PayError>) -> Verdict {
    match answer {
        Ok(Outcome::Settled { preimage, fee }) => proven(row, preimage, fee),
        Ok(Outcome::Failed(reason)) => Verdict::Failed(Failure { reason, unsent: false }),
        Ok(Outcome::InFlight) => Verdict::Open("the payment is under way".to_owned()),
        Ok(Outcome::NotFound) => Verdict::Open("the wallet answered `not found` to a payment".to_owned()),
        Err(error) => Verdict::Open(error.to_string()),
    }
}

/// What the answer to [`Pay::lookup`](crate::Pay::lookup) means. Of another wallet than the row's, only a proof counts.
pub(super) fn looked_up(facts: &PayFacts, row: &Intent, answer: Result<Outcome, PayError>) -> Verdict {
    let same_wallet = facts.wallet == row.wallet;
    match answer {
        Ok(Outcome::Settled { preimage, fee }) => proven(row, preimage, fee),
        Err(error) => Verdict::Open(error.to_string()),
        Ok(_) if !same_wallet => Verdict::Empty(format!(
            "it was sent from wallet `{}`; wallet `{}` can't tell what became of it",
            row.wallet, facts.wallet
        )),
        // An earlier attempt may be what has failed, and this one still be on its way to the wallet.
        Ok(Outcome::Failed(_)) if row.attempt > 1 && !facts.proves_unsent => Verdict::NotFound,
        Ok(Outcome::Failed(reason)) => Verdict::Failed(Failure { reason, unsent: false }),
        Ok(Outcome::InFlight) => Verdict::Open("the payment is under way".to_owned()),
        Ok(Outcome::NotFound) => Verdict::NotFound,
    }
}

/// Whether a "not found" means that this row's payment was never sent.
pub(super) fn proves_unsent(facts: &PayFacts, row: &Intent) -> bool {
    facts.proves_unsent && facts.wallet == row.wallet
}

/// Whether the wallet may be asked to pay `row`, given what the journal says. A row that was sent has been looked up
/// before and not been found.
pub(super) fn may_send(facts: &PayFacts, row: &Intent) -> bool {
    let refused_if_paid = facts.refuses_paid_hash && facts.wallet == row.wallet;
    match &row.state {
        State::Recorded => true,
        State::Failed(failure) => failure.unsent || refused_if_paid,
        State::Sent | State::Unknown { .. } => refused_if_paid,
        State::Settled { .. } => false,
    }
}

/// Wallets have been seen to return no preimage, zeros, or another one: then it may be paid, and nothing is proven.
fn proven(row: &Intent, preimage: Preimage, fee: Msat) -> Verdict {
    if preimage.pays(&row.hash) {
        Verdict::Settled { preimage, fee }
    } else {
        Verdict::Empty(
            "the wallet calls it paid, but its preimage does not hash to the payment hash".to_owned(),
        )
    }
}
