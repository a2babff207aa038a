//! The buyer's journal: one SQLite file with purchases, credentials, leases and (from `farebox_lightning::outgoing`)
//! payments. Every edge at which money may move is on disk before it is passed.
//!
//! The file is private to its owner (0600, its directory 0700 when we make it), in write-ahead mode and synced at every
//! commit. Calls block; [`crate::Engine`] makes them where blocking is allowed. Nothing is ever deleted: what has been
//! bought stays on record, and a credential that was refused is marked, not dropped.

use std::{fs, path::Path, sync::Arc};

use farebox_lightning::WalletId;
use farebox_lightning::outgoing::{
    Failure, IntentError, NewIntent, State,
    sqlite::{self, SqliteIntents},
};
use farebox_protocol::{Invoice, Msat, PaymentHash, Preimage, Scheme, Timestamp};
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, TransactionBehavior, params};

use crate::failpoint::{Point, Write};
use crate::holder::Holder;
use crate::policy::{Budget, Judgement};
use crate::purchase::{Note, Order, Refusal, Reservation};
use crate::{Origin, Pass, Question, Scope, import};

mod approvals;
pub(crate) mod budget;
mod imports;
pub(crate) mod lease;
mod passes;
mod receipts;
mod schema;
#[cfg(test)]
mod tests;
pub(crate) mod watch;

pub use approvals::{Approval, PendingApproval};
pub(crate) use approvals::{Found, Given};
pub use budget::Overrun;
pub use imports::Brought;
use lease::Lease;
pub(crate) use receipts::Told;
pub use receipts::{Broken, ReceiptRow, Verified};

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

/// One purchase, as the journal has it. Holds no secret.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PurchaseRow {
    /// The key.
    pub payment_hash: PaymentHash,
    /// Who sold.
    pub origin: Origin,
    /// The service, where the token names one.
    pub service: String,
    /// The method of the request that bought it.
    pub method: String,
    /// Its path, without the query.
    pub path: String,
    /// The price; zero where it is not known, which only happens with what another program has bought.
    pub price: Msat,
    /// What the route cost, once that is known.
    pub fee: Option<Msat>,
    /// `recorded`, `sent`, `unknown`, `failed`, `unsent`, `paid` (and not honoured yet), `imported` (and not shown yet),
    /// `honoured`; or of a credential that is over: `used_up` (its seller says so), or `dead` for any other reason.
    pub state: &'static str,
    /// When it began.
    pub begun_at: Timestamp,
    /// When the credential ends, if it says so.
    pub valid_until: Option<Timestamp>,
    /// The program that has bought it, if it wasn't this one.
    pub source: Option<String>,
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

const PURCHASE: &str = "SELECT p.payment_hash, p.origin, p.service, p.scheme, p.token, p.fee_worst_msat, p.valid_until, \
     p.bound, p.method, p.path, p.holder, p.begun_at, p.honoured_at, p.dead_at, p.ended, \
     o.invoice, coalesce(o.amount_msat, i.amount_msat, 0) AS amount_msat, o.fee_max_msat, \
     coalesce(o.state, i.state) AS state, coalesce(o.preimage, i.preimage) AS preimage, \
     coalesce(o.fee_msat, i.fee_msat) AS fee_msat, o.wallet, i.source, i.was_pending \
     FROM purchases p LEFT JOIN outgoing_payments o USING (payment_hash) LEFT JOIN imports i USING (payment_hash)";

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
        let condition =
            move |transaction: &Transaction<'_>, hash: &PaymentHash| may_send(transaction, hash, &holder);
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
        abandon_unsent(&transaction, &want.scope, now)?;
        let reservation = if let Some(order) = unsettled(&transaction, &want.scope)? {
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

    /// Writes an order and its payment, if every budget has room for it.
    pub(crate) fn record(
        &self,
        order: &Order,
        from: &From<'_>,
        lease: &Lease,
        now: Timestamp,
    ) -> Result<Recorded, JournalError> {
        let _write = Write::between(Point::BeforeRecord, Point::AfterRecord);
        let mut connection = self.connection.lock();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if !lease::holds(&transaction, lease)? {
            return Err(JournalError::LeaseLost);
        }
        let hash = order.payment_hash();
        match imports::state_of(&transaction, &hash)?.as_deref() {
            None => {}
            // The other program couldn't pay it; now it is ours to.
            Some("failed") => {
                transaction.execute("DELETE FROM imports WHERE payment_hash = ?1", [hash.as_bytes()])?;
                transaction.execute("DELETE FROM purchases WHERE payment_hash = ?1", [hash.as_bytes()])?;
            }
            Some(_) => return Ok(Recorded::Before),
        }
        let again = match sqlite::find(&transaction, &hash)? {
            None => None,
            // The server sells the same invoice once more after a payment that spent nothing.
            Some(payment) if matches!(payment.state, State::Failed(_)) => Some(payment.attempt),
            Some(_) => return Ok(Recorded::Before),
        };
        if let Some(overrun) = budget::overrun(&transaction, from.wallet)? {
            return Ok(Recorded::Refused(overrun));
        }
        // It may have been used since it was found.
        if let Some(id) = from.consent
            && !approvals::bind(&transaction, id, &hash)?
        {
            return Ok(Recorded::Refused(order.approval_needed(None)));
        }
        let mut refusal = budget::refusal(&transaction, order, now)?;
        if refusal.is_some() {
            budget::release_gone(&transaction)?;
            refusal = budget::refusal(&transaction, order, now)?;
        }
        if let Some(refusal) = refusal {
            return Ok(Recorded::Refused(refusal));
        }
        let now = budget::latest(&transaction, now)?;
        sqlite::record(&transaction, &new_intent(order, from.wallet), now)?;
        if again.is_some() {
            // Whoever else has offered this invoice stays on record, whatever comes of it here.
            transaction.execute(
                "INSERT INTO superseded
                 SELECT p.payment_hash, p.origin, p.service, p.method, p.path, p.begun_at, o.amount_msat, o.state, ?2
                 FROM purchases p JOIN outgoing_payments o USING (payment_hash)
                 WHERE p.payment_hash = ?1 AND (p.origin <> ?3 OR p.service <> ?4)",
                params![hash.as_bytes(), integer(now.secs()), order.scope.origin.to_string(), order.scope.service],
            )?;
            transaction.execute("DELETE FROM charges WHERE payment_hash = ?1", [hash.as_bytes()])?;
            transaction.execute("DELETE FROM answers WHERE payment_hash = ?1", [hash.as_bytes()])?;
            transaction.execute("DELETE FROM purchases WHERE payment_hash = ?1", [hash.as_bytes()])?;
        }
        transaction.execute(
            "INSERT INTO purchases (payment_hash, origin, service, scheme, token, fee_worst_msat, valid_until, bound,
                                    method, path, holder, generation, begun_at, label, rule, again, payee, credential,
                                    request_id)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)",
            params![
                hash.as_bytes(),
                order.scope.origin.to_string(),
                order.scope.service,
                order.scheme.to_string(),
                order.token,
                integer(order.fee_worst.get()),
                order.valid_until.map(|end| integer(end.secs())),
                order.bound,
                from.method,
                from.path,
                self.holder.as_str(),
                lease.generation,
                integer(now.secs()),
                from.label,
                order.judgement.rule,
                again,
                order.invoice.payee(),
                receipts::credential_of(&order.token),
                from.request_id,
            ],
        )?;
        budget::charge(&transaction, order)?;
        receipts::add(&transaction, &hash, receipts::Event::Recorded, Told::default(), now)?;
        transaction.commit()?;
        Ok(Recorded::New)
    }

    /// Makes an earlier purchase ours, so that it may be sent again under our lease, if every budget of today has room for it.
    /// Its wallet and the rules that it counts against stay what they were; those of today are added.
    pub(crate) fn adopt(
        &self,
        order: &Order,
        consent: Option<&str>,
        lease: &Lease,
        now: Timestamp,
    ) -> Result<Option<Refusal>, JournalError> {
        let _write = Write::between(Point::BeforeAdopt, Point::AfterAdopt);
        let mut connection = self.connection.lock();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if !lease::holds(&transaction, lease)? {
            return Err(JournalError::LeaseLost);
        }
        let hash = order.payment_hash();
        if let Some(payment) = sqlite::find(&transaction, &hash)?
            && let Some(overrun) = budget::overrun(&transaction, &payment.wallet)?
        {
            return Ok(Some(overrun));
        }
        if let Some(id) = consent
            && !approvals::bind(&transaction, id, &hash)?
        {
            return Ok(Some(order.approval_needed(None)));
        }
        if let Some(refusal) = budget::refusal(&transaction, order, now)? {
            return Ok(Some(refusal));
        }
        transaction.execute(
            "UPDATE purchases SET holder = ?1, generation = ?2 WHERE payment_hash = ?3",
            params![self.holder.as_str(), lease.generation, hash.as_bytes()],
        )?;
        budget::charge(&transaction, order)?;
        transaction.commit()?;
        Ok(None)
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
        let mut statement = connection.prepare("SELECT * FROM superseded ORDER BY rowid DESC")?;
        let earlier = statement.query_map([], |row| Ok(read_superseded(row)))?;
        let earlier = earlier.map(|row| row?).collect::<Result<Vec<_>, JournalError>>()?;
        if !earlier.is_empty() {
            rows.extend(earlier);
            rows.sort_by_key(|row| std::cmp::Reverse(row.begun_at));
        }
        Ok(rows)
    }
}

/// The request that buys.
#[derive(Clone, Copy, Debug)]
pub(crate) struct From<'a> {
    pub(crate) method: &'a str,
    /// Without the query, which may hold secrets.
    pub(crate) path: &'a str,
    /// On whose behalf.
    pub(crate) label: Option<&'a str>,
    /// What the caller calls the request.
    pub(crate) request_id: Option<&'a str>,
    pub(crate) wallet: &'a WalletId,
    /// The consent that a person gave beforehand, if it takes one.
    pub(crate) consent: Option<&'a str>,
}

/// What became of an order that was to be written.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Recorded {
    /// It is on disk, and its money is kept aside.
    New,
    /// The journal knows the payment as paid or under way.
    Before,
    /// A budget has no room for it; nothing was written.
    Refused(Refusal),
}

/// The payment of an order.
pub(crate) fn new_intent(order: &Order, wallet: &WalletId) -> NewIntent {
    NewIntent {
        invoice: order.invoice.clone(),
        amount: order.price,
        fee_max: order.fee_max,
        wallet: wallet.clone(),
    }
}

/// Whether `holder` may mark a payment as sent: it recorded or adopted the purchase, under the lease as it stands.
fn may_send(transaction: &Transaction<'_>, hash: &PaymentHash, holder: &Holder) -> Result<(), IntentError> {
    let holds: bool = transaction.query_row(
        "SELECT EXISTS (SELECT 1 FROM purchases p JOIN leases l USING (origin, service)
         WHERE p.payment_hash = ?1 AND l.generation = p.generation AND p.holder = ?2 AND l.holder = ?2)",
        params![hash.as_bytes(), holder.as_str()],
        |row| row.get(0),
    )?;
    if holds {
        Ok(())
    } else {
        Err(IntentError::Forbidden("the lease has gone to another process".to_owned()))
    }
}

/// Closes what an earlier holder of this lease has recorded and not sent. It can't be sent any more: that needs the lease.
fn abandon_unsent(transaction: &Transaction<'_>, scope: &Scope, now: Timestamp) -> Result<(), JournalError> {
    let mut statement = transaction.prepare(
        "SELECT payment_hash FROM purchases p JOIN outgoing_payments o USING (payment_hash)
         WHERE p.origin = ?1 AND p.service = ?2 AND o.state = 'recorded'",
    )?;
    let hashes: Vec<[u8; 32]> = statement
        .query_map(params![scope.origin.to_string(), scope.service], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    for hash in hashes {
        if let Some(payment) = sqlite::find(transaction, &PaymentHash::from_bytes(hash))? {
            let failure = Failure { reason: "its process ended before it was sent".to_owned(), unsent: true };
            let closed = sqlite::fail(transaction, &payment, &failure, now)?;
            receipts::witness(transaction, &closed, now)?;
        }
    }
    Ok(())
}

/// The oldest purchase of this scope whose outcome is not known.
fn unsettled(transaction: &Transaction<'_>, scope: &Scope) -> Result<Option<Order>, JournalError> {
    let query = format!(
        "{PURCHASE} WHERE p.origin = ?1 AND p.service = ?2 AND o.state IN ('sent', 'unknown') ORDER BY p.id LIMIT 1"
    );
    transaction
        .query_row(&query, params![scope.origin.to_string(), scope.service], |row| Ok(read_order(row)))
        .optional()?
        .transpose()
}

fn read_scope(row: &Row<'_>) -> Result<Scope, JournalError> {
    let hash = read_hash(row)?;
    let origin: String = row.get("origin")?;
    let origin = origin.parse().map_err(|_| JournalError::Corrupt { hash, what: "its origin is none" })?;
    Ok(Scope { origin, service: row.get("service")? })
}

fn read_hash(row: &Row<'_>) -> Result<PaymentHash, rusqlite::Error> {
    row.get("payment_hash").map(PaymentHash::from_bytes)
}

fn read_scheme(row: &Row<'_>) -> Result<Scheme, JournalError> {
    let hash = read_hash(row)?;
    Scheme::of(&row.get::<_, String>("scheme")?)
        .ok_or(JournalError::Corrupt { hash, what: "its scheme is unknown" })
}

fn read_order(row: &Row<'_>) -> Result<Order, JournalError> {
    let hash = read_hash(row)?;
    let invoice = Invoice::parse(&row.get::<_, String>("invoice")?)
        .map_err(|_| JournalError::Corrupt { hash, what: "its invoice can't be read" })?;
    Ok(Order {
        scope: read_scope(row)?,
        scheme: read_scheme(row)?,
        token: row.get("token")?,
        invoice,
        price: Msat::new(row.get("amount_msat")?),
        fee_max: Msat::new(row.get("fee_max_msat")?),
        fee_worst: Msat::new(row.get("fee_worst_msat")?),
        valid_until: row.get::<_, Option<u64>>("valid_until")?.map(Timestamp::from_secs),
        bound: row.get("bound")?,
        // It was judged when it was recorded, and counts against its budgets since.
        judgement: Judgement::free(),
    })
}

fn read_row(row: &Row<'_>) -> Result<PurchaseRow, JournalError> {
    let Scope { origin, service } = read_scope(row)?;
    let honoured: Option<u64> = row.get("honoured_at")?;
    let dead: Option<u64> = row.get("dead_at")?;
    let state = match row.get::<_, String>("state")?.as_str() {
        "settled" if dead.is_some() => match row.get::<_, Option<String>>("ended")?.as_deref() {
            Some("used_up") => "used_up",
            _ => "dead",
        },
        "settled" if honoured.is_some() => "honoured",
        "settled" if row.get::<_, Option<bool>>("was_pending")? == Some(false) => "imported",
        "settled" => "paid",
        "recorded" => "recorded",
        "sent" => "sent",
        "failed" => "failed",
        "unsent" => "unsent",
        _ => "unknown",
    };
    Ok(PurchaseRow {
        payment_hash: read_hash(row)?,
        origin,
        service,
        method: row.get("method")?,
        path: row.get("path")?,
        price: Msat::new(row.get("amount_msat")?),
        fee: row.get::<_, Option<u64>>("fee_msat")?.map(Msat::new),
        state,
        begun_at: Timestamp::from_secs(row.get("begun_at")?),
        valid_until: row.get::<_, Option<u64>>("valid_until")?.map(Timestamp::from_secs),
        source: row.get("source")?,
    })
}

/// What another server had offered the same invoice for.
fn read_superseded(row: &Row<'_>) -> Result<PurchaseRow, JournalError> {
    let Scope { origin, service } = read_scope(row)?;
    Ok(PurchaseRow {
        payment_hash: read_hash(row)?,
        origin,
        service,
        method: row.get("method")?,
        path: row.get("path")?,
        price: Msat::new(row.get("amount_msat")?),
        fee: None,
        state: if row.get::<_, String>("state")? == "unsent" { "unsent" } else { "failed" },
        begun_at: Timestamp::from_secs(row.get("begun_at")?),
        valid_until: None,
        source: None,
    })
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
