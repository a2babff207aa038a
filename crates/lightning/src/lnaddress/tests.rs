use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicUsize, Ordering},
};

use axum::{
    Router,
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Redirect, Response},
    routing::get,
};
use bitcoin::{
    hashes::{Hash as _, sha256},
    secp256k1::{Secp256k1, SecretKey},
};
use lightning_invoice::{Currency, InvoiceBuilder, PaymentSecret};
use parking_lot::Mutex;
use serde_json::json;

use super::*;

fn invoice(msat: u64) -> String {
    let key = SecretKey::from_slice(&[0x11; 32]).unwrap();
    InvoiceBuilder::new(Currency::Regtest)
        .description("a refund".to_owned())
        .payment_hash(sha256::Hash::from_byte_array([9; 32]))
        .payment_secret(PaymentSecret([3; 32]))
        .duration_since_epoch(Duration::from_secs(1_700_000_000))
        .min_final_cltv_expiry_delta(18)
        .amount_milli_satoshis(msat)
        .build_signed(|message| Secp256k1::signing_only().sign_ecdsa_recoverable(message, &key))
        .unwrap()
        .to_string()
}

/// Names that mean what the test says, the second time perhaps something else.
#[derive(Default)]
struct Book(Mutex<HashMap<String, Vec<Vec<IpAddr>>>>);

impl Names for Book {
    fn look_up<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(async move {
            let mut book = self.0.lock();
            let answers = book.get_mut(host).ok_or_else(|| io::Error::other("no such host"))?;
            Ok(if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() })
        })
    }
}

/// A server on this machine: what it answers with, and how often it was asked.
struct Server {
    addr: SocketAddr,
    info: Mutex<serde_json::Value>,
    asked: AtomicUsize,
    /// How much more than asked for its invoices are over.
    more: AtomicUsize,
}

impl Server {
    #[expect(clippy::disallowed_methods, reason = "the server ends with the test's runtime")]
    async fn start() -> Arc<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let info = json!({
            "tag": "payRequest", "callback": format!("http://{addr}/pay?k=1"),
            "minSendable": 1_000, "maxSendable": 100_000, "metadata": "[]",
        });
        let server = Arc::new(Self {
            addr,
            info: Mutex::new(info),
            asked: AtomicUsize::new(0),
            more: AtomicUsize::new(0),
        });
        let router = Router::new()
            .route("/.well-known/lnurlp/{name}", get(info_of))
            .route("/pay", get(pay))
            .with_state(Arc::clone(&server));
        tokio::spawn(async move { axum::serve(listener, router).await });
        server
    }

    fn book(&self) -> AddressBook {
        AddressBook::new(vec![self.addr.to_string()]).unwrap()
    }

    async fn find(&self, amount: u64) -> Result<Invoice, AddressError> {
        find(&self.book(), &format!("alice@{}", self.addr), amount).await
    }
}

async fn info_of(State(server): State<Arc<Server>>) -> Response {
    server.asked.fetch_add(1, Ordering::SeqCst);
    let info = server.info.lock().clone();
    match info.as_str() {
        Some("redirect") => Redirect::temporary("/pay?amount=1000").into_response(),
        Some("flood") => "x".repeat(ANSWER_BYTES_MAX + 1).into_response(),
        Some("fail") => (StatusCode::INTERNAL_SERVER_ERROR, "<html>").into_response(),
        _ => axum::Json(info).into_response(),
    }
}

async fn pay(
    State(server): State<Arc<Server>>,
    Query(query): Query<HashMap<String, String>>,
) -> axum::Json<serde_json::Value> {
    server.asked.fetch_add(1, Ordering::SeqCst);
    assert_eq!(query.get("k").map(String::as_str), Some("1"), "what was in the callback stays");
    let amount: u64 = query["amount"].parse().unwrap();
    let more = u64::try_from(server.more.load(Ordering::SeqCst)).unwrap();
    axum::Json(json!({ "pr": invoice(amount + more), "routes": [] }))
}

async fn find(book: &AddressBook, address: &str, amount: u64) -> Result<Invoice, AddressError> {
    book.invoice(&address.parse()?, Msat::new(amount)).await
}

#[tokio::test]
async fn an_address_gives_an_invoice_over_the_amount_that_was_asked_for() {
    let server = Server::start().await;
    assert_eq!(server.find(21_000).await.unwrap().amount(), Some(Msat::new(21_000)));
    assert_eq!(server.asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn an_invoice_over_another_amount_is_refused() {
    let server = Server::start().await;
    server.more.store(1, Ordering::SeqCst);
    assert_eq!(
        server.find(21_000).await.unwrap_err(),
        AddressError::Wrong("its invoice is over another amount")
    );
}

#[tokio::test]
async fn an_amount_that_the_address_does_not_take_is_said_so() {
    let server = Server::start().await;
    let refused = AddressError::Amount { least: Msat::new(1_000), most: Msat::new(100_000) };
    for amount in [999, 100_001] {
        assert_eq!(server.find(amount).await.unwrap_err(), refused);
    }
    assert_eq!(server.asked.load(Ordering::SeqCst), 2, "and no invoice is asked for");
}

#[tokio::test]
async fn a_server_that_says_no_or_nonsense_is_told_apart() {
    let server = Server::start().await;
    let said = async |info| {
        *server.info.lock() = info;
        server.find(21_000).await.unwrap_err()
    };
    let no = json!({ "status": "ERROR", "reason": "no such\n user" });
    assert_eq!(said(no).await, AddressError::Refused("no such user".to_owned()));
    for nonsense in [json!("redirect"), json!("flood"), json!("fail"), json!({}), json!([1])] {
        let wrong = said(nonsense.clone()).await;
        assert!(matches!(wrong, AddressError::Wrong(_)), "{nonsense}: {wrong}");
    }
}

#[tokio::test]
async fn a_host_that_is_a_private_address_in_any_spelling_is_not_called() {
    let server = Server::start().await;
    let book = AddressBook::new(Vec::new()).unwrap();
    let port = server.addr.port();
    for host in [
        "127.0.0.1",
        "10.0.0.1",
        "169.254.169.254",
        "192.168.0.1",
        "0",
        "2130706433",
        "0x7f.1",
        "127.1",
        "8.8.8.8",
    ] {
        for address in [format!("alice@{host}"), format!("alice@{host}:{port}")] {
            let refused = find(&book, &address, 21_000).await.unwrap_err();
            assert!(matches!(refused, AddressError::Private(_)), "{address}: {refused}");
        }
    }
    assert_eq!(find(&book, "alice@[::1]", 1).await.unwrap_err(), AddressError::NotAnAddress);
    assert_eq!(server.asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_name_that_leads_to_a_private_address_is_not_called() {
    let server = Server::start().await;
    let port = server.addr.port();
    for private in
        ["127.0.0.1", "10.1.2.3", "::1", "169.254.169.254", "fe80::1", "fd00::1", "::ffff:127.0.0.1"]
    {
        let names = Book::default();
        let (public, private): (IpAddr, IpAddr) = ("1.1.1.1".parse().unwrap(), private.parse().unwrap());
        names.0.lock().insert("one.example".to_owned(), vec![vec![private]]);
        names.0.lock().insert("two.example".to_owned(), vec![vec![public, private]]);
        let book = AddressBook::with_names(Vec::new(), Arc::new(names)).unwrap();
        for host in ["one.example", "two.example"] {
            let refused = find(&book, &format!("alice@{host}:{port}"), 21_000).await.unwrap_err();
            assert_eq!(refused, AddressError::Private(host.to_owned()), "{private}");
        }
    }
    assert_eq!(server.asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_callback_must_lead_to_the_public_as_well() {
    let (server, victim) = (Server::start().await, Server::start().await);
    let names = Book::default();
    names.0.lock().insert("inside.example".to_owned(), vec![vec![victim.addr.ip()]]);
    let book = AddressBook::with_names(vec![server.addr.to_string()], Arc::new(names)).unwrap();
    let port = victim.addr.port();
    for callback in [
        format!("http://127.0.0.1:{port}/pay?k=1"),
        format!("https://127.0.0.1:{port}/pay?k=1"),
        format!("https://[::1]:{port}/pay?k=1"),
        format!("https://inside.example:{port}/pay?k=1"),
        "http://public.example/pay?k=1".to_owned(),
        "https://user:word@public.example/pay?k=1".to_owned(),
        "file:///etc/passwd".to_owned(),
    ] {
        server.info.lock()["callback"] = json!(callback);
        let refused = find(&book, &format!("alice@{}", server.addr), 21_000).await.unwrap_err();
        assert!(matches!(refused, AddressError::Private(_)), "{callback}: {refused}");
    }
    assert_eq!(victim.asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_listed_name_may_lead_to_this_machine_at_its_port() {
    let server = Server::start().await;
    let names = Book::default();
    names.0.lock().insert("shop.example".to_owned(), vec![vec![server.addr.ip()]]);
    let (listed, port) = (format!("shop.example:{}", server.addr.port()), server.addr.port());
    let book = AddressBook::with_names(vec![listed.clone()], Arc::new(names)).unwrap();
    server.info.lock()["callback"] = json!(format!("http://{listed}/pay?k=1"));
    assert!(find(&book, &format!("alice@{listed}"), 21_000).await.is_ok());
    let asked = server.asked.load(Ordering::SeqCst);
    server.info.lock()["callback"] = json!(format!("http://127.0.0.1:{port}/pay?k=1"));
    assert!(find(&book, &format!("alice@{listed}"), 21_000).await.is_err(), "by that name only");
    assert_eq!(server.asked.load(Ordering::SeqCst), asked + 1);
}

#[tokio::test]
async fn a_name_is_judged_by_the_addresses_that_are_connected_to() {
    use reqwest::dns::Resolve as _;
    let names = Book::default();
    let (public, ours): (IpAddr, IpAddr) = ("1.1.1.1".parse().unwrap(), "127.0.0.1".parse().unwrap());
    names.0.lock().insert("turn.example".to_owned(), vec![vec![public], vec![ours]]);
    let only = PublicOnly::new(Arc::new(names), Arc::new([]));
    let connect = || only.resolve("turn.example".parse().unwrap());
    let addresses: Vec<_> = connect().await.ok().unwrap().map(|address| address.ip()).collect();
    assert_eq!(addresses, [public]);
    assert!(connect().await.is_err(), "another look, another judgement");
}

#[test]
fn what_is_no_address_is_refused() {
    for text in [
        "",
        "alice",
        "@example.com",
        "alice@",
        "a b@example.com",
        "alice@exa/mple.com",
        "a@b@c.com",
        "alice@ex%61mple.com",
        "../x@example.com",
        "alice@example.com?x",
        "alice@example.com#x",
    ] {
        assert_eq!(text.parse::<LightningAddress>(), Err(AddressError::NotAnAddress), "{text}");
    }
    for text in ["alice@example.com", "A.lice+tips_1-2@Example.COM"] {
        assert!(text.parse::<LightningAddress>().is_ok(), "{text}");
    }
}

#[test]
fn an_address_does_not_show_whose_it_is() {
    let address: LightningAddress = "alice@example.com".parse().unwrap();
    assert_eq!(format!("{address:?}"), "LightningAddress(…@example.com)");
}
