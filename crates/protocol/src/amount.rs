//! Money, in the unit of the Lightning Network: the millisatoshi.
//!
//! Every amount in farebox is a [`Msat`]; arithmetic is checked, so that a sum can't wrap into a small price.

use std::{fmt, str::FromStr};

/// All the bitcoin there will ever be, in millisatoshi: 21 million times 10^11.
const SUPPLY: u64 = 21_000_000 * 100_000_000 * 1_000;

/// An amount of money in millisatoshi.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Msat(u64);

/// Why a text is not an amount.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AmountError {
    /// The text isn't a whole number with a unit.
    #[error("`{0}` is not an amount; write a whole number and a unit, like `10sat` or `1500msat`")]
    Malformed(String),
    /// The amount is more money than exists.
    #[error("`{0}` is more than the 21 million bitcoin there are")]
    TooLarge(String),
}

impl Msat {
    /// No money.
    pub const ZERO: Self = Self(0);
    /// All the bitcoin there will ever be: no amount parsed from a text exceeds it.
    pub const MAX: Self = Self(SUPPLY);

    /// So many millisatoshi.
    pub const fn new(msat: u64) -> Self {
        Self(msat)
    }

    /// So many satoshi, or `None` when that is more than a `u64` of millisatoshi.
    pub const fn from_sat(sat: u64) -> Option<Self> {
        match sat.checked_mul(1_000) {
            Some(msat) => Some(Self(msat)),
            None => None,
        }
    }

    /// The number of millisatoshi.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Whole satoshi, rounded up: what a buyer must hold to pay this.
    pub const fn sat_ceil(self) -> u64 {
        self.0.div_ceil(1_000)
    }

    /// Whole satoshi, rounded down.
    pub const fn sat_floor(self) -> u64 {
        self.0 / 1_000
    }

    /// The sum, or `None` on overflow.
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// The difference, or `None` when `other` is larger.
    pub const fn checked_sub(self, other: Self) -> Option<Self> {
        match self.0.checked_sub(other.0) {
            Some(rest) => Some(Self(rest)),
            None => None,
        }
    }

    /// The difference, or nothing when `other` is larger.
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// The sum, or the largest amount on overflow.
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl fmt::Display for Msat {
    /// `10 sat`, or `1500 msat` when the amount isn't a whole number of satoshi.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(1_000) {
            write!(f, "{} sat", self.0 / 1_000)
        } else {
            write!(f, "{} msat", self.0)
        }
    }
}

impl FromStr for Msat {
    type Err = AmountError;

    /// `10sat`, `10 sat`, `1500msat`. A bare number is refused: its unit would be a guess about money.
    fn from_str(text: &str) -> Result<Self, AmountError> {
        let malformed = || AmountError::Malformed(text.to_owned());
        let too_large = || AmountError::TooLarge(text.to_owned());
        let trimmed = text.trim();
        let (number, unit) =
            trimmed.split_at(trimmed.find(|c: char| !c.is_ascii_digit()).ok_or_else(malformed)?);
        if number.is_empty() {
            return Err(malformed());
        }
        let number: u64 = number.parse().map_err(|_| too_large())?;
        let amount = match unit.trim_start() {
            "msat" => Self(number),
            "sat" => Self::from_sat(number).ok_or_else(too_large)?,
            _ => return Err(malformed()),
        };
        if amount > Self::MAX { Err(too_large()) } else { Ok(amount) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, want: &str) {
        let got = match text.parse::<Msat>() {
            Ok(amount) => format!("{} = {amount}", amount.get()),
            Err(error) => error.to_string(),
        };
        assert_eq!(got, want);
    }

    #[test]
    fn an_amount_names_its_unit() {
        check("10sat", "10000 = 10 sat");
        check(" 10 sat", "10000 = 10 sat");
        check("1500msat", "1500 = 1500 msat");
        check("0sat", "0 = 0 sat");
    }

    #[test]
    fn a_text_without_a_unit_or_number_is_refused() {
        for text in ["10", "", "sat", "-1sat", "1.5sat", "10 sats", "10SAT", "1e3sat"] {
            check(
                text,
                &format!(
                    "`{text}` is not an amount; write a whole number and a unit, like `10sat` or `1500msat`"
                ),
            );
        }
    }

    #[test]
    fn an_amount_above_the_supply_is_refused() {
        for text in ["2100000000000001sat", "18446744073709551615sat", "99999999999999999999msat"] {
            check(text, &format!("`{text}` is more than the 21 million bitcoin there are"));
        }
    }
}
