//! What one request holds of an upstream: first its place among those in flight, then a connection, until its answer has
//! been read to the end.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use futures_util::future::BoxFuture;
use http::{Request, Response};
use hyper::{body::Incoming, client::conn::TrySendError};
use tokio::time::{Duration, Instant};

use super::{
    SendError,
    connect::Connector,
    outgoing::{Naming, Outgoing, Spare},
    pool::{Connection, Pool, Want},
};
use crate::{
    proxy::{Lines, RequestBody},
    worker::Worker,
};

/// A request that has been sent, until the head of its answer is there.
pub(super) type Exchange = BoxFuture<'static, Result<Response<Incoming>, TrySendError<Request<RequestBody>>>>;

/// See the module. Dropped early, it closes the connection (HTTP/1.1) or gives up the stream (HTTP/2).
pub(crate) struct Lease {
    taken: Option<Connection>,
    pool: Arc<Pool>,
}

impl Lease {
    /// One without a connection as yet.
    pub(super) fn new(pool: &Arc<Pool>) -> Self {
        pool.in_flight.fetch_add(1, Relaxed);
        Self { taken: None, pool: pool.clone() }
    }

    /// Takes a connection that is there already. Whether there is one.
    pub(super) fn checkout(&mut self, now: Instant) -> bool {
        self.taken = self.pool.checkout(now);
        self.taken.is_some()
    }

    /// Takes a new connection, or one that has come back meanwhile.
    pub(super) async fn connect(
        &mut self,
        connector: &Connector,
        worker: &Worker,
        want: Want,
        patience: Duration,
    ) -> Result<(), SendError> {
        self.taken = Some(self.pool.connect(connector, worker, want, patience).await?);
        Ok(())
    }

    /// Whether the connection can go on in another protocol.
    pub(super) fn takes_upgrades(&self) -> bool {
        match &self.taken {
            Some(Connection::Http2(stream)) => stream.0.terms.extended_connect.load(Relaxed),
            _ => true,
        }
    }

    /// Puts a request into the form of the connection's protocol.
    pub(super) fn shape(&self, outgoing: &mut Outgoing, naming: &Naming) {
        match &self.taken {
            Some(Connection::Http2(_)) => outgoing.shape_for_http2(naming),
            _ => outgoing.shape_for_http1(&self.pool.host),
        }
    }

    /// Whether others use the connection, too.
    pub(super) const fn is_shared(&self) -> bool {
        matches!(self.taken, Some(Connection::Http2(_)))
    }

    /// Keeps a request that is about to be sent, if it may be sent a second time.
    pub(super) fn keep(&self, request: &mut Request<RequestBody>) -> Option<Spare> {
        let written = match &self.taken {
            Some(Connection::Http1(http1)) => Some(&http1.written),
            _ => None,
        };
        Spare::of(request, written)
    }

    /// Sends a request at once, whether what is returned is polled or not. It is boxed since it has room for the whole
    /// request, and whoever awaits it would get as large.
    ///
    /// `lines` are written behind the request line; [`Lease::shape`] has left none over HTTP/2.
    pub(super) fn send(&mut self, request: Request<RequestBody>, lines: Option<&Lines>) -> Exchange {
        request.body().leaves(true);
        match self.taken.as_mut().expect("there is a connection before there is something to send") {
            Connection::Http1(http1) => {
                http1.written.write_next(lines);
                Box::pin(http1.sender.try_send_request(request))
            }
            Connection::Http2(stream) => Box::pin(stream.0.sender.clone().try_send_request(request)),
        }
    }

    /// Gives up the connection. One that didn't even take a request is offered to nobody any more.
    pub(super) fn give_up(&mut self, took_request: bool) {
        if let Some(connection) = self.taken.take()
            && !took_request
        {
            self.pool.forget(&connection);
        }
    }

    /// The answer has been read to its end. Where that came before all of the request was taken, the connection is left to
    /// end by itself, once it has written the rest.
    pub(crate) fn finish(&mut self) {
        if let Some(Connection::Http1(http1)) = self.taken.take()
            && !http1.written.is_behind()
        {
            self.pool.put_back(http1);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool.in_flight.fetch_sub(1, Relaxed);
    }
}
