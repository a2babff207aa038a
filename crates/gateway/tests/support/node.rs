//! The double of a Lightning node.

use std::{
    collections::HashMap,
    pin::pin,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bitcoin::{
    hashes::Hash,
    secp256k1::{Secp256k1, SecretKey},
};
use farebox_lightning::{
    Ask, Cursor, FeeControl, Health, Incoming, PayFacts, Receive, ReceiveError, ReceiveFacts, Settlement,
    WalletId,
};
use farebox_protocol::{Invoice, Msat, Network, PaymentHash, Preimage};
use futures_util::{
    future::BoxFuture,
    stream::{self, BoxStream, StreamExt},
};
use lightning_invoice::{Currency, InvoiceBuilder, PaymentSecret};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// How the node feels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    #[default]
    Well,
    Down,
    /// Asked for an invoice, it panics: a defect to test against.
    Panicking,
}

/// Signs invoices and remembers their preimages.
#[derive(Default)]
pub struct Node {
    pub mood: Mutex<Mood>,
    made: AtomicU64,
    preimages: Mutex<HashMap<PaymentHash, Preimage>>,
    settled: Mutex<Vec<Settlement>>,
    news: Notify,
}

impl Node {
    /// What paying reveals.
    pub fn pay(&self, hash: &PaymentHash) -> Preimage {
        self.preimages.lock()[hash].clone()
    }

    /// The money arrives, for who follows this node.
    pub fn settle(&self, hash: &PaymentHash, msat: u64) {
        let mut settled = self.settled.lock();
        let cursor = Cursor(settled.len() as u64 + 1);
        let at = farebox_protocol::Timestamp::from_secs(now().as_secs());
        settled.push(Settlement { cursor, hash: *hash, amount: Msat::new(msat), at, description: None });
        self.news.notify_waiters();
    }

    /// One whose invoices begin with this number, so that no other node makes the same.
    pub fn numbered_from(first: u64) -> Self {
        Self { made: AtomicU64::new(first), ..Self::default() }
    }

    /// How many invoices were made.
    pub fn made(&self) -> u64 {
        self.made.load(Ordering::SeqCst)
    }

    fn sign(&self, ask: &Ask) -> Invoice {
        let number = self.made.fetch_add(1, Ordering::SeqCst);
        let mut bytes = [0x5a; 32];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        let preimage = Preimage::from_bytes(bytes);
        let hash = preimage.payment_hash();
        self.preimages.lock().insert(hash, preimage);

        let secp = Secp256k1::new();
        let key = SecretKey::from_slice(&[9; 32]).unwrap();
        let text = InvoiceBuilder::new(Currency::Regtest)
            .description(ask.description.clone())
            .payment_hash(bitcoin::hashes::sha256::Hash::from_byte_array(*hash.as_bytes()))
            .payment_secret(PaymentSecret([3; 32]))
            .duration_since_epoch(now())
            .expiry_time(ask.expiry)
            .min_final_cltv_expiry_delta(18)
            .amount_milli_satoshis(ask.amount.get())
            .build_signed(|message| secp.sign_ecdsa_recoverable(message, &key))
            .unwrap()
            .to_string();
        text.parse().unwrap()
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the double of a node is a world of its own, with its own clock"
)]
fn now() -> Duration {
    Duration::from_secs(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs())
}

/// What the double of a wallet states: all that can be proved, so that nothing is held back for its sake.
pub fn of_a_wallet() -> PayFacts {
    PayFacts {
        wallet: WalletId("double".to_owned()),
        network: Network::Regtest,
        proves_unsent: true,
        refuses_paid_hash: true,
        fee_control: FeeControl::Exact,
    }
}

impl Receive for Node {
    fn facts(&self) -> Option<ReceiveFacts> {
        Some(ReceiveFacts {
            network: Network::Regtest,
            node: "double".to_owned(),
            grace: Duration::ZERO,
            granularity: Msat::new(1),
            is_shared: false,
        })
    }

    fn invoice(&self, ask: Ask) -> BoxFuture<'_, Result<Invoice, ReceiveError>> {
        Box::pin(async move {
            let mood = *self.mood.lock();
            match mood {
                Mood::Well => Ok(self.sign(&ask)),
                Mood::Down => Err(ReceiveError::Unavailable("out to lunch".to_owned())),
                Mood::Panicking => panic!("a defect, on purpose"),
            }
        })
    }

    fn lookup(&self, _: PaymentHash) -> BoxFuture<'_, Result<Incoming, ReceiveError>> {
        Box::pin(async { Ok(Incoming::Unpaid) })
    }

    fn settlements(&self, after: Cursor) -> BoxStream<'_, Result<Settlement, ReceiveError>> {
        let next = usize::try_from(after.0).unwrap();
        let tell = move |next| async move {
            loop {
                let mut news = pin!(self.news.notified());
                news.as_mut().enable();
                let told = self.settled.lock().get(next).cloned();
                match told {
                    Some(told) => return Some((Ok(told), next + 1)),
                    None => news.await,
                }
            }
        };
        stream::unfold(next, tell).boxed()
    }

    fn health(&self) -> Health {
        match *self.mood.lock() {
            Mood::Down => Health::Down("out to lunch".to_owned()),
            Mood::Well | Mood::Panicking => Health::Ready,
        }
    }
}
