//! Which answer a decision becomes: status, headers and body, here and nowhere else.
//!
//! Programs get problem JSON (RFC 9457), browsers a small page to pay from, gRPC clients gRPC's own way of saying no
//! (HTTP 200, the status in the headers, no body), and HEAD nothing but headers. Every answer says `no-store`, since it
//! may hold an invoice, and names its code in `farebox-code`, which is all that HEAD and gRPC can read.
//!
//! HEAD gets a 402 *without* a challenge: minting costs the node something, and nobody pays for a body that won't come.
//! To learn price and invoice, ask with GET. OPTIONS is answered the same way; a preflight gets its CORS answer.

use std::time::Duration;

use bytes::Bytes;
use farebox_protocol::{Monthly, Msat, Offer};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use serde_json::{Map, Value, json};

use crate::{
    Answer, Code, OFFER_HEADER, Quote, Request, Service,
    ledger::month::{Reached, in_units},
    mint::Minted,
    paywall::Short,
};

mod audience;
mod page;
mod qr;

pub(crate) use audience::Audience;

/// The code of an answer, for those who get no body to read it in.
pub const CODE_HEADER: HeaderName = HeaderName::from_static("farebox-code");

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// What is answered instead of forwarding.
pub(crate) struct Refusal<'a> {
    pub(crate) code: Code,
    pub(crate) service: Option<&'a Service>,
    /// The challenge of a 402, where one is made.
    pub(crate) minted: Option<&'a Minted>,
    pub(crate) retry_after: Option<Duration>,
    /// Whether it is denied (401), whatever the code says elsewhere: nothing is sold here.
    pub(crate) is_denied: bool,
    /// What was missing, where a buyer has too little left.
    pub(crate) short: Option<Short>,
    /// The limit that is reached, where one is.
    pub(crate) reached: Option<&'a Reached>,
    /// What was asked, where an answer says what there is to choose from.
    pub(crate) request: Option<Request<'a>>,
}

/// Whether a challenge may be made for this method at all.
pub(crate) fn may_mint(method: &Method) -> bool {
    *method != Method::HEAD && *method != Method::OPTIONS
}

/// The status a code becomes.
pub(crate) fn status(code: Code) -> StatusCode {
    match code {
        Code::Pass | Code::Free | Code::Freebie => StatusCode::OK,
        Code::PaymentRequired
        | Code::CredentialNotText
        | Code::PreimageMissing
        | Code::PreimageMalformed
        | Code::TokenMalformed
        | Code::TooManyTokens
        | Code::TokenUnknown
        | Code::TokenExpired
        | Code::TokenRevoked
        | Code::TokenOtherService
        | Code::TierOutgrown
        | Code::TokenOtherMethod
        | Code::TokenOtherPath
        | Code::TokenOtherClient
        | Code::TokenOtherCapability
        | Code::TokenOtherRequest
        | Code::TokenPriceCeiling
        | Code::CaveatWidened
        | Code::CaveatRepeated
        | Code::CaveatUnknown
        | Code::CaveatMalformed
        | Code::TermsMissing
        | Code::SecretWithdrawn
        | Code::UnitsSpent
        | Code::UnitsShort
        | Code::LimitReached => StatusCode::PAYMENT_REQUIRED,
        Code::TokenRequired | Code::PreimageWrong | Code::PaymentUnsettled => StatusCode::UNAUTHORIZED,
        Code::ClientMintLimit | Code::TotalMintLimit | Code::RateLimited | Code::UnitsInFlight => {
            StatusCode::TOO_MANY_REQUESTS
        }
        Code::NodeUnavailable
        | Code::NodeTimeout
        | Code::NodeWrong
        | Code::PriceInvalid
        | Code::StoreUnavailable
        | Code::CostUnknown
        | Code::LedgerUnavailable
        | Code::PaymentUnconfirmed => StatusCode::SERVICE_UNAVAILABLE,
        Code::PathRefused | Code::OfferUnknown => StatusCode::BAD_REQUEST,
        Code::KeyInUse | Code::AnswerNotKept => StatusCode::CONFLICT,
        Code::LengthRequired => StatusCode::LENGTH_REQUIRED,
        Code::UploadTooDear => StatusCode::PAYLOAD_TOO_LARGE,
        Code::KeyReused => StatusCode::UNPROCESSABLE_ENTITY,
        Code::Preflight => StatusCode::NO_CONTENT,
    }
}

/// gRPC's status for an answer. Payment and denial are 13, as deployed L402 clients look for exactly that.
fn grpc_status(status: StatusCode) -> &'static str {
    match status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::PAYLOAD_TOO_LARGE => "8",
        StatusCode::SERVICE_UNAVAILABLE => "14",
        StatusCode::BAD_REQUEST | StatusCode::LENGTH_REQUIRED | StatusCode::UNPROCESSABLE_ENTITY => "3",
        StatusCode::CONFLICT => "10",
        _ => "13",
    }
}

impl Refusal<'_> {
    /// For this reason, and nothing else to say.
    pub(crate) const fn of(code: Code) -> Self {
        Self {
            code,
            service: None,
            minted: None,
            retry_after: None,
            is_denied: false,
            short: None,
            reached: None,
            request: None,
        }
    }

    /// The whole answer.
    pub(crate) fn answer(&self, audience: Audience) -> Answer {
        let status = if self.is_denied { StatusCode::UNAUTHORIZED } else { status(self.code) };
        let mut headers = HeaderMap::with_capacity(12);
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(CODE_HEADER, HeaderValue::from_static(self.code.as_str()));
        // A page of another origin must be able to read the challenge; it carries no cookie and nothing personal.
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        headers.insert(
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
            HeaderValue::from_static("WWW-Authenticate, Retry-After, Farebox-Code"),
        );
        if let Some(wait) = self.retry_after {
            headers.insert(header::RETRY_AFTER, whole_seconds(wait).into());
        }
        self.authenticate(status, &mut headers);

        let (status, body) = match audience {
            Audience::Grpc => {
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
                headers.insert(GRPC_STATUS, HeaderValue::from_static(grpc_status(status)));
                headers.insert(GRPC_MESSAGE, HeaderValue::from_static(self.grpc_message(status)));
                (StatusCode::OK, Bytes::new())
            }
            Audience::Browser => (status, page::render(self, status, &mut headers)),
            Audience::Program => {
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
                (status, Bytes::from(self.problem(status).to_string()))
            }
            Audience::HeadersOnly => {
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
                (status, Bytes::new())
            }
        };
        Answer { status, headers, body, code: self.code, retry_after: self.retry_after }
    }

    fn authenticate(&self, status: StatusCode, headers: &mut HeaderMap) {
        if let Some(minted) = self.minted {
            for value in minted.challenge.header_values() {
                let value =
                    HeaderValue::from_str(&value).expect("base64, bech32 and quotes are visible ASCII");
                headers.append(header::WWW_AUTHENTICATE, value);
            }
        } else if status == StatusCode::UNAUTHORIZED {
            // A 401 must name a scheme. Without a token in it, no client takes it for something to buy.
            let value = format!("L402 version=\"0\", error=\"{}\"", self.code);
            let value = HeaderValue::from_str(&value).expect("a code is a lower-case word");
            headers.insert(header::WWW_AUTHENTICATE, value);
        }
    }

    /// What to do about it. The sentence of a code that is usually answered with an invoice speaks of that invoice.
    pub(crate) fn detail(&self) -> &'static str {
        let is_sold = status(self.code) == StatusCode::PAYMENT_REQUIRED;
        if self.is_denied && is_sold { Code::TokenRequired.detail() } else { self.code.detail() }
    }

    /// "payment required" is what deployed clients compare with; the rest is for people.
    fn grpc_message(&self, status: StatusCode) -> &'static str {
        if status == StatusCode::PAYMENT_REQUIRED { "payment required" } else { self.detail() }
    }

    /// What the buyer of this request may choose from, the default first: where it is asked to pay, or to choose again.
    fn choices(&self) -> impl Iterator<Item = Quote<'_>> {
        let is_asked = self.minted.is_some() || self.code == Code::OfferUnknown;
        let request = self.request.as_ref().filter(|_| is_asked);
        request
            .into_iter()
            .flat_map(|request| request.service.choices(request.method, request.path, request.length()))
    }

    /// RFC 9457. `type` stays `about:blank`: the machine-readable part is `code`.
    fn problem(&self, status: StatusCode) -> Value {
        let mut problem = Map::new();
        let mut set = |name: &str, value: Value| {
            problem.insert(name.to_owned(), value);
        };
        set("type", json!("about:blank"));
        set("title", json!(status.canonical_reason().unwrap_or_default()));
        set("status", json!(status.as_u16()));
        set("detail", json!(self.detail()));
        set("code", json!(self.code.as_str()));
        if let Some(service) = self.service {
            set("service", json!(service.name.as_str()));
        }
        if let Some(minted) = self.minted {
            let invoice = &minted.challenge.invoice;
            set("price_msat", json!(minted.terms.price.get()));
            bought(minted.terms.offer, minted.terms.price, &mut set);
            set("invoice", json!(invoice.as_str()));
            set("payment_hash", json!(invoice.payment_hash().to_string()));
            set("expires_at", json!(invoice.expires_at().secs()));
            if let Some(older) = minted.replaces {
                set("replaces", json!(older.to_string()));
            }
            if let Some(end) = minted.valid_until {
                set("valid_until", json!(end.secs()));
            }
            limited(&minted.monthly, &mut set);
            if self.choices().nth(1).is_some() {
                set("offer_name", json!(minted.name));
            }
            if self.service.is_some_and(|service| !service.menu.tiers.is_empty()) {
                set("tier", json!(minted.tier));
            }
        }
        let offers: Vec<Value> = self.choices().map(listed).collect();
        if offers.len() > 1 || (self.code == Code::OfferUnknown && !offers.is_empty()) {
            set("offers", Value::Array(offers));
            set(
                "choose_offer_by",
                json!({ "header": OFFER_HEADER.as_str(), "query": OFFER_HEADER.as_str() }),
            );
        }
        if let Some(Short { left, needed, unit }) = self.short {
            set("left", json!(left));
            set("needed", json!(needed));
            set("unit", json!(unit.as_str()));
        }
        if let Some(Reached { capability, unit, most, used, needed, ends_at }) = self.reached {
            let (capability, unit) = (capability.as_str(), unit.as_str());
            set(
                "limit",
                json!({
                    "capability": capability, "unit": unit, "most": most, "used": used, "needed": needed,
                    "ends_at": ends_at.secs(),
                }),
            );
        }
        if let Some(wait) = self.retry_after {
            set("retry_after", json!(whole_seconds(wait)));
        }
        Value::Object(problem)
    }
}

/// What is bought, field by field.
fn bought(offer: Offer, price: Msat, set: &mut dyn FnMut(&str, Value)) {
    match offer {
        Offer::Forever => set("offer", json!("forever")),
        Offer::Duration(time) => {
            set("offer", json!("duration"));
            set("duration_secs", json!(time.as_secs()));
        }
        Offer::Requests(count) => {
            set("offer", json!("requests"));
            set("requests", json!(count));
        }
        Offer::Credit => {
            set("offer", json!("credit"));
            set("credit_msat", json!(price.get()));
        }
    }
}

/// An offer to choose from, by its name. The price is the seller's; a node may have to round it up.
fn listed(quote: Quote<'_>) -> Value {
    let mut listed = Map::new();
    let mut set = |name: &str, value: Value| {
        listed.insert(name.to_owned(), value);
    };
    set("name", json!(quote.name));
    set("price_msat", json!(quote.price.get()));
    bought(quote.offer, quote.price, &mut set);
    if let Some(time) = quote.good_for {
        set("good_for_secs", json!(time.as_secs()));
    }
    limited(quote.monthly, &mut set);
    Value::Object(listed)
}

/// How much of it may be used in a month, in the words of a limit that is reached.
fn limited(monthly: &[Monthly], set: &mut dyn FnMut(&str, Value)) {
    let limits: Vec<Value> = monthly
        .iter()
        .filter_map(|Monthly { capability, most }| {
            let (unit, most) = in_units(*most)?;
            Some(json!({ "capability": capability.as_str(), "unit": unit.as_str(), "most": most }))
        })
        .collect();
    if !limits.is_empty() {
        set("monthly", Value::Array(limits));
    }
}

/// The answer to a preflight: a browser may send a credential along and read the challenge.
pub(crate) fn preflight(headers: &HeaderMap) -> Answer {
    let mut answer = HeaderMap::with_capacity(6);
    let echo = |from: HeaderName, default: &'static str| {
        headers.get(from).cloned().unwrap_or_else(|| HeaderValue::from_static(default))
    };
    answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    answer.insert(
        header::ACCESS_CONTROL_ALLOW_METHODS,
        echo(header::ACCESS_CONTROL_REQUEST_METHOD, "GET, POST"),
    );
    answer.insert(
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        echo(header::ACCESS_CONTROL_REQUEST_HEADERS, "authorization"),
    );
    answer.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    answer.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let code = Code::Preflight;
    Answer { status: status(code), headers: answer, body: Bytes::new(), code, retry_after: None }
}

/// Tells a client that an answer was one of those that it has for nothing.
pub fn tell_freebie(headers: &mut HeaderMap) {
    headers.insert(CODE_HEADER, HeaderValue::from_static(Code::Freebie.as_str()));
}

/// The answer to a path without a normal form.
pub(crate) fn path_refused(method: &Method, headers: &HeaderMap, grpc: bool) -> Answer {
    Refusal::of(Code::PathRefused).answer(Audience::of(method, headers, grpc))
}

/// A refusal of this request, for a front door's own reason.
pub(crate) fn refused(request: &Request<'_>, code: Code) -> Answer {
    let refusal = Refusal { service: Some(request.service), request: Some(*request), ..Refusal::of(code) };
    refusal.answer(Audience::of_request(request))
}

/// At least one, so that nobody retries at once.
fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0)).max(1)
}

impl Audience {
    /// Who reads the answer to this request.
    pub(crate) fn of_request(request: &Request<'_>) -> Self {
        Self::of(request.method, request.headers, request.grpc)
    }
}

#[cfg(test)]
mod tests;
