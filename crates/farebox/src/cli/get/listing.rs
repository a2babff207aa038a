//! What a call tells that fetches nothing: a price with `--dry-run`, and with `--resume` the payments that are still open.

use std::{fmt, fmt::Write as _};

use farebox_client::{PurchaseRow, Quote};
use serde::{Deserialize, Serialize};

use super::failure::{Exit, Failure};
use crate::output::{OutputFlags, Reader, harmless, line, utc};

/// Tells what a dry run has found.
pub(super) fn quote(quote: &Quote, output: OutputFlags) -> Result<Exit, Failure> {
    let offer = quote.offer.as_ref();
    let Told { asked, offer_name, offers } = Told::read(&quote.told);
    let json = serde_json::json!({
        "dry_run": true,
        "origin": quote.origin.to_string(),
        "status": quote.status.as_u16(),
        "requires_payment": quote.status == http::StatusCode::PAYMENT_REQUIRED,
        "has_credential": quote.has_credential,
        "would_pay": offer.is_some() && quote.refusal.is_none(),
        "refusal": quote.refusal.as_ref().map(|refusal| serde_json::json!({
            "code": refusal.code(), "message": refusal.to_string(),
        })),
        "offer": offer.map(|offer| serde_json::json!({
            "amount_msat": offer.price.get(),
            "max_fee_msat": offer.fee_max.get(),
            "network": offer.network.name(),
            "payee": offer.payee,
            "service": offer.service,
            "expires_at": offer.expires_at.secs(),
        })),
        "offers": offers,
        "offer_name": offer_name,
        "monthly": asked.monthly,
    });
    let mut text = match (offer, &quote.refusal) {
        (None, None) => format!("{} answers {}; it asks for no money", quote.origin, quote.status.as_u16()),
        (None, Some(refusal)) => format!("would not be paid: {refusal}"),
        (Some(offer), refusal) => {
            let service =
                // The server's own words, and this may be a terminal.
                if offer.service.is_empty() {
                    String::new()
                } else {
                    format!(" for `{}`", offer.service.escape_debug())
                };
            let verdict = match refusal {
                Some(refusal) => format!("; would not be paid: {refusal}"),
                None if quote.has_credential => {
                    "; a credential bought earlier would be tried first".to_owned()
                }
                None => String::new(),
            };
            format!(
                "{} asks {}{service}, and the fee is at most {}{verdict}",
                quote.origin, offer.price, offer.fee_max
            )
        }
    };
    if !asked.offer.is_empty() || !asked.monthly.is_empty() {
        _ = write!(text, "\nthe seller says that this buys {asked}");
    }
    if !offers.is_empty() {
        text.push_str("\nthe seller's offers, of which --offer NAME buys another:");
        for offer in &offers {
            let this = if offer_name.as_ref() == Some(&offer.name) { " (this one)" } else { "" };
            _ = write!(text, "\n  {offer}{this}");
        }
    }
    say(output, &text, &json)?;
    Ok(Exit::DryRun)
}

/// One of several offers, in the seller's own words. What is paid is judged by its invoice alone.
#[derive(Debug, Deserialize, Serialize)]
struct Offered {
    name: String,
    price_msat: u64,
    #[serde(flatten)]
    buys: Buys,
}

/// What an offer buys.
#[derive(Debug, Default, Deserialize, Serialize)]
struct Buys {
    /// `forever`, `duration`, `requests` or `credit`.
    #[serde(default)]
    offer: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    duration_secs: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    requests: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    credit_msat: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    good_for_secs: Option<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    monthly: Vec<Monthly>,
}

/// So many seconds in the largest unit that fits them: `30 days`.
fn span(secs: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(86_400, "day"), (3_600, "hour"), (60, "minute")];
    let fits = UNITS.iter().find(|(unit, _)| secs > 0 && secs.is_multiple_of(*unit));
    match fits {
        Some((unit, name)) if secs == *unit => format!("1 {name}"),
        Some((unit, name)) => format!("{} {name}s", secs / unit),
        None => format!("{secs} s"),
    }
}

/// How much of something may be used in a month.
#[derive(Debug, Deserialize, Serialize)]
struct Monthly {
    capability: String,
    /// `request` or `msat`.
    unit: String,
    most: u64,
}

/// What the body of a farebox gateway's 402 says.
#[derive(Default, Deserialize)]
struct Told {
    /// What the price is for.
    #[serde(flatten)]
    asked: Buys,
    /// Which of the offers that is.
    #[serde(default)]
    offer_name: Option<String>,
    /// What there is to choose from, where there are several.
    #[serde(default)]
    offers: Vec<Offered>,
}

impl Told {
    fn read(told: &[u8]) -> Self {
        serde_json::from_slice(told).unwrap_or_default()
    }
}

/// ` at most 1000 requests a month of `read`, 21 sat a month of `write``.
fn limited(monthly: &[Monthly]) -> String {
    let most = |limit: &Monthly| match limit.unit.as_str() {
        "msat" => farebox_protocol::Msat::new(limit.most).to_string(),
        unit if limit.most == 1 => format!("1 {}", harmless(unit)),
        unit => format!("{} {}s", limit.most, harmless(unit)),
    };
    let limits: Vec<String> = monthly
        .iter()
        .map(|limit| format!("{} a month of `{}`", most(limit), harmless(&limit.capability)))
        .collect();
    format!(" at most {}", limits.join(", "))
}

impl fmt::Display for Offered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let price = farebox_protocol::Msat::new(self.price_msat);
        write!(f, "{}: {price} for {}", harmless(&self.name), self.buys)
    }
}

impl fmt::Display for Buys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.duration_secs, self.requests, self.credit_msat) {
            (Some(secs), ..) => write!(f, "access for {}", span(secs))?,
            (_, Some(1), _) => f.write_str("1 request")?,
            (_, Some(count), _) => write!(f, "{count} requests")?,
            (.., Some(msat)) => write!(f, "{} of credit", farebox_protocol::Msat::new(msat))?,
            _ if self.offer == "forever" => f.write_str("access without end")?,
            _ if self.offer.is_empty() => f.write_str("access")?,
            _ => f.write_str(&harmless(&self.offer))?,
        }
        if let Some(secs) = self.good_for_secs {
            write!(f, ", good for {}", span(secs))?;
        }
        if self.monthly.is_empty() { Ok(()) } else { write!(f, ",{}", limited(&self.monthly)) }
    }
}

/// Lists payments whose outcome is not known.
pub(super) fn open_payments(rows: &[PurchaseRow], output: OutputFlags) -> Result<Exit, Failure> {
    let json = serde_json::json!({
        "open": rows.iter().map(|row| serde_json::json!({
            "payment_hash": row.payment_hash.to_string(),
            "origin": row.origin.to_string(),
            "service": row.service,
            "amount_msat": row.price.get(),
            "begun_at": row.begun_at.secs(),
        })).collect::<Vec<_>>(),
    });
    let mut text = format!("{} payments are open", rows.len());
    for row in rows {
        _ = write!(text, "\n{} {} to {}, {}", row.payment_hash, row.price, row.origin, utc(row.begun_at));
    }
    say(output, &text, &json)?;
    Ok(if rows.is_empty() { Exit::Done } else { Exit::Unknown })
}

fn say(output: OutputFlags, text: &str, json: &serde_json::Value) -> Result<(), Failure> {
    let written = match output.reader() {
        Reader::Person => line(&text),
        Reader::Program => line(json),
    };
    written.map_err(|error| Failure::other("output", &error.to_string()))
}
