//! A person who isn't at the terminal: questions that wait for them, their signed consents, and wallets that have taken more
//! than they said.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

mod support;

use std::num::NonZeroU32;
use std::sync::{Arc, LazyLock};

use farebox_client::{
    ApproveError, Engine, EngineConfig, Limits, PendingApproval,
    policy::{ConsentKey, Policy, SecretError},
};
use farebox_protocol::{Msat, Timestamp};
use support::{Mood, Shop, WalletDouble, World, get, told};

const SECRET: &str = "a person's secret";
const LONG: Timestamp = Timestamp::from_secs(1 << 40);

static KEY: LazyLock<ConsentKey> =
    LazyLock::new(|| ConsentKey::with_rounds(SECRET, NonZeroU32::MIN).unwrap());

fn asking(world: &World) -> EngineConfig {
    let policy = Policy::parse(&format!("{{ consents: \"{}\" }}", *KEY)).unwrap();
    assert_eq!(policy.consents.as_ref(), Some(&*KEY));
    EngineConfig {
        policy: Arc::new(policy),
        limits: Limits { per_payment: Msat::MAX, fee_max: Msat::new(10_000) },
        ..world.config()
    }
}

fn open(world: &World) -> Engine {
    Engine::open(asking(world)).unwrap()
}

async fn fetch(engine: &Engine, shop: &Shop, path: &str) -> String {
    told(engine.fetch(get(&shop.url(path))).await).await
}

/// The only question that waits.
async fn waiting(engine: &Engine) -> PendingApproval {
    let pending = engine.pending().await.unwrap();
    assert_eq!(pending.len(), 1, "{pending:?}");
    pending[0].clone()
}

/// What was asked, and no more.
const AS_ASKED: (Option<Msat>, Option<Msat>) = (None, None);

/// A shop that never honours a token twice, so that each request is a purchase.
async fn shop(world: &World, sat: u64) -> Shop {
    let seen = parking_lot::Mutex::new(std::collections::HashSet::new());
    Shop::with(&world.net, move |till, asked| match till.paid(&asked.headers) {
        Some(hash) if seen.lock().insert(hash) => till.serve("goods"),
        _ => till.challenge("svc", sat),
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_consent_is_good_for_one_payment() {
    let world = World::new();
    let shop = shop(&world, 100).await;
    let engine = open(&world);
    let refused = engine.fetch(get(&shop.url("/a"))).await.unwrap_err();
    let id = waiting(&engine).await;
    assert!(refused.to_string().contains(&format!("the question waits as `{}`", id.id)), "{refused}");
    assert_eq!(fetch(&engine, &shop, "/a").await, "approval_needed none");
    assert_eq!(waiting(&engine).await, id, "the same question is put once");

    engine.approve(&id, SECRET, AS_ASKED, LONG).await.unwrap();
    assert!(engine.pending().await.unwrap().is_empty());
    let other = open(&world);
    let mut requests = tokio::task::JoinSet::new();
    for engine in [engine.clone(), other.clone(), engine.clone(), other] {
        let url = shop.url("/a");
        requests.spawn(async move { told(engine.fetch(get(&url)).await).await });
    }
    let mut told = requests.join_all().await;
    told.sort();
    assert_eq!(told[0], "200 goods");
    // One that begins when the payment is made, and not shown yet, may show it first: then the buyer comes too late with it,
    // at this shop.
    let too_late = told[1..].iter().filter(|told| *told == "credential_rejected spent").count();
    let refused = told[1..].iter().filter(|told| *told == "approval_needed none").count();
    assert!(too_late <= 1 && too_late + refused == 3, "{told:?}");
    assert_eq!(world.net.payments().len(), 1);
}

#[tokio::test]
async fn a_consent_covers_what_was_asked_and_no_more() {
    let world = World::new();
    let prices = [100, 101, 100];
    let turn = std::sync::atomic::AtomicUsize::new(0);
    let shop = Shop::with(&world.net, move |till, asked| {
        let service = asked.path.trim_start_matches('/');
        if till.paid(&asked.headers).is_some() && till.is_for(&asked.headers, service) {
            till.serve("goods")
        } else {
            let turn = turn.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            till.challenge(service, prices.get(turn).copied().unwrap_or(100))
        }
    })
    .await;
    let engine = open(&world);
    assert_eq!(fetch(&engine, &shop, "/a").await, "approval_needed none");
    let id = waiting(&engine).await;
    let error = engine.approve(&id, "another secret", AS_ASKED, LONG).await.unwrap_err();
    assert!(matches!(error, ApproveError::Secret(SecretError::Wrong)), "{error}");
    engine.approve(&id, SECRET, AS_ASKED, LONG).await.unwrap();
    // It is dearer now: that is another question.
    assert_eq!(fetch(&engine, &shop, "/a").await, "approval_needed none");
    // Another path is one, too.
    assert_eq!(fetch(&engine, &shop, "/b").await, "approval_needed none");
    assert_eq!(engine.pending().await.unwrap().len(), 2);
    assert_eq!(fetch(&engine, &shop, "/a").await, "200 goods");
    let labelled = Engine::open(EngineConfig { label: Some("reader".to_owned()), ..asking(&world) }).unwrap();
    assert_eq!(fetch(&labelled, &shop, "/c").await, "approval_needed none");
    assert_eq!(world.net.payments().len(), 1);
}

#[tokio::test]
async fn a_consent_ends_and_a_no_stays_one() {
    let world = World::new();
    let shop = shop(&world, 100).await;
    let engine = open(&world);
    fetch(&engine, &shop, "/a").await;
    let id = waiting(&engine).await;
    engine.approve(&id, SECRET, (Some(Msat::new(200_000)), None), Timestamp::from_secs(1)).await.unwrap();
    assert_eq!(fetch(&engine, &shop, "/a").await, "approval_needed none");
    let again = waiting(&engine).await;
    engine.deny(&again.id).await.unwrap();
    let error = engine.approve(&again, SECRET, AS_ASKED, LONG).await.unwrap_err();
    assert!(matches!(error, ApproveError::NotThere(_)), "{error}");
    assert!(matches!(engine.deny("nothing").await, Err(ApproveError::NotThere(_))));
    assert!(world.net.payments().is_empty());
}

#[tokio::test]
async fn whoever_can_write_the_journal_can_still_not_agree() {
    let world = World::new();
    let shop = shop(&world, 100).await;
    let engine = open(&world);
    fetch(&engine, &shop, "/a").await;
    let id = waiting(&engine).await;
    let raw = rusqlite::Connection::open(world.journal()).unwrap();
    let forge = |signature: &[u8]| {
        raw.execute(
            "UPDATE approvals SET price_max_msat = 1000000, until = 1099511627776, signature = ?1",
            [signature],
        )
        .unwrap();
    };
    forge(&[7; 64]);
    assert_eq!(fetch(&engine, &shop, "/a").await, "approval_needed none");
    // What the person has signed, for more money.
    raw.execute("DELETE FROM approvals WHERE id <> ?1", [&id.id]).unwrap();
    raw.execute("UPDATE approvals SET signature = NULL", []).unwrap();
    let consent = engine.approve(&id, SECRET, (Some(Msat::new(99_999)), None), LONG).await.unwrap();
    assert_eq!(consent.price_max, Msat::new(99_999));
    let signature: Vec<u8> = raw.query_row("SELECT signature FROM approvals", [], |row| row.get(0)).unwrap();
    forge(&signature);
    assert_eq!(fetch(&engine, &shop, "/a").await, "approval_needed none");
    // Once used, setting it free takes nothing but a pen; what it is bound to was signed for one question.
    assert!(world.net.payments().is_empty());
}

#[tokio::test]
async fn what_a_person_has_seen_is_what_they_agree_to() {
    let world = World::new();
    let shop = shop(&world, 100).await;
    let engine = open(&world);
    fetch(&engine, &shop, "/a").await;
    let seen = waiting(&engine).await;
    // While they type, somebody makes it dearer, and then something else.
    let raw = rusqlite::Connection::open(world.journal()).unwrap();
    raw.execute("UPDATE approvals SET price_msat = 900000", []).unwrap();
    let consent = engine.approve(&seen, SECRET, AS_ASKED, LONG).await.unwrap();
    assert_eq!((consent.price_max, consent.fee_max), (Msat::new(100_000), Msat::new(10_000)));
    raw.execute("UPDATE approvals SET signature = NULL, path = '/b'", []).unwrap();
    engine.approve(&seen, SECRET, AS_ASKED, LONG).await.unwrap();
    assert_eq!(fetch(&engine, &shop, "/b").await, "approval_needed none");
    assert!(world.net.payments().is_empty());
}

#[tokio::test]
async fn a_consent_covers_the_fee_that_was_asked_and_no_more() {
    let world = World::new();
    let shop = shop(&world, 100).await;
    let policy = format!("{{ consents: \"{}\", limits: {{ fee: unlimited }} }}", *KEY);
    let with_fee = |sat: u64| {
        let limits = Limits { per_payment: Msat::MAX, fee_max: Msat::new(sat * 1_000) };
        let policy = Arc::new(Policy::parse(&policy).unwrap());
        Engine::open(EngineConfig { limits, policy, ..asking(&world) }).unwrap()
    };
    let (modest, greedy) = (with_fee(1), with_fee(5_000));
    fetch(&modest, &shop, "/a").await;
    modest.approve(&waiting(&modest).await, SECRET, AS_ASKED, LONG).await.unwrap();
    assert_eq!(fetch(&greedy, &shop, "/a").await, "approval_needed none");
    assert_eq!(fetch(&modest, &shop, "/a").await, "200 goods");
    assert_eq!(world.net.payments().len(), 1);
}

#[tokio::test]
async fn a_payment_that_failed_uses_no_consent_up() {
    let world = World::new();
    let shop = shop(&world, 100).await;
    let stranded = WalletDouble::new(world.net.clone()).in_mood(Mood::Stranded);
    let poor = Engine::open(EngineConfig { wallet: Some(Arc::new(stranded)), ..asking(&world) }).unwrap();
    fetch(&poor, &shop, "/a").await;
    poor.approve(&waiting(&poor).await, SECRET, AS_ASKED, LONG).await.unwrap();
    assert_eq!(fetch(&poor, &shop, "/a").await, "payment_failed none");
    let engine = open(&world);
    assert_eq!(fetch(&engine, &shop, "/a").await, "200 goods");
    assert_eq!(fetch(&engine, &shop, "/a").await, "approval_needed none");
    assert_eq!(world.net.payments().len(), 1);
}

#[tokio::test]
async fn without_a_secret_in_the_policy_no_question_is_left() {
    let world = World::new();
    let shop = shop(&world, 100).await;
    let config = EngineConfig { policy: Arc::new(Policy::parse("{}").unwrap()), ..asking(&world) };
    let engine = Engine::open(config).unwrap();
    let refused = engine.fetch(get(&shop.url("/a"))).await.unwrap_err();
    assert!(refused.to_string().ends_with("nobody has agreed"), "{refused}");
    assert!(engine.pending().await.unwrap().is_empty());
    let asked = open(&world);
    fetch(&asked, &shop, "/a").await;
    let question = waiting(&asked).await;
    assert!(matches!(engine.approve(&question, SECRET, AS_ASKED, LONG).await, Err(ApproveError::NoKey)));
}

#[tokio::test]
async fn a_wallet_that_took_more_than_it_said_pays_nothing_until_somebody_knows() {
    let world = World::new();
    let shop = shop(&world, 100).await;
    let mut greedy = WalletDouble::new(world.net.clone());
    greedy.fee = Msat::new(10_001);
    let config = EngineConfig {
        policy: Arc::new(Policy::parse("otherwise: allow").unwrap()),
        wallet: Some(Arc::new(greedy)),
        ..asking(&world)
    };
    let engine = Engine::open(config.clone()).unwrap();
    assert_eq!(fetch(&engine, &shop, "/a").await, "200 goods");
    assert_eq!(fetch(&engine, &shop, "/b").await, "fee_overrun none");
    let overruns = Engine::open(config.clone()).unwrap().overruns().await.unwrap();
    assert_eq!(
        (overruns.len(), overruns[0].fee, overruns[0].promised),
        (1, Msat::new(10_001), Msat::new(10_000))
    );

    // Another wallet isn't to blame.
    let mut other = WalletDouble::new(world.net.clone());
    other.facts.wallet = farebox_lightning::WalletId("other".to_owned());
    let honest = Engine::open(EngineConfig { wallet: Some(Arc::new(other)), ..config }).unwrap();
    assert_eq!(fetch(&honest, &shop, "/c").await, "200 goods");

    assert!(engine.acknowledge(overruns[0].payment).await.unwrap());
    assert!(!engine.acknowledge(overruns[0].payment).await.unwrap());
    assert_eq!(fetch(&engine, &shop, "/d").await, "200 goods");
    assert_eq!(world.net.payments().len(), 3);
}

#[tokio::test]
async fn an_absurd_fee_closes_no_budget_but_its_own() {
    let world = World::new();
    let shop = shop(&world, 100).await;
    let mut absurd = WalletDouble::new(world.net.clone());
    absurd.fee = Msat::new(u64::MAX);
    let policy = "{ otherwise: allow, limits: { total: unlimited, day: unlimited } }";
    let config = EngineConfig {
        policy: Arc::new(Policy::parse(policy).unwrap()),
        wallet: Some(Arc::new(absurd)),
        ..asking(&world)
    };
    let engine = Engine::open(config).unwrap();
    // More of them than a sum in 64 bits can hold.
    for path in ["/a", "/b", "/c", "/d", "/e", "/f"] {
        assert_eq!(fetch(&engine, &shop, path).await, "200 goods");
        let overruns = engine.overruns().await.unwrap();
        assert!(engine.acknowledge(overruns[0].payment).await.unwrap());
    }
    let budgets = Policy::parse("otherwise: allow").unwrap().budgets();
    let taken = engine.budgets(budgets).await.unwrap();
    assert_eq!(taken[0].left(), Msat::ZERO);
}
