//! `farebox budget`: what has been spent, what is kept aside, what is left, and which wallet has broken its word.

use std::{fmt, process::ExitCode, sync::Arc};

use farebox_client::{BudgetUse, Engine, EngineConfig, Overrun};
use farebox_protocol::{PaymentHash, Timestamp};
use serde::Serialize;

use crate::{
    buyer::{self, Files},
    output::{Reader, utc},
};

/// Show every budget of the policy with what is left of it
///
/// A wallet that took more than the most it had promised for a payment pays nothing more until you have said that you know.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  farebox budget
  farebox budget --acknowledge 4e9f…c2a1")]
pub(crate) struct Args {
    /// The hash of a payment whose fee was higher than the wallet had promised: let the wallet pay again
    #[arg(long, value_name = "HASH")]
    acknowledge: Option<PaymentHash>,
    #[command(flatten)]
    files: Files,
}

/// For a program.
#[derive(Debug, Serialize)]
struct Told {
    budgets: Vec<BudgetRow>,
    overruns: Vec<OverrunRow>,
    /// The latest moment in the journal, where that is well after the present (Unix seconds).
    #[serde(skip_serializing_if = "Option::is_none")]
    journal_ahead: Option<u64>,
    #[serde(skip)]
    text: String,
}

/// One budget.
#[derive(Debug, Serialize)]
pub(super) struct BudgetRow {
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    /// In seconds; none for what is capped in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    window_secs: Option<u64>,
    max_msat: u64,
    spent_msat: u64,
    reserved_msat: u64,
    left_msat: u64,
}

#[derive(Debug, Serialize)]
struct OverrunRow {
    payment_hash: String,
    wallet: String,
    fee_msat: u64,
    promised_msat: u64,
}

pub(crate) fn run(args: &Args, reader: Reader) -> anyhow::Result<ExitCode> {
    let (policy, limits) = buyer::binding(args.files.policy()?, buyer::Asked::default());
    let budgets = policy.budgets();
    let config =
        EngineConfig { policy: Arc::new(policy), limits, ..EngineConfig::new(args.files.journal()?) };
    let told = crate::runtime::block_on(async {
        let engine = Engine::open(config)?;
        if let Some(payment) = args.acknowledge {
            let done = engine.acknowledge(payment).await?;
            anyhow::ensure!(
                done,
                "the journal has no payment `{payment}` that cost more than its wallet had promised and that you \
                 haven't acknowledged; `farebox budget` names those there are"
            );
        }
        let ahead = engine.journal_ahead().await?;
        anyhow::Ok(Told::of(&engine.budgets(budgets).await?, engine.overruns().await?, ahead))
    })?;
    reader.print(&told)?;
    Ok(ExitCode::SUCCESS)
}

impl BudgetRow {
    pub(super) fn of(used: &BudgetUse) -> Self {
        Self {
            rule: used.budget.rule.clone(),
            window_secs: used.budget.window.secs(),
            max_msat: used.budget.most.get(),
            spent_msat: used.spent.get(),
            reserved_msat: used.reserved.get(),
            left_msat: used.left().get(),
        }
    }
}

/// One budget, for a person.
pub(super) fn line(used: &BudgetUse) -> String {
    let (spent, reserved, left) = (used.spent, used.reserved, used.left());
    format!("{}; {spent} spent, {reserved} reserved, {left} left", used.budget)
}

impl Told {
    fn of(budgets: &[BudgetUse], overruns: Vec<Overrun>, ahead: Option<Timestamp>) -> Self {
        let mut lines: Vec<String> = budgets.iter().map(line).collect();
        if lines.is_empty() {
            lines.push("nothing is capped over time".to_owned());
        }
        for Overrun { payment, wallet, fee, promised, .. } in &overruns {
            lines.push(format!(
                "wallet `{}` took {fee} of fee for payment {payment}, of which it had promised at most {promised}; it pays \
                 nothing more until `farebox budget --acknowledge {payment}`",
                wallet.escape_debug()
            ));
        }
        if let Some(latest) = ahead {
            lines.push(format!(
                "the journal knows the moment {}, which is still to come: this machine's clock was wrong when that was written, or \
                 is wrong now. Set it right if it is wrong now. If it was wrong then, nothing leaves the budgets by time before that \
                 moment, and consents that are given now are over at once. Nothing is opened by itself: once \
                 `farebox purchases recover` leaves nothing open, keep this journal and begin another one (`farebox tokens export --all -o FILE`, then `--journal NEW` with `farebox tokens import FILE` and from \
                 then on), whose budgets begin at nothing",
                utc(latest)
            ));
        }
        let rows = overruns.into_iter().map(|overrun| OverrunRow {
            payment_hash: overrun.payment.to_string(),
            wallet: overrun.wallet,
            fee_msat: overrun.fee.get(),
            promised_msat: overrun.promised.get(),
        });
        Self {
            budgets: budgets.iter().map(BudgetRow::of).collect(),
            overruns: rows.collect(),
            journal_ahead: ahead.map(Timestamp::secs),
            text: lines.join("\n"),
        }
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
