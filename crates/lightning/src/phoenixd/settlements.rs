//! Follows phoenixd's settlements by polling its list, which has times but no sequence numbers.
//!
//! The cursor is `completedAt << 20 | first 20 bits of the payment hash`: a pure function of the payment, so the same
//! settlement always has the same cursor, and two of one millisecond have an order. phoenixd stamps a payment a moment
//! before the row can be read, so a row is told at the poll *after* it was first seen: whatever was stamped earlier is
//! readable by then and goes first. A row that appears even later, up to a minute, is told when it appears; one later
//! than that is missed only if farebox restarts in between, and then only the books miss it: access never waits for them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use farebox_protocol::{PaymentHash, Timestamp};
use futures_util::stream::{self, BoxStream, StreamExt as _};
use tokio::time;

use super::{CallError, Phoenixd, wire::IncomingPayment};
use crate::{Cursor, ReceiveError, Settlement};

/// Bits of the cursor below the milliseconds. 43 remain above them, for signed 64-bit stores: until the year 2248.
const TIE_BITS: u32 = 20;

/// How many rows are asked for at once.
const PAGE: u64 = 500;

/// How far back each poll looks again, in milliseconds.
const OVERLAP: u64 = 60_000;

pub(super) fn follow(node: &Phoenixd, after: Cursor) -> BoxStream<'_, Result<Settlement, ReceiveError>> {
    let follower = Follower {
        node,
        after,
        ready: VecDeque::new(),
        seen: BTreeMap::new(),
        told: BTreeSet::new(),
        newest: after.0 >> TIE_BITS,
        past: None,
        begun: false,
        dead: false,
    };
    stream::unfold(follower, |mut follower| async move {
        if follower.dead {
            return None;
        }
        let item = follower.next().await;
        follower.dead = item.is_err();
        Some((item, follower))
    })
    .boxed()
}

struct Follower<'a> {
    node: &'a Phoenixd,
    /// Where the caller is. Of our own door it is the door's cursor.
    after: Cursor,
    ready: VecDeque<Settlement>,
    /// Seen at the last poll for the first time, to be told at the next.
    seen: Rows,
    /// Told already, as far back as polls look.
    told: BTreeSet<Cursor>,
    /// The time of the newest row that was told, in milliseconds.
    newest: u64,
    past: Option<Past>,
    begun: bool,
    dead: bool,
}

type Rows = BTreeMap<Cursor, Settlement>;

/// More rows than fit on a page. The list is newest first, so its pages are read from the last to the first; the upper
/// end is fixed, so that new rows don't shift them.
struct Past {
    from: u64,
    to: u64,
    offset: u64,
    /// The rows of the newest millisecond on the page before: the rest of that millisecond may be on the next.
    torn: Rows,
}

impl Follower<'_> {
    async fn next(&mut self) -> Result<Settlement, ReceiveError> {
        loop {
            if let Some(settlement) = self.ready.pop_front() {
                return Ok(settlement);
            }
            if let Some(past) = self.past.take() {
                self.page_back(past).await?;
                continue;
            }
            if std::mem::replace(&mut self.begun, true) {
                time::sleep(self.node.poll).await;
            }
            if self.node.door.is_some() { self.poll_door().await? } else { self.poll_phoenixd().await? }
        }
    }

    /// farebox's own door has sequence numbers.
    async fn poll_door(&mut self) -> Result<(), ReceiveError> {
        for row in self.list(&[("after", self.after.0), ("limit", PAGE)]).await? {
            let cursor = row.cursor.map(Cursor).ok_or_else(|| wrong("a settlement without a cursor"))?;
            self.after = self.after.max(cursor);
            self.ready.push_back(Settlement { cursor, ..settlement(&row)? });
        }
        Ok(())
    }

    async fn poll_phoenixd(&mut self) -> Result<(), ReceiveError> {
        let from = self.newest.saturating_sub(OVERLAP);
        let rows = self.page(from, u64::MAX >> 1, 0).await?;
        let newest = rows.last_key_value().map_or(from, |(cursor, _)| cursor.0 >> TIE_BITS);
        if (rows.len() as u64) < PAGE {
            self.take_newest(rows);
            return Ok(());
        }
        // Too many for one page. How many pages there are is found by doubling, then halving, the offset.
        let (mut full, mut beyond) = (0, PAGE);
        while self.page(from, newest, beyond).await?.len() as u64 == PAGE {
            full = beyond;
            beyond *= 2;
        }
        while beyond - full > PAGE {
            let middle = full + (beyond - full) / PAGE / 2 * PAGE;
            let is_full = self.page(from, newest, middle).await?.len() as u64 == PAGE;
            if is_full { full = middle } else { beyond = middle }
        }
        self.past = Some(Past { from, to: newest, offset: beyond, torn: Rows::new() });
        Ok(())
    }

    /// Tells one page of the past, and goes on to the page of later rows.
    async fn page_back(&mut self, past: Past) -> Result<(), ReceiveError> {
        let mut rows = self.page(past.from, past.to, past.offset).await?;
        rows.extend(past.torn);
        let newest = rows.last_key_value().map_or(0, |(cursor, _)| cursor.0 >> TIE_BITS);
        let torn = rows.split_off(&Cursor(newest << TIE_BITS));
        self.tell(rows);
        match past.offset.checked_sub(PAGE) {
            Some(offset) => self.past = Some(Past { offset, torn, ..past }),
            None => self.take_newest(torn),
        }
        Ok(())
    }

    /// The rows up to now: those seen before are told, the others wait for the next poll.
    fn take_newest(&mut self, mut rows: Rows) {
        let seen = std::mem::take(&mut self.seen);
        // One that appears late may be older than those that were seen first: it goes with them, in its place.
        let upto = seen.last_key_value().map_or(0, |(cursor, _)| cursor.0);
        let mut new = rows.split_off(&Cursor(upto + 1));
        new.retain(|cursor, _| *cursor > self.after && !self.told.contains(cursor));
        self.seen = new;
        rows.extend(seen);
        self.tell(rows);
    }

    fn tell(&mut self, rows: Rows) {
        for (cursor, settlement) in rows {
            if cursor > self.after && self.told.insert(cursor) {
                self.newest = self.newest.max(cursor.0 >> TIE_BITS);
                self.ready.push_back(settlement);
            }
        }
        let oldest = self.newest.saturating_sub(OVERLAP);
        self.told = self.told.split_off(&Cursor(oldest << TIE_BITS));
    }

    async fn page(&self, from: u64, to: u64, offset: u64) -> Result<Rows, ReceiveError> {
        let rows = self.list(&[("from", from), ("to", to), ("limit", PAGE), ("offset", offset)]).await?;
        rows.iter().map(|row| settlement(row).map(|settlement| (settlement.cursor, settlement))).collect()
    }

    async fn list(&self, query: &[(&str, u64)]) -> Result<Vec<IncomingPayment>, ReceiveError> {
        let answer = self.node.http.get("/payments/incoming", query).await;
        let answer = answer.map_err(|error| self.node.receive_error(error))?;
        if !answer.status.is_success() {
            return Err(ReceiveError::Unavailable(answer.complaint()));
        }
        answer.json().map_err(|error| self.node.receive_error(error))
    }
}

/// What a row says. Rows of the list are paid; one that isn't is a wrong answer.
pub(super) fn settlement(row: &IncomingPayment) -> Result<Settlement, ReceiveError> {
    let hash: PaymentHash = row.payment_hash.parse().map_err(|_| wrong("a payment hash that is none"))?;
    let (true, Some(millis)) = (row.is_paid, row.completed_at) else {
        return Err(wrong(&format!("payment `{hash}` in the list of paid ones is not paid, or has no time")));
    };
    let [a, b, c, ..] = *hash.as_bytes();
    let tie = u64::from(u32::from_be_bytes([0, a, b, c]) >> (24 - TIE_BITS));
    let cursor =
        Cursor(millis.checked_mul(1 << TIE_BITS).ok_or_else(|| wrong("a time beyond all times"))? | tie);
    let amount = super::received(row);
    let at = Timestamp::from_secs(millis / 1_000);
    Ok(Settlement { cursor, hash, amount, at, description: row.description.clone() })
}

fn wrong(what: &str) -> ReceiveError {
    let error = CallError::Wrong(what.to_owned());
    ReceiveError::Wrong(error.to_string())
}
