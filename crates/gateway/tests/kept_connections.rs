//! Connections to an upstream that are kept between requests: what becomes of what happens meanwhile, of what is still
//! under way when an answer is there, and of what breaks off.

#![expect(clippy::unwrap_used, reason = "an error is how a test fails")]

mod support;

use std::{net::SocketAddr, sync::Arc};

use support::{Rig, ask, body, free, get, request, within};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
};

/// More than all buffers on the way hold.
const LARGE: usize = 32 << 20;

struct Listening {
    listener: TcpListener,
    addr: SocketAddr,
}

impl Listening {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        Self { listener, addr }
    }

    /// A gateway of one worker before it.
    async fn rig(&self) -> Rig {
        let mut config = support::config(vec![free("api", &format!("http://{}", self.addr))]);
        config.workers = 1;
        Rig::with(config).await
    }

    async fn accept(&self) -> TcpStream {
        within(self.listener.accept()).await.unwrap().0
    }
}

/// Reads up to the end of a head, and what has come with it.
async fn head(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    while !read.windows(4).any(|end| end == b"\r\n\r\n") {
        assert!(within(stream.read_buf(&mut read)).await.unwrap() > 0, "{}", String::from_utf8_lossy(&read));
    }
    String::from_utf8(read).unwrap()
}

async fn answer(stream: &mut TcpStream, text: &str) {
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
    stream.write_all(answer.as_bytes()).await.unwrap();
}

#[tokio::test]
async fn a_connection_that_was_closed_meanwhile_takes_no_request_that_cannot_be_repeated() {
    // Besides, a word that nobody has asked for is no answer to what is asked next.
    for last_words in ["", "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"] {
        let upstream = Listening::new().await;
        let rig = upstream.rig().await;
        let first = tokio::join!(get(rig.addr, "/", &[]), async {
            let mut stream = upstream.accept().await;
            head(&mut stream).await;
            answer(&mut stream, "one").await;
            stream
        });
        assert_eq!(first.0.body(), "one");
        let mut stream = first.1;
        stream.write_all(last_words.as_bytes()).await.unwrap();
        drop(stream);
        // A POST is sent once at most, so that one on the old connection would be lost.
        let second = tokio::join!(ask(rig.addr, request("POST", "/", &[]).map(|_| body("more"))), async {
            let mut stream = upstream.accept().await;
            let mut sent = head(&mut stream).await;
            while !sent.ends_with("more") {
                sent.push(char::from(stream.read_u8().await.unwrap()));
            }
            answer(&mut stream, "two").await;
            stream
        });
        assert_eq!((second.0.status().as_u16(), &second.0.body()[..]), (200, &b"two"[..]));
    }
}

#[tokio::test]
async fn one_connection_is_enough_for_requests_one_after_the_other() {
    let upstream = Listening::new().await;
    let rig = upstream.rig().await;
    let answers = async {
        let mut stream = upstream.accept().await;
        for framing in
            ["Content-Length: 2\r\n\r\nok", "Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"]
        {
            for _ in 0..3 {
                head(&mut stream).await;
                // In pieces, so that head, body and end are not there at once.
                for byte in format!("HTTP/1.1 200 OK\r\n{framing}").bytes() {
                    stream.write_all(&[byte]).await.unwrap();
                    tokio::task::yield_now().await;
                }
            }
        }
    };
    let asked = async {
        for _ in 0..6 {
            assert_eq!(get(rig.addr, "/", &[]).await.body(), "ok");
        }
    };
    tokio::join!(answers, asked);
}

#[tokio::test]
async fn a_client_that_reads_nothing_before_all_is_sent_is_read_to_the_end() {
    let upstream = Listening::new().await;
    let rig = upstream.rig().await;
    let has_all = Arc::new(Notify::new());
    let told = has_all.clone();
    let serve = async {
        let stream = upstream.accept().await;
        // What comes before the request's first byte is no answer to it.
        stream.readable().await.unwrap();
        let (mut from, mut to) = stream.into_split();
        let early = async {
            // An answer from the first byte on, which fills everything up to the client.
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n");
            to.write_all(head.as_bytes()).await.unwrap();
            to.write_all(&vec![b'a'; LARGE]).await.unwrap();
        };
        let rest = async {
            let (mut read, mut buffer) = (0, vec![0; 1 << 16]);
            while read < LARGE {
                let more = from.read(&mut buffer).await.unwrap();
                assert!(more > 0, "after {read} bytes");
                read += more;
            }
            told.notify_one();
        };
        tokio::join!(early, rest);
        to
    };
    let asked = async {
        let mut stream = TcpStream::connect(rig.addr).await.unwrap();
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {LARGE}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&vec![b'q'; LARGE]).await.unwrap();
        has_all.notified().await;
        let (mut read, mut buffer) = (0, vec![0; 1 << 16]);
        while read < LARGE {
            let more = stream.read(&mut buffer).await.unwrap();
            assert!(more > 0, "after {read} bytes");
            read += more;
        }
    };
    within(async { tokio::join!(serve, asked) }).await;
}

#[tokio::test]
async fn a_client_that_goes_away_in_mid_answer_takes_the_connection_with_it() {
    let upstream = Listening::new().await;
    let rig = upstream.rig().await;
    let mut client = TcpStream::connect(rig.addr).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut stream = upstream.accept().await;
    head(&mut stream).await;
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await.unwrap();
    let mut heard = Vec::new();
    while !heard.ends_with(b"half") {
        assert!(within(client.read_buf(&mut heard)).await.unwrap() > 0);
    }
    drop(client);
    let mut rest = Vec::new();
    within(stream.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"");
    // The next one begins anew.
    let next = tokio::join!(get(rig.addr, "/", &[]), async {
        let mut stream = upstream.accept().await;
        head(&mut stream).await;
        answer(&mut stream, "whole").await;
        stream
    });
    assert_eq!(next.0.body(), "whole");
}

#[tokio::test]
async fn a_connection_in_mid_request_is_closed_when_the_client_goes_away() {
    let upstream = Listening::new().await;
    let rig = upstream.rig().await;
    let mut client = TcpStream::connect(rig.addr).await.unwrap();
    client.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf").await.unwrap();
    let mut stream = upstream.accept().await;
    let mut sent = head(&mut stream).await;
    while !sent.ends_with("half") {
        sent.push(char::from(within(stream.read_u8()).await.unwrap()));
    }
    drop(client);
    let mut rest = Vec::new();
    within(stream.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"");
}

#[tokio::test]
async fn an_upload_that_is_given_up_without_a_reason_has_not_ended() {
    let upstream = Listening::new().await;
    let rig = upstream.rig().await;
    let socket = TcpStream::connect(rig.addr).await.unwrap();
    let (sender, connection) = h2::client::handshake(socket).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(connection);
    let asked = http::Request::post("http://localhost/").body(()).unwrap();
    let (_answer, mut upload) = sender.ready().await.unwrap().send_request(asked, false).unwrap();
    upload.send_data("half".into(), false).unwrap();
    let mut stream = upstream.accept().await;
    let mut sent = Vec::new();
    while !sent.ends_with(b"half\r\n") {
        assert!(within(stream.read_buf(&mut sent)).await.unwrap() > 0);
    }
    // The reason that hyper takes for an end.
    upload.send_reset(h2::Reason::NO_ERROR);
    let mut rest = Vec::new();
    within(stream.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"", "no last chunk");
}
