//! What a person has allowed is used once, for what was asked, and not after its time.

use super::*;

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
fn redating_revives_no_consent_whatever_has_become_of_its_payment() {
    for (is_used, has_failed) in [(false, false), (true, true), (true, false)] {
        let file = File::new();
        let journal = file.open();
        let order = order(1, "a");
        let id = consented(&journal, &order);
        if is_used {
            let lease = by_consent(&journal, &order, &id).unwrap();
            match has_failed {
                true => fail(&journal, &order, "no route"),
                false => mark_sent(&journal, &order).unwrap(),
            }
            journal.release(&lease).unwrap();
        }
        assert_eq!(journal.given(&question(&order), later(3_600)).unwrap().len(), 0, "it has lapsed");
        buy(&journal, 2, &self::order(2, "b"));
        journal.note(&Note::Honoured(hash(2)), "/", Told::default(), later(1_000_000)).unwrap();
        assert!(matches!(journal.redate(later(1)).unwrap(), Redating::Done { .. }));
        assert_eq!(journal.given(&question(&order), later(2)).unwrap().len(), 0, "{is_used} {has_failed}");
    }
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
