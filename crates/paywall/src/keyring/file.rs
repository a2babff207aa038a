//! The file of a secret, be it the mint's or the one that signs receipts: 64 hexadecimal digits and a newline, readable by its
//! owner alone.
//!
//! It is made once, when it is first needed, whole or not at all; afterwards nothing here writes it. Whoever reads it can mint
//! tokens, or sign in the seller's name, so a file that others can read is not used.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use farebox_protocol::MintSecret;
use zeroize::Zeroizing;

/// What a file keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secret {
    /// What signs tokens.
    Mint,
    /// What signs receipts.
    ReceiptKey,
}

/// Why there is no such secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecretFileError {
    /// The file can't be read or made.
    #[error("cannot {what} the {secret} `{}`", path.display())]
    Io {
        /// What it keeps.
        secret: Secret,
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file holds something else.
    #[error("`{}` does not hold a {secret}: 64 hexadecimal digits and a newline", path.display())]
    NotASecret {
        /// What it should keep.
        secret: Secret,
        /// Which file.
        path: PathBuf,
    },
    /// Others can read the file.
    #[error(
        "`{}` can be read by other users (mode {mode:o}), and whoever reads it can {}; run `chmod 600` on it, \
         and make a new secret if someone may have",
        path.display(),
        secret.use_of()
    )]
    Exposed {
        /// What it keeps.
        secret: Secret,
        /// Which file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The value in the environment is something else.
    #[error("the mint secret in the environment is not 64 hexadecimal digits")]
    NotASecretText,
    /// The system gives no randomness.
    #[error("the system gives no random bytes for a secret: {0}")]
    NoRandomness(String),
}

impl Secret {
    /// What can be done with it.
    const fn use_of(self) -> &'static str {
        match self {
            Self::Mint => "mint tokens",
            Self::ReceiptKey => "sign receipts in your name",
        }
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mint => "mint secret",
            Self::ReceiptKey => "receipt key",
        })
    }
}

/// Reads the mint secret in this file, or makes a new one there when the file doesn't exist.
///
/// Blocks on the disk; call it at start-up. Two processes that start at once end with the same secret.
pub fn load_or_create(path: &Path) -> Result<MintSecret, SecretFileError> {
    load_or_create_bytes(path, Secret::Mint).map(|bytes| MintSecret::from_bytes(*bytes))
}

/// The same for any secret.
pub(crate) fn load_or_create_bytes(
    path: &Path,
    secret: Secret,
) -> Result<Zeroizing<[u8; 32]>, SecretFileError> {
    match load(path, secret) {
        Err(SecretFileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            create(path, secret)?;
            load(path, secret)
        }
        loaded => loaded,
    }
}

/// Reads a mint secret given as text, as from the environment.
pub fn from_text(text: &str) -> Result<MintSecret, SecretFileError> {
    MintSecret::from_hex(text.trim_ascii()).map_err(|_| SecretFileError::NotASecretText)
}

fn load(path: &Path, secret: Secret) -> Result<Zeroizing<[u8; 32]>, SecretFileError> {
    let failed = |source| SecretFileError::Io { secret, what: "read", path: path.to_owned(), source };
    let not_one = || SecretFileError::NotASecret { secret, path: path.to_owned() };
    let file = File::open(path).map_err(failed)?;
    check_private(path, &file, secret)?;
    // One byte more than a secret can take, so that a longer file is noticed.
    let mut text = Zeroizing::new(String::with_capacity(128));
    match file.take(67).read_to_string(&mut text) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(not_one()),
        read => read.map_err(failed)?,
    };
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    let mut bytes = Zeroizing::new([0; 32]);
    hex::decode_to_slice(text, &mut *bytes).map_err(|_| not_one())?;
    Ok(bytes)
}

/// Makes the file under another name and links it into place: it is there whole, or not at all, and never replaces one.
fn create(path: &Path, secret: Secret) -> Result<(), SecretFileError> {
    let failed = |source| SecretFileError::Io { secret, what: "make", path: path.to_owned(), source };
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *bytes).map_err(|error| SecretFileError::NoRandomness(error.to_string()))?;
    let digits = Zeroizing::new(hex::encode(*bytes));

    // A random name, so that nobody takes another's draft for their own; processes in containers share process ids.
    let mut tag = [0; 8];
    getrandom::fill(&mut tag).map_err(|error| SecretFileError::NoRandomness(error.to_string()))?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{:016x}.new", u64::from_le_bytes(tag)));
    let draft = path.with_file_name(name);
    let written = write_private(&draft, digits.as_bytes()).and_then(|()| fs::hard_link(&draft, path));
    // Whatever became of it, a second copy of a secret must not lie around.
    let removed = fs::remove_file(&draft);
    match written {
        // Another process was quicker; its secret is the one.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        written => written.and(removed).map_err(failed)?,
    }
    sync_directory(path).map_err(failed)
}

fn write_private(path: &Path, secret: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(secret)?;
    file.write_all(b"\n")?;
    file.sync_all()
}

/// The name must survive a power cut as well as the bytes do.
fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

#[cfg(unix)]
fn check_private(path: &Path, file: &File, secret: Secret) -> Result<(), SecretFileError> {
    use std::os::unix::fs::PermissionsExt;
    let meta = file.metadata().map_err(|source| SecretFileError::Io {
        secret,
        what: "read",
        path: path.to_owned(),
        source,
    })?;
    let mode = meta.permissions().mode() & 0o7777;
    if mode & 0o077 == 0 {
        Ok(())
    } else {
        Err(SecretFileError::Exposed { secret, path: path.to_owned(), mode })
    }
}

#[cfg(not(unix))]
fn check_private(_: &Path, _: &File, _: Secret) -> Result<(), SecretFileError> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_first_start_makes_a_secret_that_later_ones_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mint-secret");
        let made = load_or_create(&path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.len(), 65);
        assert!(text.ends_with('\n'));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(load_or_create(&path).unwrap().fingerprint(), made.fingerprint());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn two_first_starts_agree_on_one_secret() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mint-secret");
        load_or_create(&path).unwrap();
        let first = fs::read(&path).unwrap();
        create(&path, Secret::Mint).unwrap();
        assert_eq!(fs::read(&path).unwrap(), first, "never replaced");
    }

    #[test]
    fn first_starts_at_once_agree_even_where_all_have_the_same_process_id() {
        // As in containers that share a volume; threads have one process id, too.
        for _ in 0..20 {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("mint-secret");
            let start = std::sync::Barrier::new(4);
            let made: Vec<_> = std::thread::scope(|scope| {
                let starts = (0..4).map(|_| {
                    scope.spawn(|| {
                        start.wait();
                        load_or_create(&path).map(|secret| secret.fingerprint())
                    })
                });
                let starts: Vec<_> = starts.collect();
                starts.into_iter().map(|one| one.join().unwrap()).collect()
            });
            let first = made[0].as_ref().unwrap();
            assert!(made.iter().all(|one| one.as_ref().unwrap() == first), "{made:?}");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no draft is left");
        }
    }

    #[test]
    fn a_secret_that_others_can_read_stops_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mint-secret");
        load_or_create(&path).unwrap();
        for mode in [0o640, 0o604, 0o660, 0o644] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let refused = load_or_create(&path).unwrap_err().to_string();
            assert!(refused.contains(&format!("can be read by other users (mode {mode:o})")), "{refused}");
        }
    }

    #[test]
    fn a_file_that_holds_something_else_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in [
            ("empty", &b""[..]),
            ("short", b"abcd\n"),
            ("long", &[b'a'; 66]),
            ("huge", &[b'a'; 5_000]),
            ("two lines", b"abababababababababababababababababababababababababababababababab\n\n"),
            ("not hex", b"zzabababababababababababababababababababababababababababababababab\n"),
            ("binary", &[0xff; 32]),
        ] {
            let path = dir.path().join(name);
            write_private(&path, bytes.strip_suffix(b"\n").unwrap_or(bytes)).unwrap();
            if name == "empty" {
                fs::write(&path, b"").unwrap();
            }
            let before = fs::read(&path).unwrap();
            let refused = load_or_create(&path).unwrap_err().to_string();
            assert!(refused.contains("does not hold a mint secret"), "{name}: {refused}");
            assert_eq!(fs::read(&path).unwrap(), before);
        }
    }

    #[test]
    fn a_directory_that_does_not_exist_is_named() {
        let refused =
            load_or_create(Path::new("/nonexistent-directory/mint-secret")).unwrap_err().to_string();
        assert_eq!(refused, "cannot make the mint secret `/nonexistent-directory/mint-secret`");
    }

    #[test]
    fn a_secret_in_the_environment_is_read_without_repeating_a_bad_one() {
        assert!(from_text(&format!(" {}\n", "ab".repeat(32))).is_ok());
        let refused = from_text("hunter2").unwrap_err().to_string();
        assert!(!refused.contains("hunter2"));
    }
}
