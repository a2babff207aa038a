//! Who reads an answer, judged by the request: content negotiation, as far as it is needed.

use http::{HeaderMap, Method, header};

/// Who reads an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Audience {
    /// A program: problem JSON.
    Program,
    /// A person with a browser: a page.
    Browser,
    /// A gRPC client.
    Grpc,
    /// Nobody reads a body.
    HeadersOnly,
}

impl Audience {
    pub(crate) fn of(method: &Method, headers: &HeaderMap, grpc: bool) -> Self {
        match method {
            _ if grpc => Self::Grpc,
            &Method::HEAD | &Method::OPTIONS => Self::HeadersOnly,
            _ if prefers_html(headers) => Self::Browser,
            _ => Self::Program,
        }
    }
}

/// Whether HTML is asked for by name, and JSON isn't asked for more. `*/*` is what programs send.
fn prefers_html(headers: &HeaderMap) -> bool {
    let mut html = 0;
    let mut json = 0;
    let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    for range in values.flat_map(|value| value.split(',')).take(64) {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default().to_ascii_lowercase();
        let quality = parts.find_map(|part| part.strip_prefix("q=")).map_or(1_000, thousandths);
        match media.as_str() {
            "text/html" | "application/xhtml+xml" => html = html.max(quality),
            "application/json" | "application/problem+json" => json = json.max(quality),
            _ => {}
        }
    }
    html > json
}

/// A quality such as `0.8`, in thousandths; what can't be read counts as nothing.
fn thousandths(quality: &str) -> u32 {
    let (whole, fraction) = quality.split_once('.').unwrap_or((quality, ""));
    let digits = format!("{fraction:0<3}");
    match (whole, digits.get(..3).and_then(|digits| digits.parse::<u32>().ok())) {
        ("1", Some(_)) => 1_000,
        ("0", Some(part)) => part,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[track_caller]
    fn check(accept: &str, want: Audience) {
        let mut headers = HeaderMap::new();
        if !accept.is_empty() {
            headers.insert(header::ACCEPT, HeaderValue::from_str(accept).unwrap());
        }
        assert_eq!(Audience::of(&Method::GET, &headers, false), want, "{accept}");
    }

    #[test]
    fn only_who_asks_for_html_by_name_gets_a_page() {
        check("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", Audience::Browser);
        check("TEXT/HTML", Audience::Browser);
        check("application/json;q=0.5, text/html;q=0.9", Audience::Browser);
        check("", Audience::Program);
        check("*/*", Audience::Program);
        check("application/json, text/html;q=0.9", Audience::Program);
        check("application/json, text/html", Audience::Program);
        check("text/html;q=0", Audience::Program);
        check("text/html;q=x", Audience::Program);
        check("text/*", Audience::Program);
        check("text/html;q=0.é", Audience::Program);
    }

    #[test]
    fn head_and_options_have_no_body_and_grpc_its_own_way() {
        let headers = HeaderMap::new();
        assert_eq!(Audience::of(&Method::HEAD, &headers, false), Audience::HeadersOnly);
        assert_eq!(Audience::of(&Method::OPTIONS, &headers, false), Audience::HeadersOnly);
        assert_eq!(Audience::of(&Method::POST, &headers, true), Audience::Grpc);
    }
}
