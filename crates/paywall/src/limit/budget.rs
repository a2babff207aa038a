//! Budgets for minting: how many unpaid challenges one client, and all together, may ask for.

use std::{
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    Client, Nanos, Quota, since,
    table::{Slot, Table},
};
use crate::{Code, PaywallConfig};

/// The budgets.
pub(crate) struct MintBudget {
    per_client: Quota,
    total: Quota,
    /// Keyed at random, so that nobody can aim at the places of another client.
    hasher: RandomState,
    start: Instant,
    state: Mutex<State>,
}

struct State {
    clients: Table,
    /// Of the clients that found no place.
    overflow: Nanos,
    /// Of all together.
    total: Nanos,
}

/// Why no challenge is made now, and how long until one may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OverBudget {
    pub(crate) code: Code,
    pub(crate) wait: Duration,
}

impl MintBudget {
    pub(crate) fn new(config: &PaywallConfig) -> Self {
        let clients = Table::new(config.mint_clients_max);
        Self {
            per_client: Quota::new(config.mint_per_client, None),
            total: Quota::new(config.mint_total, None),
            hasher: RandomState::new(),
            start: Instant::now(),
            state: Mutex::new(State { clients, overflow: 0, total: 0 }),
        }
    }

    /// Takes one challenge from the client's budget and the total, or from neither.
    pub(crate) fn take(&self, client: IpAddr) -> Result<(), OverBudget> {
        let over = |code| move |wait| OverBudget { code, wait };
        let owner = self.hasher.hash_one(Client::from(client));
        let now = since(self.start);
        let mut state = self.state.lock();
        let place = state.clients.place(owner, now);
        let full_at = match place {
            Some(place) => state.clients.slot(place).full_at(owner),
            None => state.overflow,
        };
        let full_at = self.per_client.take(full_at, now).map_err(over(Code::ClientMintLimit))?;
        state.total = self.total.take(state.total, now).map_err(over(Code::TotalMintLimit))?;
        match place {
            Some(place) => *state.clients.slot(place) = Slot { owner, full_at },
            None => state.overflow = full_at,
        }
        Ok(())
    }

    /// Gives back what [`take`](Self::take) took a moment ago, for a challenge that was never made.
    pub(crate) fn give_back(&self, client: IpAddr) {
        let owner = self.hasher.hash_one(Client::from(client));
        let now = since(self.start);
        let mut state = self.state.lock();
        state.total = self.total.give_back(state.total);
        match state.clients.place(owner, now) {
            Some(place) => {
                let slot = state.clients.slot(place);
                // A place that has been given to somebody else meanwhile holds nothing of this client's.
                if slot.owner == owner {
                    slot.full_at = self.per_client.give_back(slot.full_at);
                }
            }
            None => state.overflow = self.per_client.give_back(state.overflow),
        }
    }

    /// Takes one from the total, for an invoice that no client has asked for yet. Whether there was one.
    pub(crate) fn take_from_total(&self) -> bool {
        let now = since(self.start);
        let mut state = self.state.lock();
        match self.total.take(state.total, now) {
            Ok(total) => {
                state.total = total;
                true
            }
            Err(_) => false,
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
    use crate::Rate;

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
    async fn what_is_given_back_can_be_taken_again_once() {
        let budget = budget(3, 4, 64);
        assert_eq!(granted(&budget, v4(1), 10), 3);
        budget.give_back(v4(1));
        assert_eq!(granted(&budget, v4(1), 10), 1);
        // Of the total of four, three are taken: what came back was counted back there, too.
        assert_eq!(granted(&budget, v4(2), 10), 1);
        // Who has taken nothing gets nothing out of it.
        tokio::time::advance(Duration::from_secs(120)).await;
        budget.give_back(v4(3));
        assert_eq!(granted(&budget, v4(3), 10), 3);
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
        assert_eq!(budget.state.lock().clients.places(), 4_096, "a boxed slice: it can't have grown");
    }

    #[tokio::test(start_paused = true)]
    async fn a_table_of_one_place_still_works() {
        let budget = budget(2, 1_000, 0);
        assert_eq!(granted(&budget, v4(1), 5), 2);
        assert_eq!(granted(&budget, v4(2), 5), 2, "the overflow budget");
        assert_eq!(granted(&budget, v4(3), 5), 0, "the same overflow budget");
    }
}
