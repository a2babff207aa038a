//! Requests for money back, carried to those who decide about them: the body is read, within bounds, and nothing is judged.
//!
//! They are answered at one path of every host, before any service is looked for, and never cost anything.

use std::{sync::Arc, time::Duration};

use farebox_paywall::refund::{BODY_BYTES_MAX, Refunds};
use http::{Response, request::Parts};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use tokio::time::timeout;

use super::Body;

/// How long a client may take to send its few bytes.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) async fn answer(
    refunds: &Arc<Refunds>,
    parts: &Parts,
    query: Option<&str>,
    body: Incoming,
) -> Response<Body> {
    let read = timeout(PATIENCE, Limited::new(body, BODY_BYTES_MAX).collect()).await;
    // What doesn't come, or doesn't end, asks for nothing.
    let body = read.ok().and_then(Result::ok).map(|body| body.to_bytes()).unwrap_or_default();
    refunds.answer(&parts.method, query, &parts.headers, &body).await.map(Body::full)
}

/// What is said where the seller pays nothing back.
pub(super) fn not_offered() -> Response<Body> {
    farebox_paywall::refund::not_offered().map(Body::full)
}
