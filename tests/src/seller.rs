//! A gateway as a real process, in front of an [`Upstream`], paid through the wallet door of the network's seller.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use farebox_lightning::sim::{Net, NetConfig, NetStorage};
use farebox_protocol::{Invoice, OfferedChallenge, Preimage, Scheme};
use http::{HeaderMap, StatusCode};
use reqwest::header;
use serde_json::Value;
use tempfile::TempDir;

use crate::{Lnd, Program, Upstream, net, until};

/// One listener, wherever the system has a port.
const ANY_PORT: &str = "[\"127.0.0.1:0\"]";
/// Everything for 10 sat.
const ONE_SERVICE: &str = "  - name: api
    upstream: http://UPSTREAM
    price: 10sat
";

/// A seller's machine: configuration, state and upstream. The gateway on it can be started, killed and started again.
pub struct Seller {
    /// What is sold.
    pub upstream: Upstream,
    /// Where configuration and state are.
    pub dir: TempDir,
    farebox: PathBuf,
    /// Where the gateway's own node is, if it has one.
    home: Option<TempDir>,
}

/// What an unpaid request was told.
pub struct Challenge {
    /// The lines of the challenge, as sent.
    pub lines: Vec<String>,
    /// The token, as sent.
    pub token: String,
    /// What to pay.
    pub invoice: Invoice,
}

impl Seller {
    /// A seller with the program at `farebox` who sells everything for 10 sat and is paid through the door of the
    /// network's seller; `extra` is added to the configuration.
    pub fn new(farebox: &str, extra: &str) -> Self {
        Self::with_services(farebox, ANY_PORT, &format!("{ONE_SERVICE}{extra}"))
    }

    /// The same with these listeners and these services, and whatever stands behind them, as they are written in the
    /// configuration. `UPSTREAM` stands for the address of the seller's [`Upstream`].
    pub fn with_services(farebox: &str, listen: &str, services: &str) -> Self {
        let lightning =
            format!("phoenixd: {{ url: {}, password: {{ file: DIR/password }} }}", net().seller.url);
        let seller = Self::with_lightning(farebox, &lightning, listen, services);
        let password = seller.dir.path().join("password");
        fs::write(&password, &net().seller.password).unwrap();
        fs::set_permissions(&password, fs::Permissions::from_mode(0o600)).unwrap();
        seller
    }

    /// The same paid through a real lnd, of which the gateway may use what `macaroon` allows.
    pub fn with_lnd(farebox: &str, lnd: &Lnd, macaroon: &Path, extra: &str) -> Self {
        let services = format!("{ONE_SERVICE}{extra}");
        Self::with_lightning(farebox, &lnd_settings(lnd, macaroon), ANY_PORT, &services)
    }

    /// The same with these listeners and these services; the gateway may use what lnd's own `invoice.macaroon` allows.
    pub fn over_lnd(farebox: &str, lnd: &Lnd, listen: &str, services: &str) -> Self {
        Self::with_lightning(farebox, &lnd_settings(lnd, &lnd.macaroon("invoice")), listen, services)
    }

    /// The same with a Lightning node inside the gateway, and a buyer with a channel to it: a network of its own.
    pub async fn with_own_node(farebox: &str, extra: &str) -> (Self, Net) {
        let home = tempfile::tempdir().unwrap();
        let storage = NetStorage::Directory(home.path().to_owned());
        let net = Net::start(NetConfig { storage, ..NetConfig::default() }).await.unwrap();
        // The channel is made; from here on the gateway's process runs this node.
        net.seller.stop().await;
        let lightning = format!(
            "embedded: {{ dir: {}/seller, listen: \"{}\", chain: {{ esplora: \"{}\" }} }}",
            home.path().display(),
            net.seller_addr,
            net.esplora_url(),
        );
        let mut seller =
            Self::with_lightning(farebox, &lightning, ANY_PORT, &format!("{ONE_SERVICE}{extra}"));
        seller.home = Some(home);
        (seller, net)
    }

    fn with_lightning(farebox: &str, lightning: &str, listen: &str, services: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let upstream = Upstream::start();
        let lightning = lightning.replace("DIR", &dir.path().display().to_string());
        let services = services.replace("UPSTREAM", &upstream.addr.to_string());
        let config = format!(
            "network: regtest
listen: {listen}
ops: 127.0.0.1:0
state-dir: {dir}/state
lightning:
  {lightning}
services:
{services}",
            dir = dir.path().display(),
        );
        fs::write(dir.path().join("farebox.yaml"), config).unwrap();
        Self { upstream, dir, farebox: farebox.into(), home: None }
    }

    /// The status with which `url` answers somebody who has not paid.
    pub async fn status(url: &str) -> u16 {
        reqwest::get(url).await.unwrap().status().as_u16()
    }

    /// Where the gateway's own node keeps what it has.
    pub fn node_dir(&self) -> Option<PathBuf> {
        self.home.as_ref().map(|home| home.path().join("seller"))
    }

    /// Starts the gateway: the process and its address, like `http://127.0.0.1:40000`.
    pub fn serve(&self) -> (Program, String) {
        let (program, addrs) = self.serve_all();
        (program, format!("http://{}", addrs[0]))
    }

    /// Starts the gateway: the process and the addresses of all its listeners.
    pub fn serve_all(&self) -> (Program, Vec<SocketAddr>) {
        let (program, listening) = self.serve_told();
        let addrs = serde_json::from_value(listening["listen"].clone());
        (program, addrs.unwrap_or_else(|error| panic!("no addresses in {listening}: {error}")))
    }

    /// Starts the gateway, and waits until it can sell: when it begins to listen it may not have spoken to its node yet. The
    /// process and the addresses of all its listeners.
    pub async fn serve_ready(&self) -> (Program, Vec<SocketAddr>) {
        let (program, listening) = self.serve_told();
        let ready = format!("{}/readyz", listening["ops"].as_str().unwrap());
        until("the gateway can sell", async || Self::status(&ready).await == 200).await;
        let addrs = serde_json::from_value(listening["listen"].clone());
        (program, addrs.unwrap_or_else(|error| panic!("no addresses in {listening}: {error}")))
    }

    /// Starts the gateway: the process and what it says of itself once it listens.
    pub fn serve_told(&self) -> (Program, Value) {
        let config = self.dir.path().join("farebox.yaml");
        let mut program = Program::start(
            Command::new(&self.farebox)
                .args(["--json", "serve", "--config"])
                .arg(config)
                .env("FAREBOX_LOG", "warn"),
        );
        let listening = program.event();
        (program, listening)
    }
}

/// How a gateway is told of a node.
fn lnd_settings(lnd: &Lnd, macaroon: &Path) -> String {
    let (address, cert, macaroon) = (lnd.rpc(), lnd.cert(), macaroon.display());
    format!(
        "lnd: {{ address: \"{address}\", tls-cert: {{ file: {} }}, macaroon: {{ file: {macaroon} }} }}",
        cert.display()
    )
}

impl Challenge {
    /// Asks for `url` without paying.
    pub async fn ask(url: &str) -> Self {
        let response = reqwest::get(url).await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        assert_eq!(status, StatusCode::PAYMENT_REQUIRED, "{}", response.text().await.unwrap());
        Self::read(&headers)
    }

    /// What stands in the headers of an answer.
    pub fn read(headers: &HeaderMap) -> Self {
        let lines: Vec<String> = headers
            .get_all(header::WWW_AUTHENTICATE)
            .iter()
            .map(|value| value.to_str().unwrap().to_owned())
            .collect();
        let offered = OfferedChallenge::read_all(lines.iter().map(String::as_bytes));
        let offered = offered.into_iter().find(|offered| offered.scheme == Scheme::L402).unwrap();
        let invoice = offered.invoice.unwrap().parse().unwrap();
        Self { lines, token: offered.token, invoice }
    }

    /// Pays with the buyer's node: the whole value of the `Authorization` header.
    pub async fn pay(&self) -> String {
        self.authorization(&net().pay(&self.invoice).await)
    }

    /// The credential that this token and `preimage` make.
    pub fn authorization(&self, preimage: &Preimage) -> String {
        format!("L402 {}:{}", self.token, *preimage.expose_hex())
    }
}

/// Asks for `url` with a credential: status and body.
pub async fn ask_with(url: &str, authorization: &str) -> (StatusCode, String) {
    let request = reqwest::Client::new().get(url).header(header::AUTHORIZATION, authorization);
    let response = request.send().await.unwrap();
    (response.status(), response.text().await.unwrap())
}

/// Connects the buyer of `net` to the gateway's own node and waits until `url` asks for payment.
pub async fn until_selling(net: &Net, url: &str) {
    let (node, addr) = (net.seller.node_id(), net.seller_addr);
    let selling = async {
        while reqwest::get(url).await.unwrap().status() != StatusCode::PAYMENT_REQUIRED {
            // Refused until the gateway's node listens; afterwards it does nothing.
            let _ = net.buyer.with_ldk(move |buyer| buyer.connect(node, addr.into(), true)).await.unwrap();
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), selling).await.unwrap();
}
