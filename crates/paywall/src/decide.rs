//! Who may pass. This is the one place where access is granted: facts in, decision out, nothing fetched.
//!
//! Whoever calls this gathers the facts and carries the decision out; front doors only translate. What is *not* decided
//! here is whether a challenge can be made: that comes after, and ends in an answer whatever happens. A fact that is
//! missing never grants: it stands for the worst it could be.

use std::time::Duration;

use farebox_protocol::{Msat, Offer, Timestamp, caveat::Judged};

use crate::{
    Code, Service,
    store::{Purchase, Sold},
};

/// All that the decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Whether this request costs anything.
    pub gate: Gate,
    /// What the buyer showed.
    pub presented: Presented<'a>,
    /// Whether the client's network has a freebie for this request.
    pub freebie: Freebie,
    /// The tier below which a token has been outgrown.
    pub tier: u8,
    /// The present moment.
    pub now: Timestamp,
}

/// Whether a request costs anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// The service is open, or the path is free.
    Free,
    /// A token is needed.
    Priced,
    /// A token is needed, and none is sold here.
    Closed,
}

/// Whether a freebie is there to be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freebie {
    /// None are given here, or not for this method.
    None,
    /// Nobody has looked.
    Unasked,
    /// One was counted for this request.
    Counted,
    /// None are left.
    UsedUp,
}

/// What the buyer showed.
#[derive(Clone, Copy, Debug)]
pub enum Presented<'a> {
    /// No credential.
    Nothing,
    /// Something that can't be read, and why.
    Malformed(Code),
    /// Tokens, each with its proof of payment.
    Tokens(&'a [Candidate]),
}

/// One token, examined. [`Candidate::UNEXAMINED`] stands for one of which nothing good is known.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Which secret explains its signature.
    pub key: Key,
    /// Whether the preimage hashes to the token's payment hash.
    pub preimage_holds: bool,
    /// Whether the seller revoked it.
    pub revoked: bool,
    /// What its caveats say for this request, or why they forbid it.
    pub caveats: Result<Judged, Code>,
    /// Whether its payment has settled, where that is wanted beside the proof. Asked of tokens that live keys signed; for
    /// the others the books vouch.
    pub settled: Settled,
    /// What the ledger says of this use of it. Asked of tokens that are used up by use, or limited to so much a month.
    pub ledger: Ledger,
}

/// What the ledger says of one use of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ledger {
    /// Nobody has asked.
    Unasked,
    /// What the request may cost is reserved, and within every limit.
    Reserved,
    /// What is left is reserved by requests under way, which may yet give it back.
    InFlight,
    /// Nothing is left.
    Spent,
    /// Something is left, but too little for this request.
    Short,
    /// It is paid from credit, and nobody says what it costs.
    Unpriced,
    /// A limit of the token is reached.
    Limited,
    /// It can't be asked just now.
    Unreadable,
}

/// Which secret explains a token's signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// None of ours.
    Unknown,
    /// A live one.
    Live,
    /// One that leaked: its tokens hold only where an earlier payment vouches for them.
    SettledOnly(Vouched),
}

/// Whether the books know a payment from before the leak that fits the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vouched {
    /// Nobody has looked.
    Unasked,
    /// They do.
    Yes,
    /// They don't.
    No,
    /// They could not be read.
    Unreadable,
}

/// Whether a payment has settled. The preimage alone proves that somebody who knew it let it go: the node mostly, by
/// settling, but also whoever may read its invoices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The preimage is proof enough.
    Unneeded,
    /// Nobody has looked.
    Unasked,
    /// It has.
    Yes,
    /// It has not: neither books nor nodes know of it.
    No,
    /// Books or nodes could not be asked, and the others know nothing of it.
    Unreadable,
}

/// What is to be done with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Decision {
    /// Forward it.
    Forward(Grant),
    /// Look up this candidate's payment, then decide again with [`Vouched`] filled in.
    Consult(usize),
    /// Find out whether this candidate's payment has settled, then decide again with [`Settled`] filled in.
    Confirm(usize),
    /// Reserve what the request may cost on this candidate's account, then decide again with [`Ledger`] filled in. Only
    /// that second decision forwards.
    Reserve(usize),
    /// Count a freebie, then decide again with [`Freebie`] filled in.
    CountFreebie,
    /// Offer a fresh challenge (402). Buyers in the wild buy again on 402 only.
    Challenge(Code),
    /// Refuse, without a challenge (401): paying again would not help.
    Refuse(Code),
    /// Refuse where nothing is sold (401), whatever the code says elsewhere.
    Deny(Code),
    /// Answer that it may pass a little later (429).
    Wait(Code),
    /// Answer that it can't be decided just now (503). A broken store never looks like a bad token.
    Unavailable(Code),
}

/// On what grounds a request is forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grant {
    /// It costs nothing.
    Free,
    /// It costs something, but not this time.
    Freebie,
    /// The candidate at this index has paid.
    Paid(usize),
}

/// Decides. Pure: the same facts, the same decision.
pub fn decide(facts: &Facts<'_>) -> Decision {
    match (facts.gate, by_credential(facts)) {
        (Gate::Free, _) => Decision::Forward(Grant::Free),
        (Gate::Closed, Decision::Challenge(Code::PaymentRequired)) => Decision::Deny(Code::TokenRequired),
        (Gate::Closed, Decision::Challenge(code)) => Decision::Deny(code),
        // Whoever has no token that holds could as well have shown none, so a bad one loses no freebie. Only a preimage that
        // doesn't belong to its token is told apart: that is a mistake to be put right, by somebody who has paid.
        (Gate::Priced, Decision::Challenge(code)) => match facts.freebie {
            Freebie::Counted => Decision::Forward(Grant::Freebie),
            Freebie::Unasked => Decision::CountFreebie,
            Freebie::None | Freebie::UsedUp => Decision::Challenge(code),
        },
        (Gate::Priced | Gate::Closed, decision) => decision,
    }
}

/// What the credential is worth where one is needed.
fn by_credential(facts: &Facts<'_>) -> Decision {
    match facts.presented {
        Presented::Nothing | Presented::Tokens([]) => Decision::Challenge(Code::PaymentRequired),
        Presented::Malformed(code) => Decision::Challenge(code),
        Presented::Tokens(candidates) => candidates
            .iter()
            .enumerate()
            .map(|(index, candidate)| judge(facts, index, candidate))
            // Of several equally good ones the first counts, so that answers don't depend on what follows.
            .min_by_key(rank)
            .unwrap_or(Decision::Challenge(Code::PaymentRequired)),
    }
}

/// Judges one token: signature first, then the proof of payment, then everything that was signed.
fn judge(facts: &Facts<'_>, index: usize, candidate: &Candidate) -> Decision {
    if candidate.key == Key::Unknown {
        return Decision::Challenge(Code::TokenUnknown);
    }
    if !candidate.preimage_holds {
        return Decision::Refuse(Code::PreimageWrong);
    }
    if candidate.revoked {
        return Decision::Challenge(Code::TokenRevoked);
    }
    let bought = match candidate.caveats {
        Ok(bought) => bought,
        Err(code) => return Decision::Challenge(code),
    };
    // A token of ours always names its service and terms; one without could open every service for ever.
    let (Some(terms), Some(tier)) = (bought.terms, bought.tier) else {
        return Decision::Challenge(Code::TermsMissing);
    };
    match (terms.offer, bought.valid_until) {
        // A time was sold without saying until when.
        (Offer::Duration(_), None) => return Decision::Challenge(Code::TermsMissing),
        (_, Some(end)) if facts.now >= end => return Decision::Challenge(Code::TokenExpired),
        (Offer::Forever | Offer::Duration(_) | Offer::Requests(_) | Offer::Credit, _) => {}
    }
    if tier < facts.tier {
        return Decision::Challenge(Code::TierOutgrown);
    }
    match (candidate.key, candidate.settled) {
        (Key::Live, Settled::Unasked) => Decision::Confirm(index),
        // Its holder needs no other invoice: this one is to be paid, or its money is still on its way.
        (Key::Live, Settled::No) => Decision::Refuse(Code::PaymentUnsettled),
        (Key::Live, Settled::Unreadable) => Decision::Unavailable(Code::PaymentUnconfirmed),
        (Key::Live, Settled::Unneeded | Settled::Yes) | (Key::SettledOnly(Vouched::Yes), _) => {
            // The token proves what was bought. What is left of it, only the ledger can tell.
            match terms.offer.is_counted() || bought.is_limited {
                false => Decision::Forward(Grant::Paid(index)),
                true => count(index, candidate.ledger),
            }
        }
        (Key::SettledOnly(Vouched::Unasked), _) => Decision::Consult(index),
        (Key::SettledOnly(Vouched::Unreadable), _) => Decision::Unavailable(Code::StoreUnavailable),
        (Key::SettledOnly(Vouched::No), _) => Decision::Challenge(Code::SecretWithdrawn),
        (Key::Unknown, _) => Decision::Challenge(Code::TokenUnknown),
    }
}

/// Judges one use of a token that has to be counted.
fn count(index: usize, ledger: Ledger) -> Decision {
    match ledger {
        Ledger::Reserved => Decision::Forward(Grant::Paid(index)),
        Ledger::Unasked => Decision::Reserve(index),
        Ledger::InFlight => Decision::Wait(Code::UnitsInFlight),
        Ledger::Spent => Decision::Challenge(Code::UnitsSpent),
        Ledger::Short => Decision::Challenge(Code::UnitsShort),
        Ledger::Unpriced => Decision::Unavailable(Code::CostUnknown),
        Ledger::Limited => Decision::Challenge(Code::LimitReached),
        Ledger::Unreadable => Decision::Unavailable(Code::LedgerUnavailable),
    }
}

/// Which of several tokens speaks for the request: one that opens, then one that might, then the one that was nearest.
/// A dead token asks for a new purchase even beside one whose preimage is wrong, since that is what helps its holder.
fn rank(decision: &Decision) -> u8 {
    match decision {
        Decision::Forward(_) => 0,
        Decision::Reserve(_) => 1,
        Decision::Confirm(_) => 2,
        Decision::Consult(_) => 3,
        Decision::Wait(_) => 4,
        Decision::Unavailable(_) => 5,
        // It may open once its money is there. Who holds it should not be led to pay a second time.
        Decision::Refuse(Code::PaymentUnsettled) => 6,
        Decision::Challenge(Code::TokenUnknown) => 8,
        Decision::Challenge(_) => 7,
        // The last two are never about a token alone.
        Decision::Refuse(_) | Decision::Deny(_) | Decision::CountFreebie => 9,
    }
}

/// What is compared to find out whether the books vouch for a token that a leaked secret signed.
pub(crate) struct Voucher<'a> {
    /// What the books say of the payment.
    pub(crate) purchase: Option<&'a Purchase>,
    /// What the token says was sold.
    pub(crate) token: &'a Sold,
    /// The service, as it is sold today.
    pub(crate) service: &'a Service,
    /// When the secret may have leaked.
    pub(crate) since: Timestamp,
    /// How much longer than its duration a pass can have lasted, counted from its payment.
    pub(crate) margin: Duration,
}

impl Voucher<'_> {
    /// Whether they do.
    ///
    /// Whoever has the secret can write any terms over a payment of their own, so the settlement alone proves little.
    /// Where the books hold the terms (forwarding is what books them), they must be these. Where the token was not used
    /// before the leak, the money must also cover what the service sells today: until the secret was withdrawn, forged
    /// tokens were forwarded and booked like others. Its end may be anything that such a sale can have led to: a holder
    /// may have brought it forward.
    pub(crate) fn check(&self) -> Vouched {
        let settled = self.purchase.and_then(|purchase| Some((purchase, purchase.settled_at?)));
        match settled {
            Some((purchase, at)) if at < self.since && self.ends_in_time(at) => match &purchase.sold {
                Some(sold) if !self.is_sale(sold) => Vouched::No,
                Some(_) if purchase.presented_at.is_some_and(|first| first < self.since) => Vouched::Yes,
                Some(_) | None if self.is_covered(purchase.paid) => Vouched::Yes,
                Some(_) | None => Vouched::No,
            },
            _ => Vouched::No,
        }
    }

    fn is_sale(&self, sold: &Sold) -> bool {
        Sold { valid_until: None, ..sold.clone() } == Sold { valid_until: None, ..self.token.clone() }
    }

    /// Whether the money covers something that is on sale, and the token claims no more than that.
    fn is_covered(&self, paid: Msat) -> bool {
        let Self { token, service, .. } = self;
        token.service == service.name
            && paid >= token.terms.price
            && service.on_sale().any(|(tier, offer, price)| {
                token.tier <= tier && token.terms.offer == offer && token.terms.price >= price
            })
    }

    fn ends_in_time(&self, paid_at: Timestamp) -> bool {
        match (self.token.terms.offer, self.token.valid_until) {
            (Offer::Duration(duration), Some(end)) => {
                end <= paid_at.saturating_add(duration).saturating_add(self.margin)
            }
            (Offer::Forever | Offer::Requests(_) | Offer::Credit, _) => true,
            (Offer::Duration(_), None) => false,
        }
    }
}

impl Candidate {
    /// Nothing good is known of it.
    pub const UNEXAMINED: Self = Self {
        key: Key::Unknown,
        preimage_holds: false,
        revoked: true,
        caveats: Err(Code::TokenUnknown),
        settled: Settled::No,
        ledger: Ledger::Unasked,
    };
}

#[cfg(test)]
mod tests;
