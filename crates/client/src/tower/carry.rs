//! A request that is sent by a tower service, as often as a purchase takes.

use std::future::poll_fn;
use std::mem;
use std::sync::Arc;

use http::{Request, Response, header, request::Parts};
use http_body::Body;
use parking_lot::Mutex;
use tower_service::Service;

use super::grpc;
use super::replay::{BodyFactory, Replay, Tape};
use crate::engine::{Courier, Head, Target};
use crate::error::{BoxError, Fault};
use crate::{Origin, Pass};

/// The service, and the request with all that it takes to send it again.
pub(super) struct ByService<S, B> {
    service: S,
    /// It has said so, and nothing was sent since.
    is_ready: bool,
    parts: Parts,
    source: Source<B>,
    origin: Origin,
    is_grpc: bool,
}

/// Where the body of each attempt comes from.
pub(super) enum Source<B> {
    /// There is none.
    Nothing,
    /// The caller makes one for each.
    Factory(BodyFactory<B>),
    /// The caller's only one, kept while it is sent.
    Tape(Arc<Mutex<Tape<B>>>),
}

impl<B: Body> Source<B> {
    pub(super) fn new(body: B, factory: Option<BodyFactory<B>>, most: usize) -> Self {
        match factory {
            Some(factory) => Self::Factory(factory),
            None if body.is_end_stream() => Self::Nothing,
            None => Self::Tape(Arc::new(Mutex::new(Tape::new(body, most)))),
        }
    }

    fn body(&self) -> Replay<B> {
        match self {
            Self::Nothing => Replay::nothing(),
            Self::Factory(factory) => Replay::fresh(factory.make()),
            Self::Tape(tape) => Replay::from_start(tape),
        }
    }
}

impl<S, B> ByService<S, B> {
    /// `service` is ready.
    pub(super) fn new(service: S, parts: Parts, source: Source<B>, target: &Target) -> Self {
        let is_grpc = grpc::is_grpc(&parts.headers);
        Self { service, is_ready: true, parts, source, origin: target.origin.clone(), is_grpc }
    }
}

impl<S, B, R> Courier for ByService<S, B>
where
    S: Service<Request<Replay<B>>, Response = Response<R>> + Send,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: Body + Send + 'static,
    B::Error: Into<BoxError>,
    R: Send,
{
    type Answer = Response<R>;

    async fn send(&mut self, pass: Option<&Pass>) -> Result<Response<R>, Fault> {
        let failed = |error: S::Error| Fault::Service(error.into());
        // A place in the service beneath is taken when it is needed, and never held while somebody pays.
        if !mem::replace(&mut self.is_ready, false) {
            poll_fn(|cx| self.service.poll_ready(cx)).await.map_err(failed)?;
        }
        let mut request = Request::from_parts(self.parts.clone(), self.source.body());
        if let Some(value) = pass.and_then(Pass::header_value) {
            request.headers_mut().insert(header::AUTHORIZATION, value);
        }
        self.service.call(request).await.map_err(failed)
    }

    async fn can_send_again(&mut self) -> bool {
        match &self.source {
            Source::Nothing | Source::Factory(_) => true,
            Source::Tape(tape) => Tape::finish(Arc::clone(tape)).await,
        }
    }

    fn head<'a>(&self, answer: &'a Response<R>) -> Head<'a> {
        let (status, headers) = (answer.status(), answer.headers());
        let status = if self.is_grpc { grpc::status(status, headers) } else { status };
        Head { status, origin: self.origin.clone(), headers }
    }
}
