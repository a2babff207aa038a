use std::sync::Arc;

use http::{HeaderMap, HeaderValue, header};
use proptest::prelude::*;

use super::*;

fn headers(content_type: &str) -> HeaderMap {
    [(header::CONTENT_TYPE, HeaderValue::from_str(content_type).unwrap())].into_iter().collect()
}

fn said(usage: Result<Usage, Unreadable>) -> String {
    match usage {
        Err(why) => format!("{why:?}"),
        Ok(Usage { units: Units { input, output }, is_total, model }) => {
            let total = if is_total { " total" } else { "" };
            format!("{input} in {output} out{total} by {}", model.as_deref().unwrap_or("nobody"))
        }
    }
}

/// Reads a body cut at these places.
fn read(shape: &Shape, content_type: &str, body: &[u8], cuts: &[usize]) -> (String, u64) {
    let mut reader = UsageReader::new(Arc::new(shape.clone()), &headers(content_type));
    let mut from = 0;
    for cut in cuts.iter().copied().chain([body.len()]) {
        let to = cut.clamp(from, body.len());
        reader.read(&body[from..to]);
        from = to;
    }
    let passed = reader.passed();
    (said(reader.end()), passed)
}

#[track_caller]
fn json(body: &str, want: &str) {
    assert_eq!(read(&Shape::default(), "application/json", body.as_bytes(), &[]).0, want, "{body}");
}

#[track_caller]
fn stream(body: &str, want: &str) {
    assert_eq!(read(&Shape::default(), "text/event-stream", body.as_bytes(), &[]).0, want, "{body}");
}

const CHAT: &str = r#"{"id":"c1","object":"chat.completion","model":"gpt-4o-2024-08-06","choices":[{"index":0,"message":{"role":"assistant","content":"{\"usage\":{\"prompt_tokens\":1}} \u20bf"}}],"usage":{"prompt_tokens":19,"completion_tokens":10,"total_tokens":29,"completion_tokens_details":{"reasoning_tokens":3}}}"#;

const STREAM: &str = "data: {\"model\":\"gpt-4o\",\"choices\":[{\"delta\":{\"content\":\"Hel\"}}],\"usage\":null}\n\n\
: keep-alive\n\n\
data: {\"model\":\"gpt-4o\",\"choices\":[{\"delta\":{\"content\":\"lo\"}}],\"usage\":null}\r\n\r\n\
data: {\"model\":\"gpt-4o\",\"choices\":[],\"usage\":{\"prompt_tokens\":19,\"completion_tokens\":2,\"total_tokens\":21}}\n\n\
data: [DONE]\n\n";

#[test]
fn the_usage_of_an_answer_is_read() {
    json(CHAT, "19 in 10 out by gpt-4o-2024-08-06");
    json(r#"{"model":"m","usage":{"input_tokens":5,"output_tokens":7}}"#, "5 in 7 out by m");
    json(r#"{"usage":{"prompt_tokens":8,"total_tokens":8}}"#, "8 in 0 out by nobody");
    json(r#"{"usage":{"prompt_tokens":8,"total_tokens":11}}"#, "8 in 3 out by nobody");
    json(r#"{"usage":{"completion_tokens":8,"total_tokens":11}}"#, "3 in 8 out by nobody");
    json(r#"{"usage":{"prompt_tokens":8}}"#, "8 in 0 out by nobody");
    json(r#"{"usage":{"total_tokens":11}}"#, "11 in 0 out total by nobody");
    json(r#"{"usage":{"prompt_tokens":0,"completion_tokens":0}}"#, "0 in 0 out by nobody");
    json(&format!("\n {CHAT} \n"), "19 in 10 out by gpt-4o-2024-08-06");
}

#[test]
fn the_last_event_that_tells_counts() {
    stream(STREAM, "19 in 2 out by gpt-4o");
    let twice = "data: {\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":1}}\n\ndata: {\"usage\":{\"completion_tokens\":5}}\n\n";
    stream(twice, "1 in 5 out by nobody");
    stream("data: {\"usage\":\ndata: {\"prompt_tokens\":4}}\n\n", "4 in 0 out by nobody");
    stream("data: {\"usage\":{\"prompt_tokens\":4}}", "4 in 0 out by nobody");
    // Cut short, it tells nothing; what came before stands.
    stream(
        "data: {\"usage\":{\"prompt_tokens\":4}}\n\ndata: {\"usage\":{\"prompt_tokens\":5",
        "4 in 0 out by nobody",
    );
    stream(
        "data: {\"usage\":{\"prompt_tokens\":4}}\n\ndata: {\"usage\":{\"prompt_tokens\":5}\n\n",
        "4 in 0 out by nobody",
    );
}

#[test]
fn documents_one_after_the_other_are_read_to_the_last() {
    let shape = Shape {
        usage: vec!["".parse().unwrap()],
        input: vec!["prompt_eval_count".to_owned()],
        output: vec!["eval_count".to_owned()],
        total: Vec::new(),
        model: vec!["model".parse().unwrap()],
    };
    let lines = "{\"model\":\"l\",\"done\":false}\n{\"model\":\"l\",\"done\":true,\"prompt_eval_count\":26,\"eval_count\":298}\n";
    assert_eq!(read(&shape, "application/x-ndjson", lines.as_bytes(), &[]).0, "26 in 298 out by l");
}

#[test]
fn usage_may_stand_anywhere() {
    let shape = Shape {
        usage: vec!["response.usage".parse().unwrap()],
        model: vec!["response.model".parse().unwrap()],
        ..Shape::default()
    };
    let body = "event: response.completed\ndata: {\"type\":\"response.completed\",\"usage\":{\"input_tokens\":1},\"response\":{\"model\":\"o\",\"usage\":{\"input_tokens\":37,\"output_tokens\":11}}}\n\n";
    assert_eq!(read(&shape, "text/event-stream; charset=utf-8", body.as_bytes(), &[]).0, "37 in 11 out by o");
}

#[test]
fn usage_may_stand_in_several_places() {
    let paths = |paths: &[&str]| paths.iter().map(|path| path.parse().unwrap()).collect();
    let shape = Shape {
        usage: paths(&["usage", "message.usage", "response.usage"]),
        model: paths(&["model", "message.model", "response.model"]),
        ..Shape::default()
    };
    let check =
        |kind, body: &str, want| assert_eq!(read(&shape, kind, body.as_bytes(), &[]).0, want, "{body}");
    let whole = r#"{"model":"c","content":[],"usage":{"input_tokens":25,"output_tokens":15}}"#;
    check("application/json", whole, "25 in 15 out by c");
    // What was taken in at the beginning, and what came out at the end.
    let begun = r#"data: {"message":{"model":"c","usage":{"input_tokens":25,"output_tokens":1}}}"#;
    let ended = r#"data: {"delta":{},"usage":{"output_tokens":15}}"#;
    check("text/event-stream", &format!("{begun}\n\ndata: {{}}\n\n{ended}\n\n"), "25 in 15 out by c");
    let completed = r#"data: {"response":{"model":"o","usage":{"input_tokens":37,"output_tokens":11}}}"#;
    check("text/event-stream", &format!("{completed}\n\n"), "37 in 11 out by o");
    check("application/json", r#"{"other":{"usage":{"input_tokens":1}}}"#, "Missing");
}

#[test]
fn what_does_not_say_what_was_used_is_unreadable() {
    json("", "Missing");
    json("{}", "Missing");
    json("[]", "Missing");
    json(r#"{"usage":null}"#, "Missing");
    json(r#"{"usage":{}}"#, "Missing");
    json(r#"{"usage":[{"prompt_tokens":1}]}"#, "Missing");
    json(r#"[{"usage":{"prompt_tokens":1}}]"#, "Missing");
    json(r#"{"a":{"usage":{"prompt_tokens":1}}}"#, "Missing");
    json(r#"{"usage":{"a":{"prompt_tokens":1}}}"#, "Missing");
    json(r#"{"a":"\"usage\":{\"prompt_tokens\":1}"}"#, "Missing");
    json(&CHAT[..CHAT.len() - 1], "Truncated");
    json(&CHAT[..20], "Truncated");
    json(&format!("{CHAT}}}"), "Malformed");
    json("<html>", "Malformed");
    json(&"[".repeat(1_000), "Malformed");
    stream("", "Missing");
    stream("data: [DONE]\n\n", "Missing");
    stream(CHAT, "Missing");
    for number in ["-1", "1.5", "1e3", "\"7\"", "18446744073709551616", "true"] {
        json(&format!(r#"{{"usage":{{"prompt_tokens":{number},"completion_tokens":1}}}}"#), "Number");
    }
}

#[test]
fn only_plain_json_and_event_streams_are_read() {
    let of = |content_type: &str| read(&Shape::default(), content_type, CHAT.as_bytes(), &[]).0;
    for json in [
        "application/json",
        "Application/JSON; charset=utf-8",
        "application/vnd.api+json",
        "application/jsonl",
    ] {
        assert_eq!(of(json), "19 in 10 out by gpt-4o-2024-08-06", "{json}");
    }
    for other in ["text/html", "", "application/grpc", "text/json-ish"] {
        assert_eq!(of(other), "ContentType", "{other}");
    }
    for (encoding, want) in
        [("gzip", "Encoded"), ("br", "Encoded"), ("identity", "19 in 10 out by gpt-4o-2024-08-06")]
    {
        let mut headers = headers("application/json");
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding));
        let mut reader = UsageReader::new(Arc::default(), &headers);
        reader.read(CHAT.as_bytes());
        assert_eq!(said(reader.end()), want);
    }
}

#[test]
fn what_has_passed_is_counted_in_events_or_bytes() {
    assert_eq!(read(&Shape::default(), "text/event-stream", STREAM.as_bytes(), &[]).1, 3);
    assert_eq!(read(&Shape::default(), "application/json", b"123456789", &[]).1, 3);
    assert_eq!(read(&Shape::default(), "text/html", b"123456789", &[]).1, 3);
}

#[test]
fn a_path_that_nobody_could_follow_is_refused() {
    for path in ["", "usage", "a.b.c.d.e.f.g"] {
        assert_eq!(path.parse::<JsonPath>().unwrap().to_string(), path);
    }
    for path in [".", "a.", ".a", "a..b", "a.b.c.d.e.f.g.h", &"x".repeat(129)] {
        assert!(path.parse::<JsonPath>().is_err(), "{path}");
    }
}

#[test]
fn a_reader_holds_little_however_long_the_answer_is() {
    let mut reader = UsageReader::new(Arc::default(), &headers("text/event-stream"));
    let event = format!("data: {{\"{}\":\"{}\"}}\n\n", "k".repeat(5_000), "v".repeat(5_000));
    for _ in 0..100 {
        reader.read(event.as_bytes());
    }
    reader.read(STREAM.as_bytes());
    assert!(format!("{reader:?}").len() < 8_000, "it keeps what it needs");
    assert_eq!(said(reader.end()), "19 in 2 out by gpt-4o");
}

proptest! {
    #[test]
    fn where_chunks_end_makes_no_difference(
        cuts in proptest::collection::vec(0..STREAM.len(), 0..12),
        lost in 0..STREAM.len(),
        changed in any::<u8>(),
    ) {
        let mut cuts = cuts;
        cuts.sort_unstable();
        for (content_type, body) in [("text/event-stream", STREAM), ("application/json", CHAT)] {
            for spoilt in [false, true] {
                let mut body = body.as_bytes().to_vec();
                if spoilt {
                    let at = lost % body.len();
                    body[at] = changed;
                }
                let whole = read(&Shape::default(), content_type, &body, &[]);
                let every: Vec<usize> = (0..body.len()).collect();
                prop_assert_eq!(&read(&Shape::default(), content_type, &body, &cuts), &whole);
                prop_assert_eq!(&read(&Shape::default(), content_type, &body, &every), &whole);
            }
        }
    }

    #[test]
    fn any_json_is_read_as_a_whole_parser_reads_it(
        input in any::<u32>(), output in any::<u32>(), model in "\\PC{0,40}", content in "\\PC{0,60}", key in "\\PC{1,20}",
    ) {
        let mut document = serde_json::json!({
            "choices": [{ "usage": { "prompt_tokens": 1 }, "content": content }],
            "nested": { "usage": { "prompt_tokens": 2 } },
            "usage": { "prompt_tokens": input, "completion_tokens": output },
            "model": model,
        });
        document.as_object_mut().unwrap().entry(key).or_insert_with(|| content.clone().into());
        let said = read(&Shape::default(), "application/json", document.to_string().as_bytes(), &[7, 9]).0;
        prop_assert_eq!(said, format!("{input} in {output} out by {model}"));
    }
}
