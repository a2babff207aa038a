//! A TLS client that takes any certificate, and says which one it was shown.

use std::{io, sync::Arc};

use parking_lot::Mutex;
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme, SupportedProtocolVersion,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::ring,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Keeps what it is shown.
#[derive(Debug, Default)]
pub struct Curious(Mutex<Vec<u8>>);

impl ServerCertVerifier for Curious {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.0.lock() = shown.to_vec();
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// What a client brings along.
#[derive(Default)]
pub struct Client {
    pub curious: Arc<Curious>,
    pub version: Option<&'static SupportedProtocolVersion>,
    pub certificate: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
}

impl Client {
    pub fn config(&self) -> ClientConfig {
        let versions = self.version.map_or(rustls::DEFAULT_VERSIONS.to_vec(), |version| vec![version]);
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(self.curious.clone());
        match &self.certificate {
            Some((certificate, key)) => {
                builder.with_client_auth_cert(vec![certificate.clone()], key.clone_key()).unwrap()
            }
            None => builder.with_no_client_auth(),
        }
    }

    pub fn connector(&self) -> TlsConnector {
        TlsConnector::from(Arc::new(self.config()))
    }

    /// The certificate that was shown last.
    pub fn shown(&self) -> Vec<u8> {
        self.curious.0.lock().clone()
    }
}

/// TLS on a socket, whatever certificate there is.
pub async fn connect(socket: TcpStream, name: &'static str) -> io::Result<TlsStream<TcpStream>> {
    Client::default().connector().connect(ServerName::try_from(name).unwrap(), socket).await
}
