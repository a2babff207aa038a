//! Many budgets, in fixed memory.
//!
//! An entry is forgotten only when its budget is full again, which loses nothing. Evicting the oldest instead would let an
//! attacker with many addresses wipe out the count against them; so where there is no room for a newcomer, the caller lets
//! it share one overflow budget with all others that came too late. Only where an entry costs money may a newcomer take the
//! place of another, of the one that loses the least (`attempts`).
//!
//! An entry knows its owner by a hash of 64 bits under a random key, which nobody can aim with. By accident two owners
//! share an entry once in trillions of look-ups, and then they share a budget for a moment.

use super::Nanos;

/// How many places are tried for an owner.
const PROBES: usize = 8;

/// The budgets, all of them full at first.
pub(super) struct Table(Box<[Slot]>);

/// One budget. 16 bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Slot {
    /// Whose it is.
    pub(super) owner: u64,
    /// When it is full again, and free for another owner.
    pub(super) full_at: Nanos,
}

impl Table {
    pub(super) fn new(places: usize) -> Self {
        Self(vec![Slot::default(); places.max(1)].into_boxed_slice())
    }

    /// The owner's place, or a free one, or none. An owner's budget is that of its place if it stands there under its name,
    /// and full otherwise.
    pub(super) fn place(&self, owner: u64, now: Nanos) -> Option<usize> {
        self.places_of(owner)
            .find(|at| self.0[*at].owner == owner && self.0[*at].full_at > now)
            .or_else(|| self.places_of(owner).find(|at| self.0[*at].full_at <= now))
    }

    /// Of the places that the owner may have, the one whose budget is full the soonest: whoever stands there loses the least.
    pub(super) fn nearest_to_full(&self, owner: u64) -> usize {
        self.places_of(owner).min_by_key(|at| self.0[*at].full_at).unwrap_or_default()
    }

    fn places_of(&self, owner: u64) -> impl Iterator<Item = usize> + use<> {
        let size = self.0.len();
        let start = usize::try_from(owner % size as u64).unwrap_or_default();
        (0..PROBES.min(size)).map(move |step| (start + step) % size)
    }

    pub(super) fn slot(&mut self, place: usize) -> &mut Slot {
        &mut self.0[place]
    }

    /// How many owners fit.
    #[cfg(test)]
    pub(super) fn places(&self) -> usize {
        self.0.len()
    }
}

impl Slot {
    /// When this owner's budget is full again.
    pub(super) fn full_at(&self, owner: u64) -> Nanos {
        if self.owner == owner { self.full_at } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_finds_its_place_again_until_its_budget_is_full() {
        let mut table = Table::new(64);
        let place = table.place(7, 0).unwrap();
        *table.slot(place) = Slot { owner: 7, full_at: 10 };
        assert_eq!(table.place(7, 9), Some(place));
        // Another with the same first place goes beside it, and takes it over when it is free.
        assert_ne!(table.place(7 + 64, 9), Some(place));
        assert_eq!(table.place(7 + 64, 10), Some(place));
        assert_eq!(table.slot(place).full_at(7 + 64), 0, "and starts with a full budget");
    }

    #[test]
    fn where_every_place_is_taken_there_is_none_for_a_newcomer() {
        let mut table = Table::new(4);
        for owner in 0..4 {
            let place = table.place(owner, 0).unwrap();
            *table.slot(place) = Slot { owner, full_at: 10 };
        }
        assert_eq!(table.place(99, 9), None);
        assert!((0..4).all(|owner| table.place(owner, 9).is_some()), "and nobody has lost theirs");
        assert!(table.place(99, 10).is_some());
    }

    #[test]
    fn an_entry_is_as_small_as_the_manual_says() {
        assert_eq!(size_of::<Slot>(), 16);
    }
}
