//! `farebox wallet`: what the wallet that would pay can do, and whether it gives back the proof of what it has paid.

use std::{fmt, process::ExitCode};

use anyhow::Context as _;
use farebox_client::{Engine, EngineConfig};
use farebox_lightning::{FeeControl, Outcome, Pay, PayFacts};
use farebox_protocol::PaymentHash;
use serde::Serialize;

use crate::{buyer::Files, output::Reader, wallet::WalletFlags};

/// How many of the latest payments are looked up: an older wallet's may be among them.
const LOOKED_UP: usize = 10;

/// Look at the wallet that `farebox get` pays with
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "\
Examples:
  farebox wallet check
  farebox wallet check --wallet wallet.yaml
  farebox wallet check --wallet-url http://127.0.0.1:9740 --wallet-password-file password")]
pub(crate) enum Command {
    /// Connect to the wallet, tell what it can do, and look up a payment of the journal: a wallet must give back the proof
    /// of what it has paid. Pays nothing
    Check(Check),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Check {
    #[command(flatten)]
    wallet: WalletFlags,
    #[command(flatten)]
    files: Files,
}

/// What was found out.
#[derive(Debug, Serialize)]
struct Told {
    kind: &'static str,
    wallet: String,
    network: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    balance_msat: Option<u64>,
    /// It keeps to a fee limit.
    caps_fees: bool,
    /// "Not found" proves that it was never sent.
    proves_unsent: bool,
    /// It pays a hash at most once.
    refuses_paid_hash: bool,
    /// `yes`, `no`, or `unknown` where no payment of the journal is this wallet's.
    returns_preimages: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    looked_up: Option<String>,
    #[serde(skip)]
    text: String,
}

pub(crate) fn run(command: &Command, reader: Reader) -> anyhow::Result<ExitCode> {
    let Command::Check(args) = command;
    let told = crate::runtime::block_on(check(args))?;
    reader.print(&told)?;
    Ok(if told.returns_preimages == "no" { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn check(args: &Check) -> anyhow::Result<Told> {
    let wallet = args.wallet.connect().await?.context(
        "no wallet is named; write one into farebox/wallet.yaml in your configuration directory, or use --wallet or --wallet-url",
    )?;
    let engine = Engine::open(EngineConfig::new(args.files.journal()?))?;
    let mut paid = engine.tokens().await?;
    paid.truncate(LOOKED_UP);
    let found = look_up(&*wallet.pay, paid.into_iter().map(|row| row.payment_hash)).await;
    let balance = wallet.pay.balance().await;
    let (kind, facts) = (wallet.kind, wallet.pay.facts());
    wallet.stop().await;
    Ok(Told::of(kind, &facts, balance.ok().map(|balance| balance.get()), &found?))
}

/// What the wallet says of the first of these that it knows.
async fn look_up(
    wallet: &dyn Pay,
    paid: impl Iterator<Item = PaymentHash>,
) -> anyhow::Result<Option<(PaymentHash, bool)>> {
    for hash in paid {
        match wallet.lookup(hash).await.context("the wallet can't be asked about a payment")? {
            Outcome::Settled { preimage, .. } => return Ok(Some((hash, preimage.pays(&hash)))),
            // The journal has its proof, so it was paid, and by this wallet.
            Outcome::Failed(_) | Outcome::InFlight => return Ok(Some((hash, false))),
            Outcome::NotFound => {}
        }
    }
    Ok(None)
}

impl Told {
    fn of(
        kind: &'static str,
        facts: &PayFacts,
        balance_msat: Option<u64>,
        found: &Option<(PaymentHash, bool)>,
    ) -> Self {
        let yes = |is: bool, what: &str, otherwise: &str| if is { what } else { otherwise }.to_owned();
        let fees = match &facts.fee_control {
            FeeControl::Exact => "it keeps to a fee limit".to_owned(),
            FeeControl::WorstCase { base, parts_per_million } => {
                format!(
                    "it takes no fee limit; the most a payment costs is {base} and {parts_per_million} millionths of it"
                )
            }
        };
        let proof = match found {
            Some((hash, true)) => format!("it gives back the proof of what it has paid (payment {hash})"),
            Some((hash, false)) => {
                format!("it does NOT give back the proof of payment {hash}; don't buy with this wallet")
            }
            None => "whether it gives back proofs shows with its first payment: no payment of the journal is this wallet's"
                .to_owned(),
        };
        let balance = balance_msat.map(farebox_protocol::Msat::new);
        let lines = [
            format!("{kind} {} on {}", facts.wallet.0.escape_debug(), facts.network.name()),
            balance.map_or_else(
                || "it does not tell its balance".to_owned(),
                |msat| format!("it can spend about {msat}"),
            ),
            fees,
            yes(
                facts.proves_unsent,
                "what it does not know was never sent",
                "what it does not know may have been sent",
            ),
            yes(facts.refuses_paid_hash, "it pays no invoice twice", "it might pay an invoice twice"),
            proof,
        ];
        Self {
            kind,
            wallet: facts.wallet.0.clone(),
            network: facts.network.name(),
            balance_msat,
            caps_fees: matches!(facts.fee_control, FeeControl::Exact),
            proves_unsent: facts.proves_unsent,
            refuses_paid_hash: facts.refuses_paid_hash,
            returns_preimages: match found {
                Some((_, true)) => "yes",
                Some((_, false)) => "no",
                None => "unknown",
            },
            looked_up: found.as_ref().map(|(hash, _)| hash.to_string()),
            text: lines.join("\n"),
        }
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
