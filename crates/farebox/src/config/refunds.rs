//! Refunds, judged: how much may leave, what a route may cost, and who may be called about it.

use farebox_paywall::refund::{LEAST, RefundConfig};
use farebox_protocol::{Msat, Network};

use super::{file::Refunds, judge::Findings};

/// What a start needs to pay money back.
#[derive(Clone, Debug)]
pub(crate) struct RefundSettings {
    /// The limits.
    pub(crate) config: RefundConfig,
    /// Servers of Lightning addresses that may be private, each `host:port`.
    pub(crate) private_hosts: Vec<String>,
}

pub(super) fn judge(refunds: Refunds, network: Network, findings: &mut Findings<'_>) -> RefundSettings {
    let (daily_max, fee_max) = (refunds.daily_max.0, refunds.fee_max.0.0);
    if fee_max.largest_within(daily_max) < LEAST {
        findings.problem(
            "refunds.daily-max",
            format!("`{daily_max}` is not enough for one refund with what its route may cost; leave `refunds` out to pay nothing back"),
        );
    }
    if !refunds.private_hosts.is_empty() && network != Network::Regtest {
        findings.problem(
            "refunds.private-hosts",
            "strangers would choose what is called on your own network; this is for `regtest` only",
        );
    }
    for (at, host) in refunds.private_hosts.iter().enumerate() {
        let is_host = host.rsplit_once(':').is_some_and(|(name, port)| {
            !name.is_empty()
                && !name.contains(['/', '@', ' '])
                && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
        if !is_host {
            findings.problem(
                format!("refunds.private-hosts[{at}]"),
                format!("`{host}` is no host with a port; write one like `localhost:3000`"),
            );
        }
    }
    let config = RefundConfig { fee_max, ..RefundConfig::new(Msat::new(daily_max.get())) };
    RefundSettings { config, private_hosts: refunds.private_hosts }
}
