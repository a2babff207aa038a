//! hyper with nothing around it, to tell what a gateway adds from what it stands on.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, thread};

use http::{Request, Response};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use rustls::{ServerConfig, crypto::ring};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use crate::Authority;

/// Starts a server that answers every request with `hello`, by HTTP/1.1 or HTTP/2 as it is asked, in clear text or, with
/// an authority, by TLS. It ends with the test binary.
pub fn bare_hyper(authority: Option<&Authority>) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let addr = listener.local_addr().unwrap();
    let tls = authority.map(acceptor);
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener).unwrap();
            let mut open = JoinSet::new();
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let tls = tls.clone();
                open.spawn(async move {
                    let either = auto::Builder::new(TokioExecutor::new());
                    let Some(tls) = tls else { return serve(either, socket).await };
                    // A handshake that fails is the client's affair.
                    let Ok(socket) = tls.accept(socket).await else { return };
                    let is_agreed = socket.get_ref().1.alpn_protocol() == Some(b"h2");
                    serve(if is_agreed { either.http2_only() } else { either }, socket).await;
                });
            }
        });
    });
    addr
}

async fn serve(
    spoken: auto::Builder<TokioExecutor>,
    socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) {
    let hello = service_fn(|_: Request<Incoming>| async {
        Ok::<_, Infallible>(Response::new(Full::new(bytes::Bytes::from_static(b"hello"))))
    });
    // How a connection ends is for the other side to judge.
    let _ = spoken.serve_connection(TokioIo::new(socket), hello).await;
}

fn acceptor(authority: &Authority) -> TlsAcceptor {
    let chain = vec![CertificateDer::from_pem_file(authority.cert()).unwrap()];
    let key = PrivateKeyDer::from_pem_file(authority.key()).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}
