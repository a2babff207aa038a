//! The real parts that end-to-end tests put together.
//!
//! [`net()`] is a simulated chain with two real LDK nodes, started once for each test binary, since a node's first payment
//! takes two seconds. [`Upstream`] is a real HTTP server that counts what reaches it. [`Program`] is the farebox program as a
//! real process. [`Seller`] puts them together. [`regtest()`] is a chain with real lnd, for the live suites. Nothing here
//! stands in for something else.

#![expect(clippy::unwrap_used, reason = "a test that can't be set up has failed, and where is what matters")]
#![expect(clippy::missing_panics_doc, reason = "all of this panics when a test can't be set up")]

mod authority;
mod bare;
mod interop;
mod net;
mod peers;
mod program;
mod regtest;
mod scripts;
mod seller;
mod upstream;

pub use authority::Authority;
pub use bare::bare_hyper;
pub use interop::InteropServer;
pub use net::{Door, Lightning, net};
pub use peers::peers;
pub use program::Program;
pub use regtest::{Lnd, Refused, Regtest, Shared, regtest, until};
pub use scripts::Scripts;
pub use seller::{Challenge, Seller, ask_with, until_selling};
pub use upstream::Upstream;
