//! The books of one request: a count in the metrics and a line in the access log, when its answer has been sent or given
//! up.
//!
//! The line holds the path but never the query, which may carry somebody's secret, and no header at all. With the log
//! switched off (target `farebox::access`) nothing is copied or formatted for it.

use std::{error::Error as _, fmt, net::IpAddr, sync::Arc, task::Poll, thread};

use bytes::Bytes;
use farebox_paywall::{Bill, Code, Freebie, price::Ending};
use http::{HeaderMap, Method, Request, Response, StatusCode, request::Parts};
use http_body::Frame;
use tokio::time::{Duration, Instant};
use tracing::Level;

use super::{
    Body, Peer,
    body::BodyError,
    failure::Failure,
    meter::{Arriving, Departure, Tab},
    upgrade::Passed,
};
use crate::{listen::InFlight, metrics::Reason, moment, services::Route, worker::Worker};

/// See the module. Dropped without an answer, the client has gone away first.
pub(super) struct Account {
    worker: Arc<Worker>,
    route: Option<Arc<Route>>,
    started: Instant,
    reason: Reason,
    /// What was counted for it, and is given back where the client gets nothing through no fault of its own.
    freebie: Option<Freebie>,
    /// What it is charged, where it is counted.
    tab: Option<Box<Tab>>,
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
            started: moment::now(),
            reason: Reason::ClientGone,
            freebie: None,
            tab: None,
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

    /// How long ago that is.
    pub(super) fn took(&self) -> Duration {
        moment::now().saturating_duration_since(self.started)
    }

    pub(super) const fn decided(&mut self, code: Code) {
        self.reason = Reason::Decided(code);
    }

    /// It is a question to the seller.
    pub(super) const fn asks(&mut self) {
        self.reason = Reason::Desk;
    }

    /// It goes on at the cost of a freebie.
    pub(super) fn uses(&mut self, freebie: Option<Freebie>) {
        self.freebie = freebie;
    }

    /// It is charged by this bill, if there is one.
    pub(super) fn owes(&mut self, bill: Option<Box<Bill>>) {
        if let Some(bill) = bill {
            self.tab = Some(Box::new(Tab::open(bill)));
        }
    }

    /// Makes a request that is counted ready to be sent on: asks for what has to be read of its answer.
    pub(super) async fn prepare(&mut self, body: &mut Arriving, parts: &mut Parts) -> Result<(), Failure> {
        match (&mut self.tab, &self.route) {
            (Some(tab), Some(route)) => tab.prepare(body, parts, route).await,
            _ => Ok(()),
        }
    }

    /// Whether it is counted.
    pub(super) const fn is_counted(&self) -> bool {
        self.tab.is_some()
    }

    /// Whether the answer is kept for its buyer, who needn't wait for it.
    pub(super) fn is_kept(&self) -> bool {
        self.tab.as_ref().is_some_and(|tab| tab.is_kept())
    }

    /// The answer has been read to its end, and its client is gone.
    pub(super) fn read_out(&mut self) {
        let (Some(tab), Some(route)) = (&mut self.tab, &self.route) else { return };
        if !tab.end(Ending::Whole, &route.metrics) {
            return;
        }
        let idle =
            route.upstream.config().idle_timeout.unwrap_or(self.worker.shared.config.timeouts.outlived);
        let (departure, route, draining) = (tab.departure(), route.clone(), self.worker.draining.clone());
        self.worker.tasks.spawn(async move {
            let outlived = departure.outlive(idle, &route.metrics);
            draining.run_until_cancelled(outlived).await;
        });
    }

    /// Whether things come to an end here.
    pub(super) fn is_ending(&self) -> bool {
        thread::panicking() || self.worker.draining.is_cancelled()
    }

    /// Where to tell how the request is getting on, if it is counted.
    pub(super) fn departure(&self) -> Option<Arc<Departure>> {
        self.tab.as_ref().map(|tab| tab.departure())
    }

    /// The upstream's answer begins: what concerns nobody else is taken out of its head.
    pub(super) fn begins(&mut self, status: StatusCode, headers: &mut HeaderMap) {
        if let Some(tab) = &mut self.tab {
            tab.answer(status, headers);
        }
        // Also where it is free or paid with a pass.
        if let Some(route) = &self.route {
            route.config.service.costs.hide(headers);
        }
    }

    /// The head of the answer is as its client gets it, whoever that is.
    pub(super) fn keeps(&mut self, status: StatusCode, headers: &HeaderMap) {
        if let Some(tab) = &mut self.tab {
            tab.keeps(status, headers);
        }
    }

    /// Whether a further piece of the answer would be paid by nobody.
    pub(super) fn is_exhausted(&self) -> bool {
        self.tab.as_ref().is_some_and(|tab| tab.is_exhausted())
    }

    /// It is ended for that, or because nobody pays for the rest of its request. Counts once.
    pub(super) fn cut_off(&mut self) {
        let code = Failure::CreditExhausted.code();
        if std::mem::replace(&mut self.reason, Reason::Failed(code)) == Reason::Failed(code) {
            return;
        }
        let service = self.route.as_ref().map(|route| &route.config.service.name);
        tracing::info!(
            service = service.map(tracing::field::display),
            code,
            "an answer was cut off: its buyer has nothing left"
        );
    }

    /// The answer is counted as it passes.
    pub(super) fn count(
        &mut self,
        frame: &Poll<Option<Result<Frame<Bytes>, BodyError>>>,
        lost: Option<Ending>,
    ) {
        let (Some(tab), Some(route)) = (&mut self.tab, &self.route) else { return };
        if let Some(ending) = lost {
            tab.end(ending, &route.metrics);
        } else if let Poll::Ready(Some(Ok(frame))) = frame {
            tab.note(frame);
            if frame.is_trailers() {
                self.read_out();
            }
        }
    }

    /// It goes on as a tunnel.
    pub(super) fn becomes_tunnel(&mut self) {
        if let Some(tab) = &mut self.tab {
            tab.becomes_tunnel();
        }
    }

    /// So much has passed through its tunnel.
    pub(super) fn passed(&mut self, passed: Passed) {
        self.sent(passed.down);
        if let Some(tab) = &mut self.tab {
            tab.passed(passed);
        }
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
        if let (Some(tab), Some(route)) = (&mut self.tab, &self.route) {
            tab.failed(failure, &route.metrics);
        }
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

    pub(super) fn complete(&mut self) {
        self.is_complete = true;
        self.read_out();
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
        let took = self.took();
        let route = self.route.as_ref();
        let metrics = route.map_or(&self.worker.shared.metrics.unmatched, |route| &route.metrics);
        metrics.answered(self.worker.index, self.reason, self.status, took);
        let is_ours = self.tab.is_some() && self.is_ending();
        if let Some(tab) = &mut self.tab {
            // What we break off ourselves is not the buyer's doing, and when we are about to end nobody can tell.
            tab.end(if is_ours { Ending::Failed } else { Ending::Abandoned }, metrics);
        }
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
