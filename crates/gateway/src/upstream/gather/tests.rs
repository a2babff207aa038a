//! What is written, to sockets that take little at a time, have closed, or answer before they have read.

use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    task::JoinSet,
};

use super::*;

/// Takes so many bytes at a time, and each time none before it is asked once more.
struct Socket {
    at_once: usize,
    is_ready: bool,
    taken: Vec<u8>,
    /// Of each write, in how many pieces it came, and how many bytes were taken.
    writes: Vec<(usize, usize)>,
}

impl Socket {
    fn taking(at_once: usize) -> Self {
        Self { at_once, is_ready: true, taken: Vec::new(), writes: Vec::new() }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.is_ready = !self.is_ready;
        if self.is_ready {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = self.taken.len();
        let taken = pieces.iter().flat_map(|piece| piece.iter()).take(self.at_once);
        self.taken.extend(taken);
        let length = self.taken.len() - before;
        self.writes.push((pieces.len(), length));
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Can't be written to, and has this to say before it ends.
struct Closed(&'static [u8]);

impl AsyncWrite for Closed {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Closed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let length = self.0.len().min(buffer.remaining());
        buffer.put_slice(&self.0[..length]);
        self.0 = &self.0[length..];
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn what_the_other_side_has_said_is_read_before_it_shows_that_it_has_closed() {
    let mut stream = Gathered::new(Closed(b"its last words"), Arc::default());
    stream.write_all(b"piece").await.unwrap();
    assert_eq!(stream.write_vectored(&[IoSlice::new(b"pi"), IoSlice::new(b"ece")]).await.unwrap(), 5);
    stream.flush().await.unwrap();
    let mut said = Vec::new();
    stream.read_to_end(&mut said).await.unwrap();
    assert_eq!(said, b"its last words");
    // From now on there is nothing to be gained by keeping it from the one who writes.
    assert_eq!(stream.write_all(b"piece").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn what_was_wanted_is_kept_as_it_was_written_and_nothing_else() {
    let written = Arc::<Written>::default();
    let mut stream = Gathered::new(Closed(b""), Arc::clone(&written));
    stream.write_all(b"a body").await.unwrap();
    written.keep_next();
    assert_eq!(written.take(), None, "it was never written");
    stream.write_all(b"a head").await.unwrap();
    stream.write_all(b"the next one's").await.unwrap();
    assert_eq!(written.take().unwrap(), b"a head");
    written.keep_next();
    assert_eq!(stream.write_vectored(&[IoSlice::new(b"a "), IoSlice::new(b"head")]).await.unwrap(), 6);
    assert_eq!(written.take().unwrap(), b"a head");
}

fn lines(said: &[(&'static str, &'static str)]) -> Lines {
    Lines::of(&said.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect())
}

#[tokio::test]
async fn our_lines_stand_behind_the_request_line_however_little_is_taken_at_once() {
    let ours = lines(&[("x-a", "1"), ("x-b", "")]);
    let head = b"POST /a?b HTTP/1.1\r\nhost: a\r\n\r\n";
    let large = [b'x'; SMALL];
    for at_once in (1..80).chain([SMALL + 10, 3 * SMALL]) {
        for body in [&b""[..], b"body", &large] {
            let written = Arc::<Written>::default();
            let mut stream = Gathered::new(Socket::taking(at_once), Arc::clone(&written));
            let mut wanted = Vec::new();
            for is_told in [true, false, true] {
                written.write_next(Some(&ours).filter(|_| is_told));
                let mut pieces = [IoSlice::new(head), IoSlice::new(body)];
                let mut left = &mut pieces[..];
                while !left.is_empty() {
                    let length = stream.write_vectored(left).await.unwrap();
                    IoSlice::advance_slices(&mut left, length);
                }
                wanted.extend_from_slice(b"POST /a?b HTTP/1.1\r\n");
                wanted.extend_from_slice(if is_told { b"x-a: 1\r\nx-b: \r\n" } else { b"" });
                wanted.extend_from_slice(b"host: a\r\n\r\n");
                wanted.extend_from_slice(body);
            }
            stream.flush().await.unwrap();
            assert!(stream.stream.taken == wanted, "{at_once} bytes at once, body of {}", body.len());
        }
    }
}

#[tokio::test]
async fn a_head_is_kept_with_our_lines_and_what_they_were_not_written_to_is_not_sent() {
    let written = Arc::<Written>::default();
    let mut stream = Gathered::new(Socket::taking(usize::MAX), Arc::clone(&written));
    written.keep_next();
    written.write_next(Some(&lines(&[("x-a", "1")])));
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    assert_eq!(written.take().unwrap(), b"GET / HTTP/1.1\r\nx-a: 1\r\nhost: a\r\n\r\n");
    // Nothing that isn't a head goes out without what it should have been told with.
    written.write_next(Some(&lines(&[("x-a", "1")])));
    assert!(stream.write_all(b"no head").await.is_err());
    assert_eq!(stream.stream.writes.len(), 1);
    // To one who has closed, it is as if it were written.
    let mut stream = Gathered::new(Closed(b"its last words"), Arc::clone(&written));
    written.write_next(Some(&lines(&[("x-a", "1")])));
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    stream.flush().await.unwrap();
    let mut said = Vec::new();
    stream.read_to_end(&mut said).await.unwrap();
    assert_eq!(said, b"its last words");
}

/// A conversation by hyper, with an upstream that takes 64 bytes at a time.
async fn with_a_narrow_upstream()
-> (http1::SendRequest<Empty<Bytes>>, Arc<Written>, DuplexStream, JoinSet<()>) {
    let (ours, theirs) = duplex(64);
    let written = Arc::<Written>::default();
    let stream = TokioIo::new(Gathered::new(Wide(ours), Arc::clone(&written)));
    let (sender, connection) = http1::handshake(stream).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { drop(connection.await) });
    (sender, written, theirs, tasks)
}

/// Takes lists of pieces, as sockets do.
struct Wide(DuplexStream);

impl AsyncRead for Wide {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Wide {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

#[tokio::test]
async fn a_head_that_is_answered_before_it_is_written_gets_no_lines_of_the_next_one() {
    let mut behind = 0;
    // Where the first one is cut off, and whether it was told with lines itself.
    for (room, is_told) in (20..120).flat_map(|room| [(room, false), (room, true)]) {
        let (mut sender, written, mut upstream, _tasks) = with_a_narrow_upstream().await;
        let request = |path: &str, value: &str| {
            Request::get(path).header("a", value).body(Empty::<Bytes>::new()).unwrap()
        };
        let ours = lines(&[("x-a", "1")]);
        let long = "y".repeat(room);
        written.write_next(Some(&ours).filter(|_| is_told));
        let answer = sender.try_send_request(request("/first", &long));
        let mut received = vec![upstream.read_u8().await.unwrap()];
        upstream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        answer.await.ok().unwrap();
        if written.is_behind() {
            behind += 1;
            continue;
        }
        sender.ready().await.unwrap();
        written.keep_next();
        written.write_next(Some(&lines(&[("x-a", "2")])));
        let _answer = sender.try_send_request(request("/second", "z"));
        let told = if is_told { "x-a: 1\r\n" } else { "" };
        let second = "GET /second HTTP/1.1\r\nx-a: 2\r\na: z\r\n\r\n";
        let wanted = format!("GET /first HTTP/1.1\r\n{told}a: {long}\r\n\r\n{second}");
        received.resize(wanted.len(), 0);
        upstream.read_exact(&mut received[1..]).await.unwrap();
        assert_eq!(String::from_utf8(received).unwrap(), wanted);
        assert_eq!(String::from_utf8(written.take().unwrap()).unwrap(), second);
    }
    assert!((1..200).contains(&behind), "{behind}");
}

#[tokio::test]
async fn little_is_written_in_one_piece_and_much_as_it_lies() {
    let mut stream = Gathered::new(Socket::taking(usize::MAX), Arc::default());
    let large = [b'x'; SMALL];
    for pieces in [&[&b"head"[..], b"body"][..], &[b"", b"head", b""], &[b"head", &large], &[&large]] {
        let length: usize = pieces.iter().map(|piece| piece.len()).sum();
        let pieces: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        assert_eq!(stream.write_vectored(&pieces).await.unwrap(), length);
    }
    assert_eq!(stream.stream.writes, [(1, 8), (1, 4), (2, SMALL + 4), (1, SMALL)]);
}
