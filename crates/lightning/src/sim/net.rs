//! A chain, a seller and a buyer with a channel to the seller: everything that a first payment needs.
//!
//! LDK forwards nothing in its first two seconds, so start the net first and do everything else meanwhile; the channel is
//! there after a tenth of a second. Never restart a node between tests: share one net per test binary.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bitcoin::ScriptBuf;
use farebox_protocol::{Msat, Network};
use ldk_node::{ChannelDetails, Node, NodeError};
use tokio::time::{Instant, sleep};

use super::chain::{Chain, ChainError};
use super::esplora::EsploraServer;
use crate::embedded::{ChainSource, EmbeddedConfig, EmbeddedError, EmbeddedNode, NotRunning, Seed, Storage};

/// How long any one step may take on a machine that has other things to do.
const STEP_MAX: Duration = Duration::from_secs(60);
/// How often a step looks whether it is done. LDK tells no one when a transaction is broadcast or a peer connected.
const LOOK: Duration = Duration::from_millis(3);
/// Confirmations after which both nodes use a channel.
const CONFIRMATIONS: u32 = 6;
/// Blocks until what was mined can be spent.
const MATURITY: u32 = 100;
/// Other programs may take a free port between our finding it and LDK's using it.
const PORT_TRIES: usize = 20;

/// What the net should be like. The default suits tests and the demo.
#[derive(Clone, Debug)]
pub struct NetConfig {
    /// The size of the channel, in satoshi.
    pub channel_sat: u64,
    /// How much of it the seller has at the start, so that refunds can be paid.
    pub push: Msat,
    /// Whether the net outlives the process.
    pub storage: NetStorage,
    /// Where the seller listens for the buyer; a free port of the loopback interface if not given.
    pub listen: Option<SocketAddr>,
}

/// Where a net is kept.
#[derive(Clone, Debug)]
pub enum NetStorage {
    /// In memory.
    Memory,
    /// In this directory: chain and nodes belong together, one without the others is worth nothing.
    Directory(PathBuf),
}

/// A running net.
#[derive(Debug)]
pub struct Net {
    /// The chain. Mine with [`Net::mine`], so that the nodes hear of it.
    pub chain: Arc<Chain>,
    /// The node that is paid.
    pub seller: Arc<EmbeddedNode>,
    /// The node that pays.
    pub buyer: Arc<EmbeddedNode>,
    /// Where the seller listens.
    pub seller_addr: SocketAddr,
    esplora: EsploraServer,
}

/// Why there is no net.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// The chain's file can't be used.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// A node can't be started.
    #[error(transparent)]
    Node(#[from] EmbeddedError),
    /// A node has stopped.
    #[error(transparent)]
    NotRunning(#[from] NotRunning),
    /// LDK refuses.
    #[error("the simulated network can't {0}: {1}")]
    Refused(&'static str, NodeError),
    /// No port, no directory.
    #[error("the simulated network can't be set up: {0}")]
    Io(#[from] std::io::Error),
    /// It doesn't get on.
    #[error("the simulated network did not {0} within a minute")]
    TimedOut(&'static str),
}

impl Default for NetConfig {
    fn default() -> Self {
        Self {
            channel_sat: 5_000_000,
            push: Msat::new(1_000_000_000),
            storage: NetStorage::Memory,
            listen: None,
        }
    }
}

impl Net {
    /// Starts the nodes and opens the channel, or brings back the one that is there.
    pub async fn start(config: NetConfig) -> Result<Self, NetError> {
        let chain = match &config.storage {
            NetStorage::Memory => Chain::in_memory(),
            NetStorage::Directory(dir) => {
                std::fs::create_dir_all(dir)?;
                Chain::open(&dir.join("chain"))?
            }
        };
        let esplora = EsploraServer::start(Arc::clone(&chain))?;
        let url = esplora.url();
        let (seller, buyer) = tokio::join!(
            start_seller(&config, &url),
            EmbeddedNode::start(node_config(&config.storage, "buyer", &url, None)),
        );
        let (seller, seller_addr) = seller?;
        let net = Self { chain, seller, buyer: buyer?, seller_addr, esplora };
        if net.seller.with_ldk(|node| node.list_channels().is_empty()).await? {
            net.open_channel(&config).await?;
        } else {
            net.reconnect().await?;
        }
        Ok(net)
    }

    /// The chain's address, for a node in another process.
    pub fn esplora_url(&self) -> String {
        self.esplora.url()
    }

    /// Mines blocks and tells both nodes.
    pub async fn mine(&self, blocks: u32) -> Result<(), NetError> {
        self.chain.mine(blocks, &burn())?;
        self.sync().await
    }

    /// Stops everything and waits for it.
    pub async fn stop(self) {
        tokio::join!(self.seller.stop(), self.buyer.stop());
    }

    async fn sync(&self) -> Result<(), NetError> {
        let (seller, buyer) = tokio::join!(self.seller.sync(), self.buyer.sync());
        Ok(seller.and(buyer)?)
    }

    async fn open_channel(&self, config: &NetConfig) -> Result<(), NetError> {
        // The seller needs coins too: LDK wants a reserve for closing a channel.
        for node in [&self.seller, &self.buyer] {
            let address = node.with_ldk(|node| node.onchain_payment().new_address()).await?;
            let address = address.map_err(|error| NetError::Refused("make an address", error))?;
            self.chain.mine(1, &address.script_pubkey())?;
        }
        self.mine(MATURITY).await?;
        let (seller, addr) = (self.seller.node_id(), self.seller_addr.into());
        let (size, push) = (config.channel_sat, config.push.get());
        let opened =
            self.buyer.with_ldk(move |node| node.open_channel(seller, addr, size, Some(push), None)).await?;
        opened.map_err(|error| NetError::Refused("open a channel", error))?;
        self.until("fund the channel", async || Ok(self.chain.waiting() > 0)).await?;
        self.mine(CONFIRMATIONS).await?;
        self.wait_for_channel().await
    }

    async fn reconnect(&self) -> Result<(), NetError> {
        self.sync().await?;
        let (seller, addr) = (self.seller.node_id(), self.seller_addr.into());
        let connected = self.buyer.with_ldk(move |node| node.connect(seller, addr, true)).await?;
        connected.map_err(|error| NetError::Refused("connect the nodes", error))?;
        self.wait_for_channel().await
    }

    async fn wait_for_channel(&self) -> Result<(), NetError> {
        let usable =
            |node: &Node| node.list_channels().iter().any(|channel: &ChannelDetails| channel.is_usable);
        for node in [&self.seller, &self.buyer] {
            self.until("make the channel usable", async || Ok(node.with_ldk(usable).await?)).await?;
            // The route hints are those of a channel that is up.
            node.refresh().await;
        }
        Ok(())
    }

    async fn until(
        &self,
        step: &'static str,
        mut done: impl AsyncFnMut() -> Result<bool, NetError>,
    ) -> Result<(), NetError> {
        let give_up = Instant::now() + STEP_MAX;
        while !done().await? {
            if Instant::now() > give_up {
                return Err(NetError::TimedOut(step));
            }
            sleep(LOOK).await;
        }
        Ok(())
    }
}

/// Nobody's script.
fn burn() -> ScriptBuf {
    ScriptBuf::new_op_return([])
}

async fn start_seller(config: &NetConfig, url: &str) -> Result<(Arc<EmbeddedNode>, SocketAddr), NetError> {
    let mut tries = if config.listen.is_some() { 1 } else { PORT_TRIES };
    loop {
        let listen = config.listen.map_or_else(free_port, Ok)?;
        tries -= 1;
        match EmbeddedNode::start(node_config(&config.storage, "seller", url, Some(listen))).await {
            Ok(node) => return Ok((node, listen)),
            Err(EmbeddedError::Listen(_)) if tries > 0 => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn free_port() -> std::io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

fn node_config(storage: &NetStorage, name: &str, url: &str, listen: Option<SocketAddr>) -> EmbeddedConfig {
    let (storage, seed) = match storage {
        NetStorage::Memory => (Storage::Memory, Seed::random()),
        NetStorage::Directory(dir) => {
            let dir = dir.join(name);
            (Storage::Directory(dir.clone()), Seed::File(dir.join("seed")))
        }
    };
    EmbeddedConfig {
        network: Network::Regtest,
        chain: ChainSource::Esplora { url: url.to_owned() },
        storage,
        seed,
        listen,
        alias: None,
        rapid_gossip: None,
        sync_every: None,
    }
}
