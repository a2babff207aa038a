//! `farebox import` and `farebox tokens import`: credentials that another program has bought, or another farebox.

use std::{fmt, io::Read as _, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::ValueEnum;
use farebox_client::{
    Brought, Engine, EngineConfig, Origin,
    import::{Found, Haul, Program},
};
use serde::Serialize;
use zeroize::Zeroizing;

use super::Usage;
use crate::{
    buyer::Files,
    output::{Reader, harmless},
    wallet::WalletFlags,
};

/// Bring in what another program has bought, so that it is not bought again
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Each credential is checked: its preimage must be of its payment, and its token commit to that
payment. What doesn't hold is told and left out. Files are only read. Doing it twice does nothing.

Payments that the program began and whose end it never knew are looked up in your wallet, if one is
named; nothing is paid for them. They can be looked up later, too: `farebox purchases recover`.

Where the program doesn't write down the scheme, https is meant; --origin says otherwise.

Examples:
  farebox import lnget
  farebox import lnget ~/.lnget/tokens/localhost_8081 --origin http://localhost:8081
  farebox import loop ~/.loop/mainnet --origin https://swap.example.com --dry-run
  farebox import l402sdk tokens.db
  farebox import alby credentials.json --origin https://api.example.com")]
pub(crate) struct Args {
    /// Who has bought them
    program: Named,
    /// The file or directory with its tokens [default: where the program usually keeps them]
    #[arg(value_name = "FILE-OR-DIR")]
    path: Option<PathBuf>,
    /// Which server sold them, where that isn't written down; only those of this server, where it is
    #[arg(long, value_name = "ORIGIN")]
    origin: Option<Origin>,
    /// Tell what would be brought in, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    wallet: WalletFlags,
    #[command(flatten)]
    files: Files,
}

/// Bring in what `tokens export` has written
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  farebox tokens export --all -o tokens.json       # on one machine
  farebox tokens import tokens.json                # on the other
  farebox tokens import - --origin https://api.example.com < header.txt")]
pub(crate) struct Own {
    /// The file; `-` reads it from standard input
    #[arg(value_name = "FILE")]
    path: PathBuf,
    /// Which server sold them, where that isn't written down; only those of this server, where it is
    #[arg(long, value_name = "ORIGIN")]
    origin: Option<Origin>,
    /// Tell what would be brought in, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    files: Files,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Named {
    Lnget,
    Aperture,
    Loop,
    Fewsats,
    L402sdk,
    Alby,
}

#[derive(Debug, Serialize)]
struct Report {
    imported: Vec<Row>,
    skipped: Vec<Skipped>,
    dry_run: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    payment_hash: String,
    origin: String,
    name: String,
    /// `new`, `held` (it was there already), `completed` (its proof was missing), or of a payment that the program never saw the
    /// end of: `paid`, `failed`, `unknown`.
    result: &'static str,
}

#[derive(Debug, Serialize)]
struct Skipped {
    name: String,
    reason: String,
}

/// The longest text from standard input.
const INPUT_BYTES_MAX: u64 = 16 << 20;

pub(crate) fn run(args: &Args, reader: Reader) -> anyhow::Result<ExitCode> {
    let program = args.program.program();
    let path = match &args.path {
        Some(path) => path.clone(),
        None => std::env::home_dir().and_then(|home| program.usual_place(&home)).ok_or_else(|| {
            let name = program.name();
            Usage(format!("{name} keeps its tokens where it is told to; name the file or directory"))
        })?,
    };
    let haul = program.read(&path, args.origin.as_ref())?;
    let is_pending = haul.found.iter().any(|found| found.preimage.is_none());
    crate::runtime::block_on(async {
        // The wallet is asked about payments under way, and for nothing else.
        let wallet = match is_pending && !args.dry_run {
            true => args
                .wallet
                .connect()
                .await
                .context("the wallet could not be asked about payments under way")?,
            false => None,
        };
        let pay = wallet.as_ref().map(|wallet| wallet.pay.clone());
        let engine = Engine::open(EngineConfig { wallet: pay, ..EngineConfig::new(args.files.journal()?) })?;
        let report = bring_in(&engine, haul, program.name(), args.dry_run).await;
        engine.close(std::time::Duration::from_secs(5)).await;
        if let Some(wallet) = wallet {
            wallet.stop().await;
        }
        told(&report?, reader)
    })
}

pub(crate) fn run_own(args: &Own, reader: Reader) -> anyhow::Result<ExitCode> {
    let haul = match args.path.as_os_str() == "-" {
        true => {
            let mut text = Zeroizing::new(String::new());
            std::io::stdin()
                .lock()
                .take(INPUT_BYTES_MAX)
                .read_to_string(&mut text)
                .context("cannot read credentials from standard input")?;
            Program::read_own_text(&text, args.origin.as_ref())?
        }
        false => Program::Farebox.read(&args.path, args.origin.as_ref())?,
    };
    crate::runtime::block_on(async {
        let engine = Engine::open(EngineConfig::new(args.files.journal()?))?;
        told(&bring_in(&engine, haul, Program::Farebox.name(), args.dry_run).await?, reader)
    })
}

/// 1 where something was left out, so that a script notices.
fn told(report: &Report, reader: Reader) -> anyhow::Result<ExitCode> {
    reader.print(report)?;
    Ok(if report.skipped.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn bring_in(engine: &Engine, haul: Haul, source: &str, dry_run: bool) -> anyhow::Result<Report> {
    let Haul { found, skipped, .. } = haul;
    let brought = match dry_run {
        true => engine.plan_import(found.clone()).await?,
        false => engine.import(found.clone(), source).await?,
    };
    let mut imported = Vec::new();
    for (found, brought) in found.iter().zip(brought) {
        let result = match brought {
            Brought::New => "new",
            Brought::Held => "held",
            Brought::Completed => "completed",
            _ => pending(engine, found, dry_run).await?,
        };
        imported.push(Row {
            payment_hash: found.payment_hash.to_string(),
            origin: found.origin.to_string(),
            name: found.name.clone(),
            result,
        });
    }
    let skipped = skipped
        .into_iter()
        .map(|left| Skipped { name: left.name, reason: left.reason.to_string() })
        .collect();
    Ok(Report { imported, skipped, dry_run })
}

/// What the wallet has said of a payment whose end the other program never knew.
async fn pending(engine: &Engine, found: &Found, dry_run: bool) -> anyhow::Result<&'static str> {
    if dry_run {
        return Ok("unknown");
    }
    let row = engine.purchase(found.payment_hash).await?;
    Ok(row.map_or("unknown", |row| row.state))
}

impl Named {
    fn program(self) -> Program {
        match self {
            Self::Lnget => Program::Lnget,
            Self::Aperture => Program::Aperture,
            Self::Loop => Program::Loop,
            Self::Fewsats => Program::Fewsats,
            Self::L402sdk => Program::L402sdk,
            Self::Alby => Program::Alby,
        }
    }
}

impl Row {
    fn meaning(&self) -> &'static str {
        match self.result {
            "new" => "brought in",
            "held" => "there already",
            "completed" => "there already, and its proof is now, too",
            "paid" => "paid and never used: recovered, its credential is held now",
            "failed" => "never paid, as the wallet says",
            _ => "its payment was begun and its end is unknown; `farebox purchases recover` asks the wallet",
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = Vec::new();
        for row in &self.imported {
            lines.push(format!("{}  {}  {}", row.payment_hash, row.origin, row.meaning()));
        }
        for Skipped { name, reason } in &self.skipped {
            lines.push(harmless(&format!("left out: `{name}`: {reason}")));
        }
        if self.imported.is_empty() && self.skipped.is_empty() {
            lines.push("there are no tokens".to_owned());
        }
        if self.dry_run {
            lines.push("nothing was changed".to_owned());
        }
        f.write_str(&lines.join("\n"))
    }
}
