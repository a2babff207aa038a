//! Whether the node can be sold through just now, and which node it is.
//!
//! One task asks, for ever: often while something is wrong, every two seconds while nothing is. Calls that fail for a
//! reason that concerns the whole node report it here, and are checked at once. Nobody else tries to find out, so health
//! is read without a round trip, and a node that is down is asked by one task and not by every buyer.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use farebox_protocol::Network;
use tokio::{
    sync::{Notify, watch},
    time,
};
use tokio_util::sync::CancellationToken;

use super::{
    Node,
    client::CallError,
    rpc::lnrpc::{GetInfoRequest, GetStateRequest, WalletState},
};
use crate::Health;

/// How often a node that works is asked whether it still does.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// How often it is asked whether it keeps up with the chain, where the macaroon permits that.
const SYNC_CHECK: Duration = Duration::from_secs(15);
/// The first wait after a failure.
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// The longest: a node that is back is found within this and a quarter.
const RETRY_MAX: Duration = Duration::from_secs(2);

const GET_STATE: &str = "lnrpc.State/GetState";
const GET_INFO: &str = "lnrpc.Lightning/GetInfo";

/// Which node it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Its public key, 66 hexadecimal digits.
    pub(crate) key: String,
    /// What its invoices are for.
    pub(crate) network: Network,
}

/// Why nothing can be sold through it. The texts say what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Trouble {
    #[error("lnd has not been asked yet")]
    NotAsked,
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("lnd is catching up with the chain; it can be sold through when it is synced (`lncli getinfo`)")]
    Syncing,
    #[error(
        "this lnd waits for another one of its cluster to go; the address should lead to the one that runs"
    )]
    Standby,
    #[error("lnd is on {is}, but {wanted} is sold on; is `address` the right node's, or `network` wrong?")]
    AnotherNetwork { is: Network, wanted: Network },
    #[error(
        "another node than before answers, `{is}` instead of `{was}`; restart farebox if that is meant to be"
    )]
    AnotherNode { is: String, was: String },
    #[error("lnd made an invoice that can't be read: {0}")]
    Unreadable(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Standing {
    Down(Arc<Trouble>),
    Ready,
}

/// What is known of the node's state.
#[derive(Debug)]
pub(crate) struct Watch {
    standing: watch::Sender<Standing>,
    identity: OnceLock<Identity>,
    /// Somebody has met trouble, or wants to know now.
    wake: Notify,
}

impl Watch {
    pub(crate) fn new() -> Self {
        let standing = watch::Sender::new(Standing::Down(Arc::new(Trouble::NotAsked)));
        Self { standing, identity: OnceLock::new(), wake: Notify::new() }
    }

    /// Which node it is; known once it has been spoken to, and then the same for ever.
    pub(crate) fn identity(&self) -> Option<&Identity> {
        self.identity.get()
    }

    pub(crate) fn health(&self) -> Health {
        match &*self.standing.borrow() {
            Standing::Ready => Health::Ready,
            Standing::Down(trouble) => Health::Down(trouble.to_string()),
        }
    }

    /// Waits until the node is ready.
    pub(crate) async fn ready(&self) {
        let mut standing = self.standing.subscribe();
        // It can't end: the sender is in `self`.
        _ = standing.wait_for(|standing| *standing == Standing::Ready).await;
    }

    /// Waits until its health is like this.
    #[cfg(test)]
    pub(super) async fn until(&self, is_so: impl Fn(&Health) -> bool) {
        let mut standing = self.standing.subscribe();
        while !is_so(&self.health()) {
            _ = standing.changed().await;
        }
    }

    /// Takes note of a call that failed.
    pub(crate) fn note(&self, error: &CallError) {
        if error.is_of_the_node() {
            self.set(Standing::Down(Arc::new(Trouble::Call(error.clone()))));
            self.wake.notify_one();
        } else if matches!(error, CallError::TimedOut(_)) {
            // One slow call says little; whether the node is there at all is asked at once.
            self.wake.notify_one();
        }
    }

    fn set(&self, standing: Standing) {
        self.standing.send_if_modified(|current| {
            let is_new = *current != standing;
            if is_new {
                match &standing {
                    Standing::Ready => tracing::info!("lnd is ready"),
                    Standing::Down(trouble) => {
                        tracing::warn!(why = %trouble, "nothing can be sold through lnd");
                    }
                }
                *current = standing;
            }
            is_new
        });
    }
}

/// Asks the node how it is until `stop` is cancelled.
pub(crate) async fn keep_watch(node: Arc<Node>, stop: CancellationToken) {
    let mut wait = RETRY_FIRST;
    let mut sync_checked = None;
    loop {
        let examined = tokio::select! {
            () = stop.cancelled() => return,
            examined = node.examine(&mut sync_checked) => examined,
        };
        let pause = match examined {
            Ok(()) => {
                node.watch.set(Standing::Ready);
                wait = RETRY_FIRST;
                HEARTBEAT
            }
            Err(trouble) => {
                node.watch.set(Standing::Down(Arc::new(trouble)));
                let pause = jittered(wait);
                wait = (wait * 2).min(RETRY_MAX);
                pause
            }
        };
        let is_ready = pause == HEARTBEAT;
        tokio::select! {
            () = stop.cancelled() => return,
            () = time::sleep(pause) => {}
            // While it is down every call fails: only the clock decides when it is asked again.
            () = node.watch.wake.notified(), if is_ready => {}
        }
    }
}

impl Node {
    /// Everything that must be right for selling, in the order in which a person would look.
    async fn examine(&self, sync_checked: &mut Option<time::Instant>) -> Result<(), Trouble> {
        if self.client.reload_macaroon() {
            *sync_checked = None;
        }
        self.ask_state().await?;
        let is = self.identify().await?;
        if is.network != self.network {
            return Err(Trouble::AnotherNetwork { is: is.network, wanted: self.network });
        }
        let was = self.watch.identity.get_or_init(|| is.clone());
        if *was != is {
            return Err(Trouble::AnotherNode { is: is.key, was: was.key.clone() });
        }
        if sync_checked.is_none_or(|at| at.elapsed() >= SYNC_CHECK) {
            self.ask_sync().await?;
            *sync_checked = Some(time::Instant::now());
        }
        Ok(())
    }

    /// Whether its wallet is open. Needs no macaroon.
    async fn ask_state(&self) -> Result<(), Trouble> {
        let mut state = self.client.state();
        let answer = self.client.answer(GET_STATE, state.get_state(GetStateRequest {})).await;
        match answer {
            Ok(answer) => match answer.state() {
                WalletState::NonExisting => Err(CallError::NoWallet.into()),
                WalletState::Locked => Err(CallError::Locked.into()),
                WalletState::Unlocked => Err(CallError::Starting.into()),
                // It answers calls, but the server behind them waits for the chain.
                WalletState::RpcActive => Err(Trouble::Syncing),
                WalletState::WaitingToStart => Err(Trouble::Standby),
                WalletState::ServerActive => Ok(()),
            },
            // Older than this service; what the other calls say must do.
            Err(CallError::Unimplemented(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether it has all blocks, where the macaroon permits to ask: lnd's own `invoice.macaroon` does not.
    async fn ask_sync(&self) -> Result<(), Trouble> {
        let request = self.client.request(GetInfoRequest {})?;
        let mut lightning = self.client.lightning();
        match self.client.answer(GET_INFO, lightning.get_info(request)).await {
            Ok(info) if !info.synced_to_chain => Err(Trouble::Syncing),
            Ok(_) | Err(CallError::NotPermitted(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl From<super::credential::CredentialError> for Trouble {
    fn from(error: super::credential::CredentialError) -> Self {
        Self::Call(error.into())
    }
}

/// A wait of between three and five quarters, so that many that lost the same node don't come back in step.
fn jittered(wait: Duration) -> Duration {
    let mut byte = [0];
    _ = getrandom::fill(&mut byte); // without chance all wait three quarters
    wait.mul_f64(0.75 + f64::from(byte[0]) / 512.0)
}
