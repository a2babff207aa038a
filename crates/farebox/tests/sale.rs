//! An API sold over real Lightning by the program itself: a gateway process, paid through the seller's node, bought from by
//! the buyer's. Killed as `kill -9` does where that is the point.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

use std::process::{Command, Stdio};

use farebox_protocol::Macaroon;
use farebox_tests::{Challenge, Seller, ask_with, net};
use regex::Regex;

const FAREBOX: &str = env!("CARGO_BIN_EXE_farebox");

#[tokio::test(flavor = "multi_thread")]
async fn what_was_paid_for_outlives_a_killed_gateway() {
    let seller = Seller::new(FAREBOX, "");
    let (gateway, url) = seller.serve();
    let authorization = Challenge::ask(&url).await.pay().await;
    let (status, _) = ask_with(&url, &authorization).await;
    assert_eq!(status, 200);
    // Paid before the kill, first used after it.
    let unused = Challenge::ask(&url).await;
    let unused = unused.pay().await;
    gateway.kill();

    let (_gateway, url) = seller.serve();
    for authorization in [&authorization, &unused] {
        let (status, body) = ask_with(&format!("{url}/again"), authorization).await;
        assert_eq!((status.as_u16(), body.as_str()), (200, "served /again"));
    }
    assert_eq!(seller.upstream.served(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_client_finds_a_challenge_it_can_read() {
    let seller = Seller::new(FAREBOX, "");
    let (_gateway, url) = seller.serve();
    let challenge = Challenge::ask(&url).await;

    // The oldest clients look at the first line only, with this very pattern.
    let old = Regex::new(r#"(LSAT|L402) macaroon="(.*?)", invoice="(.*?)""#).unwrap();
    let found = old.captures(&challenge.lines[0]).unwrap();
    assert_eq!((&found[2], &found[3]), (challenge.token.as_str(), challenge.invoice.as_str()));
    // The current specification wants these three parameters, in any order.
    let line = &challenge.lines[1];
    assert!(line.starts_with("L402 "), "{line}");
    for parameter in [
        r#"version="0""#,
        &format!(r#"token="{}""#, challenge.token),
        &format!(r#"invoice="{}""#, challenge.invoice),
    ] {
        assert!(line.contains(parameter), "no `{parameter}` in {line}");
    }
    let identifier = Macaroon::from_base64(&challenge.token).unwrap().identifier().unwrap();
    assert_eq!(identifier.payment_hash, challenge.invoice.payment_hash());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preimage_that_pays_something_else_opens_nothing() {
    let seller = Seller::new(FAREBOX, "");
    let (_gateway, url) = seller.serve();
    let (one, other) = (Challenge::ask(&url).await, Challenge::ask(&url).await);
    let preimage = net().pay(&one.invoice).await;
    let (status, body) = ask_with(&url, &other.authorization(&preimage)).await;
    assert_eq!(status, 401, "{body}");
    let (status, _) = ask_with(&url, &one.authorization(&preimage)).await;
    assert_eq!(status, 200);
    assert_eq!(seller.upstream.served(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_is_challenged_again_while_the_gateway_runs() {
    let seller = Seller::new(FAREBOX, "");
    let (_gateway, url) = seller.serve();
    let challenge = Challenge::ask(&url).await;
    let authorization = challenge.pay().await;
    assert_eq!(ask_with(&url, &authorization).await.0, 200);

    let state = seller.dir.path().join("state");
    let revoke = Command::new(FAREBOX)
        .args(["token", "revoke", &challenge.token, "--state-dir", &state.display().to_string()])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(revoke.status.success(), "{revoke:?}");
    // The gateway reads revocations once a second; until then the token still passes.
    let revoked = async {
        while ask_with(&url, &authorization).await.0 == 200 {
            tokio::task::yield_now().await;
        }
        ask_with(&url, &authorization).await
    };
    let (status, body) = tokio::time::timeout(std::time::Duration::from_secs(30), revoked).await.unwrap();
    assert_eq!(status, 402);
    assert!(body.contains("token_revoked"), "{body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_on_another_network_honours_no_regtest_token() {
    let seller = Seller::new(FAREBOX, "");
    let (gateway, url) = seller.serve();
    let authorization = Challenge::ask(&url).await.pay().await;
    assert_eq!(ask_with(&url, &authorization).await.0, 200);
    drop(gateway);

    // The same mint secret and the same service, on testnet. Its node can't reach a chain, which stops new sales only.
    let config = seller.dir.path().join("farebox.yaml");
    let text = std::fs::read_to_string(&config).unwrap();
    let (before, after) = (text.find("lightning:").unwrap(), text.find("services:").unwrap());
    let node =
        "lightning:\n  embedded:\n    network: testnet\n    chain: { esplora: \"http://127.0.0.1:1\" }\n";
    let other = format!("{}{node}{}", &text[..before], &text[after..]).replace("regtest", "testnet");
    std::fs::write(&config, other).unwrap();
    let (_gateway, url) = seller.serve();
    let served = seller.upstream.served();
    let (status, body) = ask_with(&url, &authorization).await;
    assert_ne!(status, 200, "{body}");
    assert_eq!(seller.upstream.served(), served, "test coins opened a testnet service");
}
