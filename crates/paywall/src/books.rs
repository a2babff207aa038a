//! How money gets on the books: settlements as the nodes tell them, terms as tokens are first presented.
//!
//! Every node is followed by itself, with a cursor of its own, so that one that is down delays no other's money. A node
//! that is paid for other things too tells of everybody's settlements: there only what carries our label is booked
//! ([`Label`](farebox_protocol::Label) says what that proves), and the cursor moves past the rest. Others' descriptions
//! are read and forgotten.
//!
//! Nothing here is on a request's path. A request only drops a note into a bounded queue; the owned task writes. Losing
//! a note costs nothing but the delay, since the token's next presentation brings it again, and settlements are read
//! from where the books say they stopped. Trouble with node or store is waited out for ever, never an end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use farebox_lightning::{ReceiveError, ReceiveFacts, Settlement};
use futures_util::StreamExt;
use parking_lot::Mutex;
use tokio::{sync::mpsc, time};
use tokio_util::sync::CancellationToken;

use crate::{
    keyring::LabelKeys,
    nodes::Node,
    sales::Tally,
    seen::Seen,
    store::{Arrival, Booked, Presentation, Sale, Store, StoreError},
    trouble::{Backoff, Trouble},
};

/// How many settlements or presentations are written at once.
const GROUP_MAX: usize = 256;

/// How long a stream of settlements must last to count as working.
const CALM: Duration = Duration::from_secs(5);

/// How often to look whether a node has been reached.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// How many tokens are remembered as booked. 8 bytes each.
const REMEMBERED: usize = 65_536;

/// Writes the books.
pub(crate) struct Books {
    store: Arc<dyn Store>,
    store_timeout: Duration,
    flush_timeout: Duration,
    /// Payments whose terms are on the books or on their way there.
    seen: Seen,
    notes: mpsc::Sender<Presentation>,
    /// Taken by the task that writes.
    queue: Mutex<Option<mpsc::Receiver<Presentation>>>,
    pub(crate) counts: Counts,
    pub(crate) tally: Tally,
    pub(crate) presenting: Trouble,
}

/// What has been booked since the start.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) settled: AtomicU64,
    pub(crate) settled_msat: AtomicU64,
    pub(crate) conflicting: AtomicU64,
    pub(crate) contradicted: AtomicU64,
    pub(crate) presented: AtomicU64,
    pub(crate) dropped: AtomicU64,
}

/// Why following the node's settlements stopped.
#[derive(Debug, thiserror::Error)]
enum Interrupted {
    #[error(transparent)]
    Node(#[from] ReceiveError),
    #[error("the node's stream of settlements ended")]
    Ended,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the store did not answer within {} s (`store_timeout`)", .0.as_secs())]
    StoreTimedOut(Duration),
}

impl Books {
    pub(crate) fn new(store: Arc<dyn Store>, config: &crate::PaywallConfig) -> Self {
        let (notes, queue) = mpsc::channel(config.presentations_queued_max.max(1));
        Self {
            store,
            store_timeout: config.store_timeout,
            flush_timeout: config.flush_timeout,
            seen: Seen::new(REMEMBERED),
            notes,
            queue: Mutex::new(Some(queue)),
            counts: Counts::default(),
            tally: Tally::default(),
            presenting: Trouble::new("booking first presentations"),
        }
    }

    /// Notes that a paid token was presented, if that is news. Never waits.
    pub(crate) fn note(
        &self,
        hash: &farebox_protocol::PaymentHash,
        note: impl FnOnce() -> Option<Presentation>,
    ) {
        if self.seen.insert(hash)
            && let Some(note) = note()
            && self.notes.try_send(note).is_err()
        {
            // The next presentation brings it again.
            self.drop_note(hash);
        }
    }

    /// How many first presentations wait to be written.
    pub(crate) fn queued(&self) -> usize {
        self.notes.max_capacity() - self.notes.capacity()
    }

    fn drop_note(&self, hash: &farebox_protocol::PaymentHash) {
        self.seen.forget(hash);
        self.counts.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// Writes first presentations until told to stop, then what is queued.
    pub(crate) async fn write_notes(&self, stop: &CancellationToken) {
        let Some(mut queue) = self.queue.lock().take() else {
            tracing::error!("the paywall's task runs twice; the second one writes no presentations");
            return;
        };
        let mut backoff = Backoff::default();
        let mut group = Vec::with_capacity(GROUP_MAX);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                _ = queue.recv_many(&mut group, GROUP_MAX) => {}
            }
            match self.write(std::mem::take(&mut group)).await {
                true => backoff.reset(),
                false => backoff.wait(stop).await,
            }
        }
        queue.close();
        let flush = async {
            while queue.recv_many(&mut group, GROUP_MAX).await > 0 {
                self.write(std::mem::take(&mut group)).await;
            }
        };
        if time::timeout(self.flush_timeout, flush).await.is_err() {
            tracing::warn!("not all first presentations were written before the end (`flush_timeout`)");
        }
    }

    async fn write(&self, group: Vec<Presentation>) -> bool {
        let hashes: Vec<_> = group.iter().map(|note| note.hash).collect();
        let written = match time::timeout(self.store_timeout, self.store.present(group)).await {
            Ok(written) => written.map_err(Interrupted::Store),
            Err(_) => Err(Interrupted::StoreTimedOut(self.store_timeout)),
        };
        self.presenting.note(&written);
        match &written {
            Ok(sales) => {
                self.counts.presented.fetch_add(hashes.len() as u64, Ordering::Relaxed);
                self.sold(sales);
            }
            Err(_) => hashes.iter().for_each(|hash| self.drop_note(hash)),
        }
        written.is_ok()
    }

    /// An account was opened, which has booked the first presentation of its token.
    pub(crate) fn opened(&self, sales: &[Sale]) {
        self.counts.presented.fetch_add(1, Ordering::Relaxed);
        self.sold(sales);
    }

    /// Counts what was sold.
    pub(crate) fn sold(&self, sales: &[Sale]) {
        self.tally.sold(sales);
        for sale in sales.iter().filter(|sale| sale.is_contradicted) {
            self.counts.contradicted.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(
                service = %sale.service,
                "the label of a paid invoice says something else than the token that was presented for it; the token's \
                 terms are booked"
            );
        }
    }

    /// Books one node's settlements until told to stop.
    pub(crate) async fn follow(&self, node: &Node, labels: &LabelKeys, stop: &CancellationToken) {
        let mut backoff = Backoff::default();
        while !stop.is_cancelled() {
            let interrupted = tokio::select! {
                () = stop.cancelled() => return,
                interrupted = self.follow_once(node, labels, &mut backoff) => interrupted,
            };
            node.settling.begin(&interrupted);
            backoff.wait(stop).await;
        }
    }

    /// What the node is, once it has been reached. Asking costs nothing, so it is asked often: what was paid for while nobody
    /// followed is on the books as soon as the node is back. Only one that stays away is trouble.
    async fn introduced(&self, node: &Node) -> ReceiveFacts {
        let since = time::Instant::now();
        loop {
            match node.facts() {
                Ok(facts) => return facts,
                Err(error) if since.elapsed() >= CALM => node.settling.begin(&Interrupted::from(error)),
                Err(_) => {}
            }
            time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Books settlements from where the books stop, until something breaks. Dropping it loses nothing: what the store
    /// was asked to write it writes whole or not at all, and the cursor tells which.
    async fn follow_once(&self, node: &Node, labels: &LabelKeys, backoff: &mut Backoff) -> Interrupted {
        let facts = self.introduced(node).await;
        let after = match self.bounded(self.store.cursor(&facts.node)).await {
            Ok(after) => after,
            Err(interrupted) => return interrupted,
        };
        let mut told = node.receive().settlements(after).ready_chunks(GROUP_MAX);
        loop {
            let chunk = match time::timeout(CALM, told.next()).await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => return Interrupted::Ended,
                // Silence is what a working node has to say when nobody pays.
                Err(_) => {
                    node.settling.clear();
                    backoff.reset();
                    continue;
                }
            };
            let mut group = Vec::with_capacity(chunk.len());
            let mut broken = None;
            for settlement in chunk {
                match settlement {
                    Ok(settlement) if broken.is_none() => group.push(settlement),
                    Ok(_) => {}
                    Err(error) => broken = broken.or(Some(error)),
                }
            }
            if !group.is_empty() {
                if let Err(interrupted) = self.settle(node, &facts, labels, group).await {
                    return interrupted;
                }
                node.settling.clear();
                backoff.reset();
            }
            if let Some(error) = broken {
                return error.into();
            }
        }
    }

    async fn settle(
        &self,
        node: &Node,
        facts: &ReceiveFacts,
        labels: &LabelKeys,
        group: Vec<Settlement>,
    ) -> Result<(), Interrupted> {
        let told = group.len();
        let to = group.iter().map(|settlement| settlement.cursor).max().unwrap_or_default();
        let arrivals: Vec<_> = group
            .into_iter()
            .map(|mut settlement| {
                let said = settlement.description.take();
                let claimed = said.and_then(|said| labels.read(&said, settlement.amount));
                Arrival { settlement, claimed }
            })
            .filter(|arrival| !facts.is_shared || arrival.claimed.is_some())
            .collect();
        let others = told - arrivals.len();
        let booked = self.bounded(self.store.settle(&facts.node, arrivals, to)).await?;
        let Booked { new, arrived, conflicting, sales, .. } = booked;
        node.others.fetch_add(others as u64, Ordering::Relaxed);
        self.counts.settled.fetch_add(new as u64, Ordering::Relaxed);
        self.counts.settled_msat.fetch_add(arrived.get(), Ordering::Relaxed);
        self.sold(&sales);
        if conflicting > 0 {
            self.counts.conflicting.fetch_add(conflicting as u64, Ordering::Relaxed);
            tracing::error!(
                node = facts.node,
                conflicting,
                "payments were not booked: the books hold others at the same places of this node's sequence; \
                 has the node lost its history?"
            );
        }
        Ok(())
    }

    async fn bounded<T>(
        &self,
        answer: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, Interrupted> {
        match time::timeout(self.store_timeout, answer).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(Interrupted::StoreTimedOut(self.store_timeout)),
        }
    }
}
