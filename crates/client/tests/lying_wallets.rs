//! Wallets that lie, one after the other, and what comes of each: what the caller is told, whether a second request pays, and
//! what stands in the journal. The table in the documentation of buying is this one.
//!
//! Exit code 8 is "unknown" here, 3 is `payment_failed`, 7 a refusal before anything was paid.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

mod support;

use std::{
    collections::VecDeque,
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use farebox_client::{Engine, EngineConfig};
use farebox_lightning::{FeeControl, Outcome, Pay, PayError, PayFacts, PayRequest, WalletId};
use farebox_protocol::{Msat, Network, PaymentHash, Preimage};
use futures_util::{FutureExt as _, future::BoxFuture};
use parking_lot::Mutex;
use support::{Net, Shop, World, get, told};
use tokio::sync::Notify;

/// What it says, true or not.
#[derive(Clone, Copy, Debug)]
enum Say {
    /// Settled, with the proof.
    Paid,
    /// The same, and it took more than it was allowed.
    Dear,
    /// Settled, with a preimage that proves nothing.
    WrongProof,
    /// Settled, with none: a backend takes that for no answer.
    NoProof,
    Failed,
    InFlight,
    NotFound,
    /// The line broke.
    Silence,
    /// Nothing, ever.
    Hang,
}
use Say::{Dear, Failed, Hang, InFlight, NoProof, NotFound, Paid, Silence, WrongProof};

/// Says these things in turn, the last one for ever.
struct Liar {
    net: Net,
    pay: Mutex<VecDeque<Say>>,
    lookup: Mutex<VecDeque<Say>>,
    orders: AtomicUsize,
    asked: Notify,
}

impl Liar {
    fn new(net: &Net, pay: &[Say], lookup: &[Say]) -> Arc<Self> {
        let queue = |says: &[Say]| Mutex::new(says.iter().copied().collect());
        let (orders, asked) = (AtomicUsize::new(0), Notify::new());
        Arc::new(Self { net: net.clone(), pay: queue(pay), lookup: queue(lookup), orders, asked })
    }

    async fn say(&self, says: &Mutex<VecDeque<Say>>, hash: PaymentHash) -> Result<Outcome, PayError> {
        let say = {
            let mut says = says.lock();
            if says.len() > 1 { says.pop_front() } else { says.front().copied() }.unwrap()
        };
        let proof = || {
            let hex = fs::read_to_string(self.net.path().join(format!("invoices/{hash}"))).unwrap();
            Preimage::from_hex(&hex).unwrap()
        };
        let fee = Msat::new(1_000);
        match say {
            Paid => Ok(Outcome::Settled { preimage: proof(), fee }),
            Dear => Ok(Outcome::Settled { preimage: proof(), fee: Msat::new(1_000_000) }),
            WrongProof => Ok(Outcome::Settled { preimage: Preimage::from_bytes([0; 32]), fee }),
            NoProof => Err(PayError::Wrong("it shows no preimage".to_owned())),
            Failed => Ok(Outcome::Failed("no route".to_owned())),
            InFlight => Ok(Outcome::InFlight),
            NotFound => Ok(Outcome::NotFound),
            Silence => Err(PayError::Unavailable("the line broke".to_owned())),
            Hang => std::future::pending().await,
        }
    }
}

impl Pay for Liar {
    /// What wallets behind relays and phoenixd state: a "not found" proves nothing, and an order might be carried out twice.
    fn facts(&self) -> PayFacts {
        PayFacts {
            wallet: WalletId("liar".to_owned()),
            network: Network::Regtest,
            proves_unsent: false,
            refuses_paid_hash: false,
            fee_control: FeeControl::Exact,
        }
    }

    fn pay(&self, request: PayRequest) -> BoxFuture<'_, Result<Outcome, PayError>> {
        self.orders.fetch_add(1, Ordering::SeqCst);
        self.asked.notify_one();
        self.say(&self.pay, request.invoice.payment_hash()).boxed()
    }

    fn lookup(&self, hash: PaymentHash) -> BoxFuture<'_, Result<Outcome, PayError>> {
        self.say(&self.lookup, hash).boxed()
    }

    fn balance(&self) -> BoxFuture<'_, Result<Msat, PayError>> {
        async { Ok(Msat::MAX) }.boxed()
    }
}

/// A wallet, and what comes of it.
struct Case {
    what: &'static str,
    pay: &'static [Say],
    lookup: &'static [Say],
    first: &'static str,
    /// The same request again, by another engine on the same journal.
    again: &'static str,
    /// How often the wallet was told to pay, both requests together.
    orders: usize,
}

const UNKNOWN: &str = "payment_unknown unknown";
const SERVED: &str = "200 goods";

const CASES: [Case; 13] = [
    Case {
        what: "it settles late",
        pay: &[InFlight],
        lookup: &[InFlight, Paid],
        first: SERVED,
        again: SERVED,
        orders: 1,
    },
    Case {
        what: "the line breaks, and then it has paid",
        pay: &[Silence],
        lookup: &[Paid],
        first: SERVED,
        again: SERVED,
        orders: 1,
    },
    Case {
        what: "a wrong preimage, and no other",
        pay: &[WrongProof],
        lookup: &[WrongProof],
        first: UNKNOWN,
        again: UNKNOWN,
        orders: 1,
    },
    Case {
        what: "a wrong preimage, and the right one when it is looked up",
        pay: &[WrongProof],
        lookup: &[Paid],
        first: SERVED,
        again: SERVED,
        orders: 1,
    },
    Case {
        what: "no preimage, ever",
        pay: &[NoProof],
        lookup: &[NoProof],
        first: UNKNOWN,
        again: UNKNOWN,
        orders: 1,
    },
    Case {
        what: "no preimage, until it is looked up",
        pay: &[NoProof],
        lookup: &[Paid],
        first: SERVED,
        again: SERVED,
        orders: 1,
    },
    Case {
        what: "it reports the same payment twice, and once more as failed",
        pay: &[InFlight],
        lookup: &[Paid, Paid, Failed],
        first: SERVED,
        again: SERVED,
        orders: 1,
    },
    Case {
        what: "not found, while the payment is in flight, and then it settles",
        pay: &[InFlight],
        lookup: &[NotFound, Paid],
        first: SERVED,
        again: SERVED,
        orders: 1,
    },
    Case {
        what: "not found, for ever",
        pay: &[InFlight],
        lookup: &[NotFound],
        first: UNKNOWN,
        again: UNKNOWN,
        orders: 1,
    },
    Case {
        what: "unknown in one request, settled by the next",
        pay: &[Silence],
        lookup: &[Silence, Silence, Silence, Silence, Paid],
        first: UNKNOWN,
        again: SERVED,
        orders: 1,
    },
    Case {
        what: "failed, and a lookup says so",
        pay: &[Silence, Paid],
        lookup: &[Failed],
        first: "payment_failed none",
        again: SERVED,
        orders: 2,
    },
    // A wallet that says "failed" is believed: it alone can know. What it then settles all the same is not in the journal.
    Case {
        what: "failed, and then it settles",
        pay: &[Failed, Paid],
        lookup: &[Paid],
        first: "payment_failed none",
        again: SERVED,
        orders: 2,
    },
    Case {
        what: "it takes more than it may",
        pay: &[Dear],
        lookup: &[Paid],
        first: SERVED,
        again: SERVED,
        orders: 1,
    },
];

fn engine(world: &World, wallet: &Arc<Liar>) -> Engine {
    let wallet = Arc::clone(wallet) as Arc<dyn Pay>;
    let config =
        EngineConfig { wallet: Some(wallet), patience: Duration::from_millis(1_800), ..world.config() };
    Engine::open(config).unwrap()
}

async fn comes_of(case: &Case) -> (String, String, usize) {
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    let wallet = Liar::new(&world.net, case.pay, case.lookup);
    let fetch = async || told(engine(&world, &wallet).fetch(get(&shop.url("/"))).await).await;
    (fetch().await, fetch().await, wallet.orders.load(Ordering::SeqCst))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_wallet_that_lies_comes_to_what_is_documented() {
    let all = CASES.iter().map(|case| async move {
        let (first, again, orders) = comes_of(case).await;
        let got = (first.as_str(), again.as_str(), orders);
        (got != (case.first, case.again, case.orders)).then(|| format!("{}: {got:?}", case.what))
    });
    let other: Vec<_> = futures_util::future::join_all(all).await.into_iter().flatten().collect();
    assert!(other.is_empty(), "{other:#?}");
}

#[tokio::test]
async fn a_wallet_that_hangs_is_left_and_what_it_did_stays_unknown() {
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    let wallet = Liar::new(&world.net, &[Hang], &[Hang]);
    let config = EngineConfig {
        wallet: Some(Arc::clone(&wallet) as Arc<dyn Pay>),
        patience: Duration::ZERO,
        ..world.config()
    };
    let engine = Engine::open(config).unwrap();
    let url = shop.url("/");
    let later = async {
        wallet.asked.notified().await;
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(26)).await;
        tokio::time::resume();
    };
    let (fetched, ()) = tokio::join!(engine.fetch(get(&url)), later);
    assert_eq!(told(fetched).await, UNKNOWN);
    assert_eq!(wallet.orders.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_payment_that_is_reported_twice_is_booked_once() {
    let world = World::new();
    let shop = Shop::open(&world.net).await;
    let wallet = Liar::new(&world.net, &[Paid], &[Dear, Failed, NotFound]);
    for _ in 0..3 {
        let engine = engine(&world, &wallet);
        assert_eq!(told(engine.fetch(get(&shop.url("/"))).await).await, SERVED);
        engine.resume().await.unwrap();
        let rows = engine.purchases().await.unwrap();
        assert_eq!((rows.len(), engine.overruns().await.unwrap().len()), (1, 0), "{rows:?}");
    }
    assert_eq!(wallet.orders.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_wallet_that_took_more_than_it_may_serves_what_was_paid_for_and_pays_nothing_else() {
    let world = World::new();
    let shops = [Shop::open(&world.net).await, Shop::open(&world.net).await];
    let wallet = Liar::new(&world.net, &[Dear], &[Paid]);
    let engine = engine(&world, &wallet);
    assert_eq!(told(engine.fetch(get(&shops[0].url("/"))).await).await, SERVED);
    assert_eq!(told(engine.fetch(get(&shops[1].url("/"))).await).await, "fee_overrun none");
    assert_eq!(wallet.orders.load(Ordering::SeqCst), 1);
}
