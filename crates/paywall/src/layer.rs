//! The paywall as a tower layer, to put in front of an axum app or any other HTTP service.
//!
//! The layer translates and does nothing else: request to [`Request`], [`Admission`] to response, and what becomes of a
//! response that is counted to its [`Bill`]: whole at the end of its body, broken where that fails, failed with a 5xx or
//! where the inner service fails, abandoned where it is dropped. So put a time-out *behind* the layer: one before it drops
//! what it cuts off, and looks like a buyer who left. It can't route again,
//! so a path that isn't in normal form already is refused (400) rather than decided on in one form and served in
//! another. The credential is taken off before the inner service sees the request.
//!
//! Where the bytes of a request have a price it must say how many there are (411 otherwise), and all of them are set aside
//! before the inner service hears of it: so nothing has to be cut off in the middle of an upload. An answer isn't cut off
//! either where the buyer's credit ends, since only the inner service could break off its own body: what it costs beyond
//! what is left is written off. Where answers are long, choose the reserve accordingly, or put the gateway in front.
//! Bodies of requests are not read: an inner service whose cost is its usage has to tell that unasked, in streams too.
//!
//! Free paths and tokens bound to a path mean the path that the layer sees: inside axum's `nest`, that is the rest.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderValue, Method, Response, Uri, header, request::Parts};
use http_body::Body as HttpBody;
use http_body_util::{Either, Full};
use tower_layer::Layer;
use tower_service::Service as TowerService;

use crate::{
    Admission, Answer, Bill, Code, Pass, Paywall, Request, Service, forward, normalise,
    path::same_but_for_hex_case, price::Ending, respond, without_choice,
};

mod billed;

pub use billed::Billed;

/// The body of what the layer answers: the inner service's, or the paywall's own.
pub type Body<B> = Either<Billed<B>, Full<Bytes>>;

/// Finds the client's address in a request. See [`PaywallLayer::client`].
pub type FindClient = Arc<dyn Fn(&Parts) -> Option<IpAddr> + Send + Sync>;

/// Asks for payment before the inner service is called.
#[derive(Clone)]
pub struct PaywallLayer {
    paywall: Arc<Paywall>,
    service: Arc<Service>,
    client: FindClient,
}

/// A service behind a paywall.
#[derive(Clone)]
pub struct Paid<S> {
    inner: S,
    layer: PaywallLayer,
}

impl PaywallLayer {
    /// Sells what is behind it as `service`.
    pub fn new(paywall: Arc<Paywall>, service: Service) -> Self {
        Self { paywall, service: Arc::new(service), client: Arc::new(|_| None) }
    }

    /// Says where to find the client's address, for minting budgets, rate limits, freebies and tokens bound to an address. With axum:
    /// `|parts| parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip())`. Never take it from a header
    /// that a client can write. Without it, all clients share one budget, and the freebies of one network, and no token bound to an address is accepted.
    #[must_use]
    pub fn client(mut self, find: impl Fn(&Parts) -> Option<IpAddr> + Send + Sync + 'static) -> Self {
        self.client = Arc::new(find);
        self
    }

    /// `length` is that of the request's body, where it is known.
    async fn admit(&self, parts: &Parts, length: Option<u64>) -> Result<(Pass, Option<Box<Bill>>), Answer> {
        let grpc = is_grpc(parts);
        let raw = parts.uri.path();
        let path = match normalise(raw) {
            Ok(path) if same_but_for_hex_case(&path, raw) => path,
            Ok(_) | Err(_) => return Err(respond::path_refused(&parts.method, &parts.headers, grpc)),
        };
        if is_preflight(parts) {
            // Where nothing has to be paid, it is the inner service's to answer; no limit counts it.
            let is_free = self.service.is_free(&path);
            let pass = is_free.then(|| Pass::preflight(self.service.name.clone()));
            return pass.map(|pass| (pass, None)).ok_or_else(|| respond::preflight(&parts.headers));
        }
        let client = (self.client)(parts).unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let request = Request {
            service: &self.service,
            method: &parts.method,
            path: &path,
            client,
            query: parts.uri.query(),
            headers: &parts.headers,
            grpc,
        };
        match self.paywall.admit(&request).await {
            Admission::Pass(_, Some(bill)) if length.is_none() && bill.counts_request() => {
                Err(respond::refused(&request, Code::LengthRequired))
            }
            Admission::Pass(pass, mut bill) => {
                if let (Some(bill), Some(length)) = (&mut bill, length) {
                    // Said by the body alone, as in one process, it has not been set aside.
                    if bill.counts_request() && !bill.keeps_up(length) {
                        return Err(respond::refused(&request, Code::UnitsShort));
                    }
                    bill.request(usize::try_from(length).unwrap_or(usize::MAX));
                }
                Ok((pass, bill))
            }
            Admission::Answer(answer) => Err(answer),
        }
    }
}

impl<S> Layer<S> for PaywallLayer {
    type Service = Paid<S>;

    fn layer(&self, inner: S) -> Paid<S> {
        Paid { inner, layer: self.clone() }
    }
}

impl<S, In, Out> TowerService<http::Request<In>> for Paid<S>
where
    S: TowerService<http::Request<In>, Response = Response<Out>> + Clone + Send + 'static,
    S::Future: Send,
    In: HttpBody + Send + 'static,
    Out: HttpBody<Data = Bytes>,
{
    type Response = Response<Body<Out>>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<In>) -> Self::Future {
        // The clone takes the place of the service that was polled ready, which is the one to be called.
        let spare = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, spare);
        let layer = self.layer.clone();
        Box::pin(async move {
            let (mut parts, body) = request.into_parts();
            match layer.admit(&parts, body.size_hint().exact()).await {
                Ok((pass, mut bill)) => {
                    forward::introduce(&mut parts.headers, &pass);
                    forget_choice(&mut parts.uri);
                    let is_head = parts.method == Method::HEAD;
                    if let Some(bill) = &mut bill {
                        if bill.is_metered_by_usage() {
                            let identity = HeaderValue::from_static("identity");
                            parts.headers.insert(header::ACCEPT_ENCODING, identity);
                        }
                        bill.sent();
                    }
                    let freebie = pass.freebie.clone();
                    // For handlers in the same process, which needn't parse headers.
                    parts.extensions.insert(pass);
                    let mut answered = inner.call(http::Request::from_parts(parts, body)).await;
                    if let Some(freebie) = freebie {
                        match &mut answered {
                            Ok(response) if !response.status().is_server_error() => {
                                respond::tell_freebie(response.headers_mut());
                            }
                            Ok(_) | Err(_) => freebie.give_back(),
                        }
                    }
                    match answered {
                        Ok(response) => {
                            let mut response = billed::begin(response, bill, is_head);
                            layer.service.costs.hide(response.headers_mut());
                            Ok(response.map(Either::Left))
                        }
                        Err(error) => {
                            if let Some(bill) = bill {
                                bill.end(Ending::Failed);
                            }
                            Err(error)
                        }
                    }
                }
                Err(answer) => Ok(answer.into_response().map(|body| Either::Right(Full::new(body)))),
            }
        })
    }
}

/// Takes the choice of an offer out of the query, as the credential was taken out of the headers.
fn forget_choice(uri: &mut Uri) {
    let Some(target) = uri.path_and_query().and_then(without_choice) else { return };
    let mut parts = std::mem::take(uri).into_parts();
    parts.path_and_query = Some(target);
    *uri = Uri::from_parts(parts).expect("the target that it had, less one parameter");
}

fn is_grpc(parts: &Parts) -> bool {
    let kind = parts.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    kind.is_some_and(|kind| {
        kind.get(..16).is_some_and(|start| start.eq_ignore_ascii_case(b"application/grpc"))
    })
}

fn is_preflight(parts: &Parts) -> bool {
    parts.method == Method::OPTIONS && parts.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

#[cfg(test)]
mod tests;
