//! Labels of invoices, byte for byte, against `vectors/label.json`: made outside of this program, with nothing but HMAC.

#![expect(clippy::unwrap_used, reason = "the helpers of a test fail as the test does")]

mod support;

use std::{sync::LazyLock, time::Duration};

use farebox_protocol::{DESCRIPTION_BYTES_MAX, Label, LabelKey, MintSecret, Msat, Network, Offer};
use proptest::prelude::*;
use serde::Deserialize;
use support::{hex_bytes, hex32, vectors};

#[derive(Deserialize)]
struct Vectors {
    labels: Vec<Labelled>,
    refused: Vec<Refused>,
}

#[derive(Deserialize)]
struct Labelled {
    why: String,
    mint_secret: String,
    network: String,
    service: String,
    offer: String,
    price_msat: u64,
    words: String,
    nonce: String,
    label_key: String,
    description: String,
}

#[derive(Deserialize)]
struct Refused {
    why: String,
    description: String,
}

impl Labelled {
    fn key(&self) -> LabelKey {
        let secret = MintSecret::from_hex(&self.mint_secret).unwrap();
        secret.label_key(self.network.parse().unwrap())
    }

    fn label(&self) -> Label {
        Label {
            service: self.service.parse().unwrap(),
            offer: self.offer.parse().unwrap(),
            price: Msat::new(self.price_msat),
        }
    }
}

static ROWS: LazyLock<Vectors> = LazyLock::new(|| vectors("label.json"));

fn rows() -> &'static Vectors {
    &ROWS
}

fn key() -> LabelKey {
    rows().labels[0].key()
}

#[test]
fn a_label_is_written_and_read_as_in_the_vectors() {
    for row in &rows().labels {
        let nonce = hex_bytes(&row.nonce).try_into().unwrap();
        assert_eq!(row.label().write(&row.words, nonce, &row.key()), row.description, "{}", row.why);
        assert_eq!(Label::read(&row.description, [&row.key()]), Some(row.label()), "{}", row.why);
        // The derived key is what the vectors say, since it explains the same description.
        let said = LabelKey::from_bytes(hex32(&row.label_key));
        assert_eq!(Label::read(&row.description, [&said]), Some(row.label()), "{}", row.why);
    }
}

#[test]
fn a_label_holds_for_its_own_secret_and_network_and_for_no_other() {
    let row = &rows().labels[0];
    for network in [Network::Testnet, Network::Signet, Network::Regtest] {
        let key = MintSecret::from_hex(&row.mint_secret).unwrap().label_key(network);
        assert_eq!(Label::read(&row.description, [&key]), None, "{network}");
    }
    let other = MintSecret::from_bytes([1; 32]).label_key(Network::Mainnet);
    assert_eq!(Label::read(&row.description, [&other]), None);
    assert_eq!(Label::read(&row.description, []), None, "no key, no label");
    assert_eq!(Label::read(&row.description, [&other, &row.key()]), Some(row.label()), "any of the keys");
}

#[test]
fn what_is_no_label_of_ours_is_refused() {
    let Vectors { labels, refused } = rows();
    let keys: Vec<_> = labels.iter().map(Labelled::key).collect();
    for row in refused {
        assert_eq!(Label::read(&row.description, &keys), None, "{}", row.why);
    }
}

#[test]
fn a_label_of_the_longest_name_and_the_dearest_price_fits_into_an_invoice() {
    let label = Label {
        service: "x".repeat(64).parse().unwrap(),
        offer: Offer::Duration(Duration::from_secs(u64::MAX)),
        price: Msat::new(u64::MAX),
    };
    let plain = label.write("access for 30 days", [0xff; 8], &key());
    assert!(plain.len() < 220, "{}", plain.len());
    let long = label.write(&"☀".repeat(1_000), [0xff; 8], &key());
    assert!((DESCRIPTION_BYTES_MAX - 3..=DESCRIPTION_BYTES_MAX).contains(&long.len()), "{}", long.len());
    assert_eq!(Label::read(&long, [&key()]), Some(label), "words are cut, the tag isn't");
}

#[test]
fn a_label_key_never_shows_itself() {
    assert_eq!(format!("{:?}", LabelKey::from_bytes([0xab; 32])), "LabelKey(..)");
}

/// Memos of others: anything, things that look like labels, and our own with something else in them.
fn memos() -> impl Strategy<Value = String> {
    let ours = rows().labels[0].description.clone();
    let bytes = ours.len();
    prop_oneof![
        any::<String>(),
        "[a-z]{0,8}:? ?.{0,20} \\[farebox:[0-9];[a-z=;0-9]{0,40};[0-9]{0,25};[A-Za-z0-9_=-]{0,30}\\]?",
        (0..bytes, any::<char>()).prop_map(move |(at, with)| {
            let mut chars: Vec<char> = ours.chars().collect();
            chars[at] = with;
            chars.into_iter().collect()
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_024))]

    #[test]
    fn no_memo_of_others_panics_or_passes_for_ours(memo in memos()) {
        let row = &rows().labels[0];
        if let Some(label) = Label::read(&memo, [&row.key()]) {
            // Only the words may be others.
            prop_assert_eq!(label, row.label());
            let (ours, theirs) = (row.description.rsplit_once(" [").unwrap(), memo.rsplit_once(" [").unwrap());
            prop_assert_eq!(ours.1, theirs.1);
            prop_assert_eq!(memo.split_once(": ").unwrap().0, "weather");
        }
    }

    #[test]
    fn what_is_written_is_read(words in any::<String>(), nonce: [u8; 8], secs in 1..u64::MAX, msat: u64, name in "[A-Za-z0-9][A-Za-z0-9._-]{0,63}") {
        prop_assume!(!name.to_ascii_lowercase().starts_with("farebox"));
        let label = Label {
            service: name.parse().unwrap(),
            offer: Offer::Duration(Duration::from_secs(secs)),
            price: Msat::new(msat),
        };
        let description = label.write(&words, nonce, &key());
        prop_assert!(description.len() <= DESCRIPTION_BYTES_MAX);
        prop_assert_eq!(Label::read(&description, [&key()]), Some(label));
    }
}
