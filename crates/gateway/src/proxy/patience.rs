//! How long to wait for an upstream: for the head of its answer, then for each piece of its body.
//!
//! Only silence is limited, never the whole. A request body on its way counts as a sign of life, so neither a long upload
//! nor a stream that talks in one direction is cut. A gRPC call names its own deadline, which takes the place of the
//! limit on the head.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use futures_util::task::AtomicWaker;
use http::HeaderMap;
use tokio::time::{Duration, Instant, Sleep, sleep_until};

use super::{failure::Failure, meter::Arriving};
use crate::{services::Route, timers::Timers, upstream::SendError};

/// The patience that one request has left.
pub(super) struct Patience {
    is_grpc: bool,
    head: Option<Duration>,
    idle: Option<Duration>,
    deadline: Option<Instant>,
    body_max: Option<u64>,
    upload: Option<Arc<Upload>>,
    /// The last sign of life from the upstream, or, in the middle of an answer, since when it has been waited for.
    heard: Instant,
    is_waiting: bool,
    /// Made when there is something to wait for.
    timer: Option<Pin<Box<Sleep>>>,
}

/// How a request body is getting on: told by the one who reads it, asked by the one who waits for the answer.
pub(crate) struct Upload {
    began: Instant,
    moved_millis: AtomicU64,
    state: AtomicU8,
    /// The answer has ended before it.
    is_left: AtomicBool,
    reader: AtomicWaker,
}

/// Where a request body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum UploadState {
    /// The upstream takes its time to take more.
    Flowing,
    /// The client takes its time to send more.
    Awaited,
    /// It has been sent to its end.
    Done,
    /// It has turned out to be too large.
    TooLarge,
    /// It broke off.
    Lost,
    /// Nobody wants more of it, whether there is more or not.
    LetGo,
    /// Nobody pays for the rest.
    Unpaid,
}

impl UploadState {
    const fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::LetGo)
    }
}

impl Upload {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            moved_millis: AtomicU64::new(0),
            state: AtomicU8::new(0),
            is_left: AtomicBool::new(false),
            reader: AtomicWaker::new(),
        })
    }

    pub(super) fn note(&self, state: UploadState) {
        if state != UploadState::Awaited {
            let millis = self.began.elapsed().as_millis();
            self.moved_millis.store(u64::try_from(millis).unwrap_or(u64::MAX), Relaxed);
        }
        self.state.store(state as u8, Relaxed);
    }

    /// Nobody reads it any more. hyper leaves off with the last byte that was announced, whether or not the body has said
    /// that it is the last.
    pub(super) fn let_go(&self) {
        if matches!(self.state(), UploadState::Flowing | UploadState::Awaited) {
            self.note(UploadState::LetGo);
        }
    }

    /// Whether the answer has ended, so that who reads the body is the only one left to limit its silence. If not, they are
    /// woken when it does.
    pub(super) fn is_left(&self, context: &Context<'_>) -> bool {
        self.reader.register(context.waker());
        self.is_left.load(Relaxed)
    }

    fn state(&self) -> UploadState {
        match self.state.load(Relaxed) {
            0 => UploadState::Flowing,
            1 => UploadState::Awaited,
            2 => UploadState::Done,
            3 => UploadState::TooLarge,
            5 => UploadState::LetGo,
            6 => UploadState::Unpaid,
            _ => UploadState::Lost,
        }
    }

    pub(super) fn moved(&self) -> Instant {
        self.began + Duration::from_millis(self.moved_millis.load(Relaxed))
    }
}

impl Patience {
    /// `began` is when the request came: as good as now, and read from the clock already.
    pub(super) fn new(
        route: &Route,
        body: &Arriving,
        headers: &HeaderMap,
        is_grpc: bool,
        began: Instant,
    ) -> Self {
        let heard = began;
        let config = route.upstream.config();
        Self {
            is_grpc,
            head: config.head_timeout,
            idle: config.idle_timeout,
            deadline: is_grpc
                .then(|| grpc_timeout(headers))
                .flatten()
                .and_then(|after| heard.checked_add(after)),
            body_max: route.config.request_bytes_max,
            upload: (!body.is_end_stream()).then(Upload::new),
            heard,
            is_waiting: false,
            timer: None,
        }
    }

    /// Where to tell how the request's body is getting on; none if it has none.
    pub(super) fn upload(&self) -> Option<Arc<Upload>> {
        self.upload.clone()
    }

    /// Waits for the head of the answer.
    pub(super) async fn head<T>(
        &self,
        timers: &Timers,
        mut sending: Pin<&mut impl Future<Output = Result<T, SendError>>>,
    ) -> Result<T, Failure> {
        let (mut look, mut timer) = (self.next_look(self.heard), None);
        poll_fn(|context| {
            if let Poll::Ready(answer) = sending.as_mut().poll(context) {
                return Poll::Ready(answer.map_err(|error| self.explain(error)));
            }
            loop {
                // Without one its answer may take as long as it likes.
                let Some(at) = look else { return Poll::Pending };
                let timer = timer.get_or_insert_with(|| timers.at(at));
                ready!(timer.poll(context));
                let now = Instant::now();
                if self.head_limit().is_some_and(|limit| limit <= now) {
                    return Poll::Ready(Err(self.expired()));
                }
                look = self.next_look(now);
                if let Some(later) = look {
                    timer.reset(later);
                }
            }
        })
        .await
    }

    /// Whether the request is still on its way: an answer may come, and end, before it.
    pub(super) fn is_uploading(&self) -> bool {
        self.upload.as_ref().is_some_and(|upload| !upload.state().is_over())
    }

    /// Whether the request has been read to its end.
    pub(super) fn has_read_all(&self) -> bool {
        self.upload.as_ref().is_none_or(|upload| upload.state() == UploadState::Done)
    }

    /// Whether the rest of the request is held back, since nobody pays for it.
    pub(super) fn is_unpaid(&self) -> bool {
        self.upload.as_ref().is_some_and(|upload| upload.state() == UploadState::Unpaid)
    }

    /// Whether it is the client's doing that an answer breaks off in its middle: the rest of the request can't be read or paid,
    /// or is too large, or the upstream was silent while it waited for that.
    pub(super) fn is_clients_doing(&self, is_silence: bool) -> bool {
        match self.upload.as_ref().map(|upload| upload.state()) {
            Some(UploadState::Lost | UploadState::TooLarge | UploadState::Unpaid) => true,
            Some(UploadState::Awaited) => is_silence,
            _ => false,
        }
    }

    /// The answer has ended; what is left is the request.
    pub(super) fn leave(&self) {
        if let Some(upload) = &self.upload {
            upload.is_left.store(true, Relaxed);
            upload.reader.wake();
        }
    }

    /// The upstream has said something. Until more is asked of it, its silence is the client's, who takes its time.
    pub(super) const fn heard(&mut self) {
        self.is_waiting = false;
    }

    /// Waits until there has been silence for too long, in the middle of an answer.
    pub(super) fn poll_silence(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(idle) = self.idle else { return Poll::Pending };
        if !self.is_waiting {
            self.is_waiting = true;
            self.heard = Instant::now();
        }
        let moved = self.upload.as_ref().map_or(self.heard, |upload| upload.moved());
        let limit = self.heard.max(moved) + idle;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(limit)));
        loop {
            ready!(timer.as_mut().poll(context));
            if limit <= Instant::now() {
                return Poll::Ready(());
            }
            timer.as_mut().reset(limit);
        }
    }

    fn head_limit(&self) -> Option<Instant> {
        let state = self.upload.as_ref().map_or(UploadState::Done, |upload| upload.state());
        let moved = self.upload.as_ref().map_or(self.heard, |upload| upload.moved());
        let silence = if self.is_grpc || !state.is_over() { self.idle } else { self.head };
        let limit = silence.map(|silence| self.heard.max(moved) + silence);
        [limit, self.deadline].into_iter().flatten().min()
    }

    /// When to look at the limit: when it is reached, or, while the request is on its way, in case that has ended by then. Nobody
    /// is told of its end, and from then on the answer has its own time.
    fn next_look(&self, now: Instant) -> Option<Instant> {
        let limit = self.head_limit();
        let is_uploading = !self.is_grpc && self.is_uploading();
        let head = self.head.filter(|_| is_uploading).map(|head| now + head.max(Duration::from_millis(1)));
        [limit, head].into_iter().flatten().min()
    }

    fn expired(&self) -> Failure {
        let is_awaited = self.upload.as_ref().is_some_and(|upload| upload.state() == UploadState::Awaited);
        if self.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            Failure::Deadline
        } else if is_awaited {
            Failure::BodyStalled
        } else {
            Failure::UpstreamTimeout
        }
    }

    /// Sending fails as well when the body can't be read, and then the upstream is not to blame.
    fn explain(&self, error: SendError) -> Failure {
        match self.upload.as_ref().map(|upload| upload.state()) {
            Some(UploadState::TooLarge) => Failure::BodyTooLarge { max: self.body_max.unwrap_or_default() },
            Some(UploadState::Lost) => Failure::BodyLost,
            Some(UploadState::Unpaid) => Failure::CreditExhausted,
            _ => Failure::Upstream(error),
        }
    }
}

/// `grpc-timeout`: up to eight digits and a unit.
fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (unit_at, unit) = text.char_indices().next_back()?;
    let digits = &text[..unit_at];
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        'H' => Duration::from_secs(count * 3600),
        'M' => Duration::from_secs(count * 60),
        'S' => Duration::from_secs(count),
        'm' => Duration::from_millis(count),
        'u' => Duration::from_micros(count),
        'n' => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_limit_on_the_upload_ends_with_it() {
        let upload = Upload::new();
        let patience = Patience {
            is_grpc: false,
            head: None,
            idle: Some(Duration::from_secs(1)),
            deadline: None,
            body_max: None,
            upload: Some(Arc::clone(&upload)),
            heard: Instant::now(),
            is_waiting: false,
            timer: None,
        };
        let answered = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            upload.note(UploadState::Done);
            tokio::time::sleep(Duration::from_secs(3_600)).await;
            Ok::<_, SendError>("late")
        };
        assert!(matches!(patience.head(&Timers::default(), std::pin::pin!(answered)).await, Ok("late")));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_has_its_own_time_once_its_request_has_been_sent() {
        for idle in [Some(Duration::from_secs(600)), None] {
            let upload = Upload::new();
            let patience = Patience {
                is_grpc: false,
                head: Some(Duration::from_secs(2)),
                idle,
                deadline: None,
                body_max: None,
                upload: Some(Arc::clone(&upload)),
                heard: Instant::now(),
                is_waiting: false,
                timer: None,
            };
            let began = Instant::now();
            let never = async {
                tokio::time::sleep(Duration::from_millis(7_500)).await;
                upload.note(UploadState::Done);
                std::future::pending::<Result<(), SendError>>().await
            };
            let waited = patience.head(&Timers::default(), std::pin::pin!(never)).await;
            assert!(matches!(waited, Err(Failure::UpstreamTimeout)), "{idle:?}");
            assert!((9_500..9_600).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
        }
    }

    #[test]
    fn a_grpc_deadline_is_up_to_eight_digits_and_a_unit() {
        let read = |text: &'static str| {
            grpc_timeout(&HeaderMap::from_iter([(
                http::HeaderName::from_static("grpc-timeout"),
                HeaderValue::from_static(text),
            )]))
        };
        assert_eq!(read("5S"), Some(Duration::from_secs(5)));
        assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        for text in ["", "S", "5", "123456789S", "-5S", "5s", "5\t"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
