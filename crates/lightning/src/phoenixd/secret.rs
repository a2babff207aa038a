//! A text that must not be shown: a password, or a preimage on its way through JSON.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq as _};
use zeroize::Zeroizing;

/// A secret text. It has no `Display`, hides itself from `Debug`, and is wiped when dropped.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// The secret that this text is.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// A new password of 256 random bits, as 64 hexadecimal digits.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut bytes = Zeroizing::new([0; 32]);
        getrandom::fill(&mut bytes[..])?;
        Ok(Self::new(hex::encode(bytes.as_slice())))
    }

    /// The text. Handle it like the secret it is.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether `guess` is this secret, in a time that tells neither how much of it is right nor how long it should be.
    pub fn is(&self, guess: &[u8]) -> Choice {
        Sha256::digest(self.0.as_bytes()).ct_eq(&Sha256::digest(guess))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

impl Serialize for Secret {
    /// In clear: only the wire structures of this crate, which carry preimages, are meant to be serialized.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}
