//! Where requests go: the addresses of an upstream, and how it is spoken to.

mod url;

use std::{path::PathBuf, time::Duration};

use http::uri::Authority;

pub use self::url::{UpstreamScheme, UpstreamUrl, UrlError};

/// How to reach an upstream. Two that are equal are one: after a reload, connections and what is known of the addresses
/// are kept for those that have not changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamConfig {
    /// Its addresses, at least one and none twice. With several, each request goes to the one that is least busy among
    /// those that answer, and to another one where that is safe if it turns out not to.
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
    /// HTTP/1.1 connections open to one address at once, over all workers (a health check makes one of its own); further
    /// requests wait in turn for one, as long as for connecting. At least 1. `None` for any number, which is the default.
    pub connections_max: Option<usize>,
    /// How many times in a row an address may fail (to connect, or by breaking off before it has said anything) before
    /// it is left out for a while. An address that is silent is not failing: only a health check tells slow from dead.
    /// With one address, or with all of them failing, none is left out. At least 1. Default 3.
    pub failures_max: u32,
    /// How long a failing address is left out; then one request tries it. It doubles each time, up to sixteenfold, and
    /// is forgotten with the first answer. Default 5 s.
    pub eject_for: Duration,
    /// Asking each address how it is, besides noticing how it answers. Default: not done.
    pub health: Option<HealthCheck>,
}

/// A question asked of each address over and over, on a connection of its own: a `GET` that must be answered with a
/// status below 400. An address that does not is left out until it does, unless it is the last one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The path to ask for, from its first `/`, with a query if need be.
    pub path: String,
    /// From the end of one question to the next; not zero.
    pub every: Duration,
    /// How long it may take in all, from connecting to the first line of the answer; not zero.
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
    /// By a certificate from an authority that this machine trusts: its own store is read at the start and at each
    /// reload.
    SystemRoots,
    /// By a certificate from an authority in this PEM file, and no other.
    CaFile(PathBuf),
    /// Not at all. Anyone between the gateway and the upstream can read and change everything; each start warns of it.
    InsecureSkipVerify,
}
