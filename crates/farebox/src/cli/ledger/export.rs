//! `farebox ledger export`: every purchase, as CSV or JSON, in memory that doesn't grow with their number.

use std::{
    fs::{self, OpenOptions},
    io::{self, BufWriter, ErrorKind, IsTerminal as _, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::ValueEnum;
use farebox_lightning::clock::{Clock as _, SystemClock};
use farebox_paywall::store::entry::Order;
use indicatif::{ProgressBar, ProgressStyle};

use super::{
    csv,
    list::{Entries, Which},
    open,
    record::Record,
};
use crate::{output::OutputFlags, seller};

/// Write every purchase, oldest first, as CSV or JSON lines
#[derive(Debug, clap::Args)]
#[command(after_help = "\
CSV has moments as text (UTC) and no cell that a spreadsheet takes for a formula; JSON has them in
seconds since 1970. Each row is true as of the moment at which it is written; the gateway may go on
beside it. A file appears when it is whole, for its owner alone to read.

Examples:
  farebox ledger export > books.csv
  farebox ledger export --format json -o books.jsonl
  farebox ledger export --since 2026-01-01 --until 2027-01-01 -o 2026.csv")]
pub(crate) struct Args {
    #[command(flatten)]
    which: Which,
    /// How to write them; --json is the same as --format json
    #[arg(long, value_name = "FORMAT", default_value = "csv", help_heading = "Output")]
    format: Format,
    /// Into this file, which must not be there yet [default: standard output]
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    output: Option<PathBuf>,
    #[command(flatten)]
    books: seller::Books,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For spreadsheets.
    Csv,
    /// One JSON object a line.
    Json,
}

/// How many rows pass between two looks at the progress.
const STEP: u64 = 1_000;

pub(super) fn run(args: &Args, flags: OutputFlags) -> anyhow::Result<ExitCode> {
    let format = if flags.is_json() { Format::Json } else { args.format };
    match &args.output {
        Some(path) => to_file(path, |out| write(args, format, out))?,
        None => match write(args, format, &mut BufWriter::new(io::stdout().lock())) {
            // A reader that has had enough.
            Err(error) if is_broken_pipe(&error) => {}
            outcome => outcome?,
        },
    }
    Ok(ExitCode::SUCCESS)
}

pub(in crate::cli) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

/// Writes a new file for its owner alone: under another name until it is whole, so that half a copy is never taken for one.
pub(in crate::cli) fn to_file(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<fs::File>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    anyhow::ensure!(!path.exists(), "`{}` is there already; name another file", path.display());
    let mut draft = path.as_os_str().to_owned();
    draft.push(".part");
    let draft = PathBuf::from(draft);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    // What lies there is of a run that was cut off, or somebody else's: with their permissions, or leading elsewhere.
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot replace `{}`", draft.display()));
        }
        _ => {}
    }
    let file = options.open(&draft).with_context(|| format!("cannot write `{}`", draft.display()))?;
    let mut out = BufWriter::new(file);
    let written = write(&mut out).and_then(|()| {
        out.flush()?;
        out.get_ref().sync_all()?;
        // Unlike a renaming, a link replaces nothing that has come meanwhile.
        Ok(fs::hard_link(&draft, path)?)
    });
    let removed = fs::remove_file(&draft);
    written.with_context(|| format!("cannot write `{}`", path.display()))?;
    Ok(removed?)
}

fn write(args: &Args, format: Format, out: &mut impl Write) -> anyhow::Result<()> {
    let inspector = open(&args.books)?;
    let now = SystemClock.now();
    let progress = progress(args, || inspector.count().unwrap_or_default());
    let mut count = 0_u64;
    if format == Format::Csv {
        writeln!(out, "{}", csv::header(&Record::empty()))?;
    }
    for entry in Entries::new(&inspector, args.which.select(), Order::OldestFirst, now) {
        let record = Record::of_entry(&entry?, now);
        match format {
            Format::Csv => writeln!(out, "{}", csv::line(&record))?,
            Format::Json => {
                serde_json::to_writer(&mut *out, &record).map_err(io::Error::from)?;
                out.write_all(b"\n")?;
            }
        }
        count += 1;
        if count.is_multiple_of(STEP) {
            progress.set_position(count);
        }
    }
    out.flush()?;
    progress.finish_and_clear();
    if !progress.is_hidden() {
        eprintln!("{count} purchases written");
    }
    Ok(())
}

/// On standard error, if somebody sees it there and not the rows themselves.
fn progress(args: &Args, rows: impl FnOnce() -> u64) -> ProgressBar {
    let is_seen = io::stderr().is_terminal() && (args.output.is_some() || !io::stdout().is_terminal());
    if !is_seen {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} purchases, {eta} left");
    ProgressBar::new(rows()).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
