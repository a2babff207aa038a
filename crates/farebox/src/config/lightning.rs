//! The node's part of the configuration, seen beside the rest: its settings are the `lightning` crate's, but whether they
//! go with the network that is sold on, and whether its secrets are there, is asked here.

use std::path::Path;

use farebox_lightning::config::{ChainSettings, ConfigProblem, LightningConfig, Password};
use farebox_protocol::Network;

use super::{file::File, judge::Findings, source::Source};

/// Puts the network of the whole file where the node's own isn't written: said once, it holds for both.
pub(super) fn inherit_network(file: &mut File, source: &Source) {
    let network = file.network.0;
    let places = places(&file.lightning);
    for (place, backend) in places.iter().zip(file.lightning.backends_mut()) {
        let is_written = |kind: &str| source.is_written(&format!("{place}.{kind}.network"));
        match backend {
            LightningConfig::Embedded(settings) if !is_written("embedded") => settings.network = network,
            LightningConfig::Lnd(settings) if !is_written("lnd") => settings.network = network,
            _ => {}
        }
    }
}

/// Where each backend is written.
fn places(lightning: &LightningConfig) -> Vec<String> {
    match lightning {
        LightningConfig::Backends(backends) => {
            (0..backends.len()).map(|at| format!("lightning.backends[{at}]")).collect()
        }
        _ => vec!["lightning".to_owned()],
    }
}

pub(super) fn judge(lightning: &LightningConfig, network: Network, findings: &mut Findings<'_>) {
    if let LightningConfig::Backends(_) = lightning
        && let Err(problem) = lightning.check()
    {
        findings.problem("lightning.backends", problem.to_string());
        return;
    }
    for (place, backend) in places(lightning).iter().zip(lightning.backends()) {
        judge_one(place, backend, network, findings);
    }
}

fn judge_one(place: &str, lightning: &LightningConfig, network: Network, findings: &mut Findings<'_>) {
    if let Some(other) = lightning.network().filter(|other| *other != network) {
        findings.problem(
            format!("{place}.{}.network", lightning.kind()),
            format!("the node would be on {other}, but {network} is sold on; leave this key out"),
        );
    }
    if let Err(problem) = lightning.check() {
        findings.problem(format!("{place}{}", key(&problem)), problem.to_string());
    }
    match lightning {
        LightningConfig::Phoenixd(settings) => {
            password(&format!("{place}.phoenixd.password"), &settings.password, findings);
        }
        LightningConfig::Embedded(settings) => {
            if let ChainSettings::Bitcoind(bitcoind) = &settings.chain {
                password(&format!("{place}.embedded.chain.bitcoind.password"), &bitcoind.password, findings);
            }
        }
        // Its files may come later: lnd writes them when it first runs.
        LightningConfig::Lnd(settings) => {
            if let Some(macaroon @ Password::Env(_)) = &settings.macaroon {
                password(&format!("{place}.lnd.macaroon"), macaroon, findings);
            }
        }
        // A backend that isn't known here brings nothing that could be missing.
        _ => {}
    }
}

fn password(key: &str, password: &Password, findings: &mut Findings<'_>) {
    match password {
        Password::File(path) => {
            findings.readable(&format!("{key}.file"), Path::new(path));
        }
        Password::Env(name) if std::env::var_os(name).is_none() => {
            findings.missing(format!("{key}.env"), format!("the environment variable `{name}` is not set"));
        }
        _ => {}
    }
}

/// Where the problem is written, below the backend.
fn key(problem: &ConfigProblem) -> String {
    match problem {
        ConfigProblem::Scheme { key: "url", .. } => ".phoenixd.url".to_owned(),
        ConfigProblem::Scheme { key: key @ ("esplora" | "electrum"), .. } => {
            format!(".embedded.chain.{key}")
        }
        ConfigProblem::Scheme { key, .. } => format!(".embedded.{key}"),
        ConfigProblem::Address { key, .. } | ConfigProblem::Time { key, .. } => format!(".lnd.{key}"),
        ConfigProblem::AliasWithoutListen | ConfigProblem::AliasTooLong(_) => ".embedded.alias".to_owned(),
        ConfigProblem::PortZero => ".embedded.listen".to_owned(),
        _ => String::new(),
    }
}
