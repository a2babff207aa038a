//! What an embedded node is told at its start. Plain data; the configuration file's form of it is `crate::config`.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use farebox_protocol::Network;
use zeroize::Zeroizing;

/// How to start an [`EmbeddedNode`](super::EmbeddedNode).
#[derive(Debug)]
pub struct EmbeddedConfig {
    /// The network to be on.
    pub network: Network,
    /// Where blocks and transactions come from.
    pub chain: ChainSource,
    /// Where channels and payments are kept.
    pub storage: Storage,
    /// The node's only secret: everything it owns follows from it.
    pub seed: Seed,
    /// Where peers may connect. The port must be given: LDK can't tell which one it got for port 0.
    pub listen: Option<SocketAddr>,
    /// The name in the public graph, at most 32 bytes. Needs `listen`; only with it can channels be announced.
    pub alias: Option<String>,
    /// Where the graph of public channels is fetched from (rapid gossip sync); from peers without.
    pub rapid_gossip: Option<String>,
    /// How often to ask the chain source, at least 10 s. `None`: only when [`sync`](super::EmbeddedNode::sync) is called.
    pub sync_every: Option<Duration>,
}

/// Where blocks and transactions come from.
#[derive(Clone)]
#[non_exhaustive]
pub enum ChainSource {
    /// An Esplora server. It learns the node's addresses.
    Esplora {
        /// Such as `https://blockstream.info/api`.
        url: String,
    },
    /// An Electrum server. It learns the node's addresses.
    Electrum {
        /// Such as `ssl://electrum.example.org:50002`.
        url: String,
    },
    /// A Bitcoin Core node of one's own: the only source that learns nothing.
    Bitcoind {
        /// Host of the RPC interface.
        host: String,
        /// Its port.
        port: u16,
        /// RPC user.
        user: String,
        /// RPC password.
        password: Zeroizing<String>,
        /// The REST interface, which is faster for blocks, if it is enabled.
        rest: Option<(String, u16)>,
    },
}

impl fmt::Debug for ChainSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // A URL may hold a provider's key.
            Self::Esplora { .. } => f.write_str("Esplora(..)"),
            Self::Electrum { .. } => f.write_str("Electrum(..)"),
            Self::Bitcoind { host, port, .. } => write!(f, "Bitcoind({host}:{port})"),
        }
    }
}

/// Where channels and payments are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Nowhere: everything is gone when the node stops. For the demo and for tests on a chain that goes with it.
    Memory,
    /// In this directory, which is made if needed and belongs to one process at a time. Losing it, or putting back an
    /// old copy of it, can lose the money in the channels.
    Directory(PathBuf),
}

/// Where the 64 secret bytes come from. The first 64 bytes of BIP 39 (`Mnemonic::to_seed`) and LDK's `keys_seed` file fit.
pub enum Seed {
    /// From this file: 128 hexadecimal digits, or LDK's 64 raw bytes. Made on the first start, readable by its owner only.
    File(PathBuf),
    /// These bytes.
    Bytes(Zeroizing<[u8; 64]>),
}

impl Seed {
    /// A seed nobody has had before.
    pub fn random() -> Self {
        let mut bytes = Zeroizing::new([0; 64]);
        getrandom::fill(&mut *bytes).expect("the operating system gives randomness");
        Self::Bytes(bytes)
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Bytes(_) => f.write_str("Bytes(..)"),
        }
    }
}
