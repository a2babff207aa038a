//! What a browser lets pages of other origins do with a service: ask it, and read its answers, the 402 included.
//!
//! Preflights are answered here, before the paywall, and mint nothing. Every answer, the gateway's own errors included,
//! carries at most one `Access-Control-Allow-Origin`, whatever the upstream sent: browsers refuse two.

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode,
    header::{
        ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
        ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
        ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
    },
};

use crate::proxy::Body;

/// Who may use a service from a web page of another origin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cors {
    /// Any page, without cookies: a payment, not an origin, opens a paid service. The default, as in the reference
    /// gateway. Not for a service without payment that relies on being reachable by few.
    #[default]
    Any,
    /// Any page, with cookies and all: the origin that asks is named and may use the visitor's credentials, which browsers
    /// grant to no `*`. Whatever a visitor is logged in to at this service, every page that they open can use in their
    /// name. Only for services that know nobody by cookies or client certificates.
    Reflect,
    /// Pages of these origins (`https://app.example.com`) and no other, and from the internet into a private network too,
    /// where browsers ask for that (Private Network Access).
    Origins(Vec<HeaderValue>),
    /// No page of another origin; what the upstream says about it is removed.
    Off,
    /// The upstream decides. Its headers pass untouched, and preflights are forwarded to it *unpaid*. The gateway's own
    /// answers may be read by any page: a challenge is no secret.
    Upstream,
}

/// What a page may read of an answer besides the few headers it always may.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "WWW-Authenticate, Retry-After, Farebox-Code, Farebox-Left, Farebox-Left-Unit, Idempotent-Replayed, Grpc-Status, Grpc-Message",
);
const ANYONE: HeaderValue = HeaderValue::from_static("*");
const PREFLIGHT_SECS: HeaderValue = HeaderValue::from_static("600");
const TRUE: HeaderValue = HeaderValue::from_static("true");
const ASKS_FOR_PRIVATE_NETWORK: HeaderName =
    HeaderName::from_static("access-control-request-private-network");
const ALLOWS_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-allow-private-network");

/// Whether a browser asks for leave on behalf of a page, before the request proper.
pub(crate) fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    method == Method::OPTIONS
        && headers.contains_key(ORIGIN)
        && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

impl Cors {
    /// The answer to a preflight. It allows what is asked for: what a request may do is decided by the upstream and
    /// the paywall, not by the browser.
    pub(crate) fn preflight(&self, asked: &HeaderMap) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        headers.insert(
            VARY,
            HeaderValue::from_static("Origin, Access-Control-Request-Method, Access-Control-Request-Headers"),
        );
        let Some(origin) = self.allowed(asked.get(ORIGIN)) else { return response };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(ACCESS_CONTROL_MAX_AGE, PREFLIGHT_SECS);
        if *self == Self::Reflect {
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
        }
        // A page that nobody named is not let into a network because nothing was said of it.
        if matches!(self, Self::Origins(_)) && asked.contains_key(ASKS_FOR_PRIVATE_NETWORK) {
            headers.insert(ALLOWS_PRIVATE_NETWORK, TRUE);
        }
        let echoed = [
            (ACCESS_CONTROL_REQUEST_METHOD, ACCESS_CONTROL_ALLOW_METHODS),
            (ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_ALLOW_HEADERS),
        ];
        for (question, answer) in echoed {
            if let Some(value) = asked.get(question) {
                headers.insert(answer, value.clone());
            }
        }
        response
    }

    /// Lets pages read an answer that the gateway itself gives.
    pub(crate) fn open_own(&self, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
        // The paywall opens its answers to everybody; which pages may read them is this service's matter.
        headers.remove(ACCESS_CONTROL_EXPOSE_HEADERS);
        if *self == Self::Upstream {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, ANYONE);
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        } else {
            self.open_forwarded(origin, headers);
        }
    }

    /// Lets pages read an answer of the upstream.
    pub(crate) fn open_forwarded(&self, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
        match self {
            Self::Upstream => return,
            Self::Origins(_) | Self::Reflect => {
                headers.append(VARY, HeaderValue::from_name(ORIGIN));
            }
            Self::Any | Self::Off => {}
        }
        headers.remove(ACCESS_CONTROL_ALLOW_CREDENTIALS);
        match self.allowed(origin) {
            Some(allowed) => {
                headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
                if *self == Self::Reflect {
                    headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
                }
                merge(headers, ACCESS_CONTROL_EXPOSE_HEADERS, &EXPOSED);
            }
            None => {
                headers.remove(ACCESS_CONTROL_ALLOW_ORIGIN);
                headers.remove(ACCESS_CONTROL_EXPOSE_HEADERS);
            }
        }
    }

    /// The same for an answer that says nothing about it, as most do.
    pub(crate) fn open_silent(&self, origin: Option<&HeaderValue>, headers: &mut HeaderMap) {
        if *self == Self::Any {
            headers.append(ACCESS_CONTROL_ALLOW_ORIGIN, ANYONE);
            headers.append(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        } else {
            self.open_forwarded(origin, headers);
        }
    }

    /// Whether preflights are the upstream's business.
    pub(crate) fn is_upstreams(&self) -> bool {
        *self == Self::Upstream
    }

    fn allowed(&self, origin: Option<&HeaderValue>) -> Option<HeaderValue> {
        match self {
            Self::Any | Self::Upstream => Some(ANYONE),
            Self::Reflect => origin.cloned(),
            Self::Origins(allowed) => origin.filter(|origin| allowed.contains(origin)).cloned(),
            Self::Off => None,
        }
    }
}

/// One line instead of several: what the upstream exposes, then ours.
fn merge(headers: &mut HeaderMap, name: HeaderName, ours: &HeaderValue) {
    let theirs: Vec<&[u8]> = headers.get_all(&name).iter().map(HeaderValue::as_bytes).collect();
    let merged = if theirs.is_empty() {
        ours.clone()
    } else {
        let lines = [&theirs[..], &[ours.as_bytes()]].concat().join(&b", "[..]);
        HeaderValue::from_bytes(&lines).unwrap_or_else(|_| ours.clone())
    };
    headers.insert(name, merged);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    fn listed() -> Cors {
        Cors::Origins(vec![HeaderValue::from_static("https://app.example.com")])
    }

    #[test]
    fn every_answer_carries_one_origin_whatever_the_upstream_sent() {
        let mut answer = headers(&[
            ("access-control-allow-origin", "https://one.example"),
            ("access-control-allow-origin", "https://two.example"),
            ("access-control-expose-headers", "X-Total"),
        ]);
        Cors::Any.open_forwarded(None, &mut answer);
        let origins: Vec<_> = answer.get_all(ACCESS_CONTROL_ALLOW_ORIGIN).iter().collect();
        assert_eq!(origins, ["*"]);
        let exposed = answer[ACCESS_CONTROL_EXPOSE_HEADERS].to_str().unwrap();
        assert!(exposed.starts_with("X-Total, WWW-Authenticate"), "{exposed}");
    }

    #[test]
    fn an_answer_that_says_nothing_about_it_is_opened_like_any_other() {
        let friend = HeaderValue::from_static("https://app.example.com");
        for cors in [Cors::Any, Cors::Reflect, listed(), Cors::Off, Cors::Upstream] {
            let (mut one, mut other) = (headers(&[("x-total", "1")]), headers(&[("x-total", "1")]));
            cors.open_forwarded(Some(&friend), &mut one);
            cors.open_silent(Some(&friend), &mut other);
            assert_eq!(one, other, "{cors:?}");
        }
    }

    #[test]
    fn a_listed_origin_is_named_and_another_learns_nothing() {
        let friend = HeaderValue::from_static("https://app.example.com");
        let mut answer = HeaderMap::new();
        listed().open_own(Some(&friend), &mut answer);
        assert_eq!(answer[ACCESS_CONTROL_ALLOW_ORIGIN], friend);
        assert_eq!(answer[VARY], "origin");

        let stranger = HeaderValue::from_static("https://evil.example");
        let mut answer = headers(&[("access-control-allow-origin", "*")]);
        listed().open_forwarded(Some(&stranger), &mut answer);
        assert!(!answer.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN));
        assert_eq!(answer[VARY], "origin");
    }

    #[test]
    fn whoever_asks_is_named_and_may_bring_cookies_where_that_is_wanted() {
        let origin = HeaderValue::from_static("https://any.example");
        let theirs = [("access-control-allow-origin", "*"), ("access-control-allow-credentials", "false")];
        for open in [Cors::open_own, Cors::open_forwarded] {
            let mut answer = headers(&theirs);
            open(&Cors::Reflect, Some(&origin), &mut answer);
            assert_eq!(answer[ACCESS_CONTROL_ALLOW_ORIGIN], origin);
            assert_eq!(answer[ACCESS_CONTROL_ALLOW_CREDENTIALS], "true");
            assert_eq!(answer[VARY], "origin");
            // What nobody's page asked for is nobody's to read, and a cache must know.
            let mut answer = headers(&theirs);
            open(&Cors::Reflect, None, &mut answer);
            assert!(!answer.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN));
            assert!(!answer.contains_key(ACCESS_CONTROL_ALLOW_CREDENTIALS));
            assert_eq!(answer[VARY], "origin");
        }
        // No other policy lets cookies in, whatever the upstream says.
        for cors in [Cors::Any, listed(), Cors::Off] {
            let mut answer = headers(&[("access-control-allow-credentials", "true")]);
            cors.open_forwarded(Some(&HeaderValue::from_static("https://app.example.com")), &mut answer);
            assert!(!answer.contains_key(ACCESS_CONTROL_ALLOW_CREDENTIALS), "{cors:?}");
        }
    }

    #[test]
    fn only_a_page_that_was_named_is_let_into_a_private_network() {
        let asked = headers(&[
            ("origin", "https://app.example.com"),
            ("access-control-request-method", "GET"),
            ("access-control-request-private-network", "true"),
        ]);
        for (cors, want) in [(listed(), true), (Cors::Any, false), (Cors::Reflect, false), (Cors::Off, false)]
        {
            let answer = cors.preflight(&asked);
            assert_eq!(answer.headers().contains_key(ALLOWS_PRIVATE_NETWORK), want, "{cors:?}");
        }
        let elsewhere = headers(&[
            ("origin", "https://evil.example"),
            ("access-control-request-method", "GET"),
            ("access-control-request-private-network", "true"),
        ]);
        assert!(!listed().preflight(&elsewhere).headers().contains_key(ALLOWS_PRIVATE_NETWORK));
    }

    #[test]
    fn the_upstreams_own_policy_passes_untouched() {
        let sent = headers(&[("access-control-allow-origin", "https://one.example")]);
        let mut answer = sent.clone();
        Cors::Upstream.open_forwarded(None, &mut answer);
        assert_eq!(answer, sent);
    }

    #[test]
    fn a_preflight_is_allowed_what_it_asks_for() {
        let asked = headers(&[
            ("origin", "https://app.example.com"),
            ("access-control-request-method", "PUT"),
            ("access-control-request-headers", "authorization"),
        ]);
        assert!(is_preflight(&Method::OPTIONS, &asked));
        for cors in [Cors::Any, Cors::Reflect, listed()] {
            let answer = cors.preflight(&asked);
            assert_eq!(answer.status(), StatusCode::NO_CONTENT);
            assert_eq!(answer.headers()[ACCESS_CONTROL_ALLOW_METHODS], "PUT");
            assert_eq!(answer.headers()[ACCESS_CONTROL_ALLOW_HEADERS], "authorization");
        }
        assert!(!Cors::Off.preflight(&asked).headers().contains_key(ACCESS_CONTROL_ALLOW_ORIGIN));
    }

    #[test]
    fn options_without_an_origin_is_no_preflight() {
        assert!(!is_preflight(&Method::OPTIONS, &HeaderMap::new()));
    }
}
