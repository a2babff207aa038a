//! Which status a failure becomes: everything that the gateway answers for a reason other than money, here and nowhere
//! else. Answers about money are the paywall's (`respond.rs` there); both look alike.
//!
//! Programs get problem JSON (RFC 9457), gRPC clients HTTP 200 with the status in the headers. What a stranger reads says
//! what they can do about it; addresses and causes go to the log only.

use bytes::Bytes;
use farebox_paywall::PathError;
use http::{
    HeaderName, HeaderValue, Method, Response, StatusCode,
    header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE},
};
use serde_json::json;

use super::Body;
use crate::upstream::SendError;

/// Why a request was not served, besides payment.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("this client may not come in")]
    Client,
    #[error("there are more than {max} header lines")]
    TooManyHeaders { max: usize },
    #[error("{0}")]
    Host(&'static str),
    #[error("{0}")]
    Path(#[source] PathError),
    #[error("the method {0} is not served here")]
    Method(Method),
    #[error("the body is in a transfer coding other than `chunked`, or in several")]
    Coding,
    #[error("connections cannot be upgraded here, or not to this protocol")]
    Upgrade,
    #[error("{0}")]
    Handshake(&'static str),
    #[error("nothing is served under this host, path and method")]
    NoService,
    #[error("the body is larger than the {max} bytes that are taken here")]
    BodyTooLarge { max: u64 },
    #[error("there is not exactly one idempotency key of 1 to 255 bytes")]
    Key,
    #[error("the body is larger than the {max} bytes that are compared under an idempotency key")]
    KeyedBodyTooLarge { max: u64 },
    #[error("the rest of the body did not come in time")]
    BodyStalled,
    #[error("the body ended early or cannot be read")]
    BodyLost,
    #[error("the upstream failed")]
    Upstream(#[from] SendError),
    #[error("the upstream did not answer in time")]
    UpstreamTimeout,
    #[error("the call's own deadline has passed")]
    Deadline,
    /// In the middle of an upload, or of an answer, which breaks off there.
    #[error("the buyer's credit has been used up")]
    CreditExhausted,
    #[error("the gateway has a defect")]
    Defect,
}

/// What a failure becomes.
struct Verdict {
    status: StatusCode,
    grpc_status: &'static str,
    code: &'static str,
    /// Printable ASCII without `%`, as it also goes into a gRPC header.
    detail: &'static str,
}

const CODE: HeaderName = HeaderName::from_static("farebox-code");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

const UNAVAILABLE: &str = "14";

impl Failure {
    /// The codes of the table. Metrics count by them; one that is forgotten here is counted as the last.
    pub(crate) const CODES: [&'static str; 23] = [
        "client_refused",
        "too_many_headers",
        "host_refused",
        "path_refused",
        "method_refused",
        "coding_refused",
        "upgrade_refused",
        "upgrade_malformed",
        "no_service",
        "body_too_large",
        "key_malformed",
        "key_body_too_large",
        "body_stalled",
        "body_lost",
        "upstream_connect_timeout",
        "upstream_unreachable",
        "upstream_busy",
        "upstream_upgrade_unsupported",
        "upstream_failed",
        "upstream_timeout",
        "deadline_exceeded",
        "credit_exhausted",
        "internal",
    ];

    /// The table.
    const fn verdict(&self) -> Verdict {
        let (status, grpc_status, code, detail) = match self {
            Self::Client => (
                StatusCode::FORBIDDEN,
                "7",
                "client_refused",
                "requests from this address are not served here",
            ),
            Self::TooManyHeaders { .. } => (
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "8",
                "too_many_headers",
                "the request has more header lines than are taken here",
            ),
            Self::Host(_) => (
                StatusCode::BAD_REQUEST,
                "3",
                "host_refused",
                "the host is missing or ambiguous: send exactly one, and the same in target and Host",
            ),
            Self::Path(_) => (
                StatusCode::BAD_REQUEST,
                "3",
                "path_refused",
                "the path is ambiguous: send it without dot segments, empty segments, backslashes or encoded separators",
            ),
            Self::Method(_) => {
                (StatusCode::NOT_IMPLEMENTED, "12", "method_refused", "this method is not served here")
            }
            Self::Coding => (
                StatusCode::NOT_IMPLEMENTED,
                "12",
                "coding_refused",
                "the only transfer coding that is taken here is chunked, once",
            ),
            Self::Upgrade => (
                StatusCode::NOT_IMPLEMENTED,
                "12",
                "upgrade_refused",
                "this protocol upgrade is not served here",
            ),
            Self::Handshake(_) => (
                StatusCode::BAD_REQUEST,
                "3",
                "upgrade_malformed",
                "a WebSocket begins with a GET without a body and exactly one Sec-WebSocket-Key",
            ),
            Self::NoService => (
                StatusCode::NOT_FOUND,
                "12",
                "no_service",
                "nothing is served under this host, path and method",
            ),
            Self::BodyTooLarge { .. } => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "8",
                "body_too_large",
                "the request body is too large for this service",
            ),
            Self::Key => (
                StatusCode::BAD_REQUEST,
                "3",
                "key_malformed",
                "the Idempotency-Key must be exactly one, of 1 to 255 bytes",
            ),
            Self::KeyedBodyTooLarge { .. } => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "8",
                "key_body_too_large",
                "a request with an Idempotency-Key may have a body of up to 1 MiB",
            ),
            Self::BodyStalled => (
                StatusCode::REQUEST_TIMEOUT,
                "10",
                "body_stalled",
                "the rest of the request body did not come in time",
            ),
            Self::BodyLost => {
                (StatusCode::BAD_REQUEST, "3", "body_lost", "the request body ended early or cannot be read")
            }
            Self::Upstream(SendError::ConnectTimeout) => (
                StatusCode::GATEWAY_TIMEOUT,
                UNAVAILABLE,
                "upstream_connect_timeout",
                "the service cannot be reached just now: retry",
            ),
            Self::Upstream(SendError::Busy) => (
                StatusCode::SERVICE_UNAVAILABLE,
                UNAVAILABLE,
                "upstream_busy",
                "the service has as much to do as it can take: retry",
            ),
            Self::Upstream(SendError::Connect(_) | SendError::Handshake(_)) => (
                StatusCode::BAD_GATEWAY,
                UNAVAILABLE,
                "upstream_unreachable",
                "the service cannot be reached just now: retry",
            ),
            Self::Upstream(SendError::NoExtendedConnect) => (
                StatusCode::BAD_GATEWAY,
                UNAVAILABLE,
                "upstream_upgrade_unsupported",
                "the service does not take WebSockets in the version of HTTP that it speaks",
            ),
            Self::Upstream(
                SendError::Exchange(_)
                | SendError::Coding
                | SendError::Switched
                | SendError::NotSwitched
                | SendError::Unproven,
            ) => {
                (StatusCode::BAD_GATEWAY, UNAVAILABLE, "upstream_failed", "the service gave no usable answer")
            }
            Self::UpstreamTimeout => {
                (StatusCode::GATEWAY_TIMEOUT, "4", "upstream_timeout", "the service did not answer in time")
            }
            Self::Deadline => {
                (StatusCode::GATEWAY_TIMEOUT, "4", "deadline_exceeded", "the deadline has passed")
            }
            Self::CreditExhausted => (
                StatusCode::PAYMENT_REQUIRED,
                "8",
                "credit_exhausted",
                "nothing is left to pay for the rest of the request or its answer: buy more credit",
            ),
            Self::Defect => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "13",
                "internal",
                "the gateway has a defect: tell the operator",
            ),
        };
        Verdict { status, grpc_status, code, detail }
    }

    /// One word that never changes: the same in the answer, the log and the metrics.
    pub(crate) const fn code(&self) -> &'static str {
        self.verdict().code
    }

    /// Whether the upstream is to blame.
    pub(crate) const fn is_upstreams(&self) -> bool {
        matches!(self, Self::Upstream(_) | Self::UpstreamTimeout | Self::Deadline)
    }

    /// Whether the client brought it about after its request was let through: it may have had work done for it.
    pub(super) const fn is_clients(&self) -> bool {
        matches!(
            self,
            Self::BodyTooLarge { .. }
                | Self::BodyStalled
                | Self::BodyLost
                | Self::Deadline
                | Self::CreditExhausted
        )
    }

    pub(super) fn response(&self, is_grpc: bool) -> Response<Body> {
        let verdict = self.verdict();
        let mut response = if is_grpc { verdict.grpc() } else { verdict.problem() };
        let headers = response.headers_mut();
        headers.insert(CODE, HeaderValue::from_static(verdict.code));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if matches!(self, Self::Host(_) | Self::Path(_) | Self::Coding | Self::Handshake(_) | Self::BodyLost)
        {
            // Who sends such things may have more of them in the same connection. (HTTP/2 knows no such header; hyper
            // leaves it out.)
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

impl Verdict {
    fn problem(&self) -> Response<Body> {
        let body = json!({
            "type": "about:blank",
            "title": self.status.canonical_reason(),
            "status": self.status.as_u16(),
            "detail": self.detail,
            "code": self.code,
        });
        let mut response = Response::new(Body::full(Bytes::from(body.to_string())));
        *response.status_mut() = self.status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        response
    }

    fn grpc(&self) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(GRPC_STATUS, HeaderValue::from_static(self.grpc_status));
        headers.insert(GRPC_MESSAGE, HeaderValue::from_static(self.detail));
        response
    }
}

/// How a gRPC stream ends that nobody pays for any further.
pub(super) fn grpc_trailers_for_exhausted_credit() -> http::HeaderMap {
    let Verdict { grpc_status, code, detail, .. } = Failure::CreditExhausted.verdict();
    http::HeaderMap::from_iter([
        (GRPC_STATUS, HeaderValue::from_static(grpc_status)),
        (GRPC_MESSAGE, HeaderValue::from_static(detail)),
        (CODE, HeaderValue::from_static(code)),
    ])
}

/// How a gRPC stream ends whose upstream is lost in the middle of it.
pub(super) fn grpc_trailers_for_a_lost_upstream() -> http::HeaderMap {
    let mut trailers = http::HeaderMap::with_capacity(2);
    trailers.insert(GRPC_STATUS, HeaderValue::from_static(UNAVAILABLE));
    trailers
        .insert(GRPC_MESSAGE, HeaderValue::from_static("the service was lost in the middle of its answer"));
    trailers
}
