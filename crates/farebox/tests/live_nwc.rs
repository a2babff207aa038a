//! A wallet behind a Nostr relay, by other people's library (nostr-tools): its events, signatures and encryption judge ours, in
//! both encryptions. Real money moves: behind it is a real LDK node of the simulated network.
//!
//! The relay is a minimal one of ours; relays that misbehave are in the tests of the `lightning` crate.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt as _,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use farebox_lightning::{
    Ask, Pay as _,
    clock::{Clock as _, SystemClock},
    conformance::{self, Bad},
    embedded::Minter,
    nwc::{Encryption, Nwc, NwcConfig},
    phoenixd::Secret,
};
use farebox_protocol::{Msat, Network, Timestamp};
use farebox_tests::{Scripts, Seller, net};
use serde_json::{Value, json};

const FAREBOX: &str = env!("CARGO_BIN_EXE_farebox");

/// The wallet and its relay, as long as this lives.
struct Wallet {
    child: Child,
    uri: String,
}

impl Wallet {
    fn start(encryption: &str) -> Self {
        let door = &net().buyer;
        let mut command = Scripts::install("nwc").command("wallet.mjs");
        command.args([&door.url, encryption]).env("PASSWORD", &door.password);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("Node.js is needed: {error}"));
        let mut uri = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut uri).unwrap();
        assert!(uri.starts_with("nostr+walletconnect://"), "the wallet did not come up");
        Self { child, uri: uri.trim().to_owned() }
    }

    async fn connect(&self) -> Nwc {
        Nwc::connect(NwcConfig::new(Secret::new(self.uri.as_str())), Arc::new(SystemClock)).await.unwrap()
    }
}

impl Drop for Wallet {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn pays_as_every_backend_must(encryption: &str, want: Encryption) {
    let wallet = Wallet::start(encryption);
    let nwc = wallet.connect().await;
    assert_eq!(nwc.encryption(), want);
    let ask = Ask {
        amount: Msat::new(1_000),
        expiry: std::time::Duration::from_secs(600),
        description: "weather".to_owned(),
    };
    let seller = &net().net.seller;
    let stranger = |network| Minter::new(&[9; 64], network).unwrap().mint(&ask, SystemClock.now()).unwrap();
    let bad = Bad {
        expired: seller.minter().mint(&ask, Timestamp::from_secs(1_700_000_000)).unwrap(),
        foreign: stranger(Network::Signet),
        unreachable: stranger(Network::Regtest),
    };
    conformance::pay(&nwc, &**seller, bad).await;
    let (hash, is_proven) = nwc.latest_payment().await.unwrap().expect("it has just paid");
    assert!(is_proven, "the list shows the proof of {hash}");
    let budget = nwc.budget().await.unwrap().expect("this wallet has one");
    assert!(budget.used > Msat::ZERO && budget.used < budget.total);
    assert!(nwc.balance().await.unwrap() > Msat::ZERO);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: needs Node.js"]
async fn a_wallet_of_nostr_tools_pays_as_every_backend_must() {
    pays_as_every_backend_must("nip44", Encryption::Nip44).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: needs Node.js"]
async fn a_wallet_of_nostr_tools_with_the_old_encryption_pays_as_every_backend_must() {
    pays_as_every_backend_must("nip04", Encryption::Nip04).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "live: needs Node.js"]
async fn farebox_get_buys_with_a_wallet_of_nostr_tools() {
    let wallet = Wallet::start("nip44");
    let home = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = home.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    };
    file("nwc.uri", &wallet.uri);
    let named =
        file("wallet.yaml", "nwc: { uri: { file: nwc.uri }, network: regtest, fee-worst: 1% + 5sat }");
    let farebox = |arguments: &[&str]| {
        let mut command = Command::new(FAREBOX);
        command.args(arguments).arg("--wallet").arg(&named);
        for variable in ["HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"] {
            command.env(variable, home.path());
        }
        let said = command.stdin(Stdio::null()).output().unwrap();
        let errors = String::from_utf8(said.stderr).unwrap();
        assert!(said.status.success(), "{errors}");
        let shown = String::from_utf8(said.stdout).unwrap() + &errors;
        assert!(!shown.contains(wallet.uri.rsplit('=').next().unwrap()), "the connection is shown: {shown}");
        shown
    };
    let check = || -> Value { serde_json::from_str(&farebox(&["wallet", "check", "--json"])).unwrap() };

    let told = check();
    assert_eq!((&told["kind"], &told["network"]), (&json!("nwc"), &json!("regtest")));
    assert_eq!((&told["returns_preimages"], &told["proves_unsent"]), (&json!("unknown"), &json!(false)));
    assert_eq!((&told["nwc"]["encryption"], &told["nwc"]["can_look_up"]), (&json!("nip44"), &json!(true)));
    assert_eq!(told["nwc"]["budget_used_msat"], 0);

    let seller = Seller::new(FAREBOX, "");
    let (_gateway, url) = seller.serve();
    for _ in 0..2 {
        assert!(farebox(&["get", &format!("{url}/v1/sun")]).starts_with("served /v1/sun"));
    }
    let told = check();
    assert_eq!(told["returns_preimages"], "yes", "the payment of the journal was looked up: {told}");
    assert_eq!(told["nwc"]["budget_used_msat"], 10_000, "it was paid once");
    let nwc = wallet.connect().await;
    let hash = told["looked_up"].as_str().unwrap().parse().unwrap();
    assert_eq!(nwc.latest_payment().await.unwrap(), Some((hash, true)));
}
