//! An axum app behind the paywall: one route, an hour of it for 10 sat, sold over a simulated Lightning network.
//!
//! `cargo run -p farebox-paywall --example axum` serves until Ctrl-C and prints what to try. With `--once` it visits
//! itself instead: it is asked to pay, pays, is served, and finds the payment on the books.

use std::{error::Error, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, extract::ConnectInfo, routing::get};
use farebox_lightning::{
    Outcome, Pay, PayRequest,
    clock::SystemClock,
    embedded::EmbeddedNode,
    sim::{Net, NetConfig},
};
use farebox_paywall::{
    Keyring, Paywall, PaywallConfig, Service, keyring::load_or_create, layer::PaywallLayer,
    store::sqlite::SqliteStore,
};
use farebox_protocol::{Credential, Invoice, Msat, Network, Offer, OfferedChallenge, Scheme};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

type Outcomes<T = ()> = Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> Outcomes {
    // Two LDK nodes with a channel between them. A real shop takes any other `Receive` instead.
    let net = Net::start(NetConfig::default()).await?;

    // The paywall: a secret that signs tokens, the books, and the node that is paid.
    let dir = tempfile::tempdir()?;
    let keyring = Keyring::single(load_or_create(&dir.path().join("mint-secret"))?);
    let store = Arc::new(SqliteStore::open(&dir.path().join("books.sqlite"))?);
    let config = PaywallConfig::new(Network::Regtest);
    let paywall = Paywall::open(config, keyring, net.seller.clone(), store, Arc::new(SystemClock)).await?;

    // What is for sale, and the app behind it.
    let hour = Offer::Duration(Duration::from_secs(3_600));
    let service = Service::new("weather".parse()?, Msat::new(10_000), hour);
    service.validate()?;
    let layer = PaywallLayer::new(Arc::clone(&paywall), service)
        .client(|parts| parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip()));
    let app = Router::new().route("/forecast", get(async || "sunny\n")).layer(layer);

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let addr = listener.local_addr()?;
    let stop = CancellationToken::new();
    let serve = axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>())
        .with_graceful_shutdown(stop.clone().cancelled_owned());
    let work = async {
        let done = match std::env::args().any(|arg| arg == "--once") {
            true => visit(addr, &net.buyer, &paywall).await,
            false => wait(addr).await,
        };
        stop.cancel();
        done
    };

    // The paywall's own task books payments and reads revocations; it ends with everything else.
    let (served, (), done) = tokio::join!(serve.into_future(), paywall.run(stop.clone()), work);
    net.stop().await;
    served?;
    done
}

async fn wait(addr: SocketAddr) -> Outcomes {
    println!("try: curl -i http://{addr}/forecast");
    Ok(tokio::signal::ctrl_c().await?)
}

/// What a buyer does.
async fn visit(addr: SocketAddr, wallet: &EmbeddedNode, paywall: &Paywall) -> Outcomes {
    let challenged = fetch(addr, None).await?;
    println!("{}", challenged.status());
    let values = challenged.headers().get_all("www-authenticate");
    let offers = OfferedChallenge::read_all(values.iter().map(|value| value.as_bytes()));
    let offer = OfferedChallenge::preferred(&offers).ok_or("no challenge")?;
    let invoice: Invoice = offer.invoice.as_deref().ok_or("no invoice")?.parse()?;

    let amount = invoice.amount().ok_or("no amount")?;
    println!("paying {amount}");
    let ask = PayRequest { invoice, fee_max: Msat::new(1_000), timeout: Duration::from_secs(60) };
    let Outcome::Settled { preimage, .. } = wallet.pay(ask).await? else { return Err("not paid".into()) };

    let credential = Credential { tokens: vec![offer.macaroon()?], preimage };
    let served = fetch(addr, Some(credential.header_value(Scheme::L402).as_str())).await?;
    let status = served.status();
    print!("{status} {}", String::from_utf8_lossy(served.body()));
    if status != http::StatusCode::OK {
        return Err("paid and not served".into());
    }

    let row = tokio::time::timeout(Duration::from_secs(30), booked(paywall, &credential)).await??;
    println!(
        "on the books: {} for {}, surplus {}",
        row.paid,
        row.sold.ok_or("no terms")?.service,
        row.surplus
    );
    Ok(())
}

/// Waits until payment and terms have met on the books, which happens beside the request.
async fn booked(paywall: &Paywall, credential: &Credential) -> Outcomes<farebox_paywall::store::Purchase> {
    loop {
        let row = paywall.store().purchase(credential.preimage.payment_hash()).await?;
        if let Some(row) = row.filter(|row| row.is_settled() && row.sold.is_some()) {
            return Ok(row);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn fetch(addr: SocketAddr, credential: Option<&str>) -> Outcomes<http::Response<bytes::Bytes>> {
    let stream = TcpStream::connect(addr).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let mut request = http::Request::get("/forecast").header("host", addr.to_string());
    if let Some(credential) = credential {
        request = request.header("authorization", credential);
    }
    let exchange = async {
        let response = sender.send_request(request.body(Empty::<bytes::Bytes>::new())?).await?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await?.to_bytes();
        drop(sender);
        Ok(http::Response::from_parts(parts, body))
    };
    let (response, _) = tokio::join!(exchange, connection);
    response
}
