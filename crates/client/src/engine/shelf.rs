//! What the journal holds, for whoever wants to look at it, take it elsewhere or be rid of it.

use farebox_protocol::PaymentHash;

use super::{Engine, FetchError};
use crate::Pass;
use crate::journal::{PurchaseRow, ReceiptRow, Verified};

impl Engine {
    /// One purchase.
    pub async fn purchase(&self, payment: PaymentHash) -> Result<Option<PurchaseRow>, FetchError> {
        self.asked(move |journal| journal.purchase(&payment)).await
    }

    /// The credential that a payment bought: a secret, which opens what was bought to whoever has it. `None` where nothing was
    /// paid.
    pub async fn credential(&self, payment: PaymentHash) -> Result<Option<Pass>, FetchError> {
        self.asked(move |journal| journal.pass(&payment)).await
    }

    /// Shows a credential nowhere any more. It stays on record, and so does what it cost. `false`: there is none, or it was
    /// given up before.
    pub async fn forget(&self, payment: PaymentHash) -> Result<bool, FetchError> {
        let now = self.0.now();
        self.asked(move |journal| journal.forget(&payment, now)).await
    }

    /// The latest receipts, newest first; of payments whose credential was never honoured only, if `is_unserved`.
    pub async fn receipts(&self, most: u32, is_unserved: bool) -> Result<Vec<ReceiptRow>, FetchError> {
        self.asked(move |journal| journal.receipts(most, is_unserved)).await
    }

    /// Receipts with numbers above `after`, oldest first, at most `most`: a page at a time.
    pub async fn receipts_after(&self, after: u64, most: u32) -> Result<Vec<ReceiptRow>, FetchError> {
        self.asked(move |journal| journal.receipts_after(after, most)).await
    }

    /// Recomputes the chain of receipts and holds it against the purchases: every proof must be of its payment, every payment
    /// have its receipt, and the links that were noted earlier must be in the chain.
    pub async fn verify_receipts(&self, noted: Vec<[u8; 32]>) -> Result<Verified, FetchError> {
        self.asked(move |journal| journal.verify_receipts(&noted)).await
    }
}
