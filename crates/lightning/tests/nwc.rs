//! The wallet behind relays against a wallet that answers as it should, and against wallets and relays that lie, fall silent
//! and break.
#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod fakes;
mod relay;

use std::{sync::Arc, time::Duration};

use fakes::{Made, NOW, hash, invoice, request};
use farebox_lightning::{
    FeeControl, Outcome, Pay, PayError, PayRequest,
    clock::ManualClock,
    nwc::{ConnectError, Encryption, Nwc, NwcConfig},
    phoenixd::Secret,
};
use farebox_protocol::{Msat, Network, Timestamp};
use lightning_invoice::Currency;
use nostr::Keys;
use relay::{Act, Asked, Note, Relays, Wallet, fault, found};
use serde_json::{Value, json};
use tokio::{io::AsyncReadExt as _, net::TcpListener};

const SECRET: &str = "4242424242424242424242424242424242424242424242424242424242424242";

struct World {
    wallet: Arc<Wallet>,
    nwc: Nwc,
    _relays: Relays,
}

fn config(wallet: &Wallet, relays: &[String]) -> NwcConfig {
    let relays = relays.iter().map(|relay| format!("relay={relay}&")).collect::<String>();
    let key = wallet.keys.public_key().to_hex();
    NwcConfig::new(Secret::new(format!("nostr+walletconnect://{key}?{relays}secret={SECRET}")))
}

async fn connect(config: NwcConfig) -> Result<Nwc, ConnectError> {
    Nwc::connect(config, Arc::new(ManualClock::new(NOW))).await
}

impl World {
    async fn of(wallet: Wallet, relays: usize) -> Self {
        let wallet = Arc::new(wallet);
        let relays = Relays::start(&wallet, relays).await;
        let nwc = connect(config(&wallet, &relays.urls)).await.unwrap();
        Self { wallet, nwc, _relays: relays }
    }

    /// A wallet that does this when it is asked to pay, and has this to say when it is asked about it.
    async fn paying(
        pay: impl Fn(&Wallet, &Asked) -> Vec<Act> + Send + Sync + 'static,
        lookup: impl Fn(&Asked) -> Act + Send + Sync + 'static,
    ) -> Self {
        let script = move |wallet: &Wallet, asked: &Asked| match asked.method.as_str() {
            "pay_invoice" => Some(pay(wallet, asked)),
            "lookup_invoice" => Some(vec![lookup(asked)]),
            _ => None,
        };
        Self::of(Wallet::new(script), 1).await
    }
}

fn silent(_: &Asked) -> Act {
    Act::Text("[\"NOTICE\",\"nothing\"]".to_owned())
}

fn unheard_of(asked: &Asked) -> Act {
    fault(asked, "NOT_FOUND")
}

fn paid(seed: u8) -> Value {
    json!({ "preimage": hex::encode([seed; 32]), "fees_paid": 21 })
}

/// What a lookup tells of the payment with preimage 7.
fn row(state: &str) -> Value {
    json!({ "type": "outgoing", "state": state, "payment_hash": hash(7).to_string(), "amount": 10_000 })
}

fn row_with(state: &str, more: Value) -> Value {
    let mut row = row(state);
    row.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    row
}

/// Paid, and the amount is said to be this; the invoice asks for 10,000 msat.
fn of_invoice(amount: u64) -> Value {
    json!({ "preimage": "07".repeat(32), "fees_paid": 21, "amount": amount, "invoice": invoice(7).as_str() })
}

/// In short, for tables.
fn told(answer: Result<Outcome, PayError>) -> String {
    match answer {
        Ok(Outcome::Settled { preimage, fee }) => {
            assert!(preimage.pays(&hash(7)));
            format!("settled {}", fee.get())
        }
        Ok(Outcome::Failed(_)) => "failed".to_owned(),
        Ok(Outcome::InFlight) => "in flight".to_owned(),
        Ok(Outcome::NotFound) => "not found".to_owned(),
        Err(PayError::Wrong(_)) => "unknown: wrong".to_owned(),
        Err(PayError::TimedOut(_)) => "unknown: silence".to_owned(),
        Err(_) => "unknown: unavailable".to_owned(),
    }
}

#[tokio::test]
async fn it_pays_and_takes_the_proof_and_the_fee() {
    let world = World::paying(|_, asked| vec![found(asked, paid(7))], unheard_of).await;
    assert_eq!(told(world.nwc.pay(request(7)).await), "settled 21");
    let asked = world.wallet.asked("pay_invoice");
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].params, json!({ "invoice": invoice(7).as_str() }));
    assert!(asked[0].is_nip44 && asked[0].expires);
    assert_eq!(world.nwc.balance().await.unwrap(), Msat::new(123_456));
    let facts = world.nwc.facts();
    assert!(!facts.proves_unsent && !facts.refuses_paid_hash);
    assert_eq!(facts.network, Network::Regtest);
    assert_eq!(facts.fee_control.fee_max(Msat::new(1_000_000), Msat::ZERO), Msat::new(10_000));
}

#[tokio::test]
async fn the_old_encryption_is_for_wallets_that_know_no_other() {
    for (note, want) in [(Note::Old, Encryption::Nip04), (Note::None, Encryption::Nip44)] {
        let pays =
            |_: &Wallet, asked: &Asked| (asked.method == "pay_invoice").then(|| vec![found(asked, paid(7))]);
        let world = World::of(Wallet::new(pays).with_note(note), 1).await;
        assert_eq!(world.nwc.encryption(), want);
        assert_eq!(told(world.nwc.pay(request(7)).await), "settled 21");
        assert_eq!(world.wallet.asked("pay_invoice")[0].is_nip44, want == Encryption::Nip44);
    }
    // It has left no word about itself, and refuses the new one.
    let old =
        |_: &Wallet, asked: &Asked| asked.is_nip44.then(|| vec![fault(asked, "UNSUPPORTED_ENCRYPTION")]);
    assert_eq!(
        World::of(Wallet::new(old).with_note(Note::None), 1).await.nwc.encryption(),
        Encryption::Nip04
    );
}

#[tokio::test]
async fn what_the_wallet_has_not_signed_for_this_request_is_passed_over() {
    let stranger = Keys::parse(&"31".repeat(32)).unwrap();
    let pay = move |wallet: &Wallet, asked: &Asked| {
        let failed = json!({ "result_type": "pay_invoice", "error": { "code": "QUOTA_EXCEEDED" } });
        let by_stranger = wallet.answer_by(&stranger, asked, &failed);
        let of_another = Asked { id: "0".repeat(64), ..asked.clone() };
        let late = wallet.answer_by(&wallet.keys, &of_another, &failed);
        let mut unsigned = wallet.answer_by(&wallet.keys, asked, &failed);
        unsigned.sig = by_stranger.sig;
        let mut altered = wallet.answer_by(&wallet.keys, asked, &failed);
        altered.content = by_stranger.content.clone();
        let mut in_its_name = by_stranger.clone();
        in_its_name.pubkey = wallet.keys.public_key();
        let mut acts: Vec<_> = [by_stranger, late, unsigned, altered, in_its_name].map(Act::Event).into();
        acts.push(Act::Text("no JSON".to_owned()));
        acts.push(Act::Text("[\"EVENT\"]".to_owned()));
        acts.push(found(asked, paid(7)));
        acts
    };
    let world = World::paying(pay, unheard_of).await;
    assert_eq!(told(world.nwc.pay(request(7)).await), "settled 21");
}

#[tokio::test]
async fn an_answer_that_proves_nothing_leaves_the_outcome_unknown() {
    let cases: [(&str, Value); 9] = [
        ("another's proof", json!({ "result_type": "pay_invoice", "result": paid(8) })),
        ("zeros", json!({ "result_type": "pay_invoice", "result": paid(0) })),
        ("no proof", json!({ "result_type": "pay_invoice", "result": { "fees_paid": 1 } })),
        ("an empty one", json!({ "result_type": "pay_invoice", "result": { "preimage": "" } })),
        ("a fee below zero", json!({ "result": { "preimage": "07".repeat(32), "fees_paid": -1 } })),
        ("another question's", json!({ "result_type": "get_balance", "result": paid(7) })),
        ("both", json!({ "result": paid(7), "error": { "code": "RESTRICTED" } })),
        ("neither", json!({ "result_type": "pay_invoice" })),
        ("no object", json!("settled")),
    ];
    for (what, answer) in cases {
        let world = World::paying(move |_, _| vec![Act::Answer(answer.clone())], unheard_of).await;
        assert_eq!(told(world.nwc.pay(request(7)).await), "unknown: wrong", "{what}");
        assert_eq!(world.wallet.asked("pay_invoice").len(), 1, "{what}");
    }
}

#[tokio::test]
async fn a_line_that_breaks_or_overflows_after_the_order_leaves_it_unknown() {
    for how in [|| Act::Break, || Act::Text("x".repeat(300_000))] {
        let world = World::paying(move |_, _| vec![how()], |asked| found(asked, row("pending"))).await;
        assert_eq!(told(world.nwc.pay(request(7)).await), "unknown: unavailable");
        assert_eq!(world.wallet.asked("pay_invoice").len(), 1);
        assert_eq!(told(world.nwc.lookup(hash(7)).await), "in flight");
    }
}

#[tokio::test]
async fn a_wallet_that_never_answers_leaves_it_unknown_and_is_asked_once() {
    let world = World::paying(|_, asked| vec![silent(asked)], unheard_of).await;
    let ordered = async {
        world.wallet.is_asked_to_pay().await;
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(31)).await;
        tokio::time::resume();
    };
    let (answer, ()) = tokio::join!(world.nwc.pay(request(7)), ordered);
    assert_eq!(told(answer), "unknown: silence");
    assert_eq!(told(world.nwc.lookup(hash(7)).await), "not found");
    assert_eq!(world.wallet.asked("pay_invoice").len(), 1);
}

#[tokio::test]
async fn only_an_error_that_leaves_no_doubt_is_a_failure() {
    let lookups: [fn(&Asked) -> Act; 5] = [
        |asked| fault(asked, "NOT_FOUND"),
        |asked| fault(asked, "NOT_IMPLEMENTED"),
        |asked| found(asked, row("failed")),
        |asked| found(asked, row("pending")),
        |asked| found(asked, row_with("settled", paid(7))),
    ];
    let doubtful = ["unknown: unavailable", "unknown: unavailable", "failed", "in flight", "settled 21"];
    for code in ["PAYMENT_FAILED", "INTERNAL", "OTHER", "NOT_FOUND", "SOMETHING_NEW"] {
        for (lookup, want) in lookups.into_iter().zip(doubtful) {
            let world = World::paying(move |_, asked| vec![fault(asked, code)], lookup).await;
            assert_eq!(told(world.nwc.pay(request(7)).await), want, "{code}");
        }
    }
    for code in [
        "RATE_LIMITED",
        "NOT_IMPLEMENTED",
        "INSUFFICIENT_BALANCE",
        "QUOTA_EXCEEDED",
        "RESTRICTED",
        "UNAUTHORIZED",
        "UNSUPPORTED_ENCRYPTION",
    ] {
        let world = World::paying(move |_, asked| vec![fault(asked, code)], unheard_of).await;
        assert_eq!(told(world.nwc.pay(request(7)).await), "failed", "{code}");
    }
}

#[tokio::test]
async fn a_lookup_believes_a_state_and_a_proof_and_never_a_proof_alone() {
    let cases = [
        (row_with("settled", paid(7)), "settled 21"),
        (row_with("SETTLED", paid(7)), "settled 21"),
        // The fee that it does not tell is the worst that its owner has declared: 0.5 % and 5 sat.
        (row_with("settled", json!({ "preimage": "07".repeat(32) })), "settled 5050"),
        // What it paid beyond the invoice is a cost, too; less than the invoice can't be, with the proof there.
        (row_with("settled", of_invoice(25_000)), "settled 15021"),
        (row_with("settled", of_invoice(1)), "settled 21"),
        (row_with("settled", paid(8)), "unknown: wrong"),
        (row("settled"), "unknown: wrong"),
        (row_with("pending", paid(7)), "in flight"),
        (row_with("failed", paid(7)), "failed"),
        (row("accepted"), "in flight"),
        (row("expired"), "unknown: wrong"),
        (row_with("settled", json!({ "payment_hash": hash(8).to_string() })), "unknown: wrong"),
        (row_with("failed", json!({ "payment_hash": null })), "unknown: wrong"),
        // The wallet is the one to be paid: that says nothing of a payment by it.
        (row_with("failed", json!({ "type": "incoming" })), "not found"),
        (row_with("settled", json!({ "type": "incoming", "preimage": "07".repeat(32) })), "not found"),
        // Of the time before there were states.
        (
            row_with("x", json!({ "state": null, "settled_at": 1, "preimage": "07".repeat(32) })),
            "settled 5050",
        ),
        (row_with("x", json!({ "state": null, "preimage": "07".repeat(32) })), "in flight"),
        (json!([]), "unknown: wrong"),
    ];
    for (row, want) in cases {
        let shown = row.to_string();
        let world = World::paying(|_, _| vec![], move |asked| found(asked, row.clone())).await;
        assert_eq!(told(world.nwc.lookup(hash(7)).await), want, "{shown}");
        assert_eq!(
            world.wallet.asked("lookup_invoice")[0].params,
            json!({ "payment_hash": hash(7).to_string() })
        );
    }
}

#[tokio::test]
async fn a_fee_that_the_answer_leaves_out_is_looked_up() {
    let pay = |_: &Wallet, asked: &Asked| vec![found(asked, json!({ "preimage": "07".repeat(32) }))];
    let world = World::paying(pay, |asked| found(asked, row_with("settled", paid(7)))).await;
    assert_eq!(told(world.nwc.pay(request(7)).await), "settled 21");
    let world = World::paying(pay, unheard_of).await;
    assert_eq!(told(world.nwc.pay(request(7)).await), "settled 5050");
}

#[tokio::test]
async fn an_order_goes_to_one_relay_and_a_question_to_all() {
    let pays =
        |_: &Wallet, asked: &Asked| (asked.method == "pay_invoice").then(|| vec![found(asked, paid(7))]);
    let world = World::of(Wallet::new(pays), 2).await;
    assert_eq!(told(world.nwc.pay(request(7)).await), "settled 21");
    assert_eq!(world.wallet.asked("pay_invoice").len(), 1);

    // The wallet's line to the first is dead: what it last answered by is what it is asked by.
    let at_the_second = |_: &Wallet, asked: &Asked| match (asked.relay, asked.method.as_str()) {
        (0, _) => Some(vec![]),
        (_, "pay_invoice") => Some(vec![found(asked, paid(7))]),
        _ => None,
    };
    let world = World::of(Wallet::new(at_the_second), 2).await;
    assert_eq!(told(world.nwc.pay(request(7)).await), "settled 21");
    let orders = world.wallet.asked("pay_invoice");
    assert_eq!(orders.iter().map(|order| order.relay).collect::<Vec<_>>(), [1]);
}

#[tokio::test]
async fn a_relay_that_refuses_an_order_is_followed_by_the_next_with_the_same_order() {
    let refused = |_: &Wallet, asked: &Asked| match (asked.relay, asked.method.as_str()) {
        (1, "get_info") => Some(vec![]), // so that the other one is preferred
        (0, "pay_invoice") => Some(vec![Act::Refuse]),
        (1, "pay_invoice") => Some(vec![found(asked, paid(7))]),
        _ => None,
    };
    let world = World::of(Wallet::new(refused), 2).await;
    assert_eq!(told(world.nwc.pay(request(7)).await), "settled 21");
    let orders = world.wallet.asked("pay_invoice");
    assert_eq!(orders.iter().map(|order| order.relay).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(orders[0].id, orders[1].id, "a wallet that knows the one knows the other");
}

#[tokio::test]
async fn a_relay_that_is_down_or_says_nothing_does_not_matter_while_another_works() {
    let wallet = Arc::new(Wallet::new(|_, asked| {
        (asked.method == "pay_invoice").then(|| vec![found(asked, paid(7))])
    }));
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dead = [gone.local_addr().unwrap(), mute.local_addr().unwrap()].map(|addr| format!("ws://{addr}"));
    drop(gone);
    let relays = Relays::start(&wallet, 1).await;
    let nwc = connect(config(&wallet, &[&dead[..], &relays.urls].concat())).await.unwrap();
    assert_eq!(nwc.relays().iter().map(|(_, is_up)| *is_up).collect::<Vec<_>>(), [false, false, true]);
    assert_eq!(told(nwc.pay(request(7)).await), "settled 21");
}

#[tokio::test]
async fn what_never_left_has_failed() {
    let World { wallet, nwc, _relays } =
        World::paying(|_, asked| vec![found(asked, paid(7))], unheard_of).await;
    let made = |made: Made| PayRequest { invoice: made.invoice(), ..request(7) };
    let foreign = made(Made { network: Currency::Signet, ..Made::default() });
    let expired = made(Made { created: Timestamp::from_secs(NOW.secs() - 7_200), ..Made::default() });
    for request in [foreign, expired] {
        assert_eq!(told(nwc.pay(request).await), "failed");
    }
    drop(_relays);
    let answer = nwc.pay(request(7)).await;
    let Ok(Outcome::Failed(why)) = answer else { panic!("{answer:?}") };
    assert!(why.contains("no relay"), "{why}");
    assert!(matches!(nwc.lookup(hash(7)).await, Err(PayError::Unavailable(_))));
    assert!(wallet.asked("pay_invoice").is_empty());
}

#[tokio::test]
async fn a_connection_that_is_of_no_use_is_refused_at_once() {
    let refusal = async |wallet: Wallet, change: fn(&mut NwcConfig)| {
        let wallet = Arc::new(wallet);
        let relays = Relays::start(&wallet, 1).await;
        let mut config = config(&wallet, &relays.urls);
        change(&mut config);
        connect(config).await.map(|nwc| nwc.facts().network)
    };
    let telling = |info: Value| {
        let wallet = Wallet::new(|_, _| None);
        *wallet.info.lock() = info;
        wallet
    };
    let only = telling(json!({ "network": "regtest", "methods": ["get_info", "make_invoice"] }));
    assert!(matches!(refusal(only, |_| ()).await, Err(ConnectError::MayNotPay)));
    assert!(matches!(refusal(telling(json!({})), |_| ()).await, Err(ConnectError::NoNetwork)));
    let signet = |config: &mut NwcConfig| config.network = Some(Network::Signet);
    assert_eq!(refusal(telling(json!({})), signet).await.unwrap(), Network::Signet);
    let regtest = telling(json!({ "network": "regtest" }));
    assert!(matches!(refusal(regtest, signet).await, Err(ConnectError::Network { .. })));
    let bitcoin = telling(json!({ "network": "bitcoin" }));
    assert_eq!(refusal(bitcoin, |_| ()).await.unwrap(), Network::Mainnet);
    let closed = Wallet::new(|_, asked| Some(vec![fault(asked, "UNAUTHORIZED")]));
    assert!(matches!(refusal(closed, |_| ()).await, Err(ConnectError::Refused(_))));
    let none = Wallet::new(|_, asked| Some(vec![fault(asked, "NOT_IMPLEMENTED")]));
    assert_eq!(refusal(none, signet).await.unwrap(), Network::Signet);
}

#[tokio::test]
async fn what_its_owner_says_of_it_holds() {
    let wallet = Arc::new(Wallet::new(|_, _| None));
    let relays = Relays::start(&wallet, 1).await;
    let fee_worst = FeeControl::WorstCase { base: Msat::new(1), parts_per_million: 2 };
    let config =
        NwcConfig { fee_worst: fee_worst.clone(), refuses_paid_hash: true, ..config(&wallet, &relays.urls) };
    let facts = connect(config).await.unwrap().facts();
    assert_eq!((facts.fee_control, facts.refuses_paid_hash), (fee_worst, true));
}

#[tokio::test]
async fn it_tells_what_may_be_spent_and_whether_earlier_payments_show_their_proof() {
    let told = |listed: Value| {
        Wallet::new(move |_, asked| match asked.method.as_str() {
            "get_budget" => Some(vec![found(
                asked,
                json!({ "used_budget": 1_000, "total_budget": 5_000, "renewal_period": "daily" }),
            )]),
            "list_transactions" => Some(vec![found(asked, json!({ "transactions": listed }))]),
            _ => None,
        })
    };
    let incoming = row_with("settled", json!({ "type": "incoming", "preimage": "07".repeat(32) }));
    let failed = row("failed");
    for (listed, want) in [
        (json!([failed, incoming, row_with("settled", paid(7))]), Some((hash(7), true))),
        (json!([row("settled"), row_with("settled", paid(7))]), Some((hash(7), false))),
        (json!([failed, incoming]), None),
    ] {
        let world = World::of(told(listed), 1).await;
        assert_eq!(world.nwc.latest_payment().await.unwrap(), want);
        let budget = world.nwc.budget().await.unwrap().unwrap();
        assert_eq!((budget.used, budget.total), (Msat::new(1_000), Msat::new(5_000)));
        assert_eq!(budget.renewal.as_deref(), Some("daily"));
    }
    let world = World::of(Wallet::new(|_, _| None), 1).await;
    assert_eq!(world.nwc.budget().await.unwrap(), None);
    assert_eq!(world.nwc.latest_payment().await.unwrap(), None);
}

#[tokio::test]
async fn a_proxy_is_given_the_relays_name_and_finds_it_itself() {
    let wallet = Wallet::new(|_, _| None);
    let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = config(&wallet, &["ws://relay.test:7000".to_owned()]);
    config.proxy = Some(format!("http://{}", proxy.local_addr().unwrap()).parse().unwrap());
    let asked = async {
        let (mut socket, _) = proxy.accept().await.unwrap();
        let mut greeting = [0; 3];
        socket.read_exact(&mut greeting).await.unwrap();
        assert_eq!(greeting[0], 5);
        tokio::io::AsyncWriteExt::write_all(&mut socket, &[5, 0]).await.unwrap();
        let mut wanted = [0; 5 + 10 + 2];
        socket.read_exact(&mut wanted).await.unwrap();
        assert_eq!(&wanted[..5], [5, 1, 0, 3, 10], "a name is asked for");
        assert_eq!(&wanted[5..], [&b"relay.test"[..], &7000_u16.to_be_bytes()].concat());
    };
    let (refused, ()) = tokio::join!(connect(config), asked);
    assert!(matches!(refused, Err(ConnectError::Relays(_))));
}

#[tokio::test]
async fn nothing_that_it_shows_holds_the_secret() {
    let world = World::paying(|_, _| vec![Act::Break], unheard_of).await;
    let broken = world.nwc.pay(request(7)).await.unwrap_err();
    let unheard = connect(config(&world.wallet, &["ws://127.0.0.1:1".to_owned()])).await.unwrap_err();
    let proof = "07".repeat(32);
    for shown in [
        format!("{:?}", world.nwc),
        format!("{:?}", world.nwc.facts()),
        format!("{:?}", config(&world.wallet, &[])),
        format!("{broken} {broken:?} {unheard} {unheard:?}"),
    ] {
        assert!(!shown.contains(&SECRET[..16]) && !shown.contains(&proof), "{shown}");
    }
}
