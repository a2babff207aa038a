//! The guide for sellers with an lnd does what it says: its lines are run as they stand there.

use std::{fs, path::Path, process::Command};

use farebox_tests::{Challenge, Program, Upstream, ask_with, peers, regtest, until};

use crate::FAREBOX;

/// The first block in this language under the heading that begins so.
fn block(heading: &str, language: &str) -> String {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/selling-with-lnd.md");
    let guide = fs::read_to_string(guide).unwrap();
    let (_, section) = guide.split_once(&format!("\n## {heading}")).unwrap();
    let (_, block) = section.split_once(&format!("\n```{language}\n")).unwrap();
    block.split_once("\n```").unwrap().0.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: needs Go"]
async fn a_seller_who_follows_the_guide_sells() {
    let regtest = regtest().await;
    let lnd = &regtest.seller;
    let upstream = Upstream::start();
    let dir = tempfile::tempdir().unwrap();
    let programs = Path::new(FAREBOX).parent().unwrap().display().to_string();
    // What a shell on lnd's machine has, and what lncli takes for its flags.
    let shell = |script: &str| {
        let said = Command::new("bash")
            .args(["-euo", "pipefail", "-c", script])
            .current_dir(dir.path())
            .env("PATH", format!("{programs}:{}:/usr/bin:/bin", peers("lnd").display()))
            .env("HOME", lnd.dir())
            .env("LNCLI_LNDDIR", lnd.dir())
            .env("LNCLI_NETWORK", "regtest")
            .env("LNCLI_RPCSERVER", lnd.rpc())
            .output()
            .unwrap();
        assert!(said.status.success(), "{script}\n{said:?}");
        String::from_utf8(said.stdout).unwrap()
    };
    shell(&block("1.", "sh"));
    // The same, for coins that are worth nothing, an lnd of ours, and ports that are free.
    let here = format!(
        "    address: \"{}\"\n    tls-cert: {{ file: {} }}\n    macaroon:",
        lnd.rpc(),
        lnd.cert().display()
    );
    let config = block("2.", "yaml")
        .replace("network: mainnet", "network: regtest")
        .replace("    macaroon:", &here)
        .replace("127.0.0.1:3000", &upstream.addr.to_string());
    let ports = "listen: [\"127.0.0.1:0\"]\nops: 127.0.0.1:0\n";
    fs::write(dir.path().join("farebox.yaml"), format!("{config}\n{ports}")).unwrap();
    let found = shell(&block("3.", "sh"));
    assert!(found.contains(lnd.node()), "{found}");

    let serve = block("4.", "sh");
    let (program, arguments) = serve.split_once(' ').unwrap();
    assert_eq!(program, "farebox");
    let mut command = Command::new(FAREBOX);
    command.arg("--json").args(arguments.split(' ')).current_dir(dir.path()).env("FAREBOX_LOG", "warn");
    let mut gateway = Program::start(&mut command);
    let told = gateway.event();
    let ready = format!("{}/readyz", told["ops"].as_str().unwrap());
    until("the gateway can sell", async || reqwest::get(&ready).await.unwrap().status() == 200).await;
    let url = format!("http://{}/v1/weather", told["listen"][0].as_str().unwrap());
    let challenge = Challenge::ask(&url).await;
    let authorization = challenge.authorization(&regtest.buyer.pay(&challenge.invoice).await);
    assert_eq!(ask_with(&url, &authorization).await, (http::StatusCode::OK, "served /v1/weather".to_owned()));

    let list = block("5.", "sh");
    let hash = challenge.invoice.payment_hash().to_string();
    until("what was paid is on the list", async || shell(&list).contains(&hash)).await;
}
