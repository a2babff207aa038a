//! A reqwest client of your own, with its headers, times and proxies, that pays.
//!
//!     WALLET_PASSWORD=… cargo run --example own_client -- https://api.example.com/weather
//!
//! The wallet is a phoenixd, or `farebox node`, on this machine.

use std::{env, error::Error, sync::Arc, time::Duration};

use farebox_client::{Engine, EngineConfig, PayExt as _};
use farebox_lightning::clock::SystemClock;
use farebox_lightning::phoenixd::{Phoenixd, PhoenixdConfig, Secret};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = env::args().nth(1).ok_or("which address?")?;
    let wallet = PhoenixdConfig::new("http://127.0.0.1:9740", Secret::new(env::var("WALLET_PASSWORD")?));
    let wallet = Phoenixd::connect(wallet, Arc::new(SystemClock)).await?;
    let engine =
        Engine::open(EngineConfig { wallet: Some(Arc::new(wallet)), ..EngineConfig::new("journal.sqlite") })?;
    println!("{}", ask(&client()?, &engine, &url).await?);
    engine.close(Duration::from_secs(30)).await;
    Ok(())
}

/// Must not follow redirects: a credential is for the server that sold it.
pub fn client() -> reqwest::Result<reqwest::Client> {
    // This reqwest was built without cryptography of its own. Most bring it, and need no such line.
    _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(Duration::from_secs(60))
        .build()
}

/// The answer as text; how it was paid goes to standard error.
pub async fn ask(client: &reqwest::Client, engine: &Engine, url: &str) -> Result<String, Box<dyn Error>> {
    let fetched = client.get(url).header("x-mine", "1").send_paid(engine).await?;
    match (&fetched.purchase, &fetched.credential) {
        (Some(receipt), _) => eprintln!("paid {} to {}", receipt.price, receipt.origin),
        (None, Some(payment)) => eprintln!("shown what payment {payment} has bought before"),
        (None, None) => eprintln!("it was free"),
    }
    Ok(fetched.response.error_for_status()?.text().await?)
}
