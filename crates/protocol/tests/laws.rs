//! The laws that the fuzzer checks, on the vectors, the fuzzer's seeds and some random inputs; and round trips.

#![expect(clippy::unwrap_used, reason = "the helpers of a test fail as the test does")]

mod support;

#[path = "../../../fuzz/laws/header.rs"]
mod header;
#[path = "../../../fuzz/laws/macaroon.rs"]
mod macaroon;

use std::{fs, num::NonZeroU64, path::Path, time::Duration};

use farebox_protocol::{
    Identifier, Macaroon, MintSecret, Msat, Network, Offer, PaymentHash, RootKey, Terms, TokenId,
    http_auth::parse_challenges,
};
use proptest::{prelude::*, test_runner::RngSeed};
use serde_json::Value;
use support::vectors;

const VECTORS: [&str; 6] =
    ["caveat.json", "challenge.json", "credential.json", "invoice.json", "label.json", "macaroon.json"];

/// Every text in a JSON document, and the bytes of those that are hexadecimal.
fn texts(value: &Value, all: &mut Vec<Vec<u8>>) {
    match value {
        Value::String(text) => {
            all.extend(hex::decode(text).ok());
            all.push(text.clone().into_bytes());
        }
        Value::Array(items) => items.iter().for_each(|item| texts(item, all)),
        Value::Object(fields) => fields.values().for_each(|field| texts(field, all)),
        _ => {}
    }
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target);
    fs::read_dir(path).unwrap().map(|file| fs::read(file.unwrap().path()).unwrap()).collect()
}

fn inputs(target: &str) -> Vec<Vec<u8>> {
    let mut all = seeds(target);
    VECTORS.iter().for_each(|name| texts(&vectors(name), &mut all));
    all
}

#[test]
fn the_laws_of_headers_hold_for_every_text_in_the_vectors() {
    for input in inputs("header") {
        header::check(&input);
        for name in [b'a', b'm', b't'] {
            header::check(&[&[name], input.as_slice()].concat());
        }
    }
}

#[test]
fn the_laws_of_tokens_hold_for_every_text_in_the_vectors() {
    inputs("macaroon").iter().for_each(|input| macaroon::check(input));
}

#[test]
fn the_laws_hold_when_a_byte_of_a_seed_is_lost_or_changed() {
    for (target, check) in
        [("header", header::check as fn(&[u8])), ("macaroon", macaroon::check as fn(&[u8]))]
    {
        for seed in seeds(target) {
            for at in 0..seed.len() {
                let mut changed = seed.clone();
                changed[at] ^= 0x15;
                check(&changed);
                changed.remove(at);
                check(&changed);
            }
        }
    }
}

fn offer() -> impl Strategy<Value = Offer> {
    prop_oneof![
        Just(Offer::Forever),
        (1..u64::MAX).prop_map(|secs| Offer::Duration(Duration::from_secs(secs))),
        any::<NonZeroU64>().prop_map(Offer::Requests),
        Just(Offer::Credit),
    ]
}

fn identifier() -> impl Strategy<Value = Identifier> {
    (any::<[u8; 32]>(), any::<[u8; 32]>()).prop_map(|(hash, id)| Identifier {
        payment_hash: PaymentHash::from_bytes(hash),
        token_id: TokenId::from_bytes(id),
    })
}

/// The same inputs at every run: finding new ones is the fuzzer's part.
fn fixed() -> ProptestConfig {
    ProptestConfig { rng_seed: RngSeed::Fixed(402), failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(fixed())]

    #[test]
    fn the_laws_hold_for_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        header::check(&bytes);
        macaroon::check(&bytes);
    }

    #[test]
    fn the_laws_hold_for_stories(
        request in "/(v1|x|\\.\\.|%2e)?(/[a-z.%]{0,3})? [pus6rwf]{0,4}",
        minted in "a(weather|news):[0-9](,(weather|news):[0-3])?(&h(forever|duration;secs=5|requests;count=[0-9]|credit;unit=msat);msat=[0-9]{1,3})?",
        added in proptest::collection::vec(
            "[a-p]((weather|news):[0-9]|[0-9]{1,4}|GET|POST|GET,POST|/v1|/v1/x|/|10\\.0\\.0\\.0/[0-9]{1,2}|forever;msat=5|read|read,write|(GET|POST);msat=[0-9];/v1)",
            0..6,
        ),
    ) {
        macaroon::check(format!("{request}\n{minted}\n{}", added.join("\n")).as_bytes());
    }

    #[test]
    fn terms_are_read_as_they_were_written(offer in offer(), msat in 1..=Msat::MAX.get()) {
        let terms = Terms { offer, price: Msat::new(msat) };
        prop_assert_eq!(terms.to_string().parse::<Terms>(), Ok(terms));
        prop_assert_eq!(offer.to_string().parse::<Offer>(), Ok(offer));
    }

    #[test]
    fn a_token_is_read_as_it_was_minted(
        identifier in identifier(),
        secret in any::<[u8; 32]>(),
        caveats in proptest::collection::vec("\\PC{0,40}", 0..10),
    ) {
        let root_key = MintSecret::from_bytes(secret).root_key(Network::Regtest, &identifier);
        let token = Macaroon::mint(&root_key, &identifier, &caveats);
        let read = Macaroon::from_bytes(&token.to_bytes()).unwrap();
        prop_assert_eq!(read.identifier(), Ok(identifier));
        prop_assert_eq!(read.caveats().collect::<Vec<_>>(), caveats);
        prop_assert!(read.verify(&root_key).is_ok());
        prop_assert!(read.verify(&RootKey::from_bytes(secret)).is_err());
    }

    #[test]
    fn quoted_values_come_out_as_they_went_in(realm in "\\PC{0,30}", token in "[A-Za-z0-9+/_-]{1,40}={0,2}") {
        let quoted = realm.replace('\\', "\\\\").replace('"', "\\\"");
        let parsed = parse_challenges(&format!("Basic realm=\"{quoted}\", L402 token={token}, x=y"));
        prop_assert_eq!(parsed.len(), 2);
        prop_assert_eq!(parsed[0].param("realm"), Some(realm.as_str()));
        prop_assert_eq!(parsed[1].param("TOKEN"), Some(token.as_str()));
    }
}
