//! What may be written in `farebox.yaml`. The doc comments are the manual: the reference page is made from them.
//!
//! Here single values are read, each by the type that it becomes. Whether the whole makes sense is decided in
//! `judge.rs`. Rules: no key that does nothing, every key with a default or a reason not to have one, alternatives as
//! an enum, and no `Option` where an empty value would quietly mean "leave it open".

mod cost;
mod listen;
mod offer;
mod receipts;
mod refunds;
mod service;
mod upstream;

use std::{net::SocketAddr, path::PathBuf};

use farebox_lightning::config::LightningConfig;
use farebox_protocol::Network;
use serde::{Deserialize, Deserializer};

pub(crate) use self::{
    cost::{Cost, Meter, RouteCost, UsageCost},
    listen::{Clients, Listen, Tls, TlsVersion},
    offer::{Capability, MonthlyMost, NamedOffer, Offer, Tier},
    receipts::Receipts,
    refunds::Refunds,
    service::{Auth, Cors, ForwardCredential, HeaderText, LimitBy, Rewrite, Service},
    upstream::{Health, Host, Upstream, UpstreamMap, UpstreamTls},
};
use super::value::{Address, Addresses, PerTime, Size, Span, Written, present, secs, text_or_map};

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
    /// The Lightning node that is paid: exactly one of the backends, or several under `backends`. It has no default, because
    /// it holds the money.
    pub(crate) lightning: LightningConfig,
    /// How challenges are made, and how many.
    #[serde(default)]
    pub(crate) minting: Minting,
    /// Money back to buyers who ask for it. Default: nothing is paid back.
    #[serde(default, deserialize_with = "present")]
    pub(crate) refunds: Option<Refunds>,
    /// Signed receipts for buyers who ask for them. Default: only the seller makes receipts.
    #[serde(default, deserialize_with = "present")]
    pub(crate) receipts: Option<Receipts>,
    /// The proxies in front of farebox, as addresses or networks (`192.0.2.1`, `10.0.0.0/8`). From these alone are
    /// `Forwarded`, `X-Forwarded-*` and the PROXY protocol believed. Default: none.
    #[serde(default)]
    pub(crate) trusted_proxies: Vec<Written<Addresses>>,
    /// Which clients may come in at all.
    #[serde(default)]
    pub(crate) clients: Clients,
    /// Bounds on what clients can take up.
    #[serde(default)]
    pub(crate) limits: Limits,
    /// What is sold. The first service that matches a request answers it; a request that none matches gets a 404.
    pub(crate) services: Vec<Service>,
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
    /// How many invoices are kept ready for each price that is being asked for, at most 64: for nodes that are slow to make
    /// one. Each costs the node what an unpaid invoice costs, and counts in `total`; a tenth of `invoice-expiry` after it was
    /// made it is dropped, and until ten minutes after the last buyer another takes its place. Default: `0`, each is made when
    /// it is asked for.
    pub(crate) ready_invoices: usize,
    /// What becomes of a token with a caveat that farebox doesn't know: `skip` the caveat, as the specification says, or
    /// `refuse` the token. Unknown caveats in farebox's own namespace are refused either way, and so is what a holder says of a
    /// capability that the token's service hasn't. Default: `skip`.
    pub(crate) unknown_caveats: UnknownCaveats,
    /// Serve a token only once its payment is known to have arrived, by the books or by a node, which is asked once for each
    /// token. For a node whose invoices others may read: they know the preimages of invoices that nobody has paid. While it
    /// can't be found out, a token that has not been served before gets a 503. Default: `false`, the preimage is proof enough.
    pub(crate) verify_settled: bool,
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
    /// Connections open at once from one client address; an IPv6 address counts with its /64. Trusted proxies may open any
    /// number. Default: `1000`.
    pub(crate) connections_per_client: usize,
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

fn default_listen() -> Vec<Listen> {
    vec![Listen::at(SocketAddr::from(([127, 0, 0, 1], 8402)))]
}

fn default_state_dir() -> PathBuf {
    PathBuf::from("farebox-state")
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
            ready_invoices: 0,
            unknown_caveats: UnknownCaveats::Skip,
            verify_settled: false,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            workers: 0,
            connections: 10_000,
            connections_per_client: 1_000,
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
