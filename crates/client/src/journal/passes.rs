//! Which credential to show where. Wrong guesses cost a round trip, never money: what is refused in one place may still
//! be good in another, so a refusal is kept per path. Only the service that sold a token can declare it dead, and only
//! where it has accepted it before.

use farebox_protocol::{Macaroon, PaymentHash, Preimage, Sale, Timestamp};
use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, params};

use super::receipts::{self, Event, Told};
use super::rows::{PURCHASE, read_hash, read_scheme, read_scope};
use super::{JournalError, Want, integer};
use crate::purchase::Note;
use crate::{Origin, Pass, Scope};

/// No more credentials than this are tried for one request: each wrong one sends the request's body once more.
const CANDIDATES_MAX: usize = 3;

/// Nor, with those that others have bought meanwhile, more than this.
const SHOWN_MAX: usize = 8;

/// Paid, not dead, not over by its own words. `?` is the present moment.
const ALIVE: &str = "coalesce(o.state, i.state) = 'settled' AND p.dead_at IS NULL AND (p.valid_until IS NULL OR p.valid_until > ?)";

/// The newest first; what another program has bought comes last until it was honoured. Only the first few are looked at, and a file
/// with any number of credentials in it must not keep what was bought here from being found, and so have it bought again.
const FIRST: &str = "ORDER BY (i.payment_hash IS NOT NULL AND p.honoured_at IS NULL), p.id DESC LIMIT 64";

/// The credentials to try at `origin` for `path`, the most likely first.
///
/// First what has worked for this very path, then for its nearest relatives, then what was paid for and has not been
/// honoured anywhere yet, then the newest. What was refused for this path is left out, unless it has never been honoured
/// at all: paid for is paid for, and the server may have come to its senses.
pub(super) fn candidates(
    connection: &Connection,
    origin: &Origin,
    path: &str,
    now: Timestamp,
) -> Result<Vec<Pass>, JournalError> {
    let query = format!("{PURCHASE} WHERE {ALIVE} AND p.origin = ? {FIRST}");
    let mut statement = connection.prepare_cached(&query)?;
    let rows = statement
        .query_map(params![integer(now.secs()), origin.to_string()], |row| Ok(read_pass(row)))?
        .map(|row| row?);
    let mut ranked = Vec::new();
    for (age, pass) in rows.enumerate() {
        let pass = pass?;
        let kinship = kinship(connection, &pass.payment_hash(), path)?;
        match kinship {
            Kinship::Refused if pass.honoured => {}
            _ => ranked.push((kinship.rank(), age, pass)),
        }
    }
    ranked.sort_by_key(|(rank, age, _)| (std::cmp::Reverse(*rank), *age));
    Ok(ranked.into_iter().map(|(.., pass)| pass).take(CANDIDATES_MAX).collect())
}

/// A credential of the same scope that this request has not shown yet, or that was honoured after it was shown.
pub(super) fn to_share(
    transaction: &Transaction<'_>,
    want: &Want,
    now: Timestamp,
) -> Result<Option<Pass>, JournalError> {
    if want.tried.len() >= SHOWN_MAX {
        return Ok(None);
    }
    for pass in alive_in(transaction, &want.scope, now)? {
        let hash = pass.payment_hash();
        let shown =
            want.tried.iter().any(|(tried, honoured)| *tried == hash && (*honoured || !pass.honoured));
        let refused = pass.honoured && matches!(kinship(transaction, &hash, &want.path)?, Kinship::Refused);
        if !shown && !refused {
            return Ok(Some(pass));
        }
    }
    Ok(None)
}

/// The purchases of this scope that were paid and never honoured.
///
/// One that is over by its own words doesn't count, unless it was shown and refused: the server chooses how long its
/// tokens last, and one that sells them too short must not be paid for each.
pub(super) fn never_honoured(
    transaction: &Transaction<'_>,
    scope: &Scope,
    now: Timestamp,
) -> Result<Vec<PaymentHash>, JournalError> {
    let mut statement = transaction.prepare_cached(
        "SELECT p.payment_hash FROM purchases p LEFT JOIN outgoing_payments o USING (payment_hash)
         LEFT JOIN imports i USING (payment_hash)
         WHERE (o.state = 'settled' OR (i.state = 'settled' AND i.was_pending))
               AND p.dead_at IS NULL AND p.honoured_at IS NULL
               AND p.origin = ?1 AND p.service = ?2
               AND (p.valid_until IS NULL OR p.valid_until > ?3
                    OR EXISTS (SELECT 1 FROM answers a WHERE a.payment_hash = p.payment_hash))
         ORDER BY p.id DESC",
    )?;
    let place = params![scope.origin.to_string(), scope.service, integer(now.secs())];
    let hashes = statement.query_map(place, |row| row.get(0).map(PaymentHash::from_bytes))?;
    Ok(hashes.collect::<Result<_, _>>()?)
}

/// The buyer has written these off.
pub(super) fn give_up(
    transaction: &Transaction<'_>,
    hashes: &[PaymentHash],
    now: Timestamp,
) -> Result<(), JournalError> {
    hashes.iter().try_for_each(|hash| bury(transaction, hash, Event::Forgotten, Told::default(), now))
}

/// The credential that a payment bought, dead or alive.
pub(super) fn of(connection: &Connection, hash: &PaymentHash) -> Result<Option<Pass>, JournalError> {
    let query = format!("{PURCHASE} WHERE coalesce(o.state, i.state) = 'settled' AND p.payment_hash = ?1");
    let pass = connection.query_row(&query, [hash.as_bytes()], |row| Ok(read_pass(row)));
    pass.optional()?.transpose()
}

/// The buyer wants it shown nowhere any more.
pub(super) fn forget(
    transaction: &Transaction<'_>,
    hash: &PaymentHash,
    now: Timestamp,
) -> Result<bool, JournalError> {
    let changed = transaction.execute(
        "UPDATE purchases SET dead_at = ?1 WHERE payment_hash = ?2 AND dead_at IS NULL
         AND (EXISTS (SELECT 1 FROM outgoing_payments o
                      WHERE o.payment_hash = purchases.payment_hash AND o.state = 'settled')
              OR EXISTS (SELECT 1 FROM imports i WHERE i.payment_hash = purchases.payment_hash AND i.state = 'settled'))",
        params![integer(now.secs()), hash.as_bytes()],
    )?;
    if changed == 1 {
        receipts::add(transaction, hash, Event::Forgotten, Told::default(), now)?;
    }
    Ok(changed == 1)
}

/// Whether an answer says nothing that isn't written down: only what was last said of this credential for this very path counts.
/// What may end a credential is never known.
pub(super) fn is_known(connection: &Connection, note: &Note, path: &str) -> Result<bool, JournalError> {
    let (hash, honoured) = match note {
        Note::Honoured(hash) => (hash, true),
        Note::Refused(hash) => (hash, false),
        Note::Spent(_) => return Ok(false),
    };
    let query =
        "SELECT EXISTS (SELECT 1 FROM answers WHERE payment_hash = ?1 AND path = ?2 AND honoured = ?3)";
    Ok(connection
        .prepare_cached(query)?
        .query_row(params![hash.as_bytes(), path, honoured], |row| row.get(0))?)
}

/// Keeps what an answer said about a credential. `told` is what else it said.
pub(super) fn note(
    transaction: &Transaction<'_>,
    note: &Note,
    path: &str,
    told: Told<'_>,
    now: Timestamp,
) -> Result<(), JournalError> {
    let now_secs = integer(now.secs());
    match note {
        Note::Honoured(hash) => {
            answered(transaction, hash, path, 1, now_secs)?;
            transaction.execute(
                "UPDATE purchases SET honoured_at = ?1 WHERE payment_hash = ?2",
                params![now_secs, hash.as_bytes()],
            )?;
            Ok(receipts::add(transaction, hash, Event::Served, told, now)?)
        }
        Note::Refused(hash) => {
            answered(transaction, hash, path, 0, now_secs)?;
            Ok(receipts::add(transaction, hash, Event::Refused, told, now)?)
        }
        // A dearer tier of the same service may refuse what a cheaper one accepts elsewhere: only where it has been
        // honoured before does a refusal mean that it is over.
        Note::Spent(hash) => {
            let was_good_here = kinship(transaction, hash, path)? == Kinship::Same;
            answered(transaction, hash, path, 0, now_secs)?;
            match was_good_here {
                true => bury(transaction, hash, Event::Ended, told, now),
                false => Ok(receipts::add(transaction, hash, Event::Refused, told, now)?),
            }
        }
    }
}

fn answered(
    transaction: &Transaction<'_>,
    hash: &PaymentHash,
    path: &str,
    honoured: i64,
    now: i64,
) -> Result<(), JournalError> {
    transaction.execute(
        "INSERT INTO answers (payment_hash, path, honoured, at) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (payment_hash, path) DO UPDATE SET honoured = ?3, at = ?4",
        params![hash.as_bytes(), path, honoured, now],
    )?;
    Ok(())
}

/// What it means that a seller honours a credential no more: of one that was bought for so many uses that they are gone, of a
/// pass that it is over for another reason. A token that doesn't tell may be either; without an end of its own it was for uses.
fn how_ended(transaction: &Transaction<'_>, hash: &PaymentHash) -> Result<&'static str, JournalError> {
    let query = "SELECT token, valid_until IS NOT NULL FROM purchases WHERE payment_hash = ?1";
    let (token, has_end): (String, bool) =
        transaction.query_row(query, [hash.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let macaroon = Macaroon::from_base64(&token).or_else(|_| Macaroon::from_hex(&token)).ok();
    let is_used = match macaroon.as_ref().and_then(Sale::of) {
        Some(sale) => sale.terms.offer.is_counted(),
        None => !has_end,
    };
    Ok(if is_used { "used_up" } else { "refused" })
}

fn bury(
    transaction: &Transaction<'_>,
    hash: &PaymentHash,
    why: Event,
    told: Told<'_>,
    now: Timestamp,
) -> Result<(), JournalError> {
    let ended = match why {
        Event::Ended => Some(how_ended(transaction, hash)?),
        _ => None,
    };
    transaction.execute(
        "UPDATE purchases SET dead_at = ?1, ended = ?3 WHERE payment_hash = ?2",
        params![integer(now.secs()), hash.as_bytes(), ended],
    )?;
    Ok(receipts::add(transaction, hash, why, told, now)?)
}

fn alive_in(transaction: &Transaction<'_>, scope: &Scope, now: Timestamp) -> Result<Vec<Pass>, JournalError> {
    let query = format!("{PURCHASE} WHERE {ALIVE} AND p.origin = ? AND p.service = ? {FIRST}");
    let mut statement = transaction.prepare_cached(&query)?;
    let rows = statement
        .query_map(params![integer(now.secs()), scope.origin.to_string(), scope.service], |row| {
            Ok(read_pass(row))
        })?;
    rows.map(|row| row?).collect()
}

fn read_pass(row: &Row<'_>) -> Result<Pass, JournalError> {
    let hash = read_hash(row)?;
    let preimage = Preimage::from_bytes(row.get("preimage")?);
    if !preimage.pays(&hash) {
        return Err(JournalError::Corrupt { hash, what: "its preimage belongs to another payment" });
    }
    Ok(Pass {
        scope: read_scope(row)?,
        scheme: read_scheme(row)?,
        token: row.get("token")?,
        preimage,
        // What another program has held counts as good until it is refused, and then as refused: nothing of ours is lost.
        honoured: row.get::<_, Option<u64>>("honoured_at")?.is_some() || is_brought(row)?,
    })
}

/// Whether another program has bought it and known that it was paid.
fn is_brought(row: &Row<'_>) -> Result<bool, rusqlite::Error> {
    Ok(row.get::<_, Option<bool>>("was_pending")? == Some(false))
}

/// How near a path is to those for which a credential has been answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kinship {
    /// It was honoured for this very path.
    Same,
    /// It was honoured for a path that begins with this many of the same segments.
    Near(usize),
    /// It was refused for this path.
    Refused,
}

impl Kinship {
    const fn rank(self) -> usize {
        match self {
            Self::Same => usize::MAX,
            Self::Near(segments) => segments.saturating_add(1),
            Self::Refused => 0,
        }
    }
}

fn kinship(connection: &Connection, hash: &PaymentHash, path: &str) -> Result<Kinship, JournalError> {
    let mut statement = connection.prepare_cached(
        "SELECT path, honoured FROM answers WHERE payment_hash = ?1 ORDER BY at DESC LIMIT 64",
    )?;
    let answers: Vec<(String, bool)> = statement
        .query_map([hash.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    if let Some((_, honoured)) = answers.iter().find(|(answered, _)| answered == path) {
        return Ok(if *honoured { Kinship::Same } else { Kinship::Refused });
    }
    let common = |other: &str| other.split('/').zip(path.split('/')).take_while(|(a, b)| a == b).count();
    let nearest = answers.iter().filter(|(_, honoured)| *honoured).map(|(other, _)| common(other)).max();
    Ok(Kinship::Near(nearest.unwrap_or(0)))
}
