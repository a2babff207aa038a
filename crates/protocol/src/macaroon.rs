//! Macaroons: a token's identifier, its caveats, and the signature that chains them.
//!
//! A [`Macaroon`] has been read but not verified: whoever sent it may have made it up. [`Macaroon::verify`] tells whether
//! it was minted with a root key; `caveat::judge` what it then allows. The bytes are held once, in the V2 form that goes
//! out, with the places of the parts beside them, so that a request costs one buffer and no copies.
//!
//! The chain starts from `HMAC("macaroons-key-generator", root key)`, which the specification's text leaves out and every
//! deployed implementation does. Third-party caveats are refused at reading: nobody here could discharge them.

mod codec;

use std::{fmt, ops::Range, sync::LazyLock};

use base64::{
    Engine,
    alphabet::{STANDARD, URL_SAFE},
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use hmac::Mac;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::{
    CaveatError, Identifier, IdentifierError, RootKey, caveat,
    key::{HmacSha256, keyed},
};

/// The longest macaroon that is read, in bytes.
pub const MACAROON_BYTES_MAX: usize = 4096;
/// The most caveats that a macaroon may have.
pub const CAVEATS_MAX: usize = 64;

/// What aperture writes into every token; it isn't signed, so nothing depends on it.
const LOCATION: &[u8] = b"lsat";

/// Spares the two hash blocks of a constant key on every verification.
static KEY_GENERATOR: LazyLock<HmacSha256> = LazyLock::new(|| keyed(b"macaroons-key-generator"));

const LENIENT_PADDING: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const BASE64: GeneralPurpose = GeneralPurpose::new(&STANDARD, LENIENT_PADDING);
const BASE64_URL: GeneralPurpose = GeneralPurpose::new(&URL_SAFE, LENIENT_PADDING);

/// A macaroon as somebody sent it: read, not verified.
///
/// With a preimage it is a credential, and a `preimage=` caveat may be inside: `Debug` shows the identifier only.
#[derive(Clone)]
pub struct Macaroon {
    /// The V2 serialisation, signature last.
    bytes: Zeroizing<Vec<u8>>,
    identifier: Range<usize>,
    /// Each one is UTF-8.
    caveats: Vec<Range<usize>>,
}

/// Why bytes or a text are not a macaroon. It never repeats them: they may be a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MacaroonError {
    /// Longer than [`MACAROON_BYTES_MAX`].
    #[error("the macaroon has {0} bytes, more than {MACAROON_BYTES_MAX}")]
    TooLong(usize),
    /// More than [`CAVEATS_MAX`] caveats.
    #[error("the macaroon has more than {CAVEATS_MAX} caveats")]
    TooManyCaveats,
    /// Not the V2 or V1 format, cut short, or with a part where it doesn't belong.
    #[error("not a macaroon: unreadable at byte {0}")]
    Malformed(usize),
    /// Something follows the signature.
    #[error("{0} bytes follow the macaroon's signature")]
    TrailingBytes(usize),
    /// A caveat that a third party would have to discharge.
    #[error("the macaroon has a third-party caveat, which nobody here can discharge")]
    ThirdParty,
    /// A caveat that isn't UTF-8.
    #[error("caveat {0} of the macaroon is not UTF-8")]
    NotText(usize),
    /// Neither standard nor URL-safe base64.
    #[error("the macaroon is not base64")]
    NotBase64,
    /// Not hexadecimal.
    #[error("the macaroon is not hexadecimal")]
    NotHex,
}

/// The signature doesn't come from this root key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the macaroon's signature does not come from this root key")]
pub struct Forged;

impl Macaroon {
    /// Signs a new token. `caveats` are written as they are, in order.
    ///
    /// # Panics
    ///
    /// When the caveats exceed [`CAVEATS_MAX`] or the token [`MACAROON_BYTES_MAX`]: what nobody could read is not minted.
    pub fn mint(root_key: &RootKey, identifier: &Identifier, caveats: &[String]) -> Self {
        let identifier = identifier.to_bytes();
        let signature = chain(root_key, &identifier, caveats.iter().map(String::as_bytes));
        codec::assemble(Some(LOCATION), &identifier, caveats.iter().map(String::as_bytes), &*signature)
            .expect("a token is minted with a handful of short caveats")
    }

    /// Reads the binary form: V2, or the older V1.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, MacaroonError> {
        // Before the copy: what is too long isn't copied.
        codec::check_len(bytes.len())?;
        codec::read(Zeroizing::new(bytes.to_vec()))
    }

    /// The binary form, V2.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.bytes.to_vec()
    }

    /// Reads standard or URL-safe base64, padded or not.
    pub fn from_base64(text: &str) -> Result<Self, MacaroonError> {
        if text.len() > MACAROON_BYTES_MAX.div_ceil(3) * 4 {
            return Err(MacaroonError::TooLong(text.len() / 4 * 3));
        }
        // Two searches for one byte each are faster than one that looks for either.
        let has = |byte| text.as_bytes().contains(&byte);
        let engine = if has(b'-') || has(b'_') { BASE64_URL } else { BASE64 };
        let bytes = Zeroizing::new(engine.decode(text).map_err(|_| MacaroonError::NotBase64)?);
        codec::read(bytes)
    }

    /// Standard base64 with padding: the form that every client and server reads.
    pub fn to_base64(&self) -> String {
        BASE64.encode(&*self.bytes)
    }

    /// Reads hexadecimal digits of either case.
    pub fn from_hex(text: &str) -> Result<Self, MacaroonError> {
        if text.len() / 2 > MACAROON_BYTES_MAX {
            return Err(MacaroonError::TooLong(text.len() / 2));
        }
        let bytes = Zeroizing::new(hex::decode(text).map_err(|_| MacaroonError::NotHex)?);
        codec::read(bytes)
    }

    /// Lower-case hexadecimal digits.
    pub fn to_hex(&self) -> String {
        hex::encode(&*self.bytes)
    }

    /// What the token says it is. Any 66 bytes of version 0 will do: it is unverified.
    pub fn identifier(&self) -> Result<Identifier, IdentifierError> {
        Identifier::from_bytes(self.identifier_bytes())
    }

    /// The caveats, in order.
    pub fn caveats(&self) -> impl ExactSizeIterator<Item = &str> {
        self.caveats.iter().map(|range| {
            std::str::from_utf8(&self.bytes[range.clone()]).expect("a caveat is checked when it is read")
        })
    }

    /// Whether this token was minted with `root_key`, its caveats added one by one since and none removed.
    pub fn verify(&self, root_key: &RootKey) -> Result<(), Forged> {
        let caveats = self.caveats.iter().map(|range| &self.bytes[range.clone()]);
        let expected = chain(root_key, self.identifier_bytes(), caveats);
        // Constant time: `==` stops at the first wrong byte, which tells a guesser how far they got.
        if expected.ct_eq(self.signature()).into() { Ok(()) } else { Err(Forged) }
    }

    /// A weaker copy: what this token allows, where `caveat` holds too. Needs no root key.
    ///
    /// Refuses what only the mint may say, what no gateway would accept, and what would widen the token: such a copy
    /// would be dead.
    pub fn attenuate(&self, caveat: &str) -> Result<Self, CaveatError> {
        caveat::check_added(self.caveats(), caveat)?;
        let signature = Zeroizing::new(link(self.signature(), caveat.as_bytes()));
        let caveats = self.caveats().map(str::as_bytes).chain([caveat.as_bytes()]);
        codec::assemble(self.location(), self.identifier_bytes(), caveats, &*signature)
            .map_err(|_| CaveatError::TokenFull)
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn identifier_bytes(&self) -> &[u8] {
        &self.bytes[self.identifier.clone()]
    }

    fn signature(&self) -> &[u8] {
        &self.bytes[self.bytes.len() - codec::SIGNATURE_LEN..]
    }

    fn location(&self) -> Option<&[u8]> {
        codec::location(&self.bytes)
    }
}

impl fmt::Debug for Macaroon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.identifier() {
            Ok(identifier) => write!(f, "Macaroon({}, {} caveats)", identifier.token_id, self.caveats.len()),
            Err(_) => write!(f, "Macaroon(foreign, {} caveats)", self.caveats.len()),
        }
    }
}

fn chain<'a>(
    root_key: &RootKey,
    identifier: &[u8],
    caveats: impl Iterator<Item = &'a [u8]>,
) -> Zeroizing<[u8; 32]> {
    let key: Zeroizing<[u8; 32]> =
        Zeroizing::new(KEY_GENERATOR.clone().chain_update(root_key.0).finalize().into_bytes().into());
    caveats.fold(Zeroizing::new(link(&*key, identifier)), |signature, caveat| {
        Zeroizing::new(link(&*signature, caveat))
    })
}

fn link(key: &[u8], message: &[u8]) -> [u8; 32] {
    keyed(key).chain_update(message).finalize().into_bytes().into()
}
