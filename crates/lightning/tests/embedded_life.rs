//! Starting, stopping and coming back: what an embedded node does when its surroundings don't do their part.
#![expect(clippy::unwrap_used, reason = "a test stops at what it didn't expect")]

use std::path::Path;
use std::time::Duration;

use farebox_lightning::clock::{Clock, SystemClock};
use farebox_lightning::embedded::ldk_node::bitcoin::bip32::Xpriv;
use farebox_lightning::embedded::ldk_node::bitcoin::secp256k1::{Secp256k1, SecretKey};
use farebox_lightning::embedded::ldk_node::lightning::sign::KeysManager;
use farebox_lightning::embedded::ldk_node::lightning_invoice::{Bolt11Invoice, Currency, InvoiceBuilder};
use farebox_lightning::embedded::{
    ChainSource, DirectoryError, EmbeddedConfig, EmbeddedError, EmbeddedNode, Seed, Storage,
};
use farebox_lightning::sim::{Chain, EsploraServer, Net, NetConfig, NetStorage};
use farebox_lightning::{Ask, Cursor, Health, Incoming, Outcome, Pay, PayRequest, Receive, ReceiveError};
use farebox_protocol::{Invoice, Msat, Network};
use futures_util::StreamExt as _;
use tokio::time::timeout;
use zeroize::Zeroizing;

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

fn ask(msat: u64) -> Ask {
    Ask { amount: Msat::new(msat), expiry: Duration::from_secs(600), description: "weather".into() }
}

fn request(invoice: &Invoice) -> PayRequest {
    PayRequest { invoice: invoice.clone(), fee_max: Msat::ZERO, timeout: PATIENCE }
}

fn config(url: &str, storage: Storage) -> EmbeddedConfig {
    EmbeddedConfig {
        network: Network::Regtest,
        chain: ChainSource::Esplora { url: url.into() },
        storage,
        seed: Seed::Bytes(Zeroizing::new([7; 64])),
        listen: None,
        alias: None,
        rapid_gossip: None,
        sync_every: None,
    }
}

/// How many rows a query counts in one of a node's databases.
fn rows(dir: &Path, file: &str, table: &str) -> u64 {
    let db = rusqlite::Connection::open(dir.join(file)).unwrap();
    db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
}

#[tokio::test]
async fn a_net_that_was_stopped_comes_back_with_its_channel_and_its_books() {
    let dir = tempfile::tempdir().unwrap();
    let kept = || NetConfig { storage: NetStorage::Directory(dir.path().into()), ..NetConfig::default() };
    let net = Net::start(kept()).await.unwrap();
    let (paid, unpaid, doubted) =
        (mint(&net, 3_000).await, mint(&net, 4_000).await, mint(&net, 50_000).await);
    let begun = mint(&net, 6_000).await;
    settle(&net, &paid).await;
    for _ in 0..10_000 {
        net.seller.minter().mint_text(&ask(1_000), SystemClock.now()).unwrap();
    }
    let (node, wallet) = (Receive::facts(&*net.seller).unwrap().node, net_wallet(&net));
    let first = net.seller.settlements(Cursor(0)).next().await.unwrap().unwrap();
    net.stop().await;

    let seller = dir.path().join("seller");
    let of_ldk = "ldk_node_data WHERE primary_namespace = 'payments'";
    // One, of the coins that the seller got on chain.
    assert_eq!(rows(&seller, "ldk_node_data.sqlite", of_ldk), 1, "LDK has no record of any invoice");
    assert_eq!(rows(&seller, "payments.sqlite", "received"), 1, "only the one that was paid is in the books");
    assert_eq!(rows(&seller, "payments.sqlite", "sent"), 0);

    a_run_that_died_had_begun(&dir.path().join("buyer"), &begun);

    let net = Net::start(kept()).await.unwrap();
    assert_eq!((Receive::facts(&*net.seller).unwrap().node, net_wallet(&net)), (node, wallet));
    assert_eq!(net.seller.settlements(Cursor(0)).next().await.unwrap().unwrap(), first);
    let known = Pay::lookup(&*net.buyer, paid.payment_hash()).await.unwrap();
    assert!(matches!(known, Outcome::Settled { .. }), "{known:?}");
    // Minted before the restart by a node that kept nothing of it.
    settle(&net, &unpaid).await;
    assert_eq!(
        net.seller.settlements(first.cursor).next().await.unwrap().unwrap().hash,
        unpaid.payment_hash(),
        "the sequence goes on where it was"
    );
    a_cheaper_invoice_around_the_same_secret_is_not_taken(&net, dir.path(), &doubted).await;
    // Sent or not, nobody knows; LDK does, and pays it now.
    let known = Pay::lookup(&*net.buyer, begun.payment_hash()).await.unwrap();
    assert!(matches!(known, Outcome::InFlight), "{known:?}");
    settle(&net, &begun).await;
    net.stop().await;
}

/// Leaves the buyer's book as a crash between writing and sending does.
fn a_run_that_died_had_begun(dir: &Path, invoice: &Invoice) {
    let db = rusqlite::Connection::open(dir.join("payments.sqlite")).unwrap();
    let row = "INSERT INTO sent (hash, run, state) VALUES (?1, 'an earlier one', 'begun')";
    db.execute(row, [invoice.payment_hash().as_bytes()]).unwrap();
}

fn net_wallet(net: &Net) -> String {
    Pay::facts(&*net.buyer).wallet.0
}

async fn mint(net: &Net, msat: u64) -> Invoice {
    net.seller.invoice(ask(msat)).await.unwrap()
}

async fn settle(net: &Net, invoice: &Invoice) {
    let outcome = net.buyer.pay(request(invoice)).await.unwrap();
    assert!(matches!(outcome, Outcome::Settled { .. }), "{outcome:?}");
    let incoming = Receive::lookup(&*net.seller, invoice.payment_hash()).await.unwrap();
    assert!(matches!(incoming, Incoming::Settled { amount, .. } if Some(amount) == invoice.amount()));
}

/// The price is sealed in the payment secret: even an invoice signed by the seller's own key doesn't lower it.
async fn a_cheaper_invoice_around_the_same_secret_is_not_taken(net: &Net, dir: &Path, real: &Invoice) {
    let mut seed = [0; 64];
    let digits = std::fs::read_to_string(dir.join("seller/seed")).unwrap();
    hex::decode_to_slice(digits.trim(), &mut seed).unwrap();
    let cheaper: Invoice = cheaper(real, &seed).parse().unwrap();
    assert_eq!(cheaper.payment_hash(), real.payment_hash());
    assert_eq!(cheaper.payee(), real.payee());
    let outcome = net.buyer.pay(request(&cheaper)).await.unwrap();
    assert!(matches!(outcome, Outcome::Failed(_)), "{outcome:?}");
    let incoming = Receive::lookup(&*net.seller, real.payment_hash()).await.unwrap();
    assert_eq!(incoming, Incoming::Unpaid);
    // Nothing was lost by trying: the invoice at its price can still be paid.
    settle(net, real).await;
}

fn cheaper(real: &Invoice, seed: &[u8; 64]) -> String {
    let real: Bolt11Invoice = real.as_str().parse().unwrap();
    let mut builder = InvoiceBuilder::new(Currency::Regtest)
        .description("cheaper".into())
        .duration_since_epoch(real.duration_since_epoch())
        .payment_hash(*real.payment_hash())
        .payment_secret(*real.payment_secret())
        .basic_mpp()
        .min_final_cltv_expiry_delta(real.min_final_cltv_expiry_delta())
        .amount_milli_satoshis(1_000);
    for hint in real.route_hints() {
        builder = builder.private_route(hint);
    }
    let key = node_key(seed);
    let raw = builder.build_raw().unwrap();
    raw.sign(|hash| Ok::<_, ()>(Secp256k1::new().sign_ecdsa_recoverable(hash, &key))).unwrap().to_string()
}

fn node_key(seed: &[u8; 64]) -> SecretKey {
    let network = farebox_lightning::embedded::ldk_node::bitcoin::Network::Regtest;
    let master = Xpriv::new_master(network, seed).unwrap();
    KeysManager::new(&master.private_key.secret_bytes(), 0, 0, true).get_node_secret_key()
}

#[tokio::test]
async fn a_node_whose_chain_source_is_down_starts_and_connects_later() {
    // Found and given up again: nobody answers there for now.
    let addr = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{addr}");
    let node = timeout(PATIENCE, EmbeddedNode::start(config(&url, Storage::Memory))).await.unwrap().unwrap();
    let Health::Down(why) = node.health() else { panic!("no chain, no health") };
    assert!(why.starts_with("the chain source does not answer"), "{why}");
    let refused = node.invoice(ask(1_000)).await;
    assert!(matches!(refused, Err(ReceiveError::Unavailable(_))), "{refused:?}");
    // What needs no node works: minting, and looking at the books.
    node.minter().mint(&ask(1_000), SystemClock.now()).unwrap();
    assert_eq!(
        Receive::lookup(&*node, farebox_protocol::PaymentHash::from_bytes([1; 32])).await.unwrap(),
        Incoming::Unpaid
    );

    let listener = std::net::TcpListener::bind(addr).unwrap();
    let _server = EsploraServer::start_on(listener, Chain::in_memory()).unwrap();
    let up = |health: &Health| matches!(health, Health::Down(why) if why.starts_with("no channel"));
    timeout(PATIENCE, node.wait_for_health(up)).await.unwrap();
    assert_eq!(node.with_ldk(|node| node.status().is_running).await, Ok(true));
    node.stop().await;
}

#[tokio::test]
async fn a_node_that_has_been_stopped_says_so_and_hangs_nobody() {
    let server = EsploraServer::start(Chain::in_memory()).unwrap();
    let node = EmbeddedNode::start(config(&server.url(), Storage::Memory)).await.unwrap();
    let mut settlements = node.settlements(Cursor(0));
    let (ended, ()) = tokio::join!(settlements.next(), node.stop());
    assert!(matches!(ended, Some(Err(ReceiveError::Unavailable(_)))), "{ended:?}");
    assert!(settlements.next().await.is_none());
    node.stop().await;
    assert_eq!(node.health(), Health::Down("the node has been stopped".into()));
    let invoice = node.minter().mint(&ask(1_000), SystemClock.now()).unwrap();
    assert!(node.pay(request(&invoice)).await.is_err());
    assert!(node.balance().await.is_err());
    assert!(node.sync().await.is_err());
}

#[tokio::test]
async fn a_directory_belongs_to_one_node_and_is_free_after_its_stop() {
    let dir = tempfile::tempdir().unwrap();
    let server = EsploraServer::start(Chain::in_memory()).unwrap();
    let start = || EmbeddedNode::start(config(&server.url(), Storage::Directory(dir.path().into())));
    let node = start().await.unwrap();
    let refused = start().await.unwrap_err();
    assert!(matches!(refused, EmbeddedError::Directory(DirectoryError::InUse(_))), "{refused}");
    node.stop().await;
    start().await.unwrap().stop().await;
}

#[tokio::test]
async fn an_address_that_is_taken_fails_the_start_and_frees_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let server = EsploraServer::start(Chain::in_memory()).unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap();
    let config = || config(&server.url(), Storage::Directory(dir.path().into()));
    let refused = EmbeddedNode::start(EmbeddedConfig { listen: Some(listen), ..config() }).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        format!("can't listen on `{listen}`; choose another address in `listen`")
    );
    start_when_free(config).await.stop().await;
}

#[tokio::test]
async fn another_network_than_before_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = EsploraServer::start(Chain::in_memory()).unwrap();
    let config = || config(&server.url(), Storage::Directory(dir.path().into()));
    EmbeddedNode::start(config()).await.unwrap().stop().await;
    let refused = EmbeddedNode::start(EmbeddedConfig { network: Network::Signet, ..config() }).await;
    assert!(matches!(refused, Err(EmbeddedError::Build(_))), "{refused:?}");
}

#[tokio::test]
async fn a_name_without_an_address_is_refused() {
    let alias =
        EmbeddedConfig { alias: Some("shop".into()), ..config("http://127.0.0.1:1", Storage::Memory) };
    assert!(matches!(EmbeddedNode::start(alias).await, Err(EmbeddedError::AliasWithoutListen)));
}

#[tokio::test]
async fn a_node_of_the_same_seed_without_its_books_is_another_wallet() {
    let server = EsploraServer::start(Chain::in_memory()).unwrap();
    let mut wallets = Vec::new();
    for _ in 0..2 {
        let node = EmbeddedNode::start(config(&server.url(), Storage::Memory)).await.unwrap();
        wallets.push((node.node_id(), Pay::facts(&*node).wallet));
        node.stop().await;
    }
    assert_eq!(wallets[0].0, wallets[1].0);
    assert_ne!(wallets[0].1, wallets[1].1);
}

/// A panic unwinds through everything that holds the node, on a runtime that ends with it. LDK's own destructor would abort
/// the process here, and with it this test.
#[test]
fn a_panic_beside_a_running_node_ends_only_what_panicked() {
    let dir = tempfile::tempdir().unwrap();
    let server = EsploraServer::start(Chain::in_memory()).unwrap();
    let config = || config(&server.url(), Storage::Directory(dir.path().into()));
    for builder in [tokio::runtime::Builder::new_current_thread, tokio::runtime::Builder::new_multi_thread] {
        let config = config();
        let panicked = std::thread::spawn(move || {
            let runtime = builder().enable_all().build().unwrap();
            runtime.block_on(async {
                let _node = EmbeddedNode::start(config).await.unwrap();
                panic!("on purpose");
            });
        });
        assert!(panicked.join().is_err());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { start_when_free(config_of(&server, &dir)).await.stop().await });
    }
}

fn config_of(server: &EsploraServer, dir: &tempfile::TempDir) -> impl Fn() -> EmbeddedConfig {
    let (url, dir) = (server.url(), dir.path().to_owned());
    move || config(&url, Storage::Directory(dir.clone()))
}

#[tokio::test]
async fn a_start_that_nobody_waits_for_leaves_no_node_behind() {
    let dir = tempfile::tempdir().unwrap();
    let server = EsploraServer::start(Chain::in_memory()).unwrap();
    let config = config_of(&server, &dir);
    {
        let mut starting = Box::pin(EmbeddedNode::start(config()));
        assert!(futures_util::poll!(&mut starting).is_pending());
    }
    start_when_free(config).await.stop().await;
}

/// Starts a node as soon as the one before has left the directory, which a drop doesn't wait for.
async fn start_when_free(config: impl Fn() -> EmbeddedConfig) -> std::sync::Arc<EmbeddedNode> {
    let start = async {
        loop {
            match EmbeddedNode::start(config()).await {
                Err(EmbeddedError::Directory(DirectoryError::InUse(_))) => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                started => return started.unwrap(),
            }
        }
    };
    timeout(PATIENCE, start).await.unwrap()
}
