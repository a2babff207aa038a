//! Why a token is refused for what its caveats say, and why a caveat can't be added to one.
//!
//! The first is read by whoever shows the token, the second by the holder who would narrow it. Of a token's own text only the
//! names of conditions are repeated, escaped and cut short: it is anybody's.

use crate::{Msat, ServiceName, Timestamp};

/// Why a token whose signature holds doesn't allow a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CaveatRefusal {
    /// Its time is over.
    #[error(
        "the token for `{service}` was good until {valid_until}, now it is {now}; drop it and pay a new challenge"
    )]
    Expired {
        /// The service asked for.
        service: ServiceName,
        /// The first moment at which it was no longer good.
        valid_until: Timestamp,
        /// The present moment.
        now: Timestamp,
    },
    /// It was sold for something else.
    #[error("the token is not for `{service}`; pay a challenge of that service")]
    OtherService {
        /// The service asked for.
        service: ServiceName,
    },
    /// A holder has restricted it to other methods.
    #[error("the token does not cover the method `{method}`; use the token it was made from")]
    Method {
        /// The method asked for.
        method: http::Method,
    },
    /// A holder has restricted it to other paths.
    #[error("the token does not cover this path; use the token it was made from")]
    Path,
    /// A holder has restricted it to other addresses, or the client's is unknown.
    #[error("the token does not cover this client's address; use the token it was made from")]
    Client,
    /// It lists capabilities, and the request takes another one.
    #[error(
        "the token may do what its `{service}_capabilities` list, and that is not {}; use one that may",
        match missing { Some(name) => format!("`{name}`"), None => "this".to_owned() }
    )]
    Capability {
        /// The service asked for.
        service: ServiceName,
        /// One that the request takes and the token doesn't list; `None` where the request takes none at all.
        missing: Option<String>,
    },
    /// It is bound to one method and path, and the request has another.
    #[error("the token is bound to another request; pay a challenge of this one")]
    OtherRequest,
    /// The request costs more than the token is bound to, or nobody knows how much.
    #[error(
        "the token is for requests of up to {ceiling}, and this one costs {}; pay its challenge",
        match price { Some(price) => price.to_string(), None => "nobody knows how much".to_owned() }
    )]
    Ceiling {
        /// The most that it is good for.
        ceiling: Msat,
        /// What the request costs.
        price: Option<Msat>,
    },
    /// A later condition tries to allow more than an earlier one.
    #[error("the token's second `{condition}` is wider than the one before; caveats can only narrow")]
    Widened {
        /// Which.
        condition: String,
    },
    /// A condition that may stand only once stands twice.
    #[error("the token has `{condition}` twice")]
    Repeated {
        /// Which.
        condition: String,
    },
    /// A condition of ours that this version doesn't know, or, when strict, any.
    #[error("the token has the condition `{condition}`, which this gateway does not know")]
    Unknown {
        /// Which.
        condition: String,
    },
    /// A condition whose value can't be read.
    #[error("the token's `{condition}` cannot be read")]
    Malformed {
        /// Which.
        condition: String,
    },
}

/// Why a caveat can't be added to a token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CaveatError {
    /// It isn't `condition=value`, or has control characters.
    #[error("a caveat is `condition=value`, in one line of printable text")]
    NotACaveat,
    /// Only the seller says this.
    #[error("`{0}` is for the mint alone; a token that says it again is refused")]
    MintOnly(String),
    /// A gateway would refuse it.
    #[error("`{0}` is no condition that farebox knows; a token that has it is refused")]
    Unknown(String),
    /// The value isn't of the condition's grammar.
    #[error("the value of `{condition}` cannot be read; write {grammar}")]
    Malformed {
        /// Which condition.
        condition: String,
        /// What its value looks like.
        grammar: &'static str,
    },
    /// It is wider than what the token says already.
    #[error("`{0}` is wider than what the token has already; a token that has both is refused")]
    Widens(String),
    /// There is no room for another caveat.
    #[error("the token is full; nobody would read it with one more caveat")]
    TokenFull,
}

impl CaveatRefusal {
    /// The stable name of this refusal: the same in the answer, the log and the metric.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Expired { .. } => "token_expired",
            Self::OtherService { .. } => "token_other_service",
            Self::Method { .. } => "token_other_method",
            Self::Path => "token_other_path",
            Self::Client => "token_other_client",
            Self::Capability { .. } => "token_other_capability",
            Self::OtherRequest => "token_other_request",
            Self::Ceiling { .. } => "token_price_ceiling",
            Self::Widened { .. } => "caveat_widened",
            Self::Repeated { .. } => "caveat_repeated",
            Self::Unknown { .. } => "caveat_unknown",
            Self::Malformed { .. } => "caveat_malformed",
        }
    }
}
