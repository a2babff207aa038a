//! `farebox ledger`: the seller's books, looked at while the gateway runs or when it doesn't.
//!
//! Nothing here writes to the books, takes their lock or speaks to a node. What is printed counts the same money that the
//! gateway counts; a revoked token's money stays in every list and every sum.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::ValueEnum;
use farebox_paywall::store::sqlite::{Inspector, SqliteStore};

use crate::{
    output::{OutputFlags, Reader},
    seller,
};

pub(super) mod csv;
pub(super) mod export;
mod list;
mod moment;
pub(super) mod record;
mod report;
mod show;
mod table;
mod verify;

pub(super) use list::counted;

/// Look at the books: what was sold, paid, used and paid back
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "\
All of these may be run beside a running gateway. Days are those of UTC.

Examples:
  farebox ledger list --since 7d
  farebox ledger show 5f3c09aa
  farebox ledger report --by month
  farebox ledger export -o books.csv
  farebox ledger verify --state-dir /var/lib/farebox")]
pub(crate) enum Command {
    List(Box<list::Args>),
    Show(show::Args),
    Report(report::Args),
    Export(Box<export::Args>),
    Verify(verify::Args),
}

pub(crate) fn run(command: &Command, flags: OutputFlags) -> anyhow::Result<ExitCode> {
    let reader = flags.reader();
    match command {
        Command::List(args) => list::run(args, reader),
        Command::Show(args) => show::run(args, reader),
        Command::Report(args) => report::run(args, reader),
        Command::Export(args) => export::run(args, flags),
        Command::Verify(args) => verify::run(args, reader),
    }
}

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    Table,
    /// For spreadsheets: moments as text, and no cell that a spreadsheet takes for a formula.
    Csv,
    /// One JSON object a line: moments in seconds since 1970.
    Json,
}

impl Format {
    /// What was asked for, or what suits who reads.
    fn or_for(asked: Option<Self>, reader: Reader) -> Self {
        asked.unwrap_or(match reader {
            Reader::Person => Self::Table,
            Reader::Program => Self::Json,
        })
    }
}

/// Opens the books to look at them.
fn open(books: &seller::Books) -> anyhow::Result<Inspector> {
    let path = books.path()?;
    SqliteStore::open_to_inspect(&path).with_context(|| format!("cannot look at `{}`", path.display()))
}
