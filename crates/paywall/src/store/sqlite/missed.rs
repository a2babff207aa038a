//! Refunds that left while these books didn't know of them: books that were brought back from an older copy learn of them here.
//!
//! What its purchase has left is taken for such a refund and booked like any other. What it hasn't stays a row of its own, is
//! taken as soon as there is something, and is the seller's loss where there never will be. So the law of every account
//! holds, and nothing is paid back or spent a second time.

use farebox_protocol::{Msat, PaymentHash, Timestamp};
use rusqlite::{Connection, OptionalExtension, params};

use super::{
    StoreError,
    accounts::{self, source},
    rows::{number, time, unsigned},
};
use crate::{
    ledger::law::Refund,
    store::accounts::{RefundId, RefundMark, RefundOf, RefundOrder, RefundRow},
};

/// What is to be taken of one refund.
struct Missed {
    id: RefundId,
    hash: PaymentHash,
    of: RefundOf,
    amount: Msat,
    asked_at: Timestamp,
    paid_at: Option<Timestamp>,
}

pub(super) fn add(
    books: &Connection,
    order: &RefundOrder,
    paid_at: Option<Timestamp>,
    limit: Option<Msat>,
) -> Result<Option<RefundRow>, StoreError> {
    let RefundOrder { id, hash, of, amount, at } = *order;
    if let Some(row) = accounts::refund(books, id)? {
        if (row.order.hash, row.order.of) != (hash, of) {
            return Err(StoreError::OtherRefund);
        }
        // Somebody said that it wasn't paid, and it was.
        let is_denied = row.missing == Msat::ZERO && matches!(row.ended, Some((Refund::Failed, _)));
        if !is_denied || paid_at.is_none() {
            return Ok(Some(row));
        }
    }
    let limit = match (of, limit) {
        (RefundOf::Credit, None) if left(books, hash, of)?.is_some() => return Ok(None),
        (RefundOf::Credit, limit) => limit.unwrap_or(Msat::ZERO),
        (RefundOf::Surplus, _) => Msat::MAX,
    };
    books.execute(
        "INSERT INTO missed_refund (id, hash, source, amount_msat, asked_at, paid_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![
            id.0,
            hash.as_bytes(),
            source(of),
            number(amount.get(), "amount")?,
            number(at.secs(), "time")?,
            paid_at.map(|at| number(at.secs(), "time")).transpose()?,
        ],
    )?;
    take_one(books, &Missed { id, hash, of, amount, asked_at: at, paid_at }, limit)?;
    accounts::refund(books, id)
}

/// Takes what there is of one purchase's account or surplus, of which nobody has anything in memory.
pub(super) fn take(books: &Connection, hash: PaymentHash, of: RefundOf) -> Result<(), StoreError> {
    let mut some = books.prepare_cached(
        "SELECT id, amount_msat, asked_at, paid_at FROM missed_refund WHERE hash = ?1 AND source = ?2 ORDER BY seq",
    )?;
    let missed = some.query_map(params![hash.as_bytes(), source(of)], |row| {
        Ok(Missed {
            id: RefundId(row.get(0)?),
            hash,
            of,
            amount: Msat::new(unsigned(row, 1)?),
            asked_at: Timestamp::from_secs(unsigned(row, 2)?),
            paid_at: time(row, 3)?,
        })
    })?;
    for missed in missed.collect::<Result<Vec<_>, _>>()? {
        take_one(books, &missed, Msat::MAX)?;
    }
    Ok(())
}

fn take_one(books: &Connection, missed: &Missed, limit: Msat) -> Result<(), StoreError> {
    let Missed { id, hash, of, amount, asked_at, paid_at } = *missed;
    let part = left(books, hash, of)?.unwrap_or(Msat::ZERO).min(amount).min(limit);
    if part == Msat::ZERO {
        return Ok(());
    }
    let msat = number(part.get(), "amount")?;
    // One that was denied begins anew; of one that took something before, this is more.
    books.execute(
        "INSERT INTO refund (id, purchase, source, amount_msat, asked_at, state, ended_at)
         SELECT ?1, seq, ?3, ?4, ?5, ?6, ?7 FROM purchase WHERE hash = ?2
         ON CONFLICT (id) DO UPDATE SET
             amount_msat = excluded.amount_msat + iif(state = 'failed', 0, amount_msat),
             state = excluded.state, ended_at = excluded.ended_at",
        params![
            id.0,
            hash.as_bytes(),
            source(of),
            msat,
            number(asked_at.secs(), "time")?,
            if paid_at.is_some() { "paid" } else { "open" },
            paid_at.map(|at| number(at.secs(), "time")).transpose()?,
        ],
    )?;
    if of == RefundOf::Credit {
        let column = if paid_at.is_some() { "refunded" } else { "refunding" };
        books.execute(
            &format!(
                "UPDATE account SET {column} = {column} + ?2
                 WHERE purchase = (SELECT seq FROM purchase WHERE hash = ?1)"
            ),
            params![hash.as_bytes(), msat],
        )?;
    }
    keep(books, id, Msat::new(amount.get() - part.get()), paid_at)
}

/// What is missing of a refund from now on, and when it was paid.
pub(super) fn keep(
    books: &Connection,
    id: RefundId,
    missing: Msat,
    paid_at: Option<Timestamp>,
) -> Result<(), StoreError> {
    if missing == Msat::ZERO {
        books.execute("DELETE FROM missed_refund WHERE id = ?1", [id.0])?;
    } else {
        books.execute(
            "UPDATE missed_refund SET amount_msat = ?2, paid_at = ?3 WHERE id = ?1",
            params![
                id.0,
                number(missing.get(), "amount")?,
                paid_at.map(|at| number(at.secs(), "time")).transpose()?
            ],
        )?;
    }
    Ok(())
}

/// What there is to be taken from; `None` where there is no such account or purchase.
fn left(books: &Connection, hash: PaymentHash, of: RefundOf) -> Result<Option<Msat>, StoreError> {
    let mut one = books.prepare_cached(match of {
        RefundOf::Credit => {
            "SELECT sold - spent - refunding - refunded FROM account
             WHERE purchase = (SELECT seq FROM purchase WHERE hash = ?1) AND unit = 'msat'"
        }
        RefundOf::Surplus => {
            "SELECT surplus_msat - (SELECT coalesce(sum(amount_msat), 0) FROM refund
                  WHERE purchase = purchase.seq AND source = 'surplus' AND state <> 'failed')
             FROM purchase WHERE hash = ?1"
        }
    })?;
    Ok(one.query_row([hash.as_bytes()], |row| unsigned(row, 0).map(Msat::new)).optional()?)
}

pub(super) fn unknown(books: &Connection, ids: &[RefundId]) -> Result<Vec<RefundId>, StoreError> {
    let mut one = books.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM refund WHERE id = ?1 AND state <> 'failed')
             OR EXISTS (SELECT 1 FROM missed_refund WHERE id = ?1)",
    )?;
    let mut unknown = Vec::new();
    for id in ids {
        if !one.query_row([id.0], |row| row.get::<_, bool>(0))? {
            unknown.push(*id);
        }
    }
    Ok(unknown)
}

pub(super) fn mark(books: &Connection) -> Result<Option<RefundMark>, StoreError> {
    let mut one = books.prepare_cached("SELECT seq, id FROM refund_mark")?;
    let mark =
        one.query_row([], |row| Ok(RefundMark { place: unsigned(row, 0)?, id: RefundId(row.get(1)?) }));
    Ok(mark.optional()?)
}

pub(super) fn set_mark(books: &Connection, mark: &RefundMark) -> Result<(), StoreError> {
    books.execute(
        "INSERT INTO refund_mark (one, seq, id) VALUES (1, ?1, ?2)
         ON CONFLICT (one) DO UPDATE SET seq = excluded.seq, id = excluded.id",
        params![number(mark.place, "place")?, mark.id.0],
    )?;
    Ok(())
}
