//! The `lightning:` part of a configuration file: one backend, named by its key. The comments here are the manual.
//!
//! A backend is data: adding one adds a variant, a structure and a line in [`LightningConfig::connect`]. Reading the file
//! opens nothing; [`LightningConfig::check`] finds what is wrong without secrets, node or network.

mod connect;

use std::net::SocketAddr;
use std::path::PathBuf;

use farebox_protocol::Network;
use serde::{Deserialize, Deserializer, de};

pub use self::connect::{ConnectError, Connected, Places};
use crate::phoenixd::Secret;

/// The Lightning node to use: exactly one of these.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum LightningConfig {
    /// A node inside farebox. Nothing else to install; its channels and their money are yours to look after.
    Embedded(EmbeddedSettings),
    /// A phoenixd beside farebox.
    Phoenixd(PhoenixdSettings),
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
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Password {
    /// In this file; white space around it doesn't count.
    File(PathBuf),
    /// In this environment variable.
    Env(String),
    /// Here. Whoever can read the configuration has it.
    Text(Secret),
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
    /// Any port.
    #[error("`listen` has port 0; peers must know the port, usually 9735")]
    PortZero,
}

impl LightningConfig {
    /// The network, where the configuration says it. Other backends know it when they are connected.
    pub fn network(&self) -> Option<Network> {
        match self {
            Self::Embedded(settings) => Some(settings.network),
            Self::Phoenixd(_) => None,
        }
    }

    /// Finds what is wrong, without reading a secret or talking to anyone.
    pub fn check(&self) -> Result<(), ConfigProblem> {
        match self {
            Self::Embedded(settings) => settings.check(),
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

fn network<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Network, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
}

fn mainnet() -> Network {
    Network::Mainnet
}

fn loopback() -> String {
    "127.0.0.1".into()
}

fn phoenixd_url() -> String {
    "http://127.0.0.1:9740".into()
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(config: serde_json::Value, want: &Expect) {
        let got = match serde_json::from_value::<LightningConfig>(config) {
            Ok(config) => match config.check() {
                Ok(()) => format!("{config:?}"),
                Err(problem) => problem.to_string(),
            },
            Err(error) => error.to_string(),
        };
        want.assert_eq(&got);
    }

    #[test]
    fn the_least_that_must_be_said_of_a_node() {
        check(
            json!({ "embedded": { "chain": { "esplora": "https://mempool.space/api" } } }),
            &expect![[
                r#"Embedded(EmbeddedSettings { network: Mainnet, chain: Esplora("https://mempool.space/api"), dir: None, seed_file: None, listen: None, alias: None, rapid_gossip: None })"#
            ]],
        );
        check(
            json!({ "phoenixd": { "password": { "file": "phoenixd.password" } } }),
            &expect![[
                r#"Phoenixd(PhoenixdSettings { url: "http://127.0.0.1:9740", password: File("phoenixd.password") })"#
            ]],
        );
    }

    #[test]
    fn passwords_do_not_show() {
        check(
            json!({ "embedded": { "network": "signet", "chain": { "bitcoind": { "user": "me", "password": { "text": "hunter2" } } } } }),
            &expect![[
                r#"Embedded(EmbeddedSettings { network: Signet, chain: Bitcoind(BitcoindSettings { host: "127.0.0.1", port: None, user: "me", password: Text(Secret(..)), rest_port: None }), dir: None, seed_file: None, listen: None, alias: None, rapid_gossip: None })"#
            ]],
        );
    }

    #[test]
    fn a_key_or_value_that_means_nothing_is_refused_by_name() {
        check(
            json!({ "embedded": { "chain": { "esplora": "https://x" }, "seedfile": "s" } }),
            &expect![
                "unknown field `seedfile`, expected one of `network`, `chain`, `dir`, `seed-file`, `listen`, `alias`, `rapid-gossip`"
            ],
        );
        check(
            json!({ "embedded": { "network": "main", "chain": { "esplora": "https://x" } } }),
            &expect!["`main` is not a network; write `mainnet`, `testnet`, `signet` or `regtest`"],
        );
        check(json!({ "lnd": {} }), &expect!["unknown variant `lnd`, expected `embedded` or `phoenixd`"]);
        check(json!({ "embedded": {} }), &expect!["missing field `chain`"]);
        check(json!({ "phoenixd": {} }), &expect!["missing field `password`"]);
    }

    #[test]
    fn what_could_not_work_is_refused() {
        let embedded = |key: &str, value: &str| {
            let mut settings = json!({ "chain": { "esplora": "https://x" } });
            settings[key] = json!(value);
            json!({ "embedded": settings })
        };
        check(
            json!({ "embedded": { "chain": { "esplora": "ssl://me:hunter2@host" } } }),
            &expect!["`host` in `esplora` doesn't begin with one of `https://`, `http://`"],
        );
        check(
            json!({ "embedded": { "chain": { "electrum": "https://host" } } }),
            &expect!["`https://host` in `electrum` doesn't begin with one of `ssl://`, `tcp://`"],
        );
        check(
            embedded("alias", "shop"),
            &expect!["`alias` needs `listen`: a node that nobody can connect to is not announced"],
        );
        check(
            embedded("listen", "0.0.0.0:0"),
            &expect!["`listen` has port 0; peers must know the port, usually 9735"],
        );
        check(
            embedded("rapid-gossip", "rapidsync.lightningdevkit.org"),
            &expect![
                "`rapidsync.lightningdevkit.org` in `rapid-gossip` doesn't begin with one of `https://`, `http://`"
            ],
        );
    }
}
