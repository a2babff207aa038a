//! `services[].upstream`: the API behind a service.

use std::{
    num::{NonZeroU32, NonZeroUsize},
    path::PathBuf,
    str::FromStr,
};

use farebox_gateway::UpstreamUrl;
use http::uri::Authority;
use serde::{Deserialize, Deserializer};

use crate::config::value::{OneOrMore, Patience, Span, Written, present, secs, text_or_map};

/// Where a service leads, with more about it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct UpstreamMap {
    /// The address: `http://`, `https://` or `h2c://` (HTTP/2 without TLS, as plain gRPC servers want it), host and port; or a
    /// Unix socket, `unix:/run/app.sock` or `h2c+unix:/run/app.sock`. A list of several shares the requests among those that
    /// answer.
    pub(crate) url: OneOrMore<Written<UpstreamUrl>>,
    /// Whose certificate an `https` upstream must show: `web-roots` (one that browsers know), `system-roots` (one that this
    /// machine trusts), `ca: FILE` (an authority of
    /// your own, in PEM, and no other), or `insecure-skip-verify`: anyone on the way to it can then read and change
    /// everything, and each start warns of it. Default: `web-roots`.
    #[serde(default)]
    pub(crate) tls: UpstreamTls,
    /// Which host it is asked for: `own`, the one in its address; `asked`, the one that the client asked for; or a name.
    /// Default: `own`.
    #[serde(default)]
    pub(crate) host: Written<Host>,
    /// How long connecting may take, TLS included. Default: `10s`.
    #[serde(default = "ten_secs")]
    pub(crate) connect_timeout: Written<Span>,
    /// How long the upstream may take to begin its answer, or `never` to wait for ever. A gRPC call is held to its own
    /// deadline instead. Default: `2m`.
    #[serde(default = "two_minutes")]
    pub(crate) answer_timeout: Written<Patience>,
    /// How long a body may be silent in either direction, or `never` for any time; it never limits the whole. An upload that gets
    /// on no further once its answer has ended is charged after ten minutes at the latest, and no more of it is sent on.
    /// Default: `10m`.
    #[serde(default = "ten_minutes")]
    pub(crate) idle_timeout: Written<Patience>,
    /// How long an unused connection to it is kept. Default: `30s`.
    #[serde(default = "thirty_secs")]
    pub(crate) keep_alive: Written<Span>,
    /// Unused HTTP/1.1 connections that each worker keeps. Default: `64`.
    #[serde(default = "sixty_four")]
    pub(crate) idle_connections: usize,
    /// HTTP/1.1 connections to each address at once, over all workers; a request beyond that waits for one, as long as for
    /// connecting. Default: any number.
    #[serde(default, deserialize_with = "present")]
    pub(crate) connections: Option<NonZeroUsize>,
    /// How many times in a row an address may fail before it is left out for a while, if there are others. Default: `3`.
    #[serde(default = "three")]
    pub(crate) failures: NonZeroU32,
    /// How long a failing address is left out at first; twice as long each time after, up to sixteen times. Default: `5s`.
    #[serde(default = "five_secs")]
    pub(crate) eject_for: Written<Span>,
    /// Ask each address over and over how it is, besides noticing how it answers. Default: it isn't asked.
    #[serde(default, deserialize_with = "present")]
    pub(crate) health: Option<Health>,
}

/// A question to each address, to be answered with a status below 400.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Health {
    /// The path to `GET`, like `/healthz`.
    pub(crate) path: String,
    /// How often. Default: `5s`.
    #[serde(default = "five_secs")]
    pub(crate) every: Written<Span>,
    /// How long an answer may take. Default: `2s`.
    #[serde(default = "two_secs")]
    pub(crate) timeout: Written<Span>,
}

/// Which host an upstream is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Host {
    #[default]
    Own,
    Asked,
    Named(Authority),
}

/// A text that is no host.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a host; write `own`, `asked`, or a name like `app.example.com`")]
pub(crate) struct NotAHost(String);

/// Where a service leads.
#[derive(Debug)]
pub(crate) struct Upstream(pub(crate) UpstreamMap);

/// Whose certificate an `https` upstream must show.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum UpstreamTls {
    #[default]
    WebRoots,
    SystemRoots,
    Ca(PathBuf),
    InsecureSkipVerify,
}

fn ten_secs() -> Written<Span> {
    secs(10)
}

fn two_minutes() -> Written<Patience> {
    Written(Patience::For(secs(120).0))
}

fn ten_minutes() -> Written<Patience> {
    Written(Patience::For(secs(600).0))
}

fn two_secs() -> Written<Span> {
    secs(2)
}

fn five_secs() -> Written<Span> {
    secs(5)
}

fn thirty_secs() -> Written<Span> {
    secs(30)
}

const fn sixty_four() -> usize {
    64
}

const fn three() -> NonZeroU32 {
    NonZeroU32::new(3).expect("three is above zero")
}

impl UpstreamMap {
    /// An upstream with the defaults for everything but its address.
    pub(crate) fn new(url: UpstreamUrl) -> Self {
        Self {
            url: OneOrMore(vec![Written(url)]),
            tls: UpstreamTls::default(),
            host: Written::default(),
            connect_timeout: ten_secs(),
            answer_timeout: two_minutes(),
            idle_timeout: ten_minutes(),
            keep_alive: thirty_secs(),
            idle_connections: sixty_four(),
            connections: None,
            failures: three(),
            eject_for: five_secs(),
            health: None,
        }
    }
}

impl FromStr for Host {
    type Err = NotAHost;

    fn from_str(text: &str) -> Result<Self, NotAHost> {
        match text {
            "own" => Ok(Self::Own),
            "asked" => Ok(Self::Asked),
            _ => match text.parse::<Authority>() {
                Ok(name) if !text.contains('@') && !name.host().is_empty() => Ok(Self::Named(name)),
                _ => Err(NotAHost(text.to_owned())),
            },
        }
    }
}

impl<'de> Deserialize<'de> for Upstream {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text_or_map(
            deserializer,
            "an address like `http://127.0.0.1:3000`, or a mapping with `url`, which takes a list, too",
            |text| text.parse().map(|url| Self(UpstreamMap::new(url))).map_err(|error| error.to_string()),
            Self,
        )
    }
}
