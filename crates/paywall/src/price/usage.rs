//! What an answer says was used: read as it passes, in chunks of any size, without keeping it.
//!
//! A [`UsageReader`] is shown every chunk of a body and holds a few hundred bytes, however long that is. It reads JSON (one
//! document, or several one after the other, as in JSON Lines) and event streams whose events are JSON; what the last of them
//! says counts, field by field. Numbers are whole and not negative, in plain digits, or they are unreadable.
//!
//! Out of these, [`Usage`] is made by rule: what is missing of input and output is what the total leaves; output that nobody
//! mentions, with no total either, is none; a total alone counts wholly at the dearer rate.

use std::fmt;

use super::cost::Units;

pub(crate) mod json;
mod sse;

use json::{Event, PATH_MAX, Scanner, TEXT_MAX};
use sse::{Lines, Piece};

/// A place in a JSON document: names from the outermost object, as in `response.usage`. The empty path is the document.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct JsonPath(Vec<String>);

/// Why a text is no path that can be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{}` is no path into an answer; write up to {max} names with dots in between, each of up to {TEXT_MAX} bytes",
    .0.escape_debug(),
    max = PATH_MAX - 1
)]
pub struct BadJsonPath(pub String);

/// Where an answer says what was used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The object with the numbers: any of these, where an API has another place for it in streams.
    pub usage: Vec<JsonPath>,
    /// What the units of input are called in it; any of these.
    pub input: Vec<String>,
    /// What the units of output are called in it; any of these.
    pub output: Vec<String>,
    /// What their sum is called in it; any of these.
    pub total: Vec<String>,
    /// The name of the model: any of these. None where nobody asks for it.
    pub model: Vec<JsonPath>,
}

/// What was used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// How much.
    pub units: Units,
    /// Whether only the sum is known, which then stands as input: it is for the dearer rate.
    pub is_total: bool,
    /// Of which model.
    pub model: Option<String>,
}

/// Why nobody knows what was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unreadable {
    /// The answer is neither JSON nor an event stream.
    #[error("its content type is neither JSON nor an event stream")]
    ContentType,
    /// It is compressed, although nobody asked for that.
    #[error("it is compressed, although that was not asked for")]
    Encoded,
    /// It is no JSON, or nests deeper than anybody needs.
    #[error("it is not the JSON that it says it is")]
    Malformed,
    /// It ended in the middle.
    #[error("it ended in the middle")]
    Truncated,
    /// There is no usage in it.
    #[error("it says nothing of usage where that should stand")]
    Missing,
    /// A number is negative, has a fraction, or is too large.
    #[error("its usage has a number that is not a whole one")]
    Number,
    /// There is no rate for the model that it names, or it names none.
    #[error("its model has no rate")]
    Model,
    /// The header with its cost is missing.
    #[error("the header with its cost is missing")]
    NoHeader,
    /// The header with its cost is no amount.
    #[error("the header with its cost is no amount")]
    Header,
    /// It costs more than all the bitcoin there is.
    #[error("it would cost more than there is")]
    Absurd,
}

impl Unreadable {
    /// Whether nothing was said, rather than something that makes no sense.
    pub(super) const fn is_silence(self) -> bool {
        match self {
            Self::ContentType | Self::Encoded | Self::Malformed | Self::Truncated => true,
            Self::Missing | Self::NoHeader => true,
            Self::Number | Self::Model | Self::Header | Self::Absurd => false,
        }
    }
}

/// Reads the usage out of one answer.
#[derive(Clone, Debug)]
pub struct UsageReader {
    shape: std::sync::Arc<Shape>,
    form: Form,
    scanner: Scanner,
    /// Of the event that is being read; it counts once it has ended well.
    event: Found,
    found: Found,
    events: u64,
    /// Of those, how many came after the last that told of usage.
    since: u64,
    bytes: u64,
}

#[derive(Clone, Debug)]
enum Form {
    Json,
    Events(Lines),
    Neither(Unreadable),
}

/// What was found so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Found {
    input: Option<u64>,
    output: Option<u64>,
    total: Option<u64>,
    model: Option<String>,
    /// A number that is none.
    is_odd: bool,
}

impl UsageReader {
    /// Begins to read an answer with these headers.
    pub fn new(shape: std::sync::Arc<Shape>, headers: &http::HeaderMap) -> Self {
        Self {
            shape,
            form: Form::of(headers),
            scanner: Scanner::new(),
            event: Found::default(),
            found: Found::default(),
            events: 0,
            since: 0,
            bytes: 0,
        }
    }

    /// Looks at the next chunk.
    pub fn read(&mut self, chunk: &[u8]) {
        self.bytes = self.bytes.saturating_add(chunk.len() as u64);
        let Self { shape, form, scanner, event, found, events, since, .. } = self;
        match form {
            Form::Neither(_) => {}
            Form::Json => {
                chunk
                    .iter()
                    .for_each(|byte| scanner.push(*byte, &mut |at, what| found.note(shape, at, what)));
            }
            Form::Events(lines) => {
                let mut sink =
                    |piece| one_event(piece, shape, scanner, event, found, (&mut *events, &mut *since));
                chunk.iter().for_each(|byte| lines.push(*byte, &mut sink));
            }
        }
    }

    /// How much has passed, in units of output: events of a stream, or bytes by [`BYTES_PER_UNIT`](super::BYTES_PER_UNIT).
    pub fn passed(&self) -> u64 {
        match self.form {
            Form::Events(_) => self.events,
            Form::Json | Form::Neither(_) => self.bytes.div_ceil(super::BYTES_PER_UNIT),
        }
    }

    /// Whether a stream has gone on after it told of usage: then that was not the last word.
    pub fn went_on(&self) -> bool {
        self.since > 0
    }

    /// The model, as far as the answer has named one.
    pub fn model(&self) -> Option<&str> {
        self.found.model.as_deref()
    }

    /// What was used, as far as the answer has said. Ask when it has ended, well or not.
    ///
    /// # Errors
    ///
    /// When the answer doesn't say, or not so that it could be read.
    pub fn end(&mut self) -> Result<Usage, Unreadable> {
        match self.form.clone() {
            Form::Neither(why) => return Err(why),
            Form::Json => {
                // A literal ends with what follows it.
                let Self { shape, scanner, found, .. } = &mut *self;
                scanner.push(b'\n', &mut |at, what| found.note(shape, at, what));
                if scanner.is_bad() {
                    return Err(Unreadable::Malformed);
                }
                if !scanner.is_whole() {
                    return Err(Unreadable::Truncated);
                }
            }
            Form::Events(mut lines) => {
                let Self { shape, scanner, event, found, events, since, .. } = &mut *self;
                lines.end(&mut |piece| {
                    one_event(piece, shape, scanner, event, found, (&mut *events, &mut *since));
                });
            }
        }
        self.found.clone().usage()
    }
}

/// Reads a piece of an event, and counts the event at its end. One that is no JSON (`[DONE]`) says nothing.
fn one_event(
    piece: Piece,
    shape: &Shape,
    scanner: &mut Scanner,
    event: &mut Found,
    found: &mut Found,
    (events, since): (&mut u64, &mut u64),
) {
    match piece {
        Piece::Data(byte) => scanner.push(byte, &mut |at, what| event.note(shape, at, what)),
        Piece::End => {
            scanner.push(b'\n', &mut |at, what| event.note(shape, at, what));
            let said = std::mem::take(event);
            if scanner.is_whole() {
                *events = events.saturating_add(1);
                *since = if said.tells() { 0 } else { since.saturating_add(1) };
                found.add(said);
            }
            scanner.reset();
        }
    }
}

impl Form {
    fn of(headers: &http::HeaderMap) -> Self {
        let text = |name| headers.get(name).and_then(|value: &http::HeaderValue| value.to_str().ok());
        if text(http::header::CONTENT_ENCODING)
            .is_some_and(|encoding| !encoding.eq_ignore_ascii_case("identity"))
        {
            return Self::Neither(Unreadable::Encoded);
        }
        let declared = text(http::header::CONTENT_TYPE).unwrap_or_default();
        let essence = declared.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match essence.as_str() {
            "text/event-stream" => Self::Events(Lines::default()),
            "application/json" | "application/x-ndjson" | "application/jsonl" | "application/json-seq" => {
                Self::Json
            }
            other if other.starts_with("application/") && other.ends_with("+json") => Self::Json,
            _ => Self::Neither(Unreadable::ContentType),
        }
    }
}

impl Found {
    fn note(&mut self, shape: &Shape, at: &Scanner, event: Event) {
        match event {
            Event::Object => {}
            Event::String => {
                if shape.model.iter().any(|path| at.is_at(&path.0)) {
                    self.model = at.text().map(str::to_owned);
                }
                // A number in quotes is none.
                if self.slot(shape, at).is_some() {
                    self.is_odd = true;
                }
            }
            Event::Literal => {
                let read = at.text().map(str::to_owned);
                let Some(slot) = self.slot(shape, at) else { return };
                match read.as_deref() {
                    Some("null") => {}
                    Some(text) if text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u64>().is_ok() => {
                        *slot = text.parse().ok();
                    }
                    _ => self.is_odd = true,
                }
            }
        }
    }

    /// What a value at this place is, if it is anything.
    fn slot<'a>(&'a mut self, shape: &Shape, at: &Scanner) -> Option<&'a mut Option<u64>> {
        let is_one_of = |names: &[String]| shape.usage.iter().any(|path| at.is_one_of(&path.0, names));
        if is_one_of(&shape.input) {
            Some(&mut self.input)
        } else if is_one_of(&shape.output) {
            Some(&mut self.output)
        } else if is_one_of(&shape.total) {
            Some(&mut self.total)
        } else {
            None
        }
    }

    /// Whether it says anything of usage.
    const fn tells(&self) -> bool {
        self.input.is_some() || self.output.is_some() || self.total.is_some()
    }

    /// What is said later counts.
    fn add(&mut self, later: Self) {
        self.input = later.input.or(self.input);
        self.output = later.output.or(self.output);
        self.total = later.total.or(self.total);
        if later.model.is_some() {
            self.model = later.model;
        }
        self.is_odd |= later.is_odd;
    }

    fn usage(self) -> Result<Usage, Unreadable> {
        if self.is_odd {
            return Err(Unreadable::Number);
        }
        let rest = |known: u64| self.total.map(|total| total.saturating_sub(known));
        let (units, is_total) = match (self.input, self.output, self.total) {
            (Some(input), Some(output), _) => (Units { input, output }, false),
            (Some(input), None, _) => (Units { input, output: rest(input).unwrap_or(0) }, false),
            (None, Some(output), _) => (Units { input: rest(output).unwrap_or(0), output }, false),
            (None, None, Some(total)) => (Units { input: total, output: 0 }, true),
            (None, None, None) => return Err(Unreadable::Missing),
        };
        Ok(Usage { units, is_total, model: self.model })
    }
}

impl Default for Shape {
    /// As OpenAI's API has it, and those that followed: `usage.prompt_tokens`, `usage.input_tokens` and so on.
    fn default() -> Self {
        let names = |names: [&str; 2]| names.map(str::to_owned).to_vec();
        Self {
            usage: vec![JsonPath(vec!["usage".to_owned()])],
            input: names(["prompt_tokens", "input_tokens"]),
            output: names(["completion_tokens", "output_tokens"]),
            total: vec!["total_tokens".to_owned()],
            model: vec![JsonPath(vec!["model".to_owned()])],
        }
    }
}

impl std::str::FromStr for JsonPath {
    type Err = BadJsonPath;

    fn from_str(text: &str) -> Result<Self, BadJsonPath> {
        let names: Vec<String> = match text {
            "" => Vec::new(),
            text => text.split('.').map(str::to_owned).collect(),
        };
        let sane = names.iter().all(|name| (1..=TEXT_MAX).contains(&name.len()));
        // One more name follows: that of the number.
        if sane && names.len() < PATH_MAX { Ok(Self(names)) } else { Err(BadJsonPath(text.to_owned())) }
    }
}

impl fmt::Display for JsonPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("."))
    }
}

#[cfg(test)]
mod tests;
