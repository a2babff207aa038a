//! The nodes that are paid: one, or several in the order in which they are to be asked.
//!
//! A challenge goes to the first node that is believed to work; when it fails, the next one is asked, all within one
//! deadline. What is believed is a [`Breaker`]'s business: it keeps buyers from waiting for a node that has just failed
//! others, and never stands in the way when there is no better one to ask. With one node it therefore changes nothing.
//! A node on another network than the one that is sold on is out, whenever that is found: it is not asked, and its
//! settlements, in whatever coins, are not booked.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use farebox_lightning::{Health, Receive, ReceiveError, ReceiveFacts};
use farebox_protocol::Network;

use crate::{PaywallConfig, trouble::Trouble};

mod breaker;
mod ready;

pub(crate) use breaker::{Attempt, Breaker};
pub(crate) use ready::{Ready, Wanted};

/// A node that receives, and what it is called in health, metrics and log.
#[derive(Clone)]
pub struct Backend {
    /// The name: `lnd`, `phoenixd`, …
    pub name: String,
    /// The node.
    pub node: Arc<dyn Receive>,
}

/// The nodes that receive, in the order in which they are asked: at least one.
#[derive(Clone)]
pub struct Backends(Vec<Backend>);

/// There is no node to be paid through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no Lightning node; name at least one")]
pub struct NoBackend;

/// How one node is doing. The texts are for the log and for `readyz`, never for a stranger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeHealth {
    /// What it is called.
    pub name: String,
    /// Whether new invoices can be had, by the node's own account.
    pub node: Health,
    /// Why the last invoice could not be had, if the last one couldn't.
    pub minting: Option<String>,
    /// Why its settlements aren't being booked.
    pub settling: Option<String>,
    /// Payments that it received for others, and that were left to them, since the start.
    pub payments_of_others: u64,
    /// Invoices that wait to be handed out.
    pub invoices_ready: usize,
}

/// The nodes, and what is known of each.
pub(crate) struct Nodes {
    nodes: Vec<Node>,
}

/// One of them.
pub(crate) struct Node {
    pub(crate) name: String,
    receive: Arc<dyn Receive>,
    network: Network,
    pub(crate) breaker: Breaker,
    pub(crate) ready: Ready,
    pub(crate) minting: Trouble,
    pub(crate) settling: Trouble,
    pub(crate) others: AtomicU64,
}

impl Backends {
    /// These nodes, in this order.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn new(backends: Vec<Backend>) -> Result<Self, NoBackend> {
        if backends.is_empty() { Err(NoBackend) } else { Ok(Self(backends)) }
    }
}

impl From<Arc<dyn Receive>> for Backends {
    /// The only one.
    fn from(node: Arc<dyn Receive>) -> Self {
        Self(vec![Backend { name: "node".to_owned(), node }])
    }
}

impl<N: Receive + 'static> From<Arc<N>> for Backends {
    /// The only one.
    fn from(node: Arc<N>) -> Self {
        Self::from(node as Arc<dyn Receive>)
    }
}

impl Nodes {
    pub(crate) fn new(backends: Backends, config: &PaywallConfig) -> Self {
        let several = backends.0.len() > 1;
        let node = |Backend { name, node }: Backend| Node {
            // Of an only node that is said as "making challenges".
            minting: match several {
                true => Trouble::new(format!("making invoices with `{name}`")),
                false => Trouble::silent(),
            },
            settling: match several {
                true => Trouble::new(format!("following the settlements of `{name}`")),
                false => Trouble::new("following settlements"),
            },
            receive: node,
            network: config.network,
            breaker: Breaker::default(),
            ready: Ready::new(config.ready_invoices, config.invoice_expiry),
            others: AtomicU64::new(0),
            name,
        };
        Self { nodes: backends.0.into_iter().map(node).collect() }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter()
    }

    /// How late after its expiry an invoice of any of them may be paid; `None` while one of them has not said.
    pub(crate) fn grace(&self) -> Option<Duration> {
        self.nodes.iter().map(|node| node.receive.facts().map(|facts| facts.grace)).max_by_key(|grace| {
            // One that hasn't said counts for more than any that has.
            grace.unwrap_or(Duration::MAX)
        })?
    }

    /// The network of a node that has said it, and isn't on ours.
    pub(crate) fn stray(&self) -> Option<Network> {
        self.nodes.iter().find_map(Node::stray)
    }

    /// Whether new invoices can be had from any of them.
    pub(crate) fn health(&self) -> Health {
        let mut down = Vec::with_capacity(self.nodes.len());
        for node in &self.nodes {
            match node.health() {
                Health::Ready => return Health::Ready,
                Health::Down(why) if self.nodes.len() == 1 => down.push(why),
                Health::Down(why) => down.push(format!("{}: {why}", node.name)),
            }
        }
        Health::Down(down.join("; "))
    }

    /// Why no node's settlements are being booked, if it has come to that.
    pub(crate) fn settling(&self) -> Option<String> {
        let why: Option<Vec<_>> = self.nodes.iter().map(|node| node.settling.text()).collect();
        why.map(|why| why.join("; "))
    }

    pub(crate) fn healths(&self) -> Vec<NodeHealth> {
        let health = |node: &Node| NodeHealth {
            name: node.name.clone(),
            node: node.health(),
            minting: node.minting.text(),
            settling: node.settling.text(),
            payments_of_others: node.others.load(Ordering::Relaxed),
            invoices_ready: node.ready.len(),
        };
        self.nodes.iter().map(health).collect()
    }
}

impl Node {
    /// The node, to be asked for anything but its facts.
    pub(crate) fn receive(&self) -> &dyn Receive {
        &*self.receive
    }

    /// What is true of this node, if it is one that may be sold through.
    pub(crate) fn facts(&self) -> Result<ReceiveFacts, ReceiveError> {
        let facts =
            self.receive.facts().ok_or_else(|| ReceiveError::Unavailable("not reached yet".to_owned()))?;
        match self.stray() {
            Some(network) => Err(ReceiveError::Wrong(self.out(network))),
            None => Ok(facts),
        }
    }

    /// Its network, where that isn't ours.
    fn stray(&self) -> Option<Network> {
        self.receive.facts().map(|facts| facts.network).filter(|network| *network != self.network)
    }

    fn out(&self, network: Network) -> String {
        format!("it is on {network}, but {} is sold on; nothing is sold through it", self.network)
    }

    pub(crate) fn health(&self) -> Health {
        match self.stray() {
            Some(network) => Health::Down(self.out(network)),
            None => self.receive.health(),
        }
    }

    /// Whether nothing at all speaks against it: an invoice made earlier is handed out only then.
    pub(crate) fn is_sound(&self) -> bool {
        self.breaker.is_closed() && self.settling.is_clear() && self.health() == Health::Ready
    }
}
