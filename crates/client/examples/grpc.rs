//! A gRPC channel that pays: tonic's, beneath the layer. A client that was generated from a `.proto` file takes such a channel
//! in place of its own.
//!
//!     WALLET_PASSWORD=… cargo run --example grpc -- http://127.0.0.1:8080 hello
//!
//! The wallet is a phoenixd, or `farebox node`, on this machine.

use std::{env, error::Error, sync::Arc, time::Duration};

use farebox_client::tower::{Pay, PayLayer, Replay};
use farebox_client::{Engine, EngineConfig};
use farebox_lightning::clock::SystemClock;
use farebox_lightning::phoenixd::{Phoenixd, PhoenixdConfig, Secret};
use http::uri::PathAndQuery;
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;
use tower::ServiceBuilder;
use tower::util::MapRequest;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let server = env::args().nth(1).ok_or("which server?")?;
    let wallet = PhoenixdConfig::new("http://127.0.0.1:9740", Secret::new(env::var("WALLET_PASSWORD")?));
    let wallet = Phoenixd::connect(wallet, Arc::new(SystemClock)).await?;
    let engine =
        Engine::open(EngineConfig { wallet: Some(Arc::new(wallet)), ..EngineConfig::new("journal.sqlite") })?;
    let channel = channel(engine.clone(), &server).await?;
    println!("{}", say(channel, &env::args().nth(2).unwrap_or_default()).await?);
    engine.close(Duration::from_secs(30)).await;
    Ok(())
}

/// What is said, in both directions.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Words {
    /// As they are.
    #[prost(string, tag = "1")]
    pub text: String,
}

/// A channel to `server` and nobody else, that pays.
pub type PaidChannel = Pay<MapRequest<Channel, fn(http::Request<Replay<Body>>) -> http::Request<Body>>>;

/// Connects. The layer has to know the origin, which the addresses of gRPC calls leave out.
pub async fn channel(engine: Engine, server: &str) -> Result<PaidChannel, Box<dyn Error>> {
    let channel = Endpoint::try_from(server.to_owned())?.connect().await?;
    let as_tonic_has_it: fn(http::Request<Replay<Body>>) -> http::Request<Body> =
        |request| request.map(Body::new);
    Ok(ServiceBuilder::new()
        .layer(PayLayer::for_origin(engine, server.parse()?))
        .map_request(as_tonic_has_it)
        .service(channel))
}

/// A unary call: it is paid for when it must be, and what it has bought opens streams, too.
pub async fn say(channel: PaidChannel, text: &str) -> Result<String, tonic::Status> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
    let codec = ProstCodec::<Words, Words>::default();
    let path = PathAndQuery::from_static("/test.Parrot/Say");
    let answer = grpc.unary(tonic::Request::new(Words { text: text.to_owned() }), path, codec).await?;
    Ok(answer.into_inner().text)
}
