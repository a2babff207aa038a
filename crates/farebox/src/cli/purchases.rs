//! `farebox purchases` and `farebox tokens`: what has been bought, what became of the money, and the credentials it bought.

use std::{fmt, io::Write as _, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use farebox_client::{Engine, EngineConfig, Pass, PurchaseRow, Recovery, import::write_tokens};
use farebox_protocol::PaymentHash;
use serde::Serialize;

use super::{
    Usage, import,
    ledger::export::to_file,
    token::attenuate::{Attenuated, Narrow},
};
use crate::{
    buyer::Files,
    output::{self, Reader, harmless, utc},
    wallet::WalletFlags,
};

/// See what has been bought, and what became of payments
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "\
Examples:
  farebox purchases list
  farebox purchases list --unserved
  farebox purchases show 4e9f…c2a1
  farebox purchases recover")]
pub(crate) enum Command {
    /// List purchases, newest first
    List(List),
    /// Show one purchase
    Show(One),
    /// Ask the wallet about payments whose outcome is not known, and list those still open. Pays nothing
    Resume(Resume),
    /// Look for what was paid and not saved: payments of unknown outcome, those written off, those that another program began
    Recover(Recover),
    /// Take your word that a payment of unknown outcome was never made, so that its place is free again
    WriteOff(One),
}

/// The credentials that were bought: list them, take one elsewhere, give one up
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "\
A credential opens what was bought to whoever has it. `export` alone prints one.

Examples:
  farebox tokens list
  farebox tokens attenuate 4e9f…c2a1 --valid-for 1h --method GET
  farebox tokens export --all -o tokens.json
  farebox tokens forget 4e9f…c2a1")]
pub(crate) enum Tokens {
    /// List what is held, newest first
    List(Held),
    /// Show what is known of one, without the secret
    Show(One),
    Export(Export),
    Import(import::Own),
    Attenuate(Attenuate),
    /// Show it nowhere any more: the next request there buys anew. What it cost stays on record
    Forget(One),
}

#[derive(Debug, clap::Args)]
pub(crate) struct List {
    /// Only what was paid for and has never been honoured
    #[arg(long)]
    unserved: bool,
    /// At most so many
    #[arg(long, value_name = "COUNT", default_value_t = 50)]
    limit: usize,
    #[command(flatten)]
    files: Files,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Held {
    /// Those that were given up or refused, too
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    files: Files,
}

#[derive(Debug, clap::Args)]
pub(crate) struct One {
    /// The hash of the payment, all 64 digits, as `purchases list` shows it
    payment: PaymentHash,
    #[command(flatten)]
    files: Files,
}

/// Print the credential itself, as it stands in an Authorization header; or write some to a file
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A file has what `tokens import` needs to bring them in elsewhere. It is for you alone to read, and
a secret like the journal.

Examples:
  farebox tokens export 4e9f…c2a1
  farebox tokens export --all -o tokens.json")]
pub(crate) struct Export {
    /// The hash of the payment, all 64 digits, as `purchases list` shows it
    #[arg(required_unless_present = "all")]
    payment: Option<PaymentHash>,
    /// All that are in use
    #[arg(long, conflicts_with = "payment", requires = "output")]
    all: bool,
    /// Into this file, which must not be there yet [default: standard output]
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    output: Option<PathBuf>,
    #[command(flatten)]
    files: Files,
}

/// Print a narrower form of a credential, to hand on. The one that is held stays as it is
#[derive(Debug, clap::Args)]
#[command(after_help = "\
What is printed is a secret: it opens what was bought, within what you add here, to whoever has it.
Nobody can widen it again. Requests and credit that were bought are shared by all who use it.

Examples:
  farebox tokens attenuate 4e9f…c2a1 --valid-for 1h
  farebox tokens attenuate 4e9f…c2a1 --method GET --path /v1/public --human > lent.txt")]
pub(crate) struct Attenuate {
    /// The hash of the payment, all 64 digits, as `purchases list` shows it
    payment: PaymentHash,
    #[command(flatten)]
    narrow: Narrow,
    #[command(flatten)]
    files: Files,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Recover {
    /// Only this payment, whatever is known of it
    payment: Option<PaymentHash>,
    #[command(flatten)]
    wallet: WalletFlags,
    #[command(flatten)]
    files: Files,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Resume {
    #[command(flatten)]
    wallet: WalletFlags,
    #[command(flatten)]
    files: Files,
}

/// One purchase, for a program.
#[derive(Debug, Serialize)]
struct Row {
    payment_hash: String,
    /// `recorded`, `sent`, `unknown`, `failed`, `unsent`, `paid` (and never honoured yet), `imported` (and not used here yet),
    /// `honoured`, or of a credential that is over: `used_up` (its seller said so), `dead` (you gave it up,
    /// or its seller refuses it for good). One that has only reached its limit for the month is none of these.
    state: &'static str,
    origin: String,
    service: String,
    method: String,
    path: String,
    /// None where another program has bought it and not said.
    amount_msat: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fee_msat: Option<u64>,
    begun_at: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    valid_until: Option<u64>,
    /// The program that has bought it, if it wasn't this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    #[serde(skip)]
    text: String,
}

/// The credentials that are held, for a program.
#[derive(Debug, Serialize)]
struct Credentials {
    tokens: Vec<Row>,
}

/// What a wallet knew of old payments.
#[derive(Debug, Serialize)]
struct Found {
    recovered: Vec<Old>,
}

#[derive(Debug, Serialize)]
struct Old {
    #[serde(flatten)]
    row: Row,
    /// `paid`, `not_paid` or `unknown`.
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// What to run now.
    next: Option<String>,
}

#[derive(Debug, Serialize)]
struct Rows {
    purchases: Vec<Row>,
    /// How many there are besides.
    more: usize,
}

#[derive(Debug, Serialize)]
struct Done {
    payment_hash: String,
    done: bool,
    #[serde(skip)]
    text: String,
}

pub(crate) fn run(command: &Command, reader: Reader) -> anyhow::Result<ExitCode> {
    crate::runtime::block_on(async {
        match command {
            Command::List(args) => {
                let mut rows = open(&args.files)?.purchases().await?;
                rows.retain(|row| !args.unserved || row.state == "paid");
                reader.print(&Rows::of(rows, args.limit))?;
            }
            Command::Show(one) => reader.print(&shown(one).await?)?,
            Command::Resume(args) => return resume(args, reader).await,
            Command::Recover(args) => return recover(args, reader).await,
            Command::WriteOff(one) => {
                let engine = open(&one.files)?;
                anyhow::ensure!(
                    engine.write_off(one.payment).await?,
                    "payment {} is not open; `farebox purchases show` tells what became of it",
                    one.payment
                );
                reader.print(&Done::of(one, "is taken as never made"))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

pub(crate) fn run_tokens(command: &Tokens, reader: Reader) -> anyhow::Result<ExitCode> {
    if let Tokens::Import(args) = command {
        return import::run_own(args, reader);
    }
    crate::runtime::block_on(async {
        match command {
            Tokens::List(args) => {
                let mut rows = open(&args.files)?.tokens().await?;
                rows.retain(|row| args.all || is_in_use(row));
                reader.print(&Credentials { tokens: rows.into_iter().map(Row::of).collect() })?;
            }
            Tokens::Show(one) => reader.print(&shown(one).await?)?,
            Tokens::Export(args) => export(args).await?,
            Tokens::Import(_) => {}
            Tokens::Attenuate(args) => reader.print(&attenuated(args).await?)?,
            Tokens::Forget(one) => {
                let done = open(&one.files)?.forget(one.payment).await?;
                anyhow::ensure!(done, "no credential of payment {} is in use", one.payment);
                reader.print(&Done::of(one, "is shown nowhere any more"))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Whether it is shown to its seller.
fn is_in_use(row: &PurchaseRow) -> bool {
    !matches!(row.state, "dead" | "used_up")
}

async fn export(args: &Export) -> anyhow::Result<()> {
    let engine = open(&args.files)?;
    let rows = match args.payment {
        Some(hash) => engine.purchase(hash).await?.into_iter().collect(),
        None => engine.tokens().await?.into_iter().filter(is_in_use).collect::<Vec<_>>(),
    };
    let mut held = Vec::new();
    for row in rows {
        let pass = engine.credential(row.payment_hash).await?;
        held.extend(pass.map(|pass| (row, pass)));
    }
    if let (Some(hash), []) = (args.payment, held.as_slice()) {
        anyhow::bail!("payment {hash} has bought no credential");
    }
    if let Some(path) = &args.output {
        let text = write_tokens(&held);
        return to_file(path, |out| Ok(writeln!(out, "{}", *text)?));
    }
    for (_, pass) in &held {
        output::line(&*header_of(pass)?)?;
    }
    Ok(())
}

fn header_of(pass: &Pass) -> anyhow::Result<zeroize::Zeroizing<String>> {
    let value = pass.header_value().context("the credential can't stand in a header")?;
    Ok(zeroize::Zeroizing::new(value.to_str()?.to_owned()))
}

async fn attenuated(args: &Attenuate) -> anyhow::Result<Attenuated> {
    let pass = open(&args.files)?.credential(args.payment).await?;
    let pass = pass.with_context(|| format!("payment {} has bought no credential", args.payment))?;
    args.narrow.apply(&header_of(&pass)?, pass.scheme)
}

/// 1 where the end of some is still unknown, so that a script can try again.
async fn recover(args: &Recover, reader: Reader) -> anyhow::Result<ExitCode> {
    let wallet =
        args.wallet.connect().await?.context("no wallet is named; name one with --wallet or --wallet-url")?;
    let config =
        EngineConfig { wallet: Some(wallet.pay.clone()), ..EngineConfig::new(args.files.journal()?) };
    let engine = Engine::open(config)?;
    let recovered = engine.recover(args.payment).await;
    engine.close(std::time::Duration::from_secs(5)).await;
    wallet.stop().await;
    let recovered: Vec<Old> = recovered?.into_iter().map(|old| Old::of(old.purchase, old.outcome)).collect();
    if let (Some(hash), []) = (args.payment, recovered.as_slice()) {
        return Err(Usage(format!("the journal knows no payment {hash}")).into());
    }
    let is_open = recovered.iter().any(|old| old.outcome == "unknown");
    reader.print(&Found { recovered })?;
    Ok(if is_open { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn shown(one: &One) -> anyhow::Result<Row> {
    let row = open(&one.files)?.purchase(one.payment).await?;
    Ok(Row::of(row.with_context(|| format!("the journal knows no payment {}", one.payment))?))
}

/// 1 where some stay open, so that a script can wait for them.
async fn resume(args: &Resume, reader: Reader) -> anyhow::Result<ExitCode> {
    let wallet =
        args.wallet.connect().await?.context("no wallet is named; name one with --wallet or --wallet-url")?;
    let config =
        EngineConfig { wallet: Some(wallet.pay.clone()), ..EngineConfig::new(args.files.journal()?) };
    let engine = Engine::open(config)?;
    let open = engine.resume().await;
    engine.close(std::time::Duration::from_secs(5)).await;
    wallet.stop().await;
    let open = open?;
    let exit = if open.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    reader.print(&Rows::of(open, usize::MAX))?;
    Ok(exit)
}

fn open(files: &Files) -> anyhow::Result<Engine> {
    Ok(Engine::open(EngineConfig::new(files.journal()?))?)
}

impl Row {
    fn of(row: PurchaseRow) -> Self {
        // A server chose the name of its service, and this may be a terminal.
        let service = match row.service.as_str() {
            "" => String::new(),
            service => format!(" `{}`", service.escape_debug()),
        };
        let fee = row.fee.map(|fee| format!(" and {fee} of fee")).unwrap_or_default();
        let is_priced = row.price.get() > 0;
        let price = if is_priced { format!("{}{fee}", row.price) } else { "an unknown price".to_owned() };
        let source = row.source.as_ref().map(|source| format!(", from {source}")).unwrap_or_default();
        let request = format!("{} {}", row.method, row.path);
        let request = match request.trim() {
            "" => String::new(),
            request => format!(" for {}", request.escape_debug()),
        };
        let until = row.valid_until.map(|end| format!(", good until {}", utc(end))).unwrap_or_default();
        let text = format!(
            "{}  {}  {price} to {}{service}{request}, {}{until}{source}",
            row.payment_hash,
            row.state.replace('_', " "),
            row.origin,
            utc(row.begun_at),
        );
        Self {
            payment_hash: row.payment_hash.to_string(),
            state: row.state,
            origin: row.origin.to_string(),
            service: row.service,
            method: row.method,
            path: row.path,
            amount_msat: is_priced.then(|| row.price.get()),
            fee_msat: row.fee.map(|fee| fee.get()),
            begun_at: row.begun_at.secs(),
            valid_until: row.valid_until.map(|end| end.secs()),
            source: row.source,
            text,
        }
    }
}

impl Rows {
    fn of(mut rows: Vec<PurchaseRow>, limit: usize) -> Self {
        let more = rows.len().saturating_sub(limit);
        rows.truncate(limit);
        Self { purchases: rows.into_iter().map(Row::of).collect(), more }
    }
}

impl Old {
    fn of(row: PurchaseRow, outcome: Recovery) -> Self {
        // The query is not kept, and what was posted neither.
        let get = || format!("farebox get {}{}", row.origin, row.path);
        let (outcome, reason, next) = match outcome {
            Recovery::Paid if matches!(row.state, "dead" | "used_up") => ("paid", None, None),
            Recovery::Paid => ("paid", None, Some(get())),
            Recovery::NotPaid(reason) => ("not_paid", Some(reason), None),
            Recovery::Unknown(reason) => {
                ("unknown", Some(reason), Some("farebox purchases recover".to_owned()))
            }
            other => ("unknown", Some(format!("{other:?}")), None),
        };
        Self { row: Row::of(row), outcome, reason, next }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.recovered.is_empty() {
            return f.write_str("nothing is open: every payment's outcome is known");
        }
        let lines = self.recovered.iter().map(|Old { row, outcome, reason, next }| {
            let reason = reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
            let outcome = match *outcome {
                "paid" => "was paid, and its credential is held",
                "not_paid" => "was not paid",
                _ => "may have been paid",
            };
            let next = next.as_ref().map(|next| format!("\n    {next}")).unwrap_or_default();
            harmless(&format!("{} {outcome}{reason}", row.payment_hash)) + &harmless_lines(&next)
        });
        f.write_str(&lines.collect::<Vec<_>>().join("\n"))
    }
}

/// A command of ours with a server's words in it.
fn harmless_lines(text: &str) -> String {
    text.split('\n').map(harmless).collect::<Vec<_>>().join("\n")
}

impl fmt::Display for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.tokens.is_empty() {
            return f.write_str("there are none");
        }
        let lines: Vec<&str> = self.tokens.iter().map(|row| row.text.as_str()).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl Done {
    fn of(one: &One, what: &str) -> Self {
        Self { payment_hash: one.payment.to_string(), done: true, text: format!("{} {what}", one.payment) }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines: Vec<String> = self.purchases.iter().map(|row| row.text.clone()).collect();
        match (lines.is_empty(), self.more) {
            (true, _) => lines.push("there are none".to_owned()),
            (false, 0) => {}
            (false, more) => lines.push(format!("and {more} older ones; see them with --limit")),
        }
        f.write_str(&lines.join("\n"))
    }
}

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
