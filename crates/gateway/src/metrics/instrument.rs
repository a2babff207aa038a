//! What counts: counters, gauges and histograms as plain atomics. Recording is a relaxed addition or two; nothing is looked
//! up, queued or locked.

use std::{
    array,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// Goes up. Clones count together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counter(Arc<AtomicU64>);

/// Goes up and down. Clones count together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gauge(Arc<AtomicI64>);

/// The upper bounds of a histogram's buckets, as Prometheus writes them, and in microseconds: from a millisecond, which is
/// a quick answer, to ten minutes, which is a long stream.
pub(super) const BUCKETS: [(&str, u64); 15] = [
    ("0.0005", 500),
    ("0.001", 1_000),
    ("0.0025", 2_500),
    ("0.005", 5_000),
    ("0.01", 10_000),
    ("0.025", 25_000),
    ("0.05", 50_000),
    ("0.1", 100_000),
    ("0.25", 250_000),
    ("0.5", 500_000),
    ("1.0", 1_000_000),
    ("5.0", 5_000_000),
    ("30.0", 30_000_000),
    ("120.0", 120_000_000),
    ("600.0", 600_000_000),
];

/// How long things took. One for each worker, so that no two cores write to the same place.
#[derive(Debug)]
pub(super) struct Histogram {
    /// Each counts what is above the bound before it; the last one has no bound.
    buckets: [AtomicU64; BUCKETS.len() + 1],
    sum_micros: AtomicU64,
}

/// What some histograms hold together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Times {
    /// How many took no longer than each bound, and how many there are.
    pub(super) up_to: [u64; BUCKETS.len() + 1],
    pub(super) sum_micros: u64,
}

impl Counter {
    pub(crate) fn increment(&self, by: u64) {
        self.0.fetch_add(by, Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl Gauge {
    pub(crate) fn increment(&self, by: u32) {
        self.0.fetch_add(by.into(), Relaxed);
    }

    pub(crate) fn decrement(&self, by: u32) {
        self.0.fetch_sub(by.into(), Relaxed);
    }

    pub(super) fn get(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

impl Histogram {
    pub(super) fn record(&self, took: Duration) {
        // To the nearest microsecond: cut off, a million quick answers would seem noticeably quicker than they were.
        let micros = u64::try_from((took + Duration::from_nanos(500)).as_micros()).unwrap_or(u64::MAX);
        let bucket = BUCKETS.partition_point(|(_, bound)| *bound < micros);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum_micros.fetch_add(micros, Relaxed);
    }

    /// Adds what it holds to `times`.
    pub(super) fn add_to(&self, times: &mut Times) {
        let mut so_far = 0;
        for (sum, bucket) in times.up_to.iter_mut().zip(&self.buckets) {
            so_far += bucket.load(Relaxed);
            *sum += so_far;
        }
        times.sum_micros = times.sum_micros.wrapping_add(self.sum_micros.load(Relaxed));
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: array::from_fn(|_| AtomicU64::new(0)), sum_micros: AtomicU64::new(0) }
    }
}

impl Times {
    pub(super) const fn count(&self) -> u64 {
        self.up_to[BUCKETS.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_bucket_and_the_buckets_hold_all_below() {
        let (first, second) = (Histogram::default(), Histogram::default());
        first.record(Duration::ZERO);
        first.record(Duration::from_micros(500));
        first.record(Duration::from_nanos(500_400));
        first.record(Duration::from_nanos(500_500));
        second.record(Duration::from_secs(600));
        second.record(Duration::from_secs(601));
        second.record(Duration::from_millis(7));
        let mut times = Times::default();
        first.add_to(&mut times);
        second.add_to(&mut times);
        assert_eq!(times.up_to, [3, 4, 4, 4, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 6, 7]);
        assert_eq!((times.count(), times.sum_micros), (7, 500 + 500 + 501 + 1_201_000_000 + 7_000));
    }

    #[test]
    fn bounds_are_written_as_they_are_compared_and_rise() {
        assert!(BUCKETS.is_sorted_by(|(_, one), (_, next)| one < next));
        for (text, micros) in BUCKETS {
            assert_eq!(Duration::from_secs_f64(text.parse().unwrap()), Duration::from_micros(micros));
        }
    }
}
