//! Any bytes against the laws in `laws/usage.rs`, which the paywall crate's tests check too, on a few inputs.

#![no_main]

#[path = "../laws/usage.rs"]
mod laws;

libfuzzer_sys::fuzz_target!(|data: &[u8]| laws::check(data));
