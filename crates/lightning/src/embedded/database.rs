//! The node's own book of payments, beside LDK's state: what was received (`received`) and what was sent (`sent`).
//!
//! `ldk-node` keeps no record of payments to invoices that we minted, and writes an outgoing one down only after it was
//! sent. This book closes both gaps. It is SQLite, in `payments.sqlite` or in memory; callers are on blocking threads.

use std::path::Path;

use farebox_protocol::{Msat, PaymentHash};
use parking_lot::{Mutex, MutexGuard};
use rusqlite::{Connection, OptionalExtension as _};
use tokio::sync::{broadcast, watch};

use crate::Cursor;

/// The file's name in the node's directory.
pub(super) const FILE: &str = "payments.sqlite";
/// How many outcomes a waiting payment may fall behind before it reads the book instead.
const OUTCOMES: usize = 256;

const SCHEMA: &str = "
    BEGIN IMMEDIATE;
    CREATE TABLE IF NOT EXISTS book (id TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS received (
        cursor      INTEGER PRIMARY KEY AUTOINCREMENT,
        hash        BLOB NOT NULL,
        amount_msat INTEGER NOT NULL,
        at          INTEGER NOT NULL,
        UNIQUE (hash, amount_msat)
    ) STRICT;
    CREATE TABLE IF NOT EXISTS sent (
        hash     BLOB PRIMARY KEY,
        run      TEXT NOT NULL,
        state    TEXT NOT NULL CHECK (state IN ('begun', 'settled', 'failed')),
        preimage BLOB,
        fee_msat INTEGER,
        reason   TEXT
    ) STRICT;
    COMMIT;";

/// Why the book can't be read or written.
pub(super) type BookError = rusqlite::Error;

/// The book. One per node.
#[derive(Debug)]
pub(super) struct Book {
    db: Mutex<Connection>,
    /// Names this book among all: the cursors and the "not found"s are its own.
    id: String,
    /// Names this run of the process.
    run: String,
    newest: watch::Sender<Cursor>,
    outcomes: broadcast::Sender<PaymentHash>,
}

impl Book {
    /// Opens the book in `dir`, or one in memory. The file holds preimages, so it is for the owner only.
    pub(super) fn open(dir: Option<&Path>) -> Result<Self, BookError> {
        let db = match dir {
            Some(dir) => open_file(&dir.join(FILE))?,
            None => Connection::open_in_memory()?,
        };
        db.execute_batch(SCHEMA)?;
        let id: Option<String> = db.query_row("SELECT id FROM book", [], |row| row.get(0)).optional()?;
        let id = match id {
            Some(id) => id,
            None => {
                let id = random_name();
                db.execute("INSERT INTO book (id) VALUES (?1)", [&id])?;
                id
            }
        };
        let newest: Option<i64> = db.query_row("SELECT max(cursor) FROM received", [], |row| row.get(0))?;
        let (newest, _) = watch::channel(cursor(newest.unwrap_or(0)));
        let (outcomes, _) = broadcast::channel(OUTCOMES);
        Ok(Self { db: Mutex::new(db), id, run: random_name(), newest, outcomes })
    }

    /// What distinguishes this book from every other, even of the same seed. A new file is a new book.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// The run of the process that has opened the book.
    pub(super) fn run(&self) -> &str {
        &self.run
    }

    /// Tells the newest received payment now and whenever there is one.
    pub(super) fn newest(&self) -> &watch::Sender<Cursor> {
        &self.newest
    }

    /// Tells which sent payment has an outcome.
    pub(super) fn outcomes(&self) -> &broadcast::Sender<PaymentHash> {
        &self.outcomes
    }

    pub(super) fn db(&self) -> MutexGuard<'_, Connection> {
        self.db.lock()
    }
}

#[cfg(unix)]
fn make_private(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path).map(drop)
}

#[cfg(not(unix))]
fn make_private(_: &Path) -> std::io::Result<()> {
    Ok(())
}

fn open_file(path: &Path) -> Result<Connection, BookError> {
    // SQLite's own files beside it take their mode from this one.
    if let Err(error) = make_private(path) {
        tracing::warn!(path = %path.display(), %error, "can't make the payment book private");
    }
    let db = Connection::open(path)?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    // A payment must be on disk before it is sent, and a settlement before LDK forgets it.
    db.pragma_update(None, "synchronous", "FULL")?;
    Ok(db)
}

fn random_name() -> String {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("the operating system gives randomness");
    hex::encode(bytes)
}

/// SQLite's integers are signed; ours stay far below the sign.
pub(super) fn integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(super) fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

pub(super) fn msat(value: i64) -> Msat {
    Msat::new(unsigned(value))
}

pub(super) fn cursor(value: i64) -> Cursor {
    Cursor(unsigned(value))
}
