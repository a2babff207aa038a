//! Environment variables in the configuration: `${NAME}`, `${NAME:-default}`, and `$$` for a dollar sign, in any value.
//!
//! What is put in is a text and stays one, whatever is in it: no variable can add a key, end a line or comment one out. A
//! variable that isn't set and has no default is an error, never an empty text. serde-saphyr can expand variables too,
//! but reads unset ones as empty or leaves those in quotes alone, and hides the text of errors near them.

use std::{borrow::Cow, collections::BTreeMap, ops::Range};

use super::{
    problem::Problem,
    source::{Source, Style},
};

/// The values that have been put in, by name.
pub(super) type Variables = BTreeMap<String, String>;

/// A piece of a value.
#[derive(Debug, PartialEq, Eq)]
enum Piece<'a> {
    Text(&'a str),
    Variable {
        name: &'a str,
        default: Option<&'a str>,
    },
    /// Meant as a variable, and not one.
    Malformed(&'a str),
}

/// A mention of a variable that has to be set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mention {
    pub(super) name: String,
    /// Which value mentions it.
    pub(super) node: usize,
}

/// The variables that the document mentions without a default.
pub(super) fn required(source: &Source) -> Vec<Mention> {
    let mentioned = |(node, text): (usize, &str)| {
        let names = pieces(text).filter_map(|piece| match piece {
            Piece::Variable { name, default: None } => Some(name.to_owned()),
            _ => None,
        });
        names.map(move |name| Mention { name, node }).collect::<Vec<_>>()
    };
    source.values().flat_map(mentioned).collect()
}

/// The variables that the document mentions, with or without a default.
pub(super) fn mentioned(source: &Source) -> Vec<&str> {
    let names = source.values().flat_map(|(_, text)| pieces(text)).filter_map(|piece| match piece {
        Piece::Variable { name, .. } => Some(name),
        _ => None,
    });
    names.collect()
}

/// The document with the variables put in. Its nodes are those of `source`, in the same order; their places are not.
///
/// Those that are required must be among `variables`.
pub(super) fn expand<'a>(
    text: &'a str,
    source: &Source,
    variables: &Variables,
) -> Result<Cow<'a, str>, Vec<Problem>> {
    let mut changes: Vec<(Range<usize>, String)> = Vec::new();
    let mut problems = Vec::new();
    for (node, value) in source.values().filter(|(_, value)| value.contains('$')) {
        // In `[${NAME}]` the brace begins a mapping, so the value that YAML sees is a lone dollar sign.
        if value.ends_with('$') && text[source.range(node).end..].starts_with('{') {
            problems.push(source.problem(node, "inside `[ ]` and `{ }`, put `${…}` in quotes"));
            continue;
        }
        match expanded(value, variables) {
            Ok(expanded) if expanded == value => {}
            Ok(_) if source.style(node) == Style::Block => {
                let message =
                    "variables are put into values of one line only; write the value in one, in quotes";
                problems.push(source.problem(node, message));
            }
            // A JSON text is a YAML text in double quotes.
            Ok(expanded) => changes.push((source.range(node), serde_json::Value::from(expanded).to_string())),
            Err(message) => problems.push(source.problem(node, message)),
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    if changes.is_empty() {
        return Ok(Cow::Borrowed(text));
    }
    let mut expanded = text.to_owned();
    // From the end, so that the ranges before stay true.
    for (range, value) in changes.into_iter().rev() {
        expanded.replace_range(range, &value);
    }
    Ok(Cow::Owned(expanded))
}

/// One value with the variables put in, or what is wrong with it.
pub(super) fn expanded(value: &str, variables: &Variables) -> Result<String, String> {
    let mut whole = String::new();
    for piece in pieces(value) {
        match piece {
            Piece::Text(text) => whole.push_str(text),
            Piece::Variable { name, default } => match (variables.get(name), default) {
                (Some(value), _) => whole.push_str(value),
                (None, Some(default)) => whole.push_str(default),
                (None, None) => return Err(unset(name)),
            },
            Piece::Malformed(text) => {
                return Err(format!(
                    "`{text}` names no variable; write `${{NAME}}` or `${{NAME:-default}}`, and `$$` for a dollar sign"
                ));
            }
        }
    }
    Ok(whole)
}

/// What to say of a variable that isn't set.
pub(super) fn unset(name: &str) -> String {
    format!(
        "the environment variable `{name}` is not set; set it, give a default (`${{{name}:-default}}`), or write `$$` \
         for a dollar sign"
    )
}

/// Takes a value apart. A `$` before anything but `{` and `$` is a `$`.
fn pieces(value: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut rest = value;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let Some(dollar) = rest.find("${").into_iter().chain(rest.find("$$")).min() else {
            return Some(Piece::Text(std::mem::take(&mut rest)));
        };
        if dollar > 0 {
            let (text, after) = rest.split_at(dollar);
            rest = after;
            return Some(Piece::Text(text));
        }
        if let Some(after) = rest.strip_prefix("$$") {
            rest = after;
            return Some(Piece::Text("$"));
        }
        let end = rest.find('}').map_or(rest.len(), |end| end + 1);
        let (whole, after) = rest.split_at(end);
        rest = after;
        Some(variable(whole).unwrap_or(Piece::Malformed(whole)))
    })
}

/// Reads `${NAME}` or `${NAME:-default}`.
fn variable(whole: &str) -> Option<Piece<'_>> {
    let inside = whole.strip_prefix("${")?.strip_suffix('}')?;
    let (name, default) = match inside.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inside, None),
    };
    let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    is_name.then_some(Piece::Variable { name, default })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables() -> Variables {
        [("A", "a"), ("NASTY", "x\"\n# y: [${A}]\\"), ("EMPTY", "")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
    }

    #[track_caller]
    fn check(value: &str, want: &str) {
        let got = expanded(value, &variables()).unwrap_or_else(|message| format!("error: {message}"));
        assert!(got.starts_with(want), "{got}");
        assert_eq!(want.starts_with("error"), got.starts_with("error"));
    }

    #[test]
    fn variables_are_put_in_once() {
        check("${A}", "a");
        check("x${A}y${A}", "xaya");
        check("${NASTY}", "x\"\n# y: [${A}]\\");
        check("${B:-b}${A:-b}", "ba");
        check("${B:-}${EMPTY}${EMPTY:-d}.", ".");
        check("${B:-a:-b $5}", "a:-b $5");
    }

    #[test]
    fn a_dollar_sign_is_one_unless_it_begins_a_variable() {
        check("$A $5 a$ $$A $${A} $$$$", "$A $5 a$ $A ${A} $$");
    }

    #[test]
    fn what_names_no_variable_is_an_error() {
        check("${B}", "error: the environment variable `B` is not set");
        check("a ${", "error: `${` names no variable");
        check("${}", "error: `${}` names no variable");
        check("${1A}", "error: `${1A}` names no variable");
        check("${A-b}", "error: `${A-b}` names no variable");
        check("${A B}", "error: `${A B}` names no variable");
    }

    #[test]
    fn whatever_a_variable_holds_stays_one_value() {
        let text = "a: ${NASTY} # z\nb: ['${NASTY}', \"${A}\"]\n${A}: c\n";
        let expanded = expand(text, &Source::of(text), &variables()).unwrap();
        let read: serde_json::Value = serde_saphyr::from_str(&expanded).unwrap();
        let nasty = "x\"\n# y: [${A}]\\";
        assert_eq!(read, serde_json::json!({ "a": nasty, "b": [nasty, "a"], "${A}": "c" }));
    }

    #[test]
    fn a_text_without_variables_is_left_as_it_is() {
        let text = "a: |\n  $5\n  $A\nb: '$c'\n";
        assert!(matches!(expand(text, &Source::of(text), &variables()), Ok(Cow::Borrowed(_))));
    }

    #[test]
    fn a_block_of_lines_takes_no_variables() {
        let text = "a: |\n  ${A}\n";
        let problems = expand(text, &Source::of(text), &variables()).unwrap_err();
        assert_eq!(problems[0].key, "a");
    }
}
