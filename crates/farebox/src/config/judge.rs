//! Whether a configuration makes sense as a whole, and what it becomes.
//!
//! Every key must have an effect, every service must be reachable, every amount must be a sum somebody could mean. All
//! problems are collected, so that a file is put right in one go. Nothing here falls open: what can't be judged is a
//! problem, and a configuration with problems is never served.

use std::{
    collections::BTreeSet,
    fs, io, mem,
    path::{Path, PathBuf},
    time::Duration,
};

use farebox_gateway::{Gateway, GatewayConfig, ServicesError, UpstreamError};
use farebox_paywall::{PaywallConfig, Rate, ServiceError};

use super::{
    Config,
    file::{self, File, SecretFrom, UnknownCaveats},
    lightning, listen,
    problem::Problem,
    refunds, service,
    value::{PerTime, Span, Written},
};

/// How much has to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rigour {
    /// Everything: farebox is about to serve.
    Start,
    /// The configuration alone; secrets and certificates may be elsewhere.
    Check,
}

/// A judgement.
#[derive(Debug)]
pub(crate) struct Judged {
    /// The outcome; not to be served while there are problems.
    pub(crate) config: Config,
    pub(crate) problems: Vec<Problem>,
    pub(crate) notes: Vec<Problem>,
}

/// Collects what is found along the way.
#[derive(Debug)]
pub(super) struct Findings<'a> {
    /// What paths are relative to.
    base: &'a Path,
    rigour: Rigour,
    pub(super) problems: Vec<Problem>,
    pub(super) notes: Vec<Problem>,
}

/// The longest pass that is sold by time: beyond it, `forever` is meant.
const DURATION_MAX: Duration = Duration::from_secs(100 * 365 * 86_400);
const INVOICE_EXPIRY_MIN: Duration = Duration::from_secs(10);
const INVOICE_EXPIRY_MAX: Duration = Duration::from_secs(86_400);
const READY_INVOICES_MAX: usize = 64;
const MINT_SECRETS_MAX: usize = 3;

/// Judges the file, with its relative paths seen from `base`.
pub(crate) fn judge(mut file: File, base: &Path, rigour: Rigour) -> Judged {
    let mut findings = Findings { base, rigour, problems: Vec::new(), notes: Vec::new() };
    let state_dir = findings.path(&file.state_dir);
    let paywall = paywall(&file, &mut findings);
    let mint_secrets = mint_secrets(mem::take(&mut file.mint_secrets), &mut findings);
    lightning::judge(&file.lightning, file.network.0, &mut findings);
    let refunds = mem::take(&mut file.refunds);
    let refunds = refunds.map(|asked| refunds::judge(asked, file.network.0, &mut findings));
    let gateway = GatewayConfig {
        listen: listen::listen(&file, &mut findings),
        ops: listen::ops(file.ops, &file.listen, &mut findings),
        workers: file.limits.workers,
        trusted_proxies: listen::trusted_proxies(&file.trusted_proxies, &mut findings),
        clients: listen::clients("clients", &file.clients, &mut findings),
        limits: listen::limits(&file.limits, &mut findings),
        timeouts: listen::timeouts(&file.limits, &mut findings),
        services: services(file.services, &mut findings),
    };
    let Findings { problems, notes, .. } = findings;
    let config = Config {
        base: base.to_owned(),
        state_dir,
        mint_secrets,
        lightning: file.lightning,
        paywall,
        gateway,
        refunds,
        signs_receipts_as: file.receipts.map(|receipts| receipts.seller.0),
        notes: Vec::new(),
    };
    Judged { config, problems, notes }
}

impl Findings<'_> {
    /// Something that must be put right.
    pub(super) fn problem(&mut self, key: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Problem::new(key, message));
    }

    /// Something worth knowing.
    pub(super) fn note(&mut self, key: impl Into<String>, message: impl Into<String>) {
        self.notes.push(Problem::new(key, message));
    }

    /// Something worth knowing that a start says by itself.
    pub(super) fn check_note(&mut self, key: impl Into<String>, message: impl Into<String>) {
        if self.rigour == Rigour::Check {
            self.note(key, message);
        }
    }

    /// Something that is missing here: a problem for a start, a note for a check.
    pub(super) fn missing(&mut self, key: impl Into<String>, message: impl Into<String>) {
        match self.rigour {
            Rigour::Start => self.problem(key, message),
            Rigour::Check => self.note(key, message),
        }
    }

    /// The path as seen from here.
    pub(super) fn path(&self, path: &Path) -> PathBuf {
        self.base.join(path)
    }

    /// The path as seen from here; missing if nothing can be read there.
    pub(super) fn readable(&mut self, key: &str, path: &Path) -> PathBuf {
        let path = self.path(path);
        if let Err(error) = fs::File::open(&path) {
            self.missing(key, cannot_read(&path, &error));
        }
        path
    }

    /// The text in a file of secrets, without a line break at its end.
    pub(super) fn secret_text(&mut self, key: &str, path: &Path) -> Option<String> {
        let path = self.path(path);
        match fs::read_to_string(&path) {
            Ok(text) => Some(
                text.strip_suffix('\n')
                    .map(|text| text.strip_suffix('\r').unwrap_or(text))
                    .unwrap_or(&text)
                    .to_owned(),
            ),
            Err(error) => {
                self.missing(format!("{key}.file"), cannot_read(&path, &error));
                None
            }
        }
    }

    /// A wait that is longer than nothing.
    pub(super) fn positive(&mut self, key: &str, span: Written<Span>) -> Duration {
        if span.0.0.is_zero() {
            self.problem(key, "no time at all would fail every request; write a longer one");
        }
        span.0.0
    }
}

fn cannot_read(path: &Path, error: &io::Error) -> String {
    format!("cannot read `{}`: {error}", path.display())
}

fn paywall(file: &File, findings: &mut Findings<'_>) -> PaywallConfig {
    let minting = &file.minting;
    let expiry = minting.invoice_expiry.0.0;
    if !(INVOICE_EXPIRY_MIN..=INVOICE_EXPIRY_MAX).contains(&expiry) {
        findings.problem(
            "minting.invoice-expiry",
            format!(
                "`{}` is no time to pay an invoice in; write one from 10s to 24h",
                minting.invoice_expiry.0
            ),
        );
    }
    if minting.ready_invoices > READY_INVOICES_MAX {
        findings.problem(
            "minting.ready-invoices",
            format!("{} invoices for each price are more than {READY_INVOICES_MAX}", minting.ready_invoices),
        );
    }
    PaywallConfig {
        invoice_expiry: expiry,
        ready_invoices: minting.ready_invoices,
        strict_caveats: minting.unknown_caveats == UnknownCaveats::Refuse,
        verify_settled: minting.verify_settled,
        mint_per_client: rate(minting.per_client.0),
        mint_total: rate(minting.total.0),
        ..PaywallConfig::new(file.network.0)
    }
}

pub(super) fn rate(PerTime { count, per }: PerTime) -> Rate {
    Rate { count, per }
}

fn mint_secrets(
    entries: Vec<file::MintSecretEntry>,
    findings: &mut Findings<'_>,
) -> Vec<file::MintSecretEntry> {
    if entries.len() > MINT_SECRETS_MAX {
        findings.problem(
            "mint-secrets",
            format!(
                "{} secrets are more than the {MINT_SECRETS_MAX} that are tried; remove the oldest",
                entries.len()
            ),
        );
    }
    if entries.first().is_some_and(|newest| newest.settled_only_since.is_some()) {
        findings.problem(
            "mint-secrets[0].settled-only-since",
            "the first secret makes the new tokens, so it must be sound; put a new one before it",
        );
    }
    let mut seen = BTreeSet::new();
    let mut located = Vec::new();
    for (at, mut entry) in entries.into_iter().enumerate() {
        let key = format!("mint-secrets[{at}].from");
        match &mut entry.from {
            SecretFrom::File(path) => *path = findings.readable(&format!("{key}.file"), path),
            SecretFrom::Env(name) if std::env::var_os(&*name).is_none() => {
                let message = format!("the environment variable `{name}` is not set");
                findings.missing(format!("{key}.env"), message);
            }
            SecretFrom::Env(_) => {}
        }
        if !seen.insert(format!("{:?}", entry.from)) {
            findings.problem(&key, "this secret is listed twice; remove one");
        }
        located.push(entry);
    }
    located
}

fn services(services: Vec<file::Service>, findings: &mut Findings<'_>) -> Vec<farebox_gateway::ServiceRoute> {
    if services.is_empty() {
        findings
            .problem("services", "nothing is for sale; add a service with `name`, `upstream` and `price`");
    }
    let found_before = findings.problems.len();
    let routes: Vec<_> = services
        .into_iter()
        .enumerate()
        .map(|(at, service)| service::route(&format!("services[{at}]"), service, findings))
        .collect();
    let names: Vec<_> = routes.iter().map(|route| route.service.name.clone()).collect();
    let mut seen = BTreeSet::new();
    for (at, name) in names.iter().enumerate() {
        if !seen.insert(name) {
            findings.problem(
                format!("services[{at}].name"),
                format!("there is another service `{name}`; a token is sold by name, so give each its own"),
            );
        }
    }
    if findings.problems.len() == found_before
        && let Err(error) = Gateway::check(&routes)
    {
        let at = culprit(&error).and_then(|culprit| names.iter().position(|name| name == culprit));
        let key = at.map_or("services".to_owned(), |at| format!("services[{at}]"));
        match error {
            // An authority's file that isn't here has been told of; one that is here, and no use, is wrong everywhere.
            ServicesError::Upstream { error: UpstreamError::CaFile { ref path, .. }, .. }
                if fs::File::open(path).is_err() => {}
            ServicesError::Upstream { error: ref error @ UpstreamError::CaFile { .. }, .. } => {
                findings.problem(format!("{key}.upstream.tls.ca"), error.to_string());
            }
            ServicesError::Upstream { error: UpstreamError::SystemRoots { .. }, .. } => {
                findings.missing(key, error.to_string());
            }
            _ => findings.problem(key, error.to_string()),
        }
    }
    routes
}

/// Which service the gateway is unhappy about.
fn culprit(error: &ServicesError) -> Option<&farebox_protocol::ServiceName> {
    match error {
        ServicesError::Duplicate(service)
        | ServicesError::Unreachable { service, .. }
        | ServicesError::Unsellable(ServiceError::Price { service, .. })
        | ServicesError::Strip { service, .. }
        | ServicesError::Upstream { service, .. } => Some(service),
        _ => None,
    }
}

/// How long a pass sold by time may be.
pub(super) fn is_sellable(duration: Duration) -> bool {
    !duration.is_zero() && duration.subsec_nanos() == 0 && duration <= DURATION_MAX
}
