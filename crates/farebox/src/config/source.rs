//! The configuration as text: where each key stands, and which environment variables it mentions.
//!
//! Serde gives a line without a key, and a meaning that doesn't hold is found when the lines are long gone. This walk over
//! the YAML events ties the two together. It judges nothing: what the YAML means is serde-saphyr's business.
//!
//! Variables are written as in Docker Compose (`${NAME}`, `${NAME:-default}`, `$$` for a dollar), with one difference: an
//! unset one without a default is an error. Read as nothing, it would fail later and elsewhere, or worse, not fail.

use serde_saphyr::granit_parser::{Event, Parser};

use super::problem::Place;

/// A node of the document and where it is.
#[derive(Debug, PartialEq, Eq)]
struct Node {
    key: String,
    place: Place,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Key,
    Scalar,
    Container,
}

/// A mention of an environment variable in a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mention {
    pub(crate) name: String,
    /// There is no default and no alternative: it has to be set.
    pub(crate) required: bool,
    pub(crate) place: Place,
    /// The key whose value mentions it.
    pub(crate) key: String,
}

/// What was found in one document.
#[derive(Debug, Default)]
pub(crate) struct Source {
    nodes: Vec<Node>,
    pub(crate) mentions: Vec<Mention>,
}

impl Source {
    /// Walks as far as the YAML is readable; a syntax error is reported by whoever reads it for its meaning.
    pub(crate) fn of(text: &str) -> Self {
        let mut walk = Walk::default();
        for event in Parser::new_from_str(text).map_while(Result::ok) {
            let (event, span) = event;
            let place = place(span.start.line(), span.start.col() + 1);
            walk.step(&event, place);
        }
        walk.found
    }

    /// Where the key stands, or the nearest thing around it.
    pub(crate) fn place_of(&self, key: &str) -> Option<Place> {
        let mut key = key;
        loop {
            // The value, if it is written on a line of its own, says more than the key; containers begin below their key.
            let at = |kind| self.nodes.iter().find(|node| node.key == key && node.kind == kind);
            if let Some(node) = at(Kind::Scalar).or_else(|| at(Kind::Key)).or_else(|| at(Kind::Container)) {
                return Some(node.place);
            }
            key = &key[..key.rfind(['.', '['])?];
        }
    }

    /// Whether the document has this key.
    pub(crate) fn is_written(&self, key: &str) -> bool {
        self.nodes.iter().any(|node| node.key == key)
    }

    /// The key of the innermost node that begins here.
    pub(crate) fn key_at(&self, place: Place) -> Option<&str> {
        self.nodes.iter().rev().find(|node| node.place == place).map(|node| node.key.as_str())
    }

    /// The key of the mapping that begins here, or that what begins here is part of.
    pub(crate) fn mapping_around(&self, place: Place) -> Option<&str> {
        let here = |node: &&Node| node.place == place && node.kind == Kind::Container;
        match self.nodes.iter().rev().find(here) {
            Some(mapping) => Some(&mapping.key),
            None => self.key_at(place).map(|key| &key[..key.rfind(['.', '[']).unwrap_or(0)]),
        }
    }
}

fn place(line: usize, column: usize) -> Place {
    let wide = |number| u64::try_from(number).unwrap_or(u64::MAX);
    Place { line: wide(line), column: wide(column) }
}

/// One open mapping or list.
enum Open {
    /// In a mapping: its own key, and the key whose value comes next.
    Mapping {
        key: String,
        next: Option<String>,
    },
    List {
        key: String,
        index: usize,
    },
}

#[derive(Default)]
struct Walk {
    open: Vec<Open>,
    found: Source,
}

impl Walk {
    fn step(&mut self, event: &Event<'_>, place: Place) {
        match event {
            Event::Scalar(text, ..) => {
                if let Some(Open::Mapping { key, next: next @ None }) = self.open.last_mut() {
                    let key = joined(key, text);
                    *next = Some(text.to_string());
                    self.found.nodes.push(Node { key, place, kind: Kind::Key });
                } else {
                    let key = self.node(place, Kind::Scalar);
                    self.found.mentions.extend(mentions(text).map(|(name, required)| Mention {
                        name: name.to_owned(),
                        required,
                        place,
                        key: key.clone(),
                    }));
                }
            }
            Event::MappingStart(..) => {
                let key = self.node(place, Kind::Container);
                self.open.push(Open::Mapping { key, next: None });
            }
            Event::SequenceStart(..) => {
                let key = self.node(place, Kind::Container);
                self.open.push(Open::List { key, index: 0 });
            }
            Event::Alias(..) => {
                self.node(place, Kind::Scalar);
            }
            Event::MappingEnd | Event::SequenceEnd => {
                self.open.pop();
            }
            _ => {}
        }
    }

    /// Notes a value and tells its key.
    fn node(&mut self, place: Place, kind: Kind) -> String {
        let key = match self.open.last_mut() {
            None => String::new(),
            Some(Open::Mapping { key, next }) => match next.take() {
                Some(name) => joined(key, &name),
                // A key that is itself a mapping or list; no struct of ours takes one.
                None => key.clone(),
            },
            Some(Open::List { key, index }) => {
                *index += 1;
                format!("{key}[{}]", *index - 1)
            }
        };
        self.found.nodes.push(Node { key: key.clone(), place, kind });
        key
    }
}

fn joined(parent: &str, name: &str) -> String {
    if parent.is_empty() { name.to_owned() } else { format!("{parent}.{name}") }
}

/// The variables that a value mentions, and whether each has to be set.
fn mentions(text: &str) -> impl Iterator<Item = (&str, bool)> {
    let mut rest = text;
    std::iter::from_fn(move || {
        loop {
            let after = &rest[rest.find('$')? + 1..];
            if let Some(escaped) = after.strip_prefix('$') {
                rest = escaped;
                continue;
            }
            let (braced, after) = after.strip_prefix('{').map_or((false, after), |inner| (true, inner));
            let end = after.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(after.len());
            let (name, tail) = after.split_at(end);
            rest = tail;
            if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
                continue;
            }
            let spared = braced && tail.trim_start_matches(':').starts_with(['-', '+']);
            return Some((name, !spared));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
network: ${NET}
services:
  - name: a
    headers: {authorization: \"Bearer ${KEY:-none} $$5\"}
  - name: b
    hosts: [x.example, y.example]
";

    #[test]
    fn each_key_has_its_place() {
        let source = Source::of(TEXT);
        for (key, line, column) in [
            ("network", 1, 10),
            ("services[1].name", 5, 11),
            ("services[1].hosts[1]", 6, 24),
            ("services[1].price", 5, 5),
            ("services[0].headers.authorization", 4, 30),
        ] {
            assert_eq!(source.place_of(key), Some(Place { line, column }), "{key}");
        }
    }

    #[test]
    fn each_place_has_its_key() {
        let source = Source::of(TEXT);
        for (line, column, key) in
            [(1, 1, "network"), (5, 11, "services[1].name"), (5, 5, "services[1].name")]
        {
            assert_eq!(source.key_at(Place { line, column }), Some(key));
        }
        assert_eq!(source.mapping_around(Place { line: 5, column: 5 }), Some("services[1]"));
        assert_eq!(source.mapping_around(Place { line: 6, column: 5 }), Some("services[1]"));
        assert_eq!(source.mapping_around(Place { line: 2, column: 1 }), Some(""));
    }

    #[test]
    fn variables_are_found_with_their_keys() {
        let found = Source::of(TEXT).mentions;
        let found: Vec<_> = found.iter().map(|m| (m.name.as_str(), m.required, m.key.as_str())).collect();
        let want = [("NET", true, "network"), ("KEY", false, "services[0].headers.authorization")];
        assert_eq!(found, want);
    }

    #[test]
    fn only_what_has_no_default_has_to_be_set() {
        let found: Vec<_> = mentions("a$$B ${C} $D ${E-x} ${F:-x} ${G:+x} ${H?x} ${I:?x} $1 $ 5").collect();
        let want =
            [("C", true), ("D", true), ("E", false), ("F", false), ("G", false), ("H", true), ("I", true)];
        assert_eq!(found, want);
    }

    #[test]
    fn broken_yaml_is_walked_as_far_as_it_goes() {
        assert_eq!(Source::of("a: b\nc: [").place_of("a"), Some(Place { line: 1, column: 4 }));
    }
}
