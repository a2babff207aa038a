//! Timers for limits that are hardly ever reached.
//!
//! Each request limits how long it waits for its answer, and next to none waits as long. Setting a timer and taking it back
//! costs more than all else that is done about it, and putting off one that is set costs next to nothing: so a worker keeps
//! those that its requests have had, and lends them again. One that runs out meanwhile wakes whoever had it last, once, for
//! nothing.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep_until};

/// How many are kept. A worker that has more requests under way at once makes the others anew.
const KEPT_MAX: usize = 256;

/// The timers of one worker.
#[derive(Default)]
pub(crate) struct Timers(Mutex<Vec<Pin<Box<Sleep>>>>);

/// One of them, until it is dropped.
pub(crate) struct Timer<'a> {
    /// There until it goes back.
    sleep: Option<Pin<Box<Sleep>>>,
    home: &'a Timers,
}

impl Timers {
    pub(crate) fn at(&self, limit: Instant) -> Timer<'_> {
        let kept = self.0.lock().pop();
        let sleep = match kept {
            Some(mut sleep) => {
                sleep.as_mut().reset(limit);
                sleep
            }
            None => Box::pin(sleep_until(limit)),
        };
        Timer { sleep: Some(sleep), home: self }
    }
}

impl Timer<'_> {
    pub(crate) fn reset(&mut self, limit: Instant) {
        if let Some(sleep) = &mut self.sleep {
            sleep.as_mut().reset(limit);
        }
    }

    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.sleep.as_mut().map_or(Poll::Pending, |sleep| sleep.as_mut().poll(context))
    }
}

impl Drop for Timer<'_> {
    fn drop(&mut self) {
        let Some(sleep) = self.sleep.take() else { return };
        let mut kept = self.home.0.lock();
        if kept.len() < KEPT_MAX {
            kept.push(sleep);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_timer_that_others_have_had_keeps_the_time_of_the_one_who_has_it() {
        let timers = Timers::default();
        let secs = |secs| Instant::now() + Duration::from_secs(secs);
        // Later, sooner, and after it has run out in nobody's hands.
        for (limit, pause) in [(10, 0), (20, 0), (5, 0), (30, 60), (1, 0)] {
            let began = Instant::now();
            let mut timer = timers.at(secs(limit));
            assert!(poll_fn(|context| Poll::Ready(timer.poll(context))).await.is_pending());
            drop(timer);
            tokio::time::advance(Duration::from_secs(pause)).await;
            let mut timer = timers.at(secs(limit));
            poll_fn(|context| timer.poll(context)).await;
            assert_eq!(began.elapsed().as_secs(), limit + pause);
        }
        assert_eq!(timers.0.lock().len(), 1);
    }
}
