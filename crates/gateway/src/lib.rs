//! The seller's HTTP gateway: listeners, reverse proxy, operations endpoints.
//!
//! It knows sockets and nothing of money: whether a request may pass is asked of
//! [`Paywall::admit`](farebox_paywall::Paywall::admit), and what it answers is carried out here. Start reading in
//! `proxy.rs`, the path of one request from top to bottom.

mod addresses;
mod config;
mod cors;
mod gateway;
mod listen;
mod matcher;
mod metrics;
mod moment;
mod ops;
mod proxy;
mod services;
mod timers;
mod upstream;
mod worker;

pub use config::{
    Certificate, ClientCertificates, ClientLists, ForwardCredential, GatewayConfig, HealthCheck, Limits,
    Listen, Note, OpsConfig, Rewrite, ServiceRoute, Timeouts, Tls, TlsFiles, TlsVersion, UpstreamConfig,
    UpstreamHost, UpstreamScheme, UpstreamTls, UpstreamUrl, UrlError,
};
pub use cors::Cors;
pub use gateway::{Gateway, GatewayError, Reload};
pub use matcher::{HostPattern, Matcher, MatcherError, PathPrefix};
pub use services::ServicesError;
pub use upstream::UpstreamError;
