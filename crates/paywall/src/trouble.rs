//! What is wrong just now, said once: when trouble begins and when it ends, not at every try.

use std::{error::Error, sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use tokio_util::sync::CancellationToken;

/// The first wait after a failure.
const FIRST: Duration = Duration::from_millis(250);

/// The longest wait; at worst, money is booked this much later.
const LONGEST: Duration = Duration::from_secs(30);

/// Something that is done over and over, and whether it works.
pub(crate) struct Trouble {
    /// What to call it in the log; nothing where that speaks of it under another name.
    what: Option<String>,
    now: ArcSwapOption<String>,
}

impl Trouble {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self { what: Some(what.into()), now: ArcSwapOption::empty() }
    }

    /// One that the log is not told of.
    pub(crate) fn silent() -> Self {
        Self { what: None, now: ArcSwapOption::empty() }
    }

    /// Takes note of an outcome.
    pub(crate) fn note<T, E: Error>(&self, outcome: &Result<T, E>) {
        match outcome {
            Ok(_) => self.clear(),
            Err(error) => self.begin(error),
        }
    }

    /// Notes that it doesn't work.
    pub(crate) fn begin(&self, error: &dyn Error) {
        let text = chain(error);
        let before = self.now.swap(Some(Arc::new(text.clone())));
        if let (None, Some(what)) = (before, &self.what) {
            tracing::warn!(error = text, "{what} fails; trying on");
        }
    }

    /// Notes that it works.
    pub(crate) fn clear(&self) {
        if self.now.load().is_some()
            && self.now.swap(None).is_some()
            && let Some(what) = &self.what
        {
            tracing::info!("{what} works again");
        }
    }

    /// Whether nothing is wrong.
    pub(crate) fn is_clear(&self) -> bool {
        self.now.load().is_none()
    }

    /// What is wrong, if anything. Not for strangers.
    pub(crate) fn text(&self) -> Option<String> {
        self.now.load_full().map(|text| (*text).clone())
    }
}

/// Waits longer from one failure to the next.
pub(crate) struct Backoff {
    failures: u32,
    longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::up_to(LONGEST)
    }
}

impl Backoff {
    pub(crate) const fn up_to(longest: Duration) -> Self {
        Self { failures: 0, longest }
    }

    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    pub(crate) async fn wait(&mut self, stop: &CancellationToken) {
        let wait = FIRST.saturating_mul(1 << self.failures.min(16)).min(self.longest);
        self.failures = self.failures.saturating_add(1);
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// An error with all that caused it.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
