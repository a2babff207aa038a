//! Holds a lease for as long as a purchase takes, and gives it back whatever happens.

use std::sync::Arc;

use tokio::{runtime::Handle, time};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::journal::{
    Journal,
    lease::{Lease, TTL},
};
use farebox_lightning::clock::Clock;

/// A lease that is renewed in the background until it is dropped. When its holder is suspended nobody renews it, which
/// is the point.
pub(super) struct Held {
    pub(super) lease: Lease,
    journal: Journal,
    tasks: TaskTracker,
    renewing: CancellationToken,
    released: bool,
}

impl Held {
    pub(super) fn new(lease: Lease, journal: Journal, clock: Arc<dyn Clock>, tasks: TaskTracker) -> Self {
        let renewing = CancellationToken::new();
        let (stop, of, own) = (renewing.clone(), journal.clone(), lease.clone());
        let blocking = tasks.clone();
        tasks.spawn(async move {
            while stop.run_until_cancelled(time::sleep(TTL / 4)).await.is_some() {
                let (journal, lease, now) = (of.clone(), own.clone(), clock.now());
                match blocking.spawn_blocking(move || journal.renew(&lease, now)).await {
                    Ok(Ok(true)) => {}
                    // Gone, and it can't come back; whoever marks a payment as sent will find out.
                    Ok(Ok(false)) => return,
                    Ok(Err(error)) => tracing::warn!(%error, "the lease of a purchase could not be renewed"),
                    Err(_) => return,
                }
            }
        });
        Self { lease, journal, tasks, renewing, released: false }
    }

    /// Gives the lease back and waits until that is on disk.
    pub(super) async fn release(mut self) {
        self.released = true;
        self.renewing.cancel();
        let (journal, lease) = (self.journal.clone(), self.lease.clone());
        _ = self.tasks.spawn_blocking(move || release(&journal, &lease)).await;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.renewing.cancel();
        if self.released {
            return;
        }
        let (journal, lease) = (self.journal.clone(), self.lease.clone());
        match Handle::try_current() {
            Ok(runtime) => _ = self.tasks.spawn_blocking_on(move || release(&journal, &lease), &runtime),
            Err(_) => release(&journal, &lease),
        }
    }
}

/// A lease that isn't given back runs out, or is taken from a process that has ended: a failure here costs only time.
fn release(journal: &Journal, lease: &Lease) {
    if let Err(error) = journal.release(lease) {
        tracing::warn!(%error, "the lease of a purchase could not be given back");
    }
}
