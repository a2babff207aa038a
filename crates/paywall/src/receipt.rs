//! Receipts: what was paid for one purchase and what has become of it, signed by the seller, to be checked by anybody and
//! without asking anybody.
//!
//! A receipt is a short text, one `name: value` a line in a fixed order, with one spelling for each meaning, so that what is
//! signed is what is read. It names the payment by its hash and holds neither preimage nor token: whoever has the receipt can
//! show that something was paid, and open nothing. It counts the money that the books count, as of the moment at which it was
//! made. Signed with Ed25519 (RFC 8032), by a key that signs nothing else.

use std::{fmt, path::Path, str::FromStr};

use farebox_protocol::{CapabilityName, Msat, Network, Offer, PaymentHash, ServiceName, Timestamp};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};

use crate::{
    keyring::{Secret, SecretFileError, load_or_create_bytes},
    ledger::month::in_units,
    store::{
        accounts::{Account, Unit},
        entry::Entry,
    },
};

mod desk;
mod text;

pub use desk::{KEY_PATH, PATH, ReceiptRefusal, Receipts, not_offered};

/// What a receipt says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Who sold it, in their own words.
    pub seller: Option<SellerName>,
    /// Whose money it is: that of a test network is worth nothing.
    pub network: Network,
    /// The payment.
    pub hash: PaymentHash,
    /// What was bought.
    pub service: ServiceName,
    /// In which tier.
    pub tier: u8,
    /// On which terms.
    pub offer: Offer,
    /// For which price.
    pub price: Msat,
    /// Until when it is good.
    pub valid_until: Option<Timestamp>,
    /// How much of it may be used in a calendar month, as it was sold. Empty, too, where whoever made the receipt had only the
    /// books, which don't say.
    pub monthly: Vec<Monthly>,
    /// All that was paid.
    pub paid: Msat,
    /// In how many payments.
    pub payments: u32,
    /// What of it is beyond the price.
    pub surplus: Msat,
    /// When the first payment came.
    pub settled_at: Timestamp,
    /// What was paid back of it, credit and surplus.
    pub refunded: Msat,
    /// What has become of what was sold in units.
    pub units: Option<Units>,
    /// When the receipt was made: what it says is what was so then.
    pub issued_at: Timestamp,
}

/// A limit by the calendar month (UTC).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Monthly {
    /// Of what.
    pub capability: CapabilityName,
    /// What is counted.
    pub unit: Unit,
    /// How much of that, over all tokens that are made from the one that was bought.
    pub most: u64,
}

/// What has become of units. The rest of what was sold is on its way back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Units {
    /// What they are.
    pub unit: Unit,
    /// How many were bought.
    pub sold: u64,
    /// How many were used.
    pub spent: u64,
    /// How many are left.
    pub left: u64,
}

/// What a seller is called on receipts: one line of up to 100 characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SellerName(String);

/// A text that is no seller's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a seller's name is one line of 1 to 100 characters, without blanks around it")]
pub struct NotAName;

/// Why no receipt can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoReceipt {
    /// No money has come.
    #[error("the node has not told of any money for this purchase yet")]
    Unsettled,
    /// What was bought isn't known.
    #[error(
        "nobody has shown the token for this payment yet, so what it bought is not known; make the receipt once it was used"
    )]
    Unattributed,
}

/// The key that signs receipts.
pub struct ReceiptKey(Ed25519KeyPair);

/// What receipts are checked with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ReceiptPublicKey([u8; 32]);

/// A receipt and who signed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedReceipt {
    receipt: Receipt,
    key: ReceiptPublicKey,
    signature: [u8; 64],
}

/// Why a text is no receipt, or not one by whom it names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiptError {
    /// It doesn't begin as receipts do.
    #[error("this is no receipt: it does not begin with `{first}`", first = text::FIRST)]
    NotAReceipt,
    /// A later version, or nothing of ours.
    #[error("line {line} is not what stands there in a receipt of this version: {want}")]
    Line {
        /// Which line, from 1.
        line: usize,
        /// What should stand there.
        want: &'static str,
    },
    /// It says the same in another spelling than the signed one.
    #[error("the receipt is not spelt as receipts are; it was changed on its way")]
    Spelling,
    /// The signature isn't one of this text by this key.
    #[error("the signature does not hold: the receipt was changed, or `{0}` did not sign it")]
    Signature(ReceiptPublicKey),
    /// Somebody else signed it.
    #[error("signed by `{found}`, not by `{expected}`")]
    OtherKey {
        /// Who signed it.
        found: ReceiptPublicKey,
        /// Who should have.
        expected: ReceiptPublicKey,
    },
}

/// A text that is no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a receipt key is 64 hexadecimal digits, as `farebox receipt key` prints them")]
pub struct NotAKey;

impl Receipt {
    /// What there is to say of a purchase now.
    ///
    /// # Errors
    ///
    /// When nothing was paid, or nobody knows for what.
    pub fn of(
        entry: &Entry,
        network: Network,
        seller: Option<SellerName>,
        now: Timestamp,
    ) -> Result<Self, NoReceipt> {
        let purchase = &entry.purchase;
        let sold = purchase.sold.as_ref().ok_or(NoReceipt::Unattributed)?;
        let settled_at = purchase.settled_at.ok_or(NoReceipt::Unsettled)?;
        Ok(Self {
            seller,
            network,
            hash: purchase.hash,
            service: sold.service.clone(),
            tier: sold.tier,
            offer: sold.terms.offer,
            price: sold.terms.price,
            valid_until: sold.valid_until,
            monthly: Vec::new(),
            paid: purchase.paid,
            payments: purchase.payments,
            surplus: purchase.surplus,
            settled_at,
            refunded: entry.refunded(),
            units: entry.account.as_ref().map(Units::of),
            issued_at: now,
        })
    }

    /// The same of a purchase whose token is limited by the month. The books don't have that: only the token says so.
    pub(crate) fn limited(self, monthly: &[farebox_protocol::caveat::Monthly]) -> Self {
        let known = monthly.iter().filter_map(|limit| {
            let (unit, most) = in_units(limit.most)?;
            Some(Monthly { capability: limit.capability.clone(), unit, most })
        });
        Self { monthly: known.collect(), ..self }
    }

    /// Signs it.
    pub fn sign(self, key: &ReceiptKey) -> SignedReceipt {
        let public = key.public();
        let signature = key.0.sign(text::signed(&self, &public).as_bytes());
        let signature = signature.as_ref().try_into().expect("an Ed25519 signature has 64 bytes");
        SignedReceipt { receipt: self, key: public, signature }
    }
}

impl Units {
    fn of(account: &Account) -> Self {
        let Account { unit, balance, .. } = account;
        Self { unit: *unit, sold: balance.sold(), spent: balance.spent(), left: balance.left() }
    }
}

impl SignedReceipt {
    /// Reads a receipt and checks its signature. Whether the key is the seller's, only the seller can say: hand in the one that
    /// they have published.
    ///
    /// # Errors
    ///
    /// When it is none, was changed, or is signed by somebody else.
    pub fn verify(text: &str, expected: Option<&ReceiptPublicKey>) -> Result<Self, ReceiptError> {
        let read = text::read(text)?;
        let signed = text::signed(&read.receipt, &read.key);
        let key = UnparsedPublicKey::new(&ED25519, read.key.0);
        key.verify(signed.as_bytes(), &read.signature).map_err(|_| ReceiptError::Signature(read.key))?;
        match expected {
            Some(expected) if *expected != read.key => {
                Err(ReceiptError::OtherKey { found: read.key, expected: *expected })
            }
            _ => Ok(read),
        }
    }

    /// What it says.
    pub const fn receipt(&self) -> &Receipt {
        &self.receipt
    }

    /// Who signed it.
    pub const fn key(&self) -> &ReceiptPublicKey {
        &self.key
    }
}

impl fmt::Display for SignedReceipt {
    /// The whole text, with the end of its last line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text::signed(&self.receipt, &self.key))?;
        writeln!(f, "{}: {}", text::SIGNATURE, hex::encode(self.signature))
    }
}

impl ReceiptKey {
    /// Reads the key in this file, or makes a new one there when the file doesn't exist. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// When the file can't be read or made, holds something else, or can be read by others.
    pub fn load_or_create(path: &Path) -> Result<Self, SecretFileError> {
        Ok(Self::from_seed(&*load_or_create_bytes(path, Secret::ReceiptKey)?))
    }

    /// The key made of these bytes, which must be random.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(Ed25519KeyPair::from_seed_unchecked(seed).expect("any 32 bytes are a seed"))
    }

    /// What its receipts are checked with.
    pub fn public(&self) -> ReceiptPublicKey {
        ReceiptPublicKey(self.0.public_key().as_ref().try_into().expect("an Ed25519 key has 32 bytes"))
    }
}

impl fmt::Debug for ReceiptKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReceiptKey({}, secret hidden)", self.public())
    }
}

impl fmt::Display for ReceiptPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for ReceiptPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReceiptPublicKey({self})")
    }
}

impl FromStr for ReceiptPublicKey {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<Self, NotAKey> {
        let mut key = [0; 32];
        hex::decode_to_slice(text.trim_ascii(), &mut key).map_err(|_| NotAKey)?;
        Ok(Self(key))
    }
}

impl SellerName {
    /// As a text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SellerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SellerName {
    type Err = NotAName;

    fn from_str(text: &str) -> Result<Self, NotAName> {
        // `escape_debug` would also change quotes; what it is asked for here is what a terminal or a line might obey.
        let is_plain = |c: char| {
            !c.is_control()
                && !matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        };
        let is_name =
            (1..=100).contains(&text.chars().count()) && text.trim() == text && text.chars().all(is_plain);
        if is_name { Ok(Self(text.to_owned())) } else { Err(NotAName) }
    }
}

#[cfg(test)]
mod tests;
