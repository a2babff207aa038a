//! How an address is doing: whether requests go to it, and when one may find out whether they should again.
//!
//! After so many failures in a row an address is left out for a while; then a single request tries it, and each failed
//! try doubles the while, up to sixteenfold. One answer, and all is forgotten. Besides, a health check may have it left
//! out. Requests read one atomic here; a lock is taken only where something changes. That the last address is never left
//! out is the rule of the one who picks: where all are out, all are in.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use tokio::time::{Duration, Instant};

/// See the module.
pub(super) struct Standing {
    began: Instant,
    failures_max: u32,
    eject_for: Duration,
    /// What requests ask: [`CLEAN`], [`MARKED`], or the millisecond from which it may be tried.
    mark: AtomicU64,
    record: Mutex<Record>,
}

#[derive(Default)]
struct Record {
    /// In a row, while it is in.
    failures: u32,
    /// In a row.
    ejections: u32,
    /// When it may be tried, in milliseconds; none while it is in.
    out_until: Option<u64>,
    /// A health check has failed.
    is_unwell: bool,
}

/// What is worth a line in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Left out from now on.
    Out,
    /// In again.
    Back,
}

/// In, with nothing against it.
const CLEAN: u64 = 0;
/// In, after failures.
const MARKED: u64 = 1;
/// Out until a health check says otherwise.
const UNWELL: u64 = u64::MAX;
const DOUBLINGS_MAX: u32 = 4;

impl Standing {
    pub(super) fn new(failures_max: u32, eject_for: Duration) -> Self {
        let (mark, record) = (AtomicU64::new(CLEAN), Mutex::default());
        Self { began: Instant::now(), failures_max, eject_for, mark, record }
    }

    pub(super) fn is_out(&self) -> bool {
        self.mark.load(Relaxed) > MARKED
    }

    /// Whether the time of an address that is out has come: true for one caller, who is to try it. The next one gets
    /// their turn as much later, should nothing come of it.
    pub(super) fn claim(&self, now: Instant) -> bool {
        let now = self.millis(now);
        if self.mark.load(Relaxed) > now {
            return false;
        }
        let mut record = self.record.lock();
        match record.out_until {
            Some(until) if until <= now && !record.is_unwell => {
                record.out_until = Some(now + self.period(&record));
                self.publish(&record);
                true
            }
            _ => false,
        }
    }

    /// It has answered a request, whatever it said.
    pub(super) fn answered(&self) -> Option<Change> {
        if self.mark.load(Relaxed) == CLEAN {
            return None;
        }
        let mut record = self.record.lock();
        let was_out = record.out_until.is_some();
        *record = Record { is_unwell: record.is_unwell, ..Record::default() };
        self.publish(&record);
        (was_out && !record.is_unwell).then_some(Change::Back)
    }

    /// It has failed a request that went to it as to any other.
    pub(super) fn failed(&self, now: Instant) -> Option<Change> {
        let mut record = self.record.lock();
        if record.out_until.is_some() || record.is_unwell {
            // Sent before it was left out, or since there is no other.
            return None;
        }
        record.failures += 1;
        let change = (record.failures >= self.failures_max).then_some(Change::Out);
        if change.is_some() {
            self.eject(&mut record, now);
        }
        self.publish(&record);
        change
    }

    /// It has failed the request of the one who [claimed](Self::claim) it.
    pub(super) fn failed_again(&self, now: Instant) {
        let mut record = self.record.lock();
        if record.out_until.is_some() {
            self.eject(&mut record, now);
            self.publish(&record);
        }
    }

    /// A health check has been answered as it should. What requests have found may be tried anew at once.
    pub(super) fn is_well(&self, now: Instant) -> Option<Change> {
        if self.mark.load(Relaxed) <= MARKED {
            return None;
        }
        let mut record = self.record.lock();
        let was_unwell = std::mem::take(&mut record.is_unwell);
        if let Some(until) = &mut record.out_until {
            *until = (*until).min(self.millis(now));
        }
        self.publish(&record);
        (was_unwell && record.out_until.is_none()).then_some(Change::Back)
    }

    /// A health check has not been answered as it should.
    pub(super) fn is_unwell(&self) -> Option<Change> {
        let mut record = self.record.lock();
        let was_in = !record.is_unwell && record.out_until.is_none();
        record.is_unwell = true;
        self.publish(&record);
        was_in.then_some(Change::Out)
    }

    fn eject(&self, record: &mut Record, now: Instant) {
        record.ejections = record.ejections.saturating_add(1);
        record.failures = 0;
        record.out_until = Some(self.millis(now) + self.period(record));
    }

    /// For how long it is left out, in milliseconds.
    fn period(&self, record: &Record) -> u64 {
        let doublings = record.ejections.saturating_sub(1).min(DOUBLINGS_MAX);
        u64::try_from(self.eject_for.as_millis()).unwrap_or(u64::MAX >> 8).saturating_mul(1 << doublings)
    }

    fn publish(&self, record: &Record) {
        let mark = match record.out_until {
            _ if record.is_unwell => UNWELL,
            Some(until) => until.clamp(MARKED + 1, UNWELL - 1),
            None if record.failures > 0 || record.ejections > 0 => MARKED,
            None => CLEAN,
        };
        self.mark.store(mark, Relaxed);
    }

    /// The moments of this clock begin above the marks that mean something else.
    fn millis(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.began).as_millis();
        u64::try_from(since).unwrap_or(u64::MAX >> 1) + MARKED + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn standing() -> (Standing, Instant) {
        let standing = Standing::new(3, SECOND);
        let began = standing.began;
        (standing, began)
    }

    fn fail(standing: &Standing, times: usize, now: Instant) -> Vec<Option<Change>> {
        (0..times).map(|_| standing.failed(now)).collect()
    }

    #[test]
    fn so_many_failures_in_a_row_and_it_is_out() {
        let (standing, now) = standing();
        assert_eq!(fail(&standing, 2, now), [None, None]);
        assert!(!standing.is_out());
        assert_eq!(standing.answered(), None);
        assert_eq!(fail(&standing, 3, now), [None, None, Some(Change::Out)]);
        assert!(standing.is_out());
        // What was under way when it went out says nothing new.
        assert_eq!(fail(&standing, 9, now), [None; 9]);
    }

    #[test]
    fn when_its_time_has_come_one_request_tries_it() {
        let (standing, now) = standing();
        fail(&standing, 3, now);
        assert!(!standing.claim(now + SECOND / 2));
        assert!(standing.claim(now + SECOND));
        assert!(!standing.claim(now + SECOND));
        assert_eq!(standing.answered(), Some(Change::Back));
        assert!(!standing.is_out());
        assert_eq!(standing.answered(), None);
    }

    #[test]
    fn a_try_of_which_nothing_is_heard_is_followed_by_another() {
        let (standing, now) = standing();
        fail(&standing, 3, now);
        assert!(standing.claim(now + SECOND));
        assert!(!standing.claim(now + SECOND * 3 / 2));
        assert!(standing.claim(now + SECOND * 2));
    }

    #[test]
    fn each_failed_try_doubles_the_time_up_to_sixteenfold() {
        let (standing, mut now) = standing();
        fail(&standing, 3, now);
        for periods in [1, 2, 4, 8, 16, 16, 16] {
            assert!(!standing.claim(now + SECOND * periods - Duration::from_millis(1)), "{periods}");
            now += SECOND * periods;
            assert!(standing.claim(now), "{periods}");
            standing.failed_again(now);
        }
        // One answer, and it begins anew.
        assert_eq!(standing.answered(), Some(Change::Back));
        fail(&standing, 3, now);
        assert!(standing.claim(now + SECOND));
    }

    #[test]
    fn a_health_check_has_it_left_out_until_another_one_succeeds() {
        let (standing, now) = standing();
        assert_eq!(standing.is_unwell(), Some(Change::Out));
        assert_eq!(standing.is_unwell(), None);
        // No request tries it, and none that was under way counts.
        assert!(!standing.claim(now + SECOND * 1000));
        assert_eq!(standing.answered(), None);
        assert!(standing.is_out());
        assert_eq!(standing.is_well(now), Some(Change::Back));
        assert_eq!(standing.is_well(now), None);
        assert!(!standing.is_out());
    }

    #[test]
    fn a_good_health_check_lets_a_request_try_at_once() {
        let (standing, now) = standing();
        fail(&standing, 3, now);
        assert_eq!(standing.is_well(now), None);
        assert!(standing.is_out());
        assert!(standing.claim(now));
        assert_eq!(standing.answered(), Some(Change::Back));
    }
}
