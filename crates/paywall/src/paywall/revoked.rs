//! The tokens that are dead, in memory: asked with every request, changed now and then, and perhaps a million of them.
//!
//! Whoever asks takes no lock. Whoever adds replaces what it adds to, and that is one shelf of many, so that revoking one
//! token takes no longer where a million are revoked. What is kept are hashes already, of identifiers that this gateway made
//! at random: to hash them again would protect from nobody.

use std::{
    collections::HashSet,
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
};

use arc_swap::ArcSwap;
use farebox_protocol::IdentifierHash;
use parking_lot::Mutex;

use crate::{store::RevocationCursor, store::Revoked, trouble::Trouble};

/// One for each first byte.
const SHELVES: usize = 256;

/// See the module.
pub(super) struct Revocations {
    dead: ArcSwap<Dead>,
    /// Held while something is added, so that two who do so don't undo each other.
    cursor: Mutex<RevocationCursor>,
    /// Whether those of other processes are being read.
    pub(super) reading: Trouble,
}

#[derive(Clone)]
struct Dead {
    shelves: [Arc<Shelf>; SHELVES],
    count: usize,
}

type Shelf = HashSet<IdentifierHash, BuildHasherDefault<LastBytes>>;

/// The last bytes of what is a hash already; the first one says which shelf.
#[derive(Default)]
struct LastBytes(u64);

impl Revocations {
    pub(super) fn new(revoked: Revoked) -> Self {
        Self {
            dead: ArcSwap::from_pointee(Dead::new(&revoked.hashes)),
            cursor: Mutex::new(revoked.cursor),
            reading: Trouble::new("reading revocations"),
        }
    }

    /// Whether it is one of them.
    pub(super) fn contains(&self, hash: impl FnOnce() -> IdentifierHash) -> bool {
        let dead = self.dead.load();
        // Mostly there are none, and the identifier needn't be hashed.
        dead.count > 0 && dead.contains(&hash())
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.dead.load().count
    }

    /// How far they have been read.
    pub(super) fn cursor(&self) -> RevocationCursor {
        *self.cursor.lock()
    }

    /// Adds what has been read.
    pub(super) fn add(&self, revoked: Revoked) {
        let mut at = self.cursor.lock();
        *at = (*at).max(revoked.cursor);
        let known = self.dead.load();
        let mut next: Option<Dead> = None;
        for hash in revoked.hashes.into_iter().filter(|hash| !known.contains(hash)) {
            next.get_or_insert_with(|| Dead::clone(&known)).insert(hash);
        }
        if let Some(next) = next {
            self.dead.store(Arc::new(next));
        }
    }
}

impl Dead {
    /// With room for all from the beginning: growing would copy each of them several times.
    fn new(hashes: &[IdentifierHash]) -> Self {
        let mut counts = [0; SHELVES];
        hashes.iter().for_each(|hash| counts[shelf(hash)] += 1);
        let mut shelves =
            counts.map(|count| Shelf::with_capacity_and_hasher(count, BuildHasherDefault::new()));
        for hash in hashes {
            shelves[shelf(hash)].insert(*hash);
        }
        let count = shelves.iter().map(HashSet::len).sum();
        Self { shelves: shelves.map(Arc::new), count }
    }

    fn contains(&self, hash: &IdentifierHash) -> bool {
        self.shelves[shelf(hash)].contains(hash)
    }

    /// Copies the shelf, unless that has been done for another one that came with this.
    fn insert(&mut self, hash: IdentifierHash) {
        self.count += usize::from(Arc::make_mut(&mut self.shelves[shelf(&hash)]).insert(hash));
    }
}

fn shelf(hash: &IdentifierHash) -> usize {
    usize::from(hash.as_bytes()[0])
}

impl Hasher for LastBytes {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(last) = bytes.last_chunk() {
            self.0 = u64::from_le_bytes(*last);
        }
    }

    /// How many bytes there are, which is no news.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    fn hash(number: u64) -> IdentifierHash {
        IdentifierHash::from_bytes(Sha256::digest(number.to_le_bytes()).into())
    }

    fn revoked(numbers: std::ops::Range<u64>) -> Revoked {
        Revoked { cursor: RevocationCursor(numbers.end), hashes: numbers.map(hash).collect() }
    }

    #[test]
    fn what_was_added_is_dead_and_nothing_else_is() {
        let revocations = Revocations::new(revoked(0..2_000));
        revocations.add(revoked(1_500..2_500));
        // What was read before is read again after a failure.
        revocations.add(revoked(0..10));
        assert_eq!((revocations.count(), revocations.cursor()), (2_500, RevocationCursor(2_500)));
        for number in 0..5_000 {
            assert_eq!(revocations.contains(|| hash(number)), number < 2_500, "{number}");
        }
    }

    #[test]
    fn where_nothing_is_revoked_nothing_is_hashed() {
        let none = Revocations::new(Revoked::default());
        assert!(!none.contains(|| unreachable!("nobody asks")));
        none.add(revoked(1..2));
        assert!(none.contains(|| hash(1)));
    }

    #[test]
    fn those_that_begin_alike_are_told_apart() {
        let numbered = |first: u8, last: u8| {
            let mut bytes = [7; 32];
            (bytes[0], bytes[31]) = (first, last);
            IdentifierHash::from_bytes(bytes)
        };
        let hashes = (0..=255).map(|last| numbered(3, last)).collect();
        let revocations = Revocations::new(Revoked { hashes, cursor: RevocationCursor(1) });
        assert_eq!(revocations.count(), 256);
        assert!((0..=255).all(|last| revocations.contains(|| numbered(3, last))));
        assert!(!revocations.contains(|| numbered(4, 0)));
    }

    #[test]
    fn revoking_one_copies_one_shelf() {
        let revocations = Revocations::new(revoked(0..10_000));
        let before = revocations.dead.load_full();
        revocations.add(revoked(10_000..10_001));
        let after = revocations.dead.load_full();
        let copied = before.shelves.iter().zip(&after.shelves).filter(|(old, new)| !Arc::ptr_eq(old, new));
        assert_eq!(copied.count(), 1);
    }
}
