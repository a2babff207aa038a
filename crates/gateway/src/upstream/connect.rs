//! Making one connection: TCP or a Unix socket, TLS where it is asked for, and the conversation on top.

use std::{
    io::{self, IoSlice},
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
    sync::oneshot,
    time::{Duration, Instant, sleep},
};
use tokio_rustls::TlsConnector;

use super::{
    SendError, UpstreamError,
    gather::{Gathered, Written},
    names::Host,
};
use crate::{
    config::{UpstreamScheme, UpstreamUrl},
    proxy::RequestBody,
    worker::Tasks,
};

/// The number of streams that we take an HTTP/2 upstream to allow until its settings have arrived. An odd number, so
/// that it can be told from theirs.
const STREAMS_UNTIL_TOLD: usize = 97;
/// How long to wait before a Unix socket whose queue is full is tried again.
const KNOCK_AGAIN: Duration = Duration::from_millis(10);
/// How long to wait for those settings. They are the first thing that a server says, so only a strange one is late.
const SETTINGS_WAIT: Duration = Duration::from_millis(200);
/// A peer that has said nothing for so long while it owes an answer is asked whether it is still there … Not sooner: gRPC
/// servers bear one such question every five minutes, and take more for abuse (`too_many_pings`), which would be the end of
/// every silent stream.
const PING_AFTER: Duration = Duration::from_secs(330);
/// … and has so long to say yes.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Knows how to reach one address.
pub(super) struct Connector {
    place: Place,
    scheme: UpstreamScheme,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

#[derive(Clone)]
enum Place {
    Host(Host),
    Socket(PathBuf),
}

/// A conversation that has just begun.
pub(super) enum Begun {
    Http1(http1::SendRequest<RequestBody>, Arc<Written>),
    Http2 { sender: http2::SendRequest<RequestBody>, terms: Arc<Terms> },
}

/// What the other side of an HTTP/2 connection allows.
pub(super) struct Terms {
    pub(super) streams_max: AtomicUsize,
    /// Extended CONNECT (RFC 8441): streams that go on in another protocol.
    pub(super) extended_connect: AtomicBool,
    began: Instant,
    /// When something came from there last, whatever it was: so many milliseconds after it began.
    heard: AtomicU64,
}

impl Terms {
    fn new() -> Self {
        Self {
            streams_max: AtomicUsize::new(STREAMS_UNTIL_TOLD),
            extended_connect: AtomicBool::new(false),
            began: Instant::now(),
            heard: AtomicU64::new(0),
        }
    }

    fn hear(&self) {
        let millis = self.began.elapsed().as_millis();
        self.heard.store(u64::try_from(millis).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// When something came from there last, or when it began.
    pub(super) fn heard(&self) -> Instant {
        self.began + Duration::from_millis(self.heard.load(Ordering::Relaxed))
    }
}

/// A connection whose other side is listened for.
struct Listening<S> {
    stream: S,
    terms: Arc<Terms>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Listening<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_ready() {
            self.terms.hear();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Listening<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl Connector {
    /// `tls` is how to begin it; an address without it does not ask.
    pub(super) fn new(url: &UpstreamUrl, tls: Option<&Arc<ClientConfig>>) -> Result<Self, UpstreamError> {
        let name = url.name().to_owned();
        let tls = match tls.filter(|_| url.scheme() == UpstreamScheme::Https) {
            Some(config) => {
                let name =
                    ServerName::try_from(name.clone()).map_err(|_| UpstreamError::Name(name.clone()))?;
                Some((TlsConnector::from(config.clone()), name))
            }
            None => None,
        };
        let place = match url.socket() {
            Some(path) => Place::Socket(path.to_owned()),
            None => Place::Host(Host::new(&name, url.port())),
        };
        Ok(Self { place, scheme: url.scheme(), tls })
    }

    /// Whether a connection carries one request at a time, as far as is known beforehand.
    pub(super) fn is_http1(&self) -> bool {
        self.scheme == UpstreamScheme::Http
    }

    /// Whether a connection may turn out to carry one request at a time.
    pub(super) fn may_be_http1(&self) -> bool {
        self.scheme != UpstreamScheme::H2c
    }

    /// One that reaches the same address, and doesn't offer HTTP/2 where there is an offer to make.
    pub(super) fn without_http2(&self) -> Self {
        let tls = self.tls.as_ref().map(|(connector, name)| {
            let mut config = ClientConfig::clone(connector.config());
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            (TlsConnector::from(Arc::new(config)), name.clone())
        });
        Self { place: self.place.clone(), scheme: self.scheme, tls }
    }

    /// Connects. `kept` is dropped when the connection has ended, or has not come about.
    pub(super) async fn begin<K>(&self, tasks: &Tasks, kept: K) -> Result<Begun, SendError>
    where
        K: Send + 'static,
    {
        let host = match &self.place {
            Place::Host(host) => host,
            Place::Socket(path) => {
                let stream = knock(path).await.map_err(SendError::Connect)?;
                return match self.scheme {
                    UpstreamScheme::H2c => begin_http2(stream, tasks, kept).await,
                    UpstreamScheme::Http | UpstreamScheme::Https => begin_http1(stream, tasks, kept).await,
                };
            }
        };
        let stream = host.connect().await.map_err(SendError::Connect)?;
        // Without it small messages wait for acknowledgements. A socket that refuses the option still works.
        let _ = stream.set_nodelay(true);
        let Some((connector, name)) = &self.tls else {
            return match self.scheme {
                UpstreamScheme::H2c => begin_http2(stream, tasks, kept).await,
                UpstreamScheme::Http | UpstreamScheme::Https => begin_http1(stream, tasks, kept).await,
            };
        };
        let stream = connector.connect(name.clone(), stream).await.map_err(SendError::Connect)?;
        if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
            begin_http2(stream, tasks, kept).await
        } else {
            begin_http1(stream, tasks, kept).await
        }
    }
}

/// Connects to a Unix socket. Where TCP has clients wait for room in the listener's queue, this refuses at once, and that
/// says nothing about who listens but that much is to do.
async fn knock(path: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(KNOCK_AGAIN).await,
            connected => return connected,
        }
    }
}

async fn begin_http1<S, K>(stream: S, tasks: &Tasks, kept: K) -> Result<Begun, SendError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    K: Send + 'static,
{
    let written = Arc::<Written>::default();
    let (sender, connection) = http1::Builder::new()
        .handshake(TokioIo::new(Gathered::new(stream, Arc::clone(&written))))
        .await
        .map_err(SendError::Handshake)?;
    // Its end is told to whoever waits for an answer; there is nobody else to tell.
    tasks.spawn(async move {
        let _ = connection.with_upgrades().await;
        drop(kept);
    });
    Ok(Begun::Http1(sender, written))
}

async fn begin_http2<S, K>(stream: S, tasks: &Tasks, kept: K) -> Result<Begun, SendError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    K: Send + 'static,
{
    let terms = Arc::new(Terms::new());
    let stream = Listening { stream, terms: terms.clone() };
    let (sender, mut connection) = http2::Builder::<Tasks>::new(tasks.clone())
        .timer(TokioTimer::new())
        .initial_max_send_streams(STREAMS_UNTIL_TOLD)
        .keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PING_TIMEOUT)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(SendError::Handshake)?;
    let (told, settled) = oneshot::channel();
    let published = terms.clone();
    tasks.spawn(async move {
        let _kept = kept;
        let publish = |max: usize, extended_connect: bool| {
            published.streams_max.store(max, Ordering::Relaxed);
            published.extended_connect.store(extended_connect, Ordering::Relaxed);
        };
        // hyper doesn't say when the settings arrive, so look every millisecond until they have.
        let mut looks_left = SETTINGS_WAIT.as_millis();
        while connection.current_max_send_streams() == STREAMS_UNTIL_TOLD && looks_left > 0 {
            looks_left -= 1;
            tokio::select! {
                _ = &mut connection => return,
                () = sleep(Duration::from_millis(1)) => {}
            }
        }
        publish(connection.current_max_send_streams(), connection.is_extended_connect_protocol_enabled());
        let _ = told.send(());
        // They may change later; each request that is sent brings us here.
        std::future::poll_fn(|context| {
            let done = Pin::new(&mut connection).poll(context);
            publish(connection.current_max_send_streams(), connection.is_extended_connect_protocol_enabled());
            done
        })
        .await
        .unwrap_or(());
    });
    // An error means that the connection ended meanwhile, which sending on it will tell.
    let _ = settled.await;
    Ok(Begun::Http2 { sender, terms })
}

#[cfg(test)]
mod tests {
    use http::Request;
    use parking_lot::Mutex;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
        task::JoinSet,
        time::timeout,
    };

    use super::*;

    /// How often a gRPC server lets itself be asked, unless it is told otherwise.
    const GRPC_BEARS: Duration = Duration::from_secs(5 * 60);

    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    const ACK: u8 = 1;

    /// The other side of a conversation in HTTP/2 (RFC 9113): it answers no request, but everything that is asked of the
    /// connection, and notes when it was asked whether it is still there.
    async fn silent_server(mut stream: DuplexStream, asked: Arc<Mutex<Vec<Instant>>>) {
        let frame = |kind: u8, flags: u8, payload: &[u8]| {
            let length = u8::try_from(payload.len()).unwrap();
            [&[0, 0, length, kind, flags, 0, 0, 0, 0], payload].concat()
        };
        stream.read_exact(&mut [0; 24]).await.unwrap();
        stream.write_all(&frame(SETTINGS, 0, &[])).await.unwrap();
        let mut head = [0; 9];
        while stream.read_exact(&mut head).await.is_ok() {
            let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
            stream.read_exact(&mut payload).await.unwrap();
            let answer = match (head[3], head[4] & ACK) {
                (SETTINGS, 0) => frame(SETTINGS, ACK, &[]),
                (PING, 0) => {
                    asked.lock().push(Instant::now());
                    frame(PING, ACK, &payload)
                }
                _ => continue,
            };
            stream.write_all(&answer).await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_stream_is_asked_after_no_more_often_than_grpc_servers_bear() {
        let (ours, theirs) = duplex(1 << 16);
        let asked = Arc::new(Mutex::new(Vec::new()));
        let mut server = JoinSet::new();
        server.spawn(silent_server(theirs, asked.clone()));
        let Ok(Begun::Http2 { mut sender, .. }) = begin_http2(ours, &Tasks::default(), ()).await else {
            panic!("no conversation in HTTP/2")
        };
        let mut request = Request::new(RequestBody::none());
        *request.uri_mut() = "http://api.example/".parse().unwrap();
        let answer = timeout(Duration::from_secs(3600), sender.send_request(request)).await;
        assert!(answer.is_err(), "an hour of silence was not borne: {answer:?}");
        let asked = asked.lock().clone();
        assert!(asked.len() > 1, "a server that is gone would not be noticed");
        assert!(asked.windows(2).all(|pair| pair[1] - pair[0] > GRPC_BEARS), "{asked:?}");
    }
}
