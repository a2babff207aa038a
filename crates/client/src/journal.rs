//! The buyer's journal: one SQLite file with purchases, credentials, leases and (from `farebox_lightning::outgoing`)
//! payments. Every edge at which money may move is on disk before it is passed.
//!
//! The file is private to its owner (0600, its directory 0700 when we make it), in write-ahead mode and synced at every
//! commit. Calls block; [`crate::Engine`] makes them where blocking is allowed. Nothing is ever deleted: what has been
//! bought stays on record, and a credential that was refused is marked, not dropped.

use std::{fs, path::Path, sync::Arc};

use farebox_lightning::WalletId;
use farebox_lightning::outgoing::{
    IntentError,
    sqlite::{self, SqliteIntents},
};
use farebox_protocol::{Msat, PaymentHash, Preimage, Timestamp};
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, TransactionBehavior};

use crate::failpoint::{Point, Write};
use crate::holder::Holder;
use crate::policy::Budget;
use crate::purchase::{Note, Order, Refusal, Reservation};
use crate::{Origin, Pass, Question, Scope, import};

mod approvals;
pub(crate) mod budget;
mod imports;
pub(crate) mod lease;
mod orders;
mod passes;
mod receipts;
mod redate;
mod rows;
mod schema;
#[cfg(test)]
mod tests;
pub(crate) mod watch;

pub use approvals::{Approval, PendingApproval};
pub(crate) use approvals::{Found, Given};
pub use budget::Overrun;
pub use imports::Brought;
use lease::Lease;
pub(crate) use orders::{From, Recorded};
pub(crate) use receipts::Told;
pub use receipts::{Broken, ReceiptRow, Verified};
pub use redate::Redating;
pub use rows::PurchaseRow;
use rows::{PURCHASE, SUPERSEDED, read_order, read_row};

/// Why the journal can't be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The directory can't be made.
    #[error("the directory of the journal can't be made: `{path}`")]
    Directory {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The disk, the file or SQLite itself.
    #[error("the journal can't be used; free disk space, close what locks it, or name another file")]
    Sqlite(#[from] rusqlite::Error),
    /// The same, for the part that holds the payments.
    #[error(transparent)]
    Payments(#[from] IntentError),
    /// The file was written by a later version.
    #[error("the journal has version {found}, this program knows up to {known}; use a newer farebox")]
    TooNew {
        /// What the file says.
        found: usize,
        /// What this program can read.
        known: usize,
    },
    /// A row that this version can't read.
    #[error("purchase {hash} can't be read from the journal: {what}")]
    Corrupt {
        /// The key of the row.
        hash: PaymentHash,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The lease is somebody else's by now.
    #[error("another process has taken this purchase over")]
    LeaseLost,
}

/// The journal. Cheap to clone; all clones share one connection.
#[derive(Clone, Debug)]
pub(crate) struct Journal {
    connection: Arc<Mutex<Connection>>,
    holder: Arc<Holder>,
}

/// What a request wants to buy and has tried.
#[derive(Clone, Debug)]
pub(crate) struct Want {
    pub(crate) scope: Scope,
    pub(crate) path: String,
    /// Credentials that this request has shown already, and whether they were honoured by then.
    pub(crate) tried: Vec<(PaymentHash, bool)>,
    pub(crate) buy_again: bool,
}

/// The answer to a [`Want`].
#[derive(Debug)]
pub(crate) enum Reserved {
    /// Somebody else holds the lease: wait.
    Held,
    /// Go on; a lease comes with all but [`Reservation::Pass`].
    Go(Reservation, Option<Lease>),
}

/// Who began a payment.
#[derive(Clone, Debug)]
pub(crate) struct Begun {
    pub(crate) holder: Holder,
    pub(crate) wallet: WalletId,
}

/// Why a payment failed that a person has written off: nobody knows whether it was made.
pub(crate) const WRITTEN_OFF: &str = "written off by hand";

impl Journal {
    /// Opens the file, making it and its directory when they are missing.
    pub(crate) fn open(path: &Path) -> Result<Self, JournalError> {
        if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            make_private(directory).map_err(|source| JournalError::Directory {
                path: directory.display().to_string(),
                source,
            })?;
        }
        let mut connection = sqlite::open(path)?;
        sqlite::migrate(&connection)?;
        schema::migrate(&mut connection)?;
        Ok(Self { connection: Arc::new(Mutex::new(connection)), holder: Arc::new(Holder::this_process()) })
    }

    /// The payments of this journal, sent only while the lease under which the purchase was recorded holds.
    pub(crate) fn payments(&self) -> Result<SqliteIntents, IntentError> {
        let holder = Arc::clone(&self.holder);
        let condition = move |transaction: &Transaction<'_>, hash: &PaymentHash| {
            orders::may_send(transaction, hash, &holder)
        };
        let payments = SqliteIntents::new(self.connection.clone())?;
        Ok(payments.with_send_condition(Arc::new(condition)).with_witness(Arc::new(receipts::witness)))
    }

    /// Whether this very journal, and not another process or engine, is that holder.
    pub(crate) fn is_own(&self, holder: &Holder) -> bool {
        *self.holder == *holder
    }

    /// Takes the lease of a scope and looks at what has happened there before. One transaction.
    pub(crate) fn reserve(&self, want: &Want, now: Timestamp) -> Result<Reserved, JournalError> {
        let _write = Write::between(Point::BeforeReserve, Point::AfterReserve);
        let mut connection = self.connection.lock();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // What somebody else has bought is shared at once, whoever holds the lease.
        if let Some(pass) = passes::to_share(&transaction, want, now)? {
            return Ok(Reserved::Go(Reservation::Pass(pass), None));
        }
        let Some(lease) = lease::take(&transaction, &want.scope, &self.holder, now)? else {
            return Ok(Reserved::Held);
        };
        orders::abandon_unsent(&transaction, &want.scope, now)?;
        let reservation = if let Some(order) = orders::unsettled(&transaction, &want.scope)? {
            Reservation::Unsettled(Box::new(order))
        } else if let Some((hash, program)) = imports::open_in(&transaction, &want.scope)? {
            Reservation::Elsewhere(hash, program)
        } else {
            let unhonoured = passes::never_honoured(&transaction, &want.scope, now)?;
            if want.buy_again {
                passes::give_up(&transaction, &unhonoured, now)?;
            }
            match unhonoured.first() {
                Some(hash) if !want.buy_again => Reservation::NeverHonoured(*hash),
                _ => Reservation::Ours,
            }
        };
        transaction.commit()?;
        Ok(Reserved::Go(reservation, Some(lease)))
    }

    /// Puts the end of a lease off; `false` when it has gone to somebody else.
    pub(crate) fn renew(&self, lease: &Lease, now: Timestamp) -> Result<bool, JournalError> {
        let _write = Write::between(Point::BeforeRenew, Point::AfterRenew);
        lease::renew(&self.connection.lock(), lease, now)
    }

    /// Gives a lease back.
    pub(crate) fn release(&self, lease: &Lease) -> Result<(), JournalError> {
        let _write = Write::between(Point::BeforeRelease, Point::AfterRelease);
        lease::release(&self.connection.lock(), lease)
    }

    /// Puts a question to a person, or finds the same one. Returns its name; `None` where too many wait already.
    pub(crate) fn ask(
        &self,
        question: &Question,
        name: &str,
        now: Timestamp,
    ) -> Result<Option<String>, JournalError> {
        let _write = Write::between(Point::BeforeAsk, Point::AfterAsk);
        let mut connection = self.connection.lock();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let id = approvals::ask(&transaction, question, name, now)?;
        transaction.commit()?;
        Ok(id)
    }

    /// The questions that wait for a person, oldest first.
    pub(crate) fn pending(&self, now: Timestamp) -> Result<Vec<PendingApproval>, JournalError> {
        approvals::pending(&self.connection.lock(), now)
    }

    /// Writes down what a person has answered: a consent, or no at this moment. `false`: no such question waits.
    pub(crate) fn answer(&self, id: &str, answer: Result<&Given, Timestamp>) -> Result<bool, JournalError> {
        let _write = Write::between(Point::BeforeAnswer, Point::AfterAnswer);
        approvals::answer(&self.connection.lock(), id, answer)
    }

    /// Consents that may fit a question; their signatures are not looked at here.
    pub(crate) fn given(&self, question: &Question, now: Timestamp) -> Result<Vec<Given>, JournalError> {
        let connection = self.connection.lock();
        let now = budget::latest(&connection, now)?;
        // What has lapsed by now has lapsed for good.
        if approvals::has_lapsed(&connection, now)? {
            budget::pass(&connection, now)?;
        }
        approvals::given(&connection, question, now)
    }

    /// What has become of a question; whether a consent is signed is not looked at here.
    pub(crate) fn approval(&self, id: &str, now: Timestamp) -> Result<Option<Found>, JournalError> {
        let connection = self.connection.lock();
        approvals::find(&connection, id, budget::latest(&connection, now)?)
    }

    /// Payments whose fee exceeded what the wallet had promised, and which nobody has acknowledged.
    pub(crate) fn overruns(&self) -> Result<Vec<Overrun>, JournalError> {
        budget::overruns(&self.connection.lock(), None)
    }

    /// The latest moment that is written here, where that is well after `now`.
    pub(crate) fn ahead(&self, now: Timestamp) -> Result<Option<Timestamp>, JournalError> {
        budget::ahead(&self.connection.lock(), now)
    }

    /// A person says that the clock is right now, and was ahead when it wrote what is dated after the present.
    pub(crate) fn redate(&self, now: Timestamp) -> Result<Redating, JournalError> {
        let _write = Write::between(Point::BeforeAcknowledge, Point::AfterAcknowledge);
        redate::redate(&mut self.connection.lock(), now)
    }

    /// Takes note that a person knows of an overrun. `false`: there is none that waits for this.
    pub(crate) fn acknowledge(&self, hash: &PaymentHash, now: Timestamp) -> Result<bool, JournalError> {
        let _write = Write::between(Point::BeforeAcknowledge, Point::AfterAcknowledge);
        budget::acknowledge(&self.connection.lock(), hash, now)
    }

    /// Who began a payment, and with what wallet.
    pub(crate) fn begun(&self, hash: &PaymentHash) -> Result<Option<Begun>, JournalError> {
        let connection = self.connection.lock();
        let query = "SELECT p.holder, o.wallet FROM purchases p JOIN outgoing_payments o USING (payment_hash)
                     WHERE payment_hash = ?1";
        let begun =
            |row: &Row<'_>| Ok(Begun { holder: Holder::read(row.get(0)?), wallet: WalletId(row.get(1)?) });
        Ok(connection.query_row(query, [hash.as_bytes()], begun).optional()?)
    }

    /// The credentials to try at `origin` for `path`, the most likely first.
    pub(crate) fn candidates(
        &self,
        origin: &Origin,
        path: &str,
        now: Timestamp,
    ) -> Result<Vec<Pass>, JournalError> {
        passes::candidates(&self.connection.lock(), origin, path, now)
    }

    /// Whether anything was ever paid to this origin.
    pub(crate) fn is_known(&self, origin: &Origin) -> Result<bool, JournalError> {
        budget::is_known(&self.connection.lock(), origin)
    }

    /// The first budget that has no room for this order just now.
    pub(crate) fn refusal(&self, order: &Order, now: Timestamp) -> Result<Option<Refusal>, JournalError> {
        budget::refusal(&self.connection.lock(), order, now)
    }

    /// What is taken of each budget.
    pub(crate) fn taken(
        &self,
        budgets: &[Budget],
        now: Timestamp,
    ) -> Result<Vec<(Budget, budget::Taken)>, JournalError> {
        let connection = self.connection.lock();
        let taken = |budget: &Budget| Ok((budget.clone(), budget::taken(&connection, budget, None, now)?));
        budgets.iter().map(taken).collect()
    }

    /// Keeps what an answer said about a credential, unless it says nothing new: using what was bought is no reason to write.
    pub(crate) fn note(
        &self,
        note: &Note,
        path: &str,
        told: Told<'_>,
        now: Timestamp,
    ) -> Result<(), JournalError> {
        if passes::is_known(&self.connection.lock(), note, path)? {
            return Ok(());
        }
        let _write = Write::between(Point::BeforeNote, Point::AfterNote);
        let mut connection = self.connection.lock();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        passes::note(&transaction, note, path, told, now)?;
        transaction.commit()?;
        Ok(())
    }

    /// Every purchase whose outcome is not known, oldest first.
    pub(crate) fn unsettled(&self) -> Result<Vec<Order>, JournalError> {
        let connection = self.connection.lock();
        let query = format!("{PURCHASE} WHERE o.state IN ('sent', 'unknown') ORDER BY p.id");
        let mut statement = connection.prepare(&query)?;
        let rows = statement.query_map([], |row| Ok(read_order(row)))?;
        rows.map(|row| row?).collect()
    }

    /// Every payment that a wallet may know more about: of unknown outcome, written off by hand, or begun by another program.
    pub(crate) fn unclear(&self) -> Result<Vec<PaymentHash>, JournalError> {
        let connection = self.connection.lock();
        let query =
            "SELECT p.payment_hash FROM purchases p LEFT JOIN outgoing_payments o USING (payment_hash)
                     LEFT JOIN imports i USING (payment_hash)
                     WHERE o.state IN ('sent', 'unknown') OR (o.state = 'failed' AND o.reason = ?1)
                           OR i.state = 'unknown' OR (i.state = 'failed' AND i.reason = ?1)
                     ORDER BY p.id";
        let mut statement = connection.prepare(query)?;
        let hashes = statement.query_map([WRITTEN_OFF], |row| row.get(0).map(PaymentHash::from_bytes))?;
        Ok(hashes.collect::<Result<_, _>>()?)
    }

    /// One purchase.
    pub(crate) fn purchase(&self, hash: &PaymentHash) -> Result<Option<PurchaseRow>, JournalError> {
        let connection = self.connection.lock();
        let query = format!("{PURCHASE} WHERE p.payment_hash = ?1");
        let row = connection.query_row(&query, [hash.as_bytes()], |row| Ok(read_row(row)));
        row.optional()?.transpose()
    }

    /// The credential that a payment bought, dead or alive.
    pub(crate) fn pass(&self, hash: &PaymentHash) -> Result<Option<Pass>, JournalError> {
        passes::of(&self.connection.lock(), hash)
    }

    /// Shows a credential nowhere any more. `false`: there is none alive.
    pub(crate) fn forget(&self, hash: &PaymentHash, now: Timestamp) -> Result<bool, JournalError> {
        let _write = Write::between(Point::BeforeForget, Point::AfterForget);
        let mut connection = self.connection.lock();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let is_done = passes::forget(&transaction, hash, now)?;
        transaction.commit()?;
        Ok(is_done)
    }

    /// What would become of credentials that are to be brought in.
    pub(crate) fn plan_import(&self, found: &[import::Found]) -> Result<Vec<Brought>, JournalError> {
        let connection = self.connection.lock();
        found.iter().map(|found| imports::plan(&connection, found)).collect()
    }

    /// Brings credentials in that another program has bought: all of them, or, when the journal can't be written, none.
    pub(crate) fn import(
        &self,
        found: &[import::Found],
        source: &str,
        now: Timestamp,
    ) -> Result<Vec<Brought>, JournalError> {
        let mut connection = self.connection.lock();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let bring =
            |found: &import::Found| imports::bring(&transaction, found, source, self.holder.as_str(), now);
        let brought = found.iter().map(bring).collect::<Result<_, _>>()?;
        transaction.commit()?;
        Ok(brought)
    }

    /// The state of a payment that another program began, with why it is taken for failed.
    pub(crate) fn import_of(&self, hash: &PaymentHash) -> Result<Option<(String, String)>, JournalError> {
        imports::find(&self.connection.lock(), hash)
    }

    /// Payments that other programs began and whose end nobody knows, oldest first.
    pub(crate) fn open_imports(&self) -> Result<Vec<PaymentHash>, JournalError> {
        imports::open(&self.connection.lock())
    }

    /// Writes down how such a payment ended: with a proof and a fee, or not at all and why. `false`: it isn't open.
    pub(crate) fn close_import(
        &self,
        hash: &PaymentHash,
        ended: Result<(&Preimage, Msat), &str>,
        now: Timestamp,
    ) -> Result<bool, JournalError> {
        let mut connection = self.connection.lock();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let is_closed = match ended {
            Ok((preimage, fee)) => {
                imports::settle(&transaction, hash, preimage, Some(fee), now)?;
                true
            }
            Err(reason) => imports::fail(&transaction, hash, reason, now)?,
        };
        transaction.commit()?;
        Ok(is_closed)
    }

    /// The latest receipts, newest first.
    pub(crate) fn receipts(&self, most: u32, is_unserved: bool) -> Result<Vec<ReceiptRow>, JournalError> {
        receipts::latest(&self.connection.lock(), most, is_unserved)
    }

    /// Receipts with numbers above `after`, oldest first.
    pub(crate) fn receipts_after(&self, after: u64, most: u32) -> Result<Vec<ReceiptRow>, JournalError> {
        receipts::list(&self.connection.lock(), after, most)
    }

    /// Recomputes the chain of receipts and holds it against the purchases. All of it is seen at one moment.
    pub(crate) fn verify_receipts(&self, noted: &[[u8; 32]]) -> Result<Verified, JournalError> {
        let mut connection = self.connection.lock();
        let transaction = connection.transaction()?;
        receipts::verify(&transaction, noted)
    }

    /// Every purchase, newest first.
    pub(crate) fn purchases(&self) -> Result<Vec<PurchaseRow>, JournalError> {
        let connection = self.connection.lock();
        let mut statement = connection.prepare(&format!("{PURCHASE} ORDER BY p.id DESC"))?;
        let rows = statement.query_map([], |row| Ok(read_row(row)))?;
        let mut rows: Vec<PurchaseRow> = rows.map(|row| row?).collect::<Result<_, JournalError>>()?;
        let mut statement = connection.prepare(SUPERSEDED)?;
        let earlier = statement.query_map([], |row| Ok(read_row(row)))?;
        let earlier = earlier.map(|row| row?).collect::<Result<Vec<_>, JournalError>>()?;
        if !earlier.is_empty() {
            rows.extend(earlier);
            rows.sort_by_key(|row| std::cmp::Reverse(row.begun_at));
        }
        Ok(rows)
    }
}

/// SQLite's integers are signed. All the money there is and all times fit; more is cut to the largest.
fn integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Makes a directory that only its owner can look into. One that exists stays as it is.
fn make_private(directory: &Path) -> std::io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory)
}
