//! From curl's words to a request. What curl has and farebox hasn't is refused with the reason, never passed over: a flag
//! that is ignored is worse than none.

use std::{fs, io::Read as _};

use anyhow::Context as _;
use bytes::Bytes;
use farebox_client::RequestBody;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

/// Bodies that are no files are whole in memory, since a purchase sends the request twice.
const BODY_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// So much of them is read into one piece.
const PIECE_BYTES: usize = 1024 * 1024;

/// The offer to buy, as farebox gateways read it.
const OFFER: HeaderName = HeaderName::from_static("farebox-offer");

/// What to ask for.
#[derive(Debug, Default, clap::Args)]
pub(super) struct RequestArgs {
    /// The method [default: GET, or POST with --data]
    #[arg(short = 'X', long, value_name = "METHOD")]
    request: Option<String>,
    /// A header, like 'Accept: text/plain' (may be repeated)
    #[arg(short = 'H', long, value_name = "HEADER")]
    header: Vec<String>,
    /// The body, sent as it is: a text, @FILE, or - for standard input. A request that turns out to cost something is sent
    /// twice, and never again once the server has taken it: a file is read each time and must stay as it is until then;
    /// standard input is kept whole, up to 256 MiB
    #[arg(short, long, visible_alias = "data-binary", value_name = "DATA", allow_hyphen_values = true)]
    data: Option<String>,
    /// Send this file (- for standard input) as the body of a PUT; of both holds what --data says of them
    #[arg(short = 'T', long, value_name = "FILE", conflicts_with = "data", allow_hyphen_values = true)]
    upload_file: Option<String>,
    /// What kind of body it is [default: as a form, like curl; with --upload-file, nothing]
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    /// Ask for the headers only, and print them
    #[arg(short = 'I', long, conflicts_with_all = ["data", "upload_file", "output"])]
    pub(super) head: bool,
    /// What the program calls itself
    #[arg(short = 'A', long, value_name = "NAME")]
    user_agent: Option<String>,
    /// Follow redirects, which is done anyway; no credential goes to another server
    #[arg(short = 'L', long)]
    location: bool,
    #[command(flatten)]
    refused: Refused,
}

/// What curl has and is not done here.
#[derive(Debug, Default, clap::Args)]
struct Refused {
    #[arg(short = 'k', long, hide = true)]
    insecure: bool,
    #[arg(short = 'u', long, hide = true, value_name = "USER")]
    user: Option<String>,
    #[arg(short = 'b', long, hide = true, value_name = "COOKIES")]
    cookie: Option<String>,
    #[arg(short = 'F', long, hide = true, value_name = "FORM")]
    form: Vec<String>,
    #[arg(short = 'O', long, hide = true)]
    remote_name: bool,
    #[arg(short = 'v', long, hide = true)]
    verbose: bool,
    #[arg(long, hide = true)]
    compressed: bool,
    #[arg(short = 'E', long, hide = true, value_name = "CERT")]
    cert: Option<String>,
    #[arg(long, hide = true, value_name = "JSON")]
    params: Option<String>,
    #[arg(long, hide = true, value_name = "SCHEME")]
    prefer_scheme: Option<String>,
}

impl Refused {
    fn check(&self) -> anyhow::Result<()> {
        let Self { insecure, user, cookie, form, remote_name, verbose, compressed, cert, .. } = self;
        let is_other = |scheme: &String| !scheme.eq_ignore_ascii_case("l402");
        for (is_set, why) in [
            (
                *insecure,
                "-k would hand credentials and payments to whoever stands between here and the server; trust its certificate \
                 with --cacert",
            ),
            (
                user.is_some(),
                "-u needs the `Authorization` header, which is where a paid credential travels; a server that wants a \
                 password and no money takes -H 'authorization: Basic …'",
            ),
            (cookie.is_some(), "there are no cookies here; one header for one request is -H 'cookie: …'"),
            (!form.is_empty(), "forms with files are not made here; send a finished body with -d @FILE"),
            (*remote_name, "a server doesn't choose the names of files here; name one with -o"),
            (*verbose, "-v is FAREBOX_LOG=debug here; -i prints the headers of the answer"),
            (*compressed, "bodies are left as they come; leave out --compressed"),
            (cert.is_some(), "certificates of clients are not supported"),
            (
                self.params.is_some(),
                "--params is not read here; write flags, or let a program use `farebox mcp`",
            ),
            (
                self.prefer_scheme.as_ref().is_some_and(is_other),
                "only L402 is paid here; leave out --prefer-scheme",
            ),
        ] {
            anyhow::ensure!(!is_set, "{why}");
        }
        Ok(())
    }
}

/// The request, or what is wrong with the command line.
pub(super) fn build(
    url: &str,
    args: &RequestArgs,
    offer: Option<&str>,
) -> anyhow::Result<http::Request<RequestBody>> {
    args.refused.check()?;
    let body = match (&args.data, &args.upload_file) {
        (Some(data), _) => Some(body(data)?),
        (None, Some(file)) if file == "-" => Some(body(file)?),
        (None, Some(file)) => Some(body(&format!("@{file}"))?),
        (None, None) => None,
    };
    let method = match &args.request {
        Some(method) => {
            Method::from_bytes(method.as_bytes()).with_context(|| format!("`{method}` is not a method"))?
        }
        None if args.head => Method::HEAD,
        None if args.upload_file.is_some() => Method::PUT,
        None if body.is_some() => Method::POST,
        None => Method::GET,
    };
    let mut request = http::Request::new(body.clone().unwrap_or_default());
    *request.method_mut() = method;
    *request.uri_mut() = uri(url)?;
    let headers = request.headers_mut();
    for text in &args.header {
        let (name, value) = text
            .split_once(':')
            .with_context(|| format!("`{text}` is not a header; write it like 'Accept: text/plain'"))?;
        let name = HeaderName::from_bytes(name.trim().as_bytes())
            .with_context(|| format!("`{name}` is not the name of a header"))?;
        headers.append(&name, value_of(&name, value)?);
    }
    if let Some(kind) = &args.content_type {
        put(headers, header::CONTENT_TYPE, kind)?;
    } else if args.data.is_some() && !headers.contains_key(header::CONTENT_TYPE) {
        // As curl does, so that command lines can be carried over.
        put(headers, header::CONTENT_TYPE, "application/x-www-form-urlencoded")?;
    }
    if let Some(name) = &args.user_agent {
        put(headers, header::USER_AGENT, name)?;
    }
    if let Some(offer) = offer {
        put(headers, OFFER, offer)?;
    }
    Ok(request)
}

fn value_of(name: &HeaderName, value: &str) -> anyhow::Result<HeaderValue> {
    HeaderValue::from_str(value.trim())
        .with_context(|| format!("the value of `{name}` has characters that no header has"))
}

/// A header that is written in two ways is written wrongly.
fn put(headers: &mut HeaderMap, name: HeaderName, value: &str) -> anyhow::Result<()> {
    let value = value_of(&name, value)?;
    anyhow::ensure!(
        headers.insert(&name, value).is_none(),
        "`{name}` is written twice, by -H and by a flag of its own; leave one of them out"
    );
    Ok(())
}

/// An address as people write it.
pub(in crate::cli) fn uri(url: &str) -> anyhow::Result<http::Uri> {
    let url = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
    // `Url` knows about spaces, other alphabets and dots in paths; `Uri` doesn't.
    let url = reqwest::Url::parse(&url)
        .context("the address can't be read; write it like `https://example.com/path`")?;
    anyhow::ensure!(matches!(url.scheme(), "http" | "https"), "`{}` is neither http nor https", url.scheme());
    anyhow::ensure!(
        url.username().is_empty() && url.password().is_none(),
        "the address has a user name or password in it, which would go where a paid credential goes; leave it out, or, for a \
         server that wants no money, send it with -H 'authorization: Basic …'"
    );
    url.as_str().parse().context("the address can't be sent")
}

fn body(data: &str) -> anyhow::Result<RequestBody> {
    match data {
        "-" | "@-" => whole(std::io::stdin().lock(), "standard input"),
        _ => match data.strip_prefix('@') {
            Some(path) => file(path).with_context(|| format!("cannot read the body from `{path}`")),
            None => Ok(Bytes::from(data.to_owned()).into()),
        },
    }
}

/// A file is read when it is sent. What can be read only once, or doesn't say how long it is, is kept.
fn file(path: &str) -> anyhow::Result<RequestBody> {
    let facts = fs::metadata(path)?;
    if facts.is_file() && facts.len() > 0 {
        return Ok(RequestBody::file(path)?);
    }
    whole(fs::File::open(path)?, &format!("`{path}`"))
}

fn whole(from: impl std::io::Read, name: &str) -> anyhow::Result<RequestBody> {
    up_to(BODY_BYTES_MAX, from, name)
}

/// It is kept in the pieces in which it is read: a buffer that grows is copied, and takes more than twice its content meanwhile.
fn up_to(most: u64, mut from: impl std::io::Read, name: &str) -> anyhow::Result<RequestBody> {
    let mut pieces = Vec::new();
    let mut length = 0;
    while length <= most {
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        let read = from.by_ref().take(PIECE_BYTES as u64).read_to_end(&mut piece);
        let read = read.with_context(|| format!("cannot read the body from {name}"))?;
        if read == 0 {
            break;
        }
        piece.shrink_to_fit();
        length += read as u64;
        pieces.push(Bytes::from(piece));
    }
    anyhow::ensure!(
        length <= most,
        "the body from {name} is longer than {} MiB, the most that is kept for a request that may have to be \
         sent twice; put it into a file and name that, which is read as it is sent",
        most >> 20
    );
    Ok(pieces.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(request: Option<&str>, headers: &[&str], data: Option<&str>) -> RequestArgs {
        RequestArgs {
            request: request.map(str::to_owned),
            header: headers.iter().map(|header| (*header).to_owned()).collect(),
            data: data.map(str::to_owned),
            ..RequestArgs::default()
        }
    }

    #[track_caller]
    fn check(url: &str, args: &RequestArgs, want: &str) {
        let got = match build(url, args, None) {
            Ok(request) => {
                let body = request.body().kept().map_or("a file".to_owned(), |kept| format!("{kept:?}"));
                format!("{} {} {body}", request.method(), request.uri())
            }
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
        let request =
            build("a", &args(None, &["Accept: a, b", "x:1", "X: 2"], None), None).expect("it is right");
        assert_eq!(request.headers()["accept"], "a, b");
        assert_eq!(request.headers().get_all("x").iter().count(), 2);
        check(
            "a",
            &args(None, &["nonsense"], None),
            "`nonsense` is not a header; write it like 'Accept: text/plain'",
        );
    }

    #[test]
    fn a_file_stays_where_it_is_until_it_is_sent() {
        let file = tempfile::NamedTempFile::new().expect("there is room");
        let data = format!("@{}", file.path().display());
        let empty = build("http://a/", &args(None, &[], Some(&data)), None).unwrap();
        assert!(empty.body().is_empty());
        std::fs::write(file.path(), "a").expect("it can be written");
        check("http://a/", &args(None, &[], Some(&data)), "POST http://a/ a file");
        // It has no length and can't be read twice, so it is kept.
        let nothing = build("http://a/", &args(None, &[], Some("@/dev/null")), None).unwrap();
        assert!(nothing.body().is_empty());
        check("http://a/", &args(None, &[], Some("@/no/such")), "cannot read the body from `/no/such`");
    }

    #[test]
    fn what_is_read_once_is_kept_in_pieces_and_not_beyond_its_bound() {
        let endless = || std::io::repeat(7);
        let kept = whole(endless().take(3 * PIECE_BYTES as u64 + 1), "a pipe").unwrap();
        assert_eq!(kept.length(), 3 * PIECE_BYTES as u64 + 1);
        let error = up_to(2 << 20, endless(), "a pipe").unwrap_err().to_string();
        assert!(error.contains("longer than 2 MiB"), "{error}");
    }

    #[test]
    fn what_curl_has_and_is_not_done_here_is_refused_for_its_reason() {
        let refused = |refused| {
            let args = RequestArgs { refused, ..RequestArgs::default() };
            build("a", &args, None).unwrap_err().to_string()
        };
        for (args, word) in [
            (Refused { insecure: true, ..Refused::default() }, "--cacert"),
            (Refused { user: Some("a:b".to_owned()), ..Refused::default() }, "-H 'authorization"),
            (Refused { cookie: Some("a=b".to_owned()), ..Refused::default() }, "-H 'cookie"),
            (Refused { form: vec!["a=@b".to_owned()], ..Refused::default() }, "-d @FILE"),
            (Refused { remote_name: true, ..Refused::default() }, "-o"),
            (Refused { verbose: true, ..Refused::default() }, "FAREBOX_LOG"),
            (Refused { params: Some("{}".to_owned()), ..Refused::default() }, "farebox mcp"),
            (Refused { prefer_scheme: Some("payment".to_owned()), ..Refused::default() }, "L402"),
        ] {
            let why = refused(args);
            assert!(why.contains(word) && !why.contains("a:b"), "{why}");
        }
        for with_a_name in ["https://me:word@a/", "http://me@a/"] {
            let why = build(with_a_name, &RequestArgs::default(), None).unwrap_err().to_string();
            assert!(why.contains("user name") && !why.contains("word@"), "{why}");
        }
    }

    #[test]
    fn flags_that_are_headers_are_headers_and_not_written_twice() {
        let flags = |header: &[&str]| RequestArgs {
            user_agent: Some("me/1".to_owned()),
            content_type: Some("text/plain".to_owned()),
            ..args(None, header, Some("x"))
        };
        let request = build("a", &flags(&[]), Some("day")).unwrap();
        for (name, value) in
            [("user-agent", "me/1"), ("content-type", "text/plain"), ("farebox-offer", "day")]
        {
            assert_eq!(request.headers()[name], value);
        }
        check(
            "a",
            &flags(&["User-Agent: x"]),
            "`user-agent` is written twice, by -H and by a flag of its own; leave one of them out",
        );
    }

    #[test]
    fn a_file_to_upload_is_put_and_a_head_has_no_body() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"whole").unwrap();
        let upload =
            RequestArgs { upload_file: Some(file.path().display().to_string()), ..RequestArgs::default() };
        check("http://a/b", &upload, "PUT http://a/b a file");
        assert!(!build("a", &upload, None).unwrap().headers().contains_key("content-type"));
        check("http://a/b", &RequestArgs { head: true, ..RequestArgs::default() }, "HEAD http://a/b b\"\"");
    }
}
