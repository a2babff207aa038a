//! The tables of the journal, as a list of steps: a file knows how many it has taken, and takes the rest when opened.
//!
//! Payments themselves lie in the tables of `farebox_lightning::outgoing`, in the same file, so that a purchase and its
//! payment are written in one transaction.

use rusqlite::{Connection, TransactionBehavior};

use super::{JournalError, imports, receipts, redate};

/// Never change a step that has been released; add one.
const STEPS: &[&str] = &[
    "
CREATE TABLE purchases (
    id             INTEGER PRIMARY KEY AUTOINCREMENT,
    payment_hash   BLOB NOT NULL UNIQUE CHECK (length(payment_hash) = 32),
    origin         TEXT NOT NULL,
    service        TEXT NOT NULL,
    scheme         TEXT NOT NULL,
    token          TEXT NOT NULL,
    fee_worst_msat INTEGER NOT NULL,
    valid_until    INTEGER,
    bound          INTEGER NOT NULL,
    method         TEXT NOT NULL,
    path           TEXT NOT NULL,
    holder         TEXT NOT NULL,
    generation     INTEGER NOT NULL,
    begun_at       INTEGER NOT NULL,
    honoured_at    INTEGER,
    dead_at        INTEGER
) STRICT;
CREATE INDEX purchases_scope ON purchases (origin, service);

CREATE TABLE answers (
    payment_hash BLOB NOT NULL REFERENCES purchases (payment_hash),
    path         TEXT NOT NULL,
    honoured     INTEGER NOT NULL,
    at           INTEGER NOT NULL,
    PRIMARY KEY (payment_hash, path)
) STRICT, WITHOUT ROWID;

CREATE TABLE leases (
    origin     TEXT NOT NULL,
    service    TEXT NOT NULL,
    generation INTEGER NOT NULL,
    holder     TEXT,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (origin, service)
) STRICT, WITHOUT ROWID;
",
    "
-- On whose behalf it was bought, and which rule of the policy let it.
ALTER TABLE purchases ADD COLUMN label TEXT;
ALTER TABLE purchases ADD COLUMN rule TEXT;
CREATE INDEX purchases_origin ON purchases (origin);
CREATE INDEX purchases_begun ON purchases (begun_at);

-- The rules whose budgets a payment counts against.
CREATE TABLE charges (
    rule         TEXT NOT NULL,
    payment_hash BLOB NOT NULL,
    PRIMARY KEY (rule, payment_hash)
) STRICT, WITHOUT ROWID;
",
    "
-- Of a payment that was recorded again after it had failed: how often it had been sent by then. Until it is sent once more
-- it counts as one that is about to be.
ALTER TABLE purchases ADD COLUMN again INTEGER;
",
    "
-- Questions to a person, and their answers: signed, so that writing here agrees to nothing.
CREATE TABLE approvals (
    id             TEXT PRIMARY KEY,
    origin         TEXT NOT NULL,
    service        TEXT NOT NULL,
    method         TEXT NOT NULL,
    path           TEXT NOT NULL,
    label          TEXT,
    price_msat     INTEGER NOT NULL,
    fee_worst_msat INTEGER NOT NULL,
    payee          TEXT NOT NULL,
    rule           TEXT,
    asked_at       INTEGER NOT NULL,
    denied_at      INTEGER,
    price_max_msat INTEGER,
    until          INTEGER,
    signature      BLOB,
    used_by        BLOB
) STRICT;
CREATE INDEX approvals_origin ON approvals (origin);

-- Since when a person knows that a fee exceeded the most that the wallet had promised.
ALTER TABLE purchases ADD COLUMN overrun_seen_at INTEGER;
",
    receipts::TABLES,
    imports::TABLES,
    "
-- Why a credential is over, where its seller has told: `used_up`, or `refused`.
ALTER TABLE purchases ADD COLUMN ended TEXT;

-- What stood in the place of a purchase whose invoice, unpaid, was offered again somewhere else.
CREATE TABLE superseded (
    payment_hash  BLOB NOT NULL,
    origin        TEXT NOT NULL,
    service       TEXT NOT NULL,
    method        TEXT NOT NULL,
    path          TEXT NOT NULL,
    begun_at      INTEGER NOT NULL,
    amount_msat   INTEGER NOT NULL,
    state         TEXT NOT NULL,
    superseded_at INTEGER NOT NULL
) STRICT;

-- The latest moment that anything here has gone by: a clock that is set back gives nothing back.
CREATE TABLE clock (
    id     INTEGER PRIMARY KEY CHECK (id = 1),
    latest INTEGER NOT NULL
) STRICT;
",
    redate::TABLES,
];

/// The layout that this program writes.
#[cfg(test)]
pub(super) const VERSION: usize = STEPS.len();

/// The step that brings receipts; purchases from before it get theirs after all steps.
const RECEIPTS: usize = 5;

/// Brings the file up to date. Two processes may do so at once: the second finds nothing left to do. A file that is up to date is
/// only read: who buys nothing writes nothing, and needn't wait for somebody who does.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), JournalError> {
    let is_up_to_date = |taken: usize| taken == STEPS.len();
    if connection.pragma_query_value(None, "user_version", |row| row.get(0)).map(is_up_to_date)? {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let taken: usize = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if taken > STEPS.len() {
        return Err(JournalError::TooNew { found: taken, known: STEPS.len() });
    }
    for step in STEPS.iter().skip(taken) {
        transaction.execute_batch(step)?;
    }
    if taken < RECEIPTS {
        receipts::carry_over(&transaction)?;
    }
    transaction.pragma_update(None, "user_version", STEPS.len())?;
    transaction.commit()?;
    Ok(())
}
