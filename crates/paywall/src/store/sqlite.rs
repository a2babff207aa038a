//! The books in one SQLite file, for one process.
//!
//! A lock file keeps a second gateway out; only revocations may be added from outside ([`SqliteStore::open_for_revocation`]).
//! One thread writes, in groups: whatever arrives while a commit is under way goes together into the next, and nobody is
//! told "done" before its commit is on the disk (`synchronous=FULL`). Another thread reads, so that a look-up never
//! queues behind a commit.

use std::{fs::File, path::Path, sync::Arc};

use farebox_lightning::Cursor;
use farebox_protocol::{Fingerprint, IdentifierHash, Msat, PaymentHash, Timestamp};
use futures_util::future::BoxFuture;
use rusqlite::Connection;

use super::accounts::{
    Account, Accounts, Allotment, AnswerKey, Audit, DayOfUse, Debited, Epoch, EpochId, Group, KeptAnswer,
    MonthlyUse, Opened, RefundId, RefundMark, RefundOrder, RefundRow,
};
use super::entry::Entry;
use super::{
    Arrival, Booked, Page, Presentation, Purchase, Revocation, RevocationCursor, Revoked, Sale, Store,
    StoreError,
};
use crate::{
    Continuity,
    ledger::{law::Refund, month::Month},
};

mod accounts;
mod audit;
mod file;
mod inspect;
#[cfg(any(test, feature = "conformance"))]
mod memory;
mod missed;
mod rows;
mod schema;
mod threads;

pub use inspect::{FindError, Inspector};
use threads::{Reader, Writer};

/// The books in one SQLite file. Dropping it writes what is queued, and waits for that.
pub struct SqliteStore(Engine);

enum Engine {
    File(Threads),
    #[cfg(any(test, feature = "conformance"))]
    Memory(memory::Books),
}

struct Threads {
    // The order of these fields is the order in which they end: the last connection to close must be the one that can
    // fold the write-ahead log into the file, and the lock goes when all is done.
    reader: Reader,
    writer: Writer,
    _lock: Arc<File>,
}

/// Adds revocations to the books of a gateway that may be running.
pub struct Revoker {
    connection: Connection,
}

impl SqliteStore {
    /// Opens the books, or makes new ones where there is no file; brings old ones up to date. Blocks on the disk.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let lock = Arc::new(file::lock(path)?);
        file::create_private(path)?;
        let mut connection = file::connect(path)?;
        schema::format(&connection)?;
        file::tune(&connection)?;
        schema::migrate(&mut connection)?;
        let reader = Reader::start(file::connect_read_only(path)?)?;
        Ok(Self(Engine::File(Threads { reader, writer: Writer::start(connection)?, _lock: lock })))
    }

    fn write<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> BoxFuture<'_, Result<T, StoreError>> {
        match &self.0 {
            Engine::File(threads) => threads.writer.run(job),
            #[cfg(any(test, feature = "conformance"))]
            Engine::Memory(books) => books.run(job),
        }
    }

    fn read<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> BoxFuture<'_, Result<T, StoreError>> {
        match &self.0 {
            Engine::File(threads) => threads.reader.run(job),
            #[cfg(any(test, feature = "conformance"))]
            Engine::Memory(books) => books.run(job),
        }
    }

    /// Opens the books of another process to revoke tokens: it makes no file, changes no table and takes no lock.
    pub fn open_for_revocation(path: &Path) -> Result<Revoker, StoreError> {
        if !path.exists() {
            return Err(StoreError::NotReady(path.to_owned()));
        }
        let connection = file::connect(path)?;
        schema::check_current(&connection, path)?;
        file::tune(&connection)?;
        Ok(Revoker { connection })
    }

    /// Opens the books of another process, or of none, to look at them: it makes no file, changes no table and takes no lock.
    pub fn open_to_inspect(path: &Path) -> Result<Inspector, StoreError> {
        Inspector::open(path)
    }
}

impl Revoker {
    /// Revokes a token; running gateways notice within a second or so. Again is no error. Blocks on the disk.
    pub fn revoke(&self, revocation: &Revocation) -> Result<(), StoreError> {
        rows::revoke(&self.connection, revocation)
    }

    /// Whether a token with this identifier hash is in the books. One that was never presented is not, and can be
    /// revoked all the same. Blocks on the disk.
    pub fn knows_token(&self, hash: IdentifierHash) -> Result<bool, StoreError> {
        rows::knows_token(&self.connection, hash)
    }

    /// The purchase with this payment hash: what a person may have given in place of an identifier hash. Blocks on the
    /// disk.
    pub fn purchase(&self, hash: PaymentHash) -> Result<Option<Purchase>, StoreError> {
        rows::purchase(&self.connection, hash)
    }
}

impl Store for SqliteStore {
    fn adopt(
        &self,
        secrets: Vec<Fingerprint>,
        continuity: Continuity,
        now: Timestamp,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        self.write(move |books| rows::adopt(books, &secrets, continuity, now))
    }

    fn cursor(&self, node: &str) -> BoxFuture<'_, Result<Cursor, StoreError>> {
        let node = node.to_owned();
        self.read(move |books| rows::cursor(books, &node))
    }

    fn settle(
        &self,
        node: &str,
        arrivals: Vec<Arrival>,
        to: Cursor,
    ) -> BoxFuture<'_, Result<Booked, StoreError>> {
        let node = node.to_owned();
        self.write(move |books| rows::settle(books, &node, &arrivals, to))
    }

    fn present(&self, presentations: Vec<Presentation>) -> BoxFuture<'_, Result<Vec<Sale>, StoreError>> {
        self.write(move |books| rows::present(books, &presentations))
    }

    fn purchase(&self, hash: PaymentHash) -> BoxFuture<'_, Result<Option<Purchase>, StoreError>> {
        self.read(move |books| rows::purchase(books, hash))
    }

    fn entry(&self, hash: PaymentHash) -> BoxFuture<'_, Result<Option<Entry>, StoreError>> {
        self.read(move |books| inspect::entry(books, hash))
    }

    fn purchases(&self, page: Page) -> BoxFuture<'_, Result<Vec<Purchase>, StoreError>> {
        self.read(move |books| rows::purchases(books, page))
    }

    fn revoke(&self, revocation: Revocation) -> BoxFuture<'_, Result<(), StoreError>> {
        self.write(move |books| rows::revoke(books, &revocation))
    }

    fn revocations(&self, after: RevocationCursor) -> BoxFuture<'_, Result<Revoked, StoreError>> {
        self.read(move |books| rows::revocations(books, after))
    }
}

impl Accounts for SqliteStore {
    fn begin_epoch(&self, now: Timestamp) -> BoxFuture<'_, Result<EpochId, StoreError>> {
        self.write(move |books| accounts::begin_epoch(books, now))
    }

    fn end_epoch(&self, epoch: EpochId, now: Timestamp) -> BoxFuture<'_, Result<(), StoreError>> {
        self.write(move |books| accounts::end_epoch(books, epoch, now))
    }

    fn epochs(&self, rows_max: u16) -> BoxFuture<'_, Result<Vec<Epoch>, StoreError>> {
        self.read(move |books| accounts::epochs(books, rows_max))
    }

    fn account(&self, hash: PaymentHash) -> BoxFuture<'_, Result<Option<Account>, StoreError>> {
        self.read(move |books| accounts::account(books, hash))
    }

    fn accounts(&self, page: Page) -> BoxFuture<'_, Result<Vec<Account>, StoreError>> {
        self.read(move |books| accounts::accounts(books, page))
    }

    fn open_account(
        &self,
        presentation: Presentation,
        allotment: Allotment,
    ) -> BoxFuture<'_, Result<Opened, StoreError>> {
        self.write(move |books| accounts::open_account(books, &presentation, allotment))
    }

    fn uses(&self, hash: PaymentHash, month: Month) -> BoxFuture<'_, Result<Vec<MonthlyUse>, StoreError>> {
        self.read(move |books| accounts::uses(books, hash, Some(month)))
    }

    fn debit(&self, group: Arc<Group>) -> BoxFuture<'_, Result<Debited, StoreError>> {
        self.write(move |books| accounts::debit(books, &group))
    }

    fn kept_answer(
        &self,
        key: AnswerKey,
        now: Timestamp,
    ) -> BoxFuture<'_, Result<Option<KeptAnswer>, StoreError>> {
        self.read(move |books| accounts::kept_answer(books, key, now))
    }

    fn begin_refund(&self, order: RefundOrder) -> BoxFuture<'_, Result<(), StoreError>> {
        self.write(move |books| accounts::begin_refund(books, &order))
    }

    fn end_refund(
        &self,
        id: RefundId,
        end: Refund,
        at: Timestamp,
    ) -> BoxFuture<'_, Result<RefundRow, StoreError>> {
        self.write(move |books| accounts::end_refund(books, id, end, at))
    }

    fn refund(&self, id: RefundId) -> BoxFuture<'_, Result<Option<RefundRow>, StoreError>> {
        self.read(move |books| accounts::refund(books, id))
    }

    fn open_refunds(&self, rows_max: u16) -> BoxFuture<'_, Result<Vec<RefundRow>, StoreError>> {
        self.read(move |books| accounts::open_refunds(books, rows_max))
    }

    fn unknown_refunds(&self, ids: Vec<RefundId>) -> BoxFuture<'_, Result<Vec<RefundId>, StoreError>> {
        self.read(move |books| missed::unknown(books, &ids))
    }

    fn add_refund(
        &self,
        order: RefundOrder,
        paid_at: Option<Timestamp>,
        limit: Option<Msat>,
    ) -> BoxFuture<'_, Result<Option<RefundRow>, StoreError>> {
        self.write(move |books| missed::add(books, &order, paid_at, limit))
    }

    fn refund_mark(&self) -> BoxFuture<'_, Result<Option<RefundMark>, StoreError>> {
        self.read(missed::mark)
    }

    fn mark_refunds(&self, mark: RefundMark) -> BoxFuture<'_, Result<(), StoreError>> {
        self.write(move |books| missed::set_mark(books, &mark))
    }

    fn days_of_use(&self, from: u64, to: u64) -> BoxFuture<'_, Result<Vec<DayOfUse>, StoreError>> {
        self.read(move |books| accounts::days_of_use(books, from, to))
    }

    fn audit(&self) -> BoxFuture<'_, Result<Audit, StoreError>> {
        self.read(audit::audit)
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode;
        let text = error.to_string();
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full(text),
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => Self::ReadOnly(text),
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy(text),
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Damaged(text),
            _ => Self::Failed(text),
        }
    }
}

#[cfg(test)]
mod tests;
