//! From a host's name to its addresses, a few questions at a time.
//!
//! The system answers in a thread that nobody can call back, however long it takes. With a resolver that is silent, each
//! new connection would leave one more behind it, and those that nobody waits for any more would stand in the way of
//! the first that is answered again. So few are under way at once; who doesn't get a turn within the time for connecting
//! has asked nothing.
//!
//! A name may have several addresses, and one of them be gone without a word: the next one is then tried beside it, so that
//! one machine that is down, or IPv6 that leads nowhere, doesn't take up all the time for connecting.

use std::{
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    sync::Arc,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    net::TcpStream,
    sync::Semaphore,
    task::spawn_blocking,
    time::{Duration, timeout},
};

/// How many questions about one host are under way at once: enough for a burst of new connections where an answer takes 50 ms
/// (a thousand in less than a second), and few beside the 512 threads that a runtime has for such.
const LOOKUPS_MAX: usize = 64;

/// How long an address may be silent before the next one is tried as well (RFC 8305, section 5).
const NEXT_AFTER: Duration = Duration::from_millis(250);

/// A host, by name or by address, and a port.
#[derive(Clone)]
pub(super) struct Host {
    name: Arc<str>,
    port: u16,
    lookups: Arc<Semaphore>,
}

impl Host {
    pub(super) fn new(name: &str, port: u16) -> Self {
        Self { name: name.into(), port, lookups: Arc::new(Semaphore::new(LOOKUPS_MAX)) }
    }

    /// Connects to whichever of its addresses lets us first.
    pub(super) async fn connect(&self) -> io::Result<TcpStream> {
        match self.name.parse::<IpAddr>() {
            Ok(ip) => TcpStream::connect((ip, self.port)).await,
            Err(_) => first(&self.look_up().await?, TcpStream::connect).await,
        }
    }

    async fn look_up(&self) -> io::Result<Vec<SocketAddr>> {
        let turn = self.lookups.clone().acquire_owned().await.expect("the semaphore is never closed");
        let Self { name, port, .. } = self.clone();
        let asked = spawn_blocking(move || {
            let found = (&*name, port).to_socket_addrs().map(Iterator::collect);
            // Here and not where somebody waits: it lasts as long as the question, whether anybody still does.
            drop(turn);
            found
        });
        asked.await.map_err(io::Error::other)?
    }
}

/// Connects to these in turn, to the next one as soon as the last has failed or kept silent for a while. The first
/// connection counts; if there is none, the last error.
async fn first<C, F>(addresses: &[SocketAddr], connect: impl Fn(SocketAddr) -> F) -> io::Result<C>
where
    F: Future<Output = io::Result<C>>,
{
    let mut left = addresses.iter();
    let mut under_way = FuturesUnordered::new();
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        under_way.extend(left.next().map(|address| connect(*address)));
        let ended = match left.len() {
            0 => under_way.next().await,
            _ => match timeout(NEXT_AFTER, under_way.next()).await {
                Ok(ended) => ended,
                Err(_) => continue,
            },
        };
        match ended {
            Some(Ok(connection)) => return Ok(connection),
            Some(Err(error)) => failed = error,
            None => return Err(failed),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures_util::FutureExt;
    use tokio::{net::TcpListener, time::Instant};

    use super::*;

    #[tokio::test]
    async fn a_host_is_reached_by_name_and_by_address() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        for name in ["127.0.0.1", "localhost"] {
            let host = Host::new(name, port);
            assert_eq!(host.connect().await.unwrap().peer_addr().unwrap().port(), port, "{name}");
            assert_eq!(host.lookups.available_permits(), LOOKUPS_MAX);
        }
    }

    #[tokio::test]
    async fn who_gets_no_turn_asks_nothing() {
        let host = Host::new("localhost", 1);
        let all = u32::try_from(LOOKUPS_MAX).unwrap();
        let taken = host.lookups.clone().acquire_many_owned(all).await.unwrap();
        assert!(host.look_up().now_or_never().is_none());
        assert_eq!(host.lookups.available_permits(), 0);
        drop(taken);
        assert!(!host.look_up().await.unwrap().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_is_silent_or_refuses_takes_no_time_from_the_next() {
        let address = |last: u16| SocketAddr::from(([127, 0, 0, 1], last));
        // By their ports: 1 is silent, 2 refuses, all others let us in after a second.
        let connect = |to: SocketAddr| async move {
            match to.port() {
                1 => pending().await,
                2 => Err(io::ErrorKind::ConnectionRefused.into()),
                port => {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    Ok(port)
                }
            }
        };
        for (ports, want, millis) in [
            (&[3][..], 3, 1_000),
            (&[1, 3], 3, 1_250),
            (&[2, 3], 3, 1_000),
            (&[1, 1, 2, 3], 3, 1_500),
            (&[3, 4], 3, 1_000),
        ] {
            let addresses: Vec<_> = ports.iter().copied().map(address).collect();
            let began = Instant::now();
            assert_eq!(first(&addresses, connect).await.unwrap(), want, "{ports:?}");
            assert_eq!(began.elapsed().as_millis(), millis, "{ports:?}");
        }
        let refused = first(&[address(2), address(2)], connect).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(first(&[], connect).await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
