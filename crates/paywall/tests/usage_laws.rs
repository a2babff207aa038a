//! The laws that the fuzzer checks of usage, on its seeds and what becomes of them, and on some random inputs.

#![expect(clippy::unwrap_used, reason = "the helpers of a test fail as the test does")]

#[path = "../../../fuzz/laws/usage.rs"]
mod usage;

use std::{fs, path::Path};

use proptest::{prelude::*, test_runner::RngSeed};

fn seeds() -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds/usage");
    fs::read_dir(path).unwrap().map(|file| fs::read(file.unwrap().path()).unwrap()).collect()
}

#[test]
fn the_laws_hold_when_a_byte_of_a_seed_is_lost_or_changed() {
    for seed in seeds() {
        usage::check(&seed);
        for at in 0..seed.len() {
            let mut changed = seed.clone();
            changed[at] ^= 0x15;
            usage::check(&changed);
            changed.remove(at);
            usage::check(&changed);
        }
    }
}

/// The same inputs at every run: finding new ones is the fuzzer's part.
fn fixed() -> ProptestConfig {
    ProptestConfig { rng_seed: RngSeed::Fixed(402), failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(fixed())]

    #[test]
    fn the_laws_hold_for_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        usage::check(&bytes);
    }

    #[test]
    fn the_laws_hold_for_what_looks_like_json(
        text in "(\\{|\\}|\\[|\\]|,|:|\"(usage|model|stream|stream_options|prompt_tokens|x)\"|[0-9]{1,3}|true|null|data: |\n| ){0,60}",
    ) {
        usage::check(format!("ab{text}").as_bytes());
        usage::check(format!("bc{{\"stream\":true,{text}").as_bytes());
    }
}
