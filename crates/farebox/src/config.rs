//! The configuration: one strict YAML file, `farebox.yaml`, or the same thing made from flags.
//!
//! [`load`] is for starting: whatever isn't fully understood stops it, with file, line, key and the way out. [`check`]
//! judges a file where its secrets, variables and node aren't, and says so instead of failing for want of them. Neither
//! speaks to the network.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use farebox_gateway::GatewayConfig;
use farebox_lightning::config::LightningConfig;
use farebox_paywall::{PaywallConfig, receipt::SellerName};
use farebox_protocol::Network;

mod cost;
#[cfg(feature = "embedded")]
pub(crate) mod demo;
mod expand;
pub(crate) mod file;
mod judge;
mod lightning;
mod listen;
mod menu;
pub(crate) mod problem;
pub(crate) mod rate;
mod read;
mod refunds;
mod service;
mod source;
mod upstream;
pub(crate) mod value;

use expand::{Mention, Variables};
use file::{File, MintSecretEntry};
use judge::{Judged, Rigour};
use problem::{Problem, Problems};
pub(crate) use refunds::RefundSettings;
use source::Source;

use crate::sold::Sold;

/// A configuration that makes sense as a whole.
#[derive(Debug)]
pub(crate) struct Config {
    /// What paths in the file are relative to.
    pub(crate) base: PathBuf,
    /// Where the mint secret and the books are.
    pub(crate) state_dir: PathBuf,
    /// Where the mint secrets are, newest first; none for the one in the state directory.
    pub(crate) mint_secrets: Vec<MintSecretEntry>,
    /// The node that is paid.
    pub(crate) lightning: LightningConfig,
    /// Network, challenges and their budgets.
    pub(crate) paywall: PaywallConfig,
    /// Listeners and services.
    pub(crate) gateway: GatewayConfig,
    /// What is needed to pay money back, where that is offered.
    pub(crate) refunds: Option<RefundSettings>,
    /// Who signs receipts for buyers who ask, where that is offered.
    pub(crate) signs_receipts_as: Option<SellerName>,
    /// What is worth knowing although it stops nothing.
    pub(crate) notes: Vec<Problem>,
}

/// What `farebox check` has found.
#[derive(Debug)]
pub(crate) struct Checked {
    /// What would stop a start anywhere.
    pub(crate) problems: Vec<Problem>,
    /// What is missing here, or worth knowing.
    pub(crate) notes: Vec<Problem>,
    /// What is sold of each service, if it came to that.
    pub(crate) sold: Vec<Sold>,
    /// The state directory, if it came to that and the file says which.
    pub(crate) state_dir: Option<PathBuf>,
    /// The network that is sold on, if it came to that and the file says which.
    pub(crate) network: Option<Network>,
    /// Whom receipts name, if it came to that and the file says so.
    pub(crate) seller: Option<SellerName>,
}

/// Values that stand in for unset variables while checking: the first that fits where the variable is mentioned.
const STAND_INS: [&str; 20] = [
    "unset",
    "http://unset.invalid",
    "127.0.0.1:1",
    "127.0.0.1/32",
    "regtest",
    "1sat",
    "1h",
    "1KiB",
    "1/s",
    "1",
    "/unset",
    "off",
    "GET",
    "true",
    "forever",
    "skip",
    "web-roots",
    "1sat/1M",
    "1sat/MB",
    "x-unset",
];

/// Reads and judges the file for a start, with the variables of this process.
pub(crate) fn load(path: &Path) -> Result<Config, Problems> {
    let failed = |list| Problems { file: Some(path.to_owned()), list };
    let (text, source) = open(path).map_err(|problem| failed(vec![problem]))?;
    let variables = variables(&source);
    let file = read::read(&text, &source, &variables).map_err(failed)?;
    match judge::judge(file, directory(path), Rigour::Start) {
        Judged { config, problems, notes } if problems.is_empty() => {
            Ok(Config { notes: placed(notes, &source), ..config })
        }
        Judged { problems, .. } => Err(failed(placed(problems, &source))),
    }
}

/// Judges a document that was made from flags, with paths relative to the working directory. JSON is YAML, so it takes
/// the same way as a file; a dollar sign in a flag is a dollar sign.
pub(crate) fn from_flags(document: &serde_json::Value) -> Result<Config, Vec<Problem>> {
    let text = document.to_string().replace('$', "$$");
    let file = read::read(&text, &Source::of(&text), &Variables::new())?;
    match judge::judge(file, Path::new(""), Rigour::Start) {
        Judged { config, problems, notes } if problems.is_empty() => Ok(Config { notes, ..config }),
        Judged { problems, .. } => Err(problems),
    }
}

/// Judges the file without what belongs to the machine it will run on.
pub(crate) fn check(path: &Path) -> Checked {
    let stopped = |problems, notes| Checked {
        problems,
        notes,
        sold: Vec::new(),
        state_dir: None,
        network: None,
        seller: None,
    };
    let (text, source) = match open(path) {
        Ok(opened) => opened,
        Err(problem) => return stopped(vec![problem], Vec::new()),
    };
    let variables = variables(&source);
    let mut missing = expand::required(&source);
    missing.retain(|mention| !variables.contains_key(&mention.name));
    let mut notes: Vec<Problem> =
        missing.iter().map(|mention| source.problem(mention.node, expand::unset(&mention.name))).collect();
    let file = match read_with_stand_ins(&text, &source, &variables, &missing) {
        Ok(file) => file,
        Err(problems) => return stopped(problems, notes),
    };
    let Judged { config, problems, notes: more } = judge::judge(file, directory(path), Rigour::Check);
    notes.extend(placed(more, &source));
    // What follows from a stand-in is nobody's mistake, be it said of the value or of what it is part of.
    let is_part = |key: &str, whole: &str| {
        key.strip_prefix(whole).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    let is_meant =
        |problem: &Problem| !missing.iter().any(|mention| is_part(source.key(mention.node), &problem.key));
    let is_known = |key: &str| !missing.iter().any(|mention| source.key(mention.node) == key);
    Checked {
        problems: placed(problems.into_iter().filter(is_meant).collect(), &source),
        notes,
        sold: config.gateway.services.iter().map(|route| Sold::of(&route.service)).collect(),
        state_dir: is_known("state-dir").then_some(config.state_dir),
        network: is_known("network").then_some(config.paywall.network),
        seller: config.signs_receipts_as.filter(|_| is_known("receipts.seller")),
    }
}

fn open(path: &Path) -> Result<(String, Source), Problem> {
    let text = fs::read_to_string(path).map_err(|error| {
        Problem::new("", format!("cannot read the configuration: {error}; name another file"))
    })?;
    let source = Source::of(&text);
    Ok((text, source))
}

fn directory(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

/// The variables that the file mentions and that are set: no more of the environment than is asked for.
fn variables(source: &Source) -> Variables {
    let names = expand::mentioned(source).into_iter();
    names.filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?))).collect()
}

/// Reads the file with something in place of each unset variable, trying until it fits.
fn read_with_stand_ins(
    text: &str,
    source: &Source,
    variables: &Variables,
    missing: &[Mention],
) -> Result<File, Vec<Problem>> {
    let mut chosen: BTreeMap<&str, usize> =
        missing.iter().map(|mention| (mention.name.as_str(), 0)).collect();
    loop {
        let stand_ins = chosen.iter().map(|(name, at)| ((*name).to_owned(), STAND_INS[*at].to_owned()));
        let problems =
            match read::read(text, source, &variables.clone().into_iter().chain(stand_ins).collect()) {
                Ok(file) => return Ok(file),
                Err(problems) => problems,
            };
        // Only a value that a stand-in has a part in may be tried again.
        let at_fault = missing.iter().find(|mention| {
            problems.iter().any(|problem| problem.place == source.problem(mention.node, "").place)
        });
        let Some(mention) = at_fault else { return Err(problems) };
        match chosen.get_mut(mention.name.as_str()) {
            Some(at) if *at + 1 < STAND_INS.len() => *at += 1,
            _ => {
                let name = &mention.name;
                let message = format!("cannot be judged while the environment variable `{name}` is not set");
                return Err(vec![source.problem(mention.node, message)]);
            }
        }
    }
}

fn placed(mut problems: Vec<Problem>, source: &Source) -> Vec<Problem> {
    for problem in &mut problems {
        problem.place = problem.place.or_else(|| source.place_of(&problem.key));
    }
    problems.sort_by_key(|problem| problem.place);
    problems
}

#[cfg(test)]
mod tests {
    use farebox_gateway::{Limits, Timeouts, UpstreamConfig};
    use farebox_protocol::Network;
    use serde_json::json;

    use super::*;

    /// The least that must be said.
    fn least() -> serde_json::Value {
        json!({
            "network": "regtest",
            "lightning": { "embedded": { "chain": { "esplora": "http://127.0.0.1:1" } } },
            "services": [{ "name": "api", "upstream": "http://127.0.0.1:2", "price": "1sat" }],
        })
    }

    /// `Debug` shows every field, so two that look alike are alike.
    #[track_caller]
    fn alike(ours: &dyn std::fmt::Debug, theirs: &dyn std::fmt::Debug) {
        assert_eq!(format!("{ours:?}"), format!("{theirs:?}"));
    }

    #[test]
    fn the_defaults_in_the_manual_are_those_of_the_crates() {
        let config = from_flags(&least()).unwrap();
        alike(&config.paywall, &PaywallConfig::new(Network::Regtest));
        alike(&config.gateway.limits, &Limits::default());
        alike(&config.gateway.timeouts, &Timeouts::default());
        let upstream = "http://127.0.0.1:2".parse().unwrap();
        alike(&config.gateway.services[0].upstream, &UpstreamConfig::new(upstream));
    }

    #[test]
    fn the_node_is_on_the_network_that_is_sold_on() {
        let config = from_flags(&least()).unwrap();
        assert_eq!(config.lightning.network(), Some(Network::Regtest));
    }

    #[test]
    fn a_dollar_sign_in_a_flag_is_a_dollar_sign() {
        let mut document = least();
        document["services"][0]["headers"] = json!({ "x-key": "a$HOME${HOME}$$" });
        let config = from_flags(&document).unwrap();
        assert_eq!(config.gateway.services[0].headers[0].1, "a$HOME${HOME}$$");
    }

    #[test]
    fn no_secret_is_in_the_debug_text() {
        let mut document = least();
        document["services"][0]["headers"] = json!({ "x-key": "5ec4e7" });
        document["lightning"] = json!({ "phoenixd": { "password": { "text": "5ec4e7" } } });
        assert!(!format!("{:?}", from_flags(&document).unwrap()).contains("5ec4e7"));
    }
}
