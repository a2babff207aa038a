//! Any story of a ledger against the laws in `laws/ledger.rs`, which the paywall's tests check too, on fewer stories.

#![no_main]

#[path = "../laws/ledger.rs"]
mod laws;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    laws::check(data);
});
