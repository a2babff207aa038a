//! Remembers where nothing is held, so that a request for what is free asks the disk for nothing.
//!
//! It is only ever a shortcut: what it says holds for one state of the journal, and any commit by anybody ends that. Should it be
//! wrong all the same, a round trip is lost and no money: whoever is about to pay looks into the journal first.

use std::collections::HashSet;

use parking_lot::Mutex;

use crate::Origin;
use crate::journal::watch::Watch;

/// No more origins than this are remembered.
const ORIGINS_MAX: usize = 1_024;

/// Origins at which nothing was ever bought.
#[derive(Debug)]
pub(super) struct Absence {
    watch: Watch,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// The state of the journal for which this holds.
    version: i64,
    origins: HashSet<Origin>,
}

impl Absence {
    pub(super) fn new(watch: Watch) -> Self {
        Self { watch, seen: Mutex::default() }
    }

    /// Whether it is certain that nothing was ever bought at `origin`.
    pub(super) fn is_known(&self, origin: &Origin) -> bool {
        let Ok(version) = self.watch.version() else { return false };
        let seen = self.seen.lock();
        seen.version == version && seen.origins.contains(origin)
    }

    /// Looks whether nothing was ever bought at `origin`, and remembers that. Where it can't be told, there is nothing to
    /// remember.
    pub(super) fn learn(&self, origin: &Origin) {
        // In this order: what is true after the version was read stays so until the version moves.
        let Ok(version) = self.watch.version() else { return };
        if !matches!(self.watch.is_blank(origin), Ok(true)) {
            return;
        }
        let mut seen = self.seen.lock();
        if seen.version != version || seen.origins.len() >= ORIGINS_MAX {
            *seen = Seen { version, origins: HashSet::new() };
        }
        seen.origins.insert(origin.clone());
    }
}
