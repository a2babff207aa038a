//! Fakes for injecting failures: a wallet that lies as wallets have been seen to lie, and a receiver without a network.
//!
//! They stand in for what real nodes do only when something goes wrong. Whether payments work is tested with real ones.

#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bitcoin::{
    hashes::{Hash as _, sha256},
    secp256k1::{Secp256k1, SecretKey},
};
use farebox_lightning::{
    Ask, Cursor, FeeControl, Health, Incoming, Outcome, Pay, PayError, PayFacts, PayRequest, Receive,
    ReceiveError, ReceiveFacts, Settlement, WalletId,
};
use farebox_protocol::{Invoice, Msat, Network, PaymentHash, Preimage, Timestamp};
use futures_util::{
    future::{BoxFuture, FutureExt as _},
    stream::{self, BoxStream, StreamExt as _},
};
use lightning_invoice::{Currency, InvoiceBuilder, PaymentSecret};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

/// The moment at which tests take place.
pub(crate) const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

/// The preimage that `seed` stands for.
pub(crate) fn preimage(seed: u8) -> Preimage {
    Preimage::from_bytes([seed; 32])
}

/// A signed regtest invoice for ten satoshi over `preimage(seed)`, good for an hour from [`NOW`].
pub(crate) fn invoice(seed: u8) -> Invoice {
    Made { preimage: preimage(seed), ..Made::default() }.invoice()
}

/// What an invoice made on the spot says.
pub(crate) struct Made {
    pub(crate) preimage: Preimage,
    pub(crate) amount: Option<Msat>,
    pub(crate) network: Currency,
    pub(crate) created: Timestamp,
    pub(crate) expiry: Duration,
    pub(crate) description: String,
}

impl Default for Made {
    fn default() -> Self {
        Self {
            preimage: preimage(7),
            amount: Some(Msat::new(10_000)),
            network: Currency::Regtest,
            created: NOW,
            expiry: Duration::from_secs(3_600),
            description: "weather".to_owned(),
        }
    }
}

impl Made {
    pub(crate) fn invoice(self) -> Invoice {
        let key = SecretKey::from_slice(&[0x41; 32]).unwrap();
        let builder = InvoiceBuilder::new(self.network)
            .description(self.description)
            .payment_hash(sha256::Hash::from_byte_array(*self.preimage.payment_hash().as_bytes()))
            .duration_since_epoch(Duration::from_secs(self.created.secs()))
            .min_final_cltv_expiry_delta(18)
            .expiry_time(self.expiry)
            .payment_secret(PaymentSecret([0x42; 32]));
        let builder = match self.amount {
            Some(amount) => builder.amount_milli_satoshis(amount.get()),
            None => builder,
        };
        let raw = builder.build_raw().unwrap();
        let signed = raw.sign(|hash| Ok::<_, ()>(Secp256k1::new().sign_ecdsa_recoverable(hash, &key)));
        signed.unwrap().to_string().parse().unwrap()
    }
}

/// A request to pay `invoice(seed)`.
pub(crate) fn request(seed: u8) -> PayRequest {
    PayRequest { invoice: invoice(seed), fee_max: Msat::new(5_000), timeout: Duration::from_secs(30) }
}

/// The hash of `invoice(seed)`.
pub(crate) fn hash(seed: u8) -> PaymentHash {
    preimage(seed).payment_hash()
}

/// What a lying wallet says.
#[derive(Clone, Debug)]
pub(crate) enum Say {
    Settled,
    WrongPreimage,
    Failed,
    InFlight,
    NotFound,
    Error,
    Panic,
    /// Nothing, until [`LyingWallet::go_on`]; then `Settled`.
    Hang,
}

/// A wallet that says what it was told to say.
pub(crate) struct LyingWallet {
    pub(crate) facts: Mutex<PayFacts>,
    pay: Mutex<VecDeque<Say>>,
    lookup: Mutex<VecDeque<Say>>,
    preimages: HashMap<PaymentHash, Preimage>,
    asked: Mutex<Vec<PayRequest>>,
    looked: watch::Sender<usize>,
    go_on: Notify,
    pub(crate) asked_now: Notify,
}

pub(crate) fn facts() -> PayFacts {
    PayFacts {
        wallet: WalletId("lying".to_owned()),
        network: Network::Regtest,
        proves_unsent: false,
        refuses_paid_hash: false,
        fee_control: FeeControl::Exact,
    }
}

impl LyingWallet {
    /// Says these things in turn when it's asked to pay or to look up; the last one for ever.
    pub(crate) fn new(pay: &[Say], lookup: &[Say]) -> Arc<Self> {
        Arc::new(Self {
            facts: Mutex::new(facts()),
            pay: Mutex::new(pay.iter().cloned().collect()),
            lookup: Mutex::new(lookup.iter().cloned().collect()),
            preimages: (0..=255).map(|seed| (hash(seed), preimage(seed))).collect(),
            asked: Mutex::default(),
            looked: watch::Sender::new(0),
            go_on: Notify::new(),
            asked_now: Notify::new(),
        })
    }

    pub(crate) fn with(self: Arc<Self>, change: impl FnOnce(&mut PayFacts)) -> Arc<Self> {
        change(&mut self.facts.lock());
        self
    }

    pub(crate) fn go_on(&self) {
        self.go_on.notify_one();
    }

    /// How often it has been asked to pay.
    pub(crate) fn asked(&self) -> usize {
        self.asked.lock().len()
    }

    /// What it was asked to pay last.
    pub(crate) fn last_asked(&self) -> PayRequest {
        self.asked.lock().last().cloned().expect("asked at least once")
    }

    pub(crate) fn looked_up(&self) -> usize {
        *self.looked.borrow()
    }

    async fn say(&self, say: Say, hash: PaymentHash) -> Result<Outcome, PayError> {
        let preimage = self.preimages.get(&hash).cloned().unwrap_or_else(|| preimage(0));
        let settled = Outcome::Settled { preimage, fee: Msat::new(7) };
        match say {
            Say::Settled => Ok(settled),
            Say::Hang => {
                self.go_on.notified().await;
                Ok(settled)
            }
            Say::WrongPreimage => {
                Ok(Outcome::Settled { preimage: Preimage::from_bytes([0; 32]), fee: Msat::ZERO })
            }
            Say::Failed => Ok(Outcome::Failed("no route".to_owned())),
            Say::InFlight => Ok(Outcome::InFlight),
            Say::NotFound => Ok(Outcome::NotFound),
            Say::Error => Err(PayError::Unavailable("the connection broke".to_owned())),
            Say::Panic => panic!("a wallet that panics, as this test wants it"),
        }
    }
}

fn next(queue: &Mutex<VecDeque<Say>>) -> Say {
    let mut queue = queue.lock();
    if queue.len() > 1 { queue.pop_front() } else { queue.front().cloned() }
        .expect("the test said what to say")
}

impl Pay for LyingWallet {
    fn facts(&self) -> PayFacts {
        self.facts.lock().clone()
    }

    fn pay(&self, request: PayRequest) -> BoxFuture<'_, Result<Outcome, PayError>> {
        async move {
            let hash = request.invoice.payment_hash();
            self.asked.lock().push(request);
            self.asked_now.notify_one();
            let say = next(&self.pay);
            self.say(say, hash).await
        }
        .boxed()
    }

    fn lookup(&self, hash: PaymentHash) -> BoxFuture<'_, Result<Outcome, PayError>> {
        async move {
            self.looked.send_modify(|looked| *looked += 1);
            let say = next(&self.lookup);
            self.say(say, hash).await
        }
        .boxed()
    }

    fn balance(&self) -> BoxFuture<'_, Result<Msat, PayError>> {
        async { Ok(Msat::new(123_456_789)) }.boxed()
    }
}

/// A receiver that is paid by calling [`FakeReceiver::settle`].
pub(crate) struct FakeReceiver {
    made: Mutex<u8>,
    settled: watch::Sender<BTreeMap<u64, Settlement>>,
    pub(crate) health: Mutex<Health>,
    pub(crate) asked: Mutex<Vec<Ask>>,
}

impl FakeReceiver {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            made: Mutex::new(0),
            settled: watch::Sender::new(BTreeMap::new()),
            health: Mutex::new(Health::Ready),
            asked: Mutex::default(),
        })
    }

    /// The node has received `amount` for `hash`.
    pub(crate) fn settle(&self, hash: PaymentHash, amount: Msat, at: Timestamp) {
        self.settled.send_modify(|settled| {
            let cursor = settled.keys().next_back().map_or(1, |last| last + 1);
            settled
                .insert(cursor, Settlement { cursor: Cursor(cursor), hash, amount, at, description: None });
        });
    }
}

impl Receive for FakeReceiver {
    fn facts(&self) -> Option<ReceiveFacts> {
        Some(ReceiveFacts {
            network: Network::Regtest,
            node: "02fake/book".to_owned(),
            grace: Duration::from_secs(60),
            granularity: Msat::new(1),
            is_shared: false,
        })
    }

    fn invoice(&self, ask: Ask) -> BoxFuture<'_, Result<Invoice, ReceiveError>> {
        async move {
            if let Health::Down(why) = &*self.health.lock() {
                return Err(ReceiveError::Unavailable(why.clone()));
            }
            self.asked.lock().push(ask.clone());
            let mut made = self.made.lock();
            *made += 1;
            let made = Made {
                preimage: preimage(*made),
                amount: Some(ask.amount),
                expiry: ask.expiry,
                description: ask.description,
                ..Made::default()
            };
            Ok(made.invoice())
        }
        .boxed()
    }

    fn lookup(&self, hash: PaymentHash) -> BoxFuture<'_, Result<Incoming, ReceiveError>> {
        let settled = self.settled.borrow().values().find(|settled| settled.hash == hash).cloned();
        let incoming = settled
            .map_or(Incoming::Unpaid, |settled| Incoming::Settled { amount: settled.amount, at: settled.at });
        async { Ok(incoming) }.boxed()
    }

    fn settlements(&self, after: Cursor) -> BoxStream<'_, Result<Settlement, ReceiveError>> {
        stream::unfold((self.settled.subscribe(), after), |(mut settled, after)| async move {
            let is_next = |cursor: &u64| *cursor > after.0;
            let next = {
                let all = settled.wait_for(|all| all.keys().any(is_next)).await.ok()?;
                all.values().find(|settlement| is_next(&settlement.cursor.0))?.clone()
            };
            let after = next.cursor;
            Some((Ok(next), (settled, after)))
        })
        .boxed()
    }

    fn health(&self) -> Health {
        self.health.lock().clone()
    }
}
