//! The file in which counts of freebies outlive the process: an image of the table, behind a page that says so.
//!
//! It holds no address, only hashes under a key that lies beside them. Its size is fixed. Pages are written over in place; a
//! crash in the middle leaves some places as they were a moment ago, which may give a few freebies twice and nothing else.

use std::{
    fs,
    io::{self, Read, Seek, SeekFrom, Write},
    path::PathBuf,
};

use super::table::{PAGE, Table};

const MAGIC: &[u8; 16] = b"farebox freebies";

/// As large as a page of counts, so that those lie as the disk likes it.
const HEADER: usize = PAGE * 16;

/// The key comes behind the magic word, the number of places behind the key.
const KEY_AT: usize = 16;
const NETWORKS_AT: usize = 48;

/// Why counts that were kept can't be read. Without them, everybody would get their freebies again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FreebieFileError {
    /// The system refuses.
    #[error("cannot read the counts of freebies in `{}`", .path.display())]
    Io {
        /// Where they are.
        path: PathBuf,
        /// What the system says.
        #[source]
        error: io::Error,
    },
    /// It is another file, or a damaged one.
    #[error("`{}` does not hold counts of freebies; remove it, and all begin anew", .0.display())]
    Foreign(PathBuf),
    /// The system gives no randomness.
    #[error("the system gives no random bytes for counting freebies: {0}")]
    NoRandomness(String),
}

/// The file, open once it has been read or written.
pub(super) struct File {
    path: PathBuf,
    open: Option<fs::File>,
}

/// What was in it.
pub(super) struct Kept {
    pub(super) key: [u8; 32],
    pub(super) table: Table,
}

impl File {
    pub(super) fn at(path: PathBuf) -> Self {
        Self { path, open: None }
    }

    /// What it holds; nothing if it isn't there yet.
    pub(super) fn read(&mut self) -> Result<Option<Kept>, FreebieFileError> {
        let failed = |error| FreebieFileError::Io { path: self.path.clone(), error };
        let mut file = match fs::OpenOptions::new().read(true).write(true).open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed)?;
        // The first write was cut off before anything was counted.
        if bytes.is_empty() {
            return Ok(None);
        }
        let kept = understand(&bytes).ok_or_else(|| FreebieFileError::Foreign(self.path.clone()))?;
        self.open = Some(file);
        Ok(Some(kept))
    }

    /// Writes these pages over what stands there.
    pub(super) fn write(
        &mut self,
        key: &[u8; 32],
        networks: usize,
        pages: &[(usize, Vec<u8>)],
    ) -> io::Result<()> {
        let file = match &mut self.open {
            Some(file) => file,
            none => none.insert(begin(&self.path, key, networks)?),
        };
        for (page, bytes) in pages {
            file.seek(SeekFrom::Start((HEADER + page * HEADER) as u64))?;
            file.write_all(bytes)?;
        }
        file.sync_data()
    }
}

/// A file of its full size in which nothing is counted yet. It gets its name when it is whole.
fn begin(path: &PathBuf, key: &[u8; 32], networks: usize) -> io::Result<fs::File> {
    let fresh = path.with_extension("new");
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&fresh)?;
    let mut header = vec![0; HEADER];
    header[..KEY_AT].copy_from_slice(MAGIC);
    header[KEY_AT..NETWORKS_AT].copy_from_slice(key);
    header[NETWORKS_AT..NETWORKS_AT + 8].copy_from_slice(&(networks as u64).to_le_bytes());
    file.write_all(&header)?;
    // Places for latecomers are one page more.
    file.set_len((HEADER + networks * 16 + HEADER) as u64)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    Ok(file)
}

fn understand(bytes: &[u8]) -> Option<Kept> {
    let rest = bytes.get(HEADER..)?;
    if &bytes[..KEY_AT] != MAGIC {
        return None;
    }
    let key = bytes[KEY_AT..NETWORKS_AT].try_into().ok()?;
    let networks = u64::from_le_bytes(bytes[NETWORKS_AT..NETWORKS_AT + 8].try_into().ok()?);
    // Whatever the header says, the table is no larger than the file.
    let networks = usize::try_from(networks).ok().filter(|networks| *networks <= rest.len() / 16)?;
    Some(Kept { key, table: Table::of_bytes(networks, rest)? })
}
