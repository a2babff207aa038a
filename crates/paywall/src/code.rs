//! The reason of every answer, as one word that never changes: the same in the body, the `farebox-code` header, the log
//! and the metrics. Programs may rely on these words; the sentences beside them are for people and may improve.

use std::fmt;

use farebox_protocol::{CredentialError, caveat::CaveatRefusal};

/// Why a request was let through or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Code {
    /// A token of ours, paid for: the request is forwarded.
    Pass,
    /// The service or the path costs nothing: the request is forwarded.
    Free,
    /// One of those that the client's network has for nothing: the request is forwarded.
    Freebie,
    /// No credential was presented.
    PaymentRequired,
    /// No credential was presented, where none is sold.
    TokenRequired,
    /// The credential has bytes that no credential has.
    CredentialNotText,
    /// The credential has no preimage.
    PreimageMissing,
    /// The credential's preimage isn't 64 hexadecimal digits.
    PreimageMalformed,
    /// A token can't be read.
    TokenMalformed,
    /// More tokens were presented than anyone needs.
    TooManyTokens,
    /// No live secret explains the token's signature.
    TokenUnknown,
    /// What was bought has run out.
    TokenExpired,
    /// The seller has revoked the token.
    TokenRevoked,
    /// The token was sold for another service.
    TokenOtherService,
    /// The service's tier has been raised above the one that was sold.
    TierOutgrown,
    /// A holder narrowed the token to other methods.
    TokenOtherMethod,
    /// A holder narrowed the token to other paths.
    TokenOtherPath,
    /// A holder narrowed the token to other clients.
    TokenOtherClient,
    /// The token lists what it may do, and the request is something else.
    TokenOtherCapability,
    /// The token is bound to another method and path.
    TokenOtherRequest,
    /// The request costs more than the token is bound to.
    TokenPriceCeiling,
    /// A caveat is wider than the one before.
    CaveatWidened,
    /// A caveat that may stand once stands twice.
    CaveatRepeated,
    /// A caveat of ours that this version doesn't know, or any when strict.
    CaveatUnknown,
    /// A caveat's value can't be read.
    CaveatMalformed,
    /// The token doesn't say what was sold.
    TermsMissing,
    /// The secret that signed the token was withdrawn, and the books know no earlier payment that vouches for it.
    SecretWithdrawn,
    /// Nothing is left of what was bought.
    UnitsSpent,
    /// Something is left of what was bought, but too little for this request.
    UnitsShort,
    /// A monthly limit of the token is reached.
    LimitReached,
    /// What is left of what was bought is reserved by requests under way.
    UnitsInFlight,
    /// What is left of what was bought can't be counted just now.
    LedgerUnavailable,
    /// The request is paid from credit, and the seller doesn't say what it costs.
    CostUnknown,
    /// The bytes of the request have a price, and it doesn't say how many there are.
    LengthRequired,
    /// The bytes that the request announces cost more than any credit that is sold for it.
    UploadTooDear,
    /// The same request is being answered under the same idempotency key.
    KeyInUse,
    /// The idempotency key stands for another request.
    KeyReused,
    /// The request was answered and charged under this idempotency key, and its answer was too large to be kept.
    AnswerNotKept,
    /// The buyer chose an offer that is not sold.
    OfferUnknown,
    /// The signature holds, the proof of payment doesn't.
    PreimageWrong,
    /// The proof of payment holds, but the money is neither on the books nor with the node.
    PaymentUnsettled,
    /// Whether the money has arrived can't be found out just now.
    PaymentUnconfirmed,
    /// This client has asked for too many invoices.
    ClientMintLimit,
    /// All clients together have asked for too many invoices.
    TotalMintLimit,
    /// The service is used faster than it may be.
    RateLimited,
    /// The node can't make an invoice just now.
    NodeUnavailable,
    /// The node didn't make an invoice in time.
    NodeTimeout,
    /// The node made an invoice that must not be handed out.
    NodeWrong,
    /// The price can't be asked for.
    PriceInvalid,
    /// The store can't answer just now, and the decision needs it.
    StoreUnavailable,
    /// The path has a form on which gateway and upstream might disagree.
    PathRefused,
    /// A browser asks what it may send; nothing is decided yet.
    Preflight,
}

impl Code {
    /// All of them, for documentation and for registering metrics.
    pub const ALL: [Self; 52] = [
        Self::Pass,
        Self::Free,
        Self::Freebie,
        Self::PaymentRequired,
        Self::TokenRequired,
        Self::CredentialNotText,
        Self::PreimageMissing,
        Self::PreimageMalformed,
        Self::TokenMalformed,
        Self::TooManyTokens,
        Self::TokenUnknown,
        Self::TokenExpired,
        Self::TokenRevoked,
        Self::TokenOtherService,
        Self::TierOutgrown,
        Self::TokenOtherMethod,
        Self::TokenOtherPath,
        Self::TokenOtherClient,
        Self::TokenOtherCapability,
        Self::TokenOtherRequest,
        Self::TokenPriceCeiling,
        Self::CaveatWidened,
        Self::CaveatRepeated,
        Self::CaveatUnknown,
        Self::CaveatMalformed,
        Self::TermsMissing,
        Self::SecretWithdrawn,
        Self::UnitsSpent,
        Self::UnitsShort,
        Self::LimitReached,
        Self::UnitsInFlight,
        Self::LedgerUnavailable,
        Self::CostUnknown,
        Self::LengthRequired,
        Self::UploadTooDear,
        Self::KeyInUse,
        Self::KeyReused,
        Self::AnswerNotKept,
        Self::OfferUnknown,
        Self::PreimageWrong,
        Self::PaymentUnsettled,
        Self::PaymentUnconfirmed,
        Self::ClientMintLimit,
        Self::TotalMintLimit,
        Self::RateLimited,
        Self::NodeUnavailable,
        Self::NodeTimeout,
        Self::NodeWrong,
        Self::PriceInvalid,
        Self::StoreUnavailable,
        Self::PathRefused,
        Self::Preflight,
    ];

    /// Its place in [`Self::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The word. Never change one.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Free => "free",
            Self::Freebie => "freebie",
            Self::PaymentRequired => "payment_required",
            Self::TokenRequired => "token_required",
            Self::CredentialNotText => "credential_not_text",
            Self::PreimageMissing => "preimage_missing",
            Self::PreimageMalformed => "preimage_malformed",
            Self::TokenMalformed => "token_malformed",
            Self::TooManyTokens => "too_many_tokens",
            Self::TokenUnknown => "token_unknown",
            Self::TokenExpired => "token_expired",
            Self::TokenRevoked => "token_revoked",
            Self::TokenOtherService => "token_other_service",
            Self::TierOutgrown => "tier_outgrown",
            Self::TokenOtherMethod => "token_other_method",
            Self::TokenOtherPath => "token_other_path",
            Self::TokenOtherClient => "token_other_client",
            Self::TokenOtherCapability => "token_other_capability",
            Self::TokenOtherRequest => "token_other_request",
            Self::TokenPriceCeiling => "token_price_ceiling",
            Self::CaveatWidened => "caveat_widened",
            Self::CaveatRepeated => "caveat_repeated",
            Self::CaveatUnknown => "caveat_unknown",
            Self::CaveatMalformed => "caveat_malformed",
            Self::TermsMissing => "terms_missing",
            Self::SecretWithdrawn => "secret_withdrawn",
            Self::UnitsSpent => "units_spent",
            Self::UnitsShort => "units_short",
            Self::LimitReached => "limit_reached",
            Self::UnitsInFlight => "units_in_flight",
            Self::LedgerUnavailable => "ledger_unavailable",
            Self::CostUnknown => "cost_unknown",
            Self::LengthRequired => "length_required",
            Self::UploadTooDear => "upload_too_dear",
            Self::KeyInUse => "key_in_use",
            Self::KeyReused => "key_reused",
            Self::AnswerNotKept => "answer_not_kept",
            Self::OfferUnknown => "offer_unknown",
            Self::PreimageWrong => "preimage_wrong",
            Self::PaymentUnsettled => "payment_unsettled",
            Self::PaymentUnconfirmed => "payment_unconfirmed",
            Self::ClientMintLimit => "client_mint_limit",
            Self::TotalMintLimit => "total_mint_limit",
            Self::RateLimited => "rate_limited",
            Self::NodeUnavailable => "node_unavailable",
            Self::NodeTimeout => "node_timeout",
            Self::NodeWrong => "node_wrong",
            Self::PriceInvalid => "price_invalid",
            Self::StoreUnavailable => "store_unavailable",
            Self::PathRefused => "path_refused",
            Self::Preflight => "preflight",
        }
    }

    /// One sentence for whoever reads the answer. It says what to do, and nothing a stranger shouldn't know.
    pub const fn detail(self) -> &'static str {
        match self {
            Self::Pass => "paid",
            Self::Free => "free of charge",
            Self::Freebie => "one of the first, which cost nothing",
            Self::PaymentRequired => "this resource costs money: pay the invoice and send token and preimage",
            Self::TokenRequired => {
                "a valid token is needed, and none is sold on this path: buy it on another path of this service"
            }
            Self::CredentialNotText => {
                "the credential has bytes that are not ASCII: send it as it was received"
            }
            Self::PreimageMissing => {
                "the credential has no preimage: send `Authorization: L402 <token>:<preimage in hex>`"
            }
            Self::PreimageMalformed => "the credential's preimage is not 64 hexadecimal digits",
            Self::TokenMalformed => "the credential's token can't be read: send it as it was received",
            Self::TooManyTokens => "too many tokens at once: send the one that was bought for this service",
            Self::TokenUnknown => "this token was not issued here, or has been altered: pay the new invoice",
            Self::TokenExpired => "what this token bought has run out: pay the new invoice",
            Self::TokenRevoked => "this token has been revoked: pay the new invoice or ask the seller",
            Self::TokenOtherService => "this token was sold for another service: pay the new invoice",
            Self::TierOutgrown => {
                "this request is sold at a higher tier than that of this token: pay the new invoice"
            }
            Self::TokenOtherMethod => {
                "this token is limited to other methods: use the token it was made from, or pay the new invoice"
            }
            Self::TokenOtherPath => {
                "this token is limited to other paths: use the token it was made from, or pay the new invoice"
            }
            Self::TokenOtherClient => {
                "this token is limited to other clients: use the token it was made from, or pay the new invoice"
            }
            Self::TokenOtherCapability => {
                "this token may not do this: use one whose capabilities include it, or pay the new invoice"
            }
            Self::TokenOtherRequest => "this token was sold for one other request: pay the new invoice",
            Self::TokenPriceCeiling => {
                "this request costs more than this token is good for: pay the new invoice"
            }
            Self::CaveatWidened => {
                "a caveat of this token allows more than the one before: use the token without it, or pay the new invoice"
            }
            Self::CaveatRepeated => {
                "a caveat of this token stands twice: use the token without it, or pay the new invoice"
            }
            Self::CaveatUnknown => {
                "a caveat of this token is not known here: use the token without it, or pay the new invoice"
            }
            Self::CaveatMalformed => {
                "a caveat of this token can't be read: use the token without it, or pay the new invoice"
            }
            Self::TermsMissing => "this token doesn't say what was sold: pay the new invoice",
            Self::SecretWithdrawn => {
                "tokens of this age are only honoured where their payment is on the books: pay the new invoice or ask \
                 the seller"
            }
            Self::UnitsSpent => "what this token bought has been used up: pay the new invoice",
            Self::UnitsShort => {
                "what is left of this token is not enough for this request: pay the new invoice, and keep the token for \
                 requests that take less"
            }
            Self::LimitReached => {
                "this token has reached its limit for this month: use another, or pay the new invoice"
            }
            Self::UnitsInFlight => "what is left of this token is in use by requests under way: retry",
            Self::LedgerUnavailable => {
                "what is left of this token can't be counted just now; the token is not to blame: retry"
            }
            Self::CostUnknown => {
                "the seller doesn't say what this request takes from credit; nothing was charged: tell the seller"
            }
            Self::LengthRequired => {
                "the bytes of this request have a price; nothing was charged: say its `content-length`"
            }
            Self::UploadTooDear => {
                "no credit that is sold here pays for a body of this length; nothing was charged: send less at a time"
            }
            Self::KeyInUse => "the same request is being answered under this idempotency key: retry",
            Self::KeyReused => {
                "this idempotency key stands for another request; nothing was charged: use a new key for each request"
            }
            Self::AnswerNotKept => {
                "this request was answered and charged before, and its answer was too large to be kept; nothing was \
                 charged again: use a new key to ask anew"
            }
            Self::OfferUnknown => {
                "no such offer is sold here: leave the choice out to get the default, or choose one that is listed"
            }
            Self::PreimageWrong => {
                "the preimage doesn't belong to this token: send the one that paying revealed"
            }
            Self::PaymentUnsettled => {
                "the payment for this token has not arrived: pay its invoice, or wait until it has"
            }
            Self::PaymentUnconfirmed => {
                "whether the payment for this token has arrived can't be found out just now; the token is not to blame: \
                 retry"
            }
            Self::ClientMintLimit => {
                "too many unpaid invoices asked for from this address: wait, or pay one of them"
            }
            Self::TotalMintLimit => "too many unpaid invoices are being asked for: wait",
            Self::RateLimited => "too many requests in a short time: wait; there is nothing to pay",
            Self::NodeUnavailable => {
                "no invoice can be made just now; tokens already paid for keep working: retry"
            }
            Self::NodeTimeout => {
                "no invoice could be made in time; tokens already paid for keep working: retry"
            }
            Self::NodeWrong => {
                "no usable invoice could be made; tokens already paid for keep working: retry later"
            }
            Self::PriceInvalid => "this resource has no price that can be asked for: tell the seller",
            Self::StoreUnavailable => "the books can't be read just now; the token is not to blame: retry",
            Self::PathRefused => {
                "the path is ambiguous: send it without dot segments, empty segments, backslashes or encoded separators"
            }
            Self::Preflight => "ask away",
        }
    }
}

impl From<CredentialError> for Code {
    fn from(error: CredentialError) -> Self {
        match error {
            CredentialError::NotText => Self::CredentialNotText,
            CredentialError::PreimageMissing => Self::PreimageMissing,
            CredentialError::PreimageMalformed => Self::PreimageMalformed,
            CredentialError::TooManyTokens => Self::TooManyTokens,
            // Whatever else may come to be wrong with a credential.
            CredentialError::Token(_) | _ => Self::TokenMalformed,
        }
    }
}

impl From<&CaveatRefusal> for Code {
    fn from(refusal: &CaveatRefusal) -> Self {
        match refusal {
            CaveatRefusal::Expired { .. } => Self::TokenExpired,
            CaveatRefusal::OtherService { .. } => Self::TokenOtherService,
            CaveatRefusal::Method { .. } => Self::TokenOtherMethod,
            CaveatRefusal::Path => Self::TokenOtherPath,
            CaveatRefusal::Client => Self::TokenOtherClient,
            CaveatRefusal::Capability { .. } => Self::TokenOtherCapability,
            CaveatRefusal::OtherRequest => Self::TokenOtherRequest,
            CaveatRefusal::Ceiling { .. } => Self::TokenPriceCeiling,
            CaveatRefusal::Widened { .. } => Self::CaveatWidened,
            CaveatRefusal::Repeated { .. } => Self::CaveatRepeated,
            CaveatRefusal::Malformed { .. } => Self::CaveatMalformed,
            // Whatever else a caveat may come to be refused for.
            CaveatRefusal::Unknown { .. } | _ => Self::CaveatUnknown,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_code_is_one_lower_case_word_of_its_own() {
        let words: HashSet<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(words.len(), Code::ALL.len());
        for code in Code::ALL {
            assert!(code.as_str().bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{code}");
            assert!(
                code.detail().bytes().all(|b| (b' '..=b'~').contains(&b)),
                "{code}: goes into a gRPC header"
            );
        }
    }

    #[test]
    fn every_code_knows_its_place() {
        for (place, code) in Code::ALL.into_iter().enumerate() {
            assert_eq!(code.index(), place, "{code}");
        }
    }

    #[test]
    fn the_words_are_the_protocols_own_where_it_has_one() {
        let condition = || "x".to_owned();
        for error in [
            CredentialError::NotText,
            CredentialError::PreimageMissing,
            CredentialError::PreimageMalformed,
            CredentialError::Token(farebox_protocol::Macaroon::from_bytes(b"").unwrap_err()),
            CredentialError::TooManyTokens,
        ] {
            assert_eq!(Code::from(error).as_str(), error.code());
        }
        for refusal in [
            CaveatRefusal::Expired {
                service: "a".parse().unwrap(),
                valid_until: farebox_protocol::Timestamp::default(),
                now: farebox_protocol::Timestamp::default(),
            },
            CaveatRefusal::OtherService { service: "a".parse().unwrap() },
            CaveatRefusal::Method { method: http::Method::GET },
            CaveatRefusal::Path,
            CaveatRefusal::Client,
            CaveatRefusal::Capability { service: "a".parse().unwrap(), missing: None },
            CaveatRefusal::OtherRequest,
            CaveatRefusal::Ceiling { ceiling: farebox_protocol::Msat::ZERO, price: None },
            CaveatRefusal::Widened { condition: condition() },
            CaveatRefusal::Repeated { condition: condition() },
            CaveatRefusal::Unknown { condition: condition() },
            CaveatRefusal::Malformed { condition: condition() },
        ] {
            assert_eq!(Code::from(&refusal).as_str(), refusal.code());
        }
    }
}
