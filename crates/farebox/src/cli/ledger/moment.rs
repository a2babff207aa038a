//! Moments as people write them on a command line, and as CSV has them.

use farebox_lightning::clock::{Clock as _, SystemClock};
use farebox_protocol::Timestamp;

use crate::{config::value::Span, output::civil};

const SECS_PER_DAY: u64 = 86_400;

/// `2026-11-22T18:05:00Z`.
pub(super) fn rfc3339(at: Timestamp) -> String {
    let secs = at.secs() % SECS_PER_DAY;
    format!("{}T{:02}:{:02}:{:02}Z", date(at.secs() / SECS_PER_DAY), secs / 3_600, secs / 60 % 60, secs % 60)
}

/// So many days after 1970-01-01, as `2026-11-22`.
pub(super) fn date(days: u64) -> String {
    let (year, month, day) = civil(days);
    format!("{year:04}-{month:02}-{day:02}")
}

/// Reads a moment: a day, a moment of a day (UTC), or how long ago it was.
pub(super) fn parse(text: &str) -> Result<Timestamp, String> {
    read(text, SystemClock.now()).ok_or_else(|| {
        format!(
            "`{text}` is no moment; write `2026-11-22`, `2026-11-22T18:05:00Z`, or how long ago, like `7d`"
        )
    })
}

fn read(text: &str, now: Timestamp) -> Option<Timestamp> {
    if let Ok(Span(ago)) = text.parse() {
        return Some(Timestamp::from_secs(now.secs().checked_sub(ago.as_secs())?));
    }
    let (day, time) = match text.split_once(['T', ' ']) {
        Some((day, time)) => (day, Some(time.strip_suffix('Z').unwrap_or(time))),
        None => (text, None),
    };
    let secs = match time {
        None => 0,
        Some(time) => {
            let [hour, minute, second] = numbers(time, ':')?;
            (hour < 24 && minute < 60 && second < 60).then_some(hour * 3_600 + minute * 60 + second)?
        }
    };
    Some(Timestamp::from_secs(days(day)? * SECS_PER_DAY + secs))
}

/// Days from 1970-01-01 to this one.
fn days(date_given: &str) -> Option<u64> {
    let [year, month, day] = numbers(date_given, '-')?;
    if !(1970..=9_999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Near enough from below, and found by asking the calendar the other way round: no second one to disagree with it.
    let guess = (year - 1970) * 365 + (month - 1) * 28;
    (guess..guess + 2_500).find(|days| civil(*days) == (year, month, day))
}

fn numbers<const N: usize>(text: &str, between: char) -> Option<[u64; N]> {
    let mut numbers = [0; N];
    let mut parts = text.split(between);
    for number in &mut numbers {
        let part = parts.next()?;
        let is_number = !part.is_empty() && part.len() <= 4 && part.bytes().all(|byte| byte.is_ascii_digit());
        *number = if is_number { part.parse().ok()? } else { return None };
    }
    parts.next().is_none().then_some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_795_370_700);

    #[test]
    fn a_moment_is_read_in_the_ways_that_people_write_it() {
        for (text, want) in [
            ("1970-01-01", 0),
            ("2000-02-29", 951_782_400),
            ("2026-11-22", 1_795_305_600),
            ("2026-11-22T18:05:00Z", 1_795_370_700),
            ("2026-11-22 18:05:00", 1_795_370_700),
            ("2026-11-22T23:59:59", 1_795_391_999),
            ("9999-12-31", 253_402_214_400),
            ("7d", NOW.secs() - 7 * 86_400),
            ("90s", NOW.secs() - 90),
        ] {
            assert_eq!(read(text, NOW).map(Timestamp::secs), Some(want), "{text}");
        }
    }

    #[test]
    fn what_is_no_moment_is_refused() {
        for text in [
            "",
            "2026",
            "2026-13-01",
            "2026-02-30",
            "1969-12-31",
            "2026-11-22T24:00:00Z",
            "2026-11-22T1:2",
            "x",
            "-7d",
        ] {
            assert_eq!(read(text, NOW), None, "{text}");
        }
        assert!(parse("yesterday").unwrap_err().contains("`yesterday`"));
    }

    #[test]
    fn what_is_written_is_read_again() {
        for secs in [0, 951_782_399, 951_782_400, 1_795_370_700, 4_107_542_400] {
            let at = Timestamp::from_secs(secs);
            assert_eq!(read(&rfc3339(at), NOW), Some(at));
        }
    }
}
