//! Looking at the books from outside, while their gateway runs or when it doesn't.
//!
//! It makes no file, changes no table and takes no lock. Rows are read page by page and not in one long transaction: as long
//! as one is open, SQLite can't fold its log into the file, and who reads a million rows may take any time over them. So each
//! row is true as of the moment it was read. What must agree with one another ([`Inspector::verify`],
//! [`Inspector::days`]) is read in one transaction, and asks nobody to wait.

use std::path::{Path, PathBuf};

use farebox_lightning::Cursor;
use farebox_protocol::{Msat, PaymentHash, Timestamp};
use rusqlite::{Connection, OptionalExtension, Row, named_params, params, types::Type};

use super::{
    StoreError,
    accounts::{self, Refunds},
    file,
    rows::{self, ROWS_MAX, number, parsed, read_purchase, time, unsigned},
    schema,
};
use crate::{
    ledger::law::Balance,
    store::{
        accounts::{Account, MonthlyUse, Place, RefundId, RefundRow},
        entry::{Day, Entry, Order, Payment, RevokedAt, Select, State, Verified},
    },
};

mod days;
#[cfg(test)]
mod tests;
mod totals;

/// Looks at books that may be another process's.
pub struct Inspector {
    connection: Connection,
    path: PathBuf,
}

/// Why a purchase isn't found by what was given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FindError {
    /// Nothing begins so.
    #[error(
        "no purchase has a payment hash that begins with `{0}`, nor a token with such an identifier hash"
    )]
    Unknown(String),
    /// More than one begins so.
    #[error("more than one payment hash begins with `{0}`; give more of it")]
    Ambiguous(String),
    /// It isn't the beginning of a hash.
    #[error("`{0}` is no payment hash: give its 64 hexadecimal digits, or the first 8 or more of them")]
    NotAHash(String),
    /// The books can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How many digits of a hash are enough to look for it.
const DIGITS_MIN: usize = 8;

/// What comes after the columns of a purchase. The account's begin at 16, the rest at 25.
const BESIDES: &str = "unit, sold, spent, refunding, refunded, written_off, requests, opened_at, debited_at,
    (SELECT at FROM revocation WHERE revocation.identifier_hash = purchase.identifier_hash),
    (SELECT reason FROM revocation WHERE revocation.identifier_hash = purchase.identifier_hash),
    (SELECT coalesce(sum(amount_msat), 0) FROM refund
     WHERE refund.purchase = purchase.seq AND source = 'surplus' AND state = 'open'),
    (SELECT coalesce(sum(amount_msat), 0) FROM refund
     WHERE refund.purchase = purchase.seq AND source = 'surplus' AND state = 'paid'),
    account.purchase";

const FROM: &str = "FROM purchase LEFT JOIN account ON account.purchase = seq";

impl Inspector {
    /// Opens books that are there. Blocks on the disk, as all of this does.
    pub(super) fn open(path: &Path) -> Result<Self, StoreError> {
        if !path.exists() {
            return Err(StoreError::NotReady(path.to_owned()));
        }
        let connection = file::connect_read_only(path)?;
        // The file is touched here for the first time.
        let touched =
            connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get::<_, i64>(0));
        touched.map_err(|error| match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::CannotOpen | rusqlite::ErrorCode::ReadOnly) => StoreError::Failed(format!(
                "cannot read `{}`: SQLite must be able to write beside it; run this as its owner, or look at a copy",
                path.display()
            )),
            _ => error.into(),
        })?;
        schema::check_current(&connection, path)?;
        Ok(Self { connection, path: path.to_owned() })
    }

    /// How many purchases there are.
    ///
    /// # Errors
    ///
    /// When the books can't be read; so everywhere below.
    pub fn count(&self) -> Result<u64, StoreError> {
        Ok(self.connection.query_row("SELECT count(*) FROM purchase", [], |row| unsigned(row, 0))?)
    }

    /// Some purchases: those behind this one in this order, a thousand at most. None only at the end.
    pub fn entries(
        &self,
        select: &Select,
        order: Order,
        after: Option<PaymentHash>,
        rows_max: u16,
        now: Timestamp,
    ) -> Result<Vec<Entry>, StoreError> {
        // What isn't asked for is not in the question: with "or none given" SQLite would read from the beginning for each page.
        let (direction, behind) = match (order, after) {
            (Order::NewestFirst, Some(_)) => ("DESC", "seq < (SELECT seq FROM purchase WHERE hash = :after)"),
            (Order::OldestFirst, Some(_)) => ("ASC", "seq > (SELECT seq FROM purchase WHERE hash = :after)"),
            (Order::NewestFirst, None) => ("DESC", ":after IS NULL"),
            (Order::OldestFirst, None) => ("ASC", ":after IS NULL"),
        };
        let state = select.state.map_or("TRUE", condition);
        let mut some = self.connection.prepare_cached(&format!(
            "SELECT {columns}, {BESIDES} {FROM}
             WHERE {behind}
               AND (:service IS NULL OR coalesce(service, claimed_service) = :service)
               AND (:since IS NULL OR coalesce(settled_at, presented_at) >= :since)
               AND (:until IS NULL OR coalesce(settled_at, presented_at) < :until)
               AND :now >= 0 AND ({state})
             ORDER BY seq {direction} LIMIT :rows",
            columns = rows::COLUMNS,
        ))?;
        let moment = |moment: Option<Timestamp>| moment.map(|at| number(at.secs(), "time")).transpose();
        let entries = some.query_map(
            named_params! {
                ":after": after.as_ref().map(PaymentHash::as_bytes),
                ":service": select.service.as_ref().map(|service| service.as_str()),
                ":since": moment(select.since)?,
                ":until": moment(select.until)?,
                ":now": number(now.secs(), "time")?,
                ":rows": rows_max.min(ROWS_MAX),
            },
            read_entry,
        )?;
        Ok(entries.collect::<Result<_, _>>()?)
    }

    /// One purchase.
    pub fn entry(&self, hash: PaymentHash) -> Result<Option<Entry>, StoreError> {
        entry(&self.connection, hash)
    }

    /// The one purchase whose payment hash begins so, or whose token has this identifier hash.
    ///
    /// # Errors
    ///
    /// When there is none, or more than one.
    pub fn find(&self, beginning: &str) -> Result<Entry, FindError> {
        let digits = beginning.to_ascii_lowercase();
        let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        if !is_hex || !(DIGITS_MIN..=64).contains(&digits.len()) {
            return Err(FindError::NotAHash(beginning.to_owned()));
        }
        let filled = |fill: &str| format!("{digits}{}", fill.repeat(64 - digits.len()));
        let hashes = |query: &str, values: &[&dyn rusqlite::ToSql]| -> Result<Vec<PaymentHash>, StoreError> {
            let mut some = self.connection.prepare_cached(query)?;
            let hashes = some.query_map(values, |row| row.get(0).map(PaymentHash::from_bytes))?;
            Ok(hashes.collect::<Result<_, _>>()?)
        };
        let mut found = hashes(
            "SELECT hash FROM purchase WHERE hash BETWEEN unhex(?1) AND unhex(?2) LIMIT 2",
            params![filled("0"), filled("f")],
        )?;
        if found.is_empty() && digits.len() == 64 {
            found = hashes(
                "SELECT hash FROM purchase WHERE identifier_hash = unhex(?1) LIMIT 1",
                params![digits],
            )?;
        }
        match found[..] {
            [] => Err(FindError::Unknown(beginning.to_owned())),
            [hash] => self.entry(hash)?.ok_or_else(|| FindError::Unknown(beginning.to_owned())),
            _ => Err(FindError::Ambiguous(beginning.to_owned())),
        }
    }

    /// The payments that have come for a purchase, in the order in which they came.
    pub fn payments(&self, hash: PaymentHash) -> Result<Vec<Payment>, StoreError> {
        let mut some = self.connection.prepare_cached(
            "SELECT node, cursor, amount_msat, at FROM settlement WHERE hash = ?1 ORDER BY at, node, cursor",
        )?;
        let payments = some.query_map([hash.as_bytes()], |row| {
            Ok(Payment {
                node: row.get(0)?,
                cursor: Cursor(unsigned(row, 1)?),
                amount: Msat::new(unsigned(row, 2)?),
                at: Timestamp::from_secs(unsigned(row, 3)?),
            })
        })?;
        Ok(payments.collect::<Result<_, _>>()?)
    }

    /// What has been used of a purchase, month by month, by tokens that are limited by the month.
    pub fn months(&self, hash: PaymentHash) -> Result<Vec<MonthlyUse>, StoreError> {
        accounts::uses(&self.connection, hash, None)
    }

    /// What was or is paid back of a purchase, in the order in which it was asked for.
    pub fn refunds(&self, hash: PaymentHash) -> Result<Vec<RefundRow>, StoreError> {
        accounts::refunds(&self.connection, Refunds::Of(hash), u32::MAX)
    }

    /// One refund.
    pub fn refund(&self, id: RefundId) -> Result<Option<RefundRow>, StoreError> {
        accounts::refund(&self.connection, id)
    }

    /// Refunds that haven't ended, oldest first.
    pub fn open_refunds(&self, rows_max: u32) -> Result<Vec<RefundRow>, StoreError> {
        accounts::refunds(&self.connection, Refunds::Open, rows_max)
    }

    /// The last refunds, newest first.
    pub fn last_refunds(&self, rows_max: u32) -> Result<Vec<RefundRow>, StoreError> {
        accounts::refunds(&self.connection, Refunds::Last, rows_max)
    }

    /// Refunds of which something isn't taken from their purchases, oldest first.
    pub fn missed_refunds(&self, rows_max: u32) -> Result<Vec<RefundRow>, StoreError> {
        accounts::refunds(&self.connection, Refunds::Missing, rows_max)
    }

    /// What came in and what was used, by day and service, from one day to another, both included. All the money that has
    /// come is in it, whatever became of the token.
    pub fn days(&self, from: u64, to: u64) -> Result<Vec<Day>, StoreError> {
        // Dropped, it ends; there is nothing to commit.
        let books = self.connection.unchecked_transaction()?;
        days::days(&books, from, to)
    }

    /// Checks every law of the books, and their sum. Reads everything, and takes its time.
    pub fn verify(&self) -> Result<Verified, StoreError> {
        let is_running = file::is_locked(&self.path);
        let books = self.connection.unchecked_transaction()?;
        totals::verify(&books, is_running)
    }
}

/// One purchase. A single question, so that what it says is so at one moment.
pub(super) fn entry(books: &Connection, hash: PaymentHash) -> Result<Option<Entry>, StoreError> {
    let mut one = books.prepare_cached(&format!(
        "SELECT {columns}, {BESIDES} {FROM} WHERE hash = ?1",
        columns = rows::COLUMNS
    ))?;
    Ok(one.query_row([hash.as_bytes()], read_entry).optional()?)
}

/// What is asked of a row for a state: what [`Entry::is`] says, in the words of the tables.
const fn condition(state: State) -> &'static str {
    match state {
        State::Open => {
            "terms IS NOT NULL AND (valid_until <= :now) IS NOT TRUE AND (spent + refunding + refunded = sold) IS NOT TRUE
             AND NOT EXISTS (SELECT 1 FROM revocation WHERE revocation.identifier_hash = purchase.identifier_hash)"
        }
        State::UsedUp => "spent + refunding + refunded = sold",
        State::Ended => "valid_until <= :now",
        State::Revoked => {
            "EXISTS (SELECT 1 FROM revocation WHERE revocation.identifier_hash = purchase.identifier_hash)"
        }
        State::Unattributed => "terms IS NULL",
        State::Unsettled => "payments = 0",
        State::Surplus => "surplus_msat > 0",
        State::Short => "shortfall_msat > 0",
        State::Refunding => {
            "EXISTS (SELECT 1 FROM refund WHERE refund.purchase = purchase.seq AND state = 'open')"
        }
        State::Refunded => "EXISTS (SELECT 1 FROM refund WHERE refund.purchase = purchase.seq AND state = 'paid')",
    }
}

fn read_entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    let purchase = read_purchase(row)?;
    let account = match (row.get_ref(16)?.data_type(), &purchase.sold) {
        (Type::Null, _) | (_, None) => None,
        (_, Some(sold)) => {
            let part = |column| unsigned(row, column);
            let balance = Balance::new(part(17)?, part(18)?, part(19)?, part(20)?, part(21)?);
            Some(Account {
                hash: purchase.hash,
                service: sold.service.clone(),
                unit: parsed(row, 16)?,
                price: sold.terms.price,
                balance: balance.map_err(|unlawful| {
                    rusqlite::Error::FromSqlConversionFailure(17, Type::Integer, Box::new(unlawful))
                })?,
                requests: part(22)?,
                opened_at: Timestamp::from_secs(part(23)?),
                debited_at: time(row, 24)?,
                place: Some(Place(unsigned(row, 29)?)),
            })
        }
    };
    let revoked = match time(row, 25)? {
        None => None,
        Some(at) => Some(RevokedAt { at, reason: row.get(26)? }),
    };
    Ok(Entry {
        purchase,
        account,
        revoked,
        surplus_refunding: Msat::new(unsigned(row, 27)?),
        surplus_refunded: Msat::new(unsigned(row, 28)?),
    })
}
