//! lnd, the node that most sellers have, as a backend over its gRPC interface.
//!
//! It needs little permission: making, looking up and following invoices is enough, which lnd's own `invoice.macaroon`
//! allows. That lnd is down, locked or out of step is a state to come back from and never an error of the start: one task
//! (`watch`) finds out, everybody else reads what it found. A node has other customers, so each settlement is told with
//! its description, and whoever sells says which are its own. What is asked for and never paid is cleared up (`open`).

mod advice;
mod anchor;
pub(crate) mod client;
mod credential;
mod open;
mod pay;
pub(crate) mod rpc;
mod settlements;
#[cfg(test)]
mod tests;
mod tls;
mod watch;

use std::{fmt, sync::Arc, time::Duration};

use farebox_protocol::{Invoice, Msat, Network, PaymentHash, Preimage, Timestamp};
use futures_util::{FutureExt as _, future::BoxFuture, stream::BoxStream};
use tokio::time;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use zeroize::Zeroizing;

pub use self::{credential::Credential, pay::LndWallet, tls::Trust};

use self::{
    client::{CallError, Client, Peer},
    open::Open,
    rpc::lnrpc::{self, invoice::InvoiceState},
    watch::Watch,
};
use crate::{Ask, Cursor, Health, Incoming, Receive, ReceiveError, ReceiveFacts, Settlement, clock::Clock};

/// What fits into an invoice, in bytes (BOLT11).
const DESCRIPTION_MAX: usize = 639;
/// How much of the end of a longer one is kept: a label for the books stands there.
const DESCRIPTION_TAIL: usize = 320;
/// lnd makes no invoice that lives longer.
const EXPIRY_MAX: Duration = Duration::from_secs(365 * 24 * 3_600);
/// How much longer than asked an invoice may live before its answer is called wrong.
const EXPIRY_SLACK: Duration = Duration::from_secs(60);
/// How long the end of the program waits, whatever the deadline of a call is.
const STOP_MAX: Duration = Duration::from_secs(8);

/// Where lnd is, and how to deal with it.
#[derive(Clone, Debug)]
pub struct LndConfig {
    /// Host and port of its gRPC interface, such as `127.0.0.1:10009`.
    pub address: String,
    /// Whose certificate is believed.
    pub trust: Trust,
    /// The macaroon.
    pub macaroon: Credential,
    /// The network that is sold on; a node on another one is not sold through.
    pub network: Network,
    /// Whether invoices tell payers of private channels.
    pub private_hints: bool,
    /// How many unpaid invoices may be open in the node at once.
    pub open_invoices_max: usize,
    /// How long any call may take that is answered once.
    pub call_timeout: Duration,
}

/// The address can't be one.
#[derive(Debug, thiserror::Error)]
#[error("`{address}` is not lnd's address; write host and port, such as `127.0.0.1:10009`")]
pub struct AddressError {
    /// What was written.
    pub address: String,
}

/// A lnd, reachable or not.
pub struct Lnd {
    node: Arc<Node>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// What the tasks share.
pub(crate) struct Node {
    pub(crate) client: Client,
    pub(crate) watch: Watch,
    open: Open,
    clock: Arc<dyn Clock>,
    network: Network,
    private_hints: bool,
}

impl fmt::Debug for Lnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lnd").field("node", &self.node.watch).finish_non_exhaustive()
    }
}

impl Drop for Lnd {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Lnd {
    /// Begins to look for lnd, and returns at once: whether it is there, [`Receive::health`] says. Must be called within a
    /// runtime.
    pub fn connect(config: LndConfig, clock: Arc<dyn Clock>) -> Result<Arc<Self>, AddressError> {
        let LndConfig { address, trust, macaroon, network, private_hints, open_invoices_max, call_timeout } =
            config;
        let peer = Peer { address: address.clone(), trust, macaroon, deadline: call_timeout };
        let client = Client::new(peer).map_err(|_| AddressError { address })?;
        let (watch, open) = (Watch::new(), Open::new(open_invoices_max));
        let node = Arc::new(Node { client, watch, open, clock, network, private_hints });
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        tasks.spawn(watch::keep_watch(Arc::clone(&node), stop.clone()));
        tasks.spawn(open::keep_clear(Arc::clone(&node), stop.clone()));
        Ok(Arc::new(Self { node, tasks, stop }))
    }

    /// Clears up the invoices that have expired, for a few seconds at most, and stops asking.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        if time::timeout(STOP_MAX, self.tasks.wait()).await.is_err() {
            tracing::warn!("lnd does not answer; unpaid invoices are left to it");
        }
    }

    /// The connection, for paying over it.
    pub(crate) fn client(&self) -> Client {
        self.node.client.clone()
    }
}

impl Node {
    /// Why nothing can be had, if so.
    fn check_ready(&self) -> Result<(), ReceiveError> {
        match self.watch.health() {
            Health::Ready => Ok(()),
            Health::Down(why) => Err(ReceiveError::Unavailable(why)),
        }
    }

    async fn make(&self, ask: Ask) -> Result<Invoice, ReceiveError> {
        self.check_ready()?;
        // A part of a second counts as a whole one.
        let expiry = Duration::from_secs(Timestamp::default().saturating_add(ask.expiry).secs());
        let Some(slot) = self.open.reserve() else {
            let max = self.open.max();
            return Err(ReceiveError::Unavailable(format!("{max} invoices are open (`open-invoices-max`)")));
        };
        let preimage = preimage()?;
        let hash = preimage.payment_hash();
        let asked = lnrpc::Invoice {
            memo: shorten(&ask.description),
            // Ours, so that the hash is known before lnd has answered, and also if it never does.
            r_preimage: preimage.expose_bytes().to_vec(),
            value_msat: i64::try_from(ask.amount.get()).map_err(|_| no_price(ask.amount))?,
            expiry: i64::try_from(expiry.as_secs()).unwrap_or(i64::MAX),
            private: self.private_hints,
            ..lnrpc::Invoice::default()
        };
        let made = self.add_invoice(asked).await;
        // Whatever is wrong with it: where it is in the node, or may be, it is cleared up like the others.
        if made.as_ref().err().is_none_or(CallError::may_be_done) {
            slot.keep(hash, expiry);
        }
        let made = made.map_err(|error| self.failed(error))?;
        let invoice = match made.r_hash == hash.as_bytes() {
            true => self.check(&made.payment_request, hash, ask.amount, expiry),
            false => Err(wrong("is not for the payment hash that was asked for")),
        };
        if let Err(error) = &invoice {
            tracing::error!("lnd: {error}; it is not sold");
        }
        invoice
    }

    /// The invoice that lnd made, if it is the one that was asked for.
    fn check(
        &self,
        text: &str,
        hash: PaymentHash,
        amount: Msat,
        expiry: Duration,
    ) -> Result<Invoice, ReceiveError> {
        let invoice: Invoice = text.parse().map_err(|error| wrong(&format!("can't be read: {error}")))?;
        if invoice.payment_hash() != hash {
            return Err(wrong("has another payment hash than it says"));
        }
        if invoice.amount() != Some(amount) {
            return Err(wrong(&format!("is not for {amount}")));
        }
        if invoice.network() != self.network {
            return Err(wrong(&format!("is for {}, not for {}", invoice.network(), self.network)));
        }
        let lives = invoice.expires_at().since(invoice.created_at());
        if lives < expiry || lives > expiry + EXPIRY_SLACK {
            return Err(wrong(&format!("lives {} s, not {} s", lives.as_secs(), expiry.as_secs())));
        }
        if invoice.is_expired(self.clock.now()) {
            return Err(wrong("is expired already: lnd's clock is far behind this one"));
        }
        let payee = invoice.payee();
        if self.watch.identity().is_none_or(|identity| identity.key != payee) {
            return Err(wrong(&format!("is to be paid to another node, `{payee}`")));
        }
        Ok(invoice)
    }

    /// Takes note of a call that failed, and says it to the seller.
    fn failed(&self, error: CallError) -> ReceiveError {
        self.watch.note(&error);
        receive_error(error)
    }
}

/// A secret that nobody has yet.
fn preimage() -> Result<Preimage, ReceiveError> {
    let mut bytes = Zeroizing::new([0; 32]);
    let drawn = getrandom::fill(&mut *bytes);
    drawn.map_err(|error| ReceiveError::Unavailable(format!("this machine has no random bytes: {error}")))?;
    Ok(Preimage::from_bytes(*bytes))
}

fn receive_error(error: CallError) -> ReceiveError {
    match error {
        CallError::TimedOut(limit) => ReceiveError::TimedOut(limit),
        error => ReceiveError::Unavailable(error.to_string()),
    }
}

fn wrong(what: &str) -> ReceiveError {
    ReceiveError::Wrong(format!("the new invoice {what}"))
}

fn no_price(amount: Msat) -> ReceiveError {
    ReceiveError::Invalid(format!("`{amount}` is no price"))
}

/// As much of a description as fits: its beginning and its end.
fn shorten(description: &str) -> String {
    const GAP: &str = "…";
    if description.len() <= DESCRIPTION_MAX {
        return description.to_owned();
    }
    let (mut head, mut tail) =
        (DESCRIPTION_MAX - DESCRIPTION_TAIL - GAP.len(), description.len() - DESCRIPTION_TAIL);
    while !description.is_char_boundary(head) {
        head -= 1;
    }
    while !description.is_char_boundary(tail) {
        tail += 1;
    }
    format!("{}{GAP}{}", &description[..head], &description[tail..])
}

impl Receive for Lnd {
    fn facts(&self) -> Option<ReceiveFacts> {
        let identity = self.node.watch.identity()?;
        Some(ReceiveFacts {
            network: identity.network,
            node: identity.key.clone(),
            // lnd refuses what comes later.
            grace: Duration::ZERO,
            granularity: Msat::new(1),
            is_shared: true,
        })
    }

    fn invoice(&self, ask: Ask) -> BoxFuture<'_, Result<Invoice, ReceiveError>> {
        async move {
            if ask.amount == Msat::ZERO || ask.amount > Msat::MAX {
                return Err(no_price(ask.amount));
            }
            if ask.expiry > EXPIRY_MAX {
                return Err(ReceiveError::Invalid("lnd's invoices live a year at most".to_owned()));
            }
            let node = Arc::clone(&self.node);
            // A task of its own: an invoice that nobody waits for any more must be cleared up all the same.
            let made = self.tasks.spawn(async move { node.make(ask).await }).await;
            made.unwrap_or_else(|_| Err(ReceiveError::Unavailable("farebox is stopping".to_owned())))
        }
        .boxed()
    }

    fn lookup(&self, hash: PaymentHash) -> BoxFuture<'_, Result<Incoming, ReceiveError>> {
        async move {
            let known = self.node.look_up(hash).await.map_err(|error| self.node.failed(error))?;
            match known {
                Some(invoice) if invoice.r_hash != hash.as_bytes() => {
                    Err(ReceiveError::Wrong("lnd told of another invoice".to_owned()))
                }
                Some(invoice) if invoice.state() == InvoiceState::Settled => Ok(Incoming::Settled {
                    amount: settlements::paid(&invoice),
                    at: settlements::settled_at(&invoice),
                }),
                _ => Ok(Incoming::Unpaid),
            }
        }
        .boxed()
    }

    fn settlements(&self, after: Cursor) -> BoxStream<'_, Result<Settlement, ReceiveError>> {
        settlements::follow(&self.node, after)
    }

    fn health(&self) -> Health {
        self.node.watch.health()
    }
}
