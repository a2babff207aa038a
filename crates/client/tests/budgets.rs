//! Budgets and rules over real sockets and one journal: how much is paid by many at once, and what a person is asked.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

mod support;

use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use farebox_client::{
    Approve, Engine, EngineConfig, Limits, Question,
    policy::{Policy, Verdict},
};
use farebox_protocol::Msat;
use support::{Mood, Shop, World, get, told};

/// A shop whose every path is a service of its own, for 1,000 sat.
async fn shop(world: &World) -> Shop {
    Shop::with(&world.net, |till, asked| {
        let service = asked.path.trim_start_matches('/').to_owned();
        match till.paid(&asked.headers) {
            Some(_) if till.is_for(&asked.headers, &service) => till.serve("goods"),
            _ => till.challenge(&service, 1_000),
        }
    })
    .await
}

fn with_policy(world: &World, policy: &str) -> EngineConfig {
    EngineConfig {
        policy: Arc::new(Policy::parse(policy).unwrap()),
        limits: Limits { per_payment: Msat::MAX, fee_max: Msat::new(10_000) },
        ..world.config()
    }
}

/// Five purchases at once, by engines in turn; what each came to.
async fn five(shop: &Shop, engines: &[Engine]) -> Vec<String> {
    let mut requests = tokio::task::JoinSet::new();
    for number in 0..5 {
        let engine = engines[number % engines.len()].clone();
        let url = shop.url(&format!("/{number}"));
        requests.spawn(async move {
            match engine.fetch(get(&url)).await {
                Ok(answer) => told(Ok(answer)).await,
                Err(error) => error.to_string(),
            }
        });
    }
    let mut told = requests.join_all().await;
    told.sort();
    told
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_five_at_once_as_many_are_paid_as_the_budget_holds() {
    let policy = "{ otherwise: allow, limits: { payment: unlimited, day: unlimited, hour: 1010sat } }";
    let world = World::new();
    let shop = shop(&world).await;
    let engines = [0, 1].map(|_| Engine::open(with_policy(&world, policy)).unwrap());
    let answers = five(&shop, &engines).await;
    let (paid, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| *answer == "200 goods");
    assert_eq!((paid.len(), refused.len()), (1, 4));
    for refusal in refused {
        assert!(refusal.contains("(all payments: 1010 sat within an hour)"), "{refusal}");
    }
    assert_eq!(world.net.payments().len(), 1);

    // Another process, later: the journal remembers, and a quote says so before anything is tried.
    let again = Engine::open(with_policy(&world, policy)).unwrap();
    let quote = again.quote(get(&shop.url("/7"))).await.unwrap();
    assert_eq!(quote.refusal.map(|refusal| refusal.code()), Some("over_budget"));
    assert_eq!(told(again.fetch(get(&shop.url("/7"))).await).await, "over_budget none");
}

#[tokio::test]
async fn the_fee_that_may_come_is_part_of_what_is_needed() {
    let policy = "{ otherwise: allow, limits: { payment: unlimited, day: unlimited, hour: 1009sat } }";
    let world = World::new();
    let shop = shop(&world).await;
    let engine = Engine::open(with_policy(&world, policy)).unwrap();
    let answers = five(&shop, &[engine]).await;
    for answer in &answers {
        assert!(answer.contains("this needs 1000 sat and a fee reserve of 10 sat"), "{answer}");
    }
    assert_eq!(answers.len(), 5);
    assert!(world.net.payments().is_empty());
}

#[tokio::test]
async fn a_payment_that_nobody_knows_the_end_of_keeps_its_place() {
    let policy = "{ otherwise: allow, limits: { payment: unlimited, day: unlimited, total: 2000sat } }";
    let world = World::new();
    let shop = shop(&world).await;
    let lost = support::WalletDouble::new(world.net.clone()).in_mood(Mood::Lost);
    let config = EngineConfig {
        wallet: Some(Arc::new(lost)),
        patience: std::time::Duration::ZERO,
        ..with_policy(&world, policy)
    };
    let engine = Engine::open(config).unwrap();
    assert_eq!(told(engine.fetch(get(&shop.url("/0"))).await).await, "payment_unknown unknown");
    let prompt = Engine::open(with_policy(&world, policy)).unwrap();
    assert_eq!(told(prompt.fetch(get(&shop.url("/1"))).await).await, "over_budget none");
}

#[tokio::test]
async fn a_rule_that_denies_costs_nothing_and_names_itself() {
    let policy = "{ otherwise: allow, rules: [{ name: no shops, when: { host: [127.0.0.1] }, then: deny }] }";
    let world = World::new();
    let shop = shop(&world).await;
    let engine = Engine::open(with_policy(&world, policy)).unwrap();
    let error = engine.fetch(get(&shop.url("/0"))).await.unwrap_err();
    assert_eq!(error.code(), "denied");
    assert!(error.to_string().contains("rule `no shops`"), "{error}");
    assert!(world.net.payments().is_empty());
}

/// Agrees to everything up to a price, and counts how often it is asked.
struct Person {
    up_to: Msat,
    asked: AtomicUsize,
}

impl Approve for Person {
    fn ask(&self, question: Question) -> Pin<Box<dyn Future<Output = bool> + Send + '_>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        assert_eq!(question.rule, None);
        Box::pin(ready(question.price <= self.up_to))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_person_is_asked_once_for_many_who_want_the_same() {
    let world = World::new();
    let shop = shop(&world).await;
    let person = Arc::new(Person { up_to: Msat::new(1_000_000), asked: AtomicUsize::new(0) });
    let config = EngineConfig { approver: Some(person.clone()), ..with_policy(&world, "{}") };
    let engine = Engine::open(config).unwrap();
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let (engine, url) = (engine.clone(), shop.url("/0"));
        requests.spawn(async move { told(engine.fetch(get(&url)).await).await });
    }
    assert_eq!(requests.join_all().await, ["200 goods"; 5]);
    assert_eq!(person.asked.load(Ordering::SeqCst), 1);
    assert_eq!(world.net.payments().len(), 1);
}

#[tokio::test]
async fn where_nobody_agrees_nothing_is_paid() {
    let world = World::new();
    let shop = shop(&world).await;
    let silent = Engine::open(with_policy(&world, "{}")).unwrap();
    assert_eq!(told(silent.fetch(get(&shop.url("/0"))).await).await, "approval_needed none");
    let stingy = Arc::new(Person { up_to: Msat::new(999_999), asked: AtomicUsize::new(0) });
    let config = EngineConfig { approver: Some(stingy), ..with_policy(&world, "{}") };
    let engine = Engine::open(config).unwrap();
    assert_eq!(told(engine.fetch(get(&shop.url("/0"))).await).await, "approval_needed none");
    assert!(world.net.payments().is_empty());
}

#[tokio::test]
async fn a_new_seller_is_asked_about_and_one_that_was_paid_is_not() {
    let world = World::new();
    let shop = shop(&world).await;
    let person = Arc::new(Person { up_to: Msat::MAX, asked: AtomicUsize::new(0) });
    let policy = "{ otherwise: allow, new-origins: ask }";
    let config = EngineConfig { approver: Some(person.clone()), ..with_policy(&world, policy) };
    let engine = Engine::open(config).unwrap();
    for path in ["/0", "/1"] {
        assert_eq!(told(engine.fetch(get(&shop.url(path))).await).await, "200 goods");
    }
    assert_eq!(person.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn the_policy_explains_itself() {
    let world = World::new();
    let policy = "
        new-origins: ask
        limits: { day: 5000sat }
        rules:
          - { name: shops, when: { path: [/1] }, then: allow, limits: { hour: 3000sat } }
    ";
    let shop = shop(&world).await;
    let person = Arc::new(Person { up_to: Msat::MAX, asked: AtomicUsize::new(0) });
    let engine =
        Engine::open(EngineConfig { approver: Some(person), ..with_policy(&world, policy) }).unwrap();
    let ask = || http::Request::get(shop.url("/1")).body(()).unwrap();
    let before = engine.explain(&ask()).await.unwrap();
    assert_eq!((before.judgement.verdict, before.is_new), (Verdict::Ask, true));
    assert_eq!(told(engine.fetch(get(&shop.url("/1"))).await).await, "200 goods");
    let after = engine.explain(&ask()).await.unwrap();
    assert_eq!((after.judgement.verdict, after.judgement.rule.as_deref()), (Verdict::Allow, Some("shops")));
    let left: Vec<_> =
        after.budgets.iter().map(|used| (used.budget.to_string(), used.left().get() / 1_000)).collect();
    assert_eq!(
        left,
        [
            ("all payments: 5000 sat within a day".to_owned(), 3_999),
            ("rule \"shops\": 3000 sat within an hour".to_owned(), 1_999)
        ]
    );
}

/// Agrees to everything, and counts how often it is asked, about whatever rule.
#[derive(Default)]
struct Agreeing(AtomicUsize);

impl Approve for Agreeing {
    fn ask(&self, _: Question) -> Pin<Box<dyn Future<Output = bool> + Send + '_>> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Box::pin(ready(true))
    }
}

#[tokio::test]
async fn a_payment_that_was_lost_is_sent_again_only_as_the_policy_of_now_has_it() {
    let world = World::new();
    let shop = shop(&world).await;
    let lost = support::WalletDouble::new(world.net.clone()).in_mood(Mood::Lost);
    let config = EngineConfig {
        wallet: Some(Arc::new(lost)),
        patience: std::time::Duration::ZERO,
        ..with_policy(&world, "otherwise: allow")
    };
    let begun = Engine::open(config).unwrap();
    assert_eq!(told(begun.fetch(get(&shop.url("/0"))).await).await, "payment_unknown unknown");
    let raw = rusqlite::Connection::open(world.journal()).unwrap();
    raw.execute("UPDATE purchases SET holder = 'an-earlier-boot/pid:[1]/1/1/1'", []).unwrap();

    for (policy, why) in [
        ("{ otherwise: allow, limits: { payment: 999sat } }", "above the limit of 999 sat"),
        ("{ otherwise: allow, limits: { hour: 1009sat } }", "no room in the budget"),
        (
            "{ otherwise: allow, rules: [{ name: a, limits: { total: 0sat } }] }",
            "no room in the budget (rule \"a\"",
        ),
        ("{ otherwise: allow, rules: [{ name: a, then: deny }] }", "denies"),
        ("{ otherwise: allow, new-origins: deny }", "denies"),
        ("{ otherwise: allow, new-origins: ask }", "nobody has agreed"),
        ("{}", "nobody has agreed"),
    ] {
        let engine = Engine::open(with_policy(&world, policy)).unwrap();
        let error = engine.fetch(get(&shop.url("/0"))).await.unwrap_err();
        // Some are refused before the earlier payment is even looked at.
        assert!(error.to_string().contains(why), "{policy}: {error}");
        assert!(world.net.payments().is_empty(), "{policy}");
    }
    let person = Arc::new(Agreeing::default());
    let config = EngineConfig { approver: Some(person.clone()), ..with_policy(&world, "{}") };
    let engine = Engine::open(config).unwrap();
    assert_eq!(told(engine.fetch(get(&shop.url("/0"))).await).await, "200 goods");
    assert_eq!((person.0.load(Ordering::SeqCst), world.net.payments().len()), (1, 1));
}
