//! The mint secrets: which one signs new tokens, which ones still open old ones.
//!
//! A secret is 32 bytes in a file of its own or in the environment, never in the database, which knows fingerprints
//! only. Three at most: each one more costs every hostile request another signature check. To rotate, put a new secret
//! first and keep the old one behind it until its tokens have run out; one that leaked is kept as
//! [`KeyState::SettledOnly`], which honours what had been paid before.

use farebox_protocol::{Fingerprint, Label, LabelKey, MintSecret, Msat, Network, Timestamp};

mod file;

pub(crate) use file::load_or_create_bytes;
pub use file::{Secret, SecretFileError, from_text, load_or_create};

/// How many secrets can be live at once.
pub const SECRETS_MAX: usize = 3;

/// The mint secrets, newest first.
#[derive(Clone, Debug)]
pub struct Keyring {
    entries: Vec<Entry>,
}

/// One mint secret and what it is still good for.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The secret.
    pub secret: MintSecret,
    /// What it is good for.
    pub state: KeyState,
}

/// What a mint secret is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// Its tokens are ours.
    Live,
    /// It leaked: its tokens hold only where the books know a payment from before.
    SettledOnly {
        /// When it may have leaked.
        since: Timestamp,
    },
}

/// The keys that sign what invoices say of themselves, and recognise it.
pub(crate) struct LabelKeys {
    /// Newest first, like the secrets.
    keys: Vec<LabelKey>,
}

/// Why some secrets make no keyring.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyringError {
    /// There must be one to sign with.
    #[error("no mint secret is given; one is needed to sign tokens")]
    Empty,
    /// Too many.
    #[error("{0} mint secrets are given, {SECRETS_MAX} can be live; drop those whose tokens have run out")]
    TooMany(usize),
    /// The same secret twice.
    #[error("the mint secret `{0}` is given twice; drop one")]
    Repeated(Fingerprint),
    /// The newest signs, and what has leaked must not sign.
    #[error(
        "the first mint secret, `{0}`, is settled-only; put a new one before it, to sign new tokens with"
    )]
    FirstIsWithdrawn(Fingerprint),
}

impl Keyring {
    /// A keyring of these secrets, newest first: the first one signs new tokens.
    pub fn new(entries: Vec<Entry>) -> Result<Self, KeyringError> {
        let first = entries.first().ok_or(KeyringError::Empty)?;
        if entries.len() > SECRETS_MAX {
            return Err(KeyringError::TooMany(entries.len()));
        }
        if first.state != KeyState::Live {
            return Err(KeyringError::FirstIsWithdrawn(first.secret.fingerprint()));
        }
        let mut seen = Vec::new();
        for entry in &entries {
            let fingerprint = entry.secret.fingerprint();
            if seen.contains(&fingerprint) {
                return Err(KeyringError::Repeated(fingerprint));
            }
            seen.push(fingerprint);
        }
        Ok(Self { entries })
    }

    /// A keyring of one live secret.
    pub fn single(secret: MintSecret) -> Self {
        Self { entries: vec![Entry { secret, state: KeyState::Live }] }
    }

    /// The secret that signs new tokens.
    pub fn mint(&self) -> &MintSecret {
        &self.entries.first().expect("`new` and `single` put one there").secret
    }

    /// All secrets, newest first.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// What the store may know of them, newest first.
    pub fn fingerprints(&self) -> Vec<Fingerprint> {
        self.entries.iter().map(|entry| entry.secret.fingerprint()).collect()
    }
}

impl LabelKeys {
    /// Those of all the secrets: whatever a secret may have come to since, what was sold under it was sold.
    pub(crate) fn of(keyring: &Keyring, network: Network) -> Self {
        Self { keys: keyring.entries.iter().map(|entry| entry.secret.label_key(network)).collect() }
    }

    /// A new invoice's description.
    pub(crate) fn write(&self, label: &Label, words: &str, nonce: [u8; 8]) -> String {
        label.write(words, nonce, self.keys.first().expect("a keyring has a secret"))
    }

    /// What the invoice says was sold by which `paid` arrived, if it is one of ours. A node never settles an invoice for
    /// less than it asks, so a label on less money is a copy.
    pub(crate) fn read(&self, description: &str, paid: Msat) -> Option<Label> {
        let label = Label::read(description, &self.keys)?;
        ((Msat::new(1)..=Msat::MAX).contains(&label.price) && paid >= label.price).then_some(label)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(byte: u8, state: KeyState) -> Entry {
        Entry { secret: MintSecret::from_bytes([byte; 32]), state }
    }

    #[track_caller]
    fn refused(entries: Vec<Entry>) -> String {
        Keyring::new(entries).unwrap_err().to_string()
    }

    #[test]
    fn the_newest_secret_signs() {
        let old = KeyState::SettledOnly { since: Timestamp::from_secs(1) };
        let ring = Keyring::new(vec![entry(2, KeyState::Live), entry(1, old)]).unwrap();
        assert_eq!(ring.mint().fingerprint(), MintSecret::from_bytes([2; 32]).fingerprint());
        assert_eq!(ring.entries().len(), 2);
    }

    #[test]
    fn a_keyring_that_would_surprise_is_refused() {
        let live = KeyState::Live;
        assert_eq!(refused(vec![]), "no mint secret is given; one is needed to sign tokens");
        assert_eq!(
            refused((1..=4).map(|byte| entry(byte, live)).collect()),
            "4 mint secrets are given, 3 can be live; drop those whose tokens have run out"
        );
        assert!(refused(vec![entry(1, live), entry(1, live)]).ends_with("is given twice; drop one"));
        let withdrawn = KeyState::SettledOnly { since: Timestamp::from_secs(1) };
        assert!(refused(vec![entry(1, withdrawn)]).contains("is settled-only"));
    }

    #[test]
    fn a_keyring_shows_no_secret() {
        let ring = Keyring::single(MintSecret::from_bytes([0xab; 32]));
        assert!(!format!("{ring:?}").contains("abab"));
    }
}
