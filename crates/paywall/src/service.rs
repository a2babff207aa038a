//! What is for sale: a service, its price, its offer and the paths that cost nothing.
//!
//! No upstream is named here; where a request goes is the front door's business. A service is plain data and part of
//! the snapshot that a request keeps from beginning to end.

use std::{fmt, num::NonZeroU32, str::FromStr, sync::Arc, time::Duration};

use farebox_protocol::{Msat, Offer, ServiceName};
use http::{HeaderMap, Method};

use crate::{
    Menu, MenuError, Rate,
    menu::lists,
    path::normalise,
    price::{self, Cost, CostError, Meter},
};

/// One priced service.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name, as signed into every token sold for it.
    pub name: ServiceName,
    /// What one payment costs; above zero unless `auth` is off.
    pub price: Msat,
    /// What one payment buys.
    pub offer: Offer,
    /// Tokens of a lower tier have been outgrown and are challenged again; 0 accepts every tier.
    pub tier: u8,
    /// Whether a token is needed at all.
    pub auth: Auth,
    /// Paths that cost nothing.
    pub free_paths: Vec<PathPattern>,
    /// Paths where a token is needed and none is sold: who has none is refused (401), and no invoice is made.
    pub no_challenge_paths: Vec<PathPattern>,
    /// What a network of clients may have before anything must be paid.
    pub freebies: Option<Freebies>,
    /// How fast it may be used. A request must keep within every one that is for it.
    pub rate_limits: Vec<RateLimit>,
    /// What else of it is sold: more offers, dearer tiers.
    pub menu: Menu,
    /// What a request takes from credit. Passes and counted requests don't look here.
    pub costs: Costs,
}

/// What requests cost whose buyers have credit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Costs {
    /// By method and path: the first that is for a request counts.
    pub routes: Vec<RouteCost>,
    /// Everything else. A service that sells credit has one.
    pub otherwise: Option<Arc<Cost>>,
}

impl Costs {
    /// Takes out of an answer what its upstream says of costs: that is for the seller alone, whoever is answered and whatever
    /// they have paid with, or not paid.
    pub fn hide(&self, headers: &mut HeaderMap) {
        let all = self.routes.iter().map(|route| &route.cost).chain(&self.otherwise);
        for cost in all {
            if let Cost::Metered { meter: Meter::Header(name), .. } = &**cost {
                headers.remove(name);
            }
        }
    }
}

/// What requests to a part of a service cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteCost {
    /// Their methods; all, if there are none. `GET` brings `HEAD` with it.
    pub methods: Vec<Method>,
    /// Their paths; all, if there are none.
    pub paths: Vec<PathPattern>,
    /// What one costs.
    pub cost: Arc<Cost>,
}

/// What each network of clients (an IPv4 /24, an IPv6 /48) may have for nothing, where there is no valid token.
///
/// Asked after the credentials, so that a token that holds uses none up, and never where nothing is sold. `HEAD` and
/// `OPTIONS` neither get nor use one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Freebies {
    /// How many requests.
    pub requests: NonZeroU32,
    /// In which time, counted from the first of them; once and for all, if none is given.
    pub per: Option<Duration>,
    /// Whether the counts outlive the process, where [`PaywallConfig::freebie_file`](crate::PaywallConfig) says where.
    pub keep: bool,
}

/// How fast a service, or a part of it, may be used. Asked after payment: a request that is refused has not been charged
/// for, and none is refused for want of a payment first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RateLimit {
    /// Whose requests are counted together.
    pub by: LimitBy,
    /// How many requests, in which time.
    pub rate: Rate,
    /// How many may come at once after a pause; as many as `rate` counts, unless given.
    pub burst: Option<NonZeroU32>,
    /// The paths that it is for; all, if there are none.
    pub paths: Vec<PathPattern>,
}

/// Whose requests a limit counts together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LimitBy {
    /// Everybody's.
    Service,
    /// Those with one token; without a token (free paths), those of one client.
    Token,
    /// Those of one client: one IPv4 address, or one IPv6 /64.
    Client,
}

/// Whether a service asks for a token. There is no third value that might fall open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Auth {
    /// A token is needed.
    #[default]
    On,
    /// Everything is free.
    Off,
}

/// Paths: exactly one (`/health`), or everything below one (`/docs/*`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PathPattern {
    /// The whole path, or with its final slash when everything below is meant.
    path: String,
    below: bool,
}

/// Why a text is no pattern of paths.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PathPatternError {
    /// The text isn't in the normal form on which decisions are made, so it would never match.
    #[error("`{path}` would never match: write it in normal form, `{normal}`")]
    NotNormal {
        /// What was written.
        path: String,
        /// What was probably meant.
        normal: String,
    },
    /// The text can't be normalised.
    #[error("`{0}` is not a path: start with `/`, with no encoded separators")]
    NotAPath(String),
    /// A star that isn't the whole last segment.
    #[error("`{0}` has a star that is not understood; only a final `/*` is")]
    Star(String),
}

/// Why a service can't be sold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// The price is zero or absurd.
    #[error("service `{service}` has the price {price}; write one from 1 msat to {}", price::PRICE_MAX)]
    Price {
        /// Which service.
        service: ServiceName,
        /// Its price.
        price: Msat,
    },
    /// It sells more requests than can be counted.
    #[error(
        "service `{service}` sells {count} requests at once; sell up to {}, or a pass",
        price::REQUESTS_MAX
    )]
    Requests {
        /// Which service.
        service: ServiceName,
        /// How many.
        count: u64,
    },
    /// What is sold beside the default offer can't be.
    #[error(transparent)]
    Menu(#[from] MenuError),
    /// A cost that can't be charged.
    #[error("service `{0}`: {1}")]
    Cost(ServiceName, #[source] CostError),
    /// It sells credit and doesn't say what everything costs.
    #[error("service `{0}` sells credit, but does not say what a request costs; write `cost`")]
    NoCost(ServiceName),
    /// Something of it costs more than the largest credit that is sold, so nobody could ever have it.
    #[error(
        "service `{service}` sells credit of up to {credit}, and has requests that set {reserve} aside; sell a larger \
         credit, or lower their price or `reserve`"
    )]
    OutOfReach {
        /// Which service.
        service: ServiceName,
        /// The largest credit.
        credit: Msat,
        /// What a request sets aside.
        reserve: Msat,
    },
}

impl Service {
    /// A service that asks for a token everywhere and sells it for `price`.
    pub fn new(name: ServiceName, price: Msat, offer: Offer) -> Self {
        Self {
            name,
            price,
            offer,
            tier: 0,
            auth: Auth::On,
            free_paths: Vec::new(),
            no_challenge_paths: Vec::new(),
            freebies: None,
            rate_limits: Vec::new(),
            menu: Menu::default(),
            costs: Costs::default(),
        }
    }

    /// What a request (path normalised) takes from credit; `None` where nobody has said, which no validated service allows.
    pub fn cost(&self, method: &Method, path: &str) -> Option<&Arc<Cost>> {
        let mut routes = self.costs.routes.iter();
        routes
            .find(|route| route.is_for(method, path))
            .map(|route| &route.cost)
            .or(self.costs.otherwise.as_ref())
    }

    /// Whether it can be sold as it stands; ask at start-up.
    pub fn validate(&self) -> Result<(), ServiceError> {
        let sellable = self.auth == Auth::Off || price::is_sellable(self.price);
        let service = || self.name.clone();
        if !sellable {
            return Err(ServiceError::Price { service: service(), price: self.price });
        }
        self.menu.validate(self)?;
        for (_, offer, _) in self.on_sale() {
            if let Offer::Requests(count) = offer
                && count.get() > price::REQUESTS_MAX
            {
                return Err(ServiceError::Requests { service: service(), count: count.get() });
            }
        }
        for cost in self.costs.routes.iter().map(|route| &route.cost).chain(&self.costs.otherwise) {
            cost.validate().map_err(|error| ServiceError::Cost(service(), error))?;
        }
        if self.auth == Auth::Off { Ok(()) } else { self.check_credit() }
    }

    /// Whether whoever buys credit can use it.
    fn check_credit(&self) -> Result<(), ServiceError> {
        let service = || self.name.clone();
        let credits =
            || self.on_sale().filter(|(_, offer, _)| *offer == Offer::Credit).map(|(.., price)| price);
        let Some(credit) = credits().max() else { return Ok(()) };
        if self.costs.otherwise.is_none() {
            return Err(ServiceError::NoCost(service()));
        }
        // What credit doesn't reach, another offer may open.
        if self.on_sale().count() > credits().count() {
            return Ok(());
        }
        let costs = self.costs.routes.iter().map(|route| &route.cost).chain(&self.costs.otherwise);
        match costs.map(|cost| cost.reserve()).max() {
            Some(reserve) if reserve > credit => {
                Err(ServiceError::OutOfReach { service: service(), credit, reserve })
            }
            _ => Ok(()),
        }
    }

    /// Everything that is sold of it: which tier, what, and for how much.
    pub(crate) fn on_sale(&self) -> impl Iterator<Item = (u8, Offer, Msat)> {
        let lowest = self.menu.more.iter().map(|plan| (self.tier, plan));
        let above = self.menu.tiers.iter().flat_map(|tier| tier.offers.iter().map(|plan| (tier.tier, plan)));
        let own = (self.tier, self.offer, self.price);
        [own].into_iter().chain(lowest.chain(above).map(|(tier, plan)| (tier, plan.offer, plan.price)))
    }

    /// Whether this path (normalised) costs nothing.
    pub fn is_free(&self, path: &str) -> bool {
        self.auth == Auth::Off || self.free_paths.iter().any(|free| free.matches(path))
    }

    /// Whether nothing is sold on this path (normalised): it opens with a token from elsewhere, or not at all.
    pub fn sells_nothing(&self, path: &str) -> bool {
        self.no_challenge_paths.iter().any(|closed| closed.matches(path))
    }
}

impl RouteCost {
    fn is_for(&self, method: &Method, path: &str) -> bool {
        (self.methods.is_empty() || lists(&self.methods, method))
            && (self.paths.is_empty() || self.paths.iter().any(|paths| paths.matches(path)))
    }
}

impl RateLimit {
    /// Whether it is for this path (normalised).
    pub(crate) fn is_for(&self, path: &str) -> bool {
        self.paths.is_empty() || self.paths.iter().any(|paths| paths.matches(path))
    }
}

impl PathPattern {
    /// Whether this path (normalised) is one of them.
    pub fn matches(&self, path: &str) -> bool {
        if self.below { path.starts_with(&self.path) } else { path == self.path }
    }

    /// Whether there is a path that is one of both.
    pub(crate) fn meets(&self, other: &Self) -> bool {
        self.matches(&other.path) || other.matches(&self.path)
    }
}

impl FromStr for PathPattern {
    type Err = PathPatternError;

    fn from_str(text: &str) -> Result<Self, PathPatternError> {
        let (path, below) = match text.strip_suffix('*') {
            Some(stem) if stem.ends_with('/') => (stem, true),
            _ => (text, false),
        };
        if path.contains('*') {
            return Err(PathPatternError::Star(text.to_owned()));
        }
        let normal = normalise(path).map_err(|_| PathPatternError::NotAPath(text.to_owned()))?;
        if normal != path {
            let star = if below { "*" } else { "" };
            return Err(PathPatternError::NotNormal {
                path: text.to_owned(),
                normal: format!("{normal}{star}"),
            });
        }
        Ok(Self { path: path.to_owned(), below })
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.path, if self.below { "*" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(free: &str, path: &str, want: bool) {
        let free: PathPattern = free.parse().unwrap();
        assert_eq!(free.matches(path), want, "{free} {path}");
    }

    #[test]
    fn a_free_path_is_exact_or_everything_below() {
        check("/health", "/health", true);
        check("/health", "/health/", false);
        check("/health", "/healthy", false);
        check("/docs/*", "/docs/a/b", true);
        check("/docs/*", "/docs/", true);
        check("/docs/*", "/docs", false);
        check("/docs/*", "/docsecret", false);
        check("/*", "/anything", true);
    }

    #[test]
    fn a_free_path_that_could_never_match_is_refused() {
        for (text, want) in [
            ("/a/../b", "`/a/../b` would never match: write it in normal form, `/b`"),
            ("//a/*", "`//a/*` would never match: write it in normal form, `/a/*`"),
            ("health", "`health` is not a path: start with `/`, with no encoded separators"),
            ("/a%2Fb", "`/a%2Fb` is not a path: start with `/`, with no encoded separators"),
            ("/a*", "`/a*` has a star that is not understood; only a final `/*` is"),
            ("/*/a", "`/*/a` has a star that is not understood; only a final `/*` is"),
        ] {
            assert_eq!(text.parse::<PathPattern>().unwrap_err().to_string(), want);
        }
    }

    #[test]
    fn a_service_without_a_price_is_refused_at_start_up() {
        let mut service = Service::new("weather".parse().unwrap(), Msat::ZERO, Offer::Forever);
        assert_eq!(
            service.validate().unwrap_err().to_string(),
            "service `weather` has the price 0 sat; write one from 1 msat to 100000000000 sat"
        );
        service.price = Msat::MAX;
        assert!(service.validate().is_err());
        service.auth = Auth::Off;
        assert!(service.validate().is_ok());
    }

    #[test]
    fn no_more_requests_are_sold_than_can_be_counted() {
        let of = |count: u64| {
            let offer = Offer::Requests(count.try_into().unwrap());
            Service::new("weather".parse().unwrap(), Msat::new(10_000), offer)
        };
        assert_eq!(of(price::REQUESTS_MAX).validate(), Ok(()));
        let error = of(price::REQUESTS_MAX + 1).validate().unwrap_err().to_string();
        assert_eq!(
            error,
            "service `weather` sells 9223372036854775808 requests at once; sell up to 9223372036854775807, or a pass"
        );
        let mut service = of(1);
        let offer = of(u64::MAX).offer;
        let price = service.price;
        service.menu.more =
            vec![crate::Plan { name: "large".into(), price, offer, good_for: None, monthly: Vec::new() }];
        assert!(service.validate().is_err());
    }

    #[test]
    fn credit_is_sold_only_where_it_can_be_used() {
        let mut service = Service::new("weather".parse().unwrap(), Msat::new(10_000), Offer::Credit);
        let error = |service: &Service| service.validate().unwrap_err().to_string();
        assert_eq!(
            error(&service),
            "service `weather` sells credit, but does not say what a request costs; write `cost`"
        );
        service.costs.otherwise = Some(Arc::new(Cost::Fixed(Msat::new(10_000))));
        assert_eq!(service.validate(), Ok(()));
        let cost = Arc::new(Cost::Fixed(Msat::new(10_001)));
        service.costs.routes = vec![RouteCost { methods: Vec::new(), paths: Vec::new(), cost }];
        assert_eq!(
            error(&service),
            "service `weather` sells credit of up to 10 sat, and has requests that set 10001 msat aside; sell a larger \
             credit, or lower their price or `reserve`"
        );
        let plan = |offer, price| crate::Plan {
            name: "large".into(),
            price: Msat::new(price),
            offer,
            good_for: None,
            monthly: Vec::new(),
        };
        for larger in [plan(Offer::Credit, 20_000), plan(Offer::Forever, 1)] {
            service.menu.more = vec![larger];
            assert_eq!(service.validate(), Ok(()));
        }
        service.auth = Auth::Off;
        service.costs = Costs::default();
        assert_eq!(service.validate(), Ok(()), "nothing of it is sold");
    }

    #[test]
    fn so_many_requests_can_be_sold_without_a_word_on_costs() {
        let offer = Offer::Requests(100.try_into().unwrap());
        assert_eq!(Service::new("weather".parse().unwrap(), Msat::new(1), offer).validate(), Ok(()));
    }
}
