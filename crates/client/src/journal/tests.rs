//! The journal's promises: who may send, what is shared, what survives. Time is an argument, so nothing waits.

use std::time::Duration;

use farebox_lightning::outgoing::{Failure, Intents as _};
use farebox_protocol::{RootKey, Scheme};

use super::orders::new_intent;
use super::*;
use crate::mint::Draft;
use crate::policy::{Judgement, Window};

mod imports;
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

#[test]
fn a_lease_has_one_holder_at_a_time() {
    let file = File::new();
    let (ours, theirs) = (file.open(), file.open());
    let held = lease(&ours, &want("a"), NOW).unwrap();
    assert_eq!(lease(&theirs, &want("a"), NOW), None);
    assert!(lease(&theirs, &want("b"), NOW).is_some(), "another service is another matter");
    ours.release(&held).unwrap();
    assert!(lease(&theirs, &want("a"), NOW).is_some());
}

#[test]
fn a_lease_that_is_renewed_does_not_run_out() {
    let file = File::new();
    let (ours, theirs) = (file.open(), file.open());
    let held = lease(&ours, &want("a"), NOW).unwrap();
    assert!(ours.renew(&held, later(50)).unwrap());
    assert_eq!(lease(&theirs, &want("a"), later(100)), None);
    assert!(lease(&theirs, &want("a"), later(110)).is_some());
    assert!(!ours.renew(&held, later(111)).unwrap(), "what is lost can't be renewed");
}

#[test]
fn a_clock_that_is_set_back_frees_nothing() {
    let file = File::new();
    let (ours, theirs) = (file.open(), file.open());
    lease(&ours, &want("a"), NOW).unwrap();
    assert_eq!(lease(&theirs, &want("a"), Timestamp::from_secs(0)), None);
}

#[test]
fn a_holder_that_slept_through_its_lease_pays_nothing() {
    let file = File::new();
    let (sleeper, waker) = (file.open(), file.open());
    let lost = lease(&sleeper, &want("a"), NOW).unwrap();
    assert!(record(&sleeper, &order(1, "a"), &lost).unwrap());

    let taken = lease(&waker, &want("a"), later(61)).unwrap();
    let refused = mark_sent(&sleeper, &order(1, "a"));
    assert!(matches!(refused, Err(IntentError::Forbidden(_))), "{refused:?}");
    assert!(matches!(record(&sleeper, &order(2, "a"), &lost), Err(JournalError::LeaseLost)));
    assert!(record(&waker, &order(3, "a"), &taken).unwrap());
    mark_sent(&waker, &order(3, "a")).unwrap();
}

#[test]
fn a_holder_that_gave_its_lease_back_pays_nothing() {
    let journal = File::new().open();
    let held = lease(&journal, &want("a"), NOW).unwrap();
    record(&journal, &order(1, "a"), &held).unwrap();
    journal.release(&held).unwrap();
    assert!(matches!(mark_sent(&journal, &order(1, "a")), Err(IntentError::Forbidden(_))));
}

#[test]
fn the_lease_of_a_process_that_has_ended_is_free() {
    let file = File::new();
    let journal = file.open();
    lease(&journal, &want("a"), NOW).unwrap();
    let raw = Connection::open(&file.path).unwrap();
    raw.execute("UPDATE leases SET holder = 'an-earlier-boot/pid:[1]/1/1/1'", []).unwrap();
    assert_eq!(lease(&journal, &want("a"), NOW).is_some(), cfg!(target_os = "linux"));
}

#[test]
fn what_was_recorded_and_not_sent_is_closed_by_the_next_holder() {
    let journal = File::new().open();
    let first = lease(&journal, &want("a"), NOW).unwrap();
    record(&journal, &order(1, "a"), &first).unwrap();
    journal.release(&first).unwrap();
    let next = lease(&journal, &want("a"), NOW).unwrap();
    assert_eq!(journal.purchases().unwrap()[0].state, "unsent");
    // The server may offer the very same invoice again; it has cost nothing.
    assert!(record(&journal, &order(1, "a"), &next).unwrap());
}

#[test]
fn what_was_sent_is_found_before_anything_else_is_bought() {
    let file = File::new();
    let journal = file.open();
    let held = lease(&journal, &want("a"), NOW).unwrap();
    record(&journal, &order(1, "a"), &held).unwrap();
    mark_sent(&journal, &order(1, "a")).unwrap();
    journal.release(&held).unwrap();
    match file.open().reserve(&want("a"), NOW).unwrap() {
        Reserved::Go(Reservation::Unsettled(found), Some(_)) => assert_eq!(found.payment_hash(), hash(1)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn one_payment_hash_is_recorded_once() {
    let journal = File::new().open();
    buy(&journal, 1, &order(1, "a"));
    let held = lease(&journal, &Want { tried: vec![(hash(1), true)], ..want("a") }, NOW).unwrap();
    assert!(!record(&journal, &order(1, "a"), &held).unwrap());
}

#[test]
fn what_others_bought_is_shared_even_while_they_hold_the_lease() {
    let file = File::new();
    let (ours, theirs) = (file.open(), file.open());
    let held = lease(&ours, &want("a"), NOW).unwrap();
    record(&ours, &order(1, "a"), &held).unwrap();
    mark_sent(&ours, &order(1, "a")).unwrap();
    let preimage = Draft::new(1, 100, NOW).preimage();
    ours.payments().unwrap().settle(&hash(1), &preimage, Msat::ZERO, NOW).unwrap();

    let shared = theirs.reserve(&want("a"), NOW).unwrap();
    assert!(matches!(shared, Reserved::Go(Reservation::Pass(_), None)), "{shared:?}");
    // Shown and refused: now it is for the holder to find out.
    let shown = Want { tried: vec![(hash(1), false)], ..want("a") };
    assert!(matches!(theirs.reserve(&shown, NOW).unwrap(), Reserved::Held));
    // Honoured since then: worth another try.
    ours.note(&Note::Honoured(hash(1)), "/", Told::default(), NOW).unwrap();
    assert!(matches!(theirs.reserve(&shown, NOW).unwrap(), Reserved::Go(Reservation::Pass(_), None)));
}

#[test]
fn what_was_paid_and_never_honoured_is_told_until_it_is_written_off() {
    let journal = File::new().open();
    buy(&journal, 1, &order(1, "a"));
    let shown = Want { tried: vec![(hash(1), false)], ..want("a") };
    let told = journal.reserve(&shown, NOW).unwrap();
    let Reserved::Go(Reservation::NeverHonoured(never), Some(held)) = told else { panic!("{told:?}") };
    assert_eq!(never, hash(1));
    journal.release(&held).unwrap();

    let again = Want { buy_again: true, ..shown.clone() };
    let Reserved::Go(Reservation::Ours, Some(held)) = journal.reserve(&again, NOW).unwrap() else { panic!() };
    journal.release(&held).unwrap();
    assert!(matches!(journal.reserve(&shown, NOW).unwrap(), Reserved::Go(Reservation::Ours, _)));
    assert_eq!(candidates(&journal, "/", NOW), [0; 0], "what is written off isn't shown any more");
}

#[test]
fn the_likeliest_credential_is_shown_first() {
    let journal = File::new().open();
    for number in 1..=4 {
        buy(&journal, number, &order(number, &format!("s{number}")));
    }
    assert_eq!(candidates(&journal, "/x", NOW), [4, 3, 2], "the newest, and not all of them");
    journal.note(&Note::Honoured(hash(1)), "/a/b/c", Told::default(), NOW).unwrap();
    journal.note(&Note::Honoured(hash(2)), "/a", Told::default(), NOW).unwrap();
    assert_eq!(candidates(&journal, "/a/b/d", NOW), [1, 2, 4], "the nearest relative");
    assert_eq!(candidates(&journal, "/a", NOW)[0], 2, "the very path");
}

#[test]
fn a_refusal_counts_for_its_path_only() {
    let journal = File::new().open();
    buy(&journal, 1, &order(1, "a"));
    journal.note(&Note::Honoured(hash(1)), "/a", Told::default(), NOW).unwrap();
    journal.note(&Note::Refused(hash(1)), "/b", Told::default(), NOW).unwrap();
    assert_eq!(candidates(&journal, "/b", NOW), [0; 0]);
    assert_eq!(candidates(&journal, "/a", NOW), [1]);
    assert_eq!(candidates(&journal, "/c", NOW), [1]);
    journal.note(&Note::Spent(hash(1)), "/a", Told::default(), NOW).unwrap();
    assert_eq!(candidates(&journal, "/c", NOW), [0; 0]);
    assert_eq!(journal.purchases().unwrap().len(), 1, "nothing is deleted");
}

#[test]
fn a_dearer_place_of_the_same_service_kills_no_token() {
    let journal = File::new().open();
    buy(&journal, 1, &order(1, "a"));
    journal.note(&Note::Honoured(hash(1)), "/cheap", Told::default(), NOW).unwrap();
    journal.note(&Note::Spent(hash(1)), "/dear", Told::default(), NOW).unwrap();
    assert_eq!(candidates(&journal, "/cheap", NOW), [1]);
    assert_eq!(candidates(&journal, "/dear", NOW), [0; 0]);
}

#[test]
fn a_credential_that_was_never_honoured_is_shown_again_where_it_was_refused() {
    let journal = File::new().open();
    buy(&journal, 1, &order(1, "a"));
    journal.note(&Note::Refused(hash(1)), "/a", Told::default(), NOW).unwrap();
    assert_eq!(candidates(&journal, "/a", NOW), [1]);
}

#[test]
fn a_credential_that_is_over_by_its_own_words_is_not_shown() {
    let journal = File::new().open();
    buy(&journal, 1, &Order { valid_until: Some(later(10)), ..order(1, "a") });
    assert_eq!(candidates(&journal, "/", later(9)), [1]);
    assert_eq!(candidates(&journal, "/", later(10)), [0; 0]);
    // Nor does it stand in the way of another.
    assert!(matches!(journal.reserve(&want("a"), later(10)).unwrap(), Reserved::Go(Reservation::Ours, _)));
}

#[test]
fn a_server_that_sells_its_tokens_too_short_is_not_paid_for_each() {
    let journal = File::new().open();
    buy(&journal, 1, &Order { valid_until: Some(later(10)), ..order(1, "a") });
    journal.note(&Note::Refused(hash(1)), "/", Told::default(), NOW).unwrap();
    let told = journal.reserve(&want("a"), later(11)).unwrap();
    assert!(matches!(told, Reserved::Go(Reservation::NeverHonoured(_), Some(_))), "{told:?}");
}

#[test]
fn what_a_sleeper_recorded_is_not_sent_by_it_under_the_lease_of_another() {
    let file = File::new();
    let (sleeper, waker) = (file.open(), file.open());
    // Recorded, not sent, closed, and recorded once more: the row looks the same to both of them.
    let first = lease(&sleeper, &want("a"), NOW).unwrap();
    record(&sleeper, &order(1, "a"), &first).unwrap();
    sleeper.release(&first).unwrap();
    let slept = lease(&sleeper, &want("a"), NOW).unwrap();
    record(&sleeper, &order(1, "a"), &slept).unwrap();
    let taken = lease(&waker, &want("a"), later(61)).unwrap();
    record(&waker, &order(1, "a"), &taken).unwrap();
    let refused = mark_sent(&sleeper, &order(1, "a"));
    assert!(matches!(refused, Err(IntentError::Forbidden(_))), "{refused:?}");
    mark_sent(&waker, &order(1, "a")).unwrap();
}

#[test]
fn another_origin_gets_nothing() {
    let journal = File::new().open();
    buy(&journal, 1, &order(1, "a"));
    for other in ["http://shop.example", "https://shop.example:444", "https://a.shop.example"] {
        let origin = other.parse().unwrap();
        assert!(journal.candidates(&origin, "/", NOW).unwrap().is_empty(), "{other}");
    }
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

fn end(journal: &Journal, order: &Order, number: u64, fee: u64, now: Timestamp) {
    mark_sent(journal, order).unwrap();
    let preimage = Draft::new(number, 100, NOW).preimage();
    journal
        .payments()
        .unwrap()
        .settle(&order.payment_hash(), &preimage, Msat::new(fee * 1_000), now)
        .unwrap();
}

fn is_refused(recorded: &Recorded) -> bool {
    matches!(recorded, Recorded::Refused(Refusal::OverBudget { .. }))
}

#[test]
fn a_budget_counts_what_is_under_way_with_its_worst_fee() {
    let file = File::new();
    let journal = file.open();
    let order = |number| budgeted(number, &[(None, Window::Day, 320)]);
    assert_eq!(begin(&journal, &order(1), NOW), Recorded::New);
    assert_eq!(begin(&journal, &order(2), NOW), Recorded::New);
    let Recorded::Refused(refusal) = begin(&journal, &order(3), NOW) else { panic!("330 sat within 320") };
    assert_eq!(
        refusal.to_string(),
        "no room in the budget (all payments: 320 sat within a day): 0 sat are spent and 220 sat reserved, and this needs \
         100 sat and a fee reserve of 10 sat"
    );
    // What the fee didn't take is free again, and what failed is free altogether.
    end(&journal, &order(1), 1, 0, NOW);
    assert_eq!(begin(&journal, &order(3), NOW), Recorded::New);
    assert!(is_refused(&begin(&journal, &order(4), NOW)));
    let failure = Failure { reason: "no route".to_owned(), unsent: true };
    let payments = journal.payments().unwrap();
    let row = payments.find(&order(2).payment_hash()).unwrap().unwrap();
    payments.fail(&row, &failure, NOW).unwrap();
    assert_eq!(begin(&journal, &order(4), NOW), Recorded::New);
}

#[test]
fn a_window_slides_and_a_clock_set_back_frees_nothing() {
    let file = File::new();
    let journal = file.open();
    let order = |number| budgeted(number, &[(None, Window::Hour, 120)]);
    assert_eq!(begin(&journal, &order(1), NOW), Recorded::New);
    end(&journal, &order(1), 1, 10, NOW);
    assert!(is_refused(&begin(&journal, &order(2), later(3_599))));
    assert!(is_refused(&begin(&journal, &order(2), Timestamp::from_secs(0))));
    assert_eq!(begin(&journal, &order(2), later(3_600)), Recorded::New);
    // Open, it keeps its place however long that takes.
    assert!(is_refused(&begin(&journal, &order(3), later(1_000_000))));
}

#[test]
fn a_rule_counts_its_own_payments_and_every_rule_binds() {
    let file = File::new();
    let journal = file.open();
    let weather = [(None, Window::Total, 1_000), (Some("weather"), Window::Total, 110)];
    assert_eq!(begin(&journal, &budgeted(1, &weather), NOW), Recorded::New);
    assert!(is_refused(&begin(&journal, &budgeted(2, &weather), NOW)));
    assert_eq!(begin(&journal, &budgeted(2, &[(Some("film"), Window::Total, 110)]), NOW), Recorded::New);
    let both = [(None, Window::Total, 220), (Some("other"), Window::Total, 110)];
    assert!(is_refused(&begin(&journal, &budgeted(3, &both), NOW)), "all payments are 220 already");
    assert!(
        is_refused(&begin(&journal, &budgeted(3, &[(Some("none"), Window::Week, 0)]), NOW)),
        "zero is zero"
    );
    let taken = journal.taken(&budgeted(4, &weather).judgement.budgets, NOW).unwrap();
    let reserved: Vec<_> = taken.iter().map(|(_, taken)| taken.reserved.get() / 1_000).collect();
    assert_eq!(reserved, [220, 110]);
}

#[test]
fn an_older_journal_is_brought_up_to_date_with_what_it_has_spent() {
    let file = File::new();
    let journal = file.open();
    buy(&journal, 1, &order(1, "a"));
    journal.connection.lock().execute_batch(
        "DROP TABLE imports; DROP TABLE superseded; DROP TABLE clock; ALTER TABLE purchases DROP COLUMN ended; DROP TABLE receipts; ALTER TABLE purchases DROP COLUMN payee; ALTER TABLE purchases DROP COLUMN credential;
         ALTER TABLE purchases DROP COLUMN request_id;
         DROP TABLE approvals; ALTER TABLE purchases DROP COLUMN overrun_seen_at; DROP TABLE charges; DROP INDEX purchases_origin; DROP INDEX purchases_begun;
         ALTER TABLE purchases DROP COLUMN again;
         ALTER TABLE purchases DROP COLUMN label; ALTER TABLE purchases DROP COLUMN rule; PRAGMA user_version = 1;",
    ).unwrap();
    drop(journal);
    let journal = file.open();
    assert!(is_refused(&begin(&journal, &budgeted(2, &[(None, Window::Day, 200)]), NOW)));
    assert_eq!(begin(&journal, &budgeted(2, &[(None, Window::Day, 210)]), NOW), Recorded::New);
}

#[test]
fn what_has_failed_and_is_recorded_again_has_its_money_kept_aside_at_once() {
    let order = |number| budgeted(number, &[(None, Window::Day, 119), (Some("a"), Window::Total, 119)]);
    for unsent in [false, true] {
        let file = File::new();
        let (ours, theirs) = (file.open(), file.open());
        let first = lease(&ours, &want("1"), NOW).unwrap();
        assert_eq!(recorded(&ours, &order(1), &first, NOW).unwrap(), Recorded::New);
        mark_sent(&ours, &order(1)).unwrap();
        let payments = ours.payments().unwrap();
        let row = payments.find(&order(1).payment_hash()).unwrap().unwrap();
        payments.fail(&row, &Failure { reason: "no route".to_owned(), unsent }, NOW).unwrap();
        assert_eq!(ours.taken(&order(1).judgement.budgets, NOW).unwrap()[0].1.reserved, Msat::ZERO);

        assert_eq!(recorded(&ours, &order(1), &first, NOW).unwrap(), Recorded::New);
        assert!(is_refused(&begin(&theirs, &order(2), NOW)), "the first is about to be sent again");
        // Once it may not be sent any more, its place is free.
        ours.release(&first).unwrap();
        assert!(matches!(mark_sent(&ours, &order(1)), Err(IntentError::Forbidden(_))));
        let second = lease(&theirs, &want("2"), NOW).unwrap();
        assert_eq!(recorded(&theirs, &order(2), &second, NOW).unwrap(), Recorded::New);
    }
}

#[test]
fn what_is_paid_while_the_clock_is_wrong_counts_before_and_after_it_is_put_right() {
    let order = |number| budgeted(number, &[(None, Window::Hour, 230)]);
    for (first, second, third) in [
        (later(200_000), NOW, NOW),
        (NOW, Timestamp::from_secs(9), NOW),
        (NOW, Timestamp::from_secs(9), later(3_599)),
    ] {
        let file = File::new();
        let journal = file.open();
        for (number, now) in [(1, first), (2, second)] {
            assert_eq!(begin(&journal, &order(number), now), Recorded::New);
            end(&journal, &order(number), number, 10, now);
        }
        assert!(is_refused(&begin(&journal, &order(3), third)), "{first} {second} {third}");
    }
}

#[test]
fn what_a_dead_process_has_not_sent_takes_no_place() {
    let file = File::new();
    let journal = file.open();
    let order = |number| budgeted(number, &[(None, Window::Total, 119)]);
    assert_eq!(begin(&journal, &order(1), NOW), Recorded::New);
    assert!(is_refused(&begin(&journal, &order(2), NOW)), "it may live");
    let raw = Connection::open(&file.path).unwrap();
    for table in ["leases", "purchases"] {
        raw.execute(&format!("UPDATE {table} SET holder = 'an-earlier-boot/pid:[1]/1/1/1'"), []).unwrap();
    }
    assert_eq!(begin(&journal, &order(2), NOW) == Recorded::New, cfg!(target_os = "linux"));
    assert!(matches!(mark_sent(&journal, &order(1)), Err(IntentError::Forbidden(_))));
}

#[test]
fn an_earlier_payment_is_taken_on_only_within_the_budgets_of_now() {
    let file = File::new();
    let journal = file.open();
    let mut order = budgeted(1, &[(None, Window::Total, 110)]);
    let lease = lease(&journal, &want("1"), NOW).unwrap();
    assert_eq!(recorded(&journal, &order, &lease, NOW).unwrap(), Recorded::New);
    mark_sent(&journal, &order).unwrap();
    // It has a place in this budget and isn't counted twice.
    assert_eq!(journal.adopt(&order, None, &lease, NOW).unwrap(), None);
    order.judgement = budgeted(1, &[(Some("new"), Window::Total, 109)]).judgement;
    assert!(journal.adopt(&order, None, &lease, NOW).unwrap().is_some());
    order.judgement = budgeted(1, &[(Some("new"), Window::Total, 110)]).judgement;
    assert_eq!(journal.adopt(&order, None, &lease, NOW).unwrap(), None);
    let taken = journal.taken(&order.judgement.budgets, NOW).unwrap();
    assert_eq!(taken[0].1.reserved, Msat::new(110_000), "the new rule counts it");
}

/// A consent for what `order` asks, signed by nobody: whether it holds is not the journal's to say.
fn consented(journal: &Journal, order: &Order) -> String {
    let question = question(order);
    let id = journal.ask(&question, "5f3a9c01e2", NOW).unwrap().unwrap();
    let consent = crate::policy::Consent {
        id: id.clone(),
        origin: question.origin.to_string(),
        method: question.method,
        path: question.path,
        label: question.label,
        price_max: question.price,
        fee_max: question.fee_worst,
        until: later(3_600),
    };
    assert!(journal.answer(&id, Ok(&Given { consent, signature: vec![7; 64] })).unwrap());
    id
}

fn question(order: &Order) -> Question {
    Question {
        origin: order.scope.origin.clone(),
        service: order.scope.service.clone(),
        method: "GET".to_owned(),
        path: "/".to_owned(),
        label: Some("test".to_owned()),
        price: order.price,
        fee_worst: order.fee_worst,
        payment_hash: order.payment_hash(),
        payee: order.invoice.payee(),
        rule: None,
    }
}

/// Records `order` by this consent; `None` where that is taken.
fn by_consent(journal: &Journal, order: &Order, consent: &str) -> Option<Lease> {
    let lease = lease(journal, &want(&order.scope.service), NOW).unwrap();
    let wallet = WalletId("w".to_owned());
    let from = From {
        method: "GET",
        path: "/",
        label: Some("test"),
        wallet: &wallet,
        consent: Some(consent),
        request_id: None,
    };
    if journal.record(order, &from, &lease, NOW).unwrap() == Recorded::New {
        return Some(lease);
    }
    journal.release(&lease).unwrap();
    None
}

fn fail(journal: &Journal, order: &Order, reason: &str) {
    mark_sent(journal, order).unwrap();
    let payments = journal.payments().unwrap();
    let row = payments.find(&order.payment_hash()).unwrap().unwrap();
    payments.fail(&row, &Failure { reason: reason.to_owned(), unsent: false }, NOW).unwrap();
}

#[test]
fn a_clock_that_is_set_back_revives_no_consent() {
    let file = File::new();
    let journal = file.open();
    let order = order(1, "a");
    consented(&journal, &order);
    let given = |now| journal.given(&question(&order), now).unwrap().len();
    assert_eq!(given(later(3_599)), 1);
    assert_eq!(given(NOW), 1, "what has not lapsed may be used whenever the clock says so");
    assert_eq!(given(later(3_600)), 0);
    assert_eq!((given(later(3_599)), given(NOW)), (0, 0), "it was over already");
    drop(journal);
    assert_eq!(file.open().given(&question(&order), NOW).unwrap().len(), 0, "in another process, too");
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
fn a_consent_that_ended_before_the_last_receipt_stays_over() {
    let file = File::new();
    let journal = file.open();
    let order = order(1, "a");
    consented(&journal, &order);
    buy(&journal, 2, &self::order(2, "b"));
    journal.note(&Note::Honoured(hash(2)), "/", Told::default(), later(4_000)).unwrap();
    assert_eq!(journal.given(&question(&order), NOW).unwrap().len(), 0);
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

#[test]
fn a_credential_that_its_seller_honours_no_more_is_used_up_only_if_it_was_for_uses() {
    let forever = "farebox_terms=v1;offer=forever;msat=100000";
    let counted = "farebox_terms=v1;offer=requests;count=3;msat=100000";
    for (caveats, end, want) in [
        (vec![counted], None, "used_up"),
        (vec![forever], None, "dead"),
        (vec![], None, "used_up"),
        (vec![], Some(later(9_999)), "dead"),
    ] {
        let file = File::new();
        let journal = file.open();
        let caveats: Vec<String> = ["services=a:0"].into_iter().chain(caveats).map(str::to_owned).collect();
        let token = Draft::new(1, 100, NOW).macaroon(&RootKey::from_bytes([3; 32]), &caveats).to_base64();
        buy(&journal, 1, &Order { token, valid_until: end, ..order(1, "a") });
        journal.note(&Note::Honoured(hash(1)), "/", Told::default(), NOW).unwrap();
        journal.note(&Note::Spent(hash(1)), "/", Told::default(), NOW).unwrap();
        assert_eq!(journal.purchases().unwrap()[0].state, want, "{caveats:?}");
        assert!(!journal.forget(&hash(1), NOW).unwrap());
    }
}

#[test]
fn a_consent_is_taken_by_a_failed_payment_that_is_about_to_be_sent_again() {
    let file = File::new();
    let (ours, theirs) = (file.open(), file.open());
    let (again, other) = (order(1, "a"), order(2, "b"));
    let id = consented(&ours, &again);
    let held = by_consent(&ours, &again, &id).unwrap();
    fail(&ours, &again, "no route");
    ours.release(&held).unwrap();
    assert_eq!(ours.given(&question(&other), NOW).unwrap().len(), 1, "what failed uses nothing up");

    // The seller offers the same invoice once more, and another one to another request for the same.
    let held = by_consent(&ours, &again, &id).unwrap();
    assert!(theirs.given(&question(&other), NOW).unwrap().is_empty());
    assert!(by_consent(&theirs, &other, &id).is_none());
    mark_sent(&ours, &again).unwrap();
    ours.release(&held).unwrap();
    assert!(by_consent(&theirs, &other, &id).is_none(), "nor while it is under way");
}

#[test]
fn a_consent_is_free_again_when_a_payment_that_was_to_be_sent_again_never_will_be() {
    let file = File::new();
    let (ours, theirs) = (file.open(), file.open());
    let (again, other) = (order(1, "a"), order(2, "b"));
    let id = consented(&ours, &again);
    let held = by_consent(&ours, &again, &id).unwrap();
    fail(&ours, &again, "no route");
    ours.release(&held).unwrap();
    let held = by_consent(&ours, &again, &id).unwrap();
    ours.release(&held).unwrap();
    assert!(by_consent(&theirs, &other, &id).is_some());
    assert!(mark_sent(&ours, &again).is_err(), "the lease is gone");
}

#[test]
fn what_was_written_off_by_hand_keeps_its_consent() {
    let file = File::new();
    let journal = file.open();
    let (lost, other) = (order(1, "a"), order(2, "b"));
    let id = consented(&journal, &lost);
    by_consent(&journal, &lost, &id).unwrap();
    fail(&journal, &lost, WRITTEN_OFF);
    assert!(journal.given(&question(&other), NOW).unwrap().is_empty());
    assert!(by_consent(&journal, &other, &id).is_none(), "it may have been paid after all");
}

#[test]
fn a_question_that_has_become_dearer_is_another_one() {
    let journal = File::new().open();
    let asked = question(&order(1, "a"));
    assert_eq!(journal.ask(&asked, "first", NOW).unwrap().as_deref(), Some("first"));
    let cheaper = Question { price: Msat::new(99_000), ..asked.clone() };
    assert_eq!(journal.ask(&cheaper, "cheaper", NOW).unwrap().as_deref(), Some("first"));
    for (name, dearer) in [
        ("dearer", Question { price: Msat::new(100_000), ..asked.clone() }),
        ("fee", Question { fee_worst: Msat::new(10_001), ..asked.clone() }),
    ] {
        assert_eq!(journal.ask(&dearer, name, NOW).unwrap().as_deref(), Some(name));
        let pending = journal.pending(NOW).unwrap();
        assert_eq!(pending.iter().map(|one| &*one.id).collect::<Vec<_>>(), [name]);
    }
}
