//! Which process holds a lease, named so that another process on the same machine can tell whether it is still alive.
//!
//! A process number alone is not enough: it is used again after a restart, and two containers that share a journal have
//! the same numbers for different processes. Where nothing can be proven (another system than Linux, another
//! container), a holder counts as alive until its lease runs out.

use std::sync::atomic::{AtomicU64, Ordering};
use std::{fs, path::Path};

/// One engine in one process, as its lease names it: boot, process namespace, number, start time, and a number
/// that tells the engines of one process apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder(String);

impl Holder {
    /// An engine of this process.
    pub(crate) fn this_process() -> Self {
        let pid = std::process::id();
        let started = started(pid).unwrap_or_else(|| UNKNOWN.to_owned());
        let number = ENGINES.fetch_add(1, Ordering::Relaxed);
        Self(format!("{}/{}/{pid}/{started}/{number}", boot(), namespace()))
    }

    /// What a row says.
    pub(crate) fn read(text: String) -> Self {
        Self(text)
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether that process is certain to be gone.
    pub(crate) fn is_gone(&self) -> bool {
        let mut parts = self.0.split('/');
        let (Some(its_boot), Some(its_namespace), Some(pid), Some(its_start)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return false;
        };
        let (boot, namespace) = (boot(), namespace());
        if boot == UNKNOWN || its_boot == UNKNOWN {
            return false;
        }
        if its_boot != boot {
            return true;
        }
        if namespace == UNKNOWN || its_namespace != namespace {
            return false;
        }
        match pid.parse().ok().map(started) {
            Some(Some(start)) => its_start != UNKNOWN && start != its_start,
            Some(None) => Path::new("/proc/self/stat").exists(),
            None => false,
        }
    }
}

/// The engines that this process has opened so far.
static ENGINES: AtomicU64 = AtomicU64::new(0);

const UNKNOWN: &str = "?";

/// The running kernel's own name for this boot.
fn boot() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_or_else(|_| UNKNOWN.to_owned(), |text| text.trim().to_owned())
}

/// The namespace in which process numbers mean something: `pid:[4026531836]`.
fn namespace() -> String {
    fs::read_link("/proc/self/ns/pid")
        .map_or_else(|_| UNKNOWN.to_owned(), |link| link.to_string_lossy().replace('/', "_"))
}

/// When a living process began, in ticks since the boot: the 22nd field, counted behind the name, which may hold spaces.
fn started(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, behind_the_name) = stat.rsplit_once(')')?;
    // A zombie has a number still but will do nothing any more.
    let mut fields = behind_the_name.split_whitespace();
    if fields.next() == Some("Z") {
        return None;
    }
    fields.nth(18).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_alive() {
        assert!(!Holder::this_process().is_gone());
    }

    #[test]
    fn what_cannot_be_read_counts_as_alive() {
        for text in ["", "a", "?/?/1/?", "a/b/c"] {
            assert!(!Holder::read(text.to_owned()).is_gone(), "{text}");
        }
    }

    #[cfg(target_os = "linux")]
    mod on_linux {
        use super::*;

        fn with(pid: &str, start: &str) -> Holder {
            Holder(format!("{}/{}/{pid}/{start}", boot(), namespace()))
        }

        #[test]
        fn a_number_that_is_used_again_is_another_process() {
            assert!(with(&std::process::id().to_string(), "1").is_gone());
        }

        #[test]
        fn a_process_that_has_ended_is_gone() {
            let mut child = std::process::Command::new("true").spawn().expect("`true` exists");
            let holder = with(&child.id().to_string(), "1");
            child.wait().expect("`true` ends");
            assert!(holder.is_gone());
        }

        #[test]
        fn everything_from_before_the_boot_is_gone() {
            assert!(Holder("another-boot/pid:[1]/1/1".to_owned()).is_gone());
        }

        #[test]
        fn a_process_of_another_container_counts_as_alive() {
            assert!(!Holder(format!("{}/pid:[1]/999999/1", boot())).is_gone());
        }
    }
}
