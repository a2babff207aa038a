//! Every path that can be made of a few awkward pieces, read by a reader that shares nothing with ours: what is given away
//! is free for that one, too.

use farebox_paywall::{Auth, Service, normalise};
use farebox_protocol::{Msat, Offer};
use http::Method;

use super::{Services, tests::services};
use crate::{Matcher, ServiceRoute, UpstreamConfig};

#[path = "../../tests/corpus/reading.rs"]
#[allow(dead_code, unreachable_pub, reason = "one function of it is used here, the rest by the corpus")]
mod reading;

const PIECES: [&str; 22] = [
    "/", ".", "dear", "DEAR", "free", "x", ";", "%2e", "%252e", "%25252e", "%252f", "%255c", "%3b", "%253b",
    "%20", "%2500", "%3f", "%c0%ae", "%c0%af", "%c1%9c", "%64", "%2564",
];

fn route(name: &str, prefix: &str, auth: Auth, free: &[&str]) -> ServiceRoute {
    let mut service = Service::new(name.parse().unwrap(), Msat::new(1000), Offer::Forever);
    service.auth = auth;
    service.free_paths = free.iter().map(|free| free.parse().unwrap()).collect();
    let matcher = Matcher { path_prefixes: vec![prefix.parse().unwrap()], ..Matcher::default() };
    ServiceRoute { matcher, ..ServiceRoute::new(service, UpstreamConfig::new("http://app".parse().unwrap())) }
}

/// Whether it is passed on unpaid.
fn is_given_away(services: &Services, path: &str) -> bool {
    let Ok(normal) = normalise(path) else { return false };
    let found = services.find_clearly(0, "", &normal, &Method::GET);
    found.is_ok_and(|found| found.is_some_and(|route| route.config.service.is_free(&normal)))
}

fn is_below(place: &str, front: &str) -> bool {
    place.strip_prefix(front).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[test]
fn what_is_given_away_is_free_for_the_most_careless_reader() {
    let dear_part =
        services(vec![route("dear", "/dear", Auth::On, &[]), route("open", "/", Auth::Off, &[])]).unwrap();
    let free_part =
        services(vec![route("open", "/free", Auth::Off, &[]), route("rest", "/", Auth::On, &[])]).unwrap();
    let free_paths = services(vec![route("all", "/", Auth::On, &["/free", "/free/*"])]).unwrap();
    let only_part = services(vec![route("open", "/free", Auth::Off, &[])]).unwrap();
    let mut given = 0;
    for front in ["/", "/free/", "/dear"] {
        let pieces = PIECES.len();
        for number in 0..pieces * pieces * pieces {
            let picked = [number % pieces, number / pieces % pieces, number / pieces / pieces];
            let path = picked.iter().fold(front.to_owned(), |path, at| path + PIECES[*at]);
            let place = reading::place(&path);
            for (services, is_free) in [
                (&dear_part, !is_below(&place, "/dear")),
                (&free_part, is_below(&place, "/free")),
                (&free_paths, is_below(&place, "/free")),
                (&only_part, is_below(&place, "/free")),
            ] {
                let is_given = is_given_away(services, &path);
                assert!(is_free || !is_given, "{path} is {place} for somebody");
                given += usize::from(is_given);
            }
        }
    }
    // Most of what is harmless passes.
    assert!(given > 10_000, "{given}");
}
