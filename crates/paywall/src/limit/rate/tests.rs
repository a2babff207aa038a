use std::{
    net::{Ipv4Addr, Ipv6Addr},
    num::NonZeroU32,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use super::*;
use crate::{Rate, testing::weather};

fn limit(by: LimitBy, count: u32, per_secs: u64) -> RateLimit {
    let rate = Rate { count: NonZeroU32::new(count).unwrap(), per: Duration::from_secs(per_secs) };
    RateLimit { by, rate, burst: None, paths: Vec::new() }
}

fn at(paths: &[&str], limit: RateLimit) -> RateLimit {
    RateLimit { paths: paths.iter().map(|path| path.parse().unwrap()).collect(), ..limit }
}

fn service(rate_limits: Vec<RateLimit>) -> Service {
    Service { rate_limits, ..weather() }
}

fn client(number: u32) -> Who {
    Who { token: None, client: Ipv4Addr::from(number).into() }
}

fn token(number: u32, client: u32) -> Who {
    let mut id = [7; 32];
    id[..4].copy_from_slice(&number.to_le_bytes());
    Who { token: Some(TokenId::from_bytes(id)), client: Ipv4Addr::from(client).into() }
}

fn granted(limits: &RateLimits, service: &Service, path: &str, who: Who, tries: usize) -> usize {
    (0..tries).filter(|_| limits.take(service, path, who).is_ok()).count()
}

#[tokio::test(start_paused = true)]
async fn each_token_has_its_own_budget_wherever_it_comes_from() {
    let (limits, service) = (RateLimits::new(64), service(vec![limit(LimitBy::Token, 3, 60)]));
    assert_eq!(granted(&limits, &service, "/", token(1, 1), 2), 2);
    assert_eq!(granted(&limits, &service, "/", token(1, 2), 5), 1, "another address, the same token");
    assert_eq!(granted(&limits, &service, "/", token(2, 1), 5), 3);
    assert_eq!(granted(&limits, &service, "/", client(1), 5), 3, "without a token, the client counts");
    assert_eq!(granted(&limits, &service, "/", client(2), 5), 3);
}

#[tokio::test(start_paused = true)]
async fn each_client_has_its_own_budget_whatever_it_shows() {
    let (limits, service) = (RateLimits::new(64), service(vec![limit(LimitBy::Client, 3, 60)]));
    assert_eq!(granted(&limits, &service, "/", token(1, 1), 2), 2);
    assert_eq!(granted(&limits, &service, "/", token(2, 1), 5), 1);
    assert_eq!(granted(&limits, &service, "/", client(2), 5), 3);
}

#[tokio::test(start_paused = true)]
async fn a_whole_ipv6_network_is_one_client() {
    let (limits, service) = (RateLimits::new(64), service(vec![limit(LimitBy::Client, 3, 60)]));
    let host = |net: u64, host: u64| {
        let address = Ipv6Addr::from(u128::from(net) << 64 | u128::from(host));
        limits.take(&service, "/", Who { token: None, client: address.into() })
    };
    assert_eq!((0..50).filter(|number| host(1, *number).is_ok()).count(), 3);
    assert!(host(2, 0).is_ok());
}

#[tokio::test(start_paused = true)]
async fn everybody_together_has_one_budget() {
    let (limits, service) = (RateLimits::new(64), service(vec![limit(LimitBy::Service, 5, 60)]));
    let all = (0..20).filter(|number| limits.take(&service, "/", token(*number, *number)).is_ok()).count();
    assert_eq!(all, 5);
    assert_eq!(limits.overflowed(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_burst_larger_or_smaller_than_the_rate_is_what_comes_at_once() {
    for burst in [1, 10] {
        let limits = RateLimits::new(64);
        let burst_of = RateLimit { burst: NonZeroU32::new(burst), ..limit(LimitBy::Client, 4, 4) };
        let service = service(vec![burst_of]);
        assert_eq!(granted(&limits, &service, "/", client(1), 50), burst as usize);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(granted(&limits, &service, "/", client(1), 50), 1, "one a second");
    }
}

#[tokio::test(start_paused = true)]
async fn a_rule_is_for_its_paths_alone() {
    let rule = at(&["/search", "/heavy/*"], limit(LimitBy::Client, 2, 60));
    let (limits, service) = (RateLimits::new(64), service(vec![rule]));
    assert_eq!(granted(&limits, &service, "/cheap", client(1), 50), 50);
    assert_eq!(granted(&limits, &service, "/heavy/a", client(1), 1), 1);
    assert_eq!(granted(&limits, &service, "/search", client(1), 50), 1, "one budget for all paths of a rule");
    assert_eq!(granted(&limits, &service, "/heavy/b", client(1), 50), 0);
    assert_eq!(granted(&limits, &service, "/searching", client(1), 50), 50);
}

#[tokio::test(start_paused = true)]
async fn of_several_rules_all_have_room_or_none_is_charged_and_the_longest_wait_counts() {
    let limits = RateLimits::new(64);
    let rules = vec![
        limit(LimitBy::Token, 10, 10),
        at(&["/heavy"], limit(LimitBy::Token, 1, 600)),
        limit(LimitBy::Service, 1_000, 1),
    ];
    let service = service(rules);
    assert_eq!(granted(&limits, &service, "/heavy", token(1, 1), 1), 1);
    for _ in 0..100 {
        let wait = limits.take(&service, "/heavy", token(1, 1)).unwrap_err();
        assert_eq!(wait, Duration::from_secs(600));
    }
    assert_eq!(granted(&limits, &service, "/", token(1, 1), 50), 9, "the hundred refused ones cost nothing");
    let wait = limits.take(&service, "/heavy", token(1, 1)).unwrap_err();
    assert_eq!(wait, Duration::from_secs(600), "of one second and ten minutes");
    assert_eq!(limits.take(&service, "/", token(1, 1)).unwrap_err(), Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn after_the_wait_there_is_room_and_not_before() {
    let (limits, service) = (RateLimits::new(64), service(vec![limit(LimitBy::Client, 7, 60)]));
    assert_eq!(granted(&limits, &service, "/", client(1), 50), 7);
    for _ in 0..20 {
        let wait = limits.take(&service, "/", client(1)).unwrap_err();
        tokio::time::advance(wait - Duration::from_millis(1)).await;
        assert!(limits.take(&service, "/", client(1)).is_err());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(limits.take(&service, "/", client(1)).is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn a_rule_that_stays_as_it_is_keeps_its_counts_when_the_services_change() {
    let (limits, kept) = (RateLimits::new(64), limit(LimitBy::Client, 3, 60));
    assert_eq!(granted(&limits, &service(vec![kept.clone()]), "/", client(1), 50), 3);
    // Another rule before it, another price, another list of free paths: the same rule of the same service.
    let mut changed = service(vec![limit(LimitBy::Service, 1_000, 1), kept.clone()]);
    changed.free_paths.push("/new".parse().unwrap());
    assert_eq!(granted(&limits, &changed, "/", client(1), 50), 0);
    let faster = service(vec![limit(LimitBy::Client, 4, 60)]);
    assert_eq!(granted(&limits, &faster, "/", client(1), 50), 4, "another rule begins anew");
    let other = Service { name: "other".parse().unwrap(), ..service(vec![kept]) };
    assert_eq!(granted(&limits, &other, "/", client(1), 50), 3, "so does another service");
}

#[test]
fn a_service_without_rules_takes_no_memory() {
    let limits = RateLimits::new(64);
    assert_eq!(granted(&limits, &weather(), "/", client(1), 1_000), 1_000);
    let elsewhere = service(vec![at(&["/x"], limit(LimitBy::Client, 1, 60))]);
    assert_eq!(granted(&limits, &elsewhere, "/", client(1), 1_000), 1_000);
    assert!(limits.counts.get().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_hundred_thousand_clients_and_tokens_take_no_more_memory_and_erase_no_limit() {
    flood(100_000).await;
}

/// The same as above with a million of each; some seconds without optimisation.
#[tokio::test(start_paused = true)]
#[ignore = "long: a million clients and tokens"]
async fn a_million_clients_and_tokens_take_no_more_memory_and_erase_no_limit() {
    flood(1_000_000).await;
}

async fn flood(strangers: u32) {
    const PLACES: usize = 4_096;
    let limits = RateLimits::new(PLACES);
    let service = service(vec![limit(LimitBy::Token, 2, 60)]);
    assert_eq!(granted(&limits, &service, "/", client(1), 5), 2);
    assert_eq!(granted(&limits, &service, "/", token(1, 1), 5), 2);
    let sizes = |limits: &RateLimits| {
        let counts = limits.counts.get().unwrap().lock();
        (counts.tokens.places(), counts.clients.places(), counts.shared.len())
    };
    let flood = |who: &dyn Fn(u32) -> Who| {
        (2..strangers).filter(|number| limits.take(&service, "/", who(*number)).is_ok()).count()
    };
    // Every place is taken once, and all who find none share one budget of two.
    let fresh = flood(&client);
    assert!(fresh > PLACES * 8 / 10 && fresh <= PLACES + 2, "{fresh}");
    assert_eq!(
        granted(&limits, &service, "/", client(strangers + 1), 5),
        0,
        "a newcomer shares the overflow"
    );
    assert_eq!(granted(&limits, &service, "/", client(1), 5), 0, "a crowd frees nobody's budget");
    assert_eq!(granted(&limits, &service, "/", token(2, 1), 1), 1, "and crowds out nobody who has paid");

    assert!(flood(&|number| token(number, 1)) <= PLACES);
    assert_eq!(granted(&limits, &service, "/", token(1, 1), 5), 0);
    assert_eq!(
        sizes(&limits),
        (PLACES, PLACES, 1),
        "boxed slices, which don't grow, and one rule's overflow"
    );
    assert!(limits.overflowed() > u64::from(strangers));

    // With time all budgets are full again, and the places free for others.
    tokio::time::advance(Duration::from_secs(60)).await;
    for who in [client(1), token(1, 1), client(strangers + 1)] {
        assert_eq!(granted(&limits, &service, "/", who, 5), 2);
    }
}

#[tokio::test(start_paused = true)]
async fn rules_of_the_past_are_forgotten() {
    let limits = RateLimits::new(64);
    for count in 1..2_000 {
        let service = service(vec![limit(LimitBy::Service, count, 1)]);
        limits.take(&service, "/", client(1)).unwrap();
        tokio::time::advance(Duration::from_secs(2)).await;
    }
    assert!(limits.counts.get().unwrap().lock().shared.len() < 100);
}

#[test]
fn threads_together_never_get_more_than_the_limit() {
    const LIMIT: usize = 1_000;
    let limits = RateLimits::new(64);
    let day = 24 * 3600;
    let service = service(vec![limit(LimitBy::Token, 1_000, day), limit(LimitBy::Service, 1_500, day)]);
    let passed = [AtomicUsize::new(0), AtomicUsize::new(0)];
    thread::scope(|scope| {
        for number in 0..8 {
            let (limits, service, passed) = (&limits, &service, &passed[number % 2]);
            let who = token(u32::try_from(number % 2).unwrap(), 1);
            scope.spawn(move || {
                passed.fetch_add(granted(limits, service, "/", who, LIMIT), Ordering::Relaxed);
            });
        }
    });
    let [one, other] = passed.map(AtomicUsize::into_inner);
    assert!(one <= LIMIT && other <= LIMIT, "{one} {other}");
    assert_eq!(one + other, 1_500, "all that there was, and not one more");
}
