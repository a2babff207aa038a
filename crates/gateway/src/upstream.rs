//! Talking to one upstream: picking or making a connection, sending a request, trying once more where that is safe.
//!
//! Each worker has connections of its own, so nothing here is contended. What a failure means to the client is not
//! decided here but in `proxy/failure.rs`.

mod connect;
mod pool;

use std::{error::Error as _, io, path::PathBuf, sync::Arc};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version,
    header::{CONNECTION, COOKIE, HOST, TE, TRANSFER_ENCODING},
    uri::{Authority, Scheme},
};
use hyper::body::{Body as _, Incoming};
use tokio::time::timeout;

pub(crate) use self::pool::Lease;
use self::{
    connect::Connector,
    pool::{Connection, Pool},
};
use crate::{
    config::{UpstreamConfig, UpstreamScheme},
    proxy::RequestBody,
    worker::Worker,
};

/// One upstream, as all workers see it.
pub(crate) struct Upstream {
    connector: Connector,
    /// One for each worker.
    pools: Vec<Arc<Pool>>,
    authority: Authority,
    host: HeaderValue,
    config: UpstreamConfig,
}

/// Why an upstream can't be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpstreamError {
    /// The file with its authority's certificates can't be read.
    #[error("cannot read the certificates in `{}`: {error}", .path.display())]
    CaFile {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        error: String,
    },
    /// Its name can't stand in a certificate.
    #[error("`{0}` is neither a host name nor an address that a certificate could be for")]
    Name(String),
}

/// Why an upstream gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    #[error("no connection within the time-out")]
    ConnectTimeout,
    #[error("cannot start the conversation")]
    Handshake(#[source] hyper::Error),
    #[error("the exchange failed")]
    Exchange(#[source] hyper::Error),
    #[error("it switched to another protocol, which nobody had asked for")]
    Switched,
}

/// A request on its way, before it is known which version of HTTP it will be put in.
pub(crate) struct Outgoing {
    /// Its target is a path and a query, without an authority; it has no `Host`.
    pub(crate) request: Request<RequestBody>,
    /// What to name as the host, unless the upstream's own.
    pub(crate) host: Option<HeaderValue>,
}

impl Upstream {
    pub(crate) fn new(config: &UpstreamConfig, workers: usize) -> Result<Self, UpstreamError> {
        let authority = config.urls[0].authority().clone();
        let host = HeaderValue::from_str(authority.as_str())
            .map_err(|_| UpstreamError::Name(authority.to_string()))?;
        Ok(Self {
            connector: Connector::new(config)?,
            pools: (0..workers).map(|_| Arc::new(Pool::new(config))).collect(),
            authority,
            host,
            config: config.clone(),
        })
    }

    /// Sends a request and waits for the head of its answer. A kept connection may have been closed by the upstream just
    /// now, so a request that is safe to repeat is sent once more, on a new connection; one that was never sent, likewise.
    ///
    /// On a kept connection it is sent before this returns, and the future has no room for a request: an `async fn` would
    /// carry it through every await, and be moved about with it.
    pub(crate) fn send<'a>(
        &'a self,
        worker: &'a Worker,
        mut outgoing: Outgoing,
    ) -> impl Future<Output = Result<(http::Response<Incoming>, Lease), SendError>> + Send + use<'a> {
        let pool = &self.pools[worker.index];
        let begun = match pool.checkout() {
            Some(mut connection) => {
                self.shape(&mut outgoing, &connection);
                let spare = is_repeatable(&outgoing.request).then(|| Spare::of(&outgoing.request));
                let Outgoing { request, host } = outgoing;
                Ok((connection.send(request), connection, spare, host))
            }
            None => Err(Box::new(outgoing)),
        };
        async move {
            let outgoing = match begun {
                Ok((exchange, connection, spare, host)) => match exchange.await {
                    Ok(response) => return Ok((response, connection.into_lease(pool))),
                    Err(mut failed) => {
                        let unsent = failed.take_message();
                        if unsent.is_some() {
                            pool.forget(&connection);
                        }
                        match unsent.or_else(|| spare.map(Spare::into_request)) {
                            Some(request) if !is_answer(failed.error()) => {
                                Box::new(Outgoing { request, host })
                            }
                            _ => return Err(SendError::Exchange(failed.into_error())),
                        }
                    }
                },
                Err(outgoing) => outgoing,
            };
            // Boxed, so that requests on a kept connection, which are most, don't carry the room for making one.
            Box::pin(self.send_anew(worker, pool, outgoing)).await
        }
    }

    async fn send_anew(
        &self,
        worker: &Worker,
        pool: &Arc<Pool>,
        mut outgoing: Box<Outgoing>,
    ) -> Result<(http::Response<Incoming>, Lease), SendError> {
        let mut connection = timeout(self.config.connect_timeout, pool.connect(&self.connector, worker))
            .await
            .unwrap_or(Err(SendError::ConnectTimeout))?;
        self.shape(&mut outgoing, &connection);
        match connection.send(outgoing.request).await {
            Ok(response) => Ok((response, connection.into_lease(pool))),
            Err(failed) => Err(SendError::Exchange(failed.into_error())),
        }
    }

    /// Lets go of connections of this worker that nobody has used for a while.
    pub(crate) fn prune(&self, worker: usize) {
        self.pools[worker].prune();
    }

    pub(crate) const fn config(&self) -> &UpstreamConfig {
        &self.config
    }

    /// Puts a request into the form of the connection's protocol.
    fn shape(&self, outgoing: &mut Outgoing, connection: &Connection) {
        let request = &mut outgoing.request;
        match connection {
            Connection::Http1(_) => {
                *request.version_mut() = Version::HTTP_11;
                if request.body().size_hint().exact().is_none() {
                    // hyper takes it for granted that GET and HEAD have no body, and would drop it in silence.
                    request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
                }
                let host = outgoing.host.as_ref().unwrap_or(&self.host).clone();
                request.headers_mut().insert(HOST, host);
                join_cookies(request.headers_mut());
                if request.headers().contains_key(TE) {
                    // RFC 9110 10.1.4: `TE` is a matter between neighbours and must be announced as one.
                    request.headers_mut().insert(CONNECTION, HeaderValue::from_static("te"));
                }
            }
            Connection::Http2(_) => {
                *request.version_mut() = Version::HTTP_2;
                request.headers_mut().remove(HOST);
                request.headers_mut().remove(CONNECTION);
                request.headers_mut().remove(TRANSFER_ENCODING);
                let preserved =
                    outgoing.host.as_ref().and_then(|host| Authority::try_from(host.as_bytes()).ok());
                let mut parts = std::mem::take(request.uri_mut()).into_parts();
                parts.scheme = Some(match self.config.urls[0].scheme() {
                    UpstreamScheme::Https => Scheme::HTTPS,
                    UpstreamScheme::Http | UpstreamScheme::H2c => Scheme::HTTP,
                });
                parts.authority = Some(preserved.unwrap_or_else(|| self.authority.clone()));
                *request.uri_mut() =
                    Uri::from_parts(parts).expect("scheme, authority and path make a target");
            }
        }
    }
}

/// HTTP/2 may split cookies over several lines, HTTP/1.1 may not (RFC 9113 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut lines = headers.get_all(COOKIE).iter();
    if lines.next().is_none() || lines.next().is_none() {
        return;
    }
    let lines: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&lines.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

/// Whether sending a request twice does no more than sending it once, and there is nothing of it that can't be repeated.
fn is_repeatable(request: &Request<RequestBody>) -> bool {
    request.body().is_none()
        && matches!(
            *request.method(),
            Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE
        )
}

/// The head of a request, kept to send it again. Nearly every request has one and hardly any needs it, so it is text in
/// one piece of memory: a `HeaderMap` would be two, and would share each of its values.
struct Spare {
    method: Method,
    uri: Uri,
    /// For each header its name, `:` or (for a value marked as sensitive) `;`, its value and an end of line.
    headers: Vec<u8>,
}

impl Spare {
    fn of(request: &Request<RequestBody>) -> Self {
        let headers = request.headers();
        let room = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 2).sum();
        let mut text = Vec::with_capacity(room);
        for (name, value) in headers {
            text.extend_from_slice(name.as_str().as_bytes());
            text.push(if value.is_sensitive() { b';' } else { b':' });
            text.extend_from_slice(value.as_bytes());
            text.push(b'\n');
        }
        Self { method: request.method().clone(), uri: request.uri().clone(), headers: text }
    }

    fn into_request(self) -> Request<RequestBody> {
        let mut request = Request::new(RequestBody::none());
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        // Names have neither of the marks in them, and values no ends of lines.
        for line in self.headers.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let mark =
                line.iter().position(|byte| matches!(byte, b':' | b';')).expect("it was written with one");
            let name = HeaderName::from_bytes(&line[..mark]).expect("it was a name before");
            let mut value = HeaderValue::from_bytes(&line[mark + 1..]).expect("it was a value before");
            value.set_sensitive(line[mark] == b';');
            request.headers_mut().append(name, value);
        }
        request
    }
}

/// Whether the upstream did say something, so that there is no doubt whether it has heard of the request.
fn is_answer(error: &hyper::Error) -> bool {
    let reset =
        error.source().and_then(|source| source.downcast_ref::<h2::Error>()).filter(|error| error.is_reset());
    let refused = reset.is_some_and(|error| error.reason() == Some(h2::Reason::REFUSED_STREAM));
    error.is_parse() || error.is_user() || (reset.is_some() && !refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_that_is_kept_is_sent_again_as_it_was() {
        let mut request = Request::new(RequestBody::none());
        *request.method_mut() = Method::PUT;
        *request.uri_mut() = Uri::from_static("/a?b");
        for (name, value) in [("x-a", "1: 2; 3"), ("x-b", ""), ("x-a", "4"), ("x-c", "\u{fc}")] {
            let name = HeaderName::from_static(name);
            request.headers_mut().append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let mut secret = HeaderValue::from_static("s");
        secret.set_sensitive(true);
        request.headers_mut().insert("x-d", secret);
        let again = Spare::of(&request).into_request();
        assert_eq!(again.method(), request.method());
        assert_eq!(again.uri(), request.uri());
        assert_eq!(again.headers(), request.headers());
        assert!(again.headers().iter().all(|(name, value)| value.is_sensitive() == (name == "x-d")));
    }

    #[test]
    fn cookies_split_by_http2_are_joined_for_http1() {
        let mut headers = HeaderMap::new();
        for crumb in ["a=1", "b=2", "c=3"] {
            headers.append(COOKIE, HeaderValue::from_static(crumb));
        }
        join_cookies(&mut headers);
        assert_eq!(headers.get_all(COOKIE).iter().collect::<Vec<_>>(), ["a=1; b=2; c=3"]);
    }
}
