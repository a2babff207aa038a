//! From an agent's words to a request, or a refusal. What frames a message, names another server or carries a credential is
//! not an agent's to set: framing is the HTTP library's, and credentials are the journal's.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use reqwest::Url;

use super::{
    told::Trouble,
    tools::{FetchArgs, QuoteArgs},
};

/// The longest address.
pub(super) const URL_BYTES_MAX: usize = 8 << 10;
/// So many headers.
pub(super) const HEADERS_MAX: usize = 64;
/// So long, all together.
const HEADER_BYTES_MAX: usize = 16 << 10;

/// What is set by farebox or the HTTP library alone.
const NOT_THEIRS: [&str; 19] = [
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
    "keep-alive",
    "expect",
    // What a server repeats must come plainly, so that a credential in it is recognised.
    "accept-encoding",
    "http2-settings",
    // Another method than the one that is looked at here.
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "idempotency-key",
    "token",
    "l402",
    "lsat",
    "payment",
];

/// And whatever has one of these in its name: `Proxy-Authorization`, `X-Auth-Token`, `Grpc-Metadata-Macaroon`, `Set-Cookie`.
const NOT_THEIRS_EITHER: [&str; 6] = ["auth", "macaroon", "cookie", "preimage", "credential", "proxy-"];

pub(super) fn quote(args: &QuoteArgs) -> Result<http::Request<Bytes>, Trouble> {
    let method = method(args.method.as_deref(), false)?;
    if !method.is_safe() {
        return Err(Trouble::new(
            "method_acts",
            "a quote sends the request, and this method may change something; `farebox_fetch` with `max_sats` 0 tells its \
             price without paying",
        ));
    }
    build(&args.url, method, &args.headers, Bytes::new())
}

pub(super) fn fetch(args: &FetchArgs) -> Result<http::Request<Bytes>, Trouble> {
    let body = match (&args.body, &args.body_base64) {
        (Some(_), Some(_)) => return Err(Trouble::arguments("`body` and `body_base64` are two bodies")),
        (Some(text), None) => Some(Bytes::from(text.clone())),
        (None, Some(text)) => {
            let body =
                STANDARD.decode(text).map_err(|_| Trouble::arguments("`body_base64` is not base64"))?;
            Some(body.into())
        }
        (None, None) => None,
    };
    let method = method(args.method.as_deref(), body.is_some())?;
    let mut request = build(&args.url, method, &args.headers, body.unwrap_or_default())?;
    if let Some(key) = &args.idempotency_key {
        let value = HeaderValue::from_str(key)
            .ok()
            .filter(|_| (1..=128).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic()));
        let value = value
            .ok_or_else(|| Trouble::arguments("`idempotency_key` is 1 to 128 visible ASCII characters"))?;
        request.headers_mut().insert("idempotency-key", value);
    }
    Ok(request)
}

fn method(named: Option<&str>, has_body: bool) -> Result<Method, Trouble> {
    let method = match named {
        Some(name) => Method::from_bytes(name.to_ascii_uppercase().as_bytes())
            .ok()
            .filter(|method| method.as_str().len() <= 32)
            .ok_or_else(|| Trouble::arguments("`method` is not a method"))?,
        None if has_body => Method::POST,
        None => Method::GET,
    };
    match method {
        Method::CONNECT | Method::TRACE => Err(Trouble::arguments("this method is not sent")),
        method => Ok(method),
    }
}

fn build(
    url: &str,
    method: Method,
    headers: &BTreeMap<String, String>,
    body: Bytes,
) -> Result<http::Request<Bytes>, Trouble> {
    let mut request = http::Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = address(url)?;
    *request.headers_mut() = checked(headers)?;
    Ok(request)
}

fn address(text: &str) -> Result<http::Uri, Trouble> {
    let wrong = |what: &str| Trouble::new("address", what);
    if text.len() > URL_BYTES_MAX {
        return Err(wrong("the address is too long"));
    }
    if text.chars().any(char::is_control) {
        return Err(wrong("there are control characters in the address"));
    }
    let mut url = Url::parse(text)
        .map_err(|_| wrong("the address can't be read; write it like `https://example.com/path`"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(wrong("the address is neither http nor https"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("there is a user or a password in the address; leave them out"));
    }
    url.set_fragment(None);
    url.as_str().parse().map_err(|_| wrong("the address can't be sent"))
}

fn checked(headers: &BTreeMap<String, String>) -> Result<HeaderMap, Trouble> {
    let refused = |what: String| Trouble::new("header_refused", &what);
    let bytes: usize = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    if headers.len() > HEADERS_MAX || bytes > HEADER_BYTES_MAX {
        return Err(refused(format!("more than {HEADERS_MAX} headers or {HEADER_BYTES_MAX} bytes of them")));
    }
    let mut checked = HeaderMap::new();
    for (name, value) in headers {
        let known = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| refused(format!("`{}` is not the name of a header", name.escape_debug())))?;
        // Lower case by now.
        let is_theirs = !NOT_THEIRS.contains(&known.as_str())
            && !NOT_THEIRS_EITHER.iter().any(|part| known.as_str().contains(part));
        if !is_theirs {
            return Err(refused(format!("`{known}` is not set by an agent; farebox sets what is needed")));
        }
        let value = HeaderValue::from_str(value)
            .map_err(|_| refused(format!("the value of `{known}` has characters that no header has")))?;
        checked.append(known, value);
    }
    Ok(checked)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &str, value: &str) -> Result<HeaderMap, Trouble> {
        checked(&BTreeMap::from([(name.to_owned(), value.to_owned())]))
    }

    #[test]
    fn a_credential_set_by_the_agent_is_refused() {
        for name in [
            "Authorization",
            "AUTHORIZATION",
            "proxy-authorization",
            "X-Auth-Token",
            "Cookie",
            "cookie2",
            "Macaroon",
            "Grpc-Metadata-Macaroon",
            "token",
            "L402",
            "X-Preimage",
            "Payment",
            "X-Amz-Credential",
        ] {
            assert_eq!(with(name, "x").unwrap_err().code(), "header_refused", "{name}");
        }
        assert!(with("X-Api-Key", "k").is_ok() && with("Accept", "a, b").is_ok());
    }

    #[test]
    fn what_frames_a_message_is_refused_and_so_is_a_second_one_inside() {
        for (name, value) in [
            ("Host", "other.example"),
            ("Content-Length", "0"),
            ("Transfer-Encoding", "chunked"),
            ("Connection", "close"),
            ("Upgrade", "h2c"),
            ("X-HTTP-Method-Override", "DELETE"),
            ("X", "a\r\nAuthorization: b"),
            ("X", "a\nb"),
            ("X\r\nY", "a"),
            ("X: Y", "a"),
            ("", "a"),
            ("X", "\0"),
            (":authority", "a"),
        ] {
            assert_eq!(with(name, value).unwrap_err().code(), "header_refused", "{name:?}: {value:?}");
        }
        let many = (0..10_000).map(|number| (format!("x-{number}"), String::new())).collect();
        assert!(checked(&many).is_err());
        assert!(with("x", &"a".repeat(HEADER_BYTES_MAX)).is_err());
    }

    #[test]
    fn an_address_that_is_none_is_refused() {
        for url in [
            "",
            "api.example",
            "ftp://a.example/",
            "file:///etc/passwd",
            "javascript:1",
            "https://user:word@a.example/",
            "https://user@a.example/",
            "https://",
            "http://a.example/\r\nX: y",
            "https://a b.example/",
            "http://[::1",
            "http://256.256.256.256/",
            "http://a.example:99999/",
            &format!("https://a.example/{}", "a".repeat(URL_BYTES_MAX)),
        ] {
            assert_eq!(address(url).unwrap_err().code(), "address", "{url:?}");
        }
        assert_eq!(address("https://a.example/b c#d").unwrap(), "https://a.example/b%20c");
    }

    #[test]
    fn a_method_that_opens_tunnels_or_none_at_all_is_refused() {
        for name in ["CONNECT", "trace", "", "GET /", "a\r\nb", &"A".repeat(33)] {
            assert!(method(Some(name), false).is_err(), "{name:?}");
        }
        assert_eq!(method(None, true).unwrap(), Method::POST);
        assert_eq!(method(Some("delete"), false).unwrap(), Method::DELETE);
    }
}
