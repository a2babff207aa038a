//! What has been used in a calendar month (UTC) of what a token limits by the month.
//!
//! A *tally* counts one capability in one unit, for all tokens made from one purchase that are so limited. It is reserved
//! from and committed to as an account is, in memory, and goes to the disk in the same groups; it is read when it is first
//! needed. Passes have tallies too, and no account beside them.
//!
//! Each month has tallies of its own that are never begun anew, so whatever a clock does, it gives what a month allows
//! once. A clock that is set back could still open months that were over before anything was bought. It is therefore believed only
//! after it has stood by that for an hour; until then the month goes on that had begun. So a clock that is set right by a little
//! changes nothing, and one that was years ahead doesn't hold a gateway there until its restart.

use std::{fmt, sync::Arc, time::Duration};

use farebox_protocol::{CapabilityName, Msat, PaymentHash, Timestamp, caveat::Most};
use smallvec::SmallVec;
use tokio::time::Instant;

use super::{
    Ledger, Refused, Reservation, Unavailable,
    cache::{self, Kept},
};
use crate::store::accounts::{KeptAnswer, MonthlyUse, Unit};

/// How long a clock must have shown an earlier month before it is believed: longer than it takes to be set right again, and
/// short beside what a buyer has to wait for who has used up a month that never was.
const BELIEVED_AFTER: Duration = Duration::from_secs(3_600);

const SECS_PER_DAY: u64 = 86_400;
/// The Gregorian calendar repeats itself after so many years.
const CYCLE_YEARS: u64 = 400;
const CYCLE_DAYS: u64 = 146_097;

/// A calendar month in UTC: how many have passed since January 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Month(pub u64);

/// The month that requests are counted in.
#[derive(Debug, Default)]
pub(super) struct Present {
    month: Month,
    /// Since when the clock has shown an earlier one.
    earlier_since: Option<Instant>,
}

/// A limit of a token, and what one request may take of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draw {
    /// What is limited.
    pub capability: CapabilityName,
    /// What it is limited in.
    pub unit: Unit,
    /// The most in a month, in that unit.
    pub most: u64,
    /// How much of it is set aside for this request.
    pub takes: u64,
    /// How much of that the request has taken, once it is charged.
    pub taken: Taken,
}

/// How much a charged request has taken of a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// What was set aside.
    All,
    /// What it is charged.
    AsCharged,
}

/// A limit that leaves too little for a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{used}` of `{most}` are used this month of what may be done as `{capability}`, and `{needed}` are needed"
)]
pub struct Reached {
    /// What is limited.
    pub capability: CapabilityName,
    /// What it is limited in.
    pub unit: Unit,
    /// The most in a month, in that unit.
    pub most: u64,
    /// How much of it has been used.
    pub used: u64,
    /// How much of it the request needs.
    pub needed: u64,
    /// When the next month begins.
    pub ends_at: Timestamp,
}

/// The tallies of one purchase in one month.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    hash: PaymentHash,
    month: Month,
}

/// Tallies at work.
#[derive(Debug, Default)]
pub(super) struct Live {
    tallies: Vec<Tally>,
    /// Requests under way that hold them here.
    pins: u64,
    /// Commits that aren't on their way to the disk yet.
    commits: usize,
    /// Answers that go to the disk with them, where there is no account.
    answers: Vec<KeptAnswer>,
    writing: bool,
    mark: bool,
}

#[derive(Debug)]
struct Tally {
    capability: CapabilityName,
    unit: Unit,
    used: u64,
    reserved: u64,
    unwritten: u64,
}

/// What one request holds of tallies. Whoever has it ends it.
pub(super) struct Tab {
    key: Key,
    held: SmallVec<[Held; 2]>,
}

/// What one request holds of one tally.
struct Held {
    /// Which.
    at: usize,
    takes: u64,
    taken: Taken,
    most: u64,
}

impl Month {
    /// The month of a moment.
    pub const fn of(at: Timestamp) -> Self {
        // Years are taken to begin in March, so that the day that not every year has is a year's last.
        let days = at.secs() / SECS_PER_DAY + days_before(1970, 1);
        let (cycle, day) = (days / CYCLE_DAYS, days % CYCLE_DAYS);
        // Of a year's days, those beyond 365 have come before it: one in 4 years, but not in 100, but in 400.
        let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day = day - (year * 365 + year / 4 - year / 100);
        let from_march = (day * 5 + 2) / 153;
        Self((cycle * CYCLE_YEARS + year) * 12 + from_march + 2 - 1_970 * 12)
    }

    /// The first moment after it.
    pub const fn ends_at(self) -> Timestamp {
        let months = self.0.saturating_add(1);
        let (year, month) = (months / 12 + 1_970, months % 12 + 1);
        let days = days_before(year, month).saturating_sub(days_before(1970, 1));
        Timestamp::from_secs(days.saturating_mul(SECS_PER_DAY))
    }
}

impl Present {
    /// The month to count in while the clock shows this one.
    fn at(&mut self, shown: Month, now: impl FnOnce() -> Instant) -> Month {
        if shown >= self.month {
            *self = Self { month: shown, earlier_since: None };
            return shown;
        }
        let now = now();
        let since = *self.earlier_since.get_or_insert_with(|| {
            tracing::warn!(
                %shown, counting = %self.month,
                "the clock was set back into an earlier month; limits by the month go on in the later one for an hour"
            );
            now
        });
        if now.saturating_duration_since(since) >= BELIEVED_AFTER {
            tracing::warn!(%shown, counted = %self.month, "limits by the month are counted in the earlier month again");
            *self = Self { month: shown, earlier_since: None };
        }
        self.month
    }
}

/// Days from the first of March of the year 0 to the first of a month.
const fn days_before(year: u64, month: u64) -> u64 {
    let (year, from_march) = if month < 3 { (year - 1, month + 9) } else { (year, month - 3) };
    let (cycle, year) = (year / CYCLE_YEARS, year % CYCLE_YEARS);
    cycle
        .saturating_mul(CYCLE_DAYS)
        .saturating_add(year * 365 + year / 4 - year / 100 + (from_march * 153 + 2) / 5)
}

impl fmt::Display for Month {
    /// As in `2026-11`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:02}", self.0 / 12 + 1_970, self.0 % 12 + 1)
    }
}

impl cache::Key for Key {
    fn payment(&self) -> &PaymentHash {
        &self.hash
    }
}

impl Kept for Live {
    fn is_pinned(&self) -> bool {
        self.pins > 0 || self.writing || self.commits > 0
    }

    fn used(&mut self) -> &mut bool {
        &mut self.mark
    }
}

impl Live {
    fn new(uses: Vec<MonthlyUse>) -> Self {
        let tally = |of: MonthlyUse| {
            let MonthlyUse { capability, unit, used, .. } = of;
            Tally { capability, unit, used, reserved: 0, unwritten: 0 }
        };
        Self { tallies: uses.into_iter().map(tally).collect(), mark: true, ..Self::default() }
    }

    fn place(&mut self, draw: &Draw) -> usize {
        let is_it = |tally: &Tally| tally.unit == draw.unit && tally.capability == draw.capability;
        self.tallies.iter().position(is_it).unwrap_or_else(|| {
            let (capability, unit) = (draw.capability.clone(), draw.unit);
            self.tallies.push(Tally { capability, unit, used: 0, reserved: 0, unwritten: 0 });
            self.tallies.len() - 1
        })
    }

    /// Sets aside what a request may take of all of them, or of none.
    fn reserve(&mut self, key: Key, draws: &[Draw]) -> Result<Tab, Refused> {
        let mut held: SmallVec<[Held; 2]> = SmallVec::new();
        let mut in_flight = false;
        for draw in draws {
            let at = self.place(draw);
            let Tally { used, reserved, .. } = self.tallies[at];
            let beside = used.checked_add(draw.takes).filter(|all| *all <= draw.most);
            match beside.map(|all| all.checked_add(reserved).is_some_and(|all| all <= draw.most)) {
                // It will be reached whatever comes back, so that is what is said, whichever else is only in use.
                None => return Err(Box::new(Reached::new(draw, used, key.month)).into()),
                Some(is_there) => in_flight |= !is_there,
            }
            held.push(Held { at, takes: draw.takes, taken: draw.taken, most: draw.most });
        }
        if in_flight {
            return Err(Refused::InFlight);
        }
        for Held { at, takes, .. } in &held {
            self.tallies[*at].reserved += takes;
        }
        self.pins += 1;
        Ok(Tab { key, held })
    }

    /// Sets more aside of what counts as it is charged: so much, or as much as all of those limits leave. How much.
    fn extend(&mut self, tab: &mut Tab, units: u64) -> u64 {
        let left = |held: &mut Held| {
            let Tally { used, reserved, .. } = self.tallies[held.at];
            held.most.saturating_sub(used).saturating_sub(reserved)
        };
        let more = tab.as_charged().map(left).fold(units, u64::min);
        for held in tab.as_charged() {
            held.takes += more;
            self.tallies[held.at].reserved += more;
        }
        more
    }

    /// Gives part of that back.
    fn shorten(&mut self, tab: &mut Tab, units: u64) {
        for held in tab.as_charged() {
            let less = |whole: u64| whole.checked_sub(units).expect("what is given back was taken");
            held.takes = less(held.takes);
            self.tallies[held.at].reserved = less(self.tallies[held.at].reserved);
        }
    }

    fn release(&mut self, tab: &Tab) {
        for Held { at, takes, .. } in &tab.held {
            let reserved = &mut self.tallies[*at].reserved;
            *reserved = reserved.checked_sub(*takes).expect("what is ended was begun");
        }
        self.pins -= 1;
    }

    fn commit(&mut self, tab: &Tab, charge: u64) {
        self.release(tab);
        for Held { at, takes, taken, .. } in &tab.held {
            let used = if *taken == Taken::All { *takes } else { charge };
            let tally = &mut self.tallies[*at];
            tally.used = tally.used.saturating_add(used);
            tally.unwritten = tally.unwritten.saturating_add(used);
        }
        self.commits += 1;
    }

    /// Takes what is to be written; how many commits that is.
    fn take(&mut self, key: Key, uses: &mut Vec<MonthlyUse>, answers: &mut Vec<KeptAnswer>) -> usize {
        answers.append(&mut self.answers);
        for tally in self.tallies.iter_mut().filter(|tally| tally.unwritten > 0) {
            let (capability, unit) = (tally.capability.clone(), tally.unit);
            let used = std::mem::take(&mut tally.unwritten);
            uses.push(MonthlyUse { hash: key.hash, month: key.month, capability, unit, used });
        }
        self.writing = true;
        std::mem::take(&mut self.commits)
    }
}

impl Tab {
    /// What it holds of limits that count what a request is charged.
    fn as_charged(&mut self) -> impl Iterator<Item = &mut Held> {
        self.held.iter_mut().filter(|held| held.taken == Taken::AsCharged)
    }
}

impl Reached {
    fn new(Draw { capability, unit, most, takes, .. }: &Draw, used: u64, month: Month) -> Self {
        let (capability, ends_at) = (capability.clone(), month.ends_at());
        Self { capability, unit: *unit, most: *most, used, needed: *takes, ends_at }
    }
}

impl Ledger {
    /// Beside units of an account, sets aside what the request may take of its token's limits, if their tallies are in
    /// memory; `None` where they aren't. Waits for nothing.
    pub fn limit_at_once(
        self: &Arc<Self>,
        reservation: Reservation,
        draws: &[Draw],
    ) -> Option<Result<Reservation, Refused>> {
        if draws.is_empty() {
            return Some(Ok(reservation));
        }
        let key = Key { hash: reservation.hash(), month: self.month() };
        let taken = self.months.shard(&key).lock().live(&key)?.reserve(key, draws);
        Some(taken.map(|tab| reservation.with(tab)))
    }

    /// The same, and reads the tallies where they aren't in memory.
    ///
    /// # Errors
    ///
    /// When a limit is reached, or only what is under way leaves too little; and whenever the books can't tell. What was
    /// reserved is given back then.
    pub async fn limit(
        self: &Arc<Self>,
        reservation: Reservation,
        draws: &[Draw],
    ) -> Result<Reservation, Refused> {
        if draws.is_empty() {
            return Ok(reservation);
        }
        let key = Key { hash: reservation.hash(), month: self.month() };
        let load = async {
            let uses = self.store.uses(key.hash, key.month).await.map_err(Unavailable::Store)?;
            Ok((Live::new(uses), ()))
        };
        let may = || Ok(self.is_available()?);
        let reserve = |live: &mut Live| live.reserve(key, draws);
        let taken = self.months.at_work(key, self.config.accounts_max, may, load, reserve);
        let (tab, _) = self.in_time(taken).await?;
        Ok(reservation.with(tab?))
    }

    /// What a request may be charged that has no account, but limits: set them with [`limit`](Self::limit) before it goes.
    ///
    /// # Errors
    ///
    /// When nothing can be counted just now.
    pub fn of_pass(
        self: &Arc<Self>,
        hash: PaymentHash,
        units: std::num::NonZeroU64,
    ) -> Result<Reservation, Refused> {
        self.is_available()?;
        Ok(Reservation::of_pass(Arc::clone(self), hash, units))
    }

    /// How much of a limit is used and how much is in use this month, if that is in memory.
    pub fn used(&self, hash: &PaymentHash, capability: &CapabilityName, unit: Unit) -> Option<(u64, u64)> {
        let key = Key { hash: *hash, month: self.month() };
        let mut shard = self.months.shard(&key).lock();
        let live = shard.live(&key)?;
        let found = live.tallies.iter().find(|tally| tally.unit == unit && tally.capability == *capability);
        Some(found.map_or((0, 0), |tally| (tally.used, tally.reserved)))
    }

    /// The month to count in: the present one, unless the clock has been set back lately.
    pub fn month(&self) -> Month {
        self.month.lock().at(Month::of(self.clock.now()), Instant::now)
    }

    pub(super) fn extend_tab(&self, tab: &mut Tab, units: u64) -> u64 {
        let key = tab.key;
        self.months.held(&key, |live| live.extend(tab, units))
    }

    pub(super) fn shorten_tab(&self, tab: &mut Tab, units: u64) {
        let key = tab.key;
        self.months.held(&key, |live| live.shorten(tab, units));
    }

    pub(super) fn release_tab(&self, tab: &Tab) {
        self.months.held(&tab.key, |live| live.release(tab));
    }

    pub(super) fn commit_tab(&self, tab: &Tab, charge: u64, answer: Option<KeptAnswer>) {
        let mut shard = self.months.shard(&tab.key).lock();
        let live = shard.live(&tab.key).expect("what is held is never forgotten");
        let is_first = live.commits == 0;
        live.commit(tab, charge);
        live.answers.extend(answer);
        if is_first {
            shard.unwritten.push_back(tab.key);
        }
        // Counted before it can be gathered.
        self.writing.add_one();
        drop(shard);
        self.writing.wake.notify_one();
    }

    /// Adds what months have to be written to a group; of whom, and how many commits that is.
    pub(super) fn gather_months(
        &self,
        number: u64,
        is_full: impl Fn(usize, usize) -> bool,
        answers: &mut Vec<KeptAnswer>,
    ) -> (Vec<MonthlyUse>, Vec<Key>, usize) {
        let (mut uses, mut keys, mut commits) = (Vec::new(), Vec::new(), 0);
        for shard in self.months.shards_from(number) {
            let mut shard = shard.lock();
            while !is_full(keys.len(), answers.len())
                && let Some(key) = shard.unwritten.pop_front()
            {
                let live = shard.live(&key).expect("what isn't written is never forgotten");
                commits += live.take(key, &mut uses, answers);
                keys.push(key);
            }
        }
        (uses, keys, commits)
    }

    pub(super) fn written_months(&self, keys: &[Key]) {
        for key in keys {
            self.months.held(key, |live| live.writing = false);
        }
    }
}

/// What a limit counts, and how much of it; `None` of one that this version doesn't know.
pub(crate) const fn in_units(most: Most) -> Option<(Unit, u64)> {
    match most {
        Most::Requests(most) => Some((Unit::Request, most)),
        Most::Spent(most) => Some((Unit::Msat, most.get())),
        _ => None,
    }
}

/// What one of so many requests has cost that were bought together: no part of a millisatoshi is lost.
pub(crate) fn share(price: Msat, requests: std::num::NonZeroU64) -> u64 {
    price.get().div_ceil(requests.get())
}

#[cfg(test)]
mod tests;
