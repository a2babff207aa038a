//! What an upstream is told about a request that passed, in place of the credential that it must not see.

use std::sync::Arc;

use farebox_protocol::{Identifier, ServiceName, strip_credentials};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::Pass;

/// The token's id: 64 hexadecimal digits. It names the buyer and opens nothing.
pub const TOKEN_ID_HEADER: HeaderName = HeaderName::from_static("farebox-token-id");

/// The hash of the payment behind the token: 64 hexadecimal digits.
pub const PAYMENT_HASH_HEADER: HeaderName = HeaderName::from_static("farebox-payment-hash");

/// The name of the service that was asked for.
pub const SERVICE_HEADER: HeaderName = HeaderName::from_static("farebox-service");

/// The names of a token, as they go into headers: written once for as long as the token is remembered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Names {
    /// The credential was all that `Authorization` said, and that was said once.
    pub(crate) is_alone: bool,
    token_id: HeaderValue,
    payment_hash: HeaderValue,
}

/// Whom [`introduce_as`] names for a request, to find out whether it names the same one for the next.
#[derive(Clone, Debug)]
pub struct Buyer(Option<Arc<Names>>);

impl Buyer {
    /// The one who is named for this request; nobody where nothing needed paying.
    pub fn of(pass: &Pass) -> Self {
        Self(pass.names.clone())
    }

    /// Whether this request is introduced in the same words. A token that was forgotten meanwhile counts as another one.
    pub fn is_of(&self, pass: &Pass) -> bool {
        match (&self.0, &pass.names) {
            (Some(known), Some(names)) => Arc::ptr_eq(known, names),
            (None, None) => true,
            _ => false,
        }
    }
}

impl Names {
    pub(crate) fn of_credential_alone(identifier: &Identifier) -> Self {
        Self { is_alone: true, ..Self::of(identifier) }
    }

    pub(crate) fn of(identifier: &Identifier) -> Self {
        let value = |hex: [u8; 64]| HeaderValue::from_bytes(&hex).expect("hexadecimal digits");
        Self {
            is_alone: false,
            token_id: value(identifier.token_id.hex()),
            payment_hash: value(identifier.payment_hash.hex()),
        }
    }
}

/// Removes the credential and introduces the buyer instead.
///
/// Call it last, after hop-by-hop headers have been removed: a client could otherwise name these in `Connection`.
pub fn introduce(headers: &mut HeaderMap, pass: &Pass) {
    strip_credentials(headers);
    label(headers, pass);
}

/// Introduces the buyer, and leaves the credential where it is: for an upstream that asks for it.
pub fn label(headers: &mut HeaderMap, pass: &Pass) {
    remove_labels(headers);
    introduce_as(headers, pass, &service_label(&pass.service));
}

/// Introduces the buyer where nothing is left of what [`remove_labels`] removes, and the service's name is in writing.
pub fn introduce_as(headers: &mut HeaderMap, pass: &Pass, service: &HeaderValue) {
    if let Some(names) = &pass.names {
        headers.append(TOKEN_ID_HEADER, names.token_id.clone());
        headers.append(PAYMENT_HASH_HEADER, names.payment_hash.clone());
    }
    headers.append(SERVICE_HEADER, service.clone());
}

/// A service's name, as it goes into a header.
pub fn service_label(name: &ServiceName) -> HeaderValue {
    HeaderValue::from_str(name.as_str()).expect("a service name is letters, digits and `._-`")
}

/// Removes every header in our namespace: upstreams believe what they find there, so nobody else may write it.
/// Underscores count as hyphens, because CGI, WSGI and their kind can't tell them apart.
pub fn remove_labels(headers: &mut HeaderMap) {
    let is_ours = |name: &HeaderName| {
        let name = name.as_str().as_bytes();
        name.len() > 7 && name.starts_with(b"farebox") && matches!(name[7], b'-' | b'_')
    };
    let ours: Vec<HeaderName> = headers.keys().filter(|name| is_ours(name)).cloned().collect();
    for name in ours {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use farebox_protocol::{PaymentHash, TokenId};
    use http::header::AUTHORIZATION;

    use super::*;
    use crate::Code;

    #[test]
    fn a_client_cannot_introduce_itself() {
        let mut headers = HeaderMap::new();
        for name in ["farebox-token-id", "farebox-service", "farebox-anything", "farebox_token_id"] {
            headers
                .append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_static("forged"));
            headers
                .append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_static("twice"));
        }
        headers.insert("fareboxes", HeaderValue::from_static("somebody else's"));
        headers.insert(AUTHORIZATION, HeaderValue::from_static("Bearer their-own"));
        let identifier = Identifier {
            token_id: TokenId::from_bytes([1; 32]),
            payment_hash: PaymentHash::from_bytes([2; 32]),
        };
        let names = Arc::new(Names::of(&identifier));
        let pass = Pass::paid(&identifier, 0, names, "weather".parse().unwrap());
        introduce(&mut headers, &pass);
        let mut left: Vec<String> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        left.sort();
        assert_eq!(
            left,
            [
                "authorization: Bearer their-own".to_owned(),
                "fareboxes: somebody else's".to_owned(),
                format!("farebox-payment-hash: {}", "02".repeat(32)),
                "farebox-service: weather".to_owned(),
                format!("farebox-token-id: {}", "01".repeat(32)),
            ]
            .map(|line| line)
            .into_iter()
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_free_request_names_no_token() {
        let mut headers = HeaderMap::new();
        headers.insert(TOKEN_ID_HEADER, HeaderValue::from_static("forged"));
        let service = "weather".parse().unwrap();
        introduce(&mut headers, &Pass::unpaid(service, Code::Free));
        assert_eq!(headers.len(), 1);
        assert_eq!(headers[SERVICE_HEADER], "weather");
    }
}
