//! Any story of a purchase against the laws in `laws/purchase.rs`, which the client's tests check too, on fewer stories.

#![no_main]

#[path = "../laws/purchase.rs"]
mod laws;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    laws::check(data);
});
