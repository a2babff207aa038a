//! The time, read once for all that is done in one go.
//!
//! A request is looked at the clock for five times and more: when its head began, when it came, when the upstream answered,
//! when its connection was free again, when the answer was done. Most of these fall together, in one poll of the client's
//! connection, which takes microseconds; and reading the clock costs as much as looking up a service. So a poll reads it when
//! it is first asked for, and what asks later in the same poll is told the same. Outside of one, each look is a look.
//!
//! Not for limits that something waits for: whether a time is over is asked of the clock itself.

use std::cell::Cell;

use tokio::time::Instant;

thread_local! {
    static GO: Cell<Go> = const { Cell::new(Go::None) };
}

/// What is known of the time in what is being done on this thread.
#[derive(Clone, Copy)]
enum Go {
    /// Nothing is done in one go.
    None,
    /// Nobody has asked as yet.
    Unread,
    Read(Instant),
}

/// Puts back what was known before, also when what was done has panicked.
struct Before(Go);

impl Drop for Before {
    fn drop(&mut self) {
        GO.set(self.0);
    }
}

/// Does something in one go: it takes no longer than one poll may.
pub(crate) fn in_one_go<T>(act: impl FnOnce() -> T) -> T {
    let _before = Before(GO.replace(Go::Unread));
    act()
}

/// When this is, or when what is being done in one go asked first.
pub(crate) fn now() -> Instant {
    match GO.get() {
        Go::Read(at) => at,
        Go::None => Instant::now(),
        Go::Unread => {
            let now = Instant::now();
            GO.set(Go::Read(now));
            now
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, panic::catch_unwind, task::Poll};

    use tokio::time::{Duration, advance};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn time_stands_still_within_one_go_and_nowhere_else() {
        let second = Duration::from_secs(1);
        let began = now();
        let mut passing = Box::pin(advance(second));
        let seen = poll_fn(|context| {
            Poll::Ready(in_one_go(|| {
                let first = now();
                // It moves the clock, and then waits for a turn.
                assert!(passing.as_mut().poll(context).is_pending());
                (first, now(), Instant::now())
            }))
        });
        assert_eq!(seen.await, (began, began, began + second));
        assert_eq!(now(), began + second);
        assert_eq!(in_one_go(now), began + second);
    }

    #[test]
    fn what_has_panicked_leaves_no_time_behind() {
        let act = || {
            now();
            panic!("on purpose");
        };
        assert!(catch_unwind(|| in_one_go(act)).is_err());
        assert!(matches!(GO.get(), Go::None));
        in_one_go(|| in_one_go(now));
        assert!(matches!(GO.get(), Go::None));
    }
}
