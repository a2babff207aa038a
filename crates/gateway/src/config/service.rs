//! What is served: one priced upstream, and what happens to a request on its way there.

use http::{HeaderName, HeaderValue};

use super::{ClientLists, UpstreamConfig};
use crate::{
    cors::Cors,
    matcher::{Matcher, PathPrefix},
};

/// One priced upstream.
#[derive(Clone, Debug)]
pub struct ServiceRoute {
    /// Name, price and offer: what the paywall decides by.
    pub service: farebox_paywall::Service,
    /// Which requests are for it.
    pub matcher: Matcher,
    /// Where they go.
    pub upstream: UpstreamConfig,
    /// What browsers on other origins may read.
    pub cors: Cors,
    /// Whether the upstream gets to see the buyer's credential. By default it doesn't.
    pub forward_credential: ForwardCredential,
    /// Headers set on every request to the upstream, after everything else: a client can neither remove nor change
    /// them. An operator's API key goes here.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Bytes of request body accepted; `None` for any number (bodies are streamed, never collected). Default `None`.
    pub request_bytes_max: Option<u64>,
    /// How the path is changed for the upstream. Default: not at all.
    pub rewrite: Rewrite,
    /// Who may ask for it, besides what [`GatewayConfig::clients`](super::GatewayConfig::clients) says. Default: everybody.
    pub clients: ClientLists,
    /// Whether a connection may be handed over to another protocol (WebSocket and other upgrades, RFC 8441 over HTTP/2).
    /// It is paid for like any other request, once. Default: yes.
    pub upgrades: bool,
}

impl ServiceRoute {
    /// A route with the defaults for everything that has one: every request matches, no CORS, no extra headers.
    pub fn new(service: farebox_paywall::Service, upstream: UpstreamConfig) -> Self {
        Self {
            service,
            upstream,
            matcher: Matcher::default(),
            cors: Cors::default(),
            forward_credential: ForwardCredential::default(),
            headers: Vec::new(),
            request_bytes_max: None,
            rewrite: Rewrite::default(),
            clients: ClientLists::default(),
            upgrades: true,
        }
    }
}

/// Whether, and under which scheme, the upstream sees the buyer's credential: as exactly one `Authorization` line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForwardCredential {
    /// The credential ends here.
    #[default]
    None,
    /// `Authorization: L402 …`
    L402,
    /// `Authorization: LSAT …`
    Lsat,
}

/// How the path that the upstream sees differs from the path that was asked for, decided on and paid for. The query stays
/// as it is.
///
/// `Location` and `Content-Location` are read back where they are a path, or name the upstream's own origin or the one that
/// was asked for. The `Path` of cookies, and links in bodies, are left: an upstream that makes such should know the
/// prefix under which it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// Taken from the front of the path, where it stands there by whole segments: `/v1` makes `/v1/users` into `/users`,
    /// `/v1` into `/`, and leaves `/v10`. A path that doesn't begin with it passes without. Default: nothing.
    pub strip_prefix: Option<PathPrefix>,
    /// Put in front of what is left: `/api` makes `/users` into `/api/users` and `/` into `/api/`. Default: nothing.
    pub add_prefix: Option<PathPrefix>,
}
