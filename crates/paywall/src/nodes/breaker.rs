//! Whether to ask a node that has failed lately.
//!
//! After a few failures in a row the breaker *opens*: buyers are sent elsewhere at once instead of waiting for the same
//! failure. After a back-off one of them is let through to see (*half open*); a success closes it, a failure doubles the
//! back-off. A buyer who hangs up on a node that kept them waiting counts as a failure: somebody must find out.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// How many failures in a row open it.
const FAILURES: u32 = 3;

/// How long it stays open at first, and at most: sales resume through the node at most this long after it is back.
const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(4);

/// Whoever hangs up sooner has proved nothing about the node.
const SLOW: Duration = Duration::from_secs(1);

/// A circuit breaker.
#[derive(Debug, Default)]
pub(crate) struct Breaker(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failures: u32,
    /// When it may be tried again, where it is open.
    shut_until: Option<Instant>,
}

/// One question to the node, under way. Say how it ended.
#[must_use]
pub(crate) struct Attempt<'a> {
    breaker: &'a Breaker,
    began: Instant,
    is_over: bool,
}

impl Breaker {
    /// Whether nothing speaks against asking.
    pub(crate) fn is_closed(&self) -> bool {
        self.0.lock().shut_until.is_none()
    }

    /// Whether [`try_pass`](Self::try_pass) would let one through now.
    pub(crate) fn is_passable(&self) -> bool {
        self.0.lock().shut_until.is_none_or(|until| until <= Instant::now())
    }

    /// Lets everybody through while it is closed, and after its back-off one.
    pub(crate) fn try_pass(&self) -> Option<Attempt<'_>> {
        let mut state = self.0.lock();
        if let Some(until) = state.shut_until {
            if until > Instant::now() {
                return None;
            }
            // The next ones wait for what becomes of this one; if nothing does, one of them goes after the same time.
            state.shut_until = Some(Instant::now() + state.back_off());
        }
        drop(state);
        Some(self.insist())
    }

    /// Asks whatever speaks against it, for want of anybody better to ask.
    pub(crate) fn insist(&self) -> Attempt<'_> {
        Attempt { breaker: self, began: Instant::now(), is_over: false }
    }
}

impl State {
    fn fail(&mut self) {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= FAILURES {
            self.shut_until = Some(Instant::now() + self.back_off());
        }
    }

    fn back_off(&self) -> Duration {
        let doublings = self.failures.saturating_sub(FAILURES).min(16);
        FIRST.saturating_mul(1 << doublings).min(LONGEST)
    }
}

impl Attempt<'_> {
    pub(crate) fn succeeded(mut self) {
        self.is_over = true;
        *self.breaker.0.lock() = State::default();
    }

    pub(crate) fn failed(mut self) {
        self.is_over = true;
        self.breaker.0.lock().fail();
    }

    /// It ended in a way that says nothing about the node.
    pub(crate) fn proved_nothing(mut self) {
        self.is_over = true;
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.is_over && self.began.elapsed() >= SLOW {
            self.breaker.0.lock().fail();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    fn fail(breaker: &Breaker, times: usize) {
        (0..times).for_each(|_| breaker.insist().failed());
    }

    #[tokio::test(start_paused = true)]
    async fn it_opens_after_failures_in_a_row_and_a_success_between_starts_the_count_again() {
        let breaker = Breaker::default();
        fail(&breaker, 2);
        breaker.try_pass().unwrap().succeeded();
        fail(&breaker, 2);
        assert!(breaker.is_closed());
        fail(&breaker, 1);
        assert!(!breaker.is_closed() && breaker.try_pass().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn after_its_back_off_one_is_let_through_and_a_success_closes_it() {
        let breaker = Breaker::default();
        fail(&breaker, 3);
        advance(FIRST - Duration::from_millis(1)).await;
        assert!(!breaker.is_passable());
        advance(Duration::from_millis(1)).await;
        assert!(breaker.is_passable());
        let probe = breaker.try_pass().unwrap();
        assert!(breaker.try_pass().is_none(), "one");
        probe.succeeded();
        assert!(
            breaker.is_closed()
                && breaker.try_pass().is_some_and(|next| {
                    next.succeeded();
                    true
                })
        );
    }

    #[tokio::test(start_paused = true)]
    async fn each_failed_probe_doubles_the_wait_up_to_a_bound() {
        let breaker = Breaker::default();
        fail(&breaker, 3);
        for want in [500, 1_000, 2_000, 4_000, 4_000, 4_000] {
            advance(Duration::from_millis(want - 1)).await;
            assert!(breaker.try_pass().is_none(), "{want}");
            advance(Duration::from_millis(1)).await;
            breaker.try_pass().unwrap().failed();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_whose_buyer_goes_away_keeps_nobody_out_for_good() {
        let breaker = Breaker::default();
        fail(&breaker, 3);
        advance(FIRST).await;
        drop(breaker.try_pass().unwrap());
        assert!(breaker.try_pass().is_none());
        advance(FIRST).await;
        assert!(breaker.try_pass().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn buyers_who_give_up_on_a_silent_node_open_it_and_hasty_ones_do_not() {
        let breaker = Breaker::default();
        for _ in 0..10 {
            drop(breaker.insist());
        }
        assert!(breaker.is_closed());
        for _ in 0..3 {
            let attempt = breaker.insist();
            advance(SLOW).await;
            drop(attempt);
        }
        assert!(!breaker.is_closed());
    }
}
