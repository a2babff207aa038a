//! Counts of freebies, in fixed memory: places for networks, and behind them a few for those that found none.
//!
//! Pages of places know whether they have changed, so that a file can follow without being written whole.

use std::ops::Range;

use farebox_protocol::Timestamp;

use crate::Freebies;

/// How many places are tried for an owner.
const PROBES: usize = 8;

/// Allowances for latecomers, one for each service with freebies. Where even these are taken, there are none.
const SHARED: usize = 256;

/// How many places are written at once: 4 KiB.
pub(super) const PAGE: usize = 256;

/// Counts without a period never end.
const NEVER: u32 = u32::MAX;

/// The counts.
pub(super) struct Table {
    counts: Box<[Count]>,
    networks: usize,
    changed: Box<[bool]>,
    pub(super) overflowed: u64,
}

/// How many freebies one owner has used. 16 bytes, in memory and in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    owner: u64,
    /// In seconds since 1970; from then on the place is free.
    until: u32,
    used: u32,
}

/// Whose freebie it was, and in which period.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    owner: u64,
    until: u32,
    is_shared: bool,
}

impl Table {
    pub(super) fn new(networks: usize) -> Self {
        let networks = networks.clamp(1, u32::MAX as usize).next_multiple_of(PAGE);
        let counts = vec![Count::default(); networks + SHARED].into_boxed_slice();
        let changed = vec![false; counts.len() / PAGE].into_boxed_slice();
        Self { counts, networks, changed, overflowed: 0 }
    }

    /// As it was written.
    pub(super) fn of_bytes(networks: usize, bytes: &[u8]) -> Option<Self> {
        let mut table = Self::new(networks);
        if table.networks != networks || bytes.len() != table.counts.len() * size_of::<Count>() {
            return None;
        }
        for (count, bytes) in table.counts.iter_mut().zip(bytes.chunks_exact(size_of::<Count>())) {
            *count = Count::of_bytes(bytes)?;
        }
        Some(table)
    }

    /// Takes one for this owner, or for all latecomers together where there is no room for another owner.
    pub(super) fn take(
        &mut self,
        owner: u64,
        latecomers: impl FnOnce() -> u64,
        offer: &Freebies,
        now: Timestamp,
    ) -> Option<Span> {
        let now = seconds(now);
        let (at, owner, is_shared) = match self.place(owner, now) {
            Some(at) => (at, owner, false),
            None => {
                self.overflowed += 1;
                let latecomers = latecomers();
                (self.shared_place(latecomers, now)?, latecomers, true)
            }
        };
        let count = &mut self.counts[at];
        if !count.is_live(now) {
            let until = offer.per.map_or(NEVER, |per| {
                let secs = u64::from(now).saturating_add(per.as_secs().max(1));
                u32::try_from(secs).unwrap_or(NEVER)
            });
            *count = Count { owner, until, used: 0 };
        }
        if count.used >= offer.requests.get() {
            return None;
        }
        count.used += 1;
        let until = count.until;
        self.changed[at / PAGE] = true;
        Some(Span { owner, until, is_shared })
    }

    /// Gives one back, if its period still lasts.
    pub(super) fn give_back(&mut self, span: Span) {
        let places: Vec<usize> =
            if span.is_shared { self.shared().collect() } else { self.places(span.owner).collect() };
        let is_it = |count: &Count| count.owner == span.owner && count.until == span.until && count.used > 0;
        if let Some(at) = places.into_iter().find(|at| is_it(&self.counts[*at])) {
            self.counts[at].used -= 1;
            self.changed[at / PAGE] = true;
        }
    }

    /// The owner's place, or a free one, or none.
    fn place(&self, owner: u64, now: u32) -> Option<usize> {
        self.own_or_free(|| self.places(owner), owner, now)
    }

    fn shared_place(&self, owner: u64, now: u32) -> Option<usize> {
        self.own_or_free(|| self.shared(), owner, now)
    }

    fn own_or_free<I: Iterator<Item = usize>>(
        &self,
        places: impl Fn() -> I,
        owner: u64,
        now: u32,
    ) -> Option<usize> {
        places()
            .find(|at| self.counts[*at].owner == owner && self.counts[*at].is_live(now))
            .or_else(|| places().find(|at| !self.counts[*at].is_live(now)))
    }

    fn places(&self, owner: u64) -> impl Iterator<Item = usize> + use<> {
        let networks = self.networks;
        let start = usize::try_from(owner % networks as u64).unwrap_or_default();
        (0..PROBES.min(networks)).map(move |step| (start + step) % networks)
    }

    fn shared(&self) -> Range<usize> {
        self.networks..self.counts.len()
    }

    /// For how many networks there is room.
    pub(super) fn networks(&self) -> usize {
        self.networks
    }

    /// The pages that have changed since this was asked last, as bytes.
    pub(super) fn changed_pages(&mut self) -> Vec<(usize, Vec<u8>)> {
        let changed = (0..self.changed.len()).filter(|page| self.changed[*page]);
        let bytes = |page: usize| {
            let counts = &self.counts[page * PAGE..(page + 1) * PAGE];
            (page, counts.iter().flat_map(|count| count.bytes()).collect())
        };
        let pages = changed.map(bytes).collect();
        self.changed.fill(false);
        pages
    }

    /// These could not be written.
    pub(super) fn mark_changed(&mut self, pages: impl Iterator<Item = usize>) {
        for page in pages {
            self.changed[page] = true;
        }
    }
}

impl Count {
    /// Whether it counts against anybody.
    fn is_live(&self, now: u32) -> bool {
        self.used > 0 && (self.until == NEVER || self.until > now)
    }

    fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.owner.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.until.to_le_bytes());
        bytes[12..].copy_from_slice(&self.used.to_le_bytes());
        bytes
    }

    fn of_bytes(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let owner = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
        Some(Self { owner, until: word(8)?, used: word(12)? })
    }
}

fn seconds(now: Timestamp) -> u32 {
    // The last second before "never".
    u32::try_from(now.secs()).unwrap_or(NEVER - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_as_small_as_the_manual_says_and_reads_back() {
        assert_eq!(size_of::<Count>(), 16);
        let count = Count { owner: 0x0102_0304_0506_0708, until: 77, used: 9 };
        assert_eq!(Count::of_bytes(&count.bytes()), Some(count));
        assert_eq!(Count::of_bytes(&[0; 15]), None);
    }
}
