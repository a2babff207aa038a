//! Where a buyer's things lie, for all commands that buy or look at what was bought: the journal and the policy.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use farebox_client::{Limits, policy::Policy};
use farebox_protocol::Msat;

/// The flags that say where the journal and the policy are.
#[derive(Debug, clap::Args)]
pub(crate) struct Files {
    /// The file with what has been bought [default: farebox/journal.sqlite in $XDG_DATA_HOME or ~/.local/share]
    #[arg(long, value_name = "FILE", env = "FAREBOX_JOURNAL", help_heading = "Journal")]
    journal: Option<PathBuf>,
    /// The file with the rules for what may be paid [default: farebox/policy.yaml in $XDG_CONFIG_HOME or
    /// ~/.config, if it is there]
    #[arg(long, value_name = "FILE", env = "FAREBOX_POLICY", help_heading = "Money")]
    policy: Option<PathBuf>,
}

impl Files {
    /// The journal.
    pub(crate) fn journal(&self) -> anyhow::Result<PathBuf> {
        let usual = || Some(data_dir()?.join("journal.sqlite"));
        self.journal
            .clone()
            .or_else(usual)
            .context("there is no home directory; say where the journal is with --journal")
    }

    /// Where the policy is, whether or not there is one.
    pub(crate) fn policy_path(&self) -> anyhow::Result<PathBuf> {
        let usual = || config_file("policy.yaml");
        self.policy
            .clone()
            .or_else(usual)
            .context("there is no home directory; say where the policy is with --policy")
    }

    /// The policy, if one is written. One that was named must be there.
    pub(crate) fn policy(&self) -> anyhow::Result<Option<Policy>> {
        let path = match (&self.policy, self.policy_path()) {
            (Some(path), _) => path.clone(),
            // A link that leads nowhere is a policy that can't be read, not none.
            (None, Ok(path)) if !is_missing(&path) => path,
            (None, _) => return Ok(None),
        };
        Ok(Some(Policy::read(&path)?))
    }
}

/// The caps of a command line on one payment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Asked {
    /// The highest price.
    pub(crate) max_cost: Option<Msat>,
    /// The highest fee.
    pub(crate) max_fee: Option<Msat>,
}

/// The policy and the limits that hold together: a flag lowers what a written policy allows and never raises it; where none is
/// written, it takes the place of the usual cap.
pub(crate) fn binding(written: Option<Policy>, asked: Asked) -> (Policy, Limits) {
    let is_written = written.is_some();
    let mut policy = written.unwrap_or_else(Policy::without_file);
    if !is_written {
        policy.caps.payment = asked.max_cost.or(policy.caps.payment);
        policy.caps.fee = asked.max_fee.or(policy.caps.fee);
    }
    let limits = Limits {
        per_payment: asked.max_cost.unwrap_or(Msat::MAX),
        fee_max: asked.max_fee.or(policy.caps.fee).unwrap_or_else(|| Limits::default().fee_max),
    };
    (policy, limits)
}

/// The directory for what must be kept.
pub(crate) fn data_dir() -> Option<PathBuf> {
    Some(base("XDG_DATA_HOME", ".local/share")?.join("farebox"))
}

/// Where a file of the buyer's configuration is looked for.
pub(crate) fn config_file(name: &str) -> Option<PathBuf> {
    Some(base("XDG_CONFIG_HOME", ".config")?.join("farebox").join(name))
}

/// Whether nothing at all has this name, as far as can be told.
pub(crate) fn is_missing(path: &Path) -> bool {
    path.symlink_metadata().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

/// A base directory of the XDG specification.
fn base(variable: &str, usual: &str) -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute(variable).or_else(|| Some(absolute("HOME")?.join(usual)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAT: u64 = 1_000;

    #[test]
    fn a_flag_raises_the_usual_cap_and_lowers_a_written_one() {
        let dear = Asked { max_cost: Some(Msat::new(5_000 * SAT)), max_fee: None };
        let (policy, limits) = binding(None, dear);
        assert_eq!((policy.caps.payment, limits.per_payment), (dear.max_cost, Msat::new(5_000 * SAT)));
        assert_eq!(policy.caps.day, Policy::without_file().caps.day, "the day's cap stays");

        let written = Policy::parse("limits: { payment: 2000sat }").unwrap();
        let (policy, limits) = binding(Some(written), dear);
        assert_eq!(policy.caps.payment, Some(Msat::new(2_000 * SAT)));
        assert_eq!(limits.per_payment, Msat::new(5_000 * SAT), "the lower of both holds");
    }

    #[cfg(unix)]
    #[test]
    fn a_link_that_leads_nowhere_is_not_taken_for_no_policy() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("policy.yaml");
        assert!(is_missing(&link));
        std::os::unix::fs::symlink(dir.path().join("none"), &link).unwrap();
        assert!(!is_missing(&link));
    }

    #[test]
    fn without_flags_the_policy_alone_holds() {
        let written = Policy::parse("limits: { payment: 20000sat, fee: 50sat }").unwrap();
        let (_, limits) = binding(Some(written), Asked::default());
        assert_eq!((limits.per_payment, limits.fee_max), (Msat::MAX, Msat::new(50 * SAT)));
        let (policy, limits) = binding(None, Asked::default());
        assert_eq!(policy, Policy::without_file());
        assert_eq!(limits.fee_max, Msat::new(10 * SAT));
    }
}
