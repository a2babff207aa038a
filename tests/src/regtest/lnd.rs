//! One lnd: starting and stopping it, and what tests ask of it, over its REST interface.
//!
//! That is another way than the gateway's own, so that a mistake in the one doesn't hide in the other.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use farebox_protocol::{Invoice, PaymentHash, Preimage};
use parking_lot::Mutex;
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    chain::{Chain, RPC_USER},
    leash::{Leash, tail},
    ports::port,
    until,
};
use crate::peers;

/// The password of wallets that have one.
const PASSWORD: &str = "wallet password";

/// A Lightning node. It ends with its owner.
pub struct Lnd {
    name: String,
    dir: PathBuf,
    ports: Ports,
    wallet: Wallet,
    /// What it is told besides its ports.
    arguments: Vec<String>,
    node: String,
    http: reqwest::Client,
    leash: Mutex<Option<Leash>>,
}

/// Where it listens. The same for as long as it is, stopped or not.
#[derive(Clone, Copy)]
struct Ports {
    rpc: u16,
    rest: u16,
    peer: u16,
}

/// Whether a node needs somebody to unlock it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wallet {
    /// It opens by itself.
    Open,
    /// It is locked after every start.
    Locked,
}

/// Why a node did not answer as it should: what it said.
#[derive(Debug)]
pub struct Refused(pub String);

impl Lnd {
    /// Starts a new node in `dir`, and waits until its wallet is open. See [`Self::introduce`].
    pub(super) async fn create(
        name: &str,
        dir: PathBuf,
        chain: &Chain,
        wallet: Wallet,
        more: &[&str],
    ) -> Self {
        // The only provider that is compiled in; an error says that somebody has installed it before.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            // On loopback, and a test may replace the certificate at any time.
            .danger_accept_invalid_certs(true)
            // Tests end with their runtimes, and would leave dead connections to those after them.
            .pool_max_idle_per_host(0)
            .build()
            .unwrap();
        std::fs::create_dir_all(&dir).unwrap();
        let mut arguments = vec![
            format!("--lnddir={}", dir.display()),
            "--bitcoin.regtest".to_owned(),
            "--bitcoin.node=btcd".to_owned(),
            format!("--btcd.rpchost={}", chain.rpc()),
            format!("--btcd.rpcuser={RPC_USER}"),
            format!("--btcd.rpcpass={RPC_USER}"),
            format!("--btcd.rpccert={}", chain.cert().display()),
            format!("--alias={name}"),
            "--debuglevel=warn".to_owned(),
            "--protocol.wumbo-channels".to_owned(),
            // Quick: blocks come when we want them, and a peer that was stopped is back soon.
            "--bitcoin.defaultchanconfs=1".to_owned(),
            "--nobootstrap".to_owned(),
            "--trickledelay=50".to_owned(),
            "--minbackoff=100ms".to_owned(),
            "--maxbackoff=1s".to_owned(),
        ];
        if wallet == Wallet::Open {
            arguments.push("--noseedbackup".to_owned());
        }
        arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        loop {
            let ports = Ports { rpc: port(), rest: port(), peer: port() };
            let lnd = Self {
                name: name.to_owned(),
                dir: dir.clone(),
                ports,
                wallet,
                arguments: arguments.clone(),
                node: String::new(),
                http: http.clone(),
                leash: Mutex::new(None),
            };
            if !lnd.run().await {
                continue;
            }
            if wallet == Wallet::Locked {
                lnd.init_wallet().await;
            }
            until(&format!("{name} has a wallet"), async || {
                matches!(lnd.state().await.as_str(), "RPC_ACTIVE" | "SERVER_ACTIVE")
            })
            .await;
            return lnd;
        }
    }

    /// Waits until it can be asked anything, for which it needs a chain with blocks, and asks it who it is.
    pub(super) async fn introduce(&mut self) {
        self.until_serving().await;
        let info = self.get("/v1/getinfo").await;
        info["identity_pubkey"].as_str().unwrap().clone_into(&mut self.node);
    }

    /// Its public key, in hexadecimal digits.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Where it speaks gRPC: `127.0.0.1:PORT`.
    pub fn rpc(&self) -> String {
        format!("127.0.0.1:{}", self.ports.rpc)
    }

    /// Where it speaks REST: `https://127.0.0.1:PORT`.
    pub fn rest(&self) -> String {
        format!("https://127.0.0.1:{}", self.ports.rest)
    }

    /// Where other nodes reach it.
    pub(super) fn peer(&self) -> String {
        format!("127.0.0.1:{}", self.ports.peer)
    }

    /// Its certificate, as a PEM file.
    pub fn cert(&self) -> PathBuf {
        self.dir.join("tls.cert")
    }

    /// One of the macaroons that it makes by itself: `admin`, `invoice`, `readonly`, `router`, …
    pub fn macaroon(&self, name: &str) -> PathBuf {
        self.dir.join("data/chain/bitcoin/regtest").join(format!("{name}.macaroon"))
    }

    /// Where everything of it lies.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.leash.lock().as_ref().map(Leash::pid)
    }

    /// The command `lncli` with what it needs to speak to this node.
    pub fn lncli(&self) -> std::process::Command {
        let mut lncli = std::process::Command::new(peers("lnd").join("lncli"));
        lncli.arg(format!("--lnddir={}", self.dir.display())).args(["--network", "regtest"]);
        lncli.arg(format!("--rpcserver={}", self.rpc())).env("HOME", &self.dir);
        lncli
    }

    /// Stops it and waits until it has ended.
    pub async fn stop(&self) {
        let leash = self.leash.lock().take();
        leash.expect("it runs").end().await;
    }

    /// Starts it after a stop, and waits until it can be asked anything.
    pub async fn start(&self) {
        self.start_locked().await;
        if self.wallet == Wallet::Locked {
            self.unlock().await;
        }
        self.until_serving().await;
    }

    /// Starts it after a stop, and waits until it answers at all. A wallet that has a password is locked then.
    pub async fn start_locked(&self) {
        assert!(self.run().await, "a port of {} has been taken", self.name);
    }

    /// Unlocks the wallet. It takes a moment until the node can be asked anything: [`until_serving`](Self::until_serving).
    pub async fn unlock(&self) {
        let password = json!({ "wallet_password": STANDARD.encode(PASSWORD) });
        self.ask_bare(Method::POST, "/v1/unlockwallet", &password).await.unwrap();
    }

    /// Waits until it can be asked anything.
    pub async fn until_serving(&self) {
        until(&format!("{} serves", self.name), async || self.state().await == "SERVER_ACTIVE").await;
    }

    /// Waits until it has seen all blocks.
    pub(super) async fn until_synced(&self, chain: &Chain) {
        let height = chain.height().await;
        until(&format!("{} is synced", self.name), async || {
            let info = self.get("/v1/getinfo").await;
            info["synced_to_chain"] == true && info["block_height"].as_u64().unwrap() >= height
        })
        .await;
    }

    /// How it is: `LOCKED`, `UNLOCKED`, `RPC_ACTIVE`, `SERVER_ACTIVE`, or nothing while it doesn't answer.
    pub async fn state(&self) -> String {
        let state = self.ask_bare(Method::GET, "/v1/state", &Value::Null).await;
        state.map_or_else(|_| String::new(), |state| state["state"].as_str().unwrap().to_owned())
    }

    /// Throws certificate and key away while it is stopped: it makes new ones at its next start.
    pub fn drop_certificate(&self) {
        assert!(self.leash.lock().is_none(), "it reads them only at its start");
        std::fs::remove_file(self.cert()).unwrap();
        std::fs::remove_file(self.dir.join("tls.key")).unwrap();
    }

    /// Pays an invoice, at any fee.
    pub async fn pay(&self, invoice: &Invoice) -> Preimage {
        self.try_pay(invoice).await.unwrap_or_else(|refused| panic!("not paid: {}", refused.0))
    }

    /// Pays an invoice; what the node said, if it did not.
    pub async fn try_pay(&self, invoice: &Invoice) -> Result<Preimage, Refused> {
        let payment = json!({
            "payment_request": invoice.as_str(),
            "timeout_seconds": 60,
            "fee_limit_msat": "1000000",
            "no_inflight_updates": true,
        });
        settled(&self.ask(Method::POST, "/v2/router/send", &payment).await?)
    }

    /// Pays for an invoice with another amount than it says, as no ordinary wallet would.
    pub async fn try_pay_amount(&self, invoice: &Invoice, msat: u64) -> Result<Preimage, Refused> {
        let said = self.get(&format!("/v1/payreq/{}", invoice.as_str())).await;
        let destination = hex::decode(said["destination"].as_str().unwrap()).unwrap();
        let hash = invoice.payment_hash();
        let payment = json!({
            "dest": STANDARD.encode(destination),
            "payment_hash": STANDARD.encode(hash.as_bytes()),
            "payment_addr": said["payment_addr"],
            "amt_msat": msat.to_string(),
            "final_cltv_delta": said["cltv_expiry"].as_str().unwrap().parse::<i32>().unwrap(),
            // That it reads the payment address, and takes a payment in parts.
            "dest_features": [9, 15, 17],
            "timeout_seconds": 60,
            "fee_limit_msat": "1000000",
            "no_inflight_updates": true,
        });
        settled(&self.ask(Method::POST, "/v2/router/send", &payment).await?)
    }

    /// Makes an invoice of its own, as another business of its owner would.
    pub async fn invoice(&self, msat: u64, memo: &str) -> Invoice {
        let wanted = json!({ "value_msat": msat.to_string(), "memo": memo });
        let made = self.ask(Method::POST, "/v1/invoices", &wanted).await.unwrap();
        made["payment_request"].as_str().unwrap().parse().unwrap()
    }

    /// Makes an invoice whose payment is held until it is cancelled: nobody here has the preimage.
    pub async fn hold_invoice(&self, hash: PaymentHash, msat: u64) -> Invoice {
        let wanted = json!({ "hash": STANDARD.encode(hash.as_bytes()), "value_msat": msat.to_string() });
        let made = self.ask(Method::POST, "/v2/invoices/hodl", &wanted).await.unwrap();
        made["payment_request"].as_str().unwrap().parse().unwrap()
    }

    /// Cancels an invoice: what was paid for it goes back.
    pub async fn cancel_invoice(&self, hash: PaymentHash) {
        let which = json!({ "payment_hash": STANDARD.encode(hash.as_bytes()) });
        self.ask(Method::POST, "/v2/invoices/cancel", &which).await.unwrap();
    }

    /// Whether an invoice of its own has been paid.
    pub async fn is_settled(&self, invoice: &Invoice) -> bool {
        let said = self.get(&format!("/v1/invoice/{}", hex::encode(invoice.payment_hash().as_bytes()))).await;
        said["state"] == "SETTLED"
    }

    /// What paying for an invoice of its own will reveal: whoever may read its invoices knows that before.
    pub async fn preimage(&self, invoice: &Invoice) -> Preimage {
        let said = self.get(&format!("/v1/invoice/{}", hex::encode(invoice.payment_hash().as_bytes()))).await;
        let preimage = STANDARD.decode(said["r_preimage"].as_str().unwrap()).unwrap();
        Preimage::from_bytes(preimage.try_into().unwrap())
    }

    /// How many invoices it has on its books, in whatever state. Of a node that others use too, that may fall at any time.
    pub async fn invoices(&self) -> usize {
        const PAGE: u32 = 10_000;
        let (mut count, mut offset) = (0, "0".to_owned());
        loop {
            let page = self.get(&format!("/v1/invoices?num_max_invoices={PAGE}&index_offset={offset}")).await;
            let on_page = page["invoices"].as_array().map_or(0, Vec::len);
            if on_page == 0 {
                return count;
            }
            count += on_page;
            offset = page["last_index_offset"].as_str().unwrap().to_owned();
        }
    }

    /// Asks `path` for what it shows to its administrator.
    pub async fn get(&self, path: &str) -> Value {
        self.ask(Method::GET, path, &Value::Null)
            .await
            .unwrap_or_else(|refused| panic!("{path}: {}", refused.0))
    }

    /// Asks anything of its REST interface as its administrator. Of an answer in several parts, the last.
    pub async fn ask(&self, method: Method, path: &str, body: &Value) -> Result<Value, Refused> {
        let macaroon = std::fs::read(self.macaroon("admin")).map_err(|error| Refused(error.to_string()))?;
        let request = self.http.request(method, format!("{}{path}", self.rest()));
        answer(request.header("Grpc-Metadata-macaroon", hex::encode(macaroon)), body).await
    }

    /// The same without a macaroon: before there is one.
    async fn ask_bare(&self, method: Method, path: &str, body: &Value) -> Result<Value, Refused> {
        answer(self.http.request(method, format!("{}{path}", self.rest())), body).await
    }

    /// Starts the program and waits until it answers; `false` if it can't have its ports.
    async fn run(&self) -> bool {
        let Ports { rpc, rest, peer } = self.ports;
        let mut arguments = self.arguments.clone();
        arguments.push(format!("--rpclisten=127.0.0.1:{rpc}"));
        arguments.push(format!("--restlisten=127.0.0.1:{rest}"));
        arguments.push(format!("--listen=127.0.0.1:{peer}"));
        let log = self.log();
        let mut leash = Leash::start(&peers("lnd").join("lnd"), &arguments, &self.dir, &log);
        let mut is_up = false;
        until(&format!("{} answers", self.name), async || {
            if leash.has_ended() {
                return true;
            }
            is_up = !matches!(self.state().await.as_str(), "" | "WAITING_TO_START");
            is_up
        })
        .await;
        let said = tail(&log);
        assert!(is_up || said.contains("address already in use"), "lnd has ended\n{said}");
        if is_up {
            *self.leash.lock() = Some(leash);
        }
        is_up
    }

    async fn init_wallet(&self) {
        let seed = self.ask_bare(Method::GET, "/v1/genseed", &Value::Null).await.unwrap();
        let wallet = json!({
            "wallet_password": STANDARD.encode(PASSWORD),
            "cipher_seed_mnemonic": seed["cipher_seed_mnemonic"],
        });
        self.ask_bare(Method::POST, "/v1/initwallet", &wallet).await.unwrap();
    }

    pub(super) fn log(&self) -> PathBuf {
        self.dir.join("log")
    }
}

impl Drop for Lnd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", tail(&self.log()));
        }
    }
}

/// The proof in an answer to a payment.
fn settled(answer: &Value) -> Result<Preimage, Refused> {
    let payment = &answer["result"];
    if payment["status"] != "SUCCEEDED" {
        return Err(Refused(answer.to_string()));
    }
    Ok(Preimage::from_hex(payment["payment_preimage"].as_str().unwrap()).unwrap())
}

async fn answer(request: reqwest::RequestBuilder, body: &Value) -> Result<Value, Refused> {
    // The longest that a payment may take, and a little more.
    let request = request.timeout(Duration::from_secs(90));
    let request = if body.is_null() { request } else { request.json(body) };
    let refused = |error: reqwest::Error| Refused(error.to_string());
    let response = request.send().await.map_err(refused)?;
    let status = response.status();
    let text = response.text().await.map_err(refused)?;
    if !status.is_success() {
        return Err(Refused(text));
    }
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last).map_err(|error| Refused(format!("{error}: {text}")))
}
