//! How a gRPC call ended, to go by what its answer says: whether its status is what a 5xx is to HTTP, and whether a message
//! had reached the buyer by then.
//!
//! A failing status makes a call free only as long as there was nothing to pay for. Servers say `INTERNAL` or `UNKNOWN` also
//! to a message that their client has spoilt; if that undid what was served before, the last message of a stream would be a
//! way to have all the others for nothing.

use http::{HeaderMap, header};

/// A message's head: a flag, and its length in four bytes.
const HEAD: usize = 5;

/// How the content type of an answer to a call begins.
const GRPC: &[u8] = b"application/grpc";

/// What is known of a call. Says nothing where the answer isn't one of gRPC.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    /// The answer says that it is one of gRPC. A status in any other may be an echo of what the buyer has sent.
    is_grpc: bool,
    head: [u8; HEAD],
    bytes: u64,
    has_failed: bool,
    /// It has ended with another status than `OK`.
    is_refused: bool,
}

impl Call {
    pub(super) const fn new() -> Self {
        Self { is_grpc: false, head: [0; HEAD], bytes: 0, has_failed: false, is_refused: false }
    }

    /// Headers, then trailers.
    pub(super) fn told(&mut self, headers: &HeaderMap) {
        /// Unknown, unimplemented, internal, unavailable, data loss. The buyer's own deadline is none of them: it must not
        /// make what has passed free.
        const FAILURES: [&str; 5] = ["2", "12", "13", "14", "15"];
        if let Some(kind) = headers.get(header::CONTENT_TYPE) {
            let kind = kind.as_bytes().get(..GRPC.len());
            self.is_grpc = kind.is_some_and(|kind| kind.eq_ignore_ascii_case(GRPC));
        }
        if !self.is_grpc {
            return;
        }
        let status = headers.get("grpc-status").and_then(|status| status.to_str().ok());
        self.has_failed |= status.is_some_and(|status| FAILURES.contains(&status));
        self.is_refused |= status.is_some_and(|status| status != "0");
    }

    /// The next chunk of the body.
    pub(super) fn chunk(&mut self, chunk: &[u8]) {
        if let Some(rest) = usize::try_from(self.bytes).ok().and_then(|at| self.head.get_mut(at..)) {
            rest.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
        }
        self.bytes = self.bytes.saturating_add(chunk.len() as u64);
    }

    /// Whether it has failed.
    pub(super) const fn has_failed(&self) -> bool {
        self.has_failed
    }

    /// Whether its status is all that it has answered, and that isn't `OK`: what a 4xx is to HTTP.
    pub(super) fn is_refused(&self) -> bool {
        self.is_refused && !self.has_message()
    }

    /// Whether its first message has passed whole.
    pub(super) fn has_message(&self) -> bool {
        let [flag, length @ ..] = self.head;
        // Compressed or not; other flags are no message's.
        flag <= 1 && self.bytes >= HEAD as u64 + u64::from(u32::from_be_bytes(length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(chunks: &[&[u8]], want: bool) {
        let mut call = Call::new();
        chunks.iter().for_each(|chunk| call.chunk(chunk));
        assert_eq!(call.has_message(), want, "{chunks:?}");
    }

    #[test]
    fn a_status_in_an_answer_that_is_not_grpc_is_nobodys() {
        for (kind, want) in
            [(Some("application/grpc+proto"), true), (Some("text/html"), false), (None, false)]
        {
            let mut headers = HeaderMap::new();
            if let Some(kind) = kind {
                headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
            }
            let status = HeaderMap::from_iter([(
                header::HeaderName::from_static("grpc-status"),
                header::HeaderValue::from_static("13"),
            )]);
            let mut call = Call::new();
            call.told(&headers);
            call.told(&status);
            assert_eq!((call.has_failed(), call.is_refused()), (want, want), "{kind:?}");
        }
    }

    #[test]
    fn a_message_has_passed_with_its_last_byte_however_it_is_cut() {
        check(&[], false);
        check(&[b"\0\0\0\0"], false);
        check(&[b"\0\0\0\0\0"], true);
        check(&[b"\0\0\0\0\x02a"], false);
        check(&[b"\0\0\0", b"\0", b"", b"\x02a", b"b"], true);
        check(&[b"\x01\0\0\0\x02ab\0\0\0\0\x09"], true);
        check(&[b"\x80\0\0\0\x02ab"], false);
        check(&[b"\0\xff\xff\xff\xffab"], false);
    }
}
