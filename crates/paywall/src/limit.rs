//! Budgets for minting: how many unpaid challenges one client, and all together, may ask for.
//!
//! The arithmetic (GCRA) is `governor`'s; the table is ours, because governor's own never forgets. Memory is fixed when
//! the table is made. A client's entry is forgotten only when its budget is full again, which loses nothing; when there
//! is no room for a new client, it shares one overflow budget with all others that came too late. Evicting the oldest
//! instead would let an attacker with many addresses wipe out the count against them.

use std::{
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    time::Duration,
};

use governor::{
    Quota, RateLimiter, clock::Clock, middleware::NoOpMiddleware, nanos::Nanos, state::StateStore,
};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{Code, PaywallConfig, Rate};

/// How many places are tried for a client before it is sent to the overflow budget.
const PROBES: usize = 8;

type Limiter<K, S> = RateLimiter<K, S, Ticks, NoOpMiddleware<Nanos>>;

/// The budgets.
pub(crate) struct MintBudget {
    per_client: Limiter<Client, Table>,
    total: Limiter<(), Single>,
    clock: Ticks,
}

/// Why no challenge is made now, and how long until one may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OverBudget {
    pub(crate) code: Code,
    pub(crate) wait: Duration,
}

/// Whom a budget belongs to. One household or server has a whole IPv6 /64 at its disposal, so that counts as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Client {
    V4([u8; 4]),
    V6Net([u8; 8]),
}

impl MintBudget {
    pub(crate) fn new(config: &PaywallConfig) -> Self {
        let clock = Ticks(Instant::now());
        let table = Table::new(config.mint_clients_max, clock);
        Self {
            per_client: RateLimiter::new(quota(config.mint_per_client), table, clock),
            total: RateLimiter::new(quota(config.mint_total), Single(Mutex::new(None)), clock),
            clock,
        }
    }

    /// Takes one challenge from the client's budget and the total.
    pub(crate) fn take(&self, client: IpAddr) -> Result<(), OverBudget> {
        let over = |code, wait| OverBudget { code, wait };
        let now = || self.clock.now();
        // The client's own first: one that is over its budget must not eat from what others share.
        self.per_client
            .check_key(&Client::from(client))
            .map_err(|not| over(Code::ClientMintLimit, not.wait_time_from(now())))?;
        self.total.check_key(&()).map_err(|not| over(Code::TotalMintLimit, not.wait_time_from(now())))
    }
}

fn quota(rate: Rate) -> Quota {
    // A rate so high that the time between two rounds to nothing still has a limit: one per nanosecond.
    let each = (rate.per / rate.count.get()).max(Duration::from_nanos(1));
    Quota::with_period(each).expect("a nanosecond at least").allow_burst(rate.count)
}

impl From<IpAddr> for Client {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self::V4(v4.octets()),
            IpAddr::V6(v6) => {
                let [a, b, c, d, e, f, g, h, ..] = v6.octets();
                Self::V6Net([a, b, c, d, e, f, g, h])
            }
        }
    }
}

/// Nanoseconds since the limiter was made, by tokio's clock, which tests can pause.
#[derive(Clone, Copy)]
struct Ticks(Instant);

impl Clock for Ticks {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        self.0.elapsed().into()
    }
}

/// One budget.
struct Single(Mutex<Option<Nanos>>);

impl StateStore for Single {
    type Key = ();

    fn measure_and_replace<T, F, E>(&self, (): &(), measure: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut state = self.0.lock();
        let (outcome, next) = measure(*state)?;
        *state = Some(next);
        Ok(outcome)
    }
}

/// Many budgets, in fixed memory.
struct Table {
    slots: Mutex<Slots>,
    /// Keyed at random, so that nobody can aim at the places of another client.
    hasher: RandomState,
    clock: Ticks,
}

struct Slots {
    clients: Box<[Option<Slot>]>,
    overflow: Option<Nanos>,
}

#[derive(Clone, Copy)]
struct Slot {
    client: Client,
    /// When the budget is full again.
    full_at: Nanos,
}

impl Table {
    fn new(clients_max: usize, clock: Ticks) -> Self {
        let clients = vec![None; clients_max.max(1)].into_boxed_slice();
        Self { slots: Mutex::new(Slots { clients, overflow: None }), hasher: RandomState::new(), clock }
    }
}

impl Slots {
    /// The client's place, or a free one, or none: then the overflow budget is its.
    fn place(&self, client: Client, hash: u64, now: Nanos) -> Option<usize> {
        let size = self.clients.len();
        let start = usize::try_from(hash % size as u64).unwrap_or_default();
        let places = || (0..PROBES.min(size)).map(move |step| (start + step) % size);
        let is_own = |at: &usize| self.clients[*at].is_some_and(|slot| slot.client == client);
        // A budget that is full again says the same as no entry at all.
        let is_free = |at: &usize| self.clients[*at].is_none_or(|slot| slot.full_at <= now);
        places().find(is_own).or_else(|| places().find(is_free))
    }
}

impl StateStore for Table {
    type Key = Client;

    fn measure_and_replace<T, F, E>(&self, client: &Client, measure: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let hash = self.hasher.hash_one(client);
        let now = self.clock.now();
        let mut slots = self.slots.lock();
        match slots.place(*client, hash, now) {
            Some(at) => {
                let own = slots.clients[at].filter(|slot| slot.client == *client).map(|slot| slot.full_at);
                let (outcome, full_at) = measure(own)?;
                slots.clients[at] = Some(Slot { client: *client, full_at });
                Ok(outcome)
            }
            None => {
                let (outcome, full_at) = measure(slots.overflow)?;
                slots.overflow = Some(full_at);
                Ok(outcome)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{Ipv4Addr, Ipv6Addr},
        num::NonZeroU32,
    };

    use farebox_protocol::Network;

    use super::*;

    fn budget(per_minute: u32, total_per_second: u32, clients_max: usize) -> MintBudget {
        MintBudget::new(&PaywallConfig {
            mint_per_client: Rate::per_minute(NonZeroU32::new(per_minute).unwrap()),
            mint_total: Rate::per_second(NonZeroU32::new(total_per_second).unwrap()),
            mint_clients_max: clients_max,
            ..PaywallConfig::new(Network::Regtest)
        })
    }

    fn v4(number: u32) -> IpAddr {
        Ipv4Addr::from(number).into()
    }

    fn v6(net: u64, host: u64) -> IpAddr {
        Ipv6Addr::from(u128::from(net) << 64 | u128::from(host)).into()
    }

    fn granted(budget: &MintBudget, client: IpAddr, tries: usize) -> usize {
        (0..tries).filter(|_| budget.take(client).is_ok()).count()
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_spends_its_own_budget_and_gets_it_back_with_time() {
        let budget = budget(3, 1_000, 64);
        assert_eq!(granted(&budget, v4(1), 10), 3);
        assert_eq!(granted(&budget, v4(2), 10), 3);
        let over = budget.take(v4(1)).unwrap_err();
        assert_eq!(over.code, Code::ClientMintLimit);
        assert!(over.wait > Duration::from_secs(19) && over.wait <= Duration::from_secs(20), "{over:?}");
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!(granted(&budget, v4(1), 10), 1);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(granted(&budget, v4(1), 10), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn all_of_an_ipv6_network_is_one_client_and_mapped_addresses_are_ipv4() {
        let budget = budget(3, 1_000, 64);
        assert_eq!((0..10).filter(|host| budget.take(v6(7, *host)).is_ok()).count(), 3);
        assert_eq!(granted(&budget, v6(8, 0), 10), 3);
        assert_eq!(granted(&budget, v4(0x0102_0304), 10), 3);
        let mapped: IpAddr = "::ffff:1.2.3.4".parse().unwrap();
        assert_eq!(granted(&budget, mapped, 10), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_total_is_limited_whoever_asks() {
        let budget = budget(60, 5, 64);
        assert_eq!((0..20).filter(|client| budget.take(v4(*client)).is_ok()).count(), 5);
        assert_eq!(budget.take(v4(99)).unwrap_err().code, Code::TotalMintLimit);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_over_its_budget_does_not_eat_from_the_total() {
        let budget = budget(1, 5, 64);
        assert_eq!(granted(&budget, v4(1), 100), 1);
        assert_eq!((2..20).filter(|client| budget.take(v4(*client)).is_ok()).count(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_million_addresses_take_no_more_memory_and_erase_no_limit() {
        let budget = budget(2, u32::MAX, 4_096);
        assert_eq!(granted(&budget, v4(1), 5), 2);
        let mut fresh = 0;
        for client in 0..1_000_000 {
            if budget.take(v6(client, 0)).is_ok() {
                fresh += 1;
            }
        }
        // Every place is taken once, the rest share two tokens.
        assert!(fresh <= 4_096 + 2, "{fresh}");
        assert!(fresh > 3_500, "places are used: {fresh}");
        assert_eq!(
            granted(&budget, v4(1), 5),
            0,
            "an attacker with a million addresses frees nobody's budget"
        );
        assert_eq!(budget.take(v4(77_777)).unwrap_err().code, Code::ClientMintLimit);

        // With time all budgets fill up again, and the places are free for others.
        tokio::time::advance(Duration::from_secs(120)).await;
        assert_eq!(granted(&budget, v4(77_777), 5), 2);
        assert_eq!(granted(&budget, v4(1), 5), 2);
        let table = budget.per_client.into_state_store();
        assert_eq!(table.slots.lock().clients.len(), 4_096, "a boxed slice: it can't have grown");
        assert!(size_of::<Option<Slot>>() <= 24, "what the configuration's manual says");
    }

    #[tokio::test(start_paused = true)]
    async fn a_table_of_one_place_still_works() {
        let budget = budget(2, 1_000, 0);
        assert_eq!(granted(&budget, v4(1), 5), 2);
        assert_eq!(granted(&budget, v4(2), 5), 2, "the overflow budget");
        assert_eq!(granted(&budget, v4(3), 5), 0, "the same overflow budget");
    }
}
