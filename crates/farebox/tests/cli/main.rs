//! The program as people meet it: the real binary, run from outside.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

mod bad_config;
mod bought;
mod commands;
mod common;
mod reference;
mod seller_receipts;
mod serve;
