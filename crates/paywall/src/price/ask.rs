//! Asking a model for its usage where the buyer didn't: `stream_options.include_usage` in the body of the request.
//!
//! A streamed answer in the style of OpenAI's API tells its usage only when asked. So on metered routes the request is asked
//! to ask, where it is one JSON object with `"stream": true` of at most [`ASK_BYTES_MAX`] bytes, and says nothing of
//! `stream_options.include_usage` itself. The bytes are put in between the others, of which none is changed, but for a
//! `null` in the place of the options: to that API it says nothing either, and programs write it for what they leave out.
//! Everything else goes on as it came, and its answer is charged by the rule for unreadable usage if it doesn't tell.

use serde_json::{Map, Value};

use super::usage::json::{Event, Scanner};

const OPTIONS: &str = "stream_options";

/// The largest body that is looked at; larger ones go on as they are.
pub const ASK_BYTES_MAX: usize = 1 << 20;

/// The body with the question in it, or `None` where it stays as it is. Show it only bodies declared as JSON, uncompressed.
pub fn ask_for_usage(body: &[u8]) -> Option<Vec<u8>> {
    if body.len() > ASK_BYTES_MAX {
        return None;
    }
    let object: Map<String, Value> = serde_json::from_slice(body).ok()?;
    if object.get("stream") != Some(&Value::Bool(true)) {
        return None;
    }
    let (path, question): (&[String], &str) = match object.get(OPTIONS) {
        None => (&[], r#""stream_options":{"include_usage":true}"#),
        Some(Value::Object(options)) if options.contains_key("include_usage") => return None,
        Some(Value::Object(_)) => (&[OPTIONS.to_owned()], r#""include_usage":true"#),
        Some(Value::Null) => {
            // What is read of it is told with the byte behind it.
            let end = place(body, &[OPTIONS.to_owned()], Event::Literal)?;
            let before = body.get(..end)?.strip_suffix(b"null")?;
            return Some([before, br#"{"include_usage":true}"#, body.get(end..)?].concat());
        }
        Some(_) => return None,
    };
    let at = place(body, path, Event::Object)? + 1;
    let rest = body.get(at..)?;
    let is_empty = rest.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'}');
    let comma: &[u8] = if is_empty { b"" } else { b"," };
    Some([&body[..at], question.as_bytes(), comma, rest].concat())
}

/// Where the one thing at this path is told of: an object at the bracket with which it begins. `None` where there are several.
fn place(body: &[u8], path: &[String], what: Event) -> Option<usize> {
    let (mut scanner, mut found, mut count) = (Scanner::new(), None, 0);
    for (at, byte) in body.iter().enumerate() {
        scanner.push(*byte, &mut |scanner: &Scanner, event| {
            if event == what && scanner.is_at(path) {
                found = Some(at);
            }
            count += usize::from(scanner.is_at(path));
        });
    }
    found.filter(|_| count == 1 && scanner.is_whole())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(body: &str, want: Option<&str>) {
        let asked = ask_for_usage(body.as_bytes()).map(|body| String::from_utf8(body).unwrap());
        assert_eq!(asked.as_deref(), want, "{body}");
        if let Some(asked) = asked {
            let asked: Value = serde_json::from_str(&asked).unwrap();
            assert_eq!(asked["stream_options"]["include_usage"], true);
        }
    }

    #[test]
    fn a_stream_is_asked_for_its_usage_and_nothing_else_is_changed() {
        check(r#"{"stream":true}"#, Some(r#"{"stream_options":{"include_usage":true},"stream":true}"#));
        check(
            r#" { "seed": 12345678901234567890, "stream": true, "x": 1.10 }"#,
            Some(
                r#" {"stream_options":{"include_usage":true}, "seed": 12345678901234567890, "stream": true, "x": 1.10 }"#,
            ),
        );
        check(
            r#"{"stream":true,"stream_options":{}}"#,
            Some(r#"{"stream":true,"stream_options":{"include_usage":true}}"#),
        );
        check(
            r#"{"a":{"stream_options":{"b":1}},"stream":true,"stream_options":{ "b":1}}"#,
            Some(
                r#"{"a":{"stream_options":{"b":1}},"stream":true,"stream_options":{"include_usage":true, "b":1}}"#,
            ),
        );
    }

    #[test]
    fn options_that_are_null_say_nothing() {
        check(
            r#"{"stream":true,"stream_options":null}"#,
            Some(r#"{"stream":true,"stream_options":{"include_usage":true}}"#),
        );
        check(
            r#"{"stream_options" : null , "x":null,"stream":true}"#,
            Some(r#"{"stream_options" : {"include_usage":true} , "x":null,"stream":true}"#),
        );
        check(
            r#"{"a":{"stream_options":null},"stream":true}"#,
            Some(r#"{"stream_options":{"include_usage":true},"a":{"stream_options":null},"stream":true}"#),
        );
    }

    #[test]
    fn what_is_no_such_request_goes_on_as_it_came() {
        for body in [
            "",
            "x",
            "[]",
            "{}",
            "{",
            r#"{"stream":false}"#,
            r#"{"stream":"true"}"#,
            r#"{"stream":1}"#,
            r#"[{"stream":true}]"#,
            r#"{"a":{"stream":true}}"#,
            r#"{"stream":true} {}"#,
            r#"{"stream":true"#,
        ] {
            check(body, None);
        }
    }

    #[test]
    fn a_buyer_who_has_said_something_of_it_has_said_it() {
        check(r#"{"stream":true,"stream_options":{"include_usage":true}}"#, None);
        check(r#"{"stream":true,"stream_options":{"include_usage":false}}"#, None);
        check(r#"{"stream":true,"stream_options":false}"#, None);
        check(r#"{"stream":true,"stream_options":{},"stream_options":{}}"#, None);
        check(r#"{"stream":true,"stream_options":{},"stream_options":null}"#, None);
        check(r#"{"stream":true,"stream_options":null,"stream_options":null}"#, None);
        check(r#"{"stream":true,"stream_options":"null","stream_options":null}"#, None);
    }

    #[test]
    fn a_large_body_is_not_looked_at() {
        let body = |len: usize| format!(r#"{{"stream":true,"x":"{}"}}"#, "y".repeat(len));
        let overhead = body(0).len();
        assert!(ask_for_usage(body(ASK_BYTES_MAX - overhead).as_bytes()).is_some());
        assert!(ask_for_usage(body(ASK_BYTES_MAX - overhead + 1).as_bytes()).is_none());
    }
}
