//! Lightning nodes that may come late: paid tokens are served from the first moment, whether or not a node answers.
//!
//! Until it does, it can't be asked for invoices (which buyers see as 503 with Retry-After, unless another node sells) and
//! its settlements wait where they are: in the node. What can't get better by waiting, such as a wrong password, stops the
//! start. Found later, it stops the program where there is no other node; of several, that one is left out, and says so.

use std::{
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::Context as _;
use farebox_lightning::{
    Ask, Cursor, Health, Incoming, Pay, Receive, ReceiveError, ReceiveFacts, Settlement,
    config::{ConnectError, Connected, LightningConfig, Places},
    phoenixd,
};
use farebox_paywall::{Backend, Backends};
use farebox_protocol::{Invoice, Network, PaymentHash};
use futures_util::{
    future::{self, BoxFuture, FutureExt as _},
    stream::{self, BoxStream, StreamExt as _},
};
use parking_lot::Mutex;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// How long a node that doesn't answer may delay the start.
const FIRST_ATTEMPT: Duration = Duration::from_secs(2);
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// The nodes of a configuration, in its order.
pub(crate) struct LateNodes(Vec<(String, Arc<LateNode>)>);

/// A node, connected now or later.
struct LateNode {
    network: Network,
    config: LightningConfig,
    base: Box<Path>,
    state: Box<Path>,
    node: OnceLock<(Connected, Arc<dyn Receive>)>,
    /// Why it isn't connected.
    why: Mutex<String>,
}

impl LateNodes {
    /// Tries to connect to each of them once. `Err` is for what waiting can't mend.
    pub(crate) async fn start(
        config: LightningConfig,
        network: Network,
        base: &Path,
        state: &Path,
    ) -> anyhow::Result<Self> {
        let start = config.backends().iter().map(|one| LateNode::start(one.clone(), network, base, state));
        let nodes = future::try_join_all(start).await?;
        Ok(Self(names(config.backends()).into_iter().zip(nodes).collect()))
    }

    /// Them as the paywall wants them.
    pub(crate) fn backends(&self) -> anyhow::Result<Backends> {
        let backend =
            |(name, node): &(String, Arc<LateNode>)| Backend { name: name.clone(), node: node.clone() };
        Ok(Backends::new(self.0.iter().map(backend).collect())?)
    }

    /// The first of them, to pay from. An error where it isn't there yet, or can't pay.
    pub(crate) async fn wallet(&self) -> anyhow::Result<Arc<dyn Pay>> {
        let (name, late) = self.0.first().context("there is no node")?;
        let node = late.node.get().with_context(|| format!("`{name}` isn't connected yet"))?;
        node.0.pay().await.with_context(|| format!("`{name}` can't pay"))
    }

    /// Goes on trying until all are there or `stop` is cancelled. `Err` is for what waiting can't mend.
    pub(crate) async fn keep_trying(&self, stop: &CancellationToken) -> anyhow::Result<()> {
        let is_only = self.0.len() == 1;
        let each = self.0.iter().map(async |(name, node)| match node.keep_trying(stop).await {
            Err(error) if !is_only => {
                tracing::error!("`{name}` is left out until the next start: {error:#}");
                *node.why.lock() = format!("{error:#}");
                Ok(())
            }
            outcome => outcome,
        });
        future::try_join_all(each).await?;
        Ok(())
    }

    /// Stops those that are in this process.
    pub(crate) async fn stop(&self) {
        future::join_all(self.0.iter().map(|(_, node)| node.stop())).await;
    }
}

/// What they are called: by their kind, and with a number from the second of a kind on.
fn names(backends: &[LightningConfig]) -> Vec<String> {
    let kinds: Vec<_> = backends.iter().map(LightningConfig::kind).collect();
    let name = |(at, kind): (usize, &&str)| match kinds[..at].iter().filter(|before| *before == kind).count()
    {
        0 => (*kind).to_owned(),
        before => format!("{kind}-{}", before + 1),
    };
    kinds.iter().enumerate().map(name).collect()
}

impl LateNode {
    /// Tries to connect once. `Err` is for what waiting can't mend.
    async fn start(
        config: LightningConfig,
        network: Network,
        base: &Path,
        state: &Path,
    ) -> anyhow::Result<Arc<Self>> {
        let late = Self {
            network,
            config,
            base: base.into(),
            state: state.into(),
            node: OnceLock::new(),
            why: Mutex::new("not connected yet".to_owned()),
        };
        // Giving up on an attempt is harmless where the node is a program of its own; one in this process is waited for.
        match late.config {
            LightningConfig::Phoenixd(_) => match timeout(FIRST_ATTEMPT, late.try_connect()).await {
                Ok(outcome) => outcome?,
                Err(_) => tracing::warn!(
                    "the Lightning node is slow to answer; tokens paid for are served meanwhile"
                ),
            },
            _ => late.try_connect().await?,
        }
        Ok(Arc::new(late))
    }

    /// Goes on trying until the node is there or `stop` is cancelled. `Err` is for what waiting can't mend.
    async fn keep_trying(&self, stop: &CancellationToken) -> anyhow::Result<()> {
        let mut wait = RETRY_FIRST;
        while self.node.get().is_none() {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = sleep(wait) => {}
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                outcome = self.try_connect() => outcome?,
            }
            wait = (wait * 2).min(RETRY_MAX);
        }
        Ok(())
    }

    /// Stops the node if it is in this process.
    async fn stop(&self) {
        if let Some((node, _)) = self.node.get() {
            node.stop().await;
        }
    }

    async fn try_connect(&self) -> anyhow::Result<()> {
        let places = Places { config: &self.base, state: &self.state };
        let node = match self.config.connect(places).await {
            Ok(node) => node,
            Err(ConnectError::Phoenixd(error @ phoenixd::ConnectError::NoAnswer { .. })) => {
                let why = error.to_string();
                tracing::warn!("{why}; nothing can be sold until it does, tokens paid for are served");
                *self.why.lock() = why;
                return Ok(());
            }
            Err(error) => return Err(error).context("cannot use the Lightning node"),
        };
        // One that hasn't been spoken to yet is held against the configuration by its first invoice.
        let receive = node.receive();
        let facts = receive.facts();
        let network = facts.as_ref().map_or(self.network, |facts| facts.network);
        anyhow::ensure!(
            network == self.network,
            "the Lightning node is on {network}, but the configuration sells on {}; test coins must not buy what costs money",
            self.network
        );
        tracing::info!(node = facts.map(|facts| facts.node), "connected to the Lightning node");
        _ = self.node.set((node, receive));
        Ok(())
    }

    fn down(&self) -> ReceiveError {
        ReceiveError::Unavailable(self.why.lock().clone())
    }

    fn connected(&self) -> Result<&dyn Receive, ReceiveError> {
        self.node.get().map(|(_, receive)| &**receive).ok_or_else(|| self.down())
    }
}

impl Receive for LateNode {
    fn facts(&self) -> Option<ReceiveFacts> {
        self.connected().ok()?.facts()
    }

    fn invoice(&self, ask: Ask) -> BoxFuture<'_, Result<Invoice, ReceiveError>> {
        match self.connected() {
            Ok(node) => node.invoice(ask),
            Err(error) => future::ready(Err(error)).boxed(),
        }
    }

    fn lookup(&self, hash: PaymentHash) -> BoxFuture<'_, Result<Incoming, ReceiveError>> {
        match self.connected() {
            Ok(node) => node.lookup(hash),
            Err(error) => future::ready(Err(error)).boxed(),
        }
    }

    fn settlements(&self, after: Cursor) -> BoxStream<'_, Result<Settlement, ReceiveError>> {
        match self.connected() {
            Ok(node) => node.settlements(after),
            Err(error) => stream::iter([Err(error)]).boxed(),
        }
    }

    fn health(&self) -> Health {
        match self.connected() {
            Ok(node) => node.health(),
            Err(_) => Health::Down(self.why.lock().clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nodes_are_called_by_their_kind_and_a_second_one_by_a_number() {
        let phoenixd = json!({ "phoenixd": { "password": { "env": "P" } } });
        let embedded = json!({ "embedded": { "chain": { "esplora": "https://x" } } });
        let list = json!({ "backends": [phoenixd, embedded, phoenixd, phoenixd] });
        let config: LightningConfig = serde_json::from_value(list).unwrap();
        assert_eq!(names(config.backends()), ["phoenixd", "embedded", "phoenixd-2", "phoenixd-3"]);
    }
}
