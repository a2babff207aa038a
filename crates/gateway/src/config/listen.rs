//! Where clients connect: addresses, certificates, and who may connect at all.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use ipnet::IpNet;

/// One address to listen on.
#[derive(Clone, Debug)]
pub struct Listen {
    /// The address; port 0 lets the system choose one.
    pub addr: SocketAddr,
    /// TLS (HTTP/2 and HTTP/1.1 by ALPN). Without it: HTTP/1.1 and HTTP/2 in clear text.
    pub tls: Option<Tls>,
    /// Each connection begins with a header of the PROXY protocol (version 1 or 2), which says whose it is. Whoever connects
    /// must be one of [`trusted_proxies`](super::GatewayConfig::trusted_proxies); everybody else is turned away.
    pub proxy_protocol: bool,
}

impl Listen {
    /// An address in clear text, with defaults for the rest.
    pub const fn new(addr: SocketAddr) -> Self {
        Self { addr, tls: None, proxy_protocol: false }
    }
}

/// How a listener speaks TLS.
#[derive(Clone, Debug)]
pub struct Tls {
    /// What it shows, chosen by the name that the client asks for (SNI). The first is for names that none of them covers,
    /// and for clients that name nobody; there is at least one.
    pub certificates: Vec<Certificate>,
    /// Whether clients show a certificate of their own. Default: they aren't asked.
    pub clients: ClientCertificates,
    /// The oldest version that is spoken. Default: TLS 1.2.
    pub oldest: TlsVersion,
    /// How often to look whether files have changed. Those that have are read again; if they can't be used, what was read
    /// before stays. Default 5 s.
    pub reread: Duration,
}

impl Tls {
    /// TLS with one certificate and defaults for the rest.
    pub fn new(certificate: Certificate) -> Self {
        Self {
            certificates: vec![certificate],
            clients: ClientCertificates::default(),
            oldest: TlsVersion::default(),
            reread: Duration::from_secs(5),
        }
    }
}

/// A certificate with its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Certificate {
    /// From files. They are read again when they change.
    Files(TlsFiles),
    /// Made at each start, for development: no browser trusts it without being told to.
    SelfSigned {
        /// The names and addresses it is for; `localhost`, `127.0.0.1` and `::1` if there are none.
        names: Vec<String>,
    },
}

/// A certificate chain and its key, both PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The chain, the server's own certificate first.
    pub cert: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// Whether clients prove who they are by a certificate of their own. It opens nothing by itself: paths that are sold are
/// paid for all the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ClientCertificates {
    /// They aren't asked.
    #[default]
    Off,
    /// Who shows none gets no connection.
    Required {
        /// The PEM file with the authorities whose certificates are taken.
        ca: PathBuf,
    },
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246).
    #[default]
    V1_2,
    /// TLS 1.3 (RFC 8446).
    V1_3,
}

/// Which clients may come in, by address. Where a trusted proxy speaks for a client, the client's own address counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientLists {
    /// Nobody but these; empty for everybody.
    pub allow: Vec<IpNet>,
    /// None of these, even where `allow` would have them.
    pub block: Vec<IpNet>,
}
