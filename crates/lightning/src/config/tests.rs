//! What a `lightning:` part means, and what is said of one that means nothing.

use expect_test::{Expect, expect};
use serde_json::json;

use super::*;

#[track_caller]
fn check(config: serde_json::Value, want: &Expect) {
    let got = match serde_json::from_value::<LightningConfig>(config) {
        Ok(config) => match config.check() {
            Ok(()) => format!("{config:?}"),
            Err(problem) => problem.to_string(),
        },
        Err(error) => error.to_string(),
    };
    want.assert_eq(&got);
}

#[test]
fn a_secret_in_the_wrong_place_is_not_repeated() {
    let read = |password| {
        let config = json!({ "phoenixd": { "password": password } });
        serde_json::from_value::<LightningConfig>(config).map_err(|error| error.to_string())
    };
    for password in [
        json!("4242"),
        json!(4242),
        json!(-4242),
        json!(4242.5),
        json!({ "4242": null }),
        json!({ "text": "a", "4242": "b" }),
        json!({ "env": "A", "file": "4242" }),
    ] {
        let said = read(password).unwrap_err();
        assert!(said.starts_with("a secret is written as `{ file:") && !said.contains("4242"), "{said}");
    }
    for password in [json!({ "env": "A" }), json!({ "file": "a" }), json!({ "text": "a" })] {
        read(password).unwrap();
    }
}

#[test]
fn the_least_that_must_be_said_of_a_node() {
    check(
        json!({ "embedded": { "chain": { "esplora": "https://mempool.space/api" } } }),
        &expect![[
            r#"Embedded(EmbeddedSettings { network: Mainnet, chain: Esplora("https://mempool.space/api"), dir: None, seed_file: None, listen: None, alias: None, rapid_gossip: None })"#
        ]],
    );
    check(
        json!({ "lnd": {} }),
        &expect![[
            r#"Lnd(LndSettings { address: "127.0.0.1:10009", network: Mainnet, tls_cert: None, macaroon: None, private_hints: false, open_invoices_max: 65536, call_timeout: 10s })"#
        ]],
    );
    check(
        json!({ "phoenixd": { "password": { "file": "phoenixd.password" } } }),
        &expect![[
            r#"Phoenixd(PhoenixdSettings { url: "http://127.0.0.1:9740", password: File("phoenixd.password") })"#
        ]],
    );
}

#[test]
fn passwords_do_not_show() {
    check(
        json!({ "embedded": { "network": "signet", "chain": { "bitcoind": { "user": "me", "password": { "text": "hunter2" } } } } }),
        &expect![[
            r#"Embedded(EmbeddedSettings { network: Signet, chain: Bitcoind(BitcoindSettings { host: "127.0.0.1", port: None, user: "me", password: Text(Secret(..)), rest_port: None }), dir: None, seed_file: None, listen: None, alias: None, rapid_gossip: None })"#
        ]],
    );
}

#[test]
fn a_key_or_value_that_means_nothing_is_refused_by_name() {
    check(
        json!({ "embedded": { "chain": { "esplora": "https://x" }, "seedfile": "s" } }),
        &expect![
            "unknown field `seedfile`, expected one of `network`, `chain`, `dir`, `seed-file`, `listen`, `alias`, `rapid-gossip`"
        ],
    );
    check(
        json!({ "embedded": { "network": "main", "chain": { "esplora": "https://x" } } }),
        &expect!["`main` is not a network; write `mainnet`, `testnet`, `signet` or `regtest`"],
    );
    check(
        json!({ "lightningd": {} }),
        &expect!["unknown variant `lightningd`, expected one of `embedded`, `lnd`, `phoenixd`, `backends`"],
    );
    check(
        json!({ "lnd": { "tls-cert": "tls.cert" } }),
        &expect!["unknown variant `tls.cert`, expected one of `file`, `authority`, `system`"],
    );
    check(
        json!({ "lnd": { "call-timeout": "10" } }),
        &expect!["`10` is not a time; write something like `500ms`, `10s` or `5m`"],
    );
    check(json!({ "embedded": {} }), &expect!["missing field `chain`"]);
    check(json!({ "phoenixd": {} }), &expect!["missing field `password`"]);
}

#[test]
fn several_nodes_are_a_list_of_single_ones() {
    let list = |backends: serde_json::Value| json!({ "backends": backends });
    let phoenixd = |password: &str| json!({ "phoenixd": { "password": { "env": password } } });
    check(list(json!([])), &expect!["`backends` lists 0 nodes; list one to eight"]);
    check(list(json!(vec![phoenixd("P"); 9])), &expect!["`backends` lists 9 nodes; list one to eight"]);
    check(
        list(json!([list(json!([phoenixd("P")]))])),
        &expect!["`backends` can't be listed in `backends`; list the nodes themselves"],
    );
    let two: LightningConfig = serde_json::from_value(list(json!([phoenixd("P"), phoenixd("Q")]))).unwrap();
    assert_eq!(two.check(), Ok(()));
    let kinds: Vec<_> = two.backends().iter().map(LightningConfig::kind).collect();
    assert_eq!((kinds, two.kind()), (vec!["phoenixd", "phoenixd"], "backends"));
    assert_eq!(two.backends()[0].backends().len(), 1, "one is a list of itself");
}

#[test]
fn what_could_not_work_is_refused() {
    let embedded = |key: &str, value: &str| {
        let mut settings = json!({ "chain": { "esplora": "https://x" } });
        settings[key] = json!(value);
        json!({ "embedded": settings })
    };
    check(
        json!({ "embedded": { "chain": { "esplora": "ssl://me:hunter2@host" } } }),
        &expect!["`host` in `esplora` doesn't begin with one of `https://`, `http://`"],
    );
    check(
        json!({ "embedded": { "chain": { "electrum": "https://host" } } }),
        &expect!["`https://host` in `electrum` doesn't begin with one of `ssl://`, `tcp://`"],
    );
    for address in ["localhost", "https://me:hunter2@host:10009", "::1:10009", ":10009", "host:0"] {
        let settings = json!({ "lnd": { "address": address } });
        let problem = serde_json::from_value::<LightningConfig>(settings).unwrap().check().unwrap_err();
        assert!(matches!(problem, ConfigProblem::Address { .. }), "{address}");
        assert!(!problem.to_string().contains("hunter2"));
    }
    check(
        json!({ "lnd": { "address": "[::1]:10009", "call-timeout": "1ms" } }),
        &expect!["`call-timeout` is 1 ms; write a time from `100ms` to `5m`"],
    );
    check(
        embedded("alias", "shop"),
        &expect!["`alias` needs `listen`: a node that nobody can connect to is not announced"],
    );
    check(
        embedded("listen", "0.0.0.0:0"),
        &expect!["`listen` has port 0; peers must know the port, usually 9735"],
    );
    check(
        embedded("rapid-gossip", "rapidsync.lightningdevkit.org"),
        &expect![
            "`rapidsync.lightningdevkit.org` in `rapid-gossip` doesn't begin with one of `https://`, `http://`"
        ],
    );
}
