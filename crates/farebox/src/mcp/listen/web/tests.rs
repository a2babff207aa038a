//! Clients who are slow, silent or many, over real sockets.

use axum::routing::post;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Notify,
};

use super::*;

const ASK: &[u8] =
    b"POST /mcp HTTP/1.1\r\nhost: here\r\nauthorization: Bearer secret\r\ncontent-length: 0\r\n\r\n";
const SHORT: Duration = Duration::from_millis(50);
/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(3_600);
/// More than the system takes in for who doesn't read.
const MUCH: usize = 64 << 20;

/// A place where calls are answered when the test says so.
struct Place {
    address: SocketAddr,
    begun: Arc<Notify>,
    go_on: Arc<Notify>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Place {
    async fn new(bounds: Bounds) -> Self {
        let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (tell, wait) = (Arc::clone(&begun), Arc::clone(&go_on));
        let call = async move || {
            tell.notify_one();
            wait.notified().await;
            "done"
        };
        let app = Router::new().route("/mcp", post(call)).route("/much", post(async || vec![b'x'; MUCH]));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop, tasks) =
            (listener.local_addr().unwrap(), CancellationToken::new(), TaskTracker::new());
        let app = guarded(app, Arc::new(Zeroizing::new("secret".to_owned())), bounds);
        tasks.spawn(serve(listener, app, bounds, stop.clone()));
        tasks.close();
        Self { address, begun, go_on, tasks, stop }
    }

    /// A connection on which this has been said.
    async fn connect(&self, said: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(said).await.unwrap();
        stream
    }

    /// What is answered to one that is let go afterwards.
    async fn ask(&self, said: &[u8]) -> String {
        rest(self.connect(said).await).await
    }
}

const BOUNDLESS: Bounds = Bounds { head: LONG, body: LONG, unread: LONG, known: 64, strangers: 64 };

/// All that is said until the connection is closed.
async fn rest(mut stream: TcpStream) -> String {
    let mut told = Vec::new();
    let read = timeout(Duration::from_secs(20), stream.read_to_end(&mut told)).await;
    _ = read.expect("it is closed");
    String::from_utf8(told).unwrap()
}

/// The head of the answer, with what of its body came along.
async fn head(stream: &mut TcpStream) -> String {
    let mut told = vec![0; 4_096];
    let read = timeout(Duration::from_secs(20), stream.read(&mut told)).await;
    told.truncate(read.expect("it is answered").unwrap());
    String::from_utf8(told).unwrap()
}

#[tokio::test]
async fn a_head_that_does_not_come_to_its_end_in_time_is_not_waited_for() {
    let place = Place::new(Bounds { head: SHORT, ..BOUNDLESS }).await;
    for said in [&b""[..], b"P", &ASK[..ASK.len() - 1]] {
        let told = place.ask(said).await;
        assert!(!told.contains("200"), "{told}");
    }
}

#[tokio::test]
async fn a_call_takes_as_long_as_it_takes_and_an_idle_connection_is_closed_behind_it() {
    let place = Place::new(Bounds { head: SHORT, ..BOUNDLESS }).await;
    let asking = place.connect(ASK).await;
    place.begun.notified().await;
    // The time of one that came later is up.
    place.ask(b"").await;
    place.go_on.notify_one();
    let told = rest(asking).await;
    assert!(told.starts_with("HTTP/1.1 200") && told.ends_with("done"), "{told}");
}

#[tokio::test]
async fn at_the_end_a_call_that_is_under_way_is_answered_and_nothing_else_is_waited_for() {
    let place = Place::new(BOUNDLESS).await;
    let (idle, asking) = (place.connect(b"").await, place.connect(ASK).await);
    place.begun.notified().await;
    place.stop.cancel();
    assert_eq!(rest(idle).await, "");
    place.go_on.notify_one();
    let told = rest(asking).await;
    assert!(told.ends_with("done"), "{told}");
    place.tasks.wait().await;
}

#[tokio::test]
async fn a_message_that_does_not_come_to_its_end_in_time_is_refused() {
    let place = Place::new(Bounds { body: SHORT, ..BOUNDLESS }).await;
    let begun = String::from_utf8(ASK.to_vec()).unwrap().replace("length: 0", "length: 10");
    let told = place.ask(format!("{begun}123").as_bytes()).await;
    assert!(told.starts_with("HTTP/1.1 408"), "{told}");
    // Who doesn't know the secret is not even listened to.
    let told = place.ask(format!("{}123", begun.replace("secret", "sesame")).as_bytes()).await;
    assert!(told.starts_with("HTTP/1.1 401"), "{told}");
}

#[tokio::test]
async fn an_answer_that_nobody_reads_is_given_up() {
    let place = Place::new(Bounds { unread: SHORT, ..BOUNDLESS }).await;
    let ask = String::from_utf8(ASK.to_vec()).unwrap().replace("/mcp", "/much");
    let mut deaf = place.connect(ask.as_bytes()).await;
    assert!(head(&mut deaf).await.starts_with("HTTP/1.1 200"));
    place.stop.cancel();
    timeout(Duration::from_secs(20), place.tasks.wait()).await.expect("it is still waited for");
    assert!(rest(deaf).await.len() < MUCH);
}

#[tokio::test]
async fn whoever_says_nothing_keeps_nobody_out_and_is_sent_away_when_there_are_too_many() {
    let place = Place::new(Bounds { known: 1, strangers: 2, ..BOUNDLESS }).await;
    let mut known = place.connect(ASK).await;
    place.begun.notified().await;
    place.go_on.notify_one();
    assert!(head(&mut known).await.starts_with("HTTP/1.1 200"));
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(place.connect(b"").await);
    }
    let last = silent.split_off(18);
    for gone in silent {
        assert_eq!(rest(gone).await, "");
    }
    // One that has shown the secret keeps its place, and there is no second one.
    let told = place.ask(ASK).await;
    assert!(told.starts_with("HTTP/1.1 503"), "{told}");
    known.write_all(ASK).await.unwrap();
    place.go_on.notify_one();
    assert!(head(&mut known).await.starts_with("HTTP/1.1 200"));
    // With it the place is left.
    drop(known);
    place.go_on.notify_one();
    let mut next = loop {
        let mut next = place.connect(ASK).await;
        match head(&mut next).await {
            told if told.starts_with("HTTP/1.1 200") => break next,
            told => assert!(told.starts_with("HTTP/1.1 503"), "{told}"),
        }
    };
    place.go_on.notify_one();
    next.write_all(ASK).await.unwrap();
    assert!(head(&mut next).await.starts_with("HTTP/1.1 200"));
    drop(last);
}
