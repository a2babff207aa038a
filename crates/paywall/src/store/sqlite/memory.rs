//! The same books without a file and without threads, for tests that want thousands of them: what is asked is done on the
//! spot, by who asks.

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use rusqlite::Connection;

use super::{Engine, SqliteStore, StoreError, schema};

/// One connection, for reading and writing.
pub(super) struct Books(Mutex<Connection>);

impl SqliteStore {
    /// Books that end with this process.
    ///
    /// # Errors
    ///
    /// When SQLite has no memory.
    pub fn in_memory() -> Result<Self, StoreError> {
        let mut connection = Connection::open_in_memory()?;
        connection.execute_batch("PRAGMA foreign_keys = ON; PRAGMA trusted_schema = OFF;")?;
        schema::migrate(&mut connection)?;
        Ok(Self(Engine::Memory(Books(Mutex::new(connection)))))
    }
}

impl Books {
    pub(super) fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> BoxFuture<'_, Result<T, StoreError>> {
        Box::pin(async move {
            let mut connection = self.0.lock();
            let books = connection.transaction()?;
            // An error drops the transaction, which undoes it.
            let done = job(&books)?;
            books.commit()?;
            Ok(done)
        })
    }
}
