//! The tables and how they change: numbered migrations, each applied once, in one transaction with its number.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::StoreError;

/// Oldest first; the format is how many have been applied. Append only.
const MIGRATIONS: [&str; 5] = [
    include_str!("../../../migrations/0001_books.sql"),
    include_str!("../../../migrations/0002_claims.sql"),
    include_str!("../../../migrations/0003_ledger.sql"),
    include_str!("../../../migrations/0004_months.sql"),
    include_str!("../../../migrations/0005_missed_refunds.sql"),
];

/// Marks the file as ours, so that another program's database isn't taken for books: "fare" in ASCII.
const APPLICATION_ID: i32 = 0x6661_7265;

/// The newest format known here.
pub(super) const FORMAT: u32 = {
    assert!(MIGRATIONS.len() < 1_000, "fits in 32 bits");
    #[expect(clippy::cast_possible_truncation, reason = "asserted just above")]
    let format = MIGRATIONS.len() as u32;
    format
};

/// Brings the tables up to date.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    migrate_to(connection, FORMAT)
}

/// Brings the tables up to a format.
pub(super) fn migrate_to(connection: &mut Connection, format_wanted: u32) -> Result<(), StoreError> {
    let books = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found = format(&books)?;
    if found > FORMAT {
        return Err(StoreError::TooNew { found, known: FORMAT });
    }
    for (number, migration) in (1..=format_wanted).zip(MIGRATIONS).filter(|(number, _)| *number > found) {
        books.execute_batch(migration)?;
        books.pragma_update(None, "user_version", number)?;
    }
    books.pragma_update(None, "application_id", APPLICATION_ID)?;
    books.commit()?;
    Ok(())
}

/// Checks that the tables are the ones known here, without changing anything.
pub(super) fn check_current(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    match format(connection)? {
        FORMAT => Ok(()),
        found if found > FORMAT => Err(StoreError::TooNew { found, known: FORMAT }),
        _ => Err(StoreError::NotReady(path.to_owned())),
    }
}

/// How many migrations the file has had, or that it isn't ours.
pub(super) fn format(connection: &Connection) -> Result<u32, StoreError> {
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    let tables: u32 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    match (pragma("application_id")?, pragma("user_version")?, tables) {
        (0, 0, 0) => Ok(0),
        (APPLICATION_ID, format, _) => u32::try_from(format).map_err(|_| foreign()),
        _ => Err(foreign()),
    }
}

fn foreign() -> StoreError {
    StoreError::Damaged("this is another program's database; name another file".to_owned())
}
