//! A shop, a wallet double and a network between them, for tests of the engine. No money exists here.

#![allow(dead_code, unused_imports, reason = "each test program uses its own part")]

pub(crate) mod buyer;
pub(crate) mod mint;
pub(crate) mod no_receive;
pub(crate) mod shop;
pub(crate) mod wallet;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use farebox_client::{Engine, EngineConfig, FetchError, Fetched, HttpConfig, Proxy};
use farebox_lightning::Pay;

pub(crate) use no_receive::NoReceive;
pub(crate) use shop::Shop;
pub(crate) use wallet::{Mood, WalletDouble};

/// A directory that stands for the Lightning network: who has the preimage of what, and what has been paid.
#[derive(Clone, Debug)]
pub(crate) struct Net(PathBuf);

impl Net {
    pub(crate) fn at(directory: impl Into<PathBuf>) -> Self {
        let directory = directory.into();
        std::fs::create_dir_all(directory.join("invoices")).unwrap();
        std::fs::create_dir_all(directory.join("paid")).unwrap();
        Self(directory)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Every payment that was made, by hash, in order.
    pub(crate) fn payments(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.0.join("payments")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }
}

/// One buyer's and one seller's world in a directory of its own.
pub(crate) struct World {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) net: Net,
}

impl World {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let net = Net::at(directory.path().join("net"));
        Self { directory, net }
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.directory.path().join("buyer/journal.db")
    }

    pub(crate) fn wallet(&self) -> Arc<WalletDouble> {
        Arc::new(WalletDouble::new(self.net.clone()))
    }

    /// An engine with a wallet that pays at once.
    pub(crate) fn engine(&self) -> Engine {
        self.engine_with(self.wallet())
    }

    pub(crate) fn engine_with(&self, wallet: Arc<dyn Pay>) -> Engine {
        Engine::open(EngineConfig { wallet: Some(wallet), ..config(&self.journal()) }).unwrap()
    }

    pub(crate) fn config(&self) -> EngineConfig {
        EngineConfig { wallet: Some(self.wallet()), ..config(&self.journal()) }
    }
}

pub(crate) fn config(journal: &Path) -> EngineConfig {
    EngineConfig {
        http: HttpConfig { proxy: Proxy::None, ..HttpConfig::default() },
        pay_timeout: Duration::from_secs(20),
        patience: Duration::from_secs(2),
        ..EngineConfig::new(journal)
    }
}

pub(crate) fn get(url: &str) -> http::Request<Bytes> {
    http::Request::get(url).body(Bytes::new()).unwrap()
}

/// The body of an answer, or what went wrong: `over_price_limit None`.
pub(crate) async fn told(fetched: Result<Fetched, FetchError>) -> String {
    match fetched {
        Ok(fetched) => {
            let status = fetched.response.status().as_u16();
            format!("{status} {}", fetched.response.text().await.unwrap())
        }
        Err(error) => format!("{} {}", error.code(), money(&error)),
    }
}

pub(crate) fn money(error: &FetchError) -> &'static str {
    match error.money() {
        farebox_client::Money::None => "none",
        farebox_client::Money::Spent { .. } => "spent",
        farebox_client::Money::Unknown { .. } => "unknown",
    }
}
