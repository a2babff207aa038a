//! One certificate with its key, and the choice among several.
//!
//! The names that a certificate is for are read from itself (its subject alternative names), so that there is one list of
//! them and not two. A wildcard stands for one label, as in browsers.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use farebox_protocol::Timestamp;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, string::Ia5String,
};
use rustls::{
    crypto::{CryptoProvider, ring},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime, pem::PemObject};
use sha2::{Digest, Sha256};
use webpki::{EndEntityCert, Error, KeyUsage};

use super::{TlsError, chain};
use crate::config::TlsFiles;

/// How long before its end a certificate is worth a warning: automatic renewal has failed for a while then.
const SOON_SECS: u64 = 14 * 24 * 3600;

/// A certificate, as it is shown to clients.
#[derive(Clone)]
pub(super) struct Shown {
    key: Arc<CertifiedKey>,
    /// In lower case. Addresses don't appear in the handshake, so there is no need to know them.
    names: Vec<String>,
    is_self_signed: bool,
}

/// Chooses by the name that a client asks for: the certificate for just that name, else the one for all names of that
/// domain, else the first. Of two for the same name the one that stands first in the configuration.
#[derive(Debug)]
pub(super) struct ByName {
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// By what stands behind `*.`.
    wildcards: HashMap<String, Arc<CertifiedKey>>,
    first: Option<Arc<CertifiedKey>>,
}

impl Shown {
    pub(super) fn read(files: &TlsFiles, provider: &CryptoProvider) -> Result<Self, TlsError> {
        let chain = chain(&files.cert, "a certificate chain")?;
        let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| TlsError::File {
            path: files.key.clone(),
            expected: "a private key",
            error: error.to_string(),
        })?;
        let key = CertifiedKey::from_der(chain, key, provider).map_err(|error| TlsError::Mismatch {
            cert: files.cert.clone(),
            key: files.key.clone(),
            error: match error {
                rustls::Error::InconsistentKeys(_) => {
                    "the key is not the one that the certificate was made for".to_owned()
                }
                other => other.to_string(),
            },
        })?;
        Ok(Self::new(key, false))
    }

    /// Makes one that nobody vouches for.
    pub(super) fn make(names: &[String]) -> Result<Self, TlsError> {
        let usual = || ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
        let names = if names.is_empty() { usual() } else { names.to_vec() };
        let refused = |error: String| TlsError::SelfSigned { names: names.clone(), error };
        // In a certificate there is room for ASCII only; other names have a spelling in it (RFC 5890).
        if let Some(odd) =
            names.iter().find(|name| Ia5String::try_from(name.as_str()).is_err() || name.is_empty())
        {
            return Err(refused(format!("`{odd}` is not ASCII")));
        }
        let made = || {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::new(names.clone())?;
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, "farebox, self-signed");
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            let certificate = params.self_signed(&key)?;
            Ok((certificate.der().clone(), PrivatePkcs8KeyDer::from(key.serialize_der())))
        };
        let (certificate, key) = made().map_err(|error: rcgen::Error| refused(error.to_string()))?;
        CertifiedKey::from_der(vec![certificate], key.into(), &ring::default_provider())
            .map(|key| Self::new(key, true))
            .map_err(|error| refused(error.to_string()))
    }

    fn new(key: CertifiedKey, is_self_signed: bool) -> Self {
        let certificate = key.cert.first().and_then(|certificate| EndEntityCert::try_from(certificate).ok());
        let names = certificate
            .iter()
            .flat_map(|certificate| certificate.valid_dns_names())
            .map(str::to_ascii_lowercase)
            .collect();
        Self { key: Arc::new(key), names, is_self_signed }
    }

    /// Tells the operator what clients get to see, and what is wrong with it.
    pub(super) fn log(&self, addr: SocketAddr, now: Timestamp) {
        let names = self.names.join(" ");
        let sha256 = self.fingerprint();
        tracing::info!(%addr, names, sha256, self_signed = self.is_self_signed, "TLS with this certificate");
        if self.names.is_empty() && !self.is_self_signed {
            tracing::warn!(%addr, sha256, "this certificate is for no name: it is shown only where it stands first");
        }
        match self.lifetime() {
            Some((begin, _)) if now.secs() < begin => {
                tracing::warn!(%addr, names, sha256, valid_from = begin, "this certificate isn't valid yet");
            }
            Some((_, end)) if now.secs() > end => {
                tracing::warn!(%addr, names, sha256, valid_until = end, "this certificate has expired: clients will refuse it");
            }
            Some((_, end)) if now.secs() + SOON_SECS > end => {
                tracing::warn!(%addr, names, sha256, valid_until = end, "this certificate expires soon: renew it");
            }
            _ => {}
        }
    }

    /// What its owner should know of its time, as the end of a sentence.
    pub(super) fn untimely(&self, now: Timestamp) -> Option<String> {
        let (begin, end) = self.lifetime()?;
        let now = now.secs();
        let days = |from, to| format!("{:.1} days", Duration::from_secs(to - from).as_secs_f32() / 86_400.0);
        if now < begin {
            Some(format!("is not valid yet, for {}: clients refuse it until then", days(now, begin)))
        } else if now > end {
            Some(format!("has expired {} ago: clients refuse it", days(end, now)))
        } else if now + SOON_SECS > end {
            Some(format!("expires in {}: renew it", days(now, end)))
        } else {
            None
        }
    }

    /// As browsers and `openssl x509 -fingerprint -sha256` show it.
    fn fingerprint(&self) -> String {
        let certificate = self.key.cert.first().map(|certificate| &**certificate).unwrap_or_default();
        Sha256::digest(certificate).iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(":")
    }

    /// From when until when it is valid, in seconds since 1970.
    fn lifetime(&self) -> Option<(u64, u64)> {
        let certificate = EndEntityCert::try_from(self.key.cert.first()?).ok()?;
        // The library doesn't tell, but it says what is wrong at times at which it can't be valid.
        let at = |secs| {
            let time = UnixTime::since_unix_epoch(Duration::from_secs(secs));
            certificate.verify_for_usage(&[], &[], &[], time, KeyUsage::server_auth(), None, None).err()
        };
        let begin = match at(0) {
            Some(Error::CertNotValidYet { not_before, .. }) => not_before.as_secs(),
            _ => 0,
        };
        match at(u64::MAX) {
            Some(Error::CertExpired { not_after, .. }) => Some((begin, not_after.as_secs())),
            _ => None,
        }
    }
}

impl ByName {
    pub(super) fn new(shown: &[Shown]) -> Self {
        let mut this = Self {
            exact: HashMap::new(),
            wildcards: HashMap::new(),
            first: shown.first().map(|shown| shown.key.clone()),
        };
        for shown in shown {
            for name in &shown.names {
                let (names, name) = match name.strip_prefix("*.") {
                    Some(domain) => (&mut this.wildcards, domain),
                    None => (&mut this.exact, name.as_str()),
                };
                names.entry(name.to_owned()).or_insert_with(|| shown.key.clone());
            }
        }
        this
    }

    fn choose(&self, name: Option<&str>) -> Option<&Arc<CertifiedKey>> {
        let by_name = |name: &str| {
            // Names are told apart without regard to case, and some clients send the root's dot along.
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            let wildcard = || name.split_once('.').and_then(|(_, domain)| self.wildcards.get(domain));
            self.exact.get(&name).or_else(wildcard)
        };
        name.and_then(by_name).or(self.first.as_ref())
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.choose(hello.server_name()).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn for_names(names: &[&str]) -> Shown {
        Shown::make(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn the_nearest_name_chooses_and_the_first_certificate_is_for_the_rest() {
        let shown = [
            for_names(&["first.org", "10.0.0.1"]),
            for_names(&["*.example.com", "example.com"]),
            for_names(&["api.example.com", "first.org"]),
        ];
        let by_name = ByName::new(&shown);
        let chosen = |name: Option<&str>| {
            let key = by_name.choose(name).unwrap();
            shown.iter().position(|shown| Arc::ptr_eq(&shown.key, key)).unwrap()
        };
        for (name, want) in [
            ("api.example.com", 2),
            ("API.Example.COM", 2),
            ("api.example.com.", 2),
            ("www.example.com", 1),
            ("example.com", 1),
            ("a.b.example.com", 0),
            ("first.org", 0),
            ("elsewhere.net", 0),
            ("com", 0),
            ("", 0),
        ] {
            assert_eq!(chosen(Some(name)), want, "{name}");
        }
        assert_eq!(chosen(None), 0);
    }

    #[test]
    fn a_certificate_tells_its_lifetime_and_its_fingerprint() {
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        let der = PrivatePkcs8KeyDer::from(key.serialize_der());
        let key = CertifiedKey::from_der(vec![certificate], der.into(), &ring::default_provider()).unwrap();
        let shown = Shown::new(key, false);
        let (begin, end) = (1_577_836_800, 1_609_459_200);
        assert_eq!(shown.lifetime(), Some((begin, end)));
        for (now, says) in [
            (begin - 43_200, Some("is not valid yet, for 0.5 days: clients refuse it until then")),
            (begin, None),
            (end - SOON_SECS, None),
            (end - 86_400, Some("expires in 1.0 days: renew it")),
            (end + 172_800, Some("has expired 2.0 days ago: clients refuse it")),
        ] {
            assert_eq!(shown.untimely(Timestamp::from_secs(now)).as_deref(), says, "{now}");
        }
        let fingerprint = shown.fingerprint();
        assert_eq!(fingerprint.len(), 32 * 3 - 1);
        assert!(fingerprint.bytes().all(|byte| byte == b':' || byte.is_ascii_hexdigit()));
    }

    #[test]
    fn without_names_it_is_for_this_machine() {
        assert_eq!(Shown::make(&[]).unwrap().names, ["localhost"]);
    }
}
