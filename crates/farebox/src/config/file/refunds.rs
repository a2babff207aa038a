//! `refunds`: money back to buyers who ask for it.

use std::str::FromStr;

use farebox_paywall::refund::FeeLimit;
use farebox_protocol::Msat;
use serde::Deserialize;

use super::Written;

/// Money back to buyers who ask for it: what is left of credit, and what came beyond a price. They ask at
/// `/.well-known/farebox/refund` of any host, with the whole token, and name an invoice or a Lightning address. It is paid by
/// the first node under `lightning`, which must be allowed to pay: for lnd that takes another macaroon than selling
/// (`farebox lnd bake --pay`), for phoenixd the full password. Without this key nothing is ever paid back.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Refunds {
    /// How much may leave in 24 hours, for all buyers together and with what the routes may cost, like `100000sat`. It has no
    /// default, because it is your money that leaves without asking you.
    pub(crate) daily_max: Written<Msat>,
    /// What the route of one refund may cost: a part of the amount, an amount, or both. The buyer bears it, out of what is paid
    /// back. Default: `1%+5sat`, which every kind of node can keep to.
    #[serde(default)]
    pub(crate) fee_max: Written<Fee>,
    /// Servers of Lightning addresses that may have private addresses and go without TLS, each `host:port`: for tests, and on
    /// `regtest` only. Default: none; only public servers are called.
    #[serde(default)]
    pub(crate) private_hosts: Vec<String>,
}

/// What a route may cost: `1%`, `5sat`, `1%+5sat`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fee(pub(crate) FeeLimit);

/// A text that limits no fee.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no limit for a fee; write a part, an amount, or both, like `1%`, `5sat` or `0.5%+5sat`")]
pub(crate) struct NoFee(String);

impl FromStr for Fee {
    type Err = NoFee;

    fn from_str(text: &str) -> Result<Self, NoFee> {
        let wrong = || NoFee(text.to_owned());
        let (mut part, mut base) = (None, None);
        for term in text.split('+').map(str::trim) {
            let repeated = match term.strip_suffix('%') {
                Some(percent) => part.replace(parts_per_million(percent.trim()).ok_or_else(wrong)?).is_some(),
                None => base.replace(term.parse::<Msat>().map_err(|_| wrong())?).is_some(),
            };
            if repeated {
                return Err(wrong());
            }
        }
        let (parts_per_million, base) = (part.unwrap_or_default(), base.unwrap_or(Msat::ZERO));
        Ok(Self(FeeLimit { parts_per_million, base }))
    }
}

/// Millionths from percents with up to four decimals, at most all of it.
fn parts_per_million(percent: &str) -> Option<u64> {
    let (whole, decimals) = percent.split_once('.').unwrap_or((percent, "0"));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !is_number(whole) || !is_number(decimals) || decimals.len() > 4 {
        return None;
    }
    let parts = format!("{whole}{decimals:0<4}").parse::<u64>().ok()?;
    (parts <= 1_000_000).then_some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fee_is_limited_by_a_part_an_amount_or_both() {
        for (text, parts_per_million, msat) in [
            ("1%", 10_000, 0),
            ("0.25%", 2_500, 0),
            ("0.0001 % + 1500msat", 1, 1_500),
            ("5sat", 0, 5_000),
            ("5sat+100%", 1_000_000, 5_000),
        ] {
            let want = Fee(FeeLimit { parts_per_million, base: Msat::new(msat) });
            assert_eq!(text.parse(), Ok(want), "{text}");
        }
        for text in
            ["", "1", "%", "1%+1%", "5sat+5sat", "1%+", "101%", "0.00001%", "-1%", "1.%", "1e2%", "five"]
        {
            assert!(text.parse::<Fee>().is_err(), "{text}");
        }
        assert_eq!("1%+5sat".parse(), Ok(Fee::default()));
    }
}
