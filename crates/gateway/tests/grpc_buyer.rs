//! A tonic channel beneath the buyer's layer, against a gateway: the client's own example, as it is documented.

#![expect(clippy::unwrap_used, reason = "an error is how a test fails")]

mod support;

#[path = "../../client/examples/grpc.rs"]
#[allow(dead_code, unreachable_pub, missing_docs, reason = "an example has a main of its own")]
mod buyer;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::{Router, extract::Request as HttpRequest, routing::post};
use buyer::{PaidChannel, Words, channel, say};
use farebox_client::{Engine, EngineConfig, FetchError, Limits};
use farebox_lightning::{Outcome, Pay, PayError, PayFacts, PayRequest};
use farebox_protocol::{Msat, PaymentHash};
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::BoxStream};
use http::uri::PathAndQuery;
use support::{
    Rig,
    node::{self, Node},
    service,
    upstream::Upstream,
    within,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, client::Grpc, server};
use tonic_prost::ProstCodec;

type Codec = ProstCodec<Words, Words>;

fn words(text: &str) -> Words {
    Words { text: text.to_owned() }
}

/// Says what it is told.
#[derive(Clone)]
struct Parrot;

impl server::UnaryService<Words> for Parrot {
    type Response = Words;
    type Future = BoxFuture<'static, Result<Response<Words>, Status>>;

    fn call(&mut self, request: Request<Words>) -> Self::Future {
        async move { Ok(Response::new(request.into_inner())) }.boxed()
    }
}

impl server::StreamingService<Words> for Parrot {
    type Response = Words;
    type ResponseStream = BoxStream<'static, Result<Words, Status>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<Words>>) -> Self::Future {
        async move { Ok(Response::new(request.into_inner().boxed())) }.boxed()
    }
}

async fn parrot() -> Upstream {
    let say = |request: HttpRequest| async move {
        server::Grpc::new(Codec::default()).unary(Parrot, request).await
    };
    let talk = |request: HttpRequest| async move {
        server::Grpc::new(Codec::default()).streaming(Parrot, request).await
    };
    Upstream::serve(Router::new().route("/test.Parrot/Say", post(say)).route("/test.Parrot/Talk", post(talk)))
        .await
}

/// Pays the double of a node.
struct Wallet {
    node: Arc<Node>,
    paid: AtomicUsize,
}

impl Pay for Wallet {
    fn facts(&self) -> PayFacts {
        node::of_a_wallet()
    }

    fn pay(&self, request: PayRequest) -> BoxFuture<'_, Result<Outcome, PayError>> {
        self.paid.fetch_add(1, Ordering::SeqCst);
        let preimage = self.node.pay(&request.invoice.payment_hash());
        async { Ok(Outcome::Settled { preimage, fee: Msat::ZERO }) }.boxed()
    }

    fn lookup(&self, _: PaymentHash) -> BoxFuture<'_, Result<Outcome, PayError>> {
        async { Ok(Outcome::NotFound) }.boxed()
    }

    fn balance(&self) -> BoxFuture<'_, Result<Msat, PayError>> {
        async { Ok(Msat::MAX) }.boxed()
    }
}

struct Buyer {
    wallet: Arc<Wallet>,
    channel: PaidChannel,
    _upstream: Upstream,
    _rig: Rig,
    _journal: tempfile::TempDir,
}

impl Buyer {
    async fn new(limits: Limits) -> Self {
        let upstream = parrot().await;
        let rig = Rig::new(vec![service("parrot", &upstream.h2c())]).await;
        let journal = tempfile::tempdir().unwrap();
        let wallet = Arc::new(Wallet { node: rig.node.clone(), paid: AtomicUsize::new(0) });
        let config = EngineConfig::new(journal.path().join("journal.sqlite"));
        let engine = Engine::open(EngineConfig { wallet: Some(wallet.clone()), limits, ..config }).unwrap();
        let channel = channel(engine, &format!("http://{}", rig.addr)).await.unwrap();
        Self { wallet, channel, _upstream: upstream, _rig: rig, _journal: journal }
    }

    fn paid(&self) -> usize {
        self.wallet.paid.load(Ordering::SeqCst)
    }

    /// Speaks in turn with the parrot, and gives back what it said first.
    async fn talk(&self) -> Result<String, Status> {
        let (tell, told) = mpsc::channel(1);
        tell.send(words("hello")).await.unwrap();
        let mut grpc = Grpc::new(self.channel.clone());
        within(grpc.ready()).await.unwrap();
        let path = PathAndQuery::from_static("/test.Parrot/Talk");
        let request = Request::new(ReceiverStream::new(told));
        let mut answers = within(grpc.streaming(request, path, Codec::default())).await?.into_inner();
        Ok(within(answers.message()).await?.unwrap().text)
    }
}

/// What the layer had to say, inside the status that tonic makes of it.
fn told(status: &Status) -> &'static str {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<FetchError>() {
            return error.code();
        }
        source = error.source();
    }
    panic!("{status:?}");
}

#[tokio::test]
async fn a_unary_call_is_paid_for_once_and_the_next_shows_what_it_bought() {
    let buyer = Buyer::new(Limits::default()).await;
    for text in ["one", "two", "three"] {
        assert_eq!(within(say(buyer.channel.clone(), text)).await.unwrap(), text);
    }
    assert_eq!(buyer.paid(), 1);
}

#[tokio::test]
async fn of_32_calls_at_once_one_pays() {
    let buyer = Buyer::new(Limits::default()).await;
    let calls = (0..32).map(|number| {
        let channel = buyer.channel.clone();
        async move { say(channel, &number.to_string()).await }
    });
    let said = within(futures_util::future::join_all(calls)).await;
    for (number, said) in said.into_iter().enumerate() {
        assert_eq!(said.unwrap(), number.to_string());
    }
    assert_eq!(buyer.paid(), 1);
}

#[tokio::test]
async fn a_stream_of_requests_buys_nothing_and_passes_with_what_a_call_has_bought() {
    let buyer = Buyer::new(Limits::default()).await;
    assert_eq!(told(&buyer.talk().await.unwrap_err()), "body_gone");
    assert_eq!(buyer.paid(), 0);
    assert_eq!(within(say(buyer.channel.clone(), "hello")).await.unwrap(), "hello");
    assert_eq!(buyer.talk().await.unwrap(), "hello");
    assert_eq!(buyer.paid(), 1);
}

#[tokio::test]
async fn what_the_rules_forbid_is_an_error_that_can_be_told_from_the_servers() {
    let buyer = Buyer::new(Limits { per_payment: Msat::new(9_999), ..Limits::default() }).await;
    let refused = within(say(buyer.channel.clone(), "hello")).await.unwrap_err();
    assert_eq!(told(&refused), "over_price_limit");
    assert_eq!(buyer.paid(), 0);
}
