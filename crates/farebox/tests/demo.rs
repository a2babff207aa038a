//! `farebox demo` as a program: it sells, says so to people or to programs, and leaves nothing behind.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output, Stdio},
};

use farebox_protocol::Preimage;
use farebox_tests::{Program, ask_with};
use serde_json::Value;

const FAREBOX: &str = env!("CARGO_BIN_EXE_farebox");

fn demo(temporary: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(FAREBOX);
    command.arg("demo").args(arguments).env("TMPDIR", temporary).stdin(Stdio::null());
    command
}

fn events(output: &Output) -> Vec<Value> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_demo_sells_once_and_leaves_nothing_behind() {
    let temporary = tempfile::tempdir().unwrap();
    let output = demo(temporary.path(), &["--once", "--json"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");

    let events = events(&output);
    let names: Vec<_> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(names, ["ready", "challenge", "payment", "answer"]);
    let text = |index: usize, key: &str| events[index][key].as_str().unwrap().to_owned();
    for key in ["gateway", "upstream", "wallet_url", "wallet_password", "ops_url", "data_dir"] {
        assert!(!text(0, key).is_empty(), "{key}");
    }
    assert_eq!(events[1]["msat"], 10_000);
    assert_eq!(events[2]["fee_msat"], 0);
    assert_eq!(events[3]["status"], 200);
    assert_eq!(text(3, "payment_hash"), text(1, "payment_hash"));
    assert_eq!(text(3, "preimage"), text(2, "preimage"));
    let preimage = Preimage::from_hex(&text(2, "preimage")).unwrap();
    assert_eq!(preimage.payment_hash().to_string(), text(1, "payment_hash"));
    assert_eq!(text(3, "authorization"), format!("L402 {}:{}", text(1, "token"), text(2, "preimage")));
    assert!(events[3]["elapsed_ms"].as_u64().unwrap() >= events[2]["elapsed_ms"].as_u64().unwrap());

    let left: Vec<_> = fs::read_dir(temporary.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn the_story_for_people_checks_the_hash() {
    let temporary = tempfile::tempdir().unwrap();
    let output = demo(temporary.path(), &["--once"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    for part in [
        "402 Payment Required",
        "WWW-Authenticate: LSAT",
        "sha256(preimage) == payment_hash",
        "200 OK",
        "sunrise",
    ] {
        assert!(text.contains(part), "no `{part}` in:\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_stays_up_until_it_is_told_to_end() {
    let temporary = tempfile::tempdir().unwrap();
    let mut program = Program::start(&mut demo(temporary.path(), &["--json"]));
    let ready = program.event();
    let (_, _, answer) = (program.event(), program.event(), program.event());
    let url = format!("{}/v1/sun?lat=0&lon=0&date=2026-03-20", ready["gateway"].as_str().unwrap());
    let (status, body) = ask_with(&url, answer["authorization"].as_str().unwrap()).await;
    assert_eq!(status, 200);
    assert!(body.contains("2026-03-20"), "{body}");

    let (code, _) = program.interrupt();
    assert_eq!(code, Some(0));
    assert!(fs::read_dir(temporary.path()).unwrap().next().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_requests_are_sold_and_then_no_more() {
    let temporary = tempfile::tempdir().unwrap();
    let mut program = Program::start(&mut demo(temporary.path(), &["--json", "--requests", "2"]));
    let ready = program.event();
    let (_, _, answer) = (program.event(), program.event(), program.event());
    assert_eq!(answer["status"], 200);
    let url = format!("{}/v1/sun?lat=0&lon=0", ready["gateway"].as_str().unwrap());
    let authorization = answer["authorization"].as_str().unwrap();
    assert_eq!(ask_with(&url, authorization).await.0, 200);
    assert_eq!(ask_with(&url, authorization).await.0, 402);
    assert_eq!(program.interrupt().0, Some(0));
}

#[test]
fn credit_that_pays_for_no_request_is_refused_before_anything_starts() {
    let temporary = tempfile::tempdir().unwrap();
    let output = demo(temporary.path(), &["--once", "--credit", "--cost", "20sat"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("--price and --cost"), "{text}");
}

#[test]
fn an_api_that_does_not_answer_is_named_before_anybody_pays() {
    let temporary = tempfile::tempdir().unwrap();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{nobody}");
    let output = demo(temporary.path(), &["--once", "--upstream", &url]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains(&format!("nothing answers at `{url}`")), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_of_ones_own_is_sold() {
    let upstream = farebox_tests::Upstream::start();
    let temporary = tempfile::tempdir().unwrap();
    let url = format!("http://{}", upstream.addr);
    let output = demo(temporary.path(), &["--once", "--upstream", &url, "--price", "3sat"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("pay 3 sat") && text.contains("served /"), "{text}");
    assert_eq!(upstream.served(), 1);
}

#[test]
fn a_price_that_cannot_be_sold_is_refused_before_anything_starts() {
    let temporary = tempfile::tempdir().unwrap();
    for (price, want) in [("10", "`10` is not an amount"), ("0sat", "has the price 0 sat")] {
        let output = demo(temporary.path(), &["--once", "--price", price]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(want), "{price}: {text}");
    }
}

/// A file of a seller's, with nothing in it that is here.
fn configuration(directory: &Path, services: &str) -> String {
    let file = directory.join("seller.yaml");
    let text = format!(
        "network: mainnet
listen: [{{ addr: \"0.0.0.0:443\", tls: {{ cert: none.pem, key: none.pem }} }}]
lightning: {{ phoenixd: {{ password: {{ file: none }} }} }}
mint-secrets: [{{ from: {{ env: FAREBOX_NO_SUCH_SECRET }} }}]
state-dir: state
services:
{services}"
    );
    fs::write(&file, text).unwrap();
    file.display().to_string()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_configuration_is_sold_and_what_belongs_to_its_machine_is_left_alone() {
    let temporary = tempfile::tempdir().unwrap();
    let home = tempfile::tempdir().unwrap();
    let services = "  - { name: open, paths: [/open], upstream: \"http://127.0.0.1:1\", auth: off }
  - { name: maps, hosts: [maps.example.com], paths: [/maps], upstream: \"http://127.0.0.1:1\", price: 7sat, freebie: 2 }
  - { name: more, hosts: [more.example.com], paths: [/maps], upstream: \"http://127.0.0.1:1\", price: 9sat }
";
    let file = configuration(home.path(), services);
    let output = demo(temporary.path(), &["--once", "--json", "--echo", "--config", &file]).output().unwrap();
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    for line in [
        "seller.yaml:1:10: network: the demo has a chain of its own",
        "seller.yaml:2:1: listen: the demo listens on this machine only",
        "seller.yaml:3:1: lightning: the demo's own node is paid; this one is not spoken to",
        "seller.yaml:5:12: state-dir: the demo keeps its books in a temporary directory",
    ] {
        assert!(text.contains(line), "no `{line}` in:\n{text}");
    }
    let events = events(&output);
    let services = &events[0]["services"];
    assert_eq!(services[0]["paid"], false);
    assert_eq!((&services[1]["name"], &services[1]["host"]), (&"maps".into(), &Value::Null));
    assert_eq!(services[2]["host"], "more.example.com", "another one is at that path of the demo's address");
    assert!(events[1]["msat"] == 7_000 && events[3]["status"] == 200, "{events:?}");
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1, "nothing but the file");
    assert!(fs::read_dir(temporary.path()).unwrap().next().is_none());
}

#[test]
fn a_configuration_that_cannot_be_sold_is_refused_before_anything_starts() {
    let temporary = tempfile::tempdir().unwrap();
    let home = tempfile::tempdir().unwrap();
    let service = "  - { name: api, upstream: \"http://127.0.0.1:1\", price: 7sat }\n";
    let run = |services: &str, more: &[&str]| {
        let file = configuration(home.path(), services);
        let output = demo(temporary.path(), &["--once", "--config", &file]).args(more).output().unwrap();
        (output.status.code(), said(&output))
    };
    let (code, text) = run(&service.replace("price", "prize"), &[]);
    assert!(code == Some(1) && text.contains("seller.yaml:7:50: services[0].prize"), "{text}");
    let (code, text) = run(service, &[]);
    assert!(code == Some(1) && text.contains("no API answers") && text.contains("--echo"), "{text}");
    assert!(text.contains("nothing answers at `http://127.0.0.1:1`, behind the service `api`"), "{text}");
    let (code, text) = run(&service.replace("price", "paths: [/v1], price"), &["--echo", "--path", "/v2"]);
    assert!(code == Some(2) && text.contains("one that begins with `/v1`"), "{text}");
    let (code, text) = run(&service.replace("price: 7sat", "auth: off"), &["--echo", "--path", "/v2"]);
    assert!(code == Some(2) && text.contains("as everything is free"), "{text}");
    let (code, text) = run(service, &["--price", "1sat"]);
    assert!(code == Some(2) && text.contains("--price"), "{text}");
}

#[test]
fn the_story_asks_for_another_path_where_it_is_told_to() {
    let temporary = tempfile::tempdir().unwrap();
    let home = tempfile::tempdir().unwrap();
    let services = "  - { name: first, paths: [/first], upstream: \"http://127.0.0.1:1\", price: 7sat }
  - { name: second, paths: [/second], methods: [POST], upstream: \"http://127.0.0.1:1\", price: 8sat }
";
    let file = configuration(home.path(), services);
    let arguments = ["--once", "--json", "--echo", "--path", "/second/it?status=404", "--config", &file];
    let output = demo(temporary.path(), &arguments).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let events = events(&output);
    assert_eq!((&events[1]["msat"], &events[3]["status"]), (&8_000.into(), &404.into()), "{events:?}");
}

#[test]
fn where_everything_is_free_nothing_is_bought_and_that_is_said() {
    let temporary = tempfile::tempdir().unwrap();
    let home = tempfile::tempdir().unwrap();
    let file = configuration(home.path(), "  - { name: api, upstream: \"http://127.0.0.1:1\", auth: off }\n");
    let output = demo(temporary.path(), &["--once", "--json", "--echo", "--config", &file]).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(events(&output)[1]["event"], "nothing_bought");
}

/// The walk of the manual: docs/concepts/what-one-payment-buys.md.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_manual_walks_through_is_what_happens() {
    let temporary = tempfile::tempdir().unwrap();
    let shop = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/farebox.demo.yaml");
    let shop = shop.to_str().unwrap();
    let mut program = Program::start(&mut demo(temporary.path(), &["--json", "--echo", "--config", shop]));
    let ready = program.event();
    let (_, _, answer) = (program.event(), program.event(), program.event());
    let open = program.event();
    assert_eq!((&answer["status"], &open["event"]), (&200.into(), &"open".into()));
    let of = |key: &str| ready[key].as_str().unwrap().to_owned();
    let mode = fs::metadata(of("data_dir")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "a wallet is in it, and what was bought");
    let buyer = |line: &str| {
        let line = format!(". '{}' && {line}", open["buyer_file"].as_str().unwrap());
        let mut shell = Command::new("sh");
        let output = shell.args(["-c", &line]).current_dir(temporary.path()).stdin(Stdio::null()).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let json = |line: &str| -> Value {
        let text = buyer(line);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{line}: {error}: {text}"))
    };

    let policy = buyer("cat \"$FAREBOX_POLICY\"");
    assert!(policy.contains("private-targets: allow"), "an agent could not call the demo: {policy}");

    // Use: what the story bought is in the journal. 1 sat and 2 sat/kB; what fails is free.
    let used = json("farebox --json get \"$GATEWAY/files?bytes=5000\"");
    assert_eq!((&used["status"], &used["paid"]), (&200.into(), &false.into()), "{used}");
    assert_eq!(json("farebox --json get \"$GATEWAY/files?status=503\"")["status"], 503);

    // A receipt, and the seller's key.
    let fetched = json("farebox --json receipts fetch $PAID -o receipt.txt");
    let http = reqwest::Client::new();
    let key = http.get(format!("{}/.well-known/farebox/receipt-key", of("gateway"))).send().await.unwrap();
    let key = key.text().await.unwrap();
    assert_eq!(fetched["key"], key.trim());
    let verified = buyer(&format!("farebox --human receipt verify receipt.txt --key '{}'", key.trim()));
    // The story took 1244 msat for 122 bytes, and what was asked for since 11,000 for 5,000.
    assert!(verified.contains("used          12244 msat of 100 sat"), "{verified}");

    // Money back, to an invoice of the buyer's node.
    let token = buyer("farebox --human tokens export $PAID");
    assert_eq!(token.trim(), answer["authorization"]);
    let refund = format!("{}/.well-known/farebox/refund", of("gateway"));
    let left: Value =
        http.get(&refund).header("authorization", token.trim()).send().await.unwrap().json().await.unwrap();
    assert_eq!(left["credit_msat"], 87_756, "{left}");
    let invoice = http
        .post(format!("{}/createinvoice", of("wallet_url")))
        .basic_auth("", Some(of("wallet_password")))
        .form(&[("amountSat", "50")]);
    let invoice: Value = invoice.send().await.unwrap().json().await.unwrap();
    let ask = http
        .post(&refund)
        .header("authorization", token.trim())
        .json(&serde_json::json!({ "to": invoice["serialized"] }));
    let paid: Value = ask.send().await.unwrap().json().await.unwrap();
    assert_eq!((&paid["state"], &paid["amount_msat"]), (&"paid".into(), &50_000.into()), "{paid}");

    // A price by usage, limits by the month, an upper tier.
    assert_eq!(json("farebox --json get \"$GATEWAY/chat?tokens=500\"")["status"], 200);
    // The same request under one key is paid for once: 20 sat of 200, and 20 more.
    for _ in 0..2 {
        let once = json("farebox --json get -H 'Idempotency-Key: once' \"$GATEWAY/chat?tokens=500\"");
        assert_eq!((&once["status"], &once["paid"]), (&200.into(), &false.into()), "{once}");
    }
    for _ in 0..4 {
        assert_eq!(json("farebox --json get \"$GATEWAY/maps\"")["status"], 200);
    }
    let upper = json("farebox --json get -X POST -H 'farebox-upgrade: true' \"$GATEWAY/maps\"");
    assert_eq!(upper["status"], 200, "{upper}");
    let books = buyer("farebox --json ledger list --state-dir \"$BOOKS\"");
    let rows: Vec<Value> = books.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let chat = rows.iter().find(|row| row["service"] == "chat").unwrap();
    assert_eq!(chat["left"], 160_000, "{chat}");
    let maps = || rows.iter().filter(|row| row["service"] == "maps");
    let replaced = maps().filter(|row| !row["revoked_at"].is_null()).count();
    assert_eq!(replaced, 1, "the upper tier ends the pass that it was bought in the place of");
    let mut maps: Vec<_> = maps().map(|row| row["paid_msat"].as_u64().unwrap()).collect();
    maps.sort_unstable();
    assert_eq!(maps, [10_000, 10_000, 50_000], "three requests a month, one more, and the upper tier");
    assert_eq!(program.interrupt().0, Some(0));
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 1, "nothing but the receipt");
}
