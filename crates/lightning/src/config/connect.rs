//! From a configuration to a running backend.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{LightningConfig, LndSettings, Password, PhoenixdSettings, TlsCert};
#[cfg(feature = "embedded")]
use crate::embedded::{EmbeddedError, EmbeddedNode};
use crate::lnd::{self, Credential, Lnd, LndConfig, LndWallet, Trust};
use crate::nwc;
use crate::phoenixd::{self, Phoenixd, PhoenixdConfig, Secret};
use crate::{Pay, PayError, Receive, clock::SystemClock};

/// What paths in the configuration are relative to.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// The directory of the configuration file.
    pub config: &'a Path,
    /// The directory for what must survive a restart.
    pub state: &'a Path,
}

/// A backend that runs.
#[derive(Clone)]
#[non_exhaustive]
pub enum Connected {
    /// The node in this process: stop it before the process ends.
    #[cfg(feature = "embedded")]
    Embedded(Arc<EmbeddedNode>),
    /// A lnd, whether or not it has answered yet.
    Lnd(Arc<Lnd>),
    /// A phoenixd.
    Phoenixd(Arc<Phoenixd>),
}

/// Why there is no backend.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// A password file can't be read.
    #[error("can't read the password in `{}`: {error}", path.display())]
    PasswordFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// There is no such environment variable.
    #[error("the environment variable `{0}`, which should hold a password, is not set")]
    PasswordEnv(String),
    /// Several nodes, where one is meant.
    #[error("several nodes can't be connected to as if they were one; name one of `backends`")]
    Several,
    /// This program was built without it.
    #[error("this build has no embedded node; use another backend, or a build with the feature `embedded`")]
    NotBuilt,
    /// The embedded node can't be started.
    #[cfg(feature = "embedded")]
    #[error(transparent)]
    Embedded(#[from] EmbeddedError),
    /// lnd's address is none.
    #[error(transparent)]
    Lnd(#[from] lnd::AddressError),
    /// Where lnd keeps its files is not known.
    #[error(
        "the environment variable `HOME` is not set, so lnd's directory is not known; write `tls-cert` and `macaroon`"
    )]
    Home,
    /// The node that should pay can't be used.
    #[error("can't pay with this node: {0}")]
    Pay(PayError),
    /// phoenixd can't be used.
    #[error(transparent)]
    Phoenixd(#[from] phoenixd::ConnectError),
    /// The wallet behind relays can't be used.
    #[error(transparent)]
    Nwc(#[from] nwc::ConnectError),
    /// Others could read what spends.
    #[error("`{}` can be read by others (mode {mode:o}), who could spend with it; run `chmod 600` on it", path.display())]
    Readable {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
}

// Not by derivation: the message says all of it, and a chain of causes would say it again.
impl From<PayError> for ConnectError {
    fn from(error: PayError) -> Self {
        Self::Pay(error)
    }
}

impl Connected {
    /// The backend for being paid.
    pub fn receive(&self) -> Arc<dyn Receive> {
        match self {
            #[cfg(feature = "embedded")]
            Self::Embedded(node) => Arc::clone(node) as Arc<dyn Receive>,
            Self::Lnd(lnd) => Arc::clone(lnd) as Arc<dyn Receive>,
            Self::Phoenixd(phoenixd) => Arc::clone(phoenixd) as Arc<dyn Receive>,
        }
    }

    /// The backend for paying. A node that may come late is asked who it is: it must be there now.
    pub async fn pay(&self) -> Result<Arc<dyn Pay>, ConnectError> {
        Ok(match self {
            #[cfg(feature = "embedded")]
            Self::Embedded(node) => Arc::clone(node) as Arc<dyn Pay>,
            Self::Lnd(lnd) => Arc::new(LndWallet::open(lnd.client()).await?),
            Self::Phoenixd(phoenixd) => Arc::clone(phoenixd) as Arc<dyn Pay>,
        })
    }

    /// Stops what runs in this process, and waits for it. Of a lnd that is the clearing up of unpaid invoices.
    pub async fn stop(&self) {
        match self {
            #[cfg(feature = "embedded")]
            Self::Embedded(node) => node.stop().await,
            Self::Lnd(lnd) => lnd.stop().await,
            Self::Phoenixd(_) => {}
        }
    }
}

impl LightningConfig {
    /// Connects to the node, or starts it. An embedded node whose chain source is down is returned nevertheless and tries
    /// again by itself, and so is a lnd that is down.
    pub async fn connect(&self, places: Places<'_>) -> Result<Connected, ConnectError> {
        match self {
            #[cfg(feature = "embedded")]
            Self::Embedded(settings) => {
                let config = embedded::config(settings, places)?;
                Ok(Connected::Embedded(EmbeddedNode::start(config).await?))
            }
            #[cfg(not(feature = "embedded"))]
            Self::Embedded(_) => Err(ConnectError::NotBuilt),
            Self::Lnd(settings) => {
                Ok(Connected::Lnd(Lnd::connect(settings.config(places)?, Arc::new(SystemClock))?))
            }
            Self::Backends(_) => Err(ConnectError::Several),
            Self::Phoenixd(PhoenixdSettings { url, password }) => {
                let config = PhoenixdConfig::new(url.clone(), password.read(places)?);
                let phoenixd = Phoenixd::connect(config, Arc::new(SystemClock)).await?;
                Ok(Connected::Phoenixd(Arc::new(phoenixd)))
            }
        }
    }
}

impl LndSettings {
    fn config(&self, places: Places<'_>) -> Result<LndConfig, ConnectError> {
        let trust = match &self.tls_cert {
            None => Trust::Pinned(lnd_dir()?.join("tls.cert")),
            Some(TlsCert::File(file)) => Trust::Pinned(places.config.join(file)),
            Some(TlsCert::Authority(file)) => Trust::Authority(places.config.join(file)),
            Some(TlsCert::System) => Trust::System,
        };
        let macaroon = match &self.macaroon {
            None => {
                let network = self.network.to_string();
                let directory = lnd_dir()?.join("data/chain/bitcoin").join(network);
                Credential::File(directory.join("invoice.macaroon"))
            }
            // Not read here: lnd may be about to write it, and may write another one later.
            Some(Password::File(file)) => Credential::File(places.config.join(file)),
            Some(other) => Credential::Text(other.read(places)?),
        };
        Ok(LndConfig {
            address: self.address.clone(),
            trust,
            macaroon,
            network: self.network,
            private_hints: self.private_hints,
            open_invoices_max: usize::try_from(self.open_invoices_max.get()).unwrap_or(usize::MAX),
            call_timeout: self.call_timeout,
        })
    }
}

/// Where lnd keeps its files unless it is told otherwise.
fn lnd_dir() -> Result<PathBuf, ConnectError> {
    let below = if cfg!(target_os = "macos") { "Library/Application Support/Lnd" } else { ".lnd" };
    Ok(PathBuf::from(std::env::var_os("HOME").ok_or(ConnectError::Home)?).join(below))
}

impl Password {
    /// The same for what spends by itself, unlike a password: whoever else can read its file is refused.
    pub(super) fn read_private(&self, places: Places<'_>) -> Result<Secret, ConnectError> {
        #[cfg(unix)]
        if let Self::File(path) = self {
            let path = places.config.join(path);
            let found = std::fs::metadata(&path);
            let mode = found.map(|found| std::os::unix::fs::MetadataExt::mode(&found) & 0o7777);
            match mode {
                Ok(mode) if mode & 0o077 != 0 => return Err(ConnectError::Readable { path, mode }),
                // Reading it says better what is wrong.
                Ok(_) | Err(_) => {}
            }
        }
        self.read(places)
    }

    fn read(&self, places: Places<'_>) -> Result<Secret, ConnectError> {
        match self {
            Self::Text(secret) => Ok(secret.clone()),
            Self::Env(name) => {
                std::env::var(name).map(Secret::new).map_err(|_| ConnectError::PasswordEnv(name.clone()))
            }
            Self::File(path) => {
                let path = places.config.join(path);
                let text = std::fs::read_to_string(&path).map(zeroize::Zeroizing::new);
                match text {
                    Ok(text) => Ok(Secret::new(text.trim())),
                    Err(error) => Err(ConnectError::PasswordFile { path, error }),
                }
            }
        }
    }
}

#[cfg(feature = "embedded")]
mod embedded {
    use std::time::Duration;

    use farebox_protocol::Network;
    use zeroize::Zeroizing;

    use super::{ConnectError, Places};
    use crate::config::{BitcoindSettings, ChainSettings, EmbeddedSettings};
    use crate::embedded::{ChainSource, EmbeddedConfig, Seed, Storage};

    /// How often the chain source is asked. LDK's own default.
    const SYNC_EVERY: Duration = Duration::from_secs(30);

    pub(super) fn config(
        settings: &EmbeddedSettings,
        places: Places<'_>,
    ) -> Result<EmbeddedConfig, ConnectError> {
        let dir = match &settings.dir {
            Some(dir) => places.config.join(dir),
            None => places.state.join("lightning"),
        };
        let seed = match &settings.seed_file {
            Some(file) => places.config.join(file),
            None => dir.join("seed"),
        };
        let chain = match &settings.chain {
            ChainSettings::Esplora(url) => ChainSource::Esplora { url: url.clone() },
            ChainSettings::Electrum(url) => ChainSource::Electrum { url: url.clone() },
            ChainSettings::Bitcoind(bitcoind) => bitcoind_source(bitcoind, settings.network, places)?,
        };
        Ok(EmbeddedConfig {
            network: settings.network,
            chain,
            storage: Storage::Directory(dir),
            seed: Seed::File(seed),
            listen: settings.listen,
            alias: settings.alias.clone(),
            rapid_gossip: settings.rapid_gossip.clone(),
            sync_every: Some(SYNC_EVERY),
        })
    }

    fn bitcoind_source(
        bitcoind: &BitcoindSettings,
        network: Network,
        places: Places<'_>,
    ) -> Result<ChainSource, ConnectError> {
        let port = bitcoind.port.unwrap_or(match network {
            Network::Mainnet => 8_332,
            Network::Testnet => 18_332,
            Network::Signet => 38_332,
            Network::Regtest => 18_443,
        });
        Ok(ChainSource::Bitcoind {
            host: bitcoind.host.clone(),
            port,
            user: bitcoind.user.clone(),
            password: Zeroizing::new(bitcoind.password.read(places)?.expose().to_owned()),
            rest: bitcoind.rest_port.map(|port| (bitcoind.host.clone(), port)),
        })
    }

    #[cfg(test)]
    mod tests {
        use std::path::Path;

        use serde_json::json;

        use super::*;

        fn places() -> Places<'static> {
            Places { config: Path::new("/etc/farebox"), state: Path::new("/var/lib/farebox") }
        }

        fn read(settings: serde_json::Value) -> EmbeddedConfig {
            config(&serde_json::from_value(settings).unwrap(), places()).unwrap()
        }

        #[test]
        fn what_is_kept_is_kept_in_the_state_directory() {
            let config = read(json!({ "chain": { "esplora": "https://x" } }));
            assert_eq!(config.storage, Storage::Directory("/var/lib/farebox/lightning".into()));
            assert!(
                matches!(config.seed, Seed::File(path) if path == Path::new("/var/lib/farebox/lightning/seed"))
            );
        }

        #[test]
        fn paths_are_relative_to_the_configuration_file() {
            let config =
                read(json!({ "chain": { "esplora": "https://x" }, "dir": "node", "seed-file": "/run/seed" }));
            assert_eq!(config.storage, Storage::Directory("/etc/farebox/node".into()));
            assert!(matches!(config.seed, Seed::File(path) if path == Path::new("/run/seed")));
        }

        #[test]
        fn bitcoind_is_sought_at_the_port_of_the_network() {
            for (network, want) in
                [("mainnet", 8_332), ("testnet", 18_332), ("signet", 38_332), ("regtest", 18_443)]
            {
                let config = read(json!({
                    "network": network,
                    "chain": { "bitcoind": { "user": "u", "password": { "text": "p" }, "rest-port": 1 } },
                }));
                let ChainSource::Bitcoind { port, rest, .. } = config.chain else { panic!("not bitcoind") };
                assert_eq!((port, rest), (want, Some(("127.0.0.1".to_owned(), 1))));
            }
        }

        #[test]
        fn a_password_that_is_not_there_is_named() {
            for (password, want) in [
                (json!({ "file": "pass" }), "can't read the password in `/etc/farebox/pass`"),
                (
                    json!({ "env": "FAREBOX_NO_SUCH_VARIABLE" }),
                    "the environment variable `FAREBOX_NO_SUCH_VARIABLE`",
                ),
            ] {
                let settings = json!({ "chain": { "bitcoind": { "user": "u", "password": password } } });
                let error = config(&serde_json::from_value(settings).unwrap(), places()).unwrap_err();
                assert!(error.to_string().starts_with(want), "{error}");
            }
        }
    }
}
