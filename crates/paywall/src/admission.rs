//! What a front door asks of the paywall and what it is told. Front doors only translate to and from these.

use std::{net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use farebox_protocol::{Identifier, PaymentHash, ServiceName, TokenId};
use http::{HeaderMap, Method, StatusCode, header::CONTENT_LENGTH};

use crate::{Bill, Code, Freebie, Service, forward::Names};

/// A request, as far as the decision needs it.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The service it was routed to.
    pub service: &'a Service,
    /// Its method.
    pub method: &'a Method,
    /// Its path in normal form ([`crate::normalise`]): the same one that is forwarded.
    pub path: &'a str,
    /// What follows its `?`: where an offer may be chosen. Nothing is decided by it.
    pub query: Option<&'a str>,
    /// Who sent it, as far as trusted proxies say.
    pub client: IpAddr,
    /// Its headers, credentials included. They are not logged.
    pub headers: &'a HeaderMap,
    /// Whether it is a gRPC call, which is answered in gRPC's way.
    pub grpc: bool,
}

impl Request<'_> {
    /// How many bytes its body has, by its own word; 0 where it doesn't say.
    pub(crate) fn length(&self) -> u64 {
        let length = self.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
        length.and_then(|length| length.trim().parse().ok()).unwrap_or_default()
    }
}

/// What to do with a request.
#[derive(Debug)]
#[must_use]
pub enum Admission {
    /// Forward it, without its credential. Where it is counted, the bill goes with it and ends with its answer.
    Pass(Pass, Option<Box<Bill>>),
    /// Don't forward it; answer this.
    Answer(Answer),
}

/// A request may be forwarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pass {
    /// The token that was presented; none where nothing needed paying.
    pub token_id: Option<TokenId>,
    /// The payment behind it; none where nothing needed paying.
    pub payment_hash: Option<PaymentHash>,
    /// Which of the tokens that were presented it is, counted over all credentials in the order in which they are read;
    /// others beside it may be forged. None where nothing needed paying.
    pub token_index: Option<usize>,
    /// The service that was asked for.
    pub service: ServiceName,
    /// [`Code::Pass`], [`Code::Free`] or [`Code::Freebie`]; [`Code::Preflight`] where a browser only asks what it may send.
    pub code: Code,
    /// The freebie that was counted for it, to be given back where the client gets nothing for it.
    pub freebie: Option<Freebie>,
    /// The token's id and payment hash in writing.
    pub(crate) names: Option<Arc<Names>>,
}

/// A whole answer, ready to be sent. It belongs to this one asker: it may hold an invoice.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status; 200 for gRPC, whose own status is in the headers.
    pub status: StatusCode,
    /// All headers but `content-length`. `www-authenticate` occurs twice in a challenge, in this order.
    pub headers: HeaderMap,
    /// The body; empty for HEAD and gRPC.
    pub body: Bytes,
    /// Why, for log and metrics.
    pub code: Code,
    /// How long to wait before asking again, where that helps; also in the headers.
    pub retry_after: Option<Duration>,
}

impl Pass {
    /// For a preflight that is not ours to answer. It says nothing of what may be had.
    pub fn preflight(service: ServiceName) -> Self {
        Self::unpaid(service, Code::Preflight)
    }

    pub(crate) const fn unpaid(service: ServiceName, code: Code) -> Self {
        Self {
            token_id: None,
            payment_hash: None,
            token_index: None,
            service,
            code,
            freebie: None,
            names: None,
        }
    }

    pub(crate) fn freebie(service: ServiceName, freebie: Option<Freebie>) -> Self {
        Self { freebie, ..Self::unpaid(service, Code::Freebie) }
    }

    pub(crate) fn paid(
        identifier: &Identifier,
        index: usize,
        names: Arc<Names>,
        service: ServiceName,
    ) -> Self {
        Self {
            token_id: Some(identifier.token_id),
            payment_hash: Some(identifier.payment_hash),
            token_index: Some(index),
            service,
            code: Code::Pass,
            freebie: None,
            names: Some(names),
        }
    }
}

impl Pass {
    /// Whether the credential is known to be all that `Authorization` says, in one line: it can be removed without being
    /// read again.
    pub fn is_credential_alone(&self) -> bool {
        self.names.as_ref().is_some_and(|names| names.is_alone)
    }
}

impl Admission {
    /// Why, for log and metrics.
    pub fn code(&self) -> Code {
        match self {
            Self::Pass(pass, _) => pass.code,
            Self::Answer(answer) => answer.code,
        }
    }
}

impl Answer {
    /// As a response, without anything added.
    pub fn into_response(self) -> http::Response<Bytes> {
        let mut response = http::Response::new(self.body);
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}
