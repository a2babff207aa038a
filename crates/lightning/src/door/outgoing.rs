//! Paying through the door, and what became of a payment.

use std::sync::Arc;

use axum::{
    Extension, Form, Json,
    extract::{Path, State, rejection::FormRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use farebox_protocol::{Invoice, Msat, PaymentHash, Preimage};
use serde::Deserialize;

use super::{Door, auth::Access, in_full, incoming::millis, refuse, unreadable};
use crate::{
    Outcome, PayRequest,
    outgoing::{Ended, Intent, OutgoingError, State as Progress},
    phoenixd::{
        FEE, Secret,
        wire::{Balance, OutgoingPayment, PaymentAnswer},
    },
};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PayForm {
    invoice: String,
    amount_sat: Option<u64>,
    /// Ours: the most that the route may cost.
    max_fee_msat: Option<u64>,
}

/// `POST /payinvoice`
pub(super) async fn pay(
    State(door): State<Arc<Door>>,
    Extension(access): Extension<Access>,
    form: Result<Form<PayForm>, FormRejection>,
) -> Response {
    if access != Access::Full {
        return refuse(
            StatusCode::FORBIDDEN,
            "this password creates invoices and reads; paying takes the full one",
        );
    }
    let form = match form {
        Ok(Form(form)) => form,
        Err(rejection) => return unreadable(rejection.status(), rejection.body_text()),
    };
    let bad = |text: String| refuse(StatusCode::BAD_REQUEST, text);
    let invoice: Invoice = match form.invoice.trim().parse() {
        Ok(invoice) => invoice,
        Err(error) => return bad(format!("the invoice can't be read: {error}")),
    };
    let Some(amount) = invoice.amount() else {
        return bad("the invoice names no amount: farebox pays invoices of a fixed amount only".to_owned());
    };
    if form.amount_sat.is_some_and(|sat| Msat::from_sat(sat) != Some(amount)) {
        return bad(format!("amountSat is not the invoice's amount, {amount}; leave it out"));
    }
    let hash = invoice.payment_hash();
    match door.outgoing.find(hash).await {
        Ok(Some(Intent { state: Progress::Settled { .. }, .. })) => {
            return not_paid(
                hash,
                "this invoice has already been paid; /payments/outgoingbyhash has the proof",
            );
        }
        Ok(_) => {}
        Err(error) => return not_paid(hash, &format!("nothing was paid: {}", in_full(&error))),
    }
    // Without a limit of the caller's, what phoenixd would charge at most.
    let fee_max = form.max_fee_msat.map_or_else(|| FEE.fee_max(amount, Msat::ZERO), Msat::new);
    let request = PayRequest { invoice, fee_max, timeout: door.config.pay_timeout };
    match door.outgoing.pay(request).await {
        Ok(Ended::Settled(paid)) => settled(hash, amount, paid.fee, &paid.preimage),
        Ok(Ended::NotPaid(failure)) => not_paid(hash, &failure.reason),
        // phoenixd has no word for it. Not "failed": whoever reads that may pay anew.
        Ok(Ended::Unknown { reason }) => refuse(
            StatusCode::GATEWAY_TIMEOUT,
            format!(
                "the outcome is not known yet; do not pay again, ask /payments/outgoingbyhash/{hash} ({reason})"
            ),
        ),
        Err(error @ OutgoingError::AmountMissing) => bad(error.to_string()),
        Err(error) => not_paid(hash, &format!("nothing was paid: {}", in_full(&error))),
    }
}

/// `GET /payments/outgoingbyhash/{hash}`
///
/// The limited password isn't shown the proof: with the token it belongs to, it is what has been bought.
pub(super) async fn lookup(
    State(door): State<Arc<Door>>,
    Extension(access): Extension<Access>,
    Path(hash): Path<String>,
) -> Response {
    let shown = |row: OutgoingPayment| {
        let preimage = row.preimage.filter(|_| access == Access::Full);
        Json(OutgoingPayment { preimage, ..row }).into_response()
    };
    let Ok(hash) = hash.parse::<PaymentHash>() else {
        return refuse(StatusCode::BAD_REQUEST, "the payment hash is not 64 hexadecimal digits");
    };
    match door.outgoing.find(hash).await {
        // What is only recorded has not been sent, and if its process has died it never will be: not "under way".
        Ok(Some(row)) if !matches!(row.state, Progress::Recorded) => return shown(from_row(&row)),
        Ok(_) => {}
        Err(error) => return refuse(StatusCode::SERVICE_UNAVAILABLE, in_full(&error)),
    }
    // Paid past the door, or before its journal began.
    let row = match door.outgoing.wallet().lookup(hash).await {
        Ok(Outcome::Settled { preimage, fee }) => OutgoingPayment {
            is_paid: true,
            preimage: Some(Secret::new(preimage.expose_hex().as_str())),
            fees: fee.get(),
            completed_at: Some(millis(door.clock.now())),
            ..pending(hash)
        },
        Ok(Outcome::Failed(_)) => {
            OutgoingPayment { completed_at: Some(millis(door.clock.now())), ..pending(hash) }
        }
        Ok(Outcome::InFlight) => pending(hash),
        Ok(Outcome::NotFound) => return refuse(StatusCode::NOT_FOUND, "Not found"),
        Err(error) => return refuse(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
    };
    shown(row)
}

/// `GET /getbalance`
pub(super) async fn balance(State(door): State<Arc<Door>>) -> Response {
    match door.outgoing.wallet().balance().await {
        Ok(balance) => Json(Balance { balance_sat: balance.sat_floor(), fee_credit_sat: 0 }).into_response(),
        Err(error) => refuse(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
    }
}

fn settled(hash: PaymentHash, amount: Msat, fee: Msat, preimage: &Preimage) -> Response {
    Json(PaymentAnswer {
        kind: "payment_sent".to_owned(),
        recipient_amount_sat: Some(amount.sat_floor()),
        routing_fee_sat: Some(fee.sat_floor()),
        routing_fee_msat: Some(fee.get()),
        payment_id: Some(payment_id(&hash)),
        payment_hash: Some(hash.to_string()),
        payment_preimage: Some(Secret::new(preimage.expose_hex().as_str())),
        reason: None,
    })
    .into_response()
}

fn not_paid(hash: PaymentHash, reason: &str) -> Response {
    Json(PaymentAnswer {
        kind: "payment_failed".to_owned(),
        payment_hash: Some(hash.to_string()),
        reason: Some(reason.to_owned()),
        ..PaymentAnswer::default()
    })
    .into_response()
}

fn from_row(row: &Intent) -> OutgoingPayment {
    let open = OutgoingPayment {
        invoice: Some(row.invoice.clone()),
        sent: row.amount.sat_floor(),
        created_at: Some(millis(row.created)),
        ..pending(row.hash)
    };
    match &row.state {
        Progress::Settled { preimage, fee } => OutgoingPayment {
            is_paid: true,
            preimage: Some(Secret::new(preimage.expose_hex().as_str())),
            sent: row.amount.saturating_add(*fee).sat_floor(),
            fees: fee.get(),
            completed_at: Some(millis(row.updated)),
            ..open
        },
        Progress::Failed(_) => OutgoingPayment { completed_at: Some(millis(row.updated)), ..open },
        Progress::Recorded | Progress::Sent | Progress::Unknown { .. } => open,
    }
}

fn pending(hash: PaymentHash) -> OutgoingPayment {
    OutgoingPayment {
        kind: "outgoing_payment".to_owned(),
        sub_type: "lightning".to_owned(),
        payment_id: payment_id(&hash),
        payment_hash: Some(hash.to_string()),
        preimage: None,
        is_paid: false,
        sent: 0,
        fees: 0,
        invoice: None,
        completed_at: None,
        created_at: None,
    }
}

/// phoenixd names payments by UUID. Ours is made of the hash (version 8, RFC 9562), so it needs no memory.
fn payment_id(hash: &PaymentHash) -> String {
    let hex = hash.to_string();
    format!("{}-{}-8{}-8{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..32])
}
