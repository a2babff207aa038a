//! The node's directory: who may use it, and the seed file.
//!
//! Two processes on one directory would send two versions of the same channel state, which costs the channel's money, and
//! `ldk-node` doesn't prevent it. Hence the lock; the operating system releases it when the process ends, however it ends.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::config::Seed;

/// `ldk-node`'s database: where it is, channels may be.
const CHANNELS: &str = "ldk_node_data.sqlite";

/// Why a node's directory or seed can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirectoryError {
    /// The file system says no.
    #[error("can't use `{}`: {error}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Another process runs the node in this directory.
    #[error("`{}` is in use by another process; a node's directory belongs to one process at a time", .0.display())]
    InUse(PathBuf),
    /// The seed file doesn't hold a seed.
    #[error("`{}` holds no seed; expected 128 hexadecimal digits or 64 raw bytes", .0.display())]
    NotASeed(PathBuf),
    /// Everybody on the machine could read the seed.
    #[error("`{}` can be read by every user; run `chmod 600` on it", .0.display())]
    SeedExposed(PathBuf),
    /// There are channels but not the seed that owns them.
    #[error("`{}` is missing, but there is a node in `{}`; put its seed back instead of starting a new one", seed.display(), dir.display())]
    SeedLost {
        /// Where the seed should be.
        seed: PathBuf,
        /// The directory with the node's state.
        dir: PathBuf,
    },
}

/// The right to use a directory. Released on drop.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "held for its lock")] File);

/// Makes the directory if needed, for its owner only, and claims it.
pub(super) fn claim(dir: &Path) -> Result<Lock, DirectoryError> {
    let failed = |error| DirectoryError::Io { path: dir.to_owned(), error };
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir).map_err(failed)?;
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).open(dir.join("lock")).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(Lock(file)),
        Err(TryLockError::WouldBlock) => Err(DirectoryError::InUse(dir.to_owned())),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// The seed's bytes. Makes the file on the first start, but never where a node has been already.
pub(super) fn seed(seed: Seed, dir: Option<&Path>) -> Result<Zeroizing<[u8; 64]>, DirectoryError> {
    let path = match seed {
        Seed::Bytes(bytes) => return Ok(bytes),
        Seed::File(path) => path,
    };
    match fs::read(&path).map(Zeroizing::new) {
        Ok(bytes) => {
            refuse_exposed(&path)?;
            parse(&bytes).ok_or(DirectoryError::NotASeed(path))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(dir) = dir.filter(|dir| dir.join(CHANNELS).exists()) {
                return Err(DirectoryError::SeedLost { seed: path, dir: dir.to_owned() });
            }
            create(&path).map_err(|error| DirectoryError::Io { path, error })
        }
        Err(error) => Err(DirectoryError::Io { path, error }),
    }
}

fn parse(bytes: &[u8]) -> Option<Zeroizing<[u8; 64]>> {
    let mut seed = Zeroizing::new([0; 64]);
    if bytes.len() == 64 {
        seed.copy_from_slice(bytes);
    } else {
        hex::decode_to_slice(bytes.trim_ascii(), &mut *seed).ok()?;
    }
    Some(seed)
}

fn create(path: &Path) -> io::Result<Zeroizing<[u8; 64]>> {
    let Seed::Bytes(seed) = Seed::random() else { unreachable!("a random seed is made of bytes") };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    // Written beside its place first: a crash must not leave half a seed that a later start takes for damage.
    let draft = path.with_extension("new");
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&draft)?;
    let digits = Zeroizing::new(hex::encode(*seed));
    file.write_all(digits.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    Ok(seed)
}

#[cfg(unix)]
fn refuse_exposed(path: &Path) -> Result<(), DirectoryError> {
    use std::os::unix::fs::PermissionsExt as _;
    let metadata = fs::metadata(path).map_err(|error| DirectoryError::Io { path: path.to_owned(), error })?;
    // Group access is left to the operator: secrets mounted into containers often come that way.
    if metadata.permissions().mode() & 0o007 == 0 {
        Ok(())
    } else {
        Err(DirectoryError::SeedExposed(path.to_owned()))
    }
}

#[cfg(not(unix))]
fn refuse_exposed(_: &Path) -> Result<(), DirectoryError> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_user_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = claim(dir.path()).unwrap();
        assert!(matches!(claim(dir.path()), Err(DirectoryError::InUse(_))));
        drop(first);
        claim(dir.path()).unwrap();
    }

    #[test]
    fn a_seed_is_made_once_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seed");
        let made = seed(Seed::File(path.clone()), Some(dir.path())).unwrap();
        assert_eq!(seed(Seed::File(path), Some(dir.path())).unwrap(), made);
    }

    #[test]
    fn the_raw_seed_file_of_ldk_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys_seed");
        write_private(&path, &[7; 64]);
        assert_eq!(*seed(Seed::File(path), None).unwrap(), [7; 64]);
    }

    #[test]
    fn a_damaged_seed_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seed");
        for bytes in [&b""[..], &[7; 63], "zz".repeat(64).as_bytes(), "ab".repeat(63).as_bytes()] {
            write_private(&path, bytes);
            assert!(matches!(seed(Seed::File(path.clone()), None), Err(DirectoryError::NotASeed(_))));
        }
    }

    #[test]
    fn a_lost_seed_is_never_replaced_where_a_node_has_been() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(CHANNELS), b"").unwrap();
        let path = dir.path().join("seed");
        let refused = seed(Seed::File(path.clone()), Some(dir.path()));
        assert!(matches!(refused, Err(DirectoryError::SeedLost { .. })));
        assert!(!path.exists());
    }

    #[cfg(unix)]
    #[test]
    fn a_seed_that_everybody_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seed");
        seed(Seed::File(path.clone()), None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(seed(Seed::File(path), None), Err(DirectoryError::SeedExposed(_))));
    }

    fn write_private(path: &Path, bytes: &[u8]) {
        fs::write(path, bytes).unwrap();
        #[cfg(unix)]
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    }
}
