//! Revenue and use by day and service.
//!
//! Money is counted payment by payment, from the same rows that the audit adds up, and goes by the day on which the node had
//! it. Of a purchase that was paid more than once, each payment counts as surplus as far as those before it had reached the
//! price already.

use std::collections::BTreeMap;

use farebox_protocol::{Msat, ServiceName};
use rusqlite::{Connection, Row, params};

use super::{
    StoreError, accounts,
    rows::{parsed, unsigned},
};
use crate::store::{accounts::Unit, entry::Day};

/// Money by day (1) and service (2): how many payments, how much, and how much of it is surplus. A payment whose purchase is
/// missing, which no books of ours have, counts all the same.
const MONEY: &str = "
    SELECT day, service, count(*), sum(amount), sum(surplus) FROM (
        SELECT at / 86400 AS day, service, amount_msat AS amount, coalesce(surplus_msat, 0) AS surplus
        FROM settlement LEFT JOIN purchase USING (hash)
        WHERE coalesce(payments, 1) = 1
        UNION ALL
        SELECT day, service, amount, coalesce(max(0, so_far - price_msat) - max(0, so_far - amount - price_msat), 0)
        FROM (
            SELECT at / 86400 AS day, service, amount_msat AS amount, price_msat,
                   sum(amount_msat) OVER (PARTITION BY hash ORDER BY at, node, cursor) AS so_far
            FROM settlement JOIN purchase USING (hash)
            WHERE payments > 1
        )
    )
    WHERE day BETWEEN ?1 AND ?2
    GROUP BY day, service";

const REFUNDS: &str = "
    SELECT ended_at / 86400, service, sum(amount_msat) FROM refund JOIN purchase ON purchase.seq = refund.purchase
    WHERE state = 'paid' AND ended_at / 86400 BETWEEN ?1 AND ?2
    GROUP BY 1, 2";

pub(super) fn days(books: &Connection, from: u64, to: u64) -> Result<Vec<Day>, StoreError> {
    let mut days: BTreeMap<(u64, Option<ServiceName>), Day> = BTreeMap::new();
    let between = {
        let day = |day: u64| i64::try_from(day).unwrap_or(i64::MAX);
        [day(from), day(to)]
    };
    let msat = |row: &Row<'_>, column| unsigned(row, column).map(Msat::new);

    let mut money = books.prepare(MONEY)?;
    let mut money = money.query(params![between[0], between[1]])?;
    while let Some(row) = money.next()? {
        let day = of(&mut days, unsigned(row, 0)?, service(row)?);
        (day.payments, day.paid, day.surplus) = (unsigned(row, 2)?, msat(row, 3)?, msat(row, 4)?);
    }
    let mut refunds = books.prepare(REFUNDS)?;
    let mut refunds = refunds.query(params![between[0], between[1]])?;
    while let Some(row) = refunds.next()? {
        of(&mut days, unsigned(row, 0)?, service(row)?).refunded = msat(row, 2)?;
    }
    for used in accounts::days_of_use(books, from, to)? {
        let day = of(&mut days, used.day, Some(used.service));
        day.requests = day.requests.saturating_add(used.requests);
        match used.unit {
            Unit::Request => day.used_requests = used.units,
            Unit::Msat => (day.used, day.written_off) = (Msat::new(used.units), Msat::new(used.written_off)),
        }
    }
    Ok(days.into_values().collect())
}

fn service(row: &Row<'_>) -> rusqlite::Result<Option<ServiceName>> {
    match row.get_ref(1)?.data_type() {
        rusqlite::types::Type::Null => Ok(None),
        _ => parsed(row, 1).map(Some),
    }
}

fn of(
    days: &mut BTreeMap<(u64, Option<ServiceName>), Day>,
    day: u64,
    service: Option<ServiceName>,
) -> &mut Day {
    let new = Day { day, service: service.clone(), ..Day::default() };
    days.entry((day, service)).or_insert(new)
}
