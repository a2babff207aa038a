//! The state directory: what must survive a restart, and what each thing in it is called.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use farebox_paywall::keyring::{Entry, KeyState, Keyring, from_text, load_or_create};
use farebox_protocol::{MintSecret, Timestamp};

use crate::config::file::{MintSecretEntry, SecretFrom};

/// The books.
pub(crate) fn books(directory: &Path) -> PathBuf {
    directory.join("books.sqlite")
}

/// The key that signs receipts, made when the first one is, or at the start of a gateway that makes them for buyers.
pub(crate) fn receipt_key(directory: &Path) -> PathBuf {
    directory.join("receipt-key")
}

/// The journal of refunds.
pub(crate) fn refunds(directory: &Path) -> PathBuf {
    directory.join("refunds.sqlite")
}

/// The counts of freebies that outlive a restart.
pub(crate) fn freebies(directory: &Path) -> PathBuf {
    directory.join("freebies")
}

/// The mint secret that is made on the first start.
fn mint_secret(directory: &Path) -> PathBuf {
    directory.join("mint-secret")
}

/// Makes a directory for its owner only, unless it is there.
pub(crate) fn make_private(directory: &Path) -> anyhow::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    match builder.create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("cannot make the directory `{}`", directory.display()))
        }
        _ => Ok(()),
    }
}

/// The secrets that the configuration names, or the one in the state directory.
pub(crate) fn keyring(directory: &Path, entries: &[MintSecretEntry]) -> anyhow::Result<Keyring> {
    if entries.is_empty() {
        return Ok(Keyring::single(load_or_create(&mint_secret(directory))?));
    }
    let entry = |entry: &MintSecretEntry| {
        let since = entry.settled_only_since.map(Timestamp::from_secs);
        let state = since.map_or(KeyState::Live, |since| KeyState::SettledOnly { since });
        Ok(Entry { secret: secret(&entry.from)?, state })
    };
    let entries = entries.iter().map(entry).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(Keyring::new(entries)?)
}

fn secret(from: &SecretFrom) -> anyhow::Result<MintSecret> {
    match from {
        SecretFrom::File(path) => Ok(load_or_create(path)?),
        SecretFrom::Env(name) => {
            let text = std::env::var(name).map_err(|_| {
                anyhow::anyhow!("the environment variable `{name}`, meant to hold a mint secret, is not set")
            })?;
            from_text(&text).with_context(|| format!("the environment variable `{name}`"))
        }
    }
}
