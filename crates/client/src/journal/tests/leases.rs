//! Who may send: one holder at a time, and nobody who has lost its lease.

use super::*;

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
