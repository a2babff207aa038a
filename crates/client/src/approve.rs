//! Asking a person. The policy says when; who is asked and how is the program's business.

use std::{fmt, pin::Pin};

use farebox_protocol::{Msat, PaymentHash};

use crate::Origin;

/// What a person is asked to agree to. The answer holds for this seller and request, at this price or less, once.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Question {
    /// Who sells.
    pub origin: Origin,
    /// What, where the token says so.
    pub service: String,
    /// The method of the request.
    pub method: String,
    /// Its path, without the query.
    pub path: String,
    /// On whose behalf.
    pub label: Option<String>,
    /// The price.
    pub price: Msat,
    /// The most that the fee can come to.
    pub fee_worst: Msat,
    /// The payment.
    pub payment_hash: PaymentHash,
    /// The node that would be paid.
    pub payee: String,
    /// The rule that wants a person asked; without one, what the policy says of everything else or of new sellers.
    pub rule: Option<String>,
}

/// Somebody who can agree to a payment.
pub trait Approve: Send + Sync {
    /// Asks. `false` is what silence means, too: bound the wait.
    fn ask(&self, question: Question) -> Pin<Box<dyn Future<Output = bool> + Send + '_>>;
}

impl fmt::Display for Question {
    /// `https://api.example.com asks 10 sat (and up to 1 sat of fees) for GET /weather`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { origin, price, fee_worst, method, path, .. } = self;
        write!(f, "{origin} asks {price} (and up to {fee_worst} of fees) for {method} {path}")
    }
}
