//! What a token was sold as, in the words that are signed into it.
//!
//! The text of [`Terms`] is part of the token format: a token sold today is read by every later version, so the words of
//! `v1` never change their meaning. Only the one canonical spelling is read (`parse(print(x)) == x`, any other text is
//! refused), and an unknown version, offer or field is refused: what isn't understood isn't served.

use std::{fmt, str::FromStr, time::Duration};

use crate::{Msat, ServiceName, Timestamp};

/// What one payment buys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Offer {
    /// A pass without end.
    Forever,
    /// A pass for so many whole seconds, at least one.
    Duration(Duration),
}

/// The terms of one sale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Terms {
    /// What was bought.
    pub offer: Offer,
    /// What it cost; above zero.
    pub price: Msat,
}

/// All that a new token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sale {
    /// What the token is good for.
    pub service: ServiceName,
    /// How much of it; 0 is the base tier.
    pub tier: u8,
    /// On which terms.
    pub terms: Terms,
    /// The first moment at which it is no longer good: for [`Offer::Duration`], and only for that.
    pub valid_until: Option<Timestamp>,
}

/// A text that isn't the canonical spelling of any terms.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{}` are no terms that this version knows", .0.escape_debug())]
pub struct UnknownTerms(pub String);

/// A sale that can't be written into a token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SaleError {
    /// The price is zero or more than there is.
    #[error("a price of {0} cannot be sold at; it must be above zero and within the bitcoin there are")]
    Price(Msat),
    /// The duration is zero or has a fraction of a second.
    #[error("a duration of {0:?} cannot be sold; write whole seconds, at least one")]
    Duration(Duration),
    /// A duration was sold without an end, or a pass for ever with one.
    #[error("`{service}` sells {offer}, which does not go with an end of {valid_until:?}")]
    ValidUntil {
        /// The service.
        service: ServiceName,
        /// What it sells.
        offer: Offer,
        /// The end that doesn't fit.
        valid_until: Option<Timestamp>,
    },
}

impl Sale {
    /// The caveats of the new token: `services`, `<service>_valid_until` where there is an end, `farebox_terms`.
    ///
    /// # Errors
    ///
    /// For a sale that no gateway would honour. It is the mint's error, and never a caveat silently left out.
    pub fn caveats(&self) -> Result<Vec<String>, SaleError> {
        let Self { service, tier, terms, valid_until } = self;
        if terms.price == Msat::ZERO || terms.price > Msat::MAX {
            return Err(SaleError::Price(terms.price));
        }
        if let Offer::Duration(duration) = terms.offer
            && (duration.as_secs() == 0 || duration.subsec_nanos() > 0)
        {
            return Err(SaleError::Duration(duration));
        }
        let services = format!("services={service}:{tier}");
        let signed = format!("farebox_terms={terms}");
        match (terms.offer, valid_until) {
            (Offer::Forever, None) => Ok(vec![services, signed]),
            (Offer::Duration(_), Some(end)) => {
                Ok(vec![services, format!("{service}_valid_until={end}"), signed])
            }
            (offer, _) => {
                Err(SaleError::ValidUntil { service: service.clone(), offer, valid_until: *valid_until })
            }
        }
    }
}

impl fmt::Display for Offer {
    /// `offer=forever` or `offer=duration;secs=3600`: the part of the terms that says what was bought.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forever => f.write_str("offer=forever"),
            Self::Duration(duration) => write!(f, "offer=duration;secs={}", duration.as_secs()),
        }
    }
}

impl FromStr for Offer {
    type Err = UnknownTerms;

    fn from_str(text: &str) -> Result<Self, UnknownTerms> {
        let unknown = || UnknownTerms(text.to_owned());
        match text.strip_prefix("offer=duration;secs=") {
            Some(secs) => {
                decimal(secs).filter(|secs| *secs > 0).map(|secs| Self::Duration(Duration::from_secs(secs)))
            }
            None => (text == "offer=forever").then_some(Self::Forever),
        }
        .ok_or_else(unknown)
    }
}

impl fmt::Display for Terms {
    /// `v1;offer=forever;msat=10000` or `v1;offer=duration;secs=3600;msat=10000`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v1;{};msat={}", self.offer, self.price.get())
    }
}

impl FromStr for Terms {
    type Err = UnknownTerms;

    fn from_str(text: &str) -> Result<Self, UnknownTerms> {
        let read = || {
            let (offer, price) = text.strip_prefix("v1;")?.rsplit_once('=')?;
            let offer = offer.strip_suffix(";msat")?;
            let price =
                decimal(price).map(Msat::new).filter(|price| (Msat::new(1)..=Msat::MAX).contains(price))?;
            Some(Self { offer: offer.parse().ok()?, price })
        };
        read().ok_or_else(|| UnknownTerms(text.to_owned()))
    }
}

/// A whole number in its one canonical spelling: no sign, no leading zero, nothing around it.
pub(crate) fn decimal(text: &str) -> Option<u64> {
    let canonical = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if canonical { text.parse().ok() } else { None }
}
