//! From YAML to [`File`]: strictly, and with an error that names line, key and the way out.
//!
//! serde-saphyr knows the place of every error; the key's full path and the nearest known word are added here. Places are
//! those of the document as it was written, and so are the words: what a variable held is never shown.

use serde_saphyr::Error;

use super::{
    expand::{Variables, expand},
    file::File,
    lightning,
    problem::{Place, Problem, advice, listed},
    source::Source,
};

/// The keys of what says where a secret is.
const SECRETS: [&str; 3] = [".password", ".macaroon", ".from"];

/// Reads the document with the variables put in.
pub(super) fn read(text: &str, source: &Source, variables: &Variables) -> Result<File, Vec<Problem>> {
    let options = serde_saphyr::options! {
        // `yes` and `off` are words; YAML 1.1's other truth values only surprise.
        strict_booleans: true,
        with_snippet: false,
    };
    let expanded = expand(text, source, variables)?;
    let mut file = serde_saphyr::from_str_with_options(&expanded, options)
        .map_err(|error| vec![explain(&error, &expanded, source, variables)])?;
    lightning::inherit_network(&mut file, source);
    Ok(file)
}

fn explain(error: &Error, expanded: &str, source: &Source, variables: &Variables) -> Problem {
    let error = match error.without_snippet() {
        Error::AliasError { error, .. } => error.without_snippet(),
        error => error,
    };
    let place = error
        .location()
        .filter(|location| location.line() > 0)
        .map(|location| Place { line: location.line(), column: location.column() });
    // The nodes of the document read are those of the document written, one by one.
    let read = Source::of(expanded);
    let node = place.and_then(|place| read.node_at(place));
    let problem = |message: String| match node {
        Some(node) => source.problem(node, message),
        None => Problem { place, ..Problem::new("", message) },
    };
    let written = || node.and_then(|node| source.written(node).or_else(|| source.value_of(source.key(node))));
    let is_secret = || {
        let key = node.map(|node| source.key(node)).unwrap_or_default();
        SECRETS.iter().any(|secret| key.ends_with(secret))
    };
    match error {
        Error::SerdeUnknownField { field, expected, .. } => {
            problem(format!("there is no such key{}", advice(field, expected)))
        }
        // The secret itself may stand where its place should, and is not repeated.
        Error::SerdeUnknownVariant { expected, .. } if is_secret() => {
            problem(format!("write below this key where it is: {}", listed(expected)))
        }
        Error::SerdeUnknownVariant { variant, expected, .. } => {
            // Where the choice is a key, what it holds is not to blame.
            let is_key = node.is_some_and(|node| source.key(node).rsplit('.').next() == Some(variant));
            let word = if is_key { variant } else { written().unwrap_or(variant) };
            problem(format!("`{word}` is not known here{}", advice(word, expected)))
        }
        Error::SerdeMissingField { field, .. } => {
            // The library points somewhere inside the mapping; what lacks the key is the mapping.
            let key = place.and_then(|place| read.mapping_around(place)).unwrap_or_default();
            let message = format!("the key `{field}` is missing; add it");
            Problem { place: source.place_of(key).or(place), ..Problem::new(key, message) }
        }
        Error::DuplicateMappingKey { .. } => problem("the key is written twice; keep one".to_owned()),
        Error::ExpectedMappingEndAfterEnumVariantValue { .. } => {
            problem("only one of these may be chosen; remove the others".to_owned())
        }
        Error::SerdeInvalidType { expected, .. } | Error::SerdeInvalidValue { expected, .. } => {
            let found = written().map_or(String::new(), |written| format!("found `{written}`; "));
            // What serde says of Rust's own types means nothing to who writes the file.
            let expected =
                if expected.starts_with("a nonzero") { "a whole number above zero" } else { expected };
            problem(format!("{found}write {expected}"))
        }
        Error::InvalidScalar { ty: "u8", .. } => problem("write a whole number from 0 to 255".to_owned()),
        Error::InvalidScalar { .. } => problem("write a whole number".to_owned()),
        Error::InvalidBooleanStrict { .. } => problem("write `true` or `false`".to_owned()),
        Error::NullIntoString { .. } => problem("there is no value; write one, or remove the key".to_owned()),
        Error::Unexpected { expected, .. } => {
            // The library names what it would have read next. What stands there instead may be a secret.
            let wanted = match *expected {
                "sequence start" => "a list, like `[…]` or lines that begin with `- `",
                "mapping start" => "keys and values, like `key: value`, each on its own line",
                "string scalar" => "a single value",
                other => return problem(format!("expected {other}; is the indentation right?")),
            };
            problem(format!("write {wanted}"))
        }
        Error::Eof { .. } => {
            let message = "there is nothing in it; begin with `network`, `lightning` and `services`";
            Problem { place, ..Problem::new("", message) }
        }
        Error::Message { msg, .. } => problem(without_values(msg, written(), variables)),
        Error::ExternalMessage { msg, .. } => {
            Problem { place, ..Problem::new("", format!("not YAML: {msg}")) }
        }
        other => problem(without_values(&without_place(other), written(), variables)),
    }
}

/// The message about a value in the words of the document: a variable may well hold a secret.
fn without_values(message: &str, written: Option<&str>, variables: &Variables) -> String {
    let Some(written) = written else { return message.to_owned() };
    let Ok(read) = super::expand::expanded(written, variables) else { return message.to_owned() };
    if read == written {
        return message.to_owned();
    }
    let shown = message.replace(&read, written);
    let is_told = variables.values().any(|value| value.len() > 2 && shown.contains(value.as_str()));
    if is_told || shown == message { format!("`{written}` does not hold what belongs here") } else { shown }
}

/// The library's own words, less the place, which is said in front.
fn without_place(error: &Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}
