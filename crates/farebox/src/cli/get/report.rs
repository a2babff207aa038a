//! What is said about a fetch: to people in sentences, to programs in JSON, and to scripts by the exit code.

use std::{
    fmt,
    fmt::Write as _,
    io::IsTerminal as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use farebox_client::{
    Fault, FetchError, Fetched, Money, PurchaseRow, Quote, Receipt, Refusal, RequestError, Stop,
};
use serde::{Deserialize, Serialize};

use super::body::{Body, Broken, TimeUp};
use crate::output::{OutputFlags, Reader, harmless, line, utc};

/// How the program ends; the help text says the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    Done = 0,
    Other = 1,
    Usage = 2,
    NotPaid = 3,
    Network = 4,
    Rejected = 5,
    RateLimited = 6,
    Refused = 7,
    Unknown = 8,
    ApprovalNeeded = 9,
    DryRun = 10,
    Status = 22,
    Interrupted = 130,
}

impl Exit {
    pub(super) fn code(self) -> ExitCode {
        ExitCode::from(self as u8)
    }

    fn of(error: &FetchError) -> Self {
        match error.fault() {
            Fault::Request(RequestError::Network { .. } | RequestError::NotTls { .. }) => Self::Network,
            Fault::Request(RequestError::PrivateTarget(_)) => Self::Refused,
            Fault::Request(RequestError::Address | RequestError::Setup(_) | RequestError::Certificate(_)) => {
                Self::Usage
            }
            Fault::Purchase(Stop::Refused(Refusal::ApprovalNeeded { .. })) => Self::ApprovalNeeded,
            Fault::Purchase(Stop::Refused(_)) => Self::Refused,
            Fault::Purchase(Stop::Failed(_)) => Self::NotPaid,
            Fault::Purchase(Stop::Unknown(..)) => Self::Unknown,
            Fault::Purchase(Stop::Rejected(..)) => Self::Rejected,
            _ => Self::Other,
        }
    }
}

/// What went wrong, as it is told on standard error.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) exit: Exit,
    code: &'static str,
    message: String,
    retryable: bool,
    money: Box<MoneyReport>,
    /// The name under which the question waits for a person.
    approval: Option<String>,
    /// What has come of a file, and how much that is.
    part: Option<(PathBuf, u64)>,
}

/// What became of the money.
#[derive(Clone, Debug, Default, Serialize)]
struct MoneyReport {
    /// `none`, `spent` or `unknown`.
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    amount_msat: Option<u64>,
    /// What the route cost or, while that is unknown, the most that it can.
    #[serde(skip_serializing_if = "Option::is_none")]
    fee_msat: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payment_hash: Option<String>,
}

impl MoneyReport {
    fn of_row(row: &PurchaseRow) -> Self {
        Self {
            state: "unknown",
            amount_msat: Some(row.price.get()),
            fee_msat: row.fee.map(|fee| fee.get()),
            payment_hash: Some(row.payment_hash.to_string()),
        }
    }

    fn of(money: &Money) -> Self {
        let known = |state, hash: &dyn ToString, price: u64, fee: u64| Self {
            state,
            amount_msat: Some(price),
            fee_msat: Some(fee),
            payment_hash: Some(hash.to_string()),
        };
        match money {
            Money::None => Self { state: "none", ..Self::default() },
            Money::Spent { payment_hash, price, fee } => known("spent", payment_hash, price.get(), fee.get()),
            Money::Unknown { payment_hash, price, fee_worst } => {
                known("unknown", payment_hash, price.get(), fee_worst.get())
            }
        }
    }
}

impl Failure {
    pub(super) fn of(error: &FetchError) -> Self {
        let mut message = chain(error);
        let approval = match error.fault() {
            Fault::Purchase(Stop::Refused(Refusal::ApprovalNeeded { waits, .. })) => waits.clone(),
            _ => None,
        };
        match (&approval, error.fault()) {
            (Some(id), _) => _ = write!(message, "; agree with `farebox approve {id}`, then ask again"),
            (None, Fault::Purchase(Stop::Refused(Refusal::ApprovalNeeded { .. }))) => {
                message.push_str("; at a terminal you are asked, and elsewhere once `farebox policy secret` has set a secret");
            }
            _ => {}
        }
        Self {
            exit: Exit::of(error),
            code: error.code(),
            message,
            retryable: error.retryable(),
            money: MoneyReport::of(error.money()).into(),
            approval,
            part: None,
        }
    }

    pub(super) fn other(code: &'static str, message: &str) -> Self {
        Self {
            exit: Exit::Other,
            code,
            message: message.to_owned(),
            retryable: false,
            money: MoneyReport::of(&Money::None).into(),
            approval: None,
            part: None,
        }
    }

    pub(super) fn usage(error: anyhow::Error) -> Self {
        Self { exit: Exit::Usage, ..Self::other("usage", &format!("{error:#}")) }
    }

    pub(super) fn interrupted() -> Self {
        let message = "interrupted; make the same call again: what has been paid for is not paid twice";
        let money = MoneyReport { state: "unknown", ..MoneyReport::default() }.into();
        Self { exit: Exit::Interrupted, retryable: true, money, ..Self::other("interrupted", message) }
    }

    /// The time is up, and a payment is under way.
    pub(super) fn late_and_unknown(row: &PurchaseRow) -> Self {
        let message = format!(
            "the time is up (--max-time) while payment {} of {} to {} is under way; don't pay again: make the same call once \
             more, or ask with --resume",
            row.payment_hash, row.price, row.origin
        );
        let money = MoneyReport { state: "unknown", ..MoneyReport::of_row(row) }.into();
        Self { exit: Exit::Unknown, money, ..Self::other("payment_unknown", &message) }
    }

    /// The time is up, and nothing is under way. `paid`: what this call has bought before.
    pub(super) fn late(paid: Option<&PurchaseRow>) -> Self {
        let mut message = "the time is up (--max-time)".to_owned();
        let mut money = MoneyReport::of(&Money::None);
        if let Some(row) = paid {
            money = MoneyReport { state: "spent", ..MoneyReport::of_row(row) };
            _ = write!(
                message,
                "; {} were paid, and the same call once more uses what they bought",
                row.price
            );
        }
        Self { exit: Exit::Network, retryable: true, money: money.into(), ..Self::other("timeout", &message) }
    }

    /// The server doesn't sell what `--offer` names.
    pub(super) fn no_such_offer(offer: &str) -> Self {
        let message =
            format!("there is no offer `{offer}`; --dry-run without --offer lists them; nothing was paid");
        Self { exit: Exit::Refused, ..Self::other("offer_unknown", &message) }
    }

    /// A status of 400 or more, with `--fail`.
    pub(super) fn status(report: &Report) -> Self {
        let limited = report.status == 429;
        Self {
            exit: if limited { Exit::RateLimited } else { Exit::Status },
            code: if limited { "rate_limited" } else { "status" },
            message: format!("the server answered {}", report.status),
            retryable: limited || report.status >= 500,
            money: report.money.clone().into(),
            approval: None,
            part: None,
        }
    }

    /// What `--no-pay` came to. That there is no wallet then is not what is wrong.
    pub(super) fn unpaid(error: &FetchError) -> Self {
        let mut failure = Self::of(error);
        if let Fault::Purchase(Stop::Refused(Refusal::NoWallet { price })) = error.fault() {
            failure.message = format!("--no-pay: this costs {price} and nothing bought before opens it");
        }
        failure
    }

    /// Adds why there was no wallet, where that is what was missing.
    pub(super) fn because(mut self, no_wallet: Option<anyhow::Error>) -> Self {
        if self.code == "no_wallet" {
            match no_wallet {
                Some(error) => _ = write!(self.message, ": {error:#}"),
                None => self.message.push_str("; name one with --wallet or --wallet-url"),
            }
        }
        self
    }

    /// Says it on standard error.
    pub(super) fn tell(&self, output: OutputFlags) {
        if output.is_json() || (!output.is_human() && !std::io::stderr().is_terminal()) {
            let mut error = serde_json::json!({
                "error": true,
                "code": self.code,
                "message": self.message,
                "exit_code": self.exit as u8,
                "retryable": self.retryable,
                "money": self.money,
            });
            if let Some(id) = &self.approval {
                error["approval"] = id.as_str().into();
            }
            if let Some((path, bytes)) = &self.part {
                error["part"] = path.display().to_string().into();
                error["part_bytes"] = (*bytes).into();
            }
            eprintln!("{error}");
        } else {
            eprintln!("error: {}", self.message);
        }
    }
}

/// The texts of an error and its sources in one line, each once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let sources = std::iter::successors(error.source(), |error| error.source());
    for source in sources.map(ToString::to_string) {
        if !text.contains(&source) {
            _ = write!(text, ": {source}");
        }
    }
    text
}

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
    /// What is left of what was bought, in requests or msat, where it is counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    left: Option<u64>,
    /// Why a farebox gateway answers as it does.
    #[serde(skip)]
    reason: Option<String>,
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
    money: MoneyReport,
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
            reason: text("farebox-code"),
            headers: with_headers.then(listed),
            bytes: 0,
            resumed_at: None,
            output: None,
            body: None,
            body_hex: None,
            duration_ms: 0,
            money: fetched.purchase.as_ref().map_or_else(|| MoneyReport::of(&Money::None), money),
        }
    }

    /// What has been paid and what is left of it, for a person.
    pub(super) fn notes(&self) -> impl Iterator<Item = String> {
        let paid = self.payment.as_ref().map(|Payment { amount_msat, fee_msat, origin, .. }| {
            let sat = |msat: u64| farebox_protocol::Msat::new(msat);
            format!("paid {} and {} of fee to {origin}", sat(*amount_msat), sat(*fee_msat))
        });
        let left =
            self.left.map(|left| format!("{left} left of what was bought (requests, or msat of credit)"));
        paid.into_iter().chain(left)
    }

    /// Whether a farebox gateway has refused the offer that was asked for.
    pub(super) fn knows_no_such_offer(&self) -> bool {
        self.status == 400 && self.reason.as_deref() == Some("offer_unknown")
    }

    /// The answer came, its body did not. What has been paid for is kept: the same call goes on from there.
    pub(super) fn broken(&self, broken: Broken) -> Failure {
        let Broken { error, part } = broken;
        let is_late = error.chain().any(|cause| cause.is::<TimeUp>());
        let from_network = is_late || error.chain().any(|cause| cause.is::<reqwest::Error>());
        Failure {
            exit: if from_network { Exit::Network } else { Exit::Other },
            code: match from_network {
                true if is_late => "timeout",
                true => "network",
                false => "output",
            },
            message: format!("{error:#}"),
            retryable: from_network,
            money: self.money.clone().into(),
            approval: None,
            part,
        }
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

fn money(receipt: &Receipt) -> MoneyReport {
    let Receipt { payment_hash, price, fee, .. } = receipt;
    MoneyReport::of(&Money::Spent { payment_hash: *payment_hash, price: *price, fee: *fee })
}

/// Tells what a dry run has found.
pub(super) fn quote(quote: &Quote, output: OutputFlags) -> Result<Exit, Failure> {
    let offer = quote.offer.as_ref();
    let offers = offers(&quote.told);
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
    if !offers.is_empty() {
        text.push_str("\nas it says, --offer NAME buys one of these:");
        offers.iter().for_each(|offer| _ = write!(text, "\n  {offer}"));
    }
    say(output, &text, &json)?;
    Ok(Exit::DryRun)
}

/// One of several offers, in the seller's own words. What is paid is judged by its invoice alone.
#[derive(Debug, Deserialize, Serialize)]
struct Offered {
    name: String,
    price_msat: u64,
    /// `forever`, `duration`, `requests` or `credit`.
    offer: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    duration_secs: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    requests: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    credit_msat: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    good_for_secs: Option<u64>,
}

/// The offers in the body of a farebox gateway's 402, where there are several.
fn offers(told: &[u8]) -> Vec<Offered> {
    #[derive(Default, Deserialize)]
    struct Told {
        #[serde(default)]
        offers: Vec<Offered>,
    }
    serde_json::from_slice::<Told>(told).unwrap_or_default().offers
}

impl fmt::Display for Offered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let price = farebox_protocol::Msat::new(self.price_msat);
        write!(f, "{}: {price} for ", harmless(&self.name))?;
        match (self.duration_secs, self.requests, self.credit_msat) {
            (Some(secs), ..) => write!(f, "{secs} s")?,
            (_, Some(count), _) => write!(f, "{count} requests")?,
            (.., Some(msat)) => write!(f, "{} of credit", farebox_protocol::Msat::new(msat))?,
            _ => f.write_str(&harmless(&self.offer))?,
        }
        match self.good_for_secs {
            Some(secs) => write!(f, ", good for {secs} s"),
            None => Ok(()),
        }
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
