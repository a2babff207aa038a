//! The file: who may open it, who may read it, and how SQLite is to treat it.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use rusqlite::{Connection, OpenFlags};

use super::StoreError;

/// How long SQLite waits for a lock that another process holds; revoking takes a moment only.
const BUSY: Duration = Duration::from_secs(5);

/// How often the lock file is tried, and how long after one try comes the next.
const LOCK_TRIES: u32 = 5;
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// Takes the lock file beside the books, or says who has them. The lock ends with the file handle, so that a killed
/// process leaves nothing to clean up.
pub(super) fn lock(path: &Path) -> Result<File, StoreError> {
    let name = lock_name(path);
    let file =
        private().create(true).truncate(false).open(&name).map_err(|error| failed("lock", &name, &error))?;
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            // Who only looks at the books may have it for an instant.
            Err(TryLockError::WouldBlock) => thread::sleep(LOCK_PAUSE),
            Err(TryLockError::Error(error)) => return Err(failed("lock", &name, &error)),
        }
    }
    Err(StoreError::InUse(path.to_owned()))
}

/// Whether a running process has the books. Asking takes the lock for an instant, in the way that many can have it at once.
pub(super) fn is_locked(path: &Path) -> bool {
    let Ok(file) = File::open(lock_name(path)) else { return false };
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

fn lock_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    PathBuf::from(name)
}

/// Makes the file before SQLite does, readable by its owner alone; SQLite gives its log the same permissions.
pub(super) fn create_private(path: &Path) -> Result<(), StoreError> {
    match private().create_new(true).open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => check_private(path),
        Err(error) => Err(failed("make", path, &error)),
    }
}

pub(super) fn connect(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(|error| named(path, error))?;
    connection.busy_timeout(BUSY)?;
    Ok(connection)
}

/// How much of the file each connection keeps in memory, in KiB, once it has been read: the upper floors of every tree of ten
/// million purchases, so that whatever is looked for is a leaf away.
const CACHE: &str = "PRAGMA cache_size = -32768;";

/// How SQLite is to write. The first of these is kept in the file, so be sure that it is ours.
pub(super) fn tune(connection: &Connection) -> Result<(), StoreError> {
    connection.execute_batch(CACHE)?;
    // FULL: what was acknowledged survives a power cut. Group commit makes that one sync for many rows. MEMORY: what undoes
    // one job of a group is never longer than the group, and would go through a file otherwise.
    Ok(connection.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA trusted_schema = OFF;
         PRAGMA temp_store = MEMORY;",
    )?)
}

pub(super) fn connect_read_only(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(|error| named(path, error))?;
    connection.busy_timeout(BUSY)?;
    connection.execute_batch(CACHE)?;
    Ok(connection)
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

#[cfg(unix)]
fn check_private(path: &Path) -> Result<(), StoreError> {
    use std::os::unix::fs::PermissionsExt;
    let meta = fs::metadata(path).map_err(|error| failed("read", path, &error))?;
    let mode = meta.permissions().mode() & 0o7777;
    if mode & 0o077 == 0 { Ok(()) } else { Err(StoreError::Exposed { path: path.to_owned(), mode }) }
}

#[cfg(not(unix))]
fn check_private(_: &Path) -> Result<(), StoreError> {
    Ok(())
}

fn failed(what: &str, path: &Path, error: &io::Error) -> StoreError {
    let text = format!("cannot {what} `{}`: {error}", path.display());
    match error.kind() {
        io::ErrorKind::StorageFull => StoreError::Full(text),
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => StoreError::ReadOnly(text),
        _ => StoreError::Failed(text),
    }
}

fn named(path: &Path, error: rusqlite::Error) -> StoreError {
    match StoreError::from(error) {
        StoreError::Failed(text) => StoreError::Failed(format!("cannot open `{}`: {text}", path.display())),
        other => other,
    }
}
