//! The bill of one request that is counted: the units set aside for it, the meter that watches it, and what it is charged
//! when it ends.
//!
//! A front door is given one beside the [`Pass`](crate::Pass) and tells it what happens: that the request was sent on, how
//! the answer begins, what passes, how it ends. Nothing here waits or fetches. However it comes to an end it is settled
//! once, by the rule in [`price`](crate::price): also where it is only dropped, as when a buyer hangs up, a task panics or
//! the answer never comes.
//!
//! Passes have none unless they are limited by the month, and nothing that costs nothing has one.

use std::sync::Arc;

use farebox_protocol::PaymentHash;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::{
    ledger::{FirstTime, Reservation, law::Charged},
    price::{Cost, Ending, Meter, Metering, due, usage::Shape},
    store::accounts::{StoredAnswer, Unit},
};

mod call;

use call::Call;

/// Tells a buyer how many units are certainly left, in answers to requests that were counted.
pub const LEFT_HEADER: HeaderName = HeaderName::from_static("farebox-left");

/// Tells what they are: `request` or `msat`.
pub const LEFT_UNIT_HEADER: HeaderName = HeaderName::from_static("farebox-left-unit");

/// What OpenAI's API, and those in its style, call the units of input. Others refuse to be asked in its way.
const ASKED_FOR: &str = "prompt_tokens";

/// What one request will be charged, and to whom.
#[must_use = "dropped, it is settled as a request that was abandoned"]
pub struct Bill {
    /// There until it is settled.
    reservation: Option<Reservation>,
    /// What the request costs where it is paid from credit; where requests are counted, it is one.
    meter: Option<Metering>,
    /// The right to answer under the buyer's key.
    first: Option<FirstTime>,
    is_sent: bool,
    /// Whether the upstream has answered that it failed.
    has_failed: bool,
    call: Call,
    /// Whether only the head of an answer was asked for.
    is_head: bool,
    /// Whether the answer is one that nobody could have used anything for.
    serves_nothing: bool,
}

impl Bill {
    /// For a request of so many that were bought.
    pub(crate) const fn of_one(reservation: Reservation) -> Self {
        Self::new(reservation, None)
    }

    /// For a request that is paid from credit. The reservation is the cost's reserve, or more.
    pub(crate) fn of_credit(reservation: Reservation, cost: &Arc<Cost>) -> Self {
        Self::new(reservation, Some(Metering::new(Arc::clone(cost))))
    }

    const fn new(reservation: Reservation, meter: Option<Metering>) -> Self {
        let reservation = Some(reservation);
        Self {
            reservation,
            meter,
            first: None,
            is_sent: false,
            has_failed: false,
            call: Call::new(),
            is_head: false,
            serves_nothing: false,
        }
    }

    /// Only the head of the answer is asked for.
    pub(crate) const fn is_for_head(&mut self) {
        self.is_head = true;
    }

    /// Of which payment.
    pub fn hash(&self) -> PaymentHash {
        self.held().hash()
    }

    /// How many units are left beside those set aside for this request, as far as was known when they were; none where a pass
    /// is only limited.
    pub fn left(&self) -> u64 {
        self.held().left()
    }

    /// Whether it is taken from what was bought. Where a pass is only limited, it isn't.
    pub(crate) fn is_of_account(&self) -> bool {
        self.held().is_of_account()
    }

    /// What it is counted in.
    pub const fn unit(&self) -> Unit {
        if self.meter.is_some() { Unit::Msat } else { Unit::Request }
    }

    /// Whether the request should be made to ask for its usage ([`ask_for_usage`](crate::price::ask_for_usage)), where its
    /// buyer didn't: the usage is looked for under the names of the API that has to be asked.
    pub fn asks_for_usage(&self) -> bool {
        self.usage().is_some_and(|shape| shape.input.iter().any(|name| name == ASKED_FOR))
    }

    /// Whether the answer itself is read, and so must not be compressed: ask the upstream for `identity`.
    pub fn is_metered_by_usage(&self) -> bool {
        self.usage().is_some()
    }

    /// Whether the bytes of the request's own body have a price.
    pub fn counts_request(&self) -> bool {
        self.meter.as_ref().is_some_and(|meter| meter.cost().counts_request())
    }

    fn usage(&self) -> Option<&Shape> {
        match self.meter.as_ref()?.cost() {
            Cost::Metered { meter: Meter::Usage { shape, .. }, .. } => Some(shape),
            _ => None,
        }
    }

    /// So much of the request's body has been sent on.
    pub fn request(&mut self, bytes: usize) {
        if let Some(meter) = &mut self.meter {
            meter.request(bytes);
        }
    }

    /// The request leaves for the upstream. Who hangs up from now on has abandoned it.
    pub const fn sent(&mut self) {
        self.is_sent = true;
    }

    /// The answer begins, with a status and headers that are the upstream's. Takes out what is for us alone and adds what is
    /// left. Not for interim answers (1xx).
    pub fn answer(&mut self, status: StatusCode, headers: &mut HeaderMap) {
        self.has_failed |= status.is_server_error();
        self.call.told(headers);
        if let Some(meter) = &mut self.meter {
            meter.answer(headers);
            if self.is_head || is_without_goods(status) {
                self.serves_nothing = true;
                meter.serves_nothing();
            }
            if let Some(name) = meter.header() {
                headers.remove(name);
            }
        }
        if let Some(held) = self.reservation.as_ref().filter(|held| held.is_of_account()) {
            let unit = if self.meter.is_some() { Unit::Msat } else { Unit::Request };
            headers.insert(LEFT_HEADER, HeaderValue::from(held.left()));
            headers.insert(LEFT_UNIT_HEADER, HeaderValue::from_static(unit.as_str()));
        }
    }

    /// The next chunk of the answer's body.
    pub fn chunk(&mut self, chunk: &[u8]) {
        self.call.chunk(chunk);
        if let Some(meter) = &mut self.meter {
            meter.chunk(chunk);
        }
    }

    /// So many bytes of it that nobody here can read, as in a tunnel.
    pub fn unread(&mut self, bytes: usize) {
        if let Some(meter) = &mut self.meter {
            meter.unread(bytes);
        }
    }

    /// The trailers of the answer, where gRPC says how a call ended.
    pub fn trailers(&mut self, trailers: &HeaderMap) {
        self.call.told(trailers);
    }

    /// Sets aside what has been used beyond the reserve, another reserve each time, after so many bytes of the request's body
    /// and what has passed of the answer, if there is one yet. `false` where there is no more, or a limit by the month leaves
    /// none: whatever comes now is paid by nobody, so it should end here. Ask *before* a piece of the request is sent on, since
    /// that can be held back, and after a piece of the answer. Always `true` where the cost is only known at the end.
    #[must_use]
    pub fn keeps_up(&mut self, request_bytes: u64) -> bool {
        let (Some(meter), Some(held)) = (&self.meter, &mut self.reservation) else { return true };
        let Some(used) = meter.so_far(request_bytes) else { return true };
        let Some(missing) = used.get().checked_sub(held.units()).filter(|missing| *missing > 0) else {
            return true;
        };
        held.extend(missing.max(meter.cost().reserve().get())) >= missing
    }

    /// Whether the upstream has said that it failed, so that nothing is charged.
    pub const fn has_failed(&self) -> bool {
        self.has_failed
    }

    /// Whether its answer is kept.
    pub const fn is_kept(&self) -> bool {
        self.first.is_some()
    }

    /// Keeps the answer for who repeats the request: end it by [`end_answered`](Self::end_answered) then.
    pub fn keep(&mut self, first: FirstTime) {
        self.first = Some(first);
    }

    /// Charges what is due. Ended without an answer to keep, a request under a key that was charged is refused when it is
    /// repeated, and not charged again; one that was not charged may be tried again.
    pub fn end(self, ending: Ending) -> Charged {
        self.end_answered(ending, None)
    }

    /// The same, with the answer that is kept for who repeats the request; `None` where it is too large.
    pub fn end_answered(mut self, ending: Ending, answer: Option<StoredAnswer>) -> Charged {
        self.settle(ending, answer)
    }

    fn settle(&mut self, ending: Ending, answer: Option<StoredAnswer>) -> Charged {
        let Some(held) = self.reservation.take() else { return Charged::default() };
        let ending = match ending {
            _ if self.has_failed => Ending::Failed,
            Ending::Whole | Ending::Abandoned if self.call.has_failed() => match self.call.has_message() {
                true => Ending::Abandoned,
                false => Ending::Failed,
            },
            ending => ending,
        };
        let units = match (self.meter.take(), ending) {
            (Some(mut meter), _) => {
                if self.call.is_refused() {
                    meter.serves_nothing();
                }
                let reserve = meter.cost().reserve();
                let metered = meter.end(ending);
                if let (Some(why), Ending::Whole) = (metered.why, ending) {
                    tracing::warn!(%why, "what a request has cost can't be read from its answer; its reserve is charged");
                }
                due(reserve, metered.observed, ending).get()
            }
            (None, Ending::Whole | Ending::Abandoned) => held.units(),
            (None, Ending::Broken | Ending::Failed) => 0,
        };
        // What costs nothing and serves nothing isn't kept: room on the disk would be had without end.
        let first = self.first.take().filter(|_| units > 0 || !self.serves_nothing);
        match (units, ending, first) {
            // A whole answer was served, even if it cost nothing.
            (1.., _, Some(first)) | (0, Ending::Whole, Some(first)) => {
                held.commit_answered(units, first, answer)
            }
            (1.., _, None) | (0, Ending::Whole, None) => held.commit(units),
            (0, _, _) => {
                held.release();
                Charged::default()
            }
        }
    }

    const fn held(&self) -> &Reservation {
        self.reservation.as_ref().expect("it is held until the bill is settled, which takes the bill")
    }
}

/// Whether an answer with this status refuses, leads elsewhere, or has no body whatever was asked for. Not for one that
/// goes on in another protocol.
fn is_without_goods(status: StatusCode) -> bool {
    status.is_client_error() || status.is_redirection() || status == StatusCode::NO_CONTENT
}

impl Drop for Bill {
    fn drop(&mut self) {
        // A panic is no one's wish, least of all the buyer's.
        let is_left = self.is_sent && !std::thread::panicking();
        let ending = if is_left { Ending::Abandoned } else { Ending::Failed };
        self.settle(ending, None);
    }
}

impl std::fmt::Debug for Bill {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bill").field("reservation", &self.reservation).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
