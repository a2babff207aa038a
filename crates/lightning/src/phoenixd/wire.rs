//! phoenixd's JSON, read by the backend and written by farebox's own door: one set of structures, so that they agree.
//!
//! Fields that phoenixd does not have are ours, optional, and ignored by everybody else. Amounts are whole satoshi unless
//! the name says otherwise, times are milliseconds since 1970.

use serde::{Deserialize, Serialize};

use super::Secret;

/// `POST /createinvoice`
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CreatedInvoice {
    pub(crate) amount_sat: Option<u64>,
    pub(crate) payment_hash: String,
    pub(crate) serialized: String,
}

/// `GET /payments/incoming/{hash}`, and the items of `GET /payments/incoming`.
///
/// phoenixd also gives the preimage, *even while unpaid*. It is neither read nor written here: it proves nothing.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct IncomingPayment {
    #[serde(rename = "type", default)]
    pub(crate) kind: String,
    #[serde(default)]
    pub(crate) sub_type: String,
    pub(crate) payment_hash: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) invoice: Option<String>,
    pub(crate) is_paid: bool,
    #[serde(default)]
    pub(crate) is_expired: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) requested_sat: Option<u64>,
    #[serde(default)]
    pub(crate) received_sat: u64,
    /// What phoenixd kept for liquidity, in millisatoshi: the payer paid it, too.
    #[serde(default)]
    pub(crate) fees: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) expires_at: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) completed_at: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) created_at: Option<u64>,
    /// Ours: what arrived, exactly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) received_msat: Option<u64>,
    /// Ours: the place in the node's sequence, for `?after=`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cursor: Option<u64>,
}

/// `GET /payments/outgoingbyhash/{hash}`
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OutgoingPayment {
    #[serde(rename = "type", default)]
    pub(crate) kind: String,
    #[serde(default)]
    pub(crate) sub_type: String,
    #[serde(default)]
    pub(crate) payment_id: String,
    pub(crate) payment_hash: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) preimage: Option<Secret>,
    pub(crate) is_paid: bool,
    /// What left the wallet, fee included.
    #[serde(default)]
    pub(crate) sent: u64,
    /// What the route cost, in millisatoshi.
    #[serde(default)]
    pub(crate) fees: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) invoice: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) completed_at: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) created_at: Option<u64>,
}

/// `POST /payinvoice`: paid or not, with status 200 for both.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PaymentAnswer {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) recipient_amount_sat: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) routing_fee_sat: Option<u64>,
    /// Ours: phoenixd cuts off what is below a satoshi.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) routing_fee_msat: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) payment_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) payment_hash: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) payment_preimage: Option<Secret>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

/// `GET /getinfo`
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NodeInfo {
    pub(crate) node_id: String,
    pub(crate) chain: String,
    #[serde(default)]
    pub(crate) channels: Vec<serde_json::Value>,
    #[serde(default)]
    pub(crate) version: String,
    /// Ours: this is farebox's door, and it can do more than phoenixd.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) farebox: Option<DoorFacts>,
}

/// What farebox's door says of the wallet behind it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DoorFacts {
    /// The node, with the book of its settlements: whose cursors these are. `nodeId` is its public key alone.
    pub(crate) node: String,
    /// The wallet's name.
    pub(crate) wallet: String,
    /// It keeps to `maxFeeMsat`.
    pub(crate) fees_exact: bool,
    /// It pays no hash twice: the door's journal, or the wallet itself, refuses.
    pub(crate) refuses_paid_hash: bool,
    /// How long after its invoice's expiry a payment may still arrive, in seconds.
    pub(crate) grace_secs: u64,
}

/// `GET /getbalance`
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Balance {
    pub(crate) balance_sat: u64,
    #[serde(default)]
    pub(crate) fee_credit_sat: u64,
}
