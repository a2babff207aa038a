//! A BOLT11 invoice that has been read and whose signature holds.
//!
//! `lightning-invoice` does the parsing; this type keeps what farebox asks about and closes the gaps in which one text
//! means two things: an amount that overflows (which the library reports as "no amount"), an amount of zero, a network
//! that nobody sells on. It knows nothing of who made the invoice or whether it is paid.

use std::{fmt, str::FromStr, sync::Arc};

use lightning_invoice::{
    Bolt11Invoice, Bolt11InvoiceDescriptionRef, Currency, MAX_LENGTH, SignedRawBolt11Invoice,
};

use crate::{Msat, Network, PaymentHash, Timestamp};

/// A BOLT11 invoice, signature checked. Cheap to clone; equal when the text is.
#[derive(Clone)]
pub struct Invoice(Arc<Parsed>);

struct Parsed {
    text: String,
    amount: Option<Msat>,
    network: Network,
    bolt11: Bolt11Invoice,
}

/// Why a text is not an invoice that farebox works with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvoiceError {
    /// Longer than any wallet reads.
    #[error("the invoice has {0} bytes, more than the {MAX_LENGTH} that wallets read")]
    TooLong(usize),
    /// Not BOLT11 at all, or damaged.
    #[error("not a BOLT11 invoice: {0}")]
    Malformed(String),
    /// The signature or a required field is wrong.
    #[error("a BOLT11 invoice that breaks the rules: {0}")]
    Invalid(String),
    /// The amount is zero, overflows, or exceeds all the bitcoin there are.
    #[error("the invoice's amount is zero or more than the bitcoin there are")]
    AbsurdAmount,
    /// The invoice is for a network that farebox doesn't know (simnet).
    #[error("the invoice is for a network that is none of mainnet, testnet, signet and regtest")]
    UnknownNetwork,
}

impl Invoice {
    /// Reads an invoice of either case. Nothing may surround it, not even a space.
    pub fn parse(text: &str) -> Result<Self, InvoiceError> {
        if text.len() > MAX_LENGTH {
            return Err(InvoiceError::TooLong(text.len()));
        }
        let signed: SignedRawBolt11Invoice =
            text.parse().map_err(|error| InvoiceError::Malformed(format!("{error}")))?;
        let written = signed.raw_invoice().hrp.raw_amount.is_some();
        let bolt11 =
            Bolt11Invoice::from_signed(signed).map_err(|error| InvoiceError::Invalid(format!("{error}")))?;
        let amount = bolt11.amount_milli_satoshis().map(Msat::new);
        // The library answers `None` for an amount that overflows; another wallet may read it as the amount it says.
        if amount.is_some() != written
            || amount.is_some_and(|amount| amount == Msat::ZERO || amount > Msat::MAX)
        {
            return Err(InvoiceError::AbsurdAmount);
        }
        let network = match bolt11.currency() {
            Currency::Bitcoin => Network::Mainnet,
            Currency::BitcoinTestnet => Network::Testnet,
            Currency::Signet => Network::Signet,
            Currency::Regtest => Network::Regtest,
            Currency::Simnet => return Err(InvoiceError::UnknownNetwork),
        };
        Ok(Self(Arc::new(Parsed { text: text.to_ascii_lowercase(), amount, network, bolt11 })))
    }

    /// The amount to pay; `None` when the payer is to choose. Never zero.
    pub fn amount(&self) -> Option<Msat> {
        self.0.amount
    }

    /// What paying it reveals the preimage of.
    pub fn payment_hash(&self) -> PaymentHash {
        PaymentHash::from_bytes(*self.0.bolt11.payment_hash().as_ref())
    }

    /// The network it can be paid on.
    pub fn network(&self) -> Network {
        self.0.network
    }

    /// When it was made, by its maker's clock.
    pub fn created_at(&self) -> Timestamp {
        Timestamp::from_secs(self.0.bolt11.duration_since_epoch().as_secs())
    }

    /// The first moment at which it is too late to pay.
    pub fn expires_at(&self) -> Timestamp {
        self.created_at().saturating_add(self.0.bolt11.expiry_time())
    }

    /// Whether it is too late to pay at `now`.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        now >= self.expires_at()
    }

    /// The payee's node id, 66 hexadecimal digits. Costs a key recovery where the invoice doesn't state it.
    pub fn payee(&self) -> String {
        self.0.bolt11.get_payee_pub_key().to_string()
    }

    /// What it is for, when written out; `None` when the invoice holds a hash of the description only. A stranger's words.
    pub fn description(&self) -> Option<String> {
        match self.0.bolt11.description() {
            Bolt11InvoiceDescriptionRef::Direct(text) => Some(text.as_inner().0.clone()),
            Bolt11InvoiceDescriptionRef::Hash(_) => None,
        }
    }

    /// The text, in lower case.
    pub fn as_str(&self) -> &str {
        &self.0.text
    }
}

impl fmt::Display for Invoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Invoice {
    /// Only what a log may hold: the description is the customer's business.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invoice")
            .field("payment_hash", &self.payment_hash())
            .field("amount", &self.amount())
            .field("network", &self.network())
            .finish_non_exhaustive()
    }
}

impl PartialEq for Invoice {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Invoice {}

impl FromStr for Invoice {
    type Err = InvoiceError;

    fn from_str(text: &str) -> Result<Self, InvoiceError> {
        Self::parse(text)
    }
}
