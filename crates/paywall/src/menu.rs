//! What of a service is sold: offers to choose from, tiers, and the capabilities by which tiers differ.
//!
//! A *capability* names a part of a service, by methods and paths. A request takes every capability that it falls under, so
//! overlapping patterns never open more than each of them would, in whatever order they are written. What nobody has named
//! belongs to the lowest tier.
//!
//! *Tiers* build on each other: a higher one has at least what a lower one has, and the highest has everything. A request
//! needs the lowest tier that has all the capabilities it takes, and that tier's offers are what its buyer is asked to pay.
//! A token is sold with the number of its tier and no list of capabilities: a list allows nothing that nobody has named,
//! though it is sold, and would end with the next part that gets a name. Holders list them, to lend less than they have.
//!
//! *Offers* have names. A buyer gets the default, or names another in the header [`OFFER_HEADER`] or in the query
//! (`?farebox-offer=large`): one challenge for each request, so the node is asked for one invoice and not for several.

use std::time::Duration;

use farebox_protocol::{
    CapabilityName, Identifier, MONTHLY_MAX, Monthly, Msat, Offer, ServiceName,
    caveat::{LIST_MAX, Most},
};
use http::{HeaderName, Method};
use smallvec::SmallVec;

use crate::{PathPattern, RouteCost, Service, ledger::month::share, price};

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
    /// How much may be used in a month of what the default offer sells.
    pub monthly: Vec<Monthly>,
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
    /// Its methods; all, if there are none. `GET` brings `HEAD` with it.
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
    /// How much of it may be used in a month: signed into the token.
    pub monthly: Vec<Monthly>,
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
    /// What it costs.
    pub price: Msat,
    /// What it buys.
    pub offer: Offer,
    /// How long that is good for, where it is counted.
    pub good_for: Option<Duration>,
    /// How much of it may be used in a month.
    pub monthly: &'a [Monthly],
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
    /// A limit by the month that can't be sold.
    #[error("service `{service}` sells `{offer}` with the limit `{limit}`, {why}")]
    Monthly {
        /// Which service.
        service: ServiceName,
        /// The name of the offer.
        offer: String,
        /// The limit, as it would be written into the token.
        limit: String,
        /// What is wrong with it, and what to do.
        why: BadMonthly,
    },
    /// More limits by the month than a token has room for.
    #[error("service `{0}` sells `{1}` with {2} limits by the month; a token has room for {MONTHLY_MAX}")]
    TooManyMonthly(ServiceName, String, usize),
}

/// What is wrong with a limit by the month.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadMonthly {
    /// It allows nothing, or can't be written.
    #[error("which allows nothing; write whole requests or satoshi, at least one")]
    Nothing,
    /// There is another one for the same.
    #[error("and another one for the same; keep the stricter")]
    Twice,
    /// The offer's tier hasn't that capability.
    #[error("which is for a capability that its tier has not")]
    NotSold,
    /// It is in money, and requests under it have no cost.
    #[error("and nothing says what a request costs; write `cost`, or limit the number of requests")]
    Uncounted,
    /// Some request under it costs more.
    #[error("and has requests that need {0} to be left of it, so that nobody could ever make them; raise it")]
    OutOfReach(Msat),
    /// So much isn't sold in all.
    #[error("which is never reached, since no more than that is sold; lower or remove it")]
    NeverReached,
}

impl Capability {
    /// Whether a request (path normalised) falls under it.
    pub fn covers(&self, method: &Method, path: &str) -> bool {
        (self.methods.is_empty() || lists(&self.methods, method))
            && (self.paths.is_empty() || self.paths.iter().any(|paths| paths.matches(path)))
    }

    /// Whether a request may be both under it and of that route.
    fn meets(&self, route: &RouteCost) -> bool {
        let shares = |one: &[Method], other: &[Method]| one.iter().any(|method| lists(other, method));
        let touches = |path: &PathPattern| route.paths.iter().any(|other| path.meets(other));
        let (ours, theirs) = (&self.methods, &route.methods);
        (ours.is_empty() || theirs.is_empty() || shares(ours, theirs) || shares(theirs, ours))
            && (self.paths.is_empty() || route.paths.is_empty() || self.paths.iter().any(touches))
    }
}

/// Whether a list of methods has this one. A `HEAD` gets what a `GET` gets, less the body, from most services by the same handler.
pub(crate) fn lists(methods: &[Method], method: &Method) -> bool {
    methods.contains(method) || (*method == Method::HEAD && methods.contains(&Method::GET))
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
    /// is less than the request sets aside is not put to anybody, nor what is limited to less in a month: whoever paid for
    /// it would be asked to pay again.
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
        let taken = self.taken(method, path);
        let tier = self.tier_of(&taken).ok();
        let reserve = self.cost(method, path).map(|cost| cost.reserve_for(length));
        let reaches = move |quote: &Quote<'_>| {
            let mut limits = quote.monthly.iter().filter(|limit| taken.contains(&limit.capability.as_str()));
            (quote.offer != Offer::Credit || reserve.is_some_and(|reserve| reserve <= quote.price))
                && limits.all(|limit| is_enough(limit.most, quote.offer, quote.price, reserve))
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

    /// The most that a request sets aside which takes this capability; `None` where nobody says what it costs.
    fn dearest(&self, capability: &str) -> Option<Msat> {
        let capability = self.menu.capabilities.iter().find(|each| each.name.as_str() == capability)?;
        let routes =
            self.costs.routes.iter().filter(|route| capability.meets(route)).map(|route| &route.cost);
        routes.chain([self.costs.otherwise.as_ref()?]).map(|cost| cost.reserve()).max()
    }

    fn offers<'a>(&'a self, tier: Option<&'a Tier>) -> impl Iterator<Item = Quote<'a>> {
        let own = Quote {
            service: self,
            name: DEFAULT_OFFER,
            tier: self.tier,
            price: self.price,
            offer: self.offer,
            good_for: self.menu.good_for,
            monthly: &self.menu.monthly,
            replaces: None,
        };
        let (first, number, plans) = match tier {
            None => (Some(own), own.tier, &self.menu.more),
            Some(above) => (None, above.tier, &above.offers),
        };
        let of_plan = move |plan: &'a Plan| Quote {
            service: self,
            name: &plan.name,
            tier: number,
            price: plan.price,
            offer: plan.offer,
            good_for: plan.good_for,
            monthly: &plan.monthly,
            replaces: None,
        };
        first.into_iter().chain(plans.iter().map(of_plan))
    }
}

/// Whether a month's limit leaves enough for one request that sets this much money aside, under an offer at this price.
fn is_enough(most: Most, offer: Offer, price: Msat, reserve: Option<Msat>) -> bool {
    match (most, offer) {
        (Most::Requests(most), _) => most > 0,
        (Most::Spent(most), Offer::Requests(count)) => share(price, count) <= most.get(),
        (Most::Spent(most), _) => reserve.is_some_and(|reserve| reserve <= most),
        // One that this version doesn't know.
        _ => false,
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
        // Without tiers everybody has everything.
        let had: Vec<&str> = if self.tiers.is_empty() { names.clone() } else { listed(&self.lowest) };
        for quote in service.offers(None) {
            check_monthly(&quote, &had)?;
        }
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
            for quote in service.offers(Some(tier)) {
                check_monthly(&quote, &listed(&tier.capabilities))?;
            }
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
        had: &[CapabilityName],
        names: &[&str],
    ) -> Result<(), MenuError> {
        if let Some(twice) = repeated(&listed(had)) {
            return Err(MenuError::Twice(service.name.clone(), "capabilities of a tier", twice));
        }
        match had.iter().find(|each| !names.contains(&each.as_str())) {
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

fn listed(names: &[CapabilityName]) -> Vec<&str> {
    names.iter().map(CapabilityName::as_str).collect()
}

/// Whether the limits of one offer, whose tier has these capabilities, can be kept, told and reached.
fn check_monthly(quote: &Quote<'_>, had: &[&str]) -> Result<(), MenuError> {
    let Quote { service, name, monthly, .. } = *quote;
    if monthly.len() > MONTHLY_MAX {
        return Err(MenuError::TooManyMonthly(service.name.clone(), name.to_owned(), monthly.len()));
    }
    for (at, limit) in monthly.iter().enumerate() {
        let is_twice = monthly[..at].iter().any(|earlier| earlier.is_like(limit));
        let why = if is_twice { Some(BadMonthly::Twice) } else { quote.fault(limit, had) };
        if let Some(why) = why {
            let (service, offer, limit) = (service.name.clone(), name.to_owned(), limit.to_string());
            return Err(MenuError::Monthly { service, offer, limit, why });
        }
    }
    Ok(())
}

impl Quote<'_> {
    /// Why a limit by the month can't be sold with it.
    fn fault(&self, limit: &Monthly, had: &[&str]) -> Option<BadMonthly> {
        let capability = limit.capability.as_str();
        if !limit.is_sellable() {
            return Some(BadMonthly::Nothing);
        }
        if !had.contains(&capability) {
            return Some(BadMonthly::NotSold);
        }
        match (limit.most, self.offer) {
            (Most::Requests(most), Offer::Requests(count)) if most >= count.get() => {
                Some(BadMonthly::NeverReached)
            }
            (Most::Spent(most), Offer::Requests(_) | Offer::Credit) if most >= self.price => {
                Some(BadMonthly::NeverReached)
            }
            (Most::Spent(most), Offer::Requests(count)) => {
                let needed = share(self.price, count);
                (needed > most.get()).then_some(BadMonthly::OutOfReach(Msat::new(needed)))
            }
            (Most::Spent(most), _) => match self.service.dearest(capability) {
                None => Some(BadMonthly::Uncounted),
                Some(needed) => (needed > most).then_some(BadMonthly::OutOfReach(needed)),
            },
            _ => None,
        }
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
