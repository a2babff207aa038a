//! Which tests take the time: reads what the test command printed, prints the ten slowest and the total.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};
use regex::Regex;

/// Prints the ten slowest tests of the log at `path` and how many passed, failed and were left out.
pub(crate) fn print(path: &Path) -> Result<()> {
    let log = fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let timed = Regex::new(r"(?m)^test (\S+)(?: - should panic)? \.\.\. (?:ok|FAILED) <([0-9.]+)s>$")?;
    let summary = Regex::new(r"(?m)^test result: \S+ (\d+) passed; (\d+) failed; (\d+) ignored")?;

    let mut tests: Vec<(f64, &str)> = Vec::new();
    for found in timed.captures_iter(&log) {
        let (_, [name, seconds]) = found.extract();
        tests.push((seconds.parse()?, name));
    }
    tests.sort_by(|a, b| b.0.total_cmp(&a.0));
    println!("the ten slowest tests:");
    for (seconds, name) in tests.iter().take(10) {
        println!("  {seconds:8.3} s  {name}");
    }

    let mut counts = [0_u64; 3];
    for found in summary.captures_iter(&log) {
        let (_, numbers) = found.extract::<3>();
        for (count, number) in counts.iter_mut().zip(numbers) {
            *count += number.parse::<u64>()?;
        }
    }
    if counts[0] == 0 {
        bail!("no test passed in `{}`: did the test command run?", path.display());
    }
    println!("{} passed, {} failed, {} skipped", counts[0], counts[1], counts[2]);
    Ok(())
}
