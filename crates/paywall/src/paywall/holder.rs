//! Who holds the whole of what was sold: the token as the mint made it, with its preimage.
//!
//! For what only its buyer may do, such as having money back. A token that was narrowed is made to be handed on, and
//! whoever got it was promised some use of the service and no money. Nothing here depends on a request's service, path or
//! method, and it isn't asked whether the token's time is over: what was not used is the buyer's also after it.

use std::{fmt, time::Duration};

use farebox_protocol::{Identifier, Network, Presented, Sale, Timestamp, caveat::Monthly};
use http::HeaderMap;
use tokio::time;

use super::{Paywall, examine::Explained};
use crate::{
    keyring::KeyState,
    ledger::Refused,
    store::{
        Presentation, Purchase, Sold,
        accounts::{Allotment, Unit},
        entry::Entry,
    },
};

/// Somebody who has paid, and the sale as it was signed.
#[derive(Clone, Debug)]
pub(crate) struct Holder {
    pub(crate) identifier: Identifier,
    pub(crate) sold: Sold,
    /// What it is limited to in a month. The books don't have it.
    pub(crate) monthly: Vec<Monthly>,
}

/// Why somebody isn't taken for the one who has paid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoHolder {
    /// No credential.
    Nothing,
    /// One that can't be read, or several.
    Malformed,
    /// A token that no secret of ours explains.
    Unknown,
    /// A preimage that isn't the token's.
    PreimageWrong,
    /// Revoked: what it was worth may live on in another token.
    Revoked,
    /// Signed with a secret that has leaked: anybody could have written it.
    Withdrawn,
    /// Narrowed by a holder.
    Narrowed,
}

/// What is left of what was bought.
#[derive(Clone, Debug)]
pub(crate) struct Bought {
    pub(crate) purchase: Purchase,
    /// Credit that is neither used nor in use, in msat.
    pub(crate) credit: u64,
}

/// Why that can't be said.
#[derive(Clone, Debug)]
pub(crate) enum NotBought {
    /// No money is on the books for it, or not all.
    Unsettled,
    /// The books have another sale for this payment.
    OtherSale,
    /// The books can't be asked.
    Unavailable(String),
}

impl Holder {
    /// Whether this is what they bought. A holder may have shown it first with an earlier end or in a lower tier.
    fn bought(&self, sold: &Sold) -> bool {
        let Sold { tier, valid_until, .. } = self.sold;
        sold.tier <= tier && Sold { tier, valid_until, ..sold.clone() } == self.sold
    }
}

impl Paywall {
    /// Who presents these headers, if that is the holder of a whole token.
    pub(crate) fn holder(&self, headers: &HeaderMap) -> Result<Holder, NoHolder> {
        let credentials = match Presented::read(headers) {
            Presented::Nothing => return Err(NoHolder::Nothing),
            Presented::Malformed(_) => return Err(NoHolder::Malformed),
            Presented::Credentials(credentials) => credentials,
        };
        let [credential] = credentials.as_slice() else { return Err(NoHolder::Malformed) };
        let [token] = credential.tokens.as_slice() else { return Err(NoHolder::Malformed) };
        let Explained { identifier, secret, .. } = self.explain(token).ok_or(NoHolder::Unknown)?;
        if !credential.preimage.pays(&identifier.payment_hash) {
            return Err(NoHolder::PreimageWrong);
        }
        if self.keyring.entries()[secret].state != KeyState::Live {
            return Err(NoHolder::Withdrawn);
        }
        if self.revoked.contains(|| identifier.hash()) {
            return Err(NoHolder::Revoked);
        }
        let Sale { service, tier, terms, valid_until, monthly, .. } =
            Sale::of(token).ok_or(NoHolder::Narrowed)?;
        let (token_id, identifier_hash) = (identifier.token_id, identifier.hash());
        let sold = Sold { token_id, identifier_hash, service, tier, terms, valid_until };
        Ok(Holder { identifier, sold, monthly })
    }

    /// What is left of it. Its money must have arrived: a preimage alone gets no money back. Books its presentation, and
    /// opens its account, if nobody has used it yet.
    pub(crate) async fn bought(&self, holder: &Holder, now: Timestamp) -> Result<Bought, NotBought> {
        let hash = holder.identifier.payment_hash;
        let found = self.in_time(self.store.purchase(hash)).await?;
        let is_settled = |purchase: &Purchase| purchase.is_settled() && purchase.shortfall.get() == 0;
        let purchase = found.filter(is_settled).ok_or(NotBought::Unsettled)?;
        if purchase.sold.as_ref().is_some_and(|sold| !holder.bought(sold)) {
            return Err(NotBought::OtherSale);
        }
        let presentation = Presentation { hash, sold: holder.sold.clone(), at: now };
        let credit = match Allotment::of(&holder.sold.terms) {
            Some(allotment) if allotment.unit == Unit::Msat => self.credit(presentation, allotment).await?,
            _ => {
                let sales = self.in_time(self.store.present(vec![presentation])).await?;
                self.books.sold(&sales);
                0
            }
        };
        // What was missing to the terms is known only now.
        let found = self.in_time(self.store.purchase(hash)).await?;
        let purchase = found.filter(is_settled).ok_or(NotBought::Unsettled)?;
        Ok(Bought { purchase, credit })
    }

    /// All that the books say of it, and nothing that is only in memory. Where they don't know yet what was sold, they are told,
    /// as by a request; nobody waits for that here, and the next one who asks finds it.
    pub(crate) async fn entry(&self, holder: &Holder, now: Timestamp) -> Result<Entry, NotBought> {
        let hash = holder.identifier.payment_hash;
        if Allotment::of(&holder.sold.terms).is_some() {
            // What was served a moment ago, and will be charged, is on its way there.
            self.in_time(self.ledger.flush()).await?;
        }
        let found = self.in_time(self.store.entry(hash)).await?;
        let mut entry = found.filter(|entry| entry.purchase.is_settled()).ok_or(NotBought::Unsettled)?;
        match &entry.purchase.sold {
            Some(sold) if holder.bought(sold) => {
                // As it was sold, however narrow it was when it was shown first.
                entry.purchase.sold = Some(holder.sold.clone());
                Ok(entry)
            }
            Some(_) => Err(NotBought::OtherSale),
            None => {
                self.books.note(&hash, || Some(Presentation { hash, sold: holder.sold.clone(), at: now }));
                Err(NotBought::Unsettled)
            }
        }
    }

    async fn credit(&self, presentation: Presentation, allotment: Allotment) -> Result<u64, NotBought> {
        match self.ledger.left(presentation, allotment).await {
            Ok((left, sales)) => {
                self.books.sold(&sales);
                Ok(left)
            }
            Err(Refused::OtherSale) => Err(NotBought::OtherSale),
            Err(refused) => Err(NotBought::Unavailable(refused.to_string())),
        }
    }

    /// Whether a payment hash is one of ours: on the books.
    pub(crate) async fn is_ours(&self, hash: farebox_protocol::PaymentHash) -> Result<bool, NotBought> {
        Ok(self.in_time(self.store.purchase(hash)).await?.is_some())
    }

    /// Whether an invoice of this payee would pay one of the nodes that we are paid through.
    pub(crate) fn is_our_node(&self, payee: &str) -> bool {
        self.nodes.iter().any(|ours| ours.facts().is_ok_and(|facts| facts.is_paid_at(payee)))
    }

    /// The network that is sold on.
    pub(crate) const fn network(&self) -> Network {
        self.config.network
    }

    /// What time it is here.
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    async fn in_time<T, E: fmt::Display>(
        &self,
        asked: impl Future<Output = Result<T, E>>,
    ) -> Result<T, NotBought> {
        let patience: Duration = self.config.store_timeout;
        match time::timeout(patience, asked).await {
            Ok(done) => done.map_err(|error| NotBought::Unavailable(error.to_string())),
            Err(_) => Err(NotBought::Unavailable("the store doesn't answer".to_owned())),
        }
    }
}
