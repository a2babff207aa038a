//! `farebox token inspect`: what a token says, in words.

use std::{fmt, process::ExitCode};

use farebox_lightning::clock::{Clock as _, SystemClock};
use farebox_protocol::{Bound, Macaroon, Offer, Terms, Timestamp};
use serde::Serialize;

use super::{Given, text_of};
use crate::output::{Reader, roughly, utc};

/// Show what a token says: identifier, caveats, expiry. Needs no key, and so can't tell whether the token is genuine
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  farebox token inspect AgEEbHNhdAJC…
  curl -si http://127.0.0.1:8402/ | grep -i '^www-authenticate: l402' | farebox token inspect -")]
pub(crate) struct Args {
    /// The token, a credential or a challenge; `-` reads it from standard input
    token: String,
}

#[derive(Debug, Serialize)]
struct Report {
    tokens: Vec<Token>,
    /// Whether a preimage came with it; the preimage itself is never shown.
    preimage: PreimageState,
}

#[derive(Debug, Serialize)]
struct Token {
    payment_hash: Option<String>,
    token_id: Option<String>,
    /// What `token revoke` takes.
    identifier_hash: Option<String>,
    /// Why the identifier can't be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    identifier_error: Option<String>,
    caveats: Vec<Caveat>,
    /// The earliest end that any caveat names, in seconds since 1970.
    valid_until: Option<u64>,
    expired: bool,
}

#[derive(Debug, Serialize)]
struct Caveat {
    caveat: String,
    meaning: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum PreimageState {
    Absent,
    /// It hashes to the payment hash.
    Matches,
    /// It doesn't: no gateway takes this credential.
    DoesNotMatch,
}

pub(crate) fn run(args: &Args, reader: Reader) -> anyhow::Result<ExitCode> {
    let given = Given::read(&text_of(&args.token)?)?;
    reader.print(&Report::of(&given, SystemClock.now()))?;
    Ok(ExitCode::SUCCESS)
}

impl Report {
    fn of(given: &Given, now: Timestamp) -> Self {
        let pays = |preimage: &farebox_protocol::Preimage| {
            given.tokens.iter().all(|token| {
                token.identifier().is_ok_and(|identifier| preimage.pays(&identifier.payment_hash))
            })
        };
        let preimage = match &given.preimage {
            None => PreimageState::Absent,
            Some(preimage) if pays(preimage) => PreimageState::Matches,
            Some(_) => PreimageState::DoesNotMatch,
        };
        Self { tokens: given.tokens.iter().map(|token| Token::of(token, now)).collect(), preimage }
    }
}

impl Token {
    fn of(token: &Macaroon, now: Timestamp) -> Self {
        let identifier = token.identifier();
        let known = identifier.as_ref().ok();
        let valid_until = token.caveats().filter_map(end_of).min();
        Self {
            payment_hash: known.map(|identifier| identifier.payment_hash.to_string()),
            token_id: known.map(|identifier| identifier.token_id.to_string()),
            identifier_hash: known.map(|identifier| identifier.hash().to_string()),
            identifier_error: identifier.as_ref().err().map(ToString::to_string),
            caveats: token.caveats().map(|caveat| Caveat::of(caveat, now)).collect(),
            valid_until: valid_until.map(Timestamp::secs),
            expired: valid_until.is_some_and(|end| end <= now),
        }
    }
}

/// The end that a caveat names.
fn end_of(caveat: &str) -> Option<Timestamp> {
    let (name, value) = caveat.split_once('=')?;
    name.ends_with("_valid_until").then_some(())?;
    value.parse().ok().map(Timestamp::from_secs)
}

impl Caveat {
    fn of(caveat: &str, now: Timestamp) -> Self {
        let (name, value) = caveat.split_once('=').unwrap_or((caveat, ""));
        let shown = if name == "preimage" { "preimage=(hidden)".to_owned() } else { caveat.to_owned() };
        // The text may be anybody's: a terminal must not obey it.
        Self { caveat: shown.escape_debug().to_string(), meaning: meaning(name, value, now) }
    }
}

fn meaning(name: &str, value: &str, now: Timestamp) -> String {
    let words = match name {
        "services" => {
            let services = value.split(',').map(|entry| match entry.rsplit_once(':') {
                Some((service, "0")) => format!("`{service}`"),
                Some((service, tier)) => format!("`{service}` from tier {tier}"),
                None => format!("`{entry}`"),
            });
            format!("opens {}", services.collect::<Vec<_>>().join(", "))
        }
        "farebox_terms" => match value.parse::<Terms>() {
            Ok(Terms { offer: Offer::Forever, price }) => format!("was sold for {price}, for ever"),
            Ok(Terms { offer: Offer::Duration(span), price }) => {
                format!("was sold for {price}, for {}", roughly(span))
            }
            Ok(Terms { offer: Offer::Requests(count), price }) => {
                format!(
                    "was sold for {price}, for {count} requests; how many are left only the gateway knows"
                )
            }
            Ok(Terms { offer: Offer::Credit, price }) => {
                format!("was sold as a credit of {price}; how much is left only the gateway knows")
            }
            Err(_) => {
                "terms of sale that this version cannot read: a gateway of this version refuses it".to_owned()
            }
        },
        "farebox_method" => format!("only for {}", value.replace(',', ", ")),
        "farebox_path" => format!("only at `{value}` and below"),
        "farebox_bound" => match value.parse::<Bound>() {
            Ok(bound) => {
                format!("only for {} {}, of up to {} each", bound.method(), bound.path(), bound.ceiling())
            }
            Err(_) => {
                "bound to something that this version cannot read: a gateway of this version refuses it"
                    .to_owned()
            }
        },
        "farebox_client" => format!("only from {}", value.replace(',', ", ")),
        "farebox_replaces" => {
            "bought in place of an older token, which is revoked once this one is used".to_owned()
        }
        "preimage" => "carries the proof of payment along".to_owned(),
        _ => match (end_of(&format!("{name}={value}")), name.strip_suffix("_valid_until")) {
            (Some(end), Some(service)) => {
                let what = if service == "farebox" { String::new() } else { format!("`{service}` ") };
                format!("{what}until {} ({})", utc(end), distance(end, now))
            }
            _ if name.ends_with("_capabilities") => {
                let service = name.trim_end_matches("_capabilities");
                if value.is_empty() {
                    format!("no capability of `{service}`: it opens nothing of it")
                } else {
                    format!("only these capabilities of `{service}`: {}", value.replace(',', ", "))
                }
            }
            _ if name.ends_with("_monthly_requests") => {
                format!("{value} requests a month to `{}`", name.trim_end_matches("_monthly_requests"))
            }
            _ if name.ends_with("_monthly_volume_sats") => {
                format!("{value} sat a month to `{}`", name.trim_end_matches("_monthly_volume_sats"))
            }
            _ if name.starts_with("farebox") => {
                "unknown to this version: a gateway of this version refuses it".to_owned()
            }
            _ => "not a caveat of farebox: skipped, or refused where `unknown-caveats: refuse` is set"
                .to_owned(),
        },
    };
    words.escape_debug().to_string()
}

fn distance(end: Timestamp, now: Timestamp) -> String {
    if end > now {
        format!("{} left", roughly(end.since(now)))
    } else {
        format!("over since {}", roughly(now.since(end)))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, token) in self.tokens.iter().enumerate() {
            if index > 0 {
                f.write_str("\n\n")?;
            }
            token.fmt(f)?;
        }
        let preimage = match self.preimage {
            PreimageState::Absent => "none given: this token alone opens nothing",
            PreimageState::Matches => "given, and it is the one that was paid for (hidden)",
            PreimageState::DoesNotMatch => {
                "given, and it is NOT the one for this payment hash: no gateway takes it"
            }
        };
        write!(
            f,
            "\npreimage         {preimage}\n\nRead, not verified: only the seller's key can tell whether it is genuine."
        )
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.payment_hash, &self.token_id, &self.identifier_hash) {
            (Some(payment_hash), Some(token_id), Some(identifier_hash)) => {
                writeln!(f, "payment hash     {payment_hash}")?;
                writeln!(f, "token id         {token_id}")?;
                writeln!(f, "identifier hash  {identifier_hash}")?;
            }
            _ => {
                let error = self.identifier_error.as_deref().unwrap_or("unreadable");
                writeln!(f, "identifier       not one of L402's: {error}")?;
            }
        }
        let mut label = "caveats";
        for caveat in &self.caveats {
            writeln!(f, "{label:<16} {}\n                   {}", caveat.caveat, caveat.meaning)?;
            label = "";
        }
        if self.caveats.is_empty() {
            writeln!(f, "caveats          none")?;
        }
        match (self.valid_until, self.expired) {
            (None, _) => write!(f, "expires          never"),
            (Some(end), false) => write!(f, "expires          {}", utc(Timestamp::from_secs(end))),
            (Some(end), true) => write!(f, "EXPIRED          {}", utc(Timestamp::from_secs(end))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(caveat: &str, want: &str) {
        assert_eq!(Caveat::of(caveat, Timestamp::from_secs(1_000_000)).meaning, want);
    }

    #[test]
    fn each_caveat_is_explained() {
        check("services=weather:0,air:2", "opens `weather`, `air` from tier 2");
        check("farebox_terms=v1;offer=forever;msat=10000", "was sold for 10 sat, for ever");
        check("farebox_terms=v1;offer=duration;secs=3600;msat=1500", "was sold for 1500 msat, for 1 h");
        check("weather_valid_until=1003600", "`weather` until 1970-01-12 14:46:40 UTC (1 h left)");
        check("farebox_valid_until=999940", "until 1970-01-12 13:45:40 UTC (over since 1 min)");
        check("farebox_method=GET,HEAD", "only for GET, HEAD");
        check("farebox_path=/v1", "only at `/v1` and below");
        check("farebox_client=10.0.0.0/8", "only from 10.0.0.0/8");
        check("weather_capabilities=read", "only these capabilities of `weather`: read");
        check("weather_capabilities=", "no capability of `weather`: it opens nothing of it");
        check("write_monthly_requests=100", "100 requests a month to `write`");
        check("write_monthly_volume_sats=5000", "5000 sat a month to `write`");
        check(
            "farebox_terms=v1;offer=requests;count=100;msat=10000",
            "was sold for 10 sat, for 100 requests; how many are left only the gateway knows",
        );
        check(
            "farebox_terms=v1;offer=credit;unit=msat;msat=10000",
            "was sold as a credit of 10 sat; how much is left only the gateway knows",
        );
        check("farebox_moon=full", "unknown to this version: a gateway of this version refuses it");
        check(
            "colour=blue",
            "not a caveat of farebox: skipped, or refused where `unknown-caveats: refuse` is set",
        );
    }

    #[test]
    fn a_preimage_inside_the_token_is_hidden() {
        let caveat = Caveat::of(&format!("preimage={}", "ab".repeat(32)), Timestamp::from_secs(0));
        assert_eq!(caveat.caveat, "preimage=(hidden)");
        assert!(!caveat.meaning.contains("abab"));
    }

    #[test]
    fn a_hostile_caveat_cannot_drive_the_terminal() {
        let caveat = Caveat::of("services=\u{1b}[2Jx:0", Timestamp::from_secs(0));
        assert!(!caveat.caveat.contains('\u{1b}') && !caveat.meaning.contains('\u{1b}'));
    }
}
