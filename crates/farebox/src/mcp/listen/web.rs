//! HTTP, for agents on this machine: who knows the secret is let in, if they come by the right `Host`, which keeps web pages out
//! that have a browser call this machine.

use std::{
    fs,
    io::{self, ErrorKind, Write as _},
    net::SocketAddr,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
    sync::Arc,
};

use anyhow::Context as _;
use axum::{
    Router,
    extract::{Request, State},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
};
use http::{HeaderValue, StatusCode, header};
use rmcp::transport::{
    StreamableHttpServerConfig, StreamableHttpService,
    streamable_http_server::session::never::NeverSessionManager,
};
use subtle::ConstantTimeEq as _;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::mcp::{Caller, Desk, MESSAGE_BYTES_MAX, Server};

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
        axum::serve(self.listener, app).with_graceful_shutdown(stop.cancelled_owned()).await?;
        Ok(())
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
