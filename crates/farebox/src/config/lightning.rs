//! The node's part of the configuration, seen beside the rest: its settings are the `lightning` crate's, but whether they
//! go with the network that is sold on, and whether its secrets are there, is asked here.

use std::path::Path;

use farebox_lightning::config::{ChainSettings, ConfigProblem, LightningConfig, Password};
use farebox_protocol::Network;

use super::{file::File, judge::Findings, source::Source};

/// Puts the network of the whole file where the node's own isn't written: said once, it holds for both.
pub(super) fn inherit_network(file: &mut File, source: &Source) {
    let network = file.network.0;
    match &mut file.lightning {
        LightningConfig::Embedded(settings) if !source.is_written("lightning.embedded.network") => {
            settings.network = network;
        }
        LightningConfig::Lnd(settings) if !source.is_written("lightning.lnd.network") => {
            settings.network = network;
        }
        _ => {}
    }
}

pub(super) fn judge(lightning: &LightningConfig, network: Network, findings: &mut Findings<'_>) {
    if let Some(other) = lightning.network().filter(|other| *other != network) {
        let key = match lightning {
            LightningConfig::Lnd(_) => "lightning.lnd.network",
            _ => "lightning.embedded.network",
        };
        findings.problem(
            key,
            format!("the node would be on {other}, but {network} is sold on; leave this key out"),
        );
    }
    if let Err(problem) = lightning.check() {
        findings.problem(key(&problem), problem.to_string());
    }
    match lightning {
        LightningConfig::Phoenixd(settings) => {
            password("lightning.phoenixd.password", &settings.password, findings);
        }
        LightningConfig::Embedded(settings) => {
            if let ChainSettings::Bitcoind(bitcoind) = &settings.chain {
                password("lightning.embedded.chain.bitcoind.password", &bitcoind.password, findings);
            }
        }
        // Its files may come later: lnd writes them when it first runs.
        LightningConfig::Lnd(settings) => {
            if let Some(macaroon @ Password::Env(_)) = &settings.macaroon {
                password("lightning.lnd.macaroon", macaroon, findings);
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

/// Where the problem is written.
fn key(problem: &ConfigProblem) -> String {
    match problem {
        ConfigProblem::Scheme { key: "url", .. } => "lightning.phoenixd.url".to_owned(),
        ConfigProblem::Scheme { key: key @ ("esplora" | "electrum"), .. } => {
            format!("lightning.embedded.chain.{key}")
        }
        ConfigProblem::Scheme { key, .. } => format!("lightning.embedded.{key}"),
        ConfigProblem::Address { key, .. } | ConfigProblem::Time { key, .. } => format!("lightning.lnd.{key}"),
        ConfigProblem::AliasWithoutListen | ConfigProblem::AliasTooLong(_) => {
            "lightning.embedded.alias".to_owned()
        }
        ConfigProblem::PortZero => "lightning.embedded.listen".to_owned(),
        _ => "lightning".to_owned(),
    }
}
