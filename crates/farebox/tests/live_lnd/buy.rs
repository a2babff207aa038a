//! `farebox get` pays with a lnd of the buyer's own, named in a file.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use farebox_tests::{Seller, regtest};
use serde_json::Value;

use crate::{FAREBOX, sale::open};

fn farebox(home: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(FAREBOX);
    command.args(arguments).env_clear().env("HOME", home).env("NO_PROXY", "*");
    command.output().unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: needs Go"]
async fn farebox_get_pays_with_the_buyers_own_lnd() {
    let regtest = regtest().await;
    let seller = Seller::with_lnd(FAREBOX, &regtest.seller, &regtest.seller.macaroon("invoice"), "");
    let (_gateway, url) = open(&seller).await;
    let home = tempfile::tempdir().unwrap();
    let buyer = &regtest.buyer;
    let wallet = home.path().join("wallet.yaml");
    let settings = format!(
        "lnd:\n  address: {}\n  network: regtest\n  tls-cert: {{ file: {} }}\n  macaroon: {{ file: {} }}\n",
        buyer.rpc(),
        buyer.cert().display(),
        buyer.macaroon("admin").display(),
    );
    fs::write(&wallet, settings).unwrap();
    let wallet = wallet.to_str().unwrap();

    let checked = json(&farebox(home.path(), &["wallet", "check", "--wallet", wallet]));
    assert_eq!((&checked["kind"], &checked["returns_preimages"]), (&"lnd".into(), &"unknown".into()));
    assert_eq!(checked["wallet"], format!("lnd:{}", buyer.node()));

    let bought = farebox(home.path(), &["get", "--wallet", wallet, &url]);
    assert_eq!(bought.stdout, b"served /", "{bought:?}");
    let again = farebox(home.path(), &["--json", "get", &url]);
    assert_eq!(json(&again)["paid"], false, "bought once, and no wallet is needed for it");

    let checked = json(&farebox(home.path(), &["wallet", "check", "--wallet", wallet]));
    assert_eq!(checked["returns_preimages"], "yes");
    let purse = json(&farebox(home.path(), &["budget"]));
    assert_eq!(purse["overruns"], serde_json::json!([]));
}
