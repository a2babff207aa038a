//! A real regtest: btcd for a chain, and lnd for nodes, as their owners run them. For the live suites only, since the
//! programs are built with Go.
//!
//! [`regtest()`] is started once for each test binary, and has a [`buyer`](Regtest::buyer) and a
//! [`seller`](Regtest::seller) with a channel between them from which both can pay. What stops a node, or locks it, has
//! [`another`](Regtest::another) to itself. Nothing outlives the process: see `leash`.

mod chain;
mod leash;
mod lnd;
mod ports;

use std::{ops::Deref, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{
    sync::{Mutex, OnceCell},
    time,
};

pub use self::lnd::{Lnd, Refused};
use self::{
    chain::Chain,
    leash::{Den, tail},
    lnd::Wallet,
};

/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often it is asked whether it has come.
const ASK_EVERY: Duration = Duration::from_millis(20);
/// The size of a channel, and what of it is the other side's from the beginning.
const CHANNEL_SAT: u64 = 500_000_000;
const THEIRS_SAT: u64 = 100_000_000;
/// What was mined can be spent a hundred blocks later, but SegWit is voted on for three times 144 blocks first.
const BLOCKS: u32 = 450;

/// A chain with nodes on it.
pub struct Regtest {
    /// Who pays.
    pub buyer: Lnd,
    /// Who is paid: it opens by itself, and nobody stops it.
    pub seller: Lnd,
    chain: Chain,
    mining: Mutex<()>,
    /// Dropped last: the others write to it.
    den: Den,
}

/// The regtest that all tests of this process share.
pub struct Shared(&'static Regtest);

/// The regtest of this test binary. It is started by whoever asks first.
pub async fn regtest() -> Shared {
    static REGTEST: OnceCell<Regtest> = OnceCell::const_new();
    Shared(REGTEST.get_or_init(Regtest::start).await)
}

impl Deref for Shared {
    type Target = Regtest;

    fn deref(&self) -> &Regtest {
        self.0
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // The regtest goes on for the others, but whoever reads of this failure will want to know.
        if std::thread::panicking() {
            eprintln!("{}{}", tail(&self.buyer.log()), tail(&self.seller.log()));
        }
    }
}

impl Regtest {
    /// Starts chain and nodes, and opens the channel.
    pub async fn start() -> Self {
        let den = Den::new();
        let chain = Chain::start(den.path().join("btcd")).await;
        let node = |name: &'static str| Lnd::create(name, den.path().join(name), &chain, Wallet::Open, &[]);
        let (mut buyer, mut seller) = tokio::join!(node("buyer"), node("seller"));
        let address = buyer.get("/v1/newaddress?type=WITNESS_PUBKEY_HASH").await;
        let chain = chain.mine_for(address["address"].as_str().unwrap()).await;
        chain.mine(BLOCKS).await;
        tokio::join!(buyer.introduce(), seller.introduce());
        let regtest = Self { buyer, seller, chain, mining: Mutex::new(()), den };
        tokio::join!(regtest.buyer.until_synced(&regtest.chain), regtest.seller.until_synced(&regtest.chain));
        regtest.open_channel(&regtest.seller).await;
        regtest
    }

    /// Another node that is paid, for the caller alone: its wallet has a password, and the buyer has a channel to it. It
    /// is also told `more`.
    pub async fn another(&self, name: &str, more: &[&str]) -> Lnd {
        let dir = self.den.path().join(name);
        let mut lnd = Lnd::create(name, dir, &self.chain, Wallet::Locked, more).await;
        lnd.introduce().await;
        self.open_channel(&lnd).await;
        lnd
    }

    /// Makes blocks, one at a time: a payment allows for few that only the payee has seen.
    async fn mine(&self, blocks: u32, also: &Lnd) {
        let _alone = self.mining.lock().await;
        for _ in 0..blocks {
            self.chain.mine(1).await;
            let synced = [&self.buyer, &self.seller, also].map(|lnd| lnd.until_synced(&self.chain));
            futures_util::future::join_all(synced).await;
        }
    }

    /// Waits until the buyer can pay `to`, which has been stopped meanwhile. lnd itself tries to connect again after ever
    /// longer pauses, and a test would wait for those.
    pub async fn until_payable(&self, to: &Lnd) {
        until(&format!("the buyer can pay {}", to.node()), async || {
            // Refused if they are connected already.
            let _ = self.buyer.ask(Method::POST, "/v1/peers", &address(to)).await;
            has_route(&self.buyer, to.node()).await
        })
        .await;
    }

    /// Opens a channel from the buyer, and waits until both can use it.
    async fn open_channel(&self, to: &Lnd) {
        to.until_synced(&self.chain).await;
        let key = STANDARD.encode(hex::decode(to.node()).unwrap());
        let peer = address(to);
        let channel = json!({
            "node_pubkey": key,
            "local_funding_amount": CHANNEL_SAT.to_string(),
            "push_sat": THEIRS_SAT.to_string(),
        });
        until(&format!("the buyer has a channel to {}", to.node()), async || {
            // Refused if it is connected already, and while either of them still looks at new blocks.
            let _ = self.buyer.ask(Method::POST, "/v1/peers", &peer).await;
            self.buyer.ask(Method::POST, "/v1/channels", &channel).await.is_ok()
        })
        .await;
        // One would do for the channel; six, and the others hear of it.
        self.mine(6, to).await;
        tokio::join!(until_usable(&self.buyer, to.node()), until_usable(to, self.buyer.node()));
    }
}

/// Waits until `lnd` can pay `peer`. A channel is called active before it is used.
async fn until_usable(lnd: &Lnd, peer: &str) {
    until("there is a way to pay", async || has_route(lnd, peer).await).await;
}

async fn has_route(lnd: &Lnd, peer: &str) -> bool {
    lnd.ask(Method::GET, &format!("/v1/graph/routes/{peer}/1000"), &Value::Null).await.is_ok()
}

/// Where a node is found, as lnd wants to be told.
fn address(lnd: &Lnd) -> Value {
    json!({ "addr": { "pubkey": lnd.node(), "host": lnd.peer() }, "timeout": "60" })
}

/// Asks again and again until it is so, for two minutes at most: so long a busy machine may need for what takes an idle one
/// less than a second.
pub async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let asking = async {
        let mut next = time::interval(ASK_EVERY);
        while !is_so().await {
            next.tick().await;
        }
    };
    let waited = time::timeout(PATIENCE, asking).await;
    assert!(waited.is_ok(), "waited {} s in vain until {what}", PATIENCE.as_secs());
}
