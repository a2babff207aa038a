//! `farebox node`: a Lightning node with a wallet door, which speaks phoenixd's HTTP API, for gateways that share one
//! node and for scripts. The node itself, and every rule about money, is the `lightning` crate's.

#[cfg(feature = "embedded")]
mod embedded;

use std::{net::SocketAddr, path::PathBuf};

use farebox_protocol::Network;

/// Run a Lightning node whose wallet speaks phoenixd's HTTP API
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The password is made on the first start and kept in DIR/http-password. What is in DIR is money: keep
it, never run two nodes on it, and never put back an old copy.

Examples:
  farebox node --network signet --esplora https://mempool.space/signet/api
  farebox node --network mainnet --bitcoind 127.0.0.1:8332 \\
      --bitcoind-user farebox --bitcoind-password-file rpc-password
  curl -u :$(cat farebox-node/http-password) http://127.0.0.1:9740/getbalance")]
pub(crate) struct Args {
    /// The Bitcoin network: mainnet, testnet, signet or regtest
    #[arg(long, value_name = "NETWORK")]
    network: Network,
    #[command(flatten)]
    chain: Chain,
    /// Where keys, channels and payments are kept
    #[arg(long, value_name = "DIR", default_value = "farebox-node")]
    dir: PathBuf,
    /// Where the wallet is reached
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9740")]
    listen: SocketAddr,
    /// More names under which the wallet is reached, such as a container's (may be repeated)
    #[arg(long = "host", value_name = "NAME")]
    hosts: Vec<String>,
    /// Where other Lightning nodes may connect; without it, this node connects to others only
    #[arg(long, value_name = "ADDR")]
    peer_listen: Option<SocketAddr>,
    /// The node's name in the public graph; needs --peer-listen
    #[arg(long, value_name = "NAME", requires = "peer_listen")]
    alias: Option<String>,
    /// Fetch the graph of public channels from this rapid gossip server, rather than from peers
    #[arg(long, value_name = "URL")]
    rapid_gossip: Option<String>,
}

/// Where blocks and transactions come from: exactly one.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "The chain (one of)")]
#[command(group(clap::ArgGroup::new("source").required(true).args(["esplora", "electrum", "bitcoind"])))]
struct Chain {
    /// An Esplora server; it learns the node's addresses
    #[arg(long, value_name = "URL")]
    esplora: Option<String>,
    /// An Electrum server, like ssl://electrum.example.org:50002; it learns the node's addresses
    #[arg(long, value_name = "URL")]
    electrum: Option<String>,
    /// The RPC interface of a Bitcoin Core of your own; nobody else learns anything
    #[arg(long, value_name = "HOST:PORT", requires_all = ["bitcoind_user", "bitcoind_password_file"])]
    bitcoind: Option<String>,
    /// Its RPC user
    #[arg(long, value_name = "USER", requires = "bitcoind")]
    bitcoind_user: Option<String>,
    /// The file with its RPC password
    #[arg(long, value_name = "FILE", requires = "bitcoind")]
    bitcoind_password_file: Option<PathBuf>,
}

#[cfg(feature = "embedded")]
pub(crate) use embedded::run;

#[cfg(not(feature = "embedded"))]
pub(crate) fn run(_: Args, _: crate::output::Reader) -> anyhow::Result<std::process::ExitCode> {
    anyhow::bail!("this farebox was built without a Lightning node; use a build with the feature `embedded`")
}
