//! The buyer: pay for an HTTP resource over Lightning, once, within limits, and never lose what was paid for.
//!
//! [`Engine::fetch`] sends a request. When the server answers 402 with an L402 challenge it decides ([`purchase`]), pays
//! (`farebox_lightning::outgoing`), keeps the credential (a journal in SQLite) and sends the request again. Of many
//! requests and processes that want the same thing exactly one pays. A process that is killed at any point leaves a
//! journal from which the next one goes on: money that has left is followed, and what was paid for is delivered.
//!
//! Errors say what became of the money: [`FetchError::money`].

mod approve;
mod body;
mod engine;
mod error;
mod failpoint;
mod holder;
mod http;
pub mod import;
mod journal;
mod limits;
#[cfg(test)]
#[path = "../tests/support/mint.rs"]
mod mint;
mod origin;
mod own_client;
mod pass;
pub mod policy;
pub mod purchase;
mod shortfall;
pub mod tower;

pub use approve::{Approve, Question};
pub use body::RequestBody;
pub use engine::{
    ApproveError, BudgetUse, Engine, EngineConfig, Explained, Fetched, Quote, Quoted, Receipt, Recovered,
    Recovery, SellerAnswer,
};
pub use error::{Fault, FetchError, OpenError};
pub use failpoint::FAILPOINTS;
pub use http::{HttpConfig, Proxy, Reach, RequestError, Silent};
pub use journal::{
    Approval, Broken, Brought, JournalError, Overrun, PendingApproval, PurchaseRow, ReceiptRow, Redating,
    Verified,
};
pub use limits::Limits;
pub use origin::{NotAnOrigin, Origin};
pub use own_client::PayExt;
pub use pass::{Pass, Scope};
pub use purchase::{Money, Refusal, Stop};
pub use shortfall::{MonthReached, Short, Shortfall, Unit, UnitsLeft};
