//! The part of a request's body that is read before it is sent on: to ask a model for its usage, or to tell whether a
//! request is repeated. Read is what has a bound and comes in time; all else is streamed as ever.

use std::{collections::VecDeque, future::poll_fn, pin::Pin};

use bytes::{Bytes, BytesMut};
use farebox_paywall::price;
use http::{
    HeaderMap, HeaderValue, Version,
    header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE},
    request::Parts,
};
use http_body::{Frame, SizeHint};
use hyper::body::{Body as _, Incoming};
use sha2::{Digest, Sha256};
use tokio::time::timeout;

use super::super::failure::Failure;
use crate::services::Route;

/// Pieces smaller than this are put together.
pub(in crate::proxy) const PIECE: usize = 4 * 1024;

/// The body of a request, of which the beginning may have been read.
pub(in crate::proxy) struct Arriving {
    pub(in crate::proxy) body: Incoming,
    pub(in crate::proxy) ahead: Option<Box<Ahead>>,
}

/// What has been read ahead, and waits to be sent on.
#[derive(Default)]
pub(in crate::proxy) struct Ahead {
    frames: VecDeque<Frame<Bytes>>,
    /// What came last in pieces too small to be kept one by one; empty as soon as reading has ended.
    small: BytesMut,
    /// Of what waits.
    bytes: u64,
    /// What came from the client.
    taken: u64,
    /// Nothing comes after it.
    is_whole: bool,
}

impl Arriving {
    pub(in crate::proxy) const fn new(body: Incoming) -> Self {
        Self { body, ahead: None }
    }

    /// Whether there is nothing to send on.
    pub(in crate::proxy) fn is_end_stream(&self) -> bool {
        self.ahead.as_ref().map_or_else(|| self.body.is_end_stream(), |ahead| ahead.is_end(&self.body))
    }

    /// How many bytes are sent on at least, as far as is known.
    pub(super) fn bytes_min(&self) -> u64 {
        let hint = self.ahead.as_ref().map(|ahead| ahead.size_hint(&self.body));
        hint.unwrap_or_else(|| self.body.size_hint()).lower()
    }

    /// Reads until there is more than `bytes_max` or nothing more; whether it has got everything. Each silence of the
    /// client's may last as long as the service allows.
    pub(in crate::proxy) async fn read_ahead(
        &mut self,
        bytes_max: u64,
        version: Version,
        route: &Route,
    ) -> Result<bool, Failure> {
        let idle = route.upstream.config().idle_timeout;
        let ahead = self.ahead.get_or_insert_default();
        while !ahead.is_whole && ahead.bytes <= bytes_max {
            let next = poll_fn(|context| Pin::new(&mut self.body).poll_frame(context));
            let frame = match idle {
                Some(idle) => timeout(idle, next).await.map_err(|_| Failure::BodyStalled)?,
                None => next.await,
            };
            match frame {
                Some(Ok(frame)) => {
                    let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
                    ahead.bytes += bytes;
                    ahead.taken += bytes;
                    if let Some(max) = route.config.request_bytes_max.filter(|max| ahead.taken > *max) {
                        return Err(Failure::BodyTooLarge { max });
                    }
                    ahead.keep(frame);
                    ahead.is_whole = self.body.is_end_stream();
                }
                Some(Err(_)) => return Err(Failure::BodyLost),
                // hyper takes it for an end when a client gives a stream up without a reason.
                None if version == Version::HTTP_2 && !self.body.is_end_stream() => {
                    return Err(Failure::BodyLost);
                }
                None => ahead.is_whole = true,
            }
        }
        ahead.gather();
        Ok(ahead.is_whole && ahead.bytes <= bytes_max)
    }

    /// SHA-256 of what has been read.
    pub(super) fn digest(&self) -> [u8; 32] {
        let frames = self.ahead.iter().flat_map(|ahead| &ahead.frames);
        let data = frames.filter_map(|frame| frame.data_ref());
        data.fold(Sha256::new(), |digest, data| digest.chain_update(data)).finalize().into()
    }
}

impl Ahead {
    /// Small pieces are put together, each copied once: in pieces of one byte, a body would take up a hundred times the
    /// memory that it is allowed.
    fn keep(&mut self, frame: Frame<Bytes>) {
        match frame.into_data() {
            Ok(data) if data.len() < PIECE => {
                self.small.extend_from_slice(&data);
                if self.small.len() >= PIECE {
                    self.gather();
                }
            }
            Ok(data) => {
                self.gather();
                self.frames.push_back(Frame::data(data));
            }
            Err(other) => {
                self.gather();
                self.frames.push_back(other);
            }
        }
    }

    fn gather(&mut self) {
        if !self.small.is_empty() {
            self.frames.push_back(Frame::data(self.small.split().freeze()));
        }
    }

    /// The next piece to send on.
    pub(in crate::proxy) fn next(&mut self) -> Option<Frame<Bytes>> {
        let frame = self.frames.pop_front()?;
        self.bytes -= frame.data_ref().map_or(0, |data| data.len() as u64);
        Some(frame)
    }

    /// Whether nothing of it waits, and nothing comes after it.
    pub(in crate::proxy) fn is_end(&self, rest: &Incoming) -> bool {
        self.frames.is_empty() && (self.is_whole || rest.is_end_stream())
    }

    pub(in crate::proxy) const fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// How much is to be sent on, with what comes after it. A body that has trailers mustn't say how long it is, or there
    /// would be no room for them.
    pub(in crate::proxy) fn size_hint(&self, rest: &Incoming) -> SizeHint {
        if self.is_whole && !self.frames.iter().any(Frame::is_trailers) {
            return SizeHint::with_exact(self.bytes);
        }
        let rest = if self.is_whole { SizeHint::new() } else { rest.size_hint() };
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(self.bytes));
        if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(self.bytes)) {
            hint.set_upper(upper);
        }
        hint
    }

    /// How many bytes the client has sent so far.
    pub(in crate::proxy) const fn taken(&self) -> u64 {
        self.taken
    }

    /// Puts other bytes in the place of all that was read. Trailers stay behind them.
    fn replace(&mut self, body: Bytes) {
        self.bytes = body.len() as u64;
        self.frames.retain(Frame::is_trailers);
        self.frames.push_front(Frame::data(body));
    }

    fn data(&self) -> Vec<u8> {
        self.frames.iter().filter_map(|frame| frame.data_ref()).flatten().copied().collect()
    }
}

/// Has a model asked for its usage, where the request is one that has to be asked and doesn't ask itself.
pub(super) async fn ask_for_usage(
    arriving: &mut Arriving,
    parts: &mut Parts,
    route: &Route,
) -> Result<(), Failure> {
    let bytes_max = price::ASK_BYTES_MAX as u64;
    let is_too_large = arriving.body.size_hint().lower() > bytes_max;
    if arriving.is_end_stream() || is_too_large || !is_plain_json(&parts.headers) {
        return Ok(());
    }
    if !arriving.read_ahead(bytes_max, parts.version, route).await? {
        return Ok(());
    }
    let Some(ahead) = &mut arriving.ahead else { return Ok(()) };
    if let Some(asking) = price::ask_for_usage(&ahead.data()) {
        ahead.replace(asking.into());
        if parts.headers.contains_key(CONTENT_LENGTH) {
            parts.headers.insert(CONTENT_LENGTH, HeaderValue::from(ahead.bytes));
        }
    }
    Ok(())
}

/// Headers that say what a body's bytes are.
const SEALS: [&str; 4] = ["content-digest", "repr-digest", "digest", "content-md5"];

fn is_plain_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_json = kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"));
    // What has been summed up or signed must not be changed.
    let is_sealed = SEALS.iter().any(|name| headers.contains_key(*name));
    let mut encodings = headers.get_all(CONTENT_ENCODING).iter();
    is_json && !is_sealed && encodings.all(|encoding| encoding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(headers: &[(&'static str, &'static str)], want: bool) {
        let headers = headers
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)));
        assert_eq!(is_plain_json(&HeaderMap::from_iter(headers)), want);
    }

    #[test]
    fn a_body_in_crumbs_is_kept_in_pieces() {
        let mut ahead = Ahead::default();
        for byte in 0..100_000_u32 {
            ahead.keep(Frame::data(Bytes::copy_from_slice(&[byte.to_le_bytes()[0]])));
        }
        ahead.keep(Frame::data(Bytes::from(vec![7; PIECE])));
        ahead.keep(Frame::data(Bytes::from_static(b"x")));
        ahead.keep(Frame::trailers(HeaderMap::new()));
        ahead.gather();
        assert!(ahead.small.is_empty() && ahead.frames.len() < 30, "{}", ahead.frames.len());
        assert!(ahead.frames.back().unwrap().is_trailers());
        let want: Vec<u8> =
            (0..100_000_u32).map(|byte| byte.to_le_bytes()[0]).chain([7; PIECE]).chain(*b"x").collect();
        assert!(ahead.data() == want, "every byte, in its order");
    }

    #[test]
    fn only_what_says_that_it_is_plain_json_is_looked_at() {
        check(&[("content-type", "application/json")], true);
        check(&[("content-type", "Application/JSON; charset=utf-8")], true);
        check(&[("content-type", "application/vnd.api+json")], true);
        check(&[("content-type", "application/json"), ("content-encoding", "identity")], true);
        check(&[("content-type", "application/json"), ("content-encoding", "gzip")], false);
        check(&[("content-type", "application/json"), ("content-digest", "sha-256=:x:")], false);
        check(&[("content-type", "text/json-ish")], false);
        check(&[("content-type", "application/jsonl")], false);
        check(&[], false);
    }
}
