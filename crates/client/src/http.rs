//! Requests and redirects. What is sent where is decided here; money is not.
//!
//! Redirects and cookies of the HTTP library are off: each hop is a request of its own, judged by its own origin, so
//! that a credential never reaches a server that didn't sell it. Bodies of requests are there as often as they are needed
//! ([`RequestBody`]), because a purchase sends the request twice; bodies of responses are streamed and never read here.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use farebox_lightning::lnaddress::public::{Names, SystemNames};
use http::{HeaderMap, Method, StatusCode, header};
use reqwest::{ResponseBuilderExt as _, Url};
use rustls::pki_types::CertificateDer;

use crate::body::ReadError;
use crate::engine::Target;
use crate::error::BoxError;
use crate::{Origin, Pass, RequestBody};

mod idle;
mod reach;

use idle::Coming;
pub(crate) use idle::Progress;
pub use idle::Silent;
use reach::Finder;
pub use reach::Reach;

/// How to reach servers.
#[derive(Clone)]
pub struct HttpConfig {
    /// How long a connection may take to stand.
    pub connect_timeout: Duration,
    /// How long a server may be silent: neither take more of the request's body nor send more of its answer. There is no limit
    /// on the whole: uploads and streams last.
    pub idle_timeout: Duration,
    /// The way out.
    pub proxy: Proxy,
    /// Certificates to trust besides the public ones.
    pub extra_roots: Vec<CertificateDer<'static>>,
    /// The `User-Agent`, unless the request brings one.
    pub user_agent: String,
    /// Which servers may be called, redirects included.
    pub reach: Reach,
    /// Who knows where a host is.
    pub names: Arc<dyn Names>,
}

/// The way out to other servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proxy {
    /// As `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` say.
    Environment,
    /// Straight.
    None,
    /// Through this one: `http://…` or `socks5h://…`.
    Through(String),
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(300),
            proxy: Proxy::Environment,
            extra_roots: Vec::new(),
            user_agent: concat!("farebox/", env!("CARGO_PKG_VERSION")).to_owned(),
            reach: Reach::Anywhere,
            names: Arc::new(SystemNames),
        }
    }
}

impl std::fmt::Debug for HttpConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpConfig")
            .field("proxy", &self.proxy)
            .field("reach", &self.reach)
            .field("connect_timeout", &self.connect_timeout)
            .field("idle_timeout", &self.idle_timeout)
            .finish_non_exhaustive()
    }
}

/// Why a request can't be sent as it is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The HTTP client can't be built from its configuration.
    #[error("the HTTP client can't be set up; look at the proxy and the certificates")]
    Setup(#[source] reqwest::Error),
    /// One of the certificates to trust is none.
    #[error("an extra root certificate can't be read: {0}")]
    Certificate(String),
    /// Not HTTP.
    #[error("the address is not an http or https URL; write it like `https://example.com/path`")]
    Address,
    /// The server can't be reached, or broke off before its answer.
    #[error("no answer from `{origin}`")]
    Network {
        /// Who was asked.
        origin: Origin,
        /// What happened, without the address.
        #[source]
        source: reqwest::Error,
    },
    /// The server is there, and silent.
    #[error("no answer from `{origin}`")]
    Silent {
        /// Who was asked.
        origin: Origin,
        /// At what, and for how long.
        #[source]
        source: Silent,
    },
    /// What answers there is not TLS.
    #[error("`{origin}` does not speak TLS; is it http? write `http://{}`", origin.address())]
    NotTls {
        /// Who was asked.
        origin: Origin,
        /// What happened, without the address.
        #[source]
        source: reqwest::Error,
    },
    /// Not everybody's, and the engine may only call what is.
    #[error(
        "`{0}` is not called: it has no public address, or may have none, and only public servers are called, unless the policy says `private-targets: allow`"
    )]
    PrivateTarget(Origin),
    /// The file that was to be sent.
    #[error(
        "`{path}` can't be sent as the body of the request; leave it as it is until the request is answered"
    )]
    Body {
        /// Which file.
        path: String,
        /// What is wrong with it.
        #[source]
        source: BoxError,
    },
    /// A request that a client of the caller's own can't build.
    #[error("the request can't be built; look at its address, headers and body")]
    Unfinished(#[source] reqwest::Error),
    /// A client of the caller's own has followed a redirect with a credential.
    #[error(
        "`{asked}` led on to `{answered}`, and the client followed with a credential; build it with \
         `redirect::Policy::none()`"
    )]
    Followed {
        /// Who was asked.
        asked: Origin,
        /// Who answered.
        answered: Origin,
    },
    /// A service that is connected to one server was to ask another.
    #[error("the request is for `{asked}`, and this service is connected to `{connected}`")]
    OtherServer {
        /// The server at the other end.
        connected: Origin,
        /// The server in the request's address.
        asked: Origin,
    },
    /// The redirect leads nowhere.
    #[error("`{0}` redirects to an address that can't be followed")]
    RedirectUnreadable(Origin),
    /// A credential had been shown over TLS.
    #[error("`{0}` answers a credential with a redirect to plain http; it is not followed")]
    Downgrade(Origin),
    /// Round and round.
    #[error("more than {0} redirects")]
    TooManyRedirects(usize),
}

impl RequestError {
    /// The stable name of this error.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Setup(_) | Self::Certificate(_) => "http_setup",
            Self::Address | Self::OtherServer { .. } | Self::Unfinished(_) => "address",
            Self::Network { .. } | Self::Silent { .. } | Self::NotTls { .. } => "network",
            Self::PrivateTarget(_) => "private_target",
            Self::Body { .. } => "body",
            Self::Followed { .. }
            | Self::RedirectUnreadable(_)
            | Self::Downgrade(_)
            | Self::TooManyRedirects(_) => "redirect",
        }
    }
}

/// The HTTP library, set up once.
pub(crate) struct Http {
    client: reqwest::Client,
    /// For this machine itself, past any proxy of the environment: to a proxy elsewhere, plain HTTP to loopback would be
    /// plain HTTP to a stranger.
    direct: reqwest::Client,
    finder: Arc<Finder>,
    idle_timeout: Duration,
    goes_by_tor: bool,
}

/// One request to one server; a redirect makes another.
#[derive(Clone, Debug)]
pub(crate) struct Hop {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) origin: Origin,
    headers: HeaderMap,
    pub(crate) body: RequestBody,
}

impl Http {
    pub(crate) fn new(config: &HttpConfig) -> Result<Self, RequestError> {
        let mut roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        for certificate in &config.extra_roots {
            roots.add(certificate.clone()).map_err(|error| RequestError::Certificate(error.to_string()))?;
        }
        // The provider is named, not taken from the process: a library must not depend on what its host installed.
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring has the suites of both TLS versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];

        let finder = Arc::new(Finder::new(config.reach, Arc::clone(&config.names), &config.proxy));
        let builder = || {
            reqwest::Client::builder()
                .dns_resolver(Arc::clone(&finder))
                .use_preconfigured_tls(tls.clone())
                .redirect(reqwest::redirect::Policy::none())
                .retry(reqwest::retry::never())
                .referer(false)
                .connect_timeout(config.connect_timeout)
                .user_agent(config.user_agent.as_str())
        };
        let direct = builder().no_proxy().build().map_err(RequestError::Setup)?;
        let client = match &config.proxy {
            Proxy::Environment => builder().build().map_err(RequestError::Setup)?,
            Proxy::None => direct.clone(),
            Proxy::Through(url) => {
                let proxy = reqwest::Proxy::all(url.as_str()).map_err(RequestError::Setup)?;
                builder().proxy(proxy).build().map_err(RequestError::Setup)?
            }
        };
        // Who names a proxy for this very call knows what it is.
        let direct = if matches!(config.proxy, Proxy::Through(_)) { client.clone() } else { direct };
        let (idle_timeout, goes_by_tor) = (config.idle_timeout, config.proxy.may_be_tor());
        Ok(Self { client, direct, finder, idle_timeout, goes_by_tor })
    }

    /// Whether onion services are reached as they must be: by a proxy that gets their names.
    pub(crate) fn goes_by_tor(&self) -> bool {
        self.goes_by_tor
    }

    /// Sends `hop`, with the credential if there is one. The answer's body has not been read.
    pub(crate) async fn send(
        &self,
        hop: &Hop,
        pass: Option<&Pass>,
    ) -> Result<reqwest::Response, RequestError> {
        let mut request = reqwest::Request::new(hop.method.clone(), hop.url.clone());
        *request.headers_mut() = hop.headers.clone();
        let progress = Progress::new(hop.body.length());
        if !hop.body.is_empty() {
            *request.body_mut() =
                Some(hop.body.begin(&progress).await.map_err(|error| hop.unsent(error.into()))?);
        }
        if let Some(value) = pass.and_then(Pass::header_value) {
            request.headers_mut().insert(header::AUTHORIZATION, value);
        }
        if !self.finder.may_ask(&hop.url) {
            return Err(RequestError::PrivateTarget(hop.origin.clone()));
        }
        let network = |source: reqwest::Error| match reach::is_not_public(&source) {
            true => RequestError::PrivateTarget(hop.origin.clone()),
            false if ReadError::is_behind(&source) => hop.unsent(source.without_url().into()),
            false if is_not_tls(&source) => {
                RequestError::NotTls { origin: hop.origin.clone(), source: source.without_url() }
            }
            false => RequestError::Network { origin: hop.origin.clone(), source: source.without_url() },
        };
        let client = if hop.origin.is_this_machine() { &self.direct } else { &self.client };
        let answered = progress.until(self.idle_timeout, client.execute(request)).await;
        let silent = |source| RequestError::Silent { origin: hop.origin.clone(), source };
        Ok(self.watched(answered.map_err(silent)?.map_err(network)?))
    }

    /// The same answer, of which a silence of its server is an end.
    fn watched(&self, answer: reqwest::Response) -> reqwest::Response {
        let url = answer.url().clone();
        let mut answer = http::Response::from(answer)
            .map(|body| reqwest::Body::wrap(Coming::new(body, self.idle_timeout)));
        let named = http::response::Builder::new().url(url).body(());
        let named = named.expect("nothing is written into it that could be wrong");
        answer.extensions_mut().extend(named.into_parts().0.extensions);
        answer.into()
    }
}

/// Whether the other side answered the handshake in another language.
fn is_not_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    let within = |error: &'_ (dyn std::error::Error + 'static)| {
        matches!(
            error.downcast_ref(),
            Some(rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType))
        )
    };
    let mut next = Some(error);
    while let Some(error) = next {
        if within(error) {
            return true;
        }
        // What an I/O error wraps is not its source.
        next = match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
}

/// How long to read a body that is told of and decides nothing. No single silence has to be long for it to take for ever.
const BEGINNING_WITHIN: Duration = Duration::from_secs(10);

/// The beginning of a body, as far as it comes, and soon.
pub(crate) async fn beginning(mut response: reqwest::Response, most: usize) -> Bytes {
    let mut body = Vec::new();
    let reading = async {
        while body.len() < most
            && let Ok(Some(piece)) = response.chunk().await
        {
            body.extend_from_slice(&piece);
        }
    };
    // What has come by then is kept.
    _ = tokio::time::timeout(BEGINNING_WITHIN, reading).await;
    body.truncate(most);
    body.into()
}

impl Proxy {
    /// Whether names are looked up by a SOCKS proxy, as Tor wants it. An environment that lets some names past its proxy may
    /// let those of onion services past it, too.
    fn may_be_tor(&self) -> bool {
        let looks_up = |url: &str| url.starts_with("socks5h://") || url.starts_with("socks4a://");
        match self {
            Self::None => false,
            Self::Through(url) => looks_up(url),
            Self::Environment => {
                let set = |name: &str| std::env::var(name).or_else(|_| std::env::var(name.to_uppercase()));
                let proxy = set("http_proxy").or_else(|_| set("all_proxy")).unwrap_or_default();
                let past = set("no_proxy").unwrap_or_default();
                looks_up(&proxy) && !past.contains('*') && !past.contains("onion")
            }
        }
    }
}

impl Hop {
    /// The first hop: what the caller asked for.
    pub(crate) fn of(request: http::Request<impl Into<RequestBody>>) -> Result<Self, RequestError> {
        let (parts, body) = request.into_parts();
        let url = Url::parse(&parts.uri.to_string()).map_err(|_| RequestError::Address)?;
        let origin = Origin::of(&url).ok_or(RequestError::Address)?;
        Ok(Self { method: parts.method, url, origin, headers: parts.headers, body: body.into() })
    }

    /// Whether the caller brings an `Authorization` of their own, in a header or in the address.
    pub(crate) fn has_authorization(&self) -> bool {
        self.headers.contains_key(header::AUTHORIZATION)
            || !self.url.username().is_empty()
            || self.url.password().is_some()
    }

    /// Its body could not be read.
    fn unsent(&self, source: BoxError) -> RequestError {
        let path = self.body.path().map(|path| path.display().to_string()).unwrap_or_default();
        RequestError::Body { path, source }
    }

    /// What it asks for, as far as buying looks at it.
    pub(crate) fn target(&self) -> Target {
        Target {
            origin: self.origin.clone(),
            method: self.method.to_string(),
            path: self.url.path().to_owned(),
            has_authorization: self.has_authorization(),
        }
    }

    /// Where `response` leads, if it is a redirect.
    pub(crate) fn next(&self, response: &reqwest::Response) -> Result<Option<Self>, RequestError> {
        let status = response.status();
        let follows = matches!(
            status,
            StatusCode::MOVED_PERMANENTLY
                | StatusCode::FOUND
                | StatusCode::SEE_OTHER
                | StatusCode::TEMPORARY_REDIRECT
                | StatusCode::PERMANENT_REDIRECT
        );
        let Some(location) = response.headers().get(header::LOCATION).filter(|_| follows) else {
            return Ok(None);
        };
        let unreadable = || RequestError::RedirectUnreadable(self.origin.clone());
        let location = std::str::from_utf8(location.as_bytes()).map_err(|_| unreadable())?;
        let url = self.url.join(location).map_err(|_| unreadable())?;
        let origin = Origin::of(&url).ok_or_else(unreadable)?;
        let mut next = Self { url, origin, ..self.clone() };
        let to_get = match status {
            StatusCode::SEE_OTHER => next.method != Method::HEAD,
            StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND => next.method == Method::POST,
            _ => false,
        };
        if to_get {
            next.method = Method::GET;
            next.body = RequestBody::default();
            let of_the_body = [
                header::CONTENT_TYPE,
                header::CONTENT_LENGTH,
                header::CONTENT_ENCODING,
                header::TRANSFER_ENCODING,
            ];
            of_the_body.iter().for_each(|name| _ = next.headers.remove(name));
        }
        if next.origin != self.origin {
            let private = [header::AUTHORIZATION, header::COOKIE, header::PROXY_AUTHORIZATION, header::HOST];
            private.iter().for_each(|name| _ = next.headers.remove(name));
            // The other headers in which a token may travel.
            let of_a_token = ["macaroon", "token", "grpc-metadata-macaroon"];
            of_a_token.iter().for_each(|name| _ = next.headers.remove(*name));
        }
        Ok(Some(next))
    }
}

#[cfg(test)]
mod tests {
    use http_body::Frame;
    use http_body_util::StreamBody;
    use tokio::time::{self, Instant};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_that_drips_for_ever_is_heard_for_a_while() {
        let drops = futures_util::stream::unfold((), |()| async {
            time::sleep(Duration::from_secs(4)).await;
            Some((Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"x"))), ()))
        });
        let body = reqwest::Body::wrap(StreamBody::new(Box::pin(drops)));
        let began = Instant::now();
        assert_eq!(beginning(http::Response::new(body).into(), 1_000).await, "xx");
        assert_eq!(began.elapsed(), BEGINNING_WITHIN);
    }
}
