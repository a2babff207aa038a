//! What is said to the wallet and by it, as NIP-47 writes it. Wallets leave out what the page calls required, so little is
//! required here; what counts is checked where it is used.

use serde::Deserialize;
use serde_json::Value;

use crate::phoenixd::Secret;

/// What is in every answer.
#[derive(Deserialize)]
pub(super) struct Envelope {
    pub(super) result_type: Option<String>,
    pub(super) error: Option<Fault>,
    pub(super) result: Option<Value>,
}

/// Why the wallet does not do what it was asked.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Fault {
    pub(super) code: String,
    #[serde(default)]
    pub(super) message: String,
}

/// `get_info`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Info {
    pub(super) network: Option<String>,
    pub(super) methods: Option<Vec<String>>,
}

/// `pay_invoice`.
#[derive(Deserialize)]
pub(super) struct Paid {
    pub(super) preimage: Option<Secret>,
    pub(super) fees_paid: Option<u64>,
}

/// `lookup_invoice`, and each of `list_transactions`.
#[derive(Deserialize)]
pub(super) struct Transaction {
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) state: Option<String>,
    pub(super) invoice: Option<String>,
    pub(super) payment_hash: Option<String>,
    pub(super) preimage: Option<Secret>,
    pub(super) amount: Option<u64>,
    pub(super) fees_paid: Option<u64>,
    pub(super) settled_at: Option<u64>,
}

impl Transaction {
    /// By its state, or by what wallets tell that know no states yet. Never by a preimage: some show it before anything is
    /// paid.
    pub(super) fn is_settled(&self) -> bool {
        match self.state.as_deref() {
            Some(state) => state.eq_ignore_ascii_case("settled"),
            None => self.settled_at.is_some_and(|at| at > 0),
        }
    }

    /// It tells of money that comes in, which says nothing of a payment by this wallet.
    pub(super) fn is_incoming(&self) -> bool {
        self.kind.as_deref().is_some_and(|kind| kind.eq_ignore_ascii_case("incoming"))
    }
}

/// `list_transactions`.
#[derive(Deserialize)]
pub(super) struct Transactions {
    pub(super) transactions: Vec<Transaction>,
}

/// `get_balance`.
#[derive(Deserialize)]
pub(super) struct Balance {
    pub(super) balance: u64,
}

/// `get_budget`: empty where there is none.
#[derive(Debug, Deserialize)]
pub(super) struct Budget {
    pub(super) used_budget: Option<u64>,
    pub(super) total_budget: Option<u64>,
    pub(super) renewal_period: Option<String>,
}
