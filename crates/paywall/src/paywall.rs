//! The paywall itself: gathers the facts of a request, asks [`decide`](crate::decide::decide), carries the decision out.
//!
//! A paid request is admitted with what is in memory: no store, no node, no lock, no wait. Only what can't be decided
//! so takes the slow way: making a challenge, or looking up the payment behind a token whose secret has leaked. Money
//! and revocations are the business of one task, [`Paywall::run`], which the caller owns and joins.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use farebox_lightning::clock::Clock;
use farebox_protocol::{Identifier, IdentifierHash, Msat, PaymentHash, ServiceName, Timestamp};
use futures_util::future::{BoxFuture, join_all};
use tokio::{sync::Semaphore, task::spawn_blocking, time};
use tokio_util::sync::CancellationToken;

use crate::{
    Admission, Backends, Code, Keyring, NodeHealth, Pass, PaywallConfig, Quote, Request, Sales,
    books::Books,
    decide::{self, Decision, Grant, Key, Vouched, Voucher, decide},
    ledger::{Ledger, LedgerHealth},
    limit::{Freebie, FreebieCounts, FreebieFileError, MintBudget, RateLimits, Who},
    menu::choice,
    mint::{CLOCK_SKEW_MAX, Mint},
    nodes::Nodes,
    respond::{Audience, Refusal, may_mint},
    store::{
        Presentation, Purchase, Revocation, RevocationCursor, Revoked, Store, StoreError, accounts::Accounts,
    },
    trouble::Trouble,
};

mod confirm;
mod count;
mod examine;
mod holder;
mod keyed;
mod known;
mod revoked;
mod upgrade;

use confirm::Settlements;
use count::IN_FLIGHT_RETRY;
pub(crate) use count::Short;
use examine::{Examined, Token};
pub(crate) use holder::{Bought, Holder, NoHolder, NotBought};
use keyed::Keys;
pub use keyed::{KEY_HEADER, Once};
use known::Known;
use revoked::Revocations;
pub use upgrade::UPGRADE_HEADER;

/// How late a payment may have come to a node that has not been spoken to yet: the longest grace of any backend.
const GRACE_UNKNOWN: Duration = Duration::from_secs(86_400);

/// How many look-ups for withdrawn secrets may be under way: whoever has such a secret can cause them at will.
const LOOKUPS_MAX: usize = 32;

/// Who may pass, who must pay, and what was paid.
pub struct Paywall {
    config: PaywallConfig,
    keyring: Keyring,
    nodes: Nodes,
    store: Arc<dyn Store>,
    ledger: Arc<Ledger>,
    clock: Arc<dyn Clock>,
    budget: MintBudget,
    rates: RateLimits,
    freebies: Arc<FreebieCounts>,
    mint: Mint,
    minting: Trouble,
    books: Books,
    revoked: Revocations,
    known: Known,
    lookups: Semaphore,
    settlements: Settlements,
}

/// Why a paywall can't be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The store refuses, or can't be read. Without the revocations nothing may be let through.
    #[error("the books can't be opened")]
    Store(#[from] StoreError),
    /// The store doesn't answer.
    #[error("the store did not answer within {} s", .0.as_secs())]
    StoreTimedOut(Duration),
    /// The counts of freebies can't be read.
    #[error("the counts of freebies can't be read")]
    Freebies(#[from] FreebieFileError),
    /// The node is on another network than the one that is sold on.
    #[error(
        "the node is on {node}, the configuration says {config}; test coins must not buy what costs money"
    )]
    OtherNetwork {
        /// The node's network.
        node: farebox_protocol::Network,
        /// The configured network.
        config: farebox_protocol::Network,
    },
}

/// How the paywall is doing. The texts are for the log and for `readyz`, never for a stranger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Whether new challenges can be had, from any node.
    pub node: farebox_lightning::Health,
    /// Each node by itself, in the order in which they are asked.
    pub nodes: Vec<NodeHealth>,
    /// Why the last challenge could not be made, if the last one couldn't.
    pub minting: Option<String>,
    /// Why no node's settlements are being booked.
    pub settling: Option<String>,
    /// Why first presentations aren't being booked.
    pub presenting: Option<String>,
    /// Why revocations made by other processes aren't being noticed.
    pub revoking: Option<String>,
    /// Why counts of freebies aren't being written.
    pub keeping: Option<String>,
    /// Payments booked since the start.
    pub payments_booked: u64,
    /// What arrived with them. What exceeds the [`sales`](Paywall::sales) waits for its token to be presented.
    pub money_booked: Msat,
    /// Payments *not* booked since the start, because the books hold others in their place: look into it.
    pub payments_conflicting: u64,
    /// Payments since the start whose invoice says something else than the token: its terms are booked, look into it.
    pub payments_contradicted: u64,
    /// First presentations booked since the start.
    pub presentations_booked: u64,
    /// Presentations that found the queue full or the store failing; they come again.
    pub presentations_dropped: u64,
    /// First presentations that wait to be booked.
    pub presentations_queued: usize,
    /// Revoked tokens.
    pub revoked_tokens: usize,
    /// Requests counted in a budget shared by all who came too late, since more tokens or clients were limited at once than
    /// `rate_subjects_max`.
    pub rate_limits_overflowed: u64,
    /// How the ledger of what is sold in units is doing.
    pub ledger: LedgerHealth,
    /// How often the allowance of freebies was asked that is shared by all who came too late, since more networks had used
    /// some than `freebie_networks_max`.
    pub freebies_overflowed: u64,
}

impl Paywall {
    /// Opens the paywall: checks that secrets and store belong together, and reads the revocations. Nothing is let
    /// through before that is done. A node that is down doesn't matter here.
    pub async fn open(
        config: PaywallConfig,
        keyring: Keyring,
        nodes: impl Into<Backends>,
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, OpenError> {
        let nodes = Nodes::new(nodes.into(), &config);
        // A node that hasn't been spoken to yet is left out as soon as it says so.
        if let Some(network) = nodes.stray() {
            return Err(OpenError::OtherNetwork { node: network, config: config.network });
        }
        let opened = async {
            store.adopt(keyring.fingerprints(), config.continuity, clock.now()).await?;
            let revoked = store.revocations(RevocationCursor::default()).await?;
            let accounts: Arc<dyn Accounts> = store.clone();
            Ok((revoked, Ledger::open(config.ledger, accounts, Arc::clone(&clock)).await?))
        };
        // Migrations and many revocations may take a while; nobody is waiting for an answer yet.
        let patience = config.store_timeout.max(Duration::from_secs(10));
        let (revoked, ledger) = time::timeout(patience, opened)
            .await
            .map_err(|_| OpenError::StoreTimedOut(patience))?
            .map_err(OpenError::Store)?;
        let (networks_max, file) = (config.freebie_networks_max, config.freebie_file.clone());
        let freebies = spawn_blocking(move || FreebieCounts::open(networks_max, file))
            .await
            .expect("it doesn't panic and isn't cancelled")?;
        Ok(Arc::new(Self {
            freebies: Arc::new(freebies),
            budget: MintBudget::new(&config),
            rates: RateLimits::new(config.rate_subjects_max),
            mint: Mint::new(&keyring, &config),
            minting: Trouble::new("making challenges"),
            books: Books::new(Arc::clone(&store), &config),
            revoked: Revocations::new(revoked),
            known: Known::new(),
            lookups: Semaphore::new(LOOKUPS_MAX),
            settlements: Settlements::new(config.verify_settled),
            config,
            keyring,
            nodes,
            store,
            ledger,
            clock,
        }))
    }

    /// Whether a request may pass, or what to answer instead.
    pub async fn admit(&self, request: &Request<'_>) -> Admission {
        match self.admit_at_once(request, Keys::Ignored) {
            Ok(admission) => admission,
            // No key comes back where none is looked at; it would grant nothing.
            Err(slowly) => {
                slowly.await.unwrap_or_else(|_| refused(request, &refusal(request, Code::LedgerUnavailable)))
            }
        }
    }

    /// Not `async`, and the rest boxed, so that the future of a paid request has no room for what was examined.
    fn admit_at_once<'a>(
        &'a self,
        request: &'a Request<'a>,
        keys: Keys,
    ) -> Result<Admission, BoxFuture<'a, Result<Admission, PaymentHash>>> {
        let now = self.clock.now();
        let mut examined = self.examine(request, now);
        let mut decision = decide(&examined.facts(now));
        // An account that is at work is in memory.
        if let Decision::Reserve(index) = decision
            && !keys.ask(request)
            && self.count_at_once(request, &mut examined, index).is_some()
        {
            decision = decide(&examined.facts(now));
        }
        match decision {
            Decision::Forward(grant) if self.retires(&examined, grant).is_none() => {
                Ok(self.forward(request, examined, grant, None, now))
            }
            decision => Err(Box::pin(self.admit_slowly(request, examined, decision, keys, now))),
        }
    }

    async fn admit_slowly(
        &self,
        request: &Request<'_>,
        mut examined: Examined,
        mut decision: Decision,
        keys: Keys,
        now: Timestamp,
    ) -> Result<Admission, PaymentHash> {
        let mut freebie = None;
        // Each round fills in one unasked fact, so this ends after at most three rounds for each token, and one more.
        loop {
            match decision {
                Decision::Consult(index) => {
                    let token = examined.token(index);
                    let vouched = self.consult(request, token, examined.withdrawn(index), now).await;
                    examined.candidate_mut(index).key = Key::SettledOnly(vouched);
                    self.note_revocation(&mut examined, index);
                }
                Decision::Confirm(index) => {
                    let hash = examined.token(index).identifier.payment_hash;
                    examined.candidate_mut(index).settled = self.confirm(hash).await;
                    self.note_revocation(&mut examined, index);
                }
                Decision::Reserve(index) if keys.ask(request) => {
                    return Err(examined.token(index).identifier.payment_hash);
                }
                Decision::Reserve(index) => {
                    self.count(request, &mut examined, index, now).await;
                    self.note_revocation(&mut examined, index);
                }
                Decision::CountFreebie => {
                    freebie = self.count_freebie(request, now);
                    let counted = freebie.is_some();
                    examined.freebie =
                        if counted { decide::Freebie::Counted } else { decide::Freebie::UsedUp };
                }
                _ => break,
            }
            decision = decide(&examined.facts(now));
        }
        let (short, reached) = (examined.short, examined.reached.take());
        let refusal = |code, retry_after| {
            let reached = reached.as_deref().filter(|_| code == Code::LimitReached);
            Refusal { retry_after, short, reached, ..refusal(request, code) }
        };
        let decision = match decision {
            Decision::Forward(grant) => {
                if let Some(older) = self.retires(&examined, grant) {
                    self.retire(older).await;
                }
                return Ok(self.forward(request, examined, grant, freebie, now));
            }
            decision => decision,
        };
        let replaces = self.replaceable(request, &examined, now);
        // What was set aside for a token that may not pass after all is not kept from others while an invoice is made.
        drop(examined);
        let refusal = match decision {
            Decision::Challenge(code) if may_mint(request.method) => {
                return Ok(self.challenge(request, refusal(code, None), replaces, now).await);
            }
            Decision::Challenge(code) | Decision::Refuse(code) => refusal(code, None),
            // Nothing is sold here.
            Decision::Deny(code) => Refusal { is_denied: true, ..refusal(code, None) },
            Decision::Wait(code) => refusal(code, Some(IN_FLIGHT_RETRY)),
            Decision::Unavailable(code) => refusal(code, Some(self.config.retry_after)),
            // Every one has just been answered; whatever it is, it grants nothing.
            Decision::Forward(_)
            | Decision::Consult(_)
            | Decision::Confirm(_)
            | Decision::Reserve(_)
            | Decision::CountFreebie => refusal(Code::StoreUnavailable, Some(self.config.retry_after)),
        };
        Ok(refused(request, &refusal))
    }

    /// Carries out that a request may pass, unless it comes too fast: the last question, and one that only refuses.
    fn forward(
        &self,
        request: &Request<'_>,
        mut examined: Examined,
        grant: Grant,
        freebie: Option<Freebie>,
        now: Timestamp,
    ) -> Admission {
        let paid = match grant {
            Grant::Free | Grant::Freebie => None,
            Grant::Paid(index) => Some((index, examined.token(index).identifier)),
        };
        let who = Who { token: paid.map(|(_, identifier)| identifier.token_id), client: request.client };
        if let Err(wait) = self.rates.take(request.service, request.path, who) {
            if let Some(freebie) = freebie {
                freebie.give_back();
            }
            return refused(
                request,
                &Refusal { retry_after: Some(wait), ..refusal(request, Code::RateLimited) },
            );
        }
        let service = request.service.name.clone();
        if grant == Grant::Freebie {
            return Admission::Pass(Pass::freebie(service, freebie), None);
        }
        let Some((index, identifier)) = paid else {
            return Admission::Pass(Pass::unpaid(service, Code::Free), None);
        };
        // Opening the account of what is counted has booked its first presentation.
        let mut bill = examined.bill.take().filter(|(of, _)| *of == index).map(|(_, bill)| bill);
        if let Some(bill) = bill.as_mut().filter(|_| request.method == http::Method::HEAD) {
            bill.is_for_head();
        }
        if bill.as_ref().is_none_or(|bill| !bill.is_of_account()) {
            let hash = identifier.payment_hash;
            let sold = || examined.sold(index, request.service);
            self.books.note(&hash, || sold().map(|sold| Presentation { hash, sold, at: now }));
        }
        Admission::Pass(Pass::paid(&identifier, index, examined.names(index), service), bill)
    }

    /// Whether it was revoked while something else of it was found out.
    fn note_revocation(&self, examined: &mut Examined, index: usize) {
        let identifier = examined.token(index).identifier;
        examined.candidate_mut(index).revoked |= self.revoked.contains(|| identifier.hash());
    }

    fn count_freebie(&self, request: &Request<'_>, now: Timestamp) -> Option<Freebie> {
        let offer = request.service.freebies.as_ref()?;
        self.freebies.take(request.service, offer, request.client, now)
    }

    /// Whether the books vouch for a token that a withdrawn secret signed.
    async fn consult(
        &self,
        request: &Request<'_>,
        token: &Token,
        since: Timestamp,
        now: Timestamp,
    ) -> Vouched {
        let service = request.service;
        let Some(sold) = token.sold(service) else { return Vouched::No };
        let Ok(_permit) = self.lookups.try_acquire() else { return Vouched::Unreadable };
        let grace = self.nodes.grace().unwrap_or(GRACE_UNKNOWN);
        let margin = self.config.invoice_expiry + grace + CLOCK_SKEW_MAX;
        let check =
            |purchase: Option<&Purchase>| Voucher { purchase, token: &sold, service, since, margin }.check();
        let hash = token.identifier.payment_hash;
        let asked = async {
            let found = self.store.purchase(hash).await?;
            let vouched = check(found.as_ref());
            if vouched != Vouched::Yes || found.is_some_and(|purchase| purchase.sold.is_some()) {
                return Ok(vouched);
            }
            // Nothing is booked yet, so any terms that the money covers would do, and who has the secret can write many
            // over one payment. The first that are on the books are the ones; the queue would be too late for that.
            let sales = self.store.present(vec![Presentation { hash, sold: sold.clone(), at: now }]).await?;
            self.books.sold(&sales);
            Ok::<_, StoreError>(check(self.store.purchase(hash).await?.as_ref()))
        };
        match time::timeout(self.config.store_timeout, asked).await {
            Ok(Ok(vouched)) => vouched,
            Ok(Err(error)) => {
                tracing::warn!(%error, "a payment could not be looked up");
                Vouched::Unreadable
            }
            Err(_) => {
                tracing::warn!("a payment could not be looked up in time (`store_timeout`)");
                Vouched::Unreadable
            }
        }
    }

    async fn challenge(
        &self,
        request: &Request<'_>,
        why: Refusal<'_>,
        replaces: Option<Identifier>,
        now: Timestamp,
    ) -> Admission {
        let refuse = |code, retry_after| refused(request, &Refusal { retry_after, ..refusal(request, code) });
        let Ok(chosen) = choice(request.headers, request.query) else {
            return refuse(Code::OfferUnknown, None);
        };
        let (service, length) = (request.service, request.length());
        let Ok(quote) = service.quote_sized(request.method, request.path, length, chosen) else {
            // Nothing that is sold today would do for this request.
            let code = match chosen {
                Some(_) => Code::OfferUnknown,
                // Bought again and again, it would still not reach.
                None if service.quote(request.method, request.path, None).is_ok() => {
                    return refused(request, &Refusal { code: Code::UploadTooDear, ..why });
                }
                None => Code::PriceInvalid,
            };
            return refuse(code, None);
        };
        let quote = Quote { replaces, ..quote };
        if let Err(over) = self.budget.take(request.client) {
            return refuse(over.code, Some(over.wait));
        }
        let made = self.mint.make(&quote, now, &self.config, &self.keyring, &self.nodes).await;
        self.minting.note(&made);
        match made {
            Ok(minted) => {
                self.books.tally.challenged(&request.service.name);
                refused(request, &Refusal { minted: Some(&minted), ..why })
            }
            Err(error) => {
                // Who asks again and again while the node is away should find the budget untouched when it is back. A node that
                // is merely slow may have made the invoice, and asking it is what the budget is for.
                if error.code() == Code::NodeUnavailable
                    && matches!(self.nodes.health(), farebox_lightning::Health::Down(_))
                {
                    self.budget.give_back(request.client);
                }
                refuse(error.code(), Some(self.config.retry_after))
            }
        }
    }

    /// Does what goes on beside requests, until told to stop: books settlements and first presentations, reads
    /// revocations. The caller owns this task and waits for its end, which takes `flush_timeout` at most. Run it once.
    pub async fn run(&self, stop: CancellationToken) {
        let follow = self.nodes.iter().map(|node| self.books.follow(node, self.mint.labels(), &stop));
        let keep_ready = self
            .nodes
            .iter()
            .map(|node| self.mint.keep_ready(node, &*self.clock, &self.config, &self.budget, &stop));
        tokio::join!(
            join_all(follow),
            join_all(keep_ready),
            self.books.write_notes(&stop),
            self.ledger.run(&stop),
            self.poll_revocations(&stop),
            self.freebies.keep_current(self.config.freebie_write_every, &stop),
        );
    }

    async fn poll_revocations(&self, stop: &CancellationToken) {
        let mut ticks = time::interval(self.config.revocation_poll.max(Duration::from_millis(10)));
        ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let asked = self.store.revocations(self.revoked.cursor());
            match time::timeout(self.config.store_timeout, asked).await {
                Ok(read) => {
                    self.revoked.reading.note(&read);
                    if let Ok(read) = read {
                        self.revoked.add(read);
                    }
                }
                Err(_) => {
                    let timed_out = OpenError::StoreTimedOut(self.config.store_timeout);
                    self.revoked.reading.note(&Err::<(), _>(timed_out));
                }
            }
        }
    }

    /// Revokes a token, here at once and in the store; other processes notice at their next poll.
    pub async fn revoke(&self, identifier_hash: IdentifierHash, reason: &str) -> Result<(), StoreError> {
        let revocation = Revocation { identifier_hash, at: self.clock.now(), reason: reason.to_owned() };
        self.store.revoke(revocation).await?;
        // The cursor stays: what others have revoked meanwhile is still to be read.
        let cursor = RevocationCursor::default();
        self.revoked.add(Revoked { hashes: vec![identifier_hash], cursor });
        Ok(())
    }

    /// How it is doing, from what is known already.
    pub fn health(&self) -> Health {
        let counts = &self.books.counts;
        Health {
            node: self.nodes.health(),
            nodes: self.nodes.healths(),
            minting: self.minting.text(),
            settling: self.nodes.settling(),
            presenting: self.books.presenting.text(),
            revoking: self.revoked.reading.text(),
            keeping: self.freebies.keeping.text(),
            payments_booked: counts.settled.load(Ordering::Relaxed),
            money_booked: Msat::new(counts.settled_msat.load(Ordering::Relaxed)),
            payments_conflicting: counts.conflicting.load(Ordering::Relaxed),
            payments_contradicted: counts.contradicted.load(Ordering::Relaxed),
            presentations_booked: counts.presented.load(Ordering::Relaxed),
            presentations_dropped: counts.dropped.load(Ordering::Relaxed),
            presentations_queued: self.books.queued(),
            revoked_tokens: self.revoked.count(),
            rate_limits_overflowed: self.rates.overflowed(),
            ledger: self.ledger.health(),
            freebies_overflowed: self.freebies.overflowed(),
        }
    }

    /// What has been sold since the start.
    pub fn sales(&self) -> BTreeMap<ServiceName, Sales> {
        self.books.tally.by_service()
    }

    /// What has become of what was sold in units.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// The books, for listings.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }
}

/// A refusal of this request for this reason.
fn refusal<'a>(request: &Request<'a>, code: Code) -> Refusal<'a> {
    Refusal { service: Some(request.service), request: Some(*request), ..Refusal::of(code) }
}

fn refused(request: &Request<'_>, refusal: &Refusal<'_>) -> Admission {
    Admission::Answer(refusal.answer(Audience::of_request(request)))
}

#[cfg(test)]
mod tests;
