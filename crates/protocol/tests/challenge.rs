//! Challenges written and read, against `vectors/challenge.json`.

#![expect(clippy::unwrap_used, reason = "the helpers of a test fail as the test does")]

mod support;

use farebox_protocol::{
    Challenge, Invoice, Macaroon, OfferedChallenge, Preimage, Scheme, http_auth::parse_challenges,
};
use regex::Regex;
use serde::Deserialize;
use support::vectors;

#[derive(Deserialize)]
struct Vectors {
    written: Vec<Written>,
    read: Vec<Read>,
    parsed: Vec<Parsed>,
}

#[derive(Deserialize)]
struct Written {
    why: String,
    macaroon: String,
    invoice: String,
    values: [String; 2],
}

#[derive(Deserialize)]
struct Read {
    why: String,
    values: Vec<String>,
    offers: Vec<Offer>,
}

#[derive(Debug, PartialEq, Deserialize)]
struct Offer {
    scheme: String,
    token: String,
    invoice: Option<String>,
    version: Option<String>,
}

#[derive(Deserialize)]
struct Parsed {
    why: String,
    value: String,
    challenges: Vec<Scheming>,
}

#[derive(Debug, PartialEq, Deserialize)]
struct Scheming {
    scheme: String,
    token68: Option<String>,
    params: Vec<(String, String)>,
}

fn all() -> Vectors {
    vectors("challenge.json")
}

fn read(values: &[String]) -> Vec<OfferedChallenge> {
    OfferedChallenge::read_all(values.iter().map(String::as_bytes))
}

fn plain(offer: OfferedChallenge) -> Offer {
    let OfferedChallenge { scheme, token, invoice, version } = offer;
    Offer { scheme: scheme.to_string(), token, invoice, version }
}

fn written() -> (Written, Challenge) {
    let row = all().written.remove(0);
    let challenge = Challenge {
        macaroon: Macaroon::from_base64(&row.macaroon).unwrap(),
        invoice: Invoice::parse(&row.invoice).unwrap(),
    };
    (row, challenge)
}

#[test]
fn a_challenge_is_written_for_every_client_alive() {
    let (row, challenge) = written();
    assert_eq!(challenge.header_values(), row.values, "{}", row.why);
}

#[test]
fn a_challenge_holds_a_token_for_its_invoice() {
    let (_, challenge) = written();
    assert_eq!(challenge.macaroon.identifier().unwrap().payment_hash, challenge.invoice.payment_hash());
}

#[test]
fn old_clients_find_token_and_invoice_with_their_pattern_in_either_line() {
    let pattern = Regex::new(r#"(LSAT|L402) macaroon="(.*?)", invoice="(.*?)""#).unwrap();
    let (row, challenge) = written();
    for (value, scheme) in challenge.header_values().iter().zip(["LSAT", "L402"]) {
        let found = pattern.captures(value).unwrap();
        assert_eq!([&found[1], &found[2], &found[3]], [scheme, &row.macaroon, &row.invoice]);
    }
}

#[test]
fn every_row_is_read_as_written() {
    for row in all().read {
        let offers: Vec<Offer> = read(&row.values).into_iter().map(plain).collect();
        assert_eq!(offers, row.offers, "{}", row.why);
    }
}

#[test]
fn every_value_is_parsed_as_written() {
    for row in all().parsed {
        let parsed = parse_challenges(&row.value).into_iter();
        let parsed = parsed.map(|c| Scheming { scheme: c.scheme, token68: c.token68, params: c.params });
        assert_eq!(parsed.collect::<Vec<_>>(), row.challenges, "{}", row.why);
    }
}

#[test]
fn the_new_name_is_preferred_and_an_invoice_is_needed() {
    let offers = read(&[
        r#"LSAT macaroon="a", invoice="i1""#.to_owned(),
        r#"L402 macaroon="b""#.to_owned(),
        r#"L402 macaroon="c", invoice="i2", LSAT macaroon="d", invoice="i3""#.to_owned(),
    ]);
    let token = |offers: &[OfferedChallenge]| OfferedChallenge::preferred(offers).map(|o| o.token.clone());
    assert_eq!(token(&offers).as_deref(), Some("c"));
    assert_eq!(token(&offers[..2]).as_deref(), Some("a"));
    assert_eq!(token(&offers[1..2]), None);
}

#[test]
fn a_token_is_read_from_base64_and_hexadecimal_and_may_be_opaque() {
    for row in all().read {
        for offer in read(&row.values) {
            let a_macaroon = !["opaque.token_1", "new", "a"].contains(&offer.token.as_str());
            assert_eq!(offer.macaroon().is_ok(), a_macaroon, "{}", row.why);
        }
    }
}

#[test]
fn the_answer_sends_the_token_back_as_it_came() {
    let offer = read(&[r#"l402 token="opaque.token_1", invoice="i""#.to_owned()]).remove(0);
    let answer = offer.answer(&Preimage::from_bytes([0xab; 32]));
    assert_eq!(*answer, format!("L402 opaque.token_1:{}", "ab".repeat(32)));
    assert!(!format!("{offer:?}").contains("opaque"));
    assert_eq!(offer.scheme, Scheme::L402);
}

#[test]
fn a_flood_of_challenges_and_parameters_is_cut() {
    let schemes = "a=1, ".repeat(10) + &"L402 macaroon=\"x\", invoice=\"y\", ".repeat(1000);
    assert_eq!(parse_challenges(&schemes).len(), 32);
    let params = format!("L402 {}", "x=1,".repeat(1000));
    assert_eq!(parse_challenges(&params)[0].params.len(), 32);
    assert!(parse_challenges(&"x ".repeat(40_000)).is_empty());
}
