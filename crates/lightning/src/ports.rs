//! The two roles a Lightning node can play for farebox: [`Receive`] for sellers, [`Pay`] for buyers and refunds.
//!
//! Two traits and not one: a backend that can only receive must not have a `pay` that fails in production. A backend
//! *states what it can prove* ([`ReceiveFacts`], [`PayFacts`]), and callers decide by that: "not found" means unsent only
//! where the backend says so. An `Err` from [`Pay::pay`] means that the outcome is unknown, never that it failed.

use std::{fmt, time::Duration};

use farebox_protocol::{Invoice, Msat, Network, PaymentHash, Preimage, Timestamp};
use futures_util::{future::BoxFuture, stream::BoxStream};

/// What a seller asks its node for.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The amount, above zero. A backend of coarser granularity rounds up.
    pub amount: Msat,
    /// How long the invoice can be paid.
    pub expiry: Duration,
    /// What the payer's wallet shows.
    pub description: String,
}

/// What is true of a receiving backend for as long as it runs.
#[derive(Clone, Debug)]
pub struct ReceiveFacts {
    /// The network its invoices are for.
    pub network: Network,
    /// The node whose settlements these are: a cursor belongs to one node. Its public key, with what else tells two apart before
    /// a colon or behind a slash.
    pub node: String,
    /// How long after its invoice's expiry a payment may still arrive.
    pub grace: Duration,
    /// Amounts are multiples of this.
    pub granularity: Msat,
    /// The node is paid for other things, too: a settlement is ours only if its description says so.
    pub is_shared: bool,
}

impl ReceiveFacts {
    /// Whether an invoice of this payee (66 hexadecimal digits) is the node's own.
    pub fn is_paid_at(&self, payee: &str) -> bool {
        self.node.split([':', '/']).any(|part| part.eq_ignore_ascii_case(payee))
    }
}

/// What the node knows of one incoming payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// The node has the money.
    Settled {
        /// All that arrived for this hash.
        amount: Msat,
        /// When it arrived.
        at: Timestamp,
    },
    /// Not paid, as far as the node knows. A backend that keeps nothing of unpaid invoices can't say more.
    Unpaid,
}

/// A place in a node's sequence of settlements.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cursor(pub u64);

/// The node has received money. The same `cursor` may be told again; another one for the same hash is another payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// The place of this settlement in the node's sequence.
    pub cursor: Cursor,
    /// What was paid.
    pub hash: PaymentHash,
    /// How much arrived.
    pub amount: Msat,
    /// When.
    pub at: Timestamp,
    /// What [`Ask::description`] said, where the node keeps it.
    pub description: Option<String>,
}

/// Whether new invoices can be had just now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Ready.
    Ready,
    /// Not now; the text is for the log and for `readyz`, never for a stranger.
    Down(String),
}

/// Why there is no answer from a receiving backend.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// The node can't be reached or isn't ready; later it may be.
    #[error("the node is not available: {0}")]
    Unavailable(String),
    /// The node did not answer in time.
    #[error("the node did not answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The node answered something that must not be trusted.
    #[error("the node answered wrongly: {0}")]
    Wrong(String),
    /// The request itself can't be carried out.
    #[error("cannot make this invoice: {0}")]
    Invalid(String),
}

/// A node that can be paid.
pub trait Receive: Send + Sync {
    /// What is true of this backend; `None` until its node has been spoken to, and then the same for ever.
    fn facts(&self) -> Option<ReceiveFacts>;

    /// A new invoice. It has been checked: amount, network, expiry and signature are as asked.
    fn invoice(&self, ask: Ask) -> BoxFuture<'_, Result<Invoice, ReceiveError>>;

    /// What the node knows of one payment.
    fn lookup(&self, hash: PaymentHash) -> BoxFuture<'_, Result<Incoming, ReceiveError>>;

    /// All settlements after `after`, then those to come, in order, at least once. Ends only with an error.
    fn settlements(&self, after: Cursor) -> BoxStream<'_, Result<Settlement, ReceiveError>>;

    /// Whether new invoices can be had, from what is known already: no round trip.
    fn health(&self) -> Health;
}

/// Names a wallet for as long as its funds and history are the same: another wallet's "not found" proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WalletId(pub String);

impl fmt::Display for WalletId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How far a wallet keeps to the fee limit it is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FeeControl {
    /// It never pays more than the limit.
    Exact,
    /// It takes no limit; a payment costs at most this much: `base + amount * parts_per_million / 1,000,000`.
    WorstCase {
        /// The part that doesn't depend on the amount.
        base: Msat,
        /// The part that does.
        parts_per_million: u64,
    },
}

impl FeeControl {
    /// The most that paying `amount` with a limit of `limit` can cost in fees.
    pub fn fee_max(&self, amount: Msat, limit: Msat) -> Msat {
        match self {
            Self::Exact => limit,
            Self::WorstCase { base, parts_per_million } => {
                let share = u128::from(amount.get()) * u128::from(*parts_per_million);
                let share = u64::try_from(share.div_ceil(1_000_000)).unwrap_or(u64::MAX);
                base.saturating_add(Msat::new(share))
            }
        }
    }
}

/// What is true of a paying backend for as long as it runs.
#[derive(Clone, Debug)]
pub struct PayFacts {
    /// Which wallet this is.
    pub wallet: WalletId,
    /// The network it can pay on.
    pub network: Network,
    /// A "not found" from [`Pay::lookup`] proves that the payment was never sent from this wallet.
    pub proves_unsent: bool,
    /// It refuses to pay a hash that it has paid already, so the same invoice may safely be tried again.
    pub refuses_paid_hash: bool,
    /// How far it keeps to a fee limit.
    pub fee_control: FeeControl,
}

/// One payment to make.
#[derive(Clone, Debug)]
pub struct PayRequest {
    /// What to pay; it has an amount.
    pub invoice: Invoice,
    /// The most the route may cost.
    pub fee_max: Msat,
    /// How long to wait for the outcome. Afterwards the payment may still be in flight.
    pub timeout: Duration,
}

/// What a wallet knows of one outgoing payment.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Paid: here is the proof.
    Settled {
        /// The proof; it has been checked against the payment hash.
        preimage: Preimage,
        /// What the route cost.
        fee: Msat,
    },
    /// Not paid, finally: no money has left, none will for this attempt.
    Failed(String),
    /// Still under way.
    InFlight,
    /// The wallet knows nothing of it; what that proves, [`PayFacts::proves_unsent`] says.
    NotFound,
}

/// Why a wallet gave no answer. The payment may or may not have been sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PayError {
    /// The wallet can't be reached or isn't ready.
    #[error("the wallet is not available: {0}")]
    Unavailable(String),
    /// The wallet did not answer in time.
    #[error("the wallet did not answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The wallet answered something that must not be trusted, such as a preimage that doesn't hash to the payment hash.
    #[error("the wallet answered wrongly: {0}")]
    Wrong(String),
}

/// A node that can pay.
pub trait Pay: Send + Sync {
    /// What is true of this wallet.
    fn facts(&self) -> PayFacts;

    /// Pays. `Err` means that the outcome is unknown: ask [`Pay::lookup`], never pay again.
    fn pay(&self, request: PayRequest) -> BoxFuture<'_, Result<Outcome, PayError>>;

    /// What has become of a payment.
    fn lookup(&self, hash: PaymentHash) -> BoxFuture<'_, Result<Outcome, PayError>>;

    /// What can be spent now.
    fn balance(&self) -> BoxFuture<'_, Result<Msat, PayError>>;
}
