//! The `lightning:` part of a configuration file: a backend named by its key, or several. The comments here are the manual.
//!
//! A backend is data: adding one adds a variant, a structure and a line in [`LightningConfig::connect`]. Reading the file
//! opens nothing; [`LightningConfig::check`] finds what is wrong without secrets, node or network.

mod connect;
mod nwc;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use farebox_protocol::Network;
use serde::{Deserialize, Deserializer, de};

pub use self::connect::{ConnectError, Connected, Places};
pub use self::nwc::NwcSettings;
use crate::phoenixd::Secret;

/// How many nodes can be listed.
const BACKENDS_MAX: usize = 8;

/// The Lightning node to use: exactly one of these.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum LightningConfig {
    /// A node inside farebox. Nothing else to install; its channels and their money are yours to look after.
    Embedded(EmbeddedSettings),
    /// Your own lnd.
    Lnd(LndSettings),
    /// A phoenixd beside farebox.
    Phoenixd(PhoenixdSettings),
    /// Several of these, to be paid through: a list in the order in which they are asked for invoices, at most eight. While
    /// one is down the next one sells; what any of them receives is booked.
    Backends(Vec<LightningConfig>),
}

/// The node inside farebox.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct EmbeddedSettings {
    /// The network: `mainnet`, `testnet`, `signet` or `regtest`. Default: the `network` at the top of the file.
    #[serde(default = "mainnet", deserialize_with = "network")]
    pub network: Network,
    /// Where blocks and transactions come from. No default: whoever serves them learns your addresses and could keep a
    /// theft from you, so whom to trust is yours to say. Your own `bitcoind` tells nobody.
    pub chain: ChainSettings,
    /// The directory for channels and payments; one process at a time. Never put an old copy of it back: a peer may
    /// take the money of a channel whose state is outdated. Default: `lightning` in the state directory.
    #[serde(default)]
    pub dir: Option<PathBuf>,
    /// The file with the node's seed, from which all its keys follow: 128 hexadecimal digits. Made on the first start.
    /// Keep a copy of it elsewhere. Default: `seed` in `dir`.
    #[serde(default)]
    pub seed_file: Option<PathBuf>,
    /// The address at which other nodes connect, such as `0.0.0.0:9735`. Default: none; the node connects to others.
    #[serde(default)]
    pub listen: Option<SocketAddr>,
    /// The node's public name, at most 32 bytes. Needs `listen`. Default: none, and channels are not announced.
    #[serde(default)]
    pub alias: Option<String>,
    /// The server from which the map of public channels is fetched (rapid gossip sync), which a node that also pays wants
    /// on a slow line. Default: none; peers tell it.
    #[serde(default)]
    pub rapid_gossip: Option<String>,
}

/// Where blocks and transactions come from: exactly one of these.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ChainSettings {
    /// The address of an Esplora server, such as `https://mempool.space/api`.
    Esplora(String),
    /// The address of an Electrum server, such as `ssl://electrum.example.org:50002`.
    Electrum(String),
    /// Your own Bitcoin Core.
    Bitcoind(BitcoindSettings),
}

/// Your own Bitcoin Core.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct BitcoindSettings {
    /// The host of its RPC interface. Default: `127.0.0.1`.
    #[serde(default = "loopback")]
    pub host: String,
    /// The port of its RPC interface. Default: the one of the network (8332, 18332, 38332 or 18443).
    #[serde(default)]
    pub port: Option<u16>,
    /// The RPC user (`rpcuser` or `rpcauth`).
    pub user: String,
    /// The RPC password.
    pub password: Password,
    /// The port of its REST interface on the same host, if `rest=1` is set: faster for blocks. Default: not used.
    #[serde(default)]
    pub rest_port: Option<u16>,
}

/// Your own lnd. farebox starts whether or not it is there, sells as soon as it is ready, and finds a new certificate or
/// macaroon by itself. It keeps one invoice in the node, which nobody is asked to pay; others that are not paid are deleted
/// when they have expired. In lnd.conf `gc-canceled-invoices-on-the-fly=true` does that for all of them, whatever happens.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LndSettings {
    /// Host and port of its gRPC interface (`rpclisten` in lnd.conf). Default: `127.0.0.1:10009`.
    #[serde(default = "lnd_address")]
    pub address: String,
    /// The network: `mainnet`, `testnet`, `signet` or `regtest`. A node on another one is not sold through. Default: the
    /// `network` at the top of the file.
    #[serde(default = "mainnet", deserialize_with = "network")]
    pub network: Network,
    /// Whose certificate is believed. Default: a `file`, `tls.cert` in lnd's own directory (`~/.lnd`).
    #[serde(default)]
    pub tls_cert: Option<TlsCert>,
    /// The macaroon, as lnd writes it or as hexadecimal digits. Being paid takes no more than lnd's `invoice.macaroon`;
    /// `farebox lnd bake` prints how to make one that permits even less. Default: a `file`,
    /// `data/chain/bitcoin/NETWORK/invoice.macaroon` in lnd's own directory (`~/.lnd`).
    #[serde(default)]
    pub macaroon: Option<Password>,
    /// Whether invoices tell payers of private channels: needed where the node has no public ones. Default: `false`.
    #[serde(default)]
    pub private_hints: bool,
    /// How many unpaid invoices may be open in the node at once; beyond that nothing is sold until some have expired. Each
    /// takes about 2 kB of the node's disk while it is open. Default: `65536`.
    #[serde(default = "open_invoices_max")]
    pub open_invoices_max: NonZeroU32,
    /// How long a call to the node may take, from `100ms` to `5m`. Default: `10s`.
    #[serde(default = "call_timeout", deserialize_with = "duration")]
    pub call_timeout: Duration,
}

/// Whose certificate is believed: exactly one of these.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum TlsCert {
    /// The one in this file and no other, whatever name it is for: a copy of lnd's `tls.cert`.
    File(PathBuf),
    /// Any for the host in `address` that is signed by one in this file: for lnd behind a proxy with a certificate of yours.
    Authority(PathBuf),
    /// Any for the host in `address` that an authority of this system has signed. Written `tls-cert: system`.
    System,
}

/// A phoenixd beside farebox.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct PhoenixdSettings {
    /// Its address. Default: `http://127.0.0.1:9740`.
    #[serde(default = "phoenixd_url")]
    pub url: String,
    /// `http-password` of its phoenix.conf; to be paid only, `http-password-limited-access` is enough and better.
    pub password: Password,
}

/// Where a password is: exactly one of these.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Written", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Password {
    /// In this file; white space around it doesn't count.
    File(PathBuf),
    /// In this environment variable.
    Env(String),
    /// Here. Whoever can read the configuration has it.
    Text(Secret),
}

/// Read by hand: what is derived repeats in its errors what it finds, and whoever writes the secret itself behind the key would
/// find it in their log.
struct Written(Password);

impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PasswordVisitor).map(Self)
    }
}

impl From<Written> for Password {
    fn from(Written(password): Written) -> Self {
        password
    }
}

struct PasswordVisitor;

const PASSWORD: &str = "a secret is written as `{ file: PATH }`, `{ env: NAME }` or `{ text: SECRET }`";

impl<'de> de::Visitor<'de> for PasswordVisitor {
    type Value = Password;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("one of `file`, `env` and `text`")
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Password, A::Error> {
        let wrong = || de::Error::custom(PASSWORD);
        let password = match map.next_key::<String>()?.as_deref() {
            Some("file") => Password::File(map.next_value()?),
            Some("env") => Password::Env(map.next_value()?),
            Some("text") => Password::Text(map.next_value()?),
            _ => return Err(wrong()),
        };
        match map.next_key::<de::IgnoredAny>()? {
            None => Ok(password),
            Some(_) => Err(wrong()),
        }
    }

    fn visit_str<E: de::Error>(self, _: &str) -> Result<Password, E> {
        Err(E::custom(PASSWORD))
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<Password, E> {
        Err(E::custom(PASSWORD))
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<Password, E> {
        Err(E::custom(PASSWORD))
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Password, E> {
        Err(E::custom(PASSWORD))
    }
}

/// What is wrong with a configuration that could be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigProblem {
    /// Not an address of the right kind.
    #[error("`{value}` in `{key}` doesn't begin with one of {expected}")]
    Scheme {
        /// The key.
        key: &'static str,
        /// What is written, without anything that may be secret.
        value: String,
        /// The beginnings that are understood.
        expected: &'static str,
    },
    /// A name for a node that nobody can reach.
    #[error("`alias` needs `listen`: a node that nobody can connect to is not announced")]
    AliasWithoutListen,
    /// A name that doesn't fit.
    #[error("`alias` has {0} bytes; at most 32 fit into an announcement")]
    AliasTooLong(usize),
    /// Not a host and a port.
    #[error("`{value}` in `{key}` is not a host and a port; write something like `127.0.0.1:10009`")]
    Address {
        /// The key.
        key: &'static str,
        /// What is written.
        value: String,
    },
    /// Too short to be kept, or too long to be waited for.
    #[error("`{key}` is {} ms; write a time from `{least}` to `{most}`", .is.as_millis())]
    Time {
        /// The key.
        key: &'static str,
        /// What is written.
        is: Duration,
        /// The shortest that makes sense.
        least: &'static str,
        /// The longest.
        most: &'static str,
    },
    /// A list of no use.
    #[error("`backends` lists {0} nodes; list one to eight")]
    Backends(usize),
    /// A list in a list.
    #[error("`backends` can't be listed in `backends`; list the nodes themselves")]
    Nested,
    /// Any port.
    #[error("`listen` has port 0; peers must know the port, usually 9735")]
    PortZero,
}

impl LightningConfig {
    /// The single backends, in the order in which they are asked: itself, unless it is a list.
    pub fn backends(&self) -> &[Self] {
        match self {
            Self::Backends(backends) => backends,
            single => std::slice::from_ref(single),
        }
    }

    /// The same, to be changed.
    pub fn backends_mut(&mut self) -> &mut [Self] {
        match self {
            Self::Backends(backends) => backends,
            single => std::slice::from_mut(single),
        }
    }

    /// The key by which it is chosen.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Embedded(_) => "embedded",
            Self::Lnd(_) => "lnd",
            Self::Phoenixd(_) => "phoenixd",
            Self::Backends(_) => "backends",
        }
    }

    /// The network, where the configuration says it. Other backends know it when they are connected.
    pub fn network(&self) -> Option<Network> {
        match self {
            Self::Backends(_) => None,
            Self::Embedded(settings) => Some(settings.network),
            Self::Lnd(settings) => Some(settings.network),
            Self::Phoenixd(_) => None,
        }
    }

    /// Finds what is wrong, without reading a secret or talking to anyone. Of a list that is the list itself: check its
    /// [`backends`](Self::backends) one by one.
    pub fn check(&self) -> Result<(), ConfigProblem> {
        match self {
            Self::Backends(backends) if !(1..=BACKENDS_MAX).contains(&backends.len()) => {
                Err(ConfigProblem::Backends(backends.len()))
            }
            Self::Backends(backends) => {
                let nested = backends.iter().any(|backend| matches!(backend, Self::Backends(_)));
                if nested { Err(ConfigProblem::Nested) } else { Ok(()) }
            }
            Self::Embedded(settings) => settings.check(),
            Self::Lnd(settings) => settings.check(),
            Self::Phoenixd(settings) => {
                scheme("url", &settings.url, &["http://", "https://"], "`http://`, `https://`")
            }
        }
    }
}

impl EmbeddedSettings {
    fn check(&self) -> Result<(), ConfigProblem> {
        const WEB: (&[&str], &str) = (&["https://", "http://"], "`https://`, `http://`");
        match &self.chain {
            ChainSettings::Esplora(url) => scheme("esplora", url, WEB.0, WEB.1)?,
            ChainSettings::Electrum(url) => {
                scheme("electrum", url, &["ssl://", "tcp://"], "`ssl://`, `tcp://`")?;
            }
            ChainSettings::Bitcoind(_) => {}
        }
        if let Some(url) = &self.rapid_gossip {
            scheme("rapid-gossip", url, WEB.0, WEB.1)?;
        }
        if let Some(alias) = &self.alias {
            if self.listen.is_none() {
                return Err(ConfigProblem::AliasWithoutListen);
            }
            if alias.len() > 32 {
                return Err(ConfigProblem::AliasTooLong(alias.len()));
            }
        }
        match self.listen {
            Some(listen) if listen.port() == 0 => Err(ConfigProblem::PortZero),
            _ => Ok(()),
        }
    }
}

fn scheme(
    key: &'static str,
    url: &str,
    schemes: &[&str],
    expected: &'static str,
) -> Result<(), ConfigProblem> {
    if schemes.iter().any(|scheme| url.len() > scheme.len() && url.starts_with(scheme)) {
        return Ok(());
    }
    // A user name and password may stand before the host.
    let value = url.rsplit('@').next().unwrap_or_default().to_owned();
    Err(ConfigProblem::Scheme { key, value, expected })
}

impl LndSettings {
    fn check(&self) -> Result<(), ConfigProblem> {
        let parts = self.address.rsplit_once(':');
        let is_address = parts.is_some_and(|(host, port)| {
            let is_host = !host.is_empty() && !host.contains(['/', '@', ' ', '?', '#']);
            is_host
                && (!host.contains(':') || host.starts_with('['))
                && port.parse().is_ok_and(|port: u16| port > 0)
        });
        if !is_address {
            // A whole URL may have a password in it.
            let value = match self.address.split_once("://") {
                Some((scheme, _)) => format!("{scheme}://…"),
                None => self.address.rsplit('@').next().unwrap_or_default().to_owned(),
            };
            return Err(ConfigProblem::Address { key: "address", value });
        }
        check_call_timeout(self.call_timeout)
    }
}

fn check_call_timeout(is: Duration) -> Result<(), ConfigProblem> {
    if (Duration::from_millis(100)..=Duration::from_secs(300)).contains(&is) {
        return Ok(());
    }
    Err(ConfigProblem::Time { key: "call-timeout", is, least: "100ms", most: "5m" })
}

/// `500ms`, `10s`, `5m`.
fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let of_unit = match unit {
        "ms" => Some(1),
        "s" => Some(1_000),
        "m" => Some(60_000),
        _ => None,
    };
    let millis = of_unit.zip(number.parse::<u64>().ok()).and_then(|(unit, number)| number.checked_mul(unit));
    millis.map(Duration::from_millis).ok_or_else(|| {
        de::Error::custom(format!("`{text}` is not a time; write something like `500ms`, `10s` or `5m`"))
    })
}

fn network<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Network, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
}

fn mainnet() -> Network {
    Network::Mainnet
}

fn loopback() -> String {
    "127.0.0.1".into()
}

fn lnd_address() -> String {
    "127.0.0.1:10009".into()
}

fn open_invoices_max() -> NonZeroU32 {
    NonZeroU32::MIN.saturating_add(65_535)
}

fn call_timeout() -> Duration {
    Duration::from_secs(10)
}

fn phoenixd_url() -> String {
    "http://127.0.0.1:9740".into()
}
