//! Who is connected: how many there may be in all and from one client, and who may come in.
//!
//! A connection has a seat from the moment it is accepted to its very end, whatever it has become by then (a WebSocket, for
//! one). What is kept to count them grows with open connections only and is let go of with them, so it is bounded by
//! `connections_max`.
//!
//! When every place is taken, a connection that asks for nothing, and has had time to, makes room for the next: the one that
//! has been seen idle longest ago. So those who hold connections without using them shut nobody out; when all are in use, new ones wait.
//! Turned down: shortening the keep-alive time as the house fills. It would end thousands at once where one is needed, and
//! none where all of them are fresh.

use std::{
    collections::HashMap,
    net::IpAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use ipnet::IpNet;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{Duration, timeout},
};

use crate::{
    addresses::{Addresses, Welcome},
    config::{ClientLists, Limits},
    metrics::{Gauge, Refused},
};

/// How long to wait for the one that was asked to leave, before the next is asked.
const ANOTHER: Duration = Duration::from_millis(50);

/// See the module.
pub(crate) struct Guests {
    places: Arc<Semaphore>,
    /// How many wait for a place.
    wanted: AtomicUsize,
    /// Connections that ask for nothing wait here to be told to leave, the oldest first.
    leave: Notify,
    open: Gauge,
    per_client_max: usize,
    per_client: Mutex<HashMap<Client, usize>>,
    trusted: Addresses,
    welcome: Welcome,
}

/// One client, as far as connections are counted: an IPv4 address, or the first half of an IPv6 address, of which a
/// household has all the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Client {
    V4(u32),
    V6(u64),
}

/// What a connection takes up, until dropped.
pub(crate) struct Seat {
    guests: Arc<Guests>,
    client: Option<Client>,
    place: Option<OwnedSemaphorePermit>,
}

/// Why a connection is closed before anything was said on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("this client is not on the list of those who may come in, or on that of those who may not")]
    NotWelcome,
    #[error("this client has as many connections open as it may")]
    TooMany,
    #[error("only trusted proxies may connect to a listener for the PROXY protocol")]
    NotAProxy,
    #[error("the connection didn't begin with a header of the PROXY protocol")]
    NoProxyHeader,
}

impl Refusal {
    /// As what it is counted.
    pub(super) const fn counted(self) -> Refused {
        match self {
            Self::NotWelcome => Refused::Blocked,
            Self::TooMany => Refused::TooMany,
            Self::NotAProxy | Self::NoProxyHeader => Refused::ProxyHeader,
        }
    }
}

impl Guests {
    pub(crate) fn new(limits: &Limits, trusted: &[IpNet], lists: &ClientLists, open: Gauge) -> Arc<Self> {
        Arc::new(Self {
            wanted: AtomicUsize::new(0),
            places: Arc::new(Semaphore::new(limits.connections_max.min(Semaphore::MAX_PERMITS))),
            leave: Notify::new(),
            open,
            per_client_max: limits.connections_per_client_max,
            per_client: Mutex::default(),
            trusted: Addresses::new(trusted),
            welcome: Welcome::new(lists),
        })
    }

    /// Whether this is a proxy that is believed.
    pub(crate) fn is_trusted(&self, ip: IpAddr) -> bool {
        self.trusted.contains(ip)
    }

    /// Whether this client may come in. Asked for each request for which a proxy speaks, too.
    pub(crate) fn is_welcome(&self, ip: IpAddr) -> bool {
        self.welcome.is_for(ip)
    }

    /// A place for a connection, as soon as there is one.
    pub(super) async fn place(&self) -> OwnedSemaphorePermit {
        if let Ok(place) = self.places.clone().try_acquire_owned() {
            return place;
        }
        self.wanted.fetch_add(1, Relaxed);
        let _until_then = Wanted(&self.wanted);
        let mut place = pin!(self.places.clone().acquire_owned());
        loop {
            self.leave.notify_one();
            if let Ok(place) = timeout(ANOTHER, place.as_mut()).await {
                return place.expect("the semaphore is never closed");
            }
        }
    }

    /// Waits until it is this connection's turn to make room. Only the oldest that waits here is told, so a connection that
    /// can't leave tells the [`next`](Self::next).
    pub(super) async fn turn(&self) {
        loop {
            self.leave.notified().await;
            // It may have been meant for one that has left by itself.
            if self.wanted.load(Relaxed) > 0 {
                return;
            }
        }
    }

    /// Tells the next one to make room.
    pub(super) fn next(&self) {
        self.leave.notify_one();
    }
}

/// One that waits for a place, until dropped.
struct Wanted<'a>(&'a AtomicUsize);

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Seat {
    /// Nobody's, and in no place yet.
    pub(super) fn new(guests: &Arc<Guests>) -> Self {
        Self { guests: guests.clone(), client: None, place: None }
    }

    /// Counts it among those that are open.
    pub(super) fn sit(&mut self, place: OwnedSemaphorePermit) {
        if self.place.replace(place).is_none() {
            self.guests.open.increment(1);
        }
    }

    /// Gives it to a client, if that may have it. Proxies that are believed carry the connections of many, who are judged
    /// request by request.
    pub(super) fn take(&mut self, ip: IpAddr) -> Result<(), Refusal> {
        self.leave();
        if self.guests.is_trusted(ip) {
            return Ok(());
        }
        if !self.guests.is_welcome(ip) {
            return Err(Refusal::NotWelcome);
        }
        let client = Client::of(ip);
        let mut all = self.guests.per_client.lock();
        let count = all.entry(client).or_default();
        if *count >= self.guests.per_client_max {
            // There is an entry only as long as it counts something.
            if *count == 0 {
                all.remove(&client);
            }
            return Err(Refusal::TooMany);
        }
        *count += 1;
        self.client = Some(client);
        Ok(())
    }

    fn leave(&mut self) {
        let Some(client) = self.client.take() else { return };
        let mut all = self.guests.per_client.lock();
        if let Some(count) = all.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                all.remove(&client);
            }
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.leave();
        if self.place.take().is_some() {
            self.guests.open.decrement(1);
        }
    }
}

impl Client {
    fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self::V4(ip.into()),
            IpAddr::V6(ip) => {
                let half = ip.octets().first_chunk().copied();
                Self::V6(u64::from_be_bytes(half.expect("an address has sixteen bytes")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guests(per_client_max: usize, connections_max: usize) -> Arc<Guests> {
        let limits =
            Limits { connections_max, connections_per_client_max: per_client_max, ..Limits::default() };
        let lists = ClientLists { allow: vec![], block: vec!["6.6.6.6/32".parse().unwrap()] };
        Guests::new(&limits, &["10.0.0.0/8".parse().unwrap()], &lists, Gauge::default())
    }

    fn seat(guests: &Arc<Guests>, ip: &str) -> Result<Seat, Refusal> {
        let mut seat = Seat::new(guests);
        seat.take(ip.parse().unwrap())?;
        seat.sit(guests.places.clone().try_acquire_owned().unwrap());
        Ok(seat)
    }

    #[test]
    fn one_client_has_so_many_connections_and_others_have_theirs() {
        let guests = guests(2, 100);
        let first = seat(&guests, "1.2.3.4").unwrap();
        let _second = seat(&guests, "::ffff:1.2.3.4").unwrap();
        assert_eq!(seat(&guests, "1.2.3.4").err(), Some(Refusal::TooMany));
        let _other = seat(&guests, "1.2.3.5").unwrap();
        drop(first);
        let _again = seat(&guests, "1.2.3.4").unwrap();
        assert_eq!(seat(&guests, "1.2.3.4").err(), Some(Refusal::TooMany));

        let _v6 = [seat(&guests, "2001:db8::1").unwrap(), seat(&guests, "2001:db8:0:0:ffff::").unwrap()];
        assert_eq!(seat(&guests, "2001:db8::2").err(), Some(Refusal::TooMany), "one /64 is one client");
        let _neighbour = seat(&guests, "2001:db8:0:1::").unwrap();
    }

    #[test]
    fn nothing_is_left_of_those_who_have_gone() {
        let guests = guests(2, 100);
        let seats = ["1.2.3.4", "1.2.3.4", "::1", "10.0.0.1"].map(|ip| seat(&guests, ip).unwrap());
        assert_eq!(guests.per_client.lock().len(), 2);
        drop(seats);
        for refused in ["1.2.3.4", "1.2.3.4", "6.6.6.6"] {
            drop(seat(&guests, refused));
        }
        assert_eq!(guests.per_client.lock().len(), 0);
        assert_eq!(guests.places.available_permits(), 100);
    }

    #[test]
    fn a_trusted_proxy_has_no_limit_and_who_is_blocked_no_seat() {
        let guests = guests(1, 100);
        let _seats = [(); 50].map(|()| seat(&guests, "10.1.2.3").unwrap());
        assert_eq!(seat(&guests, "6.6.6.6").err(), Some(Refusal::NotWelcome));
    }

    #[test]
    fn a_limit_of_none_lets_nobody_in_and_keeps_no_entry() {
        let guests = guests(0, 100);
        assert_eq!(seat(&guests, "1.2.3.4").err(), Some(Refusal::TooMany));
        assert_eq!(guests.per_client.lock().len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn in_a_full_house_the_one_that_has_waited_longest_makes_room() {
        let guests = guests(100, 2);
        let mut seats = [Some(seat(&guests, "1.1.1.1").unwrap()), Some(seat(&guests, "1.1.1.2").unwrap())];
        let mut turns: Vec<_> = (0..2).map(|_| Box::pin(guests.turn())).collect();
        for turn in &mut turns {
            assert!(futures_util::FutureExt::now_or_never(turn.as_mut()).is_none());
        }
        // A call that comes too late sends nobody away: nobody wants a place.
        guests.next();
        assert!(futures_util::FutureExt::now_or_never(turns[0].as_mut()).is_none());

        let mut wanted = Box::pin(guests.place());
        assert!(futures_util::FutureExt::now_or_never(wanted.as_mut()).is_none());
        assert!(
            futures_util::FutureExt::now_or_never(turns[1].as_mut()).is_some(),
            "now the first in the queue"
        );
        assert!(futures_util::FutureExt::now_or_never(turns[0].as_mut()).is_none());
        seats[1] = None;
        drop(wanted.await);
    }
}
