//! Where a service leads: judged, and made into what the gateway wants to know of an upstream.

use std::{collections::BTreeSet, num::NonZeroUsize, time::Duration};

use farebox_gateway::{HealthCheck, UpstreamConfig, UpstreamHost, UpstreamScheme, UpstreamTls, UpstreamUrl};

use super::{file, judge::Findings};

/// Judges the upstream that is written at `key`.
pub(super) fn config(key: &str, upstream: file::UpstreamMap, findings: &mut Findings<'_>) -> UpstreamConfig {
    let urls: Vec<UpstreamUrl> = upstream.url.0.into_iter().map(|url| url.0).collect();
    let mut seen = BTreeSet::new();
    for url in &urls {
        if !seen.insert(url.to_string()) {
            findings.problem(format!("{key}.url"), format!("`{url}` is listed twice; remove one"));
        }
    }
    let with_tls = urls.iter().filter(|url| url.scheme() == UpstreamScheme::Https).count();
    if upstream.tls != file::UpstreamTls::WebRoots && with_tls < urls.len() {
        let plain =
            urls.iter().find(|url| url.scheme() != UpstreamScheme::Https).expect("not all are `https`");
        findings.problem(
            format!("{key}.tls"),
            format!(
                "`{plain}` is reached without TLS, so this would have no effect; write `https://`, or remove it"
            ),
        );
    }
    let tls = match &upstream.tls {
        file::UpstreamTls::WebRoots => UpstreamTls::WebRoots,
        file::UpstreamTls::SystemRoots => UpstreamTls::SystemRoots,
        file::UpstreamTls::Ca(path) => UpstreamTls::CaFile(findings.readable(&format!("{key}.tls.ca"), path)),
        file::UpstreamTls::InsecureSkipVerify => {
            findings.note(
                format!("{key}.tls"),
                format!("anyone on the way to `{}` can read and change everything", list(&urls)),
            );
            UpstreamTls::InsecureSkipVerify
        }
    };
    let wait =
        |name: &str, patience: super::value::Patience, findings: &mut Findings<'_>| -> Option<Duration> {
            if patience.limit() == Some(Duration::ZERO) {
                findings.problem(
                    format!("{key}.{name}"),
                    "no time at all would fail every request; write `never` or a longer one",
                );
            }
            patience.limit()
        };
    UpstreamConfig {
        urls,
        tls,
        host: match upstream.host.0 {
            file::Host::Own => UpstreamHost::Own,
            file::Host::Asked => UpstreamHost::Asked,
            file::Host::Named(name) => UpstreamHost::Named(name),
        },
        connect_timeout: findings.positive(&format!("{key}.connect-timeout"), upstream.connect_timeout),
        head_timeout: wait("answer-timeout", upstream.answer_timeout.0, findings),
        idle_timeout: wait("idle-timeout", upstream.idle_timeout.0, findings),
        keep_alive: findings.positive(&format!("{key}.keep-alive"), upstream.keep_alive),
        idle_connections_max: upstream.idle_connections,
        connections_max: upstream.connections.map(NonZeroUsize::get),
        failures_max: upstream.failures.get(),
        eject_for: findings.positive(&format!("{key}.eject-for"), upstream.eject_for),
        health: upstream.health.map(|health| self::health(&format!("{key}.health"), health, findings)),
    }
}

fn health(key: &str, health: file::Health, findings: &mut Findings<'_>) -> HealthCheck {
    if !health.path.starts_with('/') || health.path.parse::<http::uri::PathAndQuery>().is_err() {
        let message = format!("`{}` is not a path; write one that begins with `/`", health.path);
        findings.problem(format!("{key}.path"), message);
    }
    HealthCheck {
        path: health.path,
        every: findings.positive(&format!("{key}.every"), health.every),
        timeout: findings.positive(&format!("{key}.timeout"), health.timeout),
    }
}

fn list(urls: &[UpstreamUrl]) -> String {
    urls.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
