//! From curl's words to a request.

use std::io::Read as _;

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, header::CONTENT_TYPE};

/// What to ask for.
#[derive(Debug, clap::Args)]
pub(super) struct RequestArgs {
    /// The method [default: GET, or POST with --data]
    #[arg(short = 'X', long, value_name = "METHOD")]
    request: Option<String>,
    /// A header, like 'Accept: text/plain' (may be repeated)
    #[arg(short = 'H', long, value_name = "HEADER")]
    header: Vec<String>,
    /// The body, sent as it is: a text, @FILE, or - for standard input
    #[arg(short, long, value_name = "DATA", allow_hyphen_values = true)]
    data: Option<String>,
}

/// The request, or what is wrong with the command line.
pub(super) fn build(url: &str, args: &RequestArgs) -> anyhow::Result<http::Request<Bytes>> {
    let body = args.data.as_deref().map(body).transpose()?;
    let method = match (&args.request, &body) {
        (Some(method), _) => {
            Method::from_bytes(method.as_bytes()).with_context(|| format!("`{method}` is not a method"))?
        }
        (None, Some(_)) => Method::POST,
        (None, None) => Method::GET,
    };
    let mut request = http::Request::new(body.clone().unwrap_or_default());
    *request.method_mut() = method;
    *request.uri_mut() = uri(url)?;
    for text in &args.header {
        let (name, value) = text
            .split_once(':')
            .with_context(|| format!("`{text}` is not a header; write it like 'Accept: text/plain'"))?;
        let name = HeaderName::from_bytes(name.trim().as_bytes())
            .with_context(|| format!("`{name}` is not the name of a header"))?;
        let value = HeaderValue::from_str(value.trim())
            .with_context(|| format!("the value of `{name}` has characters that no header has"))?;
        request.headers_mut().append(name, value);
    }
    if body.is_some() && !request.headers().contains_key(CONTENT_TYPE) {
        // As curl does, so that command lines can be carried over.
        let form = HeaderValue::from_static("application/x-www-form-urlencoded");
        request.headers_mut().insert(CONTENT_TYPE, form);
    }
    Ok(request)
}

/// An address as people write it.
pub(in crate::cli) fn uri(url: &str) -> anyhow::Result<http::Uri> {
    let url = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
    // `Url` knows about spaces, other alphabets and dots in paths; `Uri` doesn't.
    let url = reqwest::Url::parse(&url)
        .context("the address can't be read; write it like `https://example.com/path`")?;
    anyhow::ensure!(matches!(url.scheme(), "http" | "https"), "`{}` is neither http nor https", url.scheme());
    url.as_str().parse().context("the address can't be sent")
}

fn body(data: &str) -> anyhow::Result<Bytes> {
    let file = match data {
        "-" | "@-" => {
            let mut body = Vec::new();
            std::io::stdin()
                .lock()
                .read_to_end(&mut body)
                .context("cannot read the body from standard input")?;
            return Ok(body.into());
        }
        _ => data.strip_prefix('@'),
    };
    match file {
        Some(path) => {
            Ok(std::fs::read(path).with_context(|| format!("cannot read the body from `{path}`"))?.into())
        }
        None => Ok(Bytes::from(data.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(request: Option<&str>, headers: &[&str], data: Option<&str>) -> RequestArgs {
        RequestArgs {
            request: request.map(str::to_owned),
            header: headers.iter().map(|header| (*header).to_owned()).collect(),
            data: data.map(str::to_owned),
        }
    }

    #[track_caller]
    fn check(url: &str, args: &RequestArgs, want: &str) {
        let got = match build(url, args) {
            Ok(request) => format!("{} {} {:?}", request.method(), request.uri(), request.body()),
            Err(error) => error.to_string(),
        };
        assert_eq!(got, want);
    }

    #[test]
    fn data_makes_a_post_and_a_method_makes_what_it_says() {
        check("http://a/b", &args(None, &[], None), "GET http://a/b b\"\"");
        check("http://a/b", &args(None, &[], Some("x=1")), "POST http://a/b b\"x=1\"");
        check("http://a/b", &args(Some("PUT"), &[], Some("x")), "PUT http://a/b b\"x\"");
    }

    #[test]
    fn an_address_without_a_scheme_is_https() {
        check("a.example/b c", &args(None, &[], None), "GET https://a.example/b%20c b\"\"");
        check("ftp://a/b", &args(None, &[], None), "`ftp` is neither http nor https");
    }

    #[test]
    fn a_header_keeps_its_commas_and_may_be_repeated() {
        let request = build("a", &args(None, &["Accept: a, b", "x:1", "X: 2"], None)).expect("it is right");
        assert_eq!(request.headers()["accept"], "a, b");
        assert_eq!(request.headers().get_all("x").iter().count(), 2);
        check(
            "a",
            &args(None, &["nonsense"], None),
            "`nonsense` is not a header; write it like 'Accept: text/plain'",
        );
    }

    #[test]
    fn a_body_comes_from_a_file_byte_for_byte() {
        let file = tempfile::NamedTempFile::new().expect("there is room");
        std::fs::write(file.path(), b"a\r\nb\0\xff").expect("it can be written");
        let data = format!("@{}", file.path().display());
        let request = build("a", &args(None, &[], Some(&data))).expect("it is right");
        assert_eq!(&request.body()[..], b"a\r\nb\0\xff");
    }
}
