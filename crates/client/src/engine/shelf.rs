//! What the journal holds, for whoever wants to look at it, take it elsewhere or be rid of it.

use farebox_protocol::PaymentHash;

use super::{Engine, FetchError};
use crate::Pass;
use crate::journal::PurchaseRow;

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
}
