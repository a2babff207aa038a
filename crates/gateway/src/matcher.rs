//! Which requests are for a service: by host, path prefix and method.
//!
//! Patterns are parsed once, when the configuration is read; a request is compared without allocating. Hosts arrive
//! here lower-case, without port and trailing dot, paths normalised by `farebox_paywall::normalise`: this module never sees
//! two spellings of one thing.

mod loose;

use std::{fmt, net::Ipv6Addr, str::FromStr};

use farebox_paywall::normalise;
use http::Method;

pub(crate) use self::loose::{Loose, is_odd};

/// Which requests are for a service. An empty list stands for "any".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Matcher {
    /// Hosts, exact or `*.example.com`.
    pub hosts: Vec<HostPattern>,
    /// Path prefixes, by whole segments.
    pub path_prefixes: Vec<PathPrefix>,
    /// Methods. A service that lists GET answers HEAD too.
    pub methods: Vec<Method>,
}

/// A host name, or `*.` and the end of one: `*.example.com` is any name below `example.com`, however deep, and not
/// `example.com` itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPattern {
    /// Lower case; of a wildcard, what follows the `*`, dot included.
    text: String,
    wildcard: bool,
}

/// The beginning of a path, by whole segments: `/v1` is the beginning of `/v1` and `/v1/users`, not of `/v10`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PathPrefix(String);

/// A text that is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MatcherError {
    /// Neither a host name nor `*.` and one.
    #[error(
        "`{0}` is not a host; write a name or address without port, such as `api.example.com` or `*.example.com`"
    )]
    Host(String),
    /// A name in letters that no request ever carries.
    #[error(
        "`{0}` has letters beyond ASCII, and no client sends such a name; write it as clients do, in its `xn--` form"
    )]
    Unicode(String),
    /// Not a path in the form in which paths are compared.
    #[error(
        "`{0}` is not a path prefix; write it in plain form from `/` on, without `..`, `//`, `;`, needless encoding, query or wildcard"
    )]
    Path(String),
}

impl Matcher {
    /// Whether a request is for this service.
    pub(crate) fn matches(&self, host: &str, path: &str, method: &Method) -> bool {
        (self.hosts.is_empty() || self.hosts.iter().any(|pattern| pattern.matches(host)))
            && (self.path_prefixes.is_empty() || self.path_prefixes.iter().any(|prefix| prefix.matches(path)))
            && self.allows(method)
    }

    /// The same where letters of paths may be small or capital.
    pub(crate) fn matches_folded(&self, host: &str, path: &str, method: &Method) -> bool {
        (self.hosts.is_empty() || self.hosts.iter().any(|pattern| pattern.matches(host)))
            && (self.path_prefixes.is_empty()
                || self.path_prefixes.iter().any(|prefix| begins_folded(path, prefix.stem())))
            && self.allows(method)
    }

    /// Whether every request that fits `host`, `prefix` and `method` (`None` for "any") is for this service.
    pub(crate) fn covers(
        &self,
        host: Option<&HostPattern>,
        prefix: Option<&PathPrefix>,
        method: Option<&Method>,
    ) -> bool {
        let hosts = || host.is_some_and(|host| self.hosts.iter().any(|ours| ours.covers(host)));
        let paths =
            || prefix.is_some_and(|prefix| self.path_prefixes.iter().any(|ours| ours.matches(&prefix.0)));
        (self.hosts.is_empty() || hosts())
            && (self.path_prefixes.is_empty()
                || self.path_prefixes.iter().any(|ours| ours.0 == "/")
                || paths())
            && (self.methods.is_empty() || method.is_some_and(|method| self.allows(method)))
    }

    fn allows(&self, method: &Method) -> bool {
        self.methods.is_empty()
            || self.methods.contains(method)
            || (method == Method::HEAD && self.methods.contains(&Method::GET))
    }
}

/// Whether a path begins with these whole segments, in small letters or capitals.
pub(crate) fn begins_folded(path: &str, stem: &str) -> bool {
    let (path, length) = (path.as_bytes(), stem.len());
    path.get(..length).is_some_and(|front| front.eq_ignore_ascii_case(stem.as_bytes()))
        && path.get(length).is_none_or(|next| *next == b'/')
}

impl HostPattern {
    fn matches(&self, host: &str) -> bool {
        if self.wildcard {
            host.len() > self.text.len() && host.ends_with(&self.text)
        } else {
            host == self.text
        }
    }

    fn covers(&self, other: &Self) -> bool {
        match (self.wildcard, other.wildcard) {
            (false, true) => false,
            (true, true) => other.text.ends_with(&self.text),
            (_, false) => self.matches(&other.text),
        }
    }
}

impl FromStr for HostPattern {
    type Err = MatcherError;

    fn from_str(text: &str) -> Result<Self, MatcherError> {
        let lower = text.to_ascii_lowercase();
        let lower = lower.strip_suffix('.').unwrap_or(&lower);
        let (name, wildcard) = match lower.strip_prefix("*.") {
            Some(name) => (name, true),
            None => (lower, false),
        };
        if !text.is_ascii() {
            return Err(MatcherError::Unicode(text.to_owned()));
        }
        let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        if let Some(address) = address.and_then(|name| name.parse::<Ipv6Addr>().ok()).filter(|_| !wildcard) {
            return Ok(Self { text: format!("[{address}]"), wildcard });
        }
        let is_name = name.split('.').all(|label| {
            !label.is_empty()
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
        });
        if !is_name {
            return Err(MatcherError::Host(text.to_owned()));
        }
        let text = if wildcard { format!(".{name}") } else { name.to_owned() };
        Ok(Self { text, wildcard })
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.wildcard { "*" } else { "" }, self.text)
    }
}

impl PathPrefix {
    pub(crate) fn matches(&self, path: &str) -> bool {
        self.strip(path).is_some()
    }

    /// What follows this prefix in a path (normalised): nothing, or the rest from its slash on. What follows `/` is the
    /// whole path.
    pub(crate) fn strip<'p>(&self, path: &'p str) -> Option<&'p str> {
        let rest = path.strip_prefix(self.stem())?;
        (rest.is_empty() || rest.starts_with('/')).then_some(rest)
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// What can be put in front of a path: for `/`, nothing.
    pub(crate) fn stem(&self) -> &str {
        if self.0 == "/" { "" } else { &self.0 }
    }
}

impl FromStr for PathPrefix {
    type Err = MatcherError;

    /// A final slash makes no difference: `/v1/` is `/v1`.
    fn from_str(text: &str) -> Result<Self, MatcherError> {
        let refused = || MatcherError::Path(text.to_owned());
        let trimmed = text.strip_suffix('/').filter(|rest| !rest.is_empty()).unwrap_or(text);
        let normal = normalise(trimmed).map_err(|_| refused())?;
        // A star is a legal character in a path, and never what somebody who writes one here means. What servers read in
        // two ways divides nothing.
        let is_loose = Loose::read(trimmed) != Loose::Same;
        if normal != trimmed || trimmed.contains('*') || is_loose {
            return Err(refused());
        }
        Ok(Self(trimmed.to_owned()))
    }
}

impl fmt::Display for PathPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_host(pattern: &str, host: &str, want: bool) {
        assert_eq!(pattern.parse::<HostPattern>().unwrap().matches(host), want, "{pattern} {host}");
    }

    #[track_caller]
    fn check_path(prefix: &str, path: &str, want: bool) {
        assert_eq!(prefix.parse::<PathPrefix>().unwrap().matches(path), want, "{prefix} {path}");
    }

    #[test]
    fn a_host_is_exact_or_anything_below() {
        check_host("API.Example.com.", "api.example.com", true);
        check_host("example.com", "api.example.com", false);
        check_host("*.example.com", "api.example.com", true);
        check_host("*.example.com", "a.b.example.com", true);
        check_host("*.example.com", "example.com", false);
        check_host("*.example.com", "badexample.com", false);
        check_host("[::1]", "[::1]", true);
        check_host("[0:0:0:0:0:0:0:1]", "[::1]", true);
        check_host("[2001:DB8:0::1]", "[2001:db8::1]", true);
        check_host("XN--bcher-kva.example", "xn--bcher-kva.example", true);
    }

    #[test]
    fn a_prefix_is_whole_segments() {
        check_path("/v1", "/v1", true);
        check_path("/v1", "/v1/users", true);
        check_path("/v1", "/v10", false);
        check_path("/v1/", "/v1", true);
        check_path("/", "/anything", true);
        check_path("/pkg.Service", "/pkg.Service/Method", true);
    }

    #[test]
    fn a_pattern_that_could_never_match_is_refused() {
        for text in ["", "*", "*.", "host:80", "a..b", "https://host", "a b", "*.*.com", "[x]"] {
            assert_eq!(text.parse::<HostPattern>(), Err(MatcherError::Host(text.to_owned())));
        }
        let name = "*.bücher.example".to_owned();
        assert_eq!(name.parse::<HostPattern>(), Err(MatcherError::Unicode(name)));
        for text in ["", "v1", "/a/../b", "/a//b", "/a?b", "/a/*", "/%61", "/a%2Fb", "/a;b", "/%40me"] {
            assert_eq!(text.parse::<PathPrefix>(), Err(MatcherError::Path(text.to_owned())));
        }
    }

    #[test]
    fn who_may_get_may_head() {
        let matcher = Matcher { methods: vec![Method::GET], ..Matcher::default() };
        assert!(matcher.matches("", "/", &Method::HEAD));
        assert!(!matcher.matches("", "/", &Method::POST));
    }
}
