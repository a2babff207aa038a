//! The 402 answer: a token that waits for a payment, and the invoice to pay.
//!
//! [`Challenge`] is what the seller says, in two header lines that every client alive can read: old ones look at the first
//! line only, match `macaroon="…", invoice="…"` directly after the scheme and know nothing else; the current specification
//! wants `version` and `token`. [`OfferedChallenge`] is what a buyer reads of anybody's challenge.

use std::fmt;

use zeroize::Zeroizing;

use crate::{
    Invoice, Macaroon, MacaroonError, Preimage,
    http_auth::{AuthChallenge, parse_challenges},
};

/// The name of the scheme, new or old.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// The name until 2023, which deployed clients still speak.
    Lsat,
    /// The name today.
    L402,
}

/// What the seller asks for, made of a fresh token and its invoice.
#[derive(Clone, Debug)]
pub struct Challenge {
    /// The token; worth nothing until the invoice is paid.
    pub macaroon: Macaroon,
    /// The invoice whose payment hash is in the token.
    pub invoice: Invoice,
}

/// What a server offers, as far as it can be read. Its token may be opaque: it only has to be sent back as it is.
#[derive(Clone, PartialEq, Eq)]
pub struct OfferedChallenge {
    /// The name to answer with.
    pub scheme: Scheme,
    /// The token as sent: printable ASCII without spaces and `:`.
    pub token: String,
    /// The invoice as sent; missing where the server writes it elsewhere.
    pub invoice: Option<String>,
    /// The version, where the server states one.
    pub version: Option<String>,
}

impl Scheme {
    /// The scheme of this name, in whatever case.
    pub fn of(name: &str) -> Option<Self> {
        [Self::L402, Self::Lsat].into_iter().find(|scheme| scheme.name().eq_ignore_ascii_case(name))
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Lsat => "LSAT",
            Self::L402 => "L402",
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Challenge {
    /// The two values of `WWW-Authenticate`, in the order in which they must be sent.
    pub fn header_values(&self) -> [String; 2] {
        let Self { macaroon, invoice } = self;
        let token = macaroon.to_base64();
        [
            format!("{} macaroon=\"{token}\", invoice=\"{invoice}\"", Scheme::Lsat),
            format!(
                "{} macaroon=\"{token}\", invoice=\"{invoice}\", version=\"0\", token=\"{token}\"",
                Scheme::L402
            ),
        ]
    }
}

impl OfferedChallenge {
    /// Every L402 or LSAT challenge with a token in these values of `WWW-Authenticate`, in order. Other schemes, and
    /// challenges without a token, are passed over.
    ///
    /// `token` is the specification's name for what older servers call `macaroon`; where both stand, `token` counts.
    pub fn read_all<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Vec<Self> {
        values
            .into_iter()
            .flat_map(|value| parse_challenges(&String::from_utf8_lossy(value)))
            .filter_map(|challenge| Self::read(&challenge))
            .collect()
    }

    /// The one to buy: the first L402 that has an invoice, else the first with an invoice at all.
    pub fn preferred(offers: &[Self]) -> Option<&Self> {
        let mut usable = offers.iter().filter(|offer| offer.invoice.is_some());
        usable.clone().find(|offer| offer.scheme == Scheme::L402).or_else(|| usable.next())
    }

    fn read(challenge: &AuthChallenge) -> Option<Self> {
        let filled = |name| challenge.param(name).filter(|value| !value.is_empty());
        let token = filled("token").or_else(|| filled("macaroon"))?;
        if !token.bytes().all(|b| b.is_ascii_graphic() && b != b':') {
            return None;
        }
        Some(Self {
            scheme: Scheme::of(&challenge.scheme)?,
            token: token.to_owned(),
            invoice: filled("invoice").map(str::to_owned),
            version: filled("version").map(str::to_owned),
        })
    }

    /// The token as a macaroon, when it is one: in base64 of any kind, or in hexadecimal digits.
    pub fn macaroon(&self) -> Result<Macaroon, MacaroonError> {
        // No text is both: a macaroon begins with byte 2 or a digit, and base64 that looks like hexadecimal doesn't.
        Macaroon::from_base64(&self.token).or_else(|error| Macaroon::from_hex(&self.token).map_err(|_| error))
    }

    /// The value of `Authorization` that answers this challenge once it is paid: the token as the server wrote it.
    pub fn answer(&self, preimage: &Preimage) -> Zeroizing<String> {
        Zeroizing::new(format!("{} {}:{}", self.scheme, self.token, *preimage.expose_hex()))
    }
}

impl fmt::Debug for OfferedChallenge {
    /// Without the token, which is half of a credential.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OfferedChallenge")
            .field("scheme", &self.scheme)
            .field("invoice", &self.invoice)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}
