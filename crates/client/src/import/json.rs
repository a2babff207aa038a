//! Tokens as JSON: what `loop listauth` prints, what Alby's libraries keep, and what farebox exports.

use farebox_protocol::{Macaroon, Msat, PaymentHash, Scheme, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::{ENTRIES_MAX, Entry, Format, ImportError, Place, Sieve, Unfit, moment_of, preimage_of};
use crate::Pass;
use crate::journal::PurchaseRow;

/// The version of our own format.
const VERSION: u32 = 1;

/// What `tokens export` writes.
#[derive(Serialize, Deserialize)]
struct Own {
    farebox_tokens: u32,
    tokens: Vec<OwnToken>,
}

#[derive(Serialize, Deserialize)]
struct OwnToken {
    origin: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    scheme: String,
    token: String,
    payment_hash: String,
    preimage: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    amount_msat: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fee_msat: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bought_at: Option<u64>,
}

/// These credentials, for [`Program::Farebox`](super::Program) to read. A secret.
pub fn write(held: &[(PurchaseRow, Pass)]) -> Zeroizing<String> {
    let tokens = held.iter().map(|(row, pass)| OwnToken {
        origin: pass.scope.origin.to_string(),
        path: Some(row.path.clone()).filter(|path| !path.is_empty()),
        scheme: pass.scheme.to_string(),
        token: pass.token.clone(),
        payment_hash: row.payment_hash.to_string(),
        preimage: pass.preimage.expose_hex().to_string(),
        amount_msat: Some(row.price.get()).filter(|msat| *msat > 0),
        fee_msat: row.fee.map(Msat::get),
        bought_at: Some(row.begun_at.secs()),
    });
    let own = Own { farebox_tokens: VERSION, tokens: tokens.collect() };
    Zeroizing::new(serde_json::to_string_pretty(&own).unwrap_or_default())
}

/// Our own: the whole, or lines as they stand in an `Authorization` header.
pub(super) fn read_own(text: &str, format: &Format, sieve: &mut Sieve<'_>) -> Result<(), ImportError> {
    if !text.trim_start().starts_with('{') {
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            full(format, sieve)?;
            let name = format!("line {}", number.saturating_add(1));
            take(header(line, name.clone()), name, sieve);
        }
        return Ok(());
    }
    // The error of the parser is not passed on: it may quote what it stumbled over.
    let own: Own = serde_json::from_str(text).map_err(|error| format.wrong(at(&error)))?;
    if own.farebox_tokens > VERSION {
        return Err(format.wrong("it was written by a newer farebox"));
    }
    for (number, token) in own.tokens.into_iter().enumerate() {
        full(format, sieve)?;
        let name = format!("token {}", number.saturating_add(1));
        take(of_own(token, name.clone()), name, sieve);
    }
    Ok(())
}

fn of_own(token: OwnToken, name: String) -> Result<Entry, Unfit> {
    let preimage = Zeroizing::new(token.preimage);
    Ok(Entry {
        name,
        place: Place::Url(format!("{}{}", token.origin, token.path.unwrap_or_default())),
        scheme: Scheme::of(&token.scheme).ok_or(Unfit::Shape("its scheme is not L402"))?,
        token: token.token,
        payment_hash: Some(hash_of(&token.payment_hash)?),
        preimage: Some(preimage_of(&preimage)?.ok_or(Unfit::Shape("it has no preimage"))?),
        amount: token.amount_msat.map(Msat::new),
        fee: token.fee_msat.map(Msat::new),
        bought_at: token.bought_at.map(Timestamp::from_secs),
    })
}

/// `loop listauth`: a list, or an object with one.
pub(super) fn read_loop(text: &str, format: &Format, sieve: &mut Sieve<'_>) -> Result<(), ImportError> {
    let value: Value = serde_json::from_str(text).map_err(|error| format.wrong(at(&error)))?;
    let list = match value {
        Value::Array(list) => list,
        Value::Object(mut map) => match map.remove("tokens") {
            Some(Value::Array(list)) => list,
            _ => return Err(format.wrong("it has no list of tokens")),
        },
        _ => return Err(format.wrong("it is no list")),
    };
    for (number, value) in list.iter().enumerate() {
        full(format, sieve)?;
        let name = value.get("file_name").and_then(Value::as_str).filter(|name| !name.is_empty());
        let name = name.map_or_else(|| format!("token {}", number.saturating_add(1)), short);
        take(of_loop(value, name.clone()), name, sieve);
    }
    Ok(())
}

fn of_loop(value: &Value, name: String) -> Result<Entry, Unfit> {
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
    // Numbers of 64 bits are texts in some JSON and numbers in other.
    let number = |key: &str| match value.get(key) {
        Some(Value::String(text)) => text.parse().ok(),
        Some(value) => value.as_u64(),
        None => None,
    };
    let token = Macaroon::from_hex(text("base_macaroon"))
        .map_err(|_| Unfit::Shape("its macaroon can't be read"))?
        .to_base64();
    let preimage = preimage_of(text("payment_preimage"))?;
    let money = |key| number(key).filter(|_| preimage.is_some()).map(Msat::new);
    Ok(Entry {
        name,
        place: Place::Unknown,
        scheme: Scheme::L402,
        token,
        payment_hash: Some(hash_of(text("payment_hash"))?),
        amount: money("amount_paid_msat"),
        fee: money("routing_fee_paid_msat"),
        bought_at: number("time_created")
            .map(Timestamp::from_secs)
            .or_else(|| moment_of(text("time_created"))),
        preimage,
    })
}

/// Alby's: a store by address (7.x), or credentials and pending payments (9.x), one or many.
pub(super) fn read_alby(text: &str, format: &Format, sieve: &mut Sieve<'_>) -> Result<(), ImportError> {
    let value: Value = serde_json::from_str(text).map_err(|error| format.wrong(at(&error)))?;
    match value {
        Value::Array(list) => {
            for (number, value) in list.iter().enumerate() {
                full(format, sieve)?;
                let name = format!("credential {}", number.saturating_add(1));
                take(of_alby(value, name.clone()), name, sieve);
            }
        }
        Value::Object(map) if map.contains_key("header") => {
            let name = "credential".to_owned();
            take(of_alby(&Value::Object(map), name.clone()), name, sieve);
        }
        Value::Object(map) => {
            for (url, value) in &map {
                full(format, sieve)?;
                let name = short(url.split(['?', '#']).next().unwrap_or_default());
                take(of_store(url, value, name.clone()), name, sieve);
            }
        }
        _ => return Err(format.wrong("it is neither an object nor a list")),
    }
    Ok(())
}

/// 7.x: the value is JSON, or JSON in a text, as browsers' storage has it.
fn of_store(url: &str, value: &Value, name: String) -> Result<Entry, Unfit> {
    let inner: Map<String, Value> = match value {
        Value::String(text) => serde_json::from_str(text).map_err(|_| Unfit::Shape("it is no credential"))?,
        Value::Object(map) => map.clone(),
        _ => return Err(Unfit::Shape("it is no credential")),
    };
    let text = |key: &str| inner.get(key).and_then(Value::as_str).ok_or(Unfit::Shape("it is no credential"));
    Ok(Entry {
        place: Place::Url(url.to_owned()),
        preimage: Some(preimage_of(text("preimage")?)?.ok_or(Unfit::Shape("it has no preimage"))?),
        ..bare(name, Scheme::L402, text("token")?)
    })
}

/// 9.x: a header that was paid for, or the token of a payment under way.
fn of_alby(value: &Value, name: String) -> Result<Entry, Unfit> {
    let text = |key: &str| value.get(key).and_then(Value::as_str);
    match (text("scheme"), text("value"), text("token")) {
        (None | Some("l402"), Some(line), _) => header(line, name),
        (Some("l402"), None, Some(token)) => {
            let scheme = text("authScheme").map_or(Some(Scheme::L402), Scheme::of);
            Ok(bare(name, scheme.ok_or(Unfit::Shape("its scheme is not L402"))?, token))
        }
        (Some(_), ..) => Err(Unfit::Shape("its scheme is not L402")),
        _ => Err(Unfit::Shape("it is no credential")),
    }
}

/// `L402 <token>:<preimage>`.
fn header(line: &str, name: String) -> Result<Entry, Unfit> {
    let line = line.trim();
    let line = match line.get(..14) {
        Some(start) if start.eq_ignore_ascii_case("authorization:") => line[14..].trim_start(),
        _ => line,
    };
    let (scheme, credential) = line.split_once(' ').ok_or(Unfit::Shape("it is no credential"))?;
    let scheme = Scheme::of(scheme).ok_or(Unfit::Shape("its scheme is not L402"))?;
    let (token, preimage) = credential.trim().rsplit_once(':').ok_or(Unfit::Shape("it is no credential"))?;
    let preimage = Some(preimage_of(preimage)?.ok_or(Unfit::Shape("it has no preimage"))?);
    Ok(Entry { preimage, ..bare(name, scheme, token) })
}

fn bare(name: String, scheme: Scheme, token: &str) -> Entry {
    Entry {
        name,
        place: Place::Unknown,
        scheme,
        token: token.to_owned(),
        payment_hash: None,
        preimage: None,
        amount: None,
        fee: None,
        bought_at: None,
    }
}

fn take(entry: Result<Entry, Unfit>, name: String, sieve: &mut Sieve<'_>) {
    match entry {
        Ok(entry) => sieve.take(entry),
        Err(reason) => sieve.skip(name, reason),
    }
}

fn full(format: &Format, sieve: &Sieve<'_>) -> Result<(), ImportError> {
    match sieve.is_full() {
        true => {
            let path = format.path.clone();
            Err(ImportError::TooLarge { path, most: ENTRIES_MAX as u64, unit: "entries" })
        }
        false => Ok(()),
    }
}

fn hash_of(text: &str) -> Result<PaymentHash, Unfit> {
    text.parse().map_err(|_| Unfit::Shape("its payment hash is not 64 hexadecimal digits"))
}

fn short(text: &str) -> String {
    text.chars().take(200).collect()
}

/// Where JSON stops being JSON; never what stands there.
fn at(error: &serde_json::Error) -> String {
    format!("at line {}, column {} it is no JSON of that kind", error.line(), error.column())
}
