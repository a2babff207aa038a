//! Carries out what a [`Purchase`](crate::purchase::Purchase) commands: sends requests, keeps the journal, holds the
//! lease, asks the wallet.
//!
//! Decisions are the machine's; nothing here compares an amount. A request's future may be dropped at any point: a
//! payment that has begun runs in a task of `outgoing`, and its credential is in the journal when it has settled.

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use farebox_lightning::clock::{Clock, SystemClock};
use farebox_lightning::outgoing::{Outgoing, OutgoingConfig, sqlite::SqliteIntents};
use farebox_lightning::{Pay, PayFacts};
use farebox_protocol::{Msat, PaymentHash, Scheme, Timestamp};
use http::StatusCode;
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::approve::Approve;
use crate::error::{Fault, FetchError, OpenError};
use crate::http::{Hop, Http};
use crate::journal::{Journal, JournalError, PurchaseRow, watch::Watch};
use crate::policy::{Asked, Budget, Policy, Verdict};
use crate::purchase::{Money, RequestFacts, Rules, judge};
use crate::{HttpConfig, Limits, Origin, RequestBody, RequestError, Shortfall};

mod absence;
mod buy;
mod consent;
mod courier;
mod lease;
mod recover;
mod seller;
mod settle;
mod shelf;
mod told;

use absence::Absence;
pub(crate) use buy::Said;
pub use consent::ApproveError;
use courier::ByHttp;
pub(crate) use courier::{Courier, Head, Target};
pub use recover::{Recovered, Recovery};
pub use seller::SellerAnswer;
pub use told::{BudgetUse, Explained, Fetched, Quote, Quoted, Receipt};

/// So many redirects are followed.
const REDIRECTS_MAX: usize = 10;

/// So much of what an answer that asks for money says beside its price is read.
pub(crate) const TOLD_BYTES_MAX: usize = 64 * 1024;

/// How an engine is set up.
#[derive(Clone)]
pub struct EngineConfig {
    /// The file of the journal.
    pub journal: PathBuf,
    /// How much one payment may cost.
    pub limits: Limits,
    /// What to pay with. Without one nothing is ever paid; credentials bought earlier are used.
    pub wallet: Option<Arc<dyn Pay>>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// How to reach servers.
    pub http: HttpConfig,
    /// How long the wallet may try to pay. It has nothing to do with the time limits of HTTP.
    pub pay_timeout: Duration,
    /// How much longer to wait for a payment whose outcome is not known, and for somebody else's purchase.
    pub patience: Duration,
    /// Buy from and show credentials to servers over plain HTTP. Loopback addresses need no permission, nor do onion
    /// addresses that are reached by a `socks5h` proxy.
    pub in_the_clear: bool,
    /// Buy where an earlier purchase was paid for and never honoured, and write that one off.
    pub buy_again: bool,
    /// What a person has written about who may be paid, and how much in all. It binds beside `limits`.
    pub policy: Arc<Policy>,
    /// Who is asked where the policy says so. Nobody unless set: then such payments are refused.
    pub approver: Option<Arc<dyn Approve>>,
    /// On whose behalf this engine buys: a name that rules of the policy may look at.
    pub label: Option<String>,
    /// What the caller calls the request or the tool call that this engine buys for; it stands in the receipts.
    pub request_id: Option<String>,
}

impl EngineConfig {
    /// The usual limits and times, without a wallet.
    pub fn new(journal: impl Into<PathBuf>) -> Self {
        Self {
            journal: journal.into(),
            limits: Limits::default(),
            wallet: None,
            clock: Arc::new(SystemClock),
            http: HttpConfig::default(),
            pay_timeout: Duration::from_secs(60),
            patience: Duration::from_secs(30),
            in_the_clear: false,
            buy_again: false,
            policy: Arc::new(Policy::without_file()),
            approver: None,
            label: None,
            request_id: None,
        }
    }
}

impl std::fmt::Debug for EngineConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineConfig")
            .field("journal", &self.journal)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// Fetches, and pays where it must. Cheap to clone.
#[derive(Clone)]
pub struct Engine(Arc<Shared>);

struct Shared {
    config: EngineConfig,
    http: Arc<Http>,
    journal: Journal,
    absence: Arc<Absence>,
    payments: SqliteIntents,
    outgoing: Option<Outgoing>,
    /// Told whenever a lease is given back: those who wait in this process need not poll.
    changed: Arc<Notify>,
    tasks: TaskTracker,
    /// Ends what is done in the background.
    closing: CancellationToken,
}

/// What one hop led to.
pub(crate) struct Arrived<A> {
    pub(crate) response: A,
    pub(crate) purchase: Option<Receipt>,
    pub(crate) credential: Option<PaymentHash>,
    pub(crate) shortfalls: Vec<Shortfall>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("config", &self.0.config).finish_non_exhaustive()
    }
}

impl Engine {
    /// Opens the journal and sets everything up. Blocks for a moment.
    ///
    /// Within a runtime, payments that an earlier process has left open are looked up in the background from now on; no request
    /// waits for that, unless it is for the same thing.
    pub fn open(config: EngineConfig) -> Result<Self, OpenError> {
        let http = Arc::new(Http::new(&config.http)?);
        let journal = Journal::open(&config.journal)?;
        let absence = Arc::new(Absence::new(Watch::open(&config.journal)?));
        let payments = journal.payments().map_err(JournalError::from)?;
        let outgoing = config.wallet.as_ref().map(|wallet| {
            let intents = Arc::new(payments.clone());
            Outgoing::new(wallet.clone(), intents, config.clock.clone(), OutgoingConfig::default())
        });
        let (changed, tasks, closing) = (Arc::default(), TaskTracker::new(), CancellationToken::new());
        let shared = Shared { config, http, journal, absence, payments, outgoing, changed, tasks, closing };
        let engine = Self(Arc::new(shared));
        engine.0.reconcile();
        Ok(engine)
    }

    /// This engine under another policy and other limits, which hold for what is asked of the one returned. Journal, wallet and
    /// connections are the same, and so is their end: closing one closes both.
    pub fn under(&self, policy: Arc<Policy>, limits: Limits) -> Self {
        let Shared { config, http, journal, absence, payments, outgoing, changed, tasks, closing } = &*self.0;
        Self(Arc::new(Shared {
            config: EngineConfig { policy, limits, ..config.clone() },
            http: Arc::clone(http),
            journal: journal.clone(),
            absence: Arc::clone(absence),
            payments: payments.clone(),
            outgoing: outgoing.clone(),
            changed: Arc::clone(changed),
            tasks: tasks.clone(),
            closing: closing.clone(),
        }))
    }

    /// Sends `request` and returns the answer, having paid for it where that was asked and allowed.
    ///
    /// Redirects are followed. Each server on the way is judged by its own origin, and at most one of them is paid.
    pub async fn fetch(&self, request: http::Request<impl Into<RequestBody>>) -> Result<Fetched, FetchError> {
        let mut hop = Hop::of(request).map_err(|error| FetchError::new(error, Money::None))?;
        let mut purchase: Option<Receipt> = None;
        let (mut shown, mut shortfalls) = (Vec::new(), Vec::new());
        for _ in 0..=REDIRECTS_MAX {
            let spent = purchase.as_ref().map_or(Money::None, Receipt::money);
            let mut courier = ByHttp { http: &self.0.http, hop: &hop };
            let arrived = self.0.hop(&hop.target(), &mut courier, purchase.is_some()).await;
            let mut arrived = arrived.map_err(|error| error.after(&spent, &shortfalls))?;
            shortfalls.append(&mut arrived.shortfalls);
            purchase = purchase.or(arrived.purchase);
            shown.extend(arrived.credential);
            let money = || purchase.as_ref().map_or(Money::None, Receipt::money);
            let Some(next) = hop.next(&arrived.response).map_err(|error| FetchError::new(error, money()))?
            else {
                let Arrived { response, credential, .. } = arrived;
                return Ok(Fetched { response, purchase, credential, shown, shortfalls });
            };
            let is_authorized = arrived.credential.is_some() || hop.has_authorization();
            if is_authorized && hop.origin.is_tls() && !next.origin.is_tls() {
                return Err(FetchError::new(RequestError::Downgrade(hop.origin), money()));
            }
            hop = next;
        }
        let spent = purchase.as_ref().map_or(Money::None, Receipt::money);
        Err(FetchError::new(RequestError::TooManyRedirects(REDIRECTS_MAX), spent))
    }

    /// Sends `request` without a credential and tells what it would cost. The wallet isn't even looked at.
    ///
    /// A resource that turns out to be free has been fetched: a `POST` has then been carried out.
    pub async fn quote(&self, request: http::Request<impl Into<RequestBody>>) -> Result<Quote, FetchError> {
        let free = |error: RequestError| FetchError::new(error, Money::None);
        let mut hop = Hop::of(request).map_err(free)?;
        for _ in 0..=REDIRECTS_MAX {
            let response = self.0.http.send(&hop, None).await.map_err(free)?;
            if let Some(next) = hop.next(&response).map_err(free)? {
                hop = next;
                continue;
            }
            let held = self
                .0
                .candidates(&hop.target())
                .await
                .map_err(|error| FetchError::new(error, Money::None))?;
            let rules = self.0.rules(&hop.target(), false, None).await;
            let rules = rules.map_err(|error| FetchError::new(error, Money::None))?;
            let quote = self.0.quoted(&hop, &response, rules, !held.is_empty()).await;
            let mut quote = quote.map_err(|error| FetchError::new(error, Money::None))?;
            if quote.status == StatusCode::PAYMENT_REQUIRED {
                quote.told = crate::http::beginning(response, TOLD_BYTES_MAX).await;
            }
            return Ok(quote);
        }
        Err(free(RequestError::TooManyRedirects(REDIRECTS_MAX)))
    }

    /// What the policy says of a request, and how much of each budget that it would count against is taken. Sends nothing.
    pub async fn explain(&self, request: &http::Request<()>) -> Result<Explained, FetchError> {
        let free = |error: Fault| FetchError::new(error, Money::None);
        let hop = Hop::of(request.clone().map(|()| Bytes::new())).map_err(|error| free(error.into()))?;
        let rules = self.0.rules(&hop.target(), false, None).await.map_err(free)?;
        let RequestFacts { method, path, label } = &*rules.request;
        let (origin, scheme) = (&hop.origin, Scheme::L402);
        let asked = Asked { origin, path, method, label: label.as_deref(), scheme };
        let mut judgement = rules.policy.judge(&asked);
        let is_new = !rules.is_known && rules.policy.new_origins > judgement.verdict;
        if is_new {
            judgement.verdict = rules.policy.new_origins;
            judgement.rule = None;
        }
        let budgets = self.budgets(judgement.budgets.clone()).await?;
        Ok(Explained { origin: hop.origin, judgement, is_new, budgets })
    }

    /// How much of these budgets is taken.
    pub async fn budgets(&self, budgets: Vec<Budget>) -> Result<Vec<BudgetUse>, FetchError> {
        let now = self.0.now();
        let taken = self.0.journal(move |journal| journal.taken(&budgets, now)).await;
        let taken = taken.map_err(|error| FetchError::new(error, Money::None))?;
        Ok(taken
            .into_iter()
            .map(|(budget, taken)| BudgetUse { budget, spent: taken.spent, reserved: taken.reserved })
            .collect())
    }

    /// Asks the wallet about every payment whose outcome is not known, and writes down what it says. Pays nothing.
    /// Returns the purchases that are still open.
    pub async fn resume(&self) -> Result<Vec<PurchaseRow>, FetchError> {
        self.0.settle_all().await.map_err(|error| FetchError::new(error, Money::None))?;
        let open = |row: &PurchaseRow| matches!(row.state, "sent" | "unknown");
        Ok(self.purchases().await?.into_iter().filter(open).collect())
    }

    /// Takes a person's word that a payment whose outcome nobody knows was never made. What was kept aside for it is free
    /// again; should it have been made after all, it is lost unless a lookup finds it.
    ///
    /// Refused while the process that began it may still be at it. `false`: there is no such open payment.
    pub async fn write_off(&self, payment_hash: PaymentHash) -> Result<bool, FetchError> {
        self.0.write_off(payment_hash).await.map_err(|error| FetchError::new(error, Money::None))
    }

    /// Every purchase in the journal, newest first.
    pub async fn purchases(&self) -> Result<Vec<PurchaseRow>, FetchError> {
        let rows = self.0.journal(Journal::purchases).await;
        rows.map_err(|error| FetchError::new(error, Money::None))
    }

    /// The purchases that are paid for, whose credentials this journal holds. The credentials themselves stay inside.
    pub async fn tokens(&self) -> Result<Vec<PurchaseRow>, FetchError> {
        let mut rows = self.purchases().await?;
        rows.retain(|row| matches!(row.state, "paid" | "imported" | "honoured" | "used_up" | "dead"));
        Ok(rows)
    }

    /// Waits up to `limit` for payments under way and for the journal. Whether all have ended; what has not is followed
    /// by the next engine on the same journal.
    pub async fn close(&self, limit: Duration) -> bool {
        let paid = match &self.0.outgoing {
            Some(outgoing) => outgoing.stop(limit).await,
            None => true,
        };
        self.0.closing.cancel();
        self.0.tasks.close();
        paid && tokio::time::timeout(limit, self.0.tasks.wait()).await.is_ok()
    }
}

impl Shared {
    async fn rules(
        &self,
        target: &Target,
        has_bought: bool,
        wallet: Option<PayFacts>,
    ) -> Result<Rules, Fault> {
        let is_known = match self.config.policy.new_origins {
            Verdict::Allow => true,
            _ if self.absence.is_known(&target.origin) => false,
            _ => {
                let origin = target.origin.clone();
                self.journal(move |journal| journal.is_known(&origin)).await?
            }
        };
        Ok(Rules {
            limits: self.config.limits,
            wallet,
            in_the_clear: self.may_go_in_the_clear(&target.origin),
            authorization_taken: target.has_authorization,
            has_bought,
            buy_again: self.config.buy_again,
            policy: Arc::clone(&self.config.policy),
            request: Arc::new(RequestFacts {
                method: target.method.clone(),
                path: target.path.clone(),
                label: self.config.label.clone(),
            }),
            is_known,
        })
    }

    /// The credentials to try for it: none in the clear, none beside an authorization of the caller's own.
    async fn candidates(&self, target: &Target) -> Result<Vec<crate::Pass>, Fault> {
        if target.has_authorization
            || (target.origin.is_in_the_clear() && !self.may_go_in_the_clear(&target.origin))
        {
            return Ok(Vec::new());
        }
        if self.absence.is_known(&target.origin) {
            return Ok(Vec::new());
        }
        let (origin, path, now) = (target.origin.clone(), target.path.clone(), self.now());
        let absence = Arc::clone(&self.absence);
        self.journal(move |journal| {
            let candidates = journal.candidates(&origin, &path, now)?;
            if candidates.is_empty() {
                absence.learn(&origin);
            }
            Ok(candidates)
        })
        .await
    }

    async fn quoted(
        &self,
        hop: &Hop,
        response: &reqwest::Response,
        rules: Rules,
        has_credential: bool,
    ) -> Result<Quote, Fault> {
        let answer = Head::of(response, &hop.origin).answer(self.now());
        let free = Quote {
            origin: hop.origin.clone(),
            status: answer.status,
            offer: None,
            refusal: None,
            has_credential,
            told: Bytes::new(),
        };
        if answer.status != StatusCode::PAYMENT_REQUIRED {
            return Ok(free);
        }
        // The price is worth knowing even where it is too high.
        let no_limits = Rules {
            limits: Limits { per_payment: Msat::MAX, fee_max: rules.limits.fee_max },
            policy: Arc::new(Policy::unlimited()),
            ..rules.clone()
        };
        let offer = judge(&hop.origin, &answer, &no_limits).ok().map(|order| Quoted::of(&order));
        let refusal = match judge(&hop.origin, &answer, &rules) {
            Err(refusal) => Some(refusal),
            Ok(order) if order.judgement.verdict > Verdict::Allow && self.config.approver.is_none() => {
                Some(order.approval_needed(None))
            }
            Ok(order) => {
                let now = self.now();
                self.journal(move |journal| journal.refusal(&order, now)).await?
            }
        };
        Ok(Quote { offer, refusal, ..free })
    }

    /// Whether credentials may be bought from and shown to this server, if that goes in the clear.
    fn may_go_in_the_clear(&self, origin: &Origin) -> bool {
        self.config.in_the_clear || (origin.is_onion() && self.http.goes_by_tor())
    }

    fn now(&self) -> Timestamp {
        self.config.clock.now()
    }

    /// Lets `work` use the journal where blocking is allowed.
    async fn journal<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Journal) -> Result<T, JournalError> + Send + 'static,
    ) -> Result<T, Fault> {
        let journal = self.journal.clone();
        match self.tasks.spawn_blocking(move || work(&journal)).await {
            Ok(done) => Ok(done?),
            Err(_) => Err(Fault::Closing),
        }
    }
}
