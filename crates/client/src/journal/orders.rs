//! Orders on their way into the journal: recorded with what they may cost, adopted from an earlier process, abandoned unsent.
//!
//! All of it happens in the transaction that also looks at lease, consent and budgets, so that what is on disk may be sent.

use farebox_lightning::WalletId;
use farebox_lightning::outgoing::{Failure, IntentError, NewIntent, State, sqlite};
use farebox_protocol::{PaymentHash, Timestamp};
use rusqlite::{OptionalExtension as _, Transaction, TransactionBehavior, params};

use super::lease::{self, Lease};
use super::receipts::{self, Told};
use super::rows::{PURCHASE, read_order};
use super::{Journal, JournalError, approvals, budget, imports, integer};
use crate::Scope;
use crate::failpoint::{Point, Write};
use crate::holder::Holder;
use crate::purchase::{Order, Refusal};

/// The request that buys.
#[derive(Clone, Copy, Debug)]
pub(crate) struct From<'a> {
    pub(crate) method: &'a str,
    /// Without the query, which may hold secrets.
    pub(crate) path: &'a str,
    /// On whose behalf.
    pub(crate) label: Option<&'a str>,
    /// What the caller calls the request.
    pub(crate) request_id: Option<&'a str>,
    pub(crate) wallet: &'a WalletId,
    /// The consent that a person gave beforehand, if it takes one.
    pub(crate) consent: Option<&'a str>,
}

/// What became of an order that was to be written.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Recorded {
    /// It is on disk, and its money is kept aside.
    New,
    /// The journal knows the payment as paid or under way.
    Before,
    /// A budget has no room for it; nothing was written.
    Refused(Refusal),
}

impl Journal {
    /// Writes an order and its payment, if every budget has room for it.
    pub(crate) fn record(
        &self,
        order: &Order,
        from: &From<'_>,
        lease: &Lease,
        now: Timestamp,
    ) -> Result<Recorded, JournalError> {
        let _write = Write::between(Point::BeforeRecord, Point::AfterRecord);
        let mut connection = self.connection.lock();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if !lease::holds(&transaction, lease)? {
            return Err(JournalError::LeaseLost);
        }
        let hash = order.payment_hash();
        match imports::state_of(&transaction, &hash)?.as_deref() {
            None => {}
            // The other program couldn't pay it; now it is ours to.
            Some("failed") => {
                transaction.execute("DELETE FROM imports WHERE payment_hash = ?1", [hash.as_bytes()])?;
                transaction.execute("DELETE FROM purchases WHERE payment_hash = ?1", [hash.as_bytes()])?;
            }
            Some(_) => return Ok(Recorded::Before),
        }
        let again = match sqlite::find(&transaction, &hash)? {
            None => None,
            // The server sells the same invoice once more after a payment that spent nothing.
            Some(payment) if matches!(payment.state, State::Failed(_)) => Some(payment.attempt),
            Some(_) => return Ok(Recorded::Before),
        };
        if let Some(overrun) = budget::overrun(&transaction, from.wallet)? {
            return Ok(Recorded::Refused(overrun));
        }
        // It may have been used since it was found.
        if let Some(id) = from.consent
            && !approvals::bind(&transaction, id, &hash)?
        {
            return Ok(Recorded::Refused(order.approval_needed(None)));
        }
        let mut refusal = budget::refusal(&transaction, order, now)?;
        if refusal.is_some() {
            budget::release_gone(&transaction)?;
            refusal = budget::refusal(&transaction, order, now)?;
        }
        if let Some(refusal) = refusal {
            return Ok(Recorded::Refused(refusal));
        }
        let now = budget::latest(&transaction, now)?;
        sqlite::record(&transaction, &new_intent(order, from.wallet), now)?;
        if again.is_some() {
            // Whoever else has offered this invoice stays on record, whatever comes of it here.
            transaction.execute(
                "INSERT INTO superseded
                 SELECT p.payment_hash, p.origin, p.service, p.method, p.path, p.begun_at, o.amount_msat, o.state, ?2
                 FROM purchases p JOIN outgoing_payments o USING (payment_hash)
                 WHERE p.payment_hash = ?1 AND (p.origin <> ?3 OR p.service <> ?4)",
                params![hash.as_bytes(), integer(now.secs()), order.scope.origin.to_string(), order.scope.service],
            )?;
            transaction.execute("DELETE FROM redated WHERE payment_hash = ?1", [hash.as_bytes()])?;
            transaction.execute("DELETE FROM charges WHERE payment_hash = ?1", [hash.as_bytes()])?;
            transaction.execute("DELETE FROM answers WHERE payment_hash = ?1", [hash.as_bytes()])?;
            transaction.execute("DELETE FROM purchases WHERE payment_hash = ?1", [hash.as_bytes()])?;
        }
        transaction.execute(
            "INSERT INTO purchases (payment_hash, origin, service, scheme, token, fee_worst_msat, valid_until, bound,
                                    method, path, holder, generation, begun_at, label, rule, again, payee, credential,
                                    request_id)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)",
            params![
                hash.as_bytes(),
                order.scope.origin.to_string(),
                order.scope.service,
                order.scheme.to_string(),
                order.token,
                integer(order.fee_worst.get()),
                order.valid_until.map(|end| integer(end.secs())),
                order.bound,
                from.method,
                from.path,
                self.holder.as_str(),
                lease.generation,
                integer(now.secs()),
                from.label,
                order.judgement.rule,
                again,
                order.invoice.payee(),
                receipts::credential_of(&order.token),
                from.request_id,
            ],
        )?;
        budget::charge(&transaction, order)?;
        receipts::add(&transaction, &hash, receipts::Event::Recorded, Told::default(), now)?;
        transaction.commit()?;
        Ok(Recorded::New)
    }

    /// Makes an earlier purchase ours, so that it may be sent again under our lease, if every budget of today has room for it.
    /// Its wallet and the rules that it counts against stay what they were; those of today are added.
    pub(crate) fn adopt(
        &self,
        order: &Order,
        consent: Option<&str>,
        lease: &Lease,
        now: Timestamp,
    ) -> Result<Option<Refusal>, JournalError> {
        let _write = Write::between(Point::BeforeAdopt, Point::AfterAdopt);
        let mut connection = self.connection.lock();
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if !lease::holds(&transaction, lease)? {
            return Err(JournalError::LeaseLost);
        }
        let hash = order.payment_hash();
        if let Some(payment) = sqlite::find(&transaction, &hash)?
            && let Some(overrun) = budget::overrun(&transaction, &payment.wallet)?
        {
            return Ok(Some(overrun));
        }
        if let Some(id) = consent
            && !approvals::bind(&transaction, id, &hash)?
        {
            return Ok(Some(order.approval_needed(None)));
        }
        if let Some(refusal) = budget::refusal(&transaction, order, now)? {
            return Ok(Some(refusal));
        }
        transaction.execute(
            "UPDATE purchases SET holder = ?1, generation = ?2 WHERE payment_hash = ?3",
            params![self.holder.as_str(), lease.generation, hash.as_bytes()],
        )?;
        budget::charge(&transaction, order)?;
        transaction.commit()?;
        Ok(None)
    }
}

/// The payment of an order.
pub(crate) fn new_intent(order: &Order, wallet: &WalletId) -> NewIntent {
    NewIntent {
        invoice: order.invoice.clone(),
        amount: order.price,
        fee_max: order.fee_max,
        wallet: wallet.clone(),
    }
}

/// Whether `holder` may mark a payment as sent: it recorded or adopted the purchase, under the lease as it stands.
pub(super) fn may_send(
    transaction: &Transaction<'_>,
    hash: &PaymentHash,
    holder: &Holder,
) -> Result<(), IntentError> {
    let holds: bool = transaction.query_row(
        "SELECT EXISTS (SELECT 1 FROM purchases p JOIN leases l USING (origin, service)
         WHERE p.payment_hash = ?1 AND l.generation = p.generation AND p.holder = ?2 AND l.holder = ?2)",
        params![hash.as_bytes(), holder.as_str()],
        |row| row.get(0),
    )?;
    if holds {
        Ok(())
    } else {
        Err(IntentError::Forbidden("the lease has gone to another process".to_owned()))
    }
}

/// Closes what an earlier holder of this lease has recorded and not sent. It can't be sent any more: that needs the lease.
pub(super) fn abandon_unsent(
    transaction: &Transaction<'_>,
    scope: &Scope,
    now: Timestamp,
) -> Result<(), JournalError> {
    let mut statement = transaction.prepare(
        "SELECT payment_hash FROM purchases p JOIN outgoing_payments o USING (payment_hash)
         WHERE p.origin = ?1 AND p.service = ?2 AND o.state = 'recorded'",
    )?;
    let hashes: Vec<[u8; 32]> = statement
        .query_map(params![scope.origin.to_string(), scope.service], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    for hash in hashes {
        if let Some(payment) = sqlite::find(transaction, &PaymentHash::from_bytes(hash))? {
            let failure = Failure { reason: "its process ended before it was sent".to_owned(), unsent: true };
            let closed = sqlite::fail(transaction, &payment, &failure, now)?;
            receipts::witness(transaction, &closed, now)?;
        }
    }
    Ok(())
}

/// The oldest purchase of this scope whose outcome is not known.
pub(super) fn unsettled(transaction: &Transaction<'_>, scope: &Scope) -> Result<Option<Order>, JournalError> {
    let query = format!(
        "{PURCHASE} WHERE p.origin = ?1 AND p.service = ?2 AND o.state IN ('sent', 'unknown') ORDER BY p.id LIMIT 1"
    );
    transaction
        .query_row(&query, params![scope.origin.to_string(), scope.service], |row| Ok(read_order(row)))
        .optional()?
        .transpose()
}
