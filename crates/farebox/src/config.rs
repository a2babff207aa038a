//! The configuration: one strict YAML file, `farebox.yaml`, or the same thing made from flags.
//!
//! [`load`] is for starting: whatever isn't fully understood stops it, with file, line, key and the way out. [`check`]
//! judges a file where its secrets, variables and node aren't, and says so instead of failing for want of them. Neither
//! speaks to the network.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
};

use farebox_gateway::GatewayConfig;
use farebox_lightning::config::LightningConfig;
use farebox_paywall::PaywallConfig;

pub(crate) mod file;
mod judge;
mod lightning;
pub(crate) mod problem;
mod read;
mod service;
mod source;
pub(crate) mod value;

use file::{File, MintSecretEntry};
use judge::{Judged, Rigour};
use problem::{Problem, Problems};
use source::{Mention, Source};

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
    /// The names of the services, if it came to that.
    pub(crate) services: Vec<String>,
    /// The state directory, if it came to that.
    pub(crate) state_dir: Option<PathBuf>,
}

/// Values that stand in for unset variables while checking: the first that fits where the variable is mentioned.
const STAND_INS: [&str; 14] = [
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
];

/// Reads and judges the file for a start, with the variables of this process.
pub(crate) fn load(path: &Path) -> Result<Config, Problems> {
    let failed = |list| Problems { file: Some(path.to_owned()), list };
    let (text, source) = open(path).map_err(|problem| failed(vec![problem]))?;
    let variables = variables(&source);
    let unset: Vec<Problem> =
        source.mentions.iter().filter(|mention| is_unset(mention, &variables)).map(unset).collect();
    if !unset.is_empty() {
        return Err(failed(unset));
    }
    let file = read::read(&text, &source, variables).map_err(|problem| failed(vec![problem]))?;
    let judged = judge::judge(file, directory(path), Rigour::Start);
    match judged {
        Judged { config: Some(config), problems, notes } if problems.is_empty() => {
            Ok(Config { notes: placed(notes, &source), ..config })
        }
        Judged { problems, .. } => Err(failed(placed(problems, &source))),
    }
}

/// Judges a document that was made from flags, with paths relative to the working directory. JSON is YAML, so it takes
/// the same way as a file; a dollar sign in a flag is a dollar sign.
pub(crate) fn from_flags(document: &serde_json::Value) -> Result<Config, Vec<Problem>> {
    let text = document.to_string().replace('$', "$$");
    let source = Source::of(&text);
    let file = read::read(&text, &source, HashMap::new()).map_err(|problem| vec![problem])?;
    match judge::judge(file, Path::new(""), Rigour::Start) {
        Judged { config: Some(config), problems, notes } if problems.is_empty() => {
            Ok(Config { notes, ..config })
        }
        Judged { problems, .. } => Err(problems),
    }
}

/// Judges the file without what belongs to the machine it will run on.
pub(crate) fn check(path: &Path) -> Checked {
    let stopped =
        |problem, notes| Checked { problems: vec![problem], notes, services: Vec::new(), state_dir: None };
    let (text, source) = match open(path) {
        Ok(opened) => opened,
        Err(problem) => return stopped(problem, Vec::new()),
    };
    let variables = variables(&source);
    let missing: Vec<&Mention> =
        source.mentions.iter().filter(|mention| is_unset(mention, &variables)).collect();
    let mut notes: Vec<Problem> = missing.iter().map(|mention| unset(mention)).collect();
    let file = match read_with_stand_ins(&text, &source, &variables, &missing) {
        Ok(file) => file,
        Err(problem) => return stopped(problem, notes),
    };
    let judged = judge::judge(file, directory(path), Rigour::Check);
    let state_dir = judged.config.as_ref().map(|config| config.state_dir.clone());
    let names = judged.config.iter().flat_map(|config| &config.gateway.services);
    let services = names.map(|route| route.service.name.to_string()).collect();
    notes.extend(placed(judged.notes, &source));
    // What a stand-in means is nobody's mistake.
    let stands_in: BTreeSet<&str> = missing.iter().map(|mention| mention.key.as_str()).collect();
    let problems = judged.problems.into_iter().filter(|problem| !stands_in.contains(problem.key.as_str()));
    Checked { problems: placed(problems.collect(), &source), notes, services, state_dir }
}

fn open(path: &Path) -> Result<(String, Source), Problem> {
    let text = fs::read_to_string(path).map_err(|error| {
        Problem::new("", format!("cannot read the configuration: {error}; name another with --config"))
    })?;
    let source = Source::of(&text);
    Ok((text, source))
}

fn directory(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

/// The variables that the file mentions and that are set: no more of the environment than is asked for.
fn variables(source: &Source) -> HashMap<String, String> {
    let names = source.mentions.iter().map(|mention| &mention.name);
    names.filter_map(|name| Some((name.clone(), std::env::var(name).ok()?))).collect()
}

fn is_unset(mention: &Mention, variables: &HashMap<String, String>) -> bool {
    mention.required && !variables.contains_key(&mention.name)
}

fn unset(mention: &Mention) -> Problem {
    let name = &mention.name;
    let message = format!(
        "the environment variable `{name}` is not set; set it, give a default (`${{{name}:-default}}`), or write `$$` \
         for a dollar sign"
    );
    Problem { place: Some(mention.place), ..Problem::new(mention.key.clone(), message) }
}

/// Reads the file with something in place of each unset variable, trying until it fits.
fn read_with_stand_ins(
    text: &str,
    source: &Source,
    variables: &HashMap<String, String>,
    missing: &[&Mention],
) -> Result<File, Problem> {
    let mut chosen: BTreeMap<&str, usize> =
        missing.iter().map(|mention| (mention.name.as_str(), 0)).collect();
    loop {
        let stand_ins = chosen.iter().map(|(name, at)| ((*name).to_owned(), STAND_INS[*at].to_owned()));
        let problem = match read::read(text, source, variables.clone().into_iter().chain(stand_ins).collect())
        {
            Ok(file) => return Ok(file),
            Err(problem) => problem,
        };
        // Only a value that a stand-in has a part in may be tried again.
        let Some(mention) = missing.iter().find(|mention| problem.place == Some(mention.place)) else {
            return Err(problem);
        };
        match chosen.get_mut(mention.name.as_str()) {
            Some(at) if *at + 1 < STAND_INS.len() => *at += 1,
            _ => {
                let message =
                    format!("cannot be judged while the environment variable `{}` is not set", mention.name);
                return Err(Problem { message, ..problem });
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
