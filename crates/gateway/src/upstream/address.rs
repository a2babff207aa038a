//! One address of an upstream: how to reach it, what it is called, who holds connections to it, and how it is doing.
//!
//! When an address goes out of use or comes back, that is one line in the log; what becomes of single requests is in the
//! access log.

use std::{
    io,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use http::{HeaderValue, uri::Scheme};
use rustls::ClientConfig;
use tokio::time::Instant;

use super::{
    AddressStatus, SendError, UpstreamError,
    connect::Connector,
    lease::Lease,
    outgoing::{Heard, Naming},
    pool::Pool,
    standing::{Change, Standing},
};
use crate::{
    config::{UpstreamConfig, UpstreamHost, UpstreamScheme, UpstreamUrl},
    worker::Worker,
};

/// See the module.
pub(super) struct Address {
    text: String,
    naming: Naming,
    connector: Connector,
    pools: Box<[Arc<Pool>]>,
    standing: Standing,
}

impl Address {
    pub(super) fn new(
        url: &UpstreamUrl,
        config: &UpstreamConfig,
        tls: Option<&Arc<ClientConfig>>,
        workers: usize,
    ) -> Result<Self, UpstreamError> {
        let connector = Connector::new(url, tls)?;
        let scheme = match url.scheme() {
            UpstreamScheme::Https => Scheme::HTTPS,
            UpstreamScheme::Http | UpstreamScheme::H2c => Scheme::HTTP,
        };
        // What a request asks for besides comes with it.
        let authority = match &config.host {
            UpstreamHost::Named(name) => name.clone(),
            UpstreamHost::Own | UpstreamHost::Asked => url.authority().clone(),
        };
        let host = HeaderValue::from_str(authority.as_str())
            .map_err(|_| UpstreamError::Name(authority.to_string()))?;
        Ok(Self {
            text: url.to_string(),
            pools: Pool::for_address(config, &connector, &host, workers),
            naming: Naming { scheme, authority, host },
            connector,
            standing: Standing::new(config.failures_max, config.eject_for),
        })
    }

    /// A place among the requests in flight.
    pub(super) fn lease(&self, worker: &Worker) -> Lease {
        Lease::new(self.pool(worker.index))
    }

    pub(super) const fn connector(&self) -> &Connector {
        &self.connector
    }

    pub(super) const fn naming(&self) -> &Naming {
        &self.naming
    }

    pub(super) fn in_flight(&self) -> usize {
        self.pools.iter().map(|pool| pool.in_flight.load(Relaxed)).sum()
    }

    pub(super) fn is_out(&self) -> bool {
        self.standing.is_out()
    }

    /// Whether the caller is the one to try whether it works again.
    pub(super) fn claim(&self) -> bool {
        self.standing.claim(Instant::now())
    }

    /// It has answered a request.
    pub(super) fn answered(&self) {
        self.tell(self.standing.answered(), "it answers again");
    }

    /// It has not.
    pub(super) fn failed(&self, is_trial: bool, error: &SendError) {
        if is_its_own_fault(error) {
            self.count(is_trial, || describe(error));
        }
    }

    /// It has had its time, and not answered a request.
    pub(super) fn is_late(&self, is_trial: bool) {
        self.count(is_trial, || "no answer within the time-out".to_owned());
    }

    fn count(&self, is_trial: bool, cause: impl FnOnce() -> String) {
        if is_trial {
            self.standing.failed_again(Instant::now());
        } else {
            self.tell(self.standing.failed(Instant::now()), &cause());
        }
    }

    /// A health check has been answered as it should, or why not.
    pub(super) fn checked(&self, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => self.tell(self.standing.is_well(Instant::now()), "its health check succeeds"),
            Err(error) => self.tell(self.standing.is_unwell(), &error),
        }
    }

    pub(super) fn status(&self) -> AddressStatus<'_> {
        AddressStatus {
            url: &self.text,
            connections: self.pools.iter().map(|pool| pool.open()).sum(),
            in_flight: self.in_flight(),
            is_ejected: self.is_out(),
        }
    }

    pub(super) fn prune(&self, worker: usize) {
        self.pool(worker).prune();
    }

    /// That of the worker, or everybody's.
    fn pool(&self, worker: usize) -> &Arc<Pool> {
        self.pools.get(worker).unwrap_or(&self.pools[0])
    }

    fn tell(&self, change: Option<Change>, cause: &str) {
        match change {
            Some(Change::Out) => {
                tracing::warn!(upstream = %self.text, cause, "an upstream address fails: it is left out where there is another");
            }
            Some(Change::Back) => tracing::info!(upstream = %self.text, cause, "an upstream address is back"),
            None => {}
        }
    }
}

/// Whether a failure says something about the address, and not about us, the client or the request.
fn is_its_own_fault(error: &SendError) -> bool {
    match error {
        SendError::Connect(error) => !is_for_want_of_ours(error),
        SendError::ConnectTimeout | SendError::Handshake(_) => true,
        SendError::Exchange(error) => Heard::of(error) != Heard::Surely,
        _ => false,
    }
}

/// No file descriptors or no ports are left on this machine: any other address would fail as well.
fn is_for_want_of_ours(error: &io::Error) -> bool {
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    matches!(error.raw_os_error(), Some(ENFILE | EMFILE)) || error.kind() == io::ErrorKind::AddrNotAvailable
}

/// An error with its causes, on one line.
pub(super) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
