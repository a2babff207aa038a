//! A request on its way out: put into the form of the connection that takes it, and kept to be sent again where that is
//! safe.
//!
//! Here it is decided *whether* a request may be sent twice; how often and where to is decided in `upstream.rs`.

use std::{error::Error as _, sync::Arc};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version,
    header::{CONNECTION, COOKIE, HOST, TE, TRANSFER_ENCODING},
    uri::{Authority, Scheme},
};
use hyper::body::Body as _;

use super::gather::Written;
use crate::proxy::{Asked, Kept, Lines, RequestBody};

/// A request on its way, before it is known which version of HTTP it will be put in.
pub(crate) struct Outgoing {
    /// Its target is a path and a query, without an authority; its `Host`, if it has one, is a place to put one in.
    pub(crate) request: Request<RequestBody>,
    /// What to name as the host, unless the upstream's own.
    pub(crate) host: Option<HeaderValue>,
    /// The protocol that it asks to go on in.
    pub(crate) upgrade: Option<Arc<Asked>>,
    /// More headers, none of which the request has.
    pub(crate) lines: Option<Lines>,
}

/// What an address is called in requests to it.
pub(super) struct Naming {
    pub(super) scheme: Scheme,
    pub(super) authority: Authority,
    /// The same, as it goes into a header.
    pub(super) host: HeaderValue,
}

impl Outgoing {
    /// Puts it into the form of HTTP/1.1, also when a connection that spoke HTTP/2 has had it before.
    /// `host` is what to name the address unless something else is asked for.
    pub(super) fn shape_for_http1(&mut self, host: &HeaderValue) {
        let request = &mut self.request;
        *request.version_mut() = Version::HTTP_11;
        if request.uri().scheme().is_some() {
            // RFC 9112 3.2.1: an origin server is asked for path and query.
            let target = std::mem::take(request.uri_mut()).into_parts().path_and_query;
            *request.uri_mut() = target.map(Uri::from).unwrap_or_default();
        }
        if request.body().size_hint().exact().is_none() {
            // hyper takes it for granted that GET and HEAD have no body, and would drop it in silence.
            request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        let host = self.host.as_ref().unwrap_or(host).clone();
        request.headers_mut().insert(HOST, host);
        join_cookies(request.headers_mut());
        if request.headers().contains_key(TE) {
            // RFC 9110 10.1.4: `TE` is a matter between neighbours and must be announced as one.
            request.headers_mut().insert(CONNECTION, HeaderValue::from_static("te"));
        }
        if let Some(asked) = &self.upgrade {
            asked.ask_http1(request);
        }
    }

    /// Puts it into the form of HTTP/2, also when a connection that spoke HTTP/1.1 has had it before.
    pub(super) fn shape_for_http2(&mut self, naming: &Naming) {
        let request = &mut self.request;
        *request.version_mut() = Version::HTTP_2;
        request.headers_mut().remove(HOST);
        request.headers_mut().remove(CONNECTION);
        request.headers_mut().remove(TRANSFER_ENCODING);
        if let Some(lines) = self.lines.take() {
            let read = read_lines(lines.as_bytes(), false, request.headers_mut());
            debug_assert!(read.is_some(), "they were headers before");
        }
        let preserved = self.host.as_ref().and_then(|host| Authority::try_from(host.as_bytes()).ok());
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = Some(naming.scheme.clone());
        parts.authority = Some(preserved.unwrap_or_else(|| naming.authority.clone()));
        *request.uri_mut() = Uri::from_parts(parts).expect("scheme, authority and path make a target");
        if let Some(asked) = &self.upgrade {
            asked.ask_http2(request);
        }
    }
}

/// HTTP/2 may split cookies over several lines, HTTP/1.1 may not (RFC 9113 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    // Mostly no name is there twice, and this one needn't be looked for.
    if headers.len() == headers.keys_len() || headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let lines: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&lines.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

/// Whether sending a request twice does no more than sending it once, and there is nothing of it that can't be repeated.
fn is_repeatable(request: &Request<RequestBody>) -> bool {
    request.body().is_none()
        && matches!(
            *request.method(),
            Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE
        )
}

/// Whether an upstream has heard of a request that has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// It says that it has not looked at it (RFC 9113 sections 6.8, 8.7).
    Never,
    Perhaps,
    /// It did say something.
    Surely,
}

/// The request that failed, to be sent again: itself, where it was never sent, with the lines that are to be written beside
/// it; or what was kept of it, which has them among its headers.
pub(super) fn again(
    unsent: Option<Request<RequestBody>>,
    lines: Option<Lines>,
    spare: Option<Spare>,
    heard: Heard,
) -> Option<(Request<RequestBody>, Option<Lines>)> {
    match (unsent, heard) {
        (_, Heard::Surely) => None,
        (Some(request), _) => Some((request, lines)),
        (None, Heard::Never) => {
            let request = spare?.into_request()?;
            came_back(&request);
            Some((request, None))
        }
        (None, Heard::Perhaps) => {
            let mut request = spare.filter(Spare::is_repeatable)?.into_request()?;
            // Should it come back now, it may have been heard before.
            *request.body_mut() = RequestBody::none();
            Some((request, None))
        }
    }
}

/// A request has come back from the connection that had taken it, and was never sent, or never looked at.
pub(super) fn came_back(request: &Request<RequestBody>) {
    request.body().leaves(false);
}

/// The head of a request, kept to send it again. Nearly every request has one and hardly any needs it, so it costs as little
/// as can be to keep, and what there is to do about it is done when it is needed.
pub(super) enum Spare {
    /// Over HTTP/1.1 it is kept by the connection, as it is written.
    Written(Arc<Written>),
    /// Over HTTP/2 in one piece of memory: a `HeaderMap` would be two, and would share each of its values.
    Copied {
        method: Method,
        uri: Uri,
        /// For each header its name, `:`, its value and an end of line.
        headers: Vec<u8>,
        /// Where it has one.
        body: Option<Arc<Kept>>,
        /// Where it has none.
        empty: RequestBody,
        /// Whether it does no more when it is heard twice.
        is_repeatable: bool,
    },
}

impl Spare {
    /// Keeps a request that is sent next on the connection whose writing is told to `written`, or on one that tells nobody.
    /// None where it can't be sent again, whatever becomes of it.
    pub(super) fn of(request: &mut Request<RequestBody>, written: Option<&Arc<Written>>) -> Option<Self> {
        let is_repeatable = is_repeatable(request);
        if let Some(written) = written {
            if !is_repeatable {
                written.keep_none();
                return None;
            }
            written.keep_next();
            return Some(Self::Written(Arc::clone(written)));
        }
        let body = if request.body().is_none() { None } else { Some(request.body_mut().keep()?) };
        let empty = request.body().emptied();
        let headers = request.headers();
        let room = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 2).sum();
        let mut text = Vec::with_capacity(room);
        for (name, value) in headers {
            text.extend_from_slice(name.as_str().as_bytes());
            text.push(b':');
            text.extend_from_slice(value.as_bytes());
            text.push(b'\n');
        }
        let (method, uri) = (request.method().clone(), request.uri().clone());
        Some(Self::Copied { method, uri, headers: text, body, empty, is_repeatable })
    }

    const fn is_repeatable(&self) -> bool {
        match self {
            Self::Written(_) => true,
            Self::Copied { is_repeatable, .. } => *is_repeatable,
        }
    }

    /// The request again. Which of its values were secret isn't known any more, so all are taken for it. None where it has
    /// never been written, and the connection has lost it.
    pub(super) fn into_request(self) -> Option<Request<RequestBody>> {
        let mut request = Request::new(RequestBody::none());
        let text = match self {
            Self::Copied { method, uri, headers, body, empty, .. } => {
                *request.body_mut() = match body {
                    Some(kept) => RequestBody::again(&kept)?,
                    None => empty,
                };
                *request.method_mut() = method;
                *request.uri_mut() = uri;
                headers
            }
            Self::Written(written) => {
                let text = written.take()?;
                let end = text.iter().position(|byte| *byte == b'\n')?;
                let mut words = text[..end].split(|byte| *byte == b' ');
                *request.method_mut() = Method::from_bytes(words.next()?).ok()?;
                *request.uri_mut() = Uri::try_from(words.next()?).ok()?;
                text[end + 1..].to_vec()
            }
        };
        read_lines(&text, true, request.headers_mut())?;
        Some(request)
    }
}

/// Makes headers of lines again. Names have no colon in them, and values no ends of lines.
fn read_lines(text: &[u8], is_sensitive: bool, headers: &mut HeaderMap) -> Option<()> {
    for line in text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty()) {
        let mark = line.iter().position(|byte| *byte == b':')?;
        let mut value = HeaderValue::from_bytes(line[mark + 1..].trim_ascii()).ok()?;
        value.set_sensitive(is_sensitive);
        headers.append(HeaderName::from_bytes(&line[..mark]).ok()?, value);
    }
    Some(())
}

impl Heard {
    pub(super) fn of(error: &hyper::Error) -> Self {
        let of_http2 = error.source().and_then(|source| source.downcast_ref::<h2::Error>());
        // Only what came after the last request that it has dealt with ends with its goodbye.
        let is_unheard = of_http2.is_some_and(|error| {
            error.is_remote() && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM))
        });
        if is_unheard {
            Self::Never
        } else if error.is_parse() || error.is_user() || of_http2.is_some_and(h2::Error::is_reset) {
            Self::Surely
        } else {
            Self::Perhaps
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::upstream::gather::Gathered;

    #[test]
    fn a_head_that_is_kept_is_sent_again_as_it_was() {
        let mut request = Request::new(RequestBody::none());
        *request.method_mut() = Method::PUT;
        *request.uri_mut() = Uri::from_static("/a?b");
        for (name, value) in [("x-a", "1: 2; 3"), ("x-b", ""), ("x-a", "4"), ("x-c", "\u{fc}")] {
            let name = HeaderName::from_static(name);
            request.headers_mut().append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let again = Spare::of(&mut request, None).unwrap().into_request().unwrap();
        assert_eq!(again.method(), request.method());
        assert_eq!(again.uri(), request.uri());
        assert_eq!(again.headers(), request.headers());
        assert!(again.headers().values().all(HeaderValue::is_sensitive));
    }

    #[tokio::test]
    async fn a_head_that_was_written_is_sent_again_as_it_was() {
        let written = Arc::<Written>::default();
        let mut stream = Gathered::new(tokio::io::sink(), Arc::clone(&written));
        let mut request = Request::new(RequestBody::none());
        let unwritten = Spare::of(&mut request, Some(&written)).unwrap();
        assert!(unwritten.into_request().is_none());
        let spare = Spare::of(&mut request, Some(&written)).unwrap();
        stream
            .write_all(b"DELETE /a?b HTTP/1.1\r\nhost: a\r\nx-a: 1: 2\r\nx-b: \r\nx-a: 4\r\n\r\n")
            .await
            .unwrap();
        let again = spare.into_request().unwrap();
        assert_eq!(
            (again.method(), again.uri().path_and_query().unwrap().as_str()),
            (&Method::DELETE, "/a?b")
        );
        let lines: Vec<_> =
            again.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        assert_eq!(lines, [("host", &b"a"[..]), ("x-a", b"1: 2"), ("x-a", b"4"), ("x-b", b"")]);
        *request.method_mut() = Method::POST;
        assert!(Spare::of(&mut request, Some(&written)).is_none());
    }

    #[test]
    fn a_request_that_moves_between_versions_takes_the_form_of_each() {
        let naming = Naming {
            scheme: Scheme::HTTPS,
            authority: Authority::from_static("app"),
            host: HeaderValue::from_static("app"),
        };
        let mut request = Request::new(RequestBody::none());
        *request.uri_mut() = Uri::from_static("/a?b");
        request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
        let mut outgoing = Outgoing { request, host: None, upgrade: None, lines: None };
        for _ in 0..2 {
            outgoing.shape_for_http2(&naming);
            assert_eq!(outgoing.request.uri(), "https://app/a?b");
            assert_eq!(outgoing.request.version(), Version::HTTP_2);
            assert_eq!(outgoing.request.headers().keys().collect::<Vec<_>>(), [TE]);
            outgoing.shape_for_http1(&naming.host);
            assert_eq!(outgoing.request.uri(), "/a?b");
            assert_eq!(outgoing.request.version(), Version::HTTP_11);
            assert_eq!(
                (&outgoing.request.headers()[HOST], &outgoing.request.headers()[CONNECTION]),
                (&HeaderValue::from_static("app"), &HeaderValue::from_static("te"))
            );
        }
    }

    #[test]
    fn lines_are_headers_of_a_request_once_in_whatever_form_it_is_sent() {
        let naming = Naming {
            scheme: Scheme::HTTP,
            authority: Authority::from_static("app"),
            host: HeaderValue::from_static("app"),
        };
        let told = HeaderMap::from_iter([
            (HeaderName::from_static("x-a"), HeaderValue::from_static("1: 2")),
            (HeaderName::from_static("x-b"), HeaderValue::from_static("")),
        ]);
        let mut request = Request::new(RequestBody::none());
        *request.uri_mut() = Uri::from_static("/");
        let lines = Some(Lines::of(&told));
        let mut outgoing = Outgoing { request, host: None, upgrade: None, lines };
        outgoing.shape_for_http1(&naming.host);
        assert_eq!(outgoing.request.headers().keys().collect::<Vec<_>>(), [HOST]);
        // Never sent, it goes on with them.
        let (request, lines) = again(Some(outgoing.request), outgoing.lines, None, Heard::Perhaps).unwrap();
        let mut outgoing = Outgoing { request, host: None, upgrade: None, lines };
        for _ in 0..2 {
            outgoing.shape_for_http2(&naming);
            assert_eq!(*outgoing.request.headers(), told);
            assert!(outgoing.lines.is_none());
        }
        // What is sent a second time has them among its headers, since it was sent with them.
        let spare = Spare::of(&mut outgoing.request, None);
        let (request, lines) = again(None, Some(Lines::of(&told)), spare, Heard::Perhaps).unwrap();
        assert_eq!((request.headers(), lines.is_none()), (&told, true));
    }

    #[test]
    fn cookies_split_by_http2_are_joined_for_http1() {
        let mut headers = HeaderMap::new();
        for crumb in ["a=1", "b=2", "c=3"] {
            headers.append(COOKIE, HeaderValue::from_static(crumb));
        }
        join_cookies(&mut headers);
        assert_eq!(headers.get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2; c=3"]);
    }
}
