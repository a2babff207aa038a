//! Every law of the books, as queries that find the rows that break it.
//!
//! The tables refuse most of these rows themselves; asking again costs a read, and finds what another program wrote, what a
//! damaged disk returns and what no single row can show: sums that don't agree.

use farebox_protocol::Msat;
use rusqlite::Connection;

use super::{StoreError, accounts};
use crate::store::accounts::Audit;

/// How many breaches are told.
const TOLD_MAX: usize = 100;

/// A law, and a query for what breaks it: one text for each breach.
const LAWS: [(&str, &str); 8] = [
    (
        "a purchase's parts add up: paid + shortfall = price + surplus",
        "SELECT lower(hex(hash)) FROM purchase WHERE payments > 0 AND price_msat IS NOT NULL
             AND paid_msat + shortfall_msat <> price_msat + surplus_msat",
    ),
    (
        "all that arrived for a purchase is booked, payment by payment",
        "SELECT lower(hex(hash)) FROM purchase LEFT JOIN
             (SELECT hash AS of, sum(amount_msat) AS told, count(*) AS times FROM settlement GROUP BY hash) ON of = hash
         WHERE paid_msat <> coalesce(told, 0) OR payments <> coalesce(times, 0)",
    ),
    (
        "every payment belongs to a purchase",
        "SELECT lower(hex(hash)) FROM settlement WHERE NOT EXISTS
             (SELECT 1 FROM purchase WHERE purchase.hash = settlement.hash)",
    ),
    (
        "an account's parts fit into what was sold",
        "SELECT lower(hex(hash)) FROM account JOIN purchase ON seq = purchase
         WHERE spent < 0 OR refunding < 0 OR refunded < 0 OR spent + refunding + refunded > sold",
    ),
    (
        "an account belongs to terms that were sold, and credit to its price",
        "SELECT coalesce(lower(hex(hash)), 'account ' || purchase) FROM account LEFT JOIN purchase ON seq = purchase
         WHERE terms IS NULL OR (unit = 'msat' AND sold <> price_msat)",
    ),
    (
        "refunds are what the account says",
        "SELECT lower(hex(hash)) FROM account JOIN purchase ON seq = purchase LEFT JOIN
             (SELECT purchase AS of, sum(iif(state = 'open', amount_msat, 0)) AS under_way,
                     sum(iif(state = 'paid', amount_msat, 0)) AS paid
              FROM refund WHERE source = 'credit' GROUP BY purchase) ON of = seq
         WHERE refunding <> coalesce(under_way, 0) OR refunded <> coalesce(paid, 0)",
    ),
    (
        "no more surplus is paid back than there is",
        "SELECT lower(hex(hash)) FROM purchase JOIN
             (SELECT purchase AS of, sum(amount_msat) AS taken FROM refund
              WHERE source = 'surplus' AND state <> 'failed' GROUP BY purchase) ON of = seq
         WHERE taken > surplus_msat",
    ),
    (
        "use by day adds up to what accounts have spent",
        "SELECT service || ' in ' || unit FROM (
             SELECT service, unit, spent AS units, written_off, requests FROM account JOIN purchase ON seq = purchase
             UNION ALL SELECT service, unit, -units, -written_off, -requests FROM use_by_day)
         GROUP BY service, unit HAVING sum(units) <> 0 OR sum(written_off) <> 0 OR sum(requests) <> 0",
    ),
];

pub(super) fn audit(books: &Connection) -> Result<Audit, StoreError> {
    // One state of the books, whatever is written meanwhile.
    books.execute_batch("SAVEPOINT audit")?;
    let audit = look(books);
    books.execute_batch("RELEASE audit")?;
    audit
}

fn look(books: &Connection) -> Result<Audit, StoreError> {
    let mut audit = Audit { epochs: accounts::epochs(books, 2)?, ..Audit::default() };
    let sum = |query: &str| books.query_row(query, [], |row| row.get::<_, i64>(0));
    let positive = |sum: i64| u64::try_from(sum).map_err(|_| StoreError::OutOfRange("sum of the books"));
    audit.purchases = positive(sum("SELECT count(*) FROM purchase")?)?;
    audit.accounts = positive(sum("SELECT count(*) FROM account")?)?;
    let money = |query| Ok::<_, StoreError>(Msat::new(positive(sum(query)?)?));
    audit.paid = money("SELECT coalesce(sum(amount_msat), 0) FROM settlement")?;
    audit.surplus = money("SELECT coalesce(sum(surplus_msat), 0) FROM purchase")?;
    audit.unattributed = money("SELECT coalesce(sum(paid_msat), 0) FROM purchase WHERE terms IS NULL")?;
    for (law, query) in LAWS {
        let mut breaches = books.prepare(query)?;
        let mut breaches = breaches.query([])?;
        while let Some(row) = breaches.next()? {
            if audit.breaches.len() == TOLD_MAX {
                return Ok(audit);
            }
            audit.breaches.push(format!("{law}: not so of {}", row.get::<_, String>(0)?));
        }
    }
    Ok(audit)
}
