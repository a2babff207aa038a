//! Making a challenge: a fresh token and the invoice that it commits to.
//!
//! Nothing is stored: an unpaid challenge leaves nothing behind, here or in the books. The amount on the invoice and
//! the price in the terms are one value. A challenge is made for one asker and never handed to another; an invoice that
//! the node gives twice is refused.

use std::time::Duration;

use farebox_lightning::{Ask, Receive, ReceiveError, ReceiveFacts};
use farebox_protocol::{
    Challenge, Identifier, Invoice, Macaroon, Msat, Offer, Sale, Terms, Timestamp, TokenId,
};

use crate::{Code, Keyring, PaywallConfig, Service, price, seen::Seen};

/// How far the node's clock may be off ours before its invoices are refused.
pub(crate) const CLOCK_SKEW_MAX: Duration = Duration::from_secs(300);

/// How many invoices are remembered, to notice one that the node gives twice. 8 bytes each.
const INVOICES_REMEMBERED: usize = 16_384;

/// Makes challenges.
pub(crate) struct Mint {
    given: Seen,
}

/// A challenge and what the answer says about it.
#[derive(Debug)]
pub(crate) struct Minted {
    pub(crate) challenge: Challenge,
    pub(crate) terms: Terms,
    pub(crate) valid_until: Option<Timestamp>,
}

/// Why no challenge could be made. The text is for the log, the code for the asker.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MintError {
    #[error("service `{service}` has the price {price}, which can't be asked for")]
    Price { service: String, price: Msat },
    #[error("the node did not make an invoice within {} s (`invoice_timeout`)", .0.as_secs())]
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
    pub(crate) fn new() -> Self {
        Self { given: Seen::new(INVOICES_REMEMBERED) }
    }

    /// A challenge for this service, made by `now`.
    pub(crate) async fn make(
        &self,
        service: &Service,
        now: Timestamp,
        config: &PaywallConfig,
        keyring: &Keyring,
        node: &dyn Receive,
    ) -> Result<Minted, MintError> {
        let facts = node.facts().ok_or_else(|| ReceiveError::Unavailable("not reached yet".to_owned()))?;
        let price = price::askable(service.price, facts.granularity)
            .ok_or_else(|| MintError::Price { service: service.name.to_string(), price: service.price })?;
        let ask = Ask { amount: price, expiry: config.invoice_expiry, description: describe(service) };
        let invoice = tokio::time::timeout(config.invoice_timeout, node.invoice(ask))
            .await
            .map_err(|_| MintError::TimedOut(config.invoice_timeout))??;
        check(&invoice, price, now, config)?;
        if !self.given.insert(&invoice.payment_hash()) {
            return Err(MintError::Invoice("it was handed out before"));
        }

        let terms = Terms { offer: service.offer, price };
        let valid_until = valid_until(&service.offer, &invoice, now, config, &facts);
        let sale = Sale {
            service: service.name.clone(),
            tier: service.tier,
            terms,
            valid_until,
            capabilities: None,
            bound: None,
        };
        let identifier = Identifier { payment_hash: invoice.payment_hash(), token_id: token_id()? };
        let root_key = keyring.mint().root_key(config.network, &identifier);
        let macaroon = Macaroon::mint(&root_key, &identifier, &sale.caveats()?);
        Ok(Minted { challenge: Challenge { macaroon, invoice }, terms, valid_until })
    }
}

impl MintError {
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

/// What the payer's wallet shows.
fn describe(service: &Service) -> String {
    match service.offer {
        Offer::Forever => format!("{}: access without end", service.name),
        Offer::Duration(time) => format!("{}: access for {}", service.name, spoken(time)),
        Offer::Requests(count) if count.get() == 1 => format!("{}: 1 request", service.name),
        Offer::Requests(count) => format!("{}: {count} requests", service.name),
        Offer::Credit => format!("{}: credit", service.name),
    }
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

/// When a time-limited pass ends: never less than the whole time after the last moment at which it may be paid.
fn valid_until(
    offer: &Offer,
    invoice: &Invoice,
    now: Timestamp,
    config: &PaywallConfig,
    facts: &ReceiveFacts,
) -> Option<Timestamp> {
    let Offer::Duration(duration) = offer else { return None };
    let payable_until = invoice.expires_at().max(now.saturating_add(config.invoice_expiry));
    Some(payable_until.saturating_add(facts.grace).saturating_add(*duration))
}

fn token_id() -> Result<TokenId, MintError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| MintError::NoRandomness(error.to_string()))?;
    Ok(TokenId::from_bytes(bytes))
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
