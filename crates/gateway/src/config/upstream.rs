//! Where requests go: the addresses of an upstream, and how it is spoken to.

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use http::uri::Authority;

/// How to reach an upstream.
#[derive(Clone, Debug)]
pub struct UpstreamConfig {
    /// Its addresses, at least one. With several, each request goes to the one that is least busy among those that answer.
    pub urls: Vec<UpstreamUrl>,
    /// Whose certificate it must show, for `https`.
    pub tls: UpstreamTls,
    /// Which host it is asked for. Default: its own.
    pub host: UpstreamHost,
    /// Until a connection stands, TLS included. Default 10 s.
    pub connect_timeout: Duration,
    /// From the request to the first line of the answer; `None` to wait for ever. A gRPC call is held to its own
    /// deadline instead. Default 2 minutes.
    pub head_timeout: Option<Duration>,
    /// How long a body may be silent in either direction; `None` for ever. Never a limit on the whole.
    /// Default 10 minutes.
    pub idle_timeout: Option<Duration>,
    /// Unused HTTP/1.1 connections kept per worker. Default 64.
    pub idle_connections_max: usize,
    /// How long an unused connection is kept. Default 30 s.
    pub keep_alive: Duration,
    /// HTTP/1.1 connections open to one address at once, over all workers; further requests wait for one as long as for
    /// connecting. `None` for any number, which is the default.
    pub connections_max: Option<usize>,
    /// How many times in a row an address may fail (to connect, or to say anything at all) before it is left out for a
    /// while. With one address, or with all of them failing, none is left out. Default 3.
    pub failures_max: u32,
    /// How long a failing address is left out; it doubles each time, up to sixteenfold. Default 5 s.
    pub eject_for: Duration,
    /// Asking each address how it is, besides noticing how it answers. Default: not done.
    pub health: Option<HealthCheck>,
}

/// A question asked of each address over and over: a `GET` that must be answered with a status below 400.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The path to ask for.
    pub path: String,
    /// How often.
    pub every: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
}

/// Which host an upstream is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum UpstreamHost {
    /// That of its address; `localhost` for a Unix socket.
    #[default]
    Own,
    /// The one that the client asked for.
    Asked,
    /// This one.
    Named(Authority),
}

impl UpstreamConfig {
    /// An upstream at `url` with defaults for the rest.
    pub fn new(url: UpstreamUrl) -> Self {
        Self {
            urls: vec![url],
            tls: UpstreamTls::default(),
            host: UpstreamHost::default(),
            connect_timeout: Duration::from_secs(10),
            head_timeout: Some(Duration::from_secs(120)),
            idle_timeout: Some(Duration::from_secs(600)),
            idle_connections_max: 64,
            keep_alive: Duration::from_secs(30),
            connections_max: None,
            failures_max: 3,
            eject_for: Duration::from_secs(5),
            health: None,
        }
    }
}

/// How an `https` upstream proves who it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum UpstreamTls {
    /// By a certificate from one of the public authorities that browsers know.
    #[default]
    WebRoots,
    /// By a certificate from an authority in this PEM file, and no other.
    CaFile(PathBuf),
    /// Not at all. Anyone between the gateway and the upstream can read and change everything; each start warns of it.
    InsecureSkipVerify,
}

/// What is spoken with an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamScheme {
    /// HTTP/1.1 in clear text.
    Http,
    /// TLS; HTTP/2 where the upstream offers it, else HTTP/1.1.
    Https,
    /// HTTP/2 in clear text, without asking first: what gRPC servers speak.
    H2c,
}

/// The address of an upstream: `http://`, `https://` or `h2c://`, a host and a port if it isn't the usual one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamUrl {
    pub(crate) scheme: UpstreamScheme,
    pub(crate) authority: Authority,
}

/// A text that isn't the address of an upstream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UrlError {
    /// Not `scheme://host[:port]`.
    #[error("`{0}` is not an upstream address; write `http://`, `https://` or `h2c://`, then host and port")]
    Form(String),
    /// A path, query or user name, which would be ignored.
    #[error("`{0}` has more than scheme, host and port; leave the rest out, requests bring their own path")]
    Extra(String),
}

impl UpstreamUrl {
    /// What is spoken.
    pub const fn scheme(&self) -> UpstreamScheme {
        self.scheme
    }

    /// Host and, unless it is the usual one, port.
    pub const fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The port, given or usual.
    pub fn port(&self) -> u16 {
        let usual = if self.scheme == UpstreamScheme::Https { 443 } else { 80 };
        self.authority.port_u16().unwrap_or(usual)
    }
}

impl FromStr for UpstreamUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let form = || UrlError::Form(text.to_owned());
        let (scheme, rest) = text.split_once("://").ok_or_else(form)?;
        let scheme = match scheme {
            "http" => UpstreamScheme::Http,
            "https" => UpstreamScheme::Https,
            "h2c" => UpstreamScheme::H2c,
            _ => return Err(form()),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        if authority.contains(['/', '?', '#', '@']) {
            return Err(UrlError::Extra(text.to_owned()));
        }
        let authority: Authority = authority.parse().map_err(|_| form())?;
        // `Authority` says that there is no port where there is one that it can't read.
        let has_port_unread = authority.port().is_none() && authority.host() != authority.as_str();
        if authority.host().is_empty() || has_port_unread {
            return Err(form());
        }
        Ok(Self { scheme, authority })
    }
}

impl fmt::Display for UpstreamUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            UpstreamScheme::Http => "http",
            UpstreamScheme::Https => "https",
            UpstreamScheme::H2c => "h2c",
        };
        write!(f, "{scheme}://{}", self.authority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_is_scheme_host_and_port() {
        for (text, port) in [
            ("http://127.0.0.1:9000", 9000),
            ("https://api.example.com", 443),
            ("h2c://[::1]:50051", 50051),
            ("http://app/", 80),
        ] {
            let url: UpstreamUrl = text.parse().unwrap();
            assert_eq!(url.port(), port, "{text}");
            assert_eq!(url.to_string(), text.trim_end_matches('/'));
        }
    }

    #[test]
    fn anything_else_is_refused_by_name() {
        for text in
            ["127.0.0.1:80", "ftp://host", "http://", "http://:80", "http://host:99999", "http://ho st"]
        {
            assert!(
                matches!(text.parse::<UpstreamUrl>(), Err(UrlError::Form(said)) if said == text),
                "{text}"
            );
        }
        for text in ["http://host/v1", "http://host?x=1", "http://user:pass@host"] {
            assert!(matches!(text.parse::<UpstreamUrl>(), Err(UrlError::Extra(_))), "{text}");
        }
    }
}
