//! `farebox check`: judges a configuration without its secrets, its node or the network.

use std::{fmt, path::PathBuf, process::ExitCode};

use serde::Serialize;

use crate::{
    config::{
        self,
        problem::{Problem, located},
    },
    output::Reader,
};

/// Check a configuration file, without its secrets, its node or the network
#[derive(Debug, clap::Args)]
#[command(after_help = "\
What is wrong everywhere is an error (exit code 1). What is only missing here, such as an
environment variable or a secret's file, is a note.

Examples:
  farebox check
  farebox check /etc/farebox/farebox.yaml
  farebox check farebox.yaml --json | jq .errors")]
pub(crate) struct Args {
    /// The file
    #[arg(default_value = "farebox.yaml", value_name = "FILE")]
    file: PathBuf,
}

#[derive(Debug, Serialize)]
struct Report {
    file: PathBuf,
    valid: bool,
    services: Vec<String>,
    errors: Vec<Problem>,
    notes: Vec<Problem>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for note in &self.notes {
            writeln!(f, "note: {}", located(Some(&self.file), note))?;
        }
        for error in &self.errors {
            writeln!(f, "error: {}", located(Some(&self.file), error))?;
        }
        let file = self.file.display();
        match self.errors.len() {
            0 => write!(f, "{file} is good: {}", self.services.join(", ")),
            1 => write!(f, "{file}: 1 error"),
            count => write!(f, "{file}: {count} errors"),
        }
    }
}

pub(crate) fn run(args: &Args, reader: Reader) -> anyhow::Result<ExitCode> {
    let checked = config::check(&args.file);
    let valid = checked.problems.is_empty();
    reader.print(&Report {
        file: args.file.clone(),
        valid,
        services: checked.services,
        errors: checked.problems,
        notes: checked.notes,
    })?;
    Ok(if valid { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
