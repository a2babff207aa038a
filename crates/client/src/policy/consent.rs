//! Consent given apart from the request: what a person agrees to, and the signature by which a purchase knows that they have.
//!
//! The secret is the person's. A key pair is derived from it, slowly; the policy holds the public half and the journal the
//! signed consents. So whoever can write the journal, as any process that buys can, still can't agree in the person's place:
//! that takes the secret, or the policy, which only its owner can write.
//!
//! Turned down: a hash of the secret in the policy and a flag in the journal, which every buyer could set by itself.

use std::{fmt, num::NonZeroU32, str::FromStr};

use farebox_protocol::{Msat, Timestamp};
use ring::{
    pbkdf2::{self, PBKDF2_HMAC_SHA256},
    rand::{SecureRandom as _, SystemRandom},
    signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey},
};
use zeroize::Zeroizing;

/// How much work each guess at a secret is: some tenths of a second of one core.
const ROUNDS: NonZeroU32 = NonZeroU32::new(600_000).expect("more than none");

/// The shortest secret that is taken, in bytes.
pub const SECRET_LEN_MIN: usize = 8;

/// By what a policy knows its owner's consents: `v1:ROUNDS:SALT:KEY`, the last two in hexadecimal digits. Not secret, but
/// whoever has it can try secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsentKey {
    rounds: NonZeroU32,
    salt: [u8; 16],
    public: [u8; 32],
}

/// What a person agrees to: one payment, for this, up to this price and fee, until then.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Consent {
    /// The name of the question it answers.
    pub id: String,
    /// Who is paid.
    pub origin: String,
    /// The method of the request.
    pub method: String,
    /// Its path, without the query.
    pub path: String,
    /// On whose behalf.
    pub label: Option<String>,
    /// The highest price, without the fee.
    pub price_max: Msat,
    /// The highest fee on top of it.
    pub fee_max: Msat,
    /// The first second at which it holds no longer.
    pub until: Timestamp,
}

/// Why a secret is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// It could be guessed.
    #[error("the secret is shorter than {SECRET_LEN_MIN} bytes; take a longer one")]
    TooShort,
    /// It is not the one that the policy was set up with.
    #[error("this is not the secret that the policy was set up with")]
    Wrong,
    /// There is no randomness to be had.
    #[error("the system gives no random bytes")]
    NoRandomness,
}

/// A text that is no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no key of consents; have `farebox policy secret` write one")]
pub struct NotAKey;

impl ConsentKey {
    /// The key of a new secret. Takes a moment, on purpose.
    ///
    /// # Errors
    ///
    /// When the secret is too short, and when the system gives no random bytes.
    pub fn new(secret: &str) -> Result<Self, SecretError> {
        Self::with_rounds(secret, ROUNDS)
    }

    /// The same with so many rounds of work behind each guess. Few are for secrets that nobody can guess, and for tests.
    ///
    /// # Errors
    ///
    /// As [`Self::new`].
    pub fn with_rounds(secret: &str, rounds: NonZeroU32) -> Result<Self, SecretError> {
        if secret.len() < SECRET_LEN_MIN {
            return Err(SecretError::TooShort);
        }
        let mut salt = [0; 16];
        SystemRandom::new().fill(&mut salt).map_err(|_| SecretError::NoRandomness)?;
        let mut key = Self { rounds, salt, public: [0; 32] };
        let pair = key.pair(secret);
        key.public.copy_from_slice(pair.public_key().as_ref());
        Ok(key)
    }

    /// Signs a consent. Takes a moment, on purpose.
    ///
    /// # Errors
    ///
    /// When the secret is not the key's.
    pub fn sign(&self, secret: &str, consent: &Consent) -> Result<Vec<u8>, SecretError> {
        let pair = self.pair(secret);
        if pair.public_key().as_ref() != self.public {
            return Err(SecretError::Wrong);
        }
        Ok(pair.sign(&consent.text()).as_ref().to_vec())
    }

    /// Whether this consent was signed with the secret of this key.
    pub fn holds(&self, consent: &Consent, signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.public).verify(&consent.text(), signature).is_ok()
    }

    fn pair(&self, secret: &str) -> Ed25519KeyPair {
        let mut seed = Zeroizing::new([0; 32]);
        pbkdf2::derive(PBKDF2_HMAC_SHA256, self.rounds, &self.salt, secret.as_bytes(), &mut *seed);
        Ed25519KeyPair::from_seed_unchecked(&*seed).expect("a seed is 32 bytes, whichever")
    }
}

impl Consent {
    /// What is signed. Each part has its length before it, so that none can be read as two.
    fn text(&self) -> Vec<u8> {
        let Self { id, origin, method, path, label, price_max, fee_max, until } = self;
        let mut text = b"farebox consent v1\n".to_vec();
        let label = label.as_ref().map_or_else(|| "-".to_owned(), |label| format!("+{label}"));
        let (price, fee) = (price_max.get().to_string(), fee_max.get().to_string());
        let until = until.secs().to_string();
        for part in [id, origin, method, path, &label, &price, &fee, &until] {
            text.extend_from_slice(format!("{}:{part}\n", part.len()).as_bytes());
        }
        text
    }
}

impl FromStr for ConsentKey {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<Self, NotAKey> {
        let parts: Vec<&str> = text.split(':').collect();
        let &["v1", rounds, salt, public] = &*parts else { return Err(NotAKey) };
        let rounds = rounds.parse().map_err(|_| NotAKey)?;
        let mut key = Self { rounds, salt: [0; 16], public: [0; 32] };
        hex::decode_to_slice(salt, &mut key.salt).map_err(|_| NotAKey)?;
        hex::decode_to_slice(public, &mut key.public).map_err(|_| NotAKey)?;
        Ok(key)
    }
}

impl fmt::Display for ConsentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v1:{}:{}:{}", self.rounds, hex::encode(self.salt), hex::encode(self.public))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "correct horse";

    fn key() -> ConsentKey {
        ConsentKey::with_rounds(SECRET, NonZeroU32::MIN).unwrap()
    }

    fn consent() -> Consent {
        Consent {
            id: "k3v9".to_owned(),
            origin: "https://api.example.com".to_owned(),
            method: "GET".to_owned(),
            path: "/weather".to_owned(),
            label: None,
            price_max: Msat::new(10_000),
            fee_max: Msat::new(1_000),
            until: Timestamp::from_secs(1_800_000_000),
        }
    }

    #[test]
    fn only_what_was_signed_holds() {
        let key: ConsentKey = key().to_string().parse().unwrap();
        let signature = key.sign(SECRET, &consent()).unwrap();
        assert!(key.holds(&consent(), &signature));
        type Change = fn(&mut Consent);
        let changes: [Change; 9] = [
            |consent| consent.id.push('x'),
            |consent| consent.origin = "https://other.example.com".to_owned(),
            |consent| consent.method = "POST".to_owned(),
            |consent| consent.path.push('/'),
            |consent| consent.label = Some(String::new()),
            |consent| consent.label = Some("-".to_owned()),
            |consent| consent.price_max = Msat::new(10_001),
            |consent| consent.fee_max = Msat::new(1_001),
            |consent| consent.until = Timestamp::from_secs(1_800_000_001),
        ];
        for change in changes {
            let mut other = consent();
            change(&mut other);
            assert!(!key.holds(&other, &signature), "{other:?}");
        }
        assert!(!key.holds(&consent(), &[0; 64]) && !key.holds(&consent(), &[]));
        assert_eq!(key.sign("another secret", &consent()), Err(SecretError::Wrong));
        assert!(!self::key().holds(&consent(), &signature), "another salt, another key");
    }

    #[test]
    fn a_secret_that_could_be_guessed_is_refused() {
        assert_eq!(ConsentKey::new("1234567"), Err(SecretError::TooShort));
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for text in [
            "",
            "v1:1:00:00",
            &format!("v1:0:{}:{}", "0".repeat(32), "0".repeat(64)),
            &format!("v1:1:{}:{}", "0".repeat(32), "0".repeat(63)),
            &format!("v2:1:{}:{}", "0".repeat(32), "0".repeat(64)),
        ] {
            assert_eq!(text.parse::<ConsentKey>(), Err(NotAKey), "{text}");
        }
    }
}
