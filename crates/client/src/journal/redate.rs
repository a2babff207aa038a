//! A clock that was far ahead once, and a person who says that it is right now.
//!
//! What was paid by such a clock is dated after the present, and so in every window until then. Redated, it counts as paid at the
//! present: it leaves each window when that has passed once more, so that saying so frees nothing at that moment. Dates are
//! not overwritten; what a person has said stands beside them.
//!
//! The person may be wrong, or misled: the clock has been set back, and the dates were right. So once the forgiven moment has come,
//! all that was dated from the redating up to it counts as paid at that moment ([`COUNTS_AGAIN`]). Consents that weren't used are
//! forgotten, since by an earlier clock some would be good again that have lapsed; so are those whose payments came to nothing.

use farebox_protocol::{Msat, Timestamp};
use rusqlite::{Connection, OptionalExtension as _, params};

use super::{JournalError, WRITTEN_OFF, budget, integer};

/// The step of the schema that brings this.
pub(super) const TABLES: &str = "
-- Payments that were dated after the present when a person said that the clock was wrong then: as they stood, and since when they
-- count instead. One that has changed since counts by its own dates again.
CREATE TABLE redated (
    payment_hash BLOB PRIMARY KEY,
    was          INTEGER NOT NULL,
    state        TEXT NOT NULL,
    at           INTEGER NOT NULL
) STRICT;

-- When a person has said so, and the latest moment that the journal knew by then.
CREATE TABLE redatings (
    at       INTEGER NOT NULL,
    forgiven INTEGER NOT NULL
) STRICT;
";

/// What has come of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Redating {
    /// These count as paid now.
    Done {
        /// How many there are.
        payments: u64,
        /// What they came to, fees included.
        spent: Msat,
        /// The latest moment that the journal knew.
        forgiven: Timestamp,
    },
    /// So many payments from then are open. Their outcome comes first.
    Open(u64),
    /// The journal isn't ahead of the clock.
    NotAhead,
}

/// The later of a payment's dates, and what was said of it.
pub(super) const DATED: &str = "max(coalesce(p.begun_at, 0), o.updated_at)";
pub(super) const REDATED: &str =
    "LEFT JOIN redated r ON r.payment_hash = o.payment_hash AND r.was = max(coalesce(p.begun_at, 0), o.updated_at)
     AND r.state = o.state";
/// Whether a payment counts in a window that began at `?1` although its date is before that; the present is `?4`. One that was
/// redated more than once may be dated after the forgiven moment: it counted as paid before that by then.
pub(super) const COUNTS_AGAIN: &str =
    "EXISTS (SELECT 1 FROM redatings t WHERE t.forgiven > ?1 AND t.forgiven <= ?4
             AND max(p.begun_at, o.updated_at) >= t.at
             AND (r.at IS NOT NULL OR max(p.begun_at, o.updated_at) <= t.forgiven))";
/// The payments whose consents stand for them for good.
const USED_UP: &str = "SELECT payment_hash FROM outgoing_payments WHERE state = 'settled' OR reason IS ?1";

/// Takes `now` for the present, and what is dated after it for paid now.
pub(super) fn redate(connection: &mut Connection, now: Timestamp) -> Result<Redating, JournalError> {
    let journal = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let Some(forgiven) = budget::ahead(&journal, now)? else { return Ok(Redating::NotAhead) };
    let from =
        format!("FROM outgoing_payments o LEFT JOIN purchases p USING (payment_hash) WHERE {DATED} > ?1");
    let open = format!("SELECT count(*) {from} AND o.state IN ('sent', 'unknown')");
    let open: u64 = journal.query_row(&open, [integer(now.secs())], |row| row.get(0))?;
    if open > 0 {
        return Ok(Redating::Open(open));
    }
    let mut spent = Msat::ZERO;
    let mut payments = 0;
    {
        let paid = format!("SELECT o.amount_msat, coalesce(o.fee_msat, 0) {from} AND o.state = 'settled'");
        let mut paid = journal.prepare(&paid)?;
        let mut rows = paid.query([integer(now.secs())])?;
        while let Some(row) = rows.next()? {
            payments += 1;
            let (amount, fee): (u64, u64) = (row.get(0)?, row.get(1)?);
            spent = spent.saturating_add(Msat::new(amount)).saturating_add(Msat::new(fee));
        }
    }
    let insert = format!("INSERT OR REPLACE INTO redated SELECT o.payment_hash, {DATED}, o.state, ?1 {from}");
    journal.execute(&insert, [integer(now.secs())])?;
    journal.execute(
        "INSERT INTO redatings (at, forgiven) VALUES (?1, ?2)",
        params![integer(now.secs()), integer(forgiven.secs())],
    )?;
    // From now on nothing is earlier than this, as before nothing was than the forgiven moment.
    journal.execute("INSERT OR REPLACE INTO clock (id, latest) VALUES (1, ?1)", [integer(now.secs())])?;
    // One whose payment has failed is as good as unused.
    let forget = format!("DELETE FROM approvals WHERE used_by IS NULL OR used_by NOT IN ({USED_UP})");
    journal.execute(&forget, [WRITTEN_OFF])?;
    journal.commit()?;
    Ok(Redating::Done { payments, spent, forgiven })
}

/// The latest moment that the journal knows, but for those that were forgiven; `None` where none were.
pub(super) fn latest(connection: &Connection) -> Result<Option<i64>, JournalError> {
    let forgiven = "SELECT max(forgiven) FROM redatings";
    let forgiven: Option<i64> = connection.prepare_cached(forgiven)?.query_row([], |row| row.get(0))?;
    let Some(forgiven) = forgiven else { return Ok(None) };
    let query = format!(
        "SELECT max(coalesce((SELECT max({DATED}) FROM outgoing_payments o LEFT JOIN purchases p USING (payment_hash)
                              {REDATED} WHERE r.at IS NULL), 0),
                    coalesce((SELECT at FROM receipts WHERE at > ?1 ORDER BY number DESC LIMIT 1), 0),
                    coalesce((SELECT latest FROM clock), 0))"
    );
    Ok(connection.prepare_cached(&query)?.query_row([forgiven], |row| row.get(0)).optional()?)
}
