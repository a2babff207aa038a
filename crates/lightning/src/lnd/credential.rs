//! The macaroon, as lnd wants it: hexadecimal digits in each call's metadata.
//!
//! One that is in a file is read again whenever the connection is made anew and whenever lnd refuses it, so that a new
//! one counts without a restart. It is marked as sensitive: nothing that prints a request shows it.

use std::{fmt, path::PathBuf};

use parking_lot::RwLock;
use tonic::metadata::{Ascii, MetadataValue};
use zeroize::Zeroizing;

use crate::phoenixd::Secret;

/// The largest file that is taken for a macaroon. lnd's own have some 300 bytes.
const FILE_MAX: usize = 16 << 10;

/// Where the macaroon is.
#[derive(Clone, Debug)]
pub enum Credential {
    /// Here, as hexadecimal digits.
    Text(Secret),
    /// In this file, as lnd writes it or as hexadecimal digits.
    File(PathBuf),
}

/// Why there is no macaroon to send.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CredentialError {
    #[error("can't read the macaroon in `{path}`: {why}")]
    Unreadable { path: String, why: String },
    #[error("{place} holds no macaroon: neither lnd's binary form nor its hexadecimal digits")]
    Malformed { place: String },
}

/// The macaroon that is sent at present.
pub(crate) struct Macaroon {
    source: Credential,
    current: RwLock<Result<MetadataValue<Ascii>, CredentialError>>,
}

impl fmt::Debug for Macaroon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Macaroon").field(&self.source).finish()
    }
}

impl Macaroon {
    pub(crate) fn new(source: Credential) -> Self {
        let current = RwLock::new(read(&source));
        Self { source, current }
    }

    /// Reads it again. Whether it is another one than before.
    pub(crate) fn reload(&self) -> bool {
        let fresh = read(&self.source);
        let mut current = self.current.write();
        let changed = *current != fresh;
        *current = fresh;
        changed
    }

    /// What to send.
    pub(crate) fn value(&self) -> Result<MetadataValue<Ascii>, CredentialError> {
        self.current.read().clone()
    }
}

fn read(source: &Credential) -> Result<MetadataValue<Ascii>, CredentialError> {
    match source {
        Credential::Text(text) => value(text.expose().as_bytes())
            .ok_or_else(|| CredentialError::Malformed { place: "`macaroon`".into() }),
        Credential::File(path) => {
            let place = path.display().to_string();
            let bytes = std::fs::read(path).map(Zeroizing::new).map_err(|error| {
                CredentialError::Unreadable { path: place.clone(), why: error.to_string() }
            })?;
            value(&bytes).ok_or_else(|| CredentialError::Malformed { place: format!("`{place}`") })
        }
    }
}

/// A macaroon's binary form begins with its version, 2, which is no hexadecimal digit.
fn value(bytes: &[u8]) -> Option<MetadataValue<Ascii>> {
    let digits = Zeroizing::new(match bytes {
        [] => return None,
        bytes if bytes.len() > FILE_MAX => return None,
        [2, ..] => hex::encode(bytes),
        text => std::str::from_utf8(text).ok()?.trim().to_ascii_lowercase(),
    });
    let is_hex = digits.starts_with("02") && hex::decode(digits.as_bytes()).map(Zeroizing::new).is_ok();
    let mut value = is_hex.then(|| digits.parse::<MetadataValue<Ascii>>().ok()).flatten()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_file(content: &[u8]) -> Result<String, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), content).unwrap();
        let macaroon = Macaroon::new(Credential::File(file.path().into()));
        let place = file.path().display().to_string();
        match macaroon.value() {
            Ok(value) => Ok(value.to_str().unwrap().to_owned()),
            Err(error) => Err(error.to_string().replace(&place, "FILE")),
        }
    }

    #[test]
    fn a_macaroon_is_read_in_lnds_form_and_as_digits() {
        for content in [&[2, 1, 0xAB, 0xCD][..], b"0201ABcd", b"0201abcd\n"] {
            assert_eq!(of_file(content).as_deref(), Ok("0201abcd"));
        }
    }

    #[test]
    fn what_is_no_macaroon_is_named_and_not_repeated() {
        for content in [&b""[..], b"password", b"abcd", b"0201abc", &[2; FILE_MAX + 1]] {
            assert_eq!(
                of_file(content).unwrap_err(),
                "`FILE` holds no macaroon: neither lnd's binary form nor its hexadecimal digits"
            );
        }
        let text = Macaroon::new(Credential::Text(Secret::new("hunter2")));
        assert!(!format!("{text:?} {:?} {}", text.value(), text.value().unwrap_err()).contains("hunter2"));
    }

    #[test]
    fn a_macaroon_that_appears_or_changes_is_found_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("invoice.macaroon");
        let macaroon = Macaroon::new(Credential::File(path.clone()));
        assert!(matches!(macaroon.value(), Err(CredentialError::Unreadable { .. })));
        assert!(!macaroon.reload());
        std::fs::write(&path, "0201ab").unwrap();
        assert!(macaroon.reload());
        assert_eq!(macaroon.value().unwrap().to_str().unwrap(), "0201ab");
        std::fs::write(&path, "0201cd").unwrap();
        assert!(macaroon.reload());
        assert!(!macaroon.reload());
        assert!(!format!("{macaroon:?} {:?}", macaroon.value()).contains("0201cd"));
    }
}
