//! The buyer's receipts: what was agreed to, paid and served, as rows that are only ever added, each chained to the one before.
//!
//! A row is written in the transaction that changes what it tells of. It stands on its own: what it says of the purchase is
//! copied into it, so that nothing that happens later changes it. A row's link is the SHA-256 of the link before and of all
//! its fields. The chain shows that nothing was changed or left out *below* a link that somebody has noted; whoever can
//! write the file can write another chain, so a link that matters is kept elsewhere.
//!
//! Free requests write nothing, and neither does a credential that is used again: there are a few rows a purchase.

use farebox_lightning::outgoing::{Intent, IntentError, State};
use farebox_protocol::{Invoice, Macaroon, Msat, PaymentHash, Preimage, Timestamp};
use ring::digest::{Context, SHA256};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::{JournalError, budget, integer};

/// What has happened. The names are kept: they are in files and in other people's scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Agreed to, and its money kept aside. Nothing was sent by then.
    Recorded,
    /// The wallet has paid.
    Paid,
    /// The wallet could not pay.
    Failed,
    /// It was never sent.
    Unsent,
    /// Nobody knows whether it was paid.
    Unknown,
    /// The seller has honoured the credential for the first time.
    Served,
    /// The seller has refused the credential for the first time.
    Refused,
    /// The seller honours the credential no more where it did before.
    Ended,
    /// The buyer shows the credential nowhere any more.
    Forgotten,
    /// Another program has bought it.
    Imported,
}

impl Event {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Recorded => "recorded",
            Self::Paid => "paid",
            Self::Failed => "failed",
            Self::Unsent => "unsent",
            Self::Unknown => "unknown",
            Self::Served => "served",
            Self::Refused => "refused",
            Self::Ended => "ended",
            Self::Forgotten => "forgotten",
            Self::Imported => "imported",
        }
    }

    /// Whether there is one such row at most for a payment.
    const fn is_once(self) -> bool {
        !matches!(self, Self::Recorded | Self::Failed | Self::Unsent | Self::Unknown)
    }
}

/// One receipt. Holds no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReceiptRow {
    /// Its number; they begin with 1 and none is left out.
    pub number: u64,
    /// When it was written. No earlier than the row before, wherever the clock stood.
    pub at: Timestamp,
    /// `recorded`, `paid`, `failed`, `unsent`, `unknown`, `served`, `refused`, `ended`, `forgotten` or `imported`.
    pub event: String,
    /// The payment.
    pub payment_hash: PaymentHash,
    /// On whose behalf.
    pub label: Option<String>,
    /// What the caller calls the request.
    pub request_id: Option<String>,
    /// The method of the request that bought it.
    pub method: String,
    /// Its path, without the query.
    pub path: String,
    /// Who sold.
    pub origin: String,
    /// The service, where the token names one.
    pub service: String,
    /// The scheme of the challenge.
    pub scheme: String,
    /// The node that is paid, where the invoice is known.
    pub payee: Option<String>,
    /// The price.
    pub amount: Option<Msat>,
    /// What the route cost, once that is known.
    pub fee: Option<Msat>,
    /// The wallet.
    pub wallet: Option<String>,
    /// The rule of the policy that let it.
    pub rule: Option<String>,
    /// The consent that it used.
    pub approval: Option<String>,
    /// The status of the answer that `served`, `refused` or `ended` tells of.
    pub status: Option<u16>,
    /// How long that answer said its body is.
    pub bytes: Option<u64>,
    /// The token's identifier hash, by which the seller's books name it, where the token can be read.
    pub credential: Option<String>,
    /// Why, in words.
    pub note: Option<String>,
    /// The link of the chain: over all of the above and the link before.
    pub link: [u8; 32],
}

/// What the chain is found to be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verified {
    /// How many rows there are.
    pub rows: u64,
    /// The last link. Noted elsewhere, it tells later that nothing before it has changed.
    pub head: Option<[u8; 32]>,
    /// Every row that breaks the chain or contradicts the journal, and every payment without its receipt.
    pub broken: Vec<Broken>,
}

/// What is wrong in one place.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Broken {
    /// The row, or the one that should stand there.
    pub row: Option<u64>,
    /// The payment.
    pub payment_hash: Option<PaymentHash>,
    /// What is wrong.
    pub what: &'static str,
}

/// What only this event knows.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Told<'a> {
    pub(crate) status: Option<u16>,
    pub(crate) bytes: Option<u64>,
    pub(crate) note: Option<&'a str>,
}

/// Begins every link, so that it can be nothing else.
const DOMAIN: &[u8] = b"farebox buyer's receipt v1";

/// The tables: rows that can't be changed by mistake. A purchase keeps what its receipts say of it.
pub(super) const TABLES: &str = "
CREATE TABLE receipts (
    number       INTEGER PRIMARY KEY,
    at           INTEGER NOT NULL,
    event        TEXT NOT NULL,
    payment_hash BLOB NOT NULL CHECK (length(payment_hash) = 32),
    label        TEXT,
    request_id   TEXT,
    method       TEXT NOT NULL,
    path         TEXT NOT NULL,
    origin       TEXT NOT NULL,
    service      TEXT NOT NULL,
    scheme       TEXT NOT NULL,
    payee        TEXT,
    amount_msat  INTEGER,
    fee_msat     INTEGER,
    wallet       TEXT,
    rule         TEXT,
    approval     TEXT,
    status       INTEGER,
    bytes        INTEGER,
    credential   TEXT,
    note         TEXT,
    link         BLOB NOT NULL CHECK (length(link) = 32)
) STRICT;
CREATE INDEX receipts_payment ON receipts (payment_hash, event);
CREATE TRIGGER receipts_stay BEFORE UPDATE ON receipts BEGIN SELECT RAISE(ABORT, 'receipts are only added to'); END;
CREATE TRIGGER receipts_remain BEFORE DELETE ON receipts BEGIN SELECT RAISE(ABORT, 'receipts are only added to'); END;

ALTER TABLE purchases ADD COLUMN payee TEXT;
ALTER TABLE purchases ADD COLUMN credential TEXT;
ALTER TABLE purchases ADD COLUMN request_id TEXT;
";

/// What a token's seller calls it in their books.
pub(super) fn credential_of(token: &str) -> Option<String> {
    let macaroon = Macaroon::from_base64(token).or_else(|_| Macaroon::from_hex(token)).ok()?;
    Some(macaroon.identifier().ok()?.hash().to_string())
}

/// Adds a row, unless it would say nothing new.
pub(super) fn add(
    connection: &Connection,
    hash: &PaymentHash,
    event: Event,
    told: Told<'_>,
    now: Timestamp,
) -> Result<(), rusqlite::Error> {
    if is_said(connection, hash, event)? {
        return Ok(());
    }
    let (number, last_at, before) = last(connection)?;
    let facts = "SELECT p.label, p.request_id, p.method, p.path, p.origin, p.service, p.scheme, p.payee, p.rule, p.credential,
                        coalesce(o.amount_msat, i.amount_msat) AS amount_msat, coalesce(o.fee_msat, i.fee_msat) AS fee_msat,
                        o.wallet,
                        (SELECT a.id FROM approvals a WHERE a.used_by = p.payment_hash LIMIT 1) AS approval
                 FROM purchases p LEFT JOIN outgoing_payments o USING (payment_hash)
                 LEFT JOIN imports i USING (payment_hash) WHERE p.payment_hash = ?1";
    let row = connection.prepare_cached(facts)?.query_row([hash.as_bytes()], |row| {
        let amount: Option<i64> = row.get("amount_msat")?;
        let fee: Option<i64> = row.get("fee_msat")?;
        Ok(ReceiptRow {
            number: number.saturating_add(1),
            at: now.max(last_at),
            event: event.name().to_owned(),
            payment_hash: *hash,
            label: row.get("label")?,
            request_id: row.get("request_id")?,
            method: row.get("method")?,
            path: row.get("path")?,
            origin: row.get("origin")?,
            service: row.get("service")?,
            scheme: row.get("scheme")?,
            payee: row.get("payee")?,
            amount: amount.map(natural).map(Msat::new),
            fee: fee.map(natural).map(Msat::new),
            wallet: row.get("wallet")?,
            rule: row.get("rule")?,
            approval: row.get("approval")?,
            status: told.status,
            bytes: told.bytes.map(|bytes| natural(integer(bytes))),
            credential: row.get("credential")?,
            note: told.note.map(str::to_owned),
            link: [0; 32],
        })
    })?;
    let link = row.linked_to(before.as_ref());
    let number_at = (integer(row.number), integer(row.at.secs()));
    connection
        .prepare_cached(
            "INSERT INTO receipts (number, at, event, payment_hash, label, request_id, method, path, origin, service, scheme,
                                   payee, amount_msat, fee_msat, wallet, rule, approval, status, bytes, credential, note, link)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22)",
        )?
        .execute(params![
            number_at.0,
            number_at.1,
            row.event,
            hash.as_bytes(),
            row.label,
            row.request_id,
            row.method,
            row.path,
            row.origin,
            row.service,
            row.scheme,
            row.payee,
            row.amount.map(|amount| integer(amount.get())),
            row.fee.map(|fee| integer(fee.get())),
            row.wallet,
            row.rule,
            row.approval,
            row.status,
            row.bytes.map(integer),
            row.credential,
            row.note,
            link,
        ])?;
    Ok(())
}

/// Adds what has become of a payment, beside the payment's own row.
pub(super) fn witness(connection: &Connection, payment: &Intent, now: Timestamp) -> Result<(), IntentError> {
    let (event, note) = match &payment.state {
        State::Recorded | State::Sent => return Ok(()),
        State::Settled { .. } => (Event::Paid, None),
        State::Failed(failure) if failure.unsent => (Event::Unsent, Some(failure.reason.as_str())),
        State::Failed(failure) => (Event::Failed, Some(failure.reason.as_str())),
        State::Unknown { reason } => (Event::Unknown, Some(reason.as_str())),
    };
    Ok(add(connection, &payment.hash, event, Told { note, ..Told::default() }, now)?)
}

/// Whether the chain says it already: once for all, or as the latest word on this payment.
fn is_said(connection: &Connection, hash: &PaymentHash, event: Event) -> Result<bool, rusqlite::Error> {
    let query = match event.is_once() {
        true => "SELECT EXISTS (SELECT 1 FROM receipts WHERE payment_hash = ?1 AND event = ?2)",
        false => {
            "SELECT coalesce((SELECT event FROM receipts WHERE payment_hash = ?1 ORDER BY number DESC LIMIT 1) = ?2, false)"
        }
    };
    connection.prepare_cached(query)?.query_row(params![hash.as_bytes(), event.name()], |row| row.get(0))
}

/// Number, time and link of the last row.
fn last(connection: &Connection) -> Result<(u64, Timestamp, Option<[u8; 32]>), rusqlite::Error> {
    let query = "SELECT number, at, link FROM receipts ORDER BY number DESC LIMIT 1";
    let found = connection.prepare_cached(query)?.query_row([], |row| {
        Ok((natural(row.get(0)?), Timestamp::from_secs(natural(row.get(1)?)), Some(row.get(2)?)))
    });
    Ok(found.optional()?.unwrap_or((0, Timestamp::from_secs(0), None)))
}

/// Rows with numbers above `after`, oldest first, at most `most`.
pub(super) fn list(connection: &Connection, after: u64, most: u32) -> Result<Vec<ReceiptRow>, JournalError> {
    let mut statement =
        connection.prepare_cached("SELECT * FROM receipts WHERE number > ?1 ORDER BY number LIMIT ?2")?;
    let rows = statement.query_map(params![integer(after), most], read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The latest rows, newest first: of payments whose credential was never honoured only, if that is asked.
pub(super) fn latest(
    connection: &Connection,
    most: u32,
    is_unserved: bool,
) -> Result<Vec<ReceiptRow>, JournalError> {
    let unserved = "AND event = 'paid' AND NOT EXISTS (SELECT 1 FROM receipts s
                    WHERE s.payment_hash = r.payment_hash AND s.event IN ('served', 'forgotten'))";
    let query = format!(
        "SELECT * FROM receipts r WHERE true {} ORDER BY number DESC LIMIT ?1",
        if is_unserved { unserved } else { "" }
    );
    let mut statement = connection.prepare(&query)?;
    let rows = statement.query_map([most], read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Recomputes the chain and holds it against the journal. `noted` are links that must be in it.
pub(super) fn verify(connection: &Connection, noted: &[[u8; 32]]) -> Result<Verified, JournalError> {
    let mut verified = Verified { rows: 0, head: None, broken: Vec::new() };
    let mut missing = noted.to_vec();
    let mut statement = connection.prepare("SELECT * FROM receipts ORDER BY number")?;
    let mut rows = statement.query([])?;
    let mut last_at = Timestamp::from_secs(0);
    while let Some(row) = rows.next()? {
        let expected = verified.rows.saturating_add(1);
        let Ok(row) = read(row) else {
            verified.broken.push(Broken {
                row: Some(expected),
                payment_hash: None,
                what: "it can't be read",
            });
            verified.rows = expected;
            continue;
        };
        let mut broken = |what| {
            verified.broken.push(Broken {
                row: Some(row.number),
                payment_hash: Some(row.payment_hash),
                what,
            });
        };
        if row.number != expected {
            broken("rows before it are missing");
        }
        if row.at < last_at {
            broken("it is older than the row before");
        }
        if row.link != row.linked_to(verified.head.as_ref()) {
            broken("its link doesn't fit: it, or a row before it, was changed");
        }
        if [Event::Paid, Event::Imported].iter().any(|event| event.name() == row.event)
            && let Some(what) = contradicted(connection, &row)?
        {
            broken(what);
        }
        missing.retain(|link| *link != row.link);
        (verified.rows, verified.head, last_at) = (row.number, Some(row.link), row.at);
    }
    let unreceipted =
        "SELECT p.payment_hash FROM purchases p LEFT JOIN outgoing_payments o USING (payment_hash)
                       LEFT JOIN imports i USING (payment_hash)
                       WHERE coalesce(o.state, i.state) = 'settled' AND NOT EXISTS (SELECT 1 FROM receipts r
                       WHERE r.payment_hash = p.payment_hash AND r.event IN ('paid', 'imported'))";
    let mut statement = connection.prepare(unreceipted)?;
    let hashes = statement.query_map([], |row| row.get(0).map(PaymentHash::from_bytes))?;
    for hash in hashes {
        let what = "it was paid, and its receipt is missing";
        verified.broken.push(Broken { row: None, payment_hash: Some(hash?), what });
    }
    let gone = "a link that was noted is not in the chain";
    verified.broken.extend(missing.iter().map(|_| Broken { row: None, payment_hash: None, what: gone }));
    Ok(verified)
}

/// What the journal says against a receipt for a payment.
fn contradicted(connection: &Connection, row: &ReceiptRow) -> Result<Option<&'static str>, rusqlite::Error> {
    let query = "SELECT preimage, amount_msat, fee_msat FROM outgoing_payments WHERE payment_hash = ?1
                 UNION ALL SELECT preimage, amount_msat, fee_msat FROM imports WHERE payment_hash = ?1";
    let found = connection.prepare_cached(query)?.query_row([row.payment_hash.as_bytes()], |row| {
        let msat = |at| Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(at)?.map(natural).map(Msat::new));
        Ok((row.get::<_, Option<[u8; 32]>>(0)?, msat(1)?, msat(2)?))
    });
    Ok(match found.optional()? {
        None => Some("the journal knows no such payment"),
        Some((None, ..)) => Some("the journal has no proof of this payment"),
        Some((Some(preimage), ..)) if !Preimage::from_bytes(preimage).pays(&row.payment_hash) => {
            Some("the proof in the journal is not of this payment")
        }
        Some((_, amount, fee)) if row.amount != amount || row.fee != fee => {
            Some("the journal has another amount or fee")
        }
        Some(_) => None,
    })
}

/// Rows for what was bought before there were receipts: what the journal says of it, as far as it does. They are dated by
/// the latest moment that it knows.
pub(super) fn carry_over(connection: &Connection) -> Result<(), JournalError> {
    let now = budget::latest(connection, Timestamp::from_secs(0))?;
    let mut statement = connection.prepare(
        "SELECT p.payment_hash, p.token, o.invoice, o.state, o.reason, o.updated_at, p.begun_at, p.honoured_at, p.dead_at
         FROM purchases p JOIN outgoing_payments o USING (payment_hash) ORDER BY p.id",
    )?;
    let mut rows = statement.query([])?;
    let mut update =
        connection.prepare("UPDATE purchases SET payee = ?2, credential = ?3 WHERE payment_hash = ?1")?;
    while let Some(row) = rows.next()? {
        let hash = PaymentHash::from_bytes(row.get(0)?);
        let (token, invoice): (String, String) = (row.get(1)?, row.get(2)?);
        let payee = Invoice::parse(&invoice).ok().map(|invoice| invoice.payee());
        update.execute(params![hash.as_bytes(), payee, credential_of(&token)])?;
        let event = match row.get::<_, String>(3)?.as_str() {
            "settled" => Event::Paid,
            "failed" => Event::Failed,
            "unsent" => Event::Unsent,
            "recorded" => Event::Recorded,
            _ => Event::Unknown,
        };
        let reason: Option<String> = row.get(4)?;
        let moments: [Option<u64>; 2] = [row.get(5)?, row.get(6)?];
        let begun = moments[1].unwrap_or_default();
        let note = match reason {
            Some(reason) => format!("from before the receipts, begun at {begun}: {reason}"),
            None => format!(
                "from before the receipts, begun at {begun}, in this state since {}",
                moments[0].unwrap_or(begun)
            ),
        };
        add(connection, &hash, event, Told { note: Some(&note), ..Told::default() }, now)?;
        let is_honoured = row.get::<_, Option<u64>>(7)?.is_some();
        // Which of the two it was, nobody has written down.
        let over = if is_honoured { Event::Ended } else { Event::Forgotten };
        for (column, event) in [(7, Event::Served), (8, over)] {
            if let Some(secs) = row.get::<_, Option<u64>>(column)? {
                let note = format!("from before the receipts, last at {secs}");
                add(connection, &hash, event, Told { note: Some(&note), ..Told::default() }, now)?;
            }
        }
    }
    Ok(())
}

impl ReceiptRow {
    /// Its link, behind that of the row before.
    fn linked_to(&self, before: Option<&[u8; 32]>) -> [u8; 32] {
        let mut context = Context::new(&SHA256);
        context.update(DOMAIN);
        context.update(before.unwrap_or(&[0; 32]));
        let mut field = |bytes: Option<&[u8]>| match bytes {
            // A field is its length and itself, so that two fields can't be cut in another place.
            Some(bytes) => {
                context.update(&[1]);
                context.update(&(bytes.len() as u64).to_be_bytes());
                context.update(bytes);
            }
            None => context.update(&[0]),
        };
        let number = |number: Option<u64>| number.map(u64::to_be_bytes);
        field(Some(&self.number.to_be_bytes()));
        field(Some(&self.at.secs().to_be_bytes()));
        field(Some(self.event.as_bytes()));
        field(Some(self.payment_hash.as_bytes()));
        for perhaps in [&self.label, &self.request_id] {
            field(perhaps.as_deref().map(str::as_bytes));
        }
        for always in [&self.method, &self.path, &self.origin, &self.service, &self.scheme] {
            field(Some(always.as_bytes()));
        }
        field(self.payee.as_deref().map(str::as_bytes));
        field(number(self.amount.map(Msat::get)).as_ref().map(<[u8; 8]>::as_slice));
        field(number(self.fee.map(Msat::get)).as_ref().map(<[u8; 8]>::as_slice));
        for perhaps in [&self.wallet, &self.rule, &self.approval] {
            field(perhaps.as_deref().map(str::as_bytes));
        }
        field(number(self.status.map(u64::from)).as_ref().map(<[u8; 8]>::as_slice));
        field(number(self.bytes).as_ref().map(<[u8; 8]>::as_slice));
        for perhaps in [&self.credential, &self.note] {
            field(perhaps.as_deref().map(str::as_bytes));
        }
        let mut link = [0; 32];
        link.copy_from_slice(context.finish().as_ref());
        link
    }
}

fn read(row: &Row<'_>) -> Result<ReceiptRow, rusqlite::Error> {
    let msat = |column| Ok::<_, rusqlite::Error>(row.get::<_, Option<u64>>(column)?.map(Msat::new));
    Ok(ReceiptRow {
        number: row.get("number")?,
        at: Timestamp::from_secs(row.get("at")?),
        event: row.get("event")?,
        payment_hash: PaymentHash::from_bytes(row.get("payment_hash")?),
        label: row.get("label")?,
        request_id: row.get("request_id")?,
        method: row.get("method")?,
        path: row.get("path")?,
        origin: row.get("origin")?,
        service: row.get("service")?,
        scheme: row.get("scheme")?,
        payee: row.get("payee")?,
        amount: msat("amount_msat")?,
        fee: msat("fee_msat")?,
        wallet: row.get("wallet")?,
        rule: row.get("rule")?,
        approval: row.get("approval")?,
        status: row.get("status")?,
        bytes: row.get("bytes")?,
        credential: row.get("credential")?,
        note: row.get("note")?,
        link: row.get("link")?,
    })
}

/// SQLite's integers are signed; ours are never negative.
fn natural(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
