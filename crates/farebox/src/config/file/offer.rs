//! `services[].offer`, `offers`, `tiers`, `capabilities`: what there is to choose from, and what each payment buys.

use std::{collections::BTreeMap, fmt, num::NonZeroU64};

use farebox_paywall::PathPattern;
use farebox_protocol::{CapabilityName, Msat};
use http::Method;
use serde::{Deserialize, Deserializer, de};

use crate::config::{
    problem::advice,
    value::{Span, Written, one_key, present, some, some_keys},
};

/// What one payment buys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Offer {
    #[default]
    Forever,
    Duration(Written<Span>),
    Requests(NonZeroU64),
    Credit,
}

/// One more offer to choose from.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct NamedOffer {
    /// What a buyer calls it: 1 to 32 of `a-z`, `0-9` and `-`.
    pub(crate) name: String,
    /// What one payment costs.
    pub(crate) price: Written<Msat>,
    /// What one payment buys, written like the `offer` of the service.
    pub(crate) offer: Offer,
    /// How long requests or credit are good for. Default: until they are used up.
    #[serde(default, deserialize_with = "present")]
    pub(crate) good_for: Option<Written<Span>>,
    /// How much may be used in a month, written like `monthly` of the service. Default: all of it.
    #[serde(default, deserialize_with = "some_keys")]
    pub(crate) monthly: BTreeMap<String, MonthlyMost>,
}

/// How much of a capability may be used in a calendar month (UTC): both, if both are written.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct MonthlyMost {
    /// How many requests. Default: any number.
    #[serde(default, deserialize_with = "present")]
    pub(crate) requests: Option<NonZeroU64>,
    /// How much money, in whole satoshi: what they take from credit, their share of the price of so many requests, or with a pass
    /// what they `cost`. Default: any amount.
    #[serde(default, deserialize_with = "present")]
    pub(crate) volume: Option<Written<Msat>>,
}

/// A named part of the service, by methods and paths: a request is part of it if both fit.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Capability {
    /// Its name, written into tokens: letters, digits, `.`, `_` and `-`.
    pub(crate) name: Written<CapabilityName>,
    /// Its methods; `GET` brings `HEAD` with it. Default: every method.
    #[serde(default, deserialize_with = "some")]
    pub(crate) methods: Vec<Written<Method>>,
    /// Its paths, written like `free-paths`. Default: every path.
    #[serde(default, deserialize_with = "some")]
    pub(crate) paths: Vec<Written<PathPattern>>,
    /// The lowest tier that has it. Default: the lowest of all.
    #[serde(default, deserialize_with = "present")]
    pub(crate) tier: Option<u8>,
}

/// A tier above the lowest: all that the tiers below it have, and the capabilities that name it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Tier {
    /// Its number, written into tokens: above that of the tier before it.
    pub(crate) tier: u8,
    /// What one payment costs.
    pub(crate) price: Written<Msat>,
    /// What one payment buys, written like the `offer` of the service.
    pub(crate) offer: Offer,
    /// How long requests or credit are good for. Default: until they are used up.
    #[serde(default, deserialize_with = "present")]
    pub(crate) good_for: Option<Written<Span>>,
    /// How much may be used in a month, written like `monthly` of the service. Default: all of it; a tier doesn't take over the limits of
    /// the one below.
    #[serde(default, deserialize_with = "some_keys")]
    pub(crate) monthly: BTreeMap<String, MonthlyMost>,
    /// More offers of this tier to choose from. Default: none.
    #[serde(default, deserialize_with = "some")]
    pub(crate) offers: Vec<NamedOffer>,
}

/// The same where it is written as a key and what belongs to it.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum OfferKey {
    Forever(()),
    Duration(Written<Span>),
    Requests(NonZeroU64),
    Credit(()),
}

impl<'de> Deserialize<'de> for Offer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> de::Visitor<'de> for Reader {
            type Value = Offer;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`forever`, `duration: 1h`, `requests: 100` or `credit`")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Offer, E> {
                match text {
                    "forever" => Ok(Offer::Forever),
                    "credit" => Ok(Offer::Credit),
                    "duration" => Err(E::custom("say for how long: `duration: 1h`")),
                    "requests" => Err(E::custom("say how many: `requests: 100`")),
                    span if span.parse::<Span>().is_ok() => {
                        Err(E::custom(format!("a time is sold as `duration: {span}`")))
                    }
                    other => {
                        if let Some(count) = spoken_count(other) {
                            let advice = format!("so many requests are sold as `requests: {count}`");
                            return Err(E::custom(advice));
                        }
                        let advice = advice(other, &["forever", "duration", "requests", "credit"]);
                        Err(E::custom(format!("`{}` is not known here{advice}", other.escape_debug())))
                    }
                }
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Offer, A::Error> {
                Ok(match one_key(map, &self)? {
                    OfferKey::Forever(()) => Offer::Forever,
                    OfferKey::Duration(span) => Offer::Duration(span),
                    OfferKey::Requests(count) => Offer::Requests(count),
                    OfferKey::Credit(()) => Offer::Credit,
                })
            }
        }

        deserializer.deserialize_any(Reader)
    }
}

/// The number in `100 requests`: as people say it, which isn't how it is written.
fn spoken_count(text: &str) -> Option<u64> {
    let (count, word) = text.split_once(' ')?;
    matches!(word, "request" | "requests").then(|| count.parse().ok()).flatten()
}
