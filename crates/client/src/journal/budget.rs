//! Whether the caps still have room, asked in the transaction that records a payment: of any number of tasks and processes
//! none can spend what another has been promised.
//!
//! There is no table of reservations that could disagree with the payments: a payment *is* its reservation. From the moment it
//! is recorded it counts with its price and the most that its fee can come to; settled, with its price and its fee; failed or
//! never sent, with nothing. One whose outcome nobody knows keeps its place. A payment leaves a window when it was settled
//! longer ago than that; time is taken from the journal where the clock has been set back, so that this frees nothing.

use farebox_protocol::{Msat, Timestamp};
use rusqlite::{Connection, Transaction, params};

use super::{JournalError, integer};
use crate::policy::Budget;
use crate::purchase::{Order, Refusal};

/// How much of a budget is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    /// By what has been paid.
    pub(crate) spent: Msat,
    /// By what is under way or of unknown outcome, worst-case fees included.
    pub(crate) reserved: Msat,
}

/// The first budget that `order` doesn't fit into, as a refusal that names it.
pub(super) fn refusal(
    connection: &Connection,
    order: &Order,
    now: Timestamp,
) -> Result<Option<Refusal>, JournalError> {
    if order.judgement.budgets.is_empty() {
        return Ok(None);
    }
    let now = latest(connection, now)?;
    let needed = order.price.saturating_add(order.fee_worst);
    for budget in &order.judgement.budgets {
        let Taken { spent, reserved } = taken(connection, budget, now)?;
        let used = spent.saturating_add(reserved);
        if used.saturating_add(needed) > budget.most {
            return Ok(Some(Refusal::OverBudget {
                budget: budget.clone(),
                spent,
                reserved,
                price: order.price,
                fee_worst: order.fee_worst,
            }));
        }
    }
    Ok(None)
}

/// Writes down against which rules a payment counts.
pub(super) fn charge(transaction: &Transaction<'_>, order: &Order) -> Result<(), JournalError> {
    let hash = order.payment_hash();
    transaction.execute("DELETE FROM charges WHERE payment_hash = ?1", [hash.as_bytes()])?;
    let mut insert =
        transaction.prepare_cached("INSERT OR IGNORE INTO charges (rule, payment_hash) VALUES (?1, ?2)")?;
    for rule in order.judgement.budgets.iter().filter_map(|budget| budget.rule.as_ref()) {
        insert.execute(params![rule, hash.as_bytes()])?;
    }
    Ok(())
}

/// What is taken of a budget at `now`.
pub(crate) fn taken(connection: &Connection, budget: &Budget, now: Timestamp) -> Result<Taken, JournalError> {
    // What is open counts whenever it began: it may still be paid.
    let since = budget.window.secs().map_or(-1, |secs| integer(now.secs().saturating_sub(secs)));
    let of_rule = match &budget.rule {
        Some(_) => "JOIN charges c ON c.payment_hash = p.payment_hash AND c.rule = ?2",
        None => "WHERE ?2 IS NULL",
    };
    let and = if budget.rule.is_some() { "WHERE" } else { "AND" };
    // A purchase that was begun and settled at different times is in the window by the later of the two.
    let query = format!(
        "SELECT coalesce(sum(CASE WHEN o.state = 'settled' THEN o.amount_msat + o.fee_msat ELSE 0 END), 0),
                coalesce(sum(CASE WHEN o.state = 'settled' THEN 0 ELSE o.amount_msat + p.fee_worst_msat END), 0)
         FROM purchases p JOIN outgoing_payments o USING (payment_hash) {of_rule}
         {and} (o.state IN ('recorded', 'sent', 'unknown')
              OR (o.state = 'settled' AND max(p.begun_at, o.updated_at) > ?1))"
    );
    let amount = |msat: i64| Msat::new(u64::try_from(msat).unwrap_or(0));
    let taken = connection.prepare_cached(&query)?.query_row(params![since, budget.rule], |row| {
        Ok(Taken { spent: amount(row.get(0)?), reserved: amount(row.get(1)?) })
    })?;
    Ok(taken)
}

/// `now`, or the latest moment that the journal knows where the clock has been set back.
pub(crate) fn latest(connection: &Connection, now: Timestamp) -> Result<Timestamp, JournalError> {
    let known: Option<i64> = connection
        .prepare_cached(
            "SELECT max(coalesce((SELECT max(begun_at) FROM purchases), 0),
                        coalesce((SELECT max(updated_at) FROM outgoing_payments), 0))",
        )?
        .query_row([], |row| row.get(0))?;
    Ok(now.max(Timestamp::from_secs(known.and_then(|secs| u64::try_from(secs).ok()).unwrap_or(0))))
}

/// Whether anything was ever paid to this origin.
pub(super) fn is_known(connection: &Connection, origin: &crate::Origin) -> Result<bool, JournalError> {
    let query = "SELECT EXISTS (SELECT 1 FROM purchases p JOIN outgoing_payments o USING (payment_hash)
                 WHERE p.origin = ?1 AND o.state = 'settled')";
    Ok(connection.prepare_cached(query)?.query_row([origin.to_string()], |row| row.get(0))?)
}
