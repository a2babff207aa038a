//! Wrong configurations: `serve` must not start on any of them, and must say which line and key is wrong and what to do.
//!
//! Each `bad-config/NAME.yaml` has its complaint in `NAME.expect`; `UPDATE_EXPECT=1 cargo test` writes them anew.

use std::{collections::BTreeSet, fs, path::Path};

use expect_test::{expect, expect_file};
use tempfile::TempDir;

use crate::common::run;

/// A secret that no complaint may repeat, and others to fill places.
const VARIABLES: [(&str, &str); 4] = [
    ("FAREBOX_TEST_SECRET", "5ec4e75ec4e75ec4e75ec4e75ec4e75ec4e75ec4e75ec4e75ec4e75ec4e75ec4"),
    ("FAREBOX_TEST_SET_A", "a"),
    ("FAREBOX_TEST_SET_B", "b"),
    ("FAREBOX_TEST_SET_C", "c"),
];

fn directory() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bad-config"))
}

fn cases() -> Vec<String> {
    let names =
        fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut cases: Vec<_> = names.filter_map(|name| Some(name.strip_suffix(".yaml")?.to_owned())).collect();
    cases.sort();
    cases
}

#[test]
fn serve_starts_on_no_wrong_configuration() {
    let cases = cases();
    assert!(cases.len() > 60);
    for case in cases {
        let file = format!("{case}.yaml");
        let ran = run(directory(), &["serve", "--config", &file], &VARIABLES);
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{case}: {}", ran.stderr);
        assert!(!ran.stderr.contains("5ec4e7") && !ran.stderr.contains("hunter2"), "{case} shows a secret");
        expect_file![directory().join(format!("{case}.expect"))].assert_eq(&ran.stderr);
    }
}

#[test]
fn what_requests_cost_may_stand_beside_a_pass_that_can_be_limited_in_money() {
    let without = fs::read_to_string(directory().join("cost-without-credit.yaml")).unwrap();
    let temporary = TempDir::new().unwrap();
    let with = format!("{without}    capabilities: [{{ name: read, methods: [GET] }}]\n");
    fs::write(temporary.path().join("farebox.yaml"), with).unwrap();
    let ran = run(temporary.path(), &["check"], &[]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
}

#[test]
fn every_complaint_names_its_line_and_key() {
    for case in cases() {
        let complaints = fs::read_to_string(directory().join(format!("{case}.expect"))).unwrap();
        for complaint in complaints.lines() {
            let start = format!("error: {case}.yaml:");
            let rest = complaint.strip_prefix(&start).unwrap_or_else(|| panic!("{case}: {complaint}"));
            let line = rest.split(':').next().unwrap();
            assert!(line.parse::<u32>().is_ok(), "{case} names no line: {complaint}");
        }
    }
}

#[test]
fn check_says_the_same_as_serve_of_what_is_wrong_everywhere() {
    for case in cases() {
        let file = format!("{case}.yaml");
        let checked = run(directory(), &["check", "--human", &file], &VARIABLES);
        let served = fs::read_to_string(directory().join(format!("{case}.expect"))).unwrap();
        // What is only missing here is a note there; there may be more notes.
        let said: BTreeSet<&str> =
            checked.stdout.lines().map(|line| line.trim_start_matches("note: ")).collect();
        for complaint in served.lines() {
            let alone = complaint.trim_start_matches("error: ");
            assert!(said.contains(complaint) || said.contains(alone), "{case}: {}", checked.stdout);
        }
    }
}

#[test]
fn what_is_only_missing_here_is_a_note_for_check() {
    for case in [
        "header-file-missing",
        "listen-certificate-missing",
        "mint-secret-not-set",
        "upstream-ca-unreadable",
        "variable-not-set",
    ] {
        let checked = run(directory(), &["check", "--human", &format!("{case}.yaml")], &VARIABLES);
        assert_eq!(checked.code, 0, "{case}: {}", checked.stdout);
        assert!(checked.stdout.starts_with("note: "), "{case}: {}", checked.stdout);
    }
}

#[test]
fn a_configuration_full_of_unset_variables_can_be_checked() {
    let directory = TempDir::new().unwrap();
    let text = "\
network: ${A}
listen: [\"${B}\"]
ops: ${C}
trusted-proxies: [\"${D}\"]
lightning:
  phoenixd:
    url: ${E}
    password:
      text: ${F}
minting:
  invoice-expiry: ${G}
  per-client: ${H}
  unknown-caveats: ${I}
limits:
  connections: ${J}
  header-size: ${K}
services:
  - name: ${L}
    hosts: [\"${M}\"]
    methods: [\"${N}\"]
    paths: [\"${O}\"]
    upstream: ${P}
    price: ${Q}
    offer: ${R}
  - name: second
    hosts: [\"${S}\"]
    upstream:
      url: ${T}
      host: ${U}
      idle-timeout: ${V}
    auth: ${W}
";
    fs::write(directory.path().join("farebox.yaml"), text).unwrap();
    let ran = run(directory.path(), &["check", "--human"], &[]);
    assert_eq!(ran.code, 0, "{}", ran.stdout);
    for name in 'A'..='W' {
        assert!(ran.stdout.contains(&format!("environment variable `{name}` is not set")), "{}", ran.stdout);
    }
    // What is wrong beside them is still found.
    fs::write(directory.path().join("farebox.yaml"), text.replace("idle-timeout", "idle-timeuot")).unwrap();
    let ran = run(directory.path(), &["check", "--human"], &[]);
    assert_eq!(ran.code, 1);
    assert!(ran.stdout.contains("did you mean `idle-timeout`?"), "{}", ran.stdout);
}

#[test]
fn check_speaks_json_to_programs() {
    let ran = run(directory(), &["check", "auth-misspelt.yaml"], &VARIABLES);
    let named = run(directory(), &["check", "--config", "auth-misspelt.yaml"], &VARIABLES);
    assert_eq!(named.stdout, ran.stdout, "other commands name it so");
    assert_eq!(ran.code, 1);
    expect![[r#"
        {"file":"auth-misspelt.yaml","valid":false,"services":[],"sold":[],"errors":[{"line":11,"column":11,"key":"services[0].auth","message":"`onn` is not known here; did you mean `on`? It can be `on` or `off`"}],"notes":[]}
    "#]]
    .assert_eq(&ran.stdout);
}

#[test]
fn a_configuration_that_is_not_there_is_named() {
    let ran = run(directory(), &["serve", "--config", "nowhere.yaml"], &[]);
    assert_eq!(ran.code, 1);
    expect![[r#"
        error: nowhere.yaml: cannot read the configuration: No such file or directory (os error 2); name another file
    "#]]
    .assert_eq(&ran.stderr);
}

#[test]
fn a_live_check_tells_what_answers_and_what_does_not() {
    let directory = tempfile::tempdir().unwrap();
    let api = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    // Bound and never listening again: nobody takes connections there.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (api, away) = (api.local_addr().unwrap(), nobody.local_addr().unwrap());
    drop(nobody);
    let text = format!(
        "network: regtest
lightning: {{ phoenixd: {{ url: 'http://{away}', password: {{ text: hush }} }} }}
services:
  - {{ name: a, price: 1sat, upstream: 'http://{api}', paths: [/a] }}
  - {{ name: b, price: 1sat, upstream: 'http://{away}' }}
"
    );
    std::fs::write(directory.path().join("farebox.yaml"), text).unwrap();
    let told = run(directory.path(), &["check", "--live", "--json"], &[]);
    assert_eq!(told.code, 1, "{told:?}");
    assert!(!told.stdout.contains("hush"));
    let report: serde_json::Value = serde_json::from_str(&told.stdout).unwrap();
    let live: Vec<_> =
        report["live"].as_array().unwrap().iter().map(|found| (&found["what"], &found["ok"])).collect();
    let (is_up, is_down) = (serde_json::json!(true), serde_json::json!(false));
    let (api, away) =
        (serde_json::json!(format!("http://{api}")), serde_json::json!(format!("http://{away}")));
    assert_eq!(live, [(&"phoenixd".into(), &is_down), (&api, &is_up), (&away, &is_down)]);
}
