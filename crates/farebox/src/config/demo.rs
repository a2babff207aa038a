//! A seller's file for `farebox demo`: what it sells, without what belongs to the machine that will serve it.
//!
//! That is its node, network, addresses, keys and directories. None of it is used or spoken to, and none of its secrets and
//! variables has to be here. The rules of the file hold for it all the same, as `farebox check` looks at them: what that
//! refuses is refused.

use std::{collections::BTreeSet, path::Path};

use farebox_gateway::UpstreamUrl;
use farebox_lightning::{
    config::{LightningConfig, Password, PhoenixdSettings},
    phoenixd::Secret,
};
use farebox_protocol::Network;

use super::{
    Config, check, directory, expand,
    file::{Clients, File, Listen, Ops, Upstream, UpstreamMap},
    judge::{self, Judged, Rigour},
    open, placed,
    problem::{Problem, Problems},
    read_with_stand_ins,
    source::Source,
    value::Written,
    variables,
};

/// A file as the demo sells it.
#[derive(Debug)]
pub(crate) struct ForDemo {
    /// Where buyers connect, the state directory and, with an echo, the upstreams are still the demo's to say.
    pub(crate) config: Config,
    /// What the file says and the demo does otherwise.
    pub(crate) replaced: Vec<Problem>,
}

/// Keys that are replaced wherever they are written, and what is said of it.
const REPLACED: [(&str, &str); 7] = [
    ("network", "the demo has a chain of its own (regtest), where coins are worth nothing"),
    ("lightning", "the demo's own node is paid; this one is not spoken to"),
    ("listen", "the demo listens on this machine only, without TLS"),
    ("ops", "the demo has an address of its own for them"),
    ("state-dir", "the demo keeps its books in a temporary directory; this one is left alone"),
    ("mint-secrets", "the demo makes its tokens with a secret of its own"),
    ("clients", "everybody on this machine may come in"),
];

/// Keys of a service that are replaced where an echo answers.
const ECHOED: [(&str, &str); 2] =
    [("upstream", "the demo's echo answers in its place"), ("headers", "the demo's echo doesn't get them")];

/// Reads and judges the file, with an echo in the place of all upstreams or without.
pub(crate) fn load(path: &Path, echo: bool) -> Result<ForDemo, Problems> {
    let failed = |list| Problems { file: Some(path.to_owned()), list };
    let checked = check(path);
    if !checked.problems.is_empty() {
        return Err(failed(checked.problems));
    }
    let (text, source) = open(path).map_err(|problem| failed(vec![problem]))?;
    let variables = variables(&source);
    let mut missing = expand::required(&source);
    missing.retain(|mention| !variables.contains_key(&mention.name));
    // What is needed anywhere else has to be there.
    let needed: BTreeSet<_> = missing
        .iter()
        .filter(|mention| !is_replaced(source.key(mention.node), echo))
        .map(|mention| mention.name.clone())
        .collect();
    missing.retain(|mention| !needed.contains(&mention.name));
    let mut file = read_with_stand_ins(&text, &source, &variables, &missing).map_err(failed)?;
    replace(&mut file, echo);
    match judge::judge(file, directory(path), Rigour::Start) {
        Judged { config, problems, notes } if problems.is_empty() => Ok(ForDemo {
            config: Config { notes: placed(notes, &source), ..config },
            replaced: replaced(&source, echo),
        }),
        Judged { problems, .. } => Err(failed(placed(problems, &source))),
    }
}

fn replace(file: &mut File, echo: bool) {
    file.network = Written(Network::Regtest);
    // Something has to stand there; nobody connects to it.
    file.lightning = LightningConfig::Phoenixd(PhoenixdSettings {
        url: "http://127.0.0.1:9740".to_owned(),
        password: Password::Text(Secret::new("none")),
    });
    file.listen = vec![Listen::at(([127, 0, 0, 1], 0).into())];
    file.ops = Ops::Off;
    file.mint_secrets.clear();
    file.clients = Clients::default();
    for service in &mut file.services {
        service.clients = Clients::default();
        if echo {
            service.headers.clear();
            service.upstream = Upstream(UpstreamMap::new(nowhere()));
        }
    }
}

/// An address to be replaced by that of the echo.
fn nowhere() -> UpstreamUrl {
    "http://127.0.0.1:1".parse().expect("an address")
}

/// What there is to say of this file.
fn replaced(source: &Source, echo: bool) -> Vec<Problem> {
    let mut said: Vec<_> = REPLACED
        .iter()
        .filter(|(key, _)| source.is_written(key))
        .map(|(key, what)| Problem::new(*key, *what))
        .collect();
    let of_services = |key: &'static str, what: &'static str| {
        (0..).take_while(|at| source.is_written(&format!("services[{at}]"))).find_map(|at| {
            let key = format!("services[{at}].{key}");
            // Once is enough: it is the same everywhere.
            source.is_written(&key).then(|| Problem::new(key, what))
        })
    };
    said.extend(of_services("clients", REPLACED[6].1));
    said.extend(ECHOED.iter().filter(|_| echo).filter_map(|(key, what)| of_services(key, what)));
    placed(said, source)
}

/// Whether nothing of what is written at this key is used.
fn is_replaced(key: &str, echo: bool) -> bool {
    let first = |key: &str| key.split(['.', '[']).next().unwrap_or_default().to_owned();
    let of_service = key.strip_prefix("services[").and_then(|rest| rest.split_once("]."));
    match of_service {
        Some((_, rest)) => {
            let name = first(rest);
            name == "clients" || (echo && ECHOED.iter().any(|(key, _)| *key == name))
        }
        None => REPLACED.iter().any(|(replaced, _)| *replaced == first(key)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
network: mainnet
lightning: { phoenixd: { password: { env: NO_SUCH_VARIABLE } } }
listen: [{ addr: \"0.0.0.0:443\", tls: { cert: /none/cert.pem, key: /none/key.pem } }]
mint-secrets: [{ from: { file: /none/secret } }]
state-dir: ${NO_SUCH_DIRECTORY}
clients: { allow: [10.0.0.0/8] }
services:
  - name: api
    upstream: http://127.0.0.1:3000
    headers: { authorization: { file: /none/key } }
    price: 10sat
";

    #[track_caller]
    fn load_text(text: &str, echo: bool) -> Result<ForDemo, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        load(file.path(), echo).map_err(|problems| problems.to_string())
    }

    #[test]
    fn nothing_that_belongs_to_the_sellers_machine_has_to_be_here() {
        let ForDemo { config, replaced } = load_text(FILE, true).unwrap();
        assert_eq!(config.paywall.network, Network::Regtest);
        assert!(config.mint_secrets.is_empty() && config.gateway.ops.is_none());
        assert_eq!(config.gateway.listen.len(), 1);
        assert!(config.gateway.listen[0].tls.is_none() && config.gateway.services[0].headers.is_empty());
        let keys: Vec<_> = replaced.iter().map(|problem| problem.key.as_str()).collect();
        assert_eq!(
            keys,
            [
                "network",
                "lightning",
                "listen",
                "mint-secrets",
                "state-dir",
                "clients",
                "services[0].upstream",
                "services[0].headers"
            ]
        );
        assert!(replaced.iter().all(|problem| problem.place.is_some()));
    }

    #[test]
    fn what_the_sellers_own_upstream_needs_has_to_be_here() {
        let error = load_text(FILE, false).unwrap_err();
        assert!(error.contains(":10:") && error.contains("cannot read `/none/key`"), "{error}");
        let error = load_text(&FILE.replace("10sat", "${NO_SUCH_PRICE}"), true).unwrap_err();
        assert!(error.contains(":11:") && error.contains("`NO_SUCH_PRICE` is not set"), "{error}");
    }

    #[test]
    fn the_rules_hold_for_what_is_replaced_too() {
        for (from, to, want) in [
            ("lightning: {", "lightning: { lnd: {}, ", "only one of these"),
            ("0.0.0.0:443", "443", "listen"),
            ("state-dir", "state_dir", "did you mean `state-dir`"),
        ] {
            let error = load_text(&FILE.replace(from, to), true).unwrap_err();
            assert!(error.contains(want), "{error}");
        }
    }
}
