//! Places where a test can kill this process or put it to sleep: before and after each write that changes money and each
//! call to a wallet.
//!
//! Compiled in only with the cargo feature `failpoints`; without it a place is nothing and no environment is read. With it,
//! `FAREBOX_FAILPOINT=name` sends the process SIGKILL there (no destructor runs, nothing is flushed), and
//! `FAREBOX_WAIT_AT=name` says so on standard output and waits there until standard input ends, so that whoever has started
//! the process can suspend it in the meantime. `FAREBOX_BUSY_MS=number` is how long a write then waits for another process that
//! is writing, where a test would sit out the usual time.

use std::time::Duration;

/// Declares a module's places: `Name = "its-name"`. Makes `Point`, the list `FAILPOINTS` of all names, and `reach`. A place that
/// the code never passes is an enum variant that nobody constructs, which doesn't compile: so the list is what the code has.
#[doc(hidden)]
#[macro_export]
macro_rules! failpoints {
    ($($point:ident = $name:literal),* $(,)?) => {
        /// A place where the process can be killed.
        #[derive(Clone, Copy, Debug)]
        pub(crate) enum Point { $($point),* }

        /// The name of every place, in no particular order.
        pub const FAILPOINTS: &[&str] = &[$($name),*];

        /// Dies or sleeps here when the environment says so.
        #[cfg(feature = "failpoints")]
        pub(crate) fn reach(point: Point) {
            $crate::failpoint::obey(match point { $(Point::$point => $name),* });
        }

        /// Does nothing: the feature `failpoints` is off.
        #[cfg(not(feature = "failpoints"))]
        pub(crate) const fn reach(_: Point) {}
    };
}

/// How long to wait for another process: as long as usual, unless the environment says otherwise.
#[cfg(feature = "failpoints")]
pub(crate) fn patience(usual: Duration) -> Duration {
    let said = std::env::var("FAREBOX_BUSY_MS").ok();
    said.map_or(usual, |said| Duration::from_millis(said.parse().expect("a number of milliseconds")))
}

/// As long as usual: the feature `failpoints` is off.
#[cfg(not(feature = "failpoints"))]
pub(crate) const fn patience(usual: Duration) -> Duration {
    usual
}

/// Does what the environment says of the place called `name`.
#[cfg(feature = "failpoints")]
pub fn obey(name: &str) {
    use rustix::process::{Signal, getpid, kill_process};
    use std::io::{Read as _, Write as _};

    let asked = |variable| std::env::var_os(variable).is_some_and(|wanted| wanted == name);
    if asked("FAREBOX_FAILPOINT") {
        kill_process(getpid(), Signal::KILL).expect("a process may send signals to itself");
        // Another thread may be the one that the signal reaches: this one does nothing more.
        loop {
            std::thread::park();
        }
    }
    if asked("FAREBOX_WAIT_AT") {
        writeln!(std::io::stdout(), "\nWAITING AT {name}").expect("whoever has started this reads it");
        _ = std::io::stdin().read_to_end(&mut Vec::new());
    }
}
