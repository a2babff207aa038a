//! Purchases as rows: how one is selected, with its payment or its import beside it, and how it is read.

use farebox_protocol::{Invoice, Msat, PaymentHash, Scheme, Timestamp};
use rusqlite::Row;

use super::JournalError;
use crate::policy::Judgement;
use crate::purchase::Order;
use crate::{Origin, Scope};

/// Selects purchases of this journal; what they are called here stands in the conditions behind it.
pub(super) const PURCHASE: &str = "SELECT p.payment_hash, p.origin, p.service, p.scheme, p.token, p.fee_worst_msat, p.valid_until, \
     p.bound, p.method, p.path, p.holder, p.begun_at, p.honoured_at, p.dead_at, p.ended, \
     o.invoice, coalesce(o.amount_msat, i.amount_msat, 0) AS amount_msat, o.fee_max_msat, \
     coalesce(o.state, i.state) AS state, coalesce(o.preimage, i.preimage) AS preimage, \
     coalesce(o.fee_msat, i.fee_msat) AS fee_msat, o.wallet, i.source, i.was_pending \
     FROM purchases p LEFT JOIN outgoing_payments o USING (payment_hash) LEFT JOIN imports i USING (payment_hash)";

/// Selects what other servers had offered the same invoices for, latest first: the same columns, and nothing ever settled.
pub(super) const SUPERSEDED: &str = "SELECT payment_hash, origin, service, method, path, begun_at, amount_msat, state, \
     NULL AS fee_msat, NULL AS valid_until, NULL AS honoured_at, NULL AS dead_at, NULL AS source \
     FROM superseded ORDER BY rowid DESC";

/// One purchase, as the journal has it. Holds no secret.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PurchaseRow {
    /// The key.
    pub payment_hash: PaymentHash,
    /// Who sold.
    pub origin: Origin,
    /// The service, where the token names one.
    pub service: String,
    /// The method of the request that bought it.
    pub method: String,
    /// Its path, without the query.
    pub path: String,
    /// The price; zero where it is not known, which only happens with what another program has bought.
    pub price: Msat,
    /// What the route cost, once that is known.
    pub fee: Option<Msat>,
    /// `recorded`, `sent`, `unknown`, `failed`, `unsent`, `paid` (and not honoured yet), `imported` (and not shown yet),
    /// `honoured`; or of a credential that is over: `used_up` (its seller says so), or `dead` for any other reason.
    pub state: &'static str,
    /// When it began.
    pub begun_at: Timestamp,
    /// When the credential ends, if it says so.
    pub valid_until: Option<Timestamp>,
    /// The program that has bought it, if it wasn't this one.
    pub source: Option<String>,
}

pub(super) fn read_scope(row: &Row<'_>) -> Result<Scope, JournalError> {
    let hash = read_hash(row)?;
    let origin: String = row.get("origin")?;
    let origin = origin.parse().map_err(|_| JournalError::Corrupt { hash, what: "its origin is none" })?;
    Ok(Scope { origin, service: row.get("service")? })
}

pub(super) fn read_hash(row: &Row<'_>) -> Result<PaymentHash, rusqlite::Error> {
    row.get("payment_hash").map(PaymentHash::from_bytes)
}

pub(super) fn read_scheme(row: &Row<'_>) -> Result<Scheme, JournalError> {
    let hash = read_hash(row)?;
    Scheme::of(&row.get::<_, String>("scheme")?)
        .ok_or(JournalError::Corrupt { hash, what: "its scheme is unknown" })
}

pub(super) fn read_order(row: &Row<'_>) -> Result<Order, JournalError> {
    let hash = read_hash(row)?;
    let invoice = Invoice::parse(&row.get::<_, String>("invoice")?)
        .map_err(|_| JournalError::Corrupt { hash, what: "its invoice can't be read" })?;
    Ok(Order {
        scope: read_scope(row)?,
        scheme: read_scheme(row)?,
        token: row.get("token")?,
        invoice,
        price: Msat::new(row.get("amount_msat")?),
        fee_max: Msat::new(row.get("fee_max_msat")?),
        fee_worst: Msat::new(row.get("fee_worst_msat")?),
        valid_until: row.get::<_, Option<u64>>("valid_until")?.map(Timestamp::from_secs),
        bound: row.get("bound")?,
        // It was judged when it was recorded, and counts against its budgets since.
        judgement: Judgement::free(),
    })
}

pub(super) fn read_row(row: &Row<'_>) -> Result<PurchaseRow, JournalError> {
    let Scope { origin, service } = read_scope(row)?;
    let honoured: Option<u64> = row.get("honoured_at")?;
    let dead: Option<u64> = row.get("dead_at")?;
    let state = match row.get::<_, String>("state")?.as_str() {
        "settled" if dead.is_some() => match row.get::<_, Option<String>>("ended")?.as_deref() {
            Some("used_up") => "used_up",
            _ => "dead",
        },
        "settled" if honoured.is_some() => "honoured",
        "settled" if row.get::<_, Option<bool>>("was_pending")? == Some(false) => "imported",
        "settled" => "paid",
        "recorded" => "recorded",
        "sent" => "sent",
        "failed" => "failed",
        "unsent" => "unsent",
        _ => "unknown",
    };
    Ok(PurchaseRow {
        payment_hash: read_hash(row)?,
        origin,
        service,
        method: row.get("method")?,
        path: row.get("path")?,
        price: Msat::new(row.get("amount_msat")?),
        fee: row.get::<_, Option<u64>>("fee_msat")?.map(Msat::new),
        state,
        begun_at: Timestamp::from_secs(row.get("begun_at")?),
        valid_until: row.get::<_, Option<u64>>("valid_until")?.map(Timestamp::from_secs),
        source: row.get("source")?,
    })
}
