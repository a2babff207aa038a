//! How long a server may be silent: neither take the next piece of a request's body nor send the next of an answer.
//!
//! The HTTP library's own limit runs from the beginning of a request to the head of its answer, whatever passes meanwhile, so a
//! long upload would count as silence. Here each piece that the connection takes begins the time anew. A piece that it has
//! taken may still lie in a buffer on this side: of those no more than some hundred KiB.

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::{self, Instant, Sleep};

use crate::error::BoxError;

/// A server was silent for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Silent {
    /// It took no more of the request's body.
    #[error(
        "it took nothing more of the request's body for {} s, {sent} of {length} bytes in; a slow line needs a longer idle timeout",
        after.as_secs_f64()
    )]
    Sending {
        /// For how long.
        after: Duration,
        /// How much the connection had taken.
        sent: u64,
        /// How long the body is.
        length: u64,
    },
    /// It has the whole request, and didn't answer.
    #[error("it did not answer within {} s; who works for longer needs a longer idle timeout", .0.as_secs_f64())]
    Answering(Duration),
    /// It stopped in mid-answer.
    #[error("it sent nothing more of its answer for {} s", .0.as_secs_f64())]
    Sent(Duration),
}

/// How far one attempt to send a body has come. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Progress(Arc<Mutex<Passed>>);

#[derive(Debug)]
struct Passed {
    sent: u64,
    length: u64,
    last: Instant,
}

impl Progress {
    /// Of a body of so many bytes.
    pub(crate) fn new(length: u64) -> Self {
        Self(Arc::new(Mutex::new(Passed { sent: 0, length, last: Instant::now() })))
    }

    /// The connection has taken so many more of them.
    pub(crate) fn add(&self, bytes: usize) {
        let mut passed = self.0.lock();
        passed.sent = passed.sent.saturating_add(bytes as u64);
        passed.last = Instant::now();
    }

    /// Waits for an answer for as long as something passes.
    pub(crate) async fn until<T>(
        &self,
        idle: Duration,
        answer: impl Future<Output = T>,
    ) -> Result<T, Silent> {
        let mut answer = pin!(answer);
        loop {
            let last = self.0.lock().last;
            let Some(until) = last.checked_add(idle) else { return Ok(answer.await) };
            if let Ok(answer) = time::timeout_at(until, &mut answer).await {
                return Ok(answer);
            }
            let passed = self.0.lock();
            if passed.last == last {
                let Passed { sent, length, .. } = *passed;
                return Err(match sent < length {
                    true => Silent::Sending { after: idle, sent, length },
                    false => Silent::Answering(idle),
                });
            }
        }
    }
}

/// The body of an answer, as long as it keeps coming.
pub(crate) struct Coming<B> {
    body: B,
    idle: Duration,
    wait: Option<Pin<Box<Sleep>>>,
}

impl<B> Coming<B> {
    pub(crate) fn new(body: B, idle: Duration) -> Self {
        Self { body, idle, wait: None }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Coming<B>
where
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            // The time runs only while somebody waits: who reads slowly is not a server's silence.
            this.wait = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let idle = this.idle;
        let wait = this.wait.get_or_insert_with(|| Box::pin(time::sleep(idle)));
        ready!(wait.as_mut().poll(cx));
        Poll::Ready(Some(Err(Silent::Sent(idle).into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use http_body_util::{BodyExt as _, Empty, StreamBody};

    use super::*;

    const IDLE: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn what_passes_begins_the_time_anew_and_silence_says_where_it_began() {
        let began = Instant::now();
        let progress = Progress::new(100);
        let sending = async {
            for _ in 0..9 {
                time::sleep(Duration::from_secs(8)).await;
                progress.add(10);
            }
            pending::<()>().await
        };
        let silent = progress.until(IDLE, sending).await.unwrap_err();
        assert_eq!(silent, Silent::Sending { after: IDLE, sent: 90, length: 100 });
        assert_eq!(began.elapsed(), Duration::from_secs(82));

        progress.add(10);
        let silent = progress.until(IDLE, pending::<()>()).await.unwrap_err();
        assert_eq!(silent, Silent::Answering(IDLE));
        let late = async { time::sleep(Duration::from_secs(9)).await };
        progress.add(0);
        assert_eq!(progress.until(IDLE, late).await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_may_take_its_time_and_may_not_stop() {
        let pieces = futures_util::stream::unfold(0, |number| async move {
            match number {
                3 => pending().await,
                _ => time::sleep(Duration::from_secs(9)).await,
            }
            Some((Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"x"))), number + 1))
        });
        let mut body = Coming::new(StreamBody::new(Box::pin(pieces)), IDLE);
        for _ in 0..3 {
            assert!(body.frame().await.unwrap().is_ok());
            // The reader's own time.
            time::sleep(Duration::from_secs(60)).await;
        }
        let error = body.frame().await.unwrap().unwrap_err();
        assert_eq!(error.to_string(), "it sent nothing more of its answer for 10 s");
        assert!(Coming::new(Empty::<Bytes>::new(), IDLE).frame().await.is_none());
    }
}
