//! The proof of payment and its commitment: `SHA-256(preimage) = payment hash`.

use std::{fmt, str::FromStr};

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// SHA-256 of a preimage: the one key under which a purchase is known everywhere. Public.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PaymentHash([u8; 32]);

/// The 32 bytes that paying an invoice reveals. A secret: together with the token it is the credential.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Preimage([u8; 32]);

/// A text that isn't 64 hexadecimal digits.
///
/// It doesn't repeat the text: what was meant to be a preimage must not end up in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected 64 hexadecimal digits")]
pub struct NotHex32;

impl PaymentHash {
    /// The hash made of these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// 64 lower-case hexadecimal digits, without allocating.
    pub fn hex(&self) -> [u8; 64] {
        hex64(&self.0)
    }
}

impl fmt::Display for PaymentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for PaymentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PaymentHash({self})")
    }
}

impl FromStr for PaymentHash {
    type Err = NotHex32;

    fn from_str(text: &str) -> Result<Self, NotHex32> {
        hex32(text).map(Self)
    }
}

impl Preimage {
    /// The preimage made of these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Reads 64 hexadecimal digits of either case.
    pub fn from_hex(text: &str) -> Result<Self, NotHex32> {
        hex32(text).map(Self)
    }

    /// 64 lower-case hexadecimal digits: the form that every server accepts. Handle it like the secret it is.
    pub fn expose_hex(&self) -> Zeroizing<String> {
        Zeroizing::new(hex::encode(self.0))
    }

    /// The bytes. Handle them like the secret they are.
    pub const fn expose_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// What this preimage proves payment of.
    pub fn payment_hash(&self) -> PaymentHash {
        PaymentHash(Sha256::digest(self.0).into())
    }

    /// Whether this preimage proves payment of `hash`, in constant time.
    pub fn pays(&self, hash: &PaymentHash) -> bool {
        self.payment_hash().0.ct_eq(&hash.0).into()
    }
}

impl fmt::Debug for Preimage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Preimage(..)")
    }
}

/// 64 lower-case hexadecimal digits.
pub(crate) fn hex64(bytes: &[u8; 32]) -> [u8; 64] {
    let mut digits = [0; 64];
    hex::encode_to_slice(bytes, &mut digits).expect("two digits for each byte");
    digits
}

/// Reads 64 hexadecimal digits of either case.
pub(crate) fn hex32(text: &str) -> Result<[u8; 32], NotHex32> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text, &mut bytes).map_err(|_| NotHex32)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preimage_pays_its_own_hash_only() {
        let preimage = Preimage::from_bytes([7; 32]);
        assert!(preimage.pays(&preimage.payment_hash()));
        assert!(!preimage.pays(&PaymentHash::from_bytes([7; 32])));
    }

    #[test]
    fn a_preimage_never_shows_itself() {
        assert_eq!(format!("{:?}", Preimage::from_bytes([7; 32])), "Preimage(..)");
    }

    #[test]
    fn hex_of_either_case_and_exact_length_is_read() {
        assert!(Preimage::from_hex(&"aB".repeat(32)).is_ok());
        for text in ["", "ab", &"ab".repeat(33), &"zz".repeat(32)] {
            assert_eq!(Preimage::from_hex(text).err(), Some(NotHex32));
        }
    }
}
