//! gRPC from end to end: a tonic client, the gateway, a tonic server. Messages and methods are written by hand, so that no
//! compiler for `.proto` files is needed.

#![expect(clippy::unwrap_used, reason = "an error is how a test fails")]

mod support;

use std::{convert::Infallible, pin::Pin, sync::Arc, time::Duration};

use axum::{Router, extract::Request as HttpRequest, routing::post};
use bytes::Bytes;
use farebox_protocol::Scheme;
use futures_util::{Stream, StreamExt, future::BoxFuture, stream};
use http::uri::PathAndQuery;
use parking_lot::Mutex;
use support::{PATIENCE, Rig, body, http2, service, upstream::Upstream, within};
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request, Response, Status, Streaming,
    client::Grpc,
    metadata::{MetadataMap, MetadataValue},
    server::{self, ServerStreamingService, StreamingService, UnaryService},
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

/// The largest message that either end takes.
const MESSAGE_MAX: usize = 16 << 20;

/// What is said, in both directions.
#[derive(Clone, PartialEq, prost::Message)]
struct Words {
    #[prost(string, tag = "1")]
    text: String,
}

fn words(text: &str) -> Words {
    Words { text: text.to_owned() }
}

type Codec = ProstCodec<Words, Words>;
type Answers = Pin<Box<dyn Stream<Item = Result<Words, Status>> + Send>>;

/// The server, and what it has noticed.
#[derive(Clone, Default)]
struct Parrot {
    /// The metadata of the last call.
    heard: Arc<Mutex<MetadataMap>>,
    begun: Arc<Notify>,
    dropped: Arc<Notify>,
}

/// Tells when the call that holds it has ended.
struct OnDrop(Arc<Notify>);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl UnaryService<Words> for Parrot {
    type Response = Words;
    type Future = BoxFuture<'static, Result<Response<Words>, Status>>;

    fn call(&mut self, request: Request<Words>) -> Self::Future {
        let parrot = self.clone();
        Box::pin(async move {
            *parrot.heard.lock() = request.metadata().clone();
            match request.into_inner().text.as_str() {
                "no" => {
                    let mut status = Status::failed_precondition("not today");
                    status.metadata_mut().insert("x-why", MetadataValue::from_static("tired"));
                    Err(status)
                }
                "wait" => {
                    let _guard = OnDrop(parrot.dropped.clone());
                    parrot.begun.notify_one();
                    std::future::pending().await
                }
                text => Ok(Response::new(words(text))),
            }
        })
    }
}

impl ServerStreamingService<Words> for Parrot {
    type Response = Words;
    type ResponseStream = Answers;
    type Future = BoxFuture<'static, Result<Response<Answers>, Status>>;

    fn call(&mut self, request: Request<Words>) -> Self::Future {
        let parrot = self.clone();
        Box::pin(async move {
            let text = request.into_inner().text;
            if text == "for ever" {
                let guard = OnDrop(parrot.dropped.clone());
                parrot.begun.notify_one();
                let first = stream::iter([Ok(words("first"))]);
                let never = stream::pending().map(move |never: Infallible| {
                    let _alive = &guard;
                    match never {}
                });
                return Ok(Response::new(Box::pin(first.chain(never)) as Answers));
            }
            let letters: Vec<_> = text.chars().map(|letter| Ok(words(&letter.to_string()))).collect();
            Ok(Response::new(Box::pin(stream::iter(letters)) as Answers))
        })
    }
}

impl StreamingService<Words> for Parrot {
    type Response = Words;
    type ResponseStream = Answers;
    type Future = BoxFuture<'static, Result<Response<Answers>, Status>>;

    fn call(&mut self, request: Request<Streaming<Words>>) -> Self::Future {
        Box::pin(async move { Ok(Response::new(request.into_inner().boxed() as Answers)) })
    }
}

impl Parrot {
    async fn perch(&self) -> Upstream {
        let (one, many, both) = (self.clone(), self.clone(), self.clone());
        Upstream::serve(
            Router::new()
                .route(
                    "/test.Parrot/Say",
                    post(|request: HttpRequest| async move {
                        let server = server::Grpc::new(Codec::default());
                        server.max_decoding_message_size(MESSAGE_MAX).unary(one, request).await
                    }),
                )
                .route(
                    "/test.Parrot/Spell",
                    post(|request: HttpRequest| async move {
                        server::Grpc::new(Codec::default()).server_streaming(many, request).await
                    }),
                )
                .route(
                    "/test.Parrot/Talk",
                    post(|request: HttpRequest| async move {
                        server::Grpc::new(Codec::default()).streaming(both, request).await
                    }),
                ),
        )
        .await
    }
}

/// The client.
struct Caller {
    grpc: Grpc<Channel>,
    credential: Option<String>,
}

impl Caller {
    async fn new(rig: &Rig) -> Self {
        let channel = Endpoint::try_from(format!("http://{}", rig.addr)).unwrap().connect().await.unwrap();
        let grpc = Grpc::new(channel).max_decoding_message_size(MESSAGE_MAX);
        Self { grpc, credential: None }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(credential) = &self.credential {
            request.metadata_mut().insert("authorization", credential.parse().unwrap());
        }
        request
    }

    async fn say(&mut self, request: Request<Words>) -> Result<Response<Words>, Status> {
        within(self.grpc.ready()).await.unwrap();
        let path = PathAndQuery::from_static("/test.Parrot/Say");
        within(self.grpc.unary(request, path, Codec::default())).await
    }

    async fn spell(&mut self, text: &str) -> Result<Streaming<Words>, Status> {
        within(self.grpc.ready()).await.unwrap();
        let path = PathAndQuery::from_static("/test.Parrot/Spell");
        let request = self.request(words(text));
        Ok(within(self.grpc.server_streaming(request, path, Codec::default())).await?.into_inner())
    }

    async fn pay(&mut self, rig: &Rig) {
        let denial = self.say(self.request(words("hello"))).await.unwrap_err();
        self.credential = Some(rig.credential(&denial.metadata().clone().into_headers(), Scheme::L402));
    }
}

async fn rig(upstream: &Upstream) -> Rig {
    Rig::new(vec![service("parrot", &upstream.h2c())]).await
}

#[tokio::test]
async fn a_call_without_payment_is_denied_in_grpcs_way_with_the_challenge() {
    let upstream = Parrot::default().perch().await;
    let rig = rig(&upstream).await;
    let mut caller = Caller::new(&rig).await;
    let denial = caller.say(caller.request(words("hello"))).await.unwrap_err();
    assert_eq!(denial.code(), Code::Internal, "13 is what deployed clients look for");
    let challenges: Vec<_> = denial.metadata().get_all("www-authenticate").iter().collect();
    assert_eq!(challenges.len(), 2, "{challenges:?}");
    assert!(challenges[0].to_str().unwrap().starts_with("LSAT macaroon="));
    assert!(challenges[1].to_str().unwrap().starts_with("L402 macaroon="));
    assert_eq!(denial.metadata().get("farebox-code").unwrap(), "payment_required");
}

#[tokio::test]
async fn a_paid_call_is_answered_and_the_upstream_knows_who_paid() {
    let parrot = Parrot::default();
    let upstream = parrot.perch().await;
    let rig = rig(&upstream).await;
    let mut caller = Caller::new(&rig).await;
    caller.pay(&rig).await;
    assert_eq!(caller.say(caller.request(words("hello"))).await.unwrap().into_inner(), words("hello"));
    let heard = parrot.heard.lock().clone();
    assert!(heard.get("authorization").is_none(), "{heard:?}");
    assert_eq!(heard.get("farebox-token-id").unwrap().len(), 64);
    assert_eq!(heard.get("te").unwrap(), "trailers");
}

#[tokio::test]
async fn a_paid_stream_arrives_whole_with_its_status() {
    let upstream = Parrot::default().perch().await;
    let rig = rig(&upstream).await;
    let mut caller = Caller::new(&rig).await;
    caller.pay(&rig).await;
    let mut stream = caller.spell("abc").await.unwrap();
    for letter in ["a", "b", "c"] {
        assert_eq!(within(stream.message()).await.unwrap(), Some(words(letter)));
    }
    assert_eq!(within(stream.message()).await.unwrap(), None);
    assert!(within(stream.trailers()).await.unwrap().is_some());
}

#[tokio::test]
async fn both_sides_may_talk_in_turn() {
    let upstream = Parrot::default().perch().await;
    let rig = rig(&upstream).await;
    let mut caller = Caller::new(&rig).await;
    caller.pay(&rig).await;
    within(caller.grpc.ready()).await.unwrap();
    let (say, said) = mpsc::channel(1);
    let request = caller.request(ReceiverStream::new(said));
    let path = PathAndQuery::from_static("/test.Parrot/Talk");
    let mut answers =
        within(caller.grpc.streaming(request, path, Codec::default())).await.unwrap().into_inner();
    for text in ["one", "two", "three"] {
        say.send(words(text)).await.unwrap();
        assert_eq!(within(answers.message()).await.unwrap(), Some(words(text)));
    }
    drop(say);
    assert_eq!(within(answers.message()).await.unwrap(), None);
}

#[tokio::test]
async fn the_upstreams_own_refusal_arrives_as_it_was_said() {
    let upstream = Parrot::default().perch().await;
    let rig = rig(&upstream).await;
    let mut caller = Caller::new(&rig).await;
    caller.pay(&rig).await;
    let refusal = caller.say(caller.request(words("no"))).await.unwrap_err();
    assert_eq!((refusal.code(), refusal.message()), (Code::FailedPrecondition, "not today"));
    assert_eq!(refusal.metadata().get("x-why").unwrap(), "tired");
}

#[tokio::test]
async fn a_deadline_is_passed_on_and_kept_where_the_upstream_does_not() {
    let parrot = Parrot::default();
    let upstream = parrot.perch().await;
    let rig = rig(&upstream).await;
    let mut caller = Caller::new(&rig).await;
    caller.pay(&rig).await;
    // Not by tonic, which looks at its own clock first.
    let message = prost::Message::encode_to_vec(&words("wait"));
    let mut framed = vec![0, 0, 0, 0, u8::try_from(message.len()).unwrap()];
    framed.extend(message);
    let request = http::Request::post(format!("http://{}/test.Parrot/Say", rig.addr))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("authorization", caller.credential.as_deref().unwrap())
        .header("grpc-timeout", "100m")
        .body(body(framed))
        .unwrap();
    let late = within(http2(rig.addr).await.send_request(request)).await.unwrap();
    assert_eq!(late.status(), 200);
    assert_eq!(late.headers()["grpc-status"], "4", "{late:?}");
    assert_eq!(parrot.heard.lock().get("grpc-timeout").unwrap(), "100m");
    within(parrot.dropped.notified()).await;
}

#[tokio::test]
async fn a_call_that_is_given_up_is_given_up_at_the_upstream() {
    let parrot = Parrot::default();
    let upstream = parrot.perch().await;
    let rig = rig(&upstream).await;
    let mut caller = Caller::new(&rig).await;
    caller.pay(&rig).await;

    let waiting = caller.request(words("wait"));
    tokio::select! {
        answer = caller.say(waiting) => panic!("{answer:?}"),
        () = parrot.begun.notified() => {}
    }
    within(parrot.dropped.notified()).await;

    let mut stream = caller.spell("for ever").await.unwrap();
    assert_eq!(within(stream.message()).await.unwrap(), Some(words("first")));
    drop(stream);
    within(parrot.dropped.notified()).await;
}

#[tokio::test]
async fn an_upstream_that_is_not_there_or_dies_is_unavailable() {
    let parrot = Parrot::default();
    let upstream = parrot.perch().await;
    let rig = rig(&upstream).await;
    let mut caller = Caller::new(&rig).await;
    caller.pay(&rig).await;
    let mut stream = caller.spell("for ever").await.unwrap();
    assert_eq!(within(stream.message()).await.unwrap(), Some(words("first")));
    drop_server(upstream).await;
    let lost = within(stream.message()).await.unwrap_err();
    assert_eq!(lost.code(), Code::Unavailable, "{lost:?}");
    let gone = caller.say(caller.request(words("hello"))).await.unwrap_err();
    assert_eq!(gone.code(), Code::Unavailable, "{gone:?}");
    assert_eq!(gone.metadata().get("farebox-code").unwrap(), "upstream_unreachable");
}

/// Ends a server for good: its connections, too.
async fn drop_server(upstream: Upstream) {
    upstream.kill().await;
}

#[tokio::test]
async fn a_message_larger_than_any_buffer_passes() {
    let upstream = Parrot::default().perch().await;
    let rig = rig(&upstream).await;
    let mut caller = Caller::new(&rig).await;
    caller.pay(&rig).await;
    // Past the 4 MiB at which most libraries stop unless they are told otherwise.
    let long = "x".repeat(9 << 20);
    let answer = caller.say(caller.request(words(&long))).await.unwrap().into_inner();
    assert_eq!(Bytes::from(answer.text), Bytes::from(long));
}

#[tokio::test]
async fn a_silent_stream_is_not_cut_while_its_limit_lasts() {
    let parrot = Parrot::default();
    let upstream = parrot.perch().await;
    let mut route = service("parrot", &upstream.h2c());
    // What limits the head of other answers doesn't limit a call.
    route.upstream.head_timeout = Some(Duration::from_millis(20));
    route.upstream.idle_timeout = Some(PATIENCE);
    let rig = Rig::new(vec![route]).await;
    let mut caller = Caller::new(&rig).await;
    caller.pay(&rig).await;
    let waiting = caller.request(words("wait"));
    let waited = tokio::time::timeout(Duration::from_millis(200), caller.say(waiting)).await;
    assert!(waited.is_err(), "{waited:?}");
}
