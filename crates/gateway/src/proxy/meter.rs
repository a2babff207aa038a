//! The tab of a request that is counted: what happens to it here, told to its [`Bill`], and how it ended.
//!
//! Not here: what an ending costs, which is the paywall's rule. How things are called: an answer is *whole* when it has been
//! handed over to its last byte, trailers included; *broken* when the upstream stops in the middle of it; a request has
//! *failed* when the gateway answers in the upstream's place. Whoever is gone before that has *abandoned* it, once it has
//! left for the upstream; the same goes for a body of which the rest never came and for a call's own deadline, which are the
//! buyer's doing as well, before an answer and in the middle of one. What the gateway refuses itself is never charged.
//!
//! What is priced by bytes is paid as it passes. The piece with which the reserve and all that was left are used up is the last
//! that passes: what comes after it ends the answer, and the tunnel. The same piece may be the end of it all, and then the
//! answer is whole.
//!
//! A tunnel has no end of its own. It is whole as soon as the upstream has agreed to it: it costs one request, or the bytes
//! of both directions, whoever ends it.
//!
//! Passes have no tab, and pay for none of this but the question whether there is one.

mod ahead;
mod keyed;

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

use bytes::Bytes;
use farebox_paywall::{Bill, price::Ending};
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{ACCEPT_ENCODING, CONTENT_LENGTH},
    request::Parts,
};
use http_body::Frame;

use self::keyed::Kept;
pub(super) use self::{
    ahead::{Ahead, Arriving},
    keyed::{Once, replay},
};
use super::{failure::Failure, upgrade::Passed};
use crate::{metrics::ServiceMetrics, services::Route};

/// See the module.
pub(super) struct Tab {
    /// There until it has been settled.
    bill: Option<Box<Bill>>,
    departure: Arc<Departure>,
    /// What the buyer gets again who repeats the request.
    kept: Option<Kept>,
    /// How many bytes of the answer are still to come, where that was said: who has got them all doesn't ask for more.
    remaining: Option<u64>,
    is_tunnel: bool,
    /// More has been used than its buyer can pay: what comes now isn't passed on.
    is_exhausted: bool,
}

/// Whether a request has left for its upstream, and how much of its body: told by the body and the connection that takes
/// it, asked when the bill is settled.
#[derive(Debug, Default)]
pub(crate) struct Departure {
    has_left: AtomicBool,
    bytes: AtomicU64,
}

impl Departure {
    /// It leaves, or it has turned out that it didn't.
    pub(super) fn leaves(&self, has_left: bool) {
        self.has_left.store(has_left, Relaxed);
    }

    /// So much more of its body was sent on.
    pub(super) fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Relaxed);
    }
}

impl Tab {
    pub(super) fn open(bill: Box<Bill>) -> Self {
        Self {
            bill: Some(bill),
            departure: Arc::default(),
            kept: None,
            remaining: None,
            is_tunnel: false,
            is_exhausted: false,
        }
    }

    /// Where to tell how the request is getting on.
    pub(super) fn departure(&self) -> Arc<Departure> {
        self.departure.clone()
    }

    /// Makes the request ask for what has to be read of its answer.
    pub(super) async fn prepare(
        &self,
        body: &mut Arriving,
        parts: &mut Parts,
        route: &Route,
    ) -> Result<(), Failure> {
        let Some(bill) = &self.bill else { return Ok(()) };
        if bill.is_metered_by_usage() {
            parts.headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        if bill.asks_for_usage() {
            ahead::ask_for_usage(body, parts, route).await?;
        }
        Ok(())
    }

    /// The upstream's answer begins.
    pub(super) fn answer(&mut self, status: StatusCode, headers: &mut HeaderMap) {
        if let Some(bill) = &mut self.bill {
            bill.answer(status, headers);
        }
        let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
        self.remaining = length.and_then(|length| length.parse().ok());
    }

    /// Whether the answer is to be kept, as far as is known.
    pub(super) fn is_kept(&self) -> bool {
        let is_asked = self.bill.as_ref().is_some_and(|bill| bill.is_kept());
        is_asked && self.kept.as_ref().is_none_or(Kept::is_kept)
    }

    /// Begins to keep the answer, where its buyer may ask for it again.
    pub(super) fn keeps(&mut self, status: StatusCode, headers: &HeaderMap) {
        let is_kept = self.bill.as_ref().is_some_and(|bill| bill.is_kept());
        self.kept = is_kept.then(|| Kept::new(status, headers));
    }

    /// The upstream has agreed to a tunnel.
    pub(super) fn becomes_tunnel(&mut self) {
        self.is_tunnel = true;
    }

    /// So much has passed through the tunnel.
    pub(super) fn passed(&mut self, passed: Passed) {
        self.departure.add(passed.up as u64);
        if let Some(bill) = &mut self.bill {
            bill.unread(passed.down);
            self.is_exhausted = !bill.keeps_up(self.departure.bytes.load(Relaxed));
        }
    }

    /// A piece of the answer.
    pub(super) fn note(&mut self, frame: &Frame<Bytes>) {
        let Some(bill) = &mut self.bill else { return };
        if let Some(data) = frame.data_ref() {
            bill.chunk(data);
            self.is_exhausted = !bill.keeps_up(self.departure.bytes.load(Relaxed));
            self.remaining = self.remaining.map(|remaining| remaining.saturating_sub(data.len() as u64));
            if let Some(kept) = &mut self.kept {
                kept.add(data);
            }
        } else if let Some(trailers) = frame.trailers_ref() {
            bill.trailers(trailers);
            if let Some(kept) = &mut self.kept {
                kept.give_up();
            }
        }
    }

    /// Whether its buyer has nothing left for what may come now.
    pub(super) const fn is_exhausted(&self) -> bool {
        self.is_exhausted
    }

    /// The gateway has answered in the upstream's place.
    pub(super) fn failed(&mut self, failure: &Failure, metrics: &ServiceMetrics) {
        let is_buyers = matches!(failure, Failure::BodyLost | Failure::Deadline);
        self.end(if is_buyers { Ending::Abandoned } else { Ending::Failed }, metrics);
    }

    /// Settles the bill; what is said afterwards doesn't count.
    pub(super) fn end(&mut self, ending: Ending, metrics: &ServiceMetrics) {
        let Some(mut bill) = self.bill.take() else { return };
        let has_left = self.departure.has_left.load(Relaxed);
        bill.request(usize::try_from(self.departure.bytes.load(Relaxed)).unwrap_or(usize::MAX));
        let ending = match ending {
            _ if self.is_tunnel => Ending::Whole,
            Ending::Abandoned if !has_left => Ending::Failed,
            Ending::Abandoned if self.remaining == Some(0) => Ending::Whole,
            ending => ending,
        };
        let unit = bill.unit();
        let answer = self.kept.take().filter(|_| ending == Ending::Whole).and_then(Kept::finish);
        metrics.charged(unit, bill.end_answered(ending, answer));
    }
}
