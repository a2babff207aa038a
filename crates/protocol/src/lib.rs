//! The L402 protocol: macaroons, caveats, signed terms, challenges and credentials.
//!
//! This crate does no I/O, never awaits, reads no clock and draws no randomness: time and random bytes are arguments.
//! Everything here may be handed bytes from a stranger; nothing here panics on them.

mod amount;
mod bolt11;
mod bound;
pub mod caveat;
mod challenge;
mod credential;
pub mod http_auth;
mod identifier;
mod key;
mod label;
mod macaroon;
mod network;
mod preimage;
mod service;
mod terms;
mod time;

pub use amount::{AmountError, Msat};
pub use bolt11::{Invoice, InvoiceError};
pub use bound::{Bound, UnknownBound};
pub use caveat::{Asked, CaveatError, CaveatRefusal, Judged, Monthly};
pub use challenge::{Challenge, OfferedChallenge, Scheme};
pub use credential::{
    Credential, CredentialError, Presented, TOKENS_MAX, is_one_credential, strip_credentials,
};
pub use identifier::{Identifier, IdentifierError, IdentifierHash, TokenId};
pub use key::{Fingerprint, MintSecret, RootKey};
pub use label::{DESCRIPTION_BYTES_MAX, Label, LabelKey};
pub use macaroon::{CAVEATS_MAX, Forged, MACAROON_BYTES_MAX, Macaroon, MacaroonError};
pub use network::{Network, UnknownNetwork};
pub use preimage::{NotHex32, PaymentHash, Preimage};
pub use service::{BadCapabilityName, BadServiceName, CapabilityName, ServiceName};
pub use terms::{MONTHLY_MAX, Offer, Sale, SaleError, Terms, UnknownTerms};
pub use time::Timestamp;

use preimage::hex32;
