//! `farebox policy`: the rules for what may be paid, as the person who owns the money has written them.

use std::{
    fmt, fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use farebox_client::{Engine, EngineConfig, Explained, policy::ConsentKey};
use serde::Serialize;

use super::{
    approve::{is_somebody_there, secret},
    budget::{self, BudgetRow},
    get::uri,
};
use crate::{
    buyer::{self, Files},
    output::{self, Reader},
};

/// What `init` writes.
const TEMPLATE: &str = include_str!("policy/template.yaml");

/// Say what may be paid for, and see what the rules make of an address
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "\
Examples:
  farebox policy init
  farebox policy secret >> ~/.config/farebox/policy.yaml
  farebox policy check https://api.example.com/v1/weather
  farebox policy check -X POST --label reader https://api.example.com/ask")]
pub(crate) enum Command {
    /// Write a policy to begin with, for you alone to change
    Init(Init),
    /// Set a secret for `farebox approve`: prints the line that belongs into the policy
    Secret(Secret),
    /// Explain what the policy says of a request, and what is left of each budget; sends nothing
    Check(Check),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Init {
    /// A file with the secret for `farebox approve`; at a terminal it is asked for
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    #[command(flatten)]
    files: Files,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Secret {
    /// A file with the secret; at a terminal it is asked for
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Check {
    /// The address; without a scheme, https
    url: String,
    /// The method
    #[arg(short = 'X', long, value_name = "METHOD", default_value = "GET")]
    request: http::Method,
    /// On whose behalf, as `farebox get --label` says it
    #[arg(long, value_name = "NAME")]
    label: Option<String>,
    #[command(flatten)]
    files: Files,
}

/// What the policy says, for a program.
#[derive(Debug, Serialize)]
struct Verdict {
    origin: String,
    verdict: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    /// The verdict is that on sellers who have never been paid.
    new_origin: bool,
    /// There is no policy file, and what holds is what holds without one.
    no_file: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    payment_max_msat: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fee_max_msat: Option<u64>,
    budgets: Vec<BudgetRow>,
    #[serde(skip)]
    text: String,
}

pub(crate) fn run(command: &Command, reader: Reader) -> anyhow::Result<ExitCode> {
    match command {
        Command::Init(args) => init(args),
        Command::Secret(args) => {
            let key = chosen(args.secret_file.as_deref())?.context("no secret, no line")?;
            output::line(&consents(&key))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Check(args) => {
            let verdict = crate::runtime::block_on(check(args))?;
            reader.print(&verdict)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn init(args: &Init) -> anyhow::Result<ExitCode> {
    let path = args.files.policy_path()?;
    let is_asked = args.secret_file.is_some() || is_somebody_there();
    let key = if is_asked && !path.exists() { chosen(args.secret_file.as_deref())? } else { None };
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(|| format!("cannot make `{}`", directory.display()))?;
    }
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&path).with_context(|| {
        format!("cannot write `{}`; a policy that is there already is never overwritten", path.display())
    })?;
    let approvals = match &key {
        Some(key) => consents(key),
        None => "# consents: what `farebox policy secret` prints".to_owned(),
    };
    write!(
        file,
        "{TEMPLATE}\n# What you agree to with `farebox approve` is known by this. It is made from your secret.\n{approvals}\n"
    )?;
    file.sync_all()?;
    eprintln!("wrote {}; change it with an editor, then try `farebox policy check URL`", path.display());
    if key.is_none() {
        eprintln!(
            "no secret is set, so nobody can agree with `farebox approve`; `farebox policy secret` prints a line that sets one"
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// The key of a secret that is typed twice or comes from a file; `None` where nothing is typed.
fn chosen(file: Option<&Path>) -> anyhow::Result<Option<ConsentKey>> {
    let first = secret(file, "A secret to agree to payments with, apart from programs (empty for none): ")?;
    if file.is_none() {
        if first.is_empty() {
            return Ok(None);
        }
        anyhow::ensure!(*secret(None, "The same once more: ")? == *first, "the two differ");
    }
    Ok(Some(ConsentKey::new(&first)?))
}

/// The line of the policy.
fn consents(key: &ConsentKey) -> String {
    format!("consents: \"{key}\"")
}

async fn check(args: &Check) -> anyhow::Result<Verdict> {
    let written = args.files.policy()?;
    let no_file = written.is_none();
    let (policy, limits) = buyer::binding(written, buyer::Asked::default());
    let config = EngineConfig {
        policy: std::sync::Arc::new(policy),
        limits,
        label: args.label.clone(),
        ..EngineConfig::new(args.files.journal()?)
    };
    let mut request = http::Request::new(());
    *request.method_mut() = args.request.clone();
    *request.uri_mut() = uri(&args.url)?;
    let explained = Engine::open(config)?.explain(&request).await?;
    Ok(Verdict::of(&explained, no_file))
}

impl Verdict {
    fn of(explained: &Explained, no_file: bool) -> Self {
        let judgement = &explained.judgement;
        Self {
            origin: explained.origin.to_string(),
            verdict: judgement.verdict.to_string(),
            rule: judgement.rule.clone(),
            new_origin: explained.is_new,
            no_file,
            payment_max_msat: judgement.payment.as_ref().map(|cap| cap.most.get()),
            fee_max_msat: judgement.fee.as_ref().map(|cap| cap.most.get()),
            budgets: explained.budgets.iter().map(BudgetRow::of).collect(),
            text: text(explained, no_file),
        }
    }
}

fn text(explained: &Explained, no_file: bool) -> String {
    let judgement = &explained.judgement;
    let why = match (&judgement.rule, explained.is_new) {
        (Some(rule), _) => format!("rule \"{rule}\""),
        (None, true) => "this seller has never been paid: `new-origins`".to_owned(),
        (None, false) if no_file => "no policy is written; `farebox policy init` begins one".to_owned(),
        (None, false) => "no rule gives a verdict: `otherwise`".to_owned(),
    };
    let mut lines = vec![format!("{}: {} ({why})", explained.origin, judgement.verdict)];
    for (what, cap) in [("price", &judgement.payment), ("fee", &judgement.fee)] {
        if let Some(cap) = cap {
            let whose = cap
                .rule
                .as_ref()
                .map_or_else(|| "all payments".to_owned(), |rule| format!("rule \"{rule}\""));
            lines.push(format!("  {what} of one payment at most {} ({whose})", cap.most));
        }
    }
    lines.extend(explained.budgets.iter().map(|used| format!("  {}", budget::line(used))));
    lines.join("\n")
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use farebox_client::policy::Policy;

    use super::*;

    #[test]
    fn the_template_is_a_policy() {
        let policy = Policy::parse(TEMPLATE).unwrap();
        assert_eq!(policy.otherwise, farebox_client::policy::Verdict::Ask);
        assert_eq!(policy.caps, Policy::without_file().caps);
    }
}
