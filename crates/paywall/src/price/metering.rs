//! Watching one request: what has passed, what the answer says of its cost, and what to go by when it ends.
//!
//! Show it every chunk in both directions. It keeps counts and a few names, never a chunk.

use std::sync::Arc;

use farebox_protocol::Msat;
use http::{HeaderMap, HeaderName};

use super::{
    BYTES_PER_UNIT, Cost, Ending, Meter, Observed, PRICE_MAX, Rates, Unreadable, UsageReader,
    cost::{Units, total},
};

/// A request that is under way, and what it will have cost.
#[derive(Clone, Debug)]
pub struct Metering {
    cost: Arc<Cost>,
    request_bytes: u64,
    answer: Answer,
    /// The answer has served nothing that anybody could have used anything for.
    serves_nothing: bool,
}

/// What is known of the answer.
#[derive(Clone, Debug)]
enum Answer {
    /// It hasn't begun.
    None,
    /// So many bytes have passed.
    Bytes(u64),
    Usage(Box<UsageReader>),
    Header(Result<Msat, Unreadable>),
}

/// What a request has cost, as far as anybody knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metered {
    /// What to go by.
    pub observed: Observed,
    /// Why that isn't the cost itself. For the log: it is the seller who can do something about it.
    pub why: Option<Unreadable>,
}

impl Metering {
    /// Begins to watch a request that costs this.
    pub fn new(cost: Arc<Cost>) -> Self {
        Self { cost, request_bytes: 0, answer: Answer::None, serves_nothing: false }
    }

    /// What the request costs, as the seller says it.
    pub(crate) fn cost(&self) -> &Cost {
        &self.cost
    }

    /// So much of the request's body has been sent on.
    pub fn request(&mut self, bytes: usize) {
        self.request_bytes = self.request_bytes.saturating_add(bytes as u64);
    }

    /// The answer begins with these headers. Interim answers (1xx) are none.
    pub fn answer(&mut self, headers: &HeaderMap) {
        self.answer = match &*self.cost {
            Cost::Metered { meter: Meter::Usage { shape, .. }, .. } => {
                Answer::Usage(Box::new(UsageReader::new(Arc::clone(shape), headers)))
            }
            Cost::Metered { meter: Meter::Header(name), .. } => Answer::Header(amount(headers, name)),
            Cost::Metered { meter: Meter::Bytes { .. }, .. } | Cost::Fixed(_) => Answer::Bytes(0),
        };
    }

    /// The answer serves nothing: it refuses or leads elsewhere, or it is a head without a body. Unless it says what was used
    /// all the same, it costs no more than what each request does.
    pub const fn serves_nothing(&mut self) {
        self.serves_nothing = true;
    }

    /// What has been used by now, of what can be told before the end: a price by bytes, after so many of the request's, also
    /// while there is no answer yet. Others are known only when the answer has said so.
    pub(crate) fn so_far(&self, request_bytes: u64) -> Option<Msat> {
        let Cost::Metered { base, meter: Meter::Bytes { request, response }, .. } = &*self.cost else {
            return None;
        };
        let passed = if let Answer::Bytes(passed) = self.answer { passed } else { 0 };
        let used = total(&[(request_bytes, *request), (passed, *response)]);
        Some(used.unwrap_or(Msat::MAX).saturating_add(*base))
    }

    /// The next chunk of its body.
    pub fn chunk(&mut self, chunk: &[u8]) {
        match &mut self.answer {
            Answer::Bytes(bytes) => *bytes = bytes.saturating_add(chunk.len() as u64),
            Answer::Usage(reader) => reader.read(chunk),
            Answer::None | Answer::Header(_) => {}
        }
    }

    /// So many bytes of it that say nothing.
    pub fn unread(&mut self, bytes: usize) {
        if let Answer::Bytes(passed) = &mut self.answer {
            *passed = passed.saturating_add(bytes as u64);
        }
    }

    /// The header that is for us alone, to be taken out of the answer.
    pub fn header(&self) -> Option<&HeaderName> {
        match &*self.cost {
            Cost::Metered { meter: Meter::Header(name), .. } => Some(name),
            _ => None,
        }
    }

    /// What it has cost, now that it has ended so. Give it to [`due`](super::due) or [`settle_cost`](super::settle_cost) with
    /// the same ending.
    pub fn end(mut self, ending: Ending) -> Metered {
        let cost = Arc::clone(&self.cost);
        let (base, meter) = match &*cost {
            Cost::Fixed(price) => return Metered { observed: Observed::Known(*price), why: None },
            Cost::Metered { base, meter, .. } => (*base, meter),
        };
        let found = match (meter, &mut self.answer) {
            (Meter::Bytes { request, response }, answer) => {
                let passed = if let Answer::Bytes(bytes) = answer { *bytes } else { 0 };
                total(&[(self.request_bytes, *request), (passed, *response)]).ok_or(Unreadable::Absurd)
            }
            (Meter::Usage { rates, .. }, Answer::Usage(reader)) => used(reader, rates),
            (Meter::Header(_), Answer::Header(found)) => *found,
            (Meter::Usage { .. }, _) => Err(Unreadable::Missing),
            (Meter::Header(_), _) => Err(Unreadable::NoHeader),
        };
        // Sums of what could be asked for fit into any book; those of all the bitcoin there is do not.
        let askable = |found: Msat| found.checked_add(base).filter(|cost| *cost <= PRICE_MAX);
        let more_came = matches!(&self.answer, Answer::Usage(reader) if reader.went_on());
        match found.and_then(|found| askable(found).ok_or(Unreadable::Absurd)) {
            Ok(cost) => match (meter, ending) {
                (Meter::Usage { rates, .. }, Ending::Abandoned) if more_came => {
                    let about = self.estimate(rates, base).max(cost);
                    Metered { observed: Observed::Estimated(about), why: Some(Unreadable::Truncated) }
                }
                _ => Metered { observed: Observed::Known(cost), why: None },
            },
            // Whoever asked for nothing more has had nothing more, by leaving or by staying.
            Err(why) if self.serves_nothing && why.is_silence() => {
                Metered { observed: Observed::Known(base), why: None }
            }
            Err(why) => {
                let observed = match (meter, ending) {
                    (Meter::Usage { rates, .. }, Ending::Abandoned) => {
                        Observed::Estimated(self.estimate(rates, base))
                    }
                    _ => Observed::Unreadable,
                };
                Metered { observed, why: Some(why) }
            }
        }
    }

    /// What an answer that the buyer left has cost about. The rule is the table's in [`charge`](super::charge).
    fn estimate(&self, rates: &Rates, base: Msat) -> Msat {
        let (model, output) = match &self.answer {
            Answer::Usage(reader) => (reader.model(), reader.passed()),
            _ => (None, 0),
        };
        let rates = rates.of(model).unwrap_or_else(|| rates.dearest());
        let input = self.request_bytes.div_ceil(BYTES_PER_UNIT);
        // What is more than there is, is more than the reserve.
        let about = rates.cost(Units { input, output }).unwrap_or(Msat::MAX);
        about.saturating_add(base)
    }
}

/// What the usage that an answer tells of costs.
fn used(reader: &mut UsageReader, rates: &Rates) -> Result<Msat, Unreadable> {
    let usage = reader.end()?;
    let rates = rates.of(usage.model.as_deref()).ok_or(Unreadable::Model)?;
    let rates = if usage.is_total { rates.dearer() } else { rates };
    rates.cost(usage.units).ok_or(Unreadable::Absurd)
}

/// The amount in a header: with a unit, or a bare number of millisatoshi. Several are none.
fn amount(headers: &HeaderMap, name: &HeaderName) -> Result<Msat, Unreadable> {
    let mut values = headers.get_all(name).iter();
    let value = values.next().ok_or(Unreadable::NoHeader)?;
    if values.next().is_some() {
        return Err(Unreadable::Header);
    }
    let text = value.to_str().map_err(|_| Unreadable::Header)?.trim();
    let bare = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let text = if bare { format!("{text}msat") } else { text.to_owned() };
    text.parse().map_err(|_| Unreadable::Header)
}

#[cfg(test)]
mod tests;
