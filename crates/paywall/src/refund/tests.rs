//! Refunds over real books, with a wallet that does as it is told. Real nodes pay money back in the workspace's own tests.

use std::{collections::HashMap, num::NonZeroU64, sync::Arc};

use bitcoin::{
    hashes::{Hash as _, sha256},
    secp256k1::{Secp256k1, SecretKey},
};
use farebox_lightning::{
    Cursor, FeeControl, Outcome, PayError, PayFacts, PayRequest, Settlement, WalletId, clock::ManualClock,
};
use farebox_protocol::{Identifier, Macaroon, Network, Offer, Preimage, Sale, Terms, Timestamp, TokenId};
use futures_util::future::BoxFuture;
use http::{HeaderValue, Method, StatusCode, header};
use lightning_invoice::{Currency, InvoiceBuilder, PaymentSecret};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{runtime::Runtime, sync::Notify};

use super::*;
use crate::{
    Keyring, PaywallConfig,
    ledger::law::Balance,
    store::{
        Arrival, Store,
        accounts::{Accounts, Allotment},
        sqlite::SqliteStore,
    },
    testing::{Node, START, secret},
};

mod cut_off;
mod older;
mod orphans;
mod races;
mod rules;
mod words;

/// What a payment does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    /// Arrives, for this fee in msat.
    Pays(u64),
    /// Certainly doesn't.
    Fails,
    /// The wallet has sent it and answers nothing.
    Hangs,
    /// The wallet answers nonsense, and has sent it.
    Unclear,
}

struct Wallet {
    mood: Mutex<Mood>,
    asked: Mutex<Vec<PayRequest>>,
    known: Mutex<HashMap<PaymentHash, Outcome>>,
    fee_control: Mutex<FeeControl>,
    /// Can't prove that it never heard of a payment, and would pay one twice.
    is_plain: Mutex<bool>,
    name: Mutex<&'static str>,
    /// Answers no look-up.
    is_silent: Mutex<bool>,
    sent: Notify,
}

impl Wallet {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            mood: Mutex::new(Mood::Pays(0)),
            asked: Mutex::default(),
            known: Mutex::default(),
            fee_control: Mutex::new(FeeControl::Exact),
            is_plain: Mutex::new(false),
            name: Mutex::new("wallet"),
            is_silent: Mutex::new(false),
            sent: Notify::new(),
        })
    }

    fn paid(&self) -> usize {
        self.asked.lock().len()
    }

    /// What a look-up says of a payment from now on.
    fn know(&self, hash: PaymentHash, outcome: Outcome) {
        self.known.lock().insert(hash, outcome);
    }
}

impl Pay for Wallet {
    fn facts(&self) -> PayFacts {
        let is_plain = *self.is_plain.lock();
        PayFacts {
            wallet: WalletId((*self.name.lock()).to_owned()),
            network: Network::Regtest,
            proves_unsent: !is_plain,
            refuses_paid_hash: !is_plain,
            fee_control: self.fee_control.lock().clone(),
        }
    }

    fn pay(&self, request: PayRequest) -> BoxFuture<'_, Result<Outcome, PayError>> {
        let hash = request.invoice.payment_hash();
        self.asked.lock().push(request);
        let mood = *self.mood.lock();
        let outcome = match mood {
            Mood::Pays(fee) => Outcome::Settled { preimage: proof(&hash), fee: Msat::new(fee) },
            Mood::Fails => Outcome::Failed("no route".to_owned()),
            Mood::Hangs | Mood::Unclear => Outcome::InFlight,
        };
        self.know(hash, outcome.clone());
        self.sent.notify_one();
        Box::pin(async move {
            match mood {
                Mood::Hangs => std::future::pending().await,
                Mood::Unclear => Err(PayError::Wrong("nonsense".to_owned())),
                Mood::Pays(_) | Mood::Fails => Ok(outcome),
            }
        })
    }

    fn lookup(&self, hash: PaymentHash) -> BoxFuture<'_, Result<Outcome, PayError>> {
        let known = self.known.lock().get(&hash).cloned();
        let is_silent = *self.is_silent.lock();
        Box::pin(async move {
            match is_silent {
                true => Err(PayError::Wrong("nonsense".to_owned())),
                false => Ok(known.unwrap_or(Outcome::NotFound)),
            }
        })
    }

    fn balance(&self) -> BoxFuture<'_, Result<Msat, PayError>> {
        Box::pin(async { Ok(Msat::MAX) })
    }
}

/// The buyer's preimages are their numbers, so that a proof can be found for every hash.
fn proof(hash: &PaymentHash) -> Preimage {
    (0..=255).map(|number| Preimage::from_bytes([number; 32])).find(|proof| proof.pays(hash)).unwrap()
}

/// The buyer's invoice.
#[derive(Clone)]
struct Bill {
    number: u8,
    msat: Option<u64>,
    currency: Currency,
    made_at: u64,
    key: u8,
}

impl Bill {
    fn new(number: u8, msat: u64) -> Self {
        Self { number, msat: Some(msat), currency: Currency::Regtest, made_at: START.secs(), key: 0x22 }
    }

    fn text(self) -> String {
        let key = SecretKey::from_slice(&[self.key; 32]).unwrap();
        let hash = Preimage::from_bytes([self.number; 32]).payment_hash();
        let builder = InvoiceBuilder::new(self.currency)
            .description("back to me".to_owned())
            .payment_hash(sha256::Hash::from_byte_array(*hash.as_bytes()))
            .payment_secret(PaymentSecret([3; 32]))
            .duration_since_epoch(Duration::from_secs(self.made_at))
            .expiry_time(Duration::from_secs(600))
            .min_final_cltv_expiry_delta(18);
        let builder = match self.msat {
            Some(msat) => builder.amount_milli_satoshis(msat),
            None => builder,
        };
        builder
            .build_signed(|message| Secp256k1::signing_only().sign_ecdsa_recoverable(message, &key))
            .unwrap()
            .to_string()
    }
}

/// Gives one invoice for every address.
struct Addresses(Mutex<u8>);

impl Resolve for Addresses {
    fn invoice<'a>(
        &'a self,
        _: &'a LightningAddress,
        amount: Msat,
    ) -> BoxFuture<'a, Result<Invoice, AddressError>> {
        let mut number = self.0.lock();
        *number += 1;
        let text = Bill::new(*number, amount.get()).text();
        Box::pin(async move { Ok(Invoice::parse(&text).unwrap()) })
    }
}

/// What outlives a process.
struct Disk {
    dir: TempDir,
    store: Arc<SqliteStore>,
    clock: Arc<ManualClock>,
    wallet: Arc<Wallet>,
    settled: Mutex<u64>,
}

/// One process.
struct Desk {
    disk: Arc<Disk>,
    paywall: Arc<Paywall>,
    refunds: Arc<Refunds>,
}

impl Disk {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            dir: tempfile::tempdir().unwrap(),
            store: Arc::new(SqliteStore::in_memory().unwrap()),
            clock: Arc::new(ManualClock::new(START)),
            wallet: Wallet::new(),
            settled: Mutex::new(0),
        })
    }

    /// Another machine with the same journal, wallet and clock.
    fn copy_of(disk: &Self) -> Arc<Self> {
        let dir = tempfile::tempdir().unwrap();
        let from = rusqlite::Connection::open(disk.dir.path().join("refunds.sqlite")).unwrap();
        let to = dir.path().join("refunds.sqlite");
        from.execute("VACUUM INTO ?1", [to.to_str().unwrap()]).unwrap();
        let (store, clock, wallet) = (disk.store.clone(), disk.clock.clone(), disk.wallet.clone());
        Arc::new(Self { dir, store, clock, wallet, settled: Mutex::new(0) })
    }

    /// A process that hasn't got its wallet yet.
    async fn start(self: &Arc<Self>, daily_max: u64) -> Desk {
        self.start_as("02aa", daily_max).await
    }

    /// The same, paid through this node.
    async fn start_as(self: &Arc<Self>, node: &'static str, daily_max: u64) -> Desk {
        self.start_over(node, daily_max, self.store.clone(), Arc::new(Addresses(Mutex::new(100)))).await
    }

    /// The same over these books, asking there for invoices.
    async fn start_over<S: Store + Accounts + 'static>(
        self: &Arc<Self>,
        node: &'static str,
        daily_max: u64,
        store: Arc<S>,
        resolver: Arc<dyn Resolve>,
    ) -> Desk {
        let node = Arc::new(Node::new(Arc::clone(&self.clock), node));
        let clock = self.clock.clone();
        let keyring = Keyring::single(secret());
        let config = PaywallConfig::new(Network::Regtest);
        let paywall = Paywall::open(config, keyring, node, store, clock.clone()).await.unwrap();
        let config = RefundConfig {
            // Only tests of payments that don't end wait for as long.
            answer_within: Duration::from_secs(1),
            ..RefundConfig::new(Msat::new(daily_max))
        };
        let path = self.dir.path().join("refunds.sqlite");
        let refunds = Refunds::open(&path, paywall.clone(), resolver, clock, config).unwrap();
        Desk { disk: Arc::clone(self), paywall, refunds }
    }

    /// One that pays.
    async fn open(self: &Arc<Self>) -> Desk {
        let desk = self.start(1_000_000_000).await;
        desk.refunds.pay_from(self.wallet.clone()).await.unwrap();
        desk
    }

    async fn balance(&self, token: &Token) -> Balance {
        Accounts::account(&*self.store, token.hash()).await.unwrap().unwrap().balance
    }
}

/// Something that was sold.
struct Token {
    macaroon: Macaroon,
    preimage: Preimage,
    sale: Sale,
}

impl Token {
    fn sold(number: u8, offer: Offer, price: u64) -> Self {
        Self::sold_until(number, offer, price, None)
    }

    fn sold_until(number: u8, offer: Offer, price: u64, valid_until: Option<Timestamp>) -> Self {
        let mut bytes = [0xee; 32];
        bytes[0] = number;
        let preimage = Preimage::from_bytes(bytes);
        let sale = Sale {
            service: "weather".parse().unwrap(),
            tier: 0,
            terms: Terms { offer, price: Msat::new(price) },
            valid_until,
            capabilities: None,
            monthly: Vec::new(),
            bound: None,
            replaces: None,
        };
        let identifier =
            Identifier { payment_hash: preimage.payment_hash(), token_id: TokenId::from_bytes([number; 32]) };
        let root_key = secret().root_key(Network::Regtest, &identifier);
        Self { macaroon: Macaroon::mint(&root_key, &identifier, &sale.caveats().unwrap()), preimage, sale }
    }

    fn hash(&self) -> PaymentHash {
        self.preimage.payment_hash()
    }

    fn headers(&self) -> HeaderMap {
        Self::shown(&self.macaroon, &self.preimage)
    }

    fn shown(macaroon: &Macaroon, preimage: &Preimage) -> HeaderMap {
        let value = format!("L402 {}:{}", macaroon.to_base64(), *preimage.expose_hex());
        HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::try_from(value).unwrap())])
    }
}

impl Desk {
    /// The money for it arrives.
    async fn settle(&self, token: &Token, msat: u64) {
        let cursor = {
            let mut settled = self.disk.settled.lock();
            *settled += 1;
            Cursor(*settled)
        };
        let settlement =
            Settlement { cursor, hash: token.hash(), amount: Msat::new(msat), at: START, description: None };
        self.disk.store.settle("02aa", vec![Arrival::from(settlement)], cursor).await.unwrap();
    }

    /// 100 sat of credit that was paid for.
    async fn credit(&self, number: u8) -> Token {
        let token = Token::sold(number, Offer::Credit, 100_000);
        self.settle(&token, 100_000).await;
        token
    }

    /// Uses some of it.
    async fn spend(&self, token: &Token, msat: u64) {
        self.reserve(token, msat).await.commit(msat);
        self.paywall.ledger().flush().await.unwrap();
    }

    async fn reserve(&self, token: &Token, msat: u64) -> crate::ledger::Reservation {
        let holder = self.paywall.holder(&token.headers()).unwrap();
        let presentation = crate::store::Presentation { hash: token.hash(), sold: holder.sold, at: START };
        let allotment = Allotment::of(&token.sale.terms).unwrap();
        let units = NonZeroU64::new(msat).unwrap();
        self.paywall.ledger().reserve(presentation, allotment, units).await.unwrap().reservation
    }

    async fn ask(&self, headers: &HeaderMap, body: Value) -> (StatusCode, Value) {
        self.send(&Method::POST, None, headers, &body.to_string()).await
    }

    async fn send(
        &self,
        method: &Method,
        query: Option<&str>,
        headers: &HeaderMap,
        body: &str,
    ) -> (StatusCode, Value) {
        let response = self.refunds.answer(method, query, headers, body.as_bytes()).await;
        assert_eq!(response.headers()[header::CACHE_CONTROL], "no-store");
        (response.status(), serde_json::from_slice(response.body()).unwrap())
    }

    /// Asks for a refund to this invoice.
    async fn refund(&self, token: &Token, bill: Bill) -> (StatusCode, Value) {
        self.ask(&token.headers(), json!({ "to": bill.text() })).await
    }

    #[track_caller]
    fn refused(answer: &(StatusCode, Value), code: &str) {
        assert_eq!(answer.1["code"], code, "{answer:?}");
        assert_eq!(answer.1["status"], answer.0.as_u16());
    }

    async fn lawful(&self) {
        let audit = self.disk.store.audit().await.unwrap();
        assert_eq!(audit.breaches, Vec::<String>::new());
    }

    /// Until a refund has ended.
    async fn ended(&self, token: &Token, id: &Value) -> Value {
        let query = format!("id={}", id.as_str().unwrap());
        let waiting = async {
            loop {
                let (_, told) = self.send(&Method::GET, Some(&query), &token.headers(), "").await;
                if told["state"] != "open" {
                    return told;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), waiting).await.unwrap()
    }
}
