//! What may be paid for: rules about who is paid, and caps on how much, as a person has written them.
//!
//! Deciding is pure: [`Policy::judge`] looks at what is asked for and says whether it may be paid, who must be asked first,
//! and against which caps it counts. Whether a cap still has room is the journal's to say, in the transaction that records
//! the payment (`journal/budget`): nothing else could hold between many processes. Of the rules that match, the strictest
//! verdict holds (deny, then ask, then allow) and *every* cap binds. Zero means zero.

use std::fmt;

use farebox_protocol::{Msat, Scheme};

use crate::Origin;

mod consent;
mod file;
mod matching;

pub use consent::{Consent, ConsentKey, NotAKey, SECRET_LEN_MIN, SecretError};
#[cfg(unix)]
pub use file::open_to_all;
pub use file::{PolicyError, Problem};
pub use matching::{HostPattern, Match, PathPattern, PatternError};

/// All rules, and the caps on all payments together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The caps on everything that is paid.
    pub caps: Caps,
    /// What to do about a seller who has never been paid: `Allow` leaves it to the rules.
    pub new_origins: Verdict,
    /// What to do where no rule gives a verdict.
    pub otherwise: Verdict,
    /// The rules; their order doesn't matter.
    pub rules: Vec<Rule>,
    /// By what consents of a person who isn't at the terminal are known. Without it there are none.
    pub consents: Option<ConsentKey>,
    /// Whether programs that act on somebody's behalf may call servers that are not on the public internet.
    pub private_targets: bool,
}

/// A rule: what it is for, whether that may be paid, how much of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Its name, which the journal keeps beside each payment that counts against it. Renamed, it begins at nothing.
    pub name: String,
    /// What it is for. All that is written must be so; nothing written means everything.
    pub when: Match,
    /// Whether that may be paid; a rule without a verdict only caps.
    pub verdict: Option<Verdict>,
    /// How much of it.
    pub caps: Caps,
}

/// Whether something may be paid for. Ordered: the stricter is the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// It may, within the caps.
    Allow,
    /// A person must say so first.
    Ask,
    /// It may not.
    Deny,
}

/// How much may be paid. What isn't capped is bounded by the other caps alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caps {
    /// The highest price of one payment, without the fee.
    pub payment: Option<Msat>,
    /// The highest fee of one payment.
    pub fee: Option<Msat>,
    /// The most within any hour, fees included.
    pub hour: Option<Msat>,
    /// The most within any 24 hours, fees included.
    pub day: Option<Msat>,
    /// The most within any seven days, fees included.
    pub week: Option<Msat>,
    /// The most that is ever paid, fees included.
    pub total: Option<Msat>,
}

/// The time over which a cap adds up. Windows slide: there is no midnight at which a budget is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Window {
    /// 3,600 seconds.
    Hour,
    /// 86,400 seconds.
    Day,
    /// 604,800 seconds.
    Week,
    /// Always.
    Total,
}

/// What somebody wants to pay for, as far as rules look at it.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The seller.
    pub origin: &'a Origin,
    /// The path of the address, as it is sent.
    pub path: &'a str,
    /// The method.
    pub method: &'a str,
    /// On whose behalf: what the caller calls itself.
    pub label: Option<&'a str>,
    /// How payment is asked for.
    pub scheme: Scheme,
}

/// What the rules say of one payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// Whether it may be paid.
    pub verdict: Verdict,
    /// The rule whose verdict that is; `None` where no rule has one.
    pub rule: Option<String>,
    /// The tightest cap on the price of one payment.
    pub payment: Option<Cap>,
    /// The tightest cap on its fee.
    pub fee: Option<Cap>,
    /// The budgets that it counts against: those of all payments, and those of each rule that matches.
    pub budgets: Vec<Budget>,
}

/// A cap, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cap {
    /// The rule; `None` for the caps on all payments.
    pub rule: Option<String>,
    /// The most.
    pub most: Msat,
}

/// A cap over time, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// The rule; `None` for the caps on all payments.
    pub rule: Option<String>,
    /// Over which time.
    pub window: Window,
    /// The most.
    pub most: Msat,
}

impl Policy {
    /// What holds where nobody has written a policy: 1,000 sat a payment and 10 sat of fees, 10,000 sat a day.
    pub fn without_file() -> Self {
        let caps = Caps {
            payment: Some(Msat::new(1_000_000)),
            fee: Some(Msat::new(10_000)),
            day: Some(Msat::new(10_000_000)),
            ..Caps::default()
        };
        let allow = Verdict::Allow;
        Self {
            caps,
            new_origins: allow,
            otherwise: allow,
            rules: Vec::new(),
            consents: None,
            private_targets: false,
        }
    }

    /// No rules and no caps: whoever uses this bounds payments in another way.
    pub fn unlimited() -> Self {
        Self { caps: Caps::default(), ..Self::without_file() }
    }

    /// Every budget there is: those on all payments, then those of each rule.
    pub fn budgets(&self) -> Vec<Budget> {
        let rules = self.rules.iter().flat_map(|rule| rule.caps.budgets(Some(&rule.name)));
        self.caps.budgets(None).chain(rules).collect()
    }

    /// What the rules say of this.
    pub fn judge(&self, asked: &Asked<'_>) -> Judgement {
        let mut judgement = Judgement {
            verdict: self.otherwise,
            rule: None,
            payment: self.caps.payment.map(|most| Cap { rule: None, most }),
            fee: self.caps.fee.map(|most| Cap { rule: None, most }),
            budgets: self.caps.budgets(None).collect(),
        };
        let mut strictest: Option<(Verdict, &str)> = None;
        for rule in &self.rules {
            // Where a path can be read in two ways, a rule that forbids holds for both and one that allows for neither.
            let permits = rule.verdict == Some(Verdict::Allow);
            if rule.when.is_for(asked, !permits)
                && let Some(verdict) = rule.verdict
                && strictest.is_none_or(|(stricter, _)| stricter < verdict)
            {
                strictest = Some((verdict, &rule.name));
            }
            // Caps only ever forbid.
            if rule.when.is_for(asked, true) {
                let name = || Some(rule.name.clone());
                tighten(&mut judgement.payment, rule.caps.payment, name);
                tighten(&mut judgement.fee, rule.caps.fee, name);
                judgement.budgets.extend(rule.caps.budgets(Some(&rule.name)));
            }
        }
        if let Some((verdict, rule)) = strictest {
            judgement.verdict = verdict;
            judgement.rule = Some(rule.to_owned());
        }
        judgement
    }
}

fn tighten(tightest: &mut Option<Cap>, most: Option<Msat>, rule: impl Fn() -> Option<String>) {
    if let Some(most) = most
        && tightest.as_ref().is_none_or(|cap| most < cap.most)
    {
        *tightest = Some(Cap { rule: rule(), most });
    }
}

impl Caps {
    fn budgets(&self, rule: Option<&str>) -> impl Iterator<Item = Budget> {
        let windows = [
            (Window::Hour, self.hour),
            (Window::Day, self.day),
            (Window::Week, self.week),
            (Window::Total, self.total),
        ];
        windows.into_iter().filter_map(move |(window, most)| {
            Some(Budget { rule: rule.map(str::to_owned), window, most: most? })
        })
    }
}

impl Judgement {
    /// A judgement that allows and caps nothing.
    pub fn free() -> Self {
        Self { verdict: Verdict::Allow, rule: None, payment: None, fee: None, budgets: Vec::new() }
    }
}

impl Window {
    /// How far back it reaches, in seconds; `None` for [`Self::Total`].
    pub const fn secs(self) -> Option<u64> {
        match self {
            Self::Hour => Some(3_600),
            Self::Day => Some(86_400),
            Self::Week => Some(604_800),
            Self::Total => None,
        }
    }
}

impl fmt::Display for Window {
    /// As in "10 sat within an hour".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hour => "within an hour",
            Self::Day => "within a day",
            Self::Week => "within a week",
            Self::Total => "in all",
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "allow",
            Self::Ask => "ask",
            Self::Deny => "deny",
        })
    }
}

impl fmt::Display for Budget {
    /// `rule "weather": 10 sat within an hour`, or `all payments: 10 sat within an hour`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rule, window, most } = self;
        match rule {
            Some(rule) => write!(f, "rule \"{rule}\": {most} {window}"),
            None => write!(f, "all payments: {most} {window}"),
        }
    }
}

#[cfg(test)]
mod tests;
