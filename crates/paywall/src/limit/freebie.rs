//! Freebies: so many requests of each network for nothing, before anything must be paid.
//!
//! One is counted before the request goes on, so that of many at once exactly as many pass as there are left. Whoever carries
//! the request out gives it back where the client got nothing for it, through the [`Freebie`] in the pass. The memory is
//! fixed: a count is forgotten only when its time is over or nothing is left in it, and where there is no room for another
//! network, all that come too late share one allowance for each service. Nobody whose freebies are used up gets new ones by
//! crowding the table.
//!
//! Not for how fast anything may be used: that is `rate.rs`.

mod file;
mod table;

use std::{
    fmt,
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use farebox_protocol::{ServiceName, Timestamp};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::{task::spawn_blocking, time};
use tokio_util::sync::CancellationToken;

pub use self::file::FreebieFileError;
use self::{
    file::File,
    table::{Span, Table},
};
use crate::{Freebies, Service, trouble::Trouble};

/// The counts of all services.
pub(crate) struct FreebieCounts {
    networks_max: usize,
    /// Nobody can aim at the place of another network without it.
    key: [u8; 32],
    /// Of services whose counts end with the process.
    fleeting: OnceLock<Mutex<Table>>,
    /// Of those whose counts are kept.
    kept: OnceLock<Mutex<Table>>,
    file: Option<Mutex<File>>,
    pub(crate) keeping: Trouble,
}

/// One freebie, counted against the network that asked.
#[derive(Clone)]
pub struct Freebie(Arc<Counted>);

struct Counted {
    counts: Arc<FreebieCounts>,
    keep: bool,
    span: Span,
    given_back: AtomicBool,
}

impl FreebieCounts {
    /// Counts so many networks apart from each other. Counts that were kept are read from the file, which need not be there
    /// yet. Blocks.
    pub(crate) fn open(networks_max: usize, path: Option<PathBuf>) -> Result<Self, FreebieFileError> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(|error| FreebieFileError::NoRandomness(error.to_string()))?;
        let kept = OnceLock::new();
        let mut file = path.map(File::at);
        if let Some(read) = file.as_mut().map(File::read).transpose()?.flatten() {
            key = read.key;
            _ = kept.set(Mutex::new(read.table));
        }
        Ok(Self {
            networks_max,
            key,
            fleeting: OnceLock::new(),
            kept,
            file: file.map(Mutex::new),
            keeping: Trouble::new("keeping the counts of freebies"),
        })
    }

    /// Counts one for the network of this client, if there is one left for it.
    pub(crate) fn take(
        self: &Arc<Self>,
        service: &Service,
        offer: &Freebies,
        client: IpAddr,
        now: Timestamp,
    ) -> Option<Freebie> {
        let owner = self.owner(&service.name, network(client));
        let latecomers = || self.owner(&service.name, *b"\0others");
        let table = if offer.keep { &self.kept } else { &self.fleeting };
        let table = table.get_or_init(|| Mutex::new(Table::new(self.networks_max)));
        let span = table.lock().take(owner, latecomers, offer, now)?;
        let given_back = AtomicBool::new(false);
        Some(Freebie(Arc::new(Counted { counts: Arc::clone(self), keep: offer.keep, span, given_back })))
    }

    /// How often the allowance of the latecomers was asked, because there was no place for another network.
    pub(crate) fn overflowed(&self) -> u64 {
        let tables = [&self.fleeting, &self.kept].into_iter().filter_map(OnceLock::get);
        tables.map(|table| table.lock().overflowed).sum()
    }

    /// Writes what changes in kept counts to their file, at this pace, until told to stop; then once more.
    pub(crate) async fn keep_current(self: &Arc<Self>, every: Duration, stop: &CancellationToken) {
        if self.file.is_none() {
            return;
        }
        let mut ticks = time::interval(every.max(Duration::from_millis(10)));
        ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        loop {
            let is_last = tokio::select! {
                () = stop.cancelled() => true,
                _ = ticks.tick() => false,
            };
            let counts = Arc::clone(self);
            // Not given up half-way when this task is: what has been taken from the table gets written.
            _ = spawn_blocking(move || counts.write()).await;
            if is_last {
                return;
            }
        }
    }

    /// Writes what has changed. Blocks.
    fn write(&self) {
        let (Some(file), Some(table)) = (&self.file, self.kept.get()) else { return };
        let mut file = file.lock();
        let (networks, pages) = {
            let mut table = table.lock();
            (table.networks(), table.changed_pages())
        };
        if pages.is_empty() {
            return;
        }
        let written = file.write(&self.key, networks, &pages);
        if written.is_err() {
            table.lock().mark_changed(pages.iter().map(|(page, _)| *page));
        }
        self.keeping.note(&written);
    }

    fn owner(&self, service: &ServiceName, network: [u8; 7]) -> u64 {
        // A name has no zero byte.
        let hash = Sha256::new().chain_update(self.key).chain_update(service.as_str());
        let hash = hash.chain_update([0]).chain_update(network).finalize();
        u64::from_le_bytes(hash[..8].try_into().expect("eight bytes of thirty-two"))
    }
}

/// The network that counts as one: an IPv4 /24, an IPv6 /48. Who has one address there can mostly have others.
fn network(client: IpAddr) -> [u8; 7] {
    match client.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            [4, a, b, c, 0, 0, 0]
        }
        IpAddr::V6(v6) => {
            let [a, b, c, d, e, f, ..] = v6.octets();
            [6, a, b, c, d, e, f]
        }
    }
}

impl Freebie {
    /// Gives it back, once: the upstream was never reached, or failed. Not where the client broke off, or ran out of its own
    /// time: who can have work done and then have the freebie back has as many as they like.
    pub fn give_back(&self) {
        let Counted { counts, keep, span, given_back } = &*self.0;
        if !given_back.swap(true, Ordering::Relaxed) {
            let table = if *keep { &counts.kept } else { &counts.fleeting };
            table.get().expect("it was counted there").lock().give_back(*span);
        }
    }
}

impl fmt::Debug for Freebie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Freebie")
    }
}

impl PartialEq for Freebie {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Freebie {}
