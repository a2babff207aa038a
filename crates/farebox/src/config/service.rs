//! One service of the configuration: judged, and made into a route.

use std::collections::BTreeSet;

use farebox_gateway::{Cors, ForwardCredential, Matcher, Note, Rewrite, ServiceRoute};
use farebox_paywall::{Auth, Freebies, LimitBy, MenuError, RateLimit, Service, ServiceError};
use farebox_protocol::Msat;
use http::{HeaderName, HeaderValue, Method, header};

use super::{
    cost,
    file::{self, HeaderText},
    judge::{Findings, is_sellable, rate},
    listen, menu, upstream,
    value::Written,
};

/// Headers that belong to a connection or to the message's form; one set by hand would contradict the message.
pub(super) const NOT_SETTABLE: [HeaderName; 9] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::EXPECT,
    header::HOST,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
];

/// Makes a route of the service that is written at `key`. What is wrong goes to `findings`; the route is then not served.
pub(super) fn route(key: &str, service: file::Service, findings: &mut Findings<'_>) -> ServiceRoute {
    let sold = sold(key, &service, findings);
    let matcher = matcher(key, &service, findings);
    let headers = headers(key, &service, findings);
    let route = ServiceRoute {
        matcher,
        cors: cors(key, service.cors, findings),
        forward_credential: match service.forward_credential {
            file::ForwardCredential::Off => ForwardCredential::None,
            file::ForwardCredential::L402 => ForwardCredential::L402,
            file::ForwardCredential::Lsat => ForwardCredential::Lsat,
        },
        headers,
        request_bytes_max: service.body_limit.map(|size| size.0.0),
        rewrite: rewrite(key, service.rewrite.as_ref(), findings),
        clients: listen::clients(&format!("{key}.clients"), &service.clients, findings),
        upgrades: service.upgrades,
        ..ServiceRoute::new(sold, upstream::config(&format!("{key}.upstream"), service.upstream.0, findings))
    };
    for note in route.notes() {
        let at = match note {
            Note::PriceWithoutAuth => "price",
            Note::EverythingFree => "free-paths",
            Note::NothingSold => "no-challenge-paths",
            Note::UnpaidPreflights | Note::CookiesForAnyPage => "cors",
            _ => "name",
        };
        findings.note(format!("{key}.{at}"), note.to_string());
    }
    route
}

fn sold(key: &str, service: &file::Service, findings: &mut Findings<'_>) -> Service {
    let found_before = findings.problems.len();
    let offer = menu::offer(key, service.offer, findings);
    let price = service.price.map_or(Msat::ZERO, |price| price.0);
    let auth = match service.auth {
        file::Auth::On => Auth::On,
        file::Auth::Off => Auth::Off,
    };
    let sold = Service {
        auth,
        free_paths: service.free_paths.iter().map(|path| path.0.clone()).collect(),
        no_challenge_paths: no_challenge_paths(key, service, findings),
        freebies: freebies(key, service, findings),
        rate_limits: rate_limits(key, service, findings),
        tier: service.tier,
        menu: menu::menu(key, service, findings),
        costs: cost::costs(key, service, findings),
        ..Service::new(service.name.0.clone(), price, offer)
    };
    match (auth, service.price) {
        (Auth::On, None) => {
            findings.problem(
                format!("{key}.price"),
                "the price is missing; write one, like `10sat`, or `auth: off`",
            );
        }
        (Auth::On, Some(_)) => {
            // Most of it has been told above, with its place. What is left is the price itself, and what only the paywall knows.
            let is_new = |error: &ServiceError| {
                matches!(error, ServiceError::Price { .. }) || findings.problems.len() == found_before
            };
            if let Err(error) = sold.validate()
                && is_new(&error)
            {
                findings.problem(format!("{key}.{}", at_fault(&error)), error.to_string());
            }
        }
        (Auth::Off, _) => {
            sold_to_nobody(key, service, findings);
            findings.note(format!("{key}.auth"), format!("everybody uses `{}` for nothing", service.name.0));
        }
    }
    sold
}

/// The key that a service can't be sold for.
const fn at_fault(error: &ServiceError) -> &'static str {
    match error {
        ServiceError::Menu(MenuError::TooMany(..)) => "capabilities",
        ServiceError::Menu(MenuError::Monthly { .. } | MenuError::TooManyMonthly(..)) => "monthly",
        ServiceError::Menu(_) => "offers",
        ServiceError::Cost(..) | ServiceError::NoCost(_) => "cost",
        _ => "price",
    }
}

/// Where everything is free, nothing of what is sold is ever asked for.
fn sold_to_nobody(key: &str, service: &file::Service, findings: &mut Findings<'_>) {
    let written = [
        ("offers", !service.offers.is_empty()),
        ("good-for", service.good_for.is_some()),
        ("monthly", !service.monthly.is_empty()),
        ("cost", service.cost.is_some()),
        ("costs", !service.costs.is_empty()),
        ("capabilities", !service.capabilities.is_empty()),
        ("tiers", !service.tiers.is_empty()),
        ("tier", service.tier > 0),
    ];
    for (name, _) in written.into_iter().filter(|(_, is_written)| *is_written) {
        findings
            .problem(format!("{key}.{name}"), "`auth` is off, so that everything is free; remove this key");
    }
}

fn freebies(key: &str, service: &file::Service, findings: &mut Findings<'_>) -> Option<Freebies> {
    let written = &service.freebie.as_ref()?.0;
    if service.auth == file::Auth::Off {
        findings
            .problem(format!("{key}.freebie"), "`auth` is off, so that everything is free; remove this key");
    }
    let period = written.per.map(|per| per.0.0);
    if period.is_some_and(|per| !is_sellable(per)) {
        let message =
            "write whole seconds, at least one; for requests in a shorter time there is `rate-limits`";
        findings.problem(format!("{key}.freebie.per"), message);
    }
    Some(Freebies { requests: written.requests, per: period, keep: written.keep })
}

fn no_challenge_paths(
    key: &str,
    service: &file::Service,
    findings: &mut Findings<'_>,
) -> Vec<farebox_paywall::PathPattern> {
    let key = format!("{key}.no-challenge-paths");
    let prefixes: Vec<String> = service.paths.iter().map(|path| path.0.to_string()).collect();
    if service.auth == file::Auth::Off && !service.no_challenge_paths.is_empty() {
        findings.problem(&key, "`auth` is off, so that no token is asked for anywhere; remove this key");
    }
    for (at, path) in service.no_challenge_paths.iter().enumerate() {
        let path = path.0.to_string();
        let is_below = |free: &str| free.strip_suffix('*').is_some_and(|stem| path.starts_with(stem));
        let free = service.free_paths.iter().map(|free| free.0.to_string());
        if let Some(free) = free.into_iter().find(|free| *free == path || is_below(free)) {
            findings.problem(
                format!("{key}[{at}]"),
                format!("`{path}` is free (`{free}` under `free-paths`), so that no token is asked for; remove one of them"),
            );
        }
        if !prefixes.is_empty() && !prefixes.iter().any(|prefix| touches(prefix, &path)) {
            findings.problem(format!("{key}[{at}]"), outside(&path, &prefixes));
        }
    }
    service.no_challenge_paths.iter().map(|path| path.0.clone()).collect()
}

/// What is said of a path that the service never sees.
pub(super) fn outside(path: &str, prefixes: &[String]) -> String {
    let own = prefixes.join(", ");
    format!("`{path}` lies outside the service's own paths ({own}) and would never match")
}

fn rate_limits(key: &str, service: &file::Service, findings: &mut Findings<'_>) -> Vec<RateLimit> {
    let mut limits: Vec<RateLimit> = Vec::new();
    for (at, limit) in service.rate_limits.iter().enumerate() {
        let limit = RateLimit {
            by: match limit.by {
                file::LimitBy::Token => LimitBy::Token,
                file::LimitBy::Client => LimitBy::Client,
                file::LimitBy::Service => LimitBy::Service,
            },
            rate: rate(limit.rate.0),
            burst: limit.burst,
            paths: limit.paths.iter().map(|path| path.0.clone()).collect(),
        };
        let key = format!("{key}.rate-limits[{at}]");
        let prefixes: Vec<String> = service.paths.iter().map(|path| path.0.to_string()).collect();
        for (at, path) in limit.paths.iter().enumerate() {
            if !prefixes.is_empty() && !prefixes.iter().any(|prefix| touches(prefix, &path.to_string())) {
                findings.problem(format!("{key}.paths[{at}]"), outside(&path.to_string(), &prefixes));
            }
        }
        if limits.contains(&limit) {
            findings.problem(&key, "this limit is listed twice; remove one");
        }
        limits.push(limit);
    }
    limits
}

fn rewrite(key: &str, rewrite: Option<&file::Rewrite>, findings: &mut Findings<'_>) -> Rewrite {
    let Some(rewrite) = rewrite else { return Rewrite::default() };
    if rewrite.strip_prefix.is_none() && rewrite.add_prefix.is_none() {
        findings.problem(
            format!("{key}.rewrite"),
            "nothing is rewritten; write `strip-prefix`, `add-prefix` or both, or remove the key",
        );
    }
    Rewrite {
        strip_prefix: rewrite.strip_prefix.as_ref().map(|prefix| prefix.0.clone()),
        add_prefix: rewrite.add_prefix.as_ref().map(|prefix| prefix.0.clone()),
    }
}

fn matcher(key: &str, service: &file::Service, findings: &mut Findings<'_>) -> Matcher {
    let prefixes: Vec<String> = service.paths.iter().map(|path| path.0.to_string()).collect();
    for (at, free) in service.free_paths.iter().enumerate() {
        let free = free.0.to_string();
        if !prefixes.is_empty() && !prefixes.iter().any(|prefix| touches(prefix, &free)) {
            findings.problem(format!("{key}.free-paths[{at}]"), outside(&free, &prefixes));
        }
    }
    let lists = [
        ("hosts", service.hosts.iter().map(|host| host.0.to_string()).collect()),
        ("paths", prefixes),
        ("methods", service.methods.iter().map(|method| method.0.to_string()).collect()),
    ];
    for (list, entries) in lists {
        let mut seen = BTreeSet::new();
        for (at, entry) in entries.iter().enumerate() {
            if !seen.insert(entry) {
                findings
                    .problem(format!("{key}.{list}[{at}]"), format!("`{entry}` is listed twice; remove one"));
            }
        }
    }
    check_methods(key, &service.methods, findings);
    Matcher {
        hosts: service.hosts.iter().map(|host| host.0.clone()).collect(),
        path_prefixes: service.paths.iter().map(|path| path.0.clone()).collect(),
        methods: service.methods.iter().map(|method| method.0.clone()).collect(),
    }
}

/// Whether these, below `key`, are methods that anybody is served.
pub(super) fn check_methods(key: &str, methods: &[Written<Method>], findings: &mut Findings<'_>) {
    for (at, method) in methods.iter().enumerate() {
        // CONNECT and TRACE are served to nobody.
        let known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
        if method.0.as_str() != method.0.as_str().to_ascii_uppercase() || !known.contains(&method.0.as_str())
        {
            findings.problem(
                format!("{key}.methods[{at}]"),
                format!("`{}` is not a method; write it in capitals, one of {}", method.0, known.join(", ")),
            );
        }
    }
}

/// Whether a free path and a path prefix have paths in common.
pub(super) fn touches(prefix: &str, free: &str) -> bool {
    let below = |path: &str, prefix: &str| {
        let prefix = prefix.trim_end_matches('/');
        path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    match free.strip_suffix('*') {
        Some(stem) => below(stem, prefix) || below(prefix, stem),
        None => below(free, prefix),
    }
}

fn headers(
    key: &str,
    service: &file::Service,
    findings: &mut Findings<'_>,
) -> Vec<(HeaderName, HeaderValue)> {
    let mut seen = BTreeSet::new();
    let mut headers = Vec::new();
    for (name, text) in &service.headers {
        let key = format!("{key}.headers.{name}");
        let Ok(parsed) = name.parse::<HeaderName>() else {
            findings.problem(&key, format!("`{name}` cannot name a header"));
            continue;
        };
        if NOT_SETTABLE.contains(&parsed) {
            findings.problem(
                &key,
                format!("`{parsed}` follows from the message itself and cannot be set; remove it"),
            );
        }
        if parsed == header::AUTHORIZATION && service.forward_credential != file::ForwardCredential::Off {
            findings.problem(
                &key,
                "the upstream would get two `Authorization` lines; keep this or `forward-credential`, not both",
            );
        }
        if !seen.insert(parsed.to_string()) {
            findings.problem(&key, format!("`{parsed}` is set twice; keep one"));
        }
        let text = match text {
            HeaderText::Here(text) => text.clone(),
            HeaderText::File(path) => match findings.secret_text(&key, path) {
                Some(text) => text,
                None => continue,
            },
        };
        match HeaderValue::from_str(&text) {
            Ok(mut value) => {
                value.set_sensitive(true);
                headers.push((parsed, value));
            }
            Err(_) => findings
                .problem(&key, "the value has characters that no header may have, such as a line break"),
        }
    }
    headers
}

fn cors(key: &str, cors: file::Cors, findings: &mut Findings<'_>) -> Cors {
    let origins = match cors {
        file::Cors::Any => return Cors::Any,
        file::Cors::Reflect => return Cors::Reflect,
        file::Cors::Off => return Cors::Off,
        file::Cors::Upstream => return Cors::Upstream,
        file::Cors::Origins(origins) => origins,
    };
    if origins.is_empty() {
        findings.problem(format!("{key}.cors.origins"), "no origin is listed; add one, or write `cors: off`");
    }
    let mut values = Vec::new();
    for (at, origin) in origins.iter().enumerate() {
        let rest = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
        let usual_port = if origin.starts_with("https:") { ":443" } else { ":80" };
        // Browsers write it in small letters and without the usual port, and it is compared as they write it.
        let plain = rest.is_some_and(|rest| {
            !rest.is_empty()
                && !rest.contains(['/', '?', '#', '@', '*', ' '])
                && !rest.ends_with(usual_port)
                && !rest.contains(|c: char| c.is_ascii_uppercase())
        });
        match HeaderValue::from_str(origin) {
            Ok(value) if plain => values.push(value),
            _ => findings.problem(
                format!("{key}.cors.origins[{at}]"),
                format!(
                    "`{origin}` is not an origin; write it as browsers do, like `https://app.example.com`"
                ),
            ),
        }
    }
    Cors::Origins(values)
}
