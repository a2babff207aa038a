//! Bodies of requests that can be sent more than once: kept while they are sent, up to a limit, or made anew each time.
//!
//! A body is never cut. One that grew beyond the limit goes on as it is, the first time; a second time there is none. The
//! original lies in the tape, not in the body that is being sent: when a server answers before it has read everything, the
//! next attempt begins with what was kept and goes on with what nobody has read yet.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time;

use crate::error::BoxError;

/// How long to wait for the rest of a body after the answer asked for money. Bodies that are there take no time; one that
/// waits for something else, as a stream of calls does, may never end.
const REST: Duration = Duration::from_secs(1);

/// The body of one attempt to send a request.
pub struct Replay<B>(Kind<B>);

enum Kind<B> {
    Nothing,
    Fresh(Pin<Box<B>>),
    Taped { tape: Arc<Mutex<Tape<B>>>, attempt: u64, next: usize },
}

/// Why a body can't be read on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// The caller's own body failed.
    #[error("the body of the request failed")]
    Body(#[source] BoxError),
    /// The answer has come, and the request is sent again or given up.
    #[error("this attempt to send the request is over")]
    Over,
}

/// Makes the body of a request as often as it is sent. Put into the request's extensions, it is used in place of the body.
pub struct BodyFactory<B>(Arc<dyn Fn() -> B + Send + Sync>);

impl<B> BodyFactory<B> {
    /// Every body that `make` makes must be the same: nobody compares them.
    pub fn new(make: impl Fn() -> B + Send + Sync + 'static) -> Self {
        Self(Arc::new(make))
    }

    pub(super) fn make(&self) -> B {
        (self.0)()
    }
}

impl<B> Clone for BodyFactory<B> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<B> fmt::Debug for BodyFactory<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodyFactory").finish_non_exhaustive()
    }
}

/// A body, and what has been read of it.
pub(super) struct Tape<B> {
    /// What nobody has read yet; gone at its end.
    rest: Option<Pin<Box<B>>>,
    kept: Vec<Piece>,
    bytes: usize,
    most: usize,
    /// Something is missing in `kept`, and it can't be sent from the start any more.
    has_gap: bool,
    /// Only the latest attempt reads.
    attempt: u64,
    /// Whoever waits for the next piece.
    reader: Option<Waker>,
}

#[derive(Clone)]
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl<B: Body> Tape<B> {
    pub(super) fn new(body: B, most: usize) -> Self {
        let rest = Some(Box::pin(body));
        Self { rest, kept: Vec::new(), bytes: 0, most, has_gap: false, attempt: 0, reader: None }
    }

    /// Ends the attempt that is under way and begins another.
    fn begin(&mut self) -> u64 {
        self.attempt = self.attempt.wrapping_add(1);
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
        self.attempt
    }

    /// Keeps a piece, as long as there is room.
    fn keep(&mut self, piece: Piece) {
        let bytes = match &piece {
            Piece::Data(data) => data.len(),
            Piece::Trailers(_) => 0,
        };
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > self.most {
            self.has_gap = true;
            self.kept = Vec::new();
        } else if !self.has_gap {
            self.kept.push(piece);
        }
    }
}

impl<B: Body> Tape<B>
where
    B::Error: Into<BoxError>,
{
    /// The next piece that nobody has read.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Piece, ReplayError>>> {
        let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
        let Poll::Ready(frame) = rest.as_mut().poll_frame(cx) else {
            self.reader = Some(cx.waker().clone());
            return Poll::Pending;
        };
        let piece = match frame {
            None => {
                self.rest = None;
                return Poll::Ready(None);
            }
            Some(Err(error)) => {
                (self.rest, self.has_gap) = (None, true);
                return Poll::Ready(Some(Err(ReplayError::Body(error.into()))));
            }
            Some(Ok(frame)) => Piece::of(frame),
        };
        self.keep(piece.clone());
        if self.rest.as_ref().is_some_and(|rest| rest.is_end_stream()) {
            self.rest = None;
        }
        Poll::Ready(Some(Ok(piece)))
    }

    /// Ends the attempt that is under way, and reads what is left of the body. Whether all of it is kept.
    pub(super) async fn finish(tape: Arc<Mutex<Self>>) -> bool {
        {
            let mut tape = tape.lock();
            tape.begin();
            if tape.rest.is_none() || tape.has_gap {
                return !tape.has_gap;
            }
        }
        let read = poll_fn(|cx| {
            let mut tape = tape.lock();
            while !tape.has_gap {
                if ready!(tape.poll_rest(cx)).is_none() {
                    return Poll::Ready(!tape.has_gap);
                }
            }
            Poll::Ready(false)
        });
        time::timeout(REST, read).await.unwrap_or(false)
    }
}

impl Piece {
    fn of<D: Buf>(frame: Frame<D>) -> Self {
        match frame.into_data() {
            Ok(mut data) => Self::Data(data.copy_to_bytes(data.remaining())),
            // There are two kinds of frames.
            Err(frame) => Self::Trailers(frame.into_trailers().unwrap_or_default()),
        }
    }

    fn frame(self) -> Frame<Bytes> {
        match self {
            Self::Data(data) => Frame::data(data),
            Self::Trailers(trailers) => Frame::trailers(trailers),
        }
    }

    fn data_len(&self) -> u64 {
        match self {
            Self::Data(data) => u64::try_from(data.len()).unwrap_or(u64::MAX),
            Self::Trailers(_) => 0,
        }
    }
}

impl<B> Replay<B> {
    pub(super) fn nothing() -> Self {
        Self(Kind::Nothing)
    }

    pub(super) fn fresh(body: B) -> Self {
        Self(Kind::Fresh(Box::pin(body)))
    }
}

impl<B: Body> Replay<B> {
    /// From the first byte. Attempts that are still under way end, and so does this one where the first byte is gone.
    pub(super) fn from_start(tape: &Arc<Mutex<Tape<B>>>) -> Self {
        let mut held = tape.lock();
        let attempt = held.begin();
        if held.has_gap {
            held.begin();
        }
        Self(Kind::Taped { tape: Arc::clone(tape), attempt, next: 0 })
    }
}

impl<B> Body for Replay<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = ReplayError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ReplayError>>> {
        match &mut self.get_mut().0 {
            Kind::Nothing => Poll::Ready(None),
            Kind::Fresh(body) => {
                let frame = ready!(body.as_mut().poll_frame(cx));
                Poll::Ready(frame.map(|frame| match frame {
                    Ok(frame) => Ok(Piece::of(frame).frame()),
                    Err(error) => Err(ReplayError::Body(error.into())),
                }))
            }
            Kind::Taped { tape, attempt, next } => {
                let mut tape = tape.lock();
                if tape.attempt != *attempt {
                    return Poll::Ready(Some(Err(ReplayError::Over)));
                }
                if let Some(piece) = tape.kept.get(*next) {
                    *next += 1;
                    return Poll::Ready(Some(Ok(piece.clone().frame())));
                }
                let piece = ready!(tape.poll_rest(cx));
                *next = tape.kept.len();
                Poll::Ready(piece.map(|piece| piece.map(Piece::frame)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Nothing => true,
            Kind::Fresh(body) => body.is_end_stream(),
            Kind::Taped { tape, attempt, next } => {
                let tape = tape.lock();
                tape.attempt == *attempt
                    && *next >= tape.kept.len()
                    && tape.rest.as_ref().is_none_or(|rest| rest.is_end_stream())
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Nothing => SizeHint::with_exact(0),
            Kind::Fresh(body) => body.size_hint(),
            Kind::Taped { tape, next, .. } => {
                let tape = tape.lock();
                let kept: u64 = tape.kept.iter().skip(*next).map(Piece::data_len).sum();
                let rest =
                    tape.rest.as_ref().map_or_else(|| SizeHint::with_exact(0), |rest| rest.size_hint());
                let mut hint = SizeHint::new();
                hint.set_lower(kept.saturating_add(rest.lower()));
                if let Some(upper) = rest.upper() {
                    hint.set_upper(kept.saturating_add(upper));
                }
                hint
            }
        }
    }
}

impl<B> fmt::Debug for Replay<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replay").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    /// Frames that are there; after the last it ends, or waits for ever.
    struct Script {
        frames: VecDeque<Frame<Bytes>>,
        ends: bool,
    }

    impl Body for Script {
        type Data = Bytes;
        type Error = std::io::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
            match self.frames.pop_front() {
                None if !self.ends => Poll::Pending,
                frame => Poll::Ready(frame.map(Ok)),
            }
        }
    }

    fn tape(pieces: &[&'static str], ends: bool, most: usize) -> Arc<Mutex<Tape<Script>>> {
        let trailers = HeaderMap::from_iter([(http::header::ETAG, http::HeaderValue::from_static("last"))]);
        let mut frames: VecDeque<_> =
            pieces.iter().map(|piece| Frame::data(Bytes::from_static(piece.as_bytes()))).collect();
        frames.extend(ends.then(|| Frame::trailers(trailers)));
        Arc::new(Mutex::new(Tape::new(Script { frames, ends }, most)))
    }

    /// The next piece as text: `~` for trailers, `.` for the end, `!` for an error.
    async fn next(body: &mut Replay<Script>) -> String {
        match poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
            None => ".".to_owned(),
            Some(Err(_)) => "!".to_owned(),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => String::from_utf8(data.to_vec()).expect("the test writes text"),
                Err(_) => "~".to_owned(),
            },
        }
    }

    async fn all(mut body: Replay<Script>) -> String {
        let mut told = String::new();
        loop {
            let piece = next(&mut body).await;
            told.push_str(&piece);
            if piece == "." || piece == "!" {
                return told;
            }
        }
    }

    #[tokio::test]
    async fn every_attempt_gets_all_of_it_with_its_trailers() {
        let tape = tape(&["ab", "cd"], true, 4);
        assert_eq!(all(Replay::from_start(&tape)).await, "abcd~.");
        assert!(Tape::finish(Arc::clone(&tape)).await);
        for _ in 0..2 {
            assert_eq!(all(Replay::from_start(&tape)).await, "abcd~.");
        }
    }

    #[tokio::test]
    async fn an_attempt_that_stopped_early_is_over_and_the_next_goes_on_behind_it() {
        let tape = tape(&["ab", "cd", "ef"], true, 6);
        let mut first = Replay::from_start(&tape);
        assert_eq!(next(&mut first).await, "ab");
        let mut second = Replay::from_start(&tape);
        assert_eq!(next(&mut first).await, "!");
        assert_eq!(next(&mut second).await, "ab");
        assert_eq!(next(&mut second).await, "cd");
        assert!(Tape::finish(Arc::clone(&tape)).await);
        assert_eq!(next(&mut second).await, "!");
        assert_eq!(all(Replay::from_start(&tape)).await, "abcdef~.");
    }

    #[tokio::test]
    async fn one_that_is_too_long_goes_out_whole_and_never_again() {
        let tape = tape(&["ab", "cd", "ef"], true, 5);
        assert_eq!(all(Replay::from_start(&tape)).await, "abcdef~.");
        assert!(!Tape::finish(Arc::clone(&tape)).await);
        assert_eq!(all(Replay::from_start(&tape)).await, "!");
    }

    #[tokio::test]
    async fn of_one_that_is_too_long_no_more_than_the_limit_is_waited_for() {
        let tape = tape(&["ab", "cd", "ef"], false, 3);
        assert!(!Tape::finish(Arc::clone(&tape)).await);
        assert_eq!(tape.lock().kept.len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_goes_on_is_not_waited_for() {
        let tape = tape(&["ab"], false, 100);
        let mut first = Replay::from_start(&tape);
        assert_eq!(next(&mut first).await, "ab");
        assert!(!Tape::finish(tape).await);
    }

    #[tokio::test]
    async fn its_length_is_told_where_it_is_known() {
        let whole = http_body_util::Full::new(Bytes::from_static(b"abc"));
        let tape = Arc::new(Mutex::new(Tape::new(whole, 10)));
        for _ in 0..2 {
            let mut body = Replay::from_start(&tape);
            assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(3), false));
            assert!(poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.is_some());
            assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(0), true));
        }
    }
}
