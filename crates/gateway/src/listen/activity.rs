//! What a connection is doing, so that one that does nothing can be closed.
//!
//! hyper's own time-out for headers also runs while a connection waits for its next request, so it can't be short. Here
//! the two are told apart, and a client that doesn't take its answer is noticed, too. Looking at the clock is cheap but
//! not free: it is done when a connection changes what it does, not with every byte.

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Duration, Instant},
};

use super::{Seat, chatter::Chatter, streams::Taking};
use crate::{config::Timeouts, metrics::Flood, moment};

/// See the module. Times are in milliseconds since the connection began, plus one, so that 0 can mean "not".
pub(super) struct Activity {
    began: Instant,
    in_flight: AtomicU32,
    /// Since when there has been no request.
    idle_since: AtomicU64,
    /// Since when the head of a request has been coming in.
    head_since: AtomicU64,
    /// Since when the client hasn't taken what is there for it.
    stalled_since: AtomicU64,
    has_spoken: AtomicBool,
    /// The last request has a body, of which some may be on its way when the connection ends.
    has_body: AtomicBool,
    /// What the client has said too much of: its place among all floods, counted from one.
    flooded: AtomicU8,
    /// Kept as long as anything of the connection is left.
    _seat: Seat,
    /// What becomes of the connection once it is no longer one of HTTP.
    after: Mutex<Option<BoxFuture<'static, ()>>>,
}

/// A request in flight on a connection, until dropped.
pub(crate) struct InFlight {
    activity: Arc<Activity>,
    /// Where it is told how far the client has got, over HTTP/2.
    taking: Option<Arc<Taking>>,
}

/// What to do about a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Look again then.
    Wait(Instant),
    /// It has nothing to do; let it end in good order.
    Finish,
    /// It is stuck; close it.
    Close,
}

impl Activity {
    pub(super) fn new(now: Instant, seat: Seat) -> Arc<Self> {
        Arc::new(Self {
            began: now,
            in_flight: AtomicU32::new(0),
            idle_since: AtomicU64::new(1),
            head_since: AtomicU64::new(0),
            stalled_since: AtomicU64::new(0),
            has_spoken: AtomicBool::new(false),
            has_body: AtomicBool::new(false),
            flooded: AtomicU8::new(0),
            _seat: seat,
            after: Mutex::new(None),
        })
    }

    pub(super) fn request(self: &Arc<Self>, taking: Option<Arc<Taking>>) -> InFlight {
        self.in_flight.fetch_add(1, Relaxed);
        self.head_since.store(0, Relaxed);
        InFlight { activity: self.clone(), taking }
    }

    /// Told of each request over HTTP/1.1: whether it has a body, and when that has been read.
    pub(super) fn bodied(&self, has_body: bool) {
        self.has_body.store(has_body, Relaxed);
    }

    pub(super) fn judge(&self, now: Instant, timeouts: &Timeouts) -> Verdict {
        let stalled = self.limit(&self.stalled_since, timeouts.write_stall);
        let head = self.limit(&self.head_since, timeouts.headers);
        let is_idle = self.in_flight.load(Relaxed) == 0;
        let idle = self
            .limit(&self.idle_since, timeouts.keep_alive)
            .filter(|_| is_idle && head.is_none() && stalled.is_none());
        if stalled.into_iter().chain(head.filter(|_| is_idle)).any(|limit| now >= limit) {
            Verdict::Close
        } else if idle.is_some_and(|limit| now >= limit) {
            Verdict::Finish
        } else {
            // None of the limits can be reached earlier than this, whatever begins after now.
            let soon = now + timeouts.headers.min(timeouts.write_stall).min(timeouts.keep_alive);
            Verdict::Wait(
                [stalled, head, idle].into_iter().flatten().fold(soon, Instant::min).max(now + TICK),
            )
        }
    }

    /// What [`InFlight::then`] has left, to be run when the connection has said its last in HTTP.
    pub(super) fn take_after(&self) -> Option<BoxFuture<'static, ()>> {
        self.after.lock().take()
    }

    /// What the client has said too much of, if it has. The connection ends over that, and hyper would only say that it did.
    pub(super) fn flood(&self) -> Option<Flood> {
        Flood::ALL.get(usize::from(self.flooded.load(Relaxed)).checked_sub(1)?).copied()
    }

    /// The client was told goodbye: from now on it counts whether it says anything.
    pub(super) fn listen(&self) {
        self.has_spoken.store(false, Relaxed);
    }

    /// Whether nothing is asked for or about to be, and all answers have been taken: hyper has done with the last one before
    /// the socket has.
    pub(super) fn is_idle(&self) -> bool {
        let none = |since: &AtomicU64| since.load(Relaxed) == 0;
        self.in_flight.load(Relaxed) == 0 && none(&self.head_since) && none(&self.stalled_since)
    }

    /// Whether that is so, and has been for so long.
    pub(super) fn is_idle_for(&self, long: Duration) -> bool {
        let since = self.limit(&self.idle_since, long);
        self.is_idle() && since.is_some_and(|limit| limit <= Instant::now())
    }

    /// Whether nothing is asked for or about to be, and the client has neither said a word since [`Activity::listen`] nor
    /// left anything untaken.
    pub(super) fn is_deserted(&self) -> bool {
        self.is_idle() && !self.has_spoken.load(Relaxed)
    }

    fn limit(&self, since: &AtomicU64, allowed: Duration) -> Option<Instant> {
        let since = since.load(Relaxed).checked_sub(1)?;
        Some(self.began + Duration::from_millis(since) + allowed)
    }

    fn millis(&self) -> u64 {
        u64::try_from(moment::now().saturating_duration_since(self.began).as_millis()).unwrap_or(u64::MAX - 1)
            + 1
    }

    fn has_read(&self) {
        if self.in_flight.load(Relaxed) == 0 && self.head_since.load(Relaxed) == 0 {
            self.head_since.store(self.millis(), Relaxed);
        }
    }

    fn has_written(&self) {
        if self.stalled_since.load(Relaxed) != 0 {
            self.stalled_since.store(0, Relaxed);
            // As long as it was taking an answer it wasn't idle.
            self.idle_since.store(self.millis(), Relaxed);
        }
    }

    fn cannot_write(&self) {
        if self.stalled_since.load(Relaxed) == 0 {
            self.stalled_since.store(self.millis(), Relaxed);
        }
    }
}

impl InFlight {
    /// Has a connection do this once its last answer is sent. Over HTTP/1.1 only: there, an answer that switches protocols
    /// is the last one.
    pub(crate) fn then(self, after: BoxFuture<'static, ()>) {
        *self.activity.after.lock() = Some(after);
    }

    /// The request has been read to its end: nothing of it can be on its way when the connection ends.
    pub(crate) fn heard_out(&self) {
        self.activity.bodied(false);
    }

    /// More of the answer is wanted, so everything before was taken.
    pub(crate) fn wanted(&self) {
        if let Some(taking) = &self.taking {
            taking.wanted();
        }
    }

    /// A piece of the answer is there for the client.
    pub(crate) fn offered(&self) {
        if let Some(taking) = &self.taking {
            taking.offered();
        }
    }
}

/// What is written in one piece at most where it comes in several.
const SMALL: usize = 2 * 1024;
/// How much is thrown away at once, and how often before others get their turn.
const REST: usize = 8 * 1024;
const REST_TURN: usize = 16;
/// How much in all: most of what is sent without having asked for the price, and nothing to fill a line with.
const REST_MAX: u32 = 8 * 1024 * 1024;
/// A GOAWAY: ENHANCE_YOUR_CALM, and any stream may have been seen (RFC 9113 sections 6.8, 7).
const CALM: [u8; 17] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 11];
/// Never look more often than this.
const TICK: Duration = Duration::from_millis(1);

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.activity.in_flight.fetch_sub(1, Relaxed) == 1 {
            self.activity.idle_since.store(self.activity.millis(), Relaxed);
        }
    }
}

/// A socket whose connection is watched, with what was read from it beforehand put back.
pub(super) struct Watched<S> {
    socket: S,
    said: Bytes,
    activity: Arc<Activity>,
    /// Over HTTP/2 anything may arrive between requests, though not too much of it. None over HTTP/1.1, where it is the
    /// beginning of one.
    chatter: Option<Box<Chatter>>,
    /// How much more is thrown away at the end.
    rest: u32,
    is_shut: bool,
}

impl<S> Watched<S> {
    pub(super) const fn http1(socket: S, said: Bytes, activity: Arc<Activity>) -> Self {
        Self { socket, said, activity, chatter: None, rest: REST_MAX, is_shut: false }
    }

    /// `streams_max` is how many requests it may have under way.
    pub(super) fn http2(socket: S, said: Bytes, activity: Arc<Activity>, streams_max: u32) -> Self {
        let chatter = Some(Box::new(Chatter::new(streams_max)));
        Self { socket, said, activity, chatter, rest: REST_MAX, is_shut: false }
    }

    fn note_write<T>(&self, written: Poll<T>) -> Poll<T> {
        match written {
            Poll::Ready(_) => self.activity.has_written(),
            Poll::Pending => self.activity.cannot_write(),
        }
        written
    }

    /// Over HTTP/2, what a write has taken of these is what the client was told.
    fn note_told(&mut self, slices: &[IoSlice<'_>], written: &Poll<io::Result<usize>>) {
        let (Some(chatter), &Poll::Ready(Ok(mut taken))) = (&mut self.chatter, written) else { return };
        for slice in slices {
            let told = &slice[..taken.min(slice.len())];
            taken -= told.len();
            chatter.said(told);
        }
    }
}

impl<S: AsyncRead + Unpin> Watched<S> {
    /// Throws away what a client still sends of a request that has its answer, until it has ended as well. If the socket were
    /// closed before, the system would reset the connection, and the answer would be lost to a client that sends all before
    /// it reads anything. It has as long as for a head, and so much and no more is taken.
    fn poll_rest(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.activity.has_read();
        let mut space = [MaybeUninit::uninit(); REST];
        for _ in 0..REST_TURN {
            let mut rest = ReadBuf::uninit(&mut space);
            let read = ready!(Pin::new(&mut self.socket).poll_read(context, &mut rest));
            self.rest = self.rest.saturating_sub(u32::try_from(rest.filled().len()).unwrap_or(u32::MAX));
            if read.is_err() || rest.filled().is_empty() || self.rest == 0 {
                return Poll::Ready(());
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S: AsyncWrite + Unpin> Watched<S> {
    /// Tells a client that it is too much, as far as that can be done at once: between two frames, and where there is room. It gets
    /// that if it has sent nothing since, else the system may tell it first that the connection is gone.
    fn calm(&mut self, context: &mut Context<'_>) {
        if self.chatter.as_ref().is_some_and(|chatter| chatter.is_between_frames()) {
            let _ = Pin::new(&mut self.socket).poll_write(context, &CALM);
            let _ = Pin::new(&mut self.socket).poll_flush(context);
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        let read = if this.said.is_empty() {
            Pin::new(&mut this.socket).poll_read(context, buffer)
        } else {
            let length = this.said.len().min(buffer.remaining());
            buffer.put_slice(&this.said[..length]);
            this.said.advance(length);
            // What comes after it is usually there, too. Handed over one by one, the second would find its buffer begun, and
            // hyper would double that for as long as the connection lasts. What goes wrong here shows next time, at least as
            // the end.
            if buffer.remaining() > 0 {
                let _ = Pin::new(&mut this.socket).poll_read(context, buffer);
            }
            Poll::Ready(Ok(()))
        };
        let heard = &buffer.filled()[before..];
        if !heard.is_empty() {
            this.activity.has_spoken.store(true, Relaxed);
            let Some(chatter) = &mut this.chatter else {
                this.activity.has_read();
                return read;
            };
            if let Err(flood) = chatter.heard(heard, || this.activity.millis()) {
                this.activity.flooded.store(flood as u8 + 1, Relaxed);
                buffer.set_filled(before);
                this.calm(context);
                return Poll::Ready(Err(io::Error::other("too many frames that ask for nothing")));
            }
        }
        read
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(context, bytes);
        self.note_told(&[IoSlice::new(bytes)], &written);
        self.note_write(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length: usize = slices.iter().map(|slice| slice.len()).sum();
        let socket = Pin::new(&mut self.socket);
        // A head and a small body: for the system a list costs more than such a copy. What isn't taken comes again.
        let written = if length <= SMALL {
            let mut space = [MaybeUninit::uninit(); SMALL];
            let mut joint = ReadBuf::uninit(&mut space);
            for slice in slices {
                joint.put_slice(slice);
            }
            socket.poll_write(context, joint.filled())
        } else {
            socket.poll_write_vectored(context, slices)
        };
        self.note_told(slices, &written);
        self.note_write(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.socket).poll_flush(context);
        self.note_write(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_shut {
            ready!(Pin::new(&mut self.socket).poll_shutdown(context))?;
            self.is_shut = true;
        }
        if self.chatter.is_none() && self.activity.has_body.load(Relaxed) {
            return self.poll_rest(context).map(Ok);
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    use super::*;
    use crate::{
        config::{ClientLists, Limits},
        listen::Guests,
        metrics::Gauge,
    };

    fn seat() -> Seat {
        let guests = Guests::new(&Limits::default(), &[], &ClientLists::default(), Gauge::default());
        Seat::new(&guests)
    }

    fn timeouts() -> Timeouts {
        let secs = Duration::from_secs;
        Timeouts { headers: secs(10), keep_alive: secs(70), write_stall: secs(60), ..Timeouts::default() }
    }

    /// The gateway's end of an HTTP/2 connection, the client's, and what is known of it.
    fn http2() -> (Watched<DuplexStream>, DuplexStream, Arc<Activity>) {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        let activity = Activity::new(Instant::now(), seat());
        (Watched::http2(ours, Bytes::from_static(PREFACE), activity.clone(), 0), theirs, activity)
    }

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const PING: [u8; 17] = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];

    #[tokio::test(start_paused = true)]
    async fn a_client_that_floods_is_told_why() {
        let (mut ours, mut theirs, activity) = http2();
        theirs.write_all(&PING.repeat(1001)).await.unwrap();
        let mut heard = vec![0; 24 + PING.len() * 1000];
        ours.read_exact(&mut heard).await.unwrap();
        assert!(heard == [PREFACE, &PING.repeat(1000)].concat());
        assert_eq!(activity.flood(), None);
        ours.read_exact(&mut [0; PING.len()]).await.unwrap_err();
        assert_eq!(activity.flood(), Some(Flood::Ping));
        drop(ours);
        let mut told = Vec::new();
        theirs.read_to_end(&mut told).await.unwrap();
        assert_eq!(told, CALM);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_said_in_the_middle_of_a_frame() {
        let (mut ours, mut theirs, _) = http2();
        // Of a DATA of 16 bytes half has been taken, in two slices.
        let begun = [&[0, 0, 16, 0, 0, 0, 0, 0, 1][..], &[7; 8]];
        let taken = ours.write_vectored(&begun.map(IoSlice::new)).await.unwrap();
        assert_eq!(taken, 17);
        theirs.write_all(&PING.repeat(1006)).await.unwrap();
        let mut heard = Vec::new();
        ours.read_to_end(&mut heard).await.unwrap_err();
        drop(ours);
        let mut told = Vec::new();
        theirs.read_to_end(&mut told).await.unwrap();
        assert_eq!(told, begun.concat());
    }

    #[tokio::test(start_paused = true)]
    async fn over_http1_bytes_are_bytes() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 20);
        let activity = Activity::new(Instant::now(), seat());
        let mut ours = Watched::http1(ours, Bytes::from_static(PREFACE), activity.clone());
        theirs.write_all(&PING.repeat(10_000)).await.unwrap();
        drop(theirs);
        let mut heard = Vec::new();
        ours.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard.len(), 24 + 170_000);
        assert_eq!(activity.flood(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_ends_in_good_order() {
        let activity = Activity::new(Instant::now(), seat());
        tokio::time::advance(Duration::from_secs(69)).await;
        assert!(matches!(activity.judge(Instant::now(), &timeouts()), Verdict::Wait(_)));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(activity.judge(Instant::now(), &timeouts()), Verdict::Finish);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_never_ends_closes_the_connection() {
        let activity = Activity::new(Instant::now(), seat());
        activity.has_read();
        tokio::time::advance(Duration::from_secs(9)).await;
        activity.has_read();
        assert!(matches!(activity.judge(Instant::now(), &timeouts()), Verdict::Wait(_)));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(activity.judge(Instant::now(), &timeouts()), Verdict::Close);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_slowly_takes_the_rest_of_its_answer_is_not_idle() {
        let activity = Activity::new(Instant::now(), seat());
        drop(activity.request(None));
        for _ in 0..10 {
            activity.cannot_write();
            tokio::time::advance(Duration::from_secs(50)).await;
            assert!(matches!(activity.judge(Instant::now(), &timeouts()), Verdict::Wait(_)));
            assert!(!activity.is_idle(), "it makes no room for others");
            activity.has_written();
        }
        assert!(activity.is_idle());
        tokio::time::advance(Duration::from_secs(69)).await;
        assert!(matches!(activity.judge(Instant::now(), &timeouts()), Verdict::Wait(_)));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(activity.judge(Instant::now(), &timeouts()), Verdict::Finish);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_may_take_for_ever_but_its_answer_must_be_taken() {
        let activity = Activity::new(Instant::now(), seat());
        let request = activity.request(None);
        tokio::time::advance(Duration::from_secs(100_000)).await;
        assert!(matches!(activity.judge(Instant::now(), &timeouts()), Verdict::Wait(_)));
        activity.cannot_write();
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(activity.judge(Instant::now(), &timeouts()), Verdict::Close);
        activity.has_written();
        assert!(matches!(activity.judge(Instant::now(), &timeouts()), Verdict::Wait(_)));
        drop(request);
        tokio::time::advance(Duration::from_secs(70)).await;
        assert_eq!(activity.judge(Instant::now(), &timeouts()), Verdict::Finish);
    }
}
