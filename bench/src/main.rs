//! The side-by-side benchmark: starts what it compares, loads it over loopback, and prints a table of ratios.
//!
//! Machines are shared and noisy, so nothing here is an absolute claim: everything compared runs in one go, taking
//! turns, and the ratio counts. CPU time is that of the compared process and its children, from the kernel.
//! Run it with `cargo xtask bench`, which builds the programs first.

mod challenge;
mod load;
mod process;
mod proxy;
mod table;
mod verify;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Result, bail};

use crate::table::Row;

/// One benchmark: its name, what it shows, and how it is measured.
struct Bench {
    name: &'static str,
    shows: &'static str,
    run: fn(&Setting) -> Result<Vec<Row>>,
}

/// What can be measured.
const BENCHES: &[Bench] = &[
    Bench { name: "verify", shows: "check one credential with three caveats, in process", run: verify::run },
    Bench {
        name: "proxy",
        shows: "a paid request through farebox beside the same request through nginx, HTTP/1.1",
        run: proxy::run,
    },
    Bench { name: "challenge", shows: "unpaid requests: an invoice and a token each", run: challenge::run },
];

/// How to measure.
struct Setting {
    /// How long each measurement takes.
    time: Duration,
    /// The built `farebox` program.
    farebox: PathBuf,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut names = Vec::new();
    let mut secs = 3;
    let mut json = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--secs" => secs = arguments.next().unwrap_or_default().parse()?,
            "--json" => json = arguments.next().map(PathBuf::from),
            name if BENCHES.iter().any(|bench| bench.name == name) => names.push(argument),
            other => {
                let known: Vec<_> =
                    BENCHES.iter().map(|bench| format!("  {:10} {}", bench.name, bench.shows)).collect();
                bail!("`{other}` is not a benchmark; there are:\n{}", known.join("\n"));
            }
        }
    }
    let farebox = std::env::current_exe()?.with_file_name("farebox");
    let setting = Setting { time: Duration::from_secs(secs), farebox };

    let mut rows = Vec::new();
    for bench in BENCHES {
        if names.is_empty() || names.iter().any(|wanted| wanted == bench.name) {
            eprintln!("{}: {} …", bench.name, bench.shows);
            rows.extend((bench.run)(&setting)?);
        }
    }
    table::print(&rows);
    if let Some(file) = json {
        std::fs::write(&file, table::json(&rows)?)?;
    }
    Ok(())
}
