//! A node that is never paid, for a wallet door whose buyer only pays.

use std::time::Duration;

use farebox_lightning::{Ask, Cursor, Health, Incoming, Receive, ReceiveError, ReceiveFacts, Settlement};
use farebox_protocol::{Invoice, Msat, Network, PaymentHash};
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream, stream::BoxStream};

/// The other half of a node, of which a buyer needs only the name.
pub(crate) struct NoReceive;

impl Receive for NoReceive {
    fn facts(&self) -> Option<ReceiveFacts> {
        Some(ReceiveFacts {
            network: Network::Regtest,
            node: "double".to_owned(),
            grace: Duration::ZERO,
            granularity: Msat::new(1_000),
            is_shared: false,
        })
    }

    fn invoice(&self, _: Ask) -> BoxFuture<'_, Result<Invoice, ReceiveError>> {
        async { Err(ReceiveError::Unavailable("a double".to_owned())) }.boxed()
    }

    fn lookup(&self, _: PaymentHash) -> BoxFuture<'_, Result<Incoming, ReceiveError>> {
        async { Ok(Incoming::Unpaid) }.boxed()
    }

    fn settlements(&self, _: Cursor) -> BoxStream<'_, Result<Settlement, ReceiveError>> {
        stream::pending().boxed()
    }

    fn health(&self) -> Health {
        Health::Ready
    }
}
