//! A Lightning node inside this process: LDK, through `ldk-node`, with invoices of our own making.
//!
//! What it adds to `ldk-node`: it runs on a runtime of its own, so that callers may be on any; it starts although its chain
//! source is down and connects later; invoices cost nothing until they are paid ([`Minter`]); settlements are a log that can
//! be read from any point; and a payment is on disk before it is sent, so that "not found" proves "not sent".
//!
//! It is not a wallet with channels to manage by itself: [`EmbeddedNode::with_ldk`] reaches the node for that.

mod config;
mod database;
mod directory;
mod events;
mod hints;
mod ldk_log;
mod mem_store;
mod minter;
mod node;
mod pay;
mod receive;
mod received;
mod sent;

pub use config::{ChainSource, EmbeddedConfig, Seed, Storage};
pub use directory::DirectoryError;
pub use ldk_node;
pub use minter::Minter;
pub use node::{EmbeddedError, EmbeddedNode, NotRunning};
