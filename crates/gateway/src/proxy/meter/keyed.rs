//! Requests that their buyers may repeat under an `Idempotency-Key`, and the answers that are kept for that.
//!
//! A key is looked at only where the request would be counted; all else passes on as it came, key included. The body is
//! read to its end first, so that another request under the same key is told apart; one that is too large for that is
//! refused, since who names a key relies on it.

use bytes::{BufMut, Bytes, BytesMut};
use farebox_paywall::{
    Admission, KEY_HEADER, LEFT_HEADER, LEFT_UNIT_HEADER, Paywall, Request,
    ledger::ANSWER_BYTES_MAX,
    store::accounts::{RequestDigest, StoredAnswer},
};
use farebox_protocol::PaymentHash;
use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Version, header::DATE, uri::PathAndQuery,
};
use hyper::body::Body as _;

use super::{
    super::{Body, Own, failure::Failure},
    Arriving,
};
use crate::services::Route;

/// The longest key, and the largest body that is read for one.
const KEY_BYTES_MAX: usize = 255;
const BODY_BYTES_MAX: u64 = 1 << 20;

/// A request that is answered once, as far as the front door knows it.
pub(in crate::proxy) struct Once<'a> {
    /// What it would be counted against.
    pub(in crate::proxy) hash: PaymentHash,
    pub(in crate::proxy) target: &'a PathAndQuery,
    pub(in crate::proxy) version: Version,
    pub(in crate::proxy) route: &'a Route,
}

impl Once<'_> {
    /// Whether it may pass, or what was answered to it before.
    pub(in crate::proxy) async fn admit(
        &self,
        question: &Request<'_>,
        body: &mut Arriving,
        paywall: &Paywall,
    ) -> Result<Admission, Own> {
        let key = key(question.headers).ok_or(Failure::Key)?;
        let is_too_large = body.body.size_hint().lower() > BODY_BYTES_MAX;
        if is_too_large || !body.read_ahead(BODY_BYTES_MAX, self.version, self.route).await? {
            return Err(Failure::KeyedBodyTooLarge { max: BODY_BYTES_MAX }.into());
        }
        let digest = RequestDigest::new(question.method.as_str(), self.target.as_str(), body.digest());
        match paywall.admit_once(question, self.hash, key, digest).await {
            farebox_paywall::Once::Admission(admission) => Ok(admission),
            farebox_paywall::Once::Replay(answer) => Err(Own::Replay(answer)),
        }
    }
}

/// The one key that a request names.
fn key(headers: &HeaderMap) -> Option<&[u8]> {
    let mut keys = headers.get_all(KEY_HEADER).iter();
    let key = keys.next().filter(|_| keys.next().is_none())?.as_bytes().trim_ascii();
    (1..=KEY_BYTES_MAX).contains(&key.len()).then_some(key)
}

/// Says that an answer has been given before, and wasn't charged again.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// How much of a head is kept.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// An answer on its way that is kept for who repeats the request.
pub(in crate::proxy) struct Kept {
    status: StatusCode,
    headers: Bytes,
    /// None where it can't be kept: it is too large, or has trailers.
    body: Option<BytesMut>,
}

impl Kept {
    /// Begins to keep an answer with this head.
    pub(in crate::proxy) fn new(status: StatusCode, headers: &HeaderMap) -> Self {
        let mut lines = BytesMut::new();
        // The date is put on again, and what is left has changed by then.
        let is_kept = |name: &HeaderName| ![DATE, LEFT_HEADER, LEFT_UNIT_HEADER].contains(name);
        for (name, value) in headers.iter().filter(|(name, _)| is_kept(name)) {
            lines.put(name.as_str().as_bytes());
            lines.put(&b": "[..]);
            lines.put(value.as_bytes());
            lines.put_u8(b'\n');
        }
        let body = (lines.len() <= HEAD_BYTES_MAX).then(BytesMut::new);
        Self { status, headers: lines.freeze(), body }
    }

    /// The next piece of its body.
    pub(super) fn add(&mut self, data: &[u8]) {
        match &mut self.body {
            Some(body) if body.len() + data.len() <= ANSWER_BYTES_MAX => body.extend_from_slice(data),
            _ => self.give_up(),
        }
    }

    /// Whether it can be kept so far.
    pub(super) const fn is_kept(&self) -> bool {
        self.body.is_some()
    }

    /// It can't be kept.
    pub(super) fn give_up(&mut self) {
        self.body = None;
    }

    pub(super) fn finish(self) -> Option<StoredAnswer> {
        let body = self.body?.freeze();
        Some(StoredAnswer { status: self.status.as_u16(), headers: self.headers, body })
    }
}

/// The same answer again.
pub(in crate::proxy) fn replay(answer: &StoredAnswer, is_head: bool) -> Response<Body> {
    let body = if is_head { Body::empty() } else { Body::full(answer.body.clone()) };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    for line in answer.headers.split(|byte| *byte == b'\n') {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            response.headers_mut().append(name, value);
        }
    }
    response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_comes_back_as_it_was() {
        let mut headers = HeaderMap::new();
        headers.append("x-a", HeaderValue::from_static("1: 2"));
        headers.append("x-a", HeaderValue::from_static(""));
        headers.append("x-b", HeaderValue::from_bytes(b"\xfc").unwrap());
        headers.append("date", HeaderValue::from_static("now"));
        headers.append("farebox-left", HeaderValue::from_static("7"));
        let mut kept = Kept::new(StatusCode::CREATED, &headers);
        kept.add(b"one ");
        kept.add(b"two");
        let answer = kept.finish().unwrap();
        assert_eq!(answer.body, "one two");
        let again = replay(&answer, false);
        assert_eq!(again.status(), StatusCode::CREATED);
        let lines: Vec<_> =
            again.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        assert_eq!(
            lines,
            [("x-a", &b"1: 2"[..]), ("x-a", b""), ("x-b", b"\xfc"), ("idempotent-replayed", b"true")]
        );
    }

    #[test]
    fn a_key_is_named_once_and_is_short() {
        let named = |keys: &[&str]| {
            let line = |key: &&str| (KEY_HEADER, HeaderValue::from_str(key).unwrap());
            key(&keys.iter().map(line).collect()).map(<[u8]>::to_vec)
        };
        assert_eq!(named(&["a-1"]), Some(b"a-1".to_vec()));
        assert_eq!(named(&["x".repeat(255).as_str()]), Some(vec![b'x'; 255]));
        for keys in [&[][..], &[""], &["a", "a"], &["x".repeat(256).as_str()]] {
            assert_eq!(named(keys), None, "{keys:?}");
        }
    }

    #[test]
    fn what_is_larger_than_may_be_kept_is_not() {
        let mut kept = Kept::new(StatusCode::OK, &HeaderMap::new());
        kept.add(&vec![0; ANSWER_BYTES_MAX]);
        kept.add(b"");
        assert!(kept.body.is_some());
        kept.add(b"x");
        assert!(kept.finish().is_none());
    }
}
