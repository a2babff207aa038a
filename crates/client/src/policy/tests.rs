use expect_test::{Expect, expect};
use farebox_protocol::{Msat, Scheme};

use super::*;

const POLICY: &str = "
limits: { payment: 100sat, fee: 5sat, day: 1000sat, week: unlimited }
new-origins: ask
rules:
  - name: weather
    when: { origin: [https://api.example.com], path: [/v1/*], method: [get, HEAD] }
    then: allow
    limits: { payment: 20sat, hour: 50sat }
  - name: not the dear part
    when: { host: ['*.example.com'], path: [/v1/dear, /v1/dear/*] }
    then: deny
  - name: bots
    when: { label: [bot] }
    limits: { total: 0sat }
  - name: old scheme
    when: { scheme: [lsat] }
    then: ask
";

fn judge(url: &str, method: &str, label: Option<&str>, scheme: Scheme) -> Judgement {
    let url: reqwest::Url = url.parse().unwrap();
    let origin = Origin::of(&url).unwrap();
    let asked = Asked { origin: &origin, path: url.path(), method, label, scheme };
    Policy::parse(POLICY).unwrap().judge(&asked)
}

#[track_caller]
fn check(url: &str, want: Expect) {
    let Judgement { verdict, rule, .. } = judge(url, "GET", None, Scheme::L402);
    want.assert_eq(&format!("{verdict}, {}", rule.as_deref().unwrap_or("no rule")));
}

#[test]
fn the_strictest_of_the_rules_that_match_holds() {
    check("https://api.example.com/v1/now", expect!["allow, weather"]);
    check("https://api.example.com/v1/dear", expect!["deny, not the dear part"]);
    check("https://api.example.com/v1/dear/er", expect!["deny, not the dear part"]);
    check("https://api.example.com/v1/dearest", expect!["allow, weather"]);
    let old = judge("https://api.example.com/v1/now", "GET", None, Scheme::Lsat);
    assert_eq!((old.verdict, old.rule.as_deref()), (Verdict::Ask, Some("old scheme")));
}

#[test]
fn what_no_rule_is_for_is_asked_about() {
    for url in [
        "https://api.example.com/v2/now",
        "https://api.example.com:8443/v1/now",
        "http://api.example.com/v1/now",
        "https://example.com/v1/dear",
        "https://evilexample.com/v1/dear",
        "https://api.example.com.evil.test/v1/now",
    ] {
        check(url, expect!["ask, no rule"]);
    }
    assert_eq!(judge("https://api.example.com/v1/now", "POST", None, Scheme::L402).verdict, Verdict::Ask);
}

#[test]
fn a_path_of_two_readings_is_forbidden_by_both_and_permitted_by_none() {
    for path in [
        "//v1/now",
        "/v1//dear",
        "/v1/%2fdear",
        "/v1/x/%2e%2e%2fdear",
        "/v1%5cdear",
        "/v1/dear;x",
        "/v1/%252e",
        "/v1/dear%3fx",
        "/v1/dear%23x",
        "/v1/%ff",
        "/v1/%",
    ] {
        check(&format!("https://api.example.com{path}"), expect!["deny, not the dear part"]);
    }
    // What merely needn't be encoded has one reading.
    check("https://api.example.com/v1/%64ear", expect!["deny, not the dear part"]);
    check("https://api.example.com/v1/%6eow", expect!["allow, weather"]);
    check("https://api.example.com/v1/x/../dear", expect!["deny, not the dear part"]);
    check("https://api.example.com/v1/x/%2e%2e/dear", expect!["deny, not the dear part"]);
}

#[test]
fn every_cap_that_matches_binds() {
    let judged = judge("https://api.example.com/v1/now", "head", Some("bot"), Scheme::L402);
    assert_eq!(judged.payment, Some(Cap { rule: Some("weather".into()), most: Msat::new(20_000) }));
    assert_eq!(judged.fee, Some(Cap { rule: None, most: Msat::new(5_000) }));
    let budgets: Vec<_> = judged.budgets.iter().map(ToString::to_string).collect();
    assert_eq!(
        budgets,
        [
            "all payments: 1000 sat within a day",
            "rule \"weather\": 50 sat within an hour",
            "rule \"bots\": 0 sat in all"
        ]
    );
}

#[test]
fn a_host_stands_for_itself_whatever_its_case_and_final_dot() {
    check("https://API.example.com./v1/dear", expect!["deny, not the dear part"]);
    for bad in ["https://a.example", "a.example:8", "a/b", "", "*", "*.", "a.*", "u@a", "a b"] {
        assert!(bad.parse::<HostPattern>().is_err(), "{bad}");
    }
    for bad in ["v1", "", "/v1*", "/a/../b", "/%61", "/a//b", "/a?b", "/*/x"] {
        assert!(bad.parse::<PathPattern>().is_err(), "{bad}");
    }
}

#[test]
fn without_a_file_small_payments_are_allowed() {
    let policy = Policy::without_file();
    let origin: Origin = "https://a.example".parse().unwrap();
    let asked = Asked { origin: &origin, path: "/", method: "GET", label: None, scheme: Scheme::L402 };
    let judged = policy.judge(&asked);
    assert_eq!(judged.verdict, Verdict::Allow);
    assert_eq!(judged.payment.map(|cap| cap.most), Some(Msat::new(1_000_000)));
    assert_eq!(judged.budgets.len(), 1);
    assert_eq!(judged.budgets.first().map(|budget| budget.most), Some(Msat::new(10_000_000)));
}

#[test]
fn an_empty_file_asks_about_everything_within_the_usual_caps() {
    let policy = Policy::parse("{}").unwrap();
    assert_eq!(policy.otherwise, Verdict::Ask);
    assert_eq!(policy.caps, Policy::without_file().caps);
}

#[test]
fn what_is_not_understood_is_refused_with_its_line() {
    const AMOUNT: &str =
        "is not an amount; write a whole number and a unit, like `10sat` or `1500msat`, or `unlimited`";
    for (text, want) in [
        ("limits: { payment: 100 }", format!("is wrong in line 1: `100` {AMOUNT}")),
        ("limits: { payment: -1sat }", format!("is wrong in line 1: `-1sat` {AMOUNT}")),
        (
            "rules:\n  - name: a\n    than: deny",
            "is wrong in line 3: unknown field `than`, expected one of name, when, then, limits".to_owned(),
        ),
        (
            "rules:\n  - name: a\n    then: dney",
            "is wrong in line 3: unknown variant `dney`, expected one of allow, ask, deny".to_owned(),
        ),
        (
            "rules:\n  - name: a\n    when: { host: [] }\n    then: deny",
            "is wrong in line 3: the list is empty; write at least one, or remove the key".to_owned(),
        ),
        (
            "rules:\n  - name: a\n    when: { path: [v1] }\n    then: deny",
            "is wrong in line 3: `v1` is not a path; write `/v1/weather`, or `/v1/*` for all below it, as the server names it, \
             unencoded"
                .to_owned(),
        ),
        (
            "rules:\n  - name: a",
            "is wrong: the rule \"a\" does nothing; give it `then` or `limits`".to_owned(),
        ),
        (
            "rules: [{ name: a, then: deny }, { name: a, then: ask }]",
            "is wrong: two rules have the name \"a\"; their budgets would be one".to_owned(),
        ),
        (
            "rules: [{ name: '', then: deny }]",
            "is wrong: a rule has the name \"\"; write 1 to 64 characters".to_owned(),
        ),
    ] {
        assert_eq!(Policy::parse(text).unwrap_err().to_string(), want, "{text}");
    }
    let twice = Policy::parse("limits:\n  day: 1sat\n  day: 2sat").unwrap_err();
    assert_eq!(twice.line, 3);
    let key = format!("consents: \"v1:1:{}:{}\"\n", "0".repeat(32), "0".repeat(64));
    let twice = Policy::parse(&format!("otherwise: ask\n{key}{key}")).unwrap_err();
    assert_eq!((twice.line, &*twice.what), (3, "`consents` is written twice; keep one of them"));
}

#[test]
fn a_server_is_the_same_however_its_address_is_spelt() {
    for (written, asked) in [
        ("origin: [https://api.example.com]", "https://API.example.com./x"),
        ("origin: [https://api.example.com.]", "https://api.example.com/x"),
        ("origin: [https://10.0.0.1]", "https://[::ffff:10.0.0.1]/x"),
        ("host: ['[::ffff:a00:1]']", "https://0xa.1/x"),
        ("host: [10.0.0.1]", "https://[0::ffff:a00:1]:8443/x"),
        ("host: ['*.b\u{fc}cher.example']", "https://a.xn--bcher-kva.example./x"),
        ("host: [api.example.com]", "https://u:p@a%70i.example.com:99/x"),
    ] {
        let policy =
            format!("{{ otherwise: allow, rules: [{{ name: a, when: {{ {written} }}, then: deny }}] }}");
        let url: reqwest::Url = asked.parse().unwrap();
        let origin = Origin::of(&url).unwrap();
        let asked =
            Asked { origin: &origin, path: url.path(), method: "GET", label: None, scheme: Scheme::L402 };
        assert_eq!(Policy::parse(&policy).unwrap().judge(&asked).verdict, Verdict::Deny, "{written} {url}");
    }
}

#[test]
fn an_origin_with_more_than_an_origin_in_it_is_refused() {
    for bad in [
        "https://a.example/v1",
        "https://a.example/v1/*",
        "https://a.example?x",
        "https://a.example/#x",
        "https://u@a.example",
        "https://*.a.example",
        "a.example",
        "ftp://a.example",
    ] {
        let text = format!("rules: [{{ name: a, when: {{ origin: ['{bad}'] }}, then: allow }}]");
        let problem = Policy::parse(&text).unwrap_err();
        assert!(problem.what.contains("is not an origin; write"), "{bad}: {problem}");
    }
    assert!(
        Policy::parse("rules: [{ name: a, when: { origin: ['https://a.example:443/'] }, then: allow }]")
            .is_ok()
    );
}

#[test]
fn what_is_cut_short_or_left_blank_widens_nothing() {
    for bad in [
        "otherwise: allow\n---\nrules: [{ name: a, then: deny }]",
        "otherwise: allow\n...\nrules: [{ name: a, then: deny }]",
        "rules:\n  - name: a\n    when:\n    then: allow",
        "rules:\n  - name: a\n    when:\n      host:\n    then: allow",
        "rules:\n  - name: a\n    when: { method: ['GET '] }\n    then: deny",
        "rules:\n  - name: a\n    then:\n    limits: { day: 1sat }",
        "rules:\n  - name: a\n    then: allow\n    limits:",
        "limits: { payment: }",
        "limits:",
        "otherwise: allow\nrules: [{ name: a,",
    ] {
        assert!(Policy::parse(bad).is_err(), "{bad}: {:?}", Policy::parse(bad));
    }
    assert_eq!(Policy::parse("").unwrap_or_else(|_| Policy::parse("{}").unwrap()).otherwise, Verdict::Ask);
}

#[cfg(unix)]
#[test]
fn what_is_no_file_or_can_be_replaced_by_anybody_is_no_policy() {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Policy::read(dir.path()), Err(PolicyError::Unreadable { .. })));
    // An endless one, which a reader that trusts its length would read for ever.
    assert!(matches!(Policy::read("/dev/zero".as_ref()), Err(PolicyError::Unreadable { .. })));
    let (open, link) = (dir.path().join("open"), dir.path().join("link.yaml"));
    fs::create_dir(&open).unwrap();
    let path = open.join("policy.yaml");
    fs::write(&path, "otherwise: deny\n").unwrap();
    std::os::unix::fs::symlink(&path, &link).unwrap();
    for (mode, is_read) in [(0o777, false), (0o1777, true), (0o775, true)] {
        fs::set_permissions(&open, fs::Permissions::from_mode(mode)).unwrap();
        for path in [&path, &link] {
            let read = Policy::read(path);
            assert_eq!(matches!(read, Err(PolicyError::Replaceable { .. })), !is_read, "{mode:o} {read:?}");
        }
    }
}

#[cfg(unix)]
#[test]
fn a_policy_that_others_can_write_is_none() {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("policy.yaml");
    fs::write(&path, "otherwise: deny\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(Policy::read(&path).unwrap().otherwise, Verdict::Deny);
    for mode in [0o620, 0o602, 0o666] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        assert!(matches!(Policy::read(&path), Err(PolicyError::Exposed { .. })), "{mode:o}");
    }
    assert!(matches!(Policy::read(&dir.path().join("none")), Err(PolicyError::Unreadable { .. })));
}

#[test]
fn agents_call_private_servers_only_where_it_is_written() {
    let says = |text: &str| Policy::parse(text).map(|policy| policy.private_targets);
    assert_eq!(says("{}"), Ok(false));
    assert_eq!(says("private-targets: deny"), Ok(false));
    assert_eq!(says("private-targets: allow"), Ok(true));
    for wrong in ["private-targets: ask", "private-targets: true", "private-targets:"] {
        assert!(says(wrong).is_err(), "{wrong}");
    }
}
