//! Two readings of what an upstream receives: a strict one, to which anything but plain HTTP/1.1 is an error, and one that
//! takes whatever any server takes. Where they find different requests, so would two servers.
//!
//! Neither shares code with the gateway, or with its libraries.

/// A request as the strict reader finds it.
#[derive(Clone, Debug)]
pub struct Message {
    pub method: String,
    pub target: String,
    pub headers: Vec<(String, String)>,
    /// Bytes of body; none if it ends early.
    pub body: Option<usize>,
}

/// What stands at the beginning of some bytes.
pub enum Found {
    /// The head isn't there yet.
    Nothing,
    /// A head whose body isn't whole yet.
    Partial(Message),
    /// A whole request and how many bytes it takes.
    Whole(Message, usize),
}

/// All requests, the last of which may be cut off.
pub fn strict(mut bytes: &[u8]) -> Result<Vec<Message>, String> {
    let mut messages = Vec::new();
    while !bytes.is_empty() {
        match first(bytes)? {
            Found::Nothing => break,
            Found::Partial(message) => {
                messages.push(message);
                break;
            }
            Found::Whole(message, length) => {
                messages.push(message);
                bytes = &bytes[length..];
            }
        }
    }
    Ok(messages)
}

/// The first request.
pub fn first(bytes: &[u8]) -> Result<Found, String> {
    let Some(end) = find(bytes, b"\r\n\r\n") else { return Ok(Found::Nothing) };
    let head = &bytes[..end];
    let mut lines = head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    if head.iter().filter(|byte| **byte == b'\n').count() != count(head, b"\r\n") {
        return Err(format!("a bare line feed in {}", show(head)));
    }
    let line = lines.next().unwrap();
    let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let [method, target, b"HTTP/1.1"] = words[..] else {
        return Err(format!("a request line: {}", show(line)));
    };
    if !method.iter().all(u8::is_ascii_uppercase)
        || !target.iter().all(u8::is_ascii_graphic)
        || target[0] != b'/'
    {
        return Err(format!("a request line: {}", show(line)));
    }
    let mut headers = Vec::new();
    for line in lines {
        let colon =
            line.iter().position(|byte| *byte == b':').ok_or_else(|| format!("a line: {}", show(line)))?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
        let is_text = |byte: &u8| *byte == b'\t' || (b' '..=b'~').contains(byte) || *byte >= 0x80;
        if name.is_empty() || !name.iter().all(is_token) || !value.iter().all(is_text) {
            return Err(format!("a header: {}", show(line)));
        }
        let name = String::from_utf8_lossy(name).to_ascii_lowercase();
        headers.push((name, String::from_utf8_lossy(value).into_owned()));
    }
    let message = Message {
        method: String::from_utf8_lossy(method).into_owned(),
        target: String::from_utf8_lossy(target).into_owned(),
        headers,
        body: None,
    };
    let (hosts, lengths, codings) =
        (message.all("host"), message.all("content-length"), message.all("transfer-encoding"));
    if hosts.len() != 1 || hosts[0].is_empty() {
        return Err(format!("not one host: {}", show(head)));
    }
    let rest = &bytes[end + 4..];
    let found = match (&lengths[..], &codings[..]) {
        ([], []) => Some((0, 0)),
        ([length], []) if !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit()) => {
            let length: usize = length.parse().map_err(|_| format!("a length: {length}"))?;
            (rest.len() >= length).then_some((length, length))
        }
        ([], ["chunked"]) => chunks(rest)?,
        _ => return Err(format!("framing that can be read in two ways: {}", show(head))),
    };
    Ok(match found {
        Some((body, taken)) => Found::Whole(Message { body: Some(body), ..message }, end + 4 + taken),
        None => Found::Partial(message),
    })
}

impl Message {
    pub fn all(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(have, _)| have == name).map(|(_, value)| value.as_str()).collect()
    }
}

/// Bytes of body and bytes taken, once the last chunk is there.
fn chunks(bytes: &[u8]) -> Result<Option<(usize, usize)>, String> {
    let (mut at, mut body) = (0, 0);
    loop {
        let Some(end) = find(&bytes[at..], b"\r\n") else { return Ok(None) };
        let size = std::str::from_utf8(&bytes[at..at + end]).unwrap_or("?");
        if size.is_empty() || !size.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(format!("a chunk's size: {size:?}"));
        }
        let size = usize::from_str_radix(size, 16).map_err(|error| error.to_string())?;
        at += end + 2;
        if size == 0 {
            // Trailers, up to an empty line.
            while let Some(end) = find(&bytes[at..], b"\r\n") {
                let line = &bytes[at..at + end];
                at += end + 2;
                if line.is_empty() {
                    return Ok(Some((body, at)));
                }
                let name = String::from_utf8_lossy(line).to_ascii_lowercase();
                let is_forbidden =
                    ["content-length", "transfer-encoding", "host", "authorization", "x-original-url"]
                        .iter()
                        .any(|forbidden| name.replace('_', "-").starts_with(forbidden));
                if is_forbidden {
                    return Err(format!("a trailer that frames or opens something: {name}"));
                }
            }
            return Ok(None);
        }
        if bytes.len() < at + size + 2 {
            return Ok(None);
        }
        if &bytes[at + size..at + size + 2] != b"\r\n" {
            return Err("a chunk without an end".to_owned());
        }
        body += size;
        at += size + 2;
    }
}

/// Which of the two says how long a body is, where a server finds both.
#[derive(Clone, Copy, Debug)]
pub enum Prefers {
    Length,
    Chunks,
}

/// The request lines (method and target) that a server finds which takes anything: bare line feeds, folded lines, spaces and
/// control bytes around names, `_` for `-`, any coding with "chunked" somewhere in it, lengths with anything behind them.
pub fn lenient(bytes: &[u8], prefers: Prefers) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let Some(line) = line(bytes, &mut at) else { break };
        if line.trim_ascii().is_empty() {
            continue;
        }
        let text = String::from_utf8_lossy(line).into_owned();
        let mut words = text.split_ascii_whitespace();
        found
            .push((words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned()));
        let (mut length, mut is_chunked) = (None, false);
        let mut last = String::new();
        while let Some(line) = self::line(bytes, &mut at) {
            if line.is_empty() {
                break;
            }
            let text = String::from_utf8_lossy(line).to_ascii_lowercase();
            let (name, value) = if text.starts_with([' ', '\t']) {
                (last.clone(), text)
            } else {
                let (name, value) = text.split_once(':').unwrap_or((&text, ""));
                let name: String = name.chars().filter(|letter| letter.is_ascii_graphic()).collect();
                (name.replace('_', "-"), value.to_owned())
            };
            if name == "transfer-encoding" && value.contains("chunked") {
                is_chunked = true;
            }
            let digits: String = value.chars().filter(char::is_ascii_digit).collect();
            if name == "content-length" && !digits.is_empty() {
                length = digits.parse::<usize>().ok();
            }
            last = name;
        }
        match (length, is_chunked) {
            (Some(length), false) => at = at.saturating_add(length),
            (Some(length), true) if matches!(prefers, Prefers::Length) => at = at.saturating_add(length),
            (_, true) => {
                while let Some(line) = self::line(bytes, &mut at) {
                    let digits: String = String::from_utf8_lossy(line)
                        .trim()
                        .chars()
                        .take_while(char::is_ascii_hexdigit)
                        .collect();
                    let size = usize::from_str_radix(&digits, 16).unwrap_or(0);
                    if size == 0 {
                        while self::line(bytes, &mut at).is_some_and(|line| !line.is_empty()) {}
                        break;
                    }
                    at = at.saturating_add(size);
                    self::line(bytes, &mut at);
                }
            }
            (None, false) => {}
        }
    }
    found
}

/// Up to the next line feed; nothing at the end.
fn line<'b>(bytes: &'b [u8], at: &mut usize) -> Option<&'b [u8]> {
    let rest = bytes.get(*at..).filter(|rest| !rest.is_empty())?;
    let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
    *at += end + 1;
    Some(rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]))
}

/// Where a target leads for a server that takes anything: decoded twice, in small letters, `\` for `/`, without parameters,
/// final dots and spaces, empty segments and dot segments.
pub fn place(target: &str) -> String {
    let path = target.split(['?', '#']).next().unwrap_or_default();
    let mut bytes = path.as_bytes().to_vec();
    for _ in 0..2 {
        let mut decoded = Vec::new();
        let mut rest = &bytes[..];
        while let Some((first, after)) = rest.split_first() {
            let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
            match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                Some(byte) if *first == b'%' => {
                    decoded.push(byte);
                    rest = &after[2..];
                }
                _ => {
                    decoded.push(*first);
                    rest = after;
                }
            }
        }
        bytes = decoded;
    }
    // Overlong UTF-8, as its sloppiest readers have it: the low six bits of the last byte, and what the first has left.
    let mut text = String::new();
    let mut at = 0;
    while at < bytes.len() {
        let (byte, next) = (bytes[at], bytes.get(at + 1).copied().unwrap_or(0));
        if (byte == 0xc0 || byte == 0xc1) && next >= 0x80 {
            text.push(char::from(((byte & 1) << 6) | (next & 0x3f)));
            at += 2;
        } else {
            text.push(char::from(byte));
            at += 1;
        }
    }
    let text =
        text.split(['\0', '?', '#']).next().unwrap_or_default().replace('\\', "/").to_ascii_lowercase();
    let mut names: Vec<&str> = Vec::new();
    for segment in text.split('/') {
        let name = segment.split(';').next().unwrap_or_default();
        match name {
            "" | "." => {}
            ".." => {
                names.pop();
            }
            name => names.push(name.trim_end_matches(['.', ' '])),
        }
    }
    format!("/{}", names.join("/"))
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

fn count(bytes: &[u8], wanted: &[u8]) -> usize {
    bytes.windows(wanted.len()).filter(|window| *window == wanted).count()
}

fn show(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}
