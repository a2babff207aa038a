//! What all sessions share: the rules as they are now, the wallet, the engine, and what is remembered between calls.
//!
//! The policy is read again for every call. One that can't be read, or that has gone away, allows nothing: whoever takes the
//! rules away must not find them wider.

use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use farebox_client::{
    Engine, EngineConfig, FetchError, HttpConfig, Limits, Money, Reach,
    policy::{Caps, Policy, Verdict},
};
use farebox_lightning::Pay;
use farebox_protocol::{Msat, PaymentHash};
use parking_lot::Mutex;
use tokio::{
    sync::{OnceCell, OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};

use super::{
    Folder,
    told::{Told, Trouble},
    tools::FetchArgs,
};
use crate::{
    buyer::{self, Asked, Files},
    wallet::{Wallet, WalletFlags},
};

/// So many calls of one caller are carried out at once; so many more wait, and the rest are refused.
const CALLS_MAX: usize = 32;
const WAITING_MAX: usize = 64;
/// So many answers to one caller are kept under their idempotency keys. No fewer than calls are carried out at once, so that
/// there is always one to give up that nobody waits for.
const KEYS_MAX: usize = 32;
/// So many requests are remembered whose payment is open.
const OPEN_MAX: usize = 64;
/// How long connecting to the wallet may take, and how long to leave it alone after that has failed.
const CONNECT_MAX: Duration = Duration::from_secs(15);
const CONNECT_AGAIN: Duration = Duration::from_secs(5);
/// How long to wait at the end for payments under way; what has not ended is in the journal.
const CLOSE: Duration = Duration::from_secs(5);

/// How the person who runs this wants it.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) files: Files,
    pub(crate) wallet: WalletFlags,
    /// Caps of the command line.
    pub(crate) asked: Asked,
    /// On whose behalf: what rules of the policy may look at.
    pub(crate) label: Option<String>,
    /// Where `save_to` leads, if anywhere.
    pub(crate) folder: Option<Folder>,
    /// Longer files are not finished.
    pub(crate) file_bytes_max: u64,
    /// Longer bodies go to a file or nowhere.
    pub(crate) inline_bytes_max: usize,
    /// Where to go, except for [`HttpConfig::reach`], which the policy says.
    pub(crate) http: HttpConfig,
}

/// Who calls: this user of the machine, or whoever else was let in. What one has asked for is nothing to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Caller(pub(crate) Option<u32>);

/// See the module.
pub(crate) struct Desk {
    pub(super) settings: Arc<Settings>,
    open: tokio::sync::Mutex<Open>,
    /// Held by whoever connects to the wallet, which may take long: when that was tried last.
    connecting: tokio::sync::Mutex<Option<Instant>>,
    has_seen_policy: AtomicBool,
    lines: Mutex<HashMap<(Caller, Errand), Line>>,
    keys: Mutex<VecDeque<Kept>>,
    unfinished: Mutex<VecDeque<(Caller, PaymentHash, FetchArgs)>>,
    notes: Mutex<Vec<String>>,
}

#[derive(Default)]
struct Open {
    wallet: Option<Wallet>,
    engines: Vec<(Reach, Engine)>,
}

/// What a call may have to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Errand {
    /// The journal.
    Look,
    /// Servers and wallets, which may be silent for as long as they like.
    Abroad,
}

/// The calls of one caller.
#[derive(Clone)]
struct Line {
    all: Arc<Semaphore>,
    at_once: Arc<Semaphore>,
}

/// A place among the calls that are carried out.
pub(super) struct Seat {
    _place: OwnedSemaphorePermit,
    _turn: OwnedSemaphorePermit,
}

/// An answer under its name.
struct Kept {
    caller: Caller,
    key: String,
    args: FetchArgs,
    told: Arc<OnceCell<Told>>,
}

/// Whether a call may have to pay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purse {
    Needed,
    Unneeded,
}

/// The engine under the rules of this moment.
pub(super) struct Counter {
    pub(super) engine: Engine,
    pub(super) policy: Arc<Policy>,
    pub(super) limits: Limits,
    pub(super) rules: Rules,
}

/// Where the rules are from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rules {
    File,
    /// Nobody has written any: the usual caps.
    Usual,
    /// They can't be read: nothing is paid.
    Unreadable,
}

impl Desk {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            settings: Arc::new(settings),
            open: tokio::sync::Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
            has_seen_policy: AtomicBool::new(false),
            lines: Mutex::default(),
            keys: Mutex::default(),
            unfinished: Mutex::default(),
            notes: Mutex::default(),
        }
    }

    /// A place among the calls that are carried out. Nobody's calls keep those of others waiting, nor do calls that hang keep
    /// their own caller from looking.
    pub(super) async fn seat(&self, caller: Caller, errand: Errand) -> Result<Seat, Trouble> {
        let line = self.lines.lock().entry((caller, errand)).or_default().clone();
        let message = "too many calls wait already; make this one again when some have ended";
        let busy = |_| Trouble::new("busy", message).retryable();
        let place = line.all.try_acquire_owned().map_err(busy)?;
        // It is never closed.
        let turn = line.at_once.acquire_owned().await.map_err(|_| Trouble::cancelled())?;
        Ok(Seat { _place: place, _turn: turn })
    }

    /// The engine, under today's rules and at most `max_sats` for the price of a payment.
    pub(super) async fn counter(&self, max_sats: Option<u64>, purse: Purse) -> Result<Counter, Trouble> {
        let (written, rules) = self.policy().await;
        let (policy, mut limits) = match rules {
            Rules::Unreadable => (nothing(), Limits { per_payment: Msat::ZERO, fee_max: Msat::ZERO }),
            _ => buyer::binding(written, self.settings.asked),
        };
        if let Some(sats) = max_sats {
            limits.per_payment = limits.per_payment.min(Msat::new(sats.saturating_mul(1_000)));
        }
        let reach = if policy.private_targets { Reach::Anywhere } else { Reach::Public };
        let policy = Arc::new(policy);
        let engine = self.engine(reach, purse).await.map_err(|error| Trouble::internal(&error))?;
        Ok(Counter { engine: engine.under(Arc::clone(&policy), limits), policy, limits, rules })
    }

    /// Reads the rules.
    async fn policy(&self) -> (Option<Policy>, Rules) {
        let settings = Arc::clone(&self.settings);
        let read = tokio::task::spawn_blocking(move || settings.files.policy()).await;
        match read.map_err(anyhow::Error::from).and_then(std::convert::identity) {
            Ok(Some(policy)) => {
                self.has_seen_policy.store(true, Ordering::Relaxed);
                (Some(policy), Rules::File)
            }
            Ok(None) if !self.has_seen_policy.load(Ordering::Relaxed) => (None, Rules::Usual),
            Ok(None) => {
                tracing::error!("the policy is gone; nothing is paid until it is back");
                (None, Rules::Unreadable)
            }
            Err(error) => {
                tracing::error!(error = %format!("{error:#}"), "nothing is paid until the policy can be read");
                (None, Rules::Unreadable)
            }
        }
    }

    async fn engine(&self, reach: Reach, purse: Purse) -> anyhow::Result<Engine> {
        if purse == Purse::Needed {
            self.connect().await;
        }
        let mut open = self.open.lock().await;
        if let Some((_, engine)) = open.engines.iter().find(|(of, _)| *of == reach) {
            return Ok(engine.clone());
        }
        let config = self.config(reach, open.wallet.as_ref().map(|wallet| Arc::clone(&wallet.pay)))?;
        let engine = tokio::task::spawn_blocking(move || Engine::open(config)).await??;
        open.engines.push((reach, engine.clone()));
        Ok(engine)
    }

    /// Connects to the wallet, unless that is done, or has just failed. Who needs none doesn't wait for it.
    async fn connect(&self) {
        let mut tried = self.connecting.lock().await;
        let is_early = tried.is_some_and(|tried| tried.elapsed() < CONNECT_AGAIN);
        if is_early || self.open.lock().await.wallet.is_some() {
            return;
        }
        let wallet = match timeout(CONNECT_MAX, self.settings.wallet.connect()).await {
            Ok(Ok(wallet)) => wallet,
            Ok(Err(error)) => {
                tracing::warn!(error = %format!("{error:#}"), "there is no wallet");
                None
            }
            Err(_) => {
                tracing::warn!("the wallet doesn't answer");
                None
            }
        };
        *tried = Some(Instant::now());
        if wallet.is_some() {
            let mut open = self.open.lock().await;
            open.wallet = wallet;
            // Those had no wallet, and so have no payment under way.
            open.engines.clear();
        }
    }

    fn config(&self, reach: Reach, wallet: Option<Arc<dyn Pay>>) -> anyhow::Result<EngineConfig> {
        let Settings { files, http, label, .. } = &*self.settings;
        Ok(EngineConfig {
            wallet,
            label: label.clone(),
            http: HttpConfig { reach, ..http.clone() },
            // Every call brings its own.
            policy: Arc::new(nothing()),
            ..EngineConfig::new(files.journal()?)
        })
    }

    /// The place for the answer to this call, under its name.
    pub(super) fn kept(
        &self,
        caller: Caller,
        key: &str,
        args: &FetchArgs,
    ) -> Result<Arc<OnceCell<Told>>, Trouble> {
        let mut keys = self.keys.lock();
        if let Some(kept) = keys.iter().find(|kept| kept.caller == caller && kept.key == key) {
            return match kept.args == *args {
                true => Ok(Arc::clone(&kept.told)),
                false => Err(Trouble::new(
                    "idempotency_conflict",
                    "another call was made under this `idempotency_key`; take a new one",
                )),
            };
        }
        let told = Arc::new(OnceCell::new());
        if keys.iter().filter(|kept| kept.caller == caller).count() >= KEYS_MAX {
            // Not one that is being carried out: under its name the same call would be made a second time.
            let idle =
                keys.iter().position(|kept| kept.caller == caller && Arc::strong_count(&kept.told) == 1);
            idle.map(|oldest| keys.remove(oldest));
        }
        keys.push_back(Kept { caller, key: key.to_owned(), args: args.clone(), told: Arc::clone(&told) });
        Ok(told)
    }

    /// Remembers what was asked for where the outcome of the payment is open.
    pub(super) fn remember(&self, caller: Caller, error: &FetchError, args: &FetchArgs) {
        let Money::Unknown { payment_hash, .. } = error.money() else { return };
        let mut unfinished = self.unfinished.lock();
        unfinished.retain(|(_, of, _)| of != payment_hash);
        if unfinished.len() == OPEN_MAX {
            unfinished.pop_front();
        }
        unfinished.push_back((caller, *payment_hash, args.clone()));
    }

    /// What was asked for, once: whoever takes it sees to it.
    pub(super) fn recall(&self, caller: Caller, payment: &PaymentHash) -> Option<FetchArgs> {
        let mut unfinished = self.unfinished.lock();
        let at = unfinished.iter().position(|(by, of, _)| (*by, of) == (caller, payment))?;
        unfinished.remove(at).map(|(_, _, args)| args)
    }

    /// Says once, on standard error and from then on in `farebox_budget`, what a person should know.
    pub(crate) fn note(&self, note: String) {
        let mut notes = self.notes.lock();
        if !notes.contains(&note) {
            tracing::warn!("{note}");
            notes.push(note);
        }
    }

    pub(super) fn notes(&self) -> Vec<String> {
        self.notes.lock().clone()
    }

    /// Ends everything, waiting for a while for payments under way.
    pub(crate) async fn close(&self) {
        let _connected = self.connecting.lock().await;
        let mut open = self.open.lock().await;
        for (_, engine) in open.engines.drain(..) {
            engine.close(CLOSE).await;
        }
        if let Some(wallet) = open.wallet.take() {
            wallet.stop().await;
        }
    }
}

impl Default for Line {
    fn default() -> Self {
        let seats = |most| Arc::new(Semaphore::new(most));
        Self { all: seats(CALLS_MAX + WAITING_MAX), at_once: seats(CALLS_MAX) }
    }
}

/// Rules that allow nothing.
fn nothing() -> Policy {
    let none = Some(Msat::ZERO);
    let caps = Caps { payment: none, fee: none, hour: none, day: none, week: none, total: none };
    Policy { caps, new_origins: Verdict::Deny, otherwise: Verdict::Deny, ..Policy::without_file() }
}

#[cfg(test)]
impl Desk {
    /// One at which nothing is bought.
    pub(super) fn for_tests() -> Self {
        #[derive(clap::Parser)]
        struct Flags {
            #[command(flatten)]
            files: Files,
            #[command(flatten)]
            wallet: WalletFlags,
        }
        let Flags { files, wallet } = clap::Parser::parse_from(["a test"]);
        Self::new(Settings {
            files,
            wallet,
            asked: Asked::default(),
            label: None,
            folder: None,
            file_bytes_max: 0,
            inline_bytes_max: 0,
            http: HttpConfig::default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desk() -> Desk {
        Desk::for_tests()
    }

    fn args(url: &str) -> FetchArgs {
        serde_json::from_value(serde_json::json!({ "url": url })).unwrap()
    }

    #[test]
    fn a_name_that_one_caller_has_given_is_free_for_another() {
        let (desk, one, other) = (desk(), Caller(Some(1)), Caller(Some(2)));
        let first = desk.kept(one, "a", &args("https://a.example")).unwrap();
        let same = desk.kept(one, "a", &args("https://a.example")).unwrap();
        assert!(Arc::ptr_eq(&first, &same));
        assert_eq!(
            desk.kept(one, "a", &args("https://b.example")).unwrap_err().code(),
            "idempotency_conflict"
        );
        let others = desk.kept(other, "a", &args("https://a.example")).unwrap();
        assert!(!Arc::ptr_eq(&first, &others));
    }

    #[test]
    fn a_call_that_is_being_carried_out_keeps_its_name_however_many_come() {
        let (desk, one) = (desk(), Caller(None));
        let first = desk.kept(one, "first", &args("https://a.example")).unwrap();
        for number in 0..2 * KEYS_MAX {
            desk.kept(one, &number.to_string(), &args("https://a.example")).unwrap();
            desk.kept(Caller(Some(7)), &number.to_string(), &args("https://a.example")).unwrap();
        }
        let same = desk.kept(one, "first", &args("https://a.example")).unwrap();
        assert!(Arc::ptr_eq(&first, &same));
        assert_eq!(desk.keys.lock().len(), 2 * KEYS_MAX);
    }

    #[test]
    fn what_one_caller_left_open_is_not_fetched_for_another() {
        let (desk, payment) = (desk(), PaymentHash::from_bytes([7; 32]));
        desk.unfinished.lock().push_back((Caller(Some(1)), payment, args("https://a.example")));
        assert!(desk.recall(Caller(Some(2)), &payment).is_none());
        assert!(desk.recall(Caller(Some(1)), &payment).is_some());
    }

    #[tokio::test]
    async fn nobody_waits_for_the_calls_of_somebody_else() {
        let desk = desk();
        let mut seats = Vec::new();
        for _ in 0..CALLS_MAX {
            seats.push(desk.seat(Caller(Some(1)), Errand::Abroad).await.unwrap());
        }
        assert!(desk.seat(Caller(Some(2)), Errand::Abroad).await.is_ok());
        assert!(desk.seat(Caller(Some(1)), Errand::Look).await.is_ok());
    }
}
