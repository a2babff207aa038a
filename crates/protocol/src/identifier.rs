//! What a token's identifier says: which payment it waits for, and who its holder is.
//!
//! 66 bytes, big-endian: version 0 (two bytes), payment hash, token id. Exactly 66 and exactly version 0: other
//! implementations pad short ones and ignore a tail, which would give one token several names.

use std::{fmt, str::FromStr};

use sha2::{Digest, Sha256};

use crate::{NotHex32, PaymentHash, hex32, preimage::hex64};

/// The 32 random bytes that name a token. They survive an upgrade, so they name its holder too. Public.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId([u8; 32]);

/// SHA-256 of an identifier: the key under which a token is revoked. Public.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdentifierHash([u8; 32]);

/// A token's identifier, version 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identifier {
    /// The payment that makes the token good.
    pub payment_hash: PaymentHash,
    /// The token's name.
    pub token_id: TokenId,
}

/// Why bytes are not an identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdentifierError {
    /// Not 66 bytes.
    #[error("the token's identifier has {0} bytes, not 66")]
    Length(usize),
    /// A version from the future, or somebody else's macaroon.
    #[error("the token's identifier is of version {0}, not 0")]
    Version(u16),
}

impl Identifier {
    /// How long an identifier is, in bytes.
    pub const LEN: usize = 66;

    /// The bytes that go into the macaroon.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[2..34].copy_from_slice(self.payment_hash.as_bytes());
        bytes[34..].copy_from_slice(&self.token_id.0);
        bytes
    }

    /// Reads exactly 66 bytes of version 0.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, IdentifierError> {
        let bytes: &[u8; Self::LEN] = bytes.try_into().map_err(|_| IdentifierError::Length(bytes.len()))?;
        let version = u16::from_be_bytes([bytes[0], bytes[1]]);
        if version != 0 {
            return Err(IdentifierError::Version(version));
        }
        let (mut hash, mut id) = ([0; 32], [0; 32]);
        hash.copy_from_slice(&bytes[2..34]);
        id.copy_from_slice(&bytes[34..]);
        Ok(Self { payment_hash: PaymentHash::from_bytes(hash), token_id: TokenId(id) })
    }

    /// The key under which this token is revoked.
    pub fn hash(&self) -> IdentifierHash {
        IdentifierHash(Sha256::digest(self.to_bytes()).into())
    }
}

macro_rules! hex_name {
    ($name:ident) => {
        impl $name {
            /// The name made of these bytes.
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

        impl fmt::Display for $name {
            /// 64 lower-case hexadecimal digits.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = NotHex32;

            fn from_str(text: &str) -> Result<Self, NotHex32> {
                hex32(text).map(Self)
            }
        }
    };
}

hex_name!(TokenId);
hex_name!(IdentifierHash);
