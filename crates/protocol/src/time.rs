//! A moment, as the protocol counts it: whole seconds since 1970. This crate reads no clock; callers pass the time in.

use std::{fmt, time::Duration};

/// Whole seconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// A moment so many seconds after the Unix epoch.
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs)
    }

    /// Seconds since the Unix epoch.
    pub const fn secs(self) -> u64 {
        self.0
    }

    /// The moment `by` later, or the last one there is. Part of a second counts as a whole one: what was sold never
    /// ends early.
    pub const fn saturating_add(self, by: Duration) -> Self {
        let whole = if by.subsec_nanos() > 0 { by.as_secs().saturating_add(1) } else { by.as_secs() };
        Self(self.0.saturating_add(whole))
    }

    /// The time from `earlier` to this moment; zero when `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_secs(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
