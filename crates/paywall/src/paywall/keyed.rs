//! Requests that their buyers may repeat under an idempotency key: known again before anything is set aside for them, so that
//! what was answered is answered again also where nothing is left.
//!
//! A key is looked at only where a request would be counted. A front door that can keep answers asks
//! [`admit_keyed`](Paywall::admit_keyed), reads the body if there turns out to be a key, and goes on with
//! [`admit_once`](Paywall::admit_once). Others ask [`admit`](Paywall::admit), and keys mean nothing to them.

use std::sync::Arc;

use farebox_protocol::PaymentHash;
use http::HeaderName;

use super::{Paywall, refusal, refused};
use crate::{
    Admission, Code, Request,
    ledger::Repeat,
    respond::Refusal,
    store::accounts::{RequestDigest, StoredAnswer},
};

/// Where a buyer names the key.
pub const KEY_HEADER: HeaderName = HeaderName::from_static("idempotency-key");

/// Whether keys are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keys {
    Minded,
    Ignored,
}

/// What to do with a request that has a key.
#[derive(Debug)]
#[must_use]
pub enum Once {
    /// It is the first of its kind, or is refused. The bill keeps its answer.
    Admission(Admission),
    /// It has been answered: answer this again. Nothing is charged.
    Replay(Arc<StoredAnswer>),
}

impl Keys {
    /// Whether a request that would be counted has to be known again first.
    pub(super) fn ask(self, request: &Request<'_>) -> bool {
        self == Self::Minded && request.headers.contains_key(&KEY_HEADER)
    }
}

impl Paywall {
    /// Like [`admit`](Self::admit), unless the request would be counted and has a key.
    ///
    /// # Errors
    ///
    /// The payment that it would be counted against: nothing has been set aside, go on with
    /// [`admit_once`](Self::admit_once).
    pub async fn admit_keyed(&self, request: &Request<'_>) -> Result<Admission, PaymentHash> {
        match self.admit_at_once(request, Keys::Minded) {
            Ok(admission) => Ok(admission),
            Err(slowly) => slowly.await,
        }
    }

    /// Whether a request that has a key may pass, or what was answered to it before.
    pub async fn admit_once(
        &self,
        request: &Request<'_>,
        hash: PaymentHash,
        key: &[u8],
        digest: RequestDigest,
    ) -> Once {
        let wait = Some(self.config.retry_after);
        let refuse = |code, retry_after| {
            Once::Admission(refused(request, &Refusal { retry_after, ..refusal(request, code) }))
        };
        match self.ledger.begin_answer(&hash, key, digest).await {
            Ok(Repeat::Replay(answer)) => Once::Replay(answer),
            Ok(Repeat::UnderWay) => refuse(Code::KeyInUse, wait),
            Ok(Repeat::Different) => refuse(Code::KeyReused, None),
            Ok(Repeat::NotKept) => refuse(Code::AnswerNotKept, None),
            Ok(Repeat::First(first)) => {
                let mut admission = self.admit(request).await;
                if let Admission::Pass(_, Some(bill)) = &mut admission {
                    bill.keep(first);
                }
                Once::Admission(admission)
            }
            Err(why) => {
                tracing::warn!(%why, "an idempotency key could not be looked up");
                refuse(Code::LedgerUnavailable, wait)
            }
        }
    }
}
