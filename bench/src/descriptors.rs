//! File descriptors: thousands of connections need more than a shell allows at first.

use std::{fs, process::Command};

use anyhow::{Context, Result, bail};

/// Raises this process' limit, and so that of the programs started after, as far as it goes; an error if that is not
/// `count`.
pub(crate) fn need(count: u64) -> Result<()> {
    let (soft, hard) = limits()?;
    if soft < count {
        // Rust has no safe way to the system call, and a dependency for one call would be much.
        let limit = format!("--nofile={hard}:{hard}");
        let _ = Command::new("prlimit").arg("--pid").arg(std::process::id().to_string()).arg(limit).status();
    }
    let (soft, _) = limits()?;
    if soft < count {
        bail!("this needs {count} open files and may have {soft}; run `ulimit -n {count}` first");
    }
    Ok(())
}

fn limits() -> Result<(u64, u64)> {
    read(&fs::read_to_string("/proc/self/limits")?).context("no `Max open files` in /proc/self/limits")
}

/// The soft and the hard limit.
fn read(limits: &str) -> Option<(u64, u64)> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let mut numbers = line.split_whitespace().map(|number| number.parse().unwrap_or(u64::MAX));
    Some((numbers.next()?, numbers.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_are_read_as_the_kernel_writes_them() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max processes             92841                92841                processes \n\
                    Max open files            1024                 unlimited            files     \n";
        assert_eq!(read(text), Some((1024, u64::MAX)));
    }
}
