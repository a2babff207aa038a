//! What a request presents, against `vectors/credential.json`.

#![expect(clippy::unwrap_used, reason = "the helpers of a test fail as the test does")]

mod support;

use farebox_protocol::{
    Credential, CredentialError, Macaroon, Preimage, Presented, Scheme, strip_credentials,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use support::vectors;

#[derive(Deserialize)]
struct Vectors {
    presented: Vec<Row>,
    written: Vec<Written>,
}

#[derive(Deserialize)]
struct Row {
    why: String,
    headers: Vec<(String, String)>,
    credentials: Option<Vec<Plain>>,
    malformed: Option<String>,
    left: Vec<(String, String)>,
}

#[derive(Debug, PartialEq, Deserialize)]
struct Plain {
    tokens: Vec<String>,
    preimage: String,
}

#[derive(Deserialize)]
struct Written {
    why: String,
    scheme: String,
    tokens: Vec<String>,
    preimage: String,
    value: String,
}

fn all() -> Vectors {
    vectors("credential.json")
}

fn map(headers: &[(String, String)]) -> HeaderMap {
    let pair = |(name, value): &(String, String)| {
        (name.parse::<HeaderName>().unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap())
    };
    let mut map = HeaderMap::new();
    for (name, value) in headers.iter().map(pair) {
        map.append(name, value);
    }
    map
}

fn plain(credential: &Credential) -> Plain {
    Plain {
        tokens: credential.tokens.iter().map(Macaroon::to_base64).collect(),
        preimage: credential.preimage.expose_hex().to_string(),
    }
}

#[test]
fn every_row_is_read_as_written() {
    for row in all().presented {
        match (Presented::read(&map(&row.headers)), row.credentials, row.malformed) {
            (Presented::Credentials(got), Some(want), None) => {
                assert_eq!(got.iter().map(plain).collect::<Vec<_>>(), want, "{}", row.why);
            }
            (Presented::Malformed(error), None, Some(code)) => assert_eq!(error.code(), code, "{}", row.why),
            (Presented::Nothing, None, None) => {}
            (got, ..) => panic!("{}: {got:?}", row.why),
        }
    }
}

#[test]
fn stripping_takes_ours_and_leaves_the_rest() {
    for row in all().presented {
        let mut headers = map(&row.headers);
        strip_credentials(&mut headers);
        assert_eq!(headers, map(&row.left), "{}", row.why);
        assert!(matches!(Presented::read(&headers), Presented::Nothing), "{}", row.why);
        let once = headers.clone();
        strip_credentials(&mut headers);
        assert_eq!(headers, once, "{}: twice is once", row.why);
    }
}

#[test]
fn what_is_written_is_read_again() {
    for row in all().written {
        let credential = Credential {
            tokens: row.tokens.iter().map(|token| Macaroon::from_base64(token).unwrap()).collect(),
            preimage: Preimage::from_hex(&row.preimage).unwrap(),
        };
        let value = credential.header_value(Scheme::of(&row.scheme).unwrap());
        assert_eq!(*value, row.value, "{}", row.why);
        let headers = map(&[("authorization".to_owned(), value.to_string())]);
        let Presented::Credentials(read) = Presented::read(&headers) else { panic!("{}", row.why) };
        assert_eq!(read.iter().map(plain).collect::<Vec<_>>(), [plain(&credential)], "{}", row.why);
    }
}

#[test]
fn nothing_of_a_credential_shows() {
    for row in all().presented {
        let presented = Presented::read(&map(&row.headers));
        let shown = match &presented {
            Presented::Malformed(error) => format!("{presented:?} {error}"),
            _ => format!("{presented:?}"),
        };
        for (_, value) in &row.headers {
            for part in value.split([' ', ':', ',']).filter(|part| part.len() > 30) {
                assert!(!shown.to_lowercase().contains(&part.to_lowercase()), "{}: {shown}", row.why);
            }
        }
    }
}

#[test]
fn values_that_are_not_text_are_refused_or_left_alone() {
    for (value, malformed) in [(&b"L402 \xff\xfe:00"[..], true), (b"Bearer \xff", false), (b"\xff", false)] {
        let mut headers = HeaderMap::new();
        headers.append("authorization", HeaderValue::from_bytes(value).unwrap());
        assert_eq!(matches!(Presented::read(&headers), Presented::Malformed(_)), malformed, "{value:?}");
        strip_credentials(&mut headers);
        assert_eq!(headers.is_empty(), malformed, "{value:?}");
    }
}

#[test]
fn thousands_of_tokens_in_one_value_are_too_many() {
    let value = |number: u32| {
        let mut bytes = vec![2, 2, 4];
        bytes.extend(number.to_be_bytes());
        bytes.extend([0, 0, 6, 32]);
        bytes.extend([0; 32]);
        let token = Macaroon::from_bytes(&bytes).unwrap().to_base64();
        format!("L402 {token}:{}", "00".repeat(32))
    };
    let values: Vec<String> = (0..5_000).map(value).collect();
    let mut headers = HeaderMap::new();
    headers.insert("authorization", HeaderValue::from_str(&values.join(", ")).unwrap());
    let read = Presented::read(&headers);
    assert!(matches!(read, Presented::Malformed(CredentialError::TooManyTokens)), "{read:?}");
}

/// Every caveat is an HMAC for each live secret: what one token may cost is all that a request may.
#[test]
fn a_request_may_present_as_many_caveats_as_one_token() {
    let read = |counts: &[u8]| {
        let token = |count: u8| {
            // V2: version, identifier of one byte, then `count` caveats of one byte each, then an empty signature.
            let mut bytes = vec![2, 2, 1, count, 0];
            (0..count).for_each(|_| bytes.extend([2, 1, b'a', 0]));
            bytes.extend([0, 6, 32]);
            bytes.extend([0; 32]);
            Macaroon::from_bytes(&bytes).unwrap().to_base64()
        };
        let tokens: Vec<_> = counts.iter().map(|count| token(*count)).collect();
        let mut headers = HeaderMap::new();
        let value = format!("L402 {}:{}", tokens.join(","), "00".repeat(32));
        headers.insert("authorization", HeaderValue::from_str(&value).unwrap());
        Presented::read(&headers)
    };
    for counts in [&[64][..], &[32, 31, 1]] {
        assert!(matches!(read(counts), Presented::Credentials(_)), "{counts:?}");
    }
    for counts in [&[64, 1][..], &[40, 41]] {
        let read = read(counts);
        assert!(matches!(read, Presented::Malformed(CredentialError::TooManyTokens)), "{counts:?}: {read:?}");
    }
}
