//! What the engine tells: of an answer and what it took to get it, of a price, of what the policy says.

use bytes::Bytes;
use farebox_protocol::{Msat, Network, PaymentHash, Timestamp};
use http::StatusCode;

use crate::policy::{Budget, Judgement};
use crate::purchase::{Money, Order, Refusal};
use crate::shortfall::reason;
use crate::{Origin, Shortfall};

/// An answer, and what it took to get it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Fetched {
    /// The answer; its body has not been read.
    pub response: reqwest::Response,
    /// What this request has paid, if it has.
    pub purchase: Option<Receipt>,
    /// The payment under whose credential the answer was given, bought now or earlier.
    pub credential: Option<PaymentHash>,
    /// The payments whose credentials servers were shown on the way here, redirects included.
    pub shown: Vec<PaymentHash>,
    /// The credentials among them that are good, and were not enough for this request.
    pub shortfalls: Vec<Shortfall>,
}

impl Fetched {
    /// Why a farebox gateway answers as it does, in one word (`farebox-code`): small letters and `_`, and a server's own word
    /// all the same.
    pub fn reason(&self) -> Option<&str> {
        reason(self.response.headers())
    }
}

/// A purchase that this request has made.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// The payment.
    pub payment_hash: PaymentHash,
    /// Who was paid.
    pub origin: Origin,
    /// What for, where the token says so.
    pub service: String,
    /// The price.
    pub price: Msat,
    /// What the route cost on top.
    pub fee: Msat,
    /// When the credential ends, if it says so.
    pub valid_until: Option<Timestamp>,
}

/// What a request would cost.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Quote {
    /// Who answered, behind all redirects.
    pub origin: Origin,
    /// The status of the answer. Unless it is 402 the request has been carried out, and costs nothing.
    pub status: StatusCode,
    /// What would be bought, if the answer asks for money.
    pub offer: Option<Quoted>,
    /// Why it would not be paid, by limits, policy and budgets; the wallet has no say in it.
    pub refusal: Option<Refusal>,
    /// A credential is held that would be tried first.
    pub has_credential: bool,
    /// The beginning of the body of an answer that asks for money, up to 64 KiB: what else there is to choose from, as the
    /// server tells it. Nothing is decided by it.
    pub told: Bytes,
}

/// What the policy says of a request.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Explained {
    /// Who would be paid.
    pub origin: Origin,
    /// The verdict, the rule that gave it, and all caps that bind.
    pub judgement: Judgement,
    /// The verdict is that on sellers who have never been paid.
    pub is_new: bool,
    /// The budgets, with what is taken of them.
    pub budgets: Vec<BudgetUse>,
}

/// A budget, and how much of it is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BudgetUse {
    /// Which.
    pub budget: Budget,
    /// What has been paid within its time, fees included.
    pub spent: Msat,
    /// What is kept aside for payments under way or of unknown outcome, worst-case fees included.
    pub reserved: Msat,
}

impl BudgetUse {
    /// What is left.
    pub fn left(&self) -> Msat {
        self.budget.most.saturating_sub(self.spent.saturating_add(self.reserved))
    }
}

/// What would be bought.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Quoted {
    /// The amount of the invoice.
    pub price: Msat,
    /// The most that the route may cost on top.
    pub fee_max: Msat,
    /// The network of the invoice.
    pub network: Network,
    /// The node that would be paid.
    pub payee: String,
    /// The service, where the token names one.
    pub service: String,
    /// The end of the invoice.
    pub expires_at: Timestamp,
}

impl Quoted {
    pub(super) fn of(order: &Order) -> Self {
        Self {
            price: order.price,
            fee_max: order.fee_max,
            network: order.invoice.network(),
            payee: order.invoice.payee(),
            service: order.scope.service.clone(),
            expires_at: order.invoice.expires_at(),
        }
    }
}

impl Receipt {
    pub(super) fn money(&self) -> Money {
        Money::Spent { payment_hash: self.payment_hash, price: self.price, fee: self.fee }
    }
}
