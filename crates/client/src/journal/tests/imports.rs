//! What another program has bought is held like our own, counts against nothing, and is never bought a second time.

use super::*;
use crate::import::{Found, Program};

/// Credentials as `tokens export` writes them, and so as they come in.
fn found(numbers: &[u64]) -> Vec<Found> {
    let lines = numbers.iter().map(|number| {
        let draft = Draft::new(*number, 100, NOW);
        let token = draft.macaroon(&RootKey::from_bytes([3; 32]), &["services=a:0".to_owned()]).to_base64();
        format!("L402 {token}:{}\n", *draft.preimage().expose_hex())
    });
    let origin = scope("a").origin;
    Program::read_own_text(&lines.collect::<String>(), Some(&origin)).unwrap().found
}

fn pending(number: u64) -> Found {
    Found { preimage: None, ..found(&[number]).remove(0) }
}

fn states(journal: &Journal) -> Vec<&'static str> {
    journal.purchases().unwrap().iter().map(|row| row.state).collect()
}

#[test]
fn what_is_imported_is_shown_like_what_was_bought_and_only_brought_in_once() {
    let file = File::new();
    let journal = file.open();
    assert_eq!(journal.plan_import(&found(&[1, 2])).unwrap(), [Brought::New, Brought::New]);
    assert_eq!(journal.import(&found(&[1, 2]), "lnget", NOW).unwrap(), [Brought::New, Brought::New]);
    assert_eq!(
        journal.import(&found(&[1, 2, 3]), "lnget", NOW).unwrap(),
        [Brought::Held, Brought::Held, Brought::New]
    );
    assert_eq!(candidates(&journal, "/", NOW), [3, 2, 1]);
    assert_eq!(states(&journal), ["imported"; 3]);
    let row = journal.purchase(&hash(1)).unwrap().unwrap();
    assert_eq!((row.source.as_deref(), row.service.as_str()), (Some("lnget"), "a"));
    assert!(journal.pass(&hash(1)).unwrap().is_some());
    journal.note(&Note::Honoured(hash(1)), "/", Told::default(), NOW).unwrap();
    assert_eq!(states(&journal), ["imported", "imported", "honoured"]);
    assert!(journal.forget(&hash(2), NOW).unwrap());
    assert_eq!(candidates(&journal, "/", NOW), [1, 3]);
    assert_eq!(journal.verify_receipts(&[]).unwrap().broken, []);
    let events: Vec<_> = journal.receipts_after(0, 10).unwrap().into_iter().map(|row| row.event).collect();
    assert_eq!(events, ["imported", "imported", "imported", "served", "forgotten"]);
}

#[test]
fn what_was_bought_here_is_not_imported_over() {
    let file = File::new();
    let journal = file.open();
    buy(&journal, 1, &order(1, "a"));
    assert_eq!(journal.import(&found(&[1]), "lnget", NOW).unwrap(), [Brought::Held]);
    assert_eq!(states(&journal), ["paid"]);
}

#[test]
fn an_import_counts_against_no_budget_and_makes_no_seller_known() {
    let file = File::new();
    let journal = file.open();
    journal.import(&found(&[1]), "lnget", NOW).unwrap();
    assert!(!journal.is_known(&scope("a").origin).unwrap());
    let taken = journal.taken(&budgeted(2, &[(None, Window::Day, 1)]).judgement.budgets, NOW).unwrap();
    assert_eq!((taken[0].1.spent, taken[0].1.reserved), (Msat::ZERO, Msat::ZERO));
}

#[test]
fn an_import_that_is_refused_is_not_shown_there_again_and_stops_no_purchase() {
    let file = File::new();
    let journal = file.open();
    journal.import(&found(&[1]), "lnget", NOW).unwrap();
    journal.note(&Note::Refused(hash(1)), "/", Told::default(), NOW).unwrap();
    assert_eq!(candidates(&journal, "/", NOW), Vec::<u64>::new());
    let tried = Want { tried: vec![(hash(1), true)], ..want("a") };
    assert!(matches!(journal.reserve(&tried, NOW).unwrap(), Reserved::Go(Reservation::Ours, Some(_))));
}

#[test]
fn no_number_of_imports_hides_what_was_bought_here() {
    let file = File::new();
    let journal = file.open();
    buy(&journal, 1, &order(1, "a"));
    journal.note(&Note::Honoured(hash(1)), "/elsewhere", Told::default(), NOW).unwrap();
    journal.import(&found(&(2..=200).collect::<Vec<_>>()), "lnget", NOW).unwrap();
    assert_eq!(candidates(&journal, "/", NOW), [1], "of those that were bought here");
    let told = journal.reserve(&want("a"), NOW).unwrap();
    let Reserved::Go(Reservation::Pass(pass), None) = told else { panic!("{told:?}") };
    assert_eq!(pass.payment_hash(), hash(1));
}

#[test]
fn while_the_end_of_anothers_payment_is_unknown_nothing_is_bought_in_its_place() {
    let file = File::new();
    let journal = file.open();
    assert_eq!(journal.import(&[pending(1)], "lnget", NOW).unwrap(), [Brought::Pending]);
    assert_eq!(states(&journal), ["unknown"]);
    assert_eq!(journal.open_imports().unwrap(), [hash(1)]);
    assert_eq!(journal.unclear().unwrap(), [hash(1)]);
    let told = journal.reserve(&want("a"), NOW).unwrap();
    let Reserved::Go(Reservation::Elsewhere(open, program), Some(held)) = told else { panic!("{told:?}") };
    assert_eq!((open, program.as_str()), (hash(1), "lnget"));
    // Not even the same invoice, should the server offer it again.
    assert_eq!(recorded(&journal, &order(1, "a"), &held, NOW).unwrap(), Recorded::Before);
    journal.release(&held).unwrap();

    let proof = Draft::new(1, 100, NOW).preimage();
    assert!(journal.close_import(&hash(1), Ok((&proof, Msat::new(3))), NOW).unwrap());
    assert_eq!(states(&journal), ["paid"], "paid, and not served as far as anybody knows");
    assert_eq!(candidates(&journal, "/", NOW), [1]);
    let tried = Want { tried: vec![(hash(1), false)], ..want("a") };
    let told = journal.reserve(&tried, NOW).unwrap();
    assert!(matches!(told, Reserved::Go(Reservation::NeverHonoured(_), _)), "{told:?}");
    assert_eq!(journal.verify_receipts(&[]).unwrap().broken, []);
}

#[test]
fn what_another_program_could_not_pay_may_be_bought() {
    let file = File::new();
    let journal = file.open();
    journal.import(&[pending(1)], "lnget", NOW).unwrap();
    assert!(journal.close_import(&hash(1), Err("no route"), NOW).unwrap());
    assert!(!journal.close_import(&hash(1), Err("no route"), NOW).unwrap());
    assert_eq!(states(&journal), ["failed"]);
    let held = lease(&journal, &want("a"), NOW).unwrap();
    assert_eq!(recorded(&journal, &order(1, "a"), &held, NOW).unwrap(), Recorded::New);
    assert_eq!(states(&journal), ["recorded"]);
}

#[test]
fn a_proof_that_comes_later_completes_a_pending_import() {
    let file = File::new();
    let journal = file.open();
    journal.import(&[pending(1)], "lnget", NOW).unwrap();
    assert_eq!(journal.import(&found(&[1]), "lnget", NOW).unwrap(), [Brought::Completed]);
    assert_eq!(states(&journal), ["paid"]);
}

#[test]
fn an_import_from_the_future_does_not_move_the_clock() {
    let file = File::new();
    let journal = file.open();
    let ahead = Found { bought_at: Some(later(1_000_000)), ..found(&[1]).remove(0) };
    journal.import(&[ahead], "lnget", NOW).unwrap();
    assert_eq!(budget::latest(&journal.connection.lock(), NOW).unwrap(), NOW);
}

#[test]
fn what_is_exported_comes_in_again_as_it_was() {
    let (ours, theirs) = (File::new(), File::new());
    let journal = ours.open();
    buy(&journal, 1, &order(1, "a"));
    journal.import(&found(&[2]), "lnget", NOW).unwrap();
    let rows = journal.purchases().unwrap();
    let held: Vec<_> = rows
        .into_iter()
        .map(|row| (row.clone(), journal.pass(&row.payment_hash).unwrap().unwrap()))
        .collect();
    let text = crate::import::write_tokens(&held);
    let haul = Program::read_own_text(&text, None).unwrap();
    assert_eq!(haul.skipped, []);
    let other = theirs.open();
    other.import(&haul.found, "farebox", NOW).unwrap();
    for (row, pass) in held {
        let again = other.pass(&row.payment_hash).unwrap().unwrap();
        assert_eq!((&again.token, again.preimage.payment_hash()), (&pass.token, pass.payment_hash()));
        assert_eq!((again.scope.origin, again.scheme), (pass.scope.origin, pass.scheme));
        assert_eq!(other.purchase(&row.payment_hash).unwrap().unwrap().price, row.price);
    }
}
