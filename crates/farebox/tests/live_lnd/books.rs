//! What a gateway has on its books, read as an auditor would: from the file, while it runs or not.

use std::{fmt, time::Duration};

use farebox_protocol::PaymentHash;
use farebox_tests::Seller;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _};
use tokio::time::{interval, timeout};

/// How long a settlement may take to be booked, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often to look.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// A purchase on the books.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) service: Option<String>,
    pub(crate) price_msat: Option<u64>,
    pub(crate) paid_msat: u64,
    pub(crate) payments: u64,
    pub(crate) surplus_msat: u64,
}

/// One payment of the price, for the service that all these tests sell.
pub(crate) fn sold_once() -> Row {
    Row {
        service: Some("api".into()),
        price_msat: Some(10_000),
        paid_msat: 10_000,
        payments: 1,
        surplus_msat: 0,
    }
}

fn open(seller: &Seller) -> Connection {
    let file = seller.dir.path().join("state/books.sqlite");
    Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap()
}

/// The purchase with this hash.
pub(crate) fn row(seller: &Seller, hash: PaymentHash) -> Option<Row> {
    let query = "SELECT service, price_msat, paid_msat, payments, surplus_msat FROM purchase WHERE hash = ?1";
    let read = |row: &rusqlite::Row<'_>| {
        Ok(Row {
            service: row.get(0)?,
            price_msat: row.get(1)?,
            paid_msat: row.get(2)?,
            payments: row.get(3)?,
            surplus_msat: row.get(4)?,
        })
    };
    open(seller).query_row(query, [hash.as_bytes()], read).optional().unwrap()
}

/// How many payments have been booked, and how many purchases there are.
pub(crate) fn counts(seller: &Seller) -> (u64, u64) {
    let query = "SELECT (SELECT count(*) FROM settlement), (SELECT count(*) FROM purchase)";
    open(seller).query_row(query, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap()
}

/// How far the node's settlements have been read.
pub(crate) fn cursor(seller: &Seller) -> u64 {
    let query = "SELECT coalesce(max(cursor), 0) FROM node_cursor";
    open(seller).query_row(query, [], |row| row.get(0)).unwrap()
}

/// Waits until it is so.
pub(crate) async fn until<T: fmt::Debug + PartialEq>(want: T, look: impl Fn() -> T) {
    let mut last = look();
    let waited = timeout(PATIENCE, async {
        let mut next = interval(LOOK_EVERY);
        while last != want {
            next.tick().await;
            last = look();
        }
    });
    let waited = waited.await;
    assert!(waited.is_ok(), "waited {} s for {want:?}, there is {last:?}", PATIENCE.as_secs());
}
