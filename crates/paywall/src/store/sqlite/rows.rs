//! The statements: what is written to the tables and read from them, value by value.
//!
//! SQLite's integers have a sign; what doesn't fit is refused by name and never wraps. Surplus and shortfall are computed
//! in the statement that changes what they depend on, and the table checks the law of the books at every write.

use farebox_lightning::{Cursor, Settlement};
use farebox_protocol::{
    Fingerprint, IdentifierHash, Label, Msat, Offer, PaymentHash, ServiceName, Terms, Timestamp, TokenId,
};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{
    Arrival, Booked, Page, Presentation, Purchase, Revocation, RevocationCursor, Revoked, Sale, StoreError,
    missed,
};
use crate::{
    Continuity,
    store::{Sold, accounts::RefundOf},
};

/// The most rows of one page.
pub(super) const ROWS_MAX: u16 = 1_000;

pub(super) fn adopt(
    books: &Connection,
    secrets: &[Fingerprint],
    continuity: Continuity,
    now: Timestamp,
) -> Result<(), StoreError> {
    let given: Vec<String> = secrets.iter().map(ToString::to_string).collect();
    let mut in_use = books.prepare("SELECT fingerprint FROM mint_secret WHERE retired IS NULL ORDER BY 1")?;
    let known: Vec<String> = in_use.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let overlap = known.is_empty() || known.iter().any(|one| given.contains(one));
    if !overlap && continuity == Continuity::Required {
        return Err(StoreError::OtherSecrets { known: known.join(", "), given: given.join(", ") });
    }
    let now = number(now.secs(), "time")?;
    for retired in known.iter().filter(|one| !given.contains(one)) {
        books.execute("UPDATE mint_secret SET retired = ?2 WHERE fingerprint = ?1", params![retired, now])?;
    }
    for fingerprint in &given {
        books.execute(
            "INSERT INTO mint_secret (fingerprint, first_used) VALUES (?1, ?2)
             ON CONFLICT (fingerprint) DO UPDATE SET retired = NULL WHERE retired IS NOT NULL",
            params![fingerprint, now],
        )?;
    }
    Ok(())
}

pub(super) fn cursor(books: &Connection, node: &str) -> Result<Cursor, StoreError> {
    let mut found = books.prepare_cached("SELECT cursor FROM node_cursor WHERE node = ?1")?;
    let cursor = found.query_row([node], |row| unsigned(row, 0)).optional()?;
    Ok(Cursor(cursor.unwrap_or_default()))
}

pub(super) fn settle(
    books: &Connection,
    node: &str,
    arrivals: &[Arrival],
    to: Cursor,
) -> Result<Booked, StoreError> {
    let mut booked = Booked::default();
    for arrival in arrivals {
        let settlement = &arrival.settlement;
        if book(books, node, settlement)? {
            booked.sales.extend(add_payment(books, arrival)?);
            missed::take(books, settlement.hash, RefundOf::Surplus)?;
            booked.new += 1;
            booked.arrived = booked.arrived.saturating_add(settlement.amount);
        } else if is_booked(books, node, settlement)? {
            booked.repeated += 1;
        } else {
            booked.conflicting += 1;
        }
    }
    books.execute(
        "INSERT INTO node_cursor (node, cursor) VALUES (?1, ?2)
         ON CONFLICT (node) DO UPDATE SET cursor = excluded.cursor WHERE cursor < excluded.cursor",
        params![node, number(to.0, "settlement cursor")?],
    )?;
    Ok(booked)
}

/// Whether this settlement is new.
fn book(books: &Connection, node: &str, settlement: &Settlement) -> Result<bool, StoreError> {
    let mut insert = books.prepare_cached(
        "INSERT INTO settlement (node, cursor, hash, amount_msat, at) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT DO NOTHING",
    )?;
    let rows = insert.execute(params![
        node,
        number(settlement.cursor.0, "settlement cursor")?,
        settlement.hash.as_bytes(),
        number(settlement.amount.get(), "amount")?,
        number(settlement.at.secs(), "time")?,
    ])?;
    Ok(rows == 1)
}

fn is_booked(books: &Connection, node: &str, settlement: &Settlement) -> Result<bool, StoreError> {
    let mut same = books.prepare_cached(
        "SELECT 1 FROM settlement WHERE node = ?1 AND cursor = ?2 AND hash = ?3 AND amount_msat = ?4",
    )?;
    Ok(same.exists(params![
        node,
        number(settlement.cursor.0, "settlement cursor")?,
        settlement.hash.as_bytes(),
        number(settlement.amount.get(), "amount")?,
    ])?)
}

/// What was sold by it, where a token has said what that is. The first claim stays, as the first terms do.
fn add_payment(books: &Connection, arrival: &Arrival) -> Result<Option<Sale>, StoreError> {
    let Arrival { settlement, claimed } = arrival;
    let mut add = books.prepare_cached(
        "INSERT INTO purchase (hash, paid_msat, payments, settled_at, claimed_service, claimed_offer, claimed_msat)
         VALUES (?1, ?2, 1, ?3, ?4, ?5, ?6)
         ON CONFLICT (hash) DO UPDATE SET
             claimed_service = coalesce(claimed_service, excluded.claimed_service),
             claimed_offer = coalesce(claimed_offer, excluded.claimed_offer),
             claimed_msat = coalesce(claimed_msat, excluded.claimed_msat),
             paid_msat = paid_msat + excluded.paid_msat,
             payments = payments + 1,
             settled_at = min(coalesce(settled_at, excluded.settled_at), excluded.settled_at),
             surplus_msat = CASE WHEN price_msat IS NULL THEN 0
                 ELSE max(0, paid_msat + excluded.paid_msat - price_msat) END,
             shortfall_msat = CASE WHEN price_msat IS NULL THEN 0
                 ELSE max(0, price_msat - paid_msat - excluded.paid_msat) END
         RETURNING terms IS NOT NULL, terms, service, payments, surplus_msat",
    )?;
    let values = params![
        settlement.hash.as_bytes(),
        number(settlement.amount.get(), "amount")?,
        number(settlement.at.secs(), "time")?,
        claimed.as_ref().map(|claimed| claimed.service.as_str()),
        claimed.as_ref().map(|claimed| claimed.offer.to_string()),
        claimed.as_ref().map(|claimed| number(claimed.price.get(), "price")).transpose()?,
    ];
    let sale = add.query_row(values, |row| {
        if !row.get::<_, bool>(0)? {
            return Ok(None);
        }
        let (terms, service): (Terms, ServiceName) = (parsed(row, 1)?, parsed(row, 2)?);
        let sold = Label { service, offer: terms.offer, price: terms.price };
        // All surplus there is may be older than this payment, but no more than the payment is new.
        let surplus = unsigned(row, 4)?.min(settlement.amount.get());
        Ok(Some(Sale {
            is_contradicted: claimed.as_ref().is_some_and(|claimed| *claimed != sold),
            service: sold.service,
            is_first: row.get::<_, u32>(3)? == 1,
            paid: settlement.amount,
            surplus: Msat::new(surplus),
        }))
    })?;
    Ok(sale)
}

pub(super) fn present(books: &Connection, presentations: &[Presentation]) -> Result<Vec<Sale>, StoreError> {
    let mut sales = Vec::new();
    // A row that has its terms stays as it is, so that telling it again writes nothing.
    let mut insert = books.prepare_cached(
        "INSERT INTO purchase (hash, token_id, identifier_hash, service, tier, terms, price_msat, valid_until,
             presented_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
         ON CONFLICT (hash) DO UPDATE SET
             token_id = excluded.token_id, identifier_hash = excluded.identifier_hash, service = excluded.service,
             tier = excluded.tier, terms = excluded.terms, price_msat = excluded.price_msat,
             valid_until = excluded.valid_until, presented_at = excluded.presented_at,
             surplus_msat = CASE WHEN payments = 0 THEN 0 ELSE max(0, paid_msat - excluded.price_msat) END,
             shortfall_msat = CASE WHEN payments = 0 THEN 0 ELSE max(0, excluded.price_msat - paid_msat) END
         WHERE terms IS NULL
         RETURNING payments, paid_msat, surplus_msat, claimed_service, claimed_offer, claimed_msat",
    )?;
    for Presentation { hash, sold, at } in presentations {
        let values = params![
            hash.as_bytes(),
            sold.token_id.as_bytes(),
            sold.identifier_hash.as_bytes(),
            sold.service.as_str(),
            sold.tier,
            sold.terms.to_string(),
            number(sold.terms.price.get(), "price")?,
            sold.valid_until.map(end),
            number(at.secs(), "time")?,
        ];
        let sale = insert.query_row(values, |row| {
            let (paid, surplus) = (Msat::new(unsigned(row, 1)?), Msat::new(unsigned(row, 2)?));
            let is_contradicted = claim(row, 3)?.is_some_and(|claimed| !sold.is_as_claimed(&claimed));
            let sale = Sale { service: sold.service.clone(), is_first: true, paid, surplus, is_contradicted };
            Ok((row.get::<_, u32>(0)? > 0).then_some(sale))
        });
        // No row: it had its terms.
        if let Some(sale) = sale.optional()? {
            sales.extend(sale);
            missed::take(books, *hash, RefundOf::Surplus)?;
        }
    }
    Ok(sales)
}

pub(super) const COLUMNS: &str = "hash, token_id, identifier_hash, service, tier, terms, valid_until, presented_at, paid_msat, \
                       payments, settled_at, surplus_msat, shortfall_msat, claimed_service, claimed_offer, \
                       claimed_msat";

pub(super) fn purchase(books: &Connection, hash: PaymentHash) -> Result<Option<Purchase>, StoreError> {
    let mut one = books.prepare_cached(&format!("SELECT {COLUMNS} FROM purchase WHERE hash = ?1"))?;
    Ok(one.query_row([hash.as_bytes()], read_purchase).optional()?)
}

pub(super) fn purchases(books: &Connection, page: Page) -> Result<Vec<Purchase>, StoreError> {
    // A row that isn't there any more would start the pages again from the newest; rows are never deleted.
    let mut some = books.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM purchase
         WHERE ?1 IS NULL OR seq < (SELECT seq FROM purchase WHERE hash = ?1)
         ORDER BY seq DESC LIMIT ?2"
    ))?;
    let after = page.after.as_ref().map(PaymentHash::as_bytes);
    let rows = some.query_map(params![after, page.rows_max.min(ROWS_MAX)], read_purchase)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(super) fn read_purchase(row: &Row<'_>) -> rusqlite::Result<Purchase> {
    let sold = match row.get::<_, Option<[u8; 32]>>(1)? {
        None => None,
        Some(token_id) => Some(Sold {
            token_id: TokenId::from_bytes(token_id),
            identifier_hash: IdentifierHash::from_bytes(row.get(2)?),
            service: parsed(row, 3)?,
            tier: row.get(4)?,
            terms: parsed(row, 5)?,
            valid_until: time(row, 6)?,
        }),
    };
    Ok(Purchase {
        hash: PaymentHash::from_bytes(row.get(0)?),
        sold,
        claimed: claim(row, 13)?,
        presented_at: time(row, 7)?,
        paid: Msat::new(unsigned(row, 8)?),
        payments: row.get(9)?,
        settled_at: time(row, 10)?,
        surplus: Msat::new(unsigned(row, 11)?),
        shortfall: Msat::new(unsigned(row, 12)?),
    })
}

/// The claim in three columns that begin with this one.
fn claim(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Label>> {
    match row.get::<_, Option<String>>(column)? {
        None => Ok(None),
        Some(_) => Ok(Some(Label {
            service: parsed::<ServiceName>(row, column)?,
            offer: parsed::<Offer>(row, column + 1)?,
            price: Msat::new(unsigned(row, column + 2)?),
        })),
    }
}

pub(super) fn knows_token(books: &Connection, hash: IdentifierHash) -> Result<bool, StoreError> {
    let mut one = books.prepare_cached("SELECT 1 FROM purchase WHERE identifier_hash = ?1")?;
    Ok(one.exists([hash.as_bytes()])?)
}

pub(super) fn revoke(books: &Connection, revocation: &Revocation) -> Result<(), StoreError> {
    books.execute(
        "INSERT INTO revocation (identifier_hash, at, reason) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
        params![
            revocation.identifier_hash.as_bytes(),
            number(revocation.at.secs(), "time")?,
            revocation.reason
        ],
    )?;
    Ok(())
}

pub(super) fn revocations(books: &Connection, after: RevocationCursor) -> Result<Revoked, StoreError> {
    // Writers take turns, so the numbers are committed in order and nothing can appear behind a cursor.
    let mut some =
        books.prepare_cached("SELECT seq, identifier_hash FROM revocation WHERE seq > ?1 ORDER BY seq")?;
    let mut rows = some.query([number(after.0, "revocation cursor")?])?;
    let mut revoked = Revoked { hashes: Vec::new(), cursor: after };
    while let Some(row) = rows.next()? {
        revoked.cursor = RevocationCursor(unsigned(row, 0)?);
        revoked.hashes.push(IdentifierHash::from_bytes(row.get(1)?));
    }
    Ok(revoked)
}

pub(super) fn number(value: u64, what: &'static str) -> Result<i64, StoreError> {
    i64::try_from(value).map_err(|_| StoreError::OutOfRange(what))
}

/// A holder may write any end into a token, and one that doesn't fit must not keep the notes beside it from being
/// written. The last moment that fits, in 292 billion years, says the same.
fn end(valid_until: Timestamp) -> i64 {
    i64::try_from(valid_until.secs()).unwrap_or(i64::MAX)
}

pub(super) fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let value: i64 = row.get(column)?;
    u64::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, value))
}

pub(super) fn time(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Timestamp>> {
    match row.get::<_, Option<i64>>(column)? {
        None => Ok(None),
        Some(_) => unsigned(row, column).map(Timestamp::from_secs).map(Some),
    }
}

pub(super) fn parsed<T: std::str::FromStr>(row: &Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let text: String = row.get(column)?;
    text.parse().map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
    })
}
