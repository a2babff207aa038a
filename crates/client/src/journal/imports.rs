//! Credentials that another program has bought: held and shown like our own, and on no budget, for this journal's payments
//! are those that it has made itself. Nor does an import make a seller known: anybody can write a file.
//!
//! A payment that the other program began and whose end it never saw is held as unknown until a wallet tells; nothing is paid
//! for it, and nothing else is bought in its place.

use farebox_protocol::{Msat, PaymentHash, Preimage, Timestamp};
use rusqlite::{Connection, OptionalExtension as _, Transaction, params};

use super::receipts::{self, Event, Told};
use super::{JournalError, integer};
use crate::Scope;
use crate::import::Found;

pub(super) const TABLES: &str = "
CREATE TABLE imports (
    payment_hash BLOB NOT NULL PRIMARY KEY CHECK (length(payment_hash) = 32),
    source       TEXT NOT NULL,
    state        TEXT NOT NULL CHECK (state IN ('settled', 'unknown', 'failed')),
    was_pending  INTEGER NOT NULL,
    preimage     BLOB CHECK (length(preimage) = 32),
    amount_msat  INTEGER,
    fee_msat     INTEGER,
    reason       TEXT,
    imported_at  INTEGER NOT NULL,
    updated_at   INTEGER NOT NULL,
    CHECK ((state = 'settled') = (preimage IS NOT NULL))
) STRICT, WITHOUT ROWID;
";

/// What has become of one that was to be brought in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Brought {
    /// It is held now.
    New,
    /// It was about to be paid for when its program ended; a wallet must tell.
    Pending,
    /// The journal had no proof of this payment yet, and has it now.
    Completed,
    /// The journal has it already.
    Held,
}

/// What would become of it.
pub(super) fn plan(connection: &Connection, found: &Found) -> Result<Brought, JournalError> {
    let query = "SELECT coalesce(o.state, i.state), o.state IS NOT NULL FROM purchases p
                 LEFT JOIN outgoing_payments o USING (payment_hash) LEFT JOIN imports i USING (payment_hash)
                 WHERE p.payment_hash = ?1";
    let held: Option<(String, bool)> = connection
        .prepare_cached(query)?
        .query_row([found.payment_hash.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    Ok(match held {
        None if found.preimage.is_some() => Brought::New,
        None => Brought::Pending,
        // A proof is a proof, whoever has kept it.
        Some((state, false)) if state != "settled" && found.preimage.is_some() => Brought::Completed,
        Some(_) => Brought::Held,
    })
}

/// Brings one in.
pub(super) fn bring(
    transaction: &Transaction<'_>,
    found: &Found,
    source: &str,
    holder: &str,
    now: Timestamp,
) -> Result<Brought, JournalError> {
    let brought = plan(transaction, found)?;
    let hash = found.payment_hash;
    match brought {
        Brought::Held => return Ok(brought),
        Brought::Completed => {
            if let Some(preimage) = &found.preimage {
                settle(transaction, &hash, preimage, found.fee, now)?;
            }
            return Ok(brought);
        }
        Brought::New | Brought::Pending => {}
    }
    let facts = found.facts();
    transaction.execute(
        "INSERT INTO purchases (payment_hash, origin, service, scheme, token, fee_worst_msat, valid_until, bound, method, path,
                                holder, generation, begun_at, credential)
         VALUES (?1, ?2, ?3, ?4, ?5, 0, ?6, ?7, '', ?8, ?9, 0, ?10, ?11)",
        params![
            hash.as_bytes(),
            found.origin.to_string(),
            facts.service,
            found.scheme.to_string(),
            found.token,
            facts.valid_until.map(|end| integer(end.secs())),
            facts.payment_hash.is_some(),
            found.path.as_deref().unwrap_or_default(),
            holder,
            // A file may say anything, and what lies in the future would move this journal's own clock.
            integer(found.bought_at.map_or(now, |at| at.min(now)).secs()),
            receipts::credential_of(&found.token),
        ],
    )?;
    transaction.execute(
        "INSERT INTO imports (payment_hash, source, state, was_pending, preimage, amount_msat, fee_msat, imported_at, updated_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?8)",
        params![
            hash.as_bytes(),
            source,
            if found.preimage.is_some() { "settled" } else { "unknown" },
            found.preimage.is_none(),
            found.preimage.as_ref().map(Preimage::expose_bytes),
            found.amount.map(|amount| integer(amount.get())),
            found.fee.map(|fee| integer(fee.get())),
            integer(now.secs()),
        ],
    )?;
    let note = format!("from {source}");
    let event = if found.preimage.is_some() { Event::Imported } else { Event::Unknown };
    receipts::add(transaction, &hash, event, Told { note: Some(&note), ..Told::default() }, now)?;
    Ok(brought)
}

/// A wallet has the proof.
pub(super) fn settle(
    transaction: &Transaction<'_>,
    hash: &PaymentHash,
    preimage: &Preimage,
    fee: Option<Msat>,
    now: Timestamp,
) -> Result<(), JournalError> {
    let changed = transaction.execute(
        "UPDATE imports SET state = 'settled', preimage = ?2, fee_msat = coalesce(?3, fee_msat), reason = NULL, updated_at = ?4
         WHERE payment_hash = ?1 AND state <> 'settled'",
        params![
            hash.as_bytes(),
            preimage.expose_bytes(),
            fee.map(|fee| integer(fee.get())),
            integer(now.secs())
        ],
    )?;
    if changed == 1 {
        receipts::add(transaction, hash, Event::Paid, Told::default(), now)?;
    }
    Ok(())
}

/// A wallet, or a person, says that nothing was paid. `false`: it isn't open.
pub(super) fn fail(
    transaction: &Transaction<'_>,
    hash: &PaymentHash,
    reason: &str,
    now: Timestamp,
) -> Result<bool, JournalError> {
    let changed = transaction.execute(
        "UPDATE imports SET state = 'failed', reason = ?2, updated_at = ?3 WHERE payment_hash = ?1 AND state = 'unknown'",
        params![hash.as_bytes(), reason, integer(now.secs())],
    )?;
    if changed == 1 {
        receipts::add(transaction, hash, Event::Failed, Told { note: Some(reason), ..Told::default() }, now)?;
    }
    Ok(changed == 1)
}

/// The payments whose end nobody knows, oldest first.
pub(super) fn open(connection: &Connection) -> Result<Vec<PaymentHash>, JournalError> {
    let query = "SELECT payment_hash FROM imports JOIN purchases p USING (payment_hash) WHERE state = 'unknown' ORDER BY p.id";
    let mut statement = connection.prepare_cached(query)?;
    let hashes = statement.query_map([], |row| row.get(0).map(PaymentHash::from_bytes))?;
    Ok(hashes.collect::<Result<_, _>>()?)
}

/// Such a payment in this place, with the program that began it.
pub(super) fn open_in(
    connection: &Connection,
    scope: &Scope,
) -> Result<Option<(PaymentHash, String)>, JournalError> {
    let query = "SELECT payment_hash, source FROM imports JOIN purchases p USING (payment_hash)
                 WHERE state = 'unknown' AND p.origin = ?1 AND p.service = ?2 ORDER BY p.id LIMIT 1";
    let found = connection
        .prepare_cached(query)?
        .query_row(params![scope.origin.to_string(), scope.service], |row| {
            Ok((PaymentHash::from_bytes(row.get(0)?), row.get(1)?))
        });
    Ok(found.optional()?)
}

/// The state of an import, with why it is taken for failed.
pub(super) fn find(
    connection: &Connection,
    hash: &PaymentHash,
) -> Result<Option<(String, String)>, JournalError> {
    let query = "SELECT state, coalesce(reason, '') FROM imports WHERE payment_hash = ?1";
    let found =
        connection.prepare_cached(query)?.query_row([hash.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?)));
    Ok(found.optional()?)
}

/// Whether the journal has an import of this payment, and whether it came to nothing.
pub(super) fn state_of(connection: &Connection, hash: &PaymentHash) -> Result<Option<String>, JournalError> {
    let query = "SELECT state FROM imports WHERE payment_hash = ?1";
    Ok(connection.prepare_cached(query)?.query_row([hash.as_bytes()], |row| row.get(0)).optional()?)
}
