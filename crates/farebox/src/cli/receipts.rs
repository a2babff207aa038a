//! `farebox receipts`: the buyer's own record of what was agreed to, paid and served, as a chain that shows where it was touched.
//!
//! Not to be taken for `farebox receipt`, by which a seller signs for what was sold; `fetch` asks for one of those.

mod fetch;

use std::{
    fmt,
    io::{self, BufWriter, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::ValueEnum;
use farebox_client::{Engine, EngineConfig, ReceiptRow};
use serde::Serialize;

use super::{
    Usage,
    ledger::{
        csv,
        export::{is_broken_pipe, to_file},
        record::{Cell, Record},
    },
};
use crate::{
    buyer::Files,
    output::{OutputFlags, harmless, utc},
};

/// Your record of what was agreed to, paid and served: list it, take it elsewhere, check it; and fetch a seller's receipt
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "\
Each row is chained to the one before; none is ever changed. Rows tell when a payment was recorded,
paid, or failed, and when its credential was first served, first refused, ended or given up.
They hold no token, no preimage and no query of an address.

Examples:
  farebox receipts list --unserved
  farebox receipts export -o receipts.csv --format csv
  farebox receipts verify --link 9c5e…41d0")]
pub(crate) enum Command {
    List(List),
    Export(Export),
    Verify(Verify),
    Fetch(fetch::Fetch),
}

/// List receipts, newest first
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  farebox receipts list
  farebox receipts list --unserved --json")]
pub(crate) struct List {
    /// Only what was paid for and has never been served
    #[arg(long)]
    unserved: bool,
    /// At most so many
    #[arg(long, value_name = "COUNT", default_value_t = 50)]
    limit: u32,
    #[command(flatten)]
    files: Files,
}

/// Write every receipt, oldest first, as JSON lines or CSV
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  farebox receipts export > receipts.jsonl
  farebox receipts export --format csv -o receipts.csv")]
pub(crate) struct Export {
    /// How to write them
    #[arg(long, value_name = "FORMAT", default_value = "jsonl", help_heading = "Output")]
    format: Format,
    /// Into this file, which must not be there yet [default: standard output]
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    output: Option<PathBuf>,
    #[command(flatten)]
    files: Files,
}

/// Recompute the chain and hold it against what was bought; exit code 1 if anything doesn't fit
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The chain shows every change below a link that you know. Whoever can write the journal can also
write another chain, so note the last link elsewhere from time to time, and give it here later.

Examples:
  farebox receipts verify
  farebox receipts verify --link 9c5e…41d0")]
pub(crate) struct Verify {
    /// A link that must be in the chain, as an earlier run told it (may be repeated)
    #[arg(long = "link", value_name = "LINK")]
    links: Vec<String>,
    #[command(flatten)]
    files: Files,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// One JSON object a line.
    Jsonl,
    /// For spreadsheets.
    Csv,
}

#[derive(Serialize)]
struct Rows {
    receipts: Vec<Record>,
    #[serde(skip)]
    lines: Vec<String>,
}

#[derive(Serialize)]
struct Checked {
    rows: u64,
    link: Option<String>,
    broken: Vec<Broken>,
}

#[derive(Serialize)]
struct Broken {
    #[serde(skip_serializing_if = "Option::is_none")]
    row: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payment_hash: Option<String>,
    what: &'static str,
}

/// So many rows are read at once.
const PAGE: u32 = 1_000;

pub(crate) fn run(command: &Command, flags: OutputFlags) -> anyhow::Result<ExitCode> {
    let reader = flags.reader();
    crate::runtime::block_on(async {
        match command {
            Command::List(args) => {
                let rows = open(&args.files)?.receipts(args.limit, args.unserved).await?;
                reader.print(&Rows::of(&rows))?;
            }
            Command::Export(args) => args.run().await?,
            Command::Fetch(args) => return args.run(reader).await,
            Command::Verify(args) => {
                let checked = args.checked().await?;
                let fits = checked.broken.is_empty();
                reader.print(&checked)?;
                return Ok(if fits { ExitCode::SUCCESS } else { ExitCode::FAILURE });
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn open(files: &Files) -> anyhow::Result<Engine> {
    Ok(Engine::open(EngineConfig::new(files.journal()?))?)
}

impl Export {
    async fn run(&self) -> anyhow::Result<()> {
        let engine = open(&self.files)?;
        // Rows are only added: what is read page by page is one chain.
        let mut rows: Vec<ReceiptRow> = Vec::new();
        loop {
            let after = rows.last().map_or(0, |row| row.number);
            let page = engine.receipts_after(after, PAGE).await?;
            if page.is_empty() {
                break;
            }
            rows.extend(page);
        }
        match &self.output {
            Some(path) => to_file(path, |out| self.write(&rows, out)),
            None => match self.write(&rows, &mut BufWriter::new(io::stdout().lock())) {
                Err(error) if is_broken_pipe(&error) => Ok(()),
                outcome => outcome,
            },
        }
    }

    fn write(&self, rows: &[ReceiptRow], out: &mut impl Write) -> anyhow::Result<()> {
        if self.format == Format::Csv {
            writeln!(out, "{}", NAMES.join(","))?;
        }
        for row in rows {
            match self.format {
                Format::Csv => writeln!(out, "{}", csv::line(&record_of(row)))?,
                Format::Jsonl => writeln!(out, "{}", serde_json::to_string(&record_of(row))?)?,
            }
        }
        Ok(out.flush()?)
    }
}

impl Verify {
    async fn checked(&self) -> anyhow::Result<Checked> {
        let links = self.links.iter().map(|link| read_link(link)).collect::<anyhow::Result<Vec<_>>>()?;
        let verified = open(&self.files)?.verify_receipts(links).await?;
        Ok(Checked {
            rows: verified.rows,
            link: verified.head.map(hex::encode),
            broken: verified
                .broken
                .into_iter()
                .map(|broken| Broken {
                    row: broken.row,
                    payment_hash: broken.payment_hash.map(|hash| hash.to_string()),
                    what: broken.what,
                })
                .collect(),
        })
    }
}

fn read_link(text: &str) -> anyhow::Result<[u8; 32]> {
    let bytes = hex::decode(text.trim()).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    bytes.ok_or_else(|| {
        Usage(format!("`{}` is no link: it has 64 hexadecimal digits", text.escape_debug())).into()
    })
}

/// The cells of a row, in their order. The names are kept.
const NAMES: [&str; 22] = [
    "number",
    "at",
    "event",
    "payment_hash",
    "label",
    "request_id",
    "method",
    "path",
    "origin",
    "service",
    "scheme",
    "payee",
    "amount_msat",
    "fee_msat",
    "wallet",
    "rule",
    "approval",
    "status",
    "bytes",
    "credential_id",
    "note",
    "link",
];

fn record_of(row: &ReceiptRow) -> Record {
    let text = |text: &str| Cell::Text(text.to_owned());
    let perhaps = |text: &Option<String>| text.clone().map_or(Cell::Nothing, Cell::Text);
    let number = |number: Option<u64>| number.map_or(Cell::Nothing, Cell::Number);
    let cells = [
        Cell::Number(row.number),
        Cell::Moment(row.at),
        text(&row.event),
        Cell::Text(row.payment_hash.to_string()),
        perhaps(&row.label),
        perhaps(&row.request_id),
        text(&row.method),
        text(&row.path),
        text(&row.origin),
        text(&row.service),
        text(&row.scheme),
        perhaps(&row.payee),
        number(row.amount.map(|amount| amount.get())),
        number(row.fee.map(|fee| fee.get())),
        perhaps(&row.wallet),
        perhaps(&row.rule),
        perhaps(&row.approval),
        number(row.status.map(u64::from)),
        number(row.bytes),
        perhaps(&row.credential),
        perhaps(&row.note),
        Cell::Text(hex::encode(row.link)),
    ];
    Record(NAMES.into_iter().zip(cells).collect())
}

impl Rows {
    fn of(rows: &[ReceiptRow]) -> Self {
        Self { receipts: rows.iter().map(record_of).collect(), lines: rows.iter().map(line_of).collect() }
    }
}

fn line_of(row: &ReceiptRow) -> String {
    let fee = row.fee.map(|fee| format!(" and {fee} of fee")).unwrap_or_default();
    let amount = row.amount.map(|amount| format!("{amount}{fee}, ")).unwrap_or_default();
    let status = row.status.map(|status| format!(", answered {status}")).unwrap_or_default();
    let note = row.note.as_ref().map(|note| format!(" ({note})")).unwrap_or_default();
    // A server chose some of these words, and this may be a terminal.
    harmless(&format!(
        "{}  {}  {}  {}  {amount}{} {} {}{status}{note}",
        row.number,
        utc(row.at),
        row.event,
        row.payment_hash,
        row.method,
        row.origin,
        row.path,
    ))
}

impl fmt::Display for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.lines.is_empty() {
            return f.write_str("there are none");
        }
        f.write_str(&self.lines.join("\n"))
    }
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Broken { row, payment_hash, what } in &self.broken {
            let row = row.map(|row| format!("row {row}: ")).unwrap_or_default();
            let of = payment_hash.as_ref().map(|hash| format!(" (payment {hash})")).unwrap_or_default();
            writeln!(f, "{row}{what}{of}")?;
        }
        match (&self.link, self.broken.len()) {
            (None, 0) => f.write_str("there are no receipts yet"),
            (Some(link), 0) => {
                write!(f, "{} receipts, all as they were written; the last link is {link}", self.rows)
            }
            (_, broken) => write!(f, "{broken} of {} receipts don't fit", self.rows),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_sixty_four_digits() {
        assert_eq!(read_link(&"ab".repeat(32)).unwrap(), [0xab; 32]);
        for text in ["", "ab", "zz", &"ab".repeat(33)] {
            assert!(read_link(text).unwrap_err().to_string().contains("no link"), "{text}");
        }
    }
}
