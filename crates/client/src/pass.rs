//! What the buyer holds: a paid credential, and the place it is good for.
//!
//! The token is kept exactly as the server wrote it and sent back byte for byte, so a server may use tokens that we
//! can't read. A pass is a secret: it has no `Display`, and its `Debug` shows the payment hash only.

use std::fmt;

use farebox_protocol::{Macaroon, PaymentHash, Preimage, Scheme, Timestamp};
use http::HeaderValue;
use zeroize::Zeroizing;

use crate::Origin;

/// Where one purchase serves for all: a server, and the service on it where the token names one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scope {
    /// The server.
    pub origin: Origin,
    /// The names in the token's `services` caveat, or empty when the token names none or can't be read.
    pub service: String,
}

/// A credential that has been paid for.
#[derive(Clone)]
pub struct Pass {
    /// Where it was bought.
    pub scope: Scope,
    /// The scheme that the server offered, mirrored in the answer.
    pub scheme: Scheme,
    /// The token as the server wrote it.
    pub token: String,
    /// The proof of payment.
    pub preimage: Preimage,
    /// Whether a server has ever accepted it.
    pub honoured: bool,
}

/// What can be read in a token without its key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TokenFacts {
    /// The payment it commits to, where it is a macaroon of ours or aperture's kind.
    pub(crate) payment_hash: Option<PaymentHash>,
    /// The names in `services`, joined by commas.
    pub(crate) service: String,
    /// The moment from which it can't be good any more.
    pub(crate) valid_until: Option<Timestamp>,
}

impl Pass {
    /// The payment that bought it.
    pub fn payment_hash(&self) -> PaymentHash {
        self.preimage.payment_hash()
    }

    /// The value of the `Authorization` header, marked as sensitive; `None` when the token can't stand in a header.
    pub fn header_value(&self) -> Option<HeaderValue> {
        let text = Zeroizing::new(format!("{} {}:{}", self.scheme, self.token, *self.preimage.expose_hex()));
        let mut value = HeaderValue::from_str(&text).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

impl fmt::Debug for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pass")
            .field("scope", &self.scope)
            .field("payment_hash", &self.payment_hash())
            .field("honoured", &self.honoured)
            .finish_non_exhaustive()
    }
}

/// Whether a token can be sent back as it came: visible ASCII without the characters that part a credential.
pub(crate) fn can_be_sent(token: &str) -> bool {
    const TOKEN_BYTES_MAX: usize = 8 * 1024;
    !token.is_empty()
        && token.len() <= TOKEN_BYTES_MAX
        && token.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b':' | b',' | b'"'))
}

/// Reads what a macaroon says of itself; its signature can't be checked here.
pub(crate) fn facts_of(macaroon: &Macaroon) -> TokenFacts {
    let mut services: Vec<String> = Vec::new();
    let mut ends: Vec<(String, Timestamp)> = Vec::new();
    for (condition, value) in macaroon.caveats().filter_map(|caveat| caveat.split_once('=')) {
        if condition == "services" {
            // Of repeated conditions the last counts: each narrows the one before.
            services =
                value.split(',').map(|item| item.split(':').next().unwrap_or(item).to_owned()).collect();
        } else if let Some(of) = condition.strip_suffix("_valid_until") {
            ends.extend(value.parse().ok().map(|secs| (of.to_owned(), Timestamp::from_secs(secs))));
        } else if condition == "expiration" {
            // boltwall's, in milliseconds.
            let end = value.parse::<u64>().ok().map(|millis| Timestamp::from_secs(millis.div_ceil(1_000)));
            ends.extend(end.map(|end| ("farebox".to_owned(), end)));
        }
    }
    let end_of = |name: &str| ends.iter().filter(|(of, _)| of == name).map(|(_, end)| *end).min();
    // The token lives as long as any of its services does; a limit of the whole token cuts that short.
    let services_end = services.iter().map(|name| end_of(name)).collect::<Option<Vec<_>>>();
    let valid_until =
        [services_end.and_then(|all| all.into_iter().max()), end_of("farebox")].into_iter().flatten().min();
    TokenFacts {
        payment_hash: macaroon.identifier().ok().map(|identifier| identifier.payment_hash),
        service: services.join(","),
        valid_until,
    }
}
