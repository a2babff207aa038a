//! What may be written in `farebox.yaml`. The doc comments are the manual: the reference page is made from them.
//!
//! Here single values are read, each by the type that it becomes. Whether the whole makes sense is decided in
//! `judge.rs`. Rules: no key that does nothing, every key with a default or a reason not to have one, alternatives as
//! an enum, and no `Option` where an empty value would quietly mean "leave it open".

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use farebox_gateway::{HostPattern, PathPrefix, UpstreamUrl};
use farebox_lightning::config::LightningConfig;
use farebox_paywall::PathPattern;
use farebox_protocol::{Msat, Network, ServiceName};
use http::Method;
use serde::{Deserialize, Deserializer};

use super::value::{
    Address, Addresses, Patience, PerTime, Size, Span, Written, present, secs, some, text_or_map,
};

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct File {
    /// The Bitcoin network that is sold on: `mainnet`, `testnet`, `signet` or `regtest`. Tokens sold on one are worth
    /// nothing on another. It has no default, because a guess here would be a guess about real money.
    pub(crate) network: Written<Network>,
    /// Where buyers connect: a list of addresses, each plain (`127.0.0.1:8402`) or with TLS.
    /// Default: `[127.0.0.1:8402]`.
    #[serde(default = "default_listen")]
    pub(crate) listen: Vec<Listen>,
    /// Where health (`/healthz`, `/readyz`) and metrics (`/metrics`) are served: an address, a mapping, or `off`. Keep it
    /// off the internet. Default: `127.0.0.1:9402`.
    #[serde(default)]
    pub(crate) ops: Ops,
    /// The directory for what must survive a restart: the mint secret and the books. Made if missing, readable by its
    /// owner only. Paths in this file are relative to the file. Default: `farebox-state`.
    #[serde(default = "default_state_dir")]
    pub(crate) state_dir: PathBuf,
    /// The secrets that tokens are made with, newest first, at most three. Default: one, in `mint-secret` in the state
    /// directory, made on the first start.
    #[serde(default)]
    pub(crate) mint_secrets: Vec<MintSecretEntry>,
    /// The Lightning node that is paid: exactly one of the backends. It has no default, because it holds the money.
    pub(crate) lightning: LightningConfig,
    /// How challenges are made, and how many.
    #[serde(default)]
    pub(crate) minting: Minting,
    /// The proxies in front of farebox, as addresses or networks (`192.0.2.1`, `10.0.0.0/8`). From these alone is
    /// `X-Forwarded-For` believed. Default: none.
    #[serde(default)]
    pub(crate) trusted_proxies: Vec<Written<Addresses>>,
    /// Bounds on what clients can take up.
    #[serde(default)]
    pub(crate) limits: Limits,
    /// What is sold. The first service that matches a request answers it; a request that none matches gets a 404.
    pub(crate) services: Vec<Service>,
}

/// An address to listen on.
#[derive(Debug)]
pub(crate) struct Listen {
    pub(crate) addr: SocketAddr,
    pub(crate) tls: Option<Tls>,
}

/// An entry of `listen` that says more than an address.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct ListenMap {
    /// The address and port, like `0.0.0.0:443` or `[::]:443`.
    addr: Written<Address>,
    /// The certificate to serve with. Default: none, plain HTTP/1.1 and HTTP/2.
    #[serde(default, deserialize_with = "present")]
    tls: Option<Tls>,
}

/// A certificate and its key.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Tls {
    /// The certificate chain, in PEM, the server's own certificate first.
    pub(crate) cert: PathBuf,
    /// The private key, in PEM.
    pub(crate) key: PathBuf,
}

/// Where operations are served.
#[derive(Debug)]
pub(crate) enum Ops {
    At(OpsMap),
    Off,
}

/// Where operations are served, and under which names.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct OpsMap {
    /// The address and port.
    pub(crate) addr: Written<Address>,
    /// Names by which it may be asked besides `localhost` and addresses. Others are refused, so that no web page can reach
    /// it under a name of its own. Default: none.
    #[serde(default)]
    pub(crate) hosts: Vec<String>,
}

/// One mint secret: 64 hexadecimal digits, in a file or in an environment variable.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct MintSecretEntry {
    /// Where it is: `file: PATH` or `env: NAME`.
    pub(crate) from: SecretFrom,
    /// For a secret that has leaked: its tokens are honoured only if their payment was on the books before this moment,
    /// written in seconds since 1970 (`date +%s`). Default: the secret is sound.
    #[serde(default, deserialize_with = "present")]
    pub(crate) settled_only_since: Option<u64>,
}

/// Where a secret is kept.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SecretFrom {
    /// In this file; it has to exist.
    File(PathBuf),
    /// In this environment variable.
    Env(String),
}

/// How challenges are made, and how many.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(crate) struct Minting {
    /// How long an invoice can be paid. Default: `10m`.
    pub(crate) invoice_expiry: Written<Span>,
    /// Challenges for one client address; an IPv6 address counts with its /64. Default: `60/min`.
    pub(crate) per_client: Written<PerTime>,
    /// Challenges for everybody together. Default: `100/s`.
    pub(crate) total: Written<PerTime>,
    /// What becomes of a token with a caveat that farebox doesn't know: `skip` the caveat, as the specification says, or
    /// `refuse` the token. Unknown caveats in farebox's own namespace are refused either way. Default: `skip`.
    pub(crate) unknown_caveats: UnknownCaveats,
}

/// What becomes of a caveat that nobody here knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum UnknownCaveats {
    Skip,
    Refuse,
}

/// Bounds on what clients can take up. None of them limits how long a request may take in all.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(crate) struct Limits {
    /// Threads that serve requests; `0` for one per core. Default: `0`.
    pub(crate) workers: usize,
    /// Connections open at once. Default: `10000`.
    pub(crate) connections: usize,
    /// The request line and headers of one request. Default: `32KiB`.
    pub(crate) header_size: Written<Size>,
    /// Header lines in one request. Default: `100`.
    pub(crate) header_lines: usize,
    /// HTTP/2 requests in flight on one connection. Default: `128`.
    pub(crate) http2_streams: u32,
    /// How long a TLS handshake may take. Default: `10s`.
    pub(crate) handshake: Written<Span>,
    /// How long a client may take to send its headers. Default: `15s`.
    pub(crate) headers: Written<Span>,
    /// How long a connection without a request is kept. Default: `75s`.
    pub(crate) keep_alive: Written<Span>,
    /// How long a client may take nothing of an answer that waits for it. Default: `60s`.
    pub(crate) write_stall: Written<Span>,
    /// How long requests in flight may take to finish once farebox was told to stop. Default: `30s`.
    pub(crate) drain: Written<Span>,
}

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
    /// What one payment costs: `10sat`, `1500msat`. Needed unless `auth` is `off`.
    #[serde(default, deserialize_with = "present")]
    pub(crate) price: Option<Written<Msat>>,
    /// What one payment buys: `forever`, or `duration: 1h`, counted from when its invoice can no longer be paid.
    /// Default: `forever`.
    #[serde(default)]
    pub(crate) offer: Offer,
    /// `on`: only who has paid comes in. `off`: everybody does, for nothing. Default: `on`.
    #[serde(default)]
    pub(crate) auth: Auth,
    /// Paths that are free although the service isn't: exactly one (`/health`), or all below one (`/docs/*`).
    /// Default: none.
    #[serde(default)]
    pub(crate) free_paths: Vec<Written<PathPattern>>,
    /// Which web pages of other origins may use it: `any`, `off`, `upstream` (the upstream decides, and its preflights are
    /// free), or `origins: [https://app.example.com]`. Default: `any`; a payment opens the service, not an origin.
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
    /// The largest request body. Default: any, since bodies are streamed and never held.
    #[serde(default, deserialize_with = "present")]
    pub(crate) body_limit: Option<Written<Size>>,
}

/// What one payment buys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Offer {
    #[default]
    Forever,
    Duration(Written<Span>),
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

/// Where a service leads, with more about it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct UpstreamMap {
    /// The address: `http://`, `https://` or `h2c://` (HTTP/2 without TLS, as plain gRPC servers want it), host and port.
    pub(crate) url: Written<UpstreamUrl>,
    /// Whose certificate an `https` upstream must show: `web-roots` (one that browsers know), `ca: FILE` (an authority of
    /// your own, in PEM, and no other), or `insecure-skip-verify`: anyone on the way to it can then read and change
    /// everything, and each start warns of it. Default: `web-roots`.
    #[serde(default)]
    pub(crate) tls: UpstreamTls,
    /// `true` sends the host that the client asked for, `false` the upstream's own. Default: `false`.
    #[serde(default)]
    pub(crate) preserve_host: bool,
    /// How long connecting may take, TLS included. Default: `10s`.
    #[serde(default = "ten_secs")]
    pub(crate) connect_timeout: Written<Span>,
    /// How long the upstream may take to begin its answer, or `never` to wait for ever. A gRPC call is held to its own
    /// deadline instead. Default: `2m`.
    #[serde(default = "two_minutes")]
    pub(crate) answer_timeout: Written<Patience>,
    /// How long a body may be silent in either direction, or `never` for any time; it never limits the whole.
    /// Default: `10m`.
    #[serde(default = "ten_minutes")]
    pub(crate) idle_timeout: Written<Patience>,
}

/// Where a service leads.
#[derive(Debug)]
pub(crate) struct Upstream(pub(crate) UpstreamMap);

/// Whose certificate an `https` upstream must show.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum UpstreamTls {
    #[default]
    WebRoots,
    Ca(PathBuf),
    InsecureSkipVerify,
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

fn default_listen() -> Vec<Listen> {
    vec![Listen { addr: SocketAddr::from(([127, 0, 0, 1], 8402)), tls: None }]
}

fn default_state_dir() -> PathBuf {
    PathBuf::from("farebox-state")
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

impl Default for Ops {
    fn default() -> Self {
        let addr = SocketAddr::from(([127, 0, 0, 1], 9402));
        Self::At(OpsMap { addr: Written(Address(addr)), hosts: Vec::new() })
    }
}

impl Default for Minting {
    fn default() -> Self {
        Self {
            invoice_expiry: secs(600),
            per_client: Written(PerTime::new(60, 60)),
            total: Written(PerTime::new(100, 1)),
            unknown_caveats: UnknownCaveats::Skip,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            workers: 0,
            connections: 10_000,
            header_size: Written(Size(32 * 1024)),
            header_lines: 100,
            http2_streams: 128,
            handshake: secs(10),
            headers: secs(15),
            keep_alive: secs(75),
            write_stall: secs(60),
            drain: secs(30),
        }
    }
}

impl UpstreamMap {
    /// An upstream with the defaults for everything but its address.
    pub(crate) fn new(url: UpstreamUrl) -> Self {
        Self {
            url: Written(url),
            tls: UpstreamTls::default(),
            preserve_host: false,
            connect_timeout: ten_secs(),
            answer_timeout: two_minutes(),
            idle_timeout: ten_minutes(),
        }
    }
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text_or_map(
            deserializer,
            "an address like `127.0.0.1:8402`, or a mapping with `addr` and `tls`",
            |text| {
                Ok(Self { addr: text.parse::<Address>().map_err(|error| error.to_string())?.0, tls: None })
            },
            |map: ListenMap| Self { addr: map.addr.0.0, tls: map.tls },
        )
    }
}

impl<'de> Deserialize<'de> for Ops {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text_or_map(
            deserializer,
            "an address like `127.0.0.1:9402`, `off`, or a mapping with `addr` and `hosts`",
            |text| {
                if text == "off" {
                    return Ok(Self::Off);
                }
                let addr = text.parse().map_err(|error| format!("{error}, or `off`"))?;
                Ok(Self::At(OpsMap { addr, hosts: Vec::new() }))
            },
            Self::At,
        )
    }
}

impl<'de> Deserialize<'de> for Upstream {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text_or_map(
            deserializer,
            "an address like `http://127.0.0.1:3000`, or a mapping with `url`",
            |text| text.parse().map(|url| Self(UpstreamMap::new(url))).map_err(|error| error.to_string()),
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
