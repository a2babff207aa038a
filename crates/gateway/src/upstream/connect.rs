//! Making one connection: TCP, TLS where it is asked for, and the conversation on top.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::oneshot,
    time::{Duration, sleep},
};
use tokio_rustls::TlsConnector;

use super::{SendError, UpstreamError};
use crate::{
    config::{UpstreamConfig, UpstreamScheme, UpstreamTls},
    proxy::RequestBody,
    worker::{Tasks, Worker},
};

/// The number of streams that we take an HTTP/2 upstream to allow until its settings have arrived. An odd number, so
/// that it can be told from theirs.
const STREAMS_UNTIL_TOLD: usize = 97;
/// How long to wait for those settings. They are the first thing that a server says, so only a strange one is late.
const SETTINGS_WAIT: Duration = Duration::from_millis(200);
/// A peer that has said nothing for so long while it owes an answer is asked whether it is still there … Not sooner: gRPC
/// servers bear one such question every five minutes, and take more for abuse (`too_many_pings`), which would be the end of
/// every silent stream.
const PING_AFTER: Duration = Duration::from_secs(330);
/// … and has so long to say yes.
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Knows how to reach one upstream.
pub(super) struct Connector {
    host: String,
    port: u16,
    scheme: UpstreamScheme,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

/// A conversation that has just begun.
pub(super) enum Begun {
    Http1(http1::SendRequest<RequestBody>),
    Http2 { sender: http2::SendRequest<RequestBody>, streams_max: Arc<AtomicUsize> },
}

impl Connector {
    pub(super) fn new(config: &UpstreamConfig) -> Result<Self, UpstreamError> {
        let url = &config.urls[0];
        let host = url.authority().host();
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host).to_owned();
        let tls = match url.scheme() {
            UpstreamScheme::Http | UpstreamScheme::H2c => None,
            UpstreamScheme::Https => {
                let name =
                    ServerName::try_from(host.clone()).map_err(|_| UpstreamError::Name(host.clone()))?;
                Some((TlsConnector::from(Arc::new(client_config(config)?)), name))
            }
        };
        Ok(Self { host, port: url.port(), scheme: url.scheme(), tls })
    }

    /// Whether a connection can carry many requests, as far as is known beforehand.
    pub(super) fn is_http1(&self) -> bool {
        self.scheme == UpstreamScheme::Http
    }

    pub(super) async fn begin(&self, worker: &Worker) -> Result<Begun, SendError> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(SendError::Connect)?;
        // Without it small messages wait for acknowledgements. A socket that refuses the option still works.
        let _ = stream.set_nodelay(true);
        let Some((connector, name)) = &self.tls else {
            return match self.scheme {
                UpstreamScheme::H2c => begin_http2(stream, worker).await,
                UpstreamScheme::Http | UpstreamScheme::Https => begin_http1(stream, worker).await,
            };
        };
        let stream = connector.connect(name.clone(), stream).await.map_err(SendError::Connect)?;
        if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
            begin_http2(stream, worker).await
        } else {
            begin_http1(stream, worker).await
        }
    }
}

async fn begin_http1<S>(stream: S, worker: &Worker) -> Result<Begun, SendError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::Builder::new()
        // Most requests are one head: the simpler call costs less. Pieces of a body are copied once more for it.
        .writev(false)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(SendError::Handshake)?;
    // Its end is told to whoever waits for an answer; there is nobody else to tell.
    worker.tasks.spawn(async move { drop(connection.await) });
    Ok(Begun::Http1(sender))
}

async fn begin_http2<S>(stream: S, worker: &Worker) -> Result<Begun, SendError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, mut connection) = http2::Builder::<Tasks>::new(worker.tasks.clone())
        .timer(TokioTimer::new())
        .initial_max_send_streams(STREAMS_UNTIL_TOLD)
        .keep_alive_interval(PING_AFTER)
        .keep_alive_timeout(PING_TIMEOUT)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(SendError::Handshake)?;
    let streams_max = Arc::new(AtomicUsize::new(STREAMS_UNTIL_TOLD));
    let (told, settled) = oneshot::channel();
    let published = streams_max.clone();
    worker.tasks.spawn(async move {
        let publish = |max: usize| published.store(max, Ordering::Relaxed);
        // hyper doesn't say when the settings arrive, so look every millisecond until they have.
        let mut looks_left = SETTINGS_WAIT.as_millis();
        while connection.current_max_send_streams() == STREAMS_UNTIL_TOLD && looks_left > 0 {
            looks_left -= 1;
            tokio::select! {
                _ = &mut connection => return,
                () = sleep(Duration::from_millis(1)) => {}
            }
        }
        publish(connection.current_max_send_streams());
        let _ = told.send(());
        // They may change later; each request that is sent brings us here.
        std::future::poll_fn(|context| {
            let done = Pin::new(&mut connection).poll(context);
            publish(connection.current_max_send_streams());
            done
        })
        .await
        .unwrap_or(());
    });
    // An error means that the connection ended meanwhile, which sending on it will tell.
    let _ = settled.await;
    Ok(Begun::Http2 { sender, streams_max })
}

fn client_config(config: &UpstreamConfig) -> Result<ClientConfig, UpstreamError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("ring knows the default versions of TLS");
    let builder = match &config.tls {
        UpstreamTls::WebRoots => {
            let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
            builder.with_root_certificates(roots)
        }
        UpstreamTls::CaFile(path) => {
            let failed = |error: String| UpstreamError::CaFile { path: path.clone(), error };
            let mut roots = RootCertStore::empty();
            for certificate in
                CertificateDer::pem_file_iter(path).map_err(|error| failed(error.to_string()))?
            {
                let certificate = certificate.map_err(|error| failed(error.to_string()))?;
                roots.add(certificate).map_err(|error| failed(error.to_string()))?;
            }
            if roots.is_empty() {
                return Err(failed("there is no certificate in it".to_owned()));
            }
            builder.with_root_certificates(roots)
        }
        UpstreamTls::InsecureSkipVerify => {
            tracing::warn!(
                upstream = %config.urls[0],
                "the certificate of this upstream is NOT verified: anyone in between can read and change everything",
            );
            builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        }
    };
    let mut tls = builder.with_no_client_auth();
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(tls)
}

/// Takes every certificate for the right one; the handshake's own signature is still checked.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
