//! What is said of an answer: to people in sentences, to programs in JSON.

use std::{fmt::Write as _, path::Path, time::Duration};

use farebox_client::{Fetched, Money, Receipt, Unit};
use farebox_paywall::Code;
use serde::Serialize;

use super::{
    body::{Body, Broken},
    failure::{Failure, MoneyReport},
};
use crate::shortfall;

/// What came of a fetch.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Without the query.
    url: String,
    pub(super) status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    /// Whether this call has paid.
    paid: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    payment: Option<Payment>,
    /// The payment under whose credential the answer was given, if it took one.
    #[serde(skip_serializing_if = "Option::is_none")]
    credential: Option<String>,
    /// What is left of what was bought, where it is counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    left: Option<u64>,
    /// Of what: `request` or `msat`.
    #[serde(skip_serializing_if = "Option::is_none")]
    left_unit: Option<&'static str>,
    /// Why a farebox gateway answers as it does, in its one word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<String>,
    /// How long the server wants to be left alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) retry_after_secs: Option<u64>,
    /// What was bought before, is good, and was not enough for this.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    shortfalls: Vec<serde_json::Value>,
    /// The same in sentences.
    #[serde(skip)]
    short: Vec<String>,
    /// With `--include`.
    #[serde(skip_serializing_if = "Option::is_none")]
    headers: Option<Vec<(String, String)>>,
    bytes: u64,
    /// How much of it an earlier call had left.
    #[serde(skip_serializing_if = "Option::is_none")]
    resumed_at: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    /// In place of `body`, where that is not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    body_hex: Option<String>,
    duration_ms: u64,
    #[serde(skip)]
    pub(super) money: MoneyReport,
}

#[derive(Debug, Serialize)]
struct Payment {
    payment_hash: String,
    amount_msat: u64,
    fee_msat: u64,
    origin: String,
    service: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    valid_until: Option<u64>,
}

impl Report {
    pub(super) fn of(fetched: &Fetched, with_headers: bool) -> Self {
        let headers = fetched.response.headers();
        let text = |name: &str| headers.get(name)?.to_str().ok().map(str::to_owned);
        let listed = || {
            let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
            headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect()
        };
        let mut url = fetched.response.url().clone();
        url.set_query(None);
        url.set_fragment(None);
        // Both fail only for addresses that have no host.
        _ = url.set_username("");
        _ = url.set_password(None);
        let content_type = fetched.response.headers().get(http::header::CONTENT_TYPE);
        Self {
            url: url.to_string(),
            status: fetched.response.status().as_u16(),
            content_type: content_type.and_then(|value| value.to_str().ok()).map(str::to_owned),
            paid: fetched.purchase.is_some(),
            payment: fetched.purchase.as_ref().map(Payment::of),
            credential: fetched.credential.map(|hash| hash.to_string()),
            left: text("farebox-left").and_then(|left| left.parse().ok()),
            left_unit: text("farebox-left-unit").and_then(|name| unit(&name)).map(Unit::as_str),
            reason: fetched.reason().map(str::to_owned),
            retry_after_secs: text("retry-after").and_then(|secs| secs.parse().ok()),
            shortfalls: fetched.shortfalls.iter().map(shortfall::fields).collect(),
            short: fetched.shortfalls.iter().map(shortfall::sentence).collect(),
            headers: with_headers.then(listed),
            bytes: 0,
            resumed_at: None,
            output: None,
            body: None,
            body_hex: None,
            duration_ms: 0,
            money: fetched
                .purchase
                .as_ref()
                .map_or_else(|| MoneyReport::of(&Money::None), MoneyReport::spent),
        }
    }

    /// What has been paid and what is left of it, for a person.
    pub(super) fn notes(&self) -> impl Iterator<Item = String> {
        let paid = self.payment.as_ref().map(|Payment { amount_msat, fee_msat, origin, .. }| {
            let sat = |msat: u64| farebox_protocol::Msat::new(msat);
            format!("paid {} and {} of fee to {origin}", sat(*amount_msat), sat(*fee_msat))
        });
        let left = self.left.map(|left| match self.left_unit.and_then(unit) {
            Some(of) => format!("{} left of what was bought", shortfall::counted(of, left)),
            // A gateway of before doesn't say.
            None => format!("{left} left of what was bought (requests, or msat of credit)"),
        });
        let refused = (self.status >= 400 && self.reason.is_some()).then(|| self.refusal());
        self.short.iter().cloned().chain(paid).chain(left).chain(refused)
    }

    /// That the server answered with this status, why, and what to do about it, as far as a farebox gateway says. The words are
    /// ours: of the server's, no more is repeated than the code.
    pub(super) fn refusal(&self) -> String {
        let mut text = format!("the server answered {}", self.status);
        if let Some(code) = &self.reason {
            _ = write!(text, " (`{code}`)");
            if let Some(advice) = advice(code) {
                _ = write!(text, ": {advice}");
            }
        }
        if let Some(secs) = self.retry_after_secs {
            _ = write!(text, "; it can be asked again in {secs} s");
        }
        text
    }

    /// Whether a farebox gateway has refused the offer that was asked for.
    pub(super) fn knows_no_such_offer(&self) -> bool {
        self.status == 400 && self.reason.as_deref() == Some("offer_unknown")
    }

    /// The answer came, its body did not. What has been paid for is kept: the same call goes on from there.
    pub(super) fn broken(&self, broken: Broken) -> Failure {
        Failure::broken(broken, self.money.clone())
    }

    pub(super) fn finish(&mut self, body: Body, output: Option<&Path>, took: Duration) {
        self.bytes = body.length;
        self.resumed_at = (body.start > 0).then_some(body.start);
        self.duration_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.output = output.map(|path| path.display().to_string());
        if output.is_none() {
            match String::from_utf8(body.kept) {
                Ok(text) => self.body = Some(text),
                Err(error) => self.body_hex = Some(hex::encode(error.into_bytes())),
            }
        }
    }
}

/// What a gateway counts in, by the name it gives it.
fn unit(name: &str) -> Option<Unit> {
    [Unit::Request, Unit::Msat].into_iter().find(|unit| unit.as_str() == name)
}

/// What to do about it.
fn advice(code: &str) -> Option<&'static str> {
    match code {
        // The words of the gateway are for who reads its answer; this is who has sent the request.
        "credit_exhausted" => Some(
            "what was bought was used up before the whole had passed, and what has passed is charged: the same call once more \
             buys more",
        ),
        _ => Code::ALL.into_iter().find(|known| known.as_str() == code).map(Code::detail),
    }
}

impl Payment {
    fn of(receipt: &Receipt) -> Self {
        Self {
            payment_hash: receipt.payment_hash.to_string(),
            amount_msat: receipt.price.get(),
            fee_msat: receipt.fee.get(),
            origin: receipt.origin.to_string(),
            service: receipt.service.clone(),
            valid_until: receipt.valid_until.map(|end| end.secs()),
        }
    }
}
