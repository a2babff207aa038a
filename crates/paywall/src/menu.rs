//! What of a service is sold: offers to choose from, tiers, and the capabilities by which tiers differ.
//!
//! A *capability* names a part of a service, by methods and paths. A request takes every capability that it falls under, and
//! a token that lists capabilities must list all of those; one that lists none may do what its tier may. So overlapping
//! patterns never open more than each of them would, in whatever order they are written.
//!
//! *Tiers* build on each other: a higher one has at least what a lower one has, and the highest has everything. A request
//! needs the lowest tier that has all the capabilities it takes, and that tier's offers are what its buyer is asked to pay.
//!
//! *Offers* have names. A buyer gets the default, or names another in the header [`OFFER_HEADER`] or in the query
//! (`?farebox-offer=large`): one challenge for each request, so the node is asked for one invoice and not for several.

use std::time::Duration;

use farebox_protocol::{CapabilityName, Identifier, Msat, Offer, ServiceName, caveat::LIST_MAX};
use http::{HeaderName, Method};
use smallvec::SmallVec;

use crate::{PathPattern, Service, price};

mod choice;

pub(crate) use choice::others;
pub use choice::{choice, without_choice};

/// Names the offer that a buyer chooses; in a query it has the same name.
pub const OFFER_HEADER: HeaderName = HeaderName::from_static("farebox-offer");

/// The name of the offer that a service makes unless told otherwise.
pub const DEFAULT_OFFER: &str = "default";

/// What is sold beside the default offer of the lowest tier, which is the service's own.
#[derive(Clone, Debug, Default)]
pub struct Menu {
    /// How long what is counted is good for: requests and credit end then. Without, they don't end.
    pub good_for: Option<Duration>,
    /// More offers of the lowest tier.
    pub more: Vec<Plan>,
    /// The named parts of the service.
    pub capabilities: Vec<Capability>,
    /// What the lowest tier may do; everything, if there are no tiers above it.
    pub lowest: Vec<CapabilityName>,
    /// The tiers above it, lowest first.
    pub tiers: Vec<Tier>,
}

/// A named part of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Its name, as signed into tokens.
    pub name: CapabilityName,
    /// Its methods; all, if there are none.
    pub methods: Vec<Method>,
    /// Its paths; all, if there are none.
    pub paths: Vec<PathPattern>,
}

/// More of a service for more money.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tier {
    /// Its number, as signed into tokens; above that of every tier below it.
    pub tier: u8,
    /// All that it may do.
    pub capabilities: Vec<CapabilityName>,
    /// What it costs: the default first.
    pub offers: Vec<Plan>,
}

/// One offer to choose from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What a buyer calls it: 1 to 32 of `a-z 0-9 -`.
    pub name: String,
    /// What one payment costs.
    pub price: Msat,
    /// What one payment buys.
    pub offer: Offer,
    /// How long that is good for, where it is counted.
    pub good_for: Option<Duration>,
}

/// What a buyer is asked to pay for.
#[derive(Clone, Copy, Debug)]
pub struct Quote<'a> {
    /// The service.
    pub service: &'a Service,
    /// The name of the offer.
    pub name: &'a str,
    /// The tier that is sold.
    pub tier: u8,
    /// What is signed into the token of what it may do; `None` for everything that the tier has.
    pub capabilities: Option<&'a [CapabilityName]>,
    /// What it costs.
    pub price: Msat,
    /// What it buys.
    pub offer: Offer,
    /// How long that is good for, where it is counted.
    pub good_for: Option<Duration>,
    /// The token of a lower tier in whose place it is sold, where its holder asked for that.
    pub replaces: Option<Identifier>,
}

/// The capabilities that a request takes.
pub(crate) type Taken<'a> = SmallVec<[&'a str; 4]>;

/// A buyer has chosen what isn't sold, or chosen twice.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no one offer called `{}`", .0.escape_debug())]
pub struct UnknownOffer(pub String);

/// Why a menu can't be sold from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MenuError {
    /// Two things of one kind have one name.
    #[error("service `{0}` has two {1} called `{2}`; give each a name of its own")]
    Twice(ServiceName, &'static str, String),
    /// A name that no buyer could write.
    #[error("service `{0}` has an offer called `{1}`; use 1 to 32 of `a-z 0-9 -`")]
    OfferName(ServiceName, String),
    /// An offer has a price that can't be asked for.
    #[error(
        "service `{0}` sells `{1}` for {2}; write a price from 1 msat to {max}",
        max = price::PRICE_MAX
    )]
    Price(ServiceName, String, Msat),
    /// More capabilities than a token can list.
    #[error("service `{0}` has {1} capabilities; a token can list {LIST_MAX}")]
    TooMany(ServiceName, usize),
    /// A tier lists a capability that isn't there.
    #[error("tier {1} of service `{0}` has the capability `{2}`, which the service has not")]
    Unknown(ServiceName, u8, CapabilityName),
    /// A tier that isn't above the one before.
    #[error(
        "tier {1} of service `{0}` does not build on the one before: its number must be higher, and it must have \
             at least the same capabilities"
    )]
    Order(ServiceName, u8),
    /// A part of the service that nobody can buy.
    #[error(
        "no tier of service `{0}` has the capability `{1}`, so nobody could buy it; give it to the highest"
    )]
    Unsold(ServiceName, CapabilityName),
    /// A tier without offers.
    #[error("tier {1} of service `{0}` has no offer; say what it costs")]
    NoOffer(ServiceName, u8),
}

impl Capability {
    /// Whether a request (path normalised) falls under it.
    pub fn covers(&self, method: &Method, path: &str) -> bool {
        (self.methods.is_empty() || self.methods.contains(method))
            && (self.paths.is_empty() || self.paths.iter().any(|paths| paths.matches(path)))
    }
}

impl Service {
    /// The capabilities that a request (path normalised) takes.
    pub(crate) fn taken(&self, method: &Method, path: &str) -> Taken<'_> {
        let capabilities = self.menu.capabilities.iter();
        capabilities.filter(|each| each.covers(method, path)).map(|each| each.name.as_str()).collect()
    }

    /// The tier that a request needs: the lowest that has all it takes. 255 where none has, which no validated menu allows.
    pub(crate) fn tier_for(&self, taken: &[&str]) -> u8 {
        match self.tier_of(taken) {
            Ok(Some(tier)) => tier.tier,
            Ok(None) => self.tier,
            Err(NobodyHas) => u8::MAX,
        }
    }

    /// What is put to the buyer of a request: the offer chosen by name, or else the first, of the tier it needs. Credit that
    /// is less than the request sets aside is not put to anybody: whoever paid for it would be asked to pay again.
    ///
    /// # Errors
    ///
    /// When no offer of that tier has that name, or reaches.
    pub fn quote<'a>(
        &'a self,
        method: &Method,
        path: &str,
        choice: Option<&str>,
    ) -> Result<Quote<'a>, UnknownOffer> {
        self.quote_sized(method, path, 0, choice)
    }

    /// The same for a request whose body has so many bytes, which credit must pay for as well.
    pub(crate) fn quote_sized<'a>(
        &'a self,
        method: &Method,
        path: &str,
        length: u64,
        choice: Option<&str>,
    ) -> Result<Quote<'a>, UnknownOffer> {
        let mut offers = self.choices(method, path, length);
        match choice {
            None => offers.next(),
            Some(name) => offers.find(|quote| quote.name == name),
        }
        .ok_or_else(|| UnknownOffer(choice.unwrap_or_default().to_owned()))
    }

    /// Everything that the buyer of such a request, with so many bytes, may choose from, the default first.
    pub(crate) fn choices(
        &self,
        method: &Method,
        path: &str,
        length: u64,
    ) -> impl Iterator<Item = Quote<'_>> {
        let tier = self.tier_of(&self.taken(method, path)).ok();
        let reserve = self.cost(method, path).map(|cost| cost.reserve_for(length));
        let reaches = move |quote: &Quote<'_>| {
            quote.offer != Offer::Credit || reserve.is_some_and(|reserve| reserve <= quote.price)
        };
        tier.into_iter().flat_map(|tier| self.offers(tier)).filter(reaches)
    }

    /// The tier above the lowest that has all of these, if the lowest hasn't.
    fn tier_of(&self, taken: &[&str]) -> Result<Option<&Tier>, NobodyHas> {
        let has = |listed: &[CapabilityName]| {
            taken.iter().all(|name| listed.iter().any(|has| has.as_str() == *name))
        };
        if self.menu.tiers.is_empty() || has(&self.menu.lowest) {
            return Ok(None);
        }
        self.menu.tiers.iter().find(|tier| has(&tier.capabilities)).map(Some).ok_or(NobodyHas)
    }

    fn offers<'a>(&'a self, tier: Option<&'a Tier>) -> impl Iterator<Item = Quote<'a>> {
        let own = Quote {
            service: self,
            name: DEFAULT_OFFER,
            tier: self.tier,
            // Without tiers there is nothing that a token has to be kept from.
            capabilities: (!self.menu.tiers.is_empty()).then_some(&*self.menu.lowest),
            price: self.price,
            offer: self.offer,
            good_for: self.menu.good_for,
            replaces: None,
        };
        let (first, number, capabilities, plans) = match tier {
            None => (Some(own), own.tier, own.capabilities, &self.menu.more),
            Some(above) => (None, above.tier, Some(&*above.capabilities), &above.offers),
        };
        let of_plan = move |plan: &'a Plan| Quote {
            service: self,
            name: &plan.name,
            tier: number,
            capabilities,
            price: plan.price,
            offer: plan.offer,
            good_for: plan.good_for,
            replaces: None,
        };
        first.into_iter().chain(plans.iter().map(of_plan))
    }
}

/// No tier has all that a request takes.
struct NobodyHas;

impl Menu {
    /// Whether `service` can be sold from it; ask at start-up.
    ///
    /// # Errors
    ///
    /// When something can't be bought, can't be named, or would mean two things.
    pub(crate) fn validate(&self, service: &Service) -> Result<(), MenuError> {
        let name = || service.name.clone();
        let names: Vec<&str> = self.capabilities.iter().map(|each| each.name.as_str()).collect();
        if let Some(twice) = repeated(&names) {
            return Err(MenuError::Twice(name(), "capabilities", twice));
        }
        if names.len() > LIST_MAX {
            return Err(MenuError::TooMany(name(), names.len()));
        }
        let mut below = (service.tier, &self.lowest);
        self.check_names(service, below.0, below.1, &names)?;
        for tier in &self.tiers {
            self.check_names(service, tier.tier, &tier.capabilities, &names)?;
            let builds = tier.tier > below.0 && below.1.iter().all(|has| tier.capabilities.contains(has));
            if !builds {
                return Err(MenuError::Order(name(), tier.tier));
            }
            if tier.offers.is_empty() {
                return Err(MenuError::NoOffer(name(), tier.tier));
            }
            check_plans(service, tier.offers.iter(), &[])?;
            below = (tier.tier, &tier.capabilities);
        }
        let unsold = self.capabilities.iter().find(|each| !below.1.contains(&each.name));
        if let Some(unsold) = unsold.filter(|_| !self.tiers.is_empty()) {
            return Err(MenuError::Unsold(name(), unsold.name.clone()));
        }
        check_plans(service, self.more.iter(), &[DEFAULT_OFFER])
    }

    fn check_names(
        &self,
        service: &Service,
        tier: u8,
        listed: &[CapabilityName],
        names: &[&str],
    ) -> Result<(), MenuError> {
        let listed_names: Vec<&str> = listed.iter().map(CapabilityName::as_str).collect();
        if let Some(twice) = repeated(&listed_names) {
            return Err(MenuError::Twice(service.name.clone(), "capabilities of a tier", twice));
        }
        match listed.iter().find(|each| !names.contains(&each.as_str())) {
            Some(unknown) => Err(MenuError::Unknown(service.name.clone(), tier, unknown.clone())),
            None => Ok(()),
        }
    }
}

fn check_plans<'a>(
    service: &Service,
    plans: impl Iterator<Item = &'a Plan>,
    taken: &[&'a str],
) -> Result<(), MenuError> {
    let mut names = taken.to_vec();
    for Plan { name, price, .. } in plans {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if !(1..=32).contains(&name.len()) || !name.bytes().all(allowed) {
            return Err(MenuError::OfferName(service.name.clone(), name.clone()));
        }
        if !price::is_sellable(*price) {
            return Err(MenuError::Price(service.name.clone(), name.clone(), *price));
        }
        names.push(name);
    }
    match repeated(&names) {
        Some(twice) => Err(MenuError::Twice(service.name.clone(), "offers", twice)),
        None => Ok(()),
    }
}

fn repeated(names: &[&str]) -> Option<String> {
    names
        .iter()
        .enumerate()
        .find(|(at, name)| names[..*at].contains(name))
        .map(|(_, name)| (*name).to_owned())
}

#[cfg(test)]
mod tests;
