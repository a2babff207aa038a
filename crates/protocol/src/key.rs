//! The keys that sign tokens. Root keys are derived and never stored; the mint secret is the one thing to keep.
//!
//! `root key = HMAC-SHA256(mint secret, "farebox root key v1" 00 || network name || 00 || identifier)`. The network is
//! in it so that test coins buy nothing on mainnet. The derivation is part of the token format: sold tokens depend on it,
//! so it never changes; a new one would get a new tag beside the old.

use std::fmt;

use hmac::{Hmac, Mac};
use sha2::Sha256;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::{Identifier, LabelKey, Network, NotHex32, hex32};

pub(crate) type HmacSha256 = Hmac<Sha256>;

const ROOT_KEY_TAG: &[u8] = b"farebox root key v1\0";
const LABEL_KEY_TAG: &[u8] = b"farebox invoice label v1\0";
const FINGERPRINT_TAG: &[u8] = b"farebox mint secret fingerprint v1\0";

/// Signs every token with one identifier. Lost, that token dies; leaked, anyone can mint it with any caveats.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct RootKey(pub(crate) [u8; 32]);

/// The seller's secret, from which every root key comes. Lost, all tokens die; leaked, anyone can mint any token.
#[derive(Clone)]
pub struct MintSecret {
    bytes: Zeroizing<[u8; 32]>,
    // Keyed once: the two hash blocks of the key are not computed again for every request.
    hmac: HmacSha256,
}

/// Tells two mint secrets apart without giving anything away: safe to store and to log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; 8]);

impl RootKey {
    /// The root key made of these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl MintSecret {
    /// The secret made of these bytes, which must be random.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        let hmac = keyed(&bytes);
        Self { bytes: Zeroizing::new(bytes), hmac }
    }

    /// Reads 64 hexadecimal digits of either case.
    pub fn from_hex(text: &str) -> Result<Self, NotHex32> {
        hex32(text).map(Self::from_bytes)
    }

    /// 64 lower-case hexadecimal digits, to be written to the key file and nowhere else.
    pub fn expose_hex(&self) -> Zeroizing<String> {
        Zeroizing::new(hex::encode(*self.bytes))
    }

    /// The key that signs the token with this identifier, when it was paid for on `network`.
    pub fn root_key(&self, network: Network, identifier: &Identifier) -> RootKey {
        let mac = self
            .hmac
            .clone()
            .chain_update(ROOT_KEY_TAG)
            .chain_update(network.name())
            .chain_update([0])
            .chain_update(identifier.to_bytes());
        RootKey(mac.finalize().into_bytes().into())
    }

    /// The key that signs what the invoices of `network` say of themselves. How it is derived is part of [`Label`]'s
    /// spelling, and never changes either.
    ///
    /// [`Label`]: crate::Label
    pub fn label_key(&self, network: Network) -> LabelKey {
        let mac =
            self.hmac.clone().chain_update(LABEL_KEY_TAG).chain_update(network.name()).chain_update([0]);
        LabelKey::from_bytes(mac.finalize().into_bytes().into())
    }

    /// What may be stored and logged of this secret.
    pub fn fingerprint(&self) -> Fingerprint {
        let mac: [u8; 32] = self.hmac.clone().chain_update(FINGERPRINT_TAG).finalize().into_bytes().into();
        let mut short = [0; 8];
        short.copy_from_slice(&mac[..8]);
        Fingerprint(short)
    }
}

/// An HMAC-SHA256 with this key and no message yet.
pub(crate) fn keyed(key: &[u8]) -> HmacSha256 {
    HmacSha256::new_from_slice(key).expect("HMAC-SHA256 takes a key of any length")
}

impl fmt::Debug for RootKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RootKey(..)")
    }
}

impl fmt::Debug for MintSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MintSecret({})", self.fingerprint())
    }
}

impl fmt::Display for Fingerprint {
    /// 16 lower-case hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}
