//! `farebox ledger list`: purchases, newest first, a page at a time.

use std::process::ExitCode;

use anyhow::Context as _;
use farebox_lightning::clock::{Clock as _, SystemClock};
use farebox_paywall::store::{
    accounts::Unit,
    entry::{Entry, Order, Select, State},
    sqlite::Inspector,
};
use farebox_protocol::{Msat, PaymentHash, ServiceName, Timestamp};

use super::{
    Format, csv, moment, open,
    record::Record,
    table::{Column, Table},
};
use crate::{
    output::{Reader, line, utc},
    seller,
};

/// List what was sold, newest first
#[derive(Debug, clap::Args)]
#[command(after_help = "\
SPENT and LEFT are in requests or in money, as the purchase was sold; passes are not counted. States
are open, used-up, ended, revoked, unattributed (money that nobody has shown a token for), unsettled
(a token was shown, and the node has not told of the money), surplus, short, refunding, refunded;
several may hold of one purchase. A pipe gets one JSON object a line.

Examples:
  farebox ledger list
  farebox ledger list --service weather --since 2026-11-01 --until 2026-12-01 --limit 500
  farebox ledger list --state unattributed
  farebox ledger list --format csv > sales.csv")]
pub(crate) struct Args {
    #[command(flatten)]
    which: Which,
    /// How many at most
    #[arg(long, value_name = "COUNT", default_value = "50", value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// Go on behind this purchase: the last one of the list before
    #[arg(long, value_name = "HASH")]
    after: Option<String>,
    /// How to write them [default: table on a terminal, json elsewhere]
    #[arg(long, value_name = "FORMAT", help_heading = "Output")]
    format: Option<Format>,
    #[command(flatten)]
    books: seller::Books,
}

/// The flags that say which purchases are meant.
#[derive(Debug, clap::Args)]
pub(super) struct Which {
    /// Only of this service
    #[arg(long, value_name = "NAME")]
    service: Option<ServiceName>,
    /// Only from this moment on: 2026-11-22, 2026-11-22T18:05:00Z, or how long ago, like 7d
    #[arg(long, value_name = "WHEN", value_parser = moment::parse)]
    since: Option<Timestamp>,
    /// Only before this moment
    #[arg(long, value_name = "WHEN", value_parser = moment::parse)]
    until: Option<Timestamp>,
    /// Only in this state
    #[arg(long, value_name = "STATE")]
    state: Option<State>,
}

/// How many rows are read at once.
const PAGE: u16 = 500;

pub(super) fn run(args: &Args, reader: Reader) -> anyhow::Result<ExitCode> {
    let inspector = open(&args.books)?;
    let after = match &args.after {
        Some(hash) => Some(inspector.find(hash).context("--after")?.purchase.hash),
        None => None,
    };
    let now = SystemClock.now();
    let format = Format::or_for(args.format, reader);
    let mut shown = Table::new(COLUMNS);
    let mut count = 0;
    let mut last = None;
    if format == Format::Csv {
        line(&csv::header(&Record::empty()))?;
    }
    for entry in Entries::new(&inspector, args.which.select(), Order::NewestFirst, now).behind(after) {
        let entry = entry?;
        if count == args.limit {
            break;
        }
        match format {
            Format::Table => shown.push(row(&entry, now)),
            Format::Csv => line(&csv::line(&Record::of_entry(&entry, now)))?,
            Format::Json => line(&serde_json::to_string(&Record::of_entry(&entry, now))?)?,
        }
        count += 1;
        last = Some(entry.purchase.hash);
    }
    if format == Format::Table {
        match (count, last) {
            (0, _) => line(&"no purchase is like that")?,
            // There may be none behind it; then the next list says so.
            (count, Some(last)) if count == args.limit => {
                line(&format_args!("{shown}\n\n{count} shown; more may follow: --after {}", short(last)))?;
            }
            _ => line(&shown)?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl Which {
    pub(super) fn select(&self) -> Select {
        let Self { service, since, until, state } = self;
        Select { service: service.clone(), since: *since, until: *until, state: *state }
    }
}

/// Purchases one after the other, read in pages, so that any number takes the same memory.
pub(super) struct Entries<'a> {
    inspector: &'a Inspector,
    select: Select,
    order: Order,
    now: Timestamp,
    after: Option<PaymentHash>,
    page: std::vec::IntoIter<Entry>,
    is_over: bool,
}

impl<'a> Entries<'a> {
    pub(super) fn new(inspector: &'a Inspector, select: Select, order: Order, now: Timestamp) -> Self {
        Self { inspector, select, order, now, after: None, page: Vec::new().into_iter(), is_over: false }
    }

    fn behind(self, after: Option<PaymentHash>) -> Self {
        Self { after, ..self }
    }
}

impl Iterator for Entries<'_> {
    type Item = anyhow::Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.page.len() == 0 && !self.is_over {
            match self.inspector.entries(&self.select, self.order, self.after, PAGE, self.now) {
                Ok(page) => self.page = page.into_iter(),
                Err(error) => {
                    self.is_over = true;
                    let error = anyhow::Error::new(error);
                    return Some(Err(
                        error.context("a row cannot be read; `farebox ledger verify` says more")
                    ));
                }
            }
            self.is_over = self.page.len() == 0;
        }
        let entry = self.page.next()?;
        self.after = Some(entry.purchase.hash);
        Some(Ok(entry))
    }
}

const COLUMNS: [Column; 9] = [
    Column::text("WHEN"),
    Column::text("HASH"),
    Column::text("SERVICE"),
    Column::text("OFFER"),
    Column::number("PAID"),
    Column::number("SPENT"),
    Column::number("LEFT"),
    Column::number("REFUNDED"),
    Column::text("STATE"),
];

fn row(entry: &Entry, now: Timestamp) -> [String; 9] {
    let purchase = &entry.purchase;
    let none = || "-".to_owned();
    let service = match (&purchase.sold, entry.service()) {
        (Some(_), Some(service)) => service.to_string(),
        // Only its invoice says so.
        (None, Some(service)) => format!("{service}?"),
        (_, None) => none(),
    };
    let units = |units: fn(&farebox_paywall::store::accounts::Account) -> u64| {
        entry.account.as_ref().map_or_else(none, |account| counted(account.unit, units(account)))
    };
    let states: Vec<&str> = entry.states(now).map(State::as_str).collect();
    [
        entry.at().map_or_else(none, utc),
        short(purchase.hash),
        service,
        purchase.sold.as_ref().map_or_else(none, |sold| sold.terms.offer.to_string()),
        purchase.paid.to_string(),
        units(|account| account.balance.spent()),
        units(|account| account.balance.left()),
        if entry.refunded() == Msat::ZERO { none() } else { entry.refunded().to_string() },
        states.join(", "),
    ]
}

/// Units in words.
pub(in crate::cli) fn counted(unit: Unit, units: u64) -> String {
    match unit {
        Unit::Request if units == 1 => "1 request".to_owned(),
        Unit::Request => format!("{units} requests"),
        Unit::Msat => Msat::new(units).to_string(),
    }
}

/// As much of a hash as tells purchases apart.
pub(super) fn short(hash: PaymentHash) -> String {
    hash.to_string()[..16].to_owned()
}
