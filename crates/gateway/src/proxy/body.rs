//! The bodies that pass through: streamed in both directions, one piece at a time, with their trailers.
//!
//! Nothing is collected here; what has to be read of a request before it is sent on is the business of `meter/ahead`. An
//! answer's body also keeps what must last until its end: the upstream connection, the request's entry in the books of the
//! connection, and the line in the access log.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use farebox_paywall::price::Ending;
use http::Version;
use http_body::{Frame, SizeHint};
use hyper::body::{Body as HttpBody, Incoming};
use tokio::time::{Sleep, sleep_until};

use super::{
    access::Account,
    failure::{grpc_trailers_for_a_lost_upstream, grpc_trailers_for_exhausted_credit},
    headers::clean_trailers,
    kept::{Again, KEPT_MAX, Kept},
    meter::{Ahead, Arriving, Departure},
    patience::{Patience, Upload, UploadState},
    upgrade::Tunnel,
};
use crate::{listen::InFlight, services::Route, upstream::Lease};

/// The body of an answer.
pub(crate) struct Body {
    content: Content,
    account: Option<(Account, InFlight)>,
}

enum Content {
    Empty,
    Full(Bytes),
    Streamed(Box<Streamed>),
    /// Nothing, and after it another protocol.
    Switched(Box<Tunnel>),
}

/// A body that comes from an upstream.
pub(super) struct Streamed {
    body: Incoming,
    lease: Option<Lease>,
    patience: Patience,
    is_grpc: bool,
    /// It has stopped in the middle: through the upstream, because its client spoilt the request, or can't pay for more.
    lost: Option<Ending>,
    /// Why it ends before its end, until that is told.
    broken: Option<BodyError>,
}

/// The body of a request.
pub(crate) struct RequestBody {
    load: Load,
    /// Where to tell that it leaves, if somebody wants to know.
    departure: Option<Arc<Departure>>,
}

/// What there is of it. Boxed: most requests have no body, and all are moved from hand to hand and lie in queues with room for
/// one.
enum Load {
    None,
    Reading(Box<Reading>),
    Again(Box<Again>),
}

struct Reading {
    body: Incoming,
    /// What was read of it before, and comes first.
    ahead: Option<Box<Ahead>>,
    is_http2: bool,
    /// How many more bytes are taken.
    left: u64,
    upload: Arc<Upload>,
    route: Arc<Route>,
    /// Whom to tell that it ends, where its bytes have a price.
    priced: Option<Arc<Departure>>,
    /// Where a copy goes, if it may have to be sent again.
    kept: Option<Arc<Kept>>,
    /// Nobody pays for the rest, which is told next.
    is_cut_off: bool,
    /// Made when nobody else limits its silence.
    timer: Option<Pin<Box<Sleep>>>,
}

/// Why a body ends before its end. It is told to hyper, which breaks the connection or the stream off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the other side broke off")]
    Broken(#[source] hyper::Error),
    #[error("the other side gave up before the end")]
    GivenUp,
    #[error("the upstream has been silent for too long")]
    Silent,
    #[error("the rest of the request did not come in time")]
    Stalled,
    #[error("the body is too large")]
    TooLarge,
    #[error("nothing is left to pay for the rest")]
    CreditExhausted,
}

impl Body {
    pub(crate) const fn empty() -> Self {
        Self { content: Content::Empty, account: None }
    }

    pub(crate) fn full(bytes: Bytes) -> Self {
        let content = if bytes.is_empty() { Content::Empty } else { Content::Full(bytes) };
        Self { content, account: None }
    }

    pub(super) fn streamed(streamed: Streamed) -> Self {
        Self { content: Content::Streamed(Box::new(streamed)), account: None }
    }

    pub(super) const fn switched(tunnel: Box<Tunnel>) -> Self {
        Self { content: Content::Switched(tunnel), account: None }
    }

    /// Takes out what comes after the answer, if that is another protocol.
    pub(super) fn take_tunnel(&mut self) -> Option<Box<Tunnel>> {
        if !matches!(self.content, Content::Switched(_)) {
            return None;
        }
        match std::mem::replace(&mut self.content, Content::Empty) {
            Content::Switched(tunnel) => Some(tunnel),
            _ => None,
        }
    }

    /// Keeps the books open until this body has been sent or given up.
    pub(super) fn with_account(mut self, mut account: Account, in_flight: InFlight) -> Self {
        if self.is_end_stream() {
            account.complete();
            if self.has_read_all() {
                in_flight.heard_out();
            }
        }
        self.account = Some((account, in_flight));
        self
    }

    fn note(&mut self, frame: &Poll<Option<Result<Frame<Bytes>, BodyError>>>) {
        let is_end = matches!(frame, Poll::Ready(None)) || self.is_end_stream();
        let has_read_all = is_end && self.has_read_all();
        let Some((account, in_flight)) = &mut self.account else { return };
        if account.is_counted() {
            let lost = match &self.content {
                Content::Streamed(streamed) => {
                    if streamed.lost.is_some() && streamed.patience.is_unpaid() {
                        account.cut_off();
                    }
                    streamed.lost
                }
                Content::Empty | Content::Full(_) | Content::Switched(_) => None,
            };
            account.count(frame, lost);
        }
        if let Poll::Ready(Some(Ok(frame))) = frame
            && let Some(data) = frame.data_ref()
        {
            in_flight.offered();
            account.sent(data.len());
        }
        if is_end {
            account.complete();
        }
        if has_read_all {
            in_flight.heard_out();
        }
    }

    /// Whether nothing is left of the request that this answers, as far as is known.
    fn has_read_all(&self) -> bool {
        matches!(&self.content, Content::Streamed(streamed) if streamed.patience.has_read_all())
    }
}

impl Body {
    /// Reads an answer to its end for a client that is gone, and keeps it.
    fn read_on(&mut self) {
        let content = std::mem::replace(&mut self.content, Content::Empty);
        let (Some((mut account, _)), Content::Streamed(mut streamed)) = (self.account.take(), content) else {
            return;
        };
        let worker = account.worker().clone();
        worker.tasks.spawn(async move {
            while account.is_kept() {
                let next = poll_fn(|context| {
                    let frame = streamed.poll_paid(context, &mut account);
                    account.count(&frame, streamed.lost);
                    frame
                });
                if next.await.is_none() {
                    account.read_out();
                }
            }
        });
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if let Some((account, _)) = &self.account
            && account.is_kept()
            && !account.is_ending()
        {
            self.read_on();
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some((_, in_flight)) = &self.account {
            in_flight.wanted();
        }
        let Self { content, account } = &mut *self;
        let frame = match content {
            Content::Empty | Content::Switched(_) => Poll::Ready(None),
            Content::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *content = Content::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Content::Streamed(streamed) => match account {
                Some((account, _)) => streamed.poll_paid(context, account),
                None => streamed.poll_frame(context),
            },
        };
        self.note(&frame);
        frame
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Empty | Content::Switched(_) => true,
            Content::Full(_) => false,
            Content::Streamed(streamed) => streamed.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Empty | Content::Switched(_) => SizeHint::with_exact(0),
            Content::Full(bytes) => SizeHint::with_exact(u64::try_from(bytes.len()).unwrap_or(u64::MAX)),
            Content::Streamed(streamed) => streamed.body.size_hint(),
        }
    }
}

impl Streamed {
    pub(super) fn new(body: Incoming, lease: Lease, patience: Patience, is_grpc: bool) -> Self {
        let mut streamed = Self { body, lease: Some(lease), patience, is_grpc, lost: None, broken: None };
        streamed.give_back_if_done();
        streamed
    }

    /// The next piece, unless nobody pays for it any more.
    fn poll_paid(
        &mut self,
        context: &mut Context<'_>,
        account: &mut Account,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = self.poll_frame(context);
        if !account.is_exhausted() {
            return frame;
        }
        match &frame {
            Poll::Ready(Some(Ok(more))) if more.data_ref().is_some_and(|data| !data.is_empty()) => {}
            // What ends here by itself is whole.
            _ => return frame,
        }
        account.cut_off();
        self.lease = None;
        self.lost = Some(Ending::Abandoned);
        self.break_off(context, BodyError::CreditExhausted, grpc_trailers_for_exhausted_credit)
    }

    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.lease.is_none() {
            return Poll::Ready(self.broken.take().map(Err));
        }
        let error = match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                self.patience.heard();
                self.give_back_if_done();
                return Poll::Ready(Some(Ok(frame)));
            }
            Poll::Ready(None) => {
                self.give_back();
                return Poll::Ready(None);
            }
            Poll::Ready(Some(Err(error))) => BodyError::Broken(error),
            Poll::Pending => match self.patience.poll_silence(context) {
                Poll::Ready(()) => BodyError::Silent,
                Poll::Pending => return Poll::Pending,
            },
        };
        // The connection is of no more use, and what was left of the answer won't come.
        self.lease = None;
        let is_silence = matches!(error, BodyError::Silent);
        let is_clients = self.patience.is_clients_doing(is_silence);
        self.lost = Some(if is_clients { Ending::Abandoned } else { Ending::Broken });
        let is_unpaid = self.patience.is_unpaid();
        let grpc =
            if is_unpaid { grpc_trailers_for_exhausted_credit } else { grpc_trailers_for_a_lost_upstream };
        self.break_off(context, error, grpc)
    }

    fn break_off(
        &mut self,
        context: &Context<'_>,
        error: BodyError,
        grpc: fn() -> http::HeaderMap,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.is_grpc {
            // A gRPC client can be told properly instead of being cut off.
            return Poll::Ready(Some(Ok(Frame::trailers(grpc()))));
        }
        // One turn later: hyper breaks off at once, with all that it has been given and hasn't sent.
        self.broken = Some(error);
        context.waker().wake_by_ref();
        Poll::Pending
    }

    fn give_back_if_done(&mut self) {
        if self.body.is_end_stream() {
            self.give_back();
        }
    }

    /// Where the answer has ended before the request, the connection is of no use to others: it ends when the request does.
    fn give_back(&mut self) {
        let Some(mut lease) = self.lease.take() else { return };
        if self.patience.is_uploading() {
            self.patience.leave();
        } else {
            lease.finish();
        }
    }
}

impl Reading {
    /// It is held back from here on, since nobody pays for it. That is told one turn later, as with answers: what was paid is
    /// to arrive.
    fn cut_off(&mut self, context: &Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.is_cut_off = true;
        self.upload.note(UploadState::Unpaid);
        let service = &self.route.config.service.name;
        tracing::info!(%service, "an upload was cut off: its buyer has nothing left");
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Waits until the rest of a request has been silent for too long whose answer has ended.
    fn poll_silence(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let idle = self.route.upstream.config().idle_timeout;
        let Some(idle) = idle.filter(|_| self.upload.is_left(context)) else { return Poll::Pending };
        let limit = self.upload.moved() + idle;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(limit)));
        if timer.deadline() < limit {
            timer.as_mut().reset(limit);
        }
        timer.as_mut().poll(context)
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.upload.let_go();
        if let Some(priced) = &self.priced {
            priced.let_go(&self.route.metrics);
        }
    }
}

impl RequestBody {
    /// No body at all.
    pub(crate) const fn none() -> Self {
        Self { load: Load::None, departure: None }
    }

    /// No body at all, of a request that tells the same of itself as this one.
    pub(crate) fn emptied(&self) -> Self {
        Self { load: Load::None, departure: self.departure.clone() }
    }

    pub(super) fn new(
        arriving: Arriving,
        version: Version,
        route: &Arc<Route>,
        upload: Option<Arc<Upload>>,
        departure: Option<Arc<Departure>>,
    ) -> Self {
        let is_http2 = version == Version::HTTP_2;
        let Arriving { body, ahead } = arriving;
        let taken = ahead.as_ref().map_or(0, |ahead| ahead.taken());
        let left = route.config.request_bytes_max.unwrap_or(u64::MAX) - taken;
        let reading = |upload| {
            let priced = departure.as_ref().filter(|departure| departure.take_up()).cloned();
            let route = route.clone();
            let (kept, is_cut_off, timer) = (None, false, None);
            let reading =
                Reading { body, ahead, is_http2, left, upload, route, priced, kept, is_cut_off, timer };
            Load::Reading(Box::new(reading))
        };
        Self { load: upload.map_or(Load::None, reading), departure }
    }

    pub(crate) const fn is_none(&self) -> bool {
        matches!(self.load, Load::None)
    }

    /// Keeps a copy from now on, where that is small and costs nobody anything to be sent twice.
    pub(crate) fn keep(&mut self) -> Option<Arc<Kept>> {
        let lower = self.size_hint().lower();
        match &mut self.load {
            Load::Reading(reading) if reading.priced.is_none() && lower <= KEPT_MAX => {
                let kept = || Arc::new(Kept::new(self.departure.clone()));
                Some(reading.kept.get_or_insert_with(kept).clone())
            }
            Load::Again(again) => Some(again.kept()),
            Load::Reading(_) | Load::None => None,
        }
    }

    /// A body that was sent to its end, once more.
    pub(crate) fn again(kept: &Arc<Kept>) -> Option<Self> {
        let again = Again::of(kept)?;
        Some(Self { load: Load::Again(Box::new(again)), departure: kept.departure().cloned() })
    }

    /// A connection takes the request that it belongs to; or it has come back, and was never sent.
    pub(crate) fn leaves(&self, has_left: bool) {
        if let Some(departure) = &self.departure {
            departure.leaves(has_left);
        }
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Self { load, departure } = &mut *self;
        let reading = match load {
            Load::None => return Poll::Ready(None),
            Load::Again(again) => return Poll::Ready(again.next().map(Ok)),
            Load::Reading(reading) => &mut **reading,
        };
        let frame = reading.poll_frame(context, departure.as_deref());
        if reading.kept.is_some() {
            reading.copy(&frame);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        match &self.load {
            Load::None => true,
            Load::Reading(reading) => reading.is_end_stream(),
            Load::Again(again) => again.is_end(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.load {
            Load::None => SizeHint::with_exact(0),
            Load::Reading(reading) => match &reading.ahead {
                Some(ahead) => ahead.size_hint(&reading.body),
                None => reading.body.size_hint(),
            },
            Load::Again(again) => again.size_hint(),
        }
    }
}

impl Reading {
    fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
        departure: Option<&Departure>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let reading = self;
        if reading.is_cut_off {
            return Poll::Ready(Some(Err(BodyError::CreditExhausted)));
        }
        if let Some(ahead) = &mut reading.ahead {
            let mut frame = ahead.next();
            if frame.is_some() || ahead.is_whole() {
                if let Some(trailers) = frame.as_mut().and_then(Frame::trailers_mut) {
                    clean_trailers(trailers, &reading.route.config.headers);
                }
                if let (Some(departure), Some(data)) = (departure, frame.as_ref().and_then(Frame::data_ref))
                    && !departure.passes(data.len() as u64)
                {
                    return reading.cut_off(context);
                }
                reading.upload.note(if ahead.is_end(&reading.body) {
                    UploadState::Done
                } else {
                    UploadState::Flowing
                });
                return Poll::Ready(frame.map(Ok));
            }
            reading.ahead = None;
        }
        let polled = Pin::new(&mut reading.body).poll_frame(context);
        let (state, frame) = match polled {
            Poll::Pending if reading.poll_silence(context).is_ready() => {
                (UploadState::Lost, Poll::Ready(Some(Err(BodyError::Stalled))))
            }
            Poll::Pending => (UploadState::Awaited, Poll::Pending),
            // hyper takes it for an end when a client gives a stream up without a reason.
            Poll::Ready(None) if reading.is_http2 && !reading.body.is_end_stream() => {
                (UploadState::Lost, Poll::Ready(Some(Err(BodyError::GivenUp))))
            }
            Poll::Ready(None) => (UploadState::Done, Poll::Ready(None)),
            Poll::Ready(Some(Err(error))) => {
                (UploadState::Lost, Poll::Ready(Some(Err(BodyError::Broken(error)))))
            }
            Poll::Ready(Some(Ok(mut frame))) => {
                if let Some(trailers) = frame.trailers_mut() {
                    clean_trailers(trailers, &reading.route.config.headers);
                }
                let length = frame.data_ref().map_or(0, |data| u64::try_from(data.len()).unwrap_or(u64::MAX));
                match reading.left.checked_sub(length) {
                    None => (UploadState::TooLarge, Poll::Ready(Some(Err(BodyError::TooLarge)))),
                    Some(_) if departure.is_some_and(|departure| !departure.passes(length)) => {
                        return reading.cut_off(context);
                    }
                    Some(left) => {
                        reading.left = left;
                        let is_done = reading.body.is_end_stream();
                        let state = if is_done { UploadState::Done } else { UploadState::Flowing };
                        (state, Poll::Ready(Some(Ok(frame))))
                    }
                }
            }
        };
        reading.upload.note(state);
        frame
    }

    fn is_end_stream(&self) -> bool {
        match &self.ahead {
            Some(ahead) => ahead.is_end(&self.body),
            None => self.body.is_end_stream(),
        }
    }

    /// Puts what is sent aside, for as long as somebody may ask for it again and it isn't too much.
    fn copy(&mut self, frame: &Poll<Option<Result<Frame<Bytes>, BodyError>>>) {
        let is_end = self.is_end_stream();
        let goes_on = match (&self.kept, frame) {
            (_, Poll::Pending) => true,
            (Some(kept), Poll::Ready(Some(Ok(frame)))) if Arc::strong_count(kept) > 1 => {
                kept.add(frame, is_end)
            }
            (Some(kept), Poll::Ready(None)) => kept.end(),
            _ => false,
        };
        if !goes_on {
            self.kept = None;
        }
    }
}
