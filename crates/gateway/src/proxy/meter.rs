//! The tab of a request that is counted: what happens to it here, told to its [`Bill`], and how it ended.
//!
//! Not here: what an ending costs, which is the paywall's rule. How things are called: an answer is *whole* when it has been
//! handed over to its last byte, trailers included; *broken* when the upstream stops in the middle of it; a request has
//! *failed* when the gateway answers in the upstream's place. Whoever is gone before that has *abandoned* it, once it has
//! left for the upstream; the same goes for a body of which the rest never came and for a call's own deadline, which are the
//! buyer's doing as well, before an answer and in the middle of one. What the gateway refuses itself is never charged, but for
//! what has passed of an upload that is priced by bytes.
//!
//! What is priced by bytes is paid as it passes. Of an answer and of a tunnel, the piece with which the reserve and all that was
//! left are used up is the last that passes: what comes after it ends them. The same piece may be the end of it all, and then
//! the answer is whole. Of an upload, that piece is not sent on any more (`departure`).
//!
//! A tunnel has no end of its own. It is whole as soon as the upstream has agreed to it: it costs one request, or the bytes
//! of both directions, whoever ends it.
//!
//! Passes have no tab, and pay for none of this but the question whether there is one.

mod ahead;
mod departure;
mod keyed;

use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
};

use bytes::Bytes;
use farebox_paywall::{Bill, price::Ending};
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{ACCEPT_ENCODING, CONTENT_LENGTH},
    request::Parts,
};
use http_body::Frame;
use parking_lot::MappedMutexGuard;

pub(super) use self::{
    ahead::{Ahead, Arriving, PIECE},
    departure::Departure,
    keyed::{Once, replay},
};
use self::{
    departure::{Ended, settle},
    keyed::Kept,
};
use super::{failure::Failure, upgrade::Passed};
use crate::{metrics::ServiceMetrics, services::Route};

/// See the module.
pub(super) struct Tab {
    held: Held,
    /// What the buyer gets again who repeats the request.
    kept: Option<Kept>,
    /// How many bytes of the answer are still to come, where that was said: who has got them all doesn't ask for more.
    remaining: Option<u64>,
    is_tunnel: bool,
    /// More has been used than its buyer can pay: what comes now isn't passed on.
    is_exhausted: bool,
}

/// Where the bill is, until it has been settled: here, or with the departure.
struct Held {
    own: Option<Box<Bill>>,
    departure: Arc<Departure>,
}

/// A bill that is still open.
enum Lent<'a> {
    Own(&'a mut Bill),
    Shared(MappedMutexGuard<'a, Bill>),
}

impl Held {
    fn bill(&mut self) -> Option<Lent<'_>> {
        match &mut self.own {
            Some(bill) => Some(Lent::Own(bill)),
            None => self.departure.bill().map(Lent::Shared),
        }
    }

    fn is_open(&self) -> bool {
        self.own.is_some() || self.departure.bill().is_some()
    }

    fn is_kept(&self) -> bool {
        match &self.own {
            Some(bill) => bill.is_kept(),
            None => self.departure.bill().is_some_and(|bill| bill.is_kept()),
        }
    }
}

impl Deref for Lent<'_> {
    type Target = Bill;

    fn deref(&self) -> &Bill {
        match self {
            Self::Own(bill) => bill,
            Self::Shared(bill) => bill,
        }
    }
}

impl DerefMut for Lent<'_> {
    fn deref_mut(&mut self) -> &mut Bill {
        match self {
            Self::Own(bill) => bill,
            Self::Shared(bill) => bill,
        }
    }
}

impl Tab {
    pub(super) fn open(bill: Box<Bill>) -> Self {
        let (departure, own) = Departure::with(bill);
        Self {
            held: Held { own, departure: Arc::new(departure) },
            kept: None,
            remaining: None,
            is_tunnel: false,
            is_exhausted: false,
        }
    }

    /// Where to tell how the request is getting on.
    pub(super) fn departure(&self) -> Arc<Departure> {
        self.held.departure.clone()
    }

    /// Makes the request ask for what has to be read of its answer. Refuses it where what is known of its body can't be paid.
    pub(super) async fn prepare(
        &mut self,
        body: &mut Arriving,
        parts: &mut Parts,
        route: &Route,
    ) -> Result<(), Failure> {
        let asks_for_usage = {
            let Some(mut bill) = self.held.bill() else { return Ok(()) };
            if bill.counts_request() && !bill.keeps_up(body.bytes_min()) {
                return Err(Failure::CreditExhausted);
            }
            if bill.is_metered_by_usage() {
                parts.headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            }
            bill.asks_for_usage()
        };
        if asks_for_usage {
            ahead::ask_for_usage(body, parts, route).await?;
        }
        Ok(())
    }

    /// The upstream's answer begins.
    pub(super) fn answer(&mut self, status: StatusCode, headers: &mut HeaderMap) {
        if let Some(mut bill) = self.held.bill() {
            bill.answer(status, headers);
        }
        let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
        self.remaining = length.and_then(|length| length.parse().ok());
    }

    /// Whether the answer is to be kept, as far as is known.
    pub(super) fn is_kept(&self) -> bool {
        self.held.is_kept() && self.kept.as_ref().is_none_or(Kept::is_kept)
    }

    /// Begins to keep the answer, where its buyer may ask for it again.
    pub(super) fn keeps(&mut self, status: StatusCode, headers: &HeaderMap) {
        self.kept = self.held.is_kept().then(|| Kept::new(status, headers));
    }

    /// The upstream has agreed to a tunnel.
    pub(super) fn becomes_tunnel(&mut self) {
        self.is_tunnel = true;
    }

    /// So much has passed through the tunnel.
    pub(super) fn passed(&mut self, passed: Passed) {
        self.held.departure.add(passed.up as u64);
        let sent = self.held.departure.bytes();
        if let Some(mut bill) = self.held.bill() {
            bill.unread(passed.down);
            self.is_exhausted = !bill.keeps_up(sent);
        }
    }

    /// A piece of the answer.
    pub(super) fn note(&mut self, frame: &Frame<Bytes>) {
        let sent = self.held.departure.bytes();
        let Some(mut bill) = self.held.bill() else { return };
        if let Some(data) = frame.data_ref() {
            bill.chunk(data);
            self.is_exhausted = !bill.keeps_up(sent);
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
        let is_buyers = match failure {
            Failure::BodyLost | Failure::Deadline | Failure::CreditExhausted => true,
            // Else a price by bytes could be had for nothing, by one more than are taken or by never sending the last.
            Failure::BodyTooLarge { .. } | Failure::BodyStalled => self.held.departure.is_priced(),
            _ => false,
        };
        self.end(if is_buyers { Ending::Abandoned } else { Ending::Failed }, metrics);
    }

    /// Settles the bill, or leaves that to the end of an upload that goes on, and says so; what is said afterwards doesn't count.
    pub(super) fn end(&mut self, ending: Ending, metrics: &ServiceMetrics) -> bool {
        if !self.held.is_open() {
            return false;
        }
        let departure = &self.held.departure;
        let ending = match ending {
            _ if self.is_tunnel => Ending::Whole,
            Ending::Abandoned if !departure.has_left() => Ending::Failed,
            Ending::Abandoned if self.remaining == Some(0) => Ending::Whole,
            ending => ending,
        };
        let answer = self.kept.take().filter(|_| ending == Ending::Whole).and_then(Kept::finish);
        let ended = Ended { ending, answer };
        match self.held.own.take() {
            Some(bill) => {
                settle(bill, departure.bytes(), ended, metrics);
                false
            }
            None => departure.end(ended, metrics),
        }
    }
}
