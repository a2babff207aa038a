//! `farebox ledger verify`: whether the books keep their laws, and what a crash may have cost.

use std::{
    fmt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use farebox_paywall::{
    ledger::LedgerConfig,
    store::{
        accounts::Epoch,
        entry::{Totals, Verified},
    },
};
use farebox_protocol::Msat;
use serde::Serialize;

use super::open;
use crate::{
    output::{Reader, harmless, utc},
    seller,
};

/// Check every law of the books, row by row and in sum; exit code 1 if one is broken
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Reads everything, and may be run beside a running gateway. Charges reach the disk in groups, some
thousandths of a second after their answers; what a crash keeps from it is never charged, so that
only the seller loses by it. What requests under way have reserved is in memory alone, and stands
under `left` here.

Examples:
  farebox ledger verify
  farebox ledger verify --state-dir /var/lib/farebox --json
  farebox ledger verify --books backup.sqlite")]
pub(crate) struct Args {
    #[command(flatten)]
    books: seller::Books,
}

#[derive(Debug, Serialize)]
struct Report {
    books: PathBuf,
    ok: bool,
    breaches: Vec<String>,
    purchases: u64,
    accounts: u64,
    #[serde(flatten)]
    money: Money,
    running: bool,
    epochs: Vec<Life>,
    #[serde(skip)]
    verified: Verified,
}

#[derive(Debug, Serialize)]
struct Money {
    paid_msat: u64,
    missing_msat: u64,
    awaited_msat: u64,
    passes_msat: u64,
    spent_msat: u64,
    refunding_msat: u64,
    refunded_msat: u64,
    left_msat: u64,
    surplus_msat: u64,
    surplus_refunding_msat: u64,
    surplus_refunded_msat: u64,
    unattributed_msat: u64,
}

/// One life of the ledger.
#[derive(Debug, Serialize)]
struct Life {
    epoch: u64,
    state: End,
    began_at: u64,
    ended_at: Option<u64>,
    groups: u64,
    last_group_at: Option<u64>,
    /// The most charged requests that are or would be lost, all in the buyers' favour.
    lost_max: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum End {
    InOrder,
    Running,
    CutOff,
}

pub(super) fn run(args: &Args, reader: Reader) -> anyhow::Result<ExitCode> {
    let report = Report::of(&args.books.path()?, open(&args.books)?.verify()?);
    reader.print(&report)?;
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Report {
    fn of(books: &Path, verified: Verified) -> Self {
        let audit = &verified.audit;
        let lives = audit.epochs.iter().enumerate().map(|(at, epoch)| {
            // Only the newest can be running: beginning one ends those before it, in order or not.
            Life::of(epoch, verified.is_running && at == 0)
        });
        Self {
            books: books.to_owned(),
            ok: audit.breaches.is_empty(),
            breaches: audit.breaches.clone(),
            purchases: audit.purchases,
            accounts: audit.accounts,
            money: Money::of(&verified.totals),
            running: verified.is_running,
            epochs: lives.collect(),
            verified,
        }
    }
}

impl Money {
    fn of(totals: &Totals) -> Self {
        Self {
            paid_msat: totals.paid.get(),
            missing_msat: totals.missing.get(),
            awaited_msat: totals.awaited.get(),
            passes_msat: totals.passes.get(),
            spent_msat: totals.spent.get(),
            refunding_msat: totals.refunding.get(),
            refunded_msat: totals.refunded.get(),
            left_msat: totals.left.get(),
            surplus_msat: totals.surplus.get(),
            surplus_refunding_msat: totals.surplus_refunding.get(),
            surplus_refunded_msat: totals.surplus_refunded.get(),
            unattributed_msat: totals.unattributed.get(),
        }
    }
}

impl Life {
    fn of(epoch: &Epoch, is_running: bool) -> Self {
        let state = match epoch.ended_at {
            Some(_) => End::InOrder,
            None if is_running => End::Running,
            None => End::CutOff,
        };
        Self {
            epoch: epoch.id.0,
            state,
            began_at: epoch.began_at.secs(),
            ended_at: epoch.ended_at.map(farebox_protocol::Timestamp::secs),
            groups: epoch.groups,
            last_group_at: epoch.written_at.map(farebox_protocol::Timestamp::secs),
            lost_max: if state == End::InOrder { 0 } else { LedgerConfig::new().unwritten_max },
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let totals = &self.verified.totals;
        writeln!(f, "books            {}", self.books.display())?;
        writeln!(f, "purchases        {}, {} of them with an account", self.purchases, self.accounts)?;
        writeln!(f, "\npaid             {}", totals.paid)?;
        for (amount, what) in
            [(totals.missing, "missing to prices"), (totals.awaited, "not yet told by the node")]
        {
            if amount > Msat::ZERO {
                writeln!(f, "+                {amount} {what}")?;
            }
        }
        let mut sign = '=';
        for (name, amount) in [
            ("passes", totals.passes),
            ("spent", totals.spent),
            ("left", totals.left),
            ("refunding", totals.refunding),
            ("refunded", totals.refunded),
            ("surplus", totals.surplus),
            ("unattributed", totals.unattributed),
        ] {
            write!(f, "{sign} {name:<14} {amount}")?;
            if name == "surplus" && totals.surplus_refunded > Msat::ZERO {
                write!(f, ", of which {} paid back", totals.surplus_refunded)?;
            }
            writeln!(f)?;
            sign = '+';
        }
        writeln!(f)?;
        for (epoch, life) in self.verified.audit.epochs.iter().zip(&self.epochs) {
            life.tell(epoch, f)?;
        }
        if self.ok {
            return write!(f, "\nEvery law holds.");
        }
        write!(f, "\nBROKEN, in {} places:", self.breaches.len())?;
        self.breaches.iter().try_for_each(|breach| write!(f, "\n  {}", harmless(breach)))
    }
}

impl Life {
    fn tell(&self, epoch: &Epoch, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "epoch {:<10} began {}, ", self.epoch, utc(epoch.began_at))?;
        let wrote = match epoch.written_at {
            Some(at) => format!("{} groups of charges written, the last {}", epoch.groups, utc(at)),
            None => "no charges written".to_owned(),
        };
        match (self.state, epoch.ended_at) {
            (End::InOrder, Some(at)) => writeln!(f, "ended in order {}: {wrote}; nothing is lost", utc(at)),
            (End::Running, _) => writeln!(f, "runs: {wrote}"),
            _ => writeln!(
                f,
                "was CUT OFF: {wrote}. What was charged after that and not written (mostly one\n\
                 {:17}group, never more than {} requests) is lost to the seller; the buyers have it still.",
                "", self.lost_max
            ),
        }
    }
}
