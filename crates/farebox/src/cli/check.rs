//! `farebox check`: judges a configuration without its secrets, its node or the network; with `--live`, with all of them.

use std::{
    fmt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use serde::Serialize;

mod live;

use crate::{
    config::{
        self,
        problem::{Problem, located},
    },
    output::Reader,
    sold::Sold,
};

/// Check a configuration file, without its secrets, its node or the network unless asked to
#[derive(Debug, clap::Args)]
#[command(after_help = "\
What is wrong everywhere is an error (exit code 1). What is only missing here, such as an
environment variable or a secret's file, is a note. --live needs all of it: it asks the nodes who
they are and what they permit, connects to the upstreams, and says what would be better; what
doesn't answer is an error. Nothing is sold, and a node inside farebox is not started.

Examples:
  farebox check
  farebox check /etc/farebox/farebox.yaml
  farebox check farebox.yaml --json | jq .errors
  farebox check --live /etc/farebox/farebox.yaml")]
pub(crate) struct Args {
    /// The file
    #[arg(default_value = "farebox.yaml", value_name = "FILE")]
    file: PathBuf,
    /// The file, named as for other commands
    #[arg(long, value_name = "FILE", conflicts_with = "file")]
    config: Option<PathBuf>,
    /// Try the nodes and the upstreams, too
    #[arg(long)]
    live: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    file: PathBuf,
    valid: bool,
    /// Their names.
    services: Vec<String>,
    /// What is sold of each; empty where there are errors.
    sold: Vec<Sold>,
    errors: Vec<Problem>,
    notes: Vec<Problem>,
    /// What answered, with `--live` and no errors.
    #[serde(skip_serializing_if = "Option::is_none")]
    live: Option<Vec<live::Finding>>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for note in &self.notes {
            writeln!(f, "note: {}", located(Some(&self.file), note))?;
        }
        for error in &self.errors {
            writeln!(f, "error: {}", located(Some(&self.file), error))?;
        }
        for live::Finding { what, ok, found, advice } in self.live.iter().flatten() {
            writeln!(f, "{}: {what}: {found}", if *ok { "live" } else { "error" })?;
            for advice in advice {
                writeln!(f, "advice: {what}: {advice}")?;
            }
        }
        let file = self.file.display();
        match self.errors.len() {
            0 => {
                let all_answer = self.live.iter().flatten().all(|finding| finding.ok);
                let but = if all_answer { "" } else { ", but not all that it needs answers" };
                write!(f, "{file} is good{but}: {}", self.services.join(", "))?;
                let lines: Vec<String> = self.sold.iter().map(ToString::to_string).collect();
                lines.iter().flat_map(|sold| sold.lines()).try_for_each(|line| write!(f, "\n  {line}"))
            }
            1 => write!(f, "{file}: 1 error"),
            count => write!(f, "{file}: {count} errors"),
        }
    }
}

pub(crate) fn run(args: &Args, reader: Reader) -> anyhow::Result<ExitCode> {
    let file = args.config.as_ref().unwrap_or(&args.file);
    let checked = config::check(file);
    let mut valid = checked.problems.is_empty();
    let live = if args.live && valid { Some(try_live(file)?) } else { None };
    valid &= live.iter().flatten().all(|finding| finding.ok);
    let is_judged = checked.problems.is_empty();
    reader.print(&Report {
        file: file.clone(),
        valid,
        services: checked.sold.iter().map(|sold| sold.service.clone()).collect(),
        sold: if is_judged { checked.sold } else { Vec::new() },
        errors: checked.problems,
        notes: checked.notes,
        live,
    })?;
    Ok(if valid { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// With all that is only noted otherwise: what isn't here can't be tried.
fn try_live(file: &Path) -> anyhow::Result<Vec<live::Finding>> {
    let config = config::load(file)?;
    crate::runtime::block_on(async { Ok(live::try_all(&config).await) })
}
