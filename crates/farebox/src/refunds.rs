//! Money back, put together: the journal in the state directory, the servers of Lightning addresses, and the wallet, which may
//! come late like every node.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use farebox_lightning::{clock::SystemClock, lnaddress::AddressBook};
use farebox_paywall::{
    Paywall,
    refund::{RefundConfig, Refunds},
};
use farebox_protocol::Msat;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{config::RefundSettings, late::LateNodes, state};

const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// How long refunds under way may take to end when the gateway stops. The next start ends the others.
const STOP_WITHIN: Duration = Duration::from_secs(20);

/// Where buyers ask; until [`pay_out`] has a wallet they are told to come again. From here on the books say all that has left, so
/// it comes before anything is served: also where nothing is paid back any more, as long as there is a journal.
pub(crate) async fn open(
    settings: Option<RefundSettings>,
    paywall: &Arc<Paywall>,
    state_dir: &Path,
) -> anyhow::Result<Option<Arc<Refunds>>> {
    let path = state::refunds(state_dir);
    let is_offered = settings.is_some();
    let RefundSettings { config, private_hosts } = match settings {
        Some(settings) => settings,
        None if path.exists() => {
            RefundSettings { config: RefundConfig::new(Msat::ZERO), private_hosts: Vec::new() }
        }
        None => return Ok(None),
    };
    let addresses = AddressBook::new(private_hosts).context("cannot make an HTTP client")?;
    let (paywall, clock) = (Arc::clone(paywall), Arc::new(SystemClock));
    let refunds = Refunds::open(&path, paywall, Arc::new(addresses), clock, config)
        .with_context(|| format!("cannot open the journal of refunds, `{}`", path.display()))?;
    refunds.compare().await?;
    Ok(is_offered.then_some(refunds))
}

/// Pays from the first node, as soon as it is there, until `stop`; then waits for what is under way.
pub(crate) async fn pay_out(refunds: &Arc<Refunds>, nodes: &LateNodes, stop: &CancellationToken) {
    let mut wait = RETRY_FIRST;
    let mut said = String::new();
    while let Err(error) = begin(refunds, nodes).await {
        let why = format!("{error:#}");
        if why != said {
            tracing::warn!("nothing can be paid back yet: {why}");
            said = why;
        }
        if stop.run_until_cancelled(sleep(wait)).await.is_none() {
            break;
        }
        wait = (wait * 2).min(RETRY_MAX);
    }
    stop.cancelled().await;
    refunds.stop(STOP_WITHIN).await;
}

async fn begin(refunds: &Arc<Refunds>, nodes: &LateNodes) -> anyhow::Result<()> {
    let wallet = nodes.wallet().await?;
    refunds.pay_from(wallet).await?;
    tracing::info!("money can be paid back");
    Ok(())
}
