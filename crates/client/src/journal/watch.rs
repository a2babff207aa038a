//! Tells whether anybody has written to the journal, this process or another, at the cost of a look into shared memory.
//!
//! It has a connection of its own: SQLite's `data_version` moves for what *other* connections commit.

use std::{path::Path, time::Duration};

use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags};

use super::JournalError;
use crate::Origin;

/// A connection that only reads.
#[derive(Debug)]
pub(crate) struct Watch(Mutex<Connection>);

impl Watch {
    /// Watches a journal that is open already.
    pub(crate) fn open(path: &Path) -> Result<Self, JournalError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        // Readers wait for nobody but a repair after a crash. Then it is not told, rather than waited for on a thread that has
        // other requests to serve.
        connection.busy_timeout(Duration::ZERO)?;
        Ok(Self(Mutex::new(connection)))
    }

    /// A number that changes whenever something has been committed since it was last asked for. Waits for nobody: an error means
    /// that it can't be told just now.
    pub(crate) fn version(&self) -> Result<i64, JournalError> {
        let connection = self.0.lock();
        let mut statement = connection.prepare_cached("PRAGMA data_version")?;
        Ok(statement.query_row([], |row| row.get(0))?)
    }

    /// Whether nothing has ever been bought at `origin`, nor begun to be.
    pub(crate) fn is_blank(&self, origin: &Origin) -> Result<bool, JournalError> {
        let connection = self.0.lock();
        let mut statement =
            connection.prepare_cached("SELECT NOT EXISTS (SELECT 1 FROM purchases WHERE origin = ?1)")?;
        Ok(statement.query_row([origin.to_string()], |row| row.get(0))?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Journal;
    use super::*;

    #[test]
    fn what_another_connection_commits_is_noticed_and_what_is_read_is_not() {
        let directory = tempfile::tempdir().expect("a directory for a test");
        let path = directory.path().join("journal.sqlite");
        let journal = Journal::open(&path).expect("a new journal");
        let (watch, other) =
            (Watch::open(&path).expect("it is there"), Journal::open(&path).expect("it is there"));
        let version = || watch.version().expect("nobody locks it");
        let mut before = version();
        for journal in [&journal, &other] {
            journal.purchases().expect("nobody locks it");
            assert_eq!(version(), before);
            let connection = journal.connection.lock();
            connection.execute_batch("CREATE TABLE t (a); DROP TABLE t").expect("nobody locks it");
            drop(connection);
            assert_ne!(version(), before);
            before = version();
        }
    }
}
