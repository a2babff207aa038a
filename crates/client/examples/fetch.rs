//! The engine's own client: follows redirects, resumes what was interrupted, streams the answer.
//!
//!     WALLET_PASSWORD=… cargo run --example fetch -- https://api.example.com/weather
//!
//! The wallet is a phoenixd, or `farebox node`, on this machine.

use std::{env, error::Error, sync::Arc, time::Duration};

use bytes::Bytes;
use farebox_client::{Engine, EngineConfig};
use farebox_lightning::clock::SystemClock;
use farebox_lightning::phoenixd::{Phoenixd, PhoenixdConfig, Secret};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = env::args().nth(1).ok_or("which address?")?;
    let wallet = PhoenixdConfig::new("http://127.0.0.1:9740", Secret::new(env::var("WALLET_PASSWORD")?));
    let wallet = Phoenixd::connect(wallet, Arc::new(SystemClock)).await?;
    // One journal for all programs that share a purse: they share what was bought, and the budgets.
    let engine =
        Engine::open(EngineConfig { wallet: Some(Arc::new(wallet)), ..EngineConfig::new("journal.sqlite") })?;
    println!("{}", fetch(&engine, &url).await?);
    // A payment under way goes on without us waiting for it, but not without this process.
    engine.close(Duration::from_secs(30)).await;
    Ok(())
}

/// The answer as text, having paid for it if that was asked and allowed.
pub async fn fetch(engine: &Engine, url: &str) -> Result<String, Box<dyn Error>> {
    let request = http::Request::get(url).header("accept", "text/plain").body(Bytes::new())?;
    let fetched = match engine.fetch(request).await {
        Ok(fetched) => fetched,
        Err(error) => {
            // Whatever went wrong, the money is accounted for, and asking again does not pay again.
            eprintln!("{}: {error}; of the money: {:?}", error.code(), error.money());
            return Err(error.into());
        }
    };
    if let Some(receipt) = &fetched.purchase {
        eprintln!("paid {} and {} of fee to {}", receipt.price, receipt.fee, receipt.origin);
    }
    Ok(fetched.response.text().await?)
}
