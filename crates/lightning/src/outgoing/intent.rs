//! What the journal says of one outgoing payment, and the port through which it is written: [`Intents`].
//!
//! The journal is a port because the buyer's client keeps its purchases in the same SQLite file: it wraps or implements
//! [`Intents`], so that a purchase and its payment move in one transaction. The rule that every implementation keeps: a
//! row that was sent is moved only by what the wallet (or a person) says of *that attempt*, and a settled row never moves.

use farebox_protocol::{Invoice, Msat, PaymentHash, Preimage, Timestamp};

use crate::WalletId;

/// What is to be paid: the part of a row that is known before anything happens.
#[derive(Clone, Debug)]
pub struct NewIntent {
    /// What to pay; it has an amount.
    pub invoice: Invoice,
    /// The invoice's amount.
    pub amount: Msat,
    /// The most that the route may cost.
    pub fee_max: Msat,
    /// The wallet that shall pay.
    pub wallet: WalletId,
}

/// One row of the journal.
#[derive(Clone, Debug)]
pub struct Intent {
    /// The key of the row.
    pub hash: PaymentHash,
    /// The invoice as it was given, in BOLT11.
    pub invoice: String,
    /// The invoice's amount.
    pub amount: Msat,
    /// The most that the route may cost; with `amount`, what has to be kept aside while the outcome is open.
    pub fee_max: Msat,
    /// The wallet that was asked last, or shall be: another wallet's "not found" proves nothing.
    pub wallet: WalletId,
    /// How often the wallet has been asked to pay. A writer names the attempt that it saw.
    pub attempt: u32,
    /// How far it is.
    pub state: State,
    /// When the row was made.
    pub created: Timestamp,
    /// When it last moved.
    pub updated: Timestamp,
}

/// How far an outgoing payment is.
#[derive(Clone, Debug)]
pub enum State {
    /// On disk; the wallet has not been asked. No money has left.
    Recorded,
    /// The wallet has been asked, or was about to be when the process died. Only a lookup tells.
    Sent,
    /// Paid.
    Settled {
        /// The proof; it hashes to the row's key.
        preimage: Preimage,
        /// What the route cost.
        fee: Msat,
    },
    /// Not paid.
    Failed(Failure),
    /// Perhaps paid: what was kept aside stays so until a lookup or a person says more.
    Unknown {
        /// Why the outcome isn't known.
        reason: String,
    },
}

/// Why nothing was paid, and how sure that is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// For the log and for the person who asked.
    pub reason: String,
    /// The wallet is proven not to have sent anything, so that the same invoice may safely be tried again.
    pub unsent: bool,
}

impl State {
    /// Whether the wallet may have money under way: a sent or unknown row.
    pub const fn is_open(&self) -> bool {
        matches!(self, Self::Sent | Self::Unknown { .. })
    }

    /// The word for it, as the journal spells it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Recorded => "recorded",
            Self::Sent => "sent",
            Self::Settled { .. } => "settled",
            Self::Failed(Failure { unsent: true, .. }) => "unsent",
            Self::Failed(_) => "failed",
            Self::Unknown { .. } => "unknown",
        }
    }
}

/// Why the journal did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IntentError {
    /// The disk, the file or SQLite itself.
    #[error(
        "the journal of outgoing payments can't be used; free disk space, close what locks it, or name another file"
    )]
    Sqlite(#[from] rusqlite::Error),
    /// Another invoice with the same payment hash is in the journal. Paying both would pay one hash twice.
    #[error("payment hash `{0}` is in the journal with another invoice; ask the seller for a new one")]
    OtherInvoice(PaymentHash),
    /// Somebody else has moved the row since it was read.
    #[error("payment `{hash}` is `{now}` by now: somebody else has moved it")]
    Moved {
        /// Which payment.
        hash: PaymentHash,
        /// The state that it is in.
        now: &'static str,
    },
    /// No row has this payment hash.
    #[error("no payment `{0}` is in the journal")]
    Missing(PaymentHash),
    /// The journal's owner forbids to send now, for instance because its lease has gone to another process.
    #[error("sending is not allowed any more: {0}")]
    Forbidden(String),
    /// The write was begun and its end not seen, as when the process is stopping. It may be on disk or not.
    #[error("the journal's writer was interrupted")]
    Interrupted,
    /// A row that this version can't read.
    #[error("payment `{hash}` can't be read from the journal: {what}")]
    Corrupt {
        /// The key of the row, as far as it could be read.
        hash: String,
        /// What is wrong with it.
        what: String,
    },
    /// The file was written by a later version.
    #[error("the journal has version {found}, this program knows up to {known}; use a newer farebox")]
    TooNew {
        /// What the file says.
        found: u32,
        /// What this program can read.
        known: u32,
    },
}

/// The journal of outgoing payments.
///
/// The calls block (they wait for the disk), so [`super::Outgoing`] makes them where blocking is allowed. Each one is
/// one transaction and is on disk when it returns. All but `settle` say which row they saw, and change nothing when it
/// has moved since ([`IntentError::Moved`]).
pub trait Intents: Send + Sync {
    /// Makes the row `recorded`, or finds the one that this invoice has already.
    fn record(&self, intent: &NewIntent, now: Timestamp) -> Result<Intent, IntentError>;

    /// Moves `seen` to `sent`, counting an attempt, with the wallet and fee limit of `intent`. The one transaction in
    /// which whoever holds the row (a lease, say) must still hold it; once it has returned `Ok` the wallet is asked.
    fn mark_sent(&self, seen: &Intent, intent: &NewIntent, now: Timestamp) -> Result<Intent, IntentError>;

    /// Paid. From every state: a proof of payment outweighs what was believed before.
    fn settle(
        &self,
        hash: &PaymentHash,
        preimage: &Preimage,
        fee: Msat,
        now: Timestamp,
    ) -> Result<Intent, IntentError>;

    /// Not paid.
    fn fail(&self, seen: &Intent, failure: &Failure, now: Timestamp) -> Result<Intent, IntentError>;

    /// Perhaps paid.
    fn unknown(&self, seen: &Intent, reason: &str, now: Timestamp) -> Result<Intent, IntentError>;

    /// The row of one payment.
    fn find(&self, hash: &PaymentHash) -> Result<Option<Intent>, IntentError>;

    /// All rows that are `recorded`, `sent` or `unknown`, oldest first.
    fn open(&self) -> Result<Vec<Intent>, IntentError>;

    /// Whether the rows outlive the process.
    fn durable(&self) -> bool;
}
