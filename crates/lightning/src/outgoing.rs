//! The one place where money leaves: a durable machine around [`Pay`], for a buyer's purchases and a seller's refunds.
//!
//! ```text
//! recorded --> sent --> settled        recorded   on disk, the wallet has not been asked
//!                 \---> failed         sent       on disk before `Pay::pay` is called
//!                 \---> unknown ...    unknown    only a lookup, or a person, tells
//! ```
//! It keeps three rules. The intent is on disk before the wallet is asked. The payment runs in a task of its own, so
//! that a caller who goes away stops nothing. And one payment hash is paid at most once: a row that was sent is only
//! looked up, unless the wallet is proven not to have sent it or refuses to pay a hash twice. Amounts, budgets and
//! whether to pay at all are the caller's business.

mod failpoint;
mod intent;
mod judge;
mod run;
pub mod sqlite;

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use farebox_protocol::{Msat, Network, PaymentHash, Preimage, Timestamp};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use failpoint::FAILPOINTS;
pub use intent::{Failure, Intent, IntentError, Intents, NewIntent, State};

use crate::{Pay, PayFacts, PayRequest, clock::Clock};

/// How patient the machine is.
#[derive(Clone, Debug)]
pub struct OutgoingConfig {
    /// Payments under way at once; more are refused before anything is written.
    pub payments_max: usize,
    /// How long one lookup may take.
    pub lookup_timeout: Duration,
    /// The wait before the second lookup of an open payment (or before a failed write is tried again); it doubles each
    /// time.
    pub retry_first: Duration,
    /// The longest such wait.
    pub retry_max: Duration,
    /// After so many lookups that prove nothing (not found, nonsense) the payment is left to a person, or to the next
    /// start. Lookups that say "in flight", or don't answer, are repeated for ever.
    pub empty_lookups_max: u32,
}

impl Default for OutgoingConfig {
    fn default() -> Self {
        Self {
            payments_max: 256,
            lookup_timeout: Duration::from_secs(30),
            retry_first: Duration::from_millis(500),
            retry_max: Duration::from_secs(60),
            empty_lookups_max: 10,
        }
    }
}

/// How a payment ended, as far as is known.
#[derive(Clone, Debug)]
pub enum Ended {
    /// Paid.
    Settled(Paid),
    /// Not paid: what was kept aside may be released.
    NotPaid(Failure),
    /// Perhaps paid: keep the money aside. The machine goes on asking; [`Outgoing::wait`] tells more later.
    Unknown {
        /// Why the outcome isn't known.
        reason: String,
    },
}

/// A payment that was made.
#[derive(Clone, Debug)]
pub struct Paid {
    /// The proof; it hashes to the payment hash.
    pub preimage: Preimage,
    /// What the route cost.
    pub fee: Msat,
    /// The proof is in the journal. If not, the machine keeps trying to write it; so should the caller.
    pub on_disk: bool,
}

/// Why a payment was not begun. Nothing has been paid by this call.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutgoingError {
    /// An invoice without an amount lets the payee ask for anything.
    #[error("the invoice names no amount; ask for one that does")]
    AmountMissing,
    /// Too late.
    #[error("the invoice expired at {expired}, now {now}; ask for a new one")]
    Expired {
        /// When it did.
        expired: Timestamp,
        /// The present moment.
        now: Timestamp,
    },
    /// The wallet can't pay on the invoice's network.
    #[error("the invoice is for {invoice}, the wallet is on {wallet}")]
    OtherNetwork {
        /// Where the invoice is to be paid.
        invoice: Network,
        /// Where the wallet's money is.
        wallet: Network,
    },
    /// The wallet can't be held to the limit.
    #[error(
        "the route may cost {worst}, the limit is {limit}, and this wallet can't be held to it; raise the limit"
    )]
    FeeLimit {
        /// The caller's limit.
        limit: Msat,
        /// What the wallet may spend all the same.
        worst: Msat,
    },
    /// The journal could not be written, so the wallet was not asked.
    #[error(transparent)]
    Journal(Arc<IntentError>),
    /// Too many at once.
    #[error("{max} payments are under way already; try again when some have ended")]
    Busy {
        /// How many are allowed.
        max: usize,
    },
    /// The machine is being stopped.
    #[error("the program is stopping")]
    Stopping,
}

/// What a person says has become of a payment that no lookup could explain.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Resolution {
    /// It was paid, and here is the proof.
    Settled {
        /// The proof.
        preimage: Preimage,
        /// What the route cost.
        fee: Msat,
    },
    /// It was not paid.
    NotPaid {
        /// How they know; kept in the journal.
        note: String,
    },
}

/// Why a person's word was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// There is nothing to resolve: the row has ended, or its wallet is being asked at this moment.
    #[error(
        "payment `{hash}` is `{state}`; only one that is `recorded` or `unknown`, and not under way, can be resolved"
    )]
    NotOpen {
        /// Which payment.
        hash: PaymentHash,
        /// The state that it is in.
        state: &'static str,
    },
    /// The proof proves nothing.
    #[error("this is not the preimage of payment `{0}`")]
    WrongPreimage(PaymentHash),
    /// The journal could not be used.
    #[error("the payment was not resolved")]
    Journal(#[from] IntentError),
}

/// What a start found in the journal.
#[derive(Debug, Default)]
pub struct Resumed {
    /// Never sent. The caller pays them again, or lets them be.
    pub recorded: Vec<Intent>,
    /// Sent by an earlier run, with what the first lookup said. Those still unknown are being followed.
    pub sent: Vec<(PaymentHash, Ended)>,
}

/// The machine. Cheap to clone; one per wallet and process.
#[derive(Clone)]
pub struct Outgoing(Arc<Machine>);

struct Machine {
    wallet: Arc<dyn Pay>,
    intents: Arc<dyn Intents>,
    clock: Arc<dyn Clock>,
    config: OutgoingConfig,
    running: Mutex<HashMap<PaymentHash, Running>>,
    lookups: Semaphore,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// What a payment's task last told; `None` until the wallet has been asked or the payment refused.
type Told = Option<Result<Ended, OutgoingError>>;

struct Running {
    invoice: String,
    told: watch::Receiver<Told>,
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outgoing").field("config", &self.0.config).finish_non_exhaustive()
    }
}

impl Outgoing {
    /// A machine that pays from `wallet` and writes to `intents`. Call [`Outgoing::resume`] before the first payment.
    pub fn new(
        wallet: Arc<dyn Pay>,
        intents: Arc<dyn Intents>,
        clock: Arc<dyn Clock>,
        config: OutgoingConfig,
    ) -> Self {
        Self(Arc::new(Machine {
            wallet,
            intents,
            clock,
            config,
            running: Mutex::default(),
            lookups: Semaphore::new(16),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }))
    }

    /// What is true of the wallet.
    pub fn facts(&self) -> PayFacts {
        self.0.wallet.facts()
    }

    /// The wallet itself, to look up or to ask for its balance. Paying it directly would bypass the journal.
    pub fn wallet(&self) -> &Arc<dyn Pay> {
        &self.0.wallet
    }

    /// Whether the journal outlives the process.
    pub fn durable(&self) -> bool {
        self.0.intents.durable()
    }

    /// Pays, once. Dropping the future stops nothing; calling again for the same invoice joins the payment under way,
    /// or tells how it ended.
    pub async fn pay(&self, request: PayRequest) -> Result<Ended, OutgoingError> {
        let mut told = self.begin(request)?;
        match told.wait_for(Option::is_some).await {
            Ok(told) => told.clone().unwrap_or(Ok(lost())),
            // The runtime is going down, or the task has died: the row says how far it came.
            Err(_) => Ok(lost()),
        }
    }

    /// Waits until the payment has ended, as long as its task follows it. `None`: the journal has no such payment.
    pub async fn wait(&self, hash: PaymentHash) -> Result<Option<Ended>, IntentError> {
        let told = self.0.running.lock().get(&hash).map(|running| running.told.clone());
        if let Some(mut told) = told {
            let ended = told.wait_for(|told| matches!(told, Some(Ok(Ended::Settled(_) | Ended::NotPaid(_)))));
            if let Ok(ended) = ended.await.map(|told| told.clone())
                && let Some(Ok(ended)) = ended
            {
                return Ok(Some(ended));
            }
        }
        Ok(self.find(hash).await?.map(|row| Ended::from_row(&row)))
    }

    /// The row of one payment.
    pub async fn find(&self, hash: PaymentHash) -> Result<Option<Intent>, IntentError> {
        self.0.journal(move |intents| intents.find(&hash)).await
    }

    /// Asks the wallet about every payment that an earlier run has sent and not seen the end of. When this returns each
    /// has been looked up once, and those still open are followed until they end.
    ///
    /// A "not found" counts as *never sent* only from the row's own wallet, and only where it proves that
    /// ([`PayFacts::proves_unsent`]). A wallet that several processes use at once must not claim it: the other process
    /// may be about to send.
    pub async fn resume(&self) -> Result<Resumed, IntentError> {
        let mut resumed = Resumed::default();
        let mut following = Vec::new();
        for row in self.0.journal(|intents| intents.open()).await? {
            if !row.state.is_open() {
                resumed.recorded.push(row);
            } else if let Some(told) = self.follow(row.clone()) {
                following.push((row.hash, told));
            }
        }
        for (hash, mut told) in following {
            let ended = told.wait_for(Option::is_some).await.ok().and_then(|told| told.clone());
            resumed.sent.push((hash, ended.and_then(Result::ok).unwrap_or_else(lost)));
        }
        Ok(resumed)
    }

    /// Whether the wallet is being asked for this payment at this moment, so that nobody may say how it ended.
    pub fn is_asking(&self, hash: &PaymentHash) -> bool {
        self.0.running.lock().get(hash).is_some_and(|running| running.told.borrow().is_none())
    }

    /// Takes a person's word for a payment that no lookup could explain.
    pub async fn resolve(&self, hash: PaymentHash, resolution: Resolution) -> Result<Intent, ResolveError> {
        let row = self.find(hash).await?.ok_or(IntentError::Missing(hash))?;
        if self.is_asking(&hash) || matches!(row.state, State::Settled { .. } | State::Failed(_)) {
            return Err(ResolveError::NotOpen { hash, state: row.state.name() });
        }
        let now = self.0.clock.now();
        let resolved = match resolution {
            Resolution::Settled { preimage, .. } if !preimage.pays(&hash) => {
                return Err(ResolveError::WrongPreimage(hash));
            }
            Resolution::Settled { preimage, fee } => {
                self.0.journal(move |intents| intents.settle(&hash, &preimage, fee, now)).await
            }
            Resolution::NotPaid { note } => {
                let unsent = matches!(row.state, State::Recorded);
                let failure = Failure { reason: format!("resolved by hand: {note}"), unsent };
                self.0.journal(move |intents| intents.fail(&row, &failure, now)).await
            }
        };
        Ok(resolved?)
    }

    /// Takes no more payments, waits up to `limit` for those under way and for writes that are being retried. Whether
    /// all have ended. What has not will be looked up by the next [`Outgoing::resume`].
    pub async fn stop(&self, limit: Duration) -> bool {
        self.0.stop.cancel();
        self.0.tasks.close();
        tokio::time::timeout(limit, self.0.tasks.wait()).await.is_ok()
    }

    /// Starts the payment's task, or finds the one that runs.
    fn begin(&self, request: PayRequest) -> Result<watch::Receiver<Told>, OutgoingError> {
        let hash = request.invoice.payment_hash();
        let mut running = self.0.running.lock();
        if let Some(running) = running.get(&hash) {
            let same = running.invoice.eq_ignore_ascii_case(request.invoice.as_str());
            let other = || OutgoingError::Journal(Arc::new(IntentError::OtherInvoice(hash)));
            return if same { Ok(running.told.clone()) } else { Err(other()) };
        }
        if self.0.stop.is_cancelled() {
            return Err(OutgoingError::Stopping);
        }
        if running.len() >= self.0.config.payments_max {
            return Err(OutgoingError::Busy { max: self.0.config.payments_max });
        }
        let (tell, told) = watch::channel(None);
        running.insert(hash, Running { invoice: request.invoice.as_str().to_owned(), told: told.clone() });
        self.0.tasks.spawn(Arc::clone(&self.0).pay(request, tell));
        Ok(told)
    }

    /// Starts the task that follows a payment of an earlier run, unless one runs.
    fn follow(&self, row: Intent) -> Option<watch::Receiver<Told>> {
        let mut running = self.0.running.lock();
        if self.0.stop.is_cancelled() || running.contains_key(&row.hash) {
            return None;
        }
        let (tell, told) = watch::channel(None);
        running.insert(row.hash, Running { invoice: row.invoice.clone(), told: told.clone() });
        self.0.tasks.spawn(Arc::clone(&self.0).follow_earlier(row, tell));
        Some(told)
    }
}

impl Ended {
    /// What a row says.
    fn from_row(row: &Intent) -> Self {
        let unknown = |reason: &str| Self::Unknown { reason: reason.to_owned() };
        match &row.state {
            State::Settled { preimage, fee } => {
                Self::Settled(Paid { preimage: preimage.clone(), fee: *fee, on_disk: true })
            }
            State::Failed(failure) => Self::NotPaid(failure.clone()),
            State::Unknown { reason } => unknown(reason),
            State::Recorded => unknown("recorded, not sent yet"),
            State::Sent => unknown("sent, no answer yet"),
        }
    }
}

fn lost() -> Ended {
    Ended::Unknown { reason: "the payment's task has ended early; the next start looks it up".to_owned() }
}
