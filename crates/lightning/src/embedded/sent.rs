//! The log of sent money: a row is on disk before LDK is asked to send, so that no row means "never sent".
//!
//! A `begun` row becomes `settled` or `failed` once; `settled` is for ever. A `failed` one may begin again.

use farebox_protocol::{Msat, PaymentHash, Preimage};
use rusqlite::{OptionalExtension as _, Row, params};

use super::database::{Book, BookError, integer, msat};

/// What the book says of a payment.
#[derive(Clone, Debug)]
pub(super) enum Sent {
    /// Handed to LDK, or about to be; no outcome yet.
    Begun,
    /// Paid.
    Settled {
        /// The proof.
        preimage: Preimage,
        /// What the route cost.
        fee: Msat,
    },
    /// Not paid, and LDK doesn't try any more.
    Failed(String),
}

/// A row of the book.
#[derive(Clone, Debug)]
pub(super) struct SentRow {
    pub(super) sent: Sent,
    /// Whether it was begun since the process started. What came before, LDK may still tell about.
    pub(super) this_run: bool,
}

/// Who may send now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Begin {
    /// The caller, for the first time or after a failure.
    First,
    /// The caller, although an earlier run may have sent already: only LDK's refusal of duplicates is between the two.
    Again,
    /// Nobody: another task of this run sends it, or it is paid.
    Wait,
}

impl Book {
    /// What the book says of a payment; `None` proves that it was never sent from this book's node.
    pub(super) fn sent(&self, hash: PaymentHash) -> Result<Option<SentRow>, BookError> {
        let query = "SELECT state, preimage, fee_msat, reason, run FROM sent WHERE hash = ?1";
        self.db().query_row(query, [hash.as_bytes()], |row| read(row, self.run())).optional()
    }

    /// Writes down that a payment is about to be sent, and answers who may send it.
    pub(super) fn begin(&self, hash: PaymentHash) -> Result<Begin, BookError> {
        let mut db = self.db();
        let tx = db.transaction()?;
        let row: Option<SentRow> = tx
            .query_row(
                "SELECT state, preimage, fee_msat, reason, run FROM sent WHERE hash = ?1",
                [hash.as_bytes()],
                |row| read(row, self.run()),
            )
            .optional()?;
        let begin = match row {
            None | Some(SentRow { sent: Sent::Failed(_), .. }) => Begin::First,
            Some(SentRow { sent: Sent::Begun, this_run: false }) => Begin::Again,
            Some(_) => return Ok(Begin::Wait),
        };
        tx.execute(
            "INSERT INTO sent (hash, run, state) VALUES (?1, ?2, 'begun')
             ON CONFLICT (hash) DO UPDATE SET run = excluded.run, state = 'begun', reason = NULL",
            params![hash.as_bytes(), self.run()],
        )?;
        tx.commit()?;
        Ok(begin)
    }

    /// Books that a payment is paid, whatever was thought of it before.
    pub(super) fn book_settled(
        &self,
        hash: PaymentHash,
        preimage: &Preimage,
        fee: Msat,
    ) -> Result<(), BookError> {
        self.db().execute(
            "INSERT INTO sent (hash, run, state, preimage, fee_msat) VALUES (?1, ?2, 'settled', ?3, ?4)
             ON CONFLICT (hash) DO UPDATE
             SET state = 'settled', preimage = excluded.preimage, fee_msat = excluded.fee_msat, reason = NULL
             WHERE state <> 'settled'",
            params![hash.as_bytes(), self.run(), preimage.expose_bytes(), integer(fee.get())],
        )?;
        self.tell(hash);
        Ok(())
    }

    /// Books that LDK has given up. A payment that is paid stays paid: LDK may tell of a failure after a success.
    pub(super) fn book_failed(&self, hash: PaymentHash, reason: &str) -> Result<(), BookError> {
        self.db().execute(
            "UPDATE sent SET state = 'failed', reason = ?2 WHERE hash = ?1 AND state = 'begun'",
            params![hash.as_bytes(), reason],
        )?;
        self.tell(hash);
        Ok(())
    }

    fn tell(&self, hash: PaymentHash) {
        // Nobody may be waiting; those who come later read the book first.
        let _ = self.outcomes().send(hash);
    }
}

fn read(row: &Row<'_>, this_run: &str) -> Result<SentRow, BookError> {
    let state: String = row.get(0)?;
    let sent = match state.as_str() {
        "settled" => Sent::Settled {
            preimage: Preimage::from_bytes(row.get(1)?),
            fee: msat(row.get::<_, Option<i64>>(2)?.unwrap_or(0)),
        },
        "failed" => Sent::Failed(row.get::<_, Option<String>>(3)?.unwrap_or_default()),
        // The schema allows one more.
        _ => Sent::Begun,
    };
    let run: String = row.get(4)?;
    Ok(SentRow { sent, this_run: run == this_run })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paid() -> (PaymentHash, Preimage) {
        let preimage = Preimage::from_bytes([7; 32]);
        (preimage.payment_hash(), preimage)
    }

    #[test]
    fn one_of_two_may_send() {
        let book = Book::open(None).unwrap();
        let (hash, _) = paid();
        assert!(book.sent(hash).unwrap().is_none());
        assert_eq!(book.begin(hash).unwrap(), Begin::First);
        assert_eq!(book.begin(hash).unwrap(), Begin::Wait);
    }

    #[test]
    fn a_payment_that_failed_may_begin_again() {
        let book = Book::open(None).unwrap();
        let (hash, _) = paid();
        book.begin(hash).unwrap();
        book.book_failed(hash, "no route").unwrap();
        assert!(
            matches!(book.sent(hash).unwrap().unwrap().sent, Sent::Failed(reason) if reason == "no route")
        );
        assert_eq!(book.begin(hash).unwrap(), Begin::First);
    }

    #[test]
    fn a_payment_that_is_paid_stays_paid() {
        let book = Book::open(None).unwrap();
        let (hash, preimage) = paid();
        book.begin(hash).unwrap();
        book.book_settled(hash, &preimage, Msat::new(3)).unwrap();
        book.book_failed(hash, "late").unwrap();
        assert_eq!(book.begin(hash).unwrap(), Begin::Wait);
        let row = book.sent(hash).unwrap().unwrap();
        assert!(matches!(row.sent, Sent::Settled { fee, .. } if fee == Msat::new(3)));
    }

    #[test]
    fn what_an_earlier_run_began_is_in_doubt() {
        let dir = tempfile::tempdir().unwrap();
        let (hash, _) = paid();
        Book::open(Some(dir.path())).unwrap().begin(hash).unwrap();
        let book = Book::open(Some(dir.path())).unwrap();
        assert!(!book.sent(hash).unwrap().unwrap().this_run);
        assert_eq!(book.begin(hash).unwrap(), Begin::Again);
        assert_eq!(book.begin(hash).unwrap(), Begin::Wait);
    }

    #[test]
    fn a_success_that_nobody_began_is_booked_too() {
        let book = Book::open(None).unwrap();
        let (hash, preimage) = paid();
        book.book_settled(hash, &preimage, Msat::ZERO).unwrap();
        assert_eq!(book.begin(hash).unwrap(), Begin::Wait);
    }
}
