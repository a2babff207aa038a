//! What buyers ask the seller rather than a service: for money back, and for receipts. Carried to those who decide about it;
//! bodies are read, within bounds, and nothing is judged.
//!
//! Each is answered at one path of every host, before any service is looked for: a credential says which purchase is meant,
//! and questions never cost anything. That holds where the seller doesn't offer it, too, so that no service is charged for a
//! question and no upstream learns of it.

use std::time::Duration;

use farebox_paywall::{
    receipt,
    refund::{self, BODY_BYTES_MAX},
};
use http::{Response, header::ORIGIN, request::Parts};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use tokio::time::timeout;

use super::Body;
use crate::{
    cors::{Cors, is_preflight},
    gateway::Shared,
};

/// How long a client may take to send its few bytes.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which pages may ask: any, without cookies, whatever the services behind here say. A question is answered to whoever has the
/// credential, from wherever it comes, and a browser brings none of those by itself.
const PAGES: Cors = Cors::Any;

/// Who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Desk {
    Refund,
    Receipt,
    ReceiptKey,
}

impl Desk {
    /// The one at this path.
    #[inline]
    pub(super) fn at(path: &str) -> Option<Self> {
        // This is asked for every request, and hardly any goes on behind here.
        if path.as_bytes().get(1) != Some(&b'.') {
            return None;
        }
        match path {
            refund::PATH => Some(Self::Refund),
            receipt::PATH => Some(Self::Receipt),
            receipt::KEY_PATH => Some(Self::ReceiptKey),
            _ => None,
        }
    }

    pub(super) async fn answer(
        self,
        shared: &Shared,
        parts: &Parts,
        query: Option<&str>,
        body: Incoming,
    ) -> Response<Body> {
        if is_preflight(&parts.method, &parts.headers) {
            return PAGES.preflight(&parts.headers);
        }
        let (refunds, receipts) = (shared.refunds.get(), shared.receipts.get());
        let answer = match (self, refunds, receipts) {
            (Self::Refund, Some(refunds), _) => {
                let body = timeout(PATIENCE, Limited::new(body, BODY_BYTES_MAX).collect()).await;
                // What doesn't come, or doesn't end, asks for nothing.
                let body = body.ok().and_then(Result::ok).map(|body| body.to_bytes()).unwrap_or_default();
                refunds.answer(&parts.method, query, &parts.headers, &body).await
            }
            (Self::Receipt, _, Some(receipts)) => receipts.answer(&parts.method, &parts.headers).await,
            (Self::ReceiptKey, _, Some(receipts)) => receipts.answer_key(&parts.method),
            (Self::Refund, None, _) => refund::not_offered(),
            (Self::Receipt | Self::ReceiptKey, _, None) => receipt::not_offered(),
        };
        let mut answer = answer.map(Body::full);
        PAGES.open_own(parts.headers.get(ORIGIN), answer.headers_mut());
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn desks_are_at_their_paths_and_nowhere_else() {
        assert_eq!(Desk::at("/.well-known/farebox/refund"), Some(Desk::Refund));
        assert_eq!(Desk::at("/.well-known/farebox/receipt"), Some(Desk::Receipt));
        assert_eq!(Desk::at("/.well-known/farebox/receipt-key"), Some(Desk::ReceiptKey));
        for path in [
            "",
            "*",
            "/",
            "/.",
            "/.well-known/farebox",
            "/.well-known/farebox/",
            "/.well-known/farebox/receipts",
            "/.well-known/farebox/receipt/",
            "/.well-known/farebox/receipt/key",
            "/.Well-Known/farebox/receipt",
            "/api/.well-known/farebox/receipt",
            "/.well-known/acme-challenge/x",
        ] {
            assert_eq!(Desk::at(path), None, "{path}");
        }
    }
}
