//! Lightning backends: receive and pay, durable outgoing payments, an embedded LDK node and a simulated chain.

pub mod clock;
pub mod config;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod door;
#[cfg(feature = "embedded")]
pub mod embedded;
#[doc(hidden)]
pub mod failpoint;
pub mod lnaddress;
pub mod lnd;
pub mod nwc;
pub mod outgoing;
pub mod phoenixd;
mod ports;
#[cfg(feature = "embedded")]
pub mod sim;

pub use ports::{
    Ask, Cursor, FeeControl, Health, Incoming, Outcome, Pay, PayError, PayFacts, PayRequest, Receive,
    ReceiveError, ReceiveFacts, Settlement, WalletId,
};
