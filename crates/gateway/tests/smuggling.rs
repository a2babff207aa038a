//! The corpus of requests that are read in two ways by somebody: each is refused, or reaches the upstream as the one
//! request that was decided on, in plain form. Over HTTP/1.1 and HTTP/2 on both sides; the cases are in `corpus/`.

#![expect(clippy::unwrap_used, reason = "an error is how a test fails")]

mod corpus;
mod support;

use std::{
    collections::HashMap,
    fmt::Debug,
    sync::{LazyLock, OnceLock},
};

use corpus::{
    Expected, Line, Outcome,
    frames::{self, Piece},
    lines,
    reading::{self, Message, Prefers},
    recorder::{Recorder, Version},
    unescape,
};
use farebox_gateway::{Matcher, Rewrite, ServiceRoute};
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use support::{Rig, free, raw, service, within};
use tokio::{io::AsyncWriteExt, net::TcpStream};
use tracing::field::{Field, Visit};
use tracing_subscriber::{Layer, layer::Context, prelude::*};

const AT_ONCE: usize = 16;

/// What the access log says was decided: service, method, path, status.
static DECIDED: LazyLock<Mutex<Vec<[String; 4]>>> = LazyLock::new(Mutex::default);

struct Log;

#[derive(Default)]
struct Fields(HashMap<&'static str, String>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }
}

impl<S: tracing::Subscriber> Layer<S> for Log {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == "farebox::access" {
            let mut fields = Fields::default();
            event.record(&mut fields);
            let line = ["service", "method", "path", "status"];
            DECIDED.lock().push(line.map(|name| fields.0.remove(name).unwrap_or_default()));
        }
    }
}

/// How services lie, by the end of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// `/free` is free, the rest is dear.
    FreePart,
    /// `/dear` is dear, the rest is free.
    DearPart,
    /// As `FreePart`, in one service with free paths.
    FreePaths,
}

impl Layout {
    const fn host(self) -> &'static str {
        match self {
            Self::FreePart => "a.test",
            Self::DearPart => "b.test",
            Self::FreePaths => "c.test",
        }
    }

    /// Whether something may be had without paying, however it is read.
    fn gives_away(self, target: &str) -> bool {
        let place = reading::place(target);
        let is_below = |front: &str| {
            place.strip_prefix(front).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if self == Self::DearPart { !is_below("/dear") } else { is_below("/free") }
    }
}

/// All layouts, in front of one upstream. The names of services begin with `tag`, so that their lines in the log are told
/// apart from those of other tests.
fn services(tag: &str, upstream: &str) -> Vec<ServiceRoute> {
    let on = |mut route: ServiceRoute, layout: Layout, prefix: &str| {
        route.matcher = Matcher {
            hosts: vec![format!("*.{}", layout.host()).parse().unwrap()],
            path_prefixes: vec![prefix.parse().unwrap()],
            ..Matcher::default()
        };
        route
    };
    let mut paths = service(&format!("{tag}-paths"), upstream);
    paths.service.free_paths = vec!["/free".parse().unwrap(), "/free/*".parse().unwrap()];
    vec![
        on(free(&format!("{tag}-free"), upstream), Layout::FreePart, "/free"),
        on(service(&format!("{tag}-rest"), upstream), Layout::FreePart, "/"),
        on(service(&format!("{tag}-dear"), upstream), Layout::DearPart, "/dear"),
        on(free(&format!("{tag}-open"), upstream), Layout::DearPart, "/"),
        on(paths, Layout::FreePaths, "/"),
    ]
}

/// One case and how it went.
struct Ran {
    line: Line,
    layout: Layout,
    host: String,
    expected: Expected,
    /// The statuses that came back, in order.
    statuses: Vec<u16>,
    /// Whether one more request was sent behind it.
    has_end: bool,
}

/// Runs cases against a gateway in front of such an upstream, and judges them all once everything has been received.
async fn check<F>(tag: &str, upstream: Version, cases: Vec<(Line, Layout, Expected)>, send: F)
where
    F: AsyncFn(std::net::SocketAddr, &Line, &Expected, &str) -> (Vec<u16>, bool),
{
    static SUBSCRIBED: OnceLock<()> = OnceLock::new();
    SUBSCRIBED.get_or_init(|| tracing_subscriber::registry().with(Log).init());
    let recorder = Recorder::start(upstream).await;
    let rig = Rig::new(services(tag, &recorder.url())).await;
    let addr = rig.addr;
    let run = |(at, (line, layout, expected)): (usize, (Line, Layout, Expected))| {
        let send = &send;
        async move {
            let host = format!("c{at}.{}", layout.host());
            let (statuses, has_end) = within(send(addr, &line, &expected, &host)).await;
            Ran { line, layout, host, expected, statuses, has_end }
        }
    };
    let ran: Vec<Ran> =
        stream::iter(cases.into_iter().enumerate()).map(run).buffered(AT_ONCE).collect().await;
    rig.stop().await.unwrap();
    let (messages, connections) = within(recorder.finish()).await;

    let mut complaints = Vec::new();
    let mut received: HashMap<&str, Vec<&Message>> = HashMap::new();
    for message in &messages {
        match message.all("x-forwarded-host")[..] {
            [host] => received.entry(host.split(':').next().unwrap()).or_default().push(message),
            _ => complaints.push(format!("nobody knows whose this is: {message:?}")),
        }
    }
    for case in &ran {
        let got = received.remove(case.host.as_str()).unwrap_or_default();
        let [expected, .., reason] = &case.line.columns[..] else { unreachable!() };
        for complaint in judge(case, &got) {
            complaints.push(format!(
                "{} {upstream:?} {:?} ({expected}; {reason})\n    {complaint}\n    statuses {:?}, upstream {:?}",
                case.line.at,
                case.layout,
                case.statuses,
                got.iter().map(|got| (&got.method, &got.target, got.body)).collect::<Vec<_>>(),
            ));
        }
    }
    complaints.extend(received.keys().map(|host| format!("a request for {host}, which is no case's")));
    // Any server finds the same requests in what was sent.
    for bytes in &connections {
        let strict: Vec<_> =
            reading::strict(bytes).unwrap().into_iter().map(|found| (found.method, found.target)).collect();
        for prefers in [Prefers::Length, Prefers::Chunks] {
            let lenient = reading::lenient(bytes, prefers);
            if lenient != strict {
                complaints.push(format!("{prefers:?}: {lenient:?} in place of {strict:?}"));
            }
        }
    }
    // What was received is what was decided on.
    let mut decided = DECIDED.lock().clone();
    for message in messages.iter().filter(|message| message.body.is_some()) {
        let path = message.target.split('?').next().unwrap_or_default();
        let [service] = message.all("farebox-service")[..] else { panic!("{message:?}") };
        let is_it = |line: &[String; 4]| line[0] == service && line[1] == message.method && line[2] == path;
        match decided.iter().position(is_it) {
            Some(at) => drop(decided.swap_remove(at)),
            None => complaints.push(format!("nobody decided on {service} {} {path}", message.method)),
        }
    }
    assert!(complaints.is_empty(), "{} complaints\n{}", complaints.len(), complaints.join("\n"));
}

/// What is wrong with how a case went.
fn judge(case: &Ran, got: &[&Message]) -> Vec<String> {
    let mut complaints = Vec::new();
    for message in got {
        if !case.layout.gives_away(&message.target) {
            complaints.push(format!("{} is dear for somebody", message.target));
        }
        let services = message.all("farebox-service");
        if services.len() != 1 || ["rest", "dear"].iter().any(|dear| services[0].ends_with(dear)) {
            complaints.push(format!("it passed as {services:?}"));
        }
        let spoken = [
            "x-original-url",
            "x-http-method-override",
            "authorization",
            "transfer_encoding",
            "content_length",
        ];
        if let Some((name, _)) = message.headers.iter().find(|(name, _)| spoken.contains(&name.as_str())) {
            complaints.push(format!("`{name}` got through"));
        }
    }
    let is_end = |message: &&&Message| message.target == "/free/end";
    let ends = got.iter().filter(is_end).count();
    let whole: Vec<Outcome> = got
        .iter()
        .filter(|message| !is_end(message))
        .filter_map(|message| {
            let (method, target) = (message.method.clone(), message.target.clone());
            message.body.map(|body| Outcome::Forwarded { method, target, body })
        })
        .collect();
    let is_forwarded = |outcome: &&Outcome| matches!(outcome, Outcome::Forwarded { .. });
    let wanted: Vec<&Outcome> = case.expected.outcomes.iter().filter(is_forwarded).collect();
    if whole.iter().collect::<Vec<_>>() != wanted {
        complaints.push(format!("wanted {wanted:?}"));
    }
    let is_cut = case.expected.outcomes.contains(&Outcome::Cut);
    let cut = got.iter().filter(|message| message.body.is_none()).count();
    if cut > usize::from(is_cut) {
        complaints.push(format!("{cut} were cut off"));
    }
    let last = case.expected.outcomes.last().unwrap();
    let may_end = case.has_end && !case.expected.ends;
    // Behind an answer of our own the connection may be closed, since nobody has read the body.
    let must_end = may_end && is_forwarded(&last);
    if ends > usize::from(may_end) || ends < usize::from(must_end) {
        complaints.push(format!("{ends} requests behind it were served"));
    }
    let mut statuses = case.statuses.clone();
    if ends == 1 && statuses.pop() != Some(200) {
        complaints.push("the request behind it was not answered".to_owned());
    }
    let wanted: Vec<u16> = case
        .expected
        .outcomes
        .iter()
        .filter_map(|outcome| match outcome {
            Outcome::Status(status) => Some(*status),
            Outcome::Forwarded { .. } => Some(200),
            Outcome::Cut => None,
        })
        .collect();
    let is_as_wanted = if is_cut {
        statuses.iter().all(|status| (400..=499).contains(status) || *status == 502)
    } else {
        statuses == wanted
    };
    if !is_as_wanted {
        complaints.push(format!("wanted statuses {wanted:?}"));
    }
    complaints
}

/// Sends bytes over HTTP/1.1, and one more request behind them.
async fn send_http1(
    addr: std::net::SocketAddr,
    bytes: Vec<u8>,
    expected: &Expected,
    host: &str,
) -> (Vec<u16>, bool) {
    let has_end = !expected.outcomes.contains(&Outcome::Cut);
    let answer = if has_end {
        let end = format!("GET /free/end HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        raw(addr, &[bytes, end.into_bytes()].concat(), "").await
    } else {
        // Nothing more will come.
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    };
    let statuses = answer.split("HTTP/1.").skip(1).map(|rest| rest[2..5].parse().unwrap()).collect();
    (statuses, has_end)
}

fn head(method: &str, host: &str) -> String {
    format!("{method} /free/x HTTP/1.1\r\nHost: {host}\r\n")
}

fn http1_bytes(text: &str, host: &str) -> Vec<u8> {
    let mut text = text.replace("{DEAR}", &format!("GET /dear HTTP/1.1\\r\\nHost: {host}\\r\\n\\r\\n"));
    for method in ["GET", "HEAD", "POST"] {
        let head = head(method, host).replace("\r\n", "\\r\\n");
        text = text.replace(&format!("{{{method}}}"), &head);
    }
    unescape(&text.replace("HOST", host))
}

fn http2_pieces(text: &str, host: &str) -> Vec<Piece> {
    let mut pieces = vec![Piece::Headers(Vec::new())];
    let text = ["GET", "POST"].iter().fold(text.to_owned(), |text, method| {
        let begin =
            format!(":method => {method} ;; :scheme => http ;; :path => /free/x ;; :authority => HOST");
        text.replace(&format!("{{{method}}}"), &begin)
    });
    for field in text.replace("HOST", host).split(" ;; ") {
        let (name, value) =
            field.split_once(" => ").unwrap_or_else(|| (field.strip_suffix(" =>").unwrap(), ""));
        match name {
            "@data" => pieces.push(Piece::Data(unescape(value))),
            "@trailers" => pieces.push(Piece::Headers(Vec::new())),
            name => {
                let Some(Piece::Headers(fields)) = pieces.last_mut() else { panic!("{text}") };
                fields.push((unescape(name), unescape(value)));
            }
        }
    }
    pieces
}

fn http1_cases(upstream: Version) -> Vec<(Line, Layout, Expected)> {
    let cases = lines("http1.txt", include_str!("corpus/http1.txt"), 3).into_iter().filter_map(|line| {
        let outcome = match line.columns[0].strip_suffix(" @1") {
            Some(_) if upstream == Version::Http2 => return None,
            Some(outcome) => outcome,
            None => &line.columns[0],
        };
        let expected = Expected::read(outcome);
        Some((line, Layout::FreePart, expected))
    });
    cases.collect()
}

fn http2_cases() -> Vec<(Line, Layout, Expected)> {
    lines("http2.txt", include_str!("corpus/http2.txt"), 3)
        .into_iter()
        .map(|line| (line.clone(), Layout::FreePart, Expected::read(&line.columns[0])))
        .collect()
}

/// Each path in each layout; the columns become like those of the other files: outcome, path, reason.
fn path_cases() -> Vec<(Line, Layout, Expected)> {
    let mut cases = Vec::new();
    for Line { at, columns } in lines("paths.txt", include_str!("corpus/paths.txt"), 4) {
        let [path, free_part, dear_part, reason] = &columns[..] else { unreachable!() };
        for (layout, outcome) in
            [(Layout::FreePart, free_part), (Layout::DearPart, dear_part), (Layout::FreePaths, free_part)]
        {
            let outcome = match outcome.starts_with('/') {
                true => format!("GET {outcome} 0"),
                false => outcome.clone(),
            };
            let line = Line { at: at.clone(), columns: vec![outcome.clone(), path.clone(), reason.clone()] };
            cases.push((line, layout, Expected::read(&outcome)));
        }
    }
    cases
}

#[tokio::test]
async fn no_bytes_reach_an_upstream_that_were_not_decided_on() {
    for (tag, upstream) in [("b1", Version::Http1), ("b2", Version::Http2)] {
        check(tag, upstream, http1_cases(upstream), async |addr, line, expected, host| {
            send_http1(addr, http1_bytes(&line.columns[1], host), expected, host).await
        })
        .await;
    }
}

#[tokio::test]
async fn no_frames_reach_an_upstream_that_were_not_decided_on() {
    for (tag, upstream) in [("f1", Version::Http1), ("f2", Version::Http2)] {
        check(tag, upstream, http2_cases(), async |addr, line, _, host| {
            let status = frames::ask(addr, &http2_pieces(&line.columns[1], host)).await;
            (status.into_iter().collect(), false)
        })
        .await;
    }
}

#[tokio::test]
async fn no_spelling_of_a_path_is_two_paths() {
    for (tag, upstream) in [("p1", Version::Http1), ("p2", Version::Http2)] {
        check(tag, upstream, path_cases(), async |addr, line, expected, host| {
            let target = line.columns[1].replace("HOST", host);
            let head = [b"GET ", &unescape(&target)[..], b" HTTP/1.1\r\nHost: "].concat();
            let bytes = [&head[..], host.as_bytes(), b"\r\n\r\n"].concat();
            send_http1(addr, bytes, expected, host).await
        })
        .await;
    }
}

/// Every path of the corpus that passes stays below the prefix that is put in front of it.
#[tokio::test]
async fn no_path_leads_out_of_an_added_prefix() {
    let recorder = Recorder::start(Version::Http1).await;
    let mut route = free("added", &recorder.url());
    route.rewrite = Rewrite {
        strip_prefix: Some("/free".parse().unwrap()),
        add_prefix: Some("/inner/v2".parse().unwrap()),
    };
    let rig = Rig::new(vec![route]).await;
    let paths = lines("paths.txt", include_str!("corpus/paths.txt"), 4);
    let addr = rig.addr;
    let asked = stream::iter(paths).map(|line| async move {
        let target = line.columns[0].replace("HOST", "a.test");
        let head =
            [b"GET ", &unescape(&target)[..], b" HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n"];
        raw(addr, &head.concat(), "").await
    });
    let answers: Vec<String> = asked.buffered(AT_ONCE).collect().await;
    rig.stop().await.unwrap();
    let (messages, _) = within(recorder.finish()).await;
    let passed = answers.iter().filter(|answer| answer.starts_with("HTTP/1.1 200")).count();
    assert!(passed > 40 && passed == messages.len(), "{passed} of {}", messages.len());
    for message in messages {
        let path = message.target.split('?').next().unwrap_or_default();
        assert!(path == "/inner/v2" || path.starts_with("/inner/v2/"), "{}", message.target);
        let place = reading::place(&message.target);
        assert!(place == "/inner/v2" || place.starts_with("/inner/v2/"), "{} is {place}", message.target);
    }
}
