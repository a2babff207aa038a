//! What there is to choose from in a service of the configuration: judged, and made into offers, capabilities and tiers.
//!
//! In the file a capability says from which tier on it is had, and tiers are listed from low to high: so every tier builds on
//! the one before it whatever is written, and none can lack a capability that somebody forgot to list.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use farebox_paywall::{
    Capability, DEFAULT_OFFER, Menu, PathPattern, Plan, Tier,
    price::{PRICE_MAX, REQUESTS_MAX},
};
use farebox_protocol::{CapabilityName, MONTHLY_MAX, Monthly, Msat, Offer, caveat::Most};
use http::Method;

use super::{
    file,
    judge::{Findings, is_sellable},
    problem::advice,
    service::{check_methods, outside, touches},
    value::{Span, Written},
};

/// What is sold beside the service's own offer.
pub(super) fn menu(key: &str, service: &file::Service, findings: &mut Findings<'_>) -> Menu {
    Menu {
        good_for: good_for(key, service.offer, service.good_for, findings),
        monthly: Limited { service, tier: service.tier, offer: service.offer, price: service.price }.by(
            key,
            &service.monthly,
            findings,
        ),
        more: more(key, service, service.tier, &service.offers, findings),
        capabilities: capabilities(key, service, findings),
        lowest: had_by(service, service.tier),
        tiers: tiers(key, service, findings),
    }
}

/// What one payment buys, by the `offer` below `key`.
pub(super) fn offer(key: &str, offer: file::Offer, findings: &mut Findings<'_>) -> Offer {
    match offer {
        file::Offer::Forever => Offer::Forever,
        file::Offer::Requests(count) => {
            if count.get() > REQUESTS_MAX {
                let message = format!(
                    "`{count}` are more than can be counted; write up to {REQUESTS_MAX}, or sell `forever`"
                );
                findings.problem(format!("{key}.offer.requests"), message);
            }
            Offer::Requests(count)
        }
        file::Offer::Credit => Offer::Credit,
        file::Offer::Duration(span) => {
            if !is_sellable(span.0.0) {
                let message =
                    format!("`{}` cannot be sold; write whole seconds, at least one, or `forever`", span.0);
                findings.problem(format!("{key}.offer.duration"), message);
            }
            Offer::Duration(span.0.0)
        }
    }
}

fn good_for(
    key: &str,
    offer: file::Offer,
    span: Option<Written<Span>>,
    findings: &mut Findings<'_>,
) -> Option<Duration> {
    let span = span?.0;
    let key = format!("{key}.good-for");
    match offer {
        file::Offer::Forever => findings.problem(
            key,
            "a pass for ever has no end; sell `duration`, `requests` or `credit`, or remove this key",
        ),
        file::Offer::Duration(_) => {
            findings.problem(key, "a pass for a time ends with that time; remove this key");
        }
        file::Offer::Requests(_) | file::Offer::Credit if !is_sellable(span.0) => findings.problem(
            key,
            format!("`{span}` is no time to use something up in; write whole seconds, at least one, or remove the key"),
        ),
        file::Offer::Requests(_) | file::Offer::Credit => {}
    }
    Some(span.0)
}

/// The offers listed below `key`, beside the one that stands there itself.
fn more(
    key: &str,
    service: &file::Service,
    tier: u8,
    offers: &[file::NamedOffer],
    findings: &mut Findings<'_>,
) -> Vec<Plan> {
    let mut seen = BTreeSet::from([DEFAULT_OFFER]);
    let mut plans = Vec::new();
    for (at, written) in offers.iter().enumerate() {
        let key = format!("{key}.offers[{at}]");
        let name = written.name.as_str();
        let is_ours = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if !(1..=32).contains(&name.len()) || !name.bytes().all(is_ours) {
            findings.problem(
                format!("{key}.name"),
                format!(
                    "`{}` cannot name an offer; use 1 to 32 of `a-z`, `0-9` and `-`",
                    name.escape_debug()
                ),
            );
        } else if !seen.insert(name) {
            let message = match name {
                DEFAULT_OFFER => {
                    "`default` is the offer of `price` and `offer` above; give this one another name"
                        .to_owned()
                }
                name => format!(
                    "there is another offer `{name}` here; a buyer chooses by name, so give each its own"
                ),
            };
            findings.problem(format!("{key}.name"), message);
        }
        plans.push(Plan {
            name: name.to_owned(),
            price: price(&key, written.price, findings),
            offer: offer(&key, written.offer, findings),
            good_for: good_for(&key, written.offer, written.good_for, findings),
            monthly: Limited { service, tier, offer: written.offer, price: Some(written.price) }.by(
                &key,
                &written.monthly,
                findings,
            ),
        });
    }
    plans
}

/// An offer whose use is limited by the month.
struct Limited<'a> {
    service: &'a file::Service,
    tier: u8,
    offer: file::Offer,
    price: Option<Written<Msat>>,
}

impl Limited<'_> {
    /// The limits that are written below `key`.
    fn by(
        &self,
        key: &str,
        written: &BTreeMap<String, file::MonthlyMost>,
        findings: &mut Findings<'_>,
    ) -> Vec<Monthly> {
        let key = format!("{key}.monthly");
        let mut limits = Vec::new();
        for (name, most) in written {
            let key = format!("{key}.{name}");
            let Some(capability) = self.capability(&key, name, findings) else { continue };
            if most.requests.is_none() && most.volume.is_none() {
                findings
                    .problem(&key, "this limits nothing; write `requests: 1000`, `volume: 500sat` or both");
            }
            if let Some(requests) = most.requests {
                if let file::Offer::Requests(count) = self.offer
                    && requests >= count
                {
                    let message =
                        format!("{count} are sold in all, so that this is never reached; lower or remove it");
                    findings.problem(format!("{key}.requests"), message);
                }
                let most = Most::Requests(requests.get());
                limits.push(Monthly { capability: capability.clone(), most });
            }
            if let Some(volume) = most.volume {
                let limit = Monthly { capability, most: Most::Spent(volume.0) };
                if let Some(message) = self.volume_fault(&limit, volume.0) {
                    findings.problem(format!("{key}.volume"), message);
                }
                limits.push(limit);
            }
        }
        if limits.len() > MONTHLY_MAX {
            findings.problem(
                key,
                format!("these are {} limits; a token has room for {MONTHLY_MAX}", limits.len()),
            );
        }
        limits
    }

    /// The capability that is limited, if this offer sells it.
    fn capability(&self, key: &str, name: &str, findings: &mut Findings<'_>) -> Option<CapabilityName> {
        let all = &self.service.capabilities;
        let Some(found) = all.iter().find(|each| each.name.0.as_str() == name) else {
            let names: Vec<&str> = all.iter().map(|each| each.name.0.as_str()).collect();
            let message = match names.is_empty() {
                true => {
                    "the service has no capabilities; say under `capabilities` which requests are counted"
                        .to_owned()
                }
                false => {
                    let advice = advice(name, &names);
                    format!("there is no capability `{}` here{advice}", name.escape_debug())
                }
            };
            findings.problem(key, message);
            return None;
        };
        if let Some(from) = found.tier.filter(|from| *from > self.tier) {
            let message = format!(
                "`{name}` is had from tier {from} on, and this sells tier {}; remove it here, or limit it there",
                self.tier
            );
            findings.problem(key, message);
        }
        Some(found.name.0.clone())
    }

    /// Why so much money a month can't be counted or isn't meant.
    fn volume_fault(&self, limit: &Monthly, volume: Msat) -> Option<String> {
        if !limit.is_sellable() {
            return Some(format!(
                "{volume} cannot be written into a token; write whole satoshi, at least one"
            ));
        }
        match self.offer {
            file::Offer::Forever | file::Offer::Duration(_) if self.service.cost.is_none() => Some(
                "a pass pays for nothing request by request, and nothing says what one would cost; write `cost`, or limit \
                 `requests`"
                    .to_owned(),
            ),
            file::Offer::Requests(_) | file::Offer::Credit if self.price.is_some_and(|price| volume >= price.0) => {
                Some("no more than that is sold in all, so that this is never reached; lower or remove it".to_owned())
            }
            _ => None,
        }
    }
}

fn price(key: &str, price: Written<Msat>, findings: &mut Findings<'_>) -> Msat {
    if price.0 == Msat::ZERO || price.0 > PRICE_MAX {
        findings.problem(
            format!("{key}.price"),
            format!("{} cannot be asked for; write a price from 1 msat to {PRICE_MAX}", price.0),
        );
    }
    price.0
}

fn capabilities(key: &str, service: &file::Service, findings: &mut Findings<'_>) -> Vec<Capability> {
    let numbers: Vec<u8> =
        [service.tier].into_iter().chain(service.tiers.iter().map(|tier| tier.tier)).collect();
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for (at, written) in service.capabilities.iter().enumerate() {
        let key = format!("{key}.capabilities[{at}]");
        let name = &written.name.0;
        if !seen.insert(name) {
            findings.problem(
                format!("{key}.name"),
                format!(
                    "there is another capability `{name}`; a token lists them by name, so give each its own"
                ),
            );
        }
        if let Some(tier) = written.tier.filter(|tier| !numbers.contains(tier)) {
            let known: Vec<String> = numbers.iter().map(u8::to_string).collect();
            let message = format!(
                "there is no tier {tier}, so that nobody could buy it; add one under `tiers`, or write one of {}",
                known.join(", ")
            );
            findings.problem(format!("{key}.tier"), message);
        }
        let part = part(&key, &written.methods, &written.paths, service, findings);
        let is_above = written.tier.is_some_and(|tier| tier > service.tier);
        if is_above && part.is_everything(service) {
            findings.problem(
                &key,
                format!("every request takes `{name}`, so that the service's own offer would open nothing; narrow it by `methods` or `paths`, or sell it in the lowest tier"),
            );
        }
        found.push(Capability { name: name.clone(), methods: part.methods, paths: part.paths });
    }
    found
}

/// The capabilities of this tier and of those below it.
fn had_by(service: &file::Service, tier: u8) -> Vec<CapabilityName> {
    let capabilities = service.capabilities.iter();
    capabilities
        .filter(|each| each.tier.unwrap_or(service.tier) <= tier)
        .map(|each| each.name.0.clone())
        .collect()
}

fn tiers(key: &str, service: &file::Service, findings: &mut Findings<'_>) -> Vec<Tier> {
    let mut below = service.tier;
    let mut tiers = Vec::new();
    for (at, written) in service.tiers.iter().enumerate() {
        let key = format!("{key}.tiers[{at}]");
        let number = written.tier;
        if number <= below {
            findings.problem(
                format!("{key}.tier"),
                format!("tier {number} does not come above tier {below}; list them from low to high, each with a higher number"),
            );
        } else if !service.capabilities.iter().any(|each| each.tier == Some(number)) {
            findings.problem(
                format!("{key}.tier"),
                format!("no request needs tier {number}, so that nobody would be asked to buy it; give a capability `tier: {number}`"),
            );
        }
        below = below.max(number);
        let own =
            Plan {
                name: DEFAULT_OFFER.to_owned(),
                price: price(&key, written.price, findings),
                offer: offer(&key, written.offer, findings),
                good_for: good_for(&key, written.offer, written.good_for, findings),
                monthly: Limited { service, tier: number, offer: written.offer, price: Some(written.price) }
                    .by(&key, &written.monthly, findings),
            };
        let offers =
            [own].into_iter().chain(more(&key, service, number, &written.offers, findings)).collect();
        tiers.push(Tier { tier: number, capabilities: had_by(service, number), offers });
    }
    tiers
}

/// A part of a service, by methods and paths.
pub(super) struct Part {
    /// With `HEAD`, where `GET` is.
    pub(super) methods: Vec<Method>,
    pub(super) paths: Vec<PathPattern>,
}

/// The part of `service` that is written at `key`. What of it never matches is a problem, and so is what is free: whoever
/// writes it means something that doesn't happen.
pub(super) fn part(
    key: &str,
    methods: &[Written<Method>],
    paths: &[Written<PathPattern>],
    service: &file::Service,
    findings: &mut Findings<'_>,
) -> Part {
    check_methods(key, methods, findings);
    let own: Vec<&Method> = service.methods.iter().map(|method| &method.0).collect();
    let is_own = |method: &Method| {
        own.is_empty() || own.contains(&method) || (method == Method::HEAD && own.contains(&&Method::GET))
    };
    let mut seen = BTreeSet::new();
    for (at, Written(method)) in methods.iter().enumerate() {
        if !is_own(method) {
            let own: Vec<&str> = own.iter().map(|method| method.as_str()).collect();
            let message = format!(
                "`{method}` is none of the service's own methods ({}) and would never match",
                own.join(", ")
            );
            findings.problem(format!("{key}.methods[{at}]"), message);
        }
        if !seen.insert(method.to_string()) {
            findings
                .problem(format!("{key}.methods[{at}]"), format!("`{method}` is listed twice; remove one"));
        }
    }
    let prefixes: Vec<String> = service.paths.iter().map(|path| path.0.to_string()).collect();
    for (at, path) in paths.iter().enumerate() {
        let key = format!("{key}.paths[{at}]");
        let path = path.0.to_string();
        if !prefixes.is_empty() && !prefixes.iter().any(|prefix| touches(prefix, &path)) {
            findings.problem(&key, outside(&path, &prefixes));
        }
        if let Some(free) = service.free_paths.iter().find(|free| is_within(&path, &free.0.to_string())) {
            findings.problem(
                &key,
                format!(
                    "`{path}` is free (`{}` under `free-paths`), so that this says nothing; remove one of them",
                    free.0
                ),
            );
        }
        if !seen.insert(path.clone()) {
            findings.problem(&key, format!("`{path}` is listed twice; remove one"));
        }
    }
    let mut methods: Vec<Method> = methods.iter().map(|method| method.0.clone()).collect();
    if methods.contains(&Method::GET) && !methods.contains(&Method::HEAD) {
        methods.push(Method::HEAD);
    }
    Part { methods, paths: paths.iter().map(|path| path.0.clone()).collect() }
}

/// Whether every path of one pattern is one of the other's.
pub(super) fn is_within(path: &str, of: &str) -> bool {
    path == of || of.strip_suffix('*').is_some_and(|stem| path.starts_with(stem))
}

impl Part {
    /// Whether every request to the service is part of it.
    pub(super) fn is_everything(&self, service: &file::Service) -> bool {
        let all_methods = self.methods.is_empty()
            || (!service.methods.is_empty()
                && service.methods.iter().all(|method| self.methods.contains(&method.0)));
        let all_paths = self.paths.is_empty() || self.paths.iter().any(|path| path.to_string() == "/*");
        all_methods && all_paths
    }

    /// Whether every request that is part of `other` is part of it.
    pub(super) fn covers(&self, other: &Self) -> bool {
        let all_methods = self.methods.is_empty()
            || (!other.methods.is_empty()
                && other.methods.iter().all(|method| self.methods.contains(method)));
        let is_mine = |path: &PathPattern| {
            self.paths.iter().any(|mine| is_within(&path.to_string(), &mine.to_string()))
        };
        let all_paths = self.paths.is_empty() || (!other.paths.is_empty() && other.paths.iter().all(is_mine));
        all_methods && all_paths
    }
}
