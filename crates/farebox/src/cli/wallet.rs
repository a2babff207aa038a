//! `farebox wallet`: what the wallet that would pay can do, and whether it gives back the proof of what it has paid.

use std::{fmt, process::ExitCode};

use anyhow::Context as _;
use farebox_client::{Engine, EngineConfig};
use farebox_lightning::{
    FeeControl, Outcome, Pay, PayFacts,
    nwc::{Budget, Encryption, Nwc},
};
use farebox_protocol::{Msat, PaymentHash};
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
    #[serde(skip_serializing_if = "Option::is_none")]
    nwc: Option<Relayed>,
    #[serde(skip)]
    text: String,
}

/// What is true of wallets behind relays only.
#[derive(Debug, Serialize)]
struct Relayed {
    /// `nip44` or `nip04`.
    encryption: &'static str,
    relays: Vec<Relay>,
    /// Whether it can be asked what became of a payment.
    can_look_up: bool,
    /// What its owner lets this connection spend.
    #[serde(skip_serializing_if = "Option::is_none")]
    budget_msat: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    budget_used_msat: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    budget_renewal: Option<String>,
}

#[derive(Debug, Serialize)]
struct Relay {
    name: String,
    up: bool,
}

/// What there is to go by about proofs.
enum Proof {
    /// A payment of the journal, which the wallet was asked about.
    OfJournal(PaymentHash, bool),
    /// A payment that the wallet lists by itself.
    Listed(PaymentHash, bool),
    /// It can't be asked.
    NotAsked,
    /// It knows none of the journal's.
    None,
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
    let nwc = wallet.nwc();
    let found = match &nwc {
        Some(nwc) if !nwc.can_look_up() => Ok(Proof::NotAsked),
        _ => look_up(&*wallet.pay, paid.into_iter().map(|row| row.payment_hash)).await,
    };
    let balance = wallet.pay.balance().await;
    let (kind, facts) = (wallet.kind, wallet.pay.facts());
    let relayed = match &nwc {
        Some(nwc) => Some(Relayed::of(nwc, nwc.budget().await.ok().flatten())),
        None => None,
    };
    let found = match (found, nwc) {
        (Ok(nothing @ (Proof::None | Proof::NotAsked)), Some(nwc)) => match nwc.latest_payment().await {
            Ok(Some((hash, is_proven))) => Ok(Proof::Listed(hash, is_proven)),
            Ok(None) | Err(_) => Ok(nothing),
        },
        (found, _) => found,
    };
    wallet.stop().await;
    Ok(Told::of(kind, &facts, balance.ok().map(|balance| balance.get()), &found?, relayed))
}

/// What the wallet says of the first of these that it knows.
async fn look_up(wallet: &dyn Pay, paid: impl Iterator<Item = PaymentHash>) -> anyhow::Result<Proof> {
    for hash in paid {
        match wallet.lookup(hash).await.context("the wallet can't be asked about a payment")? {
            Outcome::Settled { preimage, .. } => return Ok(Proof::OfJournal(hash, preimage.pays(&hash))),
            // The journal has its proof, so it was paid, and by this wallet.
            Outcome::Failed(_) | Outcome::InFlight => return Ok(Proof::OfJournal(hash, false)),
            Outcome::NotFound => {}
        }
    }
    Ok(Proof::None)
}

impl Relayed {
    fn of(nwc: &Nwc, budget: Option<Budget>) -> Self {
        let relays = nwc.relays().iter().map(|(name, up)| Relay { name: name.clone(), up: *up });
        Self {
            encryption: match nwc.encryption() {
                Encryption::Nip44 => "nip44",
                Encryption::Nip04 => "nip04",
            },
            relays: relays.collect(),
            can_look_up: nwc.can_look_up(),
            budget_msat: budget.as_ref().map(|budget| budget.total.get()),
            budget_used_msat: budget.as_ref().map(|budget| budget.used.get()),
            budget_renewal: budget.and_then(|budget| budget.renewal),
        }
    }

    fn lines(&self) -> Vec<String> {
        let relays = self.relays.iter().map(|relay| match relay.up {
            true => relay.name.clone(),
            false => format!("{} (not reached)", relay.name),
        });
        let relays = relays.collect::<Vec<_>>().join(", ");
        let mut lines = vec![match self.encryption {
            "nip04" => {
                format!("reached by {relays}, with the old encryption (NIP-04): the wallet knows no other")
            }
            _ => format!("reached by {relays}"),
        }];
        lines.push(match (self.budget_msat, self.budget_used_msat) {
            (Some(total), used) => {
                let renewal = self.budget_renewal.as_deref().unwrap_or("never");
                let (total, used) = (Msat::new(total), Msat::new(used.unwrap_or_default()));
                format!("its own budget for this connection: {used} of {total} spent, renewed: {renewal}")
            }
            (None, _) => "it tells of no budget of its own for this connection; set one there".to_owned(),
        });
        if !self.can_look_up {
            lines.push(
                "this connection does not permit `lookup_invoice`: a payment without an answer stays unknown"
                    .to_owned(),
            );
        }
        lines
    }
}

impl Told {
    fn of(
        kind: &'static str,
        facts: &PayFacts,
        balance_msat: Option<u64>,
        found: &Proof,
        relayed: Option<Relayed>,
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
            Proof::OfJournal(hash, true) => {
                format!("it gives back the proof of what it has paid (payment {hash})")
            }
            Proof::OfJournal(hash, false) => {
                format!("it does NOT give back the proof of payment {hash}; don't buy with this wallet")
            }
            Proof::Listed(hash, true) => {
                format!("it shows the proof of its latest payment ({hash}), which was not made by farebox")
            }
            Proof::Listed(hash, false) => format!(
                "its list shows no proof of its latest payment ({hash}); whether it gives one when it pays shows with its first"
            ),
            Proof::NotAsked => {
                "whether it gives back proofs shows with its first payment: it can't be asked about earlier ones".to_owned()
            }
            Proof::None => {
                "whether it gives back proofs shows with its first payment: no payment of the journal is this wallet's"
                    .to_owned()
            }
        };
        let balance = balance_msat.map(Msat::new);
        let mut lines = vec![
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
        if let Some(relayed) = &relayed {
            lines.splice(1..1, relayed.lines());
        }
        Self {
            kind,
            wallet: facts.wallet.0.clone(),
            network: facts.network.name(),
            balance_msat,
            caps_fees: matches!(facts.fee_control, FeeControl::Exact),
            proves_unsent: facts.proves_unsent,
            refuses_paid_hash: facts.refuses_paid_hash,
            returns_preimages: match found {
                Proof::OfJournal(_, true) | Proof::Listed(_, true) => "yes",
                Proof::OfJournal(_, false) => "no",
                Proof::Listed(_, false) | Proof::NotAsked | Proof::None => "unknown",
            },
            looked_up: match found {
                Proof::OfJournal(hash, _) | Proof::Listed(hash, _) => Some(hash.to_string()),
                Proof::NotAsked | Proof::None => None,
            },
            nwc: relayed,
            text: lines.join("\n"),
        }
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
