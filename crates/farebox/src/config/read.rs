//! From YAML to [`File`]: strictly, and with an error that names line, key and the way out.
//!
//! serde-saphyr knows the place of every error and keeps values that came from the environment out of its messages; the
//! key's full path and the nearest known word are added here.

use std::collections::HashMap;

use serde_saphyr::{Error, PropertySyntax};

use super::{
    file::File,
    lightning,
    problem::{Place, Problem, listed, nearest},
    source::Source,
};

/// Reads the text, with `variables` put in where it mentions them.
///
/// Every required variable must be there: as in Docker Compose, a missing one would be read as nothing.
pub(crate) fn read(text: &str, source: &Source, variables: HashMap<String, String>) -> Result<File, Problem> {
    let options = serde_saphyr::options! {
        property_syntax: PropertySyntax::DockerCompose,
        // `yes` and `off` are words; YAML 1.1's other truth values only surprise.
        strict_booleans: true,
        with_snippet: false,
    };
    let mut file = serde_saphyr::from_str_with_options(text, options.with_properties(variables))
        .map_err(|error| explain(&error, source))?;
    lightning::inherit_network(&mut file, source);
    Ok(file)
}

fn explain(error: &Error, source: &Source) -> Problem {
    let error = match error.without_snippet() {
        Error::AliasError { error, .. } => error.without_snippet(),
        error => error,
    };
    let place = error
        .location()
        .filter(|location| location.line() > 0)
        .map(|location| Place { line: location.line(), column: location.column() });
    let innermost = || place.and_then(|place| source.key_at(place)).unwrap_or_default().to_owned();
    let (key, message) = match error {
        Error::SerdeUnknownField { field, expected, .. } => {
            (innermost(), format!("there is no such key{}", advice(field, expected)))
        }
        Error::SerdeUnknownVariant { variant, expected, .. } => {
            (innermost(), format!("`{variant}` is not known here{}", advice(variant, expected)))
        }
        Error::SerdeMissingField { field, .. } => {
            // The library points somewhere inside the mapping; what lacks the key is the mapping.
            let key = place.and_then(|place| source.mapping_around(place)).unwrap_or_default();
            let place = source.place_of(key).or(place);
            return Problem {
                place,
                key: key.to_owned(),
                message: format!("the key `{field}` is missing; add it"),
            };
        }
        Error::DuplicateMappingKey { .. } => (innermost(), "the key is written twice; keep one".to_owned()),
        Error::ExpectedMappingEndAfterEnumVariantValue { .. } => {
            (innermost(), "only one of these may be chosen; remove the others".to_owned())
        }
        Error::SerdeInvalidType { unexpected, expected, .. } => {
            (innermost(), format!("found {unexpected}; write {expected}"))
        }
        Error::SerdeInvalidValue { unexpected, expected, .. } => {
            (innermost(), format!("found {unexpected}; write {expected}"))
        }
        Error::InvalidScalar { ty, .. } => (innermost(), format!("not a whole number in the range of {ty}")),
        Error::InvalidBooleanStrict { .. } => (innermost(), "write `true` or `false`".to_owned()),
        Error::NullIntoString { .. } => {
            (innermost(), "there is no value; write one, or remove the key".to_owned())
        }
        Error::Unexpected { expected, .. } => {
            (innermost(), format!("expected {expected}; is the indentation right?"))
        }
        Error::Eof { .. } => (
            String::new(),
            "there is nothing in it; begin with `network`, `lightning` and `services`".to_owned(),
        ),
        Error::Message { msg, .. } => (innermost(), msg.clone()),
        Error::ExternalMessage { msg, .. } => (String::new(), format!("not YAML: {msg}")),
        other => (innermost(), without_place(other)),
    };
    Problem { place, key, message }
}

/// "; did you mean `price`? known here: …".
fn advice(word: &str, known: &[&str]) -> String {
    match nearest(word, known) {
        Some(nearest) if known.len() > 4 => format!("; did you mean `{nearest}`?"),
        Some(nearest) => format!("; did you mean `{nearest}`? It can be {}", listed(known)),
        None => format!("; it can be {}", listed(known)),
    }
}

/// The library's own words, less the place, which is said in front.
fn without_place(error: &Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}
