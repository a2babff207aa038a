//! The loop of one purchase: carry a command out, tell the machine what happened, until it delivers or gives up.

use std::sync::Arc;
use std::time::Duration;

use farebox_lightning::outgoing::{Ended, Failure, IntentError, OutgoingError};
use farebox_lightning::{PayRequest, WalletId};
use farebox_protocol::PaymentHash;
use tokio::time;

use super::courier::{Courier, Target};
use super::{Arrived, Fault, JournalError, Receipt, Shared, lease::Held};
use crate::approve::Question;
use crate::failpoint::{Point, reach};
use crate::journal::{From, Recorded, Reserved, Told, Want};
use crate::policy::Verdict;
use crate::purchase::{Command, Event, Money, Order, Purchase, Refusal, Stop};
use crate::shortfall::{Short, Shortfall, reason};
use crate::{Pass, Scope};

/// How often to look whether another process has come to an end with the same purchase.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How long to hear what an answer says that isn't the one. It is told and decides nothing, so nobody waits long for it.
const HEAR: Duration = Duration::from_secs(3);

/// One purchase and what it holds.
pub(super) struct Buying<'a, C: Courier> {
    shared: &'a Shared,
    target: &'a Target,
    courier: &'a mut C,
    purchase: Purchase,
    lease: Option<Held>,
    response: Option<C::Answer>,
    /// What is being bought, or was.
    order: Option<Box<Order>>,
    /// The credential in the latest request.
    shown: Option<PaymentHash>,
    /// The consent that a person gave beforehand, for the payment that is recorded next.
    consent: Option<String>,
    /// What the answers have said.
    told: Said,
}

/// What the answers of a purchase have said, besides what decides.
#[derive(Debug, Default)]
pub(crate) struct Said {
    /// The credentials that were good, and not enough.
    pub(crate) shortfalls: Vec<Shortfall>,
    /// Why the last answer was what it was, in a farebox gateway's word.
    pub(crate) reason: Option<Box<str>>,
}

impl<'a, C: Courier> Buying<'a, C> {
    pub(super) fn new(
        shared: &'a Shared,
        target: &'a Target,
        courier: &'a mut C,
        purchase: Purchase,
    ) -> Self {
        let (lease, response, order, shown, consent) = (None, None, None, None, None);
        let told = Said::default();
        Self { shared, target, courier, purchase, lease, response, order, shown, consent, told }
    }

    /// What the answers have said; it is told once.
    pub(super) fn told(&mut self) -> Said {
        std::mem::take(&mut self.told)
    }

    /// What is known of the money.
    pub(super) fn money(&self) -> Money {
        self.purchase.money().clone()
    }

    /// Gives back what is held. Needed after [`Self::run`], however that ended.
    pub(super) async fn end(&mut self) {
        if let Some(lease) = self.lease.take() {
            Box::pin(lease.release()).await;
            self.shared.changed.notify_waiters();
        }
    }

    /// Carries out command after command.
    pub(super) async fn run(&mut self, first: Command) -> Result<Arrived<C::Answer>, Fault> {
        let mut command = first;
        loop {
            if !matches!(command, Command::Deliver | Command::Stop(_)) {
                self.go_on().await?;
            }
            let event = match command {
                Command::Send(pass) => self.send(pass.as_ref()).await?,
                Command::Retry(pass, after) => {
                    time::sleep(after).await;
                    reach(Point::BeforeRetry);
                    let event = self.send(Some(&pass)).await?;
                    reach(Point::AfterRetry);
                    event
                }
                // What only a purchase needs has its place on the heap: most requests buy nothing, and carry none of it.
                Command::Reserve(scope) => Box::pin(self.reserve(scope)).await?,
                Command::Approve(order) => Box::pin(self.approve(&order)).await?,
                Command::Record(order) => Box::pin(self.record(order)).await?,
                Command::Pay(order) => Box::pin(self.pay(&order)).await?,
                Command::Resume(order) => Box::pin(self.resume(order)).await?,
                Command::Deliver => return self.deliver(),
                Command::Stop(stop) => {
                    self.let_go().await;
                    return Err(stop.into());
                }
            };
            command = self.purchase.on(event);
            self.keep_notes().await;
        }
    }

    /// Lets go of an answer that isn't the one: it may take up a connection. What follows sends the request again sooner or
    /// later, so whether that can be done is asked before anything is bought.
    async fn go_on(&mut self) -> Result<(), Fault> {
        if self.let_go().await && !self.courier.can_send_again().await {
            return Err(Stop::from(Refusal::BodyGone(self.target.origin.clone())).into());
        }
        Ok(())
    }

    /// Lets go of the answer, having heard what it says of the credential that it is an answer to. Whether there was one.
    async fn let_go(&mut self) -> bool {
        let Some(response) = self.response.take() else { return false };
        let headers = self.courier.head(&response).headers;
        self.told.reason = reason(headers).map(Into::into);
        if let (Some(payment_hash), Some(of)) = (self.shown, Short::of(headers)) {
            let body = time::timeout(HEAR, self.courier.beginning(response));
            let of = of.told(&Box::pin(body).await.unwrap_or_default());
            self.told.shortfalls.retain(|before| before.payment_hash != payment_hash);
            self.told.shortfalls.push(Shortfall { payment_hash, of });
        }
        true
    }

    async fn send(&mut self, pass: Option<&Pass>) -> Result<Event, Fault> {
        self.shown = pass.map(Pass::payment_hash);
        let response = self.courier.send(pass).await?;
        let answer = self.courier.head(&response).answer(self.shared.now());
        self.response = Some(response);
        Ok(Event::Answered(answer))
    }

    /// Takes the lease, waiting for whoever holds it.
    async fn reserve(&mut self, scope: Scope) -> Result<Event, Fault> {
        if self.lease.as_ref().is_some_and(|held| held.lease.scope != scope) {
            // The server has changed its mind about what it sells here.
            self.end().await;
        }
        let want = Want {
            scope,
            path: self.target.path.clone(),
            tried: self.purchase.tried().to_vec(),
            buy_again: self.shared.config.buy_again,
        };
        if self.lease.is_some() {
            return Ok(Event::Reserved(crate::purchase::Reservation::Ours, self.shared.now()));
        }
        let patience = self.shared.config.pay_timeout.saturating_add(self.shared.config.patience);
        let waiting = self.shared.wait_for_lease(want);
        let (reservation, lease) =
            time::timeout(patience, waiting).await.map_err(|_| Fault::Busy(patience))??;
        self.lease = lease;
        Ok(Event::Reserved(reservation, self.shared.now()))
    }

    /// Asks whoever may agree. The lease is held meanwhile, so a person is asked once for many that want the same.
    async fn approve(&mut self, order: &Order) -> Result<Event, Fault> {
        let question = Question {
            origin: order.scope.origin.clone(),
            service: order.scope.service.clone(),
            method: self.target.method.clone(),
            path: self.target.path.clone(),
            label: self.shared.config.label.clone(),
            price: order.price,
            fee_worst: order.fee_worst,
            payment_hash: order.payment_hash(),
            payee: order.invoice.payee(),
            rule: order.judgement.rule.clone(),
        };
        self.consent = self.shared.consent_for(&question).await?;
        if self.consent.is_some() {
            return Ok(Event::Approved(self.shared.now()));
        }
        let Some(approver) = &self.shared.config.approver else {
            return Ok(Event::NotApproved(self.shared.leave(question).await?));
        };
        Ok(match approver.ask(question).await {
            true => Event::Approved(self.shared.now()),
            false => Event::NotApproved(None),
        })
    }

    async fn record(&mut self, order: Box<Order>) -> Result<Event, Fault> {
        let Some(lease) = self.lease.as_ref().map(|held| held.lease.clone()) else {
            return Ok(Event::LeaseLost);
        };
        let (wallet, now) = (self.wallet(), self.shared.now());
        let (method, path) = (self.target.method.clone(), self.target.path.clone());
        let label = self.shared.config.label.clone();
        let (ordered, consent) = (order.clone(), self.consent.clone());
        let request_id = self.shared.config.request_id.clone();
        let recorded = self.shared.journal(move |journal| {
            let (label, consent, request_id) = (label.as_deref(), consent.as_deref(), request_id.as_deref());
            let from = From { method: &method, path: &path, label, request_id, wallet: &wallet, consent };
            journal.record(&ordered, &from, &lease, now)
        });
        let event = match recorded.await {
            Ok(Recorded::New) => Event::Recorded,
            Ok(Recorded::Before) => Event::RecordedBefore,
            Ok(Recorded::Refused(refusal)) => Event::OverBudget(refusal),
            Err(Fault::Journal(JournalError::LeaseLost)) => Event::LeaseLost,
            Err(fault) => return Err(fault),
        };
        if !order.bound {
            tracing::warn!(
                origin = %order.scope.origin, payment = %order.payment_hash(),
                "the token can't be read, so nothing shows that this payment opens it"
            );
        }
        self.order = Some(order);
        Ok(event)
    }

    /// Pays the order and waits, for a while, until the outcome is known. Dropping this future stops nothing.
    async fn pay(&mut self, order: &Order) -> Result<Event, Fault> {
        let Some(outgoing) = &self.shared.outgoing else {
            return Ok(Event::Ended(not_begun("there is no wallet")));
        };
        let request = PayRequest {
            invoice: order.invoice.clone(),
            fee_max: order.fee_max,
            timeout: self.shared.config.pay_timeout,
        };
        let ended = match outgoing.pay(request).await {
            Ok(Ended::Unknown { reason }) => {
                let wait = outgoing.wait(order.payment_hash());
                match time::timeout(self.shared.config.patience, wait).await {
                    Ok(Ok(Some(ended))) => ended,
                    Ok(Ok(None) | Err(_)) | Err(_) => Ended::Unknown { reason },
                }
            }
            Ok(ended) => ended,
            Err(OutgoingError::Journal(error)) => match &*error {
                IntentError::Forbidden(_) | IntentError::Moved { .. } => return Ok(Event::LeaseLost),
                error => not_begun(&format!("the journal can't be written: {error}")),
            },
            Err(error) => not_begun(&error.to_string()),
        };
        Ok(Event::Ended(ended))
    }

    async fn resume(&mut self, order: Box<Order>) -> Result<Event, Fault> {
        let lease = self.lease.as_ref().map(|held| held.lease.clone());
        let ended = match self.shared.settle(&order).await? {
            super::settle::Settled::Ended(ended) => ended,
            super::settle::Settled::PayAgain(reason) => match lease {
                Some(lease) => {
                    let order = match self.may_still_pay(&order).await? {
                        Ok(order) => Box::new(order),
                        Err(refusal) => return Ok(Event::Ended(not_again(&reason, &refusal))),
                    };
                    let (adopted, now, consent) = (order.clone(), self.shared.now(), self.consent.clone());
                    let adopt = move |journal: &crate::journal::Journal| {
                        journal.adopt(&adopted, consent.as_deref(), &lease, now)
                    };
                    match self.shared.journal(adopt).await {
                        Ok(None) => {}
                        Ok(Some(refusal)) => return Ok(Event::Ended(not_again(&reason, &refusal))),
                        Err(Fault::Journal(JournalError::LeaseLost)) => return Ok(Event::LeaseLost),
                        Err(fault) => return Err(fault),
                    }
                    self.order = Some(order.clone());
                    // The payment was sent before: whatever keeps it from being sent again, it may still arrive.
                    return Ok(match self.pay(&order).await? {
                        Event::Ended(Ended::NotPaid(failure)) if failure.unsent => {
                            Event::Ended(Ended::Unknown { reason: failure.reason })
                        }
                        event => event,
                    });
                }
                None => Ended::Unknown { reason },
            },
        };
        if let Ended::Settled(_) = ended {
            self.order = Some(order);
        }
        Ok(Event::Ended(ended))
    }

    /// Whether an earlier payment that may not have been sent may be sent now: the limits and the policy of this call hold,
    /// too, not only those of the one that began it, and where a person must agree they are asked again.
    async fn may_still_pay(&mut self, order: &Order) -> Result<Result<Order, Refusal>, Fault> {
        let order = match self.purchase.judge_again(order) {
            Ok(order) => order,
            Err(refusal) => return Ok(Err(refusal)),
        };
        if order.judgement.verdict > Verdict::Allow
            && let Event::NotApproved(waits) = self.approve(&order).await?
        {
            return Ok(Err(order.approval_needed(waits)));
        }
        Ok(Ok(order))
    }

    /// Writes down what the answers said of the credentials. When that fails, the worst is a round trip too many.
    async fn keep_notes(&mut self) {
        let path = self.target.path.clone();
        let told = self.response.as_ref().map_or_else(Told::default, |response| {
            let head = self.courier.head(response);
            Told { status: Some(head.status.as_u16()), bytes: length_of(head.headers), note: None }
        });
        for note in self.purchase.take_notes() {
            let (path, now) = (path.clone(), self.shared.now());
            let noted = self.shared.journal(move |journal| journal.note(&note, &path, told, now));
            if let Err(error) = noted.await {
                tracing::warn!(%error, "what became of a credential could not be written down");
            }
        }
    }

    fn deliver(&mut self) -> Result<Arrived<C::Answer>, Fault> {
        let response = self.response.take().ok_or(Stop::Confused)?;
        let purchase = match (self.purchase.money(), &self.order) {
            (Money::Spent { payment_hash, price, fee }, Some(order)) => Some(Receipt {
                payment_hash: *payment_hash,
                origin: order.scope.origin.clone(),
                service: order.scope.service.clone(),
                price: *price,
                fee: *fee,
                valid_until: order.valid_until,
            }),
            _ => None,
        };
        let shortfalls = self.told().shortfalls;
        Ok(Arrived { response, purchase, credential: self.shown, shortfalls })
    }

    fn wallet(&self) -> WalletId {
        self.shared
            .outgoing
            .as_ref()
            .map_or_else(|| WalletId(String::new()), |outgoing| outgoing.facts().wallet)
    }
}

impl Shared {
    /// The lease of what is wanted, or what makes it needless.
    async fn wait_for_lease(
        &self,
        want: Want,
    ) -> Result<(crate::purchase::Reservation, Option<Held>), Fault> {
        loop {
            let (asked, now) = (want.clone(), self.now());
            let guard = self.held();
            let changed = self.changed.notified();
            // The guard is made where the lease is taken: a future that is dropped while it waits for the journal must
            // not leave a lease without a holder behind.
            let reserved = self.journal(move |journal| {
                Ok(match journal.reserve(&asked, now)? {
                    Reserved::Held => None,
                    Reserved::Go(reservation, lease) => Some((reservation, lease.map(guard))),
                })
            });
            if let Some(reserved) = reserved.await? {
                return Ok(reserved);
            }
            _ = time::timeout(LOOK_AGAIN, changed).await;
        }
    }

    /// What makes a guard of a lease. It may be called on any thread.
    fn held(&self) -> impl FnOnce(crate::journal::lease::Lease) -> Held + Send + 'static {
        let (journal, clock, tasks) =
            (self.journal.clone(), Arc::clone(&self.config.clock), self.tasks.clone());
        move |lease| Held::new(lease, journal, clock, tasks)
    }
}

/// How long an answer says that its body is.
fn length_of(headers: &http::HeaderMap) -> Option<u64> {
    headers.get(http::header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn not_begun(reason: &str) -> Ended {
    Ended::NotPaid(Failure { reason: reason.to_owned(), unsent: true })
}

/// An earlier payment stays what it was: perhaps made.
fn not_again(reason: &str, refusal: &Refusal) -> Ended {
    Ended::Unknown { reason: format!("{reason}; it is not sent again: {refusal}") }
}
