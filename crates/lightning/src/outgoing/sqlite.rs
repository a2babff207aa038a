//! The journal of outgoing payments in SQLite: functions over a connection, and [`SqliteIntents`] around a shared one.
//!
//! The functions are public so that the buyer's client, whose purchases lie in the same file, can move a purchase and
//! its payment in one transaction. Each function is a single statement (or asks for a [`Transaction`]), and moves a row
//! only from the state and attempt that the caller saw: the compare-and-set that keeps two writers from both sending.

use std::{fs, path::Path, sync::Arc, time::Duration};

use farebox_protocol::{Invoice, Msat, PaymentHash, Preimage, Timestamp};
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, named_params, params};

use super::intent::{Failure, Intent, IntentError, Intents, NewIntent, State};
use crate::{WalletId, failpoint};

/// The layout that this program writes.
const VERSION: u32 = 1;

/// How long a write waits for another process that is writing.
const BUSY: Duration = Duration::from_secs(5);

const COLUMNS: &str = "payment_hash, invoice, amount_msat, fee_max_msat, wallet, attempt, state, preimage, fee_msat, \
                       reason, created_at, updated_at";

/// Opens the journal's file: write-ahead log, every commit synced to disk, readable by its owner alone.
pub fn open(path: &Path) -> Result<Connection, IntentError> {
    // The file exists with its mode before SQLite writes to it; the log and shared-memory files inherit the mode.
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(false);
    #[cfg(unix)]
    {
        use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
        let file = options.mode(0o600).open(path).map_err(|error| unusable(path, &error))?;
        file.set_permissions(fs::Permissions::from_mode(0o600)).map_err(|error| unusable(path, &error))?;
    }
    #[cfg(not(unix))]
    options.open(path).map_err(|error| unusable(path, &error))?;
    let connection = Connection::open(path)?;
    configure(&connection)?;
    Ok(connection)
}

/// A journal that is gone when the process ends: for demos and tests. Nothing in it survives a crash.
pub fn open_in_memory() -> Result<Connection, IntentError> {
    let connection = Connection::open_in_memory()?;
    configure(&connection)?;
    Ok(connection)
}

/// Sets what makes a commit durable. [`open`] has done it; for connections that were opened elsewhere.
pub fn configure(connection: &Connection) -> Result<(), IntentError> {
    connection.busy_timeout(failpoint::patience(BUSY))?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    // WAL's usual NORMAL may lose the last commits in a power cut: then a payment that was sent would look unsent.
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "foreign_keys", "on")?;
    Ok(())
}

/// Makes the tables, or brings older ones up to date. It touches no table but its own, and only reads where there is nothing to
/// do.
pub fn migrate(connection: &Connection) -> Result<(), IntentError> {
    let has_tables = "SELECT EXISTS (SELECT 1 FROM sqlite_schema WHERE name = 'outgoing_payments_open')";
    if !connection.query_row(has_tables, [], |row| row.get::<_, bool>(0))? {
        make_tables(connection)?;
    }
    let found: u32 = connection.query_row("SELECT version FROM outgoing_version", [], |row| row.get(0))?;
    if found > VERSION { Err(IntentError::TooNew { found, known: VERSION }) } else { Ok(()) }
}

fn make_tables(connection: &Connection) -> Result<(), IntentError> {
    connection.execute_batch(
        "BEGIN IMMEDIATE;
         CREATE TABLE IF NOT EXISTS outgoing_version (version INTEGER NOT NULL) STRICT;
         INSERT INTO outgoing_version SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM outgoing_version);
         CREATE TABLE IF NOT EXISTS outgoing_payments (
             payment_hash BLOB NOT NULL PRIMARY KEY CHECK (length(payment_hash) = 32),
             invoice      TEXT NOT NULL,
             amount_msat  INTEGER NOT NULL CHECK (amount_msat > 0),
             fee_max_msat INTEGER NOT NULL CHECK (fee_max_msat >= 0),
             wallet       TEXT NOT NULL,
             attempt      INTEGER NOT NULL DEFAULT 0,
             state        TEXT NOT NULL
                 CHECK (state IN ('recorded', 'sent', 'settled', 'failed', 'unsent', 'unknown')),
             preimage     BLOB CHECK (length(preimage) = 32),
             fee_msat     INTEGER,
             reason       TEXT,
             created_at   INTEGER NOT NULL,
             updated_at   INTEGER NOT NULL,
             CHECK ((state = 'settled') = (preimage IS NOT NULL)),
             CHECK ((state = 'settled') = (fee_msat IS NOT NULL))
         ) STRICT, WITHOUT ROWID;
         CREATE INDEX IF NOT EXISTS outgoing_payments_open ON outgoing_payments (created_at)
             WHERE state IN ('recorded', 'sent', 'unknown');
         COMMIT;",
    )?;
    Ok(())
}

/// Makes the row `recorded`, or finds the one that this invoice has already.
pub fn record(connection: &Connection, intent: &NewIntent, now: Timestamp) -> Result<Intent, IntentError> {
    let hash = intent.invoice.payment_hash();
    connection.execute(
        "INSERT INTO outgoing_payments (payment_hash, invoice, amount_msat, fee_max_msat, wallet, state, created_at, updated_at)
         VALUES (?1, ?2, ?3, ?4, ?5, 'recorded', ?6, ?6) ON CONFLICT (payment_hash) DO NOTHING",
        params![
            hash.as_bytes(),
            intent.invoice.as_str(),
            integer(intent.amount.get()),
            integer(intent.fee_max.get()),
            intent.wallet.0,
            integer(now.secs()),
        ],
    )?;
    let row = find(connection, &hash)?.ok_or(IntentError::Missing(hash))?;
    if same_invoice(&row, &intent.invoice) { Ok(row) } else { Err(IntentError::OtherInvoice(hash)) }
}

/// Moves `seen` from `recorded`, `failed`, `unsent` or `unknown` to `sent`, provided that it hasn't moved since and that
/// `condition` (a lease's generation, say) holds in the same transaction. The caller commits, then asks the wallet.
pub fn mark_sent(
    transaction: &Transaction<'_>,
    seen: &Intent,
    intent: &NewIntent,
    now: Timestamp,
    condition: impl FnOnce(&Transaction<'_>) -> Result<(), IntentError>,
) -> Result<Intent, IntentError> {
    condition(transaction)?;
    let moved = transaction.execute(
        "UPDATE outgoing_payments
         SET state = 'sent', attempt = attempt + 1, wallet = :wallet, fee_max_msat = :fee_max, reason = NULL, updated_at = :now
         WHERE payment_hash = :hash AND attempt = :attempt AND state = :state
               AND state IN ('recorded', 'failed', 'unsent', 'unknown')",
        named_params! {
            ":hash": seen.hash.as_bytes(),
            ":attempt": seen.attempt,
            ":state": seen.state.name(),
            ":wallet": intent.wallet.0,
            ":fee_max": integer(intent.fee_max.get()),
            ":now": integer(now.secs()),
        },
    )?;
    after(transaction, &seen.hash, moved)
}

/// Paid, from every state; a row that is settled already stays as it is.
pub fn settle(
    connection: &Connection,
    hash: &PaymentHash,
    preimage: &Preimage,
    fee: Msat,
    now: Timestamp,
) -> Result<Intent, IntentError> {
    connection.execute(
        "UPDATE outgoing_payments
         SET state = 'settled', preimage = :preimage, fee_msat = :fee, reason = NULL, updated_at = :now
         WHERE payment_hash = :hash AND state <> 'settled'",
        named_params! {
            ":hash": hash.as_bytes(),
            ":preimage": preimage.expose_bytes(),
            ":fee": integer(fee.get()),
            ":now": integer(now.secs()),
        },
    )?;
    find(connection, hash)?.ok_or(IntentError::Missing(*hash))
}

/// Not paid, provided that `seen` is still the attempt under way.
pub fn fail(
    connection: &Connection,
    seen: &Intent,
    failure: &Failure,
    now: Timestamp,
) -> Result<Intent, IntentError> {
    let moved = connection.execute(
        "UPDATE outgoing_payments SET state = :state, reason = :reason, updated_at = :now
         WHERE payment_hash = :hash AND attempt = :attempt AND state IN ('recorded', 'sent', 'unknown')",
        named_params! {
            ":hash": seen.hash.as_bytes(),
            ":attempt": seen.attempt,
            ":state": if failure.unsent { "unsent" } else { "failed" },
            ":reason": failure.reason,
            ":now": integer(now.secs()),
        },
    )?;
    after(connection, &seen.hash, moved)
}

/// Perhaps paid, provided that `seen` is still the attempt under way.
pub fn unknown(
    connection: &Connection,
    seen: &Intent,
    reason: &str,
    now: Timestamp,
) -> Result<Intent, IntentError> {
    let moved = connection.execute(
        "UPDATE outgoing_payments SET state = 'unknown', reason = :reason, updated_at = :now
         WHERE payment_hash = :hash AND attempt = :attempt AND state IN ('sent', 'unknown')",
        named_params! {
            ":hash": seen.hash.as_bytes(),
            ":attempt": seen.attempt,
            ":reason": reason,
            ":now": integer(now.secs()),
        },
    )?;
    after(connection, &seen.hash, moved)
}

/// The row of one payment.
pub fn find(connection: &Connection, hash: &PaymentHash) -> Result<Option<Intent>, IntentError> {
    let query = format!("SELECT {COLUMNS} FROM outgoing_payments WHERE payment_hash = ?1");
    let mut statement = connection.prepare_cached(&query)?;
    statement.query_row([hash.as_bytes()], |row| Ok(read(row))).optional()?.transpose()
}

/// All rows that are `recorded`, `sent` or `unknown`, oldest first.
pub fn open_rows(connection: &Connection) -> Result<Vec<Intent>, IntentError> {
    let query = format!(
        "SELECT {COLUMNS} FROM outgoing_payments WHERE state IN ('recorded', 'sent', 'unknown') ORDER BY created_at"
    );
    let mut statement = connection.prepare_cached(&query)?;
    let rows = statement.query_map([], |row| Ok(read(row)))?;
    rows.map(|row| row?).collect()
}

/// The row after an update that should have moved it.
fn after(connection: &Connection, hash: &PaymentHash, moved: usize) -> Result<Intent, IntentError> {
    let row = find(connection, hash)?.ok_or(IntentError::Missing(*hash))?;
    if moved == 0 { Err(IntentError::Moved { hash: *hash, now: row.state.name() }) } else { Ok(row) }
}

fn read(row: &Row<'_>) -> Result<Intent, IntentError> {
    let hash = PaymentHash::from_bytes(row.get("payment_hash")?);
    let corrupt = |what: &str| IntentError::Corrupt { hash: hash.to_string(), what: what.to_owned() };
    let reason = row.get::<_, Option<String>>("reason")?.unwrap_or_default();
    let state = match row.get::<_, String>("state")?.as_str() {
        "recorded" => State::Recorded,
        "sent" => State::Sent,
        "settled" => {
            let preimage = Preimage::from_bytes(row.get("preimage")?);
            if !preimage.pays(&hash) {
                return Err(corrupt("its preimage does not hash to the payment hash"));
            }
            State::Settled { preimage, fee: msat(row, "fee_msat")? }
        }
        "failed" => State::Failed(Failure { reason, unsent: false }),
        "unsent" => State::Failed(Failure { reason, unsent: true }),
        "unknown" => State::Unknown { reason },
        other => return Err(corrupt(&format!("`{other}` is not a state"))),
    };
    Ok(Intent {
        hash,
        invoice: row.get("invoice")?,
        amount: msat(row, "amount_msat")?,
        fee_max: msat(row, "fee_max_msat")?,
        wallet: WalletId(row.get("wallet")?),
        attempt: row.get("attempt")?,
        state,
        created: Timestamp::from_secs(row.get("created_at")?),
        updated: Timestamp::from_secs(row.get("updated_at")?),
    })
}

fn msat(row: &Row<'_>, column: &str) -> Result<Msat, rusqlite::Error> {
    row.get::<_, u64>(column).map(Msat::new)
}

/// SQLite's integers are signed. All the money there is and all times fit; more is cut to the largest.
fn integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// BOLT11 is one case throughout, either one, so the same invoice has two spellings.
fn same_invoice(row: &Intent, invoice: &Invoice) -> bool {
    row.invoice.eq_ignore_ascii_case(invoice.as_str())
}

fn unusable(path: &Path, error: &std::io::Error) -> IntentError {
    IntentError::Sqlite(rusqlite::Error::SqliteFailure(
        rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CANTOPEN),
        Some(format!("`{}`: {error}", path.display())),
    ))
}

/// What must hold in the transaction that marks a payment as sent; an `Err` rolls it back, and nothing is paid.
pub type SendCondition = dyn Fn(&Transaction<'_>, &PaymentHash) -> Result<(), IntentError> + Send + Sync;

/// What is written beside a payment that has ended or whose outcome has become unknown, in the same transaction. It never
/// stands in the money's way: when it fails, what it wrote is undone, the log says so, and the payment's own row is kept.
pub type Witness = dyn Fn(&Connection, &Intent, Timestamp) -> Result<(), IntentError> + Send + Sync;

/// [`Intents`] over a connection that others may use, too.
#[derive(Clone)]
pub struct SqliteIntents {
    connection: Arc<Mutex<Connection>>,
    condition: Option<Arc<SendCondition>>,
    witness: Option<Arc<Witness>>,
}

impl std::fmt::Debug for SqliteIntents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteIntents").finish_non_exhaustive()
    }
}

impl SqliteIntents {
    /// Makes or updates the tables of `connection` and keeps the journal there.
    pub fn new(connection: Arc<Mutex<Connection>>) -> Result<Self, IntentError> {
        migrate(&connection.lock())?;
        Ok(Self { connection, condition: None, witness: None })
    }

    /// A journal in a file of its own.
    pub fn open(path: &Path) -> Result<Self, IntentError> {
        Self::new(Arc::new(Mutex::new(open(path)?)))
    }

    /// A journal that is gone when the process ends: for demos and tests.
    pub fn in_memory() -> Result<Self, IntentError> {
        Self::new(Arc::new(Mutex::new(open_in_memory()?)))
    }

    /// Lets `condition` be checked in each transaction that marks a payment as sent.
    #[must_use]
    pub fn with_send_condition(mut self, condition: Arc<SendCondition>) -> Self {
        self.condition = Some(condition);
        self
    }

    /// Lets `witness` write in each transaction that settles or fails a payment or calls it unknown.
    #[must_use]
    pub fn with_witness(mut self, witness: Arc<Witness>) -> Self {
        self.witness = Some(witness);
        self
    }

    /// Moves a row, and lets the witness write beside it.
    fn moved(
        &self,
        now: Timestamp,
        write: impl FnOnce(&Connection) -> Result<Intent, IntentError>,
    ) -> Result<Intent, IntentError> {
        let mut connection = self.connection.lock();
        let Some(witness) = &self.witness else { return write(&connection) };
        let mut transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let row = write(&transaction)?;
        if let Err(error) = witnessed(&mut transaction, witness, &row, now) {
            tracing::warn!(%error, payment = %row.hash, "what became of a payment is kept, and not its receipt");
        }
        transaction.commit()?;
        Ok(row)
    }

    /// The shared connection.
    pub fn connection(&self) -> &Arc<Mutex<Connection>> {
        &self.connection
    }
}

/// In a savepoint: dropped without a commit, it is undone, and nothing else is.
fn witnessed(
    transaction: &mut Transaction<'_>,
    witness: &Arc<Witness>,
    row: &Intent,
    now: Timestamp,
) -> Result<(), IntentError> {
    let savepoint = transaction.savepoint()?;
    witness(&savepoint, row, now)?;
    Ok(savepoint.commit()?)
}

impl Intents for SqliteIntents {
    fn record(&self, intent: &NewIntent, now: Timestamp) -> Result<Intent, IntentError> {
        record(&self.connection.lock(), intent, now)
    }

    fn mark_sent(&self, seen: &Intent, intent: &NewIntent, now: Timestamp) -> Result<Intent, IntentError> {
        let mut connection = self.connection.lock();
        // Immediate: the write lock comes first, so that the condition can't be outdated by the time of the update.
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let row = mark_sent(&transaction, seen, intent, now, |transaction| match &self.condition {
            Some(condition) => condition(transaction, &seen.hash),
            None => Ok(()),
        })?;
        transaction.commit()?;
        Ok(row)
    }

    fn settle(
        &self,
        hash: &PaymentHash,
        preimage: &Preimage,
        fee: Msat,
        now: Timestamp,
    ) -> Result<Intent, IntentError> {
        self.moved(now, |connection| settle(connection, hash, preimage, fee, now))
    }

    fn fail(&self, seen: &Intent, failure: &Failure, now: Timestamp) -> Result<Intent, IntentError> {
        self.moved(now, |connection| fail(connection, seen, failure, now))
    }

    fn unknown(&self, seen: &Intent, reason: &str, now: Timestamp) -> Result<Intent, IntentError> {
        self.moved(now, |connection| unknown(connection, seen, reason, now))
    }

    fn find(&self, hash: &PaymentHash) -> Result<Option<Intent>, IntentError> {
        find(&self.connection.lock(), hash)
    }

    fn open(&self) -> Result<Vec<Intent>, IntentError> {
        open_rows(&self.connection.lock())
    }

    fn durable(&self) -> bool {
        self.connection.lock().path().is_some_and(|path| !path.is_empty())
    }
}
