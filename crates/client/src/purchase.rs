//! One purchase as a state machine without I/O: events in, one command out, and all the rules about buying in between.
//!
//! asked → challenged → judged → reserved → recorded → sent → settled | failed | unknown → saved → retried → delivered |
//! rejected. [`crate::Engine`] carries the commands out; tests and the fuzzer do the same with less. The machine knows no
//! clock, no socket and no wallet, so it can't be talked into paying by any of them. The stretch from `sent` to `saved` is
//! [`farebox_lightning::outgoing`]'s: here it is one command, [`Command::Pay`], and one event, [`Event::Ended`].
//!
//! The law it keeps: [`Command::Pay`] comes at most once per purchase, only for an order that has been judged, reserved and
//! recorded, and never when an earlier purchase in the same place is open or was paid for and not honoured.

use std::{mem, time::Duration};

use farebox_lightning::outgoing::Ended;
use farebox_protocol::{Msat, PaymentHash, Timestamp};
use http::StatusCode;

use crate::policy::Verdict;
use crate::{Origin, Pass, Scope};

mod judge;
#[cfg(test)]
mod tests;

pub use judge::{Answer, Order, Refusal, RequestFacts, Rules, judge};

/// How long to wait before presenting a credential that has just been paid for once more: the server may not have seen
/// the settlement yet. After the last of these it is rejected.
const RETRY_AFTER: [Duration; 3] = [Duration::ZERO, Duration::from_millis(400), Duration::from_millis(1_600)];

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The server answered what was last sent.
    Answered(Answer),
    /// The journal answered [`Command::Reserve`].
    Reserved(Reservation, Timestamp),
    /// The order is in the journal.
    Recorded,
    /// The journal knows this payment hash already, as paid or as under way.
    RecordedBefore,
    /// A budget has no room for it; nothing was written.
    OverBudget(Refusal),
    /// A person agreed to what [`Command::Approve`] asked, by this time.
    Approved(Timestamp),
    /// Nobody agreed, or not yet: the question may wait under this name.
    NotApproved(Option<String>),
    /// Another process has taken the purchase over; this one has paid nothing and may not.
    LeaseLost,
    /// How the payment of [`Command::Pay`] or [`Command::Resume`] ended, as far as is known.
    Ended(Ended),
}

/// The journal's answer to [`Command::Reserve`]. All but [`Self::Pass`] come with the lease of the scope.
#[derive(Clone, Debug)]
pub enum Reservation {
    /// Nobody else is buying here: go on.
    Ours,
    /// Somebody else has bought meanwhile, and we may share.
    Pass(Pass),
    /// An earlier purchase here was begun and its outcome is unknown.
    Unsettled(Box<Order>),
    /// An earlier purchase here was paid for and has never been honoured.
    NeverHonoured(PaymentHash),
    /// Another program has begun to buy here, and its end is unknown. This names the program.
    Elsewhere(PaymentHash, String),
}

/// What to do next. There is always exactly one thing.
#[derive(Clone, Debug)]
pub enum Command {
    /// Send the request, with this credential if any.
    Send(Option<Pass>),
    /// Take the lease of this scope, waiting for whoever holds it.
    Reserve(Scope),
    /// Ask a person whether this may be paid.
    Approve(Box<Order>),
    /// Write the order to the journal.
    Record(Box<Order>),
    /// Pay, which marks the payment as sent first, in one transaction that also checks the lease.
    Pay(Box<Order>),
    /// Find out how an earlier payment ended.
    Resume(Box<Order>),
    /// Wait this long, then send the request with the credential that has just been bought.
    Retry(Pass, Duration),
    /// Give the answer to the caller.
    Deliver,
    /// Give up.
    Stop(Stop),
}

/// Why there is nothing to deliver.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Stop {
    /// It was not to be paid.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The wallet could not pay. No money has left.
    #[error("the payment failed and nothing was spent: {0}")]
    Failed(String),
    /// Nobody knows whether the payment arrives. Paying again might pay twice.
    #[error("the outcome of payment {0} is not known ({1}); don't pay again, ask once more later")]
    Unknown(PaymentHash, String),
    /// The server takes the money and not the credential.
    #[error("payment {0} was made and its credential refused with {1}; it is not bought again unasked")]
    Rejected(PaymentHash, StatusCode),
    /// A holder that was suspended for too long.
    #[error("another process has taken this purchase over; ask again")]
    LeaseLost,
    /// The driver broke the order of events.
    #[error("the purchase was told of something that can't have happened")]
    Confused,
}

impl Stop {
    /// The stable name of this ending.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.code(),
            Self::Failed(_) => "payment_failed",
            Self::Unknown(..) => "payment_unknown",
            Self::Rejected(..) => "credential_rejected",
            Self::LeaseLost => "lease_lost",
            Self::Confused => "internal",
        }
    }
}

/// What is known of the money of this request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Money {
    /// None has left, none will.
    #[default]
    None,
    /// Paid, and the proof of it is held.
    Spent {
        /// The payment.
        payment_hash: PaymentHash,
        /// The price.
        price: Msat,
        /// What the route cost.
        fee: Msat,
    },
    /// It may have left, it may yet leave.
    Unknown {
        /// The payment, and the name under which it is resumed.
        payment_hash: PaymentHash,
        /// The price.
        price: Msat,
        /// The most that the route can cost.
        fee_worst: Msat,
    },
}

/// What the answers say of a credential that was presented; the journal keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// It was accepted.
    Honoured(PaymentHash),
    /// It was refused here.
    Refused(PaymentHash),
    /// It was refused by the very service it was sold for: where it has been honoured before, it is used up, expired or
    /// revoked.
    Spent(PaymentHash),
}

#[derive(Debug)]
enum State {
    Asked {
        with: Option<Pass>,
    },
    Judged(Box<Order>),
    Approving(Box<Order>),
    Reserved(Box<Order>),
    /// Recorded, and the wallet asked; or an earlier payment looked up, with the order that waits for it in `next`.
    Sent {
        order: Box<Order>,
        next: Option<Box<Order>>,
    },
    Retried {
        pass: Pass,
        tries: usize,
    },
    Over,
}

/// One request's way to what it asked for.
#[derive(Debug)]
pub struct Purchase {
    asked: Origin,
    rules: Rules,
    state: State,
    /// Credentials that are left to try, the most likely last.
    candidates: Vec<Pass>,
    /// Those that have been shown, and whether any server had honoured them by then.
    tried: Vec<(PaymentHash, bool)>,
    money: Money,
    notes: Vec<Note>,
    /// A fresh challenge has been asked for once: not for ever.
    refreshed: bool,
    /// What a person has agreed to pay: this much, once.
    approved: Option<Msat>,
}

impl Purchase {
    /// A purchase at `asked` by these rules. `candidates` are the credentials held for it, the most likely first.
    pub fn new(asked: Origin, rules: Rules, mut candidates: Vec<Pass>) -> (Self, Command) {
        candidates.reverse();
        let mut purchase = Self {
            asked,
            rules,
            state: State::Over,
            candidates,
            tried: Vec::new(),
            money: Money::None,
            notes: Vec::new(),
            refreshed: false,
            approved: None,
        };
        let command = purchase.ask();
        (purchase, command)
    }

    /// What is known of the money so far. When the caller goes away, this is what they must be told.
    pub fn money(&self) -> &Money {
        &self.money
    }

    /// The credentials that have been shown, and whether any server had honoured them by then.
    pub fn tried(&self) -> &[(PaymentHash, bool)] {
        &self.tried
    }

    /// What the journal should keep about the credentials presented so far; empties the list.
    pub fn take_notes(&mut self) -> Vec<Note> {
        mem::take(&mut self.notes)
    }

    /// An earlier order, if the rules of this purchase let it be sent once more, with the tighter of both fee limits.
    pub(crate) fn judge_again(&self, earlier: &Order) -> Result<Order, Refusal> {
        judge::judge_again(earlier, &self.rules)
    }

    /// Takes in what happened and says what to do next.
    pub fn on(&mut self, event: Event) -> Command {
        match (mem::replace(&mut self.state, State::Over), event) {
            (State::Asked { with }, Event::Answered(answer)) => self.answered(with, &answer),
            (State::Judged(order), Event::Reserved(reservation, now)) => {
                self.reserved(order, reservation, now)
            }
            (State::Reserved(order), Event::Recorded) => {
                self.money = owed(&order);
                self.state = State::Sent { order: order.clone(), next: None };
                Command::Pay(order)
            }
            (State::Approving(order), Event::Approved(now)) => {
                self.approved = Some(order.price);
                self.record(order, now)
            }
            (State::Approving(order), Event::NotApproved(waits)) => {
                self.stop(order.approval_needed(waits).into())
            }
            (State::Reserved(_), Event::OverBudget(refusal)) => self.stop(refusal.into()),
            (State::Reserved(order), Event::RecordedBefore) => {
                self.stop(Refusal::AlreadyPaid(order.payment_hash()).into())
            }
            (State::Reserved(_) | State::Sent { next: None, .. }, Event::LeaseLost) => {
                self.money = Money::None;
                self.stop(Stop::LeaseLost)
            }
            (State::Sent { next: Some(_), .. }, Event::LeaseLost) => self.stop(Stop::LeaseLost),
            (State::Sent { order, next }, Event::Ended(ended)) => self.ended(&order, next, ended),
            (State::Retried { pass, tries }, Event::Answered(answer)) => self.retried(pass, tries, &answer),
            _ => self.stop(Stop::Confused),
        }
    }

    /// Sends the request with the next credential there is.
    fn ask(&mut self) -> Command {
        let with = self.candidates.pop();
        if let Some(pass) = &with {
            self.tried.push((pass.payment_hash(), pass.honoured));
        }
        self.state = State::Asked { with: with.clone() };
        Command::Send(with)
    }

    fn answered(&mut self, with: Option<Pass>, answer: &Answer) -> Command {
        if !wants_money(answer, with.is_some()) {
            if let Some(pass) = with
                && honours(answer.status)
            {
                self.notes.push(Note::Honoured(pass.payment_hash()));
            }
            return Command::Deliver;
        }
        let judged = judge(&self.asked, answer, &self.rules);
        if let Some(pass) = with {
            self.refused(&pass, judged.as_ref().ok(), answer);
            // A bare `401 L402` refuses the token without saying what a new one costs: ask without it.
            if !self.candidates.is_empty() || answer.offered.is_empty() {
                return self.ask();
            }
        }
        match judged {
            Err(refusal) => self.stop(refusal.into()),
            Ok(order) if self.rules.wallet.is_none() => {
                self.stop(Refusal::NoWallet { price: order.price }.into())
            }
            Ok(order) => {
                let scope = order.scope.clone();
                self.state = State::Judged(Box::new(order));
                Command::Reserve(scope)
            }
        }
    }

    /// Draws the conclusions from a credential that was refused with this challenge.
    fn refused(&mut self, pass: &Pass, challenge: Option<&Order>, answer: &Answer) {
        let hash = pass.payment_hash();
        // Only a challenge that says which service it is for tells anything about other places than this one.
        let same_service =
            challenge.filter(|order| !order.scope.service.is_empty()).map(|order| &order.scope);
        let is_spent = pass.honoured && same_service == Some(&pass.scope);
        match is_spent {
            // It is good again next month, or for a request that takes less, here as elsewhere: nothing is noted that would
            // keep it from being tried then. What is bought beside it is tried first, and a try costs a round trip. Only a
            // token of this very service is told so, and also where the challenge beside it is none that may be paid.
            _ if answer.is_too_little && pass.honoured => {}
            true => self.notes.push(Note::Spent(hash)),
            false => self.notes.push(Note::Refused(hash)),
        }
        if let Some(scope) = same_service {
            self.candidates.retain(|other| other.scope == *scope);
        }
    }

    fn reserved(&mut self, order: Box<Order>, reservation: Reservation, now: Timestamp) -> Command {
        match reservation {
            Reservation::Pass(pass) if self.tried.contains(&(pass.payment_hash(), pass.honoured)) => {
                self.stop(Stop::Confused)
            }
            Reservation::Pass(pass) => {
                self.candidates.push(pass);
                self.ask()
            }
            Reservation::Unsettled(earlier) => {
                self.money = owed(&earlier);
                self.state = State::Sent { order: earlier.clone(), next: Some(order) };
                Command::Resume(earlier)
            }
            Reservation::Elsewhere(hash, program) => {
                let reason = format!("{program} began it; `farebox purchases recover` asks the wallet");
                self.stop(Stop::Unknown(hash, reason))
            }
            Reservation::NeverHonoured(hash) if !self.rules.buy_again => {
                self.stop(Stop::Rejected(hash, StatusCode::PAYMENT_REQUIRED))
            }
            Reservation::Ours | Reservation::NeverHonoured(_) => self.record(order, now),
        }
    }

    fn record(&mut self, order: Box<Order>, now: Timestamp) -> Command {
        if self.wants_approval(&order) {
            self.state = State::Approving(order.clone());
            Command::Approve(order)
        } else if order.leaves_time(now) {
            self.state = State::Reserved(order.clone());
            Command::Record(order)
        } else if mem::replace(&mut self.refreshed, true) {
            self.stop(Refusal::InvoiceExpired { expires_at: order.invoice.expires_at(), now }.into())
        } else {
            // The invoice grew old while somebody else was buying.
            self.ask()
        }
    }

    /// Whether a person must still agree. What was agreed to holds for a fresh invoice that asks no more.
    fn wants_approval(&self, order: &Order) -> bool {
        order.judgement.verdict > Verdict::Allow && self.approved.is_none_or(|most| order.price > most)
    }

    fn ended(&mut self, order: &Order, next: Option<Box<Order>>, ended: Ended) -> Command {
        let payment_hash = order.payment_hash();
        match ended {
            // `outgoing` promises this; the last look before an unpaid invoice would count as paid.
            Ended::Settled(paid) if paid.preimage.pays(&payment_hash) => {
                self.money = Money::Spent { payment_hash, price: order.price, fee: paid.fee };
                let pass = Pass {
                    scope: order.scope.clone(),
                    scheme: order.scheme,
                    token: order.token.clone(),
                    preimage: paid.preimage,
                    honoured: false,
                };
                self.retry(pass, 0)
            }
            Ended::Settled(_) => self.stop(Stop::Unknown(payment_hash, "the proof is none".to_owned())),
            Ended::NotPaid(failure) => {
                self.money = Money::None;
                match next {
                    Some(next) if self.wants_approval(&next) => {
                        self.state = State::Approving(next.clone());
                        Command::Approve(next)
                    }
                    Some(next) => {
                        self.state = State::Reserved(next.clone());
                        Command::Record(next)
                    }
                    None => self.stop(Stop::Failed(failure.reason)),
                }
            }
            Ended::Unknown { reason } => self.stop(Stop::Unknown(payment_hash, reason)),
        }
    }

    fn retry(&mut self, pass: Pass, tries: usize) -> Command {
        let after = RETRY_AFTER.get(tries).copied().unwrap_or_default();
        self.state = State::Retried { pass: pass.clone(), tries: tries.saturating_add(1) };
        Command::Retry(pass, after)
    }

    fn retried(&mut self, pass: Pass, tries: usize, answer: &Answer) -> Command {
        let hash = pass.payment_hash();
        let refused = answer.status == StatusCode::PAYMENT_REQUIRED || wants_money(answer, true);
        if !refused {
            if honours(answer.status) {
                self.notes.push(Note::Honoured(hash));
            }
            return Command::Deliver;
        }
        if tries < RETRY_AFTER.len() {
            return self.retry(pass, tries);
        }
        self.notes.push(Note::Refused(hash));
        self.stop(Stop::Rejected(hash, answer.status))
    }

    fn stop(&mut self, stop: Stop) -> Command {
        self.state = State::Over;
        Command::Stop(stop)
    }
}

/// Whether this answer asks for money. A 401 does only when it refuses a credential of ours; any other status never
/// does, whatever its headers say.
fn wants_money(answer: &Answer, presented: bool) -> bool {
    let names_scheme = answer.names_scheme || !answer.offered.is_empty();
    match answer.status {
        StatusCode::PAYMENT_REQUIRED => names_scheme || answer.asks_otherwise(),
        StatusCode::UNAUTHORIZED => presented && names_scheme,
        _ => false,
    }
}

/// Whether a server that answers so has accepted the credential: the resource itself spoke. Trouble on the server's
/// side says nothing either way.
fn honours(status: StatusCode) -> bool {
    const SILENT: [StatusCode; 5] = [
        StatusCode::UNAUTHORIZED,
        StatusCode::PAYMENT_REQUIRED,
        StatusCode::FORBIDDEN,
        StatusCode::PROXY_AUTHENTICATION_REQUIRED,
        StatusCode::TOO_MANY_REQUESTS,
    ];
    !status.is_server_error() && !SILENT.contains(&status)
}

fn owed(order: &Order) -> Money {
    Money::Unknown { payment_hash: order.payment_hash(), price: order.price, fee_worst: order.fee_worst }
}
