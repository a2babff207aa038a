//! What requests to a service of the configuration take from credit: judged, and made into costs.
//!
//! One rule stands above the others: where requests cost differently, only credit is sold. A pass, or a number of requests,
//! would be bought where it is cheapest and used where it is dearest.

use std::{collections::BTreeSet, sync::Arc};

use farebox_paywall::{
    Costs, RouteCost,
    price::{
        Cost, CostError, Meter, PRICE_MAX, PerMillion, Rates, TokenRates,
        usage::{JsonPath, Shape},
    },
};
use farebox_protocol::Msat;
use http::{HeaderName, header};

use super::{
    file,
    judge::Findings,
    menu::{self, Part},
    service::NOT_SETTABLE,
    value::{OneOrMore, Written},
};

/// The longest name that is found in an answer, in bytes.
const NAME_MAX: usize = 128;

/// What requests take from credit.
pub(super) fn costs(key: &str, service: &file::Service, findings: &mut Findings<'_>) -> Costs {
    let found_before = findings.problems.len();
    let otherwise = service.cost.as_ref().map(|written| cost(&format!("{key}.cost"), written, findings));
    let routes = routes(key, service, findings);
    let costs = Costs { routes, otherwise: otherwise.map(Arc::new) };
    // What follows from a mistake above would only be noise.
    if service.auth == file::Auth::On && findings.problems.len() == found_before {
        fit(key, service, &costs, findings);
    }
    costs
}

/// Whether what is sold and what it costs go together.
fn fit(key: &str, service: &file::Service, costs: &Costs, findings: &mut Findings<'_>) {
    let offers = Offered::all(key, service);
    let sells_credit = offers.iter().any(|offered| offered.offer == file::Offer::Credit);
    if !sells_credit {
        // Whoever narrows a token to so much money a month for one capability counts by these.
        if !service.capabilities.is_empty() {
            return;
        }
        let written = [("cost", service.cost.is_some()), ("costs", !service.costs.is_empty())];
        for (name, _) in written.into_iter().filter(|(_, is_written)| *is_written) {
            findings.problem(
                format!("{key}.{name}"),
                "no credit is sold here that requests could take something from; write `offer: credit`, or remove this key",
            );
        }
        return;
    }
    let Some(otherwise) = &costs.otherwise else {
        findings.problem(
            format!("{key}.cost"),
            "credit is sold, and nothing says what a request takes from it; write `cost: 1sat`, or a mapping with `bytes`, `usage` or `header`",
        );
        return;
    };
    let all: Vec<&Cost> =
        costs.routes.iter().map(|route| &route.cost).chain([otherwise]).map(AsRef::as_ref).collect();
    if let Some(why) = variation(&all) {
        for offered in offers.iter().filter(|offered| offered.offer != file::Offer::Credit) {
            findings.problem(
                format!("{}.offer", offered.key),
                format!("{why}, so that this would be bought for the cheapest and used for the dearest; sell `credit` here, or a service of its own"),
            );
        }
    }
    reach(&offers, &all, findings);
}

/// Whether each credit opens something, and the largest everything. A credit in between is put only to buyers of requests that
/// it reaches for.
fn reach(offers: &[Offered], costs: &[&Cost], findings: &mut Findings<'_>) {
    let reserves = costs.iter().map(|cost| cost.reserve());
    let (least, most) = (reserves.clone().min().unwrap_or_default(), reserves.max().unwrap_or_default());
    // A price of nothing has been told of.
    let credits =
        || offers.iter().filter(|each| each.offer == file::Offer::Credit && each.price > Msat::ZERO);
    // The highest tier is the last that a request can be asked to pay for.
    let highest = credits().map(|each| each.tier).max();
    let largest = credits().filter(|each| Some(each.tier) == highest).max_by_key(|each| each.price);
    for each in credits() {
        let is_largest = largest.is_some_and(|largest| largest.key == each.key);
        let needed = if is_largest { most } else { least };
        if each.price < needed {
            let which = if is_largest && least != most { "the dearest request" } else { "a request" };
            findings.problem(
                format!("{}.price", each.key),
                format!(
                    "{} of credit would not pay for {which}, which needs {needed} to be there; write a price of at least that",
                    each.price
                ),
            );
        }
    }
}

/// An offer, and where it stands.
struct Offered {
    key: String,
    tier: u8,
    offer: file::Offer,
    price: Msat,
}

impl Offered {
    fn all(key: &str, service: &file::Service) -> Vec<Self> {
        let mut all = Vec::new();
        let mut add = |key: &str, tier, offer, price: Option<Written<Msat>>, more: &[file::NamedOffer]| {
            // A price that is missing is told of elsewhere.
            let price = price.map_or(PRICE_MAX, |price| price.0);
            all.push(Self { key: key.to_owned(), tier, offer, price });
            for (at, more) in more.iter().enumerate() {
                let key = format!("{key}.offers[{at}]");
                all.push(Self { key, tier, offer: more.offer, price: more.price.0 });
            }
        };
        add(key, service.tier, service.offer, service.price, &service.offers);
        for (at, above) in service.tiers.iter().enumerate() {
            let key = format!("{key}.tiers[{at}]");
            add(&key, above.tier, above.offer, Some(above.price), &above.offers);
        }
        all
    }
}

/// In what way requests cost differently, if they do.
fn variation(costs: &[&Cost]) -> Option<&'static str> {
    let (first, rest) = costs.split_first()?;
    if costs.iter().any(|cost| matches!(cost, Cost::Metered { .. })) {
        return Some("what a request costs is known only afterwards (`cost`)");
    }
    rest.iter().any(|cost| cost != first).then_some("requests cost differently (`costs`)")
}

fn routes(key: &str, service: &file::Service, findings: &mut Findings<'_>) -> Vec<RouteCost> {
    let mut parts: Vec<Part> = Vec::new();
    let mut routes = Vec::new();
    for (at, written) in service.costs.iter().enumerate() {
        let key = format!("{key}.costs[{at}]");
        let part = menu::part(&key, &written.methods, &written.paths, service, findings);
        if part.is_everything(service) {
            findings.problem(
                &key,
                "it is for every request, which is what `cost` is for; narrow it by `methods` or `paths`",
            );
        } else if let Some(earlier) = parts.iter().position(|earlier| earlier.covers(&part)) {
            findings.problem(
                &key,
                format!("`costs[{earlier}]` is for all of it, and the first counts; put this one before it"),
            );
        }
        let cost = Arc::new(cost(&format!("{key}.cost"), &written.cost, findings));
        routes.push(RouteCost { methods: part.methods.clone(), paths: part.paths.clone(), cost });
        parts.push(part);
    }
    routes
}

fn cost(key: &str, written: &file::Cost, findings: &mut Findings<'_>) -> Cost {
    let (key, cost) = match written {
        file::Cost::Fixed(price) => (key.to_owned(), Cost::Fixed(*price)),
        file::Cost::Metered(file::Meter::Bytes(bytes)) => {
            let (request, response) = (bytes.request.0.0, bytes.response.0.0);
            let meter = Meter::Bytes { request, response };
            (format!("{key}.bytes"), metered(bytes.reserve, bytes.base, meter))
        }
        file::Cost::Metered(file::Meter::Usage(usage)) => {
            let key = format!("{key}.usage");
            let meter = Meter::Usage {
                shape: Arc::new(shape(&key, usage, findings)),
                rates: rates(&key, usage, findings),
            };
            (key, metered(usage.reserve, usage.base, meter))
        }
        file::Cost::Metered(file::Meter::Header(header)) => {
            let key = format!("{key}.header");
            let name = header_name(&key, &header.name, findings);
            (key, metered(header.reserve, header.base, Meter::Header(name)))
        }
    };
    if let Err(error) = cost.validate() {
        let key = match error {
            CostError::Reserve(_) => format!("{key}.reserve"),
            CostError::Base { .. } => format!("{key}.base"),
            CostError::NoModel => format!("{key}.model"),
            _ => key,
        };
        findings.problem(key, error.to_string());
    }
    cost
}

fn metered(reserve: Written<Msat>, base: Written<Msat>, meter: Meter) -> Cost {
    Cost::Metered { reserve: reserve.0, base: base.0, meter }
}

fn rates(key: &str, usage: &file::UsageCost, findings: &mut Findings<'_>) -> Rates {
    let otherwise = match (usage.input, usage.output) {
        (Some(input), Some(output)) => Some(TokenRates { input: input.0.0, output: output.0.0 }),
        (None, None) => None,
        (input, _) => {
            let (written, missing) = if input.is_some() { ("input", "output") } else { ("output", "input") };
            findings.problem(
                format!("{key}.{written}"),
                format!(
                    "there is a rate for `{written}` and none for `{missing}`; write it, be it `0sat/1M`"
                ),
            );
            Some(TokenRates { input: PerMillion(1), output: PerMillion(1) })
        }
    };
    let models = usage.models.iter().map(|(name, rates)| {
        let stem = name.strip_suffix('*').unwrap_or(name);
        if name.is_empty() || name.len() > NAME_MAX || stem.contains('*') {
            findings.problem(
                format!("{key}.models.{name}"),
                format!(
                    "`{}` would match no model; write its name, or the beginning of it and one star",
                    name.escape_debug()
                ),
            );
        }
        (name.clone(), TokenRates { input: rates.input.0.0, output: rates.output.0.0 })
    });
    Rates { models: models.collect(), otherwise }
}

fn shape(key: &str, usage: &file::UsageCost, findings: &mut Findings<'_>) -> Shape {
    let mut shape = Shape::default();
    if let Some(paths) = &usage.object {
        shape.usage = places(&format!("{key}.object"), paths, findings);
    }
    if let Some(paths) = &usage.model {
        if usage.models.is_empty() {
            findings.problem(
                format!("{key}.model"),
                "there are no rates that go by the model; write `models`, or remove this key",
            );
        }
        shape.model = places(&format!("{key}.model"), paths, findings);
    }
    let mut seen = BTreeSet::new();
    for (name, written, known) in [
        ("input-names", &usage.input_names, &mut shape.input),
        ("output-names", &usage.output_names, &mut shape.output),
        ("total-names", &usage.total_names, &mut shape.total),
    ] {
        for (at, word) in written.iter().enumerate() {
            let key = format!("{key}.{name}[{at}]");
            if !(1..=NAME_MAX).contains(&word.len()) {
                findings.problem(key, format!("write a name of 1 to {NAME_MAX} bytes"));
            } else if !seen.insert(word) {
                findings.problem(key, format!("`{word}` is listed twice; what it counts would be a guess"));
            }
        }
        if !written.is_empty() {
            known.clone_from(written);
        }
    }
    shape
}

/// One place in an answer, or several.
fn places(key: &str, written: &OneOrMore<Written<JsonPath>>, findings: &mut Findings<'_>) -> Vec<JsonPath> {
    let paths: Vec<JsonPath> = written.0.iter().map(|path| path.0.clone()).collect();
    for (at, path) in paths.iter().enumerate() {
        if paths[..at].contains(path) {
            findings.problem(format!("{key}[{at}]"), format!("`{path}` is listed twice; remove one"));
        }
    }
    paths
}

fn header_name(key: &str, name: &str, findings: &mut Findings<'_>) -> HeaderName {
    let key = format!("{key}.name");
    let Ok(parsed) = name.parse::<HeaderName>() else {
        findings.problem(key, format!("`{}` cannot name a header", name.escape_debug()));
        return HeaderName::from_static("x-cost");
    };
    let tells_more = [header::CONTENT_TYPE, header::CONTENT_ENCODING, header::SET_COOKIE, header::LOCATION];
    if NOT_SETTABLE.contains(&parsed)
        || tells_more.contains(&parsed)
        || parsed.as_str().starts_with("farebox-")
    {
        findings.problem(
            key,
            format!("`{parsed}` says something else, and buyers would not get to see it; choose a name like `x-cost`"),
        );
    }
    parsed
}
