//! Questions to a seller about what was bought: shown to them alone, and never the beginning of another purchase.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]

mod support;

use farebox_client::{Engine, SellerAnswer};
use farebox_protocol::PaymentHash;
use http::{Method, StatusCode};
use support::shop::{challenge, redirect, status};
use support::{Shop, World, get, told};

const PATH: &str = "/.well-known/farebox/receipt";

/// Buys from a shop that answers this question so.
async fn bought(shop: &Shop, engine: &Engine) -> PaymentHash {
    assert_eq!(told(engine.fetch(get(&shop.url("/"))).await).await, "200 goods");
    engine.purchases().await.unwrap()[0].payment_hash
}

async fn ask(engine: &Engine, payment: PaymentHash) -> SellerAnswer {
    engine.ask_seller(payment, Method::POST, PATH, 5).await.unwrap().unwrap()
}

#[tokio::test]
async fn the_seller_is_shown_the_credential_and_answers() {
    let world = World::new();
    let engine = world.engine();
    let shop = Shop::with(&world.net, |till, asked| match till.paid(&asked.headers) {
        Some(_) if asked.path == PATH => {
            assert_eq!((&asked.method, asked.body.len()), (&Method::POST, 0));
            till.serve("farebox receipt")
        }
        Some(_) => till.serve("goods"),
        None => till.challenge("svc", 100),
    })
    .await;
    let payment = bought(&shop, &engine).await;
    let answer = ask(&engine, payment).await;
    assert_eq!((answer.origin.to_string(), answer.status), (shop.url.clone(), StatusCode::OK));
    assert_eq!(answer.body, "fareb", "no more is read than was asked for");

    // What has bought nothing is asked of nobody.
    let requests = shop.requests();
    let unknown = PaymentHash::from_bytes([9; 32]);
    assert_eq!(engine.ask_seller(unknown, Method::POST, PATH, 5).await.unwrap(), None);
    assert_eq!(shop.requests(), requests);
}

#[tokio::test]
async fn an_answer_that_wants_money_or_leads_elsewhere_is_not_obeyed() {
    let world = World::new();
    let engine = world.engine();
    let stranger = Shop::with(&world.net, |_, _| panic!("nobody is sent here")).await;
    let to = stranger.url(PATH);
    for code in [402, 302, 500] {
        let to = to.clone();
        let shop = Shop::with(&world.net, move |till, asked| match (asked.path.as_str(), code) {
            (PATH, 302) => redirect(302, &to),
            (PATH, 402) => challenge(&till.draft(100).challenge(&till.root_key, "svc").header_values()),
            (PATH, code) => status(code),
            _ if till.paid(&asked.headers).is_some() => till.serve("goods"),
            _ => till.challenge("svc", 100),
        })
        .await;
        let payment = bought(&shop, &engine).await;
        let paid = world.net.payments().len();
        assert_eq!(ask(&engine, payment).await.status.as_u16(), code);
        assert_eq!(world.net.payments().len(), paid);
    }
    assert_eq!(stranger.requests(), 0);
}

#[tokio::test]
async fn no_credential_goes_there_in_the_clear() {
    let world = World::new();
    let engine = world.engine();
    let shop = Shop::open(&world.net).await;
    let payment = bought(&shop, &engine).await;
    // The same purchase, as if it had been made at an address that isn't this machine's.
    let journal = rusqlite::Connection::open(world.journal()).unwrap();
    journal.execute_batch("UPDATE purchases SET origin = 'http://192.0.2.1'").unwrap();
    let error = engine.ask_seller(payment, Method::POST, PATH, 5).await.unwrap_err();
    assert_eq!(error.code(), "in_the_clear");
}

#[tokio::test]
async fn no_path_leads_to_anybody_but_the_seller() {
    let world = World::new();
    let engine = world.engine();
    let shop = Shop::open(&world.net).await;
    let stranger = Shop::with(&world.net, |_, _| panic!("nobody is sent here")).await;
    let payment = bought(&shop, &engine).await;
    let host = stranger.url.trim_start_matches("http://").to_owned();
    for path in [format!("@{host}/"), format!(":x@{host}/"), "0".to_owned(), ".example/".to_owned()] {
        engine.ask_seller(payment, Method::POST, &path, 5).await.unwrap_err();
    }
    assert_eq!(stranger.requests(), 0);
}
