//! The log of received money: rows begin with money, in the order in which it came, and are never changed.
//!
//! A row is unique by hash and amount, since LDK tells of one payment twice after a crash. So a second payment of the same
//! invoice is a row of its own only if it differs in amount: `ldk-node` 0.7 gives nothing else to tell it from a repetition.

use farebox_protocol::{Msat, PaymentHash, Timestamp};
use rusqlite::params;

use super::database::{Book, BookError, cursor, integer, msat, unsigned};
use crate::{Cursor, Incoming, Settlement};

impl Book {
    /// Books money that has arrived; on disk when this returns. Answers whether it is new.
    pub(super) fn book_received(
        &self,
        hash: PaymentHash,
        amount: Msat,
        at: Timestamp,
    ) -> Result<bool, BookError> {
        let newest = {
            let db = self.db();
            // Not `INSERT OR IGNORE`: that would also swallow a broken constraint other than the unique one.
            let rows = db.execute(
                "INSERT INTO received (hash, amount_msat, at) VALUES (?1, ?2, ?3)
                 ON CONFLICT (hash, amount_msat) DO NOTHING",
                params![hash.as_bytes(), integer(amount.get()), integer(at.secs())],
            )?;
            if rows == 0 {
                return Ok(false);
            }
            cursor(db.last_insert_rowid())
        };
        self.newest().send_replace(newest);
        Ok(true)
    }

    /// All that has arrived for one hash.
    pub(super) fn received(&self, hash: PaymentHash) -> Result<Incoming, BookError> {
        let (amount, at): (Option<i64>, Option<i64>) = self.db().query_row(
            "SELECT sum(amount_msat), min(at) FROM received WHERE hash = ?1",
            [hash.as_bytes()],
            |row| Ok((row.get(0)?, row.get(1)?)),
        )?;
        Ok(match amount.zip(at) {
            Some((amount, at)) => {
                Incoming::Settled { amount: msat(amount), at: Timestamp::from_secs(unsigned(at)) }
            }
            None => Incoming::Unpaid,
        })
    }

    /// The next settlements after a cursor, at most `limit`.
    pub(super) fn received_after(&self, after: Cursor, limit: u32) -> Result<Vec<Settlement>, BookError> {
        let db = self.db();
        let mut query = db.prepare_cached(
            "SELECT cursor, hash, amount_msat, at FROM received WHERE cursor > ?1 ORDER BY cursor LIMIT ?2",
        )?;
        let rows = query.query_map(params![integer(after.0), limit], |row| {
            Ok(Settlement {
                cursor: cursor(row.get(0)?),
                hash: PaymentHash::from_bytes(row.get(1)?),
                amount: msat(row.get(2)?),
                at: Timestamp::from_secs(unsigned(row.get(3)?)),
                description: None,
            })
        })?;
        rows.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: PaymentHash = PaymentHash::from_bytes([1; 32]);
    const AT: Timestamp = Timestamp::from_secs(1_000);

    #[test]
    fn the_same_payment_is_booked_once() {
        let book = Book::open(None).unwrap();
        assert!(book.book_received(HASH, Msat::new(10), AT).unwrap());
        assert!(!book.book_received(HASH, Msat::new(10), Timestamp::from_secs(1_001)).unwrap());
        assert_eq!(book.received(HASH).unwrap(), Incoming::Settled { amount: Msat::new(10), at: AT });
        assert_eq!(book.received_after(Cursor(0), 10).unwrap().len(), 1);
    }

    #[test]
    fn another_amount_for_the_same_hash_is_another_payment() {
        let book = Book::open(None).unwrap();
        book.book_received(HASH, Msat::new(10), AT).unwrap();
        assert!(book.book_received(HASH, Msat::new(30), AT).unwrap());
        assert_eq!(book.received(HASH).unwrap(), Incoming::Settled { amount: Msat::new(40), at: AT });
    }

    #[test]
    fn the_log_is_read_from_any_point_and_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let book = Book::open(Some(dir.path())).unwrap();
        for n in 1..=5 {
            book.book_received(PaymentHash::from_bytes([n; 32]), Msat::new(10), AT).unwrap();
        }
        let id = book.id().to_owned();
        drop(book);
        let book = Book::open(Some(dir.path())).unwrap();
        let rest = book.received_after(Cursor(3), 10).unwrap();
        assert_eq!(rest.iter().map(|row| row.cursor.0).collect::<Vec<_>>(), [4, 5]);
        assert_eq!(*book.newest().borrow(), Cursor(5));
        assert_eq!(book.id(), id);
    }

    #[test]
    fn every_new_book_has_a_name_of_its_own() {
        assert_ne!(Book::open(None).unwrap().id(), Book::open(None).unwrap().id());
    }
}
