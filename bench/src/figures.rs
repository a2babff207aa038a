//! From single measurements to rows: percentiles, medians, and ratios of what was measured one right after the other.
//!
//! Others use the machine too, and their noise comes and goes. A ratio is therefore taken within each round, between
//! neighbours in time, and the median of these counts; a ratio of two medians would mix quiet and busy moments.

use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::table::Row;

/// Rounds of taking turns that count.
const ROUNDS: usize = 3;

/// One thing that was measured of one subject.
pub(crate) struct Figure {
    /// What it is: `CPU`, `rate`.
    pub(crate) what: String,
    /// Its unit.
    pub(crate) unit: &'static str,
    /// How much.
    pub(crate) value: f64,
}

/// Shorthand for a [`Figure`].
pub(crate) fn figure(what: impl Into<String>, unit: &'static str, value: f64) -> Figure {
    Figure { what: what.into(), unit, value }
}

/// Measures each of `subjects` in turn, for several rounds; each measurement gives the same figures in the same order.
/// The first subject is what the others are divided by.
pub(crate) fn taking_turns<S>(
    bench: &'static str,
    subjects: &[S],
    name: impl Fn(&S) -> &'static str,
    mut measure: impl FnMut(&S) -> Result<Vec<Figure>>,
) -> Result<Vec<Row>> {
    for subject in subjects {
        measure(subject).with_context(|| name(subject))?;
    }
    cold_turns(bench, subjects, name, measure)
}

/// The same without a round for warming up, where each measurement begins with a fresh start anyway.
pub(crate) fn cold_turns<S>(
    bench: &'static str,
    subjects: &[S],
    name: impl Fn(&S) -> &'static str,
    mut measure: impl FnMut(&S) -> Result<Vec<Figure>>,
) -> Result<Vec<Row>> {
    let mut measure = |subject| measure(subject).with_context(|| name(subject));
    let rounds: Vec<Vec<_>> =
        (0..ROUNDS).map(|_| subjects.iter().map(&mut measure).collect()).collect::<Result<_>>()?;
    let names: Vec<_> = subjects.iter().map(name).collect();
    Ok(rows(bench, &names, &rounds))
}

/// The rows of what was measured: for each round, for each of `names`, its figures.
pub(crate) fn rows(bench: &'static str, names: &[&'static str], rounds: &[Vec<Vec<Figure>>]) -> Vec<Row> {
    let Some(kinds) = rounds.first().and_then(|round| round.first()) else { return Vec::new() };
    let mut rows = Vec::new();
    for (at, kind) in kinds.iter().enumerate() {
        for (who, subject) in names.iter().enumerate() {
            let value = |round: &Vec<Vec<Figure>>| round[who][at].value;
            let ratio = |round: &Vec<Vec<Figure>>| round[who][at].value / round[0][at].value;
            rows.push(Row {
                bench,
                what: kind.what.clone(),
                subject: (*subject).to_owned(),
                value: median(rounds.iter().map(value).collect()),
                unit: kind.unit,
                ratio: Some(median(rounds.iter().map(ratio).collect())).filter(|ratio| ratio.is_finite()),
            });
        }
    }
    rows
}

/// The middle one; of an even number, the upper of the two in the middle. Of none, not a number.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// How long requests took.
#[derive(Default)]
pub(crate) struct Latencies(Vec<Duration>);

impl Latencies {
    pub(crate) fn push(&mut self, latency: Duration) {
        self.0.push(latency);
    }

    pub(crate) fn append(&mut self, mut others: Self) {
        self.0.append(&mut others.0);
    }

    pub(crate) const fn count(&self) -> usize {
        self.0.len()
    }

    /// In milliseconds, what `permille` of a thousand requests stayed within (nearest rank); `990` is p99. Of none, not a
    /// number.
    pub(crate) fn millis(&mut self, permille: usize) -> f64 {
        self.0.sort_unstable();
        let rank = (self.0.len() * permille).div_ceil(1000).max(1);
        self.0.get(rank - 1).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn latencies(millis: impl IntoIterator<Item = u64>) -> Latencies {
        Latencies(millis.into_iter().map(Duration::from_millis).collect())
    }

    #[track_caller]
    fn check(found: f64, wanted: f64) {
        assert!((found - wanted).abs() < 1e-9, "{found} instead of {wanted}");
    }

    #[test]
    fn a_percentile_is_the_one_at_its_nearest_rank() {
        let mut hundred = latencies((1..=100).rev());
        check(hundred.millis(500), 50.0);
        check(hundred.millis(990), 99.0);
        check(hundred.millis(999), 100.0);
        check(latencies([7]).millis(1), 7.0);
    }

    #[test]
    fn there_is_no_percentile_of_nothing() {
        assert!(latencies([]).millis(990).is_nan());
        assert!(median(Vec::new()).is_nan());
    }

    #[test]
    fn a_ratio_is_taken_between_neighbours_in_time() {
        // The machine was twice as slow in the second round, for both.
        let round = |first, second| vec![vec![figure("CPU", "us", first)], vec![figure("CPU", "us", second)]];
        let rows = rows("proxy", &["a", "b"], &[round(10.0, 15.0), round(20.0, 30.0), round(11.0, 22.0)]);
        check(rows[0].value, 11.0);
        check(rows[0].ratio.unwrap(), 1.0);
        check(rows[1].value, 22.0);
        check(rows[1].ratio.unwrap(), 1.5);
    }
}
