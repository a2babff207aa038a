//! The cases of the Autobahn test suite, which break every rule of WebSocket in turn, through the gateway: over HTTP/1.1,
//! and, paid, over HTTP/2 (RFC 8441).
//!
//! The server behind the gateway is judged directly as well: through the gateway nothing may fail that doesn't fail there.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    process::{Child, Stdio},
    time::Duration,
};

use farebox_tests::{Challenge, Scripts, Seller};
use serde_json::Value;
use tokio::time::timeout;

const FAREBOX: &str = env!("CARGO_BIN_EXE_farebox");

/// Everything on the base protocol, messages of up to 16 MB included, and of the 162 cases on compression, which the gateway
/// passes on as it stands, those that take seconds rather than minutes.
const CASES: &[&str] =
    &["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*", "12.1.1", "12.1.10", "13.1.1"];
/// How many that are.
const COUNT: usize = 304;
/// How long all of them may take. They take ten seconds on a machine with nothing else to do.
const ALL_MAX: Duration = Duration::from_secs(300);

/// How each case went: how the conversation did, and how it was closed.
type Report = BTreeMap<String, (String, String)>;

/// The echo server and the bridge, and the judge.
struct Peers(Scripts);

impl Peers {
    /// Starts one of our scripts: the process, and the address that it listens on.
    fn start(&self, script: &str, arguments: &[&str]) -> (Script, String) {
        let mut command = self.0.command(script);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| {
            panic!("`node` is needed, 20 or later: {error}");
        });
        let mut addr = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut addr).unwrap();
        assert!(addr.contains(':'), "{script} doesn't listen: {:?}", child.wait());
        (Script(child), addr.trim().to_owned())
    }

    /// Judges the WebSocket server at `addr`.
    async fn judge(&self, addr: &str, path: &str) -> Report {
        let reports = tempfile::tempdir().unwrap();
        let mut judge = tokio::process::Command::new(self.0.python_program("kosoku"));
        judge.args(["--parallelism", "8", "--outdir"]).arg(reports.path());
        judge.args(CASES.iter().flat_map(|case| ["--include", case]));
        judge.arg(format!("ws://{addr}{path}")).stdin(Stdio::null()).kill_on_drop(true);
        // It fails when a case does; what the report says is what counts.
        let said = timeout(ALL_MAX, judge.output()).await.expect("the judge takes too long").unwrap();
        let index = fs::read_to_string(reports.path().join("index.json"));
        let index: Value =
            serde_json::from_str(&index.unwrap_or_else(|_| panic!("no report: {said:?}"))).unwrap();
        let cases = index.as_object().unwrap().values().next().unwrap().as_object().unwrap();
        assert_eq!(cases.len(), COUNT, "other cases than expected: {:?}", cases.keys());
        let text = |case: &Value, key: &str| case[key].as_str().unwrap().to_owned();
        let outcome = |case: &Value| (text(case, "behavior"), text(case, "behaviorClose"));
        cases.iter().map(|(name, case)| (name.clone(), outcome(case))).collect()
    }
}

/// A script that runs until it is dropped.
struct Script(Child);

impl Drop for Script {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What didn't go as it must. What is "non-strict" is a matter of time: whether bad text is noticed before its end.
fn failed(report: &Report) -> Vec<(&String, &(String, String))> {
    let is_fine =
        |said: &String| ["OK", "NON-STRICT", "INFORMATIONAL", "UNIMPLEMENTED"].contains(&said.as_str());
    report.iter().filter(|(_, (behaved, closed))| !is_fine(behaved) || !is_fine(closed)).collect()
}

fn unimplemented(report: &Report) -> Vec<&String> {
    report.iter().filter(|(_, (behaved, _))| behaved == "UNIMPLEMENTED").map(|(case, _)| case).collect()
}

#[tokio::test]
#[ignore = "live: needs Python and Node.js"]
async fn every_rule_of_websocket_holds_through_the_gateway_as_without_it() {
    let peers = Peers(Scripts::install("ws"));
    let (_echo, echo) = peers.start("echo.mjs", &[]);
    let services = format!(
        "  - name: open
    paths: [/open]
    upstream: http://{echo}
    auth: off
  - name: sold
    upstream: http://{echo}
    price: 10sat
"
    );
    let seller = Seller::with_services(FAREBOX, "[\"127.0.0.1:0\"]", &services);
    let (gateway, addrs) = seller.serve_all();
    let addr = addrs[0].to_string();
    let paid = Challenge::ask(&format!("http://{addr}/echo")).await.pay().await;
    let (script, bridge) = peers.start("bridge.mjs", &[&addr, &paid]);

    let direct = peers.judge(&echo, "/").await;
    println!("without a gateway: {} cases, failed: {:?}", direct.len(), failed(&direct));
    for (how, addr, path) in [("over HTTP/1.1", &addr, "/open/echo"), ("paid, over HTTP/2", &bridge, "/echo")]
    {
        let report = peers.judge(addr, path).await;
        println!("{how}: {} cases, failed: {:?}", report.len(), failed(&report));
        let beyond: Vec<_> = failed(&report)
            .into_iter()
            .filter(|(case, _)| !failed(&direct).iter().any(|(name, _)| name == case))
            .collect();
        assert!(beyond.is_empty(), "{how}: without the gateway {beyond:?} passes");
        assert_eq!(unimplemented(&report), unimplemented(&direct), "{how}");
    }
    // Nothing is left behind that would have to be cut.
    drop(script);
    assert_eq!(gateway.interrupt().0, Some(0));
}
