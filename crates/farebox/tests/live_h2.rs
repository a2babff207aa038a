//! h2spec, which tries what no honest HTTP/2 client does, against the gateway and against hyper with nothing around it.
//!
//! The gateway may fail only what is listed in `tests/peers/h2spec/known.txt` with a reason, and what hyper itself fails.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
};

use farebox_tests::{Authority, Seller, bare_hyper, peers};
use regex::Regex;

const FAREBOX: &str = env!("CARGO_BIN_EXE_farebox");
const KNOWN: &str = "../../tests/peers/h2spec/known.txt";
/// How many cases there are, the strict ones included.
const CASES: usize = 146;

/// What fails at `addr`: `SECTION: NAME`.
fn failures(addr: SocketAddr, flags: &[&str]) -> BTreeSet<String> {
    let report = tempfile::NamedTempFile::new().unwrap();
    let mut command = Command::new(peers("h2spec").join("h2spec"));
    command
        .args(["--strict", "--timeout", "3", "--host", &addr.ip().to_string()])
        .args(["--port", &addr.port().to_string(), "--junit-report"])
        .arg(report.path())
        .args(flags)
        .stdin(Stdio::null());
    // Its exit code says only whether something failed.
    let said = command.output().unwrap();
    let report = fs::read_to_string(report.path()).unwrap();
    let case = Regex::new(r#"(?s)<testcase package="([^"]*)" classname="([^"]*)"[^>]*>(.*?)</testcase>"#);
    let cases: Vec<_> = case.unwrap().captures_iter(&report).collect();
    assert_eq!(cases.len(), CASES, "h2spec has other cases than expected, or broke off: {said:?}");
    let has_failed = |outcome: &str| outcome.contains("<error") || outcome.contains("<failure");
    cases
        .iter()
        .filter(|case| has_failed(&case[3]))
        .map(|case| format!("{}: {}", &case[1], case[2].replace("&#34;", "\"").replace("&amp;", "&")))
        .collect()
}

/// What is listed for this kind of connection; each entry has a reason.
fn known(kind: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(KNOWN)).unwrap();
    let mut lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).peekable();
    let mut known = BTreeSet::new();
    while let Some(line) = lines.next() {
        let (of, case) = line.split_once(' ').unwrap();
        assert!(matches!(of, "clear" | "tls") && case.contains(": "), "cannot read `{line}`");
        let is_reason = |line: &&str| line.starts_with(' ');
        assert!(lines.next_if(is_reason).is_some(), "`{case}` has no reason");
        while lines.next_if(is_reason).is_some() {}
        if of == kind {
            known.insert(case.to_owned());
        }
    }
    known
}

#[test]
#[ignore = "live: needs Go"]
fn the_gateway_fails_nothing_that_hyper_itself_does_not() {
    let authority = Authority::new();
    let listen = format!(
        "[\"127.0.0.1:0\", {{ addr: \"127.0.0.1:0\", tls: {{ cert: {}, key: {} }} }}]",
        authority.cert().display(),
        authority.key().display(),
    );
    let free = "  - name: api
    upstream: http://UPSTREAM
    auth: off
";
    let seller = Seller::with_services(FAREBOX, &listen, free);
    let (_gateway, addrs) = seller.serve_all();
    for (kind, gateway, bare, flags) in [
        ("clear", addrs[0], bare_hyper(None), &[][..]),
        ("tls", addrs[1], bare_hyper(Some(&authority)), &["--tls", "--insecure"][..]),
    ] {
        let known = known(kind);
        let mut ours = failures(gateway, flags);
        // Some cases are a race between an answer and the next odd frame, which on a busy machine hyper itself loses at
        // times. What is a failure fails each time.
        for _ in 0..2 {
            if !ours.is_subset(&known) {
                ours = &ours & &failures(gateway, flags);
            }
        }
        let hypers = failures(bare, flags);
        println!("{kind}: {CASES} cases; the gateway fails {ours:?}, hyper {hypers:?}");
        let beyond: Vec<_> = ours.difference(&hypers).collect();
        assert!(beyond.is_empty(), "{kind}: hyper itself passes {beyond:?}");
        let new: Vec<_> = ours.difference(&known).collect();
        assert!(new.is_empty(), "{kind}: not in {KNOWN}: {new:?}");
        let passed: Vec<_> = known.difference(&ours).collect();
        assert!(passed.is_empty(), "{kind}: passes now, strike it off {KNOWN}: {passed:?}");
    }
    println!("{} requests were passed on", seller.upstream.served());
    assert!(seller.upstream.served() > CASES / 2, "many cases are about requests that are answered");
}
