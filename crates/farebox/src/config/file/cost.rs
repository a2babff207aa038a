//! `services[].cost`, `costs`: what a request takes from a buyer's credit.

use std::{collections::BTreeMap, fmt};

use farebox_paywall::{PathPattern, price::usage::JsonPath};
use farebox_protocol::Msat;
use http::Method;
use serde::{Deserialize, Deserializer, de};

use crate::config::{
    rate::{ByteRate, UnitRate},
    value::{OneOrMore, Written, one_key, present, some},
};

/// What a request costs: an amount, or what a meter says.
#[derive(Debug)]
pub(crate) enum Cost {
    Fixed(Msat),
    Metered(Meter),
}

/// What a request costs where that is known only when it has been answered: exactly one of these. Each sets a `reserve` aside
/// first, and who has less left is asked to pay.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Meter {
    /// Its bytes and those of its answer, each at a rate.
    Bytes(ByteCost),
    /// What the answer says was used, in JSON or in the last event of a stream: the tokens of a language model.
    Usage(UsageCost),
    /// What the upstream says it costs, in a header of its answer: an amount, or a bare number of millisatoshi.
    Header(HeaderCost),
}

/// What bytes of the bodies cost. Rates are an amount for so many bytes: `500msat/MB`, `1msat/kB`, `2sat/GB`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct ByteCost {
    /// What is set aside before the request is forwarded. More than that is taken from what is left, and what exceeds that is
    /// the seller's loss: write what a request rarely exceeds.
    pub(crate) reserve: Written<Msat>,
    /// What each request costs besides. Default: nothing.
    #[serde(default)]
    pub(crate) base: Written<Msat>,
    /// For the bytes of the request. Default: nothing.
    #[serde(default)]
    pub(crate) request: Written<ByteRate>,
    /// For the bytes of the answer. Default: nothing.
    #[serde(default)]
    pub(crate) response: Written<ByteRate>,
}

/// What usage costs. Rates are an amount for so many units: `300sat/1M`, `2sat/1k`, `5msat/1`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct UsageCost {
    /// What is set aside before the request is forwarded. More than that is taken from what is left, and what exceeds that is
    /// the seller's loss: write what a request rarely exceeds.
    pub(crate) reserve: Written<Msat>,
    /// What each request costs besides. Default: nothing.
    #[serde(default)]
    pub(crate) base: Written<Msat>,
    /// For units of input, of any model that `models` doesn't list. Goes with `output`. Default: what `models` doesn't list has
    /// no rate, and such an answer costs the whole reserve.
    #[serde(default, deserialize_with = "present")]
    pub(crate) input: Option<Written<UnitRate>>,
    /// For units of output, likewise. Goes with `input`. Default: as there.
    #[serde(default, deserialize_with = "present")]
    pub(crate) output: Option<Written<UnitRate>>,
    /// Rates by the model that the answer names: its name, or the beginning of it and a star (`gpt-4o*`). The name itself counts
    /// first, then the longest beginning. Default: all models cost the same.
    #[serde(default)]
    pub(crate) models: BTreeMap<String, ModelRates>,
    /// Where the answer has the object with the numbers: names with dots in between, such as `response.usage`, or a list for an
    /// API that has it elsewhere in streams, `[usage, response.usage]`. What is said last counts, number by number.
    /// Default: `usage`.
    #[serde(default, deserialize_with = "present")]
    pub(crate) object: Option<OneOrMore<Written<JsonPath>>>,
    /// Where the answer names its model, likewise. Default: `model`.
    #[serde(default, deserialize_with = "present")]
    pub(crate) model: Option<OneOrMore<Written<JsonPath>>>,
    /// What the units of input are called in the object; any of these. With `prompt_tokens` among them, streamed requests are
    /// made to ask for their usage as OpenAI's API wants it (`stream_options.include_usage`); leave it out for an API that would
    /// refuse that. Default: `[prompt_tokens, input_tokens]`.
    #[serde(default, deserialize_with = "some")]
    pub(crate) input_names: Vec<String>,
    /// What the units of output are called in it; any of these. Default: `[completion_tokens, output_tokens]`.
    #[serde(default, deserialize_with = "some")]
    pub(crate) output_names: Vec<String>,
    /// What the sum of both is called in it; any of these. Default: `[total_tokens]`.
    #[serde(default, deserialize_with = "some")]
    pub(crate) total_names: Vec<String>,
}

/// What one model costs.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct ModelRates {
    /// For units of input.
    pub(crate) input: Written<UnitRate>,
    /// For units of output.
    pub(crate) output: Written<UnitRate>,
}

/// What the upstream says a request costs. Buyers don't get to see the header.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct HeaderCost {
    /// The name of the header: `x-cost`.
    pub(crate) name: String,
    /// What is set aside before the request is forwarded. More than that is taken from what is left, and what exceeds that is
    /// the seller's loss: write what a request rarely exceeds.
    pub(crate) reserve: Written<Msat>,
    /// What each request costs besides. Default: nothing.
    #[serde(default)]
    pub(crate) base: Written<Msat>,
}

/// What requests to a part of the service cost.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct RouteCost {
    /// Their methods; `GET` brings `HEAD` with it. Default: every method.
    #[serde(default, deserialize_with = "some")]
    pub(crate) methods: Vec<Written<Method>>,
    /// Their paths, written like `free-paths`. Default: every path.
    #[serde(default, deserialize_with = "some")]
    pub(crate) paths: Vec<Written<PathPattern>>,
    /// What one takes from credit, written like the `cost` of the service.
    pub(crate) cost: Cost,
}

impl<'de> Deserialize<'de> for Cost {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> de::Visitor<'de> for Reader {
            type Value = Cost;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an amount, like `5sat`, or a mapping with one of `bytes`, `usage` and `header`")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Cost, E> {
                text.parse().map(Cost::Fixed).map_err(E::custom)
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Cost, A::Error> {
                one_key(map, &self).map(Cost::Metered)
            }
        }

        deserializer.deserialize_any(Reader)
    }
}
