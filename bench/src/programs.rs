//! The programs that are compared, as data: each proxies to an upstream, with two workers, no log and connections kept alive.

mod bare;
pub(crate) mod farebox;
mod haproxy;
pub(crate) mod nginx;

use std::{fs, net::SocketAddr};

use anyhow::Result;
use tempfile::TempDir;

use crate::{
    Setting,
    process::{Program, free_address},
};

/// A program that proxies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proxy {
    Nginx,
    Haproxy,
    /// The least that a proxy built on hyper can be.
    Bare,
    /// farebox before a service that costs nothing.
    FareboxFree,
    /// farebox before a service that is paid for, with a token on each request.
    FareboxPaid,
}

/// All of them; nginx first, which the others are divided by.
pub(crate) const ALL: [Proxy; 5] =
    [Proxy::Nginx, Proxy::Haproxy, Proxy::Bare, Proxy::FareboxFree, Proxy::FareboxPaid];

/// What is spoken on one side of a proxy, in clear text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    Http1,
    Http2,
}

/// What a proxy is to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// What clients speak.
    pub(crate) front: Wire,
    /// What the upstream speaks.
    pub(crate) back: Wire,
    /// Where it is.
    pub(crate) upstream: SocketAddr,
    /// Whether `X-Forwarded-For` from loopback is believed, and each client held to a rate.
    pub(crate) clients: Clients,
}

/// What a proxy makes of its clients' addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clients {
    /// Nothing.
    Any,
    /// `X-Forwarded-For` is believed, and each client has a limit of its own on its rate.
    Limited,
}

impl Plan {
    /// HTTP/1.1 on both sides.
    pub(crate) const fn http1(upstream: SocketAddr) -> Self {
        Self { front: Wire::Http1, back: Wire::Http1, upstream, clients: Clients::Any }
    }
}

/// A proxy that runs, until it is dropped.
pub(crate) struct Running {
    pub(crate) proxy: Proxy,
    pub(crate) program: Program,
    pub(crate) address: SocketAddr,
    /// Where it speaks HTTP/2 in clear text, whatever it speaks at `address`. Only nginx and farebox do.
    pub(crate) http2: SocketAddr,
    /// What each request to it must carry.
    pub(crate) headers: Vec<(&'static str, String)>,
    /// Its files. Named last, so that they are there until the program has ended.
    _dir: TempDir,
}

impl Proxy {
    /// As it is called in the tables.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "HAProxy",
            Self::Bare => "bare hyper",
            Self::FareboxFree => "farebox, free",
            Self::FareboxPaid => "farebox, paid",
        }
    }

    /// Starts it and waits until it listens.
    pub(crate) fn start(self, setting: &Setting, plan: &Plan) -> Result<Running> {
        let dir = tempfile::tempdir()?;
        // nginx's workers drop root, and are then somebody else.
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let address = free_address()?;
        let http2 = if self == Self::Nginx { free_address()? } else { address };
        let command = match self {
            Self::Nginx => nginx::proxy(dir.path(), address, http2, plan)?,
            Self::Haproxy => haproxy::proxy(dir.path(), address, plan)?,
            Self::Bare => bare::proxy(setting, address, plan),
            Self::FareboxFree => farebox::proxy(setting, dir.path(), address, plan, farebox::Sold::Free)?,
            Self::FareboxPaid => farebox::proxy(setting, dir.path(), address, plan, farebox::Sold::Paid)?,
        };
        // The same requests for each: what it takes to read and to pass on is nobody's alone.
        let headers = vec![("authorization", farebox::credential()?)];
        let program = Program::start(command, address)?;
        Ok(Running { proxy: self, program, address, http2, headers, _dir: dir })
    }
}

/// Starts each of `proxies`.
pub(crate) fn start_all(proxies: &[Proxy], setting: &Setting, plan: &Plan) -> Result<Vec<Running>> {
    proxies.iter().map(|proxy| proxy.start(setting, plan)).collect()
}
