//! What a request costs, as the seller says it: one price, or a meter that tells afterwards.
//!
//! Whatever is known only afterwards names its *reserve*: what is set aside before the request is forwarded, and therefore
//! what a buyer must have left to ask at all. More than the reserve is taken from what is left; the rule for every ending is
//! in [`charge`](super::charge).
//!
//! Rates are in msat for a million units (tokens, bytes), since a single one is worth less than a millisatoshi. The parts of
//! one request are added up first and rounded once, *up* to a whole millisatoshi: that is at most one more than the exact
//! price, and never less. Arithmetic is checked: what exceeds all the bitcoin there is is an absurd price and not a small one.

use std::{collections::BTreeMap, sync::Arc};

use farebox_protocol::Msat;
use http::HeaderName;

use super::usage::Shape;

/// What a request costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cost {
    /// So much, whatever comes of it.
    Fixed(Msat),
    /// What a meter says afterwards.
    Metered {
        /// What is set aside before the request is forwarded; above zero.
        reserve: Msat,
        /// What is charged for each request beside what the meter says; zero, unless given.
        base: Msat,
        /// What is counted.
        meter: Meter,
    },
}

/// What is counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meter {
    /// The bytes of both bodies, as they pass.
    Bytes {
        /// For those of the request.
        request: PerMillion,
        /// For those of the answer.
        response: PerMillion,
    },
    /// What the answer itself says was used: a usage object in JSON, or in the events of a stream.
    Usage {
        /// Where it says so.
        shape: Arc<Shape>,
        /// What that costs.
        rates: Rates,
    },
    /// What the upstream says it costs, in a header of its answer. It is not passed on.
    Header(HeaderName),
}

/// A price for units too small to be priced one by one: msat for a million of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PerMillion(pub u64);

/// What input and output cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenRates {
    /// For a million units of input.
    pub input: PerMillion,
    /// For a million units of output.
    pub output: PerMillion,
}

/// What input and output cost, by the model that the answer names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// By the model's name, or by its beginning and a star: `gpt-4o*` is also for dated versions. The name itself counts
    /// first, then the longest beginning.
    pub models: BTreeMap<String, TokenRates>,
    /// For models that aren't listed, and for answers that name none. Without it, their usage is unreadable.
    pub otherwise: Option<TokenRates>,
}

/// Units of input and output, as an answer tells of them: a language model's tokens, for one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Units {
    /// What went in.
    pub input: u64,
    /// What came out.
    pub output: u64,
}

/// Why a cost can't be asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CostError {
    /// The price is zero or absurd.
    #[error("a request can't cost {0}; write a price from 1 msat to {max}", max = super::PRICE_MAX)]
    Price(Msat),
    /// The reserve is zero or absurd.
    #[error(
        "what is known only afterwards needs a reserve from 1 msat to {max}, and {0} is none",
        max = super::PRICE_MAX
    )]
    Reserve(Msat),
    /// What is charged beside the meter exceeds the reserve.
    #[error(
        "each request costs {base} beside what it uses, which is more than the {reserve} that are reserved"
    )]
    Base {
        /// What is charged in any case.
        base: Msat,
        /// What is reserved.
        reserve: Msat,
    },
    /// Nothing has a price.
    #[error("nothing that is counted has a price; give at least one rate, or write a fixed price")]
    Free,
    /// Models are named in the table, and nobody knows where an answer names its own.
    #[error("there are rates for models, but no path to the model's name in the answer")]
    NoModel,
}

impl Cost {
    /// What has to be set aside before the request is forwarded.
    pub const fn reserve(&self) -> Msat {
        match self {
            Self::Fixed(price) => *price,
            Self::Metered { reserve, .. } => *reserve,
        }
    }

    /// The same for a request that has so many bytes of its own: what they cost, where that is more. An upload that could not be
    /// paid for is refused before anybody works for it.
    pub fn reserve_for(&self, request_bytes: u64) -> Msat {
        match self {
            Self::Metered { reserve, base, meter: Meter::Bytes { request, .. } } => {
                let upload = total(&[(request_bytes, *request)]).unwrap_or(Msat::MAX);
                upload.saturating_add(*base).max(*reserve)
            }
            Self::Metered { .. } | Self::Fixed(_) => self.reserve(),
        }
    }

    /// Whether the bytes of a request's own body have a price.
    pub const fn counts_request(&self) -> bool {
        matches!(self, Self::Metered { meter: Meter::Bytes { request: PerMillion(1..), .. }, .. })
    }

    /// Whether it can be sold at; ask at start-up.
    ///
    /// # Errors
    ///
    /// When a request could cost nothing, or can't be reserved for.
    pub fn validate(&self) -> Result<(), CostError> {
        let (reserve, base, meter) = match self {
            Self::Fixed(price) if super::is_sellable(*price) => return Ok(()),
            Self::Fixed(price) => return Err(CostError::Price(*price)),
            Self::Metered { reserve, base, meter } => (*reserve, *base, meter),
        };
        if !super::is_sellable(reserve) {
            return Err(CostError::Reserve(reserve));
        }
        if base > reserve {
            return Err(CostError::Base { base, reserve });
        }
        match meter {
            _ if base > Msat::ZERO => {}
            Meter::Bytes { request: PerMillion(0), response: PerMillion(0) } => return Err(CostError::Free),
            Meter::Usage { rates, .. } if !rates.all().any(|rates| *rates != TokenRates::default()) => {
                return Err(CostError::Free);
            }
            Meter::Bytes { .. } | Meter::Usage { .. } | Meter::Header(_) => {}
        }
        match meter {
            Meter::Usage { shape, rates } if shape.model.is_empty() && !rates.models.is_empty() => {
                Err(CostError::NoModel)
            }
            _ => Ok(()),
        }
    }
}

impl TokenRates {
    /// What so much costs; `None` where that is more than all the bitcoin there is.
    pub fn cost(self, units: Units) -> Option<Msat> {
        total(&[(units.input, self.input), (units.output, self.output)])
    }

    /// The dearer of both, for units of which nobody says what they were.
    pub fn dearer(self) -> Self {
        let dearer = self.input.max(self.output);
        Self { input: dearer, output: dearer }
    }
}

impl Rates {
    /// The rates for a model; `None` where nothing is known of it.
    pub fn of(&self, model: Option<&str>) -> Option<TokenRates> {
        let listed = model.and_then(|model| {
            self.models.get(model).or_else(|| {
                let beginnings = self.models.iter().filter_map(|(name, rates)| {
                    let stem = name.strip_suffix('*')?;
                    model.starts_with(stem).then_some((stem.len(), rates))
                });
                beginnings.max_by_key(|(len, _)| *len).map(|(_, rates)| rates)
            })
        });
        listed.copied().or(self.otherwise)
    }

    /// The dearest of all, for usage of which nobody knows the model.
    pub(super) fn dearest(&self) -> TokenRates {
        self.all().fold(TokenRates::default(), |dearest, rates| TokenRates {
            input: dearest.input.max(rates.input),
            output: dearest.output.max(rates.output),
        })
    }

    fn all(&self) -> impl Iterator<Item = &TokenRates> {
        self.models.values().chain(&self.otherwise)
    }
}

/// The sum of units at their rates, rounded up once; `None` where that is more than all the bitcoin there is.
pub(super) fn total(parts: &[(u64, PerMillion)]) -> Option<Msat> {
    let millionths = parts.iter().try_fold(0_u128, |sum, (units, rate)| {
        sum.checked_add(u128::from(*units).checked_mul(u128::from(rate.0))?)
    })?;
    let msat = u64::try_from(millionths.div_ceil(1_000_000)).ok().map(Msat::new)?;
    (msat <= Msat::MAX).then_some(msat)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rates(input: u64, output: u64) -> TokenRates {
        TokenRates { input: PerMillion(input), output: PerMillion(output) }
    }

    #[track_caller]
    fn check(rates: TokenRates, input: u64, output: u64, want: Option<u64>) {
        assert_eq!(rates.cost(Units { input, output }).map(Msat::get), want);
    }

    #[test]
    fn a_sum_is_rounded_up_once() {
        check(rates(1_000_000, 2_000_000), 3, 4, Some(11));
        check(rates(1, 0), 1, 0, Some(1));
        check(rates(1, 0), 1_000_000, 9, Some(1));
        check(rates(1, 0), 1_000_001, 0, Some(2));
        // Half a millisatoshi each: one together, and not two.
        check(rates(500_000, 500_000), 1, 1, Some(1));
        check(rates(0, 0), 9, 9, Some(0));
        check(rates(7, 7), 0, 0, Some(0));
    }

    #[test]
    fn an_absurd_sum_is_no_small_one() {
        check(rates(u64::MAX, u64::MAX), u64::MAX, u64::MAX, None);
        check(rates(u64::MAX, 0), u64::MAX, 0, None);
        check(rates(1_000_000, 0), Msat::MAX.get(), 0, Some(Msat::MAX.get()));
        check(rates(1_000_000, 0), Msat::MAX.get() + 1, 0, None);
    }

    #[test]
    fn what_is_set_aside_covers_the_bytes_that_are_announced() {
        let by_bytes = |request| Cost::Metered {
            reserve: Msat::new(100),
            base: Msat::new(3),
            meter: Meter::Bytes { request: PerMillion(request), response: PerMillion(9_000_000) },
        };
        let header = Meter::Header(HeaderName::from_static("x-cost"));
        let other = Cost::Metered { reserve: Msat::new(100), base: Msat::ZERO, meter: header };
        for (cost, bytes, want) in [
            (by_bytes(2_000_000), 0, 100),
            (by_bytes(2_000_000), 48, 100),
            (by_bytes(2_000_000), 49, 101),
            (by_bytes(1), 1_000_001, 100),
            (by_bytes(0), u64::MAX, 100),
            (by_bytes(u64::MAX), u64::MAX, Msat::MAX.get() + 3),
            (other, u64::MAX, 100),
            (Cost::Fixed(Msat::new(7)), u64::MAX, 7),
        ] {
            assert_eq!(cost.reserve_for(bytes), Msat::new(want), "{cost:?} {bytes}");
        }
    }

    #[test]
    fn a_model_is_found_by_name_then_by_its_longest_beginning() {
        let models = [("gpt-4o", 1), ("gpt-4o*", 2), ("gpt-4o-mini*", 3), ("*", 4)]
            .map(|(name, rate)| (name.to_owned(), rates(rate, 0)))
            .into();
        let mut table = Rates { models, otherwise: Some(rates(9, 9)) };
        let of = |table: &Rates, model| table.of(model).map(|rates| rates.input.0);
        assert_eq!(of(&table, Some("gpt-4o")), Some(1));
        assert_eq!(of(&table, Some("gpt-4o-2024-08-06")), Some(2));
        assert_eq!(of(&table, Some("gpt-4o-mini-2024")), Some(3));
        assert_eq!(of(&table, Some("llama")), Some(4));
        assert_eq!(of(&table, None), Some(9));
        table.models.remove("*");
        table.otherwise = None;
        assert_eq!(of(&table, Some("llama")), None);
        assert_eq!(of(&table, None), None);
    }

    #[test]
    fn what_could_cost_nothing_or_reserves_nothing_is_refused_at_start_up() {
        let metered = |reserve, base, meter| Cost::Metered {
            reserve: Msat::new(reserve),
            base: Msat::new(base),
            meter,
        };
        let bytes =
            |request, response| Meter::Bytes { request: PerMillion(request), response: PerMillion(response) };
        let usage = |rates| Meter::Usage { shape: Arc::default(), rates };
        let header = Meter::Header(HeaderName::from_static("x-cost"));
        for (cost, want) in [
            (
                Cost::Fixed(Msat::ZERO),
                "a request can't cost 0 sat; write a price from 1 msat to 100000000000 sat",
            ),
            (
                metered(0, 0, header.clone()),
                "what is known only afterwards needs a reserve from 1 msat to 100000000000 sat, and 0 sat is none",
            ),
            (
                metered(1, 2, header.clone()),
                "each request costs 2 msat beside what it uses, which is more than the 1 msat that are reserved",
            ),
            (
                metered(1, 0, bytes(0, 0)),
                "nothing that is counted has a price; give at least one rate, or write a fixed price",
            ),
            (
                metered(1, 0, usage(Rates { otherwise: Some(rates(0, 0)), ..Rates::default() })),
                "nothing that is counted has a price; give at least one rate, or write a fixed price",
            ),
        ] {
            assert_eq!(cost.validate().unwrap_err().to_string(), want);
        }
        let named = Rates { models: [("m".to_owned(), rates(1, 1))].into(), otherwise: None };
        let shape = Arc::new(Shape { model: Vec::new(), ..Shape::default() });
        let blind = metered(1, 0, Meter::Usage { shape, rates: named.clone() });
        assert_eq!(blind.validate(), Err(CostError::NoModel));
        for sound in [
            Cost::Fixed(Msat::new(1)),
            metered(1, 0, header),
            metered(1, 1, bytes(0, 0)),
            metered(1, 0, bytes(1, 0)),
            metered(1, 0, usage(named)),
        ] {
            assert_eq!(sound.validate(), Ok(()));
        }
    }

    proptest! {
        #[test]
        fn a_sum_is_never_less_than_exact_nor_a_whole_millisatoshi_more(
            input in 0..u64::MAX, output in 0..u64::MAX, a in 0_u64..1_000_000_000, b in 0_u64..1_000_000_000,
        ) {
            let exact = u128::from(input) * u128::from(a) + u128::from(output) * u128::from(b);
            match rates(a, b).cost(Units { input, output }) {
                Some(msat) => {
                    let charged = u128::from(msat.get()) * 1_000_000;
                    prop_assert!(charged >= exact && charged - exact < 1_000_000);
                }
                None => prop_assert!(exact > u128::from(Msat::MAX.get()) * 1_000_000),
            }
        }
    }
}
