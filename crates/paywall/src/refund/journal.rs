//! What was asked to be paid back, to which payment it belongs, and how it ended: rows beside those of `lightning::outgoing`,
//! in one SQLite file.
//!
//! A row is its own reservation under the daily cap: it is made in the transaction that asks whether there is room, so
//! neither a restart nor a second request at the same moment gets around it. What is left of an account is the ledger's
//! business; here stands only which payment a refund of the ledger is waiting for.

use std::sync::Arc;

use farebox_lightning::{
    WalletId,
    outgoing::{IntentError, sqlite::SqliteIntents},
};
use farebox_protocol::{Msat, PaymentHash, Timestamp};
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension, Row, TransactionBehavior, named_params, params};

use super::records::{Verdict, Which, Word};
use crate::store::accounts::{RefundId, RefundMark, RefundOf};

/// What the daily cap looks back on.
const DAY_SECS: u64 = 86_400;

/// How long what hasn't ended is counted. No payee can hold a payment for longer than some two weeks, so what is older has
/// left or never will; it waits for somebody to find out, and must not take from every day until then.
const HELD_SECS: u64 = 30 * DAY_SECS;

/// How many refunds of one purchase are told, newest first.
const TOLD_MAX: u32 = 20;

/// A refund that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) id: RefundId,
    /// What was bought.
    pub(super) purchase: PaymentHash,
    pub(super) of: RefundOf,
    /// What arrives.
    pub(super) amount: Msat,
    /// What the route may cost.
    pub(super) fee_max: Msat,
    /// The payment that brings it back.
    pub(super) payment: PaymentHash,
}

/// By which way a refund was to leave: what it takes to believe that it didn't.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Way {
    /// The only wallet that can tell.
    pub(super) wallet: WalletId,
    /// When the invoice can't be paid any more.
    pub(super) expires: Timestamp,
}

/// A refund as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) wanted: Wanted,
    pub(super) asked_at: Timestamp,
    pub(super) state: State,
}

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It will be paid, is being paid, or has perhaps been paid.
    Open,
    /// The money has arrived.
    Paid { fee: Msat },
    /// It certainly has not.
    Failed { why: String },
}

/// What came of asking.
#[derive(Debug)]
pub(super) enum Recorded {
    /// It is new, and on disk.
    New(Entry),
    /// It was asked for before.
    Known(Entry),
    /// Another one of the same purchase hasn't ended.
    UnderWay,
    /// The invoice belongs to another refund.
    InvoiceUsed,
    /// The day's money is used up.
    DayUsedUp,
}

/// The rows.
#[derive(Clone)]
pub(super) struct Journal(Arc<Mutex<Connection>>);

const COLUMNS: &str =
    "id, purchase, source, amount_msat, fee_max_msat, payment_hash, asked_at, state, fee_msat, why";

impl Journal {
    /// Makes the table where there is none.
    pub(super) fn open(intents: &SqliteIntents) -> Result<Self, IntentError> {
        let connection = Arc::clone(intents.connection());
        connection.lock().execute_batch(
            "CREATE TABLE IF NOT EXISTS refunds (
                 seq          INTEGER PRIMARY KEY AUTOINCREMENT,
                 id           BLOB NOT NULL UNIQUE CHECK (length(id) = 16),
                 purchase     BLOB NOT NULL CHECK (length(purchase) = 32),
                 source       TEXT NOT NULL CHECK (source IN ('credit', 'surplus')),
                 amount_msat  INTEGER NOT NULL CHECK (amount_msat > 0),
                 fee_max_msat INTEGER NOT NULL CHECK (fee_max_msat >= 0),
                 payment_hash BLOB NOT NULL UNIQUE CHECK (length(payment_hash) = 32),
                 asked_at     INTEGER NOT NULL,
                 state        TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'paid', 'failed')),
                 fee_msat     INTEGER,
                 why          TEXT,
                 ended_at     INTEGER,
                 CHECK ((state = 'open') = (ended_at IS NULL)),
                 CHECK ((state = 'paid') = (fee_msat IS NOT NULL))
             ) STRICT;
             CREATE TABLE IF NOT EXISTS refund_words (
                 id       BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 16),
                 is_paid  INTEGER NOT NULL CHECK (is_paid IN (0, 1)),
                 fee_msat INTEGER NOT NULL CHECK (fee_msat >= 0),
                 note     TEXT NOT NULL,
                 said_at  INTEGER NOT NULL
             ) STRICT, WITHOUT ROWID;
             CREATE TABLE IF NOT EXISTS refund_ways (
                 id         BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 16),
                 wallet     TEXT NOT NULL,
                 expires_at INTEGER NOT NULL
             ) STRICT, WITHOUT ROWID;
             CREATE INDEX IF NOT EXISTS refunds_of_purchase ON refunds (purchase);
             CREATE UNIQUE INDEX IF NOT EXISTS refunds_one_at_a_time ON refunds (purchase) WHERE state = 'open';
             CREATE INDEX IF NOT EXISTS refunds_by_time ON refunds (asked_at);
             CREATE INDEX IF NOT EXISTS refunds_by_end ON refunds (ended_at) WHERE state = 'paid';",
        )?;
        Ok(Self(connection))
    }

    /// Puts a refund on disk, if nothing stands against it.
    pub(super) fn record(
        &self,
        wanted: &Wanted,
        way: &Way,
        daily_max: Msat,
        now: Timestamp,
    ) -> Result<Recorded, IntentError> {
        let mut connection = self.0.lock();
        let journal = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if let Some(entry) = find(&journal, wanted.id)? {
            return Ok(Recorded::Known(entry));
        }
        let any = |query: &str, key: &PaymentHash| {
            journal.query_row(query, [key.as_bytes()], |row| row.get::<_, bool>(0))
        };
        if any(
            "SELECT EXISTS (SELECT 1 FROM refunds WHERE purchase = ?1 AND state = 'open')",
            &wanted.purchase,
        )? {
            return Ok(Recorded::UnderWay);
        }
        if any("SELECT EXISTS (SELECT 1 FROM refunds WHERE payment_hash = ?1)", &wanted.payment)? {
            return Ok(Recorded::InvoiceUsed);
        }
        // What was paid counts from when it left, and what hasn't ended for as long as it may leave: an invoice can be held for
        // days, and many of them be let go in one hour. Rows of the future count, too: a clock that went back forgives nothing.
        let since = |secs| integer(now.secs().saturating_sub(secs));
        let out: u64 = journal.query_row(
            "SELECT coalesce(sum(amount_msat + coalesce(fee_msat, fee_max_msat)), 0) FROM refunds
             WHERE (state = 'open' AND asked_at > ?2) OR (state = 'paid' AND (asked_at > ?1 OR ended_at > ?1))",
            [since(DAY_SECS), since(HELD_SECS)],
            |row| row.get(0),
        )?;
        let all = wanted.amount.saturating_add(wanted.fee_max).saturating_add(Msat::new(out));
        if all > daily_max {
            return Ok(Recorded::DayUsedUp);
        }
        journal.execute(
            "INSERT INTO refunds (id, purchase, source, amount_msat, fee_max_msat, payment_hash, asked_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![
                wanted.id.0,
                wanted.purchase.as_bytes(),
                match wanted.of {
                    RefundOf::Credit => "credit",
                    RefundOf::Surplus => "surplus",
                },
                integer(wanted.amount.get()),
                integer(wanted.fee_max.get()),
                wanted.payment.as_bytes(),
                integer(now.secs()),
            ],
        )?;
        journal.execute(
            "INSERT INTO refund_ways (id, wallet, expires_at) VALUES (?1, ?2, ?3)",
            params![wanted.id.0, way.wallet.0, integer(way.expires.secs())],
        )?;
        journal.commit()?;
        Ok(Recorded::New(Entry { wanted: *wanted, asked_at: now, state: State::Open }))
    }

    /// Notes how one ended; the first end stays.
    pub(super) fn end(&self, id: RefundId, state: &State, now: Timestamp) -> Result<(), IntentError> {
        let (name, fee, why) = match state {
            State::Open => return Ok(()),
            State::Paid { fee } => ("paid", Some(integer(fee.get())), None),
            State::Failed { why } => ("failed", None, Some(why)),
        };
        self.0.lock().execute(
            "UPDATE refunds SET state = :state, fee_msat = :fee, why = :why, ended_at = :now
             WHERE id = :id AND state = 'open'",
            named_params! { ":state": name, ":fee": fee, ":why": why, ":now": integer(now.secs()), ":id": id.0 },
        )?;
        Ok(())
    }

    /// By which way a refund was to leave. An earlier version didn't write that down.
    pub(super) fn way(&self, id: RefundId) -> Result<Option<Way>, IntentError> {
        let connection = self.0.lock();
        let mut one =
            connection.prepare_cached("SELECT wallet, expires_at FROM refund_ways WHERE id = ?1")?;
        let way = one.query_row([id.0], |row| {
            let expires = Timestamp::from_secs(row.get("expires_at")?);
            Ok(Way { wallet: WalletId(row.get("wallet")?), expires })
        });
        Ok(way.optional()?)
    }

    /// One refund.
    pub(super) fn find(&self, id: RefundId) -> Result<Option<Entry>, IntentError> {
        find(&self.0.lock(), id)
    }

    /// The last refunds of a purchase, newest first.
    pub(super) fn of(&self, purchase: PaymentHash) -> Result<Vec<Entry>, IntentError> {
        let connection = self.0.lock();
        let mut some = connection.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM refunds WHERE purchase = ?1 ORDER BY seq DESC LIMIT ?2"
        ))?;
        let entries = some.query_map(params![purchase.as_bytes(), TOLD_MAX], read)?;
        Ok(entries.collect::<Result<_, _>>()?)
    }

    /// How much of a purchase's surplus was paid back or may be on its way.
    pub(super) fn surplus_taken(&self, purchase: PaymentHash) -> Result<Msat, IntentError> {
        let taken: u64 = self.0.lock().query_row(
            "SELECT coalesce(sum(amount_msat + coalesce(fee_msat, fee_max_msat)), 0) FROM refunds
             WHERE purchase = ?1 AND source = 'surplus' AND state <> 'failed'",
            [purchase.as_bytes()],
            |row| row.get(0),
        )?;
        Ok(Msat::new(taken))
    }

    /// The last refunds of all, newest first.
    pub(super) fn last(&self, which: Which, rows_max: u32) -> Result<Vec<Entry>, IntentError> {
        let connection = self.0.lock();
        let of = match which {
            Which::Open => "WHERE state = 'open'",
            Which::All => "",
        };
        let mut some = connection
            .prepare_cached(&format!("SELECT {COLUMNS} FROM refunds {of} ORDER BY seq DESC LIMIT ?1"))?;
        let entries = some.query_map([rows_max], read)?;
        Ok(entries.collect::<Result<_, _>>()?)
    }

    /// What a person has said of a refund.
    pub(super) fn word(&self, id: RefundId) -> Result<Option<Word>, IntentError> {
        let connection = self.0.lock();
        let mut one = connection
            .prepare_cached("SELECT is_paid, fee_msat, note, said_at FROM refund_words WHERE id = ?1")?;
        let word = one.query_row([id.0], |row| {
            let fee = Msat::new(row.get("fee_msat")?);
            Ok(Word {
                verdict: if row.get("is_paid")? { Verdict::Paid { fee } } else { Verdict::NotPaid },
                note: row.get("note")?,
                said_at: Timestamp::from_secs(row.get("said_at")?),
            })
        });
        Ok(word.optional()?)
    }

    /// Writes down what a person says. The first word stays; whether it is this one.
    pub(super) fn say(&self, id: RefundId, word: &Word) -> Result<bool, IntentError> {
        let (is_paid, fee) = match word.verdict {
            Verdict::Paid { fee } => (true, fee),
            Verdict::NotPaid => (false, Msat::ZERO),
        };
        let said = self.0.lock().execute(
            "INSERT INTO refund_words (id, is_paid, fee_msat, note, said_at) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT (id) DO NOTHING",
            params![id.0, is_paid, integer(fee.get()), word.note, integer(word.said_at.secs())],
        )?;
        Ok(said == 1)
    }

    /// Those that were paid, behind this row, in the order of the rows: each with its row and when it was paid.
    pub(super) fn paid_after(
        &self,
        after: u64,
        rows_max: u32,
    ) -> Result<Vec<(u64, Entry, Timestamp)>, IntentError> {
        let connection = self.0.lock();
        let mut some = connection.prepare_cached(&format!(
            "SELECT {COLUMNS}, seq, ended_at FROM refunds WHERE seq > ?1 AND state = 'paid' ORDER BY seq LIMIT ?2"
        ))?;
        let rows = some.query_map(params![integer(after), rows_max], |row| {
            Ok((row.get("seq")?, read(row)?, Timestamp::from_secs(row.get("ended_at")?)))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// The last row up to which all have ended.
    pub(super) fn last_ended(&self) -> Result<Option<RefundMark>, IntentError> {
        let connection = self.0.lock();
        // The open ones have an index of their own and are few; but for the plus, SQLite would rather go through all rows in order.
        let mut one = connection.prepare_cached(
            "SELECT seq, id FROM refunds
             WHERE seq < coalesce((SELECT min(+seq) FROM refunds WHERE state = 'open'), 9223372036854775807)
             ORDER BY seq DESC LIMIT 1",
        )?;
        let last = one.query_row([], |row| Ok(RefundMark { place: row.get(0)?, id: RefundId(row.get(1)?) }));
        Ok(last.optional()?)
    }

    /// The row in which a refund stands.
    pub(super) fn place(&self, id: RefundId) -> Result<Option<u64>, IntentError> {
        let connection = self.0.lock();
        let mut one = connection.prepare_cached("SELECT seq FROM refunds WHERE id = ?1")?;
        Ok(one.query_row([id.0], |row| row.get(0)).optional()?)
    }

    /// The connection that the payments' rows lie behind, too.
    pub(super) fn connection(&self) -> &Arc<Mutex<Connection>> {
        &self.0
    }

    /// Those that have not ended, oldest first.
    pub(super) fn open_entries(&self) -> Result<Vec<Entry>, IntentError> {
        let connection = self.0.lock();
        let mut some = connection
            .prepare_cached(&format!("SELECT {COLUMNS} FROM refunds WHERE state = 'open' ORDER BY +seq"))?;
        let entries = some.query_map([], read)?;
        Ok(entries.collect::<Result<_, _>>()?)
    }
}

impl Entry {
    /// What is set aside for it.
    pub(super) const fn held(&self) -> Msat {
        self.wanted.amount.saturating_add(self.wanted.fee_max)
    }
}

fn find(connection: &Connection, id: RefundId) -> Result<Option<Entry>, IntentError> {
    let mut one = connection.prepare_cached(&format!("SELECT {COLUMNS} FROM refunds WHERE id = ?1"))?;
    Ok(one.query_row([id.0], read).optional()?)
}

fn read(row: &Row<'_>) -> rusqlite::Result<Entry> {
    let msat = |column: &str| row.get::<_, u64>(column).map(Msat::new);
    let wanted = Wanted {
        id: RefundId(row.get("id")?),
        purchase: PaymentHash::from_bytes(row.get("purchase")?),
        of: match row.get_ref("source")?.as_str()? {
            "credit" => RefundOf::Credit,
            _ => RefundOf::Surplus,
        },
        amount: msat("amount_msat")?,
        fee_max: msat("fee_max_msat")?,
        payment: PaymentHash::from_bytes(row.get("payment_hash")?),
    };
    let state = match row.get_ref("state")?.as_str()? {
        "paid" => State::Paid { fee: msat("fee_msat")? },
        "failed" => State::Failed { why: row.get::<_, Option<String>>("why")?.unwrap_or_default() },
        _ => State::Open,
    };
    Ok(Entry { wanted, asked_at: Timestamp::from_secs(row.get("asked_at")?), state })
}

/// SQLite's integers are signed. All the money there is and all times fit; more is cut to the largest.
fn integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
