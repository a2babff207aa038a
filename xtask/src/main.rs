//! Development tasks: the long proofs, the live suites, the benchmark and the checks that continuous integration runs.
//!
//! What needs only the toolchain is in `cargo test`. Here is what needs time (`prove`), other people's programs (`live`)
//! or a quiet machine (`bench`), and what keeps the papers true (`papers`).

mod codegen;
mod papers;
mod slowest;
mod suites;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Development tasks of farebox")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run a long proof; without a name, list them
    Prove {
        /// Which proof
        name: Option<String>,
    },
    /// Run a suite against other people's programs; a missing program is a failure. Without a name, list them
    Live {
        /// Which suite
        name: Option<String>,
    },
    /// Run the side-by-side benchmark
    Bench {
        /// Which comparisons; all when none is named
        names: Vec<String>,
        /// Seconds for each measurement
        #[arg(long, default_value_t = 3)]
        secs: u64,
        /// Also write the figures to this file
        #[arg(long)]
        json: Option<PathBuf>,
        /// Also write them to this file, as a page
        #[arg(long)]
        markdown: Option<PathBuf>,
    },
    /// Check that the map in ARCHITECTURE.md is that of the source and that each invariant names a test that exists
    Papers {
        /// Make the map anew
        #[arg(long)]
        write: bool,
    },
    /// Make the Rust code for other nodes' protocols from the `.proto` files
    Codegen {
        /// Write nothing; fail if the code that is checked in isn't up to date
        #[arg(long)]
        check: bool,
    },
    /// Print the ten slowest tests of a test log
    Slowest {
        /// What the test command printed, with `--report-time`
        log: PathBuf,
    },
}

fn main() -> ExitCode {
    let outcome = match Args::parse().task {
        Task::Prove { name } => suites::prove(name.as_deref()),
        Task::Live { name } => suites::live(name.as_deref()),
        Task::Bench { names, secs, json, markdown } => {
            suites::bench(&names, secs, json.as_deref(), markdown.as_deref())
        }
        Task::Papers { write } => papers::check(write),
        Task::Codegen { check } => codegen::run(check),
        Task::Slowest { log } => slowest::print(&log),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
