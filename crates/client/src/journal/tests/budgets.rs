//! What a budget counts, in whichever order things happen and whatever the clock says.

use super::*;

fn end(journal: &Journal, order: &Order, number: u64, fee: u64, now: Timestamp) {
    mark_sent(journal, order).unwrap();
    let preimage = Draft::new(number, 100, NOW).preimage();
    journal
        .payments()
        .unwrap()
        .settle(&order.payment_hash(), &preimage, Msat::new(fee * 1_000), now)
        .unwrap();
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
        "DROP TABLE redated; DROP TABLE redatings; DROP TABLE imports; DROP TABLE superseded; DROP TABLE clock; ALTER TABLE purchases DROP COLUMN ended; DROP TABLE receipts; ALTER TABLE purchases DROP COLUMN payee; ALTER TABLE purchases DROP COLUMN credential;
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

/// Pays 110 sat of the 120 that an hour has.
fn pay(journal: &Journal, number: u64, now: Timestamp) -> Recorded {
    let order = budgeted(number, &[(None, Window::Hour, 120)]);
    let recorded = begin(journal, &order, now);
    if recorded == Recorded::New {
        end(journal, &order, number, 10, now);
    }
    recorded
}

#[test]
fn what_a_clock_that_was_ahead_has_dated_leaves_a_budget_in_its_time_once_a_person_says_so() {
    let file = File::new();
    let journal = file.open();
    assert_eq!(pay(&journal, 1, later(40_000_000)), Recorded::New);
    assert!(is_refused(&pay(&journal, 2, later(10_000))));
    let (spent, forgiven) = (Msat::new(110_000), later(40_000_000));
    assert_eq!(journal.redate(later(10_000)).unwrap(), Redating::Done { payments: 1, spent, forgiven });
    assert_eq!(journal.ahead(later(10_000)).unwrap(), None);
    assert!(is_refused(&pay(&journal, 2, later(10_000))), "nothing is free at that moment");
    assert!(is_refused(&pay(&journal, 2, later(13_599))));
    assert_eq!(pay(&journal, 2, later(13_600)), Recorded::New);
    // What is paid since then is dated as ever.
    assert!(is_refused(&pay(&journal, 3, later(17_199))));
    assert_eq!(pay(&journal, 3, later(17_200)), Recorded::New);
    assert_eq!(journal.redate(later(20_000)).unwrap(), Redating::NotAhead);
    assert_eq!(journal.ahead(later(20_000)).unwrap(), None);
}

#[test]
fn a_journal_that_is_redated_by_a_clock_that_is_set_back_frees_nothing_once_that_is_right() {
    let file = File::new();
    let journal = file.open();
    assert_eq!(pay(&journal, 1, NOW), Recorded::New);
    let earlier = |secs| Timestamp::from_secs(NOW.secs() - 1_000_000 + secs);
    assert!(matches!(journal.redate(earlier(0)).unwrap(), Redating::Done { payments: 1, .. }));
    assert!(is_refused(&pay(&journal, 2, earlier(3_599))));
    // Whoever moves a clock on spends what an hour has, as ever; and it is counted in the hour that it really was.
    assert_eq!(pay(&journal, 2, earlier(3_600)), Recorded::New);
    for now in [NOW, later(5), later(3_599)] {
        assert!(is_refused(&pay(&journal, 3, now)), "{now}");
        let budgets = budgeted(4, &[(None, Window::Hour, 120)]).judgement.budgets;
        assert_eq!(journal.taken(&budgets, now).unwrap()[0].1.spent, Msat::new(220_000), "{now}");
    }
    assert_eq!(pay(&journal, 3, later(3_600)), Recorded::New);
}

#[test]
fn a_clock_that_is_set_back_after_a_redating_frees_nothing() {
    let file = File::new();
    let journal = file.open();
    let order = |number| budgeted(number, &[(None, Window::Hour, 230)]);
    assert_eq!(pay(&journal, 1, later(40_000_000)), Recorded::New);
    assert!(matches!(journal.redate(NOW).unwrap(), Redating::Done { payments: 1, .. }));
    let earlier = Timestamp::from_secs(NOW.secs() - 1_000_000);
    assert_eq!(begin(&journal, &order(2), earlier), Recorded::New);
    end(&journal, &order(2), 2, 10, earlier);
    for now in [earlier, NOW, later(3_599)] {
        assert!(is_refused(&begin(&journal, &order(3), now)), "{now}");
    }
    assert_eq!(begin(&journal, &order(3), later(3_600)), Recorded::New);
}

#[test]
fn what_is_redated_again_by_a_clock_that_is_set_back_counts_once_that_is_right() {
    for times in 1..4 {
        let file = File::new();
        let journal = file.open();
        assert_eq!(pay(&journal, 1, later(40_000_000)), Recorded::New);
        assert!(matches!(journal.redate(NOW).unwrap(), Redating::Done { payments: 1, .. }));
        for back in 1..=times {
            let now = Timestamp::from_secs(NOW.secs() - back * 1_000_000);
            assert!(matches!(journal.redate(now).unwrap(), Redating::Done { payments: 1, .. }));
        }
        for now in [NOW, later(3_599)] {
            assert!(is_refused(&pay(&journal, 2, now)), "{times} {now}");
        }
        assert_eq!(pay(&journal, 2, later(3_600)), Recorded::New);
    }
}

#[test]
fn what_is_open_is_not_redated() {
    let file = File::new();
    let journal = file.open();
    let order = budgeted(1, &[(None, Window::Hour, 120)]);
    assert_eq!(begin(&journal, &order, later(1_000_000)), Recorded::New);
    mark_sent(&journal, &order).unwrap();
    assert_eq!(journal.redate(NOW).unwrap(), Redating::Open(1));
    assert!(is_refused(&pay(&journal, 2, later(3_600))));
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
