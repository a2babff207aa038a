//! How a buyer asks over HTTP: one path, three questions, JSON both ways. It reads and words; what is asked is answered
//! elsewhere.
//!
//! `POST` with `{"to": "<invoice or address>"}` asks for money, `GET` says how much there is, and `GET ?id=` what has become
//! of one refund. All of them want the credential. Answers say `no-store`, and a refusal names its code as those of the paywall
//! do.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use farebox_protocol::Msat;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use serde_json::{Map, Value, json};

use super::{Progress, RefundRefusal, Refundable, Refunds, Told, Wish};
use crate::{
    CODE_HEADER,
    store::accounts::{RefundId, RefundOf},
};

/// Where buyers ask.
pub const PATH: &str = "/.well-known/farebox/refund";

/// The longest request that is read.
pub const BODY_BYTES_MAX: usize = 8 * 1024;

/// The longest name that a buyer gives a request.
const KEY_BYTES_MAX: usize = 64;

impl Refunds {
    /// Answers a request to [`PATH`], whose body the front door has read, up to [`BODY_BYTES_MAX`].
    pub async fn answer(
        self: &Arc<Self>,
        method: &Method,
        query: Option<&str>,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Response<Bytes> {
        let answered = match (method, query.unwrap_or_default()) {
            (&Method::POST, _) => match wish(body) {
                Ok(wish) => self.ask(headers, wish).await.map(|told| {
                    let status = match told.state {
                        Progress::Open => StatusCode::ACCEPTED,
                        Progress::Paid { .. } | Progress::Failed => StatusCode::OK,
                    };
                    (status, refund(&told))
                }),
                Err(refusal) => Err(refusal),
            },
            (&Method::GET, "") => {
                self.refundable(headers).await.map(|what| (StatusCode::OK, refundable(&what)))
            }
            (&Method::GET, query) => match query.strip_prefix("id=").and_then(id) {
                Some(id) => self.progress(headers, id).await.map(|told| (StatusCode::OK, refund(&told))),
                None => {
                    Err(RefundRefusal::Malformed("the query is `id=` and the refund's 32 hexadecimal digits"))
                }
            },
            _ => {
                let mut response = respond(StatusCode::METHOD_NOT_ALLOWED, &json!({ "status": 405 }));
                response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, POST"));
                return response;
            }
        };
        match answered {
            Ok((status, body)) => respond(status, &body),
            Err(refusal) => refuse(&refusal),
        }
    }
}

/// What the body says. A key that means nothing is a mistake, and with money a mistake stops.
fn wish(body: &[u8]) -> Result<Wish, RefundRefusal> {
    const SHAPE: RefundRefusal = RefundRefusal::Malformed(
        "send JSON like `{\"to\": \"<invoice or address>\"}`, with `amount_msat`, `of` and `id` where they are needed",
    );
    let Ok(Value::Object(mut said)) = serde_json::from_slice::<Value>(body) else { return Err(SHAPE) };
    let mut text = |key: &str| match said.remove(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(SHAPE),
    };
    let (to, of, key) = (text("to")?.ok_or(SHAPE)?, text("of")?, text("id")?);
    let of = match of.as_deref() {
        None => None,
        Some("credit") => Some(RefundOf::Credit),
        Some("surplus") => Some(RefundOf::Surplus),
        Some(_) => return Err(RefundRefusal::Malformed("`of` is `credit` or `surplus`")),
    };
    if key.as_ref().is_some_and(|key| !(1..=KEY_BYTES_MAX).contains(&key.len())) {
        return Err(RefundRefusal::Malformed("`id` has 1 to 64 bytes"));
    }
    let amount = match said.remove("amount_msat") {
        None => None,
        Some(amount) => {
            Some(amount.as_u64().map(Msat::new).filter(|amount| *amount <= Msat::MAX).ok_or(SHAPE)?)
        }
    };
    if said.is_empty() { Ok(Wish { to, amount, of, key }) } else { Err(SHAPE) }
}

fn refund(told: &Told) -> Value {
    let mut said = Map::new();
    said.insert("id".into(), json!(hex::encode(told.id.0)));
    said.insert(
        "state".into(),
        json!(match told.state {
            Progress::Open => "open",
            Progress::Paid { .. } => "paid",
            Progress::Failed => "failed",
        }),
    );
    said.insert(
        "of".into(),
        json!(match told.of {
            RefundOf::Credit => "credit",
            RefundOf::Surplus => "surplus",
        }),
    );
    said.insert("amount_msat".into(), json!(told.amount.get()));
    said.insert("fee_max_msat".into(), json!(told.fee_max.get()));
    if let Progress::Paid { fee } = told.state {
        said.insert("fee_msat".into(), json!(fee.get()));
    }
    Value::Object(said)
}

fn refundable(what: &Refundable) -> Value {
    json!({
        "credit_msat": what.credit.get(),
        "surplus_msat": what.surplus.get(),
        "most_msat": what.most.get(),
        "fee_max_msat": what.fee_max.get(),
        "refunds": what.refunds.iter().map(refund).collect::<Vec<_>>(),
    })
}

fn refuse(refusal: &RefundRefusal) -> Response<Bytes> {
    let (status, code) = verdict(refusal);
    let mut body = problem(status, code, &refusal.to_string());
    if let RefundRefusal::TooMuch { most, fee_max } = refusal {
        body["most_msat"] = json!(most.get());
        body["fee_max_msat"] = json!(fee_max.get());
    }
    let mut response = respond_with_code(status, code, &body);
    let headers = response.headers_mut();
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("L402"));
    }
    let wait = match refusal {
        RefundRefusal::TooOften(wait) => Some(*wait),
        RefundRefusal::DayUsedUp => Some(Duration::from_secs(3_600)),
        RefundRefusal::Unsettled | RefundRefusal::UnderWay | RefundRefusal::Unavailable => {
            Some(Duration::from_secs(30))
        }
        _ => None,
    };
    if let Some(wait) = wait {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)));
    }
    response
}

const fn verdict(refusal: &RefundRefusal) -> (StatusCode, &'static str) {
    use RefundRefusal as R;
    match refusal {
        R::CredentialMissing => (StatusCode::UNAUTHORIZED, "refund_credential_missing"),
        R::CredentialWrong => (StatusCode::UNAUTHORIZED, "refund_credential_wrong"),
        R::TokenWithdrawn => (StatusCode::FORBIDDEN, "refund_token_withdrawn"),
        R::TokenNarrowed => (StatusCode::FORBIDDEN, "refund_token_narrowed"),
        R::Malformed(_) => (StatusCode::BAD_REQUEST, "refund_malformed"),
        R::UnderWay => (StatusCode::CONFLICT, "refund_under_way"),
        R::Unsettled => (StatusCode::CONFLICT, "refund_unsettled"),
        R::TooMuch { .. } => (StatusCode::UNPROCESSABLE_ENTITY, "refund_too_much"),
        R::TooLittle => (StatusCode::UNPROCESSABLE_ENTITY, "refund_too_little"),
        R::Invoice(_) => (StatusCode::UNPROCESSABLE_ENTITY, "refund_invoice_refused"),
        R::Address(_) => (StatusCode::UNPROCESSABLE_ENTITY, "refund_address_refused"),
        R::Unknown => (StatusCode::NOT_FOUND, "refund_unknown"),
        R::TooOften(_) => (StatusCode::TOO_MANY_REQUESTS, "refund_too_often"),
        R::DayUsedUp => (StatusCode::SERVICE_UNAVAILABLE, "refund_day_used_up"),
        R::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "refund_unavailable"),
    }
}

/// What to answer at [`PATH`] where the seller pays nothing back.
pub fn not_offered() -> Response<Bytes> {
    let (status, code) = (StatusCode::NOT_FOUND, "refunds_not_offered");
    respond_with_code(status, code, &problem(status, code, "this seller pays nothing back here; ask them"))
}

fn problem(status: StatusCode, code: &str, detail: &str) -> Value {
    json!({
        "type": "about:blank",
        "title": "no money is paid back",
        "status": status.as_u16(),
        "code": code,
        "detail": detail,
    })
}

fn respond_with_code(status: StatusCode, code: &'static str, body: &Value) -> Response<Bytes> {
    let mut response = respond(status, body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert(CODE_HEADER, HeaderValue::from_static(code));
    response
}

fn respond(status: StatusCode, body: &Value) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(format!("{body}\n")));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn id(text: &str) -> Option<RefundId> {
    let mut id = [0; 16];
    hex::decode_to_slice(text, &mut id).ok()?;
    Some(RefundId(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_read_whole_or_not_at_all() {
        let read =
            |body: &str| wish(body.as_bytes()).ok().map(|wish| (wish.to, wish.amount, wish.of, wish.key));
        assert_eq!(read(r#"{"to":"lnbc1"}"#), Some(("lnbc1".to_owned(), None, None, None)));
        let all = r#"{"to":"a@b.c","amount_msat":5000,"of":"surplus","id":"once"}"#;
        let want =
            ("a@b.c".to_owned(), Some(Msat::new(5_000)), Some(RefundOf::Surplus), Some("once".to_owned()));
        assert_eq!(read(all), Some(want));
        for wrong in [
            "",
            "[]",
            "{}",
            r#"{"to":1}"#,
            r#"{"to":"x","amount":5}"#,
            r#"{"to":"x","amount_msat":"5"}"#,
            r#"{"to":"x","amount_msat":-5}"#,
            r#"{"to":"x","amount_msat":5.5}"#,
            r#"{"to":"x","of":"requests"}"#,
            r#"{"to":"x","id":""}"#,
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
