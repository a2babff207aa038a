//! The figures: as a table for people, as JSON for programs, and as a page to keep.

use std::{fmt::Write as _, fs};

use anyhow::Result;
use serde::Serialize;

use crate::BENCHES;

/// One measured figure, with what it is compared to.
#[derive(Serialize)]
pub(crate) struct Row {
    /// Which benchmark.
    pub(crate) bench: &'static str,
    /// What was measured. Rows with the same `bench` and `what` are a group.
    pub(crate) what: String,
    /// Whose figure it is.
    pub(crate) subject: String,
    /// The figure.
    pub(crate) value: f64,
    /// Its unit.
    pub(crate) unit: &'static str,
    /// The figure divided by that of the yardstick (the first of the group), where there is one.
    pub(crate) ratio: Option<f64>,
}

/// Prints `rows` in columns.
pub(crate) fn print(rows: &[Row]) {
    println!("{:10} {:24} {:32} {:>12} {:14} {:>7}", "bench", "what", "subject", "value", "unit", "ratio");
    for row in rows {
        let Row { bench, what, subject, value, unit, .. } = row;
        println!("{bench:10} {what:24} {subject:32} {value:>12.2} {unit:14} {:>7}", ratio(row));
    }
}

/// The same, with the machine named by its cores and memory.
pub(crate) fn json(rows: &[Row]) -> Result<String> {
    let (cores, memory_gib) = machine()?;
    let machine = serde_json::json!({ "cores": cores, "memory_gib": memory_gib });
    Ok(serde_json::to_string_pretty(&serde_json::json!({ "machine": machine, "rows": rows }))?)
}

/// The page: how it was measured, then a table for each benchmark.
pub(crate) fn markdown(rows: &[Row], secs: u64) -> Result<String> {
    let (cores, memory_gib) = machine()?;
    let mut page = HEAD.to_owned();
    writeln!(page, "\nThis run: {cores} cores, {memory_gib} GiB of memory, {secs} s for each measurement.")?;
    for bench in BENCHES {
        let mut rows = rows.iter().filter(|row| row.bench == bench.name).peekable();
        if rows.peek().is_none() {
            continue;
        }
        writeln!(page, "\n## {}\n\n{}\n", bench.name, bench.shows)?;
        writeln!(page, "| what | subject | value | unit | ratio |\n|---|---|---:|---|---:|")?;
        let mut group = "";
        for row in rows {
            let what = if row.what == group { "" } else { &row.what };
            group = &row.what;
            writeln!(
                page,
                "| {what} | {} | {:.2} | {} | {} |",
                row.subject,
                row.value,
                row.unit,
                ratio(row)
            )?;
        }
    }
    Ok(page)
}

const HEAD: &str = "\
# What it costs, side by side

Made by `cargo xtask bench --markdown bench/RESULTS.md`, which starts everything that it compares. Do not edit.

All runs over loopback. Load generators, proxies and upstreams share the cores, so rates and latencies say how the subjects
compare and not how fast either is on a machine of its own; what counts most is the processor time of the proxy. The subjects
take turns, three rounds after one for warming up. A value is the median of its rounds; a ratio is the median of the rounds'
ratios to the first subject of the group. nginx and HAProxy run with two workers or threads, no log and kept-alive connections
to the upstream; so do `bare hyper` (`bench/src/bin/bare-proxy.rs`: the least that a proxy built on hyper can be, in the shape
of farebox) and farebox. `farebox, free` is a service with `auth: off`; `farebox, paid` checks a token with three caveats on
each request. All get the same requests, that token's credential included, which the others pass on or remove unread. farebox
brings an allocator of its own (mimalloc), which is part of what it does about its cost; all others have the system's.
";

fn ratio(row: &Row) -> String {
    row.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default()
}

fn machine() -> Result<(usize, u64)> {
    let cores = std::thread::available_parallelism()?.get();
    let memory = fs::read_to_string("/proc/meminfo")?;
    let memory_kib: u64 = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next())
        .unwrap_or("0")
        .parse()?;
    Ok((cores, memory_kib.div_ceil(1 << 20)))
}
