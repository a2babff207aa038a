//! Makes real invoices and tokens for tests: a seller who knows the preimages.

#![allow(dead_code, reason = "each test program uses its own part")]

use std::time::Duration;

use bitcoin::hashes::{Hash as _, sha256};
use bitcoin::secp256k1::{Secp256k1, SecretKey};
use farebox_protocol::{
    Challenge, Identifier, Invoice, Macaroon, Msat, Network, PaymentHash, Preimage, RootKey, Timestamp,
    TokenId,
};
use lightning_invoice::{Currency, InvoiceBuilder, PaymentSecret};

/// What an invoice shall say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draft {
    /// Names the preimage, and so the payment.
    pub(crate) number: u64,
    pub(crate) amount: Option<Msat>,
    pub(crate) network: Network,
    pub(crate) created: Timestamp,
    pub(crate) expiry: Duration,
}

impl Draft {
    /// An invoice over `sat` on the regtest network, good for ten minutes.
    pub(crate) fn new(number: u64, sat: u64, created: Timestamp) -> Self {
        let (amount, expiry) = (Msat::from_sat(sat), Duration::from_secs(600));
        Self { number, amount, network: Network::Regtest, created, expiry }
    }

    pub(crate) fn preimage(&self) -> Preimage {
        Preimage::from_bytes(sha256::Hash::hash(&self.number.to_be_bytes()).to_byte_array())
    }

    pub(crate) fn payment_hash(&self) -> PaymentHash {
        self.preimage().payment_hash()
    }

    pub(crate) fn invoice(&self) -> Invoice {
        let currency = match self.network {
            Network::Mainnet => Currency::Bitcoin,
            Network::Testnet => Currency::BitcoinTestnet,
            Network::Signet => Currency::Signet,
            Network::Regtest => Currency::Regtest,
        };
        let hash = sha256::Hash::from_byte_array(*self.payment_hash().as_bytes());
        let key = SecretKey::from_slice(&[0x11; 32]).unwrap();
        let builder = InvoiceBuilder::new(currency)
            .description("a test".to_owned())
            .payment_hash(hash)
            .payment_secret(PaymentSecret([7; 32]))
            .duration_since_epoch(Duration::from_secs(self.created.secs()))
            .expiry_time(self.expiry)
            .min_final_cltv_expiry_delta(144);
        let sign = |hash: &_| Secp256k1::new().sign_ecdsa_recoverable(hash, &key);
        let invoice = match self.amount {
            Some(amount) => builder.amount_milli_satoshis(amount.get()).build_signed(sign),
            None => builder.build_signed(sign),
        };
        Invoice::parse(&invoice.unwrap().to_string()).unwrap()
    }

    /// A token that commits to this invoice, for `service`.
    pub(crate) fn macaroon(&self, root_key: &RootKey, caveats: &[String]) -> Macaroon {
        let mut token_id = [0; 32];
        token_id[..8].copy_from_slice(&self.number.to_be_bytes());
        let identifier =
            Identifier { payment_hash: self.payment_hash(), token_id: TokenId::from_bytes(token_id) };
        Macaroon::mint(root_key, &identifier, caveats)
    }

    /// Both, as a seller sends them.
    pub(crate) fn challenge(&self, root_key: &RootKey, service: &str) -> Challenge {
        let caveats = if service.is_empty() { vec![] } else { vec![format!("services={service}:0")] };
        Challenge { macaroon: self.macaroon(root_key, &caveats), invoice: self.invoice() }
    }
}
