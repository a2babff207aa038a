//! Doubles for the tests of this crate. [`Node`] is a double that signs real invoices, with no channel behind it; real
//! nodes take its place in the workspace's own tests.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bitcoin::{
    hashes::{Hash, sha256},
    secp256k1::{Secp256k1, SecretKey},
};
use farebox_lightning::{
    Ask, Cursor, Health, Incoming, Receive, ReceiveError, ReceiveFacts, Settlement, clock::ManualClock,
};
use farebox_protocol::{
    Credential, Fingerprint, Invoice, Macaroon, MintSecret, Msat, Network, Offer, OfferedChallenge,
    PaymentHash, Preimage, Scheme, Timestamp,
};
use futures_util::{future::BoxFuture, stream, stream::BoxStream};
use http::{HeaderMap, HeaderValue, Method, header};
use lightning_invoice::{Currency, InvoiceBuilder, PaymentSecret};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{
    Admission, Answer, Backend, Backends, Continuity, Keyring, Paywall, PaywallConfig, Request, Service,
    ledger::{law::Refund, month::Month},
    store::{
        Arrival, Booked, Page, Presentation, Purchase, Revocation, RevocationCursor, Revoked, Sale, Store,
        StoreError,
        accounts::{
            Account, Accounts, Allotment, AnswerKey, Audit, DayOfUse, Debited, Epoch, EpochId, Group,
            KeptAnswer, MonthlyUse, Opened, RefundId, RefundMark, RefundOrder, RefundRow,
        },
        entry::Entry,
        sqlite::SqliteStore,
    },
};

/// When the tests begin.
pub(crate) const START: Timestamp = Timestamp::from_secs(1_700_000_000);

/// How a [`Node`] misbehaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mood {
    #[default]
    Well,
    Down,
    Silent,
    /// Every invoice is for twice the price.
    Greedy,
    /// Every invoice is for mainnet.
    OnMainnet,
    /// Every invoice has expired.
    Late,
    /// Every invoice lasts for a year.
    Patient,
    /// The same invoice again and again.
    Repeating,
    /// Every invoice takes this long.
    Slow(Duration),
}

/// A node that signs invoices and tells of settlements.
pub(crate) struct Node {
    clock: Arc<ManualClock>,
    id: &'static str,
    /// Whether it has been spoken to yet.
    pub(crate) is_reached: AtomicBool,
    pub(crate) network: Mutex<Network>,
    pub(crate) grace: Mutex<Duration>,
    pub(crate) is_shared: AtomicBool,
    pub(crate) mood: Mutex<Mood>,
    pub(crate) granularity: Mutex<Msat>,
    pub(crate) asked: Mutex<Vec<Ask>>,
    made: AtomicU64,
    /// How often it was asked whether something is paid.
    pub(crate) looked_up: AtomicUsize,
    preimages: Mutex<HashMap<PaymentHash, Preimage>>,
    settled: Mutex<Vec<Settlement>>,
    news: Notify,
    pub(crate) followed: AtomicUsize,
    pub(crate) follow_fails: AtomicBool,
}

impl Node {
    pub(crate) fn new(clock: Arc<ManualClock>, id: &'static str) -> Self {
        Self {
            clock,
            id,
            is_reached: AtomicBool::new(true),
            network: Mutex::new(Network::Regtest),
            grace: Mutex::new(Duration::from_secs(60)),
            is_shared: AtomicBool::new(false),
            mood: Mutex::default(),
            granularity: Mutex::new(Msat::new(1)),
            asked: Mutex::default(),
            made: AtomicU64::new(0),
            looked_up: AtomicUsize::new(0),
            preimages: Mutex::default(),
            settled: Mutex::default(),
            news: Notify::new(),
            followed: AtomicUsize::new(0),
            follow_fails: AtomicBool::new(false),
        }
    }

    /// What paying reveals.
    pub(crate) fn preimage(&self, hash: &PaymentHash) -> Preimage {
        self.preimages.lock()[hash].clone()
    }

    /// The money arrives.
    pub(crate) fn settle(&self, hash: PaymentHash, amount: u64) {
        let last = self.settled.lock().len() as u64;
        self.tell(hash, amount, last + 1);
    }

    /// A settlement at a place of the sequence.
    pub(crate) fn tell(&self, hash: PaymentHash, amount: u64, cursor: u64) {
        self.tell_of(hash, amount, cursor, None);
    }

    /// The money arrives at a node that keeps what the invoice said.
    pub(crate) fn settle_memo(&self, hash: PaymentHash, amount: u64, memo: &str) {
        let last = self.settled.lock().len() as u64;
        self.tell_of(hash, amount, last + 1, Some(memo.to_owned()));
    }

    fn tell_of(&self, hash: PaymentHash, amount: u64, cursor: u64, description: Option<String>) {
        let at = farebox_lightning::clock::Clock::now(&*self.clock);
        let settlement =
            Settlement { cursor: Cursor(cursor), hash, amount: Msat::new(amount), at, description };
        self.settled.lock().push(settlement);
        self.news.notify_waiters();
    }

    fn sign(&self, ask: &Ask, mood: Mood) -> Invoice {
        let number = match mood {
            Mood::Repeating => 0,
            _ => self.made.fetch_add(1, Ordering::SeqCst) + 1,
        };
        let mut bytes = [0x5a; 32];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        if self.id != "02aa" {
            bytes[8..12].copy_from_slice(self.id.as_bytes());
        }
        let preimage = Preimage::from_bytes(bytes);
        let hash = preimage.payment_hash();
        self.preimages.lock().insert(hash, preimage);

        let now = farebox_lightning::clock::Clock::now(&*self.clock).secs();
        let (currency, amount, made_at, expiry) = match mood {
            Mood::Greedy => (Currency::Regtest, ask.amount.get() * 2, now, ask.expiry),
            Mood::OnMainnet => (Currency::Bitcoin, ask.amount.get(), now, ask.expiry),
            Mood::Late => (Currency::Regtest, ask.amount.get(), now - 10_000, ask.expiry),
            Mood::Patient => (Currency::Regtest, ask.amount.get(), now, Duration::from_secs(31_536_000)),
            _ => (Currency::Regtest, ask.amount.get(), now, ask.expiry),
        };
        let secp = Secp256k1::signing_only();
        let key = SecretKey::from_slice(&[0x11; 32]).expect("a key");
        let text = InvoiceBuilder::new(currency)
            .description(ask.description.clone())
            .payment_hash(sha256::Hash::from_byte_array(*hash.as_bytes()))
            .payment_secret(PaymentSecret([3; 32]))
            .duration_since_epoch(Duration::from_secs(made_at))
            .expiry_time(expiry)
            .min_final_cltv_expiry_delta(18)
            .amount_milli_satoshis(amount)
            .build_signed(|message| secp.sign_ecdsa_recoverable(message, &key))
            .expect("a whole invoice")
            .to_string();
        Invoice::parse(&text).expect("just signed")
    }
}

impl Receive for Node {
    fn facts(&self) -> Option<ReceiveFacts> {
        self.is_reached.load(Ordering::SeqCst).then(|| ReceiveFacts {
            network: *self.network.lock(),
            node: self.id.to_owned(),
            grace: *self.grace.lock(),
            granularity: *self.granularity.lock(),
            is_shared: self.is_shared.load(Ordering::SeqCst),
        })
    }

    fn invoice(&self, ask: Ask) -> BoxFuture<'_, Result<Invoice, ReceiveError>> {
        let mood = *self.mood.lock();
        self.asked.lock().push(ask.clone());
        Box::pin(async move {
            match mood {
                Mood::Down => Err(ReceiveError::Unavailable("connection refused by 10.0.0.1".to_owned())),
                Mood::Silent => std::future::pending().await,
                Mood::Slow(time) => {
                    tokio::time::sleep(time).await;
                    Ok(self.sign(&ask, mood))
                }
                mood => Ok(self.sign(&ask, mood)),
            }
        })
    }

    fn lookup(&self, hash: PaymentHash) -> BoxFuture<'_, Result<Incoming, ReceiveError>> {
        let mood = *self.mood.lock();
        self.looked_up.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            match mood {
                Mood::Down => Err(ReceiveError::Unavailable("connection refused by 10.0.0.1".to_owned())),
                Mood::Silent => std::future::pending().await,
                _ => {
                    let settled = self.settled.lock();
                    let found = settled.iter().find(|settlement| settlement.hash == hash);
                    Ok(found.map_or(Incoming::Unpaid, |settlement| Incoming::Settled {
                        amount: settlement.amount,
                        at: settlement.at,
                    }))
                }
            }
        })
    }

    fn settlements(&self, after: Cursor) -> BoxStream<'_, Result<Settlement, ReceiveError>> {
        self.followed.fetch_add(1, Ordering::SeqCst);
        Box::pin(stream::unfold((after, 0), move |(after, mut next)| async move {
            loop {
                let news = self.news.notified();
                if self.follow_fails.load(Ordering::SeqCst) {
                    return Some((Err(ReceiveError::Unavailable("gone".to_owned())), (after, next)));
                }
                let told = self.settled.lock().get(next).cloned();
                match told {
                    Some(settlement) => {
                        next += 1;
                        if settlement.cursor > after {
                            return Some((Ok(settlement), (after, next)));
                        }
                    }
                    None => news.await,
                }
            }
        }))
    }

    fn health(&self) -> Health {
        match *self.mood.lock() {
            Mood::Down => Health::Down("connection refused".to_owned()),
            _ => Health::Ready,
        }
    }
}

/// A store that can be made to fail or to hang. It asks the real one from a blocking task, so that tokio's paused clock
/// stands still for as long as SQLite's own threads are at work.
pub(crate) struct Flaky {
    inner: Arc<SqliteStore>,
    pub(crate) fault: Mutex<Option<Fault>>,
    /// How often anything was asked of it.
    pub(crate) asked: AtomicUsize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Fails,
    Hangs,
}

impl Flaky {
    fn through<T: Send + 'static>(
        &self,
        ask: impl for<'a> FnOnce(&'a SqliteStore) -> BoxFuture<'a, Result<T, StoreError>> + Send + 'static,
    ) -> BoxFuture<'_, Result<T, StoreError>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let fault = *self.fault.lock();
        let inner = Arc::clone(&self.inner);
        Box::pin(async move {
            match fault {
                Some(Fault::Fails) => return Err(StoreError::Full("test".to_owned())),
                Some(Fault::Hangs) => std::future::pending().await,
                None => {}
            }
            let runtime = tokio::runtime::Handle::current();
            let asked = tokio::task::spawn_blocking(move || runtime.block_on(ask(&inner)));
            asked.await.expect("no panic")
        })
    }
}

impl Store for Flaky {
    fn adopt(
        &self,
        secrets: Vec<Fingerprint>,
        continuity: Continuity,
        now: Timestamp,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        self.through(move |store| store.adopt(secrets, continuity, now))
    }

    fn cursor(&self, node: &str) -> BoxFuture<'_, Result<Cursor, StoreError>> {
        let node = node.to_owned();
        self.through(move |store| store.cursor(&node))
    }

    fn settle(
        &self,
        node: &str,
        arrivals: Vec<Arrival>,
        to: Cursor,
    ) -> BoxFuture<'_, Result<Booked, StoreError>> {
        let node = node.to_owned();
        self.through(move |store| store.settle(&node, arrivals, to))
    }

    fn present(&self, presentations: Vec<Presentation>) -> BoxFuture<'_, Result<Vec<Sale>, StoreError>> {
        self.through(move |store| store.present(presentations))
    }

    fn purchase(&self, hash: PaymentHash) -> BoxFuture<'_, Result<Option<Purchase>, StoreError>> {
        self.through(move |store| store.purchase(hash))
    }

    fn entry(&self, hash: PaymentHash) -> BoxFuture<'_, Result<Option<Entry>, StoreError>> {
        self.through(move |store| store.entry(hash))
    }

    fn purchases(&self, page: Page) -> BoxFuture<'_, Result<Vec<Purchase>, StoreError>> {
        self.through(move |store| store.purchases(page))
    }

    fn revoke(&self, revocation: Revocation) -> BoxFuture<'_, Result<(), StoreError>> {
        self.through(move |store| store.revoke(revocation))
    }

    fn revocations(&self, after: RevocationCursor) -> BoxFuture<'_, Result<Revoked, StoreError>> {
        self.through(move |store| store.revocations(after))
    }
}

impl Accounts for Flaky {
    fn begin_epoch(&self, now: Timestamp) -> BoxFuture<'_, Result<EpochId, StoreError>> {
        self.through(move |store| store.begin_epoch(now))
    }

    fn end_epoch(&self, epoch: EpochId, now: Timestamp) -> BoxFuture<'_, Result<(), StoreError>> {
        self.through(move |store| store.end_epoch(epoch, now))
    }

    fn epochs(&self, rows_max: u16) -> BoxFuture<'_, Result<Vec<Epoch>, StoreError>> {
        self.through(move |store| store.epochs(rows_max))
    }

    fn account(&self, hash: PaymentHash) -> BoxFuture<'_, Result<Option<Account>, StoreError>> {
        self.through(move |store| store.account(hash))
    }

    fn accounts(&self, page: Page) -> BoxFuture<'_, Result<Vec<Account>, StoreError>> {
        self.through(move |store| store.accounts(page))
    }

    fn open_account(
        &self,
        presentation: Presentation,
        allotment: Allotment,
    ) -> BoxFuture<'_, Result<Opened, StoreError>> {
        self.through(move |store| store.open_account(presentation, allotment))
    }

    fn uses(&self, hash: PaymentHash, month: Month) -> BoxFuture<'_, Result<Vec<MonthlyUse>, StoreError>> {
        self.through(move |store| store.uses(hash, month))
    }

    fn debit(&self, group: Arc<Group>) -> BoxFuture<'_, Result<Debited, StoreError>> {
        self.through(move |store| store.debit(group))
    }

    fn kept_answer(
        &self,
        key: AnswerKey,
        now: Timestamp,
    ) -> BoxFuture<'_, Result<Option<KeptAnswer>, StoreError>> {
        self.through(move |store| store.kept_answer(key, now))
    }

    fn begin_refund(&self, order: RefundOrder) -> BoxFuture<'_, Result<(), StoreError>> {
        self.through(move |store| store.begin_refund(order))
    }

    fn end_refund(
        &self,
        id: RefundId,
        end: Refund,
        at: Timestamp,
    ) -> BoxFuture<'_, Result<RefundRow, StoreError>> {
        self.through(move |store| store.end_refund(id, end, at))
    }

    fn refund(&self, id: RefundId) -> BoxFuture<'_, Result<Option<RefundRow>, StoreError>> {
        self.through(move |store| store.refund(id))
    }

    fn open_refunds(&self, rows_max: u16) -> BoxFuture<'_, Result<Vec<RefundRow>, StoreError>> {
        self.through(move |store| store.open_refunds(rows_max))
    }

    fn unknown_refunds(&self, ids: Vec<RefundId>) -> BoxFuture<'_, Result<Vec<RefundId>, StoreError>> {
        self.through(move |store| store.unknown_refunds(ids))
    }

    fn add_refund(
        &self,
        order: RefundOrder,
        paid_at: Option<Timestamp>,
        limit: Option<Msat>,
    ) -> BoxFuture<'_, Result<Option<RefundRow>, StoreError>> {
        self.through(move |store| store.add_refund(order, paid_at, limit))
    }

    fn refund_mark(&self) -> BoxFuture<'_, Result<Option<RefundMark>, StoreError>> {
        self.through(move |store| store.refund_mark())
    }

    fn mark_refunds(&self, mark: RefundMark) -> BoxFuture<'_, Result<(), StoreError>> {
        self.through(move |store| store.mark_refunds(mark))
    }

    fn days_of_use(&self, from: u64, to: u64) -> BoxFuture<'_, Result<Vec<DayOfUse>, StoreError>> {
        self.through(move |store| store.days_of_use(from, to))
    }

    fn audit(&self) -> BoxFuture<'_, Result<Audit, StoreError>> {
        self.through(move |store| store.audit())
    }
}

/// A seller with a node, books and a clock of its own.
pub(crate) struct Shop {
    pub(crate) node: Arc<Node>,
    pub(crate) store: Arc<Flaky>,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) paywall: Arc<Paywall>,
    pub(crate) service: Service,
    pub(crate) dir: tempfile::TempDir,
}

/// The settings of the tests: polling in real time must not keep anyone waiting.
pub(crate) fn config() -> PaywallConfig {
    PaywallConfig { revocation_poll: Duration::from_millis(10), ..PaywallConfig::new(Network::Regtest) }
}

pub(crate) fn secret() -> MintSecret {
    MintSecret::from_bytes([0x77; 32])
}

/// 10 sat for access without end.
pub(crate) fn weather() -> Service {
    Service::new("weather".parse().expect("a name"), Msat::new(10_000), Offer::Forever)
}

impl Shop {
    pub(crate) async fn open() -> Self {
        Self::open_with(config(), Keyring::single(secret())).await
    }

    pub(crate) async fn open_with(config: PaywallConfig, keyring: Keyring) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let clock = Arc::new(ManualClock::new(START));
        let node = Arc::new(Node::new(Arc::clone(&clock), "02aa"));
        let inner = Arc::new(SqliteStore::open(&dir.path().join("books.sqlite")).expect("opens"));
        let store = Arc::new(Flaky { inner, fault: Mutex::default(), asked: AtomicUsize::new(0) });
        let paywall =
            Paywall::open(config, keyring, node.clone(), store.clone(), clock.clone()).await.expect("opens");
        Self { node, store, clock, paywall, service: weather(), dir }
    }

    /// A seller with several nodes: the shop's own, and these behind it, each called by its id.
    pub(crate) async fn open_over(config: PaywallConfig, ids: &[&'static str]) -> (Self, Vec<Arc<Node>>) {
        let mut shop = Self::open_with(config.clone(), Keyring::single(secret())).await;
        let more = ids.iter().map(|id| Arc::new(Node::new(Arc::clone(&shop.clock), id)));
        let nodes: Vec<_> = [shop.node.clone()].into_iter().chain(more).collect();
        shop.paywall = shop.over(config, &nodes).await;
        (shop, nodes)
    }

    /// The same books over these nodes, as after a restart.
    pub(crate) async fn over(&self, config: PaywallConfig, nodes: &[Arc<Node>]) -> Arc<Paywall> {
        let backend = |node: &Arc<Node>| Backend { name: node.id.to_owned(), node: node.clone() };
        let backends = Backends::new(nodes.iter().map(backend).collect()).expect("at least one");
        let (store, clock) = (self.store.clone(), self.clock.clone());
        Paywall::open(config, Keyring::single(secret()), backends, store, clock).await.expect("opens")
    }

    /// The same books and node under another keyring, as after a restart.
    pub(crate) async fn reopen(&self, keyring: Keyring) -> Arc<Paywall> {
        let (node, store, clock) = (self.node.clone(), self.store.clone(), self.clock.clone());
        Paywall::open(config(), keyring, node, store, clock).await.expect("opens")
    }

    pub(crate) async fn get(&self, headers: &HeaderMap) -> Admission {
        self.ask(&Method::GET, "/forecast", headers).await
    }

    pub(crate) async fn ask(&self, method: &Method, path: &str, headers: &HeaderMap) -> Admission {
        let client = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
        let request =
            Request { service: &self.service, method, path, client, headers, query: None, grpc: false };
        self.paywall.admit(&request).await
    }

    /// A fresh challenge: its token and what it must be paid.
    pub(crate) async fn challenge(&self) -> (Macaroon, Invoice) {
        read_challenge(&answer(self.get(&HeaderMap::new()).await))
    }

    /// A token that has been paid for, with its proof.
    pub(crate) async fn buy(&self) -> (Macaroon, Preimage) {
        let (macaroon, invoice) = self.challenge().await;
        (macaroon, self.node.preimage(&invoice.payment_hash()))
    }
}

pub(crate) fn credential(macaroon: &Macaroon, preimage: &Preimage) -> HeaderMap {
    let credential = Credential { tokens: vec![macaroon.clone()], preimage: preimage.clone() };
    let mut headers = HeaderMap::new();
    let value = HeaderValue::from_str(&credential.header_value(Scheme::L402)).expect("ASCII");
    headers.insert(header::AUTHORIZATION, value);
    headers
}

#[track_caller]
pub(crate) fn answer(admission: Admission) -> Answer {
    match admission {
        Admission::Answer(answer) => answer,
        Admission::Pass(pass, _) => panic!("passed: {pass:?}"),
    }
}

#[track_caller]
pub(crate) fn read_challenge(answer: &Answer) -> (Macaroon, Invoice) {
    let values = answer.headers.get_all(header::WWW_AUTHENTICATE);
    let offered = OfferedChallenge::read_all(values.iter().map(HeaderValue::as_bytes));
    let offer = OfferedChallenge::preferred(&offered).expect("a challenge");
    let invoice = offer.invoice.as_deref().expect("an invoice").parse().expect("an invoice");
    (offer.macaroon().expect("a macaroon"), invoice)
}
