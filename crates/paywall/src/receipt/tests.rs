use std::{os::unix::fs::PermissionsExt as _, time::Duration};

use expect_test::expect;

use super::*;

fn key() -> ReceiptKey {
    ReceiptKey::from_seed(&[7; 32])
}

fn receipt() -> Receipt {
    Receipt {
        seller: Some("Weather & Söhne".parse().unwrap()),
        network: Network::Mainnet,
        hash: PaymentHash::from_bytes([0xab; 32]),
        service: "weather".parse().unwrap(),
        tier: 2,
        offer: Offer::Credit,
        price: Msat::new(10_000),
        valid_until: Some(Timestamp::from_secs(2_000_000_000)),
        monthly: Vec::new(),
        paid: Msat::new(12_000),
        payments: 2,
        surplus: Msat::new(2_000),
        settled_at: Timestamp::from_secs(1_763_800_980),
        refunded: Msat::new(500),
        units: Some(Units { unit: Unit::Msat, sold: 10_000, spent: 4_000, left: 5_500 }),
        issued_at: Timestamp::from_secs(1_763_900_000),
    }
}

#[test]
fn a_receipt_is_a_text_that_says_everything_once() {
    expect![[r#"
        farebox receipt v1
        seller: Weather & Söhne
        network: mainnet
        payment-hash: abababababababababababababababababababababababababababababababab
        service: weather
        tier: 2
        offer: offer=credit;unit=msat
        price-msat: 10000
        valid-until: 2000000000
        paid-msat: 12000
        payments: 2
        surplus-msat: 2000
        settled-at: 1763800980
        refunded-msat: 500
        unit: msat
        sold: 10000
        spent: 4000
        left: 5500
        issued-at: 1763900000
        key: ea4a6c63e29c520abef5507b132ec5f9954776aebebe7b92421eea691446d22c
    "#]]
    .assert_eq(&text::signed(&receipt(), &key().public()));
}

/// The same, limited by the month.
fn limited() -> Receipt {
    let limit = |unit, most| Monthly { capability: "read".parse().unwrap(), unit, most };
    Receipt { monthly: vec![limit(Unit::Request, 1_000), limit(Unit::Msat, 21_000)], ..receipt() }
}

#[test]
fn limits_by_the_month_are_lines_of_their_own_and_change_nothing_where_there_are_none() {
    let (with, without) =
        (text::signed(&limited(), &key().public()), text::signed(&receipt(), &key().public()));
    let lines =
        "monthly: capability=read;unit=request;most=1000\nmonthly: capability=read;unit=msat;most=21000\n";
    assert_eq!(with.replacen(lines, "", 1), without);
    assert!(with.contains(&format!("valid-until: 2000000000\n{lines}paid-msat: ")), "{with}");
    for wrong in [
        "most=01000",
        "most=-1",
        "most=1000;",
        "unit=apples;most=1000",
        "capability=a b;unit=request;most=1000",
    ] {
        let changed = limited().sign(&key()).to_string().replace("most=1000", wrong);
        assert!(SignedReceipt::verify(&changed, None).is_err(), "{changed}");
    }
}

/// Kept from before limits were told.
#[test]
fn a_receipt_that_was_signed_earlier_still_verifies() {
    let old = "farebox receipt v1\n\
        network: regtest\n\
        payment-hash: abababababababababababababababababababababababababababababababab\n\
        service: weather\ntier: 0\noffer: offer=forever\nprice-msat: 10000\npaid-msat: 10000\npayments: 1\nsurplus-msat: 0\n\
        settled-at: 1763800980\nrefunded-msat: 0\nissued-at: 1763900000\n\
        key: ea4a6c63e29c520abef5507b132ec5f9954776aebebe7b92421eea691446d22c\n\
        signature: 5a769a2134bfd252dd175be4556d56874bc708597bc840677634f5ca5c1a5264ae8ba69d5eb8a8221bfdf0f81761aeeb004c3f47036011c29133543311933f0b\n";
    let signed = SignedReceipt::verify(old, Some(&key().public())).unwrap();
    assert_eq!(signed.receipt().monthly, []);
    assert_eq!(signed.to_string(), old);
}

#[test]
fn what_was_signed_is_verified_and_read() {
    let bare = Receipt { seller: None, valid_until: None, units: None, offer: Offer::Forever, ..receipt() };
    let timed = Receipt { offer: Offer::Duration(Duration::from_secs(60)), ..receipt() };
    for receipt in [receipt(), limited(), bare, timed] {
        let signed = receipt.clone().sign(&key());
        let text = signed.to_string();
        for expected in [None, Some(&key().public())] {
            assert_eq!(SignedReceipt::verify(&text, expected), Ok(signed.clone()));
        }
        assert_eq!(signed.receipt(), &receipt);
    }
}

#[test]
fn the_way_it_came_may_change_the_ends_of_its_lines_and_nothing_else() {
    let text = receipt().sign(&key()).to_string();
    for mailed in [text.replace('\n', "\r\n"), format!("\n\n{text}\n\n"), text.trim_end().to_owned()] {
        SignedReceipt::verify(&mailed, None).unwrap();
    }
    for changed in [
        text.replace("tier: 2", "tier: 02"),
        text.replace("tier: 2", "tier: +2"),
        text.replace("abab", "ABAB"),
        text.replace("tier: 2", "tier:  2"),
        text.replace("\ntier", "\n tier"),
    ] {
        assert!(SignedReceipt::verify(&changed, None).is_err(), "{changed}");
    }
}

#[test]
fn no_character_can_be_changed() {
    let text = limited().sign(&key()).to_string();
    for (at, was) in text.char_indices().filter(|(_, c)| *c != '\n') {
        let other = if was == '1' { '2' } else { '1' };
        let changed = format!("{}{other}{}", &text[..at], &text[at + was.len_utf8()..]);
        assert!(SignedReceipt::verify(&changed, None).is_err(), "{changed}");
    }
}

#[test]
fn no_line_can_be_left_out_repeated_or_moved() {
    let text = limited().sign(&key()).to_string();
    let lines: Vec<&str> = text.lines().collect();
    let refused =
        |lines: &[&str]| assert!(SignedReceipt::verify(&lines.join("\n"), None).is_err(), "{lines:?}");
    for at in 0..lines.len() {
        refused(&[&lines[..at], &lines[at + 1..]].concat());
        refused(&[&lines[..=at], &lines[at..]].concat());
        if at > 0 {
            let mut moved = lines.clone();
            moved.swap(at - 1, at);
            refused(&moved);
        }
    }
    refused(&[&lines[..], &["note: and a free lunch"]].concat());
}

#[test]
fn who_signed_it_can_be_asked_for() {
    let other = ReceiptKey::from_seed(&[8; 32]);
    let text = receipt().sign(&key()).to_string();
    let refused = SignedReceipt::verify(&text, Some(&other.public())).unwrap_err();
    assert_eq!(refused, ReceiptError::OtherKey { found: key().public(), expected: other.public() });
    // Naming another key beside a signature doesn't make it theirs.
    let renamed = text.replace(&key().public().to_string(), &other.public().to_string());
    assert_eq!(SignedReceipt::verify(&renamed, None), Err(ReceiptError::Signature(other.public())));
}

#[test]
fn what_is_no_receipt_is_refused_by_line() {
    let refused = |text: &str| SignedReceipt::verify(text, None).unwrap_err();
    assert_eq!(refused(""), ReceiptError::NotAReceipt);
    assert_eq!(refused("farebox receipt v2\nnetwork: mainnet"), ReceiptError::NotAReceipt);
    assert_eq!(refused("farebox receipt v1\n"), ReceiptError::Line { line: 2, want: "network" });
    let wrong = receipt().sign(&key()).to_string().replace("tier: 2", "tier: two");
    assert_eq!(refused(&wrong), ReceiptError::Line { line: 6, want: "tier" });
}

#[test]
fn a_sellers_name_stays_on_its_line() {
    for name in [
        "",
        " x",
        "x ",
        "a\nnetwork: mainnet",
        "a\r",
        "\u{1b}[2J",
        "\u{202e}moc",
        "a\u{2028}b",
        "a\u{200f}b",
        "a\u{61c}b",
        &"x".repeat(101),
    ] {
        assert_eq!(name.parse::<SellerName>(), Err(NotAName), "{name:?}");
    }
    assert_eq!("Ö".repeat(100).parse::<SellerName>().unwrap().as_str().chars().count(), 100);
}

#[test]
fn the_key_is_made_once_for_its_owner_alone_and_never_shows_itself() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("receipt-key");
    let made = ReceiptKey::load_or_create(&path).unwrap();
    assert_eq!(ReceiptKey::load_or_create(&path).unwrap().public(), made.public());
    assert_eq!(made.public().to_string().parse(), Ok(made.public()));
    let kept = std::fs::read_to_string(&path).unwrap();
    assert!(!format!("{made:?}").contains(kept.trim()));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let refused = ReceiptKey::load_or_create(&path).unwrap_err().to_string();
    assert!(refused.contains("sign receipts in your name"), "{refused}");
}
