//! The phoenixd backend against the wallet door over real HTTP: first over fakes, where things go wrong as they should,
//! then over real LDK nodes, with the suite that every backend must pass.
#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

mod fakes;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::http::StatusCode;
use fakes::{FakeReceiver, LyingWallet, Made, NOW, Say, facts, hash, invoice, preimage, request};
use farebox_lightning::{
    Ask, Cursor, FeeControl, Health, Incoming, Outcome, Pay, PayRequest, Receive, ReceiveError,
    clock::{Clock, ManualClock},
    door::{self, DoorConfig},
    outgoing::{Intents as _, NewIntent, Outgoing, OutgoingConfig, sqlite::SqliteIntents},
    phoenixd::{ConnectError, Phoenixd, PhoenixdConfig, Secret},
};
use farebox_protocol::Msat;
use futures_util::StreamExt as _;
use reqwest::{Client, RequestBuilder};
use serde_json::Value;
use tokio::{net::TcpListener, task::JoinSet};

/// A door that is open as long as this lives.
struct Open {
    addr: SocketAddr,
    receive: Arc<FakeReceiver>,
    wallet: Arc<LyingWallet>,
    outgoing: Outgoing,
    client: Client,
    _serving: JoinSet<()>,
}

fn client() -> Client {
    _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().no_proxy().build().unwrap()
}

async fn serve(
    receive: Arc<dyn Receive>,
    outgoing: Outgoing,
    clock: Arc<dyn Clock>,
) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let mut config = DoorConfig::new(addr, Secret::new("full"));
    config.limited_password = Some(Secret::new("limited"));
    config.hosts = vec!["wallet.example".to_owned()];
    let router = door::router(receive, outgoing, clock, config);
    let mut serving = JoinSet::new();
    serving.spawn(async move { axum::serve(listener, router).await.unwrap() });
    (addr, serving)
}

async fn open(pay: &[Say], lookup: &[Say]) -> Open {
    let (receive, wallet) = (FakeReceiver::new(), LyingWallet::new(pay, lookup));
    let clock = Arc::new(ManualClock::new(NOW));
    let intents = Arc::new(SqliteIntents::in_memory().unwrap());
    let outgoing =
        Outgoing::new(Arc::clone(&wallet) as _, intents, Arc::clone(&clock) as _, OutgoingConfig::default());
    let (addr, serving) = serve(Arc::clone(&receive) as _, outgoing.clone(), clock).await;
    Open { addr, receive, wallet, outgoing, client: client(), _serving: serving }
}

impl Open {
    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(self.url(path)).basic_auth("", Some("full"))
    }

    fn post(&self, path: &str, form: &[(&str, &str)]) -> RequestBuilder {
        self.client.post(self.url(path)).basic_auth("", Some("full")).form(form)
    }

    async fn backend(&self) -> Phoenixd {
        connect(self.addr, "full").await.unwrap()
    }
}

async fn connect(addr: SocketAddr, password: &str) -> Result<Phoenixd, ConnectError> {
    let mut config = PhoenixdConfig::new(format!("http://{addr}"), Secret::new(password));
    config.poll = Duration::from_millis(5);
    Phoenixd::connect(config, Arc::new(ManualClock::new(NOW))).await
}

async fn answer(request: RequestBuilder) -> (u16, String) {
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

async fn json(request: RequestBuilder) -> Value {
    let (status, text) = answer(request).await;
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).unwrap()
}

fn ask(msat: u64) -> Ask {
    Ask { amount: Msat::new(msat), expiry: Duration::from_secs(600), description: "weather".to_owned() }
}

#[tokio::test]
async fn an_invoice_is_paid_with_one_line_of_curl() {
    let open = open(&[Say::Settled], &[]).await;
    let pay = || open.post("/payinvoice", &[("invoice", invoice(1).as_str())]).send();
    let response = pay().await.unwrap();
    assert_eq!(response.headers()["cache-control"], "no-store");
    let paid: Value = response.json().await.unwrap();
    assert_eq!(paid["paymentPreimage"], *preimage(1).expose_hex());
    assert_eq!(paid["paymentHash"], hash(1).to_string());
    assert_eq!((&paid["recipientAmountSat"], &paid["routingFeeSat"]), (&10.into(), &0.into()));
    // phoenixd's worst case is the limit when the caller gives none.
    assert_eq!(open.wallet.last_asked().fee_max, Msat::new(4_040));
    let again: Value = pay().await.unwrap().json().await.unwrap();
    assert_eq!(again["type"], "payment_failed");
    assert!(again["reason"].as_str().unwrap().starts_with("this invoice has already been paid"));
    assert_eq!(open.wallet.asked(), 1);
}

#[tokio::test]
async fn a_payment_survives_a_client_that_hangs_up() {
    let open = open(&[Say::Hang], &[]).await;
    tokio::select! {
        _ = open.post("/payinvoice", &[("invoice", invoice(1).as_str())]).send() => panic!("no answer yet"),
        () = open.wallet.asked_now.notified() => {}
    }
    let path = format!("/payments/outgoingbyhash/{}", hash(1));
    let row = json(open.get(&path)).await;
    assert_eq!((&row["isPaid"], row.get("completedAt")), (&false.into(), None));
    open.wallet.go_on();
    open.outgoing.wait(hash(1)).await.unwrap();
    let row = json(open.get(&path)).await;
    assert_eq!((&row["isPaid"], &row["preimage"]), (&true.into(), &preimage(1).expose_hex().as_str().into()));
    assert_eq!((&row["sent"], &row["fees"]), (&10.into(), &7.into()));
}

#[tokio::test]
async fn only_a_password_opens_the_door() {
    let open = open(&[Say::Settled], &[]).await;
    let url = open.url("/getinfo");
    for (user, password, want) in [
        ("", "full", 200),
        ("anybody", "full", 200),
        ("", "limited", 200),
        ("", "", 401),
        ("full", "", 401),
        ("", "ful", 401),
        ("", "full ", 401),
        ("", "fullfull", 401),
    ] {
        let (status, _) = answer(open.client.get(&url).basic_auth(user, Some(password))).await;
        assert_eq!(status, want, "user `{user}`, password `{password}`");
    }
    for request in [
        open.client.get(&url),
        open.client.get(&url).bearer_auth("full"),
        open.client.get(&url).header("authorization", "Basic !"),
        open.client.get(open.url("/no/such/place")),
        open.client.post(open.url("/payinvoice")).form(&[("invoice", invoice(1).as_str())]),
    ] {
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        let challenge = response.headers()["www-authenticate"].to_str().unwrap();
        assert!(challenge.starts_with("Basic realm="), "{challenge}");
    }
    assert_eq!(open.wallet.asked(), 0);
}

#[tokio::test]
async fn the_limited_password_creates_and_reads_but_does_not_pay() {
    let open = open(&[Say::Settled], &[]).await;
    let limited = |request: RequestBuilder| request.basic_auth("", Some("limited"));
    let post = |path, form: &[(&str, &str)]| limited(open.client.post(open.url(path)).form(form));
    let create = [("amountSat", "21"), ("description", "weather")];
    assert_eq!(answer(post("/createinvoice", &create)).await.0, 200);
    assert_eq!(answer(limited(open.client.get(open.url("/getbalance")))).await.0, 200);
    let invoice = invoice(1);
    let (status, text) = answer(post("/payinvoice", &[("invoice", invoice.as_str())])).await;
    assert_eq!(
        (status, text.as_str()),
        (403, "this password creates invoices and reads; paying takes the full one\n")
    );
    assert_eq!(open.wallet.asked(), 0);

    // What others have paid for isn't its to take, either.
    assert_eq!(answer(open.post("/payinvoice", &[("invoice", invoice.as_str())])).await.0, 200);
    let path = format!("/payments/outgoingbyhash/{}", hash(1));
    assert_eq!(json(open.get(&path)).await["preimage"], *preimage(1).expose_hex());
    let row = json(limited(open.client.get(open.url(&path)))).await;
    assert_eq!((&row["isPaid"], row.get("preimage")), (&Value::Bool(true), None));
}

#[tokio::test]
async fn pages_of_other_sites_are_not_let_in() {
    let open = open(&[Say::Settled], &[]).await;
    let port = open.addr.port();
    let with = |name: &'static str, value: String| open.get("/getinfo").header(name, value);
    for host in ["localhost", "LOCALHOST", "127.0.0.1", "127.9.9.9", "[::1]", "wallet.example"] {
        for host in [host.to_owned(), format!("{host}:{port}")] {
            assert_eq!(answer(with("host", host.clone())).await.0, 200, "`{host}`");
        }
    }
    for host in
        ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "192.0.2.7", "0.0.0.0", ""]
    {
        assert_eq!(answer(with("host", host.to_owned())).await.0, 403, "`{host}`");
    }
    let here = open.addr.to_string();
    assert_eq!(answer(with("origin", format!("http://{here}"))).await.0, 200);
    for origin in ["http://evil.example", "null", "https://127.0.0.1:1"] {
        assert_eq!(answer(with("origin", origin.to_owned())).await.0, 403, "`{origin}`");
    }
    let response = with("origin", format!("http://{here}")).send().await.unwrap();
    assert!(response.headers().keys().all(|name| !name.as_str().starts_with("access-control")));
}

#[tokio::test]
async fn what_the_door_does_not_understand_it_refuses_in_words() {
    let open = open(&[Say::Settled], &[Say::NotFound]).await;
    let check = async |request: RequestBuilder, want: &str| {
        let (status, text) = answer(request).await;
        let got = format!("{status} {}", text.trim());
        assert!(got.starts_with(want), "wanted `{want}`, got `{got}`");
    };
    let pay = |form: &[(&str, &str)]| open.post("/payinvoice", form);
    let create = |form: &[(&str, &str)]| open.post("/createinvoice", form);
    let (priced, free) = (invoice(1), Made { amount: None, ..Made::default() }.invoice());
    let late = Made { created: farebox_protocol::Timestamp::from_secs(1), ..Made::default() }.invoice();
    check(pay(&[]), "400 Failed to deserialize form body: missing field `invoice`").await;
    check(pay(&[("invoice", "lnbcrt1nonsense")]), "400 the invoice can't be read: ").await;
    check(pay(&[("invoice", free.as_str())]), "400 the invoice names no amount").await;
    check(
        pay(&[("invoice", priced.as_str()), ("amountSat", "9")]),
        "400 amountSat is not the invoice's amount, 10 sat; leave it out",
    )
    .await;
    check(pay(&[("invoice", late.as_str())]), "200 {\"type\":\"payment_failed\"").await;
    check(pay(&[("invoice", &"x".repeat(20_000))]), "413 ").await;
    check(open.get("/payinvoice"), "405 Invalid http method").await;
    check(open.get("/elsewhere"), "404 Unknown endpoint").await;
    check(create(&[("description", "x")]), "400 amountSat is missing").await;
    check(create(&[("amountSat", "0"), ("description", "x")]), "400 amountSat is missing").await;
    check(create(&[("amountSat", "99999999999999999")]), "400 amountSat is missing").await;
    check(create(&[("amountSat", "1"), ("description", &"x".repeat(129))]), "400 Request parameter").await;
    check(create(&[("amountSat", "1"), ("expirySeconds", "0")]), "400 expirySeconds").await;
    check(open.get("/payments/incoming/abc"), "400 the payment hash").await;
    check(open.get(&format!("/payments/incoming/{}", hash(9))), "404 Not found").await;
    check(open.get(&format!("/payments/outgoingbyhash/{}", hash(9))), "404 Not found").await;
    check(open.get("/payments/incoming?limit=9999"), "400 limit and offset").await;
    assert_eq!(open.wallet.asked(), 0);
    // With the right amount named, it is paid.
    check(pay(&[("invoice", priced.as_str()), ("amountSat", "10")]), "200 {\"type\":\"payment_sent\"").await;
}

#[tokio::test]
async fn the_list_of_settlements_is_phoenixd_s() {
    let open = open(&[], &[]).await;
    let created = json(open.post("/createinvoice", &[("amountSat", "21"), ("description", "weather")])).await;
    assert_eq!((&created["amountSat"], &created["paymentHash"]), (&21.into(), &hash(1).to_string().into()));
    let path = format!("/payments/incoming/{}", hash(1));
    let unpaid = json(open.get(&path)).await;
    assert_eq!((&unpaid["isPaid"], &unpaid["requestedSat"]), (&false.into(), &21.into()));
    assert!(unpaid.get("preimage").is_none() && unpaid.get("completedAt").is_none());
    for seed in 1..=5 {
        let at = NOW.saturating_add(Duration::from_secs(seed.into()));
        open.receive.settle(hash(seed), Msat::new(21_500), at);
    }
    let paid = json(open.get(&path)).await;
    assert_eq!((&paid["isPaid"], &paid["receivedSat"]), (&true.into(), &21.into()));
    let listed = async |query: &str| -> Vec<String> {
        let rows = json(open.get(&format!("/payments/incoming?{query}"))).await;
        let name = |row: &Value| {
            (1..=5).find(|seed| row["paymentHash"] == hash(*seed).to_string()).unwrap().to_string()
        };
        rows.as_array().unwrap().iter().map(name).collect()
    };
    assert_eq!(listed("").await, ["5", "4", "3", "2", "1"], "newest first");
    assert_eq!(listed("limit=2&offset=1").await, ["4", "3"]);
    let (from, to) = ((NOW.secs() + 2) * 1_000, (NOW.secs() + 4) * 1_000);
    assert_eq!(listed(&format!("from={from}&to={to}")).await, ["4", "3", "2"], "both ends are in");
    assert_eq!(listed("after=2&limit=2").await, ["3", "4"], "after a cursor, oldest first");
}

#[tokio::test]
async fn the_backend_knows_our_door_and_asks_more_of_it() {
    let open = open(&[Say::Settled], &[]).await;
    let backend = open.backend().await;
    let facts = Pay::facts(&backend);
    assert_eq!(facts.wallet.0, "door:lying");
    assert_eq!(facts.fee_control, FeeControl::Exact);
    // The journal is in memory and the wallet doesn't refuse: after a restart nobody would.
    assert!(!facts.proves_unsent && !facts.refuses_paid_hash);
    let facts = Receive::facts(&backend).unwrap();
    assert_eq!((facts.node.as_str(), facts.granularity), ("door:02fake/book", Msat::new(1_000)));
    assert_eq!(facts.grace, Duration::from_secs(60));
    assert_eq!(json(open.get("/getinfo")).await["nodeId"], "02fake", "a public key, as in phoenixd");
    assert_eq!(backend.balance().await.unwrap(), Msat::new(123_456_000));
    let paid = backend.pay(request(1)).await.unwrap();
    assert!(matches!(paid, Outcome::Settled { fee, .. } if fee == Msat::new(7)), "{paid:?}");
    assert_eq!(open.wallet.last_asked().fee_max, Msat::new(5_000));
}

#[tokio::test]
async fn a_door_with_a_journal_on_disk_pays_no_hash_twice() {
    let dir = tempfile::tempdir().unwrap();
    let wallet = LyingWallet::new(&[Say::Settled], &[]);
    let clock = Arc::new(ManualClock::new(NOW));
    for _ in 0..2 {
        let intents = Arc::new(SqliteIntents::open(&dir.path().join("journal.sqlite")).unwrap());
        let config = OutgoingConfig::default();
        let outgoing = Outgoing::new(Arc::clone(&wallet) as _, intents, Arc::clone(&clock) as _, config);
        let (addr, _serving) = serve(FakeReceiver::new(), outgoing, Arc::clone(&clock) as _).await;
        let backend = connect(addr, "full").await.unwrap();
        assert!(Pay::facts(&backend).refuses_paid_hash);
        let paid = backend.pay(request(1)).await.unwrap();
        assert!(matches!(paid, Outcome::Settled { preimage, .. } if preimage.pays(&hash(1))));
    }
    assert_eq!(wallet.asked(), 1);
}

#[tokio::test]
async fn what_a_door_recorded_and_never_sent_is_not_under_way() {
    // A door that died between the two leaves this; whoever asked it must not wait for ever.
    let (wallet, clock) =
        (LyingWallet::new(&[Say::Settled], &[Say::NotFound]), Arc::new(ManualClock::new(NOW)));
    let intents = SqliteIntents::in_memory().unwrap();
    let PayRequest { invoice, fee_max, .. } = request(1);
    let amount = invoice.amount().unwrap();
    intents.record(&NewIntent { invoice, amount, fee_max, wallet: facts().wallet }, NOW).unwrap();
    let config = OutgoingConfig::default();
    let outgoing = Outgoing::new(wallet, Arc::new(intents), Arc::clone(&clock) as _, config);
    let (addr, _serving) = serve(FakeReceiver::new(), outgoing, clock).await;
    let backend = connect(addr, "full").await.unwrap();
    let told = Pay::lookup(&backend, hash(1)).await.unwrap();
    assert!(matches!(told, Outcome::NotFound), "{told:?}");
    assert!(matches!(backend.pay(request(1)).await.unwrap(), Outcome::Settled { .. }));
}

#[tokio::test]
async fn the_backend_is_paid_through_the_door() {
    let open = open(&[], &[]).await;
    let backend = open.backend().await;
    let invoice = backend.invoice(ask(10_001)).await.unwrap();
    assert_eq!(invoice.amount(), Some(Msat::new(11_000)), "prices round up to whole satoshi");
    assert_eq!(open.receive.asked.lock()[0].expiry, Duration::from_secs(600));
    assert_eq!(Receive::lookup(&backend, hash(1)).await.unwrap(), Incoming::Unpaid);
    assert_eq!(Receive::lookup(&backend, hash(99)).await.unwrap(), Incoming::Unpaid);
    let mut settlements = backend.settlements(Cursor::default());
    for seed in 1..=3 {
        open.receive.settle(hash(seed), Msat::new(11_001), NOW);
        let settlement = settlements.next().await.unwrap().unwrap();
        assert_eq!((settlement.hash, settlement.amount), (hash(seed), Msat::new(11_001)));
        assert_eq!(settlement.cursor, Cursor(seed.into()), "the node's own cursor");
    }
    let again = backend.settlements(Cursor(2)).next().await.unwrap().unwrap();
    assert_eq!(again.hash, hash(3));
    let settled = Incoming::Settled { amount: Msat::new(11_001), at: NOW };
    assert_eq!(Receive::lookup(&backend, hash(1)).await.unwrap(), settled);
    *open.receive.health.lock() = Health::Down("syncing".to_owned());
    assert!(matches!(backend.invoice(ask(1_000)).await, Err(ReceiveError::Unavailable(_))));
    assert!(matches!(backend.health(), Health::Down(why) if why.contains("503")));
}

#[tokio::test]
async fn a_description_too_long_for_phoenixd_is_cut() {
    let open = open(&[], &[]).await;
    let backend = open.backend().await;
    // Outside the basic plane: two UTF-16 units each.
    backend.invoice(Ask { description: "🌦".repeat(100), ..ask(1_000) }).await.unwrap();
    assert_eq!(open.receive.asked.lock()[0].description, "🌦".repeat(64));
}

#[tokio::test]
async fn an_unknown_outcome_stays_unknown_through_the_door() {
    let open = open(&[Say::Error], &[Say::InFlight]).await;
    let backend = open.backend().await;
    let error = backend.pay(request(1)).await.unwrap_err().to_string();
    assert!(error.contains("504") && error.contains("do not pay again"), "{error}");
    assert!(matches!(Pay::lookup(&backend, hash(1)).await.unwrap(), Outcome::InFlight));
}

#[tokio::test]
async fn a_paid_invoice_asked_for_again_gives_its_proof() {
    let open = open(&[Say::Settled], &[]).await;
    let backend = open.backend().await;
    for _ in 0..2 {
        let paid = backend.pay(request(1)).await.unwrap();
        assert!(matches!(paid, Outcome::Settled { preimage, .. } if preimage.pays(&hash(1))));
    }
    assert_eq!(open.wallet.asked(), 1);
}

#[tokio::test]
async fn what_cannot_have_been_sent_has_failed() {
    let open = open(&[Say::Failed], &[]).await;
    let backend = open.backend().await;
    let failed = backend.pay(request(1)).await.unwrap();
    assert!(matches!(&failed, Outcome::Failed(why) if why == "no route"), "{failed:?}");
    let limited = connect(open.addr, "limited").await.unwrap();
    let refused = limited.pay(request(2)).await.unwrap();
    assert!(matches!(&refused, Outcome::Failed(why) if why.contains("403")), "{refused:?}");
    let addr = open.addr;
    let mut serving = open._serving;
    serving.shutdown().await;
    let unreachable = backend.pay(request(3)).await;
    // The old connection may still stand: then nobody knows. A new one is refused: then nothing was sent.
    assert!(matches!(unreachable, Ok(Outcome::Failed(_)) | Err(_)), "{unreachable:?}");
    assert!(matches!(backend.health(), Health::Down(_)));
    assert!(matches!(connect(addr, "full").await, Err(ConnectError::NoAnswer { .. })));
}

#[tokio::test]
async fn a_wrong_password_or_address_is_named() {
    let open = open(&[], &[]).await;
    let error = connect(open.addr, "wrong").await.unwrap_err().to_string();
    assert!(error.contains("refuses the password"), "{error}");
    for url in [
        "nonsense",
        "ftp://127.0.0.1",
        "http://:secret@127.0.0.1:9740",
        "http://127.0.0.1/?a=secret",
        "phoenix:secret@127.0.0.1:9740",
    ] {
        let config = PhoenixdConfig::new(url, Secret::new("full"));
        let error = Phoenixd::connect(config, Arc::new(ManualClock::new(NOW))).await.unwrap_err();
        assert!(matches!(error, ConnectError::Address { .. }), "{error}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}

#[test]
fn a_password_does_not_show_itself() {
    let config = DoorConfig::new("127.0.0.1:1".parse().unwrap(), Secret::new("hush"));
    assert!(!format!("{config:?}").contains("hush"));
    let (first, second) = (Secret::generate().unwrap(), Secret::generate().unwrap());
    assert_eq!(first.expose().len(), 64);
    assert_ne!(first.expose(), second.expose());
}

#[cfg(feature = "embedded")]
mod real {
    //! Over real LDK nodes on the simulated chain.

    use farebox_lightning::{
        clock::SystemClock,
        conformance::{self, Bad, Tender},
        embedded::Minter,
        sim::{Net, NetConfig},
    };
    use farebox_protocol::{Network, Timestamp};
    use tokio::sync::OnceCell;

    use super::*;

    async fn net() -> &'static Net {
        static NET: OnceCell<Net> = OnceCell::const_new();
        NET.get_or_init(async || Net::start(NetConfig::default()).await.unwrap()).await
    }

    /// A phoenixd backend over a door over this node.
    async fn door_to(node: Arc<farebox_lightning::embedded::EmbeddedNode>) -> (Phoenixd, JoinSet<()>) {
        let clock = Arc::new(SystemClock);
        let intents = Arc::new(SqliteIntents::in_memory().unwrap());
        let config = OutgoingConfig::default();
        let outgoing = Outgoing::new(Arc::clone(&node) as _, intents, Arc::clone(&clock) as _, config);
        let (addr, serving) = serve(node, outgoing, Arc::clone(&clock) as _).await;
        let mut config = PhoenixdConfig::new(format!("http://{addr}"), Secret::new("full"));
        config.poll = Duration::from_millis(20);
        (Phoenixd::connect(config, clock).await.unwrap(), serving)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_door_to_a_real_node_is_paid_as_every_backend_must_be() {
        let net = net().await;
        let (backend, _serving) = door_to(Arc::clone(&net.seller)).await;
        let payer = async |invoice: farebox_protocol::Invoice, tender| {
            if tender != Tender::Exact {
                return Err("this payer pays what the invoice says".to_owned());
            }
            let request = farebox_lightning::PayRequest {
                invoice,
                fee_max: Msat::new(1_000),
                timeout: Duration::from_secs(30),
            };
            match net.buyer.pay(request).await.map_err(|error| error.to_string())? {
                Outcome::Settled { preimage, .. } => Ok(preimage),
                other => Err(format!("{other:?}")),
            }
        };
        conformance::receive(&backend, payer).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_door_to_a_real_node_pays_as_every_backend_must() {
        let net = net().await;
        let (backend, _serving) = door_to(Arc::clone(&net.buyer)).await;
        let stranger = |network| Minter::new(&[9; 64], network).unwrap();
        let now = SystemClock.now();
        let bad = Bad {
            expired: net.seller.minter().mint(&ask(1_000), Timestamp::from_secs(1_700_000_000)).unwrap(),
            foreign: stranger(Network::Signet).mint(&ask(1_000), now).unwrap(),
            unreachable: stranger(Network::Regtest).mint(&ask(1_000), now).unwrap(),
        };
        conformance::pay(&backend, &*net.seller, bad).await;
    }
}
