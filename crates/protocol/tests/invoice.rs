//! BOLT 11, against `vectors/invoice.json` and against invoices made on the spot.

#![expect(clippy::unwrap_used, reason = "the helpers of a test fail as the test does")]

mod support;

use farebox_protocol::{Invoice, InvoiceError, Msat, Network, Timestamp};
use lightning_invoice::{Currency, SiPrefix};
use serde::Deserialize;
use support::{Made, vectors};

#[derive(Deserialize)]
struct Vectors {
    reads: Vec<Read>,
    refused: Vec<Refused>,
}

#[derive(Deserialize)]
struct Read {
    why: String,
    text: String,
    network: String,
    amount_msat: Option<u64>,
    payment_hash: String,
    created_at: u64,
    expires_at: u64,
    payee: Option<String>,
    description: Option<String>,
}

#[derive(Deserialize)]
struct Refused {
    why: String,
    text: String,
    error: String,
}

fn all() -> Vectors {
    vectors("invoice.json")
}

#[test]
fn every_fact_of_an_invoice_is_read() {
    for row in all().reads {
        let why = &row.why;
        let invoice: Invoice = row.text.parse().unwrap_or_else(|error| panic!("{why}: {error}"));
        assert_eq!(invoice.network(), row.network.parse().unwrap(), "{why}");
        assert_eq!(invoice.amount(), row.amount_msat.map(Msat::new), "{why}");
        assert_eq!(invoice.payment_hash().to_string(), row.payment_hash, "{why}");
        assert_eq!(invoice.created_at().secs(), row.created_at, "{why}");
        assert_eq!(invoice.expires_at().secs(), row.expires_at, "{why}");
        assert_eq!(invoice.description(), row.description, "{why}");
        assert_eq!(invoice.to_string(), row.text.to_lowercase(), "{why}");
        if let Some(payee) = row.payee {
            assert_eq!(invoice.payee(), payee, "{why}");
        }
    }
}

#[test]
fn what_is_not_exactly_an_invoice_is_refused() {
    for Refused { why, text, error } in all().refused {
        let got = match Invoice::parse(&text).unwrap_err() {
            InvoiceError::TooLong(_) => "too_long",
            InvoiceError::Malformed(_) => "malformed",
            InvoiceError::Invalid(_) => "invalid",
            InvoiceError::AbsurdAmount => "absurd_amount",
            InvoiceError::UnknownNetwork => "unknown_network",
            other => panic!("{why}: {other}"),
        };
        assert_eq!(got, error, "{why}");
    }
}

#[test]
fn an_amount_is_never_lost_on_the_way() {
    let amounts = [
        (Some(1), Some(SiPrefix::Milli), Some(100_000_000)),
        (Some(1), Some(SiPrefix::Micro), Some(100_000)),
        (Some(1), Some(SiPrefix::Nano), Some(100)),
        (Some(1), None, Some(100_000_000_000)),
        (None, None, None),
    ];
    for (number, multiplier, msat) in amounts {
        let text = Made { amount: (number, multiplier), ..Made::default() }.text();
        assert_eq!(Invoice::parse(&text).unwrap().amount(), msat.map(Msat::new), "{text}");
    }
}

#[test]
fn an_invoice_can_be_paid_until_the_second_it_expires() {
    let invoice = Invoice::parse(&Made::default().text()).unwrap();
    let expired = |secs| invoice.is_expired(Timestamp::from_secs(secs));
    assert!(!expired(1_700_000_599));
    assert!(expired(1_700_000_600));
}

#[test]
fn test_coins_are_told_from_money() {
    for (currency, network) in [
        (Currency::Bitcoin, Network::Mainnet),
        (Currency::BitcoinTestnet, Network::Testnet),
        (Currency::Signet, Network::Signet),
        (Currency::Regtest, Network::Regtest),
    ] {
        let text = Made { currency, ..Made::default() }.text();
        assert_eq!(Invoice::parse(&text).unwrap().network(), network);
    }
    let text = Made { currency: Currency::Simnet, ..Made::default() }.text();
    assert_eq!(Invoice::parse(&text), Err(InvoiceError::UnknownNetwork));
}

#[test]
fn a_log_sees_no_description() {
    let text = Made { description: Ok("for Ann's surgery"), ..Made::default() }.text();
    let invoice = Invoice::parse(&text).unwrap();
    let shown = format!("{invoice:?}");
    assert!(!shown.contains("Ann") && !shown.contains(&text), "{shown}");
}
