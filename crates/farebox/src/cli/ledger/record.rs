//! One row as programs get it: named cells in a fixed order, as a JSON object or as a line of CSV. The names are the same in
//! both, and are kept: other people's scripts read them.

use farebox_paywall::store::{
    Purchase,
    entry::{Day, Entry},
};
use farebox_protocol::{Msat, PaymentHash, Timestamp};
use serde::{Serialize, Serializer, ser::SerializeMap};

/// A row.
#[derive(Debug)]
pub(in crate::cli) struct Record(pub(in crate::cli) Vec<(&'static str, Cell)>);

/// What stands in one place.
#[derive(Debug)]
pub(in crate::cli) enum Cell {
    Nothing,
    Number(u64),
    Text(String),
    Moment(Timestamp),
    /// A day, in days since 1970; a number of the calendar everywhere.
    Date(String),
    /// Words of ours.
    Words(Vec<&'static str>),
}

impl Record {
    /// All there is of one purchase. What would open anything, preimage and token, is not in the books to begin with.
    pub(super) fn of_entry(entry: &Entry, now: Timestamp) -> Self {
        let purchase = &entry.purchase;
        let (sold, claimed, account) =
            (purchase.sold.as_ref(), purchase.claimed.as_ref(), entry.account.as_ref());
        let balance = account.map(|account| account.balance);
        let units = |part: Option<u64>| part.map_or(Cell::Nothing, Cell::Number);
        Self(vec![
            ("payment_hash", text(purchase.hash)),
            ("service", of(sold.map(|sold| &sold.service))),
            ("tier", units(sold.map(|sold| u64::from(sold.tier)))),
            ("offer", of(sold.map(|sold| &sold.terms.offer))),
            ("price_msat", units(sold.map(|sold| sold.terms.price.get()))),
            ("paid_msat", msat(purchase.paid)),
            ("payments", Cell::Number(u64::from(purchase.payments))),
            ("settled_at", moment(purchase.settled_at)),
            ("presented_at", moment(purchase.presented_at)),
            ("valid_until", moment(sold.and_then(|sold| sold.valid_until))),
            ("surplus_msat", msat(purchase.surplus)),
            ("shortfall_msat", msat(purchase.shortfall)),
            ("surplus_refunding_msat", msat(entry.surplus_refunding)),
            ("surplus_refunded_msat", msat(entry.surplus_refunded)),
            ("unit", account.map_or(Cell::Nothing, |account| text(account.unit.as_str()))),
            ("sold", units(balance.map(|balance| balance.sold()))),
            ("spent", units(balance.map(|balance| balance.spent()))),
            ("refunding", units(balance.map(|balance| balance.refunding()))),
            ("refunded", units(balance.map(|balance| balance.refunded()))),
            ("left", units(balance.map(|balance| balance.left()))),
            ("written_off", units(balance.map(|balance| balance.written_off()))),
            ("requests", units(account.map(|account| account.requests))),
            ("debited_at", moment(account.and_then(|account| account.debited_at))),
            ("claimed_service", of(claimed.map(|claimed| &claimed.service))),
            ("claimed_offer", of(claimed.map(|claimed| &claimed.offer))),
            ("claimed_msat", units(claimed.map(|claimed| claimed.price.get()))),
            ("token_id", of(sold.map(|sold| &sold.token_id))),
            ("identifier_hash", of(sold.map(|sold| &sold.identifier_hash))),
            ("revoked_at", moment(entry.revoked.as_ref().map(|revoked| revoked.at))),
            ("revoked_reason", of(entry.revoked.as_ref().map(|revoked| &revoked.reason))),
            ("states", Cell::Words(entry.states(now).map(|state| state.as_str()).collect())),
        ])
    }

    /// What has the names of [`of_entry`](Self::of_entry) and no more.
    pub(super) fn empty() -> Self {
        let purchase = Purchase {
            hash: PaymentHash::from_bytes([0; 32]),
            sold: None,
            claimed: None,
            presented_at: None,
            paid: Msat::ZERO,
            payments: 0,
            settled_at: None,
            surplus: Msat::ZERO,
            shortfall: Msat::ZERO,
        };
        let (surplus_refunding, surplus_refunded) = (Msat::ZERO, Msat::ZERO);
        let entry = Entry { purchase, account: None, surplus_refunding, surplus_refunded, revoked: None };
        Self::of_entry(&entry, Timestamp::from_secs(0))
    }

    /// One day, month or sum.
    pub(super) fn of_day(day: &Day, when: &str) -> Self {
        Self(vec![
            ("day", Cell::Date(when.to_owned())),
            ("service", of(day.service.as_ref())),
            ("payments", Cell::Number(day.payments)),
            ("paid_msat", msat(day.paid)),
            ("surplus_msat", msat(day.surplus)),
            ("refunded_msat", msat(day.refunded)),
            ("requests", Cell::Number(day.requests)),
            ("used_requests", Cell::Number(day.used_requests)),
            ("used_msat", msat(day.used)),
            ("written_off_msat", msat(day.written_off)),
        ])
    }

    /// The names of the cells.
    pub(in crate::cli) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().map(|(name, _)| *name)
    }
}

fn text(value: impl ToString) -> Cell {
    Cell::Text(value.to_string())
}

fn of(value: Option<impl ToString>) -> Cell {
    value.map_or(Cell::Nothing, text)
}

fn msat(amount: Msat) -> Cell {
    Cell::Number(amount.get())
}

fn moment(at: Option<Timestamp>) -> Cell {
    at.map_or(Cell::Nothing, Cell::Moment)
}

impl Serialize for Record {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, cell) in &self.0 {
            match cell {
                Cell::Nothing => map.serialize_entry(name, &None::<u64>)?,
                Cell::Number(number) => map.serialize_entry(name, number)?,
                Cell::Text(text) | Cell::Date(text) => map.serialize_entry(name, text)?,
                Cell::Moment(at) => map.serialize_entry(name, &at.secs())?,
                Cell::Words(words) => map.serialize_entry(name, words)?,
            }
        }
        map.end()
    }
}
