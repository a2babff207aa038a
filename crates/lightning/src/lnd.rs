//! lnd as a backend, over its gRPC interface.

#![allow(dead_code, reason = "what calls this follows")]

pub(crate) mod client;
mod credential;
pub(crate) mod rpc;
mod tls;

pub use self::{credential::Credential, tls::Trust};
