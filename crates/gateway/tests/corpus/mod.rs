//! The corpus: cases as data, in files that say how they are to be read.
#![allow(unreachable_pub, reason = "a module of a test's, which is a crate of its own")]

pub mod frames;
pub mod reading;
pub mod recorder;

/// One line of a file.
#[derive(Clone, Debug)]
pub struct Line {
    /// Which file and line, to be found by.
    pub at: String,
    pub columns: Vec<String>,
}

/// Reads a file of lines with columns.
pub fn lines(name: &str, text: &str, columns: usize) -> Vec<Line> {
    let mut lines = Vec::new();
    for (at, line) in text.lines().enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let at = format!("{name}:{}", at + 1);
        let columns_here: Vec<String> = line.split(" ## ").map(str::to_owned).collect();
        assert_eq!(columns_here.len(), columns, "{at}: {line}");
        assert!(!columns_here[columns - 1].is_empty(), "{at}: every case has a reason");
        lines.push(Line { at, columns: columns_here });
    }
    lines
}

/// What must become of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The gateway answers itself.
    Status(u16),
    /// The upstream gets it, whole.
    Forwarded { method: String, target: String, body: usize },
    /// The upstream gets at most a part of it.
    Cut,
}

/// What must become of all that is sent on a connection.
#[derive(Clone, Debug)]
pub struct Expected {
    pub outcomes: Vec<Outcome>,
    /// Nothing behind it is read as a request.
    pub ends: bool,
}

impl Expected {
    pub fn read(text: &str) -> Self {
        let (text, is_marked) = match text.strip_suffix(" !") {
            Some(text) => (text, true),
            None => (text, false),
        };
        let outcomes: Vec<Outcome> = text.split(" + ").map(Outcome::read).collect();
        let ends = match outcomes.last().unwrap() {
            Outcome::Status(status) => is_marked || *status == 400,
            Outcome::Forwarded { .. } => is_marked,
            Outcome::Cut => true,
        };
        Self { outcomes, ends }
    }
}

impl Outcome {
    fn read(text: &str) -> Self {
        match text.split(' ').collect::<Vec<_>>()[..] {
            ["cut" | "reset"] => Self::Cut,
            [status] => Self::Status(status.parse().unwrap()),
            [method, target, body] => Self::Forwarded {
                method: method.to_owned(),
                target: target.to_owned(),
                body: body.parse().unwrap(),
            },
            _ => panic!("{text:?} is no outcome"),
        }
    }
}

/// The bytes that a text of escapes stands for.
pub fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'\\' {
            bytes.push(*first);
            continue;
        }
        let (kind, after) = rest.split_first().unwrap();
        rest = after;
        bytes.push(match kind {
            b'r' => b'\r',
            b'n' => b'\n',
            b't' => b'\t',
            b'\\' => b'\\',
            b'x' => {
                let (digits, after) = rest.split_at(2);
                rest = after;
                u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap()
            }
            other => panic!("\\{} in {text:?}", char::from(*other)),
        });
    }
    bytes
}
