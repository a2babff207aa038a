//! What an upstream is told of a request besides what its client says: who asks (`forwarded`) and who pays
//! (`farebox_paywall::forward`).
//!
//! That is seven headers, and most requests of a connection have the same. Put into a map and from there into writing they
//! cost a fifteenth of all the instructions of a paid request. So where a connection asks again, for the same host and service
//! and with the same token, they are kept as they are written over HTTP/1.1, and the connection to the upstream writes them
//! behind the request line (`upstream/gather.rs`). They come from the same code either way, so the two can't differ.
//!
//! It must be certain that none of these headers is in the map as well: not where a proxy may speak for its client, nor where
//! the operator sets one of the same name ([`may_be_written`]). All else of those names has been removed before. Of requests to
//! such an upstream, and to one that speaks HTTP/2, only the longest header is kept, which names the host.
//! A whole request of our own making, without hyper, would save more, and leave us to get HTTP/1.1 right.

use std::sync::{Arc, Weak};

use farebox_paywall::{
    Pass,
    forward::{Buyer, introduce_as},
};
use http::{HeaderMap, HeaderName, HeaderValue};
use parking_lot::Mutex;

use super::{
    Peer,
    forwarded::{self, Client},
};
use crate::{
    config::{UpstreamConfig, UpstreamScheme},
    services::Route,
};

/// Headers as they are written over HTTP/1.1, each with its end of line.
#[derive(Clone, Debug)]
pub(crate) struct Lines(Arc<[u8]>);

/// What was told of a connection's last request: it hardly ever asks for another host.
#[derive(Debug, Default)]
pub(super) struct Told(Mutex<Option<Box<Last>>>);

#[derive(Debug)]
struct Last {
    /// A copy: a header's own bytes are part of all that was read with it.
    host: Box<[u8]>,
    forwarded: HeaderValue,
    /// To an upstream to which it may be written.
    written: Option<Written>,
}

#[derive(Debug)]
struct Written {
    buyer: Buyer,
    /// Weak, so that a connection that asks for nothing keeps no upstream that nobody else knows any more.
    route: Weak<Route>,
    /// Once there was a second request.
    lines: Option<Lines>,
}

/// Whether what we tell may be written as it is to an upstream that gets these headers from its operator.
pub(crate) fn may_be_written(upstream: &UpstreamConfig, theirs: &[(HeaderName, HeaderValue)]) -> bool {
    let is_ours = |name: &HeaderName| {
        let name = name.as_str().replace('_', "-");
        name == "forwarded" || name.starts_with("x-forwarded-") || name.starts_with("farebox-")
    };
    upstream.urls.iter().all(|url| url.scheme() == UpstreamScheme::Http)
        && !theirs.iter().any(|(name, _)| is_ours(name))
}

/// Tells the upstream who asks and who pays: adds it to the headers, or gives it back as the lines to write.
pub(super) fn tell(
    headers: &mut HeaderMap,
    route: &Arc<Route>,
    pass: &Pass,
    client: &Client,
    peer: &Peer,
    host: HeaderValue,
) -> Option<Lines> {
    if client.is_vouched_for {
        forwarded::go_on(headers, client, peer, host);
        introduce_as(headers, pass, &route.label);
        return None;
    }
    let mut last = peer.told.0.lock();
    let last = match &mut *last {
        Some(last) if *last.host == *host.as_bytes() => last,
        last => last.insert(Box::new(Last::of(peer, &host))),
    };
    let say = |headers: &mut HeaderMap| {
        forwarded::set(headers, peer, host, last.forwarded.clone());
        introduce_as(headers, pass, &route.label);
    };
    if !route.may_be_written {
        say(headers);
        return None;
    }
    if let Some(written) = last.written.as_mut().filter(|written| written.is(pass, route)) {
        let lines = written.lines.get_or_insert_with(|| {
            let mut said = HeaderMap::new();
            say(&mut said);
            Lines::of(&said)
        });
        return Some(lines.clone());
    }
    last.written = Some(Written { buyer: Buyer::of(pass), route: Arc::downgrade(route), lines: None });
    say(headers);
    None
}

impl Last {
    fn of(peer: &Peer, host: &HeaderValue) -> Self {
        Self { host: host.as_bytes().into(), forwarded: forwarded::of(peer, host), written: None }
    }
}

impl Written {
    fn is(&self, pass: &Pass, route: &Arc<Route>) -> bool {
        std::ptr::eq(self.route.as_ptr(), Arc::as_ptr(route)) && self.buyer.is_of(pass)
    }
}

impl Lines {
    /// A header's value has no end of line in it, nor its name a colon, or it would be none.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let room = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
        let mut text = Vec::with_capacity(room);
        for (name, value) in headers {
            text.extend_from_slice(name.as_str().as_bytes());
            text.extend_from_slice(b": ");
            text.extend_from_slice(value.as_bytes());
            text.extend_from_slice(b"\r\n");
        }
        Self(text.into())
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}
