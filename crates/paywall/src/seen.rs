//! What was seen lately, in fixed memory and without a lock: sets that may forget, but never claim to have seen what
//! they haven't.
//!
//! Forgetting costs one more write of a row that is there already; a false "seen" would cost the row. So a place holds
//! 64 bits of a hash that nobody can choose freely, and a newcomer simply takes an old one's place.

use std::sync::atomic::{AtomicU64, Ordering};

use farebox_protocol::PaymentHash;

/// How many neighbouring places belong to one hash.
const WAYS: usize = 4;

/// A set of payment hashes that forgets.
pub(crate) struct Seen {
    tags: Box<[AtomicU64]>,
}

impl Seen {
    /// A set of this many places, 8 bytes each.
    pub(crate) fn new(places: usize) -> Self {
        let places = places.next_multiple_of(WAYS).max(WAYS);
        Self { tags: (0..places).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Remembers a hash. Whether it is new, or forgotten.
    pub(crate) fn insert(&self, hash: &PaymentHash) -> bool {
        if self.contains(hash) {
            return false;
        }
        let (set, tag) = self.find(hash);
        // An empty place if there is one, else one picked by the tag. Two at once may both count as new: harmless.
        let empty = set
            .iter()
            .any(|place| place.compare_exchange(0, tag, Ordering::Relaxed, Ordering::Relaxed).is_ok());
        if !empty {
            set[usize::from(tag.to_le_bytes()[7]) % WAYS].store(tag, Ordering::Relaxed);
        }
        true
    }

    /// Whether a hash is remembered.
    pub(crate) fn contains(&self, hash: &PaymentHash) -> bool {
        let (set, tag) = self.find(hash);
        set.iter().any(|place| place.load(Ordering::Relaxed) == tag)
    }

    /// Forgets a hash, so that it counts as new again.
    pub(crate) fn forget(&self, hash: &PaymentHash) {
        let (set, tag) = self.find(hash);
        for place in set {
            // Failing means that somebody else's tag is there.
            let _ = place.compare_exchange(tag, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    fn find(&self, hash: &PaymentHash) -> (&[AtomicU64], u64) {
        let word = |at: usize| {
            let bytes = hash.as_bytes()[at..at + 8].try_into().expect("eight bytes of thirty-two");
            u64::from_le_bytes(bytes)
        };
        let sets = self.tags.len() / WAYS;
        let set = usize::try_from(word(8) % sets as u64).unwrap_or_default() * WAYS;
        // Zero means an empty place.
        (&self.tags[set..set + WAYS], word(0).max(1))
    }
}

#[cfg(test)]
mod tests {
    use farebox_protocol::Preimage;

    use super::*;

    fn hash(number: u32) -> PaymentHash {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&number.to_le_bytes());
        Preimage::from_bytes(bytes).payment_hash()
    }

    #[test]
    fn a_hash_is_new_once_and_again_when_forgotten() {
        let seen = Seen::new(64);
        assert!(seen.insert(&hash(1)));
        assert!(!seen.insert(&hash(1)));
        seen.forget(&hash(2));
        assert!(!seen.insert(&hash(1)));
        seen.forget(&hash(1));
        assert!(seen.insert(&hash(1)));
    }

    #[test]
    fn a_hash_never_seen_is_never_called_seen_however_full_the_set() {
        let seen = Seen::new(16);
        for number in 0..10_000 {
            assert!(!seen.contains(&hash(number)), "{number}");
            assert!(seen.insert(&hash(number)), "{number}");
            assert!(seen.contains(&hash(number)), "{number}");
        }
        assert_eq!(seen.tags.len(), 16);
    }

    #[test]
    fn most_of_what_fits_is_remembered() {
        let seen = Seen::new(4_096);
        let fresh = |from, to| (from..to).filter(|number| seen.insert(&hash(*number))).count();
        assert_eq!(fresh(0, 1_000), 1_000);
        assert!(fresh(0, 1_000) < 50, "few are forgotten while there is room");
    }
}
