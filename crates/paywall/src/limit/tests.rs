use governor::{
    RateLimiter,
    clock::{Clock as _, FakeRelativeClock},
};
use proptest::prelude::*;

use super::*;

fn rate(count: u32, per: Duration) -> Rate {
    Rate { count: NonZeroU32::new(count).unwrap(), per }
}

proptest! {
    /// Where a period divides evenly, so that neither of us rounds.
    #[test]
    fn it_lets_through_what_governor_lets_through_and_names_the_same_wait(
        count in 1_u32..50,
        each in 1_u64..5_000_000,
        burst in 1_u32..20,
        pauses in proptest::collection::vec(0_u64..20_000_000, 1..200),
    ) {
        let burst = NonZeroU32::new(burst).unwrap();
        let ours = Quota::new(rate(count, Duration::from_nanos(each) * count), Some(burst));
        let clock = FakeRelativeClock::default();
        let quota = governor::Quota::with_period(Duration::from_nanos(each)).unwrap().allow_burst(burst);
        let theirs = RateLimiter::direct_with_clock(quota, clock.clone());
        let (mut now, mut full_at) = (0, 0);
        for pause in pauses {
            now += pause;
            clock.advance(Duration::from_nanos(pause));
            let want = theirs.check().map_err(|not| not.wait_time_from(clock.now()));
            let got = ours.take(full_at, now);
            prop_assert_eq!(got.map(drop), want);
            full_at = got.unwrap_or(full_at);
        }
    }

    /// However the requests are spread, and whether or not the period divides evenly.
    #[test]
    fn it_never_lets_more_through_than_the_burst_and_what_time_gives_back(
        count in 1_u32..10_000,
        per in 1_u64..10_000_000_000,
        burst in 1_u32..100,
        pauses in proptest::collection::vec(0_u64..10_000_000, 1..300),
    ) {
        let quota = Quota::new(rate(count, Duration::from_nanos(per)), NonZeroU32::new(burst));
        let (mut now, mut full_at, mut passed) = (0, 0, 0_u128);
        for pause in pauses {
            now += pause;
            match quota.take(full_at, now) {
                Ok(next) => {
                    full_at = next;
                    passed += 1;
                }
                Err(wait) => {
                    prop_assert!(quota.take(full_at, now + nanos(wait)).is_ok(), "after the wait there is room");
                    prop_assert!(quota.take(full_at, now + nanos(wait) - 1).is_err(), "and not before");
                }
            }
            prop_assert!(passed <= u128::from(burst) + u128::from(now) * u128::from(count) / u128::from(per));
        }
    }
}

#[test]
fn the_most_extreme_rates_neither_overflow_nor_divide_by_zero() {
    for rate in [
        rate(u32::MAX, Duration::from_nanos(1)),
        rate(u32::MAX, Duration::ZERO),
        rate(1, Duration::MAX),
        rate(u32::MAX, Duration::MAX),
    ] {
        for now in [0, 1, u64::MAX] {
            let quota = Quota::new(rate, NonZeroU32::new(u32::MAX));
            assert!(quota.take(0, now).is_ok(), "{rate:?} at {now}");
        }
    }
}
