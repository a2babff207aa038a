//! The ledger's statements: accounts, debits, refunds, kept answers and epochs.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use farebox_protocol::{Msat, PaymentHash, ServiceName, Timestamp};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{
    Page, Presentation, StoreError, missed,
    rows::{self, ROWS_MAX, number, parsed, time, unsigned},
};
use crate::{
    ledger::{
        law::{Balance, Refund},
        month::Month,
    },
    store::accounts::{
        Account, Allotment, AnswerKey, DayOfUse, Debit, Debited, Epoch, EpochId, Group, KeptAnswer,
        MonthlyUse, Opened, Place, RefundId, RefundOf, RefundOrder, RefundRow, RequestDigest, StoredAnswer,
        Unit,
    },
};

const SECS_PER_DAY: u64 = 86_400;

/// How many answers whose time is up are thrown away with each group: more than come with it, so that they don't pile up.
const FORGOTTEN_MAX: usize = 64;

pub(super) fn begin_epoch(books: &Connection, now: Timestamp) -> Result<EpochId, StoreError> {
    books.execute("INSERT INTO epoch (began_at) VALUES (?1)", [number(now.secs(), "time")?])?;
    u64::try_from(books.last_insert_rowid()).map(EpochId).map_err(|_| StoreError::OutOfRange("epoch"))
}

pub(super) fn end_epoch(books: &Connection, epoch: EpochId, now: Timestamp) -> Result<(), StoreError> {
    books.execute(
        "UPDATE epoch SET ended_at = ?2 WHERE id = ?1 AND ended_at IS NULL",
        params![number(epoch.0, "epoch")?, number(now.secs(), "time")?],
    )?;
    Ok(())
}

pub(super) fn epochs(books: &Connection, rows_max: u16) -> Result<Vec<Epoch>, StoreError> {
    let mut some = books.prepare_cached(
        "SELECT id, began_at, ended_at, groups, written_at FROM epoch ORDER BY id DESC LIMIT ?1",
    )?;
    let epochs = some.query_map([rows_max.min(ROWS_MAX)], |row| {
        Ok(Epoch {
            id: EpochId(unsigned(row, 0)?),
            began_at: Timestamp::from_secs(unsigned(row, 1)?),
            ended_at: time(row, 2)?,
            groups: unsigned(row, 3)?,
            written_at: time(row, 4)?,
        })
    })?;
    Ok(epochs.collect::<Result<_, _>>()?)
}

const COLUMNS: &str = "hash, service, unit, price_msat, sold, spent, refunding, refunded, written_off, requests, \
                       opened_at, debited_at, purchase";

pub(super) fn account(books: &Connection, hash: PaymentHash) -> Result<Option<Account>, StoreError> {
    let mut one = books.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM purchase JOIN account ON account.purchase = purchase.seq WHERE hash = ?1"
    ))?;
    Ok(one.query_row([hash.as_bytes()], read_account).optional()?)
}

pub(super) fn accounts(books: &Connection, page: Page) -> Result<Vec<Account>, StoreError> {
    let mut some = books.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM account CROSS JOIN purchase ON account.purchase = purchase.seq
         WHERE ?1 IS NULL OR account.purchase < (SELECT seq FROM purchase WHERE hash = ?1)
         ORDER BY account.purchase DESC LIMIT ?2"
    ))?;
    let after = page.after.as_ref().map(PaymentHash::as_bytes);
    let accounts = some.query_map(params![after, page.rows_max.min(ROWS_MAX)], read_account)?;
    Ok(accounts.collect::<Result<_, _>>()?)
}

fn read_account(row: &Row<'_>) -> rusqlite::Result<Account> {
    let part = |column| unsigned(row, column);
    let balance = Balance::new(part(4)?, part(5)?, part(6)?, part(7)?, part(8)?).map_err(|unlawful| {
        rusqlite::Error::FromSqlConversionFailure(4, rusqlite::types::Type::Integer, Box::new(unlawful))
    })?;
    Ok(Account {
        hash: PaymentHash::from_bytes(row.get(0)?),
        service: parsed(row, 1)?,
        unit: parsed(row, 2)?,
        price: Msat::new(part(3)?),
        balance,
        requests: part(9)?,
        opened_at: Timestamp::from_secs(part(10)?),
        debited_at: time(row, 11)?,
        place: Some(Place(part(12)?)),
    })
}

pub(super) fn open_account(
    books: &Connection,
    presentation: &Presentation,
    allotment: Allotment,
) -> Result<Opened, StoreError> {
    let sales = rows::present(books, std::slice::from_ref(presentation))?;
    // The purchase may have been booked for other terms before; those stay, and no account is opened beside them.
    let mut open = books.prepare_cached(
        "INSERT INTO account (purchase, unit, sold, opened_at)
         SELECT seq, ?2, ?3, ?4 FROM purchase WHERE hash = ?1 AND terms = ?5 AND service = ?6
         ON CONFLICT DO NOTHING",
    )?;
    open.execute(params![
        presentation.hash.as_bytes(),
        allotment.unit.as_str(),
        number(allotment.units, "units")?,
        number(presentation.at.secs(), "time")?,
        presentation.sold.terms.to_string(),
        presentation.sold.service.as_str(),
    ])?;
    // Before anybody reads how much there is.
    missed::take(books, presentation.hash, RefundOf::Credit)?;
    let account = account(books, presentation.hash)?.filter(|account| {
        (account.service == presentation.sold.service)
            && (account.unit, account.balance.sold()) == (allotment.unit, allotment.units)
    });
    Ok(Opened { account, sales })
}

pub(super) fn debit(books: &Connection, group: &Group) -> Result<Debited, StoreError> {
    let Group { epoch, number: place, at, debits, uses, answers } = group;
    if !take_place(books, *epoch, *place, *at)? {
        return Ok(Debited::default());
    }
    let mut debited = Debited::default();
    let mut days: BTreeMap<(&ServiceName, &'static str), [u64; 3]> = BTreeMap::new();
    for debit in debits {
        match charge(books, debit, *at)? {
            Some((unit, excess)) => {
                debited.excess = debited.excess.saturating_add(excess);
                let sum = days.entry((&debit.service, unit.as_str())).or_default();
                let more = [debit.requests, debit.units - excess, debit.written_off.saturating_add(excess)];
                sum.iter_mut().zip(more).for_each(|(sum, more)| *sum = sum.saturating_add(more));
            }
            None => debited.missing += 1,
        }
    }
    let mut add = books.prepare_cached(
        "INSERT INTO use_by_day (day, service, unit, requests, units, written_off) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
         ON CONFLICT DO UPDATE SET
             requests = min(requests, 9223372036854775807 - excluded.requests) + excluded.requests,
             units = min(units, 9223372036854775807 - excluded.units) + excluded.units,
             written_off = min(written_off, 9223372036854775807 - excluded.written_off) + excluded.written_off",
    )?;
    for ((service, unit), [requests, units, written_off]) in days {
        add.execute(params![
            number(at.secs() / SECS_PER_DAY, "day")?,
            service.as_str(),
            unit,
            most(requests),
            most(units),
            most(written_off),
        ])?;
    }
    for used in uses {
        add_use(books, used)?;
    }
    for answer in answers {
        keep_answer(books, answer)?;
    }
    books
        .prepare_cached(
            "DELETE FROM kept_answer WHERE rowid IN (SELECT rowid FROM kept_answer WHERE until <= ?1 LIMIT ?2)",
        )?
        .execute(params![number(at.secs(), "time")?, answers.len() + FORGOTTEN_MAX])?;
    Ok(debited)
}

/// Whether this group is still to be written.
fn take_place(books: &Connection, epoch: EpochId, place: u64, at: Timestamp) -> Result<bool, StoreError> {
    let (id, place) = (number(epoch.0, "epoch")?, number(place, "group")?);
    let mut take = books.prepare_cached(
        "UPDATE epoch SET groups = ?2, written_at = ?3
         WHERE id = ?1 AND groups = ?2 - 1 AND ended_at IS NULL AND id = (SELECT max(id) FROM epoch)",
    )?;
    if take.execute(params![id, place, number(at.secs(), "time")?])? == 1 {
        return Ok(true);
    }
    let mut look = books.prepare_cached("SELECT groups FROM epoch WHERE id = ?1")?;
    match look.query_row([id], |row| row.get::<_, i64>(0)).optional()? {
        Some(groups) if groups >= place => Ok(false),
        Some(groups) if groups < place - 1 => Err(StoreError::Failed(format!(
            "group {place} of epoch {id} comes after {groups}: what is between is missing"
        ))),
        Some(_) | None => Err(StoreError::Superseded(epoch.0)),
    }
}

/// The account's unit and how much it did not have; `None` where there is no account.
fn charge(books: &Connection, debit: &Debit, at: Timestamp) -> Result<Option<(Unit, u64)>, StoreError> {
    let mut take = books.prepare_cached(
        "UPDATE account SET spent = spent + ?2, written_off = min(written_off, 9223372036854775807 - ?3) + ?3,
             requests = min(requests, 9223372036854775807 - ?4) + ?4, debited_at = ?5
         WHERE purchase = ?1 AND ?2 <= sold - spent - refunding - refunded
         RETURNING unit",
    )?;
    let mut take = |place: Place, units: u64, written_off: u64| -> Result<Option<Unit>, StoreError> {
        let values = params![
            number(place.0, "account")?,
            number(units, "units")?,
            most(written_off),
            most(debit.requests),
            number(at.secs(), "time")?,
        ];
        Ok(take.query_row(values, |row| parsed(row, 0)).optional()?)
    };
    // What no account can hold is a mistake of whoever charges it.
    number(debit.units, "units")?;
    // Accounts at work lie together, by their numbers, and hashes anywhere: looking one up is a read for itself.
    if let Some(place) = debit.place
        && let Some(unit) = take(place, debit.units, debit.written_off)?
    {
        return Ok(Some((unit, 0)));
    }
    let Some(Account { place: Some(place), balance, .. }) = account(books, debit.hash)? else {
        return Ok(None);
    };
    let excess = debit.units - balance.left().min(debit.units);
    let taken = take(place, debit.units - excess, debit.written_off.saturating_add(excess))?;
    Ok(taken.map(|unit| (unit, excess)))
}

fn add_use(books: &Connection, of: &MonthlyUse) -> Result<(), StoreError> {
    let mut add = books.prepare_cached(
        "INSERT INTO use_by_month (hash, month, capability, unit, used) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT DO UPDATE SET used = min(used, 9223372036854775807 - excluded.used) + excluded.used",
    )?;
    add.execute(params![
        of.hash.as_bytes(),
        number(of.month.0, "month")?,
        of.capability.as_str(),
        of.unit.as_str(),
        most(of.used),
    ])?;
    Ok(())
}

/// In one month, or in all of them.
pub(super) fn uses(
    books: &Connection,
    hash: PaymentHash,
    month: Option<Month>,
) -> Result<Vec<MonthlyUse>, StoreError> {
    let (from, to) = match month {
        Some(month) => (number(month.0, "month")?, number(month.0, "month")?),
        None => (0, i64::MAX),
    };
    let mut some = books.prepare_cached(
        "SELECT month, capability, unit, used FROM use_by_month WHERE hash = ?1 AND month BETWEEN ?2 AND ?3
         ORDER BY month, capability, unit",
    )?;
    let uses = some.query_map(params![hash.as_bytes(), from, to], |row| {
        let month = Month(unsigned(row, 0)?);
        Ok(MonthlyUse {
            hash,
            month,
            capability: parsed(row, 1)?,
            unit: parsed(row, 2)?,
            used: unsigned(row, 3)?,
        })
    })?;
    Ok(uses.collect::<Result<_, _>>()?)
}

/// A sum that is cut at the most that the books can hold, and so never goes round.
fn most(sum: u64) -> i64 {
    i64::try_from(sum).unwrap_or(i64::MAX)
}

fn keep_answer(books: &Connection, kept: &KeptAnswer) -> Result<(), StoreError> {
    let answer = kept.answer.as_deref();
    books
        .prepare_cached(
            "INSERT INTO kept_answer (key, request, status, headers, body, until) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (key) DO UPDATE SET request = excluded.request, status = excluded.status,
                 headers = excluded.headers, body = excluded.body, until = excluded.until",
        )?
        .execute(params![
            kept.key.0,
            kept.request.0,
            answer.map(|answer| answer.status),
            answer.map(|answer| answer.headers.as_ref()),
            answer.map(|answer| answer.body.as_ref()),
            number(kept.until.secs(), "time")?,
        ])?;
    Ok(())
}

pub(super) fn kept_answer(
    books: &Connection,
    key: AnswerKey,
    now: Timestamp,
) -> Result<Option<KeptAnswer>, StoreError> {
    let mut one = books.prepare_cached(
        "SELECT request, status, headers, body, until FROM kept_answer WHERE key = ?1 AND until > ?2",
    )?;
    let found = one.query_row(params![key.0, number(now.secs(), "time")?], |row| {
        let answer = match row.get::<_, Option<u16>>(1)? {
            None => None,
            Some(status) => Some(Arc::new(StoredAnswer {
                status,
                headers: Bytes::from(row.get::<_, Vec<u8>>(2)?),
                body: Bytes::from(row.get::<_, Vec<u8>>(3)?),
            })),
        };
        let until = Timestamp::from_secs(unsigned(row, 4)?);
        Ok(KeptAnswer { key, request: RequestDigest(row.get(0)?), answer, until })
    });
    Ok(found.optional()?)
}

pub(super) fn begin_refund(books: &Connection, order: &RefundOrder) -> Result<(), StoreError> {
    if let Some(row) = refund(books, order.id)? {
        let same = RefundOrder { at: order.at, ..row.order } == *order;
        return if same { Ok(()) } else { Err(StoreError::OtherRefund) };
    }
    let amount = number(order.amount.get(), "amount")?;
    let hash = order.hash.as_bytes();
    let taken = match order.of {
        RefundOf::Credit => books.execute(
            "UPDATE account SET refunding = refunding + ?2
             WHERE purchase = (SELECT seq FROM purchase WHERE hash = ?1) AND unit = 'msat'
                 AND ?2 <= sold - spent - refunding - refunded",
            params![hash, amount],
        )?,
        RefundOf::Surplus => books.query_row(
            "SELECT count(*) FROM purchase WHERE hash = ?1 AND ?2 <= surplus_msat -
                 (SELECT coalesce(sum(amount_msat), 0) FROM refund
                  WHERE purchase = purchase.seq AND source = 'surplus' AND state <> 'failed') -
                 (SELECT coalesce(sum(amount_msat), 0) FROM missed_refund WHERE hash = ?1 AND source = 'surplus')",
            params![hash, amount],
            |row| row.get(0),
        )?,
    };
    if taken == 0 {
        return Err(StoreError::NotThere);
    }
    books.execute(
        "INSERT INTO refund (id, purchase, source, amount_msat, asked_at)
         SELECT ?1, seq, ?3, ?4, ?5 FROM purchase WHERE hash = ?2",
        params![order.id.0, hash, source(order.of), amount, number(order.at.secs(), "time")?],
    )?;
    Ok(())
}

pub(super) fn end_refund(
    books: &Connection,
    id: RefundId,
    end: Refund,
    at: Timestamp,
) -> Result<RefundRow, StoreError> {
    let row = refund(books, id)?.ok_or(StoreError::NotThere)?;
    if row.ended.is_some() {
        return Ok(row);
    }
    if end == Refund::Part(Msat::ZERO) {
        return Err(StoreError::OutOfRange("part of a refund"));
    }
    let RefundOrder { hash, of, amount: begun, .. } = row.order;
    if row.missing > Msat::ZERO {
        let paid = match end {
            Refund::Paid => begun.saturating_add(row.missing),
            Refund::Part(part) => part,
            Refund::Failed => Msat::ZERO,
        };
        let missing = Msat::new(paid.get().saturating_sub(begun.get())).min(row.missing);
        missed::keep(books, id, missing, Some(at))?;
        if begun == Msat::ZERO {
            // Nothing was taken that could be given back.
            let gone = RefundRow { ended: Some((Refund::Failed, at)), missing: Msat::ZERO, ..row };
            return Ok(refund(books, id)?.unwrap_or(gone));
        }
    }
    let (state, amount, refunded) = match end {
        Refund::Paid => ("paid", begun, begun),
        Refund::Part(part) => ("paid", part.min(begun), part.min(begun)),
        Refund::Failed => ("failed", begun, Msat::ZERO),
    };
    books.execute(
        "UPDATE refund SET state = ?2, amount_msat = ?3, ended_at = ?4 WHERE id = ?1",
        params![id.0, state, number(amount.get(), "amount")?, number(at.secs(), "time")?],
    )?;
    if of == RefundOf::Credit {
        let (begun, refunded) = (number(begun.get(), "amount")?, number(refunded.get(), "amount")?);
        books.execute(
            "UPDATE account SET refunding = refunding - ?2, refunded = refunded + ?3
             WHERE purchase = (SELECT seq FROM purchase WHERE hash = ?1)",
            params![hash.as_bytes(), begun, refunded],
        )?;
    }
    refund(books, id)?.ok_or(StoreError::NotThere)
}

/// Refunds on the books, and those of which the books have nothing but that they were missed. Each half wants its own
/// condition.
const REFUNDS: &str = "SELECT refund.id, purchase.hash, refund.source, refund.amount_msat, refund.asked_at, state, ended_at,
        coalesce(missed.amount_msat, 0), refund.seq
    FROM refund JOIN purchase ON purchase.seq = refund.purchase LEFT JOIN missed_refund AS missed ON missed.id = refund.id";
const MISSED: &str = "SELECT missed.id, missed.hash, missed.source, 0, missed.asked_at,
        iif(paid_at IS NULL, 'open', 'paid'), paid_at, missed.amount_msat, missed.seq
    FROM missed_refund AS missed WHERE NOT EXISTS (SELECT 1 FROM refund WHERE refund.id = missed.id)";

/// Which refunds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Refunds {
    /// The one with this id.
    One(RefundId),
    /// Those of one purchase.
    Of(PaymentHash),
    /// Those that haven't ended.
    Open,
    /// Those of which something is missing.
    Missing,
    /// All of them, newest first.
    Last,
}

/// Oldest first, where nothing else is said.
pub(super) fn refunds(
    books: &Connection,
    which: Refunds,
    rows_max: u32,
) -> Result<Vec<RefundRow>, StoreError> {
    let (booked, missed, key) = match &which {
        Refunds::One(id) => ("refund.id = ?2", "missed.id = ?2", Some(&id.0[..])),
        Refunds::Of(hash) => ("purchase.hash = ?2", "missed.hash = ?2", Some(&hash.as_bytes()[..])),
        Refunds::Open => ("state = 'open' AND ?2 IS NULL", "paid_at IS NULL", None),
        Refunds::Missing => ("missed.id IS NOT NULL AND ?2 IS NULL", "TRUE", None),
        Refunds::Last => ("?2 IS NULL", "TRUE", None),
    };
    let order = if matches!(which, Refunds::Last) { "5 DESC, 9 DESC" } else { "5, 9" };
    let mut some = books.prepare_cached(&format!(
        "{REFUNDS} WHERE {booked} UNION ALL {MISSED} AND {missed} ORDER BY {order} LIMIT ?1"
    ))?;
    let refunds = some.query_map(params![rows_max, key], read_refund)?;
    Ok(refunds.collect::<Result<_, _>>()?)
}

pub(super) fn refund(books: &Connection, id: RefundId) -> Result<Option<RefundRow>, StoreError> {
    Ok(refunds(books, Refunds::One(id), 1)?.pop())
}

pub(super) fn open_refunds(books: &Connection, rows_max: u16) -> Result<Vec<RefundRow>, StoreError> {
    refunds(books, Refunds::Open, rows_max.min(ROWS_MAX).into())
}

fn read_refund(row: &Row<'_>) -> rusqlite::Result<RefundRow> {
    let order = RefundOrder {
        id: RefundId(row.get(0)?),
        hash: PaymentHash::from_bytes(row.get(1)?),
        of: match row.get_ref(2)?.as_str()? {
            "credit" => RefundOf::Credit,
            _ => RefundOf::Surplus,
        },
        amount: Msat::new(unsigned(row, 3)?),
        at: Timestamp::from_secs(unsigned(row, 4)?),
    };
    let end = match row.get_ref(5)?.as_str()? {
        "paid" => Some(Refund::Paid),
        "failed" => Some(Refund::Failed),
        _ => None,
    };
    Ok(RefundRow { order, ended: end.zip(time(row, 6)?), missing: Msat::new(unsigned(row, 7)?) })
}

pub(super) const fn source(of: RefundOf) -> &'static str {
    match of {
        RefundOf::Credit => "credit",
        RefundOf::Surplus => "surplus",
    }
}

pub(super) fn days_of_use(books: &Connection, from: u64, to: u64) -> Result<Vec<DayOfUse>, StoreError> {
    let mut some = books.prepare_cached(
        "SELECT day, service, unit, requests, units, written_off FROM use_by_day
         WHERE day BETWEEN ?1 AND ?2 ORDER BY day, service, unit",
    )?;
    let day = |day: u64| i64::try_from(day).unwrap_or(i64::MAX);
    let days = some.query_map([day(from), day(to)], |row| {
        Ok(DayOfUse {
            day: unsigned(row, 0)?,
            service: parsed(row, 1)?,
            unit: parsed(row, 2)?,
            requests: unsigned(row, 3)?,
            units: unsigned(row, 4)?,
            written_off: unsigned(row, 5)?,
        })
    })?;
    Ok(days.collect::<Result<_, _>>()?)
}
