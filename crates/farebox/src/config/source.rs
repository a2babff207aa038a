//! The configuration as text: where each key stands, and how each value is written.
//!
//! Serde gives a line without a key, and a meaning that doesn't hold is found when the lines are long gone. This walk over
//! the YAML events ties the two together. It judges nothing: what the YAML means is serde-saphyr's business.

use std::ops::Range;

use serde_saphyr::granit_parser::{Event, Parser, ScalarStyle, Span};

use super::problem::{Place, Problem};

/// A node of the document: a key, a value, a mapping or a list.
#[derive(Debug)]
struct Node {
    /// The path of keys that leads to it: `services[0].price`.
    key: String,
    place: Place,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Key,
    Value { text: String, range: Range<usize>, style: Style },
    Container,
}

/// How a value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// Plain or in quotes.
    Line,
    /// As a block of lines, after `|` or `>`.
    Block,
}

/// What was found in one document.
#[derive(Debug, Default)]
pub(super) struct Source {
    nodes: Vec<Node>,
}

impl Source {
    /// Walks as far as the YAML is readable; a syntax error is reported by whoever reads it for its meaning.
    pub(super) fn of(text: &str) -> Self {
        let mut walk = Walk::default();
        for (event, span) in Parser::new_from_str(text).map_while(Result::ok) {
            walk.step(event, span);
        }
        walk.found
    }

    /// All values, with the number of their node.
    pub(super) fn values(&self) -> impl Iterator<Item = (usize, &str)> {
        self.nodes.iter().enumerate().filter_map(|(at, node)| match &node.kind {
            Kind::Value { text, .. } => Some((at, text.as_str())),
            _ => None,
        })
    }

    /// How the value is written.
    pub(super) fn style(&self, node: usize) -> Style {
        match self.nodes[node].kind {
            Kind::Value { style, .. } => style,
            _ => Style::Line,
        }
    }

    /// Which bytes of the document are the value, quotes included.
    pub(super) fn range(&self, node: usize) -> Range<usize> {
        match &self.nodes[node].kind {
            Kind::Value { range, .. } => range.clone(),
            _ => 0..0,
        }
    }

    /// What is written there, if it is a value.
    pub(super) fn written(&self, node: usize) -> Option<&str> {
        match &self.nodes[node].kind {
            Kind::Value { text, .. } => Some(text),
            _ => None,
        }
    }

    /// What is written at this key, if it is a value.
    pub(super) fn value_of(&self, key: &str) -> Option<&str> {
        self.values().find(|(node, _)| self.key(*node) == key).map(|(_, text)| text)
    }

    /// The node's path of keys.
    pub(super) fn key(&self, node: usize) -> &str {
        &self.nodes[node].key
    }

    /// A problem with this node.
    pub(super) fn problem(&self, node: usize, message: impl Into<String>) -> Problem {
        let Node { key, place, .. } = &self.nodes[node];
        Problem { place: Some(*place), ..Problem::new(key.clone(), message) }
    }

    /// Whether the document has this key.
    pub(super) fn is_written(&self, key: &str) -> bool {
        self.nodes.iter().any(|node| node.key == key)
    }

    /// Where the key stands, or the nearest thing around it.
    pub(super) fn place_of(&self, key: &str) -> Option<Place> {
        let mut key = key;
        loop {
            // What is wrong with a value is shown at the value; a mapping or list begins at its key.
            let rank = |node: &&Node| match node.kind {
                Kind::Value { .. } => 0,
                Kind::Key => 1,
                Kind::Container => 2,
            };
            if let Some(node) = self.nodes.iter().filter(|node| node.key == key).min_by_key(rank) {
                return Some(node.place);
            }
            key = &key[..key.rfind(['.', '['])?];
        }
    }

    /// The innermost node that begins here.
    pub(super) fn node_at(&self, place: Place) -> Option<usize> {
        self.nodes.iter().rposition(|node| node.place == place)
    }

    /// The key of the mapping that begins here, or that what begins here is part of.
    pub(super) fn mapping_around(&self, place: Place) -> Option<&str> {
        let is_container = |node: &&Node| node.place == place && matches!(node.kind, Kind::Container);
        match self.nodes.iter().rev().find(is_container) {
            Some(mapping) => Some(&mapping.key),
            None => {
                let key = self.key(self.node_at(place)?);
                Some(&key[..key.rfind(['.', '[']).unwrap_or(0)])
            }
        }
    }
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
    fn step(&mut self, event: Event<'_>, span: Span) {
        let place = place(&span);
        match event {
            Event::Scalar(text, style, ..) => {
                if let Some(Open::Mapping { key, next: next @ None }) = self.open.last_mut() {
                    let key = joined(key, &text);
                    *next = Some(text.into_owned());
                    self.found.nodes.push(Node { key, place, kind: Kind::Key });
                    return;
                }
                let style = match style {
                    ScalarStyle::Literal | ScalarStyle::Folded => Style::Block,
                    _ => Style::Line,
                };
                // A text has byte offsets throughout; should one be missing, nothing is ever replaced there.
                let range = span.byte_range().unwrap_or(0..0);
                self.value(place, Kind::Value { text: text.into_owned(), range, style });
            }
            Event::MappingStart(..) => {
                let key = self.value(place, Kind::Container);
                self.open.push(Open::Mapping { key, next: None });
            }
            Event::SequenceStart(..) => {
                let key = self.value(place, Kind::Container);
                self.open.push(Open::List { key, index: 0 });
            }
            Event::Alias(..) => {
                self.value(place, Kind::Container);
            }
            Event::MappingEnd | Event::SequenceEnd => {
                self.open.pop();
            }
            _ => {}
        }
    }

    /// Notes what isn't a key, and tells its path.
    fn value(&mut self, place: Place, kind: Kind) -> String {
        let key = match self.open.last_mut() {
            None => String::new(),
            Some(Open::Mapping { key, next }) => match next.take() {
                Some(name) => joined(key, &name),
                // A key that is itself a mapping or list; nothing of ours takes one.
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

/// Lines are counted from one by the parser as well, columns from zero.
fn place(span: &Span) -> Place {
    let wide = |number| u64::try_from(number).unwrap_or(u64::MAX);
    Place { line: wide(span.start.line()), column: wide(span.start.col()).saturating_add(1) }
}

fn joined(parent: &str, name: &str) -> String {
    if parent.is_empty() { name.to_owned() } else { format!("{parent}.{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
network: ${NET}
services:
  - name: a
    headers: {authorization: \"Bearer ${KEY}\"}
  - name: b
    hosts: [x.example, y.example]
";

    #[test]
    fn each_key_has_its_place() {
        let source = Source::of(TEXT);
        for (key, line, column) in [
            ("network", 1, 10),
            ("services", 2, 1),
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
            let node = source.node_at(Place { line, column }).unwrap();
            assert_eq!(source.key(node), key);
        }
    }

    #[test]
    fn a_place_knows_the_mapping_that_it_is_in() {
        let source = Source::of(TEXT);
        for (line, column, key) in
            [(5, 5, "services[1]"), (6, 5, "services[1]"), (2, 1, ""), (4, 14, "services[0].headers")]
        {
            assert_eq!(source.mapping_around(Place { line, column }), Some(key));
        }
    }

    #[test]
    fn values_are_found_with_their_quotes() {
        let source = Source::of(TEXT);
        let quoted = source.values().find(|(_, text)| text.contains("Bearer")).unwrap().0;
        assert_eq!(&TEXT[source.range(quoted)], "\"Bearer ${KEY}\"");
        assert_eq!(source.written(quoted), Some("Bearer ${KEY}"));
    }

    #[test]
    fn broken_yaml_is_walked_as_far_as_it_goes() {
        assert_eq!(Source::of("a: b\nc: [").place_of("a"), Some(Place { line: 1, column: 4 }));
    }
}
