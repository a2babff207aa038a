//! `farebox purchases` and `farebox tokens`: what has been bought, what became of the money, and the credentials it bought.

use std::{fmt, process::ExitCode};

use anyhow::Context as _;
use farebox_client::{Engine, EngineConfig, PurchaseRow};
use farebox_protocol::PaymentHash;
use serde::Serialize;

use crate::{
    buyer::Files,
    output::{self, Reader, utc},
    wallet::WalletFlags,
};

/// See what has been bought, and what became of payments
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "\
Examples:
  farebox purchases list
  farebox purchases list --unserved
  farebox purchases show 4e9f…c2a1
  farebox purchases resume")]
pub(crate) enum Command {
    /// List purchases, newest first
    List(List),
    /// Show one purchase
    Show(One),
    /// Ask the wallet about payments whose outcome is not known, and list those still open. Pays nothing
    Resume(Resume),
    /// Take your word that a payment of unknown outcome was never made, so that its place is free again
    WriteOff(One),
}

/// The credentials that were bought: list them, take one elsewhere, give one up
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "\
A credential opens what was bought to whoever has it. `export` alone prints one.

Examples:
  farebox tokens list
  farebox tokens export 4e9f…c2a1 | farebox token attenuate - --expires 1h
  farebox tokens forget 4e9f…c2a1")]
pub(crate) enum Tokens {
    /// List what is held, newest first
    List(Held),
    /// Show what is known of one, without the secret
    Show(One),
    /// Print the credential itself, as it stands in an Authorization header
    Export(One),
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
    /// The hash of the payment
    payment: PaymentHash,
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
    /// `recorded`, `sent`, `unknown`, `failed`, `unsent`, `paid` (and never honoured yet), `honoured` or `dead`.
    state: &'static str,
    origin: String,
    service: String,
    method: String,
    path: String,
    amount_msat: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    fee_msat: Option<u64>,
    begun_at: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    valid_until: Option<u64>,
    #[serde(skip)]
    text: String,
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
    crate::runtime::block_on(async {
        match command {
            Tokens::List(args) => {
                let mut rows = open(&args.files)?.tokens().await?;
                rows.retain(|row| args.all || row.state != "dead");
                reader.print(&Rows::of(rows, usize::MAX))?;
            }
            Tokens::Show(one) => reader.print(&shown(one).await?)?,
            Tokens::Export(one) => {
                let pass = open(&one.files)?.credential(one.payment).await?;
                let pass =
                    pass.with_context(|| format!("payment {} has bought no credential", one.payment))?;
                let value = pass.header_value().context("the credential can't stand in a header")?;
                let text = zeroize::Zeroizing::new(value.to_str()?.to_owned());
                output::line(&*text)?;
            }
            Tokens::Forget(one) => {
                let done = open(&one.files)?.forget(one.payment).await?;
                anyhow::ensure!(done, "no credential of payment {} is in use", one.payment);
                reader.print(&Done::of(one, "is shown nowhere any more"))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    })
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
        let until = row.valid_until.map(|end| format!(", good until {}", utc(end))).unwrap_or_default();
        let text = format!(
            "{}  {}  {}{fee} to {}{service} for {} {}, {}{until}",
            row.payment_hash,
            row.state,
            row.price,
            row.origin,
            row.method.escape_debug(),
            row.path.escape_debug(),
            utc(row.begun_at),
        );
        Self {
            payment_hash: row.payment_hash.to_string(),
            state: row.state,
            origin: row.origin.to_string(),
            service: row.service,
            method: row.method,
            path: row.path,
            amount_msat: row.price.get(),
            fee_msat: row.fee.map(|fee| fee.get()),
            begun_at: row.begun_at.secs(),
            valid_until: row.valid_until.map(|end| end.secs()),
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
