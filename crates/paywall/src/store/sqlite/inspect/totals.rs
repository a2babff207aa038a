//! The examination of whole books: the file, the laws of the rows, and the law of their sum.
//!
//! The sum is added up along another way than the laws are: from prices and accounts on one side, from payments on the other.

use farebox_protocol::{Msat, Terms};
use rusqlite::Connection;

use super::{
    super::audit,
    StoreError,
    rows::{parsed, unsigned},
};
use crate::{
    ledger::law::Balance,
    store::{
        accounts::Allotment,
        entry::{Totals, Verified},
    },
};

/// How many faults of the file are told.
const FAULTS_MAX: u8 = 10;

pub(super) fn verify(books: &Connection, is_running: bool) -> Result<Verified, StoreError> {
    let faults = faults(books)?;
    let mut audit = audit::audit(books)?;
    audit.breaches.splice(..0, faults);
    let totals = totals(books)?;
    if !totals.hold() {
        audit
            .breaches
            .push("all that came in is what became of it: not so of the sum of the books".to_owned());
    }
    Ok(Verified { audit, totals, is_running })
}

/// What SQLite itself finds wrong: pages that can't be read, values of the wrong kind. On a connection that can't write it
/// knows no CHECKs; what they say is among the laws of the audit.
fn faults(books: &Connection) -> Result<Vec<String>, StoreError> {
    let mut check = books.prepare(&format!("PRAGMA quick_check({FAULTS_MAX})"))?;
    let found = check.query_map([], |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
    let told = found.into_iter().filter(|line| line != "ok");
    Ok(told.map(|line| format!("the file is sound: not so, {}", line.trim_start_matches("*** "))).collect())
}

fn totals(books: &Connection) -> Result<Totals, StoreError> {
    let mut totals = money(books)?;
    let mut sums = [0_u128; 5];
    let mut add =
        |parts: [u64; 5]| sums.iter_mut().zip(parts).for_each(|(sum, part)| *sum += u128::from(part));

    // What was sold without an account: passes, and units of which nobody has used any.
    let mut without = books.prepare(
        "SELECT terms, sum(price_msat) FROM purchase LEFT JOIN account ON account.purchase = seq
         WHERE terms IS NOT NULL AND account.purchase IS NULL GROUP BY terms",
    )?;
    let mut without = without.query([])?;
    while let Some(row) = without.next()? {
        let (terms, prices) = (parsed::<Terms>(row, 0)?, unsigned(row, 1)?);
        let is_pass = Allotment::of(&terms).is_none();
        add(if is_pass { [prices, 0, 0, 0, 0] } else { [0, 0, 0, 0, prices] });
    }
    let mut with = books.prepare(
        "SELECT price_msat, sold, spent, refunding, refunded FROM account JOIN purchase ON seq = account.purchase
         WHERE price_msat IS NOT NULL",
    )?;
    let mut with = with.query([])?;
    while let Some(row) = with.next()? {
        // One that can't be is a breach already, and is told by the hash of its purchase.
        let parts = [1, 2, 3, 4].map(|column| unsigned(row, column));
        let [Ok(sold), Ok(spent), Ok(refunding), Ok(refunded)] = parts else { continue };
        let Ok(balance) = Balance::new(sold, spent, refunding, refunded, 0) else { continue };
        let money = balance.in_money(Msat::new(unsigned(row, 0)?));
        add([0, money.spent.get(), money.reserved.get(), money.refunded.get(), money.left.get()]);
    }
    let [passes, spent, refunding, refunded, left] =
        sums.map(|sum| Msat::new(u64::try_from(sum).unwrap_or(u64::MAX)));
    (totals.passes, totals.spent, totals.refunding) = (passes, spent, refunding);
    (totals.refunded, totals.left) = (refunded, left);
    Ok(totals)
}

/// What is known of money without looking at units.
fn money(books: &Connection) -> Result<Totals, StoreError> {
    let surplus = |state: &str| {
        format!(
            "(SELECT coalesce(sum(amount_msat), 0) FROM refund WHERE source = 'surplus' AND state = '{state}')"
        )
    };
    let query = format!(
        "SELECT (SELECT coalesce(sum(amount_msat), 0) FROM settlement), coalesce(sum(shortfall_msat), 0),
             coalesce(sum(price_msat) FILTER (WHERE payments = 0), 0), coalesce(sum(surplus_msat), 0),
             coalesce(sum(paid_msat) FILTER (WHERE terms IS NULL), 0), {}, {} FROM purchase",
        surplus("open"),
        surplus("paid")
    );
    Ok(books.query_row(&query, [], |row| {
        let msat = |column| unsigned(row, column).map(Msat::new);
        Ok(Totals {
            paid: msat(0)?,
            missing: msat(1)?,
            awaited: msat(2)?,
            surplus: msat(3)?,
            unattributed: msat(4)?,
            surplus_refunding: msat(5)?,
            surplus_refunded: msat(6)?,
            ..Totals::default()
        })
    })?)
}
