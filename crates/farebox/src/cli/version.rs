//! `farebox version`.

use std::{fmt, process::ExitCode};

use serde::Serialize;

use crate::output::Reader;

/// Show the version and what was built in
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  farebox version\n  farebox version --json")]
pub(crate) struct Args {}

#[derive(Debug, Serialize)]
struct Version {
    version: &'static str,
    /// Whether the Lightning node is in this build.
    embedded_node: bool,
    target: String,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node = if self.embedded_node { "with" } else { "without" };
        write!(f, "farebox {} ({}, {node} the embedded Lightning node)", self.version, self.target)
    }
}

pub(crate) fn run(_: &Args, reader: Reader) -> anyhow::Result<ExitCode> {
    reader.print(&Version {
        version: env!("CARGO_PKG_VERSION"),
        embedded_node: cfg!(feature = "embedded"),
        target: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
    })?;
    Ok(ExitCode::SUCCESS)
}
