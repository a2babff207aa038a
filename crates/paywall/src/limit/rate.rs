//! Rate limits: how fast a service may be used, by its buyers and by those who use what is free.
//!
//! Asked after everything else has said yes, so it can only refuse. The paywall owns the counts and knows a rule by what it
//! says and the service it stands in, so they outlive a change of the services that leaves the rule as it is. The memory is
//! taken once, with the first request that a rule is for. Tokens and clients have a table each: addresses cost nothing, and
//! a flood from many of them must not crowd out those who have paid.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::OnceLock,
    time::Duration,
};

use farebox_protocol::TokenId;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::{
    Client, Nanos, Quota, since,
    table::{Slot, Table},
};
use crate::{LimitBy, RateLimit, Service};

/// The counts of all rules of all services.
pub(crate) struct RateLimits {
    subjects_max: usize,
    /// Keyed at random, so that nobody can aim at the places of another.
    hasher: RandomState,
    start: Instant,
    counts: OnceLock<Mutex<Counts>>,
}

/// One lock for all: it is held for a tenth of a microsecond, and only by requests that a rule is for, so that dozens of
/// cores would have to do nothing else before they met at it.
struct Counts {
    tokens: Table,
    clients: Table,
    /// One for each rule: of everybody, or of those who found no place in a table.
    shared: HashMap<u64, Slot>,
    overflowed: u64,
}

/// Whose request it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Who {
    /// The token that opened.
    pub(crate) token: Option<TokenId>,
    pub(crate) client: IpAddr,
}

/// One rule, asked about one request.
struct Asked {
    quota: Quota,
    /// The hash of the rule, by which its shared budget is known.
    rule: u64,
    subject: Subject,
}

/// Where to look for a budget, and the hash of rule and subject.
#[derive(Clone, Copy)]
enum Subject {
    Everybody,
    Token(u64),
    Client(u64),
}

/// Where a budget is.
#[derive(Clone, Copy)]
enum Place {
    Shared,
    Token(usize),
    Client(usize),
}

impl RateLimits {
    /// Counts up to so many tokens, and as many clients, apart from each other.
    pub(crate) fn new(subjects_max: usize) -> Self {
        Self { subjects_max, hasher: RandomState::new(), start: Instant::now(), counts: OnceLock::new() }
    }

    /// Takes one request from the budget of each rule that is for it, or, where one has no room, from none. Then it says how
    /// long until all of them have.
    pub(crate) fn take(&self, service: &Service, path: &str, who: Who) -> Result<(), Duration> {
        if service.rate_limits.is_empty() {
            return Ok(());
        }
        let rules = service.rate_limits.iter().filter(|rule| rule.is_for(path));
        let asked: SmallVec<[Asked; 4]> = rules.map(|rule| self.ask(service, rule, who)).collect();
        if asked.is_empty() {
            return Ok(());
        }
        let now = since(self.start);
        let counts = self.counts.get_or_init(|| Mutex::new(Counts::new(self.subjects_max)));
        match counts.lock().take(&asked, now, Duration::ZERO) {
            Duration::ZERO => Ok(()),
            wait => Err(wait),
        }
    }

    /// How many requests were counted in a shared budget because there was no place left for their token or client.
    pub(crate) fn overflowed(&self) -> u64 {
        self.counts.get().map_or(0, |counts| counts.lock().overflowed)
    }

    fn ask(&self, service: &Service, rule: &RateLimit, who: Who) -> Asked {
        let quota = Quota::new(rule.rate, rule.burst);
        let hash = self.hasher.hash_one((&service.name, rule));
        let client = || Subject::Client(self.hasher.hash_one((hash, Client::from(who.client))));
        let subject = match (rule.by, who.token) {
            (LimitBy::Service, _) => Subject::Everybody,
            (LimitBy::Token, Some(token)) => Subject::Token(self.hasher.hash_one((hash, token))),
            (LimitBy::Token, None) | (LimitBy::Client, _) => client(),
        };
        Asked { quota, rule: hash, subject }
    }
}

impl Counts {
    fn new(subjects_max: usize) -> Self {
        let table = || Table::new(subjects_max);
        Self { tokens: table(), clients: table(), shared: HashMap::new(), overflowed: 0 }
    }

    /// Takes one from every budget, unless somebody has to wait; then from none, and the longest wait is the answer.
    ///
    /// Each takes its own and passes on how long one must wait so far. If that is not zero at the end, each puts back what it
    /// found, last first. Nobody sees it half done: the counts are locked.
    fn take(&mut self, asked: &[Asked], now: Nanos, wait: Duration) -> Duration {
        let Some((first, rest)) = asked.split_first() else { return wait };
        let (place, owner) = self.find(first, now);
        let found = *self.slot(place, first.rule, now);
        match first.quota.take(found.full_at(owner), now) {
            Err(longer) => self.take(rest, now, wait.max(longer)),
            Ok(full_at) => {
                *self.slot(place, first.rule, now) = Slot { owner, full_at };
                let wait = self.take(rest, now, wait);
                if !wait.is_zero() {
                    *self.slot(place, first.rule, now) = found;
                }
                wait
            }
        }
    }

    /// Where a budget is, and under which name.
    fn find(&mut self, asked: &Asked, now: Nanos) -> (Place, u64) {
        let (found, owner) = match asked.subject {
            Subject::Everybody => return (Place::Shared, asked.rule),
            Subject::Token(owner) => (self.tokens.place(owner, now).map(Place::Token), owner),
            Subject::Client(owner) => (self.clients.place(owner, now).map(Place::Client), owner),
        };
        found.map_or_else(
            || {
                self.overflowed += 1;
                (Place::Shared, asked.rule)
            },
            |place| (place, owner),
        )
    }

    fn slot(&mut self, place: Place, rule: u64, now: Nanos) -> &mut Slot {
        match place {
            Place::Token(place) => self.tokens.slot(place),
            Place::Client(place) => self.clients.slot(place),
            Place::Shared => {
                if self.shared.len() == self.shared.capacity() {
                    // Rules that are no longer configured; their budgets are full by now, or will be.
                    self.shared.retain(|known, slot| *known == rule || slot.full_at > now);
                }
                self.shared.entry(rule).or_default()
            }
        }
    }
}

#[cfg(test)]
mod tests;
