use expect_test::{Expect, expect};
use farebox_protocol::{PaymentHash, Terms};
use proptest::prelude::*;

use super::*;

const NOW: Timestamp = Timestamp::from_secs(1_000);

fn terms(offer: Offer) -> Terms {
    Terms { offer, price: Msat::new(10_000) }
}

fn ten_requests() -> Offer {
    Offer::Requests(10.try_into().unwrap())
}

fn an_hour() -> Offer {
    Offer::Duration(Duration::from_secs(3_600))
}

/// A token that has paid for everything.
fn good() -> Candidate {
    Candidate {
        key: Key::Live,
        preimage_holds: true,
        revoked: false,
        caveats: Ok(Judged {
            replaces: None,
            terms: Some(terms(Offer::Forever)),
            tier: Some(0),
            valid_until: None,
            is_limited: false,
            names_others: false,
        }),
        settled: Settled::Unneeded,
        ledger: Ledger::Unasked,
    }
}

fn judged(change: impl Fn(&mut Judged)) -> Candidate {
    let mut token = good();
    if let Ok(judged) = &mut token.caveats {
        change(judged);
    }
    token
}

fn decided(gate: Gate, presented: Presented<'_>, tier: u8) -> Decision {
    decide(&Facts { gate, presented, freebie: Freebie::None, tier, now: NOW })
}

#[track_caller]
fn check(candidates: &[Candidate], want: Expect) {
    want.assert_eq(&format!("{:?}", decided(Gate::Priced, Presented::Tokens(candidates), 0)));
}

const KEYS: [Key; 6] = [
    Key::Unknown,
    Key::Live,
    Key::SettledOnly(Vouched::Unasked),
    Key::SettledOnly(Vouched::Yes),
    Key::SettledOnly(Vouched::No),
    Key::SettledOnly(Vouched::Unreadable),
];

const LEDGER: [Ledger; 6] =
    [Ledger::Unasked, Ledger::Reserved, Ledger::InFlight, Ledger::Spent, Ledger::Limited, Ledger::Unreadable];

const SETTLED: [Settled; 5] =
    [Settled::Unneeded, Settled::Unasked, Settled::Yes, Settled::No, Settled::Unreadable];

/// Every token there can be, as far as the decision tells them apart.
fn every_candidate() -> Vec<Candidate> {
    let mut caveats: Vec<(Result<Judged, Code>, &[Ledger])> =
        [Code::TokenExpired, Code::TokenOtherService, Code::CaveatUnknown]
            .map(|code| (Err(code), &LEDGER[..1]))
            .into();
    for (terms, is_limited) in [
        (None, false),
        (Some(terms(Offer::Forever)), false),
        (Some(terms(an_hour())), false),
        (Some(terms(ten_requests())), false),
        (Some(terms(Offer::Credit)), false),
        (Some(terms(an_hour())), true),
    ] {
        let counted = is_limited || terms.is_some_and(|terms| terms.offer.is_counted());
        for tier in [None, Some(0), Some(3)] {
            for end in [None, Some(999), Some(1_000), Some(1_001)] {
                let valid_until = end.map(Timestamp::from_secs);
                let judged = Judged { terms, tier, valid_until, is_limited, ..Judged::default() };
                caveats.push((Ok(judged), if counted { &LEDGER } else { &LEDGER[..1] }));
            }
        }
    }
    let caveats = caveats.iter().flat_map(|(caveats, all)| all.iter().map(|ledger| (*caveats, *ledger)));
    let caveats: Vec<_> = caveats.collect();
    let mut all = Vec::new();
    for key in KEYS {
        for preimage_holds in [false, true] {
            for revoked in [false, true] {
                for settled in SETTLED {
                    all.extend(caveats.iter().map(|(caveats, ledger)| Candidate {
                        key,
                        preimage_holds,
                        revoked,
                        caveats: *caveats,
                        settled,
                        ledger: *ledger,
                    }));
                }
            }
        }
    }
    all
}

/// The rule of access in other words than the code's.
fn has_paid(candidate: &Candidate, tier: u8) -> bool {
    let Ok(bought) = candidate.caveats else { return false };
    let Some(terms) = bought.terms else { return false };
    let ours = match candidate.key {
        Key::Live => matches!(candidate.settled, Settled::Unneeded | Settled::Yes),
        key => key == Key::SettledOnly(Vouched::Yes),
    };
    let ended = bought.valid_until.is_some_and(|end| end <= NOW);
    let endless = !matches!(terms.offer, Offer::Duration(_)) || bought.valid_until.is_some();
    let uncounted = matches!(terms.offer, Offer::Forever | Offer::Duration(_)) && !bought.is_limited;
    ours && (uncounted || candidate.ledger == Ledger::Reserved)
        && candidate.preimage_holds
        && !candidate.revoked
        && bought.tier.is_some_and(|sold| sold >= tier)
        && !ended
        && endless
}

#[test]
fn access_is_granted_to_what_is_free_and_to_what_has_been_paid_and_to_nothing_else() {
    let all = every_candidate();
    assert_eq!(all.len(), 6 * 2 * 2 * SETTLED.len() * (39 + 3 * 12 * LEDGER.len()));
    let mut granted = 0;
    for candidate in &all {
        for tier in [0, 3, 4] {
            let presented = Presented::Tokens(std::slice::from_ref(candidate));
            assert_eq!(decided(Gate::Free, presented, tier), Decision::Forward(Grant::Free));
            let decision = decided(Gate::Priced, presented, tier);
            let forwarded = decision == Decision::Forward(Grant::Paid(0));
            assert_eq!(forwarded, has_paid(candidate, tier), "{candidate:?} {decision:?}");
            assert!(forwarded || !matches!(decision, Decision::Forward(_)), "{candidate:?} {decision:?}");
            granted += usize::from(forwarded);
        }
    }
    // A live key with two kinds of settlement, one that the books vouch for with any; two tiers sold, of which one is enough
    // for 3 and none for 4; forever, requests and credit in two ways, an hour in one, whether limited or not. Each of what is
    // counted only where the ledger has reserved.
    assert_eq!(granted, (2 + SETTLED.len()) * (2 + 1) * (3 * 2 + 2));
    for presented in [Presented::Nothing, Presented::Malformed(Code::TokenMalformed), Presented::Tokens(&[])]
    {
        assert_eq!(decided(Gate::Free, presented, 0), Decision::Forward(Grant::Free));
        assert!(matches!(decided(Gate::Priced, presented, 0), Decision::Challenge(_)));
    }
}

#[test]
fn where_nothing_is_sold_only_a_paid_token_opens_and_nothing_is_ever_offered() {
    for candidate in every_candidate() {
        for tier in [0, 3, 4] {
            let presented = Presented::Tokens(std::slice::from_ref(&candidate));
            let sold = decided(Gate::Priced, presented, tier);
            let want = match sold {
                Decision::Challenge(code) => Decision::Deny(code),
                same => same,
            };
            assert_eq!(decided(Gate::Closed, presented, tier), want, "{candidate:?}");
        }
    }
    for presented in [Presented::Nothing, Presented::Tokens(&[])] {
        assert_eq!(decided(Gate::Closed, presented, 0), Decision::Deny(Code::TokenRequired));
    }
    let malformed = decided(Gate::Closed, Presented::Malformed(Code::TokenMalformed), 0);
    assert_eq!(malformed, Decision::Deny(Code::TokenMalformed));
}

#[test]
fn a_freebie_opens_what_would_be_challenged_and_nothing_else() {
    let given = |gate, presented, freebie| decide(&Facts { gate, presented, freebie, tier: 0, now: NOW });
    let every = every_candidate();
    let tokens = every.iter().map(|candidate| Presented::Tokens(std::slice::from_ref(candidate)));
    let others = [Presented::Nothing, Presented::Malformed(Code::TokenMalformed), Presented::Tokens(&[])];
    for presented in tokens.chain(others) {
        let without = given(Gate::Priced, presented, Freebie::None);
        let is_challenge = matches!(without, Decision::Challenge(_));
        for (freebie, instead) in [
            (Freebie::Unasked, Decision::CountFreebie),
            (Freebie::Counted, Decision::Forward(Grant::Freebie)),
            (Freebie::UsedUp, without),
        ] {
            let want = if is_challenge { instead } else { without };
            assert_eq!(given(Gate::Priced, presented, freebie), want, "{presented:?} {freebie:?}");
            let closed = given(Gate::Closed, presented, Freebie::None);
            assert_eq!(given(Gate::Closed, presented, freebie), closed, "{presented:?} {freebie:?}");
            assert_eq!(given(Gate::Free, presented, freebie), Decision::Forward(Grant::Free));
        }
    }
}

#[test]
fn the_store_is_asked_only_when_everything_else_holds() {
    for candidate in every_candidate() {
        let decision = decided(Gate::Priced, Presented::Tokens(&[candidate]), 0);
        let asked = decision == Decision::Consult(0);
        let vouched =
            Candidate { key: Key::SettledOnly(Vouched::Yes), ledger: Ledger::Reserved, ..candidate };
        let open = candidate.key == Key::SettledOnly(Vouched::Unasked) && has_paid(&vouched, 0);
        assert_eq!(asked, open, "{candidate:?}");
    }
}

#[test]
fn a_settlement_is_asked_for_only_where_it_is_wanted_and_everything_else_holds() {
    for candidate in every_candidate() {
        let decision = decided(Gate::Priced, Presented::Tokens(&[candidate]), 0);
        let settled = Candidate { settled: Settled::Yes, ledger: Ledger::Reserved, ..candidate };
        let unasked = candidate.key == Key::Live && candidate.settled == Settled::Unasked;
        assert_eq!(decision == Decision::Confirm(0), unasked && has_paid(&settled, 0), "{candidate:?}");
    }
}

#[test]
fn who_has_a_preimage_but_has_not_paid_is_neither_served_nor_led_to_pay_twice() {
    let with = |settled| Candidate { settled, ..good() };
    check(&[with(Settled::Unneeded)], expect!["Forward(Paid(0))"]);
    check(&[with(Settled::Unasked)], expect!["Confirm(0)"]);
    check(&[with(Settled::Yes)], expect!["Forward(Paid(0))"]);
    check(&[with(Settled::No)], expect!["Refuse(PaymentUnsettled)"]);
    check(&[with(Settled::Unreadable)], expect!["Unavailable(PaymentUnconfirmed)"]);
    let dead = Candidate { revoked: true, ..good() };
    check(&[dead, with(Settled::No)], expect!["Refuse(PaymentUnsettled)"]);
    check(&[with(Settled::No), with(Settled::Unreadable)], expect!["Unavailable(PaymentUnconfirmed)"]);
    check(&[with(Settled::No), with(Settled::Unasked)], expect!["Confirm(1)"]);
    check(&[with(Settled::Unasked), good()], expect!["Forward(Paid(1))"]);
    // What was used up is asked of the ledger only once the money is there.
    let counted = |settled| Candidate { settled, ..judged(|token| token.terms = Some(terms(Offer::Credit))) };
    check(&[counted(Settled::Unasked)], expect!["Confirm(0)"]);
    check(&[counted(Settled::Yes)], expect!["Reserve(0)"]);
}

#[test]
fn what_is_used_up_by_use_is_reserved_before_it_is_forwarded() {
    let limited = |token: &mut Judged| token.is_limited = true;
    for counted in [
        judged(|token| token.terms = Some(terms(ten_requests()))),
        judged(|token| token.terms = Some(terms(Offer::Credit))),
        judged(limited),
    ] {
        let after = |ledger| Candidate { ledger, ..counted };
        check(&[counted], expect!["Reserve(0)"]);
        check(&[after(Ledger::Reserved)], expect!["Forward(Paid(0))"]);
        check(&[after(Ledger::InFlight)], expect!["Wait(UnitsInFlight)"]);
        check(&[after(Ledger::Spent)], expect!["Challenge(UnitsSpent)"]);
        check(&[after(Ledger::Limited)], expect!["Challenge(LimitReached)"]);
        check(&[after(Ledger::Unreadable)], expect!["Unavailable(LedgerUnavailable)"]);
        // A pass costs nothing more, and a token that is used up leaves the next one to be tried.
        check(&[counted, good()], expect!["Forward(Paid(1))"]);
        check(&[after(Ledger::Spent), counted], expect!["Reserve(1)"]);
        check(&[after(Ledger::Spent), after(Ledger::InFlight)], expect!["Wait(UnitsInFlight)"]);
        check(&[after(Ledger::InFlight), after(Ledger::Unreadable)], expect!["Wait(UnitsInFlight)"]);
    }
}

#[test]
fn nothing_is_reserved_on_a_token_that_something_else_forbids() {
    for candidate in every_candidate() {
        for tier in [0, 3, 4] {
            let decision = decided(Gate::Priced, Presented::Tokens(&[candidate]), tier);
            let reserved = Candidate { ledger: Ledger::Reserved, ..candidate };
            let open = candidate.ledger == Ledger::Unasked
                && !has_paid(&candidate, tier)
                && has_paid(&reserved, tier);
            assert_eq!(decision == Decision::Reserve(0), open, "{candidate:?}");
        }
    }
}

#[test]
fn a_store_that_cannot_be_read_never_looks_like_a_bad_token() {
    let unreadable = Candidate { key: Key::SettledOnly(Vouched::Unreadable), ..good() };
    check(&[unreadable], expect!["Unavailable(StoreUnavailable)"]);
    check(&[unreadable, Candidate::UNEXAMINED], expect!["Unavailable(StoreUnavailable)"]);
    check(&[Candidate { revoked: true, ..good() }, unreadable], expect!["Unavailable(StoreUnavailable)"]);
    check(&[unreadable, good()], expect!["Forward(Paid(1))"]);
}

#[test]
fn a_signature_counts_before_the_preimage_and_that_before_what_was_signed() {
    let nothing_holds = Candidate { revoked: true, preimage_holds: false, ..Candidate::UNEXAMINED };
    check(&[nothing_holds], expect!["Challenge(TokenUnknown)"]);
    check(&[Candidate { key: Key::Live, ..nothing_holds }], expect!["Refuse(PreimageWrong)"]);
    let paid = Candidate { key: Key::Live, preimage_holds: true, ..nothing_holds };
    check(&[paid], expect!["Challenge(TokenRevoked)"]);
    let expired = Candidate { caveats: Err(Code::TokenExpired), ..good() };
    check(&[expired], expect!["Challenge(TokenExpired)"]);
}

#[test]
fn a_token_without_terms_service_or_end_is_never_forwarded() {
    check(&[judged(|token| token.terms = None)], expect!["Challenge(TermsMissing)"]);
    check(&[judged(|token| token.tier = None)], expect!["Challenge(TermsMissing)"]);
    check(&[judged(|token| token.terms = Some(terms(an_hour())))], expect!["Challenge(TermsMissing)"]);
}

#[test]
fn a_token_is_dead_at_its_last_second() {
    let until = |end| judged(move |token| token.valid_until = Some(Timestamp::from_secs(end)));
    check(&[until(1_001)], expect!["Forward(Paid(0))"]);
    check(&[until(1_000)], expect!["Challenge(TokenExpired)"]);
    check(&[until(999)], expect!["Challenge(TokenExpired)"]);
}

#[test]
fn a_raised_tier_outgrows_tokens_and_a_lowered_one_does_not() {
    let token = judged(|token| token.tier = Some(1));
    let at = |tier| decided(Gate::Priced, Presented::Tokens(&[token]), tier);
    assert_eq!(at(2), Decision::Challenge(Code::TierOutgrown));
    assert_eq!(at(1), Decision::Forward(Grant::Paid(0)));
    assert_eq!(at(0), Decision::Forward(Grant::Paid(0)));
}

#[test]
fn of_several_tokens_the_best_speaks() {
    let wrong = Candidate { preimage_holds: false, ..good() };
    let revoked = Candidate { revoked: true, ..good() };
    check(&[wrong, Candidate::UNEXAMINED, good()], expect!["Forward(Paid(2))"]);
    check(&[good(), good()], expect!["Forward(Paid(0))"]);
    check(&[wrong, wrong], expect!["Refuse(PreimageWrong)"]);
    check(&[wrong, Candidate::UNEXAMINED], expect!["Challenge(TokenUnknown)"]);
    check(&[Candidate::UNEXAMINED, revoked], expect!["Challenge(TokenRevoked)"]);
    let unasked = Candidate { key: Key::SettledOnly(Vouched::Unasked), ..good() };
    check(&[revoked, unasked], expect!["Consult(1)"]);
    check(&[unasked, good()], expect!["Forward(Paid(1))"]);
}

fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
    proptest::collection::vec(proptest::sample::select(every_candidate()), 0..8)
}

proptest! {
    #[test]
    fn company_changes_nothing_about_who_has_paid(candidates in candidates(), tier in 0_u8..5) {
        let first = candidates.iter().position(|candidate| has_paid(candidate, tier));
        let decision = decided(Gate::Priced, Presented::Tokens(&candidates), tier);
        match first {
            Some(index) => prop_assert_eq!(decision, Decision::Forward(Grant::Paid(index))),
            None => prop_assert!(!matches!(decision, Decision::Forward(_))),
        }
    }

    #[test]
    fn consulting_ends(candidates in candidates(), answers in proptest::collection::vec(0_usize..60, 16)) {
        let mut candidates = candidates;
        for answer in answers.iter().chain([&0]) {
            match decided(Gate::Priced, Presented::Tokens(&candidates), 0) {
                Decision::Consult(index) => {
                    let answer = [Vouched::Yes, Vouched::No, Vouched::Unreadable][answer % 3];
                    candidates[index].key = Key::SettledOnly(answer);
                }
                Decision::Confirm(index) => candidates[index].settled = SETTLED[2 + answer % 3],
                Decision::Reserve(index) => candidates[index].ledger = LEDGER[1 + answer % 5],
                _ => return Ok(()),
            }
        }
        prop_assert!(false, "still asking after two rounds for each token");
    }
}

// What the books vouch for, once a secret has leaked.

const SINCE: Timestamp = Timestamp::from_secs(10_000);

fn service() -> Service {
    Service::new("weather".parse().unwrap(), Msat::new(10_000), an_hour())
}

fn token() -> Sold {
    Sold {
        token_id: farebox_protocol::TokenId::from_bytes([1; 32]),
        identifier_hash: farebox_protocol::IdentifierHash::from_bytes([2; 32]),
        service: "weather".parse().unwrap(),
        tier: 0,
        terms: terms(an_hour()),
        valid_until: Some(Timestamp::from_secs(9_000 + 3_600 + 600)),
    }
}

fn on_the_books(sold: Option<Sold>, paid: u64, settled_at: Option<u64>) -> Purchase {
    Purchase {
        hash: PaymentHash::from_bytes([3; 32]),
        presented_at: sold.as_ref().map(|_| Timestamp::from_secs(9_050)),
        sold,
        claimed: None,
        paid: Msat::new(paid),
        payments: settled_at.map_or(0, |_| 1),
        settled_at: settled_at.map(Timestamp::from_secs),
        surplus: Msat::ZERO,
        shortfall: Msat::ZERO,
    }
}

#[track_caller]
fn vouched(purchase: Option<&Purchase>, token: &Sold, want: Vouched) {
    let margin = Duration::from_secs(600);
    let voucher = Voucher { purchase, token, service: &service(), since: SINCE, margin };
    assert_eq!(voucher.check(), want);
}

#[test]
fn a_sale_that_is_on_the_books_from_before_the_leak_is_honoured() {
    vouched(Some(&on_the_books(Some(token()), 10_000, Some(9_000))), &token(), Vouched::Yes);
    let brought_forward = Sold { valid_until: Some(Timestamp::from_secs(9_500)), ..token() };
    vouched(Some(&on_the_books(Some(token()), 10_000, Some(9_000))), &brought_forward, Vouched::Yes);
    vouched(Some(&on_the_books(Some(brought_forward), 10_000, Some(9_000))), &token(), Vouched::Yes);
}

#[test]
fn a_sale_without_a_payment_from_before_the_leak_is_not() {
    vouched(None, &token(), Vouched::No);
    vouched(Some(&on_the_books(Some(token()), 0, None)), &token(), Vouched::No);
    vouched(Some(&on_the_books(Some(token()), 10_000, Some(10_000))), &token(), Vouched::No);
    vouched(Some(&on_the_books(None, 10_000, Some(10_001))), &token(), Vouched::No);
}

#[test]
fn terms_forged_over_a_real_payment_are_not_honoured() {
    let booked = on_the_books(Some(token()), 10_000, Some(9_000));
    for forged in [
        Sold { service: "dearer".parse().unwrap(), ..token() },
        Sold { tier: 9, ..token() },
        Sold { terms: terms(Offer::Forever), valid_until: None, ..token() },
        Sold { valid_until: Some(Timestamp::from_secs(99_000)), ..token() },
        Sold { valid_until: None, ..token() },
        Sold { token_id: farebox_protocol::TokenId::from_bytes([9; 32]), ..token() },
        Sold { identifier_hash: farebox_protocol::IdentifierHash::from_bytes([9; 32]), ..token() },
    ] {
        vouched(Some(&booked), &forged, Vouched::No);
    }
}

#[test]
fn terms_that_were_booked_after_the_leak_are_honoured_only_where_the_money_covers_them() {
    let booked_late = |sold: Sold, paid| Purchase {
        presented_at: Some(SINCE),
        ..on_the_books(Some(sold), paid, Some(9_000))
    };
    // A forged token passed while the secret still counted as sound, over a payment of 1 msat from before the leak.
    vouched(Some(&booked_late(token(), 1)), &token(), Vouched::No);
    let cheap = Sold { terms: Terms { offer: an_hour(), price: Msat::new(1) }, ..token() };
    vouched(Some(&booked_late(cheap.clone(), 1)), &cheap, Vouched::No);
    vouched(Some(&booked_late(token(), 10_000)), &token(), Vouched::Yes);
    let other = Sold { token_id: farebox_protocol::TokenId::from_bytes([9; 32]), ..token() };
    vouched(Some(&booked_late(token(), 10_000)), &other, Vouched::No);
}

#[test]
fn a_token_never_used_is_honoured_where_its_payment_covers_what_is_sold_today() {
    let unused = |paid| on_the_books(None, paid, Some(9_000));
    vouched(Some(&unused(10_000)), &token(), Vouched::Yes);
    vouched(Some(&unused(9_999)), &token(), Vouched::No);
    for forged in [
        Sold { service: "dearer".parse().unwrap(), ..token() },
        Sold { tier: 1, ..token() },
        Sold { terms: Terms { offer: an_hour(), price: Msat::new(1) }, ..token() },
        Sold { terms: terms(Offer::Forever), valid_until: None, ..token() },
        Sold { valid_until: Some(Timestamp::from_secs(9_000 + 3_600 + 601)), ..token() },
    ] {
        vouched(Some(&unused(10_000)), &forged, Vouched::No);
    }
}
