//! Asking the ledger: what a request needs of what its buyer has left, and setting that aside.
//!
//! How much there is to use up comes from the signed terms, and never from today's configuration. What one request takes is
//! one unit where requests were sold, and today's cost of the route where credit was: a balance is money, and prices may
//! change. Where nobody says what a request costs, it can't be paid from credit: it is refused, and never free.
//!
//! Whatever was set aside is in the [`Bill`] from the moment on at which it is; dropping that anywhere gives it back.

use std::{num::NonZeroU64, sync::Arc, time::Duration};

use farebox_protocol::{Offer, Timestamp};

use super::{Paywall, examine::Examined};
use crate::{
    Bill, Request,
    decide::Ledger as Counted,
    ledger::{Refused, Reservation},
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

/// What a request needs.
struct Need {
    units: NonZeroU64,
    allotment: Allotment,
    /// Where it is paid from credit.
    cost: Option<Arc<Cost>>,
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
        let outcome = self.ledger.reserve_of_at_once(&hash, service, need.allotment, need.units)?;
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
        let Some(sold) = examined.sold(index, request.service) else { return };
        let presentation = Presentation { hash, sold, at: now };
        let tell = |sales: Vec<_>| self.books.opened(&sales);
        let outcome = self.ledger.reserve_telling(presentation, need.allotment, need.units, tell).await;
        if let Err(Refused::Unavailable(why)) = &outcome {
            tracing::warn!(%why, "what is left of a token could not be counted");
        }
        note(examined, index, &need, outcome);
    }
}

/// What the request needs, or why that can't be said.
fn need(request: &Request<'_>, examined: &Examined, index: usize) -> Result<Need, Counted> {
    let judged = examined.token(index).judged.ok_or(Counted::Unreadable)?;
    // Monthly limits are counted over all tokens of one purchase, and nobody does.
    if judged.is_limited {
        return Err(Counted::Unreadable);
    }
    let terms = judged.terms.ok_or(Counted::Unreadable)?;
    let allotment = Allotment::of(&terms).ok_or(Counted::Unreadable)?;
    let (units, cost) = match terms.offer {
        Offer::Credit => {
            let cost = request.service.cost(request.method, request.path).ok_or(Counted::Unpriced)?;
            (NonZeroU64::new(cost.reserve().get()).ok_or(Counted::Unpriced)?, Some(Arc::clone(cost)))
        }
        Offer::Requests(_) | Offer::Forever | Offer::Duration(_) => (NonZeroU64::MIN, None),
    };
    Ok(Need { units, allotment, cost })
}

/// Notes what the ledger said, and keeps what it gave.
fn note(examined: &mut Examined, index: usize, need: &Need, outcome: Result<Reservation, Refused>) {
    let short = |left| Short { left, needed: need.units.get(), unit: need.allotment.unit };
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
        // Only somebody with a secret of ours can have written two sales over one payment. The first one is on the books.
        Err(Refused::OtherSale) => Counted::Spent,
        Err(Refused::Unavailable(_)) => Counted::Unreadable,
    };
    examined.candidate_mut(index).ledger = counted;
}
