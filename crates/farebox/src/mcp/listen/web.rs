//! HTTP, for agents on this machine: who knows the secret is let in, if they come by the right `Host`, which keeps web pages out
//! that have a browser call this machine.
//!
//! Whoever connects may keep a place for as long as a call takes, and for no more than [`HEADERS`] without one.

use std::{
    fs,
    io::{self, ErrorKind, Write as _},
    net::SocketAddr,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use axum::{
    Router,
    extract::{Request, State},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
};
use http::{HeaderValue, StatusCode, header};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rmcp::transport::{
    StreamableHttpServerConfig, StreamableHttpService,
    streamable_http_server::session::never::NeverSessionManager,
};
use subtle::ConstantTimeEq as _;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use zeroize::Zeroizing;

use super::ACCEPT_AGAIN;
use crate::mcp::{Caller, Desk, MESSAGE_BYTES_MAX, Server};

/// How long the head of a request may take to arrive, and how long a connection is kept that asks for nothing.
const HEADERS: Duration = Duration::from_secs(10);

/// HTTP, at `/mcp`.
pub(crate) struct Web {
    listener: TcpListener,
    /// What the `Host` of a request may be.
    hosts: Vec<String>,
    secret: Arc<Zeroizing<String>>,
}

impl Web {
    /// Takes the port, and reads the secret or makes one.
    pub(crate) async fn bind(address: SocketAddr, hosts: Vec<String>, secret: &Path) -> anyhow::Result<Self> {
        let secret = Arc::new(bearer(secret)?);
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on `{address}`; choose another with --listen"))?;
        let usual = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
        let hosts = if address.ip().is_loopback() { usual.into_iter().chain(hosts).collect() } else { hosts };
        Ok(Self { listener, hosts, secret })
    }

    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    pub(crate) async fn run(self, desk: Arc<Desk>, stop: CancellationToken) -> anyhow::Result<()> {
        // Without sessions of its own: each request stands for itself, so none can be taken over or pile up. A call whose
        // connection ends is cancelled.
        let config = StreamableHttpServerConfig::default()
            .with_legacy_session_mode(false)
            .with_allowed_hosts(self.hosts)
            .enforce_origin_validation()
            .with_max_request_body_bytes(MESSAGE_BYTES_MAX)
            .with_cancellation_token(stop.clone());
        let server = move || Ok(Server(Arc::clone(&desk), Caller::default()));
        let service = StreamableHttpService::new(server, Arc::new(NeverSessionManager::default()), config);
        let app = Router::new()
            .route_service("/mcp", service)
            .layer(middleware::from_fn_with_state(self.secret, authorized));
        let connections = TaskTracker::new();
        loop {
            let stream = tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(ACCEPT_AGAIN).await;
                        continue;
                    }
                },
                () = stop.cancelled() => break,
            };
            connections.spawn(converse(stream, app.clone(), HEADERS, stop.clone()));
        }
        connections.close();
        connections.wait().await;
        Ok(())
    }
}

/// One connection to its end or, when `stop` comes, to the end of the call that is under way.
/// `headers`: how long it is kept without a call.
async fn converse<S>(stream: S, app: Router, headers: Duration, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(headers)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app))
    );
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection has ended early");
    }
}

/// Lets in who knows the secret.
async fn authorized(State(secret): State<Arc<Zeroizing<String>>>, request: Request, next: Next) -> Response {
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.split_once(' '));
    match given {
        Some((scheme, word))
            if scheme.eq_ignore_ascii_case("bearer")
                && bool::from(word.as_bytes().ct_eq(secret.as_bytes())) =>
        {
            next.run(request).await
        }
        _ => {
            let challenge = [(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))];
            (StatusCode::UNAUTHORIZED, challenge, "the bearer secret is missing or wrong\n").into_response()
        }
    }
}

/// The secret in this file, which is made if it isn't there.
fn bearer(path: &Path) -> anyhow::Result<Zeroizing<String>> {
    let made = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match made {
        Ok(mut file) => {
            let mut random = Zeroizing::new([0; 32]);
            getrandom::fill(&mut *random).context("the system has no randomness")?;
            let secret = Zeroizing::new(hex::encode(*random));
            writeln!(file, "{}", *secret).and_then(|()| file.sync_all())?;
            Ok(secret)
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            let unreadable = || format!("cannot read the secret in `{}`", path.display());
            let mode = fs::metadata(path).with_context(unreadable)?.permissions().mode();
            anyhow::ensure!(
                mode & 0o077 == 0,
                "others can read the secret in `{}`; run `chmod 600` on it",
                path.display()
            );
            let secret = Zeroizing::new(fs::read_to_string(path).with_context(unreadable)?.trim().to_owned());
            anyhow::ensure!(secret.len() >= 32, "the secret in `{}` is too short", path.display());
            Ok(secret)
        }
        Err(error) => Err(error).with_context(|| format!("cannot write the secret to `{}`", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::post;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
        sync::Notify,
        time::timeout,
    };

    use super::*;

    const ASK: &[u8] = b"POST /mcp HTTP/1.1\r\nhost: here\r\ncontent-length: 0\r\n\r\n";
    const SHORT: Duration = Duration::from_millis(50);
    /// Longer than any test takes.
    const LONG: Duration = Duration::from_secs(3_600);

    /// A place where calls are answered when the test says so.
    struct Place {
        app: Router,
        begun: Arc<Notify>,
        go_on: Arc<Notify>,
        tasks: TaskTracker,
        stop: CancellationToken,
    }

    impl Place {
        fn new() -> Self {
            let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
            let (tell, wait) = (Arc::clone(&begun), Arc::clone(&go_on));
            let call = async move || {
                tell.notify_one();
                wait.notified().await;
                "done"
            };
            let app = Router::new().route("/mcp", post(call));
            Self { app, begun, go_on, tasks: TaskTracker::new(), stop: CancellationToken::new() }
        }

        /// A connection on which this has been said.
        async fn connect(&self, said: &[u8], headers: Duration) -> DuplexStream {
            let (mut ours, theirs) = duplex(4_096);
            self.tasks.spawn(converse(theirs, self.app.clone(), headers, self.stop.clone()));
            ours.write_all(said).await.unwrap();
            ours
        }
    }

    /// All that is said until the connection is closed.
    async fn rest(mut stream: DuplexStream) -> String {
        let mut text = String::new();
        let read = timeout(Duration::from_secs(20), stream.read_to_string(&mut text)).await;
        _ = read.expect("it is closed");
        text
    }

    #[tokio::test]
    async fn a_head_that_does_not_come_to_its_end_in_time_is_not_waited_for() {
        let place = Place::new();
        for said in [&b""[..], b"P", &ASK[..ASK.len() - 1]] {
            let told = rest(place.connect(said, SHORT).await).await;
            assert!(!told.contains("200"), "{told}");
        }
    }

    #[tokio::test]
    async fn a_call_takes_as_long_as_it_takes_and_an_idle_connection_is_closed_behind_it() {
        let place = Place::new();
        let asking = place.connect(ASK, SHORT).await;
        place.begun.notified().await;
        // The time of one that came later is up.
        rest(place.connect(b"", SHORT).await).await;
        place.go_on.notify_one();
        let told = rest(asking).await;
        assert!(told.starts_with("HTTP/1.1 200") && told.ends_with("done"), "{told}");
    }

    #[tokio::test]
    async fn at_the_end_a_call_that_is_under_way_is_answered_and_nothing_else_is_waited_for() {
        let place = Place::new();
        let (idle, asking) = (place.connect(b"", LONG).await, place.connect(ASK, LONG).await);
        place.begun.notified().await;
        place.stop.cancel();
        assert_eq!(rest(idle).await, "");
        place.go_on.notify_one();
        let told = rest(asking).await;
        assert!(told.ends_with("done"), "{told}");
        place.tasks.close();
        place.tasks.wait().await;
    }
}
