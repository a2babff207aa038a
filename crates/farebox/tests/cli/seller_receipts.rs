//! `farebox receipts fetch`: a seller's signed receipt, asked for, checked against the journal and kept.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    path::Path,
    thread,
};

use farebox_paywall::receipt::{Receipt, ReceiptKey};
use farebox_protocol::{
    Identifier, Macaroon, MintSecret, Msat, Network, Offer, Preimage, Timestamp, TokenId,
};
use serde_json::Value;

use crate::common::{Ran, run, run_with_input};

fn preimage() -> Preimage {
    Preimage::from_bytes([7; 32])
}

fn credential() -> String {
    let identifier =
        Identifier { payment_hash: preimage().payment_hash(), token_id: TokenId::from_bytes([9; 32]) };
    let key = MintSecret::from_bytes([1; 32]).root_key(Network::Regtest, &identifier);
    let token = Macaroon::mint(&key, &identifier, &["services=weather:0".to_owned()]);
    format!("L402 {}:{}", token.to_base64(), *preimage().expose_hex())
}

fn key() -> ReceiptKey {
    ReceiptKey::from_seed(&[7; 32])
}

fn receipt() -> Receipt {
    Receipt {
        seller: Some("Weather Inc.".parse().unwrap()),
        network: Network::Regtest,
        hash: preimage().payment_hash(),
        service: "weather".parse().unwrap(),
        tier: 0,
        offer: Offer::Forever,
        price: Msat::new(10_000),
        valid_until: None,
        monthly: Vec::new(),
        paid: Msat::new(10_000),
        payments: 1,
        surplus: Msat::ZERO,
        settled_at: Timestamp::from_secs(1_763_800_980),
        refunded: Msat::ZERO,
        units: None,
        issued_at: Timestamp::from_secs(1_763_900_000),
    }
}

fn signed(receipt: Receipt) -> String {
    receipt.sign(&key()).to_string()
}

/// Asks a seller who answers this, with what follows on the command line; and what the seller was asked.
fn fetch(home: &Path, status: &str, answer: &str, args: &[&str]) -> (Ran, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    let held = run_with_input(home, &["tokens", "import", "-", "--origin", &origin], &credential());
    assert_eq!(held.code, 0, "{held:?}");
    let answer =
        format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{answer}", answer.len());
    let seller = thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let (mut asked, mut byte) = (Vec::new(), [0]);
        while !asked.ends_with(b"\r\n\r\n") {
            socket.read_exact(&mut byte).unwrap();
            asked.push(byte[0]);
        }
        socket.write_all(answer.as_bytes()).unwrap();
        String::from_utf8(asked).unwrap()
    });
    let hash = preimage().payment_hash().to_string();
    let ran = run(home, &[&["receipts", "fetch", &hash], args].concat(), &[]);
    (ran, seller.join().unwrap())
}

fn json(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
}

#[test]
fn a_receipt_is_asked_for_checked_and_kept() {
    let home = tempfile::tempdir().unwrap();
    let key = key().public().to_string();
    let (ran, asked) = fetch(home.path(), "200 OK", &signed(receipt()), &["-o", "r.txt"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(asked.starts_with("POST /.well-known/farebox/receipt HTTP/1.1\r\n"), "{asked}");
    assert!(asked.contains(&credential()), "{asked}");
    let told = json(&ran);
    assert_eq!((&told["key"], &told["seller"]), (&key.as_str().into(), &"Weather Inc.".into()));
    assert_eq!((&told["is_sellers"], &told["differs"]), (&Value::Null, &serde_json::json!([])));
    assert_eq!(fs::read_to_string(home.path().join("r.txt")).unwrap(), signed(receipt()));
    let verified = run(home.path(), &["receipt", "verify", "r.txt", "--key", &key], &[]);
    assert_eq!(verified.code, 0, "{verified:?}");
    for text in [&ran.stdout, &ran.stderr] {
        assert!(!text.contains(&*preimage().expose_hex()), "{ran:?}");
    }
}

#[test]
fn without_a_file_it_is_printed_and_a_key_that_was_given_is_held_to() {
    let home = tempfile::tempdir().unwrap();
    let (own, other) = (key().public().to_string(), ReceiptKey::from_seed(&[8; 32]).public().to_string());
    let (ran, _) = fetch(home.path(), "200 OK", &signed(receipt()), &["--key", &own]);
    assert_eq!((ran.code, json(&ran)["is_sellers"].as_bool()), (0, Some(true)), "{ran:?}");
    assert_eq!(json(&ran)["receipt"], signed(receipt()));

    let home = tempfile::tempdir().unwrap();
    let (ran, _) = fetch(home.path(), "200 OK", &signed(receipt()), &["--key", &other, "-o", "r.txt"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains(&format!("not by `{other}`")), "{ran:?}");
    assert!(!home.path().join("r.txt").exists());
}

#[test]
fn what_says_otherwise_than_the_journal_is_kept_and_told() {
    let home = tempfile::tempdir().unwrap();
    let other = Receipt { service: "maps".parse().unwrap(), ..receipt() };
    let (ran, _) = fetch(home.path(), "200 OK", &signed(other), &["-o", "r.txt"]);
    assert_eq!((ran.code, json(&ran)["differs"].as_array().unwrap().len()), (1, 1), "{ran:?}");
    assert!(home.path().join("r.txt").exists());
}

#[test]
fn what_is_no_receipt_of_this_payment_is_refused_and_not_kept() {
    let other = Receipt { hash: Preimage::from_bytes([8; 32]).payment_hash(), ..receipt() };
    let changed = signed(receipt()).replace("paid-msat: 10000", "paid-msat: 90000");
    let refusal = r#"{"code":"receipts_not_offered","detail":"this seller\u001b[2J signs none"}"#;
    for (status, answer, want) in [
        ("200 OK", signed(other), "the receipt of another payment"),
        ("200 OK", changed, "the signature does not hold"),
        ("200 OK", "<html>".to_owned(), "this is no receipt"),
        ("404 Not Found", refusal.to_owned(), "404 receipts_not_offered"),
        ("404 Not Found", "nothing here".to_owned(), "perhaps it signs none"),
        ("302 Found", signed(receipt()), "it answers 302"),
    ] {
        let home = tempfile::tempdir().unwrap();
        let (ran, _) = fetch(home.path(), status, &answer, &["-o", "r.txt"]);
        assert_eq!(ran.code, 1, "{ran:?}");
        assert!(ran.stderr.contains(want) && !ran.stderr.contains('\u{1b}'), "{ran:?}");
        assert!(!home.path().join("r.txt").exists());
    }
}

#[test]
fn a_payment_that_the_journal_does_not_know_is_asked_of_nobody() {
    let home = tempfile::tempdir().unwrap();
    let hash = preimage().payment_hash().to_string();
    let ran = run(home.path(), &["receipts", "fetch", &hash], &[]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stderr.contains("the journal knows no payment"), "{ran:?}");
}
