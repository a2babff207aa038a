//! Where each service is had on the machine that the demo runs on: at which path, by which method, and under which host.
//!
//! A service for certain hosts is given the demo's own address besides, so that it can be asked for without a name that leads
//! elsewhere. Where that would take requests from another one, its own host has to be named: `Host: api.example.com`.

use farebox_gateway::{Gateway, HostPattern, Matcher, PathPrefix, ServiceRoute};
use farebox_paywall::{Auth, DEFAULT_OFFER};
use farebox_protocol::Offer;
use http::Method;

use crate::sold::Sold;

/// The demo's own address, as a host.
const HERE: &str = "127.0.0.1";

/// One service, as a buyer finds it.
pub(super) struct Counter {
    pub(super) name: String,
    /// The path to ask for, with a query if need be.
    pub(super) path: String,
    pub(super) method: Method,
    /// The host to ask for, where the demo's address doesn't do.
    pub(super) host: Option<String>,
    /// Whether a token is needed.
    pub(super) is_paid: bool,
    /// How many requests are free before that.
    pub(super) freebies: u32,
    /// Whether use is counted, so that there is something left to tell of.
    pub(super) is_counted: bool,
    /// Whether its first offer is credit.
    pub(super) sells_credit: bool,
    /// Whether nothing answers behind it.
    pub(super) is_silent: bool,
    /// What else than the first offer can be bought, by name.
    pub(super) offers: Vec<String>,
    pub(super) sold: Sold,
    prefixes: Vec<String>,
}

impl Counter {
    /// Where each of them is had; their hosts are opened to the demo's address where that takes nothing from others.
    pub(super) fn all(routes: &mut [ServiceRoute]) -> Vec<Self> {
        (0..routes.len())
            .map(|at| {
                let is_here = routes[at].matcher.hosts.is_empty() || open(routes, at);
                Self::of(&routes[at], is_here && is_first(routes, at))
            })
            .collect()
    }

    fn of(route: &ServiceRoute, is_here: bool) -> Self {
        let (service, matcher) = (&route.service, &route.matcher);
        let host = matcher.hosts.first().map(|host| host.to_string().replacen('*', "demo", 1));
        let more = service.menu.more.iter().map(|plan| plan.name.clone());
        Self {
            name: service.name.to_string(),
            path: matcher.path_prefixes.first().map_or("/".to_owned(), ToString::to_string),
            method: method(matcher),
            host: (!is_here).then(|| host.unwrap_or_else(|| "localhost".to_owned())),
            is_paid: service.auth == Auth::On,
            freebies: service.freebies.as_ref().map_or(0, |free| free.requests.get()),
            is_counted: service.offer.is_counted(),
            sells_credit: matches!(service.offer, Offer::Credit),
            is_silent: false,
            offers: more.filter(|name| name != DEFAULT_OFFER).collect(),
            sold: Sold::of(service),
            prefixes: matcher.path_prefixes.iter().map(ToString::to_string).collect(),
        }
    }

    /// Whether this path, with or without a query, is one of its own.
    pub(super) fn has(&self, path: &str) -> bool {
        let path = path.split('?').next().unwrap_or_default();
        let below = |prefix: &String| {
            let rest = path.strip_prefix(prefix.trim_end_matches('/'));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.prefixes.is_empty() || self.prefixes.iter().any(below)
    }
}

/// A method to ask with: `GET`, unless it isn't served.
fn method(matcher: &Matcher) -> Method {
    match matcher.methods.first() {
        Some(first) if !matcher.methods.contains(&Method::GET) => first.clone(),
        _ => Method::GET,
    }
}

/// Has the service answer at the demo's address, too. `false`, and nothing changed, where it would hide another one.
fn open(routes: &mut [ServiceRoute], at: usize) -> bool {
    let Ok(here) = HERE.parse::<HostPattern>() else { return false };
    if routes[at].matcher.hosts.contains(&here) {
        return true;
    }
    // Others that answer to any host are had here, too.
    let had =
        |routes: &[ServiceRoute]| (0..routes.len()).map(|other| is_first(routes, other)).collect::<Vec<_>>();
    let before = had(routes);
    routes[at].matcher.hosts.push(here);
    let hides = before.into_iter().zip(had(routes)).any(|(before, now)| before && !now);
    if hides || !is_first(routes, at) || Gateway::check(routes).is_err() {
        routes[at].matcher.hosts.pop();
        return false;
    }
    true
}

/// Whether what this service is asked for at the demo's address reaches it, and not one above it.
fn is_first(routes: &[ServiceRoute], at: usize) -> bool {
    let Ok(here) = HERE.parse::<HostPattern>() else { return false };
    let route = &routes[at];
    let is_here = route.matcher.hosts.is_empty() || route.matcher.hosts.contains(&here);
    let Ok(root) = "/".parse::<PathPrefix>() else { return false };
    let prefix = route.matcher.path_prefixes.first().cloned().unwrap_or(root);
    let mut probe = route.clone();
    probe.matcher =
        Matcher { hosts: vec![here], path_prefixes: vec![prefix], methods: vec![method(&route.matcher)] };
    let mut asked: Vec<_> = routes[..at].to_vec();
    asked.push(probe);
    is_here && Gateway::check(&asked).is_ok()
}
