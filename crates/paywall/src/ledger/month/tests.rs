use std::num::NonZeroU64;

use proptest::prelude::*;

use super::*;

fn month(of: &str) -> Month {
    let (year, month) = of.split_once('-').unwrap();
    Month((year.parse::<u64>().unwrap() - 1_970) * 12 + month.parse::<u64>().unwrap() - 1)
}

#[test]
fn a_moment_is_in_the_month_that_the_calendar_says() {
    for (secs, want) in [
        (0, "1970-01"),
        (2_678_399, "1970-01"),
        (2_678_400, "1970-02"),
        (951_782_399, "2000-02"),
        (951_868_799, "2000-02"),
        (951_868_800, "2000-03"),
        (1_709_164_800, "2024-02"),
        (1_709_251_199, "2024-02"),
        (1_709_251_200, "2024-03"),
        (1_735_689_599, "2024-12"),
        (1_735_689_600, "2025-01"),
        (4_107_542_399, "2100-02"),
        (4_107_542_400, "2100-03"),
    ] {
        let found = Month::of(Timestamp::from_secs(secs));
        assert_eq!((found, found.to_string()), (month(want), want.to_owned()), "{secs}");
    }
}

#[test]
fn months_follow_one_another_without_a_gap_for_a_thousand_years() {
    let mut at = Timestamp::default();
    for number in 0..12_000 {
        assert_eq!(Month::of(at), Month(number));
        let end = Month(number).ends_at();
        let days = end.since(at).as_secs() / SECS_PER_DAY;
        assert!((28..=31).contains(&days), "{} has {days} days", Month(number));
        assert_eq!(Month::of(Timestamp::from_secs(end.secs() - 1)), Month(number));
        at = end;
    }
    assert_eq!(Month::of(at).to_string(), "2970-01");
}

#[test]
fn a_clock_that_shows_an_earlier_month_is_believed_when_it_has_done_so_for_an_hour() {
    let start = Instant::now();
    let mut present = Present::default();
    let mut check = |shown: &str, minutes: u64, want: &str| {
        let at = present.at(month(shown), || start + Duration::from_secs(minutes * 60));
        assert_eq!(at, month(want), "{shown} after {minutes} minutes");
    };
    check("2099-01", 0, "2099-01");
    check("2026-11", 1, "2099-01");
    check("2026-11", 60, "2099-01");
    // It has gone on meanwhile, as clocks do.
    check("2026-12", 61, "2026-12");
    check("2026-11", 62, "2026-12");
    // Right again: whatever comes next is another story.
    check("2026-12", 120, "2026-12");
    check("2026-11", 130, "2026-12");
    check("1970-01", 189, "2026-12");
    check("2027-01", 190, "2027-01");
}

proptest! {
    #[test]
    fn no_moment_is_outside_its_month(secs: u64) {
        let at = Timestamp::from_secs(secs);
        let month = Month::of(at);
        prop_assert!(at < month.ends_at() || month.ends_at().secs() > u64::MAX - 32 * SECS_PER_DAY);
        prop_assert!(month.0 == 0 || Month(month.0 - 1).ends_at() <= at);
    }
}

#[test]
fn a_share_of_what_was_paid_is_never_too_little() {
    let share = |msat, of| share(Msat::new(msat), NonZeroU64::new(of).unwrap());
    assert_eq!((share(10_000, 100), share(10_001, 100), share(1, 1_000)), (100, 101, 1));
}
