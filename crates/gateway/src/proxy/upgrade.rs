//! Handing a connection over to another protocol: WebSocket and its like, as HTTP/1.1 upgrades (RFC 9110 7.8) and as
//! extended CONNECT over HTTP/2 (RFC 8441), in every pairing of the two.
//!
//! An upgrade is matched, decided on and paid for as the `GET` that it is over HTTP/1.1; nothing here grants anything.
//! Bytes flow only once the upstream has agreed to exactly what was asked: any other answer is an ordinary one, and the
//! connection stays one of HTTP. What flows is opaque and is carried by `tunnel`; what WebSocket alone needs to cross
//! between the versions of HTTP is in `websocket`.
//!
//! Any protocol may be asked for that isn't HTTP again (`h2c`, `TLS/1.2` and the like): a second conversation in HTTP
//! inside the tunnel would go past the one place where requests are decided on.

mod tunnel;
mod websocket;

use std::sync::Arc;

use http::{
    HeaderMap, HeaderValue, Method, StatusCode, Version,
    header::{
        CONNECTION, CONTENT_LENGTH, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, TRANSFER_ENCODING, UPGRADE,
    },
    request, response,
};
use hyper::{
    body::{Body as _, Incoming},
    ext::Protocol,
    upgrade::OnUpgrade,
};

pub(super) use self::tunnel::Passed;
pub(crate) use self::tunnel::Tunnel;
use super::{failure::Failure, headers::lists};
use crate::{services::Route, upstream::SendError};

/// An upgrade that a request asks for.
pub(crate) struct Asked {
    method: Method,
    protocol: HeaderValue,
    client: OnUpgrade,
    is_over_http2: bool,
    /// For WebSocket, what the upstream has to prove that it has read: the client's, or over HTTP/2, which knows none, ours.
    key: Option<HeaderValue>,
}

/// Names, without their versions, of protocols that are HTTP or carry it.
const HTTP_AGAIN: [&str; 6] = ["http", "h2", "h2c", "h3", "spdy", "tls"];

/// What a request asks for besides an answer. An extended CONNECT becomes the `GET` that it stands for.
///
/// An offer over HTTP/1.1 of something that isn't forwarded is passed over in silence, as any server may; whoever asks
/// for a WebSocket can do nothing with another answer, and is told what is wrong with the question before paying.
pub(super) fn asked(parts: &mut request::Parts, body: &Incoming) -> Result<Option<Arc<Asked>>, Failure> {
    if parts.method == Method::CONNECT {
        return asked_over_http2(parts);
    }
    if !parts.headers.contains_key(UPGRADE) || parts.version != Version::HTTP_11 {
        return Ok(None);
    }
    let is_announced = parts.headers.get_all(CONNECTION).iter().any(|value| lists(value, "upgrade"));
    let Some(protocol) = first_forwarded(&parts.headers).filter(|_| is_announced) else { return Ok(None) };
    let has_body = !body.is_end_stream();
    let key = if is_websocket(&protocol) {
        if parts.method != Method::GET || has_body {
            return Err(Failure::Handshake("a WebSocket begins with a GET without a body"));
        }
        let mut keys = parts.headers.get_all(SEC_WEBSOCKET_KEY).iter();
        let (Some(key), None) = (keys.next(), keys.next()) else {
            return Err(Failure::Handshake("a WebSocket begins with one `Sec-WebSocket-Key`"));
        };
        Some(key.clone())
    } else if has_body || !matches!(parts.method, Method::GET | Method::POST) {
        return Ok(None);
    } else {
        None
    };
    let Some(client) = parts.extensions.remove::<OnUpgrade>() else { return Ok(None) };
    let method = parts.method.clone();
    Ok(Some(Arc::new(Asked { method, protocol, client, is_over_http2: false, key })))
}

/// A CONNECT without a protocol is left as it is, and refused like any other method that isn't served.
fn asked_over_http2(parts: &mut request::Parts) -> Result<Option<Arc<Asked>>, Failure> {
    let Some(protocol) = parts.extensions.remove::<Protocol>() else { return Ok(None) };
    let Some(client) = parts.extensions.remove::<OnUpgrade>() else { return Ok(None) };
    let protocol = read(protocol.as_str().as_bytes()).ok_or(Failure::Upgrade)?;
    let key = if is_websocket(&protocol) { Some(websocket::new_key()?) } else { None };
    parts.method = Method::GET;
    Ok(Some(Arc::new(Asked { method: Method::GET, protocol, client, is_over_http2: true, key })))
}

fn first_forwarded(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut offered =
        headers.get_all(UPGRADE).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    offered.find_map(|name| read(name.trim_ascii()))
}

/// A protocol's name, if it is one and may be forwarded.
fn read(name: &[u8]) -> Option<HeaderValue> {
    let is_token = |part: &[u8]| {
        let is_letter = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
        !part.is_empty() && part.iter().all(is_letter)
    };
    let mut parts = name.splitn(2, |byte| *byte == b'/');
    let (bare, version) = (parts.next()?, parts.next());
    let is_http_again = HTTP_AGAIN.iter().any(|again| bare.eq_ignore_ascii_case(again.as_bytes()));
    if !is_token(bare) || !version.is_none_or(is_token) || is_http_again {
        return None;
    }
    HeaderValue::from_bytes(name).ok()
}

fn is_websocket(protocol: &HeaderValue) -> bool {
    protocol.as_bytes().eq_ignore_ascii_case(b"websocket")
}

impl Asked {
    /// What is left of it where a service doesn't let connections be handed over.
    pub(super) fn on(self: Arc<Self>, route: &Route) -> Result<Option<Arc<Self>>, Failure> {
        if route.config.upgrades {
            Ok(Some(self))
        } else if self.is_over_http2 || is_websocket(&self.protocol) {
            Err(Failure::Upgrade)
        } else {
            Ok(None)
        }
    }

    /// Asks the upstream for the same over HTTP/1.1, also with a request that was put into the form of HTTP/2 before.
    pub(crate) fn ask_http1<B>(&self, request: &mut http::Request<B>) {
        *request.method_mut() = self.method.clone();
        request.extensions_mut().remove::<Protocol>();
        let headers = request.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, self.protocol.clone());
        if let Some(key) = &self.key {
            headers.insert(SEC_WEBSOCKET_KEY, key.clone());
        }
    }

    /// Asks the upstream for the same over HTTP/2, with a request that has a full target.
    pub(crate) fn ask_http2<B>(&self, request: &mut http::Request<B>) {
        *request.method_mut() = Method::CONNECT;
        // What the HTTP/1.1 handshake proves, HTTP/2 takes for granted (RFC 8441 5).
        request.headers_mut().remove(SEC_WEBSOCKET_KEY);
        request.headers_mut().remove(CONTENT_LENGTH);
        let protocol = self.protocol.to_str().expect("the name of a protocol is ASCII");
        // HTTP/1.1 doesn't tell case in it, HTTP/2 may.
        request.extensions_mut().insert(Protocol::from(protocol.to_ascii_lowercase().as_str()));
    }

    /// Whether the upstream has agreed: its end of the tunnel. `None` means that it has given an ordinary answer.
    pub(super) fn agreed<B>(&self, answer: &mut http::Response<B>) -> Result<Option<OnUpgrade>, SendError> {
        let has_agreed = if answer.version() == Version::HTTP_2 {
            answer.status().is_success()
        } else if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            self.check_switch(answer.headers())?;
            true
        } else if self.is_over_http2 && answer.status().is_success() {
            // Over HTTP/2 that would say yes.
            return Err(SendError::NotSwitched);
        } else {
            false
        };
        Ok(has_agreed.then(|| hyper::upgrade::on(answer)))
    }

    fn check_switch(&self, headers: &HeaderMap) -> Result<(), SendError> {
        let mut named = headers.get_all(UPGRADE).iter();
        let is_ours = |value: &HeaderValue| {
            value.as_bytes().trim_ascii().eq_ignore_ascii_case(self.protocol.as_bytes())
        };
        if !named.next().is_some_and(is_ours) || named.next().is_some() {
            return Err(SendError::Switched);
        }
        // Over HTTP/1.1 the client looks at it itself.
        match self.key.as_ref().filter(|_| self.is_over_http2) {
            Some(key) if headers.get(SEC_WEBSOCKET_ACCEPT) != Some(&websocket::accept(key)) => {
                Err(SendError::Unproven)
            }
            _ => Ok(()),
        }
    }

    /// Makes the head of the upstream's consent, without what was between neighbours, that of ours.
    pub(super) fn consent(&self, head: &mut response::Parts) {
        head.headers.remove(CONTENT_LENGTH);
        head.headers.remove(TRANSFER_ENCODING);
        if self.is_over_http2 {
            head.status = StatusCode::OK;
            head.headers.remove(SEC_WEBSOCKET_ACCEPT);
            return;
        }
        if head.version == Version::HTTP_2
            && let Some(key) = &self.key
        {
            head.headers.insert(SEC_WEBSOCKET_ACCEPT, websocket::accept(key));
        }
        head.status = StatusCode::SWITCHING_PROTOCOLS;
        head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        head.headers.insert(UPGRADE, self.protocol.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_protocol_may_be_asked_for_that_is_not_http_again() {
        for name in ["websocket", "WebSocket", "tcp", "connect-udp", "acme/1.2"] {
            assert_eq!(read(name.as_bytes()).as_ref().map(HeaderValue::as_bytes), Some(name.as_bytes()));
        }
        for name in
            ["h2c", "H2C", "HTTP/2.0", "TLS/1.2", "SPDY/3.1", "h2", "", "/1", "a/", "a/b/c", "web socket"]
        {
            assert_eq!(read(name.as_bytes()), None, "{name}");
        }
    }
}
