//! What is served: one priced upstream, and what happens to a request on its way there.

use std::fmt;

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
    /// What browsers on other origins may do and read.
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

/// Something in a service that is allowed and may not be what was meant. Worth a line at start-up and in `farebox check`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Note {
    /// It has a price, and `auth` is off: nobody is ever asked for it.
    PriceWithoutAuth,
    /// It has a price, and every path is free.
    EverythingFree,
    /// It has a price, and no path where it is asked for.
    NothingSold,
    /// It answers preflights itself: they reach its handlers unpaid.
    UnpaidPreflights,
    /// Any page may use its visitors' cookies.
    CookiesForAnyPage,
}

impl ServiceRoute {
    /// What should be said of it.
    pub fn notes(&self) -> Vec<Note> {
        let service = &self.service;
        let is_off = service.auth == farebox_paywall::Auth::Off;
        // Everything is below `/`, and so nothing else that is free matters.
        let is_all_free = service.free_paths.iter().any(|free| free.to_string() == "/*");
        let is_all_closed = service.no_challenge_paths.iter().any(|closed| closed.to_string() == "/*");
        let has_price = service.price > farebox_protocol::Msat::ZERO;
        [
            (is_off && has_price, Note::PriceWithoutAuth),
            (!is_off && is_all_free, Note::EverythingFree),
            (!is_off && !is_all_free && is_all_closed, Note::NothingSold),
            (self.cors == Cors::Upstream && !is_off && !is_all_free, Note::UnpaidPreflights),
            (self.cors == Cors::Reflect, Note::CookiesForAnyPage),
        ]
        .into_iter()
        .filter_map(|(is_so, note)| is_so.then_some(note))
        .collect()
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PriceWithoutAuth => "it has a price that nobody is asked for, since `auth` is off",
            Self::EverythingFree => "all of its paths are free (`/*`), so that nobody is asked for its price",
            Self::NothingSold => {
                "nothing is sold on any of its paths (`/*`), so that only tokens bought earlier open it"
            }
            Self::UnpaidPreflights => {
                "its upstream answers preflights, which are not paid for: an `OPTIONS` handler there must do nothing dear"
            }
            Self::CookiesForAnyPage => {
                "any web page may use it with its visitors' cookies, in their name"
            }
        })
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

#[cfg(test)]
mod tests {
    use farebox_paywall::{Auth, Service};
    use farebox_protocol::{Msat, Offer};

    use super::*;

    #[test]
    fn what_may_not_be_meant_is_noted() {
        let service = Service::new("api".parse().unwrap(), Msat::new(1000), Offer::Forever);
        let plain = ServiceRoute::new(service, UpstreamConfig::new("http://app".parse().unwrap()));
        let with = |change: fn(&mut ServiceRoute)| {
            let mut route = plain.clone();
            change(&mut route);
            route.notes()
        };
        assert_eq!(with(|_| ()), []);
        assert_eq!(with(|route| route.service.auth = Auth::Off), [Note::PriceWithoutAuth]);
        let free = |route: &mut ServiceRoute| {
            route.service.free_paths = vec!["/docs/*".parse().unwrap(), "/*".parse().unwrap()];
        };
        assert_eq!(with(free), [Note::EverythingFree]);
        assert_eq!(with(|route| route.service.free_paths = vec!["/docs/*".parse().unwrap()]), []);
        let closed = |route: &mut ServiceRoute| {
            route.service.no_challenge_paths = vec!["/*".parse().unwrap()];
        };
        assert_eq!(with(closed), [Note::NothingSold]);
        assert_eq!(with(|route| route.cors = Cors::Upstream), [Note::UnpaidPreflights]);
        assert_eq!(with(|route| route.cors = Cors::Reflect), [Note::CookiesForAnyPage]);
        assert_eq!(
            with(|route| {
                route.service.auth = Auth::Off;
                route.service.price = Msat::ZERO;
            }),
            []
        );
    }
}
