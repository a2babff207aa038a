//! `listen`, `clients`: where buyers connect, and which of them may.

use std::{net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Deserializer};

use crate::config::value::{Address, Addresses, Written, present, some, text_or_map};

/// An address to listen on.
#[derive(Debug)]
pub(crate) struct Listen {
    pub(crate) addr: SocketAddr,
    pub(crate) tls: Option<Tls>,
    pub(crate) proxy_protocol: bool,
}

/// An entry of `listen` that says more than an address.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct ListenMap {
    /// The address and port, like `0.0.0.0:443` or `[::]:443`.
    addr: Written<Address>,
    /// The certificates to serve with: a mapping, or `self-signed` for one that is made at each start, for development.
    /// Default: none, plain HTTP/1.1 and HTTP/2.
    #[serde(default, deserialize_with = "present")]
    tls: Option<Tls>,
    /// `true` if a load balancer says with the PROXY protocol (version 1 or 2) whose each connection is. Then nobody but
    /// `trusted-proxies` can connect here. Default: `false`.
    #[serde(default)]
    proxy_protocol: bool,
}

/// How to speak TLS.
#[derive(Debug)]
pub(crate) enum Tls {
    Files(TlsMap),
    SelfSigned,
}

/// Certificates, and who may connect with which version. All of these files are read again when they change.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct TlsMap {
    /// The certificate chain, in PEM, the server's own certificate first.
    pub(crate) cert: PathBuf,
    /// The private key, in PEM.
    pub(crate) key: PathBuf,
    /// Certificates for other names. Each client is shown the one for the name that it asks for, and the first one, above,
    /// if there is none. Default: none.
    #[serde(default, deserialize_with = "some")]
    pub(crate) more_certificates: Vec<CertificateFiles>,
    /// A file of authorities, in PEM: clients must then show a certificate that one of them has signed, besides paying.
    /// Default: clients need none.
    #[serde(default, deserialize_with = "present")]
    pub(crate) client_ca: Option<PathBuf>,
    /// The oldest version spoken: `tls1.2` or `tls1.3`. Default: `tls1.2`.
    #[serde(default)]
    pub(crate) oldest: TlsVersion,
}

/// One more certificate and its key.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct CertificateFiles {
    /// The certificate chain, in PEM. It says itself which names it is for.
    pub(crate) cert: PathBuf,
    /// The private key, in PEM.
    pub(crate) key: PathBuf,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) enum TlsVersion {
    #[default]
    #[serde(rename = "tls1.2")]
    V1_2,
    #[serde(rename = "tls1.3")]
    V1_3,
}

/// Which clients come in, by their address or network (`192.0.2.1`, `10.0.0.0/8`). Behind a trusted proxy, the client's own
/// address counts.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Clients {
    /// Nobody but these. Default: everybody.
    #[serde(default, deserialize_with = "some")]
    pub(crate) allow: Vec<Written<Addresses>>,
    /// None of these, even if `allow` names them. Default: nobody is kept out.
    #[serde(default, deserialize_with = "some")]
    pub(crate) block: Vec<Written<Addresses>>,
}

impl Listen {
    /// A plain address.
    pub(crate) const fn at(addr: SocketAddr) -> Self {
        Self { addr, tls: None, proxy_protocol: false }
    }
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text_or_map(
            deserializer,
            "an address like `127.0.0.1:8402`, or a mapping with `addr` and `tls`",
            |text| text.parse::<Address>().map(|addr| Self::at(addr.0)).map_err(|error| error.to_string()),
            |map: ListenMap| Self { addr: map.addr.0.0, tls: map.tls, proxy_protocol: map.proxy_protocol },
        )
    }
}

impl<'de> Deserialize<'de> for Tls {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text_or_map(
            deserializer,
            "`self-signed`, or a mapping with `cert` and `key`",
            |text| match text {
                "self-signed" => Ok(Self::SelfSigned),
                _ => Err(format!(
                    "`{text}` is no certificate; write `self-signed`, or a mapping with `cert` and `key`"
                )),
            },
            Self::Files,
        )
    }
}
