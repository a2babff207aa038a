//! How an HTTP/1.1 connection to an upstream is written to: little in one piece, much as it lies.
//!
//! hyper either copies whatever it writes into one buffer or hands over a list of pieces. Heads and small bodies are
//! cheaper as one piece, and copying a large body costs more than a list of two pieces: 10 MB in pieces of 400 KiB took
//! 2.8 ms of processor time copied and 1.8 ms as they lie, heads alone 6.4 µs and 6.8 µs. So hyper hands over lists,
//! and those of one piece or of few bytes are written plainly.
//!
//! An upstream may answer a request before it has read all of it, and close. hyper gives up a connection that can't be
//! written to, with an answer that is there to be read. So what can't be written is thrown away here: reading tells what
//! there is, and that it is the end.
//!
//! Headers of ours that are in writing already are put behind the request line here (see `proxy/telling.rs`). hyper knows
//! nothing of them: what it hands over with them counts as written at once, and what the socket doesn't take goes first
//! next time.
//!
//! All this holds where what is handed over next begins with the head of a request. An upstream that answers before it has
//! read a whole head would get the end of that together with the next one, so its connection is offered to nobody
//! ([`Written::is_behind`]).
//!
//! A request that may be sent a second time is kept as it was written, which is cheaper than to put it into writing again.

#[cfg(test)]
mod tests;

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::proxy::Lines;

/// What is copied together at most. Each connection keeps as much room, once it has been used.
const SMALL: usize = 16 * 1024;

/// What who holds a connection has to do with its writing: the head of the request that was written last, and what to add to
/// the next one.
#[derive(Default)]
pub(super) struct Written {
    /// What is written next is the head of a request, and will be asked for.
    is_wanted: AtomicBool,
    /// What is written next is the head of a request, and has more lines.
    has_lines: AtomicBool,
    is_behind: AtomicBool,
    head: Mutex<Vec<u8>>,
    lines: Mutex<Option<Lines>>,
}

impl Written {
    /// Has the next request kept, which has no body.
    pub(super) fn keep_next(&self) {
        self.is_wanted.store(true, Relaxed);
    }

    /// Has the next request not kept.
    pub(super) fn keep_none(&self) {
        self.is_wanted.store(false, Relaxed);
    }

    /// Has the next request written with more headers than it has.
    pub(super) fn write_next(&self, lines: Option<&Lines>) {
        if lines.is_some() || self.has_lines.load(Relaxed) {
            *self.lines.lock() = lines.cloned();
        }
        self.has_lines.store(lines.is_some(), Relaxed);
    }

    /// Whether something was handed over that the socket hasn't taken: what is handed over next begins with the end of that.
    pub(super) fn is_behind(&self) -> bool {
        self.is_behind.load(Relaxed)
    }

    fn take_lines(&self) -> Option<Lines> {
        if !self.has_lines.load(Relaxed) {
            return None;
        }
        self.has_lines.store(false, Relaxed);
        self.lines.lock().take()
    }

    /// The head that was kept, if it has been written.
    pub(super) fn take(&self) -> Option<Vec<u8>> {
        let head = std::mem::take(&mut *self.head.lock());
        (!self.is_wanted.load(Relaxed)).then_some(head)
    }

    /// hyper hands the whole head over at once. What isn't taken of it comes again, and is known already.
    fn note<'a>(&self, pieces: impl IntoIterator<Item = &'a [u8]>) {
        if self.is_wanted.load(Relaxed) {
            self.is_wanted.store(false, Relaxed);
            let mut head = self.head.lock();
            head.clear();
            for piece in pieces {
                head.extend_from_slice(piece);
            }
        }
    }
}

/// See the module.
pub(super) struct Gathered<S> {
    stream: S,
    joint: Vec<u8>,
    /// So much at the end of `joint` counts as written and isn't.
    left: usize,
    /// As told to `written`.
    is_behind: bool,
    written: Arc<Written>,
    /// Nothing can be written any more, since the other side has closed.
    is_closed: bool,
    /// Everything has been read.
    is_read: bool,
}

impl<S> Gathered<S> {
    pub(super) fn new(stream: S, written: Arc<Written>) -> Self {
        Self {
            stream,
            joint: Vec::new(),
            left: 0,
            is_behind: false,
            written,
            is_closed: false,
            is_read: false,
        }
    }
}

impl<S: AsyncWrite + Unpin> Gathered<S> {
    /// What has come of writing so many bytes.
    fn written(&mut self, polled: Poll<io::Result<usize>>, length: usize) -> Poll<io::Result<usize>> {
        match polled {
            Poll::Ready(Err(error)) if is_closing(&error) && !self.is_read => {
                self.is_closed = true;
                Poll::Ready(Ok(length))
            }
            polled => polled,
        }
    }

    /// Tells whether there is more to write than was taken.
    fn falls_behind(&mut self, is_behind: bool) {
        if self.is_behind != is_behind {
            self.is_behind = is_behind;
            self.written.is_behind.store(is_behind, Relaxed);
        }
    }

    /// Of so many bytes that were handed over.
    fn tell_behind(&mut self, polled: Poll<io::Result<usize>>, length: usize) -> Poll<io::Result<usize>> {
        let is_whole = matches!(polled, Poll::Ready(Ok(taken)) if taken == length);
        self.falls_behind(!is_whole || self.left > 0);
        polled
    }

    fn poll_pieces(
        &mut self,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
        length: usize,
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_left(context))?;
        if let Some(lines) = self.written.take_lines() {
            return self.poll_head(context, pieces, &lines);
        }
        self.written.note(pieces.iter().map(|piece| &**piece));
        if let Some(known) = self.thrown_away(length) {
            return known;
        }
        let Self { stream, joint, .. } = self;
        let mut filled = pieces.iter().filter(|piece| !piece.is_empty());
        let written = if let (Some(only), None) = (filled.next(), filled.next()) {
            Pin::new(stream).poll_write(context, only)
        } else if length > SMALL {
            Pin::new(stream).poll_write_vectored(context, pieces)
        } else {
            // Whatever of it is not taken is handed over again, so nothing needs to be remembered.
            joint.clear();
            for piece in pieces {
                joint.extend_from_slice(piece);
            }
            Pin::new(stream).poll_write(context, joint)
        };
        self.written(written, length)
    }

    /// Writes the head of a request with lines of ours in it, and so much of its body as is copied.
    fn poll_head(
        &mut self,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
        lines: &Lines,
    ) -> Poll<io::Result<usize>> {
        // hyper hands the whole head over at once, and nothing before it.
        let head = pieces.iter().find(|piece| !piece.is_empty()).map_or(&[][..], |piece| &**piece);
        let Some(end) = head.iter().position(|byte| *byte == b'\n') else {
            return Poll::Ready(Err(io::Error::other("a request begins without a request line")));
        };
        let (line, rest) = head.split_at(end + 1);
        self.joint.clear();
        for part in [line, lines.as_bytes(), rest] {
            self.joint.extend_from_slice(part);
        }
        let whole = pieces.iter().map(|piece| piece.len()).sum();
        let length = if whole > SMALL { head.len() } else { whole };
        if whole <= SMALL {
            for piece in pieces.iter().skip_while(|piece| piece.is_empty()).skip(1) {
                self.joint.extend_from_slice(piece);
            }
        }
        self.written.note([self.joint.as_slice()]);
        if let Some(known) = self.thrown_away(length) {
            return known;
        }
        let taken = match Pin::new(&mut self.stream).poll_write(context, &self.joint) {
            Poll::Ready(Ok(taken)) => taken,
            Poll::Pending => 0,
            failed => return self.written(failed, length),
        };
        self.left = self.joint.len() - taken;
        Poll::Ready(Ok(length))
    }

    /// Writes what counts as written and isn't.
    fn poll_left(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.left > 0 {
            let left = &self.joint[self.joint.len() - self.left..];
            let length = left.len();
            let polled = Pin::new(&mut self.stream).poll_write(context, left);
            match ready!(self.written(polled, length))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                taken => self.left -= taken,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// What becomes of so many bytes, if that is known beforehand.
    fn thrown_away(&self, length: usize) -> Option<Poll<io::Result<usize>>> {
        match (self.is_closed, self.is_read) {
            (false, _) => None,
            (true, false) => Some(Poll::Ready(Ok(length))),
            (true, true) => Some(Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))),
        }
    }
}

/// Whether an error says that the other side has closed, of which reading will tell as well.
fn is_closing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = self.poll_pieces(context, &[IoSlice::new(bytes)], bytes.len());
        self.tell_behind(polled, bytes.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = pieces.iter().map(|piece| piece.len()).sum();
        let polled = self.poll_pieces(context, pieces, length);
        self.tell_behind(polled, length)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_left(context))?;
        self.falls_behind(false);
        match Pin::new(&mut self.stream).poll_flush(context) {
            Poll::Ready(Err(error)) if is_closing(&error) && !self.is_read => {
                self.is_closed = true;
                Poll::Ready(Ok(()))
            }
            polled => polled,
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_ready() && buffer.filled().len() == before {
            self.is_read = true;
        }
        read
    }
}
