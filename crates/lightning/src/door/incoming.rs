//! Being paid: new invoices, what became of one, and the list of those that were paid.
//!
//! Nothing is kept of an unpaid invoice but the last thousand in memory, so that a client that has just made one can
//! read it back as phoenixd would show it. What was paid comes from the node.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use axum::{
    Form, Json,
    extract::{
        Path, Query, State,
        rejection::{FormRejection, QueryRejection},
    },
    http::StatusCode,
    response::{IntoResponse, Response},
};
use farebox_protocol::{Invoice, Msat, PaymentHash, Timestamp};
use futures_util::StreamExt as _;
use serde::Deserialize;
use tokio::time;

use super::{Door, refuse, unreadable};
use crate::{
    Ask, Cursor, Incoming, ReceiveError, Settlement,
    phoenixd::{
        DESCRIPTION_MAX,
        wire::{CreatedInvoice, IncomingPayment},
    },
};

/// How many of the newest invoices are remembered.
const MINTED_MAX: usize = 1_000;

/// How long the node may pause between two settlements before what it has told counts as all there are.
const IDLE: Duration = Duration::from_millis(100);

/// The largest page of the list, and how far into it a page may begin.
const PAGE_MAX: usize = 1_000;

/// An hour, as in phoenixd.
const EXPIRY: u64 = 3_600;

/// The longest expiry: a year.
const EXPIRY_MAX: u64 = 365 * 24 * 3_600;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Create {
    amount_sat: Option<u64>,
    description: Option<String>,
    description_hash: Option<String>,
    expiry_seconds: Option<u64>,
}

/// `POST /createinvoice`
pub(super) async fn create(
    State(door): State<Arc<Door>>,
    form: Result<Form<Create>, FormRejection>,
) -> Response {
    let form = match form {
        Ok(Form(form)) => form,
        Err(rejection) => return unreadable(rejection.status(), rejection.body_text()),
    };
    let bad = |text: &str| refuse(StatusCode::BAD_REQUEST, text);
    let Some(amount) = form.amount_sat.filter(|sat| *sat > 0).and_then(Msat::from_sat) else {
        return bad("amountSat is missing, zero or absurd: farebox makes invoices of a fixed amount only");
    };
    if form.description_hash.is_some() {
        return bad("descriptionHash is not supported: give a description");
    }
    let description = form.description.unwrap_or_default();
    if description.encode_utf16().count() > DESCRIPTION_MAX {
        return bad("Request parameter description is too long (max 128 characters)");
    }
    let expiry = form.expiry_seconds.unwrap_or(EXPIRY);
    if expiry == 0 || expiry > EXPIRY_MAX {
        return bad("expirySeconds must be above zero and at most a year");
    }
    let ask = Ask { amount, expiry: Duration::from_secs(expiry), description };
    let invoice = match door.receive.invoice(ask).await {
        Ok(invoice) => invoice,
        Err(error) => return failed(&error),
    };
    let created = CreatedInvoice {
        amount_sat: invoice.amount().map(Msat::sat_floor),
        payment_hash: invoice.payment_hash().to_string(),
        serialized: invoice.as_str().to_owned(),
    };
    let mut minted = door.minted.lock();
    if minted.len() == MINTED_MAX {
        minted.pop_front();
    }
    minted.push_back(invoice);
    drop(minted);
    Json(created).into_response()
}

/// `GET /payments/incoming/{hash}`
pub(super) async fn lookup(State(door): State<Arc<Door>>, Path(hash): Path<String>) -> Response {
    let Ok(hash) = hash.parse::<PaymentHash>() else {
        return refuse(StatusCode::BAD_REQUEST, "the payment hash is not 64 hexadecimal digits");
    };
    match door.receive.lookup(hash).await {
        Ok(Incoming::Settled { amount, at }) => {
            let cursor = Cursor(0);
            Json(door.row(Settlement { cursor, hash, amount, at, description: None })).into_response()
        }
        Ok(Incoming::Unpaid) => match door.unpaid(&hash) {
            Some(row) => Json(row).into_response(),
            None => refuse(StatusCode::NOT_FOUND, "Not found"),
        },
        Err(error) => failed(&error),
    }
}

#[derive(Deserialize)]
#[serde(default)]
pub(super) struct List {
    /// Milliseconds since 1970, inclusive.
    from: u64,
    /// The same.
    to: u64,
    limit: usize,
    offset: usize,
    /// Ours: all after this cursor, oldest first. `from`, `to` and `offset` are not looked at.
    after: Option<u64>,
}

impl Default for List {
    fn default() -> Self {
        Self { from: 0, to: u64::MAX, limit: 20, offset: 0, after: None }
    }
}

/// `GET /payments/incoming`: those that were paid, newest first; with `after`, in the node's own order.
///
/// Paging by time reads the node's whole sequence each time, and is there for clients that know only phoenixd.
pub(super) async fn list(
    State(door): State<Arc<Door>>,
    query: Result<Query<List>, QueryRejection>,
) -> Response {
    let list = match query {
        Ok(Query(list)) => list,
        Err(rejection) => return unreadable(rejection.status(), rejection.body_text()),
    };
    if list.limit > PAGE_MAX || list.offset > PAGE_MAX {
        let text = format!("limit and offset are at most {PAGE_MAX}; page by `to`, or better by `after`");
        return refuse(StatusCode::BAD_REQUEST, text);
    }
    let after = Cursor(list.after.unwrap_or_default());
    let mut settlements = door.receive.settlements(after);
    let mut rows = VecDeque::new();
    // The stream waits for what is to come: a pause means that the past has been told.
    while let Ok(Some(settlement)) = time::timeout(IDLE, settlements.next()).await {
        let settlement = match settlement {
            Ok(settlement) => settlement,
            Err(error) => return failed(&error),
        };
        if list.after.is_some() {
            rows.push_back(settlement);
            if rows.len() >= list.limit {
                break;
            }
        } else if (list.from..=list.to).contains(&millis(settlement.at)) {
            if rows.len() == list.offset + list.limit {
                rows.pop_front();
            }
            rows.push_back(settlement);
        }
    }
    let rows: Vec<IncomingPayment> = if list.after.is_some() {
        rows.into_iter().map(|row| door.row(row)).collect()
    } else {
        rows.into_iter().rev().skip(list.offset).take(list.limit).map(|row| door.row(row)).collect()
    };
    Json(rows).into_response()
}

impl Door {
    fn invoice(&self, hash: &PaymentHash) -> Option<Invoice> {
        self.minted.lock().iter().rev().find(|invoice| invoice.payment_hash() == *hash).cloned()
    }

    fn unpaid(&self, hash: &PaymentHash) -> Option<IncomingPayment> {
        let invoice = self.invoice(hash)?;
        Some(IncomingPayment {
            is_paid: false,
            is_expired: invoice.is_expired(self.clock.now()),
            completed_at: None,
            received_sat: 0,
            received_msat: Some(0),
            cursor: None,
            ..self.row(Settlement {
                cursor: Cursor(0),
                hash: *hash,
                amount: Msat::ZERO,
                at: Timestamp::default(),
                description: None,
            })
        })
    }

    fn row(&self, settlement: Settlement) -> IncomingPayment {
        let invoice = self.invoice(&settlement.hash);
        let invoice = invoice.as_ref();
        IncomingPayment {
            kind: "incoming_payment".to_owned(),
            sub_type: "lightning".to_owned(),
            payment_hash: settlement.hash.to_string(),
            description: invoice.and_then(Invoice::description),
            invoice: invoice.map(|invoice| invoice.as_str().to_owned()),
            is_paid: true,
            is_expired: false,
            requested_sat: invoice.and_then(Invoice::amount).map(Msat::sat_floor),
            received_sat: settlement.amount.sat_floor(),
            fees: 0,
            expires_at: invoice.map(|invoice| millis(invoice.expires_at())),
            completed_at: Some(millis(settlement.at)),
            created_at: Some(millis(invoice.map_or(settlement.at, Invoice::created_at))),
            received_msat: Some(settlement.amount.get()),
            cursor: (settlement.cursor != Cursor(0)).then_some(settlement.cursor.0),
        }
    }
}

pub(super) fn millis(at: Timestamp) -> u64 {
    at.secs().saturating_mul(1_000)
}

fn failed(error: &ReceiveError) -> Response {
    let status = match error {
        ReceiveError::Invalid(_) => StatusCode::BAD_REQUEST,
        ReceiveError::Unavailable(_) | ReceiveError::TimedOut(_) => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    refuse(status, error.to_string())
}
