//! What holds of every header that a stranger may send, to either side.
//!
//! The bytes are read as a value of `WWW-Authenticate`, as an invoice, and as a request's headers: a line each, whose first
//! byte says which header it is.

use farebox_protocol::{
    Credential, Invoice, Macaroon, OfferedChallenge, Preimage, Presented, Scheme, TOKENS_MAX,
    http_auth::{CHALLENGES_MAX, PARAMS_MAX, parse_challenges},
    strip_credentials,
};
use http::{HeaderMap, HeaderValue, header::AUTHORIZATION};

/// Panics when a law is broken.
pub(crate) fn check(data: &[u8]) {
    challenge(data);
    invoice(data);
    request(data);
}

fn challenge(data: &[u8]) {
    let parsed = parse_challenges(&String::from_utf8_lossy(data));
    assert!(parsed.len() <= CHALLENGES_MAX);
    assert!(parsed.iter().all(|c| !c.scheme.is_empty() && c.params.len() <= PARAMS_MAX));
    for offer in OfferedChallenge::read_all([data]) {
        // What a buyer sends back is always a header, and names the scheme it answers.
        let answer = offer.answer(&Preimage::from_bytes([0; 32]));
        HeaderValue::from_str(&answer).expect("an answer is a header value");
        if let Ok(macaroon) = offer.macaroon() {
            let again = Macaroon::from_base64(&macaroon.to_base64()).expect("what we write, we read");
            assert_eq!(again.to_bytes(), macaroon.to_bytes());
        }
    }
}

fn invoice(data: &[u8]) {
    if let Ok(invoice) = Invoice::parse(&String::from_utf8_lossy(data)) {
        assert_eq!(Invoice::parse(invoice.as_str()).as_ref(), Ok(&invoice));
        assert!(invoice.amount().is_none_or(|amount| amount.get() > 0));
        assert!(invoice.expires_at() >= invoice.created_at());
        assert_eq!(invoice.payee().len(), 66);
        invoice.description();
    }
}

fn request(data: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n').take(16) {
        let Some((name, value)) = line.split_first() else { continue };
        let Ok(value) = HeaderValue::from_bytes(value) else { continue };
        match name {
            b'm' => headers.append("macaroon", value),
            b't' => headers.append("token", value),
            b'g' => headers.append("grpc-metadata-macaroon", value),
            _ => headers.append(AUTHORIZATION, value),
        };
    }
    let presented = Presented::read(&headers);
    let mut stripped = headers.clone();
    strip_credentials(&mut stripped);
    match &presented {
        // What isn't ours stays as it is.
        Presented::Nothing => assert_eq!(stripped, headers),
        Presented::Malformed(error) => assert!(!error.code().is_empty()),
        Presented::Credentials(credentials) => {
            assert!(!credentials.is_empty());
            assert!(credentials.iter().map(|c| c.tokens.len()).sum::<usize>() <= TOKENS_MAX);
            credentials.iter().for_each(is_written_as_it_was_read);
        }
    }
    // What is ours is gone.
    assert!(matches!(Presented::read(&stripped), Presented::Nothing));
}

fn is_written_as_it_was_read(credential: &Credential) {
    for scheme in [Scheme::L402, Scheme::Lsat] {
        let value = HeaderValue::from_str(&credential.header_value(scheme)).expect("a header value");
        let headers = HeaderMap::from_iter([(AUTHORIZATION, value)]);
        let Presented::Credentials(again) = Presented::read(&headers) else {
            panic!("a credential that we write isn't read");
        };
        assert_eq!(again.len(), 1);
        assert_eq!(again[0].preimage.expose_bytes(), credential.preimage.expose_bytes());
        let bytes = |credential: &Credential| -> Vec<_> {
            credential.tokens.iter().map(Macaroon::to_bytes).collect()
        };
        assert_eq!(bytes(&again[0]), bytes(credential));
    }
}
