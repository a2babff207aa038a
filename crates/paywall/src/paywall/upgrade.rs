//! A better token in the place of one that is held: the same token id, a higher tier, and the older one good no longer.
//!
//! Nothing is kept for it. Who holds a token of a lower tier than a request needs, and asks for an upgrade, is challenged
//! for a token that names the older one in what is signed. When that is first used, the older one is revoked; until then it
//! stays good, and where it is never paid for, nothing has happened.
//!
//! Only a pass is replaced: what is left of requests or credit would be lost with their token, so they stay good beside
//! whatever is bought. And only a whole token, as the mint made it: who was lent a narrowed one must not end the whole.

use farebox_protocol::{Identifier, IdentifierHash, Sale, Timestamp};
use http::HeaderName;
use tokio::time;

use super::{Paywall, examine::Examined};
use crate::{
    Request,
    decide::Grant,
    keyring::KeyState,
    store::{RevocationCursor, Revoked},
};

/// Asks for a token in the place of the one that is shown. Its value is `true`.
pub const UPGRADE_HEADER: HeaderName = HeaderName::from_static("farebox-upgrade");

/// What is written beside such a revocation.
const REASON: &str = "replaced by a token of a higher tier";

impl Paywall {
    /// The token to be replaced, where the buyer asks for that and it can be.
    pub(super) fn replaceable(
        &self,
        request: &Request<'_>,
        examined: &Examined,
        now: Timestamp,
    ) -> Option<Identifier> {
        if request.headers.get(&UPGRADE_HEADER)?.as_bytes() != b"true" {
            return None;
        }
        // Its signature and its preimage hold.
        let proven = examined.proven.as_ref()?;
        let is_live = self.keyring.entries()[proven.secret].state == KeyState::Live;
        let sale = Sale::of(&proven.macaroon)?;
        let is_older = sale.service == request.service.name && sale.tier < examined.tier;
        let is_over = sale.valid_until.is_some_and(|end| now >= end);
        let can_be = is_live
            && is_older
            && !is_over
            && !sale.terms.offer.is_counted()
            && !self.is_revoked(&proven.identifier);
        can_be.then_some(proven.identifier)
    }

    /// What the token that is about to be used replaces and hasn't replaced yet.
    pub(super) fn retires(&self, examined: &Examined, grant: Grant) -> Option<IdentifierHash> {
        let Grant::Paid(index) = grant else { return None };
        let older = examined.token(index).judged?.replaces?;
        (!self.revoked.contains(|| older)).then_some(older)
    }

    /// Ends the older token. Where the store can't be written it ends here all the same, and in the store when the better one
    /// is first used after the next start: who has paid isn't kept waiting for our books.
    pub(super) async fn retire(&self, older: IdentifierHash) {
        self.revoked.add(Revoked { hashes: vec![older], cursor: RevocationCursor::default() });
        match time::timeout(self.config.store_timeout, self.revoke(older, REASON)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "a token that was replaced could not be revoked for good")
            }
            Err(_) => {
                tracing::warn!(
                    "a token that was replaced could not be revoked for good in time (`store_timeout`)"
                );
            }
        }
    }

    fn is_revoked(&self, identifier: &Identifier) -> bool {
        self.revoked.contains(|| identifier.hash())
    }
}
