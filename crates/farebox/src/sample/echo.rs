//! An API that answers whatever it is asked, for services whose own isn't running.
//!
//! It tells what came in, as JSON, as long as asked for, and with the usage that a language model would tell. Like every upstream
//! it knows nothing of payments.

use axum::{
    Router,
    extract::{Query, Request},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::{Value, json};

/// The longest answer that can be asked for, in bytes.
const ANSWER_MAX: usize = 16 << 20;
/// The most of a request that is looked at, in bytes.
const REQUEST_MAX: usize = 16 << 20;
/// A token of a language model, as one reckons, in bytes of text.
const TOKEN: usize = 4;

/// What can be asked of it, in the query.
#[derive(Deserialize)]
struct Asked {
    /// How long the answer is to be, in bytes.
    bytes: Option<usize>,
    /// How many tokens of output it says it has used.
    tokens: Option<usize>,
    /// Its status.
    status: Option<u16>,
}

/// Answers every path and method.
pub(crate) fn router() -> Router {
    Router::new().fallback(answer)
}

async fn answer(Query(asked): Query<Asked>, request: Request) -> Response {
    let status = asked.status.map_or(Ok(StatusCode::OK), StatusCode::from_u16);
    let Some(status) = status.ok().filter(|status| !status.is_informational()) else {
        return (StatusCode::BAD_REQUEST, "`status` is a number from 200 to 999\n").into_response();
    };
    let (head, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, REQUEST_MAX).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    let model = serde_json::from_slice::<Value>(&body)
        .ok()
        .and_then(|body| body["model"].as_str().map(str::to_owned));
    let (input, output) = (body.len().div_ceil(TOKEN), asked.tokens.unwrap_or(100));
    let mut told = json!({
        "method": head.method.as_str(), "path": head.uri.path(), "request_bytes": body.len(),
        "usage": { "prompt_tokens": input, "completion_tokens": output, "total_tokens": input.saturating_add(output) },
    });
    if let Some(model) = model {
        told["model"] = model.into();
    }
    if let Some(bytes) = asked.bytes {
        told["filler"] = "".into();
        let filler = bytes.min(ANSWER_MAX).saturating_sub(text(&told).len());
        told["filler"] = ".".repeat(filler).into();
    }
    (status, [(header::CONTENT_TYPE, "application/json")], text(&told)).into_response()
}

/// On a line of its own, as terminals want it.
fn text(told: &Value) -> String {
    format!("{told}\n")
}

#[cfg(test)]
mod tests {
    use axum::{
        body::{Body, HttpBody as _},
        http::Method,
    };

    use super::*;

    async fn ask(target: &str, body: &'static str) -> (StatusCode, usize, Value) {
        let request = Request::builder().method(Method::POST).uri(target).body(Body::from(body)).unwrap();
        let query = Query::try_from_uri(request.uri()).unwrap();
        let answer = answer(query, request).await;
        let (status, length) = (answer.status(), answer.body().size_hint().exact().unwrap());
        let body = axum::body::to_bytes(answer.into_body(), usize::MAX).await.unwrap();
        (status, usize::try_from(length).unwrap(), serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn it_answers_as_long_as_asked_and_tells_usage() {
        let (status, length, told) = ask("/any/path?bytes=5000&tokens=7", r#"{"model":"m"}"#).await;
        assert_eq!((status, length), (StatusCode::OK, 5000));
        assert_eq!((&told["path"], &told["model"]), (&"/any/path".into(), &"m".into()));
        assert_eq!(told["usage"], json!({ "prompt_tokens": 4, "completion_tokens": 7, "total_tokens": 11 }));
        assert_eq!(ask("/?status=503", "").await.0, StatusCode::SERVICE_UNAVAILABLE);
    }
}
