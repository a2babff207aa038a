//! An API sold by the program through a real lnd, and bought by another: `cargo xtask live lnd`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

mod books;
mod buy;
mod chain;
mod down;
mod flood;
mod guide;
mod long;
mod rules;
mod sale;

const FAREBOX: &str = env!("CARGO_BIN_EXE_farebox");
