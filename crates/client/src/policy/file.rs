//! The policy as a person writes it: one YAML file. The comments here are its manual.
//!
//! Unknown keys, empty lists and amounts without a unit are errors that name the line: a rule that is misread would let money
//! go. A file that others than its owner can write is refused, since whoever can write it can spend.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    io::Read as _,
    path::{Path, PathBuf},
    str::FromStr,
};

use farebox_protocol::{Msat, Scheme};
use serde::{Deserialize, Deserializer, de};

use super::{Caps, ConsentKey, HostPattern, Match, PathPattern, Policy, Rule, Verdict};
use crate::Origin;

/// The file is read whole; a longer one is none that a person has written.
const LEN_MAX: u64 = 1 << 20;

/// Why there is no policy. Nothing is paid without one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// The file can't be read.
    #[error("the policy `{}` can't be read", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Others could change it.
    #[error("the policy `{}` can be written by others (mode {mode:o}); run `chmod go-w` on it", path.display())]
    Exposed {
        /// Which.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Others could put another file in its place.
    #[error(
        "everybody can write to `{}` and so replace the policy `{}`; run `chmod o-w` on the directory",
        directory.display(), path.display()
    )]
    Replaceable {
        /// Which file.
        path: PathBuf,
        /// The directory that everybody can write to.
        directory: PathBuf,
    },
    /// What is written makes no sense.
    #[error("the policy{} {problem}", path.as_ref().map(|path| format!(" `{}`", path.display())).unwrap_or_default())]
    Wrong {
        /// Which file, if it is one.
        path: Option<PathBuf>,
        /// What is wrong.
        problem: Problem,
    },
}

/// What is wrong with a policy, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The line, from 1; 0 where it can't be told.
    pub line: u64,
    /// What is wrong and what to write instead.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "is wrong: {}", self.what),
            line => write!(f, "is wrong in line {line}: {}", self.what),
        }
    }
}

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct File {
    /// Caps on all payments together. What is left out here has its default: 1000sat a payment, 10sat of fees, 10000sat a
    /// day. `unlimited` takes one away.
    #[serde(default)]
    limits: Limits,
    /// What to do about a seller who has never been paid: `ask`, `deny`, or `allow` (leave it to the rules). Default: allow.
    #[serde(default = "allow")]
    new_origins: Word,
    /// What to do where no rule gives a verdict: `ask`, `deny` or `allow`. Default: ask.
    #[serde(default = "ask")]
    otherwise: Word,
    /// The rules, in any order: of those that match, the strictest verdict holds and every limit binds.
    #[serde(default)]
    rules: Vec<Entry>,
    /// What one unit of a currency is worth, as its owner reckons: `USD: 1500sat`. Limits may then be written in it. Nobody is
    /// asked for the rate of the day: a rule about money doesn't change by itself.
    #[serde(default)]
    rates: BTreeMap<String, Rate>,
    /// By what consents of a person who isn't at the terminal are known; `farebox policy secret` writes it. Default: none.
    #[serde(default, deserialize_with = "written")]
    consents: Option<Written<ConsentKey>>,
    /// Whether agents (`farebox mcp`) may call servers on this machine or on private networks: `allow` or `deny`. `farebox get`
    /// may always. Default: deny.
    #[serde(default)]
    private_targets: YesOrNo,
}

/// One rule.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Entry {
    /// Its name. The journal keeps it beside each payment, so a rule that is renamed begins at nothing.
    name: String,
    /// What it is for. Default: everything.
    #[serde(default)]
    when: When,
    /// `allow`, `ask` or `deny`. Default: no verdict; the rule only caps.
    #[serde(default, deserialize_with = "written")]
    then: Option<Word>,
    /// Caps on all that this rule is for. Default: none of its own.
    #[serde(default)]
    limits: Limits,
}

/// What a rule is for. All keys that are written must match; of a list, one.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct When {
    /// Sellers by scheme, host and port: `https://api.example.com`.
    #[serde(default, deserialize_with = "some")]
    origin: Vec<Written<Bare>>,
    /// Hosts at any port: `api.example.com`, or `*.example.com` for all below it.
    #[serde(default, deserialize_with = "some")]
    host: Vec<Written<HostPattern>>,
    /// Paths: `/v1/weather`, or `/v1/*` for all below it.
    #[serde(default, deserialize_with = "some")]
    path: Vec<Written<PathPattern>>,
    /// Methods: `GET`.
    #[serde(default, deserialize_with = "some")]
    method: Vec<String>,
    /// Callers by the label they give themselves. Only as good as their word: use it to cap, not to allow.
    #[serde(default, deserialize_with = "some")]
    label: Vec<String>,
    /// `l402` or `lsat`.
    #[serde(default, deserialize_with = "some")]
    scheme: Vec<SchemeWord>,
}

/// What one unit of a currency is worth.
#[derive(Clone, Copy, Debug)]
struct Rate(Msat);

/// Caps: an amount (`100sat`, `1500msat`, `2.50 USD` where `rates` has USD; `0sat` is nothing at all) or `unlimited`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Limits {
    /// One price, without the fee.
    #[serde(default, deserialize_with = "written")]
    payment: Option<Limit>,
    /// One fee.
    #[serde(default, deserialize_with = "written")]
    fee: Option<Limit>,
    /// Within any hour, fees included.
    #[serde(default, deserialize_with = "written")]
    hour: Option<Limit>,
    /// Within any 24 hours, fees included.
    #[serde(default, deserialize_with = "written")]
    day: Option<Limit>,
    /// Within any seven days, fees included.
    #[serde(default, deserialize_with = "written")]
    week: Option<Limit>,
    /// In all, fees included.
    #[serde(default, deserialize_with = "written")]
    total: Option<Limit>,
}

#[derive(Clone, Debug)]
enum Limit {
    Most(Msat),
    /// So many millionths of a unit of this currency.
    Fiat(u64, String),
    Unlimited,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Word {
    Allow,
    Ask,
    Deny,
}

/// A verdict where nobody is there to ask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum YesOrNo {
    Allow,
    #[default]
    Deny,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum SchemeWord {
    L402,
    Lsat,
}

/// An origin and nothing else: a path beside it would be lost, and the rule be wider than it reads.
#[derive(Debug)]
struct Bare(Origin);

impl FromStr for Bare {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let url = reqwest::Url::parse(text).ok().filter(|url| {
            matches!(url.path(), "" | "/")
                && (url.query(), url.fragment(), url.password()) == (None, None, None)
                && url.username().is_empty()
                && url.host_str().is_some_and(|host| !host.contains('*'))
        });
        url.as_ref().and_then(Origin::of).map(Self).ok_or_else(|| {
            format!(
                "`{text}` is not an origin; write `https://api.example.com` without a path, which has a key of its own, and \
                 `*.example.com` under `host`"
            )
        })
    }
}

/// A value that is written as a text, read by its own `FromStr`.
#[derive(Debug)]
struct Written<T>(T);

impl Policy {
    /// Reads the file.
    ///
    /// # Errors
    ///
    /// When it can't be read, when others can write it, and when anything in it is not understood.
    pub fn read(path: &Path) -> Result<Self, PolicyError> {
        let unreadable = |source| PolicyError::Unreadable { path: path.to_owned(), source };
        // Asked before it is opened: opening a pipe would wait for its other end.
        if !fs::metadata(path).map_err(unreadable)?.is_file() {
            return Err(unreadable(std::io::Error::other("it is not a file")));
        }
        let file = fs::File::open(path).map_err(unreadable)?;
        // Of what is read, not of what has the name by then.
        #[cfg(unix)]
        {
            let facts = file.metadata().map_err(unreadable)?;
            let mode = std::os::unix::fs::MetadataExt::mode(&facts) & 0o7777;
            if mode & 0o022 != 0 {
                return Err(PolicyError::Exposed { path: path.to_owned(), mode });
            }
            if let Some(directory) = open_to_all(path).map_err(unreadable)? {
                return Err(PolicyError::Replaceable { path: path.to_owned(), directory });
            }
        }
        let mut text = String::new();
        file.take(LEN_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
        if text.len() as u64 > LEN_MAX {
            return Err(unreadable(std::io::Error::other("it is longer than a mebibyte")));
        }
        Self::parse(&text).map_err(|problem| PolicyError::Wrong { path: Some(path.to_owned()), problem })
    }

    /// Reads the text of a policy.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false };
        let file: File = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
            let error = error.without_snippet();
            let line = error.location().map_or(0, |location| location.line());
            // The place is told before it.
            let what = error.to_string();
            let what = what.split_once(" at line ").map_or(&*what, |(what, _)| what).to_owned();
            // The library's advice is for programmers.
            let twice = what.strip_prefix("duplicate mapping key: ").and_then(|what| what.split(',').next());
            let what = match twice {
                Some(key) => format!("`{key}` is written twice; keep one of them"),
                None => what,
            };
            Problem { line, what }
        })?;
        file.into_policy()
    }
}

impl File {
    fn into_policy(self) -> Result<Policy, Problem> {
        let problem = |what: String| Problem { line: 0, what };
        let mut names = BTreeSet::new();
        for rule in &self.rules {
            if rule.name.is_empty() || rule.name.len() > 64 || rule.name.chars().any(char::is_control) {
                return Err(problem(format!(
                    "a rule has the name {:?}; write 1 to 64 characters",
                    rule.name
                )));
            }
            if !names.insert(rule.name.as_str()) {
                return Err(problem(format!(
                    "two rules have the name {:?}; their budgets would be one",
                    rule.name
                )));
            }
            if let Some(method) =
                rule.when.method.iter().find(|method| http::Method::from_str(method).is_err())
            {
                return Err(problem(format!(
                    "the rule {:?} has the method {method:?}, which is none; write one like `GET`",
                    rule.name
                )));
            }
            if rule.then.is_none() && rule.limits.is_empty() {
                return Err(problem(format!(
                    "the rule {:?} does nothing; give it `then` or `limits`",
                    rule.name
                )));
            }
        }
        let rates = &self.rates;
        if let Some(currency) = rates.keys().find(|name| !is_currency(name)) {
            return Err(problem(format!("`{currency}` is no currency; write three capitals like `USD`")));
        }
        let rules = self.rules.into_iter().map(|entry| entry.into_rule(rates)).collect::<Result<_, _>>();
        Ok(Policy {
            caps: self.limits.over(Policy::without_file().caps, rates).map_err(problem)?,
            new_origins: self.new_origins.verdict(),
            otherwise: self.otherwise.verdict(),
            rules: rules.map_err(problem)?,
            consents: self.consents.map(|written| written.0),
            private_targets: self.private_targets == YesOrNo::Allow,
        })
    }
}

impl Entry {
    fn into_rule(self, rates: &BTreeMap<String, Rate>) -> Result<Rule, String> {
        fn all<T>(list: Vec<Written<T>>) -> Vec<T> {
            list.into_iter().map(|written| written.0).collect()
        }
        let When { origin, host, path, method, label, scheme } = self.when;
        let schemes = scheme.into_iter().map(|word| match word {
            SchemeWord::L402 => Scheme::L402,
            SchemeWord::Lsat => Scheme::Lsat,
        });
        Ok(Rule {
            name: self.name,
            when: Match {
                origins: origin.into_iter().map(|written| written.0.0).collect(),
                hosts: all(host),
                paths: all(path),
                methods: method,
                labels: label,
                schemes: schemes.collect(),
            },
            verdict: self.then.map(Word::verdict),
            caps: self.limits.over(Caps::default(), rates)?,
        })
    }
}

impl Limits {
    fn is_empty(&self) -> bool {
        let Self { payment, fee, hour, day, week, total } = self;
        [payment, fee, hour, day, week, total].iter().all(|limit| limit.is_none())
    }

    /// What is written here, and `usual` where nothing is.
    fn over(&self, usual: Caps, rates: &BTreeMap<String, Rate>) -> Result<Caps, String> {
        let cap = |written: &Option<Limit>, usual: Option<Msat>| -> Result<Option<Msat>, String> {
            Ok(match written {
                None => usual,
                Some(Limit::Unlimited) => None,
                Some(Limit::Most(most)) => Some(*most),
                Some(Limit::Fiat(millionths, currency)) => {
                    let Rate(unit) = rates.get(currency).ok_or_else(|| {
                    format!("a limit is in {currency}, and `rates` doesn't say what that is worth; write `rates: {{ {currency}: 1500sat }}`")
                })?;
                    // Rounded down: a cap is never more than was written.
                    let msat = u128::from(*millionths) * u128::from(unit.get()) / 1_000_000;
                    Some(u64::try_from(msat).map_or(Msat::MAX, Msat::new).min(Msat::MAX))
                }
            })
        };
        Ok(Caps {
            payment: cap(&self.payment, usual.payment)?,
            fee: cap(&self.fee, usual.fee)?,
            hour: cap(&self.hour, usual.hour)?,
            day: cap(&self.day, usual.day)?,
            week: cap(&self.week, usual.week)?,
            total: cap(&self.total, usual.total)?,
        })
    }
}

impl Word {
    fn verdict(self) -> Verdict {
        match self {
            Self::Allow => Verdict::Allow,
            Self::Ask => Verdict::Ask,
            Self::Deny => Verdict::Deny,
        }
    }
}

/// The directory, of the name or of the file that it leads to, in which everybody can replace files. In one that is sticky,
/// like `/tmp`, they can't.
///
/// # Errors
///
/// When there is no such file or directory.
#[cfg(unix)]
pub fn open_to_all(path: &Path) -> std::io::Result<Option<PathBuf>> {
    for path in [std::path::absolute(path)?, fs::canonicalize(path)?] {
        let Some(directory) = path.parent() else { continue };
        let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(directory)?);
        if mode & 0o1002 == 0o0002 {
            return Ok(Some(directory.to_owned()));
        }
    }
    Ok(None)
}

/// As currencies are named: `USD`.
fn is_currency(name: &str) -> bool {
    name.len() == 3 && name.bytes().all(|byte| byte.is_ascii_uppercase())
}

/// A decimal number, in millionths; `None` where it is none, or has more than six decimals.
fn millionths(text: &str) -> Option<u64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let is_number = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(whole) || !is_number(part) || part.len() > 6 {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    let part: u64 = format!("{part:0<6}").parse().ok()?;
    whole.checked_mul(1_000_000)?.checked_add(part)
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.parse() {
            Ok(Msat::ZERO) => Err(de::Error::custom(
                "a currency is worth something; write what one unit is worth, like `1500sat`",
            )),
            Ok(worth) => Ok(Self(worth)),
            Err(error) => Err(de::Error::custom(error)),
        }
    }
}

fn allow() -> Word {
    Word::Allow
}

fn ask() -> Word {
    Word::Ask
}

/// A value: a key that is left blank is a mistake, and not the same as one that is left out.
fn written<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// A text, or a list of them that isn't empty: an empty one would match everything, which is said by leaving it out.
fn some<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    let list = Vec::deserialize(deserializer)?;
    if list.is_empty() {
        return Err(de::Error::custom("the list is empty; write at least one, or remove the key"));
    }
    Ok(list)
}

impl<'de, T> Deserialize<'de> for Written<T>
where
    T: std::str::FromStr,
    T::Err: fmt::Display,
{
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == "unlimited" {
            return Ok(Self::Unlimited);
        }
        if let Some((amount, currency)) = text.trim().rsplit_once(' ').filter(|(_, unit)| is_currency(unit)) {
            let millionths = millionths(amount.trim()).ok_or_else(|| {
                de::Error::custom(format!("`{text}` is no amount; write one like `2.50 {currency}`"))
            })?;
            return Ok(Self::Fiat(millionths, currency.to_owned()));
        }
        text.parse().map(Self::Most).map_err(|error| de::Error::custom(format!("{error}, or `unlimited`")))
    }
}
