//! The command line as people meet it: help, exit codes, tokens.

use std::path::Path;

use expect_test::expect;
use farebox_protocol::{Credential, Identifier, Macaroon, MintSecret, Network, Preimage, Scheme, TokenId};

use crate::common::{Ran, run, run_with_input};

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn farebox(args: &[&str]) -> Ran {
    run(here(), args, &[])
}

fn secret() -> MintSecret {
    MintSecret::from_bytes([1; 32])
}

fn credential() -> Credential {
    let preimage = Preimage::from_bytes([7; 32]);
    let identifier =
        Identifier { payment_hash: preimage.payment_hash(), token_id: TokenId::from_bytes([9; 32]) };
    let key = secret().root_key(Network::Regtest, &identifier);
    let caveats = [
        "services=weather:0".to_owned(),
        "weather_valid_until=1000000000".to_owned(),
        "farebox_terms=v1;offer=duration;secs=3600;msat=10000".to_owned(),
    ];
    Credential { tokens: vec![Macaroon::mint(&key, &identifier, &caveats)], preimage }
}

const PREIMAGE: &str = "0707070707070707070707070707070707070707070707070707070707070707";

/// The commands below one, as its help lists them.
fn commands_below(help: &str) -> Vec<&str> {
    let Some((_, list)) = help.split_once("\nCommands:\n") else { return Vec::new() };
    let list = list.split("\n\n").next().unwrap_or_default();
    // A line that goes on with a description is indented further.
    let names = list.lines().filter_map(|line| line.strip_prefix("  ")).filter(|line| !line.starts_with(' '));
    names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").collect()
}

#[test]
fn every_command_shows_examples() {
    let whole = farebox(&["--help"]).stdout;
    let commands = commands_below(&whole);
    for known in ["serve", "get", "ledger", "refund", "mcp"] {
        assert!(commands.contains(&known), "`{known}` is not in {commands:?}");
    }
    assert!(whole.contains("Examples:\n  "));
    for command in commands {
        let ran = farebox(&[command, "--help"]);
        assert_eq!(ran.code, 0, "{command}");
        assert!(ran.stdout.contains("Examples:\n  "), "{command}: {}", ran.stdout);
        for below in commands_below(&ran.stdout) {
            assert_eq!(farebox(&[command, below, "--help"]).code, 0, "{command} {below}");
        }
    }
}

#[test]
fn a_command_line_that_makes_no_sense_is_exit_code_2() {
    for args in [
        &[][..],
        &["sevre"],
        &["serve", "--price", "10"],
        &["serve", "--config", "x.yaml", "--upstream", "http://127.0.0.1:1"],
        &["token", "attenuate", "x"],
        &["token", "attenuate", "x", "--expires", "0s"],
        #[cfg(feature = "embedded")]
        &["node", "--network", "regtest", "--esplora", "foo"],
        &["node", "--network", "regtest"],
        &["check", "--json", "--human"],
    ] {
        let ran = farebox(args);
        assert_eq!(ran.code, 2, "{args:?}: {}", ran.stderr);
    }
}

#[test]
fn the_version_is_for_people_and_for_programs() {
    let version = env!("CARGO_PKG_VERSION");
    assert!(farebox(&["version", "--human"]).stdout.starts_with(&format!("farebox {version} (")));
    let json: serde_json::Value = serde_json::from_str(&farebox(&["version"]).stdout).unwrap();
    assert_eq!(json["version"], version);
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let ran = farebox(&["completions", shell]);
        assert_eq!(ran.code, 0);
        assert!(ran.stdout.contains("attenuate"), "{shell}");
    }
}

#[test]
fn inspecting_a_credential_explains_it_and_hides_the_preimage() {
    let header = credential().header_value(Scheme::L402);
    let ran = run_with_input(here(), &["token", "inspect", "-", "--human"], &header);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let since = regex::Regex::new("over since [^)]*").unwrap();
    expect![[r#"
        payment hash     4bb06f8e4e3a7715d201d573d0aa423762e55dabd61a2c02278fa56cc6d294e0
        token id         0909090909090909090909090909090909090909090909090909090909090909
        identifier hash  ae6baaf54f8cb9caaea4b343274dd0895a436531804981ea407479300e3adbd5
        caveats          services=weather:0
                           opens `weather`
                         weather_valid_until=1000000000
                           `weather` until 2001-09-09 01:46:40 UTC (over since ever)
                         farebox_terms=v1;offer=duration;secs=3600;msat=10000
                           was sold for 10 sat, for 1 h
        EXPIRED          2001-09-09 01:46:40 UTC
        preimage         given, and it is the one that was paid for (hidden)

        Read, not verified: only the seller's key can tell whether it is genuine.
    "#]]
    .assert_eq(&since.replace(&ran.stdout, "over since ever"));
    assert!(!ran.stdout.contains(PREIMAGE));
}

#[test]
fn inspecting_for_programs_is_json() {
    let token = credential().tokens[0].to_base64();
    let json: serde_json::Value =
        serde_json::from_str(&farebox(&["token", "inspect", &token]).stdout).unwrap();
    let identifier = credential().tokens[0].identifier().unwrap();
    assert_eq!(json["tokens"][0]["identifier_hash"], identifier.hash().to_string());
    assert_eq!(json["tokens"][0]["valid_until"], 1_000_000_000);
    assert_eq!(json["tokens"][0]["expired"], true);
    assert_eq!(json["preimage"], "absent");
}

#[test]
fn an_attenuated_credential_is_still_genuine_and_says_more() {
    let header = credential().header_value(Scheme::L402);
    let args =
        ["token", "attenuate", "-", "--method", "get", "--path", "/v1", "--client", "10.1.2.3/8", "--human"];
    let ran = run_with_input(here(), &args, &header);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let (token, preimage) = ran.stdout.trim().strip_prefix("L402 ").unwrap().split_once(':').unwrap();
    assert_eq!(preimage, PREIMAGE);
    let token = Macaroon::from_base64(token).unwrap();
    token.verify(&secret().root_key(Network::Regtest, &token.identifier().unwrap())).unwrap();
    let added: Vec<&str> = token.caveats().skip(3).collect();
    assert_eq!(added, ["farebox_method=GET", "farebox_path=/v1", "farebox_client=10.0.0.0/8"]);
}

#[test]
fn attenuating_a_bare_token_gives_a_bare_token() {
    let token = credential().tokens[0].to_base64();
    let ran = farebox(&["token", "attenuate", &token, "--expires", "1h", "--human"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let narrowed = Macaroon::from_base64(ran.stdout.trim()).unwrap();
    assert!(narrowed.caveats().last().unwrap().starts_with("farebox_valid_until="));
}

#[test]
fn a_caveat_that_would_kill_the_token_is_not_added() {
    let token = credential().tokens[0].to_base64();
    for (caveat, want) in [
        ("farebox_terms=v1;offer=forever;msat=1", "for the mint alone"),
        ("farebox_moon=full", "no condition that farebox knows"),
        ("services=weather:0,gold:0", "wider"),
        ("nonsense", "condition=value"),
    ] {
        let ran = farebox(&["token", "attenuate", &token, "--caveat", caveat]);
        assert_eq!(ran.code, 1, "{caveat}");
        assert!(ran.stderr.contains(want), "{caveat}: {}", ran.stderr);
    }
}

#[test]
fn a_broken_token_is_refused_without_being_repeated() {
    let header = credential().header_value(Scheme::L402).replacen("Ag", "Ax", 1);
    let ran = run_with_input(here(), &["token", "inspect", "-"], &header);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
    assert!(!ran.stderr.contains("0707"), "{}", ran.stderr);
}
