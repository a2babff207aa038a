//! What a service sells, as sentences and as data: for `farebox check`, and for `farebox serve` when it begins.
//!
//! Nothing is judged here. What it says is made from what is served, not from what was written: a reader sees what the
//! configuration has come to.

use std::{fmt, time::Duration};

use farebox_paywall::{
    Auth, DEFAULT_OFFER, Plan, RouteCost, Service,
    price::{Cost, Meter},
};
use farebox_protocol::{CapabilityName, Monthly, Offer, caveat::Most};
use serde::Serialize;

use crate::{
    config::rate::{ByteRate, UnitRate},
    output::roughly,
};

/// All that is sold of one service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Sold {
    pub(crate) service: String,
    /// The lowest tier first; empty where everything is free.
    tiers: Vec<SoldTier>,
    /// What requests take from credit, in the order in which they are looked at; empty where no credit is sold.
    costs: Vec<SoldCost>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct SoldTier {
    tier: u8,
    /// What it has of the named parts, beside all that has no name; left out where every token may do everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    capabilities: Option<Vec<String>>,
    /// The default first.
    offers: Vec<SoldOffer>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct SoldOffer {
    name: String,
    price_msat: u64,
    price: String,
    buys: String,
    /// How much may be used in a month, as it is written into tokens.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    monthly: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct SoldCost {
    /// Of which methods; of all, if there are none.
    methods: Vec<String>,
    /// Of which paths; of all, if there are none.
    paths: Vec<String>,
    cost: String,
}

impl Sold {
    /// What is sold of this service.
    pub(crate) fn of(service: &Service) -> Self {
        let name = service.name.to_string();
        if service.auth == Auth::Off {
            return Self { service: name, tiers: Vec::new(), costs: Vec::new() };
        }
        let menu = &service.menu;
        let own = Plan {
            name: DEFAULT_OFFER.to_owned(),
            price: service.price,
            offer: service.offer,
            good_for: menu.good_for,
            monthly: menu.monthly.clone(),
        };
        let has_tiers = !menu.tiers.is_empty();
        let tier =
            |tier, capabilities: &[CapabilityName], offers: &mut dyn Iterator<Item = &Plan>| SoldTier {
                tier,
                capabilities: has_tiers.then(|| capabilities.iter().map(ToString::to_string).collect()),
                offers: offers.map(SoldOffer::of).collect(),
            };
        let lowest = tier(service.tier, &menu.lowest, &mut [&own].into_iter().chain(&menu.more));
        let above =
            menu.tiers.iter().map(|above| tier(above.tier, &above.capabilities, &mut above.offers.iter()));
        let routes = service.costs.routes.iter().map(SoldCost::of);
        let otherwise = service.costs.otherwise.iter().map(|cost| SoldCost::everything(cost));
        Self {
            service: name,
            tiers: [lowest].into_iter().chain(above).collect(),
            costs: routes.chain(otherwise).collect(),
        }
    }
}

impl SoldOffer {
    fn of(plan: &Plan) -> Self {
        Self {
            name: plan.name.clone(),
            price_msat: plan.price.get(),
            price: plan.price.to_string(),
            buys: format!("{}{}", buys(&plan.offer, plan.good_for), limited(&plan.monthly)),
            monthly: plan.monthly.iter().map(ToString::to_string).collect(),
        }
    }
}

impl SoldCost {
    fn of(route: &RouteCost) -> Self {
        Self {
            methods: route.methods.iter().map(ToString::to_string).collect(),
            paths: route.paths.iter().map(ToString::to_string).collect(),
            ..Self::everything(&route.cost)
        }
    }

    fn everything(cost: &Cost) -> Self {
        Self { methods: Vec::new(), paths: Vec::new(), cost: takes(cost) }
    }
}

/// What a payment buys: `a pass for 1 h`, `100 requests, good for 30 d`.
pub(crate) fn buys(offer: &Offer, good_for: Option<Duration>) -> String {
    let bought = match offer {
        Offer::Forever => "a pass for ever".to_owned(),
        Offer::Duration(span) => format!("a pass for {}", roughly(*span)),
        Offer::Requests(count) if count.get() == 1 => "1 request".to_owned(),
        Offer::Requests(count) => format!("{count} requests"),
        Offer::Credit => "as much credit".to_owned(),
    };
    match good_for {
        Some(span) => format!("{bought}, good for {}", roughly(span)),
        None => bought,
    }
}

/// How much of it may be used in a month: `, at most 1000 requests a month of read`.
fn limited(monthly: &[Monthly]) -> String {
    let limits = monthly.iter().map(|Monthly { capability, most }| match most {
        Most::Requests(1) => format!("1 request a month of {capability}"),
        Most::Requests(most) => format!("{most} requests a month of {capability}"),
        Most::Spent(most) => format!("{most} a month of {capability}"),
        _ => format!("so much a month of {capability}"),
    });
    match monthly.is_empty() {
        true => String::new(),
        false => format!(", at most {}", limits.collect::<Vec<_>>().join(" and ")),
    }
}

/// What a request takes from credit: `5 sat`, `500 msat/MB of the answer (50 sat reserved)`.
fn takes(cost: &Cost) -> String {
    let (reserve, base, meter) = match cost {
        Cost::Fixed(price) => return price.to_string(),
        Cost::Metered { reserve, base, meter } => (reserve, base, meter),
    };
    let mut parts = Vec::new();
    if base.get() > 0 {
        parts.push(base.to_string());
    }
    match meter {
        Meter::Bytes { request, response } => {
            for (rate, of) in [(request, "the request"), (response, "the answer")] {
                if rate.0 > 0 {
                    parts.push(format!("{} of {of}", ByteRate(*rate)));
                }
            }
        }
        Meter::Usage { rates, .. } => {
            if let Some(rates) = rates.otherwise {
                parts.push(format!("{} of input", UnitRate(rates.input)));
                parts.push(format!("{} of output", UnitRate(rates.output)));
            }
            for (name, rates) in &rates.models {
                let (input, output) = (UnitRate(rates.input), UnitRate(rates.output));
                parts.push(format!("for `{}` {input} and {output}", name.escape_debug()));
            }
        }
        Meter::Header(name) => parts.push(format!("what `{name}` says")),
    }
    format!("{} ({reserve} reserved)", parts.join(", "))
}

impl fmt::Display for Sold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.service)?;
        if self.tiers.is_empty() {
            return f.write_str(" free");
        }
        for (at, tier) in self.tiers.iter().enumerate() {
            if at > 0 {
                write!(f, "\n  tier {}", tier.tier)?;
                let capabilities = tier.capabilities.iter().flatten().map(String::as_str);
                write!(f, " ({}):", capabilities.collect::<Vec<_>>().join(", "))?;
            }
            let indent = if at > 0 { "    " } else { "  " };
            for SoldOffer { name, price, buys, .. } in &tier.offers {
                match name.as_str() {
                    DEFAULT_OFFER => write!(f, " {price} buys {buys}")?,
                    name => write!(f, "\n{indent}`{name}`: {price} buys {buys}")?,
                }
            }
        }
        for SoldCost { methods, paths, cost } in &self.costs {
            let all: Vec<&str> = [methods, paths].into_iter().flatten().map(String::as_str).collect();
            let what = if all.is_empty() { "a request".to_owned() } else { all.join(" ") };
            write!(f, "\n  {what} takes {cost}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(service: serde_json::Value, want: Expect) {
        let mut document = json!({
            "network": "regtest",
            "lightning": { "embedded": { "chain": { "esplora": "http://127.0.0.1:1" } } },
            "services": [{ "name": "api", "upstream": "http://127.0.0.1:2" }],
        });
        document["services"][0].as_object_mut().unwrap().extend(service.as_object().unwrap().clone());
        let config = crate::config::from_flags(&document).unwrap();
        want.assert_eq(&Sold::of(&config.gateway.services[0].service).to_string());
    }

    #[test]
    fn what_is_sold_is_said_in_sentences() {
        check(json!({ "auth": "off" }), expect!["api: free"]);
        check(json!({ "price": "10sat" }), expect!["api: 10 sat buys a pass for ever"]);
        check(
            json!({
                "price": "10sat", "offer": { "requests": 1 }, "good-for": "30d",
                "offers": [{ "name": "large", "price": "100sat", "offer": { "requests": 12 } }],
            }),
            expect![[r#"
                  api: 10 sat buys 1 request, good for 30 d
                    `large`: 100 sat buys 12 requests"#]],
        );
        check(
            json!({
                "price": "1000sat", "offer": "credit",
                "cost": { "usage": {
                    "reserve": "50sat", "base": "1sat", "input": "300sat/1M", "output": "1200sat/1M",
                    "models": { "tiny*": { "input": "30sat/1M", "output": "60sat/1M" } },
                } },
                "costs": [
                    { "methods": ["GET"], "paths": ["/v1/models"], "cost": "1msat" },
                    { "paths": ["/v1/files/*"], "cost": { "bytes": { "reserve": "5sat", "request": "1sat/MB" } } },
                    { "paths": ["/v1/images"], "cost": { "header": { "name": "x-cost", "reserve": "5sat" } } },
                ],
            }),
            expect![[r#"
                  api: 1000 sat buys as much credit
                    GET HEAD /v1/models takes 1 msat
                    /v1/files/* takes 1 sat/MB of the request (5 sat reserved)
                    /v1/images takes what `x-cost` says (5 sat reserved)
                    a request takes 1 sat, 300 sat/1M of input, 1200 sat/1M of output, for `tiny*` 30 sat/1M and 60 sat/1M (50 sat reserved)"#]],
        );
        check(
            json!({
                "price": "10sat", "offer": { "duration": "1h" },
                "capabilities": [{ "name": "read", "methods": ["GET"] }, { "name": "write", "methods": ["POST"], "tier": 1 }],
                "tiers": [{
                    "tier": 1, "price": "50sat", "offer": { "duration": "1h" },
                    "offers": [{ "name": "day", "price": "500sat", "offer": { "duration": "1d" } }],
                }],
            }),
            expect![[r#"
                  api: 10 sat buys a pass for 1 h
                    tier 1 (read, write): 50 sat buys a pass for 1 h
                      `day`: 500 sat buys a pass for 1 d"#]],
        );
        check(
            json!({
                "price": "10sat", "monthly": { "read": { "requests": 1000 } }, "cost": "2sat",
                "capabilities": [{ "name": "read", "methods": ["GET"] }, { "name": "write", "methods": ["POST"] }],
                "offers": [{
                    "name": "large", "price": "100sat", "offer": "forever",
                    "monthly": { "read": { "requests": 20000, "volume": "500sat" }, "write": { "requests": 1 } },
                }],
            }),
            expect![[r#"
                  api: 10 sat buys a pass for ever, at most 1000 requests a month of read
                    `large`: 100 sat buys a pass for ever, at most 20000 requests a month of read and 500 sat a month of read and 1 request a month of write
                    a request takes 2 sat"#]],
        );
    }
}
