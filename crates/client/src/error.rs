//! Why there is no answer, and what became of the money. No text here holds a secret or the query of an address.

use std::time::Duration;

use crate::engine::Said;
use crate::purchase::{Money, Refusal, Stop};
use crate::{JournalError, RequestError, Shortfall};

/// What went wrong in code that isn't ours.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why the engine doesn't start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The journal.
    #[error("the journal of purchases can't be opened")]
    Journal(#[from] JournalError),
    /// The HTTP client.
    #[error(transparent)]
    Http(#[from] RequestError),
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The request or the way to the server.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The service beneath a [`tower`](crate::tower) layer.
    #[error("the service that was to send the request has failed")]
    Service(#[source] BoxError),
    /// The purchase.
    #[error(transparent)]
    Purchase(#[from] Stop),
    /// The journal. What isn't written down isn't paid.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Somebody else is buying the same thing and doesn't come to an end.
    #[error("another purchase at the same place has not ended within {} s; ask again later", .0.as_secs())]
    Busy(Duration),
    /// The engine is being closed.
    #[error("the engine is closing")]
    Closing,
}

/// Why a request has no answer, and what became of the money.
#[derive(Debug, thiserror::Error)]
#[error("{fault}")]
#[non_exhaustive]
pub struct FetchError {
    #[source]
    fault: Fault,
    money: Money,
    told: Box<Said>,
}

impl FetchError {
    pub(crate) fn new(fault: impl Into<Fault>, money: Money) -> Self {
        Self { fault: fault.into(), money, told: Box::default() }
    }

    /// The same error of a request that had bought something before it came to this.
    pub(crate) fn after(mut self, spent: &Money, shortfalls: &[Shortfall]) -> Self {
        if self.money == Money::None {
            self.money = spent.clone();
        }
        self.told.shortfalls.splice(..0, shortfalls.iter().cloned());
        self
    }

    /// The same error with what the answers have said before it.
    pub(crate) fn told(mut self, told: Said) -> Self {
        self.told = told.into();
        self
    }

    /// What went wrong.
    pub fn fault(&self) -> &Fault {
        &self.fault
    }

    /// What became of the money. Unless it is [`Money::None`], the payment is in the journal under its hash, and the
    /// same request made again does not pay again.
    pub fn money(&self) -> &Money {
        &self.money
    }

    /// The credentials that were shown and are good, only not for this request now: when to come back, as their seller says.
    /// None of them is lost.
    pub fn shortfalls(&self) -> &[Shortfall] {
        &self.told.shortfalls
    }

    /// Why the last answer was what it was, in the one word of a farebox gateway (`farebox-code`): small letters and `_`, and
    /// a server's own word all the same.
    pub fn reason(&self) -> Option<&str> {
        self.told.reason.as_deref()
    }

    /// The stable name of what went wrong, for programs.
    pub const fn code(&self) -> &'static str {
        match &self.fault {
            Fault::Request(error) => error.code(),
            Fault::Service(_) => "service",
            Fault::Purchase(stop) => stop.code(),
            Fault::Journal(_) => "journal",
            Fault::Busy(_) => "busy",
            Fault::Closing => "closing",
        }
    }

    /// Whether the same request may simply be made again, now or a little later, and has a chance.
    ///
    /// Making it again is always safe for the money; this says whether it is any use.
    pub const fn retryable(&self) -> bool {
        match &self.fault {
            Fault::Request(RequestError::Network { .. } | RequestError::Silent { .. })
            | Fault::Service(_)
            | Fault::Busy(_) => true,
            Fault::Purchase(stop) => matches!(
                stop,
                Stop::LeaseLost | Stop::Failed(_) | Stop::Refused(Refusal::InvoiceExpired { .. })
            ),
            Fault::Request(_) | Fault::Journal(_) | Fault::Closing => false,
        }
    }
}
