//! Any bytes against the laws in `laws/header.rs`, which the protocol crate's tests check too, on a few inputs.

#![no_main]

#[path = "../laws/header.rs"]
mod laws;

libfuzzer_sys::fuzz_target!(|data: &[u8]| laws::check(data));
