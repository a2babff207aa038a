//! Token stores in SQLite: L402sdk's and Fewsats'. They are opened to be read only, and nothing that they say is run: only
//! tables are read, no views, and their schema is not trusted.

use std::{collections::HashSet, fs, io, path::Path};

use farebox_protocol::{Invoice, Scheme};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Row, types::ValueRef};

use super::{ENTRIES_MAX, Entry, Format, ImportError, Place, Sieve, Unfit, moment_of, preimage_of};

/// The largest file.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// The longest cell.
const CELL_BYTES_MAX: usize = 64 << 10;

/// L402sdk: `l402_tokens`, by the whole address.
pub(super) fn read_l402sdk(path: &Path, format: &Format, sieve: &mut Sieve<'_>) -> Result<(), ImportError> {
    let connection = open(path, format)?;
    must_have(&connection, "l402_tokens", format)?;
    let query =
        "SELECT endpoint, macaroon, preimage, created_at FROM l402_tokens ORDER BY created_at LIMIT 10001";
    each(&connection, query, format, sieve, |row| {
        let endpoint = text(row, 0)?;
        Ok(Entry {
            name: endpoint_name(&endpoint),
            place: Place::Url(endpoint),
            scheme: Scheme::L402,
            token: text(row, 1)?,
            payment_hash: None,
            preimage: preimage_of(&text(row, 2)?)?,
            amount: None,
            fee: None,
            bought_at: moment_of(&text(row, 3)?),
        })
    })
}

/// Fewsats: `credentials`, by the address (the libraries) or by its last segment (the command). The newest of each counts.
pub(super) fn read_fewsats(path: &Path, format: &Format, sieve: &mut Sieve<'_>) -> Result<(), ImportError> {
    let connection = open(path, format)?;
    must_have(&connection, "credentials", format)?;
    let has_location = has_column(&connection, "location").map_err(|error| format.wrong(error))?;
    let key = if has_location { "location" } else { "external_id" };
    let query = format!(
        "SELECT {key}, macaroon, preimage, invoice, created_at FROM credentials ORDER BY created_at DESC, rowid DESC LIMIT 10001"
    );
    let mut seen = HashSet::new();
    each(&connection, &query, format, sieve, |row| {
        let place = text(row, 0)?;
        let invoice = text(row, 3)?;
        let invoice = if invoice.is_empty() { None } else { Invoice::parse(&invoice).ok() };
        if !seen.insert(place.clone()) {
            return Err(Unfit::Older);
        }
        Ok(Entry {
            name: endpoint_name(&place),
            place: if has_location { Place::Url(place) } else { Place::Unknown },
            scheme: Scheme::L402,
            token: text(row, 1)?,
            payment_hash: invoice.as_ref().map(Invoice::payment_hash),
            preimage: preimage_of(&text(row, 2)?)?,
            amount: invoice.as_ref().and_then(Invoice::amount),
            fee: None,
            bought_at: moment_of(&text(row, 4)?),
        })
    })
}

/// Without the query, which may hold secrets.
fn endpoint_name(endpoint: &str) -> String {
    let name = endpoint.split(['?', '#']).next().unwrap_or_default();
    name.chars().take(200).collect()
}

fn open(path: &Path, format: &Format) -> Result<Connection, ImportError> {
    let failed = |source| ImportError::Io { path: path.display().to_string(), source };
    let found = fs::metadata(path).map_err(failed)?;
    if !found.is_file() {
        return Err(failed(io::Error::other("it is not a plain file")));
    }
    if found.len() > FILE_BYTES_MAX {
        let path = path.display().to_string();
        return Err(ImportError::TooLarge { path, most: FILE_BYTES_MAX, unit: "bytes" });
    }
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    // Where nobody is writing, not even a lock is taken, nor a file made beside it. A log beside it has its latest rows.
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let is_still = fs::metadata(&log).map_or(true, |log| log.len() == 0);
    let absolute = fs::canonicalize(path).map_err(failed)?;
    let text = absolute.to_str().ok_or_else(|| failed(io::Error::other("its name is not in UTF-8")))?;
    let escaped = text.replace('%', "%25").replace('?', "%3f").replace('#', "%23");
    let uri = format!("file:{escaped}?mode=ro{}", if is_still { "&immutable=1" } else { "" });
    let wrong = |error: rusqlite::Error| format.wrong(error);
    let connection = Connection::open_with_flags(uri, flags).map_err(wrong)?;
    connection.pragma_update(None, "trusted_schema", "off").map_err(wrong)?;
    connection.pragma_update(None, "cell_size_check", "on").map_err(wrong)?;
    connection.pragma_update(None, "query_only", "on").map_err(wrong)?;
    Ok(connection)
}

/// A plain table, whose rows are what the file holds. A view, a virtual table or a column that is computed could make any work.
fn must_have(connection: &Connection, table: &str, format: &Format) -> Result<(), ImportError> {
    let query = "SELECT type = 'table' AND rootpage > 0
                        AND NOT EXISTS (SELECT 1 FROM pragma_table_xinfo(?1) WHERE hidden <> 0)
                 FROM sqlite_schema WHERE name = ?1 COLLATE NOCASE";
    let is_plain: Option<bool> = connection
        .query_row(query, [table], |row| row.get(0))
        .optional()
        .map_err(|error| format.wrong(error))?;
    match is_plain {
        Some(true) => Ok(()),
        _ => Err(format.wrong(format!("it has no plain table `{table}`"))),
    }
}

fn has_column(connection: &Connection, column: &str) -> rusqlite::Result<bool> {
    let query = "SELECT EXISTS (SELECT 1 FROM pragma_table_info('credentials') WHERE name = ?1)";
    connection.query_row(query, [column], |row| row.get(0))
}

fn each(
    connection: &Connection,
    query: &str,
    format: &Format,
    sieve: &mut Sieve<'_>,
    mut read: impl FnMut(&Row<'_>) -> Result<Entry, Unfit>,
) -> Result<(), ImportError> {
    let wrong = |error: rusqlite::Error| format.wrong(error);
    let mut statement = connection.prepare(query).map_err(wrong)?;
    let mut rows = statement.query([]).map_err(wrong)?;
    while let Some(row) = rows.next().map_err(wrong)? {
        if sieve.is_full() {
            let path = format.path.clone();
            return Err(ImportError::TooLarge { path, most: ENTRIES_MAX as u64, unit: "rows" });
        }
        match read(row) {
            Ok(entry) => sieve.take(entry),
            Err(reason) => {
                let place = text(row, 0).map(|place| endpoint_name(&place)).unwrap_or_default();
                sieve.skip(place, reason);
            }
        }
    }
    Ok(())
}

/// A cell as text, whatever it was stored as.
fn text(row: &Row<'_>, at: usize) -> Result<String, Unfit> {
    match row.get_ref(at).map_err(|_| Unfit::Shape("a column is missing"))? {
        ValueRef::Null => Ok(String::new()),
        ValueRef::Integer(number) => Ok(number.to_string()),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) if bytes.len() <= CELL_BYTES_MAX => {
            std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| Unfit::Shape("a cell is not text"))
        }
        ValueRef::Text(_) | ValueRef::Blob(_) => Err(Unfit::Shape("a cell is too long")),
        ValueRef::Real(_) => Err(Unfit::Shape("a cell is not text")),
    }
}
