//! Upstreams that end HTTP/2 connections while requests are on their way, with a word or without: what they say they have
//! not looked at is asked once more, whatever it is; what they may have looked at isn't.

#![expect(clippy::unwrap_used, reason = "an error is how a test fails")]

mod support;

use std::time::Duration;

use bytes::Bytes;
use farebox_gateway::GatewayConfig;
use http::{Request, Response};
use support::{
    Rig, ask, body,
    counted::requests,
    frames::{ACK, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, SETTINGS, frame},
    free, request, within,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// `:status: 200`, from the static table (RFC 7541).
const OK: &[u8] = &[0x88];
const REFUSED_STREAM: [u8; 4] = 7_u32.to_be_bytes();

/// The upstream's end of a connection.
struct Served(TcpStream);

impl Served {
    async fn accept(listener: &TcpListener) -> Self {
        let (mut socket, _) = within(listener.accept()).await.unwrap();
        within(socket.read_exact(&mut [0; 24])).await.unwrap();
        socket.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
        Self(socket)
    }

    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.0.write_all(&frame(kind, flags, stream, payload)).await.unwrap();
    }

    /// Reads a request up to so many bytes of its body, or to its end: its stream and these bytes.
    async fn request(&mut self, enough: usize) -> (u32, Vec<u8>) {
        let mut sent = Vec::new();
        loop {
            let mut head = [0; 9];
            within(self.0.read_exact(&mut head)).await.unwrap();
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            within(self.0.read_exact(&mut payload)).await.unwrap();
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            match head[3] {
                SETTINGS if head[4] & ACK == 0 => self.send(SETTINGS, ACK, 0, &[]).await,
                DATA => sent.extend_from_slice(&payload),
                _ => {}
            }
            let is_end = matches!(head[3], DATA | HEADERS) && head[4] & END_STREAM != 0;
            if is_end || head[3] == DATA && sent.len() >= enough {
                return (stream, sent);
            }
        }
    }

    async fn answer(&mut self, stream: u32, text: &[u8]) {
        self.send(HEADERS, END_HEADERS, stream, OK).await;
        self.send(DATA, END_STREAM, stream, text).await;
    }

    /// All connections end with this one: it has dealt with nothing after `last`.
    async fn goodbye(&mut self, last: u32) {
        self.send(GOAWAY, 0, 0, &[last.to_be_bytes(), [0; 4]].concat()).await;
    }
}

/// A gateway of one worker, and where its upstream is to listen.
async fn rig() -> (Rig, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = format!("h2c://{}", listener.local_addr().unwrap());
    let mut config = support::config(vec![free("api", &upstream)]);
    config.workers = 1;
    (Rig::with(config).await, listener)
}

fn order(text: impl Into<Bytes>) -> Request<http_body_util::combinators::BoxBody<Bytes, hyper::Error>> {
    request("POST", "/order", &[]).map(|_| body(text))
}

async fn asked(rig: &Rig, text: impl Into<Bytes>) -> Response<Bytes> {
    ask(rig.addr, order(text)).await
}

/// How a request is told that nobody has looked at it.
#[derive(Clone, Copy)]
enum Refusal {
    Goodbye,
    Reset,
}

#[tokio::test]
async fn what_an_upstream_says_it_has_not_looked_at_is_sent_again() {
    for refusal in [Refusal::Goodbye, Refusal::Reset] {
        // On a connection that is there already, and on one that is made for it.
        for is_kept in [false, true] {
            let (rig, listener) = rig().await;
            let serve = async {
                let mut first = Served::accept(&listener).await;
                if is_kept {
                    let (stream, _) = first.request(usize::MAX).await;
                    first.answer(stream, b"hello").await;
                }
                let (stream, sent) = first.request(usize::MAX).await;
                assert_eq!(sent, b"once");
                match refusal {
                    Refusal::Goodbye => first.goodbye(stream - 1).await,
                    Refusal::Reset => first.send(RST_STREAM, 0, stream, &REFUSED_STREAM).await,
                }
                let mut second = match refusal {
                    Refusal::Goodbye => Served::accept(&listener).await,
                    Refusal::Reset => first,
                };
                let (stream, sent) = second.request(usize::MAX).await;
                second.answer(stream, &sent).await;
                second
            };
            let client = async {
                if is_kept {
                    assert_eq!(asked(&rig, "before").await.body(), "hello");
                }
                asked(&rig, "once").await
            };
            let (answer, _open) = tokio::join!(client, serve);
            assert_eq!((answer.status().as_u16(), &answer.body()[..]), (200, &b"once"[..]));
        }
    }
}

#[tokio::test]
async fn who_hangs_up_while_it_is_sent_again_pays_for_nothing_that_was_not_looked_at() {
    for (method, text) in [("POST", "once"), ("GET", "")] {
        // On a machine that stands still, the buyer hangs up too late: after the request has left a second time.
        let mut spent = None;
        for _ in 0..20 {
            spent = spent_by_hanging_up_between(method, text).await;
            if spent.is_some() {
                break;
            }
        }
        assert_eq!(spent, Some(0), "{method}");
    }
}

/// What a buyer has paid who hangs up between an upstream's goodbye and the second sending, unless the latter came first.
async fn spent_by_hanging_up_between(method: &str, text: &'static str) -> Option<u64> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = format!("h2c://{}", listener.local_addr().unwrap());
    let rig = Rig::counting(support::config(vec![requests(&upstream, 5)])).await;
    let bought = rig.purchase("/").await;
    let serve = async {
        let mut first = Served::accept(&listener).await;
        let (stream, _) = first.request(usize::MAX).await;
        first.goodbye(stream - 1).await;
        // The second connection's server says nothing, and so gets no request for a while.
        (first, within(listener.accept()).await.unwrap().0)
    };
    let order = request(method, "/order", &[bought.header()]).map(|_| body(text));
    let (_first, second) = tokio::select! {
        answer = rig.send(1, order) => panic!("there is no answer: {answer:?}"),
        open = serve => open,
    };
    let spent = rig.spent(&bought).await;
    // The preface and the settings come at once; the request would make it more.
    let mut greeting = vec![0; 1 << 16];
    let got = second.try_read(&mut greeting).unwrap_or(0);
    let is_sent_again = got > 24 && kinds(&greeting[24..got]).contains(&HEADERS);
    (!is_sent_again).then_some(spent)
}

/// The kinds of the frames in what was read.
fn kinds(mut bytes: &[u8]) -> Vec<u8> {
    let mut kinds = Vec::new();
    while let [a, b, c, kind, ..] = *bytes {
        kinds.push(kind);
        let length = 9 + u32::from_be_bytes([0, a, b, c]) as usize;
        bytes = bytes.get(length..).unwrap_or_default();
    }
    kinds
}

#[tokio::test]
async fn what_it_may_have_looked_at_and_what_is_not_there_any_more_is_not() {
    // So much of the second is sent that its beginning isn't kept, and it waits for room.
    for (text, last) in [(Bytes::from_static(b"once"), 1), (Bytes::from(vec![b'x'; 80_000]), 0)] {
        let (rig, listener) = rig().await;
        let serve = async {
            let mut first = Served::accept(&listener).await;
            let (stream, _) = first.request(60_000).await;
            assert_eq!(stream, 1);
            first.goodbye(last).await;
        };
        let (answer, ()) = tokio::join!(asked(&rig, text), serve);
        assert_eq!(answer.status(), 502);
        assert_eq!(answer.headers()["farebox-code"], "upstream_failed");
    }
}

#[tokio::test]
async fn one_that_only_ever_says_goodbye_is_not_asked_for_ever() {
    let (rig, listener) = rig().await;
    let mut connections = 0;
    let serve = async {
        loop {
            let mut served = Served::accept(&listener).await;
            served.request(usize::MAX).await;
            connections += 1;
            served.goodbye(0).await;
        }
    };
    let answer = tokio::select! {
        answer = asked(&rig, "once") => answer,
        () = serve => unreachable!("it goes on"),
    };
    assert_eq!(answer.status(), 502);
    assert!((2..=6).contains(&connections), "{connections}");
}

#[tokio::test]
async fn a_connection_that_has_fallen_silent_gets_no_more_requests() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut route = free("api", &format!("h2c://{}", listener.local_addr().unwrap()));
    // One request waits for so long; the others have as long to be answered.
    route.upstream.head_timeout = Some(Duration::from_secs(1));
    let rig = Rig::with(GatewayConfig { workers: 1, ..support::config(vec![route]) }).await;
    let serve = async {
        let mut silent = Served::accept(&listener).await;
        silent.request(usize::MAX).await;
        let mut other = Served::accept(&listener).await;
        for _ in 0..2 {
            let (stream, sent) = other.request(usize::MAX).await;
            other.answer(stream, &sent).await;
        }
        (silent, other)
    };
    let client = async {
        assert_eq!(asked(&rig, "one").await.status(), 504);
        for text in ["two", "three"] {
            assert_eq!(asked(&rig, text).await.body(), text);
        }
    };
    tokio::join!(client, serve);
}
