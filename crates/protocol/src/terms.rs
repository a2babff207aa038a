//! What a token was sold as, in the words that are signed into it.
//!
//! The text of [`Terms`] is part of the token format: a token sold today is read by every later version, so the words of
//! `v1` never change their meaning. Only the one canonical spelling is read (`parse(print(x)) == x`, any other text is
//! refused), and an unknown version, offer or field is refused: what isn't understood isn't served.

use std::{fmt, num::NonZeroU64, str::FromStr, time::Duration};

use crate::{
    Bound, CapabilityName, IdentifierHash, Macaroon, Msat, ServiceName, Timestamp,
    caveat::{self, LIST_MAX, Monthly},
};

/// The most limits by the month that one token is sold with: beside them, its capabilities and what holders add must find room.
pub const MONTHLY_MAX: usize = 8;

/// What one payment buys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Offer {
    /// A pass without end.
    Forever,
    /// A pass for so many whole seconds, at least one.
    Duration(Duration),
    /// So many requests, answered by the upstream.
    Requests(NonZeroU64),
    /// What was paid, to be drawn down by use: the balance is the price of the [`Terms`].
    Credit,
}

impl Offer {
    /// Whether use takes something from it: then a token proves what was bought, and only a ledger what is left.
    pub const fn is_counted(&self) -> bool {
        match self {
            Self::Forever | Self::Duration(_) => false,
            Self::Requests(_) | Self::Credit => true,
        }
    }
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
    /// The first moment at which it is no longer good: always for [`Offer::Duration`], never for [`Offer::Forever`], and
    /// for what is counted where the seller sets one.
    pub valid_until: Option<Timestamp>,
    /// What may be done with it; everything that the tier has, if nothing is said. An empty list allows nothing.
    pub capabilities: Option<Vec<CapabilityName>>,
    /// How much of them may be used in a month: up to [`MONTHLY_MAX`], one for each capability and unit.
    pub monthly: Vec<Monthly>,
    /// The one request it is for, where prices vary by request. Needed then, unless [`Offer::Credit`] is sold.
    pub bound: Option<Bound>,
    /// The token in whose place it is sold, of a lower tier: good no longer once this one is used.
    pub replaces: Option<IdentifierHash>,
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
    /// More capabilities than anybody would read, or one of them twice.
    #[error("{0} capabilities cannot be sold in one token; list up to {LIST_MAX}, none twice")]
    Capabilities(usize),
    /// A limit by the month of nothing, of a part of a satoshi, of what isn't sold, or one of two for the same.
    #[error(
        "the limit `{0}` cannot be sold; it must be whole requests or satoshi, above zero, and the only one of its kind \
         for a capability that is sold"
    )]
    Monthly(String),
    /// More limits by the month than a token has room for.
    #[error("{0} limits by the month cannot be sold in one token; set up to {MONTHLY_MAX}")]
    TooManyMonthly(usize),
}

impl Sale {
    /// The caveats of the new token: `services`, then where there are such `<service>_capabilities`,
    /// `<service>_valid_until`, limits by the month, `farebox_bound` and `farebox_replaces`, and last `farebox_terms`.
    ///
    /// # Errors
    ///
    /// For a sale that no gateway would honour. It is the mint's error, and never a caveat silently left out.
    pub fn caveats(&self) -> Result<Vec<String>, SaleError> {
        self.check()?;
        let Self { service, tier, terms, valid_until, capabilities, monthly, bound, replaces } = self;
        let capabilities = capabilities.as_ref().map(|capabilities| {
            let names: Vec<&str> = capabilities.iter().map(CapabilityName::as_str).collect();
            format!("{service}_capabilities={}", names.join(","))
        });
        let what = [
            Some(format!("services={service}:{tier}")),
            capabilities,
            valid_until.map(|end| format!("{service}_valid_until={end}")),
        ];
        let how = [
            bound.as_ref().map(|bound| format!("farebox_bound={bound}")),
            replaces.map(|older| format!("farebox_replaces={older}")),
            Some(format!("farebox_terms={terms}")),
        ];
        let monthly = monthly.iter().map(Monthly::to_string);
        Ok(what.into_iter().flatten().chain(monthly).chain(how.into_iter().flatten()).collect())
    }

    /// What a token was sold as, if it is as the mint made it: these caveats, in this order, and none after them. `None`
    /// of a token that a holder has narrowed, since `farebox_terms` comes last and only the mint writes it. Its signature
    /// must have been verified before; whether its time is over isn't asked.
    pub fn of(token: &Macaroon) -> Option<Self> {
        let sale = Self::read(token.caveats())?;
        // Letter for letter: what was passed over, or stands elsewhere, isn't what the mint writes.
        let written = sale.caveats().ok()?;
        written.iter().map(String::as_str).eq(token.caveats()).then_some(sale)
    }

    fn read<'a>(caveats: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut caveats = caveats.map(|caveat| caveat.split_once('='));
        let ("services", first) = caveats.next()?? else { return None };
        let (service, tier) = first.split_once(':')?;
        let service: ServiceName = service.parse().ok()?;
        let tier = u8::try_from(decimal(tier)?).ok()?;
        let (mut terms, mut valid_until, mut capabilities) = (None, None, None);
        let (mut monthly, mut bound, mut replaces) = (Vec::new(), None, None);
        for caveat in caveats {
            let (name, value) = caveat?;
            match name {
                "farebox_terms" => terms = Some(value.parse().ok()?),
                "farebox_bound" => bound = Some(value.parse().ok()?),
                "farebox_replaces" => replaces = Some(value.parse().ok()?),
                name => match name.strip_prefix(service.as_str()) {
                    Some("_valid_until") => valid_until = Some(Timestamp::from_secs(decimal(value)?)),
                    Some("_capabilities") if value.is_empty() => capabilities = Some(Vec::new()),
                    Some("_capabilities") => {
                        capabilities = Some(value.split(',').map(str::parse).collect::<Result<_, _>>().ok()?);
                    }
                    _ => monthly.push(Monthly::of(&caveat::limit(name, value)?)?),
                },
            }
        }
        Some(Self { service, tier, terms: terms?, valid_until, capabilities, monthly, bound, replaces })
    }

    fn check(&self) -> Result<(), SaleError> {
        let Self { service, tier: _, terms, valid_until, capabilities, monthly: _, bound: _, replaces: _ } =
            self;
        let Terms { offer, price } = *terms;
        if price == Msat::ZERO || price > Msat::MAX {
            return Err(SaleError::Price(price));
        }
        if let Offer::Duration(duration) = offer
            && (duration.as_secs() == 0 || duration.subsec_nanos() > 0)
        {
            return Err(SaleError::Duration(duration));
        }
        match (offer, valid_until) {
            (Offer::Forever, None)
            | (Offer::Duration(_), Some(_))
            | (Offer::Requests(_) | Offer::Credit, _) => {}
            (Offer::Forever, Some(_)) | (Offer::Duration(_), None) => {
                let (service, valid_until) = (service.clone(), *valid_until);
                return Err(SaleError::ValidUntil { service, offer, valid_until });
            }
        }
        if let Some(listed) = capabilities {
            let repeated = listed.iter().enumerate().any(|(at, name)| listed[..at].contains(name));
            if repeated || listed.len() > LIST_MAX {
                return Err(SaleError::Capabilities(listed.len()));
            }
        }
        self.check_monthly()
    }

    fn check_monthly(&self) -> Result<(), SaleError> {
        if self.monthly.len() > MONTHLY_MAX {
            return Err(SaleError::TooManyMonthly(self.monthly.len()));
        }
        for (at, limit) in self.monthly.iter().enumerate() {
            let is_sold = self.capabilities.as_ref().is_none_or(|listed| listed.contains(&limit.capability));
            let is_repeated = self.monthly[..at].iter().any(|earlier| earlier.is_like(limit));
            if !is_sold || is_repeated || !limit.is_sellable() {
                return Err(SaleError::Monthly(limit.to_string()));
            }
        }
        Ok(())
    }
}

impl fmt::Display for Offer {
    /// `offer=forever`, `offer=duration;secs=3600`, `offer=requests;count=100` or `offer=credit;unit=msat`: the part of the
    /// terms that says what was bought.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forever => f.write_str("offer=forever"),
            Self::Duration(duration) => write!(f, "offer=duration;secs={}", duration.as_secs()),
            Self::Requests(count) => write!(f, "offer=requests;count={count}"),
            Self::Credit => f.write_str("offer=credit;unit=msat"),
        }
    }
}

impl FromStr for Offer {
    type Err = UnknownTerms;

    fn from_str(text: &str) -> Result<Self, UnknownTerms> {
        let read = || match text.strip_prefix("offer=")? {
            "forever" => Some(Self::Forever),
            "credit;unit=msat" => Some(Self::Credit),
            counted => match counted.split_once('=')? {
                ("duration;secs", secs) => decimal(secs)
                    .filter(|secs| *secs > 0)
                    .map(|secs| Self::Duration(Duration::from_secs(secs))),
                ("requests;count", count) => decimal(count).and_then(NonZeroU64::new).map(Self::Requests),
                _ => None,
            },
        };
        read().ok_or_else(|| UnknownTerms(text.to_owned()))
    }
}

impl fmt::Display for Terms {
    /// `v1;offer=forever;msat=10000`, `v1;offer=requests;count=100;msat=10000`.
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
