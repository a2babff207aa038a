//! How gRPC says what HTTP says by a status: in a header of an answer that has no body, beside HTTP's 200.
//!
//! Only such heads are read. A status that comes in the trailers of an answer comes too late to send the request again, and
//! no server is known to ask for money there.

use http::{HeaderMap, StatusCode, header};

/// Whether this request is a gRPC call. gRPC-Web is not: its answers have their status in the body.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(header::CONTENT_TYPE) else { return false };
    let Some((name, rest)) = kind.as_bytes().split_at_checked("application/grpc".len()) else { return false };
    name.eq_ignore_ascii_case(b"application/grpc") && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
}

/// What the head of an answer to a gRPC call comes to, in HTTP's terms.
///
/// Money is asked for as "internal" or "unknown" with a challenge: deployed servers say so, since their clients look for
/// that. Without one these are failures like any other.
pub(super) fn status(status: StatusCode, headers: &HeaderMap) -> StatusCode {
    let Some(code) = headers.get("grpc-status").filter(|_| status == StatusCode::OK) else { return status };
    match code.as_bytes() {
        b"0" => StatusCode::OK,
        b"2" | b"13" if headers.contains_key(header::WWW_AUTHENTICATE) => StatusCode::PAYMENT_REQUIRED,
        b"3" | b"9" | b"11" => StatusCode::BAD_REQUEST,
        b"5" => StatusCode::NOT_FOUND,
        b"6" | b"10" => StatusCode::CONFLICT,
        b"7" => StatusCode::FORBIDDEN,
        b"8" => StatusCode::TOO_MANY_REQUESTS,
        b"16" => StatusCode::UNAUTHORIZED,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[track_caller]
    fn check(fields: &[(&'static str, &'static str)], want: u16) {
        let fields = fields
            .iter()
            .map(|(name, value)| (header::HeaderName::from_static(name), HeaderValue::from_static(value)));
        assert_eq!(status(StatusCode::OK, &fields.collect()).as_u16(), want);
    }

    #[test]
    fn internal_and_unknown_ask_for_money_where_a_challenge_stands_beside_them() {
        for code in ["13", "2"] {
            check(&[("grpc-status", code), ("www-authenticate", "L402 macaroon=\"a\", invoice=\"b\"")], 402);
            check(&[("grpc-status", code)], 500);
        }
    }

    #[test]
    fn an_answer_whose_status_is_yet_to_come_is_an_answer() {
        check(&[("www-authenticate", "L402 macaroon=\"a\", invoice=\"b\"")], 200);
        check(&[("grpc-status", "0")], 200);
    }

    #[test]
    fn a_server_in_trouble_says_nothing_of_a_credential() {
        for (code, want) in [("14", 500), ("4", 500), ("8", 429), ("7", 403), ("5", 404), ("nonsense", 500)] {
            check(&[("grpc-status", code)], want);
        }
    }

    #[test]
    fn grpc_is_told_by_its_content_type() {
        for (kind, want) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("Application/gRPC; charset=x", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            let headers = [(header::CONTENT_TYPE, HeaderValue::from_static(kind))].into_iter().collect();
            assert_eq!(is_grpc(&headers), want, "{kind}");
        }
    }
}
