//! `farebox mcp` as a program: what an agent can do with it, and what it can't. The wallet door is the real one, the wallet
//! behind it a double that keeps books and moves no money. Every session that is ended has shown no secret.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

#[path = "../../../client/tests/support/mod.rs"]
mod support;

mod agent;
mod door;
mod hostile;
mod listen;
mod money;
