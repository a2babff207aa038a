//! What a buyer presents: token and preimage, in every form that deployed clients send.
//!
//! The forms: `Authorization: L402 <base64>[,<base64>…]:<hex>`, where the scheme may be `LSAT` and in any case, in one
//! or several values, or folded with others into one; and, where no `Authorization` is ours, the headers `macaroon`, `token`
//! and `grpc-metadata-macaroon` with the token in hexadecimal digits and the preimage as its caveat. A preimage is 64
//! hexadecimal digits, or what some clients make of those: see [`read_preimage`].
//!
//! Accept exactly, refuse clearly: what isn't precisely such a form is [`Presented::Malformed`], with the reason. A credential
//! that can be read counts even when another beside it can't: a refusal would help nobody, since the unreadable one opens
//! nothing. What belongs to others (`Basic`, `Bearer`, somebody else's macaroon) is neither read nor stripped.

mod segments;

use std::fmt;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{AUTHORIZATION, Entry},
};
use zeroize::Zeroizing;

use crate::{CAVEATS_MAX, Macaroon, MacaroonError, NotHex32, Preimage, Scheme};
use segments::{Segment, segments};

/// The most tokens that one request may present; it bounds the work before anything is verified.
pub const TOKENS_MAX: usize = 8;

/// The headers that carry a token in hexadecimal digits: gRPC metadata, and its form behind REST gateways.
static METADATA: [HeaderName; 3] = [
    HeaderName::from_static("macaroon"),
    HeaderName::from_static("token"),
    HeaderName::from_static("grpc-metadata-macaroon"),
];

/// Tokens and the preimage that proves their payment.
#[derive(Clone)]
pub struct Credential {
    /// At least one; mostly exactly one. Unverified.
    pub tokens: Vec<Macaroon>,
    /// The proof of payment. Unverified.
    pub preimage: Preimage,
}

/// What a request presents.
#[derive(Clone, Debug)]
pub enum Presented {
    /// No credential of ours.
    Nothing,
    /// Something that was meant as one, and can't be read.
    Malformed(CredentialError),
    /// One or more that can be read, none twice.
    Credentials(Vec<Credential>),
}

/// Why a credential can't be read. It never repeats any of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialError {
    /// Bytes that no credential has.
    #[error("the credential has bytes that are not ASCII")]
    NotText,
    /// Nothing follows the scheme, or no `:` separates token and preimage, or no caveat holds it.
    #[error("the credential has no preimage; send `L402 <token>:<preimage>`")]
    PreimageMissing,
    /// The preimage isn't 64 hexadecimal digits.
    #[error("the credential's preimage is not 64 hexadecimal digits")]
    PreimageMalformed,
    /// A token can't be read.
    #[error("the credential's token cannot be read: {0}")]
    Token(#[source] MacaroonError),
    /// More tokens than [`TOKENS_MAX`], or more caveats in all of them than one token may have ([`CAVEATS_MAX`]).
    #[error("the request presents more than {TOKENS_MAX} tokens, or more than {CAVEATS_MAX} caveats in all")]
    TooManyTokens,
}

impl CredentialError {
    /// The stable name of this error: the same in the answer, the log and the metric.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotText => "credential_not_text",
            Self::PreimageMissing => "preimage_missing",
            Self::PreimageMalformed => "preimage_malformed",
            Self::Token(_) => "token_malformed",
            Self::TooManyTokens => "too_many_tokens",
        }
    }
}

impl Credential {
    /// The value of `Authorization` to send: standard base64, the preimage in lower case.
    pub fn header_value(&self, scheme: Scheme) -> Zeroizing<String> {
        let tokens: Vec<String> = self.tokens.iter().map(Macaroon::to_base64).collect();
        Zeroizing::new(format!("{scheme} {}:{}", tokens.join(","), *self.preimage.expose_hex()))
    }

    fn is(&self, other: &Self) -> bool {
        self.preimage.expose_bytes() == other.preimage.expose_bytes()
            && self.tokens.len() == other.tokens.len()
            && self.tokens.iter().zip(&other.tokens).all(|(a, b)| a.as_bytes() == b.as_bytes())
    }

    /// Reads what follows the scheme.
    fn read(body: &[u8]) -> Result<Self, CredentialError> {
        if !body.is_ascii() {
            return Err(CredentialError::NotText);
        }
        let body = std::str::from_utf8(body).map_err(|_| CredentialError::NotText)?;
        let (tokens, preimage) = body.rsplit_once(':').ok_or(CredentialError::PreimageMissing)?;
        let preimage = read_preimage(preimage.trim_matches(OWS)).map_err(|_| match preimage {
            "" => CredentialError::PreimageMissing,
            _ => CredentialError::PreimageMalformed,
        })?;
        if tokens.split(',').take(TOKENS_MAX + 1).count() > TOKENS_MAX {
            return Err(CredentialError::TooManyTokens);
        }
        let tokens = tokens.split(',').map(|token| Macaroon::from_base64(token.trim_matches(OWS)));
        let tokens = tokens.collect::<Result<_, _>>().map_err(CredentialError::Token)?;
        Ok(Self { tokens, preimage })
    }

    /// Reads a metadata header. `None` when the header is not ours.
    fn read_metadata(name: &HeaderName, value: &HeaderValue) -> Option<Result<Self, CredentialError>> {
        let token = match std::str::from_utf8(value.as_bytes()).map(Macaroon::from_hex) {
            Ok(Ok(token)) => token,
            // Everybody's API has a header called `token`; a header called `macaroon` holds one, or is broken.
            _ if *name == METADATA[1] => return None,
            Ok(Err(error)) => return Some(Err(CredentialError::Token(error))),
            Err(_) => return Some(Err(CredentialError::NotText)),
        };
        // Somebody else's macaroon, such as the one that an lnd upstream asks for.
        token.identifier().ok()?;
        let preimage = token.caveats().filter_map(|caveat| caveat.strip_prefix("preimage=")).last();
        let preimage = match preimage.map(Preimage::from_hex) {
            None => return Some(Err(CredentialError::PreimageMissing)),
            Some(Err(_)) => return Some(Err(CredentialError::PreimageMalformed)),
            Some(Ok(preimage)) => preimage,
        };
        Some(Ok(Self { tokens: vec![token], preimage }))
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("tokens", &self.tokens).finish_non_exhaustive()
    }
}

impl Presented {
    /// Reads the credentials of a request.
    pub fn read(headers: &HeaderMap) -> Self {
        let mut reading = Reading::default();
        for value in headers.get_all(AUTHORIZATION) {
            for segment in segments(value.as_bytes()) {
                if let Segment::Ours(body) = segment {
                    reading.add(Credential::read(body));
                }
            }
        }
        if reading.is_empty() {
            for name in &METADATA {
                for value in headers.get_all(name) {
                    if let Some(read) = Credential::read_metadata(name, value) {
                        reading.add(read);
                    }
                }
            }
        }
        reading.finish()
    }
}

/// Reads the preimage that follows a token: 64 hexadecimal digits, or 96.
///
/// lnd writes a preimage in hexadecimal digits even where its REST interface has base64 for all other bytes. Clients that
/// take those 64 digits for base64 find 48 bytes in them, and send these in hexadecimal digits. Each such text stands for
/// one preimage only, and who sends it has paid: refused, they would pay again and again.
fn read_preimage(text: &str) -> Result<Preimage, NotHex32> {
    Preimage::from_hex(text).or_else(|error| {
        let mut taken = Zeroizing::new([0_u8; 48]);
        hex::decode_to_slice(text, &mut *taken).map_err(|_| error)?;
        Preimage::from_hex(&Zeroizing::new(STANDARD.encode(*taken)))
    })
}

/// Whether a value of `Authorization` is a credential of ours, readable or not, and nothing beside it. Where it is the only
/// value, [`Presented::read`] then looks nowhere else.
pub fn is_one_credential(authorization: &HeaderValue) -> bool {
    is_ours_alone(authorization.as_bytes())
}

/// Removes every credential of ours, also those that [`Presented::read`] would pass over in favour of others: the upstream
/// must not get what opens the gate. What belongs to others stays.
pub fn strip_credentials(headers: &mut HeaderMap) {
    retain(headers, &AUTHORIZATION, |value| {
        // As nearly always: one credential and nothing beside it.
        if is_ours_alone(value.as_bytes()) {
            return None;
        }
        if segments(value.as_bytes()).all(|segment| matches!(segment, Segment::Foreign(_))) {
            return Some(value);
        }
        // Folded with somebody else's: keep that.
        let foreign: Vec<&[u8]> = segments(value.as_bytes())
            .filter_map(|segment| match segment {
                Segment::Foreign(text) if !text.is_empty() => Some(text),
                _ => None,
            })
            .collect();
        HeaderValue::from_bytes(&foreign.join(&b", "[..])).ok().filter(|value| !value.is_empty())
    });
    // Comparing the names that are there costs less than looking for each that might be.
    if !headers.keys().any(|name| METADATA.contains(name)) {
        return;
    }
    for name in &METADATA {
        retain(headers, name, |value| Credential::read_metadata(name, &value).is_none().then_some(value));
    }
}

fn is_ours_alone(value: &[u8]) -> bool {
    let mut parts = segments(value);
    matches!((parts.next(), parts.next()), (Some(Segment::Ours(_)), None))
}

/// Whitespace that may stand around the parts of a header.
const OWS: [char; 2] = [' ', '\t'];

fn retain(headers: &mut HeaderMap, name: &HeaderName, keep: impl Fn(HeaderValue) -> Option<HeaderValue>) {
    // An entry makes room for one more, whether it is there or not.
    if !headers.contains_key(name) {
        return;
    }
    let Entry::Occupied(entry) = headers.entry(name) else { return };
    let kept: Vec<HeaderValue> = entry.remove_entry_mult().1.filter_map(keep).collect();
    for value in kept {
        headers.append(name, value);
    }
}

#[derive(Default)]
struct Reading {
    credentials: Vec<Credential>,
    error: Option<CredentialError>,
    tokens: usize,
    caveats: usize,
}

impl Reading {
    fn is_empty(&self) -> bool {
        self.credentials.is_empty() && self.error.is_none()
    }

    /// Each caveat costs an HMAC for every live secret, so what one token may cost is all that a request may.
    fn is_too_much(&self) -> bool {
        self.tokens > TOKENS_MAX || self.caveats > CAVEATS_MAX
    }

    fn add(&mut self, read: Result<Credential, CredentialError>) {
        match read {
            // Refused in any case; comparing each of thousands with all before it would take seconds.
            _ if self.is_too_much() => {}
            // Clients that follow aperture send the same credential as LSAT and as L402.
            Ok(credential) if self.credentials.iter().any(|earlier| earlier.is(&credential)) => {}
            Ok(credential) => {
                self.tokens += credential.tokens.len();
                self.caveats += credential.tokens.iter().map(|token| token.caveats().len()).sum::<usize>();
                self.credentials.push(credential);
            }
            Err(error) => self.error = self.error.or(Some(error)),
        }
    }

    fn finish(self) -> Presented {
        match self.error {
            _ if self.is_too_much() => Presented::Malformed(CredentialError::TooManyTokens),
            _ if !self.credentials.is_empty() => Presented::Credentials(self.credentials),
            Some(error) => Presented::Malformed(error),
            None => Presented::Nothing,
        }
    }
}
