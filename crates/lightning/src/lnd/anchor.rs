//! The one invoice that farebox keeps in a node: it tells which node this is, and marks where our invoices begin.
//!
//! lnd's `invoice.macaroon` does not permit asking who the node is, but an invoice is signed with the node's key and says
//! its network. So farebox has one made, for nobody to pay, and looks it up ever after. It is found again without being
//! remembered, because its preimage follows from the macaroon.
//!
//! It stays open for another reason. lnd replays the invoices *after* one that it seeks; when that one is gone it takes the
//! next for it, and skips that. An invoice that lies before all that we sell and is never deleted makes sure that what is
//! skipped isn't ours (`settlements`).

use farebox_protocol::{Invoice, PaymentHash, Preimage};
use sha2::{Digest as _, Sha256};

use super::{
    Node,
    client::CallError,
    rpc::lnrpc::{self, invoice::InvoiceState},
    watch::{Identity, Trouble},
};

/// What the node's owner reads.
const MEMO: &str = "farebox knows this node by this invoice; nobody is asked to pay it";
/// lnd's longest, a year. Then a new one is made.
const EXPIRY_SECS: i64 = 365 * 24 * 3_600;
/// How many old ones that can't be deleted are passed over.
const GENERATIONS: u8 = 16;

impl Node {
    /// Who the node is, by the invoice that it keeps for us, or by a new one.
    pub(super) async fn identify(&self) -> Result<Identity, Trouble> {
        for generation in 0..GENERATIONS {
            let preimage = self.anchor_preimage(generation)?;
            if let Some(text) = self.anchor(&preimage).await? {
                let invoice: Invoice =
                    text.parse().map_err(|error| Trouble::Unreadable(format!("{error}")))?;
                return Ok(Identity { key: invoice.payee(), network: invoice.network() });
            }
        }
        let many = format!("{GENERATIONS} invoices of farebox's own are cancelled and can't be deleted");
        Err(CallError::Said(many).into())
    }

    /// The text of the invoice with this preimage, made if there is none; `None` if it is dead and can't be deleted.
    async fn anchor(&self, preimage: &Preimage) -> Result<Option<String>, CallError> {
        let hash = preimage.payment_hash();
        if let Some(known) = self.look_up(hash).await? {
            if matches!(known.state(), InvoiceState::Open | InvoiceState::Accepted) {
                return Ok(Some(known.payment_request));
            }
            if self.delete_cancelled(hash).await.is_err() {
                return Ok(None);
            }
        }
        let anchor = lnrpc::Invoice {
            memo: MEMO.to_owned(),
            r_preimage: preimage.expose_bytes().to_vec(),
            value_msat: 1,
            expiry: EXPIRY_SECS,
            ..lnrpc::Invoice::default()
        };
        match self.add_invoice(anchor).await {
            Ok(made) => Ok(Some(made.payment_request)),
            // Another farebox with this macaroon was quicker.
            Err(CallError::Said(_)) => Ok(self.look_up(hash).await?.map(|known| known.payment_request)),
            Err(error) => Err(error),
        }
    }

    /// Secret as the macaroon is, and of no use to anyone: payers would need the rest of the invoice, too.
    fn anchor_preimage(&self, generation: u8) -> Result<Preimage, CallError> {
        let macaroon = self.client.macaroon()?;
        let hash = Sha256::new()
            .chain_update("farebox: the invoice that a node is known by")
            .chain_update([generation])
            .chain_update(macaroon.as_bytes())
            .finalize();
        Ok(Preimage::from_bytes(hash.into()))
    }

    /// Forgets an invoice that is cancelled.
    pub(super) async fn delete_cancelled(&self, hash: PaymentHash) -> Result<(), CallError> {
        const METHOD: &str = "lnrpc.Lightning/DeleteCanceledInvoice";
        let request = self.client.request(lnrpc::DelCanceledInvoiceReq { invoice_hash: hash.to_string() })?;
        let mut lightning = self.client.lightning();
        self.client.answer(METHOD, lightning.delete_canceled_invoice(request)).await.map(|_| ())
    }

    /// What the node knows of an invoice.
    pub(super) async fn look_up(&self, hash: PaymentHash) -> Result<Option<lnrpc::Invoice>, CallError> {
        const METHOD: &str = "lnrpc.Lightning/LookupInvoice";
        let request = self.client.request(lnrpc::PaymentHash { r_hash: hash.as_bytes().to_vec() })?;
        let mut lightning = self.client.lightning();
        match self.client.answer(METHOD, lightning.lookup_invoice(request)).await {
            Ok(invoice) => Ok(Some(invoice)),
            Err(CallError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Has an invoice made.
    pub(super) async fn add_invoice(
        &self,
        invoice: lnrpc::Invoice,
    ) -> Result<lnrpc::AddInvoiceResponse, CallError> {
        const METHOD: &str = "lnrpc.Lightning/AddInvoice";
        let request = self.client.request(invoice)?;
        let mut lightning = self.client.lightning();
        self.client.answer(METHOD, lightning.add_invoice(request)).await
    }
}
