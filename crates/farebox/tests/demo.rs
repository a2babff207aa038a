//! `farebox demo` as a program: it sells, says so to people or to programs, and leaves nothing behind.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

use std::{
    fs,
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
