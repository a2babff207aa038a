//! The port behind which the seller's books are kept: rows that begin with money, and revocations.
//!
//! A store is asked when somebody paid, when a token is first presented, and once a second for revocations; the path of
//! a paid request never waits for it. Its methods return boxed futures and not plain results: a database on the network
//! is asynchronous by nature, and SQLite's own thread answers through a channel just as well. The other way round, a
//! blocking trait, would put a thread under every call to the network. Nothing here retries; callers know how long they
//! can wait.

use std::path::PathBuf;

use farebox_lightning::{Cursor, Settlement};
use farebox_protocol::{
    Fingerprint, IdentifierHash, Label, Msat, Offer, PaymentHash, ServiceName, Terms, Timestamp, TokenId,
};
use futures_util::future::BoxFuture;

use crate::Continuity;

pub mod accounts;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod entry;
pub mod sqlite;

/// What a token's first presentation tells the books: the signed terms, word for word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presentation {
    /// The payment that the token commits to.
    pub hash: PaymentHash,
    /// The sale, as signed.
    pub sold: Sold,
    /// When it was presented.
    pub at: Timestamp,
}

/// What was sold, as the token says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sold {
    /// The token.
    pub token_id: TokenId,
    /// Its identifier's hash: what revocation goes by.
    pub identifier_hash: IdentifierHash,
    /// The service.
    pub service: ServiceName,
    /// The tier of the service.
    pub tier: u8,
    /// Offer and price.
    pub terms: Terms,
    /// When it ends, where it does.
    pub valid_until: Option<Timestamp>,
}

/// Money that has arrived, to be booked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// What the node says of it. Its description is not kept.
    pub settlement: Settlement,
    /// What its invoice says was sold, where that has a label of ours.
    pub claimed: Option<Label>,
}

/// One row of the books.
///
/// The law: once `sold` is known and something has arrived, `paid + shortfall = price + surplus`, and one of shortfall
/// and surplus is zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Purchase {
    /// The payment: the key of the row.
    pub hash: PaymentHash,
    /// What was sold; `None` until a token for this payment is presented (the row is *unattributed*).
    pub sold: Option<Sold>,
    /// What the invoice that was paid says was sold: all that is known of the sale until its token is presented. Whoever may
    /// make invoices on the same node can have copied it from one of ours, so where they differ, `sold` is right.
    pub claimed: Option<Label>,
    /// When the token was first presented.
    pub presented_at: Option<Timestamp>,
    /// All that has arrived.
    pub paid: Msat,
    /// In how many payments.
    pub payments: u32,
    /// When the first payment arrived.
    pub settled_at: Option<Timestamp>,
    /// What arrived beyond the price: overpaid, paid twice.
    pub surplus: Msat,
    /// What is missing to the price, though something has arrived. Lightning nodes don't take less than was asked, so
    /// this wants a person's attention.
    pub shortfall: Msat,
}

/// What became of a batch of settlements.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Booked {
    /// How many were new.
    pub new: usize,
    /// How much arrived with them.
    pub arrived: Msat,
    /// How many were on the books already.
    pub repeated: usize,
    /// How many name a place in the node's sequence that another payment holds on the books: the node has lost its
    /// history. They are *not* booked.
    pub conflicting: usize,
    /// What was sold by them, as far as it is known what that was.
    pub sales: Vec<Sale>,
}

/// Money and what it bought have met on the books, in whichever order they came; or more money has come for the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sale {
    /// The service.
    pub service: ServiceName,
    /// Whether this is the first money for it.
    pub is_first: bool,
    /// How much money, which no other sale counts.
    pub paid: Msat,
    /// How much of that is beyond the price.
    pub surplus: Msat,
    /// Whether the paid invoice says that something else was sold than the token does.
    pub is_contradicted: bool,
}

/// A token to revoke.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// Which.
    pub identifier_hash: IdentifierHash,
    /// When.
    pub at: Timestamp,
    /// Why, for the seller's own eyes.
    pub reason: String,
}

/// A place in the sequence of revocations. Opaque: each store counts as it likes, but a revocation committed later is
/// never before a place that was handed out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct RevocationCursor(pub u64);

/// The revocations after a place, and the place after them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revoked {
    /// The tokens, each once.
    pub hashes: Vec<IdentifierHash>,
    /// Where to go on.
    pub cursor: RevocationCursor,
}

/// A page of the books, newest row first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Go on behind this row: the last one of the page before.
    pub after: Option<PaymentHash>,
    /// How many rows at most; a store may give fewer, but none only at the end.
    pub rows_max: u16,
}

/// Where the books are kept.
pub trait Store: accounts::Accounts {
    /// Checks that these secrets (newest first) belong to this store, and remembers them. At least one must have been in
    /// use at the last start; with [`Continuity::Abandon`], or in a new store, any will do.
    fn adopt(
        &self,
        secrets: Vec<Fingerprint>,
        continuity: Continuity,
        now: Timestamp,
    ) -> BoxFuture<'_, Result<(), StoreError>>;

    /// How far this node's settlements are on the books.
    fn cursor(&self, node: &str) -> BoxFuture<'_, Result<Cursor, StoreError>>;

    /// Books what has arrived at one node, in order, and moves its cursor to `to`, though never back: both or neither. Each
    /// is booked once. What lies before `to` and isn't among the arrivals is nobody's business here.
    fn settle(
        &self,
        node: &str,
        arrivals: Vec<Arrival>,
        to: Cursor,
    ) -> BoxFuture<'_, Result<Booked, StoreError>>;

    /// Books first presentations, and says what was sold by payments that had come before them. The first terms stay: the
    /// same payment never buys two things.
    fn present(&self, presentations: Vec<Presentation>) -> BoxFuture<'_, Result<Vec<Sale>, StoreError>>;

    /// One row.
    fn purchase(&self, hash: PaymentHash) -> BoxFuture<'_, Result<Option<Purchase>, StoreError>>;

    /// One row with all that belongs to it, as of one moment.
    fn entry(&self, hash: PaymentHash) -> BoxFuture<'_, Result<Option<entry::Entry>, StoreError>>;

    /// Some rows, newest first.
    fn purchases(&self, page: Page) -> BoxFuture<'_, Result<Vec<Purchase>, StoreError>>;

    /// Revokes a token; again is no error, and the first reason stays.
    fn revoke(&self, revocation: Revocation) -> BoxFuture<'_, Result<(), StoreError>>;

    /// The revocations after a place; all of them after the default one.
    fn revocations(&self, after: RevocationCursor) -> BoxFuture<'_, Result<Revoked, StoreError>>;
}

/// Why a store didn't do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another process has the books open.
    #[error("`{}` belongs to another running process; stop that one, or give this one its own store", .0.display())]
    InUse(PathBuf),
    /// The store was last used with other mint secrets.
    #[error(
        "the books were kept with other mint secrets (in use: {known}; given: {given}), so every token sold so far would \
         be refused; restore the old secret, list it after the new one, or abandon those tokens explicitly"
    )]
    OtherSecrets {
        /// The fingerprints in the store.
        known: String,
        /// The fingerprints in the configuration.
        given: String,
    },
    /// A newer farebox has changed the tables.
    #[error("the books have format {found}, this farebox knows up to {known}; use the newer farebox")]
    TooNew {
        /// The format found.
        found: u32,
        /// The newest format known here.
        known: u32,
    },
    /// Nothing there, or tables of an older farebox, where only a running gateway may create or change them.
    #[error("`{}` has no books of this farebox's format; start the gateway on it first", .0.display())]
    NotReady(PathBuf),
    /// The file can be read by others than its owner.
    #[error("`{}` can be read by other users (mode {mode:o}); run `chmod 600` on it", path.display())]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// No space left.
    #[error("the disk is full; nothing was booked, and it will be tried again: {0}")]
    Full(String),
    /// The file or its file system can't be written.
    #[error("the books can't be written; check mount and permissions: {0}")]
    ReadOnly(String),
    /// Another process held the books for too long.
    #[error("the books were locked by another process for too long: {0}")]
    Busy(String),
    /// The file is damaged or not a database.
    #[error("the books are damaged; restore a backup: {0}")]
    Damaged(String),
    /// A value that the store can't hold.
    #[error("`{0}` is out of the store's range")]
    OutOfRange(&'static str),
    /// A later start of the ledger has taken these books over.
    #[error("epoch {0} of the ledger is over: a later one writes these books now")]
    Superseded(u64),
    /// There is not so much to be paid back.
    #[error("there is not so much to be paid back")]
    NotThere,
    /// A refund by this id was asked for with other words.
    #[error("a refund with this id was asked for before, of another payment or amount")]
    OtherRefund,
    /// The store has been closed.
    #[error("the store is closed")]
    Closed,
    /// Anything else.
    #[error("the store failed: {0}")]
    Failed(String),
}

impl StoreError {
    /// Whether trying again would bring the same answer: it is about what was asked, not about how the store is doing.
    pub const fn is_final(&self) -> bool {
        matches!(
            self,
            Self::NotThere
                | Self::OtherRefund
                | Self::OutOfRange(_)
                | Self::Superseded(_)
                | Self::OtherSecrets { .. }
                | Self::TooNew { .. }
                | Self::Closed
        )
    }
}

impl From<Settlement> for Arrival {
    /// Of which nothing is claimed.
    fn from(settlement: Settlement) -> Self {
        Self { settlement, claimed: None }
    }
}

impl Purchase {
    /// Whether the paid invoice says that something else was sold than the token does.
    pub fn is_contradicted(&self) -> bool {
        matches!((&self.claimed, &self.sold), (Some(claimed), Some(sold)) if !sold.is_as_claimed(claimed))
    }

    /// Whether a payment has arrived.
    pub fn is_settled(&self) -> bool {
        self.payments > 0
    }

    /// The law of the books, which every row keeps.
    pub fn is_balanced(&self) -> bool {
        let (paid, short, over) = (self.paid.get(), self.shortfall.get(), self.surplus.get());
        match &self.sold {
            Some(sold) if self.is_settled() => {
                (short == 0 || over == 0)
                    && paid.checked_add(short) == sold.terms.price.get().checked_add(over)
            }
            Some(_) => paid == 0 && short == 0 && over == 0,
            None => self.is_settled() && short == 0 && over == 0,
        }
    }
}

impl Sold {
    /// Whether this is what the invoice says was sold.
    pub fn is_as_claimed(&self, claimed: &Label) -> bool {
        let Label { service, offer, price } = claimed;
        (&self.service, &self.terms.offer, &self.terms.price) == (service, offer, price)
    }

    /// The offer that was sold.
    pub fn offer(&self) -> &Offer {
        &self.terms.offer
    }
}
