//! Calls to phoenixd: a deadline on each, the answer bounded, and an error that tells whether the request was sent.

use std::time::Duration;

use parking_lot::Mutex;
use reqwest::{Client, RequestBuilder, StatusCode, redirect};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time;
use zeroize::Zeroizing;

use super::Secret;
use crate::Health;

/// The longest answer that is read. A page of settlements is some 300 KiB.
const BODY_MAX: usize = 4 << 20;

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// No connection: the request can't have been carried out.
    #[error("no connection: {0}")]
    NotSent(String),
    /// The connection broke: it may have been carried out.
    #[error("the connection broke: {0}")]
    Lost(String),
    /// It may have been carried out, or be under way.
    #[error("no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The answer makes no sense.
    #[error("unexpected answer: {0}")]
    Wrong(String),
}

/// An answer of whatever status. It may hold a preimage, so it is wiped when dropped and has no `Debug`.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    body: Zeroizing<Vec<u8>>,
}

impl Answer {
    /// The body as JSON.
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, CallError> {
        // serde's message names fields and positions, but could also quote a value: say where, not what.
        serde_json::from_slice(&self.body).map_err(|error| {
            CallError::Wrong(format!(
                "not the JSON it should be, line {} column {}",
                error.line(),
                error.column()
            ))
        })
    }

    /// What an error answer says, fit for a log line.
    pub(super) fn complaint(&self) -> String {
        let text = String::from_utf8_lossy(&self.body);
        let text: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
        format!("{}: {text}", self.status.as_u16())
    }
}

/// The connection to one phoenixd.
pub(super) struct Http {
    client: Client,
    base: String,
    password: Secret,
    timeout: Duration,
    health: Mutex<Health>,
}

impl Http {
    pub(super) fn new(base: &str, password: Secret, timeout: Duration) -> Result<Self, reqwest::Error> {
        // reqwest is built without a TLS provider of its own; an error means that the program has chosen one already.
        _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .connect_timeout(timeout)
            // A redirect would carry the password elsewhere, and so would a proxy from the environment.
            .redirect(redirect::Policy::none())
            .no_proxy()
            .build()?;
        let health = Mutex::new(Health::Ready);
        Ok(Self { client, base: base.trim_end_matches('/').to_owned(), password, timeout, health })
    }

    pub(super) fn health(&self) -> Health {
        self.health.lock().clone()
    }

    pub(super) const fn timeout(&self) -> Duration {
        self.timeout
    }

    pub(super) async fn get(
        &self,
        path: &str,
        query: &(impl Serialize + ?Sized + Sync),
    ) -> Result<Answer, CallError> {
        let request = self.client.get(format!("{}{path}", self.base)).query(query);
        self.call(request, self.timeout).await
    }

    pub(super) async fn post(
        &self,
        path: &str,
        form: &(impl Serialize + ?Sized + Sync),
        limit: Duration,
    ) -> Result<Answer, CallError> {
        let request = self.client.post(format!("{}{path}", self.base)).form(form);
        self.call(request, limit).await
    }

    async fn call(&self, request: RequestBuilder, limit: Duration) -> Result<Answer, CallError> {
        let request = request.basic_auth("", Some(self.password.expose()));
        let answer = time::timeout(limit, receive(request)).await.unwrap_or(Err(CallError::TimedOut(limit)));
        *self.health.lock() = match &answer {
            Ok(answer) if answer.status == StatusCode::UNAUTHORIZED => {
                Health::Down("phoenixd refuses the password".to_owned())
            }
            Ok(answer) if answer.status.is_server_error() => {
                Health::Down(format!("phoenixd answered {}", answer.complaint()))
            }
            Ok(_) => Health::Ready,
            Err(error) => Health::Down(format!("phoenixd: {error}")),
        };
        answer
    }
}

async fn receive(request: RequestBuilder) -> Result<Answer, CallError> {
    let mut response = request.send().await.map_err(failed)?;
    let status = response.status();
    let mut body = Zeroizing::new(Vec::new());
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        if body.len() + chunk.len() > BODY_MAX {
            return Err(CallError::Wrong(format!("longer than {BODY_MAX} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Answer { status, body })
}

fn failed(error: reqwest::Error) -> CallError {
    let sent = !error.is_connect() && !error.is_builder();
    let mut text = error.to_string();
    // reqwest's own text says only *that* it failed; why is in its sources.
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text = cause.to_string();
        source = cause.source();
    }
    if sent { CallError::Lost(text) } else { CallError::NotSent(text) }
}
