//! The journal's promises: here, those of the file and of the rows in it; below, who may send, what is shown where, what money
//! and a person's word allow. Time is an argument, so nothing waits.

use std::time::Duration;

use farebox_lightning::outgoing::{Failure, Intents as _};
use farebox_protocol::{RootKey, Scheme};

use super::orders::new_intent;
use super::*;
use crate::mint::Draft;
use crate::policy::{Judgement, Window};

mod budgets;
mod consents;
mod imports;
mod leases;
mod passes;
mod receipts;

const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

fn later(secs: u64) -> Timestamp {
    NOW.saturating_add(Duration::from_secs(secs))
}

struct File {
    _directory: tempfile::TempDir,
    path: std::path::PathBuf,
}

impl File {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b/journal.db");
        Self { _directory: directory, path }
    }

    fn open(&self) -> Journal {
        Journal::open(&self.path).unwrap()
    }
}

fn scope(service: &str) -> Scope {
    Scope { origin: "https://shop.example".parse().unwrap(), service: service.to_owned() }
}

fn want(service: &str) -> Want {
    Want { scope: scope(service), path: "/".to_owned(), tried: vec![], buy_again: false }
}

fn order(number: u64, service: &str) -> Order {
    let draft = Draft::new(number, 100, NOW);
    Order {
        scope: scope(service),
        scheme: Scheme::L402,
        token: draft.macaroon(&RootKey::from_bytes([3; 32]), &[]).to_base64(),
        invoice: draft.invoice(),
        price: Msat::new(100_000),
        fee_max: Msat::new(10_000),
        fee_worst: Msat::new(10_000),
        valid_until: None,
        bound: true,
        judgement: Judgement::free(),
    }
}

/// The lease, if it can be had.
fn lease(journal: &Journal, want: &Want, now: Timestamp) -> Option<Lease> {
    match journal.reserve(want, now).unwrap() {
        Reserved::Held => None,
        Reserved::Go(_, lease) => lease,
    }
}

fn record(journal: &Journal, order: &Order, lease: &Lease) -> Result<bool, JournalError> {
    recorded(journal, order, lease, NOW).map(|recorded| recorded == Recorded::New)
}

fn recorded(
    journal: &Journal,
    order: &Order,
    lease: &Lease,
    now: Timestamp,
) -> Result<Recorded, JournalError> {
    let wallet = WalletId("w".to_owned());
    let from = From {
        method: "GET",
        path: "/",
        label: Some("test"),
        wallet: &wallet,
        consent: None,
        request_id: None,
    };
    journal.record(order, &from, lease, now)
}

fn mark_sent(journal: &Journal, order: &Order) -> Result<(), IntentError> {
    let payments = journal.payments().unwrap();
    let row = payments.find(&order.payment_hash())?.unwrap();
    payments.mark_sent(&row, &new_intent(order, &row.wallet), NOW).map(drop)
}

/// Buys to the end.
fn buy(journal: &Journal, number: u64, order: &Order) {
    let lease =
        lease(journal, &Want { tried: tried_all(journal), ..want(&order.scope.service) }, NOW).unwrap();
    assert!(record(journal, order, &lease).unwrap());
    mark_sent(journal, order).unwrap();
    let preimage = Draft::new(number, 100, NOW).preimage();
    journal.payments().unwrap().settle(&order.payment_hash(), &preimage, Msat::ZERO, NOW).unwrap();
    journal.release(&lease).unwrap();
}

fn tried_all(journal: &Journal) -> Vec<(PaymentHash, bool)> {
    journal.purchases().unwrap().iter().map(|row| (row.payment_hash, true)).collect()
}

/// The numbers of the payments behind the candidates for a path.
fn candidates(journal: &Journal, path: &str, now: Timestamp) -> Vec<u64> {
    let passes = journal.candidates(&scope("").origin, path, now).unwrap();
    let number = |pass: &Pass| (1..20).find(|n| Draft::new(*n, 1, NOW).payment_hash() == pass.payment_hash());
    passes.iter().filter_map(number).collect()
}

fn hash(number: u64) -> PaymentHash {
    Draft::new(number, 1, NOW).payment_hash()
}

/// Orders of 100 sat and at most 10 sat of fees each, by these budgets.
fn budgeted(number: u64, budgets: &[(Option<&str>, Window, u64)]) -> Order {
    let budget = |(rule, window, sat): &(Option<&str>, Window, u64)| Budget {
        rule: rule.map(str::to_owned),
        window: *window,
        most: Msat::new(sat * 1_000),
    };
    let judgement = Judgement { budgets: budgets.iter().map(budget).collect(), ..Judgement::free() };
    Order { judgement, ..order(number, &number.to_string()) }
}

fn begin(journal: &Journal, order: &Order, now: Timestamp) -> Recorded {
    let lease = lease(journal, &want(&order.scope.service), now).unwrap();
    let recorded = recorded(journal, order, &lease, now).unwrap();
    if recorded != Recorded::New {
        journal.release(&lease).unwrap();
    }
    recorded
}

fn is_refused(recorded: &Recorded) -> bool {
    matches!(recorded, Recorded::Refused(Refusal::OverBudget { .. }))
}

fn fail(journal: &Journal, order: &Order, reason: &str) {
    mark_sent(journal, order).unwrap();
    let payments = journal.payments().unwrap();
    let row = payments.find(&order.payment_hash()).unwrap().unwrap();
    payments.fail(&row, &Failure { reason: reason.to_owned(), unsent: false }, NOW).unwrap();
}

#[test]
fn one_payment_hash_is_recorded_once() {
    let journal = File::new().open();
    buy(&journal, 1, &order(1, "a"));
    let held = lease(&journal, &Want { tried: vec![(hash(1), true)], ..want("a") }, NOW).unwrap();
    assert!(!record(&journal, &order(1, "a"), &held).unwrap());
}

#[cfg(unix)]
#[test]
fn the_file_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let file = File::new();
    let journal = file.open();
    lease(&journal, &want("a"), NOW).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(file.path.parent().unwrap()), 0o700);
    for name in ["journal.db", "journal.db-wal", "journal.db-shm"] {
        assert_eq!(mode(&file.path.with_file_name(name)), 0o600, "{name}");
    }
}

#[test]
fn every_commit_is_synced() {
    let journal = File::new().open();
    let connection = journal.connection.lock();
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, String>(0));
    assert_eq!(pragma("journal_mode").unwrap(), "wal");
    let synchronous: i64 = connection.pragma_query_value(None, "synchronous", |row| row.get(0)).unwrap();
    assert_eq!(synchronous, 2, "FULL");
}

#[test]
fn a_file_of_a_later_version_is_left_alone() {
    let file = File::new();
    drop(file.open());
    Connection::open(&file.path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let error = Journal::open(&file.path).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "the journal has version 99, this program knows up to {}; use a newer farebox",
            schema::VERSION
        )
    );
}

#[test]
fn many_may_open_a_new_file_at_once() {
    let file = File::new();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| lease(&file.open(), &want("a"), NOW));
        }
    });
}

#[test]
fn a_row_shows_no_secret() {
    let journal = File::new().open();
    let order = order(1, "a");
    buy(&journal, 1, &order);
    let shown = format!("{:?} {:?}", journal.purchases().unwrap(), order);
    assert!(
        !shown.contains(&order.token) && !shown.contains(&*Draft::new(1, 1, NOW).preimage().expose_hex())
    );
}

#[test]
fn a_journal_that_is_well_ahead_of_the_clock_says_so() {
    let file = File::new();
    let journal = file.open();
    assert_eq!(journal.ahead(Timestamp::from_secs(0)).unwrap(), None, "nothing is written yet");
    assert_eq!(begin(&journal, &order(1, "a"), later(4_000)), Recorded::New);
    assert_eq!(journal.ahead(later(4_000)).unwrap(), None);
    assert_eq!(journal.ahead(later(400)).unwrap(), None);
    assert_eq!(journal.ahead(NOW).unwrap(), Some(later(4_000)));
}

#[test]
fn an_invoice_that_failed_at_one_server_and_is_offered_by_another_erases_nothing() {
    let file = File::new();
    let journal = file.open();
    let first = order(1, "a");
    let held = lease(&journal, &want("a"), NOW).unwrap();
    assert!(record(&journal, &first, &held).unwrap());
    fail(&journal, &first, "no route");
    journal.release(&held).unwrap();

    let elsewhere = Scope { origin: "https://other.example".parse().unwrap(), service: "a".to_owned() };
    let second = Order { scope: elsewhere.clone(), ..first.clone() };
    let held = lease(&journal, &Want { scope: elsewhere, ..want("a") }, NOW).unwrap();
    assert_eq!(recorded(&journal, &second, &held, later(5)).unwrap(), Recorded::New);
    let rows = journal.purchases().unwrap();
    let told: Vec<_> = rows.iter().map(|row| (row.origin.to_string(), row.payment_hash)).collect();
    let origins =
        ["https://other.example", "https://shop.example"].map(|origin| (origin.to_owned(), hash(1)));
    assert_eq!(told, origins);
    assert_eq!(rows[1].state, "failed");
    let receipts = journal.receipts_after(0, 10).unwrap();
    let receipts: Vec<_> = receipts.iter().map(|row| (row.origin.as_str(), row.event.as_str())).collect();
    let (shop, other) = ("https://shop.example", "https://other.example");
    assert_eq!(receipts, [(shop, "recorded"), (shop, "failed"), (other, "recorded")]);
}
