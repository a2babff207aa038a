//! `farebox check --live`: what answers, of all that a configuration talks to, and what it would be better off with.
//!
//! Nothing is sold. A node is asked who it is and what it permits; one inside farebox isn't started, since a second process on
//! its directory would be refused or do harm. An upstream is connected to and sent nothing.

use std::time::Duration;

use farebox_gateway::UpstreamUrl;
use farebox_lightning::{
    Health,
    config::{Connected, LightningConfig, Places},
};
use serde::Serialize;
use tokio::{net::TcpStream, net::UnixStream, time};

use crate::config::Config;

/// How long a node may take to say who it is, and an upstream to take a connection.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a node that connects by itself is looked at meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What was found at one place.
#[derive(Debug, Serialize)]
pub(super) struct Finding {
    /// What was tried: `lnd`, `https://api.example.com`.
    pub(super) what: String,
    /// Whether it answers as it must.
    pub(super) ok: bool,
    /// What was found, or why nothing was.
    pub(super) found: String,
    /// What would be better.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) advice: Vec<String>,
}

/// Tries all that the configuration talks to.
pub(super) async fn try_all(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    for backend in config.lightning.backends() {
        findings.push(node(backend, config).await);
    }
    let mut tried: Vec<&UpstreamUrl> = Vec::new();
    for url in config.gateway.services.iter().flat_map(|service| &service.upstream.urls) {
        if !tried.contains(&url) {
            tried.push(url);
            findings.push(upstream(url).await);
        }
    }
    findings
}

async fn node(backend: &LightningConfig, config: &Config) -> Finding {
    let what = backend.kind().to_owned();
    if matches!(backend, LightningConfig::Embedded(_)) {
        let found = "inside farebox, and not started for a check".to_owned();
        return Finding { what, ok: true, found, advice: Vec::new() };
    }
    let places = Places { config: &config.base, state: &config.state_dir };
    let node = match time::timeout(PATIENCE, backend.connect(places)).await {
        Ok(Ok(node)) => node,
        Ok(Err(error)) => return Finding::bad(what, format!("{:#}", anyhow::Error::from(error))),
        Err(_) => return Finding::bad(what, format!("no answer within {} s", PATIENCE.as_secs())),
    };
    let finding = asked(what, &node, config).await;
    node.stop().await;
    finding
}

/// Waits until the node is ready, as far as it gets.
async fn asked(what: String, node: &Connected, config: &Config) -> Finding {
    let receive = node.receive();
    let ready = async {
        while receive.health() != Health::Ready || receive.facts().is_none() {
            time::sleep(LOOK_AGAIN).await;
        }
    };
    _ = time::timeout(PATIENCE, ready).await;
    let facts = match (receive.health(), receive.facts()) {
        (Health::Ready, Some(facts)) => facts,
        (Health::Down(why), _) => return Finding::bad(what, why),
        (Health::Ready, None) => return Finding::bad(what, "it doesn't say who it is".to_owned()),
    };
    let advice = match node {
        Connected::Lnd(lnd) => lnd.advice().await,
        _ => Vec::new(),
    };
    let wanted = config.paywall.network;
    if facts.network != wanted {
        let found = format!("it is on {}, but {wanted} is sold on", facts.network);
        return Finding { advice, ..Finding::bad(what, found) };
    }
    let found = format!("ready, on {}, node {}", facts.network, facts.node);
    Finding { what, ok: true, found, advice }
}

async fn upstream(url: &UpstreamUrl) -> Finding {
    let what = url.to_string();
    let connecting = async {
        match url.socket() {
            Some(path) => UnixStream::connect(path).await.map(drop),
            None => {
                let host = url.authority().host().trim_start_matches('[').trim_end_matches(']');
                TcpStream::connect((host, url.port())).await.map(drop)
            }
        }
    };
    match time::timeout(PATIENCE, connecting).await {
        Ok(Ok(())) => {
            Finding { what, ok: true, found: "it takes connections".to_owned(), advice: Vec::new() }
        }
        Ok(Err(error)) => Finding::bad(what, format!("it can't be connected to: {error}")),
        Err(_) => Finding::bad(what, format!("no connection within {} s", PATIENCE.as_secs())),
    }
}

impl Finding {
    fn bad(what: String, found: String) -> Self {
        Self { what, ok: false, found, advice: Vec::new() }
    }
}
