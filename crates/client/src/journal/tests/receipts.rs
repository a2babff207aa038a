//! The promises of the receipts: they tell what happened, in order, once; and they break where anybody touches them.

use super::*;

fn events(journal: &Journal) -> Vec<String> {
    let rows = journal.receipts_after(0, 1_000).unwrap();
    rows.into_iter().map(|row| row.event).collect()
}

fn broken(journal: &Journal) -> Vec<(Option<u64>, &'static str)> {
    let verified = journal.verify_receipts(&[]).unwrap();
    verified.broken.into_iter().map(|broken| (broken.row, broken.what)).collect()
}

/// Somebody who can write the file does so, whatever stands against it.
fn tamper(journal: &Journal, sql: &str) {
    let sql = format!("DROP TRIGGER IF EXISTS receipts_stay; DROP TRIGGER IF EXISTS receipts_remain; {sql}");
    journal.connection.lock().execute_batch(&sql).unwrap();
}

#[test]
fn a_purchase_leaves_one_row_for_each_thing_that_became_of_it() {
    let file = File::new();
    let journal = file.open();
    buy(&journal, 1, &order(1, "a"));
    let told = Told { status: Some(200), bytes: Some(42), note: None };
    for _ in 0..3 {
        journal.note(&Note::Honoured(hash(1)), "/", told, NOW).unwrap();
    }
    journal.note(&Note::Refused(hash(1)), "/b", Told { status: Some(402), ..told }, NOW).unwrap();
    journal.note(&Note::Spent(hash(1)), "/", Told { status: Some(402), ..told }, NOW).unwrap();
    assert_eq!(events(&journal), ["recorded", "paid", "served", "refused", "ended"]);

    let rows = journal.receipts_after(0, 10).unwrap();
    let (recorded, paid, served) = (&rows[0], &rows[1], &rows[2]);
    assert_eq!((recorded.amount, recorded.fee), (Some(Msat::new(100_000)), None));
    assert_eq!((paid.amount, paid.fee), (Some(Msat::new(100_000)), Some(Msat::ZERO)));
    assert_eq!((served.status, served.bytes), (Some(200), Some(42)));
    assert_eq!(paid.payee, Some(order(1, "a").invoice.payee()));
    assert_eq!((paid.origin.as_str(), paid.method.as_str()), ("https://shop.example", "GET"));
    assert_eq!((paid.label.as_deref(), paid.wallet.as_deref()), (Some("test"), Some("w")));
    assert_eq!(paid.credential.as_deref().map(str::len), Some(64));
    assert_eq!(broken(&journal), []);
}

#[test]
fn a_request_that_is_free_or_asks_in_vain_leaves_no_row() {
    let file = File::new();
    let journal = file.open();
    let held = lease(&journal, &want("a"), NOW).unwrap();
    let dear = budgeted(1, &[(None, Window::Day, 1)]);
    assert!(is_refused(&recorded(&journal, &dear, &held, NOW).unwrap()));
    journal.candidates(&scope("a").origin, "/", NOW).unwrap();
    journal.release(&held).unwrap();
    assert_eq!(events(&journal), Vec::<String>::new());
    assert_eq!(journal.verify_receipts(&[]).unwrap().head, None);
}

#[test]
fn what_failed_and_what_nobody_knows_is_told_and_told_again_only_when_it_changes() {
    let file = File::new();
    let journal = file.open();
    let held = lease(&journal, &want("a"), NOW).unwrap();
    assert!(record(&journal, &order(1, "a"), &held).unwrap());
    mark_sent(&journal, &order(1, "a")).unwrap();
    let payments = journal.payments().unwrap();
    let row = payments.find(&hash(1)).unwrap().unwrap();
    let row = payments.unknown(&row, "the line was cut", NOW).unwrap();
    let row = payments.unknown(&row, "the line was cut", NOW).unwrap();
    payments.fail(&row, &Failure { reason: "no route".to_owned(), unsent: false }, NOW).unwrap();
    // Paid in the end, after all that was said; and told so twice.
    let proof = Draft::new(1, 100, NOW).preimage();
    for _ in 0..2 {
        payments.settle(&hash(1), &proof, Msat::new(7), NOW).unwrap();
    }
    assert_eq!(events(&journal), ["recorded", "unknown", "failed", "paid"]);
    let failed = &journal.receipts_after(2, 1).unwrap()[0];
    assert_eq!(failed.note.as_deref(), Some("no route"));
    assert_eq!(broken(&journal), []);
}

#[test]
fn what_was_paid_and_not_served_is_a_list_of_its_own() {
    let file = File::new();
    let journal = file.open();
    for number in 1..=3 {
        buy(&journal, number, &order(number, &format!("s{number}")));
    }
    journal.note(&Note::Honoured(hash(1)), "/", Told::default(), NOW).unwrap();
    journal.forget(&hash(2), NOW).unwrap();
    let unserved: Vec<_> = journal.receipts(10, true).unwrap().iter().map(|row| row.payment_hash).collect();
    assert_eq!(unserved, [hash(3)]);
}

#[test]
fn the_chain_says_which_row_was_touched() {
    for (sql, want) in [
        ("UPDATE receipts SET amount_msat = 1 WHERE number = 2", 2),
        ("UPDATE receipts SET path = '/x' WHERE number = 3", 3),
        ("UPDATE receipts SET label = NULL WHERE number = 1", 1),
        ("UPDATE receipts SET note = '' WHERE number = 4", 4),
        ("UPDATE receipts SET link = zeroblob(32) WHERE number = 4", 4),
        ("DELETE FROM receipts WHERE number = 2", 3),
        ("UPDATE receipts SET number = 9 WHERE number = 4", 9),
    ] {
        let file = File::new();
        let journal = file.open();
        buy(&journal, 1, &order(1, "a"));
        buy(&journal, 2, &order(2, "b"));
        assert_eq!(broken(&journal), []);
        tamper(&journal, sql);
        let rows: Vec<_> = broken(&journal).into_iter().filter_map(|(row, _)| row).collect();
        assert!(rows.contains(&want), "{sql}: {rows:?}");
    }
}

#[test]
fn rows_can_not_be_changed_by_mistake() {
    let file = File::new();
    let journal = file.open();
    buy(&journal, 1, &order(1, "a"));
    for sql in ["UPDATE receipts SET note = 'x'", "DELETE FROM receipts"] {
        let error = journal.connection.lock().execute_batch(sql).unwrap_err();
        assert!(error.to_string().contains("only added to"), "{error}");
    }
}

#[test]
fn a_chain_that_was_cut_short_is_found_by_the_payments_and_by_a_link_that_was_noted() {
    let file = File::new();
    let journal = file.open();
    buy(&journal, 1, &order(1, "a"));
    journal.note(&Note::Honoured(hash(1)), "/", Told::default(), NOW).unwrap();
    let noted = journal.verify_receipts(&[]).unwrap().head.unwrap();
    assert_eq!(journal.verify_receipts(&[noted]).unwrap().broken, []);
    tamper(&journal, "DELETE FROM receipts WHERE number = 3");
    assert_eq!(broken(&journal), [], "the served row is gone, and nothing in the file tells");
    let with_note = journal.verify_receipts(&[noted]).unwrap().broken;
    assert_eq!(with_note[0].what, "a link that was noted is not in the chain");
    tamper(&journal, "DELETE FROM receipts WHERE number = 2");
    assert_eq!(broken(&journal), [(None, "it was paid, and its receipt is missing")]);
}

#[test]
fn a_receipt_needs_the_proof_of_its_payment() {
    for (sql, want) in [
        (
            "UPDATE outgoing_payments SET preimage = zeroblob(32)",
            "the proof in the journal is not of this payment",
        ),
        ("UPDATE outgoing_payments SET amount_msat = 5", "the journal has another amount or fee"),
        ("UPDATE outgoing_payments SET fee_msat = 5", "the journal has another amount or fee"),
        (
            "UPDATE outgoing_payments SET state = 'failed', preimage = NULL, fee_msat = NULL",
            "the journal has no proof of this payment",
        ),
    ] {
        let file = File::new();
        let journal = file.open();
        buy(&journal, 1, &order(1, "a"));
        tamper(&journal, sql);
        assert_eq!(broken(&journal), [(Some(2), want)], "{sql}");
    }
}

#[test]
fn a_receipt_that_can_not_be_written_keeps_no_proof_from_the_journal() {
    let file = File::new();
    let journal = file.open();
    let held = lease(&journal, &want("a"), NOW).unwrap();
    assert!(record(&journal, &order(1, "a"), &held).unwrap());
    mark_sent(&journal, &order(1, "a")).unwrap();
    let spoil = "CREATE TRIGGER spoil BEFORE INSERT ON receipts BEGIN SELECT RAISE(ABORT, 'no'); END";
    journal.connection.lock().execute_batch(spoil).unwrap();
    let proof = Draft::new(1, 100, NOW).preimage();
    journal.payments().unwrap().settle(&hash(1), &proof, Msat::ZERO, NOW).unwrap();
    assert!(journal.pass(&hash(1)).unwrap().is_some());
    assert_eq!(broken(&journal), [(None, "it was paid, and its receipt is missing")]);
}

#[test]
fn a_clock_that_is_set_back_writes_no_earlier_row() {
    let file = File::new();
    let journal = file.open();
    buy(&journal, 1, &order(1, "a"));
    journal.note(&Note::Honoured(hash(1)), "/", Told::default(), Timestamp::from_secs(5)).unwrap();
    assert_eq!(journal.receipts(1, false).unwrap()[0].at, NOW);
    assert_eq!(broken(&journal), []);
}

#[test]
fn many_writers_make_one_chain() {
    let file = File::new();
    drop(file.open());
    std::thread::scope(|threads| {
        for number in 1..=8 {
            let journal = file.open();
            threads.spawn(move || {
                let order = order(number, &format!("s{number}"));
                buy(&journal, number, &order);
                journal.note(&Note::Honoured(order.payment_hash()), "/", Told::default(), NOW).unwrap();
            });
        }
    });
    let journal = file.open();
    let verified = journal.verify_receipts(&[]).unwrap();
    assert_eq!((verified.rows, verified.broken), (24, vec![]));
}

#[test]
fn what_was_bought_before_there_were_receipts_gets_rows_that_say_so() {
    let file = File::new();
    let journal = file.open();
    buy(&journal, 1, &order(1, "a"));
    journal.note(&Note::Honoured(hash(1)), "/", Told::default(), NOW).unwrap();
    let held = lease(&journal, &want("b"), NOW).unwrap();
    assert!(record(&journal, &order(2, "b"), &held).unwrap());
    mark_sent(&journal, &order(2, "b")).unwrap();
    journal
        .connection
        .lock()
        .execute_batch(
            "DROP TABLE receipts; DROP TABLE redated; DROP TABLE redatings; DROP TABLE imports; DROP TABLE superseded; DROP TABLE clock;
             ALTER TABLE purchases DROP COLUMN ended; ALTER TABLE purchases DROP COLUMN payee; ALTER TABLE purchases DROP COLUMN credential;
             ALTER TABLE purchases DROP COLUMN request_id; PRAGMA user_version = 4;",
        )
        .unwrap();
    drop(journal);
    let journal = file.open();
    assert_eq!(events(&journal), ["paid", "served", "unknown"]);
    let rows = journal.receipts_after(0, 10).unwrap();
    assert!(rows.iter().all(|row| row.note.as_ref().unwrap().starts_with("from before the receipts")));
    assert!(rows.iter().all(|row| row.payee.is_some() && row.credential.is_some()));
    assert_eq!(broken(&journal), []);
    // And what they tell of goes on.
    let proof = Draft::new(2, 100, NOW).preimage();
    journal.payments().unwrap().settle(&hash(2), &proof, Msat::ZERO, NOW).unwrap();
    assert_eq!(events(&journal), ["paid", "served", "unknown", "paid"]);
    drop(journal);
    assert_eq!(events(&file.open()), ["paid", "served", "unknown", "paid"], "once is enough");
}
