//! A copy of a small request body while it is on its way, for an upstream that takes it and turns out not to have looked at it.
//!
//! Over HTTP/2 a server may end a connection at any time and say which requests it has dealt with (GOAWAY), or refuse one
//! without having looked at it. Whatever came later has never been heard of, so that even what must not be done twice can be
//! sent elsewhere, as far as its body is still there. Kept is what was sent to its end and is no more than [`KEPT_MAX`]: most
//! calls, and no stream. It is let go of with the head of the answer.

use std::{collections::VecDeque, mem, sync::Arc};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;

use super::meter::{Departure, PIECE};

/// How many bytes of a body are kept.
pub(super) const KEPT_MAX: u64 = 64 * 1024;

/// See the module.
pub(crate) struct Kept {
    pieces: Mutex<Pieces>,
    /// Whom to tell when it leaves again.
    departure: Option<Arc<Departure>>,
}

#[derive(Clone, Default)]
struct Pieces {
    data: VecDeque<Bytes>,
    /// What came last in pieces too small to be kept one by one: each would keep all that was read with it.
    small: BytesMut,
    trailers: Option<HeaderMap>,
    /// The sum of the data.
    bytes: u64,
    is_whole: bool,
}

/// A body that is sent again.
pub(super) struct Again {
    left: Pieces,
    kept: Arc<Kept>,
}

impl Kept {
    pub(super) fn new(departure: Option<Arc<Departure>>) -> Self {
        Self { pieces: Mutex::default(), departure }
    }

    pub(super) const fn departure(&self) -> Option<&Arc<Departure>> {
        self.departure.as_ref()
    }

    /// Adds what is sent. Whether there may be more; if not, and it isn't the end, nothing is kept any longer.
    pub(super) fn add(&self, frame: &Frame<Bytes>, is_end: bool) -> bool {
        let mut pieces = self.pieces.lock();
        if let Some(data) = frame.data_ref() {
            pieces.bytes += data.len() as u64;
            if pieces.bytes > KEPT_MAX {
                *pieces = Pieces::default();
                return false;
            }
            let is_only = is_end && pieces.bytes == data.len() as u64;
            if data.len() < PIECE && !is_only {
                pieces.small.extend_from_slice(data);
                if pieces.small.len() >= PIECE {
                    pieces.gather();
                }
            } else {
                pieces.gather();
                pieces.data.push_back(data.clone());
            }
        }
        if let Some(trailers) = frame.trailers_ref() {
            pieces.trailers = Some(trailers.clone());
        }
        pieces.is_whole = is_end || pieces.trailers.is_some();
        true
    }

    /// Nothing comes after what was added.
    pub(super) fn end(&self) -> bool {
        self.pieces.lock().is_whole = true;
        true
    }
}

impl Pieces {
    fn gather(&mut self) {
        if !self.small.is_empty() {
            self.data.push_back(self.small.split().freeze());
        }
    }
}

impl Again {
    pub(super) fn of(kept: &Arc<Kept>) -> Option<Self> {
        let mut pieces = kept.pieces.lock();
        if !pieces.is_whole {
            return None;
        }
        pieces.gather();
        Some(Self { left: pieces.clone(), kept: kept.clone() })
    }

    pub(super) fn kept(&self) -> Arc<Kept> {
        self.kept.clone()
    }

    pub(super) fn next(&mut self) -> Option<Frame<Bytes>> {
        match self.left.data.pop_front() {
            Some(data) => {
                self.left.bytes -= data.len() as u64;
                Some(Frame::data(data))
            }
            None => mem::take(&mut self.left.trailers).map(Frame::trailers),
        }
    }

    pub(super) fn is_end(&self) -> bool {
        self.left.data.is_empty() && self.left.trailers.is_none()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let mut hint = SizeHint::new();
        hint.set_lower(self.left.bytes);
        if self.left.trailers.is_none() {
            hint.set_upper(self.left.bytes);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(length: usize) -> Frame<Bytes> {
        Frame::data(Bytes::from(vec![b'x'; length]))
    }

    #[test]
    fn what_was_sent_to_its_end_is_sent_again_as_it_was() {
        let kept = Arc::new(Kept::new(None));
        assert!(kept.add(&data(3), false));
        assert!(Again::of(&kept).is_none(), "its end is missing");
        assert!(kept.add(&data(2), false));
        let trailers = HeaderMap::from_iter([(http::header::ETAG, http::HeaderValue::from_static("a"))]);
        assert!(kept.add(&Frame::trailers(trailers), true));
        for _ in 0..2 {
            let mut again = Again::of(&kept).unwrap();
            assert_eq!((again.size_hint().lower(), again.size_hint().upper()), (5, None));
            let mut lengths = Vec::new();
            while !again.is_end() {
                let frame = again.next().unwrap();
                lengths.push(frame.data_ref().map(Bytes::len));
            }
            assert_eq!(lengths, [Some(5), None]);
            assert!(again.next().is_none());
        }
    }

    #[test]
    fn what_comes_in_crumbs_keeps_nothing_that_was_read_with_it() {
        let kept = Arc::new(Kept::new(None));
        let mut want = Vec::new();
        for byte in 0..10_000_u32 {
            // One byte of what was read together, as of a frame that is one of many.
            let read = Bytes::from(vec![byte.to_le_bytes()[0]; 100]);
            assert!(kept.add(&Frame::data(read.slice(..1)), false));
            assert!(kept.add(&Frame::data(Bytes::new()), false));
            assert!(read.is_unique(), "byte {byte}");
            want.push(read[0]);
        }
        assert!(kept.add(&data(PIECE), false) && kept.end());
        want.extend([b'x'; PIECE]);
        assert!(kept.pieces.lock().data.len() < 10);
        let mut again = Again::of(&kept).unwrap();
        let sent: Vec<u8> =
            std::iter::from_fn(|| again.next()).flat_map(|frame| frame.into_data().unwrap()).collect();
        assert!(sent == want, "every byte, in its order");
    }

    #[test]
    fn of_what_is_too_large_nothing_is_kept() {
        let kept = Arc::new(Kept::new(None));
        let max = usize::try_from(KEPT_MAX).unwrap();
        assert!(kept.add(&data(max), false));
        assert!(!kept.add(&data(1), true));
        assert!(Again::of(&kept).is_none());
        let kept = Arc::new(Kept::new(None));
        assert!(kept.add(&data(max), false) && kept.end());
        assert_eq!(Again::of(&kept).unwrap().size_hint().exact(), Some(KEPT_MAX));
    }
}
