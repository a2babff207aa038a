//! Receipts for buyers who ask for them over HTTP: one path for the receipt, one for the key that it is checked with.
//!
//! `POST` with the credential is answered with the receipt of its purchase, word for word what `farebox receipt verify` checks;
//! `GET` of the other path tells anybody the key. A receipt goes to the holder of the whole token only: who was handed a narrowed
//! one learns nothing of what others paid and used. It says what is in the books by then and nothing else. Asking sells, charges
//! and revokes nothing.
//!
//! The key is in memory since the start, and so is what is needed to turn strangers away: only a credential that proves a
//! payment has the books read for it, so many times, and so many at once.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use serde_json::json;
use tokio::sync::Semaphore;

use super::{NoReceipt, Receipt, ReceiptKey, SellerName, SignedReceipt};
use crate::{
    CODE_HEADER, Paywall,
    limit::Attempts,
    paywall::{NoHolder, NotBought},
};

/// Where buyers ask for a receipt.
pub const PATH: &str = "/.well-known/farebox/receipt";
/// Where anybody asks for the key.
pub const KEY_PATH: &str = "/.well-known/farebox/receipt-key";

/// Receipts that may be looked up at once: the books have others to serve.
const AT_ONCE_MAX: usize = 8;
/// When to ask again for what is on its way to the books.
const SOON: Duration = Duration::from_secs(5);
/// When to ask again of books that can't be read.
const LATER: Duration = Duration::from_secs(30);

/// Makes receipts for who shows a token. One for each process.
pub struct Receipts {
    paywall: Arc<Paywall>,
    key: ReceiptKey,
    seller: Option<SellerName>,
    attempts: Attempts,
    at_once: Semaphore,
}

/// Why somebody gets no receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiptRefusal {
    /// No credential.
    #[error("show the token and its preimage: `Authorization: L402 <token>:<preimage>`")]
    CredentialMissing,
    /// One that proves nothing.
    #[error("the credential is not one token with its preimage, sold here")]
    CredentialWrong,
    /// The token was revoked or replaced, or its secret has leaked.
    #[error("there is no receipt for this token; ask the seller")]
    TokenWithdrawn,
    /// A holder has narrowed the token.
    #[error("receipts are for the holder of the whole token; use the one this was made from")]
    TokenNarrowed,
    /// The books don't have it, or not all of it.
    #[error("this payment, or what it bought, is not on the books yet; ask again in a moment")]
    NotBooked,
    /// Too many tries.
    #[error("too many receipts of this purchase; ask again later")]
    TooOften(Duration),
    /// Not just now.
    #[error("the books can't be asked just now; ask again later")]
    Unavailable,
}

impl Receipts {
    /// Signs with this key, for a seller of this name.
    pub fn new(paywall: Arc<Paywall>, key: ReceiptKey, seller: Option<SellerName>) -> Arc<Self> {
        let (attempts, at_once) = (Attempts::default(), Semaphore::new(AT_ONCE_MAX));
        Arc::new(Self { paywall, key, seller, attempts, at_once })
    }

    /// The receipt of the purchase whose token these headers show.
    ///
    /// # Errors
    ///
    /// When they show none that gets a receipt, or the books don't have it.
    pub async fn make(&self, headers: &HeaderMap) -> Result<SignedReceipt, ReceiptRefusal> {
        let holder = self.paywall.holder(headers)?;
        let _permit = self.at_once.try_acquire().map_err(|_| ReceiptRefusal::Unavailable)?;
        self.attempts.take(holder.identifier.payment_hash).map_err(ReceiptRefusal::TooOften)?;
        let now = self.paywall.now();
        let entry = self.paywall.entry(&holder, now).await?;
        let receipt = Receipt::of(&entry, self.paywall.network(), self.seller.clone(), now)?;
        Ok(receipt.limited(&holder.monthly).sign(&self.key))
    }

    /// Answers a request to [`PATH`]. Whatever its body says, there is nothing to say.
    pub async fn answer(&self, method: &Method, headers: &HeaderMap) -> Response<Bytes> {
        if method != Method::POST {
            return not_so("POST");
        }
        match self.make(headers).await {
            Ok(signed) => text(signed.to_string()),
            Err(refusal) => refuse(&refusal),
        }
    }

    /// Answers a request to [`KEY_PATH`].
    pub fn answer_key(&self, method: &Method) -> Response<Bytes> {
        match *method {
            Method::GET | Method::HEAD => text(format!("{}\n", self.key.public())),
            _ => not_so("GET, HEAD"),
        }
    }
}

/// What to answer at both paths where there is no key.
pub fn not_offered() -> Response<Bytes> {
    let why = "this seller signs no receipts here; ask them";
    problem(StatusCode::NOT_FOUND, "receipts_not_offered", why)
}

fn refuse(refusal: &ReceiptRefusal) -> Response<Bytes> {
    let (status, code) = verdict(refusal);
    let mut response = problem(status, code, &refusal.to_string());
    let headers = response.headers_mut();
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("L402"));
    }
    let wait = match refusal {
        ReceiptRefusal::TooOften(wait) => Some(*wait),
        ReceiptRefusal::NotBooked => Some(SOON),
        ReceiptRefusal::Unavailable => Some(LATER),
        _ => None,
    };
    if let Some(wait) = wait {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)));
    }
    response
}

const fn verdict(refusal: &ReceiptRefusal) -> (StatusCode, &'static str) {
    use ReceiptRefusal as R;
    match refusal {
        R::CredentialMissing => (StatusCode::UNAUTHORIZED, "receipt_credential_missing"),
        R::CredentialWrong => (StatusCode::UNAUTHORIZED, "receipt_credential_wrong"),
        R::TokenWithdrawn => (StatusCode::FORBIDDEN, "receipt_token_withdrawn"),
        R::TokenNarrowed => (StatusCode::FORBIDDEN, "receipt_token_narrowed"),
        R::NotBooked => (StatusCode::NOT_FOUND, "receipt_not_booked"),
        R::TooOften(_) => (StatusCode::TOO_MANY_REQUESTS, "receipt_too_often"),
        R::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "receipt_unavailable"),
    }
}

fn not_so(allowed: &'static str) -> Response<Bytes> {
    let why = format!("ask by {allowed}");
    let mut response = problem(StatusCode::METHOD_NOT_ALLOWED, "receipt_method", &why);
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    response
}

fn problem(status: StatusCode, code: &'static str, detail: &str) -> Response<Bytes> {
    let body = json!({
        "type": "about:blank",
        "title": "no receipt",
        "status": status.as_u16(),
        "code": code,
        "detail": detail,
    });
    let mut response = respond(status, "application/problem+json", format!("{body}\n"));
    response.headers_mut().insert(CODE_HEADER, HeaderValue::from_static(code));
    response
}

fn text(text: String) -> Response<Bytes> {
    respond(StatusCode::OK, "text/plain; charset=utf-8", text)
}

fn respond(status: StatusCode, kind: &'static str, body: String) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

impl From<NoHolder> for ReceiptRefusal {
    fn from(why: NoHolder) -> Self {
        match why {
            NoHolder::Nothing => Self::CredentialMissing,
            NoHolder::Malformed | NoHolder::Unknown | NoHolder::PreimageWrong => Self::CredentialWrong,
            // Its money is on the books still. But who shows it may be the one because of whom it was revoked, and what it was
            // worth may live on in another token; the seller can tell, and make the receipt themselves.
            NoHolder::Revoked | NoHolder::Withdrawn => Self::TokenWithdrawn,
            NoHolder::Narrowed => Self::TokenNarrowed,
        }
    }
}

impl From<NotBought> for ReceiptRefusal {
    fn from(why: NotBought) -> Self {
        match why {
            NotBought::Unsettled => Self::NotBooked,
            NotBought::OtherSale => Self::TokenWithdrawn,
            NotBought::Unavailable(error) => {
                tracing::warn!(error, "a receipt can't be made: the books can't be asked");
                Self::Unavailable
            }
        }
    }
}

impl From<NoReceipt> for ReceiptRefusal {
    fn from((NoReceipt::Unsettled | NoReceipt::Unattributed): NoReceipt) -> Self {
        Self::NotBooked
    }
}

impl fmt::Debug for Receipts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receipts")
            .field("key", &self.key)
            .field("seller", &self.seller)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
