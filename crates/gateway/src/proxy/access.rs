//! The books of one request: a count in the metrics and a line in the access log, when its answer has been sent or given
//! up.
//!
//! The line holds the path but never the query, which may carry somebody's secret, and no header at all. With the log
//! switched off (target `farebox::access`) nothing is copied or formatted for it.

use std::{error::Error as _, fmt, net::IpAddr, sync::Arc};

use farebox_paywall::{Code, Freebie};
use http::{Method, Request, Response, StatusCode};
use tokio::time::Instant;
use tracing::Level;

use super::{Body, Peer, failure::Failure};
use crate::{listen::InFlight, metrics::Reason, services::Route, worker::Worker};

/// See the module. Dropped without an answer, the client has gone away first.
pub(super) struct Account {
    worker: Arc<Worker>,
    route: Option<Arc<Route>>,
    started: Instant,
    reason: Reason,
    /// What was counted for it, and is given back where the client gets nothing through no fault of its own.
    freebie: Option<Freebie>,
    status: StatusCode,
    bytes: u64,
    is_complete: bool,
    line: Option<Box<Line>>,
}

/// What only the log wants to know.
struct Line {
    client: IpAddr,
    method: Method,
    path: String,
}

impl Account {
    pub(super) fn open<B>(request: &Request<B>, peer: &Peer, worker: &Arc<Worker>) -> Self {
        let line = tracing::enabled!(target: "farebox::access", Level::INFO).then(|| {
            let path = request.uri().path().to_owned();
            Box::new(Line { client: peer.ip, method: request.method().clone(), path })
        });
        Self {
            worker: worker.clone(),
            route: None,
            started: Instant::now(),
            reason: Reason::ClientGone,
            freebie: None,
            // Nobody sees it; the number is the usual one for this in logs.
            status: StatusCode::from_u16(499).expect("499 is three digits"),
            bytes: 0,
            is_complete: false,
            line,
        }
    }

    /// The path in the form that was decided on.
    pub(super) fn path(&mut self, path: &str) {
        if let Some(line) = &mut self.line
            && line.path != path
        {
            path.clone_into(&mut line.path);
        }
    }

    pub(super) fn client(&mut self, client: IpAddr) {
        if let Some(line) = &mut self.line {
            line.client = client;
        }
    }

    pub(super) fn routed(&mut self, route: Arc<Route>) {
        self.route = Some(route);
    }

    pub(super) fn route(&self) -> Option<&Arc<Route>> {
        self.route.as_ref()
    }

    /// When the request came.
    pub(super) const fn started(&self) -> Instant {
        self.started
    }

    pub(super) const fn decided(&mut self, code: Code) {
        self.reason = Reason::Decided(code);
    }

    /// It goes on at the cost of a freebie.
    pub(super) fn uses(&mut self, freebie: Option<Freebie>) {
        self.freebie = freebie;
    }

    /// The upstream has answered with this status. Whether that was had for nothing.
    pub(super) fn has_for_nothing(&mut self, status: StatusCode) -> bool {
        let Some(freebie) = self.freebie.take() else { return false };
        let is_worth_nothing = status.is_server_error();
        if is_worth_nothing {
            freebie.give_back();
        }
        !is_worth_nothing
    }

    pub(super) fn is_preflight(&self) -> bool {
        self.reason == Reason::Decided(Code::Preflight)
    }

    pub(super) fn failed(&mut self, failure: &Failure) {
        self.reason = Reason::Failed(failure.code());
        if let Some(freebie) = self.freebie.take().filter(|_| !failure.is_clients()) {
            freebie.give_back();
        }
        let Some(route) = self.route.as_ref().filter(|_| failure.is_upstreams()) else { return };
        route.metrics.upstream_failed(failure.code());
        tracing::warn!(
            service = %route.config.service.name,
            upstream = %route.config.upstream.urls[0],
            code = failure.code(),
            cause = %Causes(failure),
            "an upstream failed",
        );
    }

    pub(super) const fn sent(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes as u64);
    }

    pub(super) const fn complete(&mut self) {
        self.is_complete = true;
    }

    pub(super) const fn worker(&self) -> &Arc<Worker> {
        &self.worker
    }

    /// The client gets this status, whatever becomes of the rest.
    pub(super) const fn answered(&mut self, status: StatusCode) {
        self.status = status;
    }

    /// Hands an answer to the client, and the books to its body.
    pub(super) fn close(mut self, response: Response<Body>, in_flight: InFlight) -> Response<Body> {
        self.status = response.status();
        response.map(|body| body.with_account(self, in_flight))
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let took = self.started.elapsed();
        let route = self.route.as_ref();
        let metrics = route.map_or(&self.worker.shared.metrics.unmatched, |route| &route.metrics);
        metrics.answered(self.worker.index, self.reason, self.status, took);
        let Some(line) = &self.line else { return };
        tracing::info!(
            target: "farebox::access",
            client = %line.client,
            method = %line.method,
            path = line.path,
            service = route.map_or("", |route| route.config.service.name.as_ref()),
            status = self.status.as_u16(),
            code = self.reason.as_str(),
            bytes = self.bytes,
            complete = self.is_complete,
            millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        );
    }
}

/// An error with all that caused it, in one line.
struct Causes<'a>(&'a Failure);

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
