//! Polls what hardly ever happens only when it does.
//!
//! A task that waits for several things polls them all whenever one of them wakes it. A connection is woken twice with each
//! request, and its timer and its two notices next to never: here they have a waker of their own, which notes that it was
//! they who called.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::task::AtomicWaker;

/// What seldom futures ring. It is handed out as a waker, and wakes the task in turn.
pub(super) struct Bell {
    note: Arc<Note>,
    /// The note, as a waker.
    rings: Waker,
    /// Whom it wakes; the same for as long as a task has it.
    wakes: Option<Waker>,
}

#[derive(Default)]
struct Note {
    has_rung: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Note {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // First the note, then the call: who is called looks for it.
        self.has_rung.store(true, Ordering::Release);
        self.task.wake();
    }
}

impl Bell {
    pub(super) fn new() -> Self {
        let note = Arc::<Note>::default();
        Self { rings: Waker::from(Arc::clone(&note)), note, wakes: None }
    }

    /// Waits for a future that is begun now, or was changed since it was polled: it is polled once, and then when it rings.
    pub(super) async fn wait<T>(&mut self, mut seldom: Pin<&mut impl Future<Output = T>>) -> T {
        self.note.has_rung.store(true, Ordering::Relaxed);
        std::future::poll_fn(|context| self.poll(seldom.as_mut(), context)).await
    }

    fn poll<T>(&mut self, seldom: Pin<&mut impl Future<Output = T>>, context: &Context<'_>) -> Poll<T> {
        if !self.wakes.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            self.wakes = Some(context.waker().clone());
            self.note.task.register(context.waker());
        }
        if !self.note.has_rung.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        // Having called, it has forgotten whom. What rings from here on is polled below, or calls again.
        self.note.task.register(context.waker());
        self.note.has_rung.swap(false, Ordering::AcqRel);
        seldom.poll(&mut Context::from_waker(&self.rings))
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, future::poll_fn, pin::pin, task::Poll};

    use tokio::{sync::Notify, time::Duration};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_has_not_called_is_not_polled_again() {
        let (notice, polls) = (Notify::new(), Cell::new(0));
        let mut bell = Bell::new();
        let mut noticed = pin!(notice.notified());
        let counted = pin!(poll_fn(|context| {
            polls.set(polls.get() + 1);
            noticed.as_mut().poll(context)
        }));
        let mut waiting = pin!(bell.wait(counted));
        for _ in 0..10 {
            assert!(poll_fn(|context| Poll::Ready(waiting.as_mut().poll(context))).await.is_pending());
        }
        assert_eq!(polls.get(), 1);
        notice.notify_one();
        waiting.await;
        assert_eq!(polls.get(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_that_is_set_again_rings_each_time() {
        let mut bell = Bell::new();
        let mut timer = pin!(tokio::time::sleep(Duration::from_secs(1)));
        for _ in 0..3 {
            bell.wait(timer.as_mut()).await;
            let next = timer.deadline() + Duration::from_secs(1);
            timer.as_mut().reset(next);
        }
    }
}
