//! The requests of one HTTP/2 connection, each in a task of its own, and the end of those whose client takes nothing.
//!
//! Over HTTP/1.1 a client that doesn't take its answer shows at the socket (`activity.rs`). Over HTTP/2 it need not: it may
//! hold the window of one request shut and go on with the others. What shows is that hyper, having been given a piece of the
//! answer, doesn't come back for the next. An upstream that is silent looks different: hyper has come back and waits. So
//! only the one is cut that holds something up, and only that request: its neighbours may be doing well.
//!
//! The time is asked for only when a request has come to a stand with a piece in hand, not with every piece.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use parking_lot::Mutex;
use pin_project_lite::pin_project;
use tokio::time::{Duration, Instant, Sleep, sleep_until};

use crate::worker::Tasks;

/// Runs the requests of one connection.
#[derive(Clone)]
pub(super) struct Streams(Arc<Inner>);

struct Inner {
    tasks: Tasks,
    stall: Duration,
    /// Of the request that was called for last. hyper gives its task to be run next.
    next: Mutex<Option<Arc<Taking>>>,
}

/// How far the client has got with an answer: how many pieces it was offered and has taken, together. So it is odd while
/// one is on offer.
#[derive(Default)]
pub(super) struct Taking(AtomicU32);

pin_project! {
    /// A request that ends when its client has taken nothing for too long.
    struct Watched<F> {
        #[pin]
        task: F,
        taking: Arc<Taking>,
        stall: Duration,
        // The piece that the timer is about. Zero is none.
        timed: u32,
        timer: Option<Pin<Box<Sleep>>>,
    }
}

impl Streams {
    /// `stall` is how long a client may take nothing of what is there for it.
    pub(super) fn new(tasks: Tasks, stall: Duration) -> Self {
        Self(Arc::new(Inner { tasks, stall, next: Mutex::new(None) }))
    }

    /// For the request that is called for now.
    pub(super) fn next(&self) -> Arc<Taking> {
        let taking = Arc::new(Taking::default());
        *self.0.next.lock() = Some(taking.clone());
        taking
    }
}

impl Taking {
    /// More is wanted, so everything before was taken.
    pub(super) fn wanted(&self) {
        let count = self.0.load(Relaxed);
        if count % 2 == 1 {
            self.0.store(count.wrapping_add(1), Relaxed);
        }
    }

    /// A piece is there for the client.
    pub(super) fn offered(&self) {
        let count = self.0.load(Relaxed);
        if count.is_multiple_of(2) {
            self.0.store(count.wrapping_add(1), Relaxed);
        }
    }
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        // What else hyper runs here, such as one direction of a tunnel, was not called for.
        match self.0.next.lock().take() {
            Some(taking) => {
                let watched = Watched { task, taking, stall: self.0.stall, timed: 0, timer: None };
                self.0.tasks.spawn(watched);
            }
            None => hyper::rt::Executor::execute(&self.0.tasks, task),
        }
    }
}

impl<F: Future> Future for Watched<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if this.task.poll(context).is_ready() {
            return Poll::Ready(());
        }
        let count = this.taking.0.load(Relaxed);
        if count.is_multiple_of(2) {
            return Poll::Pending;
        }
        let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(Instant::now())));
        if *this.timed != count {
            *this.timed = count;
            timer.as_mut().reset(Instant::now() + *this.stall);
        }
        // Dropped unfinished, the task resets its stream.
        timer.as_mut().poll(context).map(|()| tracing::debug!("a client doesn't take its answer; cut"))
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, poll_fn};

    use super::*;

    fn watched<F>(task: F, taking: &Arc<Taking>) -> Watched<F> {
        Watched { task, taking: taking.clone(), stall: Duration::from_secs(60), timed: 0, timer: None }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_nobody_takes_is_cut_and_one_that_nobody_sends_is_not() {
        let taking = Arc::new(Taking::default());
        let began = Instant::now();
        let silent = watched(pending::<()>(), &taking);
        assert!(tokio::time::timeout(Duration::from_secs(1_000_000), silent).await.is_err());
        let began = began + began.elapsed();
        taking.offered();
        watched(pending::<()>(), &taking).await;
        assert_eq!(began.elapsed().as_secs(), 60);
    }

    #[tokio::test(start_paused = true)]
    async fn each_piece_has_the_whole_time() {
        let taking = Arc::new(Taking::default());
        let of_task = taking.clone();
        let mut pieces = 0;
        let mut slowly = Box::pin(sleep_until(Instant::now()));
        // Takes a piece every 59 seconds, ten of them, and then no more.
        let task = poll_fn(move |context| {
            while pieces < 10 && slowly.as_mut().poll(context).is_ready() {
                pieces += 1;
                of_task.wanted();
                of_task.offered();
                slowly.as_mut().reset(Instant::now() + Duration::from_secs(59));
            }
            Poll::<()>::Pending
        });
        let began = Instant::now();
        watched(task, &taking).await;
        assert_eq!(began.elapsed().as_secs(), 9 * 59 + 60);
    }
}
