//! The clients that people have today buy from farebox, lnd to lnd: they are as their registries have them, and are told
//! nothing but where the gateway and their own lnd are.
//!
//! Judged alike: the client gets what the upstream sends, its lnd has paid once, and asking again with what was bought costs
//! nothing. What it paid is asked of its lnd, not of the client.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use farebox_protocol::{Macaroon, PaymentHash, Preimage};
use farebox_tests::{Authority, InteropServer, Program, Scripts, Seller, Shared, peers, regtest, until};
use rusqlite::{Connection, OpenFlags, Row};
use serde_json::{Value, json};
use tokio::{
    sync::{Mutex, MutexGuard},
    time::timeout,
};

const FAREBOX: &str = env!("CARGO_BIN_EXE_farebox");
/// How long one client may take. They take a second or two.
const CLIENT_MAX: Duration = Duration::from_secs(120);
/// What everything costs.
const PRICE_SAT: u64 = 10;
/// What the upstream sends for the path that is bought.
const SERVED: &str = "served /v1/sun";

/// The payments of the one buyer are counted, so only one client at a time may buy.
static ALONE: Mutex<()> = Mutex::const_new(());

/// A row of the books: hash, how many payments, how much, and the price.
type Purchase = (Vec<u8>, u64, u64, Option<u64>);

/// A gateway that is paid through one lnd, and the lnd of those who buy.
struct Market {
    regtest: Shared,
    seller: Seller,
    addrs: Vec<String>,
    paid_before: BTreeMap<String, u64>,
    _gateway: Program,
    _alone: MutexGuard<'static, ()>,
}

impl Market {
    /// One that sells what an HTTP server answers.
    async fn open() -> Self {
        let service = format!("  - {{ name: api, upstream: \"http://UPSTREAM\", price: {PRICE_SAT}sat }}\n");
        Self::selling("[\"127.0.0.1:0\"]", &service).await
    }

    /// One with these listeners and services, as they are written in the configuration.
    async fn selling(listen: &str, services: &str) -> Self {
        let alone = ALONE.lock().await;
        let regtest = regtest().await;
        let seller = Seller::over_lnd(FAREBOX, &regtest.seller, listen, services);
        let (gateway, addrs) = seller.serve_ready().await;
        let addrs = addrs.iter().map(ToString::to_string).collect();
        let mut market =
            Self { regtest, seller, addrs, paid_before: BTreeMap::new(), _gateway: gateway, _alone: alone };
        market.paid_before = market.payments().await;
        market
    }

    /// What is bought.
    fn url(&self) -> String {
        format!("http://{}/v1/sun", self.addrs[0])
    }

    /// Every payment that the buyer's lnd has made or is making: its hash, and the amount in satoshi.
    async fn payments(&self) -> BTreeMap<String, u64> {
        let all = self.regtest.buyer.get("/v1/payments?include_incomplete=true").await;
        let all = all["payments"].as_array().cloned().unwrap_or_default();
        let paid = all.iter().filter(|payment| payment["status"] != "FAILED").map(|payment| {
            (text(payment, "payment_hash").to_owned(), text(payment, "value_sat").parse().unwrap())
        });
        paid.collect()
    }

    /// The hash of the one payment that was made here. Panics if there were more, if it was another amount, and unless the
    /// seller has it on the books, once, for what was bought.
    async fn the_only_payment(&self) -> PaymentHash {
        let mut made = self.payments().await;
        made.retain(|hash, _| !self.paid_before.contains_key(hash));
        assert_eq!(made.values().collect::<Vec<_>>(), [&PRICE_SAT], "not one payment of the price: {made:?}");
        let hash = made.into_keys().next().unwrap().parse().unwrap();
        self.check_books(hash).await;
        hash
    }

    async fn check_books(&self, hash: PaymentHash) {
        let file = self.seller.dir.path().join("state/books.sqlite");
        let books = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        let all = || {
            let mut rows =
                books.prepare("SELECT hash, payments, paid_msat, price_msat FROM purchase").unwrap();
            let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?));
            rows.query_map([], read).unwrap().map(Result::unwrap).collect::<Vec<Purchase>>()
        };
        let price = PRICE_SAT * 1_000;
        let booked = [(hash.as_bytes().to_vec(), 1, price, Some(price))];
        until("the payment is on the books, once, and nothing else", async || all() == booked).await;
    }

    /// Runs a client that pays over lnd's REST interface: the one line of JSON that it prints.
    async fn run_over_rest(&self, command: Command) -> Value {
        let buyer = &self.regtest.buyer;
        let mut command = command;
        command
            .env("LND_REST", buyer.rest())
            .env("LND_CERTIFICATE", buyer.cert())
            .env("LND_MACAROON", buyer.macaroon("admin"));
        run(command).await
    }

    /// Runs the program with aperture's package in it: the one line of JSON that it prints.
    async fn run_aperture(&self, arguments: &[&str]) -> Value {
        let buyer = &self.regtest.buyer;
        let mut command = Command::new(peers("clients/aperture").join("aperture"));
        command.args(arguments).args(["-lnd", &buyer.rpc()]).arg("-lnd-cert").arg(buyer.cert());
        command.arg("-lnd-macaroon").arg(buyer.macaroon("admin"));
        run(command).await
    }
}

/// Runs a client that must succeed: the one line of JSON that it prints.
async fn run(command: Command) -> Value {
    let mut command = tokio::process::Command::from(command);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let said = timeout(CLIENT_MAX, command.output()).await.expect("the client hangs");
    let said = said.unwrap_or_else(|error| panic!("{command:?} is needed: {error}"));
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let outcome = serde_json::from_slice(&said.stdout);
    let outcome: Value = outcome.unwrap_or_else(|error| panic!("{error}: {said:?}"));
    println!("{outcome:#}");
    outcome
}

fn text<'a>(of: &'a Value, key: &str) -> &'a str {
    of[key].as_str().unwrap_or_else(|| panic!("no text `{key}` in {of}"))
}

/// Whether this is what pays for `hash`.
fn pays(preimage: &str, hash: &PaymentHash) -> bool {
    Preimage::from_hex(preimage).unwrap().pays(hash)
}

#[tokio::test]
#[ignore = "live: needs Go, Node.js"]
async fn alby_lightning_tools_buys_from_farebox() {
    let scripts = Scripts::install("clients");
    for function in ["fetch402", "fetchWithL402"] {
        let market = Market::open().await;
        let mut client = scripts.command("alby.mjs");
        client.args([function, &market.url()]);
        let did = market.run_over_rest(client).await;
        assert_eq!((&did["status"], &did["body"]), (&json!(200), &json!(SERVED)));
        assert_eq!((&did["paid"], &did["amount_sat"]), (&json!(true), &json!(PRICE_SAT)));
        assert_eq!(did["again"], json!({ "status": 200, "body": SERVED, "paid": false }));
        assert!(pays(text(&did, "preimage"), &market.the_only_payment().await));
        assert_eq!(market.seller.upstream.served(), 2);
    }
}

#[tokio::test]
#[ignore = "live: needs Go, Python, Node.js"]
async fn l402_requests_buys_from_farebox() {
    for way in ["sync", "async"] {
        let (market, preimage) = l402_requests_buys(way).await;
        assert!(pays(&preimage, &market.the_only_payment().await));
    }
}

// Its own wallet for lnd takes the 64 hexadecimal digits of the preimage for base64, as those of its sisters in TypeScript
// and .NET do: what it presents is the 48 bytes of that, in 96 digits. Elsewhere it pays, and pays again, for nothing.
#[tokio::test]
#[ignore = "live: needs Go, Python, Node.js"]
async fn l402_requests_with_its_own_wallet_for_lnd_buys_from_farebox() {
    let (market, presented) = l402_requests_buys("own-wallet").await;
    market.the_only_payment().await;
    assert_eq!(presented.len(), 96, "it reads lnd as it should now, and this test can go");
}

/// Has the client ask twice: where it bought, and what it took for the preimage.
async fn l402_requests_buys(way: &str) -> (Market, String) {
    let market = Market::open().await;
    let mut client = Scripts::install("clients").command("l402_requests_client.py");
    client.args([way, &market.url()]);
    let did = market.run_over_rest(client).await;
    let answer = json!({ "status": 200, "body": SERVED });
    assert_eq!(did["answers"], json!([answer, answer]));
    assert_eq!(did["paid_sat"], json!([PRICE_SAT]));
    assert_eq!(market.seller.upstream.served(), 2);
    let preimage = did["preimages"][0].as_str().unwrap().to_owned();
    (market, preimage)
}

/// The interceptor that loop and pool have inside, over gRPC.
async fn the_interceptor_buys(tls: bool) {
    let server = InteropServer::start(None);
    let authority = Authority::new();
    let (cert, key, ca) = (authority.cert(), authority.key(), authority.ca().display().to_string());
    let front = format!("{{ cert: {}, key: {} }}", cert.display(), key.display());
    let listen = match tls {
        true => format!("[{{ addr: \"127.0.0.1:0\", tls: {front} }}]"),
        false => "[\"127.0.0.1:0\"]".to_owned(),
    };
    let service =
        format!("  - {{ name: interop, upstream: \"{}\", price: {PRICE_SAT}sat }}\n", server.upstream());
    let market = Market::selling(&listen, &service).await;
    let store = tempfile::tempdir().unwrap();
    let store = store.path().display().to_string();
    let mut arguments = vec!["grpc", "-gateway", &market.addrs[0], "-store", &store];
    if tls {
        arguments.extend(["-ca", &ca]);
    }
    let did = market.run_aperture(&arguments).await;

    // It can buy for calls only: gRPC for Go begins a stream before the server has answered, so by the time that the stream
    // is told to pay, its interceptor has returned. Whichever gateway stands there, the first call buys for the streams.
    let denied = text(&did, "StreamBeforePaying");
    assert!(denied.contains("code = Internal desc = payment required"), "{denied}");
    assert_eq!((&did["First"], &did["Second"], &did["Later"]), (&json!(7), &json!(7), &json!(7)));
    let sizes = json!([7, 70, 700]);
    assert_eq!((&did["Streamed"], &did["Conversed"]), (&sizes, &sizes));

    let hash = market.the_only_payment().await;
    assert_eq!((text(&did, "Hash"), &did["PaidMsat"]), (&*hash.to_string(), &json!(PRICE_SAT * 1000)));
    assert!(pays(text(&did, "Preimage"), &hash));
    let kept = Path::new(&store).join("l402.token");
    assert!(kept.exists() && !kept.with_extension("token.pending").exists());
}

#[tokio::test]
#[ignore = "live: needs Go"]
async fn the_interceptor_of_loop_and_pool_buys_from_farebox() {
    the_interceptor_buys(false).await;
}

#[tokio::test]
#[ignore = "live: needs Go"]
async fn the_interceptor_of_loop_and_pool_buys_from_farebox_by_tls() {
    the_interceptor_buys(true).await;
}

#[tokio::test]
#[ignore = "live: needs Go"]
async fn a_go_program_with_apertures_package_buys_from_farebox() {
    let market = Market::open().await;
    let did = market.run_aperture(&["http", "-gateway", &market.url()]).await;
    assert_eq!(did["Asked"], 402);
    for answer in ["First", "Second", "ProvenTwice", "Macaroon", "GrpcMetadataMacaroon"] {
        assert_eq!(did[answer], json!({ "Status": 200, "Body": SERVED }), "{answer}");
    }
    let hash = market.the_only_payment().await;
    assert_eq!(text(&did, "Hash"), hash.to_string());
    assert!(pays(text(&did, "Preimage"), &hash));
    assert_eq!(market.seller.upstream.served(), 5);
}

#[tokio::test]
#[ignore = "live: needs Go, Python, Node.js"]
async fn lsat_js_reads_the_challenge_and_its_token_is_taken() {
    let market = Market::open().await;
    let mut client = Scripts::install("clients").command("lsat.mjs");
    client.arg(market.url());
    let did = market.run_over_rest(client).await;
    assert_eq!(did["asked"], 402);
    let hash = market.the_only_payment().await;
    let read = &did["read"];
    assert_eq!(
        (text(read, "payment_hash"), text(read, "identifier")),
        (&*hash.to_string(), &*hash.to_string())
    );
    assert_eq!(read["amount_sat"], PRICE_SAT);
    // The same as our own reader finds.
    let token = Macaroon::from_base64(text(read, "macaroon")).unwrap();
    assert_eq!(token.identifier().unwrap().payment_hash, hash);
    assert_eq!(read["caveats"], json!(token.caveats().collect::<Vec<_>>()));

    assert_eq!(did["satisfied"], true);
    assert_eq!((&did["status"], &did["body"]), (&json!(200), &json!(SERVED)));
    assert_eq!(did["again"], json!({ "status": 200, "body": SERVED }));
    assert_eq!(market.seller.upstream.served(), 2);
}

/// The lines of the manual under this heading that are to be typed.
fn recipe(heading: &str) -> String {
    let manual =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operating.md")).unwrap();
    let (_, section) = manual.split_once(&format!("\n## {heading}\n")).unwrap();
    let (_, typed) = section.split_once("\n```sh\n").unwrap();
    typed.split_once("\n```").unwrap().0.to_owned()
}

#[tokio::test]
#[ignore = "live: needs Go, curl"]
async fn curl_and_lncli_buy_from_farebox_as_the_manual_says() {
    let market = Market::open().await;
    let url = market.url();
    let lncli = market.regtest.buyer.lncli();
    // The same program with the same arguments, under the name by which the manual calls it.
    let dir = tempfile::tempdir().unwrap();
    let arguments: Vec<_> = lncli.get_args().map(|argument| format!("'{}'", argument.display())).collect();
    let wrapper =
        format!("lncli() {{ '{}' {} \"$@\"; }}", lncli.get_program().display(), arguments.join(" "));
    let script = format!("set -euo pipefail\n{wrapper}\nurl={url}\n{}\n", recipe("Buying by hand"));
    println!("{script}");
    let mut shell = tokio::process::Command::new("bash");
    shell.arg("-c").arg(&script).env("HOME", dir.path()).stdin(Stdio::null()).kill_on_drop(true);
    let said = timeout(CLIENT_MAX, shell.output()).await.expect("it hangs").unwrap();
    assert!(said.status.success(), "{said:?}");
    assert_eq!(String::from_utf8(said.stdout).unwrap().lines().last(), Some(SERVED));

    market.the_only_payment().await;
    assert_eq!(market.seller.upstream.served(), 1);
}
