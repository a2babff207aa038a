//! `farebox ledger report`: revenue and use by service and day.

use std::{collections::BTreeMap, process::ExitCode};

use clap::ValueEnum;
use farebox_paywall::store::entry::Day;
use farebox_protocol::{Msat, Timestamp};

use super::{
    Format, csv, moment, open,
    record::Record,
    table::{Column, Table},
};
use crate::{
    output::{Reader, line},
    seller,
};

/// Revenue and use by service and day, surplus, refunds and money that nobody has claimed
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Money goes by the day (UTC) on which the node had it, and stays there whatever becomes of the token.
What nobody has shown a token for stands under `-` and moves to its service once somebody does. Use
is that of requests and credit; passes are not counted.

Examples:
  farebox ledger report
  farebox ledger report --by month --since 2026-01-01 --format csv
  farebox ledger report --by total")]
pub(crate) struct Args {
    /// What one row is for
    #[arg(long, value_name = "SPAN", default_value = "day")]
    by: By,
    /// Only from the day of this moment on: 2026-11-22, or how long ago, like 30d
    #[arg(long, value_name = "WHEN", value_parser = moment::parse)]
    since: Option<Timestamp>,
    /// Only the days before the one of this moment
    #[arg(long, value_name = "WHEN", value_parser = moment::parse)]
    until: Option<Timestamp>,
    /// How to write it [default: table on a terminal, json elsewhere]
    #[arg(long, value_name = "FORMAT", help_heading = "Output")]
    format: Option<Format>,
    #[command(flatten)]
    books: seller::Books,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum By {
    Day,
    Month,
    Total,
}

const SECS_PER_DAY: u64 = 86_400;

pub(super) fn run(args: &Args, reader: Reader) -> anyhow::Result<ExitCode> {
    let from = args.since.map_or(0, |since| since.secs() / SECS_PER_DAY);
    let days = match args.until.map(|until| until.secs() / SECS_PER_DAY) {
        // Nothing is before the first day.
        Some(0) => Vec::new(),
        until => open(&args.books)?.days(from, until.map_or(u64::MAX, |until| until - 1))?,
    };
    let rows = args.by.grouped(days);
    match Format::or_for(args.format, reader) {
        Format::Table if rows.is_empty() => line(&"nothing came in and nothing was used")?,
        Format::Table => line(&table(&rows))?,
        Format::Csv => {
            line(&csv::header(&Record::of_day(&Day::default(), "")))?;
            for (when, day) in &rows {
                line(&csv::line(&Record::of_day(day, when)))?;
            }
        }
        Format::Json => {
            for (when, day) in &rows {
                line(&serde_json::to_string(&Record::of_day(day, when))?)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl By {
    /// Rows under their names, in order.
    fn grouped(self, days: Vec<Day>) -> Vec<(String, Day)> {
        let mut groups: BTreeMap<_, Day> = BTreeMap::new();
        for day in days {
            let key = (self.name(day.day), day.service.clone());
            match groups.get_mut(&key) {
                Some(sum) => add(sum, &day),
                None => drop(groups.insert(key, day)),
            }
        }
        groups.into_iter().map(|((when, _), day)| (when, day)).collect()
    }

    fn name(self, day: u64) -> String {
        let date = moment::date(day);
        match self {
            Self::Day => date,
            Self::Month => date[..date.len() - 3].to_owned(),
            Self::Total => "total".to_owned(),
        }
    }
}

fn add(sum: &mut Day, day: &Day) {
    let count = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
    count(&mut sum.payments, day.payments);
    count(&mut sum.requests, day.requests);
    count(&mut sum.used_requests, day.used_requests);
    let money = |sum: &mut Msat, more: Msat| *sum = sum.saturating_add(more);
    money(&mut sum.paid, day.paid);
    money(&mut sum.surplus, day.surplus);
    money(&mut sum.refunded, day.refunded);
    money(&mut sum.used, day.used);
    money(&mut sum.written_off, day.written_off);
}

fn table(rows: &[(String, Day)]) -> Table {
    let mut table = Table::new([
        Column::text("WHEN"),
        Column::text("SERVICE"),
        Column::number("PAYMENTS"),
        Column::number("PAID"),
        Column::number("SURPLUS"),
        Column::number("REFUNDED"),
        Column::number("REQUESTS"),
        Column::number("CREDIT USED"),
        Column::number("WRITTEN OFF"),
    ]);
    let mut sum = Day::default();
    let mut push = |when: &str, service: String, day: &Day| {
        let amounts = [day.paid, day.surplus, day.refunded].map(|amount| amount.to_string());
        let [paid, surplus, refunded] = amounts;
        table.push([
            when.to_owned(),
            service,
            day.payments.to_string(),
            paid,
            surplus,
            refunded,
            day.requests.to_string(),
            day.used.to_string(),
            day.written_off.to_string(),
        ]);
    };
    for (when, day) in rows {
        push(when, day.service.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string), day);
        add(&mut sum, day);
    }
    push("sum", String::new(), &sum);
    table
}
