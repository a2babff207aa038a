//! The lease of a scope: who may buy there. Of many tasks and processes exactly one pays; the others wait and share.
//!
//! Each taking counts the generation up. A payment is marked as sent only while the lease has the generation under which
//! the purchase was recorded, in the same transaction; so a holder that slept through the end of its lease pays nothing.

use std::time::Duration;

use farebox_protocol::Timestamp;
use rusqlite::{OptionalExtension as _, Transaction, params};

use super::{JournalError, integer};
use crate::holder::Holder;
use crate::pass::Scope;

/// How long a lease lasts unless it is renewed.
pub(crate) const TTL: Duration = Duration::from_secs(60);

/// The right to buy in one scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) scope: Scope,
    pub(crate) generation: i64,
}

/// Takes the lease, unless somebody holds it who may still be alive.
pub(super) fn take(
    transaction: &Transaction<'_>,
    scope: &Scope,
    holder: &Holder,
    now: Timestamp,
) -> Result<Option<Lease>, JournalError> {
    let origin = scope.origin.to_string();
    let held: Option<(i64, Option<String>, u64)> = transaction
        .query_row(
            "SELECT generation, holder, expires_at FROM leases WHERE origin = ?1 AND service = ?2",
            params![origin, scope.service],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )
        .optional()?;
    let generation = match held {
        Some((generation, holder, expires_at)) => {
            let alive = holder.is_some_and(|holder| !Holder::read(holder).is_gone());
            if alive && now < Timestamp::from_secs(expires_at) {
                return Ok(None);
            }
            generation.saturating_add(1)
        }
        None => 1,
    };
    transaction.execute(
        "INSERT INTO leases (origin, service, generation, holder, expires_at) VALUES (?1, ?2, ?3, ?4, ?5)
         ON CONFLICT (origin, service) DO UPDATE SET generation = ?3, holder = ?4, expires_at = ?5",
        params![origin, scope.service, generation, holder.as_str(), integer(now.saturating_add(TTL).secs())],
    )?;
    Ok(Some(Lease { scope: scope.clone(), generation }))
}

/// Puts the end off. `false` when the lease has gone to somebody else.
pub(super) fn renew(
    connection: &rusqlite::Connection,
    lease: &Lease,
    now: Timestamp,
) -> Result<bool, JournalError> {
    let renewed = connection.execute(
        "UPDATE leases SET expires_at = ?1
         WHERE origin = ?2 AND service = ?3 AND generation = ?4 AND holder IS NOT NULL",
        params![
            integer(now.saturating_add(TTL).secs()),
            lease.scope.origin.to_string(),
            lease.scope.service,
            lease.generation
        ],
    )?;
    Ok(renewed == 1)
}

/// Gives the lease back. The generation stays, so that it is never used twice.
pub(super) fn release(connection: &rusqlite::Connection, lease: &Lease) -> Result<(), JournalError> {
    connection.execute(
        "UPDATE leases SET holder = NULL WHERE origin = ?1 AND service = ?2 AND generation = ?3",
        params![lease.scope.origin.to_string(), lease.scope.service, lease.generation],
    )?;
    Ok(())
}

/// Whether this generation still holds.
pub(super) fn holds(transaction: &Transaction<'_>, lease: &Lease) -> Result<bool, rusqlite::Error> {
    transaction.query_row(
        "SELECT EXISTS (SELECT 1 FROM leases
         WHERE origin = ?1 AND service = ?2 AND generation = ?3 AND holder IS NOT NULL)",
        params![lease.scope.origin.to_string(), lease.scope.service, lease.generation],
        |row| row.get(0),
    )
}
