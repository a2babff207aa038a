//! Asking addresses how they are, for upstreams that are configured so: one task for each address, for the whole gateway.
//!
//! A check has a connection of its own each time, so it finds out whether connecting works, and waits for nobody. The
//! tasks belong to one watcher that runs as long as the gateway; those of upstreams that are served no longer end when
//! the services change, and those of upstreams that stay go on.

use std::sync::Arc;

use arc_swap::ArcSwap;
use http::{HeaderValue, Request, Uri, header::USER_AGENT, uri::PathAndQuery};
use tokio::{
    sync::Notify,
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};

use super::{Upstream, address::describe, connect::Begun, outgoing::Outgoing};
use crate::{config::HealthCheck, proxy::RequestBody, services::Services, worker::Tasks};

/// Checks the upstreams of these services until it is dropped; `changed` tells it that they are others now.
pub(crate) async fn watch(services: &ArcSwap<Services>, changed: &Notify) {
    let mut checks = JoinSet::new();
    let mut watched: Vec<(Arc<Upstream>, Vec<AbortHandle>)> = Vec::new();
    loop {
        let served = services.load().upstreams();
        watched.retain(|(upstream, handles)| {
            let is_served = served.iter().any(|other| Arc::ptr_eq(other, upstream));
            if !is_served {
                handles.iter().for_each(AbortHandle::abort);
            }
            is_served
        });
        for upstream in served {
            let Some(health) = upstream.config.health.clone() else { continue };
            if watched.iter().any(|(known, _)| Arc::ptr_eq(known, &upstream)) {
                continue;
            }
            let begin = |at| checks.spawn(check(upstream.clone(), at, health.clone()));
            let handles = (0..upstream.addresses.len()).map(begin).collect();
            watched.push((upstream, handles));
        }
        // None ends by itself; those that were told to are collected.
        while checks.try_join_next().is_some() {}
        changed.notified().await;
    }
}

/// Whether this is what can be asked for.
pub(super) fn is_path(path: &str) -> bool {
    path.starts_with('/') && path.parse::<PathAndQuery>().is_ok_and(|read| read.as_str() == path)
}

async fn check(upstream: Arc<Upstream>, at: usize, health: HealthCheck) {
    loop {
        let outcome = match timeout(health.timeout, ask(&upstream, at, &health.path)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(format!("its health check has taken longer than {:?}", health.timeout)),
        };
        upstream.addresses[at].checked(outcome);
        sleep(health.every).await;
    }
}

/// Asks once. What is wrong, in words, unless all is well.
async fn ask(upstream: &Upstream, at: usize, path: &str) -> Result<(), String> {
    let address = &upstream.addresses[at];
    let mut request = Request::new(RequestBody::none());
    *request.uri_mut() = path.parse::<Uri>().map_err(|error| describe(&error))?;
    request.headers_mut().insert(USER_AGENT, HeaderValue::from_static("farebox"));
    let mut outgoing = Outgoing { request, host: None, upgrade: None, lines: None };
    let tasks = Tasks::default();
    let failed = |error: &dyn std::error::Error| format!("its health check fails: {}", describe(error));
    let answer = match address.connector().begin(&tasks, ()).await.map_err(|error| failed(&error))? {
        Begun::Http1(mut sender, _) => {
            outgoing.shape_for_http1(&address.naming().host);
            sender.send_request(outgoing.request).await
        }
        Begun::Http2 { mut sender, .. } => {
            outgoing.shape_for_http2(address.naming());
            sender.send_request(outgoing.request).await
        }
    };
    let status = answer.map_err(|error| failed(&error))?.status();
    if status.is_client_error() || status.is_server_error() {
        return Err(format!("its health check is answered {status}"));
    }
    Ok(())
}
