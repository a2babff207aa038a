//! TLS to lnd. By default the one certificate that is trusted is the one in lnd's own file, compared byte by byte: lnd
//! signs it itself and calls it an authority, which the usual checks refuse.
//!
//! The file is read again for each new connection, so that a certificate that lnd has renewed is found without a restart.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{FutureExt as _, future::BoxFuture};
use hyper_util::rt::TokioIo;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{self, CryptoProvider},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
};
use tokio::{net::TcpStream, time};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::Uri;
use tower_service::Service;

/// Whose certificate is believed.
#[derive(Clone, Debug)]
pub enum Trust {
    /// The one in this PEM file and no other, whatever name it is for.
    Pinned(PathBuf),
    /// Any that is signed by one in this PEM file and is for the host in the address.
    Authority(PathBuf),
    /// Any that this system's authorities have signed and that is for the host in the address.
    System,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("no connection to `{address}`: {why}")]
    Tcp { address: String, why: io::Error },
    #[error("no connection to `{address}` within {} s", .limit.as_secs())]
    TimedOut { address: String, limit: Duration },
    #[error("can't read the certificate in `{path}`: {why}")]
    File { path: String, why: String },
    #[error(
        "`{address}` shows another certificate than the one in `{path}`; is this file that lnd's `tls.cert`?"
    )]
    Another { address: String, path: String },
    #[error(
        "`{address}` speaks no gRPC; lnd's port for that is 10009, unless its `rpclisten` says otherwise"
    )]
    NoGrpc { address: String },
    #[error("no TLS with `{address}`: {why}")]
    Tls { address: String, why: String },
}

/// Opens connections to one lnd.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    /// Host and port.
    pub(crate) address: Arc<str>,
    pub(crate) trust: Arc<Trust>,
    /// How long opening one may take, with TLS.
    pub(crate) timeout: Duration,
}

impl Link {
    async fn open(self) -> Result<TlsStream<TcpStream>, LinkError> {
        let Self { address, trust, timeout } = self;
        let opened = async {
            let config = config(&trust)?;
            let tcp = TcpStream::connect(&*address)
                .await
                .map_err(|why| LinkError::Tcp { address: address.to_string(), why })?;
            _ = tcp.set_nodelay(true); // slower without, not wrong
            let tls = |why: String| LinkError::Tls { address: address.to_string(), why };
            let name =
                ServerName::try_from(host(&address).to_owned()).map_err(|error| tls(error.to_string()))?;
            let connected = TlsConnector::from(Arc::new(config)).connect(name, tcp).await;
            let connected = connected.map_err(|error| match (&*trust, inner(&error)) {
                (
                    Trust::Pinned(path),
                    Some(TlsError::InvalidCertificate(CertificateError::ApplicationVerificationFailure)),
                ) => LinkError::Another { address: address.to_string(), path: path.display().to_string() },
                _ => tls(error.to_string()),
            })?;
            // Its REST interface has the same certificate.
            match connected.get_ref().1.alpn_protocol() {
                Some(b"h2") => Ok(connected),
                _ => Err(LinkError::NoGrpc { address: address.to_string() }),
            }
        };
        let late = || LinkError::TimedOut { address: address.to_string(), limit: timeout };
        time::timeout(timeout, opened).await.unwrap_or_else(|_| Err(late()))
    }
}

impl Service<Uri> for Link {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = LinkError;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let link = self.clone();
        async move { link.open().await.map(TokioIo::new) }.boxed()
    }
}

/// The host of `host:port`; a numeric IPv6 address stands in brackets.
fn host(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

fn inner(error: &io::Error) -> Option<&TlsError> {
    error.get_ref()?.downcast_ref()
}

fn config(trust: &Trust) -> Result<ClientConfig, LinkError> {
    let provider = Arc::new(crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("ring speaks the default versions of TLS");
    let mut config = match trust {
        Trust::Pinned(path) => {
            let pinned = certificates(path)?.swap_remove(0);
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Only { pinned, provider }))
                .with_no_client_auth()
        }
        Trust::Authority(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| unreadable(path, &error.to_string()))?;
            }
            builder.with_root_certificates(roots).with_no_client_auth()
        }
        Trust::System => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            builder.with_root_certificates(roots).with_no_client_auth()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// The certificates in a file: at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, LinkError> {
    let pem = std::fs::read(path).map_err(|error| unreadable(path, &error.to_string()))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(unreadable(path, "it holds no certificate in PEM form")),
        Err(error) => Err(unreadable(path, &error.to_string())),
    }
}

fn unreadable(path: &Path, why: &str) -> LinkError {
    LinkError::File { path: path.display().to_string(), why: why.to_owned() }
}

/// Believes one certificate. Names and dates don't matter: whoever put it there said whose it is.
#[derive(Debug)]
struct Only {
    pinned: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Only {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        if *shown == self.pinned {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    // That it is shown proves nothing, everybody has it: the peer must also sign with its key.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let algorithms = &self.provider.signature_verification_algorithms;
        crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_found_in_an_address() {
        for (address, want) in
            [("127.0.0.1:10009", "127.0.0.1"), ("[::1]:1", "::1"), ("lnd.lan:10009", "lnd.lan")]
        {
            assert_eq!(host(address), want);
        }
    }

    #[test]
    fn a_certificate_that_cannot_be_read_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tls.cert");
        let error = |path: &Path| config(&Trust::Pinned(path.into())).unwrap_err().to_string();
        assert!(error(&path).starts_with(&format!("can't read the certificate in `{}`: ", path.display())));
        std::fs::write(&path, "not PEM").unwrap();
        assert!(error(&path).ends_with("it holds no certificate in PEM form"));
    }
}
