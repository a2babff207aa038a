//! A simulated Lightning Network: a regtest chain in this process, an Esplora server over it, and two real LDK nodes with
//! a funded channel between them. For the demo and for tests; it never talks to anything outside the machine.
//!
//! Only the chain is simulated. Wallets, funding transaction, TCP, encryption, commitment transactions, HTLCs and
//! preimages are the real ones, since LDK believes itself on regtest.

mod block;
mod chain;
mod esplora;
mod file;
mod mempool;
mod net;

pub use chain::{Chain, ChainError};
pub use esplora::EsploraServer;
pub use mempool::Refused;
pub use net::{Net, NetConfig, NetError, NetStorage};
