//! Whose word is taken for who an upstream is: the authorities it may be certified by, read from where they are kept.
//!
//! Reading is apart from using, so that a reload can tell whether a file or the machine's store has changed.

use std::sync::Arc;

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
};
use rustls_native_certs::CertificateResult;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};

use super::UpstreamError;
use crate::config::UpstreamTls;

/// See the module. Two that are equal trust the same.
#[derive(PartialEq, Eq)]
pub(super) enum Trust {
    WebRoots,
    /// These, at least one.
    Authorities(Vec<CertificateDer<'static>>),
    Anybody,
}

impl Trust {
    pub(super) fn read(tls: &UpstreamTls) -> Result<Self, UpstreamError> {
        match tls {
            UpstreamTls::WebRoots => Ok(Self::WebRoots),
            UpstreamTls::SystemRoots => of_the_system(rustls_native_certs::load_native_certs()),
            UpstreamTls::CaFile(path) => {
                let failed = |error: String| UpstreamError::CaFile { path: path.clone(), error };
                let certificates = CertificateDer::pem_file_iter(path)
                    .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                    .map_err(|error| failed(error.to_string()))?;
                if certificates.is_empty() {
                    return Err(failed("there is no certificate in it".to_owned()));
                }
                for certificate in &certificates {
                    RootCertStore::empty()
                        .add(certificate.clone())
                        .map_err(|error| failed(error.to_string()))?;
                }
                Ok(Self::Authorities(certificates))
            }
            UpstreamTls::InsecureSkipVerify => Ok(Self::Anybody),
        }
    }

    /// How to begin TLS with this trust. HTTP/2 is offered before HTTP/1.1.
    pub(super) fn client_config(&self) -> Arc<ClientConfig> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("ring knows the default versions of TLS");
        let builder = match self {
            Self::WebRoots => builder
                .with_root_certificates(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }),
            Self::Authorities(certificates) => {
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(certificates.iter().cloned());
                builder.with_root_certificates(roots)
            }
            Self::Anybody => {
                builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
            }
        };
        let mut tls = builder.with_no_client_auth();
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Arc::new(tls)
    }
}

/// A store may hold certificates of kinds that are long out of use; those are passed over.
fn of_the_system(store: CertificateResult) -> Result<Trust, UpstreamError> {
    let is_readable =
        |certificate: &CertificateDer<'static>| RootCertStore::empty().add(certificate.clone()).is_ok();
    let mut certificates: Vec<_> = store.certs.into_iter().filter(is_readable).collect();
    if certificates.is_empty() {
        let error = store.errors.first().map_or_else(|| "it is empty".to_owned(), ToString::to_string);
        return Err(UpstreamError::SystemRoots { error });
    }
    // Files of a directory come in any order.
    certificates.sort_unstable_by(|left, right| left.as_ref().cmp(right.as_ref()));
    Ok(Trust::Authorities(certificates))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_trusts_nobody_is_told_what_to_do() {
        let error = of_the_system(CertificateResult::default()).err().unwrap().to_string();
        assert!(error.contains("it is empty") && error.contains("tls.ca"), "{error}");
    }

    #[test]
    fn a_certificate_that_cannot_be_read_is_no_authority() {
        let mut store = CertificateResult::default();
        store.certs = vec![CertificateDer::from(vec![0x30, 0x00])];
        assert!(of_the_system(store).is_err());
    }
}
