//! TLS as a listener speaks it: the certificates that it shows, the clients whose certificates it wants to see, and what
//! becomes of both when their files change.
//!
//! Everything that comes from files is in one immutable `ServerConfig`, swapped whole: a handshake sees the old state or the
//! new one. Files that can't be used leave the old state in place, so a renewal that went wrong breaks nothing before the
//! old certificate has expired.
//!
//! The name in the handshake (SNI) chooses a certificate and nothing else. Which service is asked for, and whether it may
//! be, is decided for each request by its own host; no rule hangs on the name in the handshake, and which clients' certificates
//! are wanted is the listener's rule and not a name's. So a request for another host than the handshake was for, which
//! browsers send when one certificate covers both, is served like any other and never answered 421.

mod certificate;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use arc_swap::ArcSwap;
use farebox_lightning::clock::{Clock, SystemClock};
use farebox_protocol::Timestamp;
use parking_lot::Mutex;
use rustls::{
    RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::{CryptoProvider, ring},
    server::{NoServerSessionStorage, ProducesTickets, WebPkiClientVerifier, danger::ClientCertVerifier},
    version::{TLS12, TLS13},
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use tokio::{
    task::spawn_blocking,
    time::{Duration, interval},
};
use tokio_rustls::TlsAcceptor;

use self::certificate::{ByName, Shown};
use crate::config::{Certificate, ClientCertificates, Tls, TlsVersion};

/// The TLS of one listener.
pub(crate) struct Terminator {
    addr: SocketAddr,
    tls: Tls,
    /// What was made at the start and isn't read from files, one for each certificate of the configuration.
    made: Vec<Option<Shown>>,
    tickets: Arc<dyn ProducesTickets>,
    current: ArcSwap<ServerConfig>,
    /// The files as they were when they were last tried.
    tried: Mutex<Vec<Look>>,
}

/// Files are not looked at more often than this.
const REREAD_MIN: Duration = Duration::from_millis(1);

/// What tells that a file has changed: when it was written, and its length. None if there is no such file.
type Look = Option<(SystemTime, u64)>;

/// Why TLS can't be spoken as it is configured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("the listener `{0}` has no certificate; name one, or ask for a self-signed one")]
    None(SocketAddr),
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
    #[error("cannot use the certificate in `{}` with the key in `{}`: {error}", .cert.display(), .key.display())]
    Mismatch {
        /// The file with the certificate.
        cert: PathBuf,
        /// The file with the key.
        key: PathBuf,
        /// What is wrong.
        error: String,
    },
    #[error(
        "cannot make a self-signed certificate for {names:?}: {error}; each should be a name or an IP address"
    )]
    SelfSigned {
        /// What it should have been for.
        names: Vec<String>,
        /// What is wrong.
        error: String,
    },
    #[error("cannot ask clients for certificates of the authorities in `{}`: {error}", .path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: String,
    },
    #[error("the system has no random numbers for session tickets")]
    Tickets,
}

/// What the owner of the certificates should know of their time, each in a sentence. Of those that can't be read nothing is
/// said here.
pub(crate) fn untimely(tls: &Tls, now: Timestamp) -> Vec<String> {
    let provider = ring::default_provider();
    let files = tls.certificates.iter().filter_map(|certificate| match certificate {
        Certificate::Files(files) => Some(files),
        Certificate::SelfSigned { .. } => None,
    });
    let untimely = files.filter_map(|files| {
        let what = Shown::read(files, &provider).ok()?.untimely(now)?;
        Some(format!("the certificate in `{}` {what}", files.cert.display()))
    });
    untimely.collect()
}

impl Terminator {
    /// Reads and makes what a listener needs. `addr` is for messages.
    pub(super) fn new(addr: SocketAddr, tls: &Tls) -> Result<Arc<Self>, TlsError> {
        if tls.certificates.is_empty() {
            return Err(TlsError::None(addr));
        }
        let made = tls.certificates.iter().map(|certificate| match certificate {
            Certificate::Files(_) => Ok(None),
            Certificate::SelfSigned { names } => Shown::make(names).map(Some),
        });
        let made = made.collect::<Result<Vec<_>, _>>()?;
        let tickets = ring::Ticketer::new().map_err(|_| TlsError::Tickets)?;
        let looks = looks(tls);
        let (config, shown) = build(tls, &made, tickets.clone())?;
        let now = SystemClock.now();
        shown.iter().for_each(|shown| shown.log(addr, now));
        Ok(Arc::new(Self {
            addr,
            tls: tls.clone(),
            made,
            tickets,
            current: ArcSwap::from_pointee(config),
            tried: Mutex::new(looks),
        }))
    }

    /// For one connection, by what is known now.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.current.load_full())
    }

    /// Reads files again when they have changed, until dropped.
    pub(crate) async fn keep_current(self: Arc<Self>) {
        if looks(&self.tls).is_empty() {
            return;
        }
        // Which must not be zero.
        let mut tick = interval(self.tls.reread.max(REREAD_MIN));
        loop {
            tick.tick().await;
            let this = self.clone();
            // A defect in there must not end the whole; the next look may go better.
            let _ = spawn_blocking(move || this.look_again()).await;
        }
    }

    /// Takes what the files say now, if they have changed and can be used. Each state of the files is tried once.
    fn look_again(&self) {
        // Looked at before they are read: what changes meanwhile is read again next time.
        let looks = looks(&self.tls);
        if *self.tried.lock() == looks {
            return;
        }
        *self.tried.lock() = looks;
        // A session that was begun with a certificate of an authority that is no longer trusted must not be resumed.
        let tickets = match (&self.tls.clients, ring::Ticketer::new()) {
            (ClientCertificates::Required { .. }, Ok(fresh)) => fresh,
            (ClientCertificates::Required { .. }, Err(_)) => {
                return tracing::error!(addr = %self.addr, "cannot use the changed certificates: {}", TlsError::Tickets);
            }
            (ClientCertificates::Off, _) => self.tickets.clone(),
        };
        match build(&self.tls, &self.made, tickets) {
            Ok((config, shown)) => {
                self.current.store(Arc::new(config));
                let now = SystemClock.now();
                shown.iter().for_each(|shown| shown.log(self.addr, now));
            }
            Err(error) => {
                tracing::error!(addr = %self.addr, %error, "cannot use the changed certificates; keeping the old ones");
            }
        }
    }
}

fn build(
    tls: &Tls,
    made: &[Option<Shown>],
    tickets: Arc<dyn ProducesTickets>,
) -> Result<(ServerConfig, Vec<Shown>), TlsError> {
    let provider = Arc::new(ring::default_provider());
    let shown = tls.certificates.iter().zip(made).map(|(certificate, made)| match (certificate, made) {
        (Certificate::Files(files), _) => Shown::read(files, &provider),
        (Certificate::SelfSigned { .. }, Some(made)) => Ok(made.clone()),
        (Certificate::SelfSigned { names }, None) => Shown::make(names),
    });
    let shown = shown.collect::<Result<Vec<_>, _>>()?;
    let versions: &[&SupportedProtocolVersion] = match tls.oldest {
        TlsVersion::V1_2 => &[&TLS13, &TLS12],
        TlsVersion::V1_3 => &[&TLS13],
    };
    let clients = verifier(&tls.clients, &provider)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("ring knows TLS 1.2 and 1.3")
        .with_client_cert_verifier(clients)
        .with_cert_resolver(Arc::new(ByName::new(&shown)));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // The client keeps its session; we keep only the keys, so that resumption costs no memory.
    config.ticketer = tickets;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok((config, shown))
}

fn verifier(
    clients: &ClientCertificates,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let ClientCertificates::Required { ca } = clients else {
        return Ok(WebPkiClientVerifier::no_client_auth());
    };
    let refused = |error: String| TlsError::Authorities { path: ca.clone(), error };
    let mut roots = RootCertStore::empty();
    for authority in chain(ca, "the certificates of the authorities")? {
        roots.add(authority).map_err(|error| refused(error.to_string()))?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| refused(error.to_string()))
}

/// The certificates in a PEM file, of which there is at least one.
fn chain(path: &Path, expected: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| error.to_string())
        .and_then(
            |chain| {
                if chain.is_empty() { Err("there is no certificate in it".to_owned()) } else { Ok(chain) }
            },
        )
        .map_err(|error| TlsError::File { path: path.to_owned(), expected, error })
}

fn looks(tls: &Tls) -> Vec<Look> {
    let look = |path: &PathBuf| fs::metadata(path).and_then(|file| Ok((file.modified()?, file.len()))).ok();
    let certificates = tls.certificates.iter().filter_map(|certificate| match certificate {
        Certificate::Files(files) => Some([&files.cert, &files.key]),
        Certificate::SelfSigned { .. } => None,
    });
    let authorities = match &tls.clients {
        ClientCertificates::Required { ca } => Some(ca),
        ClientCertificates::Off => None,
    };
    certificates.flatten().chain(authorities).map(look).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TlsFiles;

    /// Writes a certificate and its key, each time another one.
    fn renew(files: &TlsFiles) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        fs::write(&files.cert, made.cert.pem()).unwrap();
        fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    }

    #[test]
    fn changed_files_are_taken_if_they_can_be_used() {
        let dir = tempfile::tempdir().unwrap();
        let files = TlsFiles { cert: dir.path().join("cert.pem"), key: dir.path().join("key.pem") };
        renew(&files);
        let tls = Tls::new(Certificate::Files(files.clone()));
        let terminator = Terminator::new("127.0.0.1:443".parse().unwrap(), &tls).unwrap();
        let current = || Arc::as_ptr(&terminator.current.load_full());
        let first = current();
        terminator.look_again();
        assert_eq!(current(), first, "nothing has changed");

        let key = fs::read(&files.key).unwrap();
        for broken in [&b"nonsense, and longer than before"[..], b""] {
            fs::write(&files.key, broken).unwrap();
            terminator.look_again();
            assert_eq!(current(), first, "a broken key is not taken");
        }
        fs::remove_file(&files.key).unwrap();
        terminator.look_again();
        assert_eq!(current(), first, "nor is none");
        let tried = terminator.tried.lock().clone();
        terminator.look_again();
        assert_eq!(*terminator.tried.lock(), tried, "and each state is tried once");

        fs::write(&files.key, key).unwrap();
        terminator.look_again();
        assert_ne!(current(), first, "what is whole again is taken");
        let second = current();
        // Longer, so that it shows whatever the file system's clock does.
        fs::write(&files.cert, format!("{}\n", fs::read_to_string(&files.cert).unwrap())).unwrap();
        terminator.look_again();
        assert_ne!(current(), second);
    }

    #[tokio::test]
    async fn files_may_be_looked_at_as_often_as_can_be() {
        let dir = tempfile::tempdir().unwrap();
        let files = TlsFiles { cert: dir.path().join("cert.pem"), key: dir.path().join("key.pem") };
        renew(&files);
        let mut tls = Tls::new(Certificate::Files(files));
        tls.reread = Duration::ZERO;
        let terminator = Terminator::new("127.0.0.1:443".parse().unwrap(), &tls).unwrap();
        let looking = terminator.keep_current();
        assert!(tokio::time::timeout(Duration::from_millis(5), looking).await.is_err(), "it never ends");
    }

    #[test]
    fn a_certificate_and_somebody_elses_key_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let one = TlsFiles { cert: dir.path().join("cert.pem"), key: dir.path().join("key.pem") };
        let other = TlsFiles { cert: dir.path().join("other.pem"), key: dir.path().join("other-key.pem") };
        renew(&one);
        renew(&other);
        let addr = "127.0.0.1:443".parse().unwrap();
        let error = |tls: &Tls| Terminator::new(addr, tls).err().map(|error| error.to_string()).unwrap();
        let crossed = TlsFiles { cert: one.cert.clone(), key: other.key };
        let said = error(&Tls::new(Certificate::Files(crossed)));
        assert!(said.contains("cert.pem") && said.contains("other-key.pem"), "{said}");
        let swapped = TlsFiles { cert: one.key.clone(), key: one.cert.clone() };
        let said = error(&Tls::new(Certificate::Files(swapped)));
        assert!(said.contains("key.pem") && said.contains("a certificate chain"), "{said}");
        let mut clients = Tls::new(Certificate::Files(one.clone()));
        clients.clients = ClientCertificates::Required { ca: one.key };
        let said = error(&clients);
        assert!(said.contains("key.pem") && said.contains("authorities"), "{said}");
        let none = Tls { certificates: Vec::new(), ..clients };
        assert!(error(&none).contains("no certificate"), "{}", error(&none));
        let odd = Tls::new(Certificate::SelfSigned { names: vec!["ü".to_owned()] });
        assert!(error(&odd).contains("each should be a name"), "{}", error(&odd));
    }
}
