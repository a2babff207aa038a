//! How debits get to the disk: in groups, one at a time, in the order of their numbers, until they are there.
//!
//! A group that fails is tried again as it is, under its own number, so that one whose acknowledgement was lost isn't
//! counted twice. Meanwhile nothing new is reserved: what isn't written is bounded by what was under way when the trouble
//! began, and a crash loses no more than that. What is committed meanwhile adds up in the accounts, in their own places.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Mutex, Notify},
    time,
};
use tokio_util::sync::CancellationToken;

use super::{Ledger, month};
use crate::{
    store::{
        StoreError,
        accounts::{Debited, EpochId, Group},
    },
    trouble::{Backoff, Trouble},
};

/// How many accounts one group debits.
const GROUP_MAX: usize = 1_024;

/// How many answers one group keeps, or a few more: 64 KiB each at most.
const ANSWERS_MAX: usize = 128;

/// The longest wait between tries: how long after trouble has ended counted requests are served again.
pub(super) const RETRY_MAX: Duration = Duration::from_secs(2);

/// What is to be written, and whether that works.
pub(super) struct Writing {
    pub(super) wake: Notify,
    /// How many commits are not on the disk.
    pub(super) unwritten: AtomicUsize,
    /// Whether the last try failed.
    pub(super) failing: AtomicBool,
    /// Whether somebody else has taken the books over.
    superseded: AtomicBool,
    /// Whether this ledger has come to its end.
    closed: AtomicBool,
    pub(super) trouble: Trouble,
    /// The group under way. Held while it is written, so that groups go one after the other.
    under_way: Mutex<Sequence>,
}

struct Sequence {
    epoch: EpochId,
    last: u64,
    pending: Option<Pending>,
}

#[derive(Clone)]
struct Pending {
    group: Arc<Group>,
    /// Whose months are in it.
    months: Arc<[month::Key]>,
    /// How many commits are in it.
    commits: usize,
}

/// Why a group isn't written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unwritten {
    /// The store fails.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store doesn't answer.
    #[error("the store did not answer within {} s (`store_timeout`)", .0.as_secs())]
    TimedOut(Duration),
}

impl Writing {
    pub(super) fn new(epoch: EpochId) -> Self {
        Self {
            wake: Notify::new(),
            unwritten: AtomicUsize::new(0),
            failing: AtomicBool::new(false),
            superseded: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            trouble: Trouble::new("writing debits"),
            under_way: Mutex::new(Sequence { epoch, last: 0, pending: None }),
        }
    }

    /// One more is to be written.
    pub(super) fn add_one(&self) {
        self.unwritten.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether nothing will be written any more.
    pub(super) fn is_over(&self) -> bool {
        self.closed.load(Ordering::Acquire) || self.superseded.load(Ordering::Acquire)
    }
}

impl Ledger {
    /// Writes debits until told to stop, then what is left, and ends the epoch. The caller owns this task and waits for its
    /// end, which takes `flush_timeout` at most. Whoever uses the ledger ends before it is told to stop.
    pub async fn run(&self, stop: &CancellationToken) {
        let mut backoff = Backoff::up_to(RETRY_MAX);
        while !stop.is_cancelled() {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = self.writing.wake.notified() => {}
            }
            while !stop.is_cancelled() {
                match self.write_group().await {
                    Ok(Wrote { more }) => {
                        backoff.reset();
                        if !more {
                            break;
                        }
                    }
                    Err(_) => backoff.wait(stop).await,
                }
            }
        }
        self.close().await;
    }

    /// Writes what there is, ends the epoch, and from then on reserves nothing; how many commits could not be written within
    /// `flush_timeout`. [`run`](Self::run) ends with it.
    pub async fn close(&self) -> usize {
        let flush = async {
            self.write_all().await?;
            self.tasks.close();
            self.tasks.wait().await;
            let epoch = self.writing.under_way.lock().await.epoch;
            self.store.end_epoch(epoch, self.clock.now()).await.map_err(Unwritten::Store)
        };
        let ended = time::timeout(self.config.flush_timeout, flush).await;
        self.writing.closed.store(true, Ordering::Release);
        let lost = self.writing.unwritten.load(Ordering::Acquire);
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(lost, %error, "the ledger could not be closed; what was lost, buyers keep")
            }
            Err(_) => {
                tracing::error!(
                    lost,
                    "the ledger could not be closed in time (`flush_timeout`); what was lost, buyers keep"
                );
            }
        }
        lost
    }

    async fn write_all(&self) -> Result<(), Unwritten> {
        let (mut backoff, never) = (Backoff::up_to(RETRY_MAX), CancellationToken::new());
        loop {
            match self.write_group().await {
                Ok(Wrote { more: true }) => {}
                Ok(Wrote { more: false }) => return Ok(()),
                Err(error) if self.writing.superseded.load(Ordering::Acquire) => return Err(error),
                Err(_) => backoff.wait(&never).await,
            }
        }
    }

    /// Writes what there is now, and gives up at the first failure.
    ///
    /// # Errors
    ///
    /// When the store fails; what isn't written stays to be written.
    pub async fn flush(&self) -> Result<(), Unwritten> {
        while self.write_group().await?.more {}
        Ok(())
    }

    /// Writes one group, if there is one. Dropping it loses nothing: the group stays the next one.
    async fn write_group(&self) -> Result<Wrote, Unwritten> {
        let mut sequence = self.writing.under_way.lock().await;
        let pending = match sequence.pending.clone() {
            Some(pending) => pending,
            None => match self.gather(sequence.epoch, sequence.last + 1) {
                Some(gathered) => sequence.pending.insert(gathered).clone(),
                None => return Ok(Wrote { more: false }),
            },
        };
        let asked = self.store.debit(Arc::clone(&pending.group));
        let written = match time::timeout(self.config.store_timeout, asked).await {
            Ok(written) => written.map_err(Unwritten::Store),
            Err(_) => Err(Unwritten::TimedOut(self.config.store_timeout)),
        };
        self.writing.trouble.note(&written);
        self.writing.failing.store(written.is_err(), Ordering::Release);
        let superseded = matches!(written, Err(Unwritten::Store(StoreError::Superseded(_))));
        self.writing.superseded.fetch_or(superseded, Ordering::AcqRel);
        let Debited { excess, missing } = written?;
        if excess > 0 || missing > 0 {
            tracing::error!(
                excess,
                missing,
                "debits did not fit the accounts; was a backup restored under a running gateway?"
            );
        }
        sequence.last = pending.group.number;
        sequence.pending = None;
        self.written(&pending);
        Ok(Wrote { more: self.writing.unwritten.load(Ordering::Acquire) > 0 })
    }

    /// The debits of the next group, marked as being on their way.
    fn gather(&self, epoch: EpochId, number: u64) -> Option<Pending> {
        let (mut debits, mut answers) = (Vec::new(), Vec::new());
        let mut commits = 0;
        // Not always the same one first, so that under load everybody's turn comes.
        for shard in self.accounts.shards_from(number) {
            let mut shard = shard.lock();
            while debits.len() < GROUP_MAX
                && answers.len() < ANSWERS_MAX
                && let Some(hash) = shard.unwritten.pop_front()
            {
                let live = shard.live(&hash).expect("what isn't written is never forgotten");
                let debit = live.take(hash, &mut answers);
                commits += usize::try_from(debit.requests).unwrap_or(usize::MAX);
                debits.push(debit);
            }
        }
        let is_full = |months, answers| months >= GROUP_MAX || answers >= ANSWERS_MAX;
        let (uses, months, of_months) = self.gather_months(number, is_full, &mut answers);
        commits += of_months;
        if debits.is_empty() && months.is_empty() {
            return None;
        }
        let group = Arc::new(Group { epoch, number, at: self.clock.now(), debits, uses, answers });
        Some(Pending { group, months: months.into(), commits })
    }

    fn written(&self, pending: &Pending) {
        for debit in &pending.group.debits {
            self.held(&debit.hash, |live| live.writing = false);
        }
        self.written_months(&pending.months);
        self.answers.written(&pending.group.answers);
        self.writing.unwritten.fetch_sub(pending.commits, Ordering::AcqRel);
    }
}

/// A group was written, or there was none.
struct Wrote {
    /// Whether there is more to write.
    more: bool,
}
