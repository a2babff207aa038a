//! A buyer in a process of its own: the test program, started again with variables that make one of its tests buy.
//!
//! Buyers share a wallet double whose books are files (see [`super::wallet`]): no money moves, but each move is counted.

use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use farebox_client::{Engine, EngineConfig, Limits, policy::Policy};
use farebox_lightning::clock::{Clock, SystemClock};
use farebox_protocol::{Msat, Timestamp};

use super::{Mood, Net, Shop, WalletDouble, World, config, get, told};

const URL: &str = "FAREBOX_TEST_URL";
const JOURNAL: &str = "FAREBOX_TEST_JOURNAL";
const NET: &str = "FAREBOX_TEST_NET";
const MOOD: &str = "FAREBOX_TEST_MOOD";
const PROOF: &str = "FAREBOX_TEST_PROOF";
const TASKS: &str = "FAREBOX_TEST_TASKS";
const POLICY: &str = "FAREBOX_TEST_POLICY_TEXT";
const AHEAD: &str = "FAREBOX_TEST_CLOCK_AHEAD";

/// What the wallet can tell of a payment that it doesn't find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proof {
    /// That it was never sent.
    Unsent,
    /// Nothing, but it refuses to pay a hash twice.
    RefusesTwice,
    /// Nothing at all.
    None,
}

/// What a buyer is told to do.
pub(crate) struct Buyer(pub(crate) Command);

impl Buyer {
    /// One that buys `/goods`. The test program has a test called `the_buyer_that_other_tests_start`, which calls [`buy`].
    pub(crate) fn new(world: &World, shop: &Shop, mood: Mood, proof: Proof) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "the_buyer_that_other_tests_start", "--nocapture", "--test-threads=1"])
            .env(URL, shop.url("/goods"))
            .env(JOURNAL, world.journal())
            .env(NET, world.net.path())
            .env(MOOD, format!("{mood:?}"))
            .env(PROOF, format!("{proof:?}"))
            .env_remove("FAREBOX_FAILPOINT")
            .env_remove("FAREBOX_WAIT_AT")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Self(command)
    }

    /// That wants something else.
    pub(crate) fn of(mut self, url: &str) -> Self {
        self.0.env(URL, url);
        self
    }

    /// So many times at once.
    pub(crate) fn times(mut self, tasks: usize) -> Self {
        self.0.env(TASKS, tasks.to_string());
        self
    }

    /// Under this policy alone.
    pub(crate) fn under(mut self, policy: &str) -> Self {
        self.0.env(POLICY, policy);
        self
    }

    /// Whose clock is ahead of everybody else's: to it, leases that are held have run out.
    pub(crate) fn ahead(mut self, by: Duration) -> Self {
        self.0.env(AHEAD, by.as_secs().to_string());
        self
    }

    /// That dies at this place.
    pub(crate) fn dies_at(mut self, point: &str) -> Self {
        self.0.env("FAREBOX_FAILPOINT", point);
        self
    }

    /// That waits for who holds its journal for a moment only, so that nobody has to sit out the usual time.
    pub(crate) fn in_a_hurry(mut self) -> Self {
        self.0.env("FAREBOX_BUSY_MS", "200");
        self
    }

    /// Runs it to its end.
    pub(crate) fn output(mut self) -> Output {
        self.0.output().unwrap()
    }

    /// Starts it.
    pub(crate) fn spawn(mut self) -> std::process::Child {
        self.0.spawn().unwrap()
    }
}

/// What a buyer said: the line that it marked.
pub(crate) fn said(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.split_once("BUYER: "));
    let nothing = || format!("nothing, {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    line.map_or_else(nothing, |(_, said)| said.to_owned())
}

/// A clock that is ahead.
struct Ahead(Duration);

impl Clock for Ahead {
    fn now(&self) -> Timestamp {
        SystemClock.now().saturating_add(self.0)
    }
}

/// Buys as the environment says, and says what came of it. Does nothing where no buyer is wanted.
pub(crate) fn buy() {
    let Ok(url) = std::env::var(URL) else { return };
    let var = |name| std::env::var(name).unwrap();
    let mood = [Mood::Prompt, Mood::Slow, Mood::Mute, Mood::Stranded, Mood::Lost]
        .into_iter()
        .find(|mood| format!("{mood:?}") == var(MOOD))
        .unwrap();
    let mut wallet = WalletDouble::new(Net::at(var(NET))).in_mood(mood);
    (wallet.facts.proves_unsent, wallet.facts.refuses_paid_hash) = match var(PROOF).as_str() {
        "Unsent" => (true, false),
        "RefusesTwice" => (false, true),
        _ => (false, false),
    };
    let mut config = EngineConfig { wallet: Some(Arc::new(wallet)), ..config(var(JOURNAL).as_ref()) };
    if let Ok(policy) = std::env::var(POLICY) {
        config.policy = Arc::new(Policy::parse(&policy).unwrap());
        config.limits = Limits { per_payment: Msat::MAX, fee_max: Msat::new(10_000) };
    }
    if let Ok(ahead) = std::env::var(AHEAD) {
        config.clock = Arc::new(Ahead(Duration::from_secs(ahead.parse().unwrap())));
    }
    let tasks: usize = std::env::var(TASKS).map_or(1, |tasks| tasks.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let answers = runtime.block_on(async {
        let Ok(engine) = Engine::open(config) else { return vec!["no journal none".to_owned()] };
        let mut fetching = tokio::task::JoinSet::new();
        for _ in 0..tasks {
            let (engine, url) = (engine.clone(), url.clone());
            fetching.spawn(async move { told(engine.fetch(get(&url)).await).await });
        }
        let answers = fetching.join_all().await;
        engine.close(Duration::from_secs(5)).await;
        answers
    });
    let first = answers[0].clone();
    assert!(answers.iter().all(|answer| *answer == first), "{answers:?}");
    println!("BUYER: {first}");
}
