//! The token format, byte for byte, against `vectors/macaroon.json`: made outside of this program, with nothing but HMAC.

#![expect(clippy::unwrap_used, reason = "the helpers of a test fail as the test does")]

mod support;

use farebox_protocol::{
    CaveatError, Forged, Identifier, IdentifierError, Macaroon, MacaroonError, MintSecret, RootKey,
};
use serde::Deserialize;
use support::{hex_bytes, hex32, vectors};

#[derive(Deserialize)]
struct Vectors {
    chain: Vec<Chain>,
    derivation: Vec<Derivation>,
    fingerprints: Vec<Fingerprinted>,
    reads: Vec<Read>,
    refused: Vec<Refused>,
    base64: Vec<Text>,
    not_base64: Vec<Text>,
    not_identifiers: Vec<Bytes>,
}

#[derive(Deserialize)]
struct Chain {
    why: String,
    root_key: String,
    identifier: String,
    location: String,
    caveats: Vec<String>,
    signatures: Vec<String>,
    v2: String,
    v1: String,
}

#[derive(Deserialize)]
struct Derivation {
    why: String,
    mint_secret: String,
    network: String,
    payment_hash: String,
    token_id: String,
    identifier: String,
    identifier_hash: String,
    root_key: String,
    caveats: Vec<String>,
    token: String,
}

#[derive(Deserialize)]
struct Fingerprinted {
    mint_secret: String,
    fingerprint: String,
}

#[derive(Deserialize)]
struct Read {
    why: String,
    hex: String,
    caveats: Vec<String>,
}

#[derive(Deserialize)]
struct Refused {
    why: String,
    hex: String,
    error: String,
}

#[derive(Deserialize)]
struct Text {
    why: String,
    text: String,
}

#[derive(Deserialize)]
struct Bytes {
    why: String,
    hex: String,
}

fn all() -> Vectors {
    vectors("macaroon.json")
}

fn signature(macaroon: &Macaroon) -> String {
    let bytes = macaroon.to_bytes();
    hex::encode(&bytes[bytes.len() - 32..])
}

#[test]
fn tokens_are_signed_and_written_as_every_other_implementation_does() {
    for Chain { why, root_key, identifier, location, caveats, signatures, v2, v1 } in all().chain {
        let root_key = RootKey::from_bytes(hex32(&root_key));
        let identifier = Identifier::from_bytes(&hex_bytes(&identifier)).unwrap();
        assert_eq!(location, "lsat", "{why}");
        for (count, want) in signatures.iter().enumerate() {
            let minted = Macaroon::mint(&root_key, &identifier, &caveats[..count]);
            assert_eq!(&signature(&minted), want, "{why}: {count} caveats");
        }
        let minted = Macaroon::mint(&root_key, &identifier, &caveats);
        assert_eq!(minted.to_base64(), v2, "{why}");
        for text in [v2, v1] {
            let read = Macaroon::from_base64(&text).unwrap();
            assert_eq!(read.to_bytes(), minted.to_bytes(), "{why}: V1 comes out as V2");
            assert_eq!(read.caveats().collect::<Vec<_>>(), caveats, "{why}");
            assert_eq!(read.identifier(), Ok(identifier), "{why}");
            assert_eq!(read.verify(&root_key), Ok(()), "{why}");
        }
    }
}

#[test]
fn root_keys_come_from_secret_network_and_identifier() {
    for row in all().derivation {
        let why = &row.why;
        let identifier = Identifier {
            payment_hash: row.payment_hash.parse().unwrap(),
            token_id: row.token_id.parse().unwrap(),
        };
        assert_eq!(hex::encode(identifier.to_bytes()), row.identifier, "{why}");
        assert_eq!(identifier.hash().to_string(), row.identifier_hash, "{why}");
        let secret = MintSecret::from_hex(&row.mint_secret).unwrap();
        let root_key = secret.root_key(row.network.parse().unwrap(), &identifier);
        let token = Macaroon::mint(&root_key, &identifier, &row.caveats);
        assert_eq!(token.to_base64(), row.token, "{why}");
        // The root key itself is not to be had; the same bytes from outside sign the same.
        assert_eq!(token.verify(&RootKey::from_bytes(hex32(&row.root_key))), Ok(()), "{why}");
    }
}

#[test]
fn a_token_of_one_row_verifies_in_no_other() {
    let rows = all().derivation;
    for (i, minted) in rows.iter().enumerate() {
        let token = Macaroon::from_base64(&minted.token).unwrap();
        for (j, other) in rows.iter().enumerate() {
            let secret = MintSecret::from_hex(&other.mint_secret).unwrap();
            let root_key = secret.root_key(other.network.parse().unwrap(), &token.identifier().unwrap());
            let same = (&minted.mint_secret, &minted.network) == (&other.mint_secret, &other.network);
            assert_eq!(token.verify(&root_key).is_ok(), same, "{i} with the secret of {j}");
        }
    }
}

#[test]
fn a_fingerprint_is_the_same_everywhere() {
    for row in all().fingerprints {
        let secret = MintSecret::from_hex(&row.mint_secret).unwrap();
        assert_eq!(secret.fingerprint().to_string(), row.fingerprint);
        assert_eq!(*secret.expose_hex(), row.mint_secret);
    }
}

#[test]
fn what_is_read_comes_out_as_it_was() {
    for Read { why, hex, caveats } in all().reads {
        let read = Macaroon::from_hex(&hex).unwrap_or_else(|error| panic!("{why}: {error}"));
        assert_eq!(read.to_hex(), hex, "{why}");
        assert_eq!(read.caveats().collect::<Vec<_>>(), caveats, "{why}");
    }
}

#[test]
fn bytes_that_are_not_exactly_a_macaroon_are_refused() {
    for Refused { why, hex, error } in all().refused {
        let got = match Macaroon::from_bytes(&hex_bytes(&hex)).unwrap_err() {
            MacaroonError::TooLong(_) => "too_long",
            MacaroonError::TooManyCaveats => "too_many_caveats",
            MacaroonError::Malformed(_) => "malformed",
            MacaroonError::TrailingBytes(_) => "trailing_bytes",
            MacaroonError::ThirdParty => "third_party",
            MacaroonError::NotText(_) => "not_text",
            other => panic!("{why}: {other}"),
        };
        assert_eq!(got, error, "{why}");
    }
}

#[test]
fn both_alphabets_are_read_with_and_without_padding() {
    let want = all().reads[0].hex.clone();
    for Text { why, text } in all().base64 {
        assert_eq!(Macaroon::from_base64(&text).unwrap().to_hex(), want, "{why}");
    }
    for Text { why, text } in all().not_base64 {
        assert_eq!(Macaroon::from_base64(&text).unwrap_err(), MacaroonError::NotBase64, "{why}");
    }
}

#[test]
fn the_longest_macaroon_is_read_from_every_text_and_a_longer_one_from_none() {
    let longest = all().reads.into_iter().find(|row| row.hex.len() == 2 * 4096).unwrap();
    let macaroon = Macaroon::from_hex(&longest.hex).unwrap();
    assert_eq!(Macaroon::from_base64(&macaroon.to_base64()).unwrap().to_hex(), longest.hex);
    for text in ["A".repeat(6000), "0".repeat(9000)] {
        assert!(matches!(Macaroon::from_base64(&text), Err(MacaroonError::TooLong(_))));
    }
    assert!(matches!(Macaroon::from_hex(&"0".repeat(9000)), Err(MacaroonError::TooLong(4500))));
}

#[test]
fn an_identifier_is_66_bytes_of_version_0() {
    for Bytes { why, hex } in all().not_identifiers {
        let error = Identifier::from_bytes(&hex_bytes(&hex)).unwrap_err();
        let by_length = matches!(error, IdentifierError::Length(length) if length == hex.len() / 2);
        assert_eq!(by_length, hex.len() != 132, "{why}: {error}");
    }
}

#[test]
fn every_changed_bit_of_a_token_is_noticed() {
    let Chain { root_key, v2, .. } = all().chain.remove(0);
    let root_key = RootKey::from_bytes(hex32(&root_key));
    let good = Macaroon::from_base64(&v2).unwrap().to_bytes();
    // The location, four letters behind its tag and length, isn't signed.
    let unsigned = 3..7;
    for byte in (0..good.len()).filter(|byte| !unsigned.contains(byte)) {
        for bit in 0..8 {
            let mut bad = good.clone();
            bad[byte] ^= 1 << bit;
            let opens = Macaroon::from_bytes(&bad).is_ok_and(|token| token.verify(&root_key).is_ok());
            assert!(!opens, "bit {bit} of byte {byte}");
        }
    }
}

#[test]
fn a_caveat_can_be_added_without_the_key_and_not_removed() {
    let row = all().chain.remove(0);
    let root_key = RootKey::from_bytes(hex32(&row.root_key));
    let token = Macaroon::from_base64(&row.v2).unwrap();
    let weaker = token.attenuate("farebox_method=GET").unwrap();
    assert_eq!(weaker.verify(&root_key), Ok(()));
    assert_eq!(weaker.caveats().last(), Some("farebox_method=GET"));

    // Its caveat left out, the signature kept.
    let mut removed = token.to_bytes();
    let signature_at = removed.len() - 32;
    removed[signature_at..].copy_from_slice(&hex_bytes(&signature(&weaker)));
    assert_eq!(Macaroon::from_bytes(&removed).unwrap().verify(&root_key), Err(Forged));
}

#[test]
fn a_full_token_takes_no_more_caveats() {
    let root_key = RootKey::from_bytes([1; 32]);
    let identifier = Identifier::from_bytes(&[0; 66]).unwrap();
    let full = Macaroon::mint(&root_key, &identifier, &vec!["a=b".to_owned(); 64]);
    assert_eq!(full.attenuate("c=d").unwrap_err(), CaveatError::TokenFull);
    let long = Macaroon::mint(&root_key, &identifier, &[format!("a={}", "x".repeat(3900))]);
    assert_eq!(long.attenuate(&format!("c={}", "x".repeat(200))).unwrap_err(), CaveatError::TokenFull);
    assert_eq!(long.attenuate(&format!("c={}", "x".repeat(20_000))).unwrap_err(), CaveatError::TokenFull);
}

#[test]
fn secrets_do_not_show() {
    let secret = MintSecret::from_bytes([0xab; 32]);
    let identifier = Identifier::from_bytes(&[0; 66]).unwrap();
    let root_key = RootKey::from_bytes([0xab; 32]);
    let token = Macaroon::mint(&root_key, &identifier, &[format!("preimage={}", "ab".repeat(32))]);
    let shown = format!("{secret:?} {root_key:?} {token:?}");
    assert!(!shown.contains("abab") && !shown.contains("171, 171"), "{shown}");
    assert!(!shown.contains(&signature(&token)), "{shown}");
}
