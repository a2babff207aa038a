//! What the tests of this crate share: the vectors, and invoices made on the spot.

#![allow(dead_code, reason = "each test file uses its part")]

use std::{fs, path::Path, time::Duration};

use bitcoin::{
    hashes::{Hash, sha256},
    secp256k1::{Secp256k1, SecretKey},
};
use lightning_invoice::{Currency, InvoiceBuilder, PaymentSecret, SiPrefix};
use serde::de::DeserializeOwned;

/// The rows of a file in `vectors/`.
pub(crate) fn vectors<Rows: DeserializeOwned>(name: &str) -> Rows {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../vectors").join(name);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What an invoice made on the spot says. The key that signs it is 32 bytes of 0x41.
pub(crate) struct Made {
    pub(crate) currency: Currency,
    /// The amount as written: a number and a multiplier.
    pub(crate) amount: (Option<u64>, Option<SiPrefix>),
    pub(crate) hash: [u8; 32],
    pub(crate) created_at: u64,
    pub(crate) expiry: Option<u64>,
    pub(crate) description: Result<&'static str, [u8; 32]>,
}

impl Default for Made {
    fn default() -> Self {
        Self {
            currency: Currency::Regtest,
            amount: (Some(100), Some(SiPrefix::Nano)),
            hash: [7; 32],
            created_at: 1_700_000_000,
            expiry: Some(600),
            description: Ok("weather"),
        }
    }
}

impl Made {
    pub(crate) fn text(self) -> String {
        let key = SecretKey::from_slice(&[0x41; 32]).unwrap();
        let builder = InvoiceBuilder::new(self.currency)
            .payment_hash(sha256::Hash::from_byte_array(self.hash))
            .duration_since_epoch(Duration::from_secs(self.created_at))
            .min_final_cltv_expiry_delta(18)
            .payment_secret(PaymentSecret([0x42; 32]));
        let builder = match self.expiry {
            Some(expiry) => builder.expiry_time(Duration::from_secs(expiry)),
            None => builder,
        };
        let mut raw = match self.description {
            Ok(text) => builder.description(text.to_owned()).build_raw(),
            Err(hash) => builder.description_hash(sha256::Hash::from_byte_array(hash)).build_raw(),
        }
        .unwrap();
        (raw.hrp.raw_amount, raw.hrp.si_prefix) = self.amount;
        raw.sign(|hash| Ok::<_, ()>(Secp256k1::new().sign_ecdsa_recoverable(hash, &key))).unwrap().to_string()
    }
}

/// The bytes of hexadecimal digits.
pub(crate) fn hex_bytes(text: &str) -> Vec<u8> {
    hex::decode(text).unwrap()
}

/// 32 bytes of hexadecimal digits.
pub(crate) fn hex32(text: &str) -> [u8; 32] {
    hex_bytes(text).try_into().unwrap()
}
