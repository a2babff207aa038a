//! Who takes a request to its server: the seam between buying and whatever sends requests.
//!
//! A purchase sends the same request more than once, each time with another credential or none, and looks at the heads
//! of the answers. How requests travel, and what an answer's body is, is nothing to it.

use std::future::Future;

use bytes::Bytes;
use farebox_protocol::{OfferedChallenge, Timestamp, http_auth};
use http::{HeaderMap, Method, StatusCode, header};
use reqwest::Url;

use super::{Arrived, Engine, Fault, FetchError, Shared, TOLD_BYTES_MAX, buy::Buying};
use crate::http::{Hop, Http, beginning};
use crate::purchase::{Answer, Money, Purchase};
use crate::shortfall::{Short, is_for_others};
use crate::{Origin, Pass};

/// What is asked for, as far as buying looks at it.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// Who is asked.
    pub(crate) origin: Origin,
    /// The method.
    pub(crate) method: String,
    /// The path as it is sent, without the query.
    pub(crate) path: String,
    /// The caller has put an authorization of their own into the request.
    pub(crate) has_authorization: bool,
}

impl Target {
    /// What a request asks for; `None` if its address isn't HTTP.
    pub(crate) fn of(address: &str, method: &Method, headers: &HeaderMap) -> Option<Self> {
        Self::at(&Url::parse(address).ok()?, method, headers)
    }

    /// The same for an address that has been read.
    pub(crate) fn at(url: &Url, method: &Method, headers: &HeaderMap) -> Option<Self> {
        Some(Self {
            origin: Origin::of(url)?,
            method: method.to_string(),
            has_authorization: headers.contains_key(header::AUTHORIZATION)
                || !url.username().is_empty()
                || url.password().is_some(),
            path: url.path().to_owned(),
        })
    }
}

/// The head of an answer, as far as it concerns money.
#[derive(Clone, Debug)]
pub(crate) struct Head<'a> {
    pub(crate) status: StatusCode,
    /// Who answered.
    pub(crate) origin: Origin,
    pub(crate) headers: &'a HeaderMap,
}

/// One request, which can be sent to its server more than once.
pub(crate) trait Courier: Send {
    /// What comes back. Its body has not been read.
    type Answer: Send;

    /// Sends the request with this credential, or without one.
    ///
    /// The future may be dropped at any point.
    fn send(&mut self, pass: Option<&Pass>) -> impl Future<Output = Result<Self::Answer, Fault>> + Send;

    /// Whether it can be sent again, once and as often as it takes. Asked before anything is paid for it.
    fn can_send_again(&mut self) -> impl Future<Output = bool> + Send {
        std::future::ready(true)
    }

    /// The beginning of an answer's body, for which it is given up. Nothing where that can't be read.
    fn beginning(&mut self, answer: Self::Answer) -> impl Future<Output = Bytes> + Send {
        drop(answer);
        std::future::ready(Bytes::new())
    }

    /// The head of an answer to it.
    fn head<'a>(&self, answer: &'a Self::Answer) -> Head<'a>;
}

/// A hop by way of reqwest.
pub(super) struct ByHttp<'a> {
    pub(super) http: &'a Http,
    pub(super) hop: &'a Hop,
}

impl Courier for ByHttp<'_> {
    type Answer = reqwest::Response;

    async fn send(&mut self, pass: Option<&Pass>) -> Result<reqwest::Response, Fault> {
        Ok(self.http.send(self.hop, pass).await?)
    }

    async fn can_send_again(&mut self) -> bool {
        self.hop.body.is_there().await
    }

    async fn beginning(&mut self, response: reqwest::Response) -> Bytes {
        beginning(response, TOLD_BYTES_MAX).await
    }

    fn head<'a>(&self, response: &'a reqwest::Response) -> Head<'a> {
        Head::of(response, &self.hop.origin)
    }
}

impl<'a> Head<'a> {
    /// The head of an answer by reqwest to a request that was sent to `asked`.
    pub(crate) fn of(response: &'a reqwest::Response, asked: &Origin) -> Self {
        Self {
            status: response.status(),
            origin: Origin::of(response.url()).unwrap_or_else(|| asked.clone()),
            headers: response.headers(),
        }
    }

    /// What it says about money.
    pub(super) fn answer(self, now: Timestamp) -> Answer {
        let values =
            || self.headers.get_all(header::WWW_AUTHENTICATE).iter().map(header::HeaderValue::as_bytes);
        let names = |any_of: &[&str]| {
            values().filter_map(|value| std::str::from_utf8(value).ok()).any(|value| {
                http_auth::parse_challenges(value)
                    .iter()
                    .any(|challenge| any_of.iter().any(|name| challenge.scheme.eq_ignore_ascii_case(name)))
            })
        };
        Answer {
            status: self.status,
            offered: OfferedChallenge::read_all(values()),
            origin: self.origin,
            names_scheme: names(&["L402", "LSAT"]),
            names_other: names(&["Payment"]),
            is_too_little: Short::of(self.headers).is_some() || is_for_others(self.headers),
            now,
        }
    }
}

impl Engine {
    /// One request that somebody else sends, with the purchase that it may take.
    pub(crate) async fn carry<C: Courier>(
        &self,
        target: &Target,
        courier: &mut C,
    ) -> Result<Arrived<C::Answer>, FetchError> {
        self.0.hop(target, courier, false).await
    }
}

impl Shared {
    /// One request to one server, with the purchase that it may take. `has_bought`: something was bought on the way here.
    pub(super) async fn hop<C: Courier>(
        &self,
        target: &Target,
        courier: &mut C,
        has_bought: bool,
    ) -> Result<Arrived<C::Answer>, FetchError> {
        let free = |error| FetchError::new(error, Money::None);
        let candidates = self.candidates(target).await.map_err(free)?;
        let wallet = self.outgoing.as_ref().map(super::Outgoing::facts);
        let rules = self.rules(target, has_bought, wallet).await.map_err(free)?;
        let (purchase, first) = Purchase::new(target.origin.clone(), rules, candidates);
        let mut buying = Buying::new(self, target, courier, purchase);
        let arrived = buying.run(first).await;
        buying.end().await;
        arrived.map_err(|fault| FetchError::new(fault, buying.money()).told(buying.told()))
    }
}
