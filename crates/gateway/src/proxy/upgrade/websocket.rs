//! What of WebSocket's handshake (RFC 6455 4) the gateway has to know: the key and its proof, which HTTP/1.1 has and
//! HTTP/2 has not. Nothing of its frames.

use base64::{Engine, prelude::BASE64_STANDARD};
use http::HeaderValue;
use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};

use crate::proxy::failure::Failure;

/// A fresh `Sec-WebSocket-Key`.
pub(super) fn new_key() -> Result<HeaderValue, Failure> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|_| Failure::Defect)?;
    Ok(to_value(&bytes))
}

/// The `Sec-WebSocket-Accept` that proves that `key` has been read, and read by a WebSocket server.
pub(super) fn accept(key: &HeaderValue) -> HeaderValue {
    // SHA-1 is what the RFC asks for; nothing is kept secret or signed by it.
    let mut context = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    context.update(key.as_bytes().trim_ascii());
    context.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    to_value(context.finish().as_ref())
}

fn to_value(bytes: &[u8]) -> HeaderValue {
    HeaderValue::try_from(BASE64_STANDARD.encode(bytes)).expect("base64 is ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proof_is_that_of_the_rfc() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept(&key), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn each_key_is_new() {
        let key = new_key().unwrap();
        assert_eq!(key.len(), 24);
        assert_ne!(key, new_key().unwrap());
    }
}
