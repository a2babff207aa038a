//! A [`tower`](https://docs.rs/tower) layer that pays: over any client that is a service of HTTP requests, gRPC channels among
//! them.
//!
//! [`Pay`] sends the request through the service beneath. An answer that asks for money is paid for by the rules of the
//! [`Engine`], and the request sent once more with the credential. What was bought is told in the answer's extensions
//! ([`Paid`]). Errors are [`FetchError`]s, which say what became of the money; one of the service beneath is in
//! [`Fault::Service`].
//!
//! ```no_run
//! use bytes::Bytes;
//! use farebox_client::{Engine, EngineConfig, tower::{Paid, PayLayer}};
//! use http_body_util::{BodyExt, Empty};
//! use hyper_util::{client::legacy::Client, rt::TokioExecutor};
//! use tower::{Layer as _, ServiceExt as _};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let engine = Engine::open(EngineConfig::new("journal.sqlite"))?;
//! let client = Client::builder(TokioExecutor::new()).build_http();
//! let client = PayLayer::new(engine).layer(client);
//!
//! let request = http::Request::get("http://127.0.0.1:8080/weather").body(Empty::<Bytes>::new())?;
//! let answer = client.oneshot(request).await?;
//! if let Some(paid) = answer.extensions().get::<Paid>().and_then(|paid| paid.receipt.as_ref()) {
//!     println!("paid {} for it", paid.price);
//! }
//! println!("{:?}", answer.into_body().collect().await?.to_bytes());
//! # Ok(()) }
//! ```
//!
//! # What it asks of the service beneath
//!
//! - It takes [`Replay`] bodies, which remember what has been sent. A service with a body type of its own gets them by
//!   `map_request`, as the gRPC example does.
//! - It must not follow redirects: a credential is for the origin that sold it, and nobody here would notice. Redirects are the
//!   caller's business, above this layer.
//! - It may be sent to more than once for each call; before each time it is asked whether it is ready.
//!
//! # Which bodies can be paid for
//!
//! A purchase sends the request twice, so the body must be there a second time. Up to [`PayLayer::body_max`] bytes of it are kept
//! while it is sent the first time, and nothing is ever cut. A longer body, or one that has not come to its end within
//! a moment after the answer asked for money, buys nothing: that is [`Refusal::BodyGone`](crate::Refusal::BodyGone). Credentials that are held
//! already are shown with the first request, so what was bought by a small request opens the large ones, too. Who can make the
//! body anew puts a [`BodyFactory`] into the request's extensions.
//!
//! # gRPC
//!
//! A request whose content type is `application/grpc` is answered in gRPC's way: a status in the head of an answer without a
//! body, with the challenge beside it. That is understood, and the credential travels as `authorization`. Streams of requests
//! can't be sent twice: buy by a unary call first, or with `farebox get`. A channel knows the origin that its requests lack:
//! [`PayLayer::for_origin`].

use std::fmt;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll};

use farebox_protocol::PaymentHash;
use http::{Request, Response};
use http_body::Body;

use crate::engine::Target;
use crate::error::{BoxError, Fault};
use crate::{Engine, FetchError, Money, Origin, Receipt, RequestError};

mod carry;
mod grpc;
mod replay;

use carry::{ByService, Source};
pub use replay::{BodyFactory, Replay, ReplayError};

/// So much of a body is kept unless said otherwise.
const BODY_MAX: usize = 64 * 1024;

/// Puts [`Pay`] around services.
#[derive(Clone, Debug)]
pub struct PayLayer {
    engine: Engine,
    origin: Option<Origin>,
    body_max: usize,
}

/// A service that pays for what it asks the service beneath.
#[derive(Clone, Debug)]
pub struct Pay<S> {
    service: S,
    layer: PayLayer,
}

/// What an answer has cost, in its extensions. An answer without it is one to a request without a credential.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Paid {
    /// What this very request has bought, if it has.
    pub receipt: Option<Receipt>,
    /// The payment under whose credential the answer was given, made now or earlier.
    pub credential: PaymentHash,
}

/// The answer that is to come. Dropped, it stops waiting; a payment that has begun goes on, and is kept for the next request.
pub struct Paying<R>(Pin<Box<dyn Future<Output = Result<Response<R>, FetchError>> + Send>>);

impl PayLayer {
    /// Pays by the rules of `engine`. Requests say in their addresses whom they ask.
    pub fn new(engine: Engine) -> Self {
        Self { engine, origin: None, body_max: BODY_MAX }
    }

    /// The same for a service that is connected to `origin` and nobody else: requests may leave it out.
    ///
    /// A request that names another origin is refused.
    pub fn for_origin(engine: Engine, origin: Origin) -> Self {
        Self { origin: Some(origin), ..Self::new(engine) }
    }

    /// How many bytes of a request's body are kept, at most, so that it can be sent again. 64 KiB unless set.
    #[must_use]
    pub fn body_max(mut self, bytes: usize) -> Self {
        self.body_max = bytes;
        self
    }

    /// Whom a request asks, and for what.
    fn target(&self, parts: &http::request::Parts) -> Result<Target, RequestError> {
        let uri = &parts.uri;
        let address = match (&self.origin, uri.scheme()) {
            (_, Some(_)) => uri.to_string(),
            (Some(origin), None) => {
                format!("{origin}{}", uri.path_and_query().map_or("/", |path| path.as_str()))
            }
            (None, None) => return Err(RequestError::Address),
        };
        let target = Target::of(&address, &parts.method, &parts.headers).ok_or(RequestError::Address)?;
        match &self.origin {
            Some(origin) if *origin != target.origin => {
                Err(RequestError::OtherServer { connected: origin.clone(), asked: target.origin })
            }
            _ => Ok(target),
        }
    }
}

impl<S> tower_layer::Layer<S> for PayLayer {
    type Service = Pay<S>;

    fn layer(&self, service: S) -> Pay<S> {
        Pay { service, layer: self.clone() }
    }
}

impl<S, B, R> tower_service::Service<Request<B>> for Pay<S>
where
    S: tower_service::Service<Request<Replay<B>>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: Body + Send + 'static,
    B::Error: Into<BoxError>,
    R: Send + 'static,
{
    type Response = Response<R>;
    type Error = FetchError;
    type Future = Paying<R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), FetchError>> {
        let failed = |error: S::Error| FetchError::new(Fault::Service(error.into()), Money::None);
        self.service.poll_ready(cx).map_err(failed)
    }

    fn call(&mut self, request: Request<B>) -> Paying<R> {
        // The one that said it was ready is used, and its clone waits to be asked.
        let next = self.service.clone();
        let ready = mem::replace(&mut self.service, next);
        let (mut parts, body) = request.into_parts();
        let target = match self.layer.target(&parts) {
            Ok(target) => target,
            Err(error) => {
                let error = FetchError::new(error, Money::None);
                return Paying(Box::pin(std::future::ready(Err(error))));
            }
        };
        let factory = parts.extensions.remove::<BodyFactory<B>>();
        let source = Source::new(body, factory, self.layer.body_max);
        let engine = self.layer.engine.clone();
        Paying(Box::pin(async move {
            let mut courier = ByService::new(ready, parts, source, &target);
            let arrived = engine.carry(&target, &mut courier).await?;
            let mut answer = arrived.response;
            if let Some(credential) = arrived.credential {
                answer.extensions_mut().insert(Paid { receipt: arrived.purchase, credential });
            }
            Ok(answer)
        }))
    }
}

impl<R> Future for Paying<R> {
    type Output = Result<Response<R>, FetchError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl<R> fmt::Debug for Paying<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Paying").finish_non_exhaustive()
    }
}
