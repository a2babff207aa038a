//! The gateway's own certificate.

use std::{path::PathBuf, sync::Arc};

use rustls::{ServerConfig, crypto::ring};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio_rustls::TlsAcceptor;

use crate::config::{Certificate, Tls};

/// Why a certificate can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("there is no certificate")]
    None,
    /// A file can't be read as what it should be.
    #[error("cannot read `{}`: {error}; it should be a PEM file with {expected}", .path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
        /// What is wrong with it.
        error: String,
    },
    /// Certificate and key don't belong together, or aren't of a kind that TLS uses.
    #[error("cannot use the certificate in `{}` with its key: {error}", .path.display())]
    Mismatch {
        /// The file with the certificate.
        path: PathBuf,
        /// What is wrong.
        error: String,
    },
}

/// Reads certificate and key.
pub(super) fn acceptor(tls: &Tls) -> Result<TlsAcceptor, TlsError> {
    let Some(Certificate::Files(files)) = tls.certificates.first() else {
        return Err(TlsError::None);
    };
    let chain = CertificateDer::pem_file_iter(&files.cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| error.to_string())
        .and_then(|chain| if chain.is_empty() { Err("there is none in it".to_owned()) } else { Ok(chain) })
        .map_err(|error| TlsError::File {
            path: files.cert.clone(),
            expected: "a certificate chain",
            error,
        })?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| TlsError::File {
        path: files.key.clone(),
        expected: "a private key",
        error: error.to_string(),
    })?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring knows the default versions of TLS")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| TlsError::Mismatch { path: files.cert.clone(), error: error.to_string() })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
