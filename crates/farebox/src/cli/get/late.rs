//! What to say when the time is up: a payment may be under way, and whoever is told nothing of it would pay again.
//!
//! The fetch is given up, the payment isn't: it belongs to the engine, which is given a few seconds to learn how it ends.

use farebox_client::{Engine, PurchaseRow};

use super::{CLOSE, failure::Failure};

/// What the journal holds before the fetch.
pub(super) async fn payments(engine: &Engine) -> Result<Vec<PurchaseRow>, Failure> {
    Ok(engine.purchases().await?)
}

/// How things stand after it. A payment of another program on the same journal that began meanwhile counts as well: rather
/// once too often than not at all.
pub(super) async fn told(engine: &Engine, before: &[PurchaseRow]) -> Result<Failure, Failure> {
    engine.close(CLOSE).await;
    let after = engine.purchases().await?;
    let was_ended =
        |row: &PurchaseRow| before.iter().any(|old| old.payment_hash == row.payment_hash && !is_open(old));
    let of_this_call: Vec<&PurchaseRow> = after.iter().filter(|row| !was_ended(row)).collect();
    let is_new = |row: &PurchaseRow| before.iter().all(|old| old.payment_hash != row.payment_hash);
    if let Some(row) = of_this_call.iter().find(|row| is_open(row)) {
        return Ok(Failure::late_and_unknown(row));
    }
    let is_paid = |row: &PurchaseRow| matches!(row.state, "paid" | "honoured" | "used_up" | "dead");
    let paid = of_this_call.iter().find(|row| is_new(row) && is_paid(row));
    Ok(Failure::late(paid.copied()))
}

/// Nobody knows how it ends.
fn is_open(row: &PurchaseRow) -> bool {
    matches!(row.state, "sent" | "unknown")
}
