//! Making a challenge: a fresh token and the invoice that it commits to.
//!
//! Nothing is stored: an unpaid challenge leaves nothing behind, here or in the books. The amount on the invoice and
//! the price in the terms are one value. A challenge is made for one asker and never handed to another; an invoice that
//! a node gives twice is refused. Several nodes are asked in their order until one makes an invoice, all within one
//! deadline; grace and granularity are those of the node that made it.

use std::time::Duration;

use farebox_lightning::{Ask, ReceiveError, ReceiveFacts, clock::Clock};
use farebox_protocol::{
    Challenge, Identifier, Invoice, Label, Macaroon, Monthly, Msat, Offer, Sale, Terms, Timestamp, TokenId,
};
use smallvec::SmallVec;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    Code, Keyring, PaywallConfig, Quote,
    keyring::LabelKeys,
    limit::MintBudget,
    nodes::{Attempt, Node, Nodes, Wanted},
    price,
    seen::Seen,
};

/// How far the node's clock may be off ours before its invoices are refused.
pub(crate) const CLOCK_SKEW_MAX: Duration = Duration::from_secs(300);

/// How many invoices are remembered, to notice one that the node gives twice. 8 bytes each.
const INVOICES_REMEMBERED: usize = 16_384;

/// How often a node is looked at whose invoices are kept ready: how long after it went down they are all dropped.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Makes challenges.
pub(crate) struct Mint {
    given: Seen,
    labels: LabelKeys,
}

/// A challenge and what the answer says about it.
#[derive(Debug)]
pub(crate) struct Minted {
    pub(crate) challenge: Challenge,
    pub(crate) terms: Terms,
    /// What the offer is called.
    pub(crate) name: String,
    pub(crate) tier: u8,
    pub(crate) valid_until: Option<Timestamp>,
    /// How much may be used in a month.
    pub(crate) monthly: Vec<Monthly>,
    /// The id of the token in whose place it is, which is also its own.
    pub(crate) replaces: Option<TokenId>,
}

/// Why no challenge could be made. The text is for the log, the code for the asker.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MintError {
    #[error("service `{service}` has the price {price}, which can't be asked for")]
    Price { service: String, price: Msat },
    #[error("the node did not make an invoice within {:.1} s (`invoice_timeout`)", .0.as_secs_f32())]
    TimedOut(Duration),
    #[error("the node made no invoice")]
    Node(#[from] ReceiveError),
    #[error("the node's invoice must not be handed out: {0}")]
    Invoice(&'static str),
    #[error("the token can't say what is sold: {0}")]
    Terms(#[from] farebox_protocol::SaleError),
    #[error("the system gives no random bytes: {0}")]
    NoRandomness(String),
}

impl Mint {
    pub(crate) fn new(keyring: &Keyring, config: &PaywallConfig) -> Self {
        Self { given: Seen::new(INVOICES_REMEMBERED), labels: LabelKeys::of(keyring, config.network) }
    }

    /// What our invoices say of themselves.
    pub(crate) fn labels(&self) -> &LabelKeys {
        &self.labels
    }

    /// A challenge for this service, made by `now`, with an invoice of the first node that makes one in time.
    pub(crate) async fn make(
        &self,
        quote: &Quote<'_>,
        now: Timestamp,
        config: &PaywallConfig,
        keyring: &Keyring,
        nodes: &Nodes,
    ) -> Result<Minted, MintError> {
        let end = Instant::now() + config.invoice_timeout;
        let mut failure = MintError::Node(ReceiveError::Unavailable("no node is left to ask".to_owned()));
        // Those that have just failed others come last: better to ask them than nobody.
        let mut avoided: SmallVec<[&Node; 4]> = SmallVec::new();
        let mut left = nodes.iter().filter(|node| node.breaker.is_passable()).count();
        for node in nodes.iter() {
            // Asked now it could only be blamed, and would make an invoice for nobody.
            if end <= Instant::now() {
                return Err(failure);
            }
            let Some(attempt) = node.breaker.try_pass() else {
                avoided.push(node);
                continue;
            };
            let patience = share(end, left);
            left = left.saturating_sub(1);
            match self.sell(quote, now, config, keyring, node, attempt, patience).await {
                Ok(minted) => return Ok(minted),
                Err(error) => failure = error,
            }
        }
        let mut left = avoided.len();
        for node in avoided {
            let patience = share(end, left);
            left -= 1;
            if patience.is_zero() {
                break;
            }
            match self.sell(quote, now, config, keyring, node, node.breaker.insist(), patience).await {
                Ok(minted) => return Ok(minted),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// A challenge through this node, with an invoice that lies ready or else a new one.
    #[expect(clippy::too_many_arguments, reason = "what is sold, to which settings, through which node")]
    async fn sell(
        &self,
        quote: &Quote<'_>,
        now: Timestamp,
        config: &PaywallConfig,
        keyring: &Keyring,
        node: &Node,
        attempt: Attempt<'_>,
        patience: Duration,
    ) -> Result<Minted, MintError> {
        let Quote { service, tier, offer, .. } = *quote;
        let asked = async {
            let facts = node.facts()?;
            let price = price::askable(quote.price, facts.granularity)
                .ok_or_else(|| MintError::Price { service: service.name.to_string(), price: quote.price })?;
            let label = Label { service: service.name.clone(), offer, price };
            let wanted = Wanted { label, words: describe(quote) };
            if let Some(invoice) = lying_ready(node, &wanted, now, config) {
                return Ok((invoice, price, facts, false));
            }
            let invoice = self.order(node, &wanted, now, config, patience).await?;
            Ok((invoice, price, facts, true))
        };
        let made = asked.await;
        match &made {
            // One that lay ready says nothing of how the node is doing now.
            Ok((.., false)) => attempt.proved_nothing(),
            Ok((.., true)) => {
                node.minting.clear();
                attempt.succeeded();
            }
            Err(error) => note_failure(node, error, attempt),
        }
        let (invoice, price, facts, _) = made?;
        let terms = Terms { offer, price };
        let valid_until = valid_until(quote, &invoice, now, config, &facts);
        let sale = Sale {
            service: service.name.clone(),
            tier,
            terms,
            valid_until,
            // Its tier says what it may do.
            capabilities: None,
            monthly: quote.monthly.to_vec(),
            bound: None,
            replaces: quote.replaces.map(|older| older.hash()),
        };
        // It names the holder, who stays the same.
        let token_id = match quote.replaces {
            Some(older) => older.token_id,
            None => TokenId::from_bytes(random()?),
        };
        let identifier = Identifier { payment_hash: invoice.payment_hash(), token_id };
        let root_key = keyring.mint().root_key(config.network, &identifier);
        let macaroon = Macaroon::mint(&root_key, &identifier, &sale.caveats()?);
        let name = quote.name.to_owned();
        let replaces = quote.replaces.map(|older| older.token_id);
        let (challenge, monthly) = (Challenge { macaroon, invoice }, sale.monthly);
        Ok(Minted { challenge, terms, name, tier, valid_until, monthly, replaces })
    }

    /// Keeps invoices ready at one node, until told to stop.
    pub(crate) async fn keep_ready(
        &self,
        node: &Node,
        clock: &dyn Clock,
        config: &PaywallConfig,
        budget: &MintBudget,
        stop: &CancellationToken,
    ) {
        if !node.ready.is_kept() {
            return;
        }
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => return,
                () = node.ready.news(LOOK_EVERY) => {}
            }
            if !node.is_sound() {
                node.ready.empty();
                continue;
            }
            while let Some(wanted) = node.ready.missing() {
                if !node.ready.spend() && !budget.take_from_total() {
                    break;
                }
                let since = Instant::now();
                let attempt = node.breaker.insist();
                let made = tokio::select! {
                    () = stop.cancelled() => return,
                    made = self.order(node, &wanted, clock.now(), config, config.invoice_timeout) => made,
                };
                match made {
                    Ok(invoice) => {
                        node.minting.clear();
                        attempt.succeeded();
                        node.ready.put(&wanted, invoice, since);
                    }
                    Err(error) => {
                        note_failure(node, &error, attempt);
                        break;
                    }
                }
            }
        }
    }

    /// A new invoice, which nobody else has been given.
    pub(crate) async fn order(
        &self,
        node: &Node,
        wanted: &Wanted,
        now: Timestamp,
        config: &PaywallConfig,
        patience: Duration,
    ) -> Result<Invoice, MintError> {
        let description = self.labels.write(&wanted.label, &wanted.words, random()?);
        let ask = Ask { amount: wanted.label.price, expiry: config.invoice_expiry, description };
        let invoice = timeout(patience, node.receive().invoice(ask))
            .await
            .map_err(|_| MintError::TimedOut(patience))??;
        check(&invoice, wanted.label.price, now, config)?;
        match self.given.insert(&invoice.payment_hash()) {
            true => Ok(invoice),
            false => Err(MintError::Invoice("it was handed out before")),
        }
    }
}

/// An invoice that lies ready, if nothing speaks against its node and it can still be paid.
fn lying_ready(node: &Node, wanted: &Wanted, now: Timestamp, config: &PaywallConfig) -> Option<Invoice> {
    if !node.ready.is_kept() {
        return None;
    }
    if !node.is_sound() {
        node.ready.empty();
    }
    node.ready.take(wanted).filter(|invoice| check(invoice, wanted.label.price, now, config).is_ok())
}

fn note_failure(node: &Node, error: &MintError, attempt: Attempt<'_>) {
    node.minting.begin(error);
    if error.is_nodes_fault() {
        node.ready.empty();
        attempt.failed();
    } else {
        attempt.proved_nothing();
    }
}

/// How long the next of so many nodes may take, if each is to have its turn before the end.
fn share(end: Instant, left: usize) -> Duration {
    end.saturating_duration_since(Instant::now()) / u32::try_from(left.max(1)).unwrap_or(u32::MAX)
}

impl MintError {
    /// Whether the node has failed, rather than been asked for what it can't do or never been asked.
    pub(crate) fn is_nodes_fault(&self) -> bool {
        match self {
            Self::Node(ReceiveError::Invalid(_)) => false,
            Self::TimedOut(_) | Self::Node(_) | Self::Invoice(_) => true,
            Self::Price { .. } | Self::Terms(_) | Self::NoRandomness(_) => false,
        }
    }

    /// What the asker is told.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Price { .. } | Self::Terms(_) => Code::PriceInvalid,
            Self::TimedOut(_) | Self::Node(ReceiveError::TimedOut(_)) => Code::NodeTimeout,
            Self::Node(ReceiveError::Wrong(_)) | Self::Invoice(_) => Code::NodeWrong,
            Self::Node(_) | Self::NoRandomness(_) => Code::NodeUnavailable,
        }
    }
}

/// What the payer's wallet shows after the name of the service.
fn describe(quote: &Quote<'_>) -> String {
    let what = match quote.offer {
        Offer::Forever => "access without end".to_owned(),
        Offer::Duration(time) => format!("access for {}", spoken(time)),
        Offer::Requests(count) if count.get() == 1 => "1 request".to_owned(),
        Offer::Requests(count) => format!("{count} requests"),
        Offer::Credit => "credit".to_owned(),
    };
    // How much is in the token and in the answer; here it would be cut off.
    if quote.monthly.is_empty() { what } else { format!("{what}, limited by the month") }
}

/// A time as people say it, in the largest unit that leaves nothing over.
pub(crate) fn spoken(time: Duration) -> String {
    let secs = time.as_secs();
    let (count, unit) = [(86_400, "day"), (3_600, "hour"), (60, "minute")]
        .into_iter()
        .find(|(size, _)| secs > 0 && secs.is_multiple_of(*size))
        .map_or((secs, "second"), |(size, unit)| (secs / size, unit));
    if count == 1 { format!("1 {unit}") } else { format!("{count} {unit}s") }
}

/// The node has promised all this. It is checked nonetheless: this invoice is handed to a stranger in our name.
fn check(invoice: &Invoice, price: Msat, now: Timestamp, config: &PaywallConfig) -> Result<(), MintError> {
    let latest = now.saturating_add(config.invoice_expiry).saturating_add(CLOCK_SKEW_MAX);
    if invoice.amount() != Some(price) {
        return Err(MintError::Invoice("its amount is not what was asked for"));
    }
    if invoice.network() != config.network {
        return Err(MintError::Invoice("it is for another network"));
    }
    if invoice.is_expired(now) {
        return Err(MintError::Invoice("it has expired; is the node's clock behind?"));
    }
    if invoice.expires_at() > latest {
        return Err(MintError::Invoice(
            "it can be paid for longer than was asked; is the node's clock ahead?",
        ));
    }
    Ok(())
}

/// When what is sold ends, where it does: never less than the whole time after the last moment at which it may be paid.
fn valid_until(
    quote: &Quote<'_>,
    invoice: &Invoice,
    now: Timestamp,
    config: &PaywallConfig,
    facts: &ReceiveFacts,
) -> Option<Timestamp> {
    let duration = match quote.offer {
        Offer::Forever => return None,
        Offer::Duration(duration) => duration,
        Offer::Requests(_) | Offer::Credit => quote.good_for?,
    };
    let payable_until = invoice.expires_at().max(now.saturating_add(config.invoice_expiry));
    Some(payable_until.saturating_add(facts.grace).saturating_add(duration))
}

fn random<const LEN: usize>() -> Result<[u8; LEN], MintError> {
    let mut bytes = [0; LEN];
    getrandom::fill(&mut bytes).map_err(|error| MintError::NoRandomness(error.to_string()))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_spoken_in_its_largest_whole_unit() {
        for (secs, want) in [
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "1 minute"),
            (90, "90 seconds"),
            (3_600, "1 hour"),
            (7_200, "2 hours"),
            (86_400, "1 day"),
            (2_592_000, "30 days"),
        ] {
            assert_eq!(spoken(Duration::from_secs(secs)), want);
        }
    }
}
