//! What a gateway is told: plain data, already parsed, with a default for everything that has a sensible one.
//!
//! Not the configuration file: its spelling belongs to the `farebox` program, which turns it into these types. What
//! can only be judged with all services side by side is judged in `services.rs`.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use http::{HeaderName, HeaderValue, uri::Authority};
use ipnet::IpNet;

use crate::{cors::Cors, matcher::Matcher};

/// Everything a [`Gateway`](crate::Gateway) needs besides its paywall.
#[derive(Clone, Debug, Default)]
pub struct GatewayConfig {
    /// Where to listen; at least one.
    pub listen: Vec<Listen>,
    /// The operations listener (`/healthz`, `/readyz`, `/metrics`); none unless given.
    pub ops: Option<OpsConfig>,
    /// Worker threads, each with its own runtime and upstream connections. 0 means one per core.
    pub workers: usize,
    /// What is served, in the order in which it is tried: the first match wins.
    pub services: Vec<ServiceRoute>,
    /// Proxies whose `X-Forwarded-*` headers are believed. Nobody's, by default; "comes from loopback" proves nothing.
    pub trusted_proxies: Vec<IpNet>,
    /// Bounds on size and number.
    pub limits: Limits,
    /// Bounds on time.
    pub timeouts: Timeouts,
}

/// One address to listen on.
#[derive(Clone, Debug)]
pub struct Listen {
    /// The address; port 0 lets the system choose one.
    pub addr: SocketAddr,
    /// Certificate and key for TLS (HTTP/2 and HTTP/1.1 by ALPN). Without them: HTTP/1.1 and HTTP/2 in clear text.
    pub tls: Option<TlsFiles>,
}

/// A certificate chain and its key, both PEM.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The chain, the server's own certificate first.
    pub cert: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// The operations listener.
#[derive(Clone, Debug)]
pub struct OpsConfig {
    /// The address; port 0 lets the system choose one.
    pub addr: SocketAddr,
    /// Names by which it may be asked, besides `localhost` and IP addresses. A web page that has its own name
    /// resolve to this address (DNS rebinding) is refused for want of being on this list.
    pub hosts: Vec<String>,
}

/// Bounds on size and number: what one stranger, or all together, can take up.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections open at once; beyond it, new ones wait in the listener's queue. Default 10,000.
    pub connections_max: usize,
    /// Bytes of request line and headers. Default 32 KiB.
    pub header_bytes_max: u32,
    /// Header lines in an HTTP/1.1 request. Default 100.
    pub header_count_max: usize,
    /// HTTP/2 requests in flight on one connection. Default 128.
    pub http2_streams_max: u32,
    /// HTTP/2 requests that a client may reset before we have looked at them (rapid reset). Default 20.
    pub http2_pending_resets_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 10_000,
            header_bytes_max: 32 * 1024,
            header_count_max: 100,
            http2_streams_max: 128,
            http2_pending_resets_max: 20,
        }
    }
}

/// Bounds on time towards clients. None of them limits how long a request may take in all.
#[derive(Clone, Debug)]
pub struct Timeouts {
    /// From accepting a connection to the end of the TLS handshake. Default 10 s.
    pub handshake: Duration,
    /// From the first byte of a request to the end of its headers; also for the first bytes of a connection.
    /// Default 15 s.
    pub headers: Duration,
    /// How long a connection without a request is kept. Default 75 s.
    pub keep_alive: Duration,
    /// How long a client may take nothing of an answer that is waiting for it. Default 60 s.
    pub write_stall: Duration,
    /// How long requests in flight may take to finish once the gateway was told to stop. Default 30 s.
    pub drain: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            headers: Duration::from_secs(15),
            keep_alive: Duration::from_secs(75),
            write_stall: Duration::from_secs(60),
            drain: Duration::from_secs(30),
        }
    }
}

/// One priced upstream.
#[derive(Clone, Debug)]
pub struct ServiceRoute {
    /// Name, price and offer: what the paywall decides by.
    pub service: farebox_paywall::Service,
    /// Which requests are for it.
    pub matcher: Matcher,
    /// Where they go.
    pub upstream: UpstreamConfig,
    /// What browsers on other origins may read.
    pub cors: Cors,
    /// Whether the upstream gets to see the buyer's credential. By default it doesn't.
    pub forward_credential: ForwardCredential,
    /// Headers set on every request to the upstream, after everything else: a client can neither remove nor change
    /// them. An operator's API key goes here.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Bytes of request body accepted; `None` for any number (bodies are streamed, never collected). Default `None`.
    pub request_bytes_max: Option<u64>,
}

impl ServiceRoute {
    /// A route with the defaults for everything that has one: every request matches, no CORS, no extra headers.
    pub fn new(service: farebox_paywall::Service, upstream: UpstreamConfig) -> Self {
        Self {
            service,
            upstream,
            matcher: Matcher::default(),
            cors: Cors::default(),
            forward_credential: ForwardCredential::default(),
            headers: Vec::new(),
            request_bytes_max: None,
        }
    }
}

/// Whether, and under which scheme, the upstream sees the buyer's credential: as exactly one `Authorization` line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForwardCredential {
    /// The credential ends here.
    #[default]
    None,
    /// `Authorization: L402 …`
    L402,
    /// `Authorization: LSAT …`
    Lsat,
}

/// How to reach an upstream.
#[derive(Clone, Debug)]
pub struct UpstreamConfig {
    /// Where it is.
    pub url: UpstreamUrl,
    /// Whose certificate it must show, for `https`.
    pub tls: UpstreamTls,
    /// Send the host that the client asked for instead of the upstream's own. Default off.
    pub preserve_host: bool,
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
}

impl UpstreamConfig {
    /// An upstream at `url` with defaults for the rest.
    pub fn new(url: UpstreamUrl) -> Self {
        Self {
            url,
            tls: UpstreamTls::default(),
            preserve_host: false,
            connect_timeout: Duration::from_secs(10),
            head_timeout: Some(Duration::from_secs(120)),
            idle_timeout: Some(Duration::from_secs(600)),
            idle_connections_max: 64,
            keep_alive: Duration::from_secs(30),
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
