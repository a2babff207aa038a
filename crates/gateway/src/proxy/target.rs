//! What a request asks for, in one form: the host it names and the path it wants.
//!
//! Deciding on one reading and forwarding another is how requests get past a gate, so a request that can be read in two
//! ways is refused here, before anything is decided.

use std::{borrow::Cow, mem, net::Ipv6Addr};

use farebox_paywall::{PathError, normalise};
use http::{
    HeaderValue, Method, Version,
    header::HOST,
    request::Parts,
    uri::{Authority, PathAndQuery},
};

use super::failure::Failure;

/// The host that a request names, in the form that services are matched by *and* upstreams are told: lower case, without
/// final dot, an IPv6 address in the spelling of RFC 5952. Empty only in HTTP/1.0.
pub(super) struct Host {
    /// With its port.
    pub(super) value: HeaderValue,
}

/// As long as a name can be in the DNS (RFC 1035 2.3.4), with a final dot and a port.
const HOST_BYTES_MAX: usize = 253 + ".:65535".len();

/// Takes the host out of a request, and leaves an empty one in the place where the upstream's will stand: taking the line
/// away would move others, and putting it back make room for it again. Two, or none where there must be one, are refused,
/// and so is a target that names another than the header does.
pub(super) fn take_host(parts: &mut Parts) -> Result<Host, Failure> {
    if parts.uri.scheme_str().is_some_and(|scheme| !matches!(scheme, "http" | "https")) {
        return Err(Failure::Host("the target is neither of `http` nor of `https`"));
    }
    if parts.uri.authority().is_some() && parts.uri.scheme().is_none() && parts.method != Method::CONNECT {
        return Err(Failure::Host("the target is a host and no path"));
    }
    // Mostly no name is there twice, and this one needn't be looked for.
    let is_each_said_once = parts.headers.len() == parts.headers.keys_len();
    let is_named_twice = || parts.headers.get_all(HOST).iter().nth(1).is_some();
    if !is_each_said_once && is_named_twice() {
        return Err(Failure::Host("there is more than one `Host`"));
    }
    let header = parts.headers.get_mut(HOST).map(|value| mem::replace(value, HeaderValue::from_static("")));
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
    // Connections remember what they asked for last, several times over.
    let is_short = value.len() <= HOST_BYTES_MAX;
    if is_short && is_plain(value.as_bytes()) {
        return Ok(Host { value });
    }
    if is_short && is_host(value.as_bytes()) {
        Ok(Host { value: normal(value) })
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
    /// Without its port.
    pub(super) fn name(&self) -> &str {
        let (name, _) = split(self.value.as_bytes());
        // Visible ASCII, as it was checked to be.
        self.value.to_str().ok().and_then(|host| host.get(..name.len())).unwrap_or_default()
    }
}

/// The normal form of a host that is one. Most come in it, and are not copied.
fn normal(value: HeaderValue) -> HeaderValue {
    let (name, port) = split(value.as_bytes());
    let is_odd = |byte: &u8| byte.is_ascii_uppercase() || *byte == b'[';
    let is_normal = !name.iter().any(is_odd) && !name.ends_with(b".");
    if is_normal && port.is_none_or(|port| !port.starts_with(b"0")) {
        return value;
    }
    let mut text = match address(name) {
        Some(address) => format!("[{address}]"),
        None => {
            let name = name.strip_suffix(b".").unwrap_or(name);
            String::from_utf8_lossy(name).to_ascii_lowercase()
        }
    };
    if let Some(port) = port {
        let digits = String::from_utf8_lossy(port);
        let bare = digits.trim_start_matches('0');
        text.push(':');
        text.push_str(if bare.is_empty() { "0" } else { bare });
    }
    HeaderValue::try_from(text).unwrap_or(value)
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
    let is_one_name = match (address(left_name), address(right_name)) {
        (None, None) => bare(left_name) == bare(right_name),
        (left, right) => left == right,
    };
    port(left_port).is_some() && port(left_port) == port(right_port) && is_one_name
}

/// Whether a host is certainly one, and in its normal form, as most are: small letters and digits in labels, and a port of
/// digits that cannot be too many.
fn is_plain(host: &[u8]) -> bool {
    let name = host.iter().position(|byte| *byte == b':').map_or(host, |at| &host[..at]);
    let mut is_label = false;
    for byte in name {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => is_label = true,
            b'.' if is_label => is_label = false,
            _ => return false,
        }
    }
    let is_port = match &host[name.len()..] {
        [] => true,
        [_, first @ b'1'..=b'9', more @ ..] => {
            more.len() <= if *first < b'6' { 4 } else { 3 } && more.iter().all(u8::is_ascii_digit)
        }
        _ => false,
    };
    is_label && is_port
}

/// Name and port; the colons in brackets belong to the name.
fn split(host: &[u8]) -> (&[u8], Option<&[u8]>) {
    match host.iter().rposition(|byte| matches!(byte, b':' | b']')) {
        Some(at) if host[at] == b':' => (&host[..at], Some(&host[at + 1..])),
        _ => (host, None),
    }
}

/// The IPv6 address in a pair of brackets. One with a zone means something on one machine only and is none.
fn address(name: &[u8]) -> Option<Ipv6Addr> {
    let inner = name.strip_prefix(b"[")?.strip_suffix(b"]")?;
    std::str::from_utf8(inner).ok()?.parse().ok()
}

/// Whether this is a name or an address, with a port or without.
pub(super) fn is_host(said: &[u8]) -> bool {
    let (name, port) = split(said);
    is_name(name) && port.is_none_or(is_port)
}

fn is_name(name: &[u8]) -> bool {
    let is_letter = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let has_empty_label = || name.starts_with(b".") || name.windows(2).any(|pair| pair == b"..");
    !name.is_empty() && ((name.iter().all(is_letter) && !has_empty_label()) || address(name).is_some())
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
            Ok(host) => host.name().to_owned(),
            Err(failure) => format!("refused: {failure}"),
        };
        assert_eq!(got, want, "{target} {hosts:?}");
    }

    #[test]
    fn the_host_that_is_decided_on_is_the_one_that_upstreams_are_told() {
        for (said, want) in [
            ("api.example.com:8080", "api.example.com:8080"),
            ("API.Example.com.:8080", "api.example.com:8080"),
            ("api.example.com.", "api.example.com"),
            ("a:0080", "a:80"),
            ("a:0", "a:0"),
            ("[0:0::1]:443", "[::1]:443"),
        ] {
            let host = take_host(&mut parts(Version::HTTP_11, "/", &[said])).ok().unwrap();
            assert_eq!(host.value, want);
        }
    }

    const NO_HOST: &str = "refused: there is no `Host`";
    const TWO: &str = "refused: there is more than one `Host`";
    const APART: &str = "refused: the target and `Host` name different hosts";
    const NO_NAME: &str = "refused: `Host` is not a name or address with an optional port";
    const NO_PATH: &str = "refused: the target is a host and no path";
    const NOT_HTTP: &str = "refused: the target is neither of `http` nor of `https`";

    #[test]
    fn what_is_taken_as_it_is_would_have_been_read_the_same() {
        let pieces = [
            "", "a", "B", "0", "9", "-", "_", ".", ":", "[", "]", "::1", "80", "1234", "12345", "59999",
            "65536", "é",
        ];
        for first in pieces {
            for second in pieces {
                for third in pieces {
                    let host = [first, second, third, ":"].concat();
                    for host in [&host[..host.len() - 1], &host] {
                        let Ok(value) = HeaderValue::from_bytes(host.as_bytes()) else { continue };
                        let (name, port) = split(host.as_bytes());
                        let is_one = is_name(name) && port.is_none_or(is_port);
                        if is_plain(host.as_bytes()) {
                            assert!(is_one && normal(value.clone()) == value, "{host}");
                        }
                    }
                }
            }
        }
        for host in ["api.example.com", "127.0.0.1:8080", "a:1"] {
            assert!(is_plain(host.as_bytes()), "{host}");
        }
    }

    #[test]
    fn a_host_has_one_form_or_the_request_is_refused() {
        const H10: Version = Version::HTTP_10;
        const H11: Version = Version::HTTP_11;
        const H2: Version = Version::HTTP_2;
        let table: &[(Version, &str, &[&str], &str)] = &[
            // One form: case, port, final dot, the spelling of an address.
            (H11, "/", &["api.example.com"], "api.example.com"),
            (H11, "/", &["API.Example.COM"], "api.example.com"),
            (H11, "/", &["api.example.com:8080"], "api.example.com"),
            (H11, "/", &["api.example.com."], "api.example.com"),
            (H11, "/", &["Api.example.com.:1"], "api.example.com"),
            (H11, "/", &["my_host"], "my_host"),
            (H11, "/", &["xn--bcher-kva.example"], "xn--bcher-kva.example"),
            (H11, "/", &["XN--BCHER-KVA.example"], "xn--bcher-kva.example"),
            (H11, "/", &["127.0.0.1:80"], "127.0.0.1"),
            (H11, "/", &["[::1]:80"], "[::1]"),
            (H11, "/", &["[0:0:0:0:0:0:0:1]"], "[::1]"),
            (H11, "/", &["[2001:DB8::0:1]"], "[2001:db8::1]"),
            (H11, "/", &["[::ffff:1.2.3.4]"], "[::ffff:1.2.3.4]"),
            (H11, "/", &["[::FFFF:102:304]"], "[::ffff:1.2.3.4]"),
            // Exactly one.
            (H11, "/", &["a", "b"], TWO),
            (H11, "/", &["a", "a"], TWO),
            (H2, "http://a/", &["a", "a"], TWO),
            (H11, "/", &[], NO_HOST),
            (H11, "http://a/", &[], NO_HOST),
            (H10, "http://a/", &[], NO_HOST),
            (H2, "/", &[], NO_HOST),
            (H10, "/", &[], ""),
            (H10, "/", &["a"], "a"),
            (H2, "http://a/", &[], "a"),
            (H2, "/", &["a"], "a"),
            // Target and header agree.
            (H11, "http://a.org/", &["a.org"], "a.org"),
            (H11, "http://A.org:80/", &["a.org"], "a.org"),
            (H11, "http://a.org./", &["a.org"], "a.org"),
            (H11, "http://[0::1]/", &["[::1]:80"], "[::1]"),
            (H2, "https://a.org/", &["a.org:443"], "a.org"),
            (H11, "http://a.org/", &["b.org"], APART),
            (H11, "http://a.org/", &["a.org:81"], APART),
            (H11, "http://a.org/", &["a.org.evil"], APART),
            (H11, "http://a.org:81/", &["a.org"], APART),
            (H11, "https://a.org/", &["a.org:80"], APART),
            (H11, "http://[::1]/", &["[::2]"], APART),
            (H11, "http://[::1]/", &["a"], APART),
            (H11, "http://user@a.org/", &["a.org"], APART),
            (H11, "http://user@a.org/", &["user@a.org"], NO_NAME),
            (H11, "http://a.org/", &[""], APART),
            (H2, "http://a.org/", &["b.org"], APART),
            (H2, "http://a.org/", &["a.org:81"], APART),
            (H2, "http://user@a.org/", &[], NO_NAME),
            (H2, "http://user:pass@a.org/", &[], NO_NAME),
            // What a target may be.
            (H11, "ftp://a/", &["a"], NOT_HTTP),
            (H2, "wss://a/", &[], NOT_HTTP),
            (H11, "a.org:80", &["a.org:80"], NO_PATH),
            (H11, "a.org", &["a.org"], NO_PATH),
            // A name or an address, and nothing else.
            (H11, "/", &[""], NO_NAME),
            (H10, "/", &[""], NO_NAME),
            (H11, "/", &["a,b"], NO_NAME),
            (H11, "/", &["a b"], NO_NAME),
            (H11, "/", &["user@a"], NO_NAME),
            (H11, "/", &["a/b"], NO_NAME),
            (H11, "/", &["a\\b"], NO_NAME),
            (H11, "/", &["a?b"], NO_NAME),
            (H11, "/", &["a#b"], NO_NAME),
            (H11, "/", &["a:b"], NO_NAME),
            (H11, "/", &["a:+80"], NO_NAME),
            (H11, "/", &["a:-1"], NO_NAME),
            (H11, "/", &["a:99999"], NO_NAME),
            (H11, "/", &["a:"], NO_NAME),
            (H11, "/", &["a:80:80"], NO_NAME),
            (H11, "/", &[":80"], NO_NAME),
            (H11, "/", &["[::1"], NO_NAME),
            (H11, "/", &["::1"], NO_NAME),
            (H11, "/", &["[::1]x"], NO_NAME),
            (H11, "/", &["[::g]"], NO_NAME),
            (H11, "/", &["[1.2.3.4]"], NO_NAME),
            (H11, "/", &["[fe80::1%25eth0]"], NO_NAME),
            (H11, "/", &["[fe80::1%eth0]"], NO_NAME),
            (H11, "/", &["bücher.example"], NO_NAME),
            (H11, "/", &["a%2eexample"], NO_NAME),
            (H11, "/", &["%61"], NO_NAME),
            (H11, "/", &["."], NO_NAME),
            (H11, "/", &["a.."], NO_NAME),
            (H11, "/", &[".a"], NO_NAME),
            (H11, "/", &["a..b"], NO_NAME),
            (H11, "/", &["*.example.com"], NO_NAME),
            (H11, "/", &["a\tb"], NO_NAME),
        ];
        for (version, target, hosts, want) in table {
            // What the parser of targets refuses never gets here.
            if target.parse::<http::Uri>().is_ok() {
                check(*version, target, hosts, want);
            }
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
