//! A tower layer around a client: here hyper's, with time limits and a bound on requests at once beneath.
//!
//!     WALLET_PASSWORD=… cargo run --example layer -- http://127.0.0.1:8080/weather
//!
//! The wallet is a phoenixd, or `farebox node`, on this machine.

use std::{env, error::Error, sync::Arc, time::Duration};

use bytes::Bytes;
use farebox_client::tower::{Paid, PayLayer};
use farebox_client::{Engine, EngineConfig};
use farebox_lightning::clock::SystemClock;
use farebox_lightning::phoenixd::{Phoenixd, PhoenixdConfig, Secret};
use http_body_util::{BodyExt as _, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tower::{ServiceBuilder, ServiceExt as _};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = env::args().nth(1).ok_or("which address?")?;
    let wallet = PhoenixdConfig::new("http://127.0.0.1:9740", Secret::new(env::var("WALLET_PASSWORD")?));
    let wallet = Phoenixd::connect(wallet, Arc::new(SystemClock)).await?;
    let engine =
        Engine::open(EngineConfig { wallet: Some(Arc::new(wallet)), ..EngineConfig::new("journal.sqlite") })?;
    println!("{}", post(engine.clone(), &url, "where is it raining?").await?);
    engine.close(Duration::from_secs(30)).await;
    Ok(())
}

/// Posts `question` and returns the answer as text. The body is sent again, with the credential, when it has to be paid for.
pub async fn post(engine: Engine, url: &str, question: &'static str) -> Result<String, Box<dyn Error>> {
    let client = ServiceBuilder::new()
        .layer(PayLayer::new(engine).body_max(1024 * 1024))
        // What stands beneath the layer counts and limits each sending; what stands above it, the purchase as a whole.
        .concurrency_limit(16)
        .service(Client::builder(TokioExecutor::new()).build_http());

    let request = http::Request::post(url).body(Full::new(Bytes::from_static(question.as_bytes())))?;
    let answer = client.oneshot(request).await?;
    if let Some(receipt) = answer.extensions().get::<Paid>().and_then(|paid| paid.receipt.as_ref()) {
        eprintln!("paid {} to {}", receipt.price, receipt.origin);
    }
    let body = answer.into_body().collect().await?.to_bytes();
    Ok(String::from_utf8(body.into())?)
}
