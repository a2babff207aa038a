//! The figures, as a table for people and as JSON for programs.

use anyhow::Result;
use serde::Serialize;

/// One measured figure, with what it is compared to.
#[derive(Serialize)]
pub(crate) struct Row {
    /// Which benchmark.
    pub(crate) bench: &'static str,
    /// What was measured.
    pub(crate) subject: String,
    /// The figure.
    pub(crate) value: f64,
    /// Its unit.
    pub(crate) unit: &'static str,
    /// The figure divided by that of the yardstick in the same run, where there is one.
    pub(crate) ratio: Option<f64>,
}

/// Prints `rows` in columns.
pub(crate) fn print(rows: &[Row]) {
    println!("{:10} {:44} {:>12} {:18} {:>6}", "bench", "what", "value", "unit", "ratio");
    for row in rows {
        let ratio = row.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
        println!("{:10} {:44} {:>12.2} {:18} {:>6}", row.bench, row.subject, row.value, row.unit, ratio);
    }
}

/// The same, with the machine named by its cores and memory.
pub(crate) fn json(rows: &[Row]) -> Result<String> {
    let cores = std::thread::available_parallelism()?.get();
    let memory = std::fs::read_to_string("/proc/meminfo")?;
    let memory_kib: u64 = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next())
        .unwrap_or("0")
        .parse()?;
    let machine = serde_json::json!({ "cores": cores, "memory_gib": memory_kib / (1 << 20) });
    Ok(serde_json::to_string_pretty(&serde_json::json!({ "machine": machine, "rows": rows }))?)
}
