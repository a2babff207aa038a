//! Whether the caps still have room, asked in the transaction that records a payment: of any number of tasks and processes
//! none can spend what another has been promised.
//!
//! There is no table of reservations that could disagree with the payments: a payment *is* its reservation. From the moment it
//! is recorded, for the first time or again after it has failed, it counts with its price and the most that its fee can come
//! to, for as long as the lease it was recorded under lets it be sent; settled, with its price and its fee; failed or never
//! sent, with nothing. One whose outcome nobody knows keeps its place. A payment leaves a window when it was settled longer
//! ago than that. It is dated no earlier than all before it ([`latest`]), and what is dated after the present is in every
//! window: so a clock that is set back frees nothing, neither then nor when it is put right. Only a person can say that a clock
//! was ahead ([`redate`]), and that frees nothing at once.

use farebox_lightning::WalletId;
use farebox_protocol::{Msat, PaymentHash, Timestamp};
use rusqlite::{Connection, Transaction, params};

use super::{
    JournalError, integer,
    redate::{self, COUNTS_AGAIN, REDATED},
};
use crate::holder::Holder;
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

/// A payment whose fee exceeded the most that its wallet had promised. The money is gone, and is on the books; the wallet pays
/// nothing more until a person knows of it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Overrun {
    /// The payment.
    pub payment: PaymentHash,
    /// The wallet that made it.
    pub wallet: String,
    /// What the route cost.
    pub fee: Msat,
    /// The most that it was to cost.
    pub promised: Msat,
}

/// What this wallet has taken beyond its word, as a refusal to let it pay anything else.
pub(super) fn overrun(connection: &Connection, wallet: &WalletId) -> Result<Option<Refusal>, JournalError> {
    let first = overruns(connection, Some(wallet))?.into_iter().next();
    Ok(first.map(|Overrun { payment, fee, promised, .. }| Refusal::Overrun { payment, fee, promised }))
}

/// Overruns that nobody has acknowledged, oldest first: of one wallet, or of all.
pub(super) fn overruns(
    connection: &Connection,
    wallet: Option<&WalletId>,
) -> Result<Vec<Overrun>, JournalError> {
    let query = "SELECT p.payment_hash, o.wallet, o.fee_msat, p.fee_worst_msat
                 FROM purchases p JOIN outgoing_payments o USING (payment_hash)
                 WHERE o.state = 'settled' AND o.fee_msat > p.fee_worst_msat AND p.overrun_seen_at IS NULL
                 AND (?1 IS NULL OR o.wallet = ?1) ORDER BY p.id";
    let mut statement = connection.prepare_cached(query)?;
    let rows = statement.query_map([wallet.map(|wallet| &wallet.0)], |row| {
        Ok(Overrun {
            payment: PaymentHash::from_bytes(row.get(0)?),
            wallet: row.get(1)?,
            fee: Msat::new(row.get(2)?),
            promised: Msat::new(row.get(3)?),
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Takes note that a person knows of an overrun. `false`: there is none that waits for this.
pub(super) fn acknowledge(
    connection: &Connection,
    payment: &PaymentHash,
    now: Timestamp,
) -> Result<bool, JournalError> {
    let changed = connection.execute(
        "UPDATE purchases SET overrun_seen_at = ?2 WHERE payment_hash = ?1 AND overrun_seen_at IS NULL
         AND EXISTS (SELECT 1 FROM outgoing_payments o WHERE o.payment_hash = purchases.payment_hash
                     AND o.state = 'settled' AND o.fee_msat > purchases.fee_worst_msat)",
        params![payment.as_bytes(), integer(now.secs())],
    )?;
    Ok(changed == 1)
}

/// The first budget that `order` doesn't fit into, as a refusal that names it. What the same payment takes already is not
/// counted twice.
pub(super) fn refusal(
    connection: &Connection,
    order: &Order,
    now: Timestamp,
) -> Result<Option<Refusal>, JournalError> {
    let needed = order.price.saturating_add(order.fee_worst);
    for budget in &order.judgement.budgets {
        let Taken { spent, reserved } = taken(connection, budget, Some(order.payment_hash()), now)?;
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

/// Writes down against which rules a payment counts, besides those it counts against already.
pub(super) fn charge(transaction: &Transaction<'_>, order: &Order) -> Result<(), JournalError> {
    let hash = order.payment_hash();
    let mut insert =
        transaction.prepare_cached("INSERT OR IGNORE INTO charges (rule, payment_hash) VALUES (?1, ?2)")?;
    for rule in order.judgement.budgets.iter().filter_map(|budget| budget.rule.as_ref()) {
        insert.execute(params![rule, hash.as_bytes()])?;
    }
    Ok(())
}

/// Takes the leases from holders that are certain to be gone: what they have recorded and not sent is free again.
pub(super) fn release_gone(transaction: &Transaction<'_>) -> Result<(), JournalError> {
    let mut holders = transaction.prepare("SELECT DISTINCT holder FROM leases WHERE holder IS NOT NULL")?;
    let holders: Vec<String> = holders.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    for holder in holders.into_iter().filter(|holder| Holder::read(holder.clone()).is_gone()) {
        transaction.execute("UPDATE leases SET holder = NULL WHERE holder = ?1", [holder])?;
    }
    Ok(())
}

/// Where an amount is cut in two to be added up.
const HALF: u64 = 1_000_000_000;

/// What is taken of a budget at `now`, by all payments but this one.
pub(crate) fn taken(
    connection: &Connection,
    budget: &Budget,
    but: Option<PaymentHash>,
    now: Timestamp,
) -> Result<Taken, JournalError> {
    // What is open counts whenever it began: it may still be paid.
    let since = budget.window.secs().map_or(-1, |secs| integer(now.secs().saturating_sub(secs)));
    let of_rule = match &budget.rule {
        Some(_) => "JOIN charges c ON c.payment_hash = p.payment_hash AND c.rule = ?2 WHERE true",
        None => "WHERE ?2 IS NULL",
    };
    // A purchase that was begun and settled at different times is in the window by the later of the two. What has not been
    // sent counts under the same condition under which it may be (`may_send`).
    // Added up in halves: of a few absurd fees the sum would not fit into the integers of SQLite.
    const ALL: u64 = Msat::MAX.get();
    let spent =
        format!("CASE WHEN o.state = 'settled' THEN min(o.amount_msat + o.fee_msat, {ALL}) ELSE 0 END");
    let reserved =
        format!("CASE WHEN o.state = 'settled' THEN 0 ELSE min(o.amount_msat + p.fee_worst_msat, {ALL}) END");
    let halves =
        |msat: &str| format!("coalesce(sum(({msat}) / {HALF}), 0), coalesce(sum(({msat}) % {HALF}), 0)");
    let query = format!(
        "SELECT {}, {}
         FROM purchases p JOIN outgoing_payments o USING (payment_hash) {REDATED} {of_rule}
         AND p.payment_hash IS NOT ?3
         AND (o.state IN ('sent', 'unknown')
              OR (o.state = 'settled' AND ((max(p.begun_at, o.updated_at) > ?1
                                            AND (r.at IS NULL OR max(p.begun_at, o.updated_at) <= ?4))
                                           OR r.at > ?1 OR {COUNTS_AGAIN}))
              OR ((o.state = 'recorded' OR (o.state IN ('failed', 'unsent') AND p.again = o.attempt))
                  AND EXISTS (SELECT 1 FROM leases l WHERE l.origin = p.origin AND l.service = p.service
                              AND l.generation = p.generation AND l.holder = p.holder)))",
        halves(&spent),
        halves(&reserved),
    );
    let amount = |high: i64, low: i64| {
        let part = |half: i64| u64::try_from(half).unwrap_or(0);
        Msat::new(part(high).saturating_mul(HALF).saturating_add(part(low)))
    };
    let but = but.as_ref().map(PaymentHash::as_bytes);
    let taken = connection.prepare_cached(&query)?.query_row(
        params![since, budget.rule, but, integer(now.secs())],
        |row| {
            Ok(Taken { spent: amount(row.get(0)?, row.get(1)?), reserved: amount(row.get(2)?, row.get(3)?) })
        },
    )?;
    Ok(taken)
}

/// `now`, or the latest moment that the journal knows where the clock has been set back: the date of a new payment.
pub(super) fn latest(connection: &Connection, now: Timestamp) -> Result<Timestamp, JournalError> {
    let mut known = redate::latest(connection)?;
    if known.is_none() {
        known = connection
            .prepare_cached(
                "SELECT max(coalesce((SELECT max(begun_at) FROM purchases), 0),
                            coalesce((SELECT max(updated_at) FROM outgoing_payments), 0),
                            coalesce((SELECT at FROM receipts ORDER BY number DESC LIMIT 1), 0),
                            coalesce((SELECT latest FROM clock), 0))",
            )?
            .query_row([], |row| row.get(0))?;
    }
    Ok(now.max(Timestamp::from_secs(known.and_then(|secs| u64::try_from(secs).ok()).unwrap_or(0))))
}

/// How far the journal may be ahead of the clock before anybody is told: clocks are set right by minutes all the time.
const AHEAD_SECS: u64 = 3_600;

/// The latest moment that the journal knows, where that is well after `now`: the clock was wrong then, or is wrong now.
pub(super) fn ahead(connection: &Connection, now: Timestamp) -> Result<Option<Timestamp>, JournalError> {
    let latest = latest(connection, now)?;
    Ok((latest.secs().saturating_sub(now.secs()) > AHEAD_SECS).then_some(latest))
}

/// Keeps this moment: from now on nothing is earlier.
pub(super) fn pass(connection: &Connection, now: Timestamp) -> Result<(), JournalError> {
    connection
        .prepare_cached(
            "INSERT INTO clock (id, latest) VALUES (1, ?1) ON CONFLICT (id) DO UPDATE SET latest = max(latest, excluded.latest)",
        )?
        .execute([integer(now.secs())])?;
    Ok(())
}

/// Whether anything was ever paid to this origin.
pub(super) fn is_known(connection: &Connection, origin: &crate::Origin) -> Result<bool, JournalError> {
    let query = "SELECT EXISTS (SELECT 1 FROM purchases p JOIN outgoing_payments o USING (payment_hash)
                 WHERE p.origin = ?1 AND o.state = 'settled')";
    Ok(connection.prepare_cached(query)?.query_row([origin.to_string()], |row| row.get(0))?)
}
