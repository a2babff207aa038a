//! `farebox budget`: what has been spent, what is kept aside, what is left, and which wallet has broken its word.

use std::{fmt, process::ExitCode, sync::Arc};

use farebox_client::{BudgetUse, Engine, EngineConfig, Overrun, Redating};
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
  farebox budget --acknowledge 4e9f…c2a1
  farebox budget --redate    # this machine's clock was ahead once, and is right now")]
pub(crate) struct Args {
    /// The hash of a payment whose fee was higher than the wallet had promised: let the wallet pay again
    #[arg(long, value_name = "HASH")]
    acknowledge: Option<PaymentHash>,
    /// Say that the clock is right now, and was ahead when it wrote what is dated after the present: that counts as paid now, and
    /// leaves each budget in its time. It frees nothing at this moment, and forgets consents that weren't used
    #[arg(long)]
    redate: bool,
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
    /// What `--redate` did.
    #[serde(skip_serializing_if = "Option::is_none")]
    redated: Option<String>,
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
        let redated = if args.redate { Some(redate(&engine).await?) } else { None };
        let ahead = engine.journal_ahead().await?;
        anyhow::Ok(Told::of(&engine.budgets(budgets).await?, engine.overruns().await?, ahead, redated))
    })?;
    reader.print(&told)?;
    Ok(ExitCode::SUCCESS)
}

/// What was redated, as a sentence.
async fn redate(engine: &Engine) -> anyhow::Result<String> {
    match engine.redate().await? {
        Redating::Done { payments, spent, forgiven } => Ok(format!(
            "{payments} payments of {spent} that were dated after the present, up to {}, count as paid now",
            utc(forgiven)
        )),
        Redating::Open(open) => anyhow::bail!(
            "{open} payments that are dated after the present are open; run `farebox purchases recover` first, and settle \
             what it leaves with `farebox purchases write-off`"
        ),
        _ => anyhow::bail!("the journal isn't ahead of this machine's clock: there is nothing to redate"),
    }
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
    fn of(
        budgets: &[BudgetUse],
        overruns: Vec<Overrun>,
        ahead: Option<Timestamp>,
        redated: Option<String>,
    ) -> Self {
        let mut lines: Vec<String> = redated.iter().cloned().chain(budgets.iter().map(line)).collect();
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
                 moment, and consents that are given now are over at once. Nothing is opened by itself: look at those payments \
                 (`farebox purchases list`), then say so with `farebox budget --redate`: they count as paid now, and leave each \
                 budget in its time",
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
            redated,
            text: lines.join("\n"),
        }
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
