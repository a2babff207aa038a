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
//! A request that may be sent a second time is kept as it was written, which is cheaper than to put it into writing again.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is copied together at most. Each connection keeps as much room, once it has been used.
const SMALL: usize = 16 * 1024;

/// The head of a request, as it was written last to a connection, for who holds that connection.
#[derive(Default)]
pub(super) struct Written {
    /// What is written next is the head of a request, and will be asked for.
    is_wanted: AtomicBool,
    head: Mutex<Vec<u8>>,
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
    written: Arc<Written>,
    /// Nothing can be written any more, since the other side has closed.
    is_closed: bool,
    /// Everything has been read.
    is_read: bool,
}

impl<S> Gathered<S> {
    pub(super) fn new(stream: S, written: Arc<Written>) -> Self {
        Self { stream, joint: Vec::new(), written, is_closed: false, is_read: false }
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
        self.written.note([bytes]);
        if let Some(known) = self.thrown_away(bytes.len()) {
            return known;
        }
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.written(written, bytes.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.written.note(pieces.iter().map(|piece| &**piece));
        let length = pieces.iter().map(|piece| piece.len()).sum();
        if let Some(known) = self.thrown_away(length) {
            return known;
        }
        let Self { stream, joint, .. } = &mut *self;
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

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Tells how it was written to: in how many pieces, and how many bytes.
    #[derive(Default)]
    struct Told(Vec<(usize, usize)>);

    impl AsyncWrite for Told {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.0.push((1, bytes.len()));
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_write_vectored(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            pieces: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            let bytes = pieces.iter().map(|piece| piece.len()).sum();
            self.0.push((pieces.len(), bytes));
            Poll::Ready(Ok(bytes))
        }

        fn is_write_vectored(&self) -> bool {
            true
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// Can't be written to, and has this to say before it ends.
    struct Closed(&'static [u8]);

    impl AsyncWrite for Closed {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncRead for Closed {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let length = self.0.len().min(buffer.remaining());
            buffer.put_slice(&self.0[..length]);
            self.0 = &self.0[length..];
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn what_the_other_side_has_said_is_read_before_it_shows_that_it_has_closed() {
        let mut stream = Gathered::new(Closed(b"its last words"), Arc::default());
        stream.write_all(b"piece").await.unwrap();
        assert_eq!(stream.write_vectored(&[IoSlice::new(b"pi"), IoSlice::new(b"ece")]).await.unwrap(), 5);
        stream.flush().await.unwrap();
        let mut said = Vec::new();
        stream.read_to_end(&mut said).await.unwrap();
        assert_eq!(said, b"its last words");
        // From now on there is nothing to be gained by keeping it from the one who writes.
        assert_eq!(stream.write_all(b"piece").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn what_was_wanted_is_kept_as_it_was_written_and_nothing_else() {
        let written = Arc::<Written>::default();
        let mut stream = Gathered::new(Closed(b""), Arc::clone(&written));
        stream.write_all(b"a body").await.unwrap();
        written.keep_next();
        assert_eq!(written.take(), None, "it was never written");
        stream.write_all(b"a head").await.unwrap();
        stream.write_all(b"the next one's").await.unwrap();
        assert_eq!(written.take().unwrap(), b"a head");
        written.keep_next();
        assert_eq!(stream.write_vectored(&[IoSlice::new(b"a "), IoSlice::new(b"head")]).await.unwrap(), 6);
        assert_eq!(written.take().unwrap(), b"a head");
    }

    #[tokio::test]
    async fn little_is_written_in_one_piece_and_much_as_it_lies() {
        let mut stream = Gathered::new(Told::default(), Arc::default());
        let large = [b'x'; SMALL];
        for pieces in [&[&b"head"[..], b"body"][..], &[b"", b"head", b""], &[b"head", &large], &[&large]] {
            let length: usize = pieces.iter().map(|piece| piece.len()).sum();
            let pieces: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
            assert_eq!(stream.write_vectored(&pieces).await.unwrap(), length);
        }
        assert_eq!(stream.stream.0, [(1, 8), (1, 4), (2, SMALL + 4), (1, SMALL)]);
    }
}
