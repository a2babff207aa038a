//! `farebox approve`: agree to a payment that a program wanted to make and the policy asks a person about.

use std::{
    fmt,
    io::{IsTerminal as _, Read as _},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::Context as _;
use farebox_client::{Engine, EngineConfig, PendingApproval, policy::Policy};
use farebox_lightning::clock::{Clock as _, SystemClock};
use farebox_protocol::Msat;
use serde::Serialize;
use zeroize::Zeroizing;

use crate::{
    buyer::Files,
    config::value::Span,
    output::{Reader, utc},
};

/// Agree to a payment that the policy asks a person about, or see what waits for an answer
///
/// Where the policy says `ask` and nobody is at the terminal, the request is refused and its question waits for a day. Agreeing
/// takes the secret that was set with `farebox policy init`; the request then has to be made again. A consent is good for one
/// payment for the same method and path, whatever its query and body, up to the price and fee that were asked.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  farebox approve
  farebox approve 5f3a9c01e2
  farebox approve 5f3a9c01e2 --max-cost 500sat --for 10m
  farebox approve 5f3a9c01e2 --deny")]
pub(crate) struct Args {
    /// The question; without one, all that wait are listed
    id: Option<String>,
    /// Answer no
    #[arg(long, requires = "id", conflicts_with_all = ["max_cost", "max_fee", "secret_file"])]
    deny: bool,
    /// The highest price to agree to [default: the one that was asked]
    #[arg(long, value_name = "AMOUNT", requires = "id")]
    max_cost: Option<Msat>,
    /// The highest routing fee to agree to [default: the one that was asked, in proportion to a higher --max-cost]
    #[arg(long, value_name = "AMOUNT", requires = "id")]
    max_fee: Option<Msat>,
    /// For how long the consent is good
    #[arg(long = "for", value_name = "TIME", default_value = "1h", requires = "id")]
    good_for: Span,
    /// A file with the secret, instead of typing it
    #[arg(long, value_name = "FILE", requires = "id")]
    secret_file: Option<PathBuf>,
    #[command(flatten)]
    files: Files,
}

#[derive(Debug, Serialize)]
struct Waiting {
    waiting: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    id: String,
    origin: String,
    service: String,
    method: String,
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<String>,
    price_msat: u64,
    fee_worst_msat: u64,
    payee: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    asked_at: u64,
    #[serde(skip)]
    text: String,
}

#[derive(Debug, Serialize)]
struct Answered {
    id: String,
    approved: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    price_max_msat: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fee_max_msat: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<u64>,
    #[serde(skip)]
    text: String,
}

pub(crate) fn run(args: &Args, reader: Reader) -> anyhow::Result<ExitCode> {
    let policy = args.files.policy()?.unwrap_or_else(Policy::without_file);
    let config = EngineConfig { policy: Arc::new(policy), ..EngineConfig::new(args.files.journal()?) };
    crate::runtime::block_on(async {
        let engine = Engine::open(config)?;
        match &args.id {
            None => reader.print(&Waiting::of(engine.pending().await?))?,
            Some(id) if args.deny => {
                engine.deny(id).await?;
                let text = format!("`{id}` is not paid");
                reader.print(&Answered {
                    id: id.clone(),
                    approved: false,
                    price_max_msat: None,
                    fee_max_msat: None,
                    until: None,
                    text,
                })?;
            }
            Some(id) => reader.print(&agree(args, &engine, id).await?)?,
        }
        anyhow::Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn agree(args: &Args, engine: &Engine, id: &str) -> anyhow::Result<Answered> {
    let pending = engine.pending().await?;
    let Some(question) = pending.into_iter().find(|pending| pending.id == *id) else {
        anyhow::bail!("no question waits as `{id}`; `farebox approve` lists those that do");
    };
    eprintln!("{}", Row::of(question.clone()).text);
    let price_max = args.max_cost.unwrap_or(question.price);
    let fee_max = args.max_fee.unwrap_or_else(|| in_proportion(&question, price_max));
    let secret = secret(args.secret_file.as_deref(), "Secret: ")?;
    let until = SystemClock.now().saturating_add(args.good_for.0);
    let consent = engine.approve(&question, &secret, (Some(price_max), Some(fee_max)), until).await?;
    Ok(Answered {
        text: format!(
            "one payment of at most {} and {} of fees until {}; make the request again",
            consent.price_max,
            consent.fee_max,
            utc(until)
        ),
        id: consent.id,
        approved: true,
        price_max_msat: Some(consent.price_max.get()),
        fee_max_msat: Some(consent.fee_max.get()),
        until: Some(until.secs()),
    })
}

/// The fee that was asked, grown as the price has.
fn in_proportion(question: &PendingApproval, price_max: Msat) -> Msat {
    let (asked, fee) = (question.price.get().max(1), u128::from(question.fee_worst.get()));
    let grown = fee * u128::from(price_max.get().max(asked)) / u128::from(asked);
    u64::try_from(grown).map_or(Msat::MAX, Msat::new).min(Msat::MAX)
}

/// A secret out of a file, or typed by the person at the terminal. Never out of the environment or the command line, where
/// other programs look.
pub(super) fn secret(file: Option<&Path>, prompt: &str) -> anyhow::Result<Zeroizing<String>> {
    if let Some(path) = file {
        let mut text = Zeroizing::new(String::new());
        let unreadable = || format!("cannot read the secret in `{}`", path.display());
        std::fs::File::open(path)
            .and_then(|file| file.take(4_096).read_to_string(&mut text))
            .with_context(unreadable)?;
        return Ok(Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()));
    }
    anyhow::ensure!(
        is_somebody_there(),
        "the secret has to be typed at a terminal, or be in a file: --secret-file"
    );
    eprint!("{prompt}");
    let typed = console::Term::stderr().read_secure_line().context("cannot read from the terminal")?;
    Ok(Zeroizing::new(typed))
}

/// Whether a person can see what is asked and type an answer.
pub(super) fn is_somebody_there() -> bool {
    std::io::stdin().is_terminal() && std::io::stderr().is_terminal()
}

impl Waiting {
    fn of(pending: Vec<PendingApproval>) -> Self {
        Self { waiting: pending.into_iter().map(Row::of).collect() }
    }
}

impl Row {
    fn of(pending: PendingApproval) -> Self {
        let PendingApproval {
            id,
            origin,
            service,
            method,
            path,
            label,
            price,
            fee_worst,
            payee,
            rule,
            asked_at,
            ..
        } = pending;
        // What a server or a caller has written is shown with nothing that a terminal would obey.
        let shown = |text: &str| text.escape_debug().to_string();
        let by = label.as_deref().map(|label| format!(" for `{}`", shown(label))).unwrap_or_default();
        let text = format!(
            "{}  {} asks {price} (and up to {fee_worst} of fees) for {} {}{by}\n  paid to node {}; {}; asked {}",
            shown(&id),
            shown(&origin),
            shown(&method),
            shown(&path),
            shown(&payee),
            rule.as_deref().map_or_else(
                || "no rule allows it, or the seller is new".to_owned(),
                |rule| format!("rule \"{}\"", shown(rule))
            ),
            utc(asked_at),
        );
        Self {
            id,
            origin,
            service,
            method,
            path,
            label,
            price_msat: price.get(),
            fee_worst_msat: fee_worst.get(),
            payee,
            rule,
            asked_at: asked_at.secs(),
            text,
        }
    }
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.waiting {
            [] => f.write_str("nothing waits for an answer"),
            rows => {
                let lines: Vec<&str> = rows.iter().map(|row| &*row.text).collect();
                f.write_str(&lines.join("\n"))
            }
        }
    }
}

impl fmt::Display for Answered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
