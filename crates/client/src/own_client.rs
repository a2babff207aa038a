//! Paying with a [`reqwest`] client of the caller's own, with its proxies, certificates, times and headers.
//!
//! The client must not follow redirects (`redirect::Policy::none()`), and can't be asked whether it does. So an answer by
//! another origin than was asked is never paid for, and one to a request with a credential is an error. reqwest itself takes the
//! credential out of a request that it sends on to another host or port.

use std::future::Future;

use bytes::Bytes;
use http::header;
use reqwest::{Client, Request, RequestBuilder, Response};

use crate::engine::{Arrived, Courier, Head, TOLD_BYTES_MAX, Target};
use crate::error::Fault;
use crate::http::beginning;
use crate::{Engine, FetchError, Fetched, Money, Origin, Pass, RequestError, Stop};

/// What a [`RequestBuilder`] can do besides being sent.
///
/// ```no_run
/// use farebox_client::{Engine, EngineConfig, PayExt as _};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let engine = Engine::open(EngineConfig::new("journal.sqlite"))?;
/// let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build()?;
///
/// let fetched = client.get("https://api.example.com/weather").send_paid(&engine).await?;
/// if let Some(receipt) = &fetched.purchase {
///     println!("paid {} to {}", receipt.price, receipt.origin);
/// }
/// println!("{}", fetched.response.text().await?);
/// # Ok(()) }
/// ```
pub trait PayExt {
    /// Sends the request, and pays for its answer by the rules of `engine` if it must.
    ///
    /// A body that is a stream can be sent only once: it buys nothing, and is let in by credentials that are held already.
    fn send_paid(self, engine: &Engine) -> impl Future<Output = Result<Fetched, FetchError>> + Send;
}

impl PayExt for RequestBuilder {
    async fn send_paid(self, engine: &Engine) -> Result<Fetched, FetchError> {
        let (client, request) = self.build_split();
        let free = |error: RequestError| FetchError::new(error, Money::None);
        let request = request.map_err(|source| free(RequestError::Unfinished(source.without_url())))?;
        let target = Target::at(request.url(), request.method(), request.headers());
        let target = target.ok_or_else(|| free(RequestError::Address))?;
        let mut courier = ByClient { client, request: Some(request), origin: target.origin.clone() };
        let arrived = engine.carry(&target, &mut courier).await?;
        let Arrived { response, purchase, credential, shortfalls } = arrived;
        Ok(Fetched { response, purchase, credential, shown: credential.into_iter().collect(), shortfalls })
    }
}

/// The caller's client and request.
struct ByClient {
    client: Client,
    /// Gone when it could be sent only once, and was.
    request: Option<Request>,
    origin: Origin,
}

impl Courier for ByClient {
    type Answer = Response;

    async fn send(&mut self, pass: Option<&Pass>) -> Result<Response, Fault> {
        let again = self.request.as_ref().and_then(Request::try_clone);
        let Some(mut request) = std::mem::replace(&mut self.request, again) else {
            return Err(Stop::Confused.into());
        };
        let shown = pass.and_then(Pass::header_value);
        let is_shown = shown.is_some();
        if let Some(value) = shown {
            request.headers_mut().insert(header::AUTHORIZATION, value);
        }
        let network = |source: reqwest::Error| RequestError::Network {
            origin: self.origin.clone(),
            source: source.without_url(),
        };
        let response = self.client.execute(request).await.map_err(network)?;
        match Origin::of(response.url()) {
            Some(answered) if is_shown && answered != self.origin => {
                Err(RequestError::Followed { asked: self.origin.clone(), answered }.into())
            }
            _ => Ok(response),
        }
    }

    async fn can_send_again(&mut self) -> bool {
        self.request.is_some()
    }

    async fn beginning(&mut self, response: Response) -> Bytes {
        beginning(response, TOLD_BYTES_MAX).await
    }

    fn head<'a>(&self, response: &'a Response) -> Head<'a> {
        Head::of(response, &self.origin)
    }
}
