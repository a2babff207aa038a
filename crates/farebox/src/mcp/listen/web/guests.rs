//! Who is connected over HTTP.
//!
//! Anybody on this machine can connect, a web page in its browser too, so connections alone must keep nobody out: of those that
//! haven't shown the secret the oldest goes when there are too many. Those that have keep their place.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// All of them.
pub(super) struct Guests {
    strangers_max: usize,
    /// The places of those who have shown the secret.
    places: Arc<Semaphore>,
    strangers: Mutex<Strangers>,
}

#[derive(Default)]
struct Strangers {
    next: u64,
    /// In the order in which they came.
    waiting: BTreeMap<u64, CancellationToken>,
}

/// One connection, until it is dropped.
pub(super) struct Guest {
    number: u64,
    of: Arc<Guests>,
    place: Mutex<Option<OwnedSemaphorePermit>>,
    /// Sent away.
    pub(super) away: CancellationToken,
}

impl Guests {
    /// So many who have shown the secret, and so many who haven't.
    pub(super) fn new(known_max: usize, strangers_max: usize) -> Arc<Self> {
        let places = Arc::new(Semaphore::new(known_max));
        Arc::new(Self { strangers_max, places, strangers: Mutex::default() })
    }

    /// Takes in a newcomer.
    pub(super) fn admit(self: &Arc<Self>) -> Arc<Guest> {
        let away = CancellationToken::new();
        let mut strangers = self.strangers.lock();
        if strangers.waiting.len() >= self.strangers_max
            && let Some((_, oldest)) = strangers.waiting.pop_first()
        {
            oldest.cancel();
        }
        let number = strangers.next;
        strangers.next += 1;
        strangers.waiting.insert(number, away.clone());
        Arc::new(Guest { number, of: Arc::clone(self), place: Mutex::default(), away })
    }
}

impl Guest {
    /// Whether there is a place for it, which has shown the secret.
    pub(super) fn is_seated(&self) -> bool {
        let mut place = self.place.lock();
        if place.is_none() {
            *place = Arc::clone(&self.of.places).try_acquire_owned().ok();
            if place.is_some() {
                self.of.strangers.lock().waiting.remove(&self.number);
            }
        }
        place.is_some()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.of.strangers.lock().waiting.remove(&self.number);
    }
}
