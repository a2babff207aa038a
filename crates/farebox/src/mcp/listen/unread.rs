//! Agents that ask and don't read what they are told.
//!
//! What waits to be read is memory, and whoever asks for more without reading would have all of it. So while an output takes
//! nothing, hardly anything more is read from its agent and its calls keep their seats ([`Unread`]), and one that takes nothing
//! for too long is given up ([`Patient`]).

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
    time::{Instant, Sleep, sleep},
};

/// So many bytes are read of an agent that doesn't read: some say all that they have to say before they do.
const LEEWAY_BYTES: usize = 64 << 10;

/// Whether what one agent was told waits for it to be read. Shared by the two directions of a session, and its calls.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unread(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    is_waiting: bool,
    is_given_up: bool,
    /// Bytes that the agent has said since it takes nothing.
    said: usize,
    /// Who wants to read what the agent says.
    input: Option<Waker>,
}

impl Unread {
    /// Waits until the agent takes what it is told, or is given up.
    pub(crate) async fn taken(&self) {
        loop {
            let mut changed = std::pin::pin!(self.0.changed.notified());
            changed.as_mut().enable();
            if !self.0.state.lock().is_waiting {
                return;
            }
            changed.await;
        }
    }

    /// Whether the agent may say more. One that was given up has nothing more to say.
    pub(super) fn poll_may_ask(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.state.lock();
        if state.is_given_up {
            Poll::Ready(Err(given_up()))
        } else if state.is_waiting && state.said >= LEEWAY_BYTES {
            state.input = Some(cx.waker().clone());
            Poll::Pending
        } else {
            Poll::Ready(Ok(()))
        }
    }

    /// Counts what the agent has said.
    pub(super) fn said(&self, bytes: usize) {
        let mut state = self.0.state.lock();
        if state.is_waiting {
            state.said = state.said.saturating_add(bytes);
        }
    }

    fn set(&self, is_waiting: bool) {
        let mut state = self.0.state.lock();
        (state.is_waiting, state.said) = (is_waiting, 0);
        self.tell(state.input.take().filter(|_| !is_waiting));
    }

    fn give_up(&self) {
        let mut state = self.0.state.lock();
        (state.is_waiting, state.is_given_up) = (false, true);
        self.tell(state.input.take());
    }

    fn tell(&self, input: Option<Waker>) {
        self.0.changed.notify_waiters();
        input.into_iter().for_each(Waker::wake);
    }
}

fn given_up() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "what the agent was told has waited for too long to be read")
}

/// A stream whose other side has so long to take the next byte.
pub(super) struct Patient<S> {
    stream: S,
    /// None: for ever.
    most: Option<Duration>,
    /// Runs while the other side takes nothing.
    timer: Option<Pin<Box<Sleep>>>,
    unread: Unread,
}

impl<S> Patient<S> {
    pub(super) fn new(stream: S, most: Option<Duration>, unread: Unread) -> Self {
        Self { stream, most, timer: None, unread }
    }

    /// What has come of a write, and how long nothing has.
    fn judge<T>(&mut self, cx: &mut Context<'_>, wrote: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if wrote.is_ready() {
            if self.timer.take().is_some() {
                self.unread.set(false);
            }
            return wrote;
        }
        // A year is for ever; the clock can't count much further.
        let most = self.most.unwrap_or(Duration::from_secs(365 * 86_400));
        let timer = self.timer.get_or_insert_with(|| {
            self.unread.set(true);
            Box::pin(sleep(most))
        });
        ready!(timer.as_mut().poll(cx));
        timer.as_mut().reset(Instant::now());
        self.unread.give_up();
        Poll::Ready(Err(given_up()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wrote = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.judge(cx, wrote)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wrote = Pin::new(&mut this.stream).poll_write_vectored(cx, pieces);
        this.judge(cx, wrote)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.stream).poll_flush(cx);
        this.judge(cx, flushed)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let ended = Pin::new(&mut this.stream).poll_shutdown(cx);
        this.judge(cx, ended)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl<S> Drop for Patient<S> {
    fn drop(&mut self) {
        // Nobody is left to take anything.
        self.unread.give_up();
    }
}
