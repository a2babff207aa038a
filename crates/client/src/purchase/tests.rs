//! The machine's rules, one test each. Events are made by hand; nothing is sent and nothing is paid.

use farebox_lightning::outgoing::{Failure, Paid};
use farebox_lightning::{FeeControl, PayFacts, WalletId};
use farebox_protocol::{Network, OfferedChallenge, RootKey};

use super::*;
use crate::Limits;
use crate::mint::Draft;
use crate::policy::Policy;

const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

fn shop() -> Origin {
    "https://shop.example".parse().unwrap()
}

fn draft() -> Draft {
    Draft::new(1, 100, NOW)
}

fn rules() -> Rules {
    Rules {
        limits: Limits::default(),
        wallet: Some(PayFacts {
            wallet: WalletId("test".to_owned()),
            network: Network::Regtest,
            proves_unsent: true,
            refuses_paid_hash: true,
            fee_control: FeeControl::Exact,
        }),
        in_the_clear: false,
        authorization_taken: false,
        has_bought: false,
        buy_again: false,
        policy: std::sync::Arc::new(Policy::unlimited()),
        request: std::sync::Arc::default(),
        is_known: true,
    }
}

fn header(draft: &Draft, service: &str) -> Vec<String> {
    draft.challenge(&RootKey::from_bytes([3; 32]), service).header_values().to_vec()
}

fn answer(status: u16, values: &[String]) -> Answer {
    let offered = OfferedChallenge::read_all(values.iter().map(|value| value.as_bytes()));
    Answer {
        status: StatusCode::from_u16(status).unwrap(),
        origin: shop(),
        names_scheme: !offered.is_empty(),
        names_other: false,
        is_too_little: false,
        offered,
        now: NOW,
    }
}

fn challenged() -> Answer {
    answer(402, &header(&draft(), "svc"))
}

fn ok() -> Answer {
    answer(200, &[])
}

fn pass(number: u64, service: &str, honoured: bool) -> Pass {
    Pass {
        scope: Scope { origin: shop(), service: service.to_owned() },
        scheme: farebox_protocol::Scheme::L402,
        token: "token".to_owned(),
        preimage: Draft::new(number, 1, NOW).preimage(),
        honoured,
    }
}

fn paid(draft: &Draft) -> Event {
    Event::Ended(Ended::Settled(Paid { preimage: draft.preimage(), fee: Msat::new(7), on_disk: true }))
}

fn not_paid() -> Event {
    Event::Ended(Ended::NotPaid(Failure { reason: "no route".to_owned(), unsent: false }))
}

/// A word for a command.
fn word(command: &Command) -> String {
    match command {
        Command::Send(None) => "send".to_owned(),
        Command::Send(Some(pass)) => format!("send with {}", pass.scope.service),
        Command::Reserve(scope) => format!("reserve {}", scope.service),
        Command::Approve(order) => format!("approve {}", order.price),
        Command::Record(_) => "record".to_owned(),
        Command::Pay(_) => "pay".to_owned(),
        Command::Resume(_) => "resume".to_owned(),
        Command::Retry(..) => "retry".to_owned(),
        Command::Deliver => "deliver".to_owned(),
        Command::Stop(stop) => format!("stop: {}", stop.code()),
    }
}

/// Runs a purchase through `events` and tells what it commanded.
fn run(rules: Rules, candidates: Vec<Pass>, events: Vec<Event>) -> (Purchase, String) {
    let (mut purchase, first) = Purchase::new(shop(), rules, candidates);
    let mut words = vec![word(&first)];
    words.extend(events.into_iter().map(|event| word(&purchase.on(event))));
    (purchase, words.join(", "))
}

#[test]
fn what_a_person_agreed_to_is_not_asked_again_unless_it_is_dearer() {
    let asks = || Rules {
        policy: std::sync::Arc::new(Policy { otherwise: Verdict::Ask, ..Policy::unlimited() }),
        ..rules()
    };
    let ours = || Event::Reserved(Reservation::Ours, NOW);
    let agreed = || Event::Approved(NOW);
    check(
        asks(),
        vec![],
        vec![Event::Answered(challenged()), ours(), agreed()],
        "send, reserve svc, approve 100 sat, record",
    );
    let declined = vec![Event::Answered(challenged()), ours(), Event::NotApproved(None)];
    check(asks(), vec![], declined, "send, reserve svc, approve 100 sat, stop: approval_needed");
    // The person took so long that the invoice is over: the next one at the same price needs no word.
    let late = vec![
        Event::Answered(challenged()),
        ours(),
        Event::Approved(NOW.saturating_add(Duration::from_secs(599))),
        Event::Answered(challenged()),
        ours(),
    ];
    check(asks(), vec![], late, "send, reserve svc, approve 100 sat, send, reserve svc, record");
}

#[test]
fn what_the_policy_denies_stops_before_the_lease() {
    let denies = Rules {
        policy: std::sync::Arc::new(Policy { otherwise: Verdict::Deny, ..Policy::unlimited() }),
        ..rules()
    };
    check(denies, vec![], vec![Event::Answered(challenged())], "send, stop: denied");
    let new = Rules {
        policy: std::sync::Arc::new(Policy { new_origins: Verdict::Ask, ..Policy::unlimited() }),
        is_known: false,
        ..rules()
    };
    let events = vec![Event::Answered(challenged()), Event::Reserved(Reservation::Ours, NOW)];
    check(new, vec![], events, "send, reserve svc, approve 100 sat");
}

#[track_caller]
fn check(rules: Rules, candidates: Vec<Pass>, events: Vec<Event>, want: &str) {
    assert_eq!(run(rules, candidates, events).1, want);
}

/// What the machine says to a first answer that is a challenge.
#[track_caller]
fn check_judged(rules: Rules, answer: Answer, want: &str) {
    check(rules, vec![], vec![Event::Answered(answer)], want);
}

fn up_to_pay() -> Vec<Event> {
    vec![Event::Answered(challenged()), Event::Reserved(Reservation::Ours, NOW), Event::Recorded]
}

fn with(mut events: Vec<Event>, more: Vec<Event>) -> Vec<Event> {
    events.extend(more);
    events
}

#[test]
fn a_purchase_goes_from_asked_to_delivered() {
    let events = with(up_to_pay(), vec![paid(&draft()), Event::Answered(ok())]);
    let (mut purchase, words) = run(rules(), vec![], events);
    assert_eq!(words, "send, reserve svc, record, pay, retry, deliver");
    assert_eq!(purchase.take_notes(), [Note::Honoured(draft().payment_hash())]);
    assert_eq!(
        *purchase.money(),
        Money::Spent { payment_hash: draft().payment_hash(), price: Msat::new(100_000), fee: Msat::new(7) }
    );
}

#[test]
fn an_answer_that_asks_for_nothing_is_delivered() {
    for status in [200, 204, 301, 404, 500, 503] {
        check_judged(rules(), answer(status, &[]), "send, deliver");
    }
}

#[test]
fn only_402_is_paid_whatever_the_headers_say() {
    for status in [200, 201, 301, 400, 401, 403, 404, 500, 503] {
        check_judged(rules(), answer(status, &header(&draft(), "svc")), "send, deliver");
    }
}

#[test]
fn a_402_that_speaks_of_something_else_is_delivered() {
    check_judged(rules(), answer(402, &["Payment id=\"x\"".to_owned()]), "send, deliver");
}

#[test]
fn a_challenge_that_names_l402_and_offers_nothing_is_an_error() {
    let bare = Answer { names_scheme: true, ..answer(402, &[]) };
    check_judged(rules(), bare, "send, stop: challenge_unreadable");
}

#[test]
fn another_origin_than_the_one_asked_is_not_paid() {
    let other = Answer { origin: "https://stranger.example".parse().unwrap(), ..challenged() };
    check_judged(rules(), other, "send, stop: other_origin");
}

#[test]
fn an_invoice_without_an_amount_is_not_paid() {
    let any = Draft { amount: None, ..draft() };
    let answer = answer(402, &header(&any, "svc"));
    let boundless = Rules { limits: Limits { per_payment: Msat::MAX, fee_max: Msat::MAX }, ..rules() };
    check_judged(boundless, answer, "send, stop: amount_missing");
}

#[test]
fn an_invoice_that_cannot_be_read_is_not_paid() {
    let mut values = header(&draft(), "svc");
    values.iter_mut().for_each(|value| *value = value.replace("lnbcrt", "lnbcrx"));
    check_judged(rules(), answer(402, &values), "send, stop: invoice_unreadable");
}

#[test]
fn an_invoice_whose_signature_does_not_hold_is_not_paid() {
    let invoice = draft().invoice().to_string();
    let dearer = Draft { amount: Msat::from_sat(200), ..draft() }.invoice().to_string();
    // The cheap amount in front of the dear invoice's signature.
    let (cheap, _) = invoice.split_at(invoice.rfind('1').unwrap());
    let (_, rest) = dearer.split_at(dearer.rfind('1').unwrap());
    let values: Vec<_> =
        header(&draft(), "svc").iter().map(|v| v.replace(&invoice, &format!("{cheap}{rest}"))).collect();
    check_judged(rules(), answer(402, &values), "send, stop: invoice_unreadable");
}

#[test]
fn the_limits_are_those_of_the_invoice() {
    let limited = |sat| Rules {
        limits: Limits { per_payment: Msat::from_sat(sat).unwrap(), ..Limits::default() },
        ..rules()
    };
    check_judged(limited(100), challenged(), "send, reserve svc");
    check_judged(limited(99), challenged(), "send, stop: over_price_limit");
    check_judged(limited(0), challenged(), "send, stop: over_price_limit");
}

#[test]
fn a_wallet_whose_fees_cannot_be_held_to_the_limit_does_not_pay() {
    let mut dear = rules();
    if let Some(wallet) = &mut dear.wallet {
        wallet.fee_control = FeeControl::WorstCase { base: Msat::new(10_001), parts_per_million: 0 };
    }
    check_judged(dear, challenged(), "send, stop: over_fee_limit");
}

#[test]
fn coins_of_another_network_are_not_paid() {
    for network in [Network::Mainnet, Network::Testnet, Network::Signet] {
        let other = Draft { network, ..draft() };
        check_judged(rules(), answer(402, &header(&other, "svc")), "send, stop: wrong_network");
    }
}

#[test]
fn an_invoice_that_leaves_no_time_is_not_paid() {
    let short = Draft { expiry: Duration::from_secs(5), ..draft() };
    check_judged(rules(), answer(402, &header(&short, "svc")), "send, stop: invoice_expired");
    let enough = Draft { expiry: Duration::from_secs(6), ..draft() };
    check_judged(rules(), answer(402, &header(&enough, "svc")), "send, reserve svc");
}

#[test]
fn a_token_that_is_over_already_is_not_paid() {
    let ends_at = |secs: u64| {
        let caveats = ["services=svc:0".to_owned(), format!("svc_valid_until={secs}")];
        let macaroon = draft().macaroon(&RootKey::from_bytes([3; 32]), &caveats);
        let challenge = farebox_protocol::Challenge { macaroon, invoice: draft().invoice() };
        answer(402, &challenge.header_values())
    };
    check_judged(rules(), ends_at(NOW.secs()), "send, stop: token_over");
    check_judged(rules(), ends_at(NOW.secs() + 1), "send, reserve svc");
}

#[test]
fn a_token_that_commits_to_another_invoice_is_not_paid() {
    let other = Draft::new(2, 100, NOW).invoice().to_string();
    let values: Vec<_> = header(&draft(), "svc")
        .iter()
        .map(|value| value.replace(draft().invoice().as_str(), &other))
        .collect();
    check_judged(rules(), answer(402, &values), "send, stop: other_invoice");
}

#[test]
fn a_token_that_cannot_be_read_is_paid_and_marked() {
    let value = format!("L402 token=\"opaque.token\", invoice=\"{}\"", draft().invoice());
    let order = judge(&shop(), &answer(402, &[value]), &rules()).unwrap();
    assert!(!order.bound);
    assert_eq!(order.token, "opaque.token");
}

#[test]
fn plain_http_to_a_stranger_needs_leave() {
    let asked: Origin = "http://shop.example".parse().unwrap();
    let challenged = Answer { origin: asked.clone(), ..challenged() };
    let refusal = judge(&asked, &challenged, &rules()).err().map(|refusal| refusal.code());
    assert_eq!(refusal, Some("in_the_clear"));
    assert!(judge(&asked, &challenged, &Rules { in_the_clear: true, ..rules() }).is_ok());
}

#[test]
fn an_authorization_of_the_callers_own_is_never_replaced() {
    let taken = Rules { authorization_taken: true, ..rules() };
    check_judged(taken, challenged(), "send, stop: authorization_taken");
}

#[test]
fn one_request_buys_once_however_many_servers_it_is_sent_to() {
    let bought = Rules { has_bought: true, ..rules() };
    check_judged(bought, challenged(), "send, stop: second_purchase");
}

#[test]
fn without_a_wallet_nothing_is_reserved() {
    check_judged(Rules { wallet: None, ..rules() }, challenged(), "send, stop: no_wallet");
}

#[test]
fn of_two_challenges_the_one_that_may_be_paid_is_taken() {
    let dear = Draft::new(2, 5_000, NOW);
    let mut values = header(&dear, "dear");
    values.extend(header(&draft(), "svc"));
    check_judged(rules(), answer(402, &values), "send, reserve svc");
}

#[test]
fn a_cached_credential_that_works_costs_nothing() {
    check(rules(), vec![pass(9, "svc", true)], vec![Event::Answered(ok())], "send with svc, deliver");
}

#[test]
fn a_401_counts_only_as_the_answer_to_a_credential() {
    let refused = Answer { status: StatusCode::UNAUTHORIZED, ..challenged() };
    check(rules(), vec![pass(9, "svc", true)], vec![Event::Answered(refused)], "send with svc, reserve svc");
}

#[test]
fn a_bare_401_to_a_credential_makes_us_ask_without_it() {
    let bare = Answer { names_scheme: true, ..answer(401, &[]) };
    check(
        rules(),
        vec![pass(9, "svc", true)],
        vec![Event::Answered(bare), Event::Answered(challenged())],
        "send with svc, send, reserve svc",
    );
}

#[test]
fn a_401_of_the_resource_itself_is_delivered() {
    let basic = answer(401, &["Basic realm=\"x\"".to_owned()]);
    check(rules(), vec![pass(9, "svc", true)], vec![Event::Answered(basic)], "send with svc, deliver");
}

#[test]
fn a_token_is_dead_only_when_its_own_service_refuses_it() {
    let refuse = |candidates| run(rules(), candidates, vec![Event::Answered(challenged())]).0.take_notes();
    let hash = pass(9, "svc", true).payment_hash();
    assert_eq!(refuse(vec![pass(9, "svc", true)]), [Note::Spent(hash)]);
    assert_eq!(refuse(vec![pass(9, "other", true)]), [Note::Refused(hash)]);
    assert_eq!(refuse(vec![pass(9, "svc", false)]), [Note::Refused(hash)]);
}

#[test]
fn a_token_that_is_too_little_for_this_request_is_neither_dead_nor_refused_and_another_is_bought() {
    let short = || Answer { is_too_little: true, ..challenged() };
    let answered = || vec![Event::Answered(short())];
    let mut machine = run(rules(), vec![pass(9, "svc", true)], answered()).0;
    assert_eq!(machine.take_notes(), []);
    check(rules(), vec![pass(9, "svc", true)], answered(), "send with svc, reserve svc");
    // Also where the rules let no other one be bought.
    let poor = Rules { limits: Limits { per_payment: Msat::ZERO, ..Limits::default() }, ..rules() };
    let mut machine = run(poor, vec![pass(9, "svc", true)], answered()).0;
    assert_eq!(machine.take_notes(), []);
    // Who has never been served by it can't tell.
    let mut machine = run(rules(), vec![pass(9, "svc", false)], answered()).0;
    assert_eq!(machine.take_notes(), [Note::Refused(pass(9, "svc", false).payment_hash())]);
}

#[test]
fn tokens_of_other_services_are_not_shown_once_the_service_is_known() {
    check(
        rules(),
        vec![pass(7, "a", true), pass(8, "b", true), pass(9, "svc", true)],
        vec![Event::Answered(challenged()), Event::Answered(challenged())],
        "send with a, send with svc, reserve svc",
    );
}

#[test]
fn what_somebody_else_has_bought_is_shared() {
    let bought = Reservation::Pass(pass(9, "svc", false));
    check(
        rules(),
        vec![],
        vec![Event::Answered(challenged()), Event::Reserved(bought, NOW), Event::Answered(ok())],
        "send, reserve svc, send with svc, deliver",
    );
}

#[test]
fn a_credential_that_was_never_honoured_is_not_bought_again_unasked() {
    let never = Reservation::NeverHonoured(pass(9, "svc", false).payment_hash());
    let events = vec![Event::Answered(challenged()), Event::Reserved(never, NOW)];
    check(rules(), vec![], events.clone(), "send, reserve svc, stop: credential_rejected");
    check(Rules { buy_again: true, ..rules() }, vec![], events, "send, reserve svc, record");
}

#[test]
fn a_fresh_credential_is_shown_three_times_and_then_rejected() {
    let refused = || Event::Answered(challenged());
    let events = with(up_to_pay(), vec![paid(&draft()), refused(), refused(), refused()]);
    let (mut purchase, words) = run(rules(), vec![], events);
    assert_eq!(words, "send, reserve svc, record, pay, retry, retry, retry, stop: credential_rejected");
    assert_eq!(purchase.take_notes(), [Note::Refused(draft().payment_hash())]);
    assert!(matches!(purchase.money(), Money::Spent { .. }));
}

#[test]
fn trouble_on_the_servers_side_is_delivered_and_says_nothing_of_the_credential() {
    let events = with(up_to_pay(), vec![paid(&draft()), Event::Answered(answer(503, &[]))]);
    let (mut purchase, words) = run(rules(), vec![], events);
    assert_eq!(words, "send, reserve svc, record, pay, retry, deliver");
    assert_eq!(purchase.take_notes(), []);
}

#[test]
fn a_failed_payment_costs_nothing_and_is_not_tried_again() {
    let (purchase, words) = run(rules(), vec![], with(up_to_pay(), vec![not_paid()]));
    assert_eq!(words, "send, reserve svc, record, pay, stop: payment_failed");
    assert_eq!(*purchase.money(), Money::None);
}

#[test]
fn an_unknown_outcome_stays_unknown() {
    let unknown = Event::Ended(Ended::Unknown { reason: "no answer".to_owned() });
    let (purchase, words) = run(rules(), vec![], with(up_to_pay(), vec![unknown]));
    assert_eq!(words, "send, reserve svc, record, pay, stop: payment_unknown");
    assert!(matches!(purchase.money(), Money::Unknown { .. }));
}

#[test]
fn a_proof_of_another_payment_is_none() {
    let (purchase, words) = run(rules(), vec![], with(up_to_pay(), vec![paid(&Draft::new(2, 100, NOW))]));
    assert_eq!(words, "send, reserve svc, record, pay, stop: payment_unknown");
    assert!(matches!(purchase.money(), Money::Unknown { .. }));
}

#[test]
fn an_earlier_payment_is_cleared_up_before_another_is_made() {
    let earlier = Draft::new(2, 50, NOW);
    let order = judge(&shop(), &answer(402, &header(&earlier, "svc")), &rules()).unwrap();
    let found = Event::Reserved(Reservation::Unsettled(Box::new(order)), NOW);
    let begun = vec![Event::Answered(challenged()), found];

    let settled = with(begun.clone(), vec![paid(&earlier), Event::Answered(ok())]);
    check(rules(), vec![], settled, "send, reserve svc, resume, retry, deliver");

    let failed = with(begun.clone(), vec![not_paid(), Event::Recorded, paid(&draft())]);
    check(rules(), vec![], failed, "send, reserve svc, resume, record, pay, retry");

    let open = with(begun, vec![Event::Ended(Ended::Unknown { reason: String::new() })]);
    check(rules(), vec![], open, "send, reserve svc, resume, stop: payment_unknown");
}

#[test]
fn a_holder_that_lost_its_lease_pays_nothing() {
    let (purchase, words) = run(rules(), vec![], with(up_to_pay(), vec![Event::LeaseLost]));
    assert_eq!(words, "send, reserve svc, record, pay, stop: lease_lost");
    assert_eq!(*purchase.money(), Money::None);
}

#[test]
fn a_payment_that_the_journal_knows_is_not_made_twice() {
    let events =
        vec![Event::Answered(challenged()), Event::Reserved(Reservation::Ours, NOW), Event::RecordedBefore];
    check(rules(), vec![], events, "send, reserve svc, record, stop: already_paid");
}

#[test]
fn an_invoice_that_grew_old_in_the_queue_is_asked_for_once_more() {
    let later = NOW.saturating_add(Duration::from_secs(600));
    let fresh = Answer { now: later, ..answer(402, &header(&Draft::new(2, 100, later), "svc")) };
    let events = vec![
        Event::Answered(challenged()),
        Event::Reserved(Reservation::Ours, later),
        Event::Answered(fresh),
        Event::Reserved(Reservation::Ours, later),
    ];
    check(rules(), vec![], events, "send, reserve svc, send, reserve svc, record");
}

#[test]
fn events_out_of_order_end_the_purchase() {
    for event in [Event::Recorded, Event::LeaseLost, paid(&draft()), not_paid()] {
        check(rules(), vec![], vec![event], "send, stop: internal");
    }
}

#[test]
fn nothing_that_is_printed_holds_a_secret() {
    let (purchase, _) = run(rules(), vec![pass(9, "svc", true)], vec![]);
    let shown = format!("{purchase:?} {:?}", pass(9, "svc", true));
    assert!(!shown.contains(pass(9, "svc", true).preimage.expose_hex().as_str()));
    assert!(!shown.contains("\"token\""), "{shown}");
}
