//! Two processes on one simulated chain, and a seller that dies at the worst moment: money is booked once, not lost, not
//! doubled. The child is this test program itself, told by its environment to be the seller.
#![expect(clippy::unwrap_used, reason = "a test stops at what it didn't expect")]

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use farebox_lightning::embedded::ldk_node::bitcoin::address::NetworkUnchecked;
use farebox_lightning::embedded::ldk_node::bitcoin::{Address, ScriptBuf};
use farebox_lightning::embedded::{ChainSource, EmbeddedConfig, EmbeddedNode, Seed, Storage};
use farebox_lightning::sim::{Chain, EsploraServer};
use farebox_lightning::{Ask, Outcome, Pay, PayRequest, Receive};
use farebox_protocol::{Invoice, Msat, Network};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);
/// Tells the child its directory, chain and address.
const ROLE: &str = "FAREBOX_TEST_SELLER";

fn config(url: &str, storage: Storage, seed: Seed, listen: Option<SocketAddr>) -> EmbeddedConfig {
    EmbeddedConfig {
        network: Network::Regtest,
        chain: ChainSource::Esplora { url: url.into() },
        storage,
        seed,
        listen,
        alias: None,
        rapid_gossip: None,
        sync_every: None,
    }
}

/// The seller's process: answers each line of its input with a line. As a test of its own it does nothing.
#[tokio::test]
async fn seller_process() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let [dir, url, listen] = role.split(' ').collect::<Vec<_>>().try_into().unwrap();
    let dir = Path::new(dir);
    let storage = Storage::Directory(dir.to_owned());
    let seed = Seed::File(dir.join("seed"));
    let node = EmbeddedNode::start(config(url, storage, seed, Some(listen.parse().unwrap()))).await.unwrap();
    // Waiting for a line blocks nobody: the node has a thread of its own.
    for line in std::io::stdin().lines() {
        let answer = match line.unwrap().as_str() {
            "id" => node.node_id().to_string(),
            "address" => {
                node.with_ldk(|node| node.onchain_payment().new_address()).await.unwrap().unwrap().to_string()
            }
            "sync" => node.sync().await.map(|()| "synced".to_owned()).unwrap(),
            "invoice" => {
                let ask = Ask {
                    amount: Msat::new(9_000),
                    expiry: Duration::from_secs(600),
                    description: "x".into(),
                };
                node.invoice(ask).await.unwrap().to_string()
            }
            _ => break,
        };
        println!("seller says {answer}");
    }
    node.stop().await;
}

struct Seller {
    child: Child,
    stdin: ChildStdin,
    stdout: Lines<BufReader<ChildStdout>>,
}

impl Seller {
    fn start(dir: &Path, url: &str, listen: SocketAddr, failpoint: Option<&str>) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "seller_process", "--nocapture"])
            .env(ROLE, format!("{} {url} {listen}", dir.display()))
            .env_remove("FAREBOX_FAILPOINT")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        if let Some(failpoint) = failpoint {
            command.env("FAREBOX_FAILPOINT", failpoint);
        }
        let mut child = command.spawn().unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, stdin, stdout }
    }

    async fn ask(&mut self, what: &str) -> String {
        let answer = async {
            self.stdin.write_all(format!("{what}\n").as_bytes()).await.unwrap();
            loop {
                let line = self.stdout.next_line().await.unwrap().expect("the seller answers");
                // The test harness may have begun the line with words of its own.
                if let Some((_, answer)) = line.split_once("seller says ") {
                    return answer.to_owned();
                }
            }
        };
        timeout(PATIENCE, answer).await.unwrap()
    }

    async fn dies(mut self) {
        let status = timeout(PATIENCE, self.child.wait()).await.unwrap().unwrap();
        assert!(!status.success(), "killed, not stopped");
    }

    async fn stops(mut self) {
        self.stdin.write_all(b"stop\n").await.unwrap();
        let status = timeout(PATIENCE, self.child.wait()).await.unwrap().unwrap();
        assert!(status.success());
    }
}

struct World {
    chain: std::sync::Arc<Chain>,
    buyer: std::sync::Arc<EmbeddedNode>,
}

impl World {
    async fn mine(&self, seller: &mut Seller, blocks: u32) {
        self.chain.mine(blocks, &ScriptBuf::new_op_return([])).unwrap();
        self.buyer.sync().await.unwrap();
        seller.ask("sync").await;
    }

    async fn open_channel(&self, seller: &mut Seller, listen: SocketAddr) {
        let address: Address<NetworkUnchecked> = seller.ask("address").await.parse().unwrap();
        self.chain.mine(1, &address.assume_checked().script_pubkey()).unwrap();
        let address =
            self.buyer.with_ldk(|node| node.onchain_payment().new_address()).await.unwrap().unwrap();
        self.chain.mine(1, &address.script_pubkey()).unwrap();
        self.mine(seller, 100).await;
        let id = seller.ask("id").await.parse().unwrap();
        let opened =
            self.buyer.with_ldk(move |node| node.open_channel(id, listen.into(), 1_000_000, None, None));
        opened.await.unwrap().unwrap();
        until(async || self.chain.waiting() > 0).await;
        self.mine(seller, 6).await;
        self.usable_channel().await;
    }

    async fn connect(&self, seller: &mut Seller, listen: SocketAddr) {
        let id = seller.ask("id").await.parse().unwrap();
        self.buyer.with_ldk(move |node| node.connect(id, listen.into(), true)).await.unwrap().unwrap();
        self.usable_channel().await;
    }

    async fn usable_channel(&self) {
        until(async || {
            self.buyer.with_ldk(|node| node.list_channels().iter().any(|c| c.is_usable)).await.unwrap()
        })
        .await;
    }
}

async fn until(mut done: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap();
}

fn booked(dir: &Path) -> Vec<u64> {
    let db = rusqlite::Connection::open(dir.join("payments.sqlite")).unwrap();
    let mut query = db.prepare("SELECT amount_msat FROM received").unwrap();
    query.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
}

/// A seller and a buyer with a channel, the seller with a failpoint.
struct Scene {
    world: World,
    server: EsploraServer,
    dir: tempfile::TempDir,
    listen: SocketAddr,
}

impl Scene {
    async fn set(failpoint: &str) -> (Self, Seller) {
        let dir = tempfile::tempdir().unwrap();
        let chain = Chain::in_memory();
        let server = EsploraServer::start(std::sync::Arc::clone(&chain)).unwrap();
        let buyer = config(&server.url(), Storage::Memory, Seed::random(), None);
        let world = World { chain, buyer: EmbeddedNode::start(buyer).await.unwrap() };
        let listen = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let scene = Self { world, server, dir, listen };
        let mut seller = scene.seller(Some(failpoint));
        scene.world.open_channel(&mut seller, listen).await;
        (scene, seller)
    }

    fn seller(&self, failpoint: Option<&str>) -> Seller {
        Seller::start(self.dir.path(), &self.server.url(), self.listen, failpoint)
    }

    fn booked(&self) -> Vec<u64> {
        booked(self.dir.path())
    }

    async fn pay(&self, seller: &mut Seller) -> Outcome {
        let invoice = seller.ask("invoice").await.parse().unwrap();
        self.world.buyer.pay(PayRequest { invoice, fee_max: Msat::ZERO, timeout: PATIENCE }).await.unwrap()
    }
}

/// LDK closes the channel over this: its state on disk is older than the money in it. What counts is the book.
#[tokio::test]
async fn a_payment_is_booked_once_however_often_the_seller_dies_over_it() {
    const FAILPOINT: &str = "embedded-die-after-received";
    let (scene, mut seller) = Scene::set(FAILPOINT).await;
    let invoice: Invoice = seller.ask("invoice").await.parse().unwrap();
    let hurried = PayRequest { invoice, fee_max: Msat::ZERO, timeout: Duration::ZERO };
    scene.world.buyer.pay(hurried).await.unwrap();
    seller.dies().await;
    assert_eq!(scene.booked(), [9_000], "booked before LDK was told");
    for _ in 0..2 {
        scene.seller(Some(FAILPOINT)).dies().await;
        assert_eq!(scene.booked(), [9_000], "LDK's repetition of the event is not another payment");
    }
    scene.world.buyer.stop().await;
}

#[tokio::test]
async fn an_event_that_was_not_acknowledged_comes_again_and_is_booked_once() {
    const FAILPOINT: &str = "embedded-never-acknowledge";
    let (scene, mut seller) = Scene::set(FAILPOINT).await;
    let outcome = scene.pay(&mut seller).await;
    assert!(matches!(outcome, Outcome::Settled { .. }), "{outcome:?}");
    seller.stops().await;
    assert_eq!(scene.booked(), [9_000]);

    // The same again, then a seller that does its part: the next payment is the next row.
    let mut seller = scene.seller(Some(FAILPOINT));
    seller.ask("id").await;
    seller.stops().await;
    let mut seller = scene.seller(None);
    scene.world.connect(&mut seller, scene.listen).await;
    let outcome = scene.pay(&mut seller).await;
    assert!(matches!(outcome, Outcome::Settled { .. }), "{outcome:?}");
    until(async || scene.booked().len() == 2).await;
    seller.stops().await;
    assert_eq!(scene.booked(), [9_000, 9_000]);
    scene.world.buyer.stop().await;
}
