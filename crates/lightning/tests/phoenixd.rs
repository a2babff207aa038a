//! The phoenixd backend against a phoenixd that answers as the real one does, and as one that lies would.
//!
//! The fake is a list of answers by path; only the list of settlements does what phoenixd's does.
#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod fakes;

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Query, State},
    http::{StatusCode, Uri},
    response::{IntoResponse, Response},
    routing::get,
};
use fakes::{Made, NOW, hash, invoice, preimage, request};
use farebox_lightning::{
    Ask, Cursor, FeeControl, Health, Incoming, Outcome, Pay, Receive, ReceiveError,
    clock::ManualClock,
    phoenixd::{ConnectError, Phoenixd, PhoenixdConfig, Secret},
};
use farebox_protocol::{Msat, Network, PaymentHash, Preimage, Timestamp};
use futures_util::StreamExt as _;
use lightning_invoice::Currency;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};

/// A phoenixd that says what it was told to say.
#[derive(Clone, Default)]
struct Fake {
    answers: Arc<Mutex<HashMap<String, (u16, Value)>>>,
    /// The settlements: when, in milliseconds, and of what.
    settled: Arc<Mutex<Vec<(u64, PaymentHash)>>>,
    listed: Arc<Mutex<usize>>,
}

struct Running {
    fake: Fake,
    addr: SocketAddr,
    _serving: JoinSet<()>,
}

async fn start() -> Running {
    let fake = Fake::default();
    fake.says(
        "/getinfo",
        200,
        json!({"nodeId": "03ab", "chain": "regtest", "version": "0.7.2", "channels": []}),
    );
    let router =
        Router::new().route("/payments/incoming", get(list)).fallback(canned).with_state(fake.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let mut serving = JoinSet::new();
    serving.spawn(async move { axum::serve(listener, router).await.unwrap() });
    Running { fake, addr, _serving: serving }
}

impl Fake {
    fn says(&self, path: &str, status: u16, body: Value) {
        self.answers.lock().insert(path.to_owned(), (status, body));
    }
}

impl Running {
    fn says(&self, path: &str, status: u16, body: Value) {
        self.fake.says(path, status, body);
    }

    fn says_outgoing(&self, status: u16, body: Value) {
        self.says(&format!("/payments/outgoingbyhash/{}", hash(1)), status, body);
    }

    async fn connect(&self) -> Result<Phoenixd, ConnectError> {
        let mut config = PhoenixdConfig::new(format!("http://{}/", self.addr), Secret::new("x"));
        config.poll = Duration::from_millis(5);
        Phoenixd::connect(config, Arc::new(ManualClock::new(NOW))).await
    }
}

async fn canned(State(fake): State<Fake>, uri: Uri) -> Response {
    let answer = fake.answers.lock().get(uri.path()).cloned();
    match answer {
        Some((status, Value::String(text))) => (StatusCode::from_u16(status).unwrap(), text).into_response(),
        Some((status, body)) => (StatusCode::from_u16(status).unwrap(), Json(body)).into_response(),
        None => (StatusCode::NOT_FOUND, "Not found").into_response(),
    }
}

#[derive(Deserialize)]
struct Page {
    from: u64,
    to: u64,
    limit: usize,
    #[serde(default)]
    offset: usize,
}

/// phoenixd's own query: both ends in, newest first.
async fn list(State(fake): State<Fake>, Query(page): Query<Page>) -> Json<Vec<Value>> {
    *fake.listed.lock() += 1;
    let mut rows = fake.settled.lock().clone();
    rows.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    let rows = rows.into_iter().filter(|(at, _)| (page.from..=page.to).contains(at)).skip(page.offset);
    let rows = rows.take(page.limit);
    Json(rows.map(|(at, hash)| incoming(hash, at)).collect())
}

fn incoming(hash: PaymentHash, at: u64) -> Value {
    json!({"type": "incoming_payment", "subType": "lightning", "paymentHash": hash.to_string(),
           "preimage": "00".repeat(32), "isPaid": true, "isExpired": false, "requestedSat": 10,
           "receivedSat": 10, "fees": 0, "completedAt": at, "createdAt": 1, "description": "weather"})
}

fn ask() -> Ask {
    Ask {
        amount: Msat::new(9_001),
        expiry: Duration::from_millis(599_500),
        description: "weather".to_owned(),
    }
}

fn made() -> Made {
    Made { preimage: preimage(1), expiry: Duration::from_secs(600), ..Made::default() }
}

#[tokio::test]
async fn a_new_invoice_is_read_and_checked() {
    let phoenixd = start().await;
    let backend = phoenixd.connect().await.unwrap();
    let check = async |made: Made, hash: PaymentHash, want: &str| {
        let invoice = made.invoice();
        let body = json!({"amountSat": 10, "paymentHash": hash.to_string(), "serialized": invoice.as_str()});
        phoenixd.says("/createinvoice", 200, body);
        let got = match backend.invoice(ask()).await {
            Ok(invoice) => format!("{}", invoice.amount().unwrap()),
            Err(error) => error.to_string(),
        };
        assert_eq!(got, want);
    };
    let secs = Duration::from_secs;
    check(made(), hash(1), "10 sat").await;
    check(
        made(),
        hash(2),
        "the node answered wrongly: the new invoice has another payment hash than it says",
    )
    .await;
    let wrong = "the node answered wrongly: the new invoice";
    let amount = |msat| Made { amount: Some(Msat::new(msat)), ..made() };
    check(amount(9_000), hash(1), &format!("{wrong} is not for 10 sat")).await;
    check(amount(9_001), hash(1), &format!("{wrong} is not for 10 sat")).await;
    check(Made { amount: None, ..made() }, hash(1), &format!("{wrong} is not for 10 sat")).await;
    let network = Made { network: Currency::Bitcoin, ..made() };
    check(network, hash(1), &format!("{wrong} is for mainnet, not for regtest")).await;
    check(Made { expiry: secs(599), ..made() }, hash(1), &format!("{wrong} lives 599 s, not 600 s")).await;
    check(Made { expiry: secs(86_400), ..made() }, hash(1), &format!("{wrong} lives 86400 s, not 600 s"))
        .await;
    let old = Made { created: Timestamp::from_secs(1), ..made() };
    check(old, hash(1), &format!("{wrong} lives 600 s, not 600 s")).await;
    phoenixd.says("/createinvoice", 200, json!({"serialized": "lnbcrt1", "paymentHash": ""}));
    assert!(matches!(backend.invoice(ask()).await, Err(ReceiveError::Wrong(_))));
    phoenixd.says("/createinvoice", 400, "too long".into());
    assert!(matches!(backend.invoice(ask()).await, Err(ReceiveError::Invalid(_))));
    let nothing = Ask { amount: Msat::ZERO, ..ask() };
    assert!(matches!(backend.invoice(nothing).await, Err(ReceiveError::Invalid(_))));
}

#[tokio::test]
async fn paid_is_what_is_paid_says_and_never_a_preimage() {
    let phoenixd = start().await;
    let backend = phoenixd.connect().await.unwrap();
    let check = async |change: Value, want: Result<Incoming, &str>| {
        let mut row = incoming(hash(1), 1_800_000_123_456);
        row.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        phoenixd.says(&format!("/payments/incoming/{}", hash(1)), 200, row);
        let got = Receive::lookup(&backend, hash(1)).await;
        assert_eq!(got.map_err(|error| error.to_string()), want.map_err(str::to_owned));
    };
    let settled = |msat| Ok(Incoming::Settled { amount: Msat::new(msat), at: NOW });
    let paid = json!({});
    check(json!({"isPaid": false, "preimage": preimage(1).expose_hex().as_str()}), Ok(Incoming::Unpaid))
        .await;
    check(json!({"isPaid": false, "completedAt": null}), Ok(Incoming::Unpaid)).await;
    check(paid, Ok(Incoming::Settled { amount: Msat::new(10_000), at: Timestamp::from_secs(1_800_000_123) }))
        .await;
    // Liquidity is paid from what came in: the buyer has paid both.
    let at = json!({"completedAt": 1_800_000_000_000_u64, "receivedSat": 7, "fees": 4_500});
    check(at, settled(11_500)).await;
    let cut = json!({"completedAt": 1_800_000_000_000_u64, "receivedSat": 9, "fees": 500});
    check(cut, settled(10_000)).await;
    let nameless = format!(
        "the node answered wrongly: unexpected answer: payment `{}` in the list of paid ones is not paid, or has no time",
        hash(1)
    );
    check(json!({"completedAt": null}), Err(&nameless)).await;
    check(
        json!({"paymentHash": hash(2).to_string()}),
        Err("the node answered wrongly: it told of another payment"),
    )
    .await;
    assert_eq!(Receive::lookup(&backend, hash(3)).await.unwrap(), Incoming::Unpaid, "404 is unpaid");
}

fn preimage_of(n: u64) -> Preimage {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&n.to_be_bytes());
    Preimage::from_bytes(bytes)
}

#[tokio::test]
async fn settlements_come_in_order_and_from_any_cursor() {
    let phoenixd = start().await;
    let backend = phoenixd.connect().await.unwrap();
    // Years of history, and one day three thousand at once, three to each millisecond.
    let hash = |n: u64| preimage_of(n).payment_hash();
    let year = 31_536_000_000;
    let quiet = (0..10).map(|n| n * year);
    let busy = (0..3_000).map(|n| 50 * year + n / 3);
    let now = (1..5).map(|n| 51 * year + n);
    let rows: Vec<_> = (1..).zip(quiet.chain(busy).chain(now)).map(|(n, at)| (at + 1, hash(n))).collect();
    phoenixd.fake.settled.lock().clone_from(&rows);
    let all: Vec<_> = backend.settlements(Cursor(0)).take(rows.len()).map(Result::unwrap).collect().await;
    assert!(all.windows(2).all(|pair| pair[0].cursor < pair[1].cursor), "cursors rise");
    assert!(all.iter().all(|settlement| settlement.description.as_deref() == Some("weather")));
    let mut told: Vec<_> = all.iter().map(|settlement| settlement.hash).collect();
    told.sort();
    told.dedup();
    assert_eq!(told.len(), rows.len(), "each is told, once");
    let pages = rows.len() / 500;
    assert!(*phoenixd.fake.listed.lock() < 5 * pages, "each page is read about once");
    for from in [0, 5, 1_000, 1_001, 1_002, 3_010] {
        let rest = backend.settlements(all[from].cursor).take(rows.len() - from - 1);
        assert_eq!(rest.map(Result::unwrap).collect::<Vec<_>>().await, all[from + 1..], "from {from}");
    }
}

#[tokio::test]
async fn the_last_of_a_busy_minute_is_told_without_waiting_for_another() {
    let phoenixd = start().await;
    let backend = phoenixd.connect().await.unwrap();
    let rows = (0..700).map(|n| (1_800_000_000_000 + n / 3, preimage_of(n).payment_hash()));
    phoenixd.fake.settled.lock().extend(rows);
    let told = backend.settlements(Cursor(0)).take(700);
    let told: Vec<_> = tokio::time::timeout(Duration::from_secs(30), told.collect()).await.unwrap();
    assert!(told.iter().all(Result::is_ok));
}

#[tokio::test]
async fn a_settlement_that_appears_late_goes_before_later_ones() {
    let phoenixd = start().await;
    let backend = phoenixd.connect().await.unwrap();
    let at = 1_800_000_000_000;
    let mut settlements = backend.settlements(Cursor(0));
    phoenixd.fake.settled.lock().push((at, hash(1)));
    assert_eq!(settlements.next().await.unwrap().unwrap().hash, hash(1));
    // Stamped before what has been told already, readable only now: told all the same, once.
    phoenixd.fake.settled.lock().extend([(at - 500, hash(2)), (at + 1, hash(3))]);
    assert_eq!(settlements.next().await.unwrap().unwrap().hash, hash(2));
    assert_eq!(settlements.next().await.unwrap().unwrap().hash, hash(3));
    phoenixd.fake.settled.lock().push((at + 2, hash(4)));
    assert_eq!(settlements.next().await.unwrap().unwrap().hash, hash(4));
}

#[tokio::test]
async fn a_payment_is_settled_failed_or_unknown_and_never_guessed() {
    let phoenixd = start().await;
    let backend = phoenixd.connect().await.unwrap();
    let check = async |status: u16, body: Value, want: &str| {
        phoenixd.says("/payinvoice", status, body);
        let got = match backend.pay(request(1)).await {
            Ok(Outcome::Settled { preimage, fee }) => {
                assert!(preimage.pays(&hash(1)));
                format!("settled, {} msat", fee.get())
            }
            Ok(Outcome::Failed(why)) => format!("failed: {why}"),
            Ok(other) => format!("{other:?}"),
            Err(error) => format!("unknown: {error}"),
        };
        assert_eq!(got, want);
    };
    let proof = preimage(1).expose_hex().to_string();
    let sent = |proof: &str| json!({"recipientAmountSat": 10, "routingFeeSat": 4, "paymentId": "x", "paymentHash": hash(1).to_string(), "paymentPreimage": proof});
    let failed =
        || json!({"type": "payment_failed", "paymentHash": hash(1).to_string(), "reason": "no route"});
    let row = |paid: bool, completed: Value, proof: Value| json!({"paymentHash": hash(1).to_string(), "preimage": proof, "isPaid": paid, "sent": 14, "fees": 4_040, "completedAt": completed});
    // The fee in full is in the list; without it, too much is counted rather than too little.
    check(200, sent(&proof), "settled, 4999 msat").await;
    phoenixd.says_outgoing(200, row(true, json!(5), json!(proof)));
    check(200, sent(&proof), "settled, 4040 msat").await;
    // "Failed" may mean that it was paid before, or is being paid.
    check(200, failed(), "settled, 4040 msat").await;
    phoenixd.says_outgoing(200, row(false, json!(null), json!(null)));
    check(200, failed(), "InFlight").await;
    phoenixd.says_outgoing(200, row(false, json!(5), json!(null)));
    check(200, failed(), "failed: no route").await;
    phoenixd.says_outgoing(404, "Not found".into());
    check(200, failed(), "failed: no route").await;
    phoenixd.says_outgoing(500, "database is locked".into());
    check(200, failed(), "unknown: the wallet is not available: 500: database is locked").await;
    let lie = "unknown: the wallet answered wrongly: it calls the payment settled, but shows no preimage that proves it";
    for proof in ["", "00", &"0".repeat(64), invoice(1).as_str(), &preimage(2).expose_hex()] {
        check(200, sent(proof), lie).await;
    }
    check(200, json!({"recipientAmountSat": 10}), lie).await;
    check(
        200,
        "<html>".into(),
        "unknown: the wallet answered wrongly: not the JSON it should be, line 1 column 1",
    )
    .await;
    check(502, "Bad Gateway".into(), "unknown: the wallet is not available: 502: Bad Gateway").await;
    check(401, "no".into(), "failed: phoenixd refused: 401: no").await;
    assert!(matches!(backend.health(), Health::Down(_)));
}

#[tokio::test]
async fn a_lookup_tells_what_phoenixd_knows() {
    let phoenixd = start().await;
    let backend = phoenixd.connect().await.unwrap();
    let check = async |status: u16, body: Value, want: &str| {
        phoenixd.says_outgoing(status, body);
        let got = format!("{:?}", Pay::lookup(&backend, hash(1)).await);
        assert!(got.starts_with(want), "wanted `{want}`, got `{got}`");
    };
    let row = |hash: PaymentHash, paid: bool, proof: &str| json!({"paymentHash": hash.to_string(), "preimage": proof, "isPaid": paid, "fees": 1});
    check(404, "Not found".into(), "Ok(NotFound)").await;
    check(200, row(hash(1), true, &preimage(1).expose_hex()), "Ok(Settled").await;
    check(200, row(hash(1), true, &preimage(2).expose_hex()), "Err(Wrong").await;
    check(200, row(hash(1), true, ""), "Err(Wrong").await;
    check(200, row(hash(2), false, ""), "Err(Wrong").await;
    check(200, row(hash(1), false, &preimage(1).expose_hex()), "Ok(InFlight)").await;
    check(503, "starting".into(), "Err(Unavailable").await;
}

#[tokio::test]
async fn it_says_what_it_can_prove() {
    let phoenixd = start().await;
    let backend = phoenixd.connect().await.unwrap();
    let facts = Pay::facts(&backend);
    assert_eq!((facts.wallet.0.as_str(), facts.network), ("phoenixd:03ab", Network::Regtest));
    assert!(!facts.proves_unsent && !facts.refuses_paid_hash);
    let worst = FeeControl::WorstCase { base: Msat::new(4_000), parts_per_million: 4_000 };
    assert_eq!(facts.fee_control, worst);
    assert_eq!(Receive::facts(&backend).unwrap().node, "phoenixd:03ab");
    phoenixd.says("/getbalance", 200, json!({"balanceSat": 5, "feeCreditSat": 1}));
    assert_eq!(backend.balance().await.unwrap(), Msat::new(5_000));
    phoenixd.says("/getinfo", 200, json!({"nodeId": "03ab", "chain": "testnet4"}));
    let error = phoenixd.connect().await.unwrap_err().to_string();
    assert!(error.ends_with("runs on `testnet4`, which farebox does not know"), "{error}");
}
