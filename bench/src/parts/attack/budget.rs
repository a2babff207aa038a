//! Holds a thread to a share of one core: it is asked between pieces of work, and sleeps when too much has been used.

use std::{
    fs,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::time::Instant;

/// What one attacking thread may use, and until when.
pub(super) struct Budget<'a> {
    share: f64,
    stop: &'a AtomicBool,
    done: &'a AtomicU64,
    began: Instant,
    used_before: Duration,
}

impl<'a> Budget<'a> {
    /// For the thread that calls it; it counts what it has done in `done`.
    pub(super) fn new(share: f64, stop: &'a AtomicBool, done: &'a AtomicU64) -> Result<Self> {
        Ok(Self { share, stop, done, began: Instant::now(), used_before: used()? })
    }

    /// So much more has been done.
    pub(super) fn did(&self, more: u64) {
        self.done.fetch_add(more, Ordering::Relaxed);
    }

    /// Waits until there is something left to use. Whether to go on.
    pub(super) fn goes_on(&self) -> Result<bool> {
        while !self.stop.load(Ordering::Relaxed) {
            let used = used()?.saturating_sub(self.used_before);
            let allowed = self.began.elapsed().mul_f64(self.share);
            if used <= allowed {
                return Ok(true);
            }
            let wait = (used - allowed).div_f64(self.share);
            thread::sleep(wait.clamp(Duration::from_millis(1), Duration::from_millis(50)));
        }
        Ok(false)
    }
}

/// CPU time of this thread so far.
fn used() -> Result<Duration> {
    let text = fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanos = text.split_whitespace().next().and_then(|nanos| nanos.parse().ok());
    Ok(Duration::from_nanos(nanos.context("the kernel does not say how much CPU time a thread has used")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_when_told_to() {
        let stop = AtomicBool::new(false);
        let done = AtomicU64::new(0);
        let budget = Budget::new(1.0, &stop, &done).unwrap();
        assert!(budget.goes_on().unwrap());
        stop.store(true, Ordering::Relaxed);
        assert!(!budget.goes_on().unwrap());
    }
}
