//! Which credentials are shown where, to whom, and until when.

use super::*;

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
fn another_origin_gets_nothing() {
    let journal = File::new().open();
    buy(&journal, 1, &order(1, "a"));
    for other in ["http://shop.example", "https://shop.example:444", "https://a.shop.example"] {
        let origin = other.parse().unwrap();
        assert!(journal.candidates(&origin, "/", NOW).unwrap().is_empty(), "{other}");
    }
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
