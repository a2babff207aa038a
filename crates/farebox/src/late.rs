//! A Lightning node that may come late: paid tokens are served from the first moment, whether or not the node answers.
//!
//! Until it does, it can't be asked for invoices (which buyers see as 503 with Retry-After) and its settlements wait where
//! they are: in the node. What can't get better by waiting, such as a wrong password, stops the start instead.

use std::{
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

use anyhow::Context as _;
use farebox_lightning::{
    Ask, Cursor, Health, Incoming, Receive, ReceiveError, ReceiveFacts, Settlement,
    config::{ConnectError, Connected, LightningConfig, Places},
    phoenixd,
};
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

/// A node, connected now or later.
pub(crate) struct LateNode {
    network: Network,
    config: LightningConfig,
    base: Box<Path>,
    state: Box<Path>,
    node: OnceLock<Connected>,
    /// Why it isn't connected.
    why: Mutex<String>,
}

impl LateNode {
    /// Tries to connect once. `Err` is for what waiting can't mend.
    pub(crate) async fn start(
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
    pub(crate) async fn keep_trying(&self, stop: &CancellationToken) -> anyhow::Result<()> {
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
    pub(crate) async fn stop(&self) {
        if let Some(node) = self.node.get() {
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
        let facts = node.receive().facts();
        let network = facts.as_ref().map_or(self.network, |facts| facts.network);
        anyhow::ensure!(
            network == self.network,
            "the Lightning node is on {network}, but the configuration sells on {}; test coins must not buy what costs money",
            self.network
        );
        tracing::info!(node = facts.map(|facts| facts.node), "connected to the Lightning node");
        _ = self.node.set(node);
        Ok(())
    }

    fn down(&self) -> ReceiveError {
        ReceiveError::Unavailable(self.why.lock().clone())
    }

    fn connected(&self) -> Result<Arc<dyn Receive>, ReceiveError> {
        self.node.get().map(Connected::receive).ok_or_else(|| self.down())
    }
}

impl Receive for LateNode {
    fn facts(&self) -> Option<ReceiveFacts> {
        self.node.get().and_then(|node| node.receive().facts())
    }

    fn invoice(&self, ask: Ask) -> BoxFuture<'_, Result<Invoice, ReceiveError>> {
        match self.connected() {
            Ok(node) => async move { node.invoice(ask).await }.boxed(),
            Err(error) => future::ready(Err(error)).boxed(),
        }
    }

    fn lookup(&self, hash: PaymentHash) -> BoxFuture<'_, Result<Incoming, ReceiveError>> {
        match self.connected() {
            Ok(node) => async move { node.lookup(hash).await }.boxed(),
            Err(error) => future::ready(Err(error)).boxed(),
        }
    }

    fn settlements(&self, after: Cursor) -> BoxStream<'_, Result<Settlement, ReceiveError>> {
        // Borrowed for as long as this lives, which an `Arc` of its own couldn't be.
        match self.node.get() {
            Some(Connected::Phoenixd(node)) => node.settlements(after),
            Some(Connected::Lnd(node)) => node.settlements(after),
            #[cfg(feature = "embedded")]
            Some(Connected::Embedded(node)) => node.settlements(after),
            _ => stream::iter([Err(self.down())]).boxed(),
        }
    }

    fn health(&self) -> Health {
        match self.connected() {
            Ok(node) => node.health(),
            Err(_) => Health::Down(self.why.lock().clone()),
        }
    }
}
