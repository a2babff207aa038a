//! The examples do what they say, against a shop. That of gRPC is run against a gateway, in the gateway's tests.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, wherever it stands")]
#![allow(dead_code, unreachable_pub, missing_docs, reason = "examples have a main of their own")]

mod support;

#[path = "../examples/fetch.rs"]
mod fetch;
#[path = "../examples/layer.rs"]
mod layer;
#[path = "../examples/own_client.rs"]
mod own_client;

use support::{Shop, World};

#[tokio::test]
async fn each_example_buys_once_and_finds_what_the_others_have_bought() {
    let world = World::new();
    let engine = world.engine();
    let shop = Shop::open(&world.net).await;
    assert_eq!(layer::post(engine.clone(), &shop.url("/"), "where is it raining?").await.unwrap(), "goods");
    assert_eq!(fetch::fetch(&engine, &shop.url("/")).await.unwrap(), "goods");
    let client = own_client::client().unwrap();
    assert_eq!(own_client::ask(&client, &engine, &shop.url("/")).await.unwrap(), "goods");
    assert_eq!((world.net.payments().len(), shop.minted()), (1, 1));

    for example in 0..2 {
        let shop = Shop::open(&world.net).await;
        let told = match example {
            0 => fetch::fetch(&engine, &shop.url("/")).await.unwrap(),
            _ => own_client::ask(&client, &engine, &shop.url("/")).await.unwrap(),
        };
        assert_eq!((told.as_str(), shop.minted()), ("goods", 1));
    }
    assert_eq!(world.net.payments().len(), 3);
}
