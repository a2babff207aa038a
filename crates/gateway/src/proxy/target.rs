//! What a request asks for, in one form: the host it names and the path it wants.
//!
//! Deciding on one reading and forwarding another is how requests get past a gate, so a request that can be read in two
//! ways is refused here, before anything is decided.

use std::{borrow::Cow, mem};

use farebox_paywall::{PathError, normalise};
use http::{
    HeaderValue, Version,
    header::HOST,
    request::Parts,
    uri::{Authority, PathAndQuery},
};

use super::failure::Failure;

/// The host that a request names; empty only in HTTP/1.0.
pub(super) struct Host {
    /// As it came, with its port.
    pub(super) value: HeaderValue,
}

/// Takes the host out of a request. Two, or none where there must be one, are refused, and so is a target that names
/// another than the header does.
pub(super) fn take_host(parts: &mut Parts) -> Result<Host, Failure> {
    let mut named = parts.headers.get_all(HOST).iter();
    if named.next().is_some() && named.next().is_some() {
        return Err(Failure::Host("there is more than one `Host`"));
    }
    let header = parts.headers.remove(HOST);
    let value = match (parts.uri.authority(), header) {
        (Some(target), None) if parts.version == Version::HTTP_2 => to_value(target)?,
        (Some(target), Some(header)) => {
            let usual = if parts.uri.scheme_str() == Some("https") { 443 } else { 80 };
            if !is_same(target.as_str().as_bytes(), header.as_bytes(), usual) {
                return Err(Failure::Host("the target and `Host` name different hosts"));
            }
            header
        }
        (None, Some(header)) => header,
        (None, None) if parts.version == Version::HTTP_10 => {
            return Ok(Host { value: HeaderValue::from_static("") });
        }
        (_, None) => return Err(Failure::Host("there is no `Host`")),
    };
    let (name, port) = split(value.as_bytes());
    if is_name(name) && port.is_none_or(is_port) {
        Ok(Host { value })
    } else {
        Err(Failure::Host("`Host` is not a name or address with an optional port"))
    }
}

/// Takes path and query out of a request, the path in its normal form: the one that is decided on *and* forwarded.
pub(super) fn take_path(parts: &mut Parts) -> Result<PathAndQuery, Failure> {
    let asked = mem::take(&mut parts.uri).into_parts().path_and_query;
    let asked = asked.unwrap_or_else(|| PathAndQuery::from_static("/"));
    let normal = match normalise(asked.path()).map_err(Failure::Path)? {
        Cow::Borrowed(_) => return Ok(asked),
        Cow::Owned(normal) => normal,
    };
    let whole = match asked.query() {
        Some(query) => format!("{normal}?{query}"),
        None => normal,
    };
    // A normal path and a query that was one before make a target, unless they have grown too long for one.
    PathAndQuery::try_from(whole).map_err(|_| Failure::Path(PathError::TooLong))
}

impl Host {
    /// The name in the form that services are matched by: lower case, without port and final dot.
    pub(super) fn name(&self) -> Cow<'_, str> {
        let (name, _) = split(self.value.as_bytes());
        let name = std::str::from_utf8(name.strip_suffix(b".").unwrap_or(name)).unwrap_or_default();
        if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
            Cow::Owned(name.to_ascii_lowercase())
        } else {
            Cow::Borrowed(name)
        }
    }
}

fn to_value(authority: &Authority) -> Result<HeaderValue, Failure> {
    HeaderValue::from_str(authority.as_str()).map_err(|_| Failure::Host("the target names no host"))
}

fn is_same(left: &[u8], right: &[u8], usual_port: u16) -> bool {
    let (left_name, left_port) = split(left);
    let (right_name, right_port) = split(right);
    let port = |port: Option<&[u8]>| match port {
        Some(digits) => std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()),
        None => Some(usual_port),
    };
    let bare = |name: &[u8]| name.strip_suffix(b".").unwrap_or(name).to_ascii_lowercase();
    port(left_port).is_some() && port(left_port) == port(right_port) && bare(left_name) == bare(right_name)
}

/// Name and port; the colons in brackets belong to the name.
fn split(host: &[u8]) -> (&[u8], Option<&[u8]>) {
    match host.iter().rposition(|byte| matches!(byte, b':' | b']')) {
        Some(at) if host[at] == b':' => (&host[..at], Some(&host[at + 1..])),
        _ => (host, None),
    }
}

fn is_name(name: &[u8]) -> bool {
    let is_address = || {
        let inner = name.strip_prefix(b"[").and_then(|name| name.strip_suffix(b"]"));
        inner.is_some_and(|inner| {
            inner.iter().all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.'))
        })
    };
    let is_letter = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let has_empty_label = || name.starts_with(b".") || name.windows(2).any(|pair| pair == b"..");
    !name.is_empty() && ((name.iter().all(is_letter) && !has_empty_label()) || is_address())
}

fn is_port(port: &[u8]) -> bool {
    std::str::from_utf8(port)
        .is_ok_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn parts(version: Version, target: &str, hosts: &[&str]) -> Parts {
        let mut request = Request::builder().version(version).uri(target);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[track_caller]
    fn check(version: Version, target: &str, hosts: &[&str], want: &str) {
        let got = match take_host(&mut parts(version, target, hosts)) {
            Ok(host) => host.name().into_owned(),
            Err(failure) => format!("refused: {failure}"),
        };
        assert_eq!(got, want, "{target} {hosts:?}");
    }

    #[test]
    fn a_host_has_one_form() {
        for host in [
            "api.example.com",
            "API.Example.COM",
            "api.example.com:8080",
            "api.example.com.",
            "Api.example.com.:1",
        ] {
            check(Version::HTTP_11, "/", &[host], "api.example.com");
        }
        check(Version::HTTP_11, "/", &["[::1]:80"], "[::1]");
        check(Version::HTTP_11, "/", &["127.0.0.1:80"], "127.0.0.1");
    }

    #[test]
    fn there_is_exactly_one_host() {
        check(Version::HTTP_11, "/", &["a", "b"], "refused: there is more than one `Host`");
        check(Version::HTTP_11, "/", &["a", "a"], "refused: there is more than one `Host`");
        check(Version::HTTP_11, "/", &[], "refused: there is no `Host`");
        check(Version::HTTP_11, "http://a/", &[], "refused: there is no `Host`");
        check(Version::HTTP_10, "/", &[], "");
        check(Version::HTTP_2, "http://a/", &[], "a");
    }

    #[test]
    fn target_and_header_must_agree() {
        check(Version::HTTP_11, "http://a.org/", &["a.org"], "a.org");
        check(Version::HTTP_11, "http://A.org:80/", &["a.org"], "a.org");
        check(Version::HTTP_2, "https://a.org/", &["a.org:443"], "a.org");
        for host in ["b.org", "a.org:81", "a.org.evil"] {
            check(
                Version::HTTP_11,
                "http://a.org/",
                &[host],
                "refused: the target and `Host` name different hosts",
            );
            check(
                Version::HTTP_2,
                "http://a.org/",
                &[host],
                "refused: the target and `Host` name different hosts",
            );
        }
    }

    #[test]
    fn a_host_is_a_name_or_address_and_nothing_else() {
        for host in ["", "a,b", "a b", "user@a", "a/b", "a:b", "a:99999", "a:", "[::1", "é", ".", "a..", ".a"]
        {
            let want = "refused: `Host` is not a name or address with an optional port";
            check(Version::HTTP_11, "/", &[host], want);
        }
    }

    #[test]
    fn the_path_that_is_decided_on_is_the_one_that_is_forwarded() {
        for (target, want) in [
            ("/a", "/a"),
            ("/free/../paid?q=1/../2", "/paid?q=1/../2"),
            ("//a", "/a"),
            ("http://h", "/"),
            ("http://h/x/./y", "/x/y"),
            ("/%61?", "/a?"),
        ] {
            let taken = take_path(&mut parts(Version::HTTP_11, target, &[])).unwrap();
            assert_eq!(taken.as_str(), want);
        }
        // Legal as it comes, and too long for a target once it is spelled out.
        let swelling = format!("/{}", "\"".repeat(22_000));
        for target in ["/a%2fb", "/a%5cb", "*", &swelling] {
            assert!(
                matches!(take_path(&mut parts(Version::HTTP_11, target, &[])), Err(Failure::Path(_))),
                "{target}"
            );
        }
    }
}
