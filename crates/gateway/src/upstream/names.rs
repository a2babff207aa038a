//! From a host's name to its addresses, a few questions at a time.
//!
//! The system answers in a thread that nobody can call back, however long it takes. With a resolver that is silent, each
//! new connection would leave one more behind it, and those that nobody waits for any more would stand in the way of
//! the first that is answered again. So few are under way at once; who doesn't get a turn within the time for connecting
//! has asked nothing.

use std::{
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    sync::Arc,
};

use tokio::{net::TcpStream, sync::Semaphore, task::spawn_blocking};

/// How many questions about one host are under way at once: enough for a burst of new connections where an answer takes 50 ms
/// (a thousand in less than a second), and few beside the 512 threads that a runtime has for such.
const LOOKUPS_MAX: usize = 64;

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

    /// Connects to the first of its addresses that lets us.
    pub(super) async fn connect(&self) -> io::Result<TcpStream> {
        match self.name.parse::<IpAddr>() {
            Ok(ip) => TcpStream::connect((ip, self.port)).await,
            Err(_) => TcpStream::connect(&*self.look_up().await?).await,
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

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::net::TcpListener;

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
}
