//! How a price for many small units is written: `300sat/1M`, `2sat/1k`, `500msat/MB`.
//!
//! A single token or byte is worth less than a millisatoshi, so it is priced by the thousand or by the million, as everybody
//! does. What is written must come to a whole number of millisatoshi for a million units, which is what is reckoned with: a
//! rate that was rounded here would charge another price than the one that was written.

use std::{fmt, str::FromStr};

use farebox_paywall::price::PerMillion;
use farebox_protocol::Msat;

/// A price for units of any kind: `300sat/1M`, `2sat/1k`, `5msat/1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct UnitRate(pub(crate) PerMillion);

/// A price for bytes: `500msat/MB`, `1msat/kB`, `2sat/GB`, and `5msat/B`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ByteRate(pub(crate) PerMillion);

/// Why a text is no price for units.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoRate {
    #[error(
        "`{0}` is not a rate; write an amount and for how many, like `300sat/1M`, `2sat/1k` or `5msat/1`"
    )]
    Units(String),
    #[error(
        "`{0}` is not a rate; write an amount and for how many bytes, like `500msat/MB`, `1msat/kB` or `2sat/GB`"
    )]
    Bytes(String),
    #[error("`{0}` counts in steps of 1024; rates of bytes go by thousands: `kB`, `MB` or `GB`")]
    Binary(String),
    #[error(
        "`{0}` comes to a fraction of a millisatoshi for a million, and rates are reckoned in whole ones; round it up"
    )]
    TooFine(String),
    #[error("`{0}` is more than the 21 million bitcoin there are for a million")]
    TooMuch(String),
}

const UNITS: [(&str, u64); 3] = [("1", 1), ("1k", 1_000), ("1M", 1_000_000)];
const BYTES: [(&str, u64); 4] = [("B", 1), ("kB", 1_000), ("MB", 1_000_000), ("GB", 1_000_000_000)];
const MILLION: u64 = 1_000_000;

/// The rate, where `wrong` words that the text is none.
fn read(text: &str, units: &[(&str, u64)], wrong: fn(String) -> NoRate) -> Result<PerMillion, NoRate> {
    let said = || text.to_owned();
    let (amount, unit) = text.split_once('/').ok_or_else(|| wrong(said()))?;
    let unit = unit.trim();
    let amount: Msat = amount.parse().map_err(|_| wrong(said()))?;
    if matches!(unit, "KiB" | "MiB" | "GiB") {
        return Err(NoRate::Binary(said()));
    }
    let (_, each) = units.iter().find(|(name, _)| *name == unit).ok_or_else(|| wrong(said()))?;
    let for_a_million = u128::from(amount.get()) * u128::from(MILLION);
    if !for_a_million.is_multiple_of(u128::from(*each)) {
        return Err(NoRate::TooFine(said()));
    }
    let rate = u64::try_from(for_a_million / u128::from(*each)).map_err(|_| NoRate::TooMuch(said()))?;
    if rate > Msat::MAX.get() { Err(NoRate::TooMuch(said())) } else { Ok(PerMillion(rate)) }
}

/// In the smallest of the units that makes it whole satoshi, or else in the smallest that makes it whole millisatoshi.
fn write(f: &mut fmt::Formatter<'_>, rate: PerMillion, units: &[(&str, u64)]) -> fmt::Result {
    let amount = |each: u64| {
        let exact = u128::from(rate.0) * u128::from(each);
        let msat = u64::try_from(exact / u128::from(MILLION)).ok()?;
        exact.is_multiple_of(u128::from(MILLION)).then_some(Msat::new(msat))
    };
    let known = || units.iter().filter_map(|(unit, each)| Some((amount(*each)?, unit)));
    let in_sat = known().find(|(amount, _)| amount.get().is_multiple_of(1_000));
    match in_sat.or_else(|| known().next()) {
        Some((amount, unit)) => write!(f, "{amount}/{unit}"),
        // A million is among the units, and for that many every rate is whole.
        None => Ok(()),
    }
}

impl FromStr for UnitRate {
    type Err = NoRate;

    fn from_str(text: &str) -> Result<Self, NoRate> {
        // Whoever prices bytes by usage has the wrong meter, and gets told what a rate of this one looks like.
        read(text, &UNITS, NoRate::Units).map(Self)
    }
}

impl FromStr for ByteRate {
    type Err = NoRate;

    fn from_str(text: &str) -> Result<Self, NoRate> {
        read(text, &BYTES, NoRate::Bytes).map(Self)
    }
}

impl fmt::Display for UnitRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(f, self.0, &UNITS)
    }
}

impl fmt::Display for ByteRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(f, self.0, &BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check<T: FromStr<Err = NoRate> + fmt::Display>(text: &str, want: &str) {
        let got = match text.parse::<T>() {
            Ok(rate) => rate.to_string(),
            Err(error) => error.to_string(),
        };
        assert_eq!(got, want, "{text}");
    }

    #[test]
    fn a_rate_is_exact_or_it_is_none() {
        for (text, per_million) in [
            ("300sat/1M", 300_000),
            ("2sat/1k", 2_000_000),
            ("5msat/1", 5_000_000),
            ("1 msat / 1M", 1),
            ("0sat/1M", 0),
        ] {
            assert_eq!(text.parse::<UnitRate>(), Ok(UnitRate(PerMillion(per_million))), "{text}");
        }
        for (text, per_million) in
            [("500msat/MB", 500), ("1msat/kB", 1_000), ("2sat/GB", 2), ("5msat/B", 5_000_000)]
        {
            assert_eq!(text.parse::<ByteRate>(), Ok(ByteRate(PerMillion(per_million))), "{text}");
        }
    }

    #[test]
    fn a_rate_is_shown_in_the_unit_that_reads_best() {
        for (text, want) in [
            ("300sat/1M", "300 sat/1M"),
            ("2sat/1k", "2 sat/1k"),
            ("5msat/1", "5 sat/1k"),
            ("1sat/1", "1 sat/1"),
            ("1500msat/1M", "1500 msat/1M"),
            ("0sat/1M", "0 sat/1"),
        ] {
            check::<UnitRate>(text, want);
        }
        check::<ByteRate>("2sat/GB", "2 sat/GB");
        check::<ByteRate>("500msat/MB", "500 sat/GB");
    }

    #[test]
    fn what_is_no_rate_is_told_how_to_write_one() {
        let units = |text: &str| {
            format!(
                "`{text}` is not a rate; write an amount and for how many, like `300sat/1M`, `2sat/1k` or `5msat/1`"
            )
        };
        for text in [
            "300sat",
            "300/1M",
            "sat/1M",
            "300sat/1m",
            "300sat/M",
            "300sat/token",
            "300sat/MB",
            "3.5sat/1M",
            "",
        ] {
            check::<UnitRate>(text, &units(text));
        }
        check::<ByteRate>(
            "1sat/MiB",
            "`1sat/MiB` counts in steps of 1024; rates of bytes go by thousands: `kB`, `MB` or `GB`",
        );
        check::<ByteRate>(
            "1sat/1M",
            "`1sat/1M` is not a rate; write an amount and for how many bytes, like `500msat/MB`, `1msat/kB` or `2sat/GB`",
        );
        check::<ByteRate>(
            "1500msat/GB",
            "`1500msat/GB` comes to a fraction of a millisatoshi for a million, and rates are reckoned in whole ones; round it up",
        );
        check::<UnitRate>(
            "2100000000000001sat/1",
            "`2100000000000001sat/1` is not a rate; write an amount and for how many, like `300sat/1M`, `2sat/1k` or `5msat/1`",
        );
        check::<UnitRate>(
            "2100000000000000sat/1k",
            "`2100000000000000sat/1k` is more than the 21 million bitcoin there are for a million",
        );
    }
}
