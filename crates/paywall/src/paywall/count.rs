//! Asking the ledger: what a request needs of what its buyer has left, and setting that aside.
//!
//! How much there is to use up comes from the signed terms, and never from today's configuration. What one request takes is
//! one unit where requests were sold, and today's cost of the route where credit was: a balance is money, and prices may
//! change. Where nobody says what a request costs, it can't be paid from credit: it is refused, and never free.
//!
//! Limits by the month are asked beside that, and of passes alone. What a request takes of one that is in money is what it
//! takes of the credit; where requests were sold, its share of what was paid for them; and with a pass, which pays for nothing
//! request by request, what the route costs.
//!
//! Whatever was set aside is in the [`Bill`] from the moment on at which it is; dropping that anywhere gives it back.

use std::{num::NonZeroU64, sync::Arc, time::Duration};

use farebox_protocol::{CapabilityName, Macaroon, Offer, Timestamp, caveat};

use super::{Paywall, examine::Examined};
use crate::{
    Bill, Request,
    decide::Ledger as Counted,
    ledger::{
        Refused, Reservation,
        month::{Draw, Taken, in_units, share},
    },
    price::Cost,
    store::{
        Presentation,
        accounts::{Allotment, Unit},
    },
};

/// When to try again where all that is left is in use: most requests take less.
pub(super) const IN_FLIGHT_RETRY: Duration = Duration::from_secs(1);

/// How much was missing to let a request pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Short {
    /// What is left.
    pub(crate) left: u64,
    /// What the request needs.
    pub(crate) needed: u64,
    /// What both are counted in.
    pub(crate) unit: Unit,
}

/// What a token limits to so much a month, of what a request takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Limit {
    capability: CapabilityName,
    unit: Unit,
    most: u64,
}

/// What a request needs.
struct Need {
    units: NonZeroU64,
    /// `None` for a pass.
    allotment: Option<Allotment>,
    /// Where it is paid from credit, or limited as if it were.
    cost: Option<Arc<Cost>>,
    draws: Vec<Draw>,
}

/// The limits that a token sets for a request which takes these capabilities: of several for the same, the strictest. `None`
/// where one isn't understood.
pub(super) fn limits(macaroon: &Macaroon, taken: &[&str]) -> Option<Vec<Limit>> {
    let mut limits: Vec<Limit> = Vec::new();
    for limit in caveat::limits(macaroon, taken) {
        let (unit, most) = in_units(limit.most)?;
        let same = |held: &&mut Limit| held.unit == unit && held.capability.as_str() == limit.capability;
        match limits.iter_mut().find(same) {
            Some(held) => held.most = held.most.min(most),
            None => limits.push(Limit { capability: limit.capability.parse().ok()?, unit, most }),
        }
    }
    Some(limits)
}

impl Paywall {
    /// Sets aside what the request needs of this candidate's account, if that can be told at once.
    pub(super) fn count_at_once(
        &self,
        request: &Request<'_>,
        examined: &mut Examined,
        index: usize,
    ) -> Option<()> {
        let hash = examined.token(index).identifier.payment_hash;
        let need = match need(request, examined, index) {
            Ok(need) => need,
            Err(counted) => {
                examined.candidate_mut(index).ledger = counted;
                return Some(());
            }
        };
        let service = &request.service.name;
        let reserved = match need.allotment {
            Some(allotment) => self.ledger.reserve_of_at_once(&hash, service, allotment, need.units)?,
            None => self.ledger.of_pass(hash, need.units),
        };
        let outcome = match reserved {
            Ok(reservation) => self.ledger.limit_at_once(reservation, &need.draws)?,
            refused => refused,
        };
        note(examined, index, &need, outcome);
        Some(())
    }

    /// The same, and reads the account where it isn't in memory; opens it where this is the token's first use.
    pub(super) async fn count(
        &self,
        request: &Request<'_>,
        examined: &mut Examined,
        index: usize,
        now: Timestamp,
    ) {
        let hash = examined.token(index).identifier.payment_hash;
        let need = match need(request, examined, index) {
            Ok(need) => need,
            Err(counted) => {
                examined.candidate_mut(index).ledger = counted;
                return;
            }
        };
        let reserved = match need.allotment {
            Some(allotment) => {
                let Some(sold) = examined.sold(index, request.service) else { return };
                let presentation = Presentation { hash, sold, at: now };
                let tell = |sales: Vec<_>| self.books.opened(&sales);
                self.ledger.reserve_telling(presentation, allotment, need.units, tell).await
            }
            None => self.ledger.of_pass(hash, need.units),
        };
        let outcome = match reserved {
            Ok(reservation) => self.ledger.limit(reservation, &need.draws).await,
            refused => refused,
        };
        if let Err(Refused::Unavailable(why)) = &outcome {
            tracing::warn!(%why, "what is left of a token could not be counted");
        }
        note(examined, index, &need, outcome);
    }
}

/// What the request needs, or why that can't be said.
fn need(request: &Request<'_>, examined: &Examined, index: usize) -> Result<Need, Counted> {
    let judged = examined.token(index).judged.ok_or(Counted::Unreadable)?;
    let terms = judged.terms.ok_or(Counted::Unreadable)?;
    let limits = match judged.is_limited {
        false => &[][..],
        // One that can't be told is none that is kept.
        true => examined.limits(index).filter(|limits| !limits.is_empty()).ok_or(Counted::Unreadable)?,
    };
    let allotment = Allotment::of(&terms);
    let is_priced = match terms.offer {
        Offer::Credit => true,
        Offer::Requests(_) => false,
        Offer::Forever | Offer::Duration(_) if limits.is_empty() => return Err(Counted::Unreadable),
        Offer::Forever | Offer::Duration(_) => limits.iter().any(|limit| limit.unit == Unit::Msat),
    };
    let (units, cost) = match is_priced {
        true => {
            let cost = request.service.cost(request.method, request.path).ok_or(Counted::Unpriced)?;
            // An upload that is announced is set aside as a whole, or refused before anybody works for it.
            let length = if cost.counts_request() { request.length() } else { 0 };
            let units = NonZeroU64::new(cost.reserve_for(length).get()).ok_or(Counted::Unpriced)?;
            (units, Some(Arc::clone(cost)))
        }
        false => (NonZeroU64::MIN, None),
    };
    let draw = |limit: &Limit| {
        let (takes, taken) = match (limit.unit, terms.offer) {
            (Unit::Request, _) => (1, Taken::All),
            (Unit::Msat, Offer::Requests(count)) => (share(terms.price, count), Taken::All),
            (Unit::Msat, _) => (units.get(), Taken::AsCharged),
        };
        Draw { capability: limit.capability.clone(), unit: limit.unit, most: limit.most, takes, taken }
    };
    Ok(Need { units, allotment, cost, draws: limits.iter().map(draw).collect() })
}

/// Notes what the ledger said, and keeps what it gave.
fn note(examined: &mut Examined, index: usize, need: &Need, outcome: Result<Reservation, Refused>) {
    let unit = need.allotment.map_or(Unit::Request, |allotment| allotment.unit);
    let short = |left| Short { left, needed: need.units.get(), unit };
    let counted = match outcome {
        Ok(reservation) => {
            let bill = match &need.cost {
                Some(cost) => Bill::of_credit(reservation, cost),
                None => Bill::of_one(reservation),
            };
            examined.bill = Some((index, Box::new(bill)));
            Counted::Reserved
        }
        Err(Refused::UsedUp { left: 0 }) => {
            examined.short.get_or_insert(short(0));
            Counted::Spent
        }
        Err(Refused::UsedUp { left }) => {
            examined.short.get_or_insert(short(left));
            Counted::Short
        }
        Err(Refused::InFlight) => Counted::InFlight,
        Err(Refused::Limited(reached)) => {
            examined.reached.get_or_insert(reached);
            Counted::Limited
        }
        // Only somebody with a secret of ours can have written two sales over one payment. The first one is on the books.
        Err(Refused::OtherSale) => Counted::Spent,
        Err(Refused::Unavailable(_)) => Counted::Unreadable,
    };
    examined.candidate_mut(index).ledger = counted;
}
