//! `farebox ledger show`: one purchase with all that belongs to it.

use std::{fmt, process::ExitCode};

use farebox_lightning::clock::{Clock as _, SystemClock};
use farebox_paywall::{
    ledger::law::Refund,
    store::{
        accounts::{MonthlyUse, RefundOf, RefundRow},
        entry::{Entry, Payment, State},
    },
};
use farebox_protocol::{Msat, Timestamp};
use serde::Serialize;

use super::{counted, open, record::Record};
use crate::{
    output::{Reader, harmless, utc},
    seller,
};

/// Show one purchase: its account, its payments, its refunds, its use by the month, and whether it was revoked
#[derive(Debug, clap::Args)]
#[command(after_help = "\
HASH is the payment hash, the first 8 digits or more of it, or the identifier hash that `token
inspect` shows. Single charges are not kept: an account holds their sum.

Examples:
  farebox ledger show 5f3c09aa
  farebox ledger show 5f3c09aa --json --state-dir /var/lib/farebox")]
pub(crate) struct Args {
    /// Which purchase
    #[arg(value_name = "HASH")]
    hash: String,
    #[command(flatten)]
    books: seller::Books,
}

#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    record: Record,
    settlements: Vec<Settled>,
    refunds: Vec<Refunded>,
    months: Vec<Used>,
    #[serde(skip)]
    entry: Entry,
    #[serde(skip)]
    now: Timestamp,
}

#[derive(Serialize)]
struct Settled {
    at: u64,
    amount_msat: u64,
    node: String,
}

#[derive(Serialize)]
struct Refunded {
    id: String,
    of: &'static str,
    amount_msat: u64,
    asked_at: u64,
    state: &'static str,
    ended_at: Option<u64>,
    /// What belongs to it and isn't taken from the purchase.
    #[serde(skip_serializing_if = "Option::is_none")]
    missing_msat: Option<u64>,
}

/// What tokens with limits by the month have used in one.
#[derive(Serialize)]
struct Used {
    month: String,
    capability: String,
    unit: &'static str,
    used: u64,
    #[serde(skip)]
    of: MonthlyUse,
}

pub(super) fn run(args: &Args, reader: Reader) -> anyhow::Result<ExitCode> {
    let inspector = open(&args.books)?;
    let entry = inspector.find(&args.hash)?;
    let (hash, now) = (entry.purchase.hash, SystemClock.now());
    let shown = Shown {
        record: Record::of_entry(&entry, now),
        settlements: inspector.payments(hash)?.into_iter().map(Settled::from).collect(),
        refunds: inspector.refunds(hash)?.into_iter().map(Refunded::from).collect(),
        months: inspector.months(hash)?.into_iter().map(Used::from).collect(),
        entry,
        now,
    };
    reader.print(&shown)?;
    Ok(ExitCode::SUCCESS)
}

impl From<Payment> for Settled {
    fn from(payment: Payment) -> Self {
        Self { at: payment.at.secs(), amount_msat: payment.amount.get(), node: payment.node }
    }
}

impl From<MonthlyUse> for Used {
    fn from(of: MonthlyUse) -> Self {
        let (month, capability) = (of.month.to_string(), of.capability.to_string());
        Self { month, capability, unit: of.unit.as_str(), used: of.used, of }
    }
}

impl From<RefundRow> for Refunded {
    fn from(row: RefundRow) -> Self {
        Self {
            id: hex::encode(row.order.id.0),
            of: match row.order.of {
                RefundOf::Credit => "credit",
                RefundOf::Surplus => "surplus",
            },
            amount_msat: row.order.amount.get(),
            asked_at: row.order.at.secs(),
            state: match row.ended {
                None => "open",
                Some((Refund::Failed, _)) => "failed",
                Some(_) => "paid",
            },
            ended_at: row.ended.map(|(_, at)| at.secs()),
            missing_msat: Some(row.missing.get()).filter(|missing| *missing > 0),
        }
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let purchase = &self.entry.purchase;
        let states: Vec<&str> = self.entry.states(self.now).map(State::as_str).collect();
        writeln!(f, "payment hash     {}", purchase.hash)?;
        writeln!(f, "state            {}", states.join(", "))?;
        if let Some(sold) = &purchase.sold {
            let tier = if sold.tier == 0 { String::new() } else { format!(", tier {}", sold.tier) };
            writeln!(f, "service          {}{tier}", sold.service)?;
            writeln!(f, "offer            {} for {}", sold.terms.offer, sold.terms.price)?;
            let until = sold.valid_until.map_or_else(|| "for ever".to_owned(), utc);
            writeln!(f, "valid until      {until}")?;
            writeln!(f, "identifier hash  {}", sold.identifier_hash)?;
        }
        match &purchase.claimed {
            Some(claimed) if purchase.sold.is_none() || purchase.is_contradicted() => {
                let note = if purchase.sold.is_none() {
                    "nobody has shown a token"
                } else {
                    "the token says otherwise"
                };
                let offer = &claimed.offer;
                writeln!(f, "invoice says     {}, {offer} for {} ({note})", claimed.service, claimed.price)?;
            }
            _ => {}
        }
        if let Some(at) = purchase.presented_at {
            writeln!(f, "first shown      {}", utc(at))?;
        }
        write!(f, "paid             {}", purchase.paid)?;
        for (amount, what) in
            [(purchase.surplus, "beyond the price"), (purchase.shortfall, "missing to the price")]
        {
            if amount > Msat::ZERO {
                write!(f, ", {amount} {what}")?;
            }
        }
        for settled in &self.settlements {
            let (at, amount) = (utc(Timestamp::from_secs(settled.at)), Msat::new(settled.amount_msat));
            write!(f, "\n  {at}  {amount} at node {}", harmless(&settled.node))?;
        }
        self.account(f)?;
        for Used { month, capability, of, .. } in &self.months {
            write!(
                f,
                "\nused in {month}  {} as `{capability}`, with limited tokens",
                counted(of.unit, of.used)
            )?;
        }
        for refund in &self.refunds {
            let amount = Msat::new(refund.amount_msat);
            let asked = utc(Timestamp::from_secs(refund.asked_at));
            write!(f, "\nrefund           {amount} of {}, asked for {asked}", refund.of)?;
            match refund.ended_at {
                Some(at) => write!(f, ", {} {}", refund.state, utc(Timestamp::from_secs(at)))?,
                None => write!(f, ", under way")?,
            }
            if let Some(missing) = refund.missing_msat {
                write!(f, "; {} more had nothing to be taken from, beside the law", Msat::new(missing))?;
            }
        }
        if let Some(revoked) = &self.entry.revoked {
            // Words of whoever revoked it: a terminal must not obey them.
            write!(f, "\nrevoked          {} {}", utc(revoked.at), harmless(&revoked.reason))?;
        }
        Ok(())
    }
}

impl Shown {
    fn account(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(account) = &self.entry.account else { return Ok(()) };
        let balance = &account.balance;
        let part = |units| counted(account.unit, units);
        write!(f, "\naccount          {} sold, opened {}", part(balance.sold()), utc(account.opened_at))?;
        write!(f, "\n  spent          {}", part(balance.spent()))?;
        if let Some(at) = account.debited_at {
            write!(f, " in {} charged requests, the last {}", account.requests, utc(at))?;
        }
        for (what, units) in [("refunding", balance.refunding()), ("refunded", balance.refunded())] {
            if units > 0 {
                write!(f, "\n  {what:<13}  {}", part(units))?;
            }
        }
        write!(f, "\n  left           {}", part(balance.left()))?;
        if balance.written_off() > 0 {
            write!(f, "\n  written off    {}, beside the law", part(balance.written_off()))?;
        }
        Ok(())
    }
}
