//! The running demo, bought from with plain curl and with `farebox get`, and watched by strace.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

use std::{
    path::Path,
    process::{Command, Stdio},
};

use farebox_protocol::{OfferedChallenge, Scheme};
use farebox_tests::Program;
use regex::Regex;
use serde_json::Value;

const FAREBOX: &str = env!("CARGO_BIN_EXE_farebox");

/// What a program prints; it must succeed.
fn output(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn curl(arguments: &[&str]) -> String {
    output(Command::new("curl").args(["--silent", "--show-error", "--max-time", "30"]).args(arguments))
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
#[ignore = "live: needs curl"]
fn curl_and_get_buy_from_the_demo() {
    let temporary = tempfile::tempdir().unwrap();
    let mut demo =
        Program::start(Command::new(FAREBOX).args(["demo", "--json"]).env("TMPDIR", temporary.path()));
    let ready = demo.event();
    let text = |key: &str| ready[key].as_str().unwrap().to_owned();
    // The story's own purchase; the node's first payment takes two seconds.
    let (_, _, answer) = (demo.event(), demo.event(), demo.event());
    assert_eq!(answer["status"], 200);
    let url = format!("{}/v1/sun?lat=52.52&lon=13.40", text("gateway"));

    // By hand, step by step.
    let refused = curl(&["-i", &url]);
    assert!(refused.starts_with("HTTP/1.1 402 Payment Required"), "{refused}");
    let line = Regex::new(r"(?mi)^www-authenticate: (.*?)\r?$").unwrap();
    let lines: Vec<_> = line.captures_iter(&refused).map(|found| found[1].to_owned()).collect();
    assert!(lines[0].starts_with("LSAT ") && lines[1].starts_with("L402 "), "{lines:?}");
    let offered = OfferedChallenge::read_all(lines.iter().map(String::as_bytes));
    let offered = offered.into_iter().find(|offered| offered.scheme == Scheme::L402).unwrap();
    let paid = json(&curl(&[
        "-u",
        &format!(":{}", text("wallet_password")),
        "-d",
        &format!("invoice={}", offered.invoice.unwrap()),
        &format!("{}/payinvoice", text("wallet_url")),
    ]));
    let preimage = paid["paymentPreimage"].as_str().unwrap_or_else(|| panic!("{paid}"));
    let served = curl(&["-i", "-H", &format!("Authorization: L402 {}:{preimage}", offered.token), &url]);
    assert!(served.starts_with("HTTP/1.1 200 OK") && served.contains("sunrise"), "{served}");

    // The same in one command; the second time it costs nothing.
    let get = |json: bool| {
        let mut command = Command::new(FAREBOX);
        command
            .args(if json { ["--json", "get"] } else { ["--human", "get"] })
            .arg(&url)
            .env("FAREBOX_JOURNAL", temporary.path().join("journal.sqlite"))
            .env("FAREBOX_WALLET_URL", text("wallet_url"))
            .env("FAREBOX_WALLET_PASSWORD", text("wallet_password"));
        output(&mut command)
    };
    assert_eq!(json(&get(false))["zone"], "UTC");
    let balance = || {
        let url = format!("{}/getbalance", text("wallet_url"));
        json(&curl(&["-u", &format!(":{}", text("wallet_password")), &url]))["balanceSat"].as_u64().unwrap()
    };
    let before = balance();
    let second = json(&get(true));
    assert_eq!(second["status"], 200, "{second}");
    assert_eq!(balance(), before, "the second call paid");

    let (code, _) = demo.interrupt();
    assert_eq!(code, Some(0));
}

/// Word by word, as a person would paste it; what it comes to is looked at in `demo.rs`.
#[test]
#[ignore = "live: needs curl and jq"]
fn the_walk_of_the_manual_can_be_pasted() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let page = std::fs::read_to_string(docs.join("concepts/what-one-payment-buys.md")).unwrap();
    let mut blocks = page.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let (start, walk) = (blocks.next().unwrap(), blocks.next().unwrap());
    assert_eq!(start, "farebox demo --config docs/farebox.demo.yaml --echo\n");

    let temporary = tempfile::tempdir().unwrap();
    let mut demo = Program::start(
        Command::new(FAREBOX)
            .args(["--json", "demo", "--echo", "--config"])
            .arg(docs.join("farebox.demo.yaml"))
            .env("TMPDIR", temporary.path()),
    );
    let open = (0..5).map(|_| demo.event()).last().unwrap();
    let script = format!("set -e\n. '{}'\n{walk}", open["buyer_file"].as_str().unwrap());
    let said = output(Command::new("sh").args(["-c", &script]).current_dir(temporary.path()));
    assert!(said.contains(r#""state":"paid""#) && said.contains(r#""refunded":50000"#), "{said}");
    assert_eq!(demo.interrupt().0, Some(0));
}

#[test]
#[ignore = "live: needs strace"]
fn the_demo_stays_on_loopback_and_writes_only_to_its_temporary_directory() {
    let temporary = tempfile::tempdir().unwrap();
    let log = tempfile::NamedTempFile::new().unwrap();
    let traced = Command::new("strace")
        .args(["-f", "-qq", "-e", "trace=connect,sendto,sendmsg,openat,creat,mkdir,mkdirat", "-o"])
        .arg(log.path())
        .args([FAREBOX, "demo", "--once"])
        .env("TMPDIR", temporary.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(traced.status.success(), "{traced:?}");
    let calls = std::fs::read_to_string(log.path()).unwrap();

    let address =
        Regex::new(r#"sin6?_addr=(?:inet_addr\("([^"]+)"\)|.*?inet_pton\(AF_INET6, "([^"]+)")"#).unwrap();
    let mut connections = 0;
    for found in address.captures_iter(&calls) {
        let address = found.get(1).or(found.get(2)).unwrap().as_str();
        assert!(address.starts_with("127.") || address == "::1", "talks to {address}");
        connections += 1;
    }
    assert!(connections > 10, "strace saw {connections} addresses: the pattern no longer fits");

    let written = Regex::new(r#"(?:openat\([^,]+, |creat\(|mkdir\(|mkdirat\([^,]+, )"([^"]+)"(.*)"#).unwrap();
    let mut inside = 0;
    for found in written.captures_iter(&calls) {
        let (path, rest) = (Path::new(found.get(1).unwrap().as_str()), &found[2]);
        let creates = found[0].contains("mkdir") || found[0].starts_with("creat") || rest.contains("O_CREAT");
        if creates {
            assert!(path.starts_with(temporary.path()), "writes {}", path.display());
            inside += 1;
        }
    }
    assert!(inside > 3, "strace saw {inside} files: the pattern no longer fits");
    assert!(std::fs::read_dir(temporary.path()).unwrap().next().is_none());
}
