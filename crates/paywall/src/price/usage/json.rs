//! JSON read as it passes: one byte at a time, with the path to where one is, and nothing kept but that.
//!
//! It checks structure (brackets, commas, colons, whole strings and literals) and leaves the rest to whoever the document is
//! for. Several documents may follow each other, as in JSON Lines. Memory is fixed: paths are followed [`PATH_MAX`] deep and
//! texts [`TEXT_MAX`] long, deeper and longer ones are passed over; nesting beyond [`DEPTH_MAX`] is refused.

/// How deep a path may be followed.
pub(crate) const PATH_MAX: usize = 8;
/// How long a name or text may be to be compared with anything.
pub(crate) const TEXT_MAX: usize = 128;
/// How deep documents may nest.
pub(crate) const DEPTH_MAX: usize = 128;

/// A reader of JSON.
#[derive(Clone, Debug)]
pub(crate) struct Scanner {
    state: State,
    /// For each level, whether it is a list.
    lists: u128,
    depth: usize,
    /// The names on the way here, as far as they are followed.
    names: [Text; PATH_MAX],
    /// The text or literal that is being read, or was just read.
    text: Text,
}

/// A text of limited length.
#[derive(Clone, Debug, Default)]
struct Text {
    bytes: Vec<u8>,
    /// It was longer, so it is equal to nothing.
    cut: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before a document, after one, or in between.
    Between,
    /// A value must come.
    Value,
    /// A value may come, or the list ends.
    FirstItem,
    /// A name may come, or the object ends.
    FirstName,
    /// A name must come.
    Name,
    Colon,
    /// A comma must come, or an end.
    After,
    String(Of),
    Escape(Of),
    /// Digits still to come, and those that came.
    Unicode(Of, u8, u16),
    Literal,
    Bad,
}

/// What a string is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    Name,
    Value,
}

/// What was just read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A string; see [`Scanner::text`].
    String,
    /// A number, `true`, `false` or `null`; see [`Scanner::text`].
    Literal,
    /// The bracket with which an object begins.
    Object,
}

impl Scanner {
    pub(crate) fn new() -> Self {
        Self {
            state: State::Between,
            lists: 0,
            depth: 0,
            names: std::array::from_fn(|_| Text::default()),
            text: Text::default(),
        }
    }

    /// Begins anew, and keeps the memory.
    pub(crate) fn reset(&mut self) {
        self.state = State::Between;
        self.lists = 0;
        self.depth = 0;
    }

    /// Whether it is between documents: all that began has ended.
    pub(crate) fn is_whole(&self) -> bool {
        self.state == State::Between
    }

    /// Whether what came is no JSON.
    pub(crate) fn is_bad(&self) -> bool {
        self.state == State::Bad
    }

    /// Whether what was just read stands at this path: names, from the outermost object.
    pub(crate) fn is_at(&self, path: &[String]) -> bool {
        path.len() == self.depth
            && path.len() <= PATH_MAX
            && self.lists == 0
            && self.names.iter().zip(path).all(|(here, name)| here.is(name))
    }

    /// Whether what was just read has one of these names in the object at `path`.
    pub(crate) fn is_one_of(&self, path: &[String], names: &[String]) -> bool {
        path.len() + 1 == self.depth
            && self.depth <= PATH_MAX
            && self.lists == 0
            && self.names.iter().zip(path).all(|(here, name)| here.is(name))
            && names.iter().any(|name| self.names[self.depth - 1].is(name))
    }

    /// The string or literal that was just read; `None` where it was too long or no text.
    pub(crate) fn text(&self) -> Option<&str> {
        if self.text.cut { None } else { std::str::from_utf8(&self.text.bytes).ok() }
    }

    /// Reads on, and tells `sink` of each value where it stands.
    pub(crate) fn push(&mut self, byte: u8, sink: &mut impl FnMut(&Self, Event)) {
        match self.state {
            State::String(of) => self.in_string(of, byte, sink),
            State::Escape(of) => self.escaped(of, byte),
            State::Unicode(of, left, code) => self.unicode(of, left, code, byte),
            State::Literal if byte.is_ascii_alphanumeric() || b"+-.".contains(&byte) => self.text.push(byte),
            State::Literal if self.is_literal() => {
                sink(self, Event::Literal);
                self.after_value();
                self.push(byte, sink);
            }
            State::Literal => self.state = State::Bad,
            State::Bad => {}
            _ if matches!(byte, b' ' | b'\t' | b'\n' | b'\r') => {}
            _ => self.structure(byte, sink),
        }
    }

    fn structure(&mut self, byte: u8, sink: &mut impl FnMut(&Self, Event)) {
        match (self.state, byte) {
            (State::FirstItem, b']') | (State::FirstName, b'}') | (State::After, b']' | b'}') => {
                self.close(byte);
            }
            (State::Between | State::Value | State::FirstItem, _) => self.value(byte, sink),
            (State::FirstName | State::Name, b'"') => self.string(Of::Name),
            (State::Colon, b':') => self.state = State::Value,
            (State::After, b',') => {
                self.state = if self.is_in_list() { State::Value } else { State::Name };
            }
            _ => self.state = State::Bad,
        }
    }

    fn value(&mut self, byte: u8, sink: &mut impl FnMut(&Self, Event)) {
        match byte {
            b'{' => {
                sink(self, Event::Object);
                self.open(State::FirstName);
            }
            b'[' => self.open(State::FirstItem),
            b'"' => self.string(Of::Value),
            b'-' | b'0'..=b'9' | b't' | b'f' | b'n' => {
                self.text.clear();
                self.text.push(byte);
                self.state = State::Literal;
            }
            _ => self.state = State::Bad,
        }
    }

    fn open(&mut self, inside: State) {
        if self.depth == DEPTH_MAX {
            self.state = State::Bad;
            return;
        }
        self.lists |= u128::from(inside == State::FirstItem) << self.depth;
        self.depth += 1;
        self.state = inside;
    }

    fn close(&mut self, byte: u8) {
        if self.is_in_list() != (byte == b']') {
            self.state = State::Bad;
            return;
        }
        self.depth -= 1;
        self.lists &= !(1 << self.depth);
        self.after_value();
    }

    /// Whether the innermost that is open is a list; every state that asks is inside of something.
    fn is_in_list(&self) -> bool {
        self.lists >> (self.depth - 1) & 1 == 1
    }

    fn after_value(&mut self) {
        self.state = if self.depth == 0 { State::Between } else { State::After };
    }

    fn string(&mut self, of: Of) {
        self.text.clear();
        self.state = State::String(of);
    }

    fn in_string(&mut self, of: Of, byte: u8, sink: &mut impl FnMut(&Self, Event)) {
        match (byte, of) {
            (b'\\', _) => self.state = State::Escape(of),
            (b'"', Of::Value) => {
                sink(self, Event::String);
                self.after_value();
            }
            (b'"', Of::Name) => {
                // Deeper, or inside a list, no path leads here.
                if self.lists == 0 && self.depth <= PATH_MAX {
                    std::mem::swap(&mut self.names[self.depth - 1], &mut self.text);
                }
                self.state = State::Colon;
            }
            (0..=0x1f, _) => self.state = State::Bad,
            _ => self.text.push(byte),
        }
    }

    fn escaped(&mut self, of: Of, byte: u8) {
        let meant = match byte {
            b'"' | b'\\' | b'/' => byte,
            b'b' => 0x08,
            b'f' => 0x0c,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                self.state = State::Unicode(of, 4, 0);
                return;
            }
            _ => {
                self.state = State::Bad;
                return;
            }
        };
        self.text.push(meant);
        self.state = State::String(of);
    }

    fn unicode(&mut self, of: Of, left: u8, code: u16, byte: u8) {
        let Some(digit) = char::from(byte).to_digit(16).and_then(|digit| u16::try_from(digit).ok()) else {
            self.state = State::Bad;
            return;
        };
        let code = code << 4 | digit;
        self.state = if left > 1 { State::Unicode(of, left - 1, code) } else { State::String(of) };
        if left == 1 {
            // Halves of a pair stand for something that no name of ours has.
            let meant = char::from_u32(u32::from(code)).unwrap_or(char::REPLACEMENT_CHARACTER);
            meant.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| self.text.push(byte));
        }
    }

    fn is_literal(&self) -> bool {
        match self.text.bytes.as_slice() {
            b"true" | b"false" | b"null" => true,
            [b'-', b'0'..=b'9', ..] | [b'0'..=b'9', ..] => {
                self.text.bytes.iter().all(|b| b.is_ascii_digit() || b"+-.eE".contains(b))
            }
            _ => false,
        }
    }
}

impl Text {
    fn clear(&mut self) {
        self.bytes.clear();
        self.cut = false;
    }

    fn push(&mut self, byte: u8) {
        if self.bytes.len() < TEXT_MAX {
            self.bytes.push(byte);
        } else {
            self.cut = true;
        }
    }

    fn is(&self, name: &str) -> bool {
        !self.cut && self.bytes == name.as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each value with its place, for places that are told apart; `!` for no JSON, `…` for what isn't whole.
    fn read(text: &str) -> String {
        let paths = ["a", "a.b", "a.b.c", ""].map(|path| {
            path.split('.').filter(|name| !name.is_empty()).map(str::to_owned).collect::<Vec<_>>()
        });
        let mut said = Vec::new();
        let mut scanner = Scanner::new();
        for byte in text.bytes() {
            scanner.push(byte, &mut |scanner: &Scanner, event| {
                let at = paths.iter().find(|path| scanner.is_at(path)).map(|path| path.join("."));
                let text = if event == Event::Object { Some("{") } else { scanner.text() };
                said.push(format!("{}={}", at.as_deref().unwrap_or("?"), text.unwrap_or("(long)")));
            });
        }
        if scanner.is_bad() {
            said.push("!".to_owned());
        } else if !scanner.is_whole() {
            said.push("…".to_owned());
        }
        said.join(" ")
    }

    #[track_caller]
    fn check(text: &str, want: &str) {
        assert_eq!(read(text), want, "{text}");
    }

    #[test]
    fn a_value_is_told_with_its_place() {
        check(r#"{"a":1}"#, "={ a=1");
        check(r#" { "a" : { "b" : -1.5e3 , "x" : true } } "#, "={ a={ a.b=-1.5e3 ?=true");
        check(r#"{"a":{"b":{"c":"d"}},"a":null}"#, "={ a={ a.b={ a.b.c=d a=null");
        check(r#"{"x":[{"a":1}],"a":2}"#, "={ ?={ ?=1 a=2");
        check(r#"[{"a":1}]"#, "?={ ?=1");
        check(r#"{"a":[]}"#, "={");
        check(r#"{}"#, "={");
        check("", "");
    }

    #[test]
    fn documents_may_follow_each_other() {
        check("{\"a\":1}\n{\"a\":2}\n", "={ a=1 ={ a=2");
        check("1 \"x\" ", "=1 =x");
    }

    #[test]
    fn a_name_is_compared_by_what_it_means() {
        check(r#"{"\u0061":1}"#, "={ a=1");
        check(r#"{"a\n":1,"\"a":2,"\ud83d\ude00":3}"#, "={ ?=1 ?=2 ?=3");
        let long = format!("{{\"{}\":1,\"a\":\"{}\"}}", "a".repeat(129), "b".repeat(129));
        check(&long, "={ ?=1 a=(long)");
    }

    #[test]
    fn what_has_not_ended_is_not_whole() {
        for text in ["{", "[", "\"x", "{\"a\"", "{\"a\":", "{\"a\":1", "{\"a\":1,", "1", "\"\\", "\"\\u00"] {
            assert!(read(text).ends_with('…'), "{text}");
        }
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for text in [
            "}",
            "]",
            "{]",
            "[}",
            "{1:2}",
            "{a:1}",
            "{\"a\" 1}",
            "{\"a\":1 \"b\":2}",
            "{\"a\":1,}",
            "[1,]",
            "[1 2]",
            "{,}",
            "[,]",
            "{\"a\":,}",
            "x",
            "nul ",
            "truely ",
            "1x ",
            "-x ",
            "\"\n\"",
            "\"\\x\"",
            "\"\\u00g0\"",
            ",",
            ":",
            "[DONE]",
            "{\"a\":1}}",
        ] {
            assert!(read(text).ends_with('!'), "{text}: {}", read(text));
        }
        let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        check(&deep(DEPTH_MAX), "");
        check(&deep(DEPTH_MAX + 1), "!");
    }
}
