//! The laws of a purchase that the fuzzer checks, on random stories.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

#[path = "../../../fuzz/laws/purchase.rs"]
mod laws;

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 5_000, ..ProptestConfig::default() })]

    #[test]
    fn no_story_breaks_the_laws(story in proptest::collection::vec(any::<u8>(), 0..200)) {
        laws::check(&story);
    }
}

/// Laws about payments prove nothing if no story comes to one.
#[test]
fn random_stories_do_come_to_a_payment() {
    let mut seed: u64 = 1;
    let mut byte = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        seed.to_be_bytes()[0]
    };
    let paid = (0..5_000).filter(|_| laws::check(&std::array::from_fn::<_, 100, _>(|_| byte()))).count();
    assert!(paid >= 50, "{paid} of 5,000");
}
