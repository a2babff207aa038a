//! What a gateway says of a credential that is good, and still not enough for a request: a limit that is reached for this
//! month, or less left of what was bought than the request takes.
//!
//! It is the seller's word, told to whoever has to know when to come back. Nothing is decided by it: what is bought in its
//! place is judged as any other purchase. What it names is read strictly, so that nothing else gets into a message by it.

use farebox_protocol::{CapabilityName, PaymentHash, Timestamp};
use http::HeaderMap;
use serde::Deserialize;

/// The header in which a farebox gateway says why it answers as it does.
const CODE: &str = "farebox-code";
/// No code is longer.
const CODE_BYTES_MAX: usize = 40;

/// A credential that was shown and is good, but not for this request now. It is kept, and tried again by the next.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Shortfall {
    /// The payment that bought it.
    pub payment_hash: PaymentHash,
    /// What there is too little of.
    pub of: Short,
}

/// What there is too little of, with what the seller says about it where that can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Short {
    /// A limit by the month is reached (`limit_reached`).
    Month(Option<MonthReached>),
    /// Less is left of what was bought than the request takes (`units_short`).
    Units(Option<UnitsLeft>),
}

/// A limit that leaves too little for this month.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MonthReached {
    /// What is limited.
    pub capability: CapabilityName,
    /// What it is counted in.
    pub unit: Unit,
    /// How many may be used in a month.
    pub most: u64,
    /// How many have been, or are set aside for requests under way.
    pub used: u64,
    /// How many the request needs.
    pub needed: u64,
    /// When the next month begins, and the credential is good again.
    pub ends_at: Timestamp,
}

/// What is left of what was bought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnitsLeft {
    /// What it is counted in.
    pub unit: Unit,
    /// How many are left.
    pub left: u64,
    /// How many the request needs.
    pub needed: u64,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Unit {
    /// Requests.
    Request,
    /// Money.
    Msat,
}

impl Short {
    /// What the head of an answer says. `None`: something else.
    pub(crate) fn of(headers: &HeaderMap) -> Option<Self> {
        match reason(headers)? {
            "limit_reached" => Some(Self::Month(None)),
            "units_short" => Some(Self::Units(None)),
            _ => None,
        }
    }

    /// The same with what the body of the answer says of it, where that makes sense.
    pub(crate) fn told(self, body: &[u8]) -> Self {
        let Ok(problem) = serde_json::from_slice::<Problem>(body) else { return self };
        match self {
            Self::Month(_) => Self::Month(problem.limit.and_then(Limit::read)),
            Self::Units(_) => Self::Units(problem.units()),
        }
    }

    /// The gateway's word for it.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Month(_) => "limit_reached",
            Self::Units(_) => "units_short",
        }
    }
}

impl Unit {
    /// Its name, as gateways write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Msat => "msat",
        }
    }
}

/// Whether the head of an answer says that the credential is good, and for other requests than this one. On one path it may be
/// the method that makes the difference.
pub(crate) fn is_for_others(headers: &HeaderMap) -> bool {
    const FOR_OTHERS: [&str; 7] = [
        "tier_outgrown",
        "token_other_capability",
        "token_other_client",
        "token_other_method",
        "token_other_path",
        "token_other_request",
        "token_price_ceiling",
    ];
    reason(headers).is_some_and(|reason| FOR_OTHERS.contains(&reason))
}

/// Why a farebox gateway answers as it does, as one word. What is no such word is somebody's text, and none.
pub(crate) fn reason(headers: &HeaderMap) -> Option<&str> {
    let code = headers.get(CODE)?.to_str().ok()?;
    let is_code = (1..=CODE_BYTES_MAX).contains(&code.len())
        && code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    is_code.then_some(code)
}

/// What the body says, as far as it is looked at.
#[derive(Deserialize)]
struct Problem {
    #[serde(default)]
    limit: Option<Limit>,
    #[serde(default)]
    left: Option<u64>,
    #[serde(default)]
    needed: Option<u64>,
    #[serde(default)]
    unit: Option<Unit>,
}

#[derive(Deserialize)]
struct Limit {
    capability: String,
    unit: Unit,
    most: u64,
    used: u64,
    needed: u64,
    ends_at: u64,
}

impl Problem {
    fn units(&self) -> Option<UnitsLeft> {
        Some(UnitsLeft { unit: self.unit?, left: self.left?, needed: self.needed? })
    }
}

impl Limit {
    fn read(self) -> Option<MonthReached> {
        let Self { capability, unit, most, used, needed, ends_at } = self;
        let (capability, ends_at) = (capability.parse().ok()?, Timestamp::from_secs(ends_at));
        Some(MonthReached { capability, unit, most, used, needed, ends_at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(code: &str, body: &str, want: &str) {
        let mut headers = HeaderMap::new();
        headers.insert(CODE, code.parse().unwrap());
        let short = Short::of(&headers).map(|short| short.told(body.as_bytes()));
        assert_eq!(short.map_or("nothing".to_owned(), |short| format!("{short:?}")), want);
    }

    #[test]
    fn what_a_gateway_says_is_read_and_what_makes_no_sense_is_left_out() {
        let limit =
            r#"{"limit":{"capability":"read","unit":"request","most":5,"used":5,"needed":1,"ends_at":99}}"#;
        check(
            "limit_reached",
            limit,
            "Month(Some(MonthReached { capability: CapabilityName(read), unit: Request, most: 5, used: 5, needed: 1, ends_at: \
             Timestamp(99) }))",
        );
        for nonsense in [
            "",
            "{}",
            r#"{"limit":7}"#,
            &limit.replace("read", "\\u001b[31mring 555-0100"),
            &limit.replace("request", "apples"),
            &limit.replace("99", "-1"),
            &"[".repeat(100_000),
        ] {
            check("limit_reached", nonsense, "Month(None)");
        }
        let units = r#"{"left":1,"needed":3,"unit":"msat"}"#;
        check("units_short", units, "Units(Some(UnitsLeft { unit: Msat, left: 1, needed: 3 }))");
        check("units_short", r#"{"left":1}"#, "Units(None)");
        check("units_spent", units, "nothing");
        check("Ring 555-0100", units, "nothing");
    }
}
