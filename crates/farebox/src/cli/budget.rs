//! `farebox budget`: what has been spent, what is kept aside, what is left, and which wallet has broken its word.

use std::{fmt, process::ExitCode, sync::Arc};

use farebox_client::{BudgetUse, Engine, EngineConfig, Overrun};
use farebox_protocol::PaymentHash;
use serde::Serialize;

use crate::{
    buyer::{self, Files},
    output::Reader,
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
                "payment {payment} cost no more than its wallet had promised, or you know already"
            );
        }
        anyhow::Ok(Told::of(&engine.budgets(budgets).await?, engine.overruns().await?))
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
    fn of(budgets: &[BudgetUse], overruns: Vec<Overrun>) -> Self {
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
        let rows = overruns.into_iter().map(|overrun| OverrunRow {
            payment_hash: overrun.payment.to_string(),
            wallet: overrun.wallet,
            fee_msat: overrun.fee.get(),
            promised_msat: overrun.promised.get(),
        });
        Self {
            budgets: budgets.iter().map(BudgetRow::of).collect(),
            overruns: rows.collect(),
            text: lines.join("\n"),
        }
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
