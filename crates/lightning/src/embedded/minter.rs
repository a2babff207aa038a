//! Invoices that cost nothing until they are paid.
//!
//! LDK keeps nothing of an invoice that it made: amount, expiry and a random part are sealed in the payment secret, and the
//! preimage is recomputed from that under a key of the node's seed when a payment comes. `ldk-node`'s own `receive()` adds a
//! record for each, kept for ever; a flood of unpaid challenges would fill disk and memory. So we mint with LDK's own
//! function and the same keys. No running node is needed: whoever has the seed can mint, and everything else too.

use std::fmt;
use std::time::Duration;

use farebox_protocol::{Invoice, Network, Timestamp};
use lightning::bitcoin;
use lightning::bitcoin::bip32::Xpriv;
use lightning::bitcoin::secp256k1::PublicKey;
use lightning::ln::channelmanager::MIN_FINAL_CLTV_EXPIRY_DELTA;
use lightning::ln::inbound_payment::{self, ExpandedKey};
use lightning::sign::{EntropySource, KeysManager, NodeSigner, Recipient};
use lightning_invoice::{Currency, InvoiceBuilder};
use parking_lot::RwLock;

use super::hints::Hints;
use crate::{Ask, ReceiveError};

/// Mints invoices for the node of one seed.
pub struct Minter {
    network: Network,
    keys: KeysManager,
    inbound: ExpandedKey,
    node_id: PublicKey,
    hints: RwLock<Hints>,
}

impl Minter {
    /// For the node that `ldk-node` makes of this seed; `None` for a seed that yields no key, which chance never gives.
    pub fn new(seed: &[u8; 64], network: Network) -> Option<Self> {
        let master = Xpriv::new_master(bitcoin_network(network), seed).ok()?;
        // The two numbers make LDK's random bytes differ between runs. We draw ours from the operating system instead, so
        // that two minters of one seed never make the same invoice.
        let keys = KeysManager::new(&master.private_key.secret_bytes(), 0, 0, true);
        let inbound = keys.get_expanded_key();
        let node_id = keys.get_node_id(Recipient::Node).ok()?;
        Some(Self { network, keys, inbound, node_id, hints: RwLock::default() })
    }

    /// The node that can be paid with these invoices.
    pub fn node_id(&self) -> PublicKey {
        self.node_id
    }

    /// The network that the invoices are for.
    pub fn network(&self) -> Network {
        self.network
    }

    /// A new invoice, checked: reading the text again proves amount, expiry, network and signature.
    pub fn mint(&self, ask: &Ask, now: Timestamp) -> Result<Invoice, ReceiveError> {
        let text = self.mint_text(ask, now)?;
        Invoice::parse(&text).map_err(|error| ReceiveError::Wrong(error.to_string()))
    }

    /// The text of a new invoice, unchecked: twice as fast, for whoever hands it on to somebody who will read it.
    pub fn mint_text(&self, ask: &Ask, now: Timestamp) -> Result<String, ReceiveError> {
        let invalid = |what: &str| ReceiveError::Invalid(what.to_owned());
        let msat = ask.amount.get();
        if msat == 0 {
            return Err(invalid("the amount is zero"));
        }
        let secs = ask.expiry.as_secs().saturating_add(u64::from(ask.expiry.subsec_nanos() > 0));
        let expiry = u32::try_from(secs).map_err(|_| invalid("the expiry is more than a century away"))?;
        if expiry == 0 {
            return Err(invalid("the expiry is zero"));
        }
        let (hash, secret) =
            inbound_payment::create(&self.inbound, Some(msat), expiry, &&SystemEntropy, now.secs(), None)
                .map_err(|()| {
                    invalid("the amount is more than there are bitcoin, or the expiry too far away")
                })?;
        let mut builder = InvoiceBuilder::new(currency(self.network))
            .description(ask.description.clone())
            .duration_since_epoch(Duration::from_secs(now.secs()))
            .payee_pub_key(self.node_id)
            .payment_hash(bitcoin::hashes::Hash::from_byte_array(hash.0))
            .payment_secret(secret)
            .basic_mpp()
            .min_final_cltv_expiry_delta(u64::from(MIN_FINAL_CLTV_EXPIRY_DELTA))
            .expiry_time(Duration::from_secs(u64::from(expiry)))
            .amount_milli_satoshis(msat);
        for hint in self.hints.read().for_amount(msat) {
            builder = builder.private_route(hint);
        }
        let raw = builder.build_raw().map_err(|error| invalid(&error.to_string()))?;
        let signature = self.keys.sign_invoice(&raw, Recipient::Node);
        let signed = raw.sign(|_| signature).map_err(|()| invalid("it can't be signed"))?;
        Ok(signed.to_string())
    }

    pub(super) fn set_hints(&self, hints: Hints) {
        *self.hints.write() = hints;
    }
}

impl fmt::Debug for Minter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Minter").field("network", &self.network).finish_non_exhaustive()
    }
}

/// Randomness of the operating system.
struct SystemEntropy;

impl EntropySource for SystemEntropy {
    fn get_secure_random_bytes(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).expect("the operating system gives randomness");
        bytes
    }
}

pub(super) fn bitcoin_network(network: Network) -> bitcoin::Network {
    match network {
        Network::Mainnet => bitcoin::Network::Bitcoin,
        Network::Testnet => bitcoin::Network::Testnet,
        Network::Signet => bitcoin::Network::Signet,
        Network::Regtest => bitcoin::Network::Regtest,
    }
}

fn currency(network: Network) -> Currency {
    match network {
        Network::Mainnet => Currency::Bitcoin,
        Network::Testnet => Currency::BitcoinTestnet,
        Network::Signet => Currency::Signet,
        Network::Regtest => Currency::Regtest,
    }
}

#[cfg(test)]
mod tests {
    use farebox_protocol::Msat;

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

    fn minter(network: Network) -> Minter {
        Minter::new(&[7; 64], network).unwrap()
    }

    fn ask(msat: u64) -> Ask {
        Ask { amount: Msat::new(msat), expiry: Duration::from_secs(600), description: "weather".into() }
    }

    #[test]
    fn an_invoice_says_what_was_asked() {
        for network in [Network::Mainnet, Network::Testnet, Network::Signet, Network::Regtest] {
            let minter = minter(network);
            let invoice = minter.mint(&ask(1_500), NOW).unwrap();
            assert_eq!(invoice.amount(), Some(Msat::new(1_500)));
            assert_eq!(invoice.network(), network);
            assert_eq!(invoice.created_at(), NOW);
            assert_eq!(invoice.expires_at(), Timestamp::from_secs(1_700_000_600));
            assert_eq!(invoice.description().as_deref(), Some("weather"));
            assert_eq!(invoice.payee(), minter.node_id().to_string());
        }
    }

    #[test]
    fn two_minters_of_one_seed_never_make_the_same_invoice() {
        let invoices =
            [minter(Network::Regtest), minter(Network::Regtest)].map(|m| m.mint(&ask(1), NOW).unwrap());
        assert_ne!(invoices[0].payment_hash(), invoices[1].payment_hash());
    }

    #[test]
    fn part_of_a_second_counts_as_a_whole_one() {
        let ask = Ask { expiry: Duration::from_millis(1_500), ..ask(1) };
        let invoice = minter(Network::Regtest).mint(&ask, NOW).unwrap();
        assert_eq!(invoice.expires_at(), Timestamp::from_secs(1_700_000_002));
    }

    #[track_caller]
    fn check_refused(ask: &Ask, want: &str) {
        let error = minter(Network::Regtest).mint(ask, NOW).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot make this invoice: {want}"));
    }

    #[test]
    fn what_no_wallet_could_pay_is_refused() {
        check_refused(&ask(0), "the amount is zero");
        check_refused(
            &ask(u64::MAX),
            "the amount is more than there are bitcoin, or the expiry too far away",
        );
        check_refused(&Ask { expiry: Duration::ZERO, ..ask(1) }, "the expiry is zero");
        check_refused(&Ask { expiry: Duration::MAX, ..ask(1) }, "the expiry is more than a century away");
        let long = Ask { description: "x".repeat(640), ..ask(1) };
        assert!(matches!(minter(Network::Regtest).mint(&long, NOW), Err(ReceiveError::Invalid(_))));
    }

    #[test]
    fn a_minter_never_shows_its_keys() {
        assert_eq!(format!("{:?}", minter(Network::Regtest)), "Minter { network: Regtest, .. }");
    }
}
