//! What is wrong with a configuration: which file, line and key, what it is, and how to put it right.
//!
//! One type for everything that can stop a start, whether YAML, an unset variable or a meaning that doesn't hold, so that
//! `serve` and `check` say the same. No value from the environment is ever in a message.

use std::{fmt, path::PathBuf};

use serde::Serialize;

/// A line and column of the configuration file, both counted from one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Place {
    pub(crate) line: u64,
    pub(crate) column: u64,
}

/// One thing that is wrong, or worth knowing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Problem {
    /// Where, if the configuration came from a file.
    #[serde(flatten)]
    pub(crate) place: Option<Place>,
    /// The key, as a path: `services[0].price`. Empty when it is the file as a whole.
    pub(crate) key: String,
    /// What is wrong and what to do.
    pub(crate) message: String,
}

impl Problem {
    /// A problem with the value of `key`; whoever knows the file adds the place.
    pub(crate) fn new(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { place: None, key: key.into(), message: message.into() }
    }
}

/// Everything that is wrong with one configuration. Never empty.
#[derive(Debug)]
pub(crate) struct Problems {
    /// The file; none when the configuration came from flags.
    pub(crate) file: Option<PathBuf>,
    pub(crate) list: Vec<Problem>,
}

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.list.iter().enumerate() {
            if index > 0 {
                f.write_str("\nerror: ")?;
            }
            f.write_str(&located(self.file.as_deref(), problem))?;
        }
        Ok(())
    }
}

/// `farebox.yaml:12:11: services[0].auth: unknown value …`.
pub(crate) fn located(file: Option<&std::path::Path>, problem: &Problem) -> String {
    let mut text = String::new();
    if let Some(file) = file {
        text.push_str(&file.display().to_string());
        if let Some(place) = problem.place {
            text.push_str(&format!(":{}:{}", place.line, place.column));
        }
        text.push_str(": ");
    }
    if !problem.key.is_empty() {
        text.push_str(&problem.key);
        text.push_str(": ");
    }
    text.push_str(&problem.message);
    text
}

/// The one of `known` that `word` was probably meant to be.
pub(crate) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let word = word.to_lowercase().replace('_', "-");
    known
        .iter()
        .map(|candidate| (distance(&word, candidate), *candidate))
        // A third of the word may be wrong; beyond that a suggestion is a guess.
        .filter(|(distance, candidate)| *distance <= candidate.len().max(word.len()).div_ceil(3))
        .min()
        .map(|(_, candidate)| candidate)
}

/// "; did you mean `price`? It can be …".
pub(crate) fn advice(word: &str, known: &[&str]) -> String {
    match nearest(word, known) {
        Some(nearest) if known.len() > 4 => format!("; did you mean `{nearest}`?"),
        Some(nearest) => format!("; did you mean `{nearest}`? It can be {}", listed(known)),
        None => format!("; it can be {}", listed(known)),
    }
}

/// How many letters must be put in, taken out, changed or swapped with their neighbour to get from `a` to `b`.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = vec![];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let change = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = change.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

/// "`a`, `b` or `c`".
pub(crate) fn listed(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
        None => "nothing".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_finds_its_key() {
        let known = ["price", "paths", "free-paths", "upstream", "offer"];
        for (word, want) in [
            ("prcie", Some("price")),
            ("Price", Some("price")),
            ("free_paths", Some("free-paths")),
            ("upsteam", Some("upstream")),
            ("zebra", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, &known), want, "{word}");
        }
    }

    #[test]
    fn a_swap_of_neighbours_is_one_mistake() {
        assert_eq!(distance("prcie", "price"), 1);
        assert_eq!(distance("abc", "abc"), 0);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
