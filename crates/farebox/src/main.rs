//! Put a price on any HTTP or gRPC API and collect it over the Lightning Network.
//!
//! The program around the libraries: command line, configuration file, log, signals. Every decision about access or
//! money is made elsewhere.

use std::process::ExitCode;

use clap::Parser;
use tokio::time::Instant;

mod buyer;
mod cli;
mod config;
mod late;
mod logging;
mod mcp;
mod output;
mod refunds;
mod runtime;
#[cfg(feature = "embedded")]
mod sample;
mod seller;
mod shortfall;
mod sold;
mod state;
mod wallet;

/// A request allocates some ten times, more than the system's allocator keeps at hand where dozens are under way; with this
/// one it takes a tenth less processor time, and idle connections are as small. Libraries have none of their own: it is the
/// program's to choose.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let started = Instant::now();
    let outcome = cli::Cli::parse().run(started);
    match outcome {
        Ok(code) => code,
        Err(error) => {
            // The chain in one line: what failed, and why.
            eprintln!("error: {error:#}");
            ExitCode::from(if error.is::<cli::Usage>() { 2 } else { 1 })
        }
    }
}
