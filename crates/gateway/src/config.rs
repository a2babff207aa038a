//! What a gateway is told: plain data, already parsed, with a default for everything that has a sensible one.
//!
//! Not the configuration file: its spelling belongs to the `farebox` program, which turns it into these types. What
//! can only be judged with all services side by side is judged in `services.rs`.

mod limits;
mod listen;
mod service;
mod upstream;

use std::net::SocketAddr;

use ipnet::IpNet;

pub use self::{
    limits::{Limits, Timeouts},
    listen::{Certificate, ClientCertificates, ClientLists, Listen, Tls, TlsFiles, TlsVersion},
    service::{ForwardCredential, Note, Rewrite, ServiceRoute},
    upstream::{
        HealthCheck, UpstreamConfig, UpstreamHost, UpstreamScheme, UpstreamTls, UpstreamUrl, UrlError,
    },
};

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
    /// Proxies whose `Forwarded`, `X-Forwarded-*` and PROXY headers are believed. Nobody's, by default; "comes from loopback" proves nothing.
    pub trusted_proxies: Vec<IpNet>,
    /// Who may come in at all.
    pub clients: ClientLists,
    /// Bounds on size and number.
    pub limits: Limits,
    /// Bounds on time.
    pub timeouts: Timeouts,
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
