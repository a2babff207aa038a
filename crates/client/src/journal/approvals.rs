//! Questions to a person who isn't at the terminal, and their answers.
//!
//! A question waits here until it is answered or a day old. An answer is a signed consent; whether the signature holds is for
//! the engine to judge, each time, and nothing in this table grants anything by itself. A consent is good for one payment: it
//! is bound to it in the transaction that records it, and free again only if that payment has failed.

use std::sync::LazyLock;

use farebox_protocol::{Msat, PaymentHash, Timestamp};
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, params};

use super::{JournalError, WRITTEN_OFF, integer};
use crate::Question;
use crate::policy::Consent;

/// How many questions may wait: more than a person would read, and few enough for a journal.
const WAITING_MAX: i64 = 256;

/// How long a question waits for an answer.
const ASKED_FOR_SECS: u64 = 86_400;

/// A question that waits for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PendingApproval {
    /// Its name.
    pub id: String,
    /// Who sells.
    pub origin: String,
    /// What, where the token says so.
    pub service: String,
    /// The method of the request.
    pub method: String,
    /// Its path, without the query.
    pub path: String,
    /// On whose behalf.
    pub label: Option<String>,
    /// The price that was asked.
    pub price: Msat,
    /// The most that the fee can come to.
    pub fee_worst: Msat,
    /// The node that would be paid.
    pub payee: String,
    /// The rule that wants a person asked.
    pub rule: Option<String>,
    /// When it was last asked.
    pub asked_at: Timestamp,
}

/// What has become of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Approval {
    /// It waits for a person.
    Pending,
    /// A person has agreed, and the consent is good for a payment.
    Approved {
        /// The highest price agreed to.
        price_max: Msat,
        /// The highest fee agreed to.
        fee_max: Msat,
        /// The end of the consent.
        until: Timestamp,
    },
    /// The consent stands for this payment, and for no other one.
    Used(PaymentHash),
    /// A person has said no.
    Denied,
    /// Nobody has answered in time, or the consent is over.
    Expired,
}

/// What the table says of a question.
#[derive(Clone, Debug)]
pub(crate) enum Found {
    /// Nobody has agreed.
    Open(Approval),
    /// Somebody has, if the signature holds; and the payment it stands for, if it stands for one that came to something.
    Given(Box<Given>, Option<PaymentHash>),
}

/// A signed consent.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    pub(crate) consent: Consent,
    pub(crate) signature: Vec<u8>,
}

/// Whether a consent may (still) stand for the payment ?1: it stands for no other one, unless that came to nothing. One that
/// has failed and is about to be sent again hasn't, under the same condition under which it may be (`may_send`); and of one
/// that was written off by hand nobody knows.
static IS_FREE: LazyLock<String> = LazyLock::new(|| {
    format!(
        "(a.used_by IS NULL OR a.used_by = ?1 OR EXISTS (
            SELECT 1 FROM outgoing_payments o JOIN purchases p USING (payment_hash)
            WHERE o.payment_hash = a.used_by AND o.state IN ('failed', 'unsent') AND o.reason IS NOT '{WRITTEN_OFF}'
            AND NOT (p.again IS o.attempt
                     AND EXISTS (SELECT 1 FROM leases l WHERE l.origin = p.origin AND l.service = p.service
                                 AND l.generation = p.generation AND l.holder = p.holder))))"
    )
});

/// Puts a question, or finds the same one. What has become dearer is not the same: whoever has read it and answers by its name
/// would agree to more than they have seen. `name` is the name of a new one; `None` where too many wait already.
pub(super) fn ask(
    transaction: &Transaction<'_>,
    question: &Question,
    name: &str,
    now: Timestamp,
) -> Result<Option<String>, JournalError> {
    let old = integer(now.secs().saturating_sub(ASKED_FOR_SECS));
    transaction.execute("DELETE FROM approvals WHERE signature IS NULL AND asked_at <= ?1", [old])?;
    let Question { origin, service, method, path, label, price, fee_worst, payee, rule, .. } = question;
    let origin = origin.to_string();
    transaction.execute(
        "DELETE FROM approvals WHERE signature IS NULL AND denied_at IS NULL AND origin = ?1 AND method = ?2
         AND path = ?3 AND label IS ?4 AND (price_msat < ?5 OR fee_worst_msat < ?6)",
        params![origin, method, path, label, integer(price.get()), integer(fee_worst.get())],
    )?;
    let same = "SELECT id FROM approvals WHERE signature IS NULL AND denied_at IS NULL AND origin = ?1 AND method = ?2
                AND path = ?3 AND label IS ?4 LIMIT 1";
    let found: Option<String> = transaction
        .prepare_cached(same)?
        .query_row(params![origin, method, path, label], |row| row.get(0))
        .optional()?;
    let waiting = "SELECT count(*) FROM approvals WHERE signature IS NULL AND denied_at IS NULL";
    let waiting: i64 = transaction.prepare_cached(waiting)?.query_row([], |row| row.get(0))?;
    if found.is_none() && waiting >= WAITING_MAX {
        return Ok(None);
    }
    let id = found.unwrap_or_else(|| name.to_owned());
    transaction.execute(
        "INSERT INTO approvals (id, origin, service, method, path, label, price_msat, fee_worst_msat, payee, rule, asked_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)
         ON CONFLICT (id) DO UPDATE SET service = excluded.service, price_msat = excluded.price_msat,
             fee_worst_msat = excluded.fee_worst_msat, payee = excluded.payee, rule = excluded.rule,
             asked_at = excluded.asked_at",
        params![
            id,
            origin,
            service,
            method,
            path,
            label,
            integer(price.get()),
            integer(fee_worst.get()),
            payee,
            rule,
            integer(now.secs())
        ],
    )?;
    Ok(Some(id))
}

/// The questions that wait, oldest first.
pub(super) fn pending(connection: &Connection, now: Timestamp) -> Result<Vec<PendingApproval>, JournalError> {
    let old = integer(now.secs().saturating_sub(ASKED_FOR_SECS));
    let mut statement = connection.prepare(
        "SELECT * FROM approvals WHERE signature IS NULL AND denied_at IS NULL AND asked_at > ?1 ORDER BY asked_at, id",
    )?;
    let rows = statement.query_map([old], read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Writes an answer down. `false`: no such question waits.
pub(super) fn answer(
    connection: &Connection,
    id: &str,
    answer: Result<&Given, Timestamp>,
) -> Result<bool, JournalError> {
    let changed = match answer {
        Ok(Given { consent, signature }) => connection.execute(
            "UPDATE approvals SET price_max_msat = ?2, fee_worst_msat = ?3, until = ?4, signature = ?5
             WHERE id = ?1 AND signature IS NULL AND denied_at IS NULL",
            params![
                id,
                integer(consent.price_max.get()),
                integer(consent.fee_max.get()),
                integer(consent.until.secs()),
                signature
            ],
        )?,
        Err(now) => connection.execute(
            "UPDATE approvals SET denied_at = ?2 WHERE id = ?1 AND signature IS NULL AND denied_at IS NULL",
            params![id, integer(now.secs())],
        )?,
    };
    Ok(changed == 1)
}

/// Whether a consent has come to its end since the latest moment that was kept.
pub(super) fn has_lapsed(connection: &Connection, now: Timestamp) -> Result<bool, JournalError> {
    let query = "SELECT EXISTS (SELECT 1 FROM approvals WHERE signature IS NOT NULL AND until <= ?1
                 AND until > coalesce((SELECT latest FROM clock), 0))";
    Ok(connection.prepare_cached(query)?.query_row([integer(now.secs())], |row| row.get(0))?)
}

/// Answers that may fit a question, with their signatures, which nobody has looked at yet.
pub(super) fn given(
    connection: &Connection,
    question: &Question,
    now: Timestamp,
) -> Result<Vec<Given>, JournalError> {
    let query = format!(
        "SELECT * FROM approvals a WHERE a.signature IS NOT NULL AND a.until > ?2 AND a.price_max_msat >= ?3
         AND a.fee_worst_msat >= ?8 AND a.origin = ?4 AND a.method = ?5 AND a.path = ?6 AND a.label IS ?7 AND {} ORDER BY a.until",
        *IS_FREE
    );
    let Question { origin, method, path, label, price, fee_worst, payment_hash, .. } = question;
    let mut statement = connection.prepare_cached(&query)?;
    let rows = statement.query_map(
        params![
            payment_hash.as_bytes(),
            integer(now.secs()),
            integer(price.get()),
            origin.to_string(),
            method,
            path,
            label,
            integer(fee_worst.get())
        ],
        read_given,
    )?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// What has become of the question with this name, if it is still known. That a consent is signed is not checked here.
pub(super) fn find(connection: &Connection, id: &str, now: Timestamp) -> Result<Option<Found>, JournalError> {
    // No payment has this hash: it stands for "none yet".
    let query = format!("SELECT *, {} AS is_free FROM approvals a WHERE id = ?2", *IS_FREE);
    let mut statement = connection.prepare_cached(&query)?;
    let found = statement.query_row(params![[0_u8; 0], id], |row| {
        if row.get::<_, Option<u64>>("denied_at")?.is_some() {
            return Ok(Found::Open(Approval::Denied));
        }
        if row.get::<_, Option<Vec<u8>>>("signature")?.is_none() {
            let is_old = row.get::<_, u64>("asked_at")?.saturating_add(ASKED_FOR_SECS) <= now.secs();
            return Ok(Found::Open(if is_old { Approval::Expired } else { Approval::Pending }));
        }
        let used_by: Option<[u8; 32]> = if row.get("is_free")? { None } else { row.get("used_by")? };
        Ok(Found::Given(read_given(row)?.into(), used_by.map(PaymentHash::from_bytes)))
    });
    Ok(found.optional()?)
}

/// Binds a consent to the payment that it is used for. `false`: it is used for another one.
pub(super) fn bind(
    transaction: &Transaction<'_>,
    id: &str,
    payment: &PaymentHash,
) -> Result<bool, JournalError> {
    let query = format!("UPDATE approvals AS a SET used_by = ?1 WHERE a.id = ?2 AND {}", *IS_FREE);
    Ok(transaction.execute(&query, params![payment.as_bytes(), id])? == 1)
}

fn read_given(row: &Row<'_>) -> rusqlite::Result<Given> {
    // What was asked is, in an answer, what was agreed to.
    let PendingApproval { id, origin, method, path, label, fee_worst: fee_max, .. } = read(row)?;
    let (price_max, until) = (Msat::new(row.get("price_max_msat")?), row.get("until")?);
    let until = Timestamp::from_secs(until);
    let consent = Consent { id, origin, method, path, label, price_max, fee_max, until };
    Ok(Given { consent, signature: row.get("signature")? })
}

fn read(row: &Row<'_>) -> rusqlite::Result<PendingApproval> {
    Ok(PendingApproval {
        id: row.get("id")?,
        origin: row.get("origin")?,
        service: row.get("service")?,
        method: row.get("method")?,
        path: row.get("path")?,
        label: row.get("label")?,
        price: Msat::new(row.get("price_msat")?),
        fee_worst: Msat::new(row.get("fee_worst_msat")?),
        payee: row.get("payee")?,
        rule: row.get("rule")?,
        asked_at: Timestamp::from_secs(row.get("asked_at")?),
    })
}
