//! Who is at the other end: scheme, host and port. A credential belongs to the origin that sold it and to no other.

use std::{
    borrow::Cow,
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

use reqwest::Url;

/// Scheme, host and port of an HTTP server.
///
/// The scheme is part of it, so that a token bought over TLS never travels in the clear.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    tls: bool,
    /// Lower case, as `Url` normalises it; an IPv6 address in its brackets.
    host: String,
    port: u16,
}

/// Why a text names no origin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an http or https origin; write it like `https://example.com`")]
pub struct NotAnOrigin(String);

impl Origin {
    /// The origin of `url`, or `None` for one that isn't HTTP.
    pub fn of(url: &Url) -> Option<Self> {
        let tls = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        Some(Self { tls, host: url.host_str()?.to_owned(), port: url.port_or_known_default()? })
    }

    /// Whether both lead to the same server. A credential is bound more tightly, to the very spelling.
    pub(crate) fn is_same_server(&self, other: &Self) -> bool {
        self.tls == other.tls && self.port == other.port && self.plain_host() == other.plain_host()
    }

    /// The host without what changes nothing about who is reached: a final dot, and the IPv6 spelling of an IPv4 address.
    pub(crate) fn plain_host(&self) -> Cow<'_, str> {
        let host = self.host.strip_suffix('.').unwrap_or(&self.host);
        let v6 = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        match v6.and_then(|v6| v6.parse::<Ipv6Addr>().ok()?.to_ipv4_mapped()) {
            Some(v4) => v4.to_string().into(),
            None => host.into(),
        }
    }

    /// Host and port as they are written behind a scheme.
    pub(crate) fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// The host, in lower case; an IPv6 address in its brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Whether the connection is encrypted by TLS.
    pub const fn is_tls(&self) -> bool {
        self.tls
    }

    /// Whether a stranger between here and there can read along: plain HTTP to anything but this machine.
    ///
    /// An onion service is reached in the clear, too, unless by Tor: only there is the address a key.
    pub fn is_in_the_clear(&self) -> bool {
        !self.tls && !self.is_this_machine()
    }

    /// Whether this is an onion service.
    pub(crate) fn is_onion(&self) -> bool {
        self.host.strip_suffix('.').unwrap_or(&self.host).ends_with(".onion")
    }

    /// What to do about plain HTTP.
    pub(crate) fn instead_of_the_clear(&self) -> &'static str {
        if self.is_onion() {
            "reach it by Tor (a socks5h proxy), or allow plain http"
        } else {
            "use https, or allow plain http"
        }
    }

    /// Whether this is the machine we run on, by loopback address or by a name that means it.
    pub fn is_this_machine(&self) -> bool {
        match self.host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            Ok(address) => address.is_loopback(),
            Err(_) => self.host == "localhost" || self.host.ends_with(".localhost"),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, usual) = if self.tls { ("https", 443) } else { ("http", 80) };
        write!(f, "{scheme}://{}", self.host)?;
        if self.port == usual { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

impl FromStr for Origin {
    type Err = NotAnOrigin;

    fn from_str(text: &str) -> Result<Self, NotAnOrigin> {
        Url::parse(text).ok().as_ref().and_then(Self::of).ok_or_else(|| NotAnOrigin(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn origin(text: &str) -> Origin {
        text.parse().expect("the test writes origins")
    }

    #[test]
    fn scheme_host_and_port_all_count() {
        assert_eq!(origin("https://Example.com/a?b"), origin("https://example.com:443"));
        for other in [
            "http://example.com",
            "https://example.com:8443",
            "https://www.example.com",
            "https://example.com.",
        ] {
            assert_ne!(origin("https://example.com"), origin(other), "{other}");
        }
    }

    #[test]
    fn an_origin_reads_back_as_it_is_written() {
        for text in ["https://example.com", "http://127.0.0.1:8080", "http://[::1]:9", "http://a.onion"] {
            assert_eq!(origin(text).to_string(), text);
        }
    }

    #[test]
    fn only_tls_and_this_machine_are_out_of_the_clear() {
        for safe in ["https://example.com", "http://127.8.9.1", "http://[::1]", "http://localhost:1"] {
            assert!(!origin(safe).is_in_the_clear(), "{safe}");
        }
        for clear in
            ["http://example.com", "http://10.0.0.1", "http://localhost.example.com", "http://x.onion"]
        {
            assert!(origin(clear).is_in_the_clear(), "{clear}");
        }
    }

    #[test]
    fn what_is_not_http_has_no_origin() {
        for text in ["ftp://example.com", "file:///etc/passwd", "example.com", ""] {
            assert!(text.parse::<Origin>().is_err(), "{text}");
        }
    }
}
