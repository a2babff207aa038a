//! What holds of every answer that is read for its usage, and of every request that is asked to tell it.
//!
//! The first byte says what the answer is, the second how it is cut into chunks; the rest is its body. The laws: cutting makes
//! no difference; what is JSON is read as such; asking for usage leaves JSON that differs in nothing else.

use std::sync::Arc;

use farebox_paywall::price::{Unreadable, UsageReader, ask_for_usage, usage::Shape};
use http::{HeaderMap, HeaderValue, header::CONTENT_TYPE};
use serde_json::{Value, json};

/// Panics when a law is broken.
pub(crate) fn check(data: &[u8]) {
    let [kind, cut, body @ ..] = data else { return };
    for content_type in ["application/json", "text/event-stream"] {
        // Both, but the one that is meant with every cut.
        let sizes: &[usize] = match (kind % 2 == 0) == (content_type == "application/json") {
            true => &[1, usize::from(*cut).max(1), 4_096],
            false => &[4_096],
        };
        let whole = read(content_type, body, body.len().max(1));
        for size in sizes {
            assert_eq!(read(content_type, body, *size), whole, "in chunks of {size}");
        }
        if content_type == "application/json" && serde_json::from_slice::<Value>(body).is_ok() {
            assert!(!whole.contains("Malformed") && !whole.contains("Truncated"), "{whole}");
        }
    }
    asked(body);
}

fn read(content_type: &'static str, body: &[u8], size: usize) -> String {
    let headers: HeaderMap = [(CONTENT_TYPE, HeaderValue::from_static(content_type))].into_iter().collect();
    let mut reader = UsageReader::new(Arc::new(Shape::default()), &headers);
    body.chunks(size).for_each(|chunk| reader.read(chunk));
    let (passed, model) = (reader.passed(), reader.model().map(str::to_owned));
    let usage = reader.end();
    assert_ne!(usage, Err(Unreadable::ContentType));
    format!("{usage:?} {passed} {model:?}")
}

fn asked(body: &[u8]) {
    let Some(asked) = ask_for_usage(body) else { return };
    let mut before: Value = serde_json::from_slice(body).expect("only JSON is asked");
    let after: Value = serde_json::from_slice(&asked).expect("it stays JSON");
    let options = before.as_object_mut().expect("an object").entry("stream_options").or_insert(json!({}));
    options["include_usage"] = json!(true);
    assert_eq!(before, after, "nothing else is changed");
}
