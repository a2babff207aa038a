//! What all sessions share: the rules as they are now, the wallet, the engine, and what is remembered between calls.
//!
//! The policy is read again for every call. One that can't be read, or that has gone away, allows nothing: whoever takes the
//! rules away must not find them wider.

use std::{
    collections::VecDeque,
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
    sync::{OnceCell, Semaphore, SemaphorePermit},
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

/// So many calls are carried out at once; more wait.
const CALLS_MAX: usize = 64;
/// So many answers are kept under their idempotency keys.
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

/// See the module.
pub(crate) struct Desk {
    pub(super) settings: Arc<Settings>,
    open: tokio::sync::Mutex<Open>,
    has_seen_policy: AtomicBool,
    seats: Semaphore,
    keys: Mutex<VecDeque<Kept>>,
    unfinished: Mutex<VecDeque<(PaymentHash, FetchArgs)>>,
    notes: Mutex<Vec<String>>,
}

#[derive(Default)]
struct Open {
    wallet: Option<Wallet>,
    tried: Option<Instant>,
    engines: Vec<(Reach, Engine)>,
}

/// An answer under its name.
struct Kept {
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
            has_seen_policy: AtomicBool::new(false),
            seats: Semaphore::new(CALLS_MAX),
            keys: Mutex::default(),
            unfinished: Mutex::default(),
            notes: Mutex::default(),
        }
    }

    /// A place among the calls that are carried out; `None` never happens, since the places are never closed.
    pub(super) async fn seat(&self) -> Option<SemaphorePermit<'_>> {
        self.seats.acquire().await.ok()
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
        let mut open = self.open.lock().await;
        let again = open.tried.is_none_or(|tried| tried.elapsed() >= CONNECT_AGAIN);
        if purse == Purse::Needed && open.wallet.is_none() && again {
            match timeout(CONNECT_MAX, self.settings.wallet.connect()).await {
                Ok(Ok(wallet)) => open.wallet = wallet,
                Ok(Err(error)) => tracing::warn!(error = %format!("{error:#}"), "there is no wallet"),
                Err(_) => tracing::warn!("the wallet doesn't answer"),
            }
            open.tried = Some(Instant::now());
            if open.wallet.is_some() {
                // Those had no wallet, and so have no payment under way.
                open.engines.clear();
            }
        }
        if let Some((_, engine)) = open.engines.iter().find(|(of, _)| *of == reach) {
            return Ok(engine.clone());
        }
        let config = self.config(reach, open.wallet.as_ref().map(|wallet| Arc::clone(&wallet.pay)))?;
        let engine = tokio::task::spawn_blocking(move || Engine::open(config)).await??;
        open.engines.push((reach, engine.clone()));
        Ok(engine)
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
    pub(super) fn kept(&self, key: &str, args: &FetchArgs) -> Result<Arc<OnceCell<Told>>, Trouble> {
        let mut keys = self.keys.lock();
        if let Some(kept) = keys.iter().find(|kept| kept.key == key) {
            return match kept.args == *args {
                true => Ok(Arc::clone(&kept.told)),
                false => Err(Trouble::new(
                    "idempotency_conflict",
                    "another call was made under this `idempotency_key`; take a new one",
                )),
            };
        }
        let told = Arc::new(OnceCell::new());
        if keys.len() == KEYS_MAX {
            keys.pop_front();
        }
        keys.push_back(Kept { key: key.to_owned(), args: args.clone(), told: Arc::clone(&told) });
        Ok(told)
    }

    /// Remembers what was asked for where the outcome of the payment is open.
    pub(super) fn remember(&self, error: &FetchError, args: &FetchArgs) {
        let Money::Unknown { payment_hash, .. } = error.money() else { return };
        let mut unfinished = self.unfinished.lock();
        unfinished.retain(|(of, _)| of != payment_hash);
        if unfinished.len() == OPEN_MAX {
            unfinished.pop_front();
        }
        unfinished.push_back((*payment_hash, args.clone()));
    }

    /// What was asked for, once: whoever takes it sees to it.
    pub(super) fn recall(&self, payment: &PaymentHash) -> Option<FetchArgs> {
        let mut unfinished = self.unfinished.lock();
        let at = unfinished.iter().position(|(of, _)| of == payment)?;
        unfinished.remove(at).map(|(_, args)| args)
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
        let mut open = self.open.lock().await;
        for (_, engine) in open.engines.drain(..) {
            engine.close(CLOSE).await;
        }
        if let Some(wallet) = open.wallet.take() {
            wallet.stop().await;
        }
    }
}

/// Rules that allow nothing.
fn nothing() -> Policy {
    let none = Some(Msat::ZERO);
    let caps = Caps { payment: none, fee: none, hour: none, day: none, week: none, total: none };
    Policy { caps, new_origins: Verdict::Deny, otherwise: Verdict::Deny, ..Policy::without_file() }
}
