//! `services`: what is sold, to whom, and how fast.

use std::{collections::BTreeMap, num::NonZeroU32, path::PathBuf};

use farebox_gateway::{HostPattern, PathPrefix};
use farebox_paywall::PathPattern;
use farebox_protocol::{Msat, ServiceName};
use http::Method;
use serde::{Deserialize, Deserializer};

use super::{Capability, Clients, Cost, MonthlyMost, NamedOffer, Offer, RouteCost, Tier, Upstream};
use crate::config::value::{
    PerTime, Size, Span, Written, count_or_map, present, some, some_keys, text_or_map,
};

/// One service: what it matches, where it leads, what it costs.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Service {
    /// The name, written into every token that is sold: letters, digits, `.`, `_` and `-`. Renaming a service ends the
    /// tokens sold under its old name.
    pub(crate) name: Written<ServiceName>,
    /// The hosts it answers to, without port: `api.example.com`, `*.example.com`. Default: every host.
    #[serde(default, deserialize_with = "some")]
    pub(crate) hosts: Vec<Written<HostPattern>>,
    /// The paths it covers, each with everything below it: `/v1`. Default: every path.
    #[serde(default, deserialize_with = "some")]
    pub(crate) paths: Vec<Written<PathPrefix>>,
    /// The methods it covers; `GET` brings `HEAD` with it. Default: every method.
    #[serde(default, deserialize_with = "some")]
    pub(crate) methods: Vec<Written<Method>>,
    /// The API behind it: an address (`http://`, `https://` or `h2c://`, host and port), or a mapping with more about it.
    pub(crate) upstream: Upstream,
    /// How the path changes on the way to the upstream. What is matched, decided and paid for is the path that was asked for.
    #[serde(default, deserialize_with = "present")]
    pub(crate) rewrite: Option<Rewrite>,
    /// What one payment costs: `10sat`, `1500msat`. Needed unless `auth` is `off`.
    #[serde(default, deserialize_with = "present")]
    pub(crate) price: Option<Written<Msat>>,
    /// What one payment buys: `forever`; `duration: 1h`, counted from when its invoice can no longer be paid; `requests: 100`;
    /// or `credit`, which is the price paid, drawn down by what requests cost. Default: `forever`.
    #[serde(default)]
    pub(crate) offer: Offer,
    /// How long requests or credit are good for: `30d`, counted like a duration. What is left then is gone. Default: until they
    /// are used up.
    #[serde(default, deserialize_with = "present")]
    pub(crate) good_for: Option<Written<Span>>,
    /// How much of its capabilities may be used in a calendar month (UTC) of what `price` and `offer` sell, written into the token: for a
    /// capability by its name `requests: 1000`, `volume: 500sat` or both. Default: all of it.
    #[serde(default, deserialize_with = "some_keys")]
    pub(crate) monthly: BTreeMap<String, MonthlyMost>,
    /// More offers to choose from, beside `price` and `offer`, which make the one called `default`. A buyer names one in the
    /// header `farebox-offer` or in the query, `?farebox-offer=large`. Default: none.
    #[serde(default, deserialize_with = "some")]
    pub(crate) offers: Vec<NamedOffer>,
    /// What a request takes from credit: `5sat`, or a mapping where it is known only afterwards. Needed unless no credit is
    /// sold; with `capabilities` it may stand without credit, too, for tokens that are limited to so much money a month.
    #[serde(default, deserialize_with = "present")]
    pub(crate) cost: Option<Cost>,
    /// What requests to some of its paths, or with some methods, take from credit instead: the first entry that is for a
    /// request counts. Default: everything takes `cost`.
    #[serde(default, deserialize_with = "some")]
    pub(crate) costs: Vec<RouteCost>,
    /// Names for parts of the service, for tiers to be told apart by and for buyers to narrow their tokens to. A request takes
    /// every capability that it falls under; what takes none belongs to the lowest tier. Default: none.
    #[serde(default, deserialize_with = "some")]
    pub(crate) capabilities: Vec<Capability>,
    /// More of the service for other prices. Who has a tier has all the tiers below it; `price` and `offer` sell the lowest, and
    /// the tier that a request needs is the one that its buyer is asked to pay for. Default: none.
    #[serde(default, deserialize_with = "some")]
    pub(crate) tiers: Vec<Tier>,
    /// The number of the lowest tier. Raise it when the service has outgrown what was sold: tokens of a lower number then have
    /// to be bought anew. Default: `0`.
    #[serde(default)]
    pub(crate) tier: u8,
    /// `on`: only who has paid comes in. `off`: everybody does, for nothing. Default: `on`.
    #[serde(default)]
    pub(crate) auth: Auth,
    /// Paths that are free although the service isn't: exactly one (`/health`), or all below one (`/docs/*`).
    /// Default: none.
    #[serde(default)]
    pub(crate) free_paths: Vec<Written<PathPattern>>,
    /// Paths, written like `free-paths`, where nothing is sold: without a valid token they answer 401 and no invoice is made,
    /// whatever the method. For what programs ask again and again, and for what should not be the first thing that a buyer
    /// sees; a token bought on the service's other paths opens them. Default: none.
    #[serde(default, deserialize_with = "some")]
    pub(crate) no_challenge_paths: Vec<Written<PathPattern>>,
    /// What each network of clients may have before it must pay: a number of requests, or a mapping with more about them. An
    /// IPv4 address counts with its /24, an IPv6 address with its /48. Default: nothing.
    #[serde(default, deserialize_with = "present")]
    pub(crate) freebie: Option<Freebie>,
    /// Which web pages of other origins may use it: `any`; `reflect`, which is any, with the visitor's cookies; `off`;
    /// `upstream` (the upstream decides, and its preflights are free); or `origins: [https://app.example.com]`.
    /// Default: `any`; a payment opens the service, not an origin.
    #[serde(default)]
    pub(crate) cors: Cors,
    /// Whether the upstream gets to see the buyer's credential: `off`, or as `l402` or `lsat`. Only for an upstream that
    /// must check it again: whoever sees it can use it. Default: `off`.
    #[serde(default)]
    pub(crate) forward_credential: ForwardCredential,
    /// Headers that every request to the upstream carries, such as its API key; a buyer can neither remove nor change
    /// them. A value is a text, or `file: PATH` to read it from a file. Default: none.
    #[serde(default)]
    pub(crate) headers: BTreeMap<String, HeaderText>,
    /// Who may use it, paid or not, besides what `clients` at the top says.
    #[serde(default)]
    pub(crate) clients: Clients,
    /// How fast it may be used. A request must keep within every limit that is for it; one that doesn't is answered 429, and
    /// nobody is charged for it. Default: as fast as it goes.
    #[serde(default, deserialize_with = "some")]
    pub(crate) rate_limits: Vec<RateLimit>,
    /// `true` lets a client change to another protocol, such as WebSocket, on a connection that is paid for like any other
    /// request; `false` answers a WebSocket 501 and passes other offers over. Default: `true`.
    #[serde(default = "yes")]
    pub(crate) upgrades: bool,
    /// The largest request body. Default: any, since bodies are streamed and never held.
    #[serde(default, deserialize_with = "present")]
    pub(crate) body_limit: Option<Written<Size>>,
}

/// What each network of clients may have before it must pay.
#[derive(Debug)]
pub(crate) struct Freebie(pub(crate) FreebieMap);

/// What each network of clients may have before it must pay.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct FreebieMap {
    /// How many requests.
    pub(crate) requests: NonZeroU32,
    /// In which time, counted from the first of them; then there are new ones: `1d`. Default: once, for as long as farebox
    /// remembers.
    #[serde(default, deserialize_with = "present")]
    pub(crate) per: Option<Written<Span>>,
    /// `true` remembers over restarts, in `freebies` in the state directory; `false` forgets when farebox ends.
    /// Default: `false`.
    #[serde(default)]
    pub(crate) keep: bool,
}

/// How the path changes on the way to the upstream. `Location` and `Content-Location` of answers are changed back; links in
/// bodies are not.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Rewrite {
    /// Taken from the front of the path: with `/weather`, `/weather/today` becomes `/today`. Default: nothing.
    #[serde(default, deserialize_with = "present")]
    pub(crate) strip_prefix: Option<Written<PathPrefix>>,
    /// Put in front of what is left: with `/v2`, `/today` becomes `/v2/today`. Default: nothing.
    #[serde(default, deserialize_with = "present")]
    pub(crate) add_prefix: Option<Written<PathPrefix>>,
}

/// How fast a service, or a part of it, may be used.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct RateLimit {
    /// Whose requests are counted together: those of each `token`, of each `client` address (an IPv6 address counts with its
    /// /64), or all of the `service`. Without a token, on free paths, `token` counts by client.
    pub(crate) by: LimitBy,
    /// How many requests in which time: `10/s`, `1000/h`.
    pub(crate) rate: Written<PerTime>,
    /// How many may come at once after a pause. Default: as many as `rate` counts.
    #[serde(default, deserialize_with = "present")]
    pub(crate) burst: Option<NonZeroU32>,
    /// The paths it is for, written like `free-paths`. Default: all of the service.
    #[serde(default, deserialize_with = "some")]
    pub(crate) paths: Vec<Written<PathPattern>>,
}

/// Whose requests are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LimitBy {
    Token,
    Client,
    Service,
}

/// Whether a service has to be paid for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Auth {
    #[default]
    On,
    Off,
}

/// Which web pages of other origins may use a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Cors {
    #[default]
    Any,
    Reflect,
    Off,
    Upstream,
    Origins(Vec<String>),
}

/// Whether the upstream sees the credential, and under which scheme.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ForwardCredential {
    #[default]
    Off,
    L402,
    Lsat,
}

/// The value of a header towards the upstream. May well be somebody's API key: never show it.
pub(crate) enum HeaderText {
    Here(String),
    File(PathBuf),
}

impl std::fmt::Debug for HeaderText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Here(_) => f.write_str("Here(..)"),
            Self::File(path) => write!(f, "File({})", path.display()),
        }
    }
}

/// A header's value kept in a file of its own.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct InFile {
    /// The file. A line break at its end is dropped.
    file: PathBuf,
}

const fn yes() -> bool {
    true
}

impl<'de> Deserialize<'de> for Freebie {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        count_or_map(
            deserializer,
            "a number of requests above zero, or a mapping with `requests`, `per` and `keep`",
            |requests| Self(FreebieMap { requests, per: None, keep: false }),
            Self,
        )
    }
}

impl<'de> Deserialize<'de> for HeaderText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text_or_map(
            deserializer,
            "a text (in quotes, if it looks like a number or a truth value) or `file: PATH`",
            |text| Ok(Self::Here(text.to_owned())),
            |map: InFile| Self::File(map.file),
        )
    }
}
