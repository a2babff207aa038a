//! HTTP, for agents on this machine: who knows the secret is let in, if they come by the right `Host`, which keeps web pages out
//! that have a browser call this machine.
//!
//! Whoever connects may keep a place for as long as a call takes; how long they may take to ask and to read what they are told, and
//! how many there may be, is [`Bounds`].

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
    body::Body,
    extract::{Extension, Request, State},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
};
use http::{StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::{server::conn::http1, service::Service as _};
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
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use zeroize::Zeroizing;

use super::{ACCEPT_AGAIN, Patient, UNREAD_MAX, Unread};
use crate::mcp::{Caller, Desk, MESSAGE_BYTES_MAX, Server};

mod guests;

use guests::{Guest, Guests};

/// What those who connect may take up.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// How long the head of a request may take to arrive, and how long a connection is kept that asks for nothing.
    head: Duration,
    /// How long its body may take then.
    body: Duration,
    /// How long an answer may lie unread.
    unread: Duration,
    /// Connections that have shown the secret.
    known: usize,
    /// Connections that haven't, yet.
    strangers: usize,
}

const BOUNDS: Bounds = Bounds {
    head: Duration::from_secs(10),
    body: Duration::from_secs(30),
    unread: UNREAD_MAX,
    known: 64,
    strangers: 64,
};

/// What every request is judged by.
#[derive(Clone)]
struct Door {
    secret: Arc<Zeroizing<String>>,
    bounds: Bounds,
}

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
        let server = move || Ok(Server(Arc::clone(&desk), Caller::default(), Unread::default()));
        let service = StreamableHttpService::new(server, Arc::new(NeverSessionManager::default()), config);
        let app = Router::new().route_service("/mcp", service);
        serve(self.listener, guarded(app, self.secret, BOUNDS), BOUNDS, stop).await;
        Ok(())
    }
}

/// Takes connections until `stop`, and waits for those that have been taken.
async fn serve(listener: TcpListener, app: Router, bounds: Bounds, stop: CancellationToken) {
    let guests = Guests::new(bounds.known, bounds.strangers);
    let connections = TaskTracker::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                    continue;
                }
            },
            () = stop.cancelled() => break,
        };
        connections.spawn(converse(stream, guests.admit(), app.clone(), bounds, stop.clone()));
    }
    connections.close();
    connections.wait().await;
}

/// One connection to its end or, when `stop` comes, to the end of the call that is under way.
async fn converse<S>(stream: S, guest: Arc<Guest>, app: Router, bounds: Bounds, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stream = Patient::new(stream, Some(bounds.unread), Unread::default());
    let (app, known) = (TowerToHyperService::new(app), Arc::clone(&guest));
    let service = hyper::service::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(Arc::clone(&known));
        app.call(request)
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(bounds.head)
            .serve_connection(TokioIo::new(stream), service)
    );
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = guest.away.cancelled() => return tracing::debug!("too many strangers; the one who came first is sent away"),
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection has ended early");
    }
}

fn guarded(app: Router, secret: Arc<Zeroizing<String>>, bounds: Bounds) -> Router {
    app.layer(middleware::from_fn_with_state(Door { secret, bounds }, authorized))
}

/// Lets in who knows the secret, with a request that has come to its end.
async fn authorized(
    State(door): State<Door>,
    Extension(guest): Extension<Arc<Guest>>,
    request: Request,
    next: Next,
) -> Response {
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let is_known = given.and_then(|value| value.split_once(' ')).is_some_and(|(scheme, word)| {
        scheme.eq_ignore_ascii_case("bearer") && bool::from(word.as_bytes().ct_eq(door.secret.as_bytes()))
    });
    if !is_known {
        let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
        return (StatusCode::UNAUTHORIZED, challenge, "the bearer secret is missing or wrong\n")
            .into_response();
    }
    if !guest.is_seated() {
        let later = [(header::RETRY_AFTER, "1"), (header::CONNECTION, "close")];
        let why = "too many agents are connected; ask again when one has left\n";
        return (StatusCode::SERVICE_UNAVAILABLE, later, why).into_response();
    }
    match whole(request, door.bounds.body).await {
        Ok(request) => next.run(request).await,
        Err((status, why)) => (status, [(header::CONNECTION, "close")], why).into_response(),
    }
}

/// The request with all of its body, if that comes in time.
async fn whole(request: Request, most: Duration) -> Result<Request, (StatusCode, &'static str)> {
    let (head, mut body) = request.into_parts();
    let (mut kept, mut is_too_long) = (Vec::new(), false);
    let reading = async {
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            // Read to its end all the same: whoever is still writing would not hear the answer.
            is_too_long |= kept.len() + data.len() > MESSAGE_BYTES_MAX;
            match is_too_long {
                true => kept = Vec::new(),
                false => kept.extend_from_slice(&data),
            }
        }
        Ok::<_, axum::Error>(())
    };
    match timeout(most, reading).await {
        Ok(Ok(())) if !is_too_long => Ok(Request::from_parts(head, Body::from(kept))),
        Ok(Ok(())) => Err((StatusCode::PAYLOAD_TOO_LARGE, "a message is at most 4 MiB long\n")),
        Ok(Err(_)) => Err((StatusCode::BAD_REQUEST, "the message broke off\n")),
        Err(_) => Err((StatusCode::REQUEST_TIMEOUT, "the message has taken too long to arrive\n")),
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
mod tests;
