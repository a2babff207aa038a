use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use farebox_lightning::Settlement;
use farebox_protocol::{IdentifierHash, Label, Msat, Offer};

use super::*;
use crate::store::conformance;

fn directory() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("books.sqlite");
    (dir, path)
}

#[track_caller]
fn refused(path: &Path) -> String {
    match SqliteStore::open(path) {
        Ok(_) => panic!("opened"),
        Err(error) => error.to_string(),
    }
}

fn settlement(cursor: u64) -> Settlement {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&cursor.to_le_bytes());
    let hash = PaymentHash::from_bytes(bytes);
    Settlement {
        cursor: Cursor(cursor),
        hash,
        amount: Msat::new(1_000),
        at: Timestamp::from_secs(1),
        description: None,
    }
}

async fn settle(store: &SqliteStore, settlements: Vec<Settlement>) -> Result<Booked, StoreError> {
    let to = settlements.iter().map(|settlement| settlement.cursor).max().unwrap();
    store.settle("n", settlements.into_iter().map(Arrival::from).collect(), to).await
}

fn revocation(number: u8) -> Revocation {
    let identifier_hash = IdentifierHash::from_bytes([number; 32]);
    Revocation { identifier_hash, at: Timestamp::from_secs(1), reason: String::new() }
}

#[tokio::test]
async fn it_keeps_the_laws_of_the_books() {
    let (dir, _) = directory();
    let count = AtomicU32::new(0);
    conformance::check(|| {
        let path = dir.path().join(format!("{}.sqlite", count.fetch_add(1, Ordering::Relaxed)));
        async move { Arc::new(SqliteStore::open(&path).unwrap()) as Arc<dyn Store> }
    })
    .await;
}

#[tokio::test]
async fn books_in_memory_keep_them_too() {
    conformance::check(async || Arc::new(SqliteStore::in_memory().unwrap()) as Arc<dyn Store>).await;
}

#[tokio::test]
async fn books_of_an_older_farebox_are_brought_up_to_date() {
    let (_dir, path) = directory();
    file::create_private(&path).unwrap();
    let mut old = file::connect(&path).unwrap();
    schema::migrate_to(&mut old, 1).unwrap();
    old.execute_batch(
        "INSERT INTO purchase (hash, token_id, identifier_hash, service, tier, terms, price_msat, presented_at)
             VALUES (zeroblob(32), zeroblob(32), zeroblob(32), 'weather', 0, 'v1;offer=forever;msat=7', 7, 1)",
    )
    .unwrap();
    drop(old);
    let store = SqliteStore::open(&path).unwrap();
    let kept = store.purchase(PaymentHash::from_bytes([0; 32])).await.unwrap().unwrap();
    assert_eq!(kept.sold.unwrap().terms.price, Msat::new(7));
    assert_eq!(store.audit().await.unwrap().breaches, [""; 0]);
    drop(store);
    let format = schema::format(&file::connect(&path).unwrap()).unwrap();
    assert_eq!(format, schema::FORMAT);
}

#[tokio::test]
async fn books_from_before_months_were_counted_lose_nothing_and_have_used_none() {
    let (_dir, path) = directory();
    file::create_private(&path).unwrap();
    let mut old = file::connect(&path).unwrap();
    schema::migrate_to(&mut old, 3).unwrap();
    old.execute_batch(
        "INSERT INTO purchase (hash, token_id, identifier_hash, service, tier, terms, price_msat, presented_at,
             paid_msat, payments, settled_at)
             VALUES (zeroblob(32), zeroblob(32), zeroblob(32), 'weather', 0, 'v1;offer=requests;count=9;msat=7', 7, 1, 7, 1, 1);
         INSERT INTO settlement VALUES ('n', 3, zeroblob(32), 7, 1);
         INSERT INTO account (purchase, unit, sold, spent, requests, opened_at) VALUES (1, 'request', 9, 4, 4, 1);
         INSERT INTO use_by_day VALUES (0, 'weather', 'request', 4, 4, 0);
         INSERT INTO epoch (began_at, groups, written_at) VALUES (1, 2, 5)",
    )
    .unwrap();
    drop(old);
    assert!(matches!(SqliteStore::open_to_inspect(&path), Err(StoreError::NotReady(_))));
    let store = SqliteStore::open(&path).unwrap();
    let hash = PaymentHash::from_bytes([0; 32]);
    let account = store.account(hash).await.unwrap().unwrap();
    assert_eq!((account.balance.spent(), account.balance.left(), account.requests), (4, 5, 4));
    assert_eq!(store.epochs(1).await.unwrap()[0].groups, 2);
    assert_eq!(store.audit().await.unwrap().breaches, [""; 0]);
    let inspector = SqliteStore::open_to_inspect(&path).unwrap();
    assert_eq!(inspector.months(hash).unwrap(), []);
    assert_eq!(inspector.payments(hash).unwrap().len(), 1);
    assert_eq!(inspector.find(&"0".repeat(64)).unwrap().purchase.hash, hash);
    // Who looks for one doesn't read them all.
    let books = file::connect(&path).unwrap();
    for question in [
        "SELECT 1 FROM purchase WHERE identifier_hash = zeroblob(32)",
        "SELECT 1 FROM settlement WHERE hash = zeroblob(32)",
    ] {
        let plan: String =
            books.query_row(&format!("EXPLAIN QUERY PLAN {question}"), [], |row| row.get("detail")).unwrap();
        assert!(plan.starts_with("SEARCH"), "{question}: {plan}");
    }
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_restart() {
    let (_dir, path) = directory();
    let store = SqliteStore::open(&path).unwrap();
    settle(&store, vec![settlement(7)]).await.unwrap();
    store.revoke(revocation(1)).await.unwrap();
    drop(store);
    let store = SqliteStore::open(&path).unwrap();
    assert_eq!(store.cursor("n").await.unwrap(), Cursor(7));
    assert!(store.purchase(settlement(7).hash).await.unwrap().is_some());
    assert_eq!(store.revocations(RevocationCursor::default()).await.unwrap().hashes.len(), 1);
}

#[tokio::test]
async fn what_is_queued_is_written_although_nobody_waits_for_it() {
    let (_dir, path) = directory();
    let store = SqliteStore::open(&path).unwrap();
    // Polled once, so that it is queued, then dropped as a request's future may be.
    let mut write = store.settle("n", vec![settlement(7).into()], Cursor(7));
    assert!(futures_util::poll!(&mut write).is_pending());
    drop(write);
    drop(store);
    assert_eq!(SqliteStore::open(&path).unwrap().cursor("n").await.unwrap(), Cursor(7));
}

#[test]
fn a_second_gateway_is_refused_and_a_dead_one_leaves_no_lock() {
    let (_dir, path) = directory();
    let first = SqliteStore::open(&path).unwrap();
    let want = format!(
        "`{}` belongs to another running process; stop that one, or give this one its own store",
        path.display()
    );
    assert_eq!(refused(&path), want);
    drop(first);
    drop(SqliteStore::open(&path).unwrap());
}

#[test]
fn the_books_are_readable_by_their_owner_alone() {
    let (dir, path) = directory();
    let store = SqliteStore::open(&path).unwrap();
    let files: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 3, "books, log, lock: {files:?}");
    for file in files {
        let mode = fs::metadata(&file).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", file.display());
    }
    drop(store);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(
        refused(&path),
        format!("`{}` can be read by other users (mode 644); run `chmod 600` on it", path.display())
    );
}

#[tokio::test]
async fn another_process_can_revoke_while_the_books_are_open() {
    let (_dir, path) = directory();
    let store = SqliteStore::open(&path).unwrap();
    store.revoke(revocation(1)).await.unwrap();
    let read = store.revocations(RevocationCursor::default()).await.unwrap();

    let other = SqliteStore::open_for_revocation(&path).unwrap();
    other.revoke(&revocation(2)).unwrap();
    other.revoke(&revocation(2)).unwrap();
    let news = store.revocations(read.cursor).await.unwrap();
    assert_eq!(news.hashes, [revocation(2).identifier_hash]);
    settle(&store, vec![settlement(1)]).await.unwrap();

    drop(store);
    other.revoke(&revocation(3)).unwrap();
    drop(other);
    let store = SqliteStore::open(&path).unwrap();
    assert_eq!(store.revocations(news.cursor).await.unwrap().hashes.len(), 1);
}

#[test]
fn revoking_makes_no_books_where_there_are_none() {
    let (dir, path) = directory();
    let refused = |path: &Path| SqliteStore::open_for_revocation(path).err().unwrap().to_string();
    let want = |path: &Path| {
        format!("`{}` has no books of this farebox's format; start the gateway on it first", path.display())
    };
    assert_eq!(refused(&path), want(&path));
    assert!(!path.exists());
    let empty = dir.path().join("empty");
    fs::write(&empty, b"").unwrap();
    assert_eq!(refused(&empty), want(&empty));
}

#[test]
fn books_of_a_newer_farebox_are_left_alone() {
    let (_dir, path) = directory();
    drop(SqliteStore::open(&path).unwrap());
    file::connect(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let known = schema::FORMAT;
    let want = format!("the books have format 99, this farebox knows up to {known}; use the newer farebox");
    assert_eq!(refused(&path), want);
    assert_eq!(SqliteStore::open_for_revocation(&path).err().unwrap().to_string(), want);
}

#[test]
fn what_is_not_ours_is_left_alone() {
    let (dir, path) = directory();
    file::create_private(&path).unwrap();
    let foreign = file::connect(&path).unwrap();
    foreign.execute_batch("CREATE TABLE precious (x); INSERT INTO precious VALUES (1)").unwrap();
    drop(foreign);
    let before = fs::read(&path).unwrap();
    assert!(refused(&path).contains("this is another program's database"));
    assert!(SqliteStore::open_for_revocation(&path).is_err());
    assert_eq!(fs::read(&path).unwrap(), before);

    let text = dir.path().join("text");
    fs::write(&text, "x".repeat(4_096)).unwrap();
    fs::set_permissions(&text, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(refused(&text).starts_with("the books are damaged; restore a backup"));
    assert_eq!(fs::read_to_string(&text).unwrap(), "x".repeat(4_096));
}

#[test]
fn a_directory_that_does_not_exist_is_named() {
    assert_eq!(
        refused(Path::new("/nonexistent-directory/books")),
        "the store failed: cannot lock `/nonexistent-directory/books.lock`: No such file or directory (os error 2)"
    );
}

#[tokio::test]
async fn a_full_disk_is_said_clearly_and_passes() {
    let (_dir, path) = directory();
    let store = SqliteStore::open(&path).unwrap();
    let limit = |pages: u32| {
        store.write(move |books| {
            let pages: u32 =
                books.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |row| row.get(0))?;
            Ok(pages)
        })
    };
    limit(1).await.unwrap();
    let error = settle(&store, (1..2_000).map(settlement).collect()).await.unwrap_err();
    assert!(matches!(error, StoreError::Full(_)), "{error:?}");
    assert!(error.to_string().starts_with("the disk is full; nothing was booked"));
    assert_eq!(store.cursor("n").await.unwrap(), Cursor(0));

    limit(1_000_000).await.unwrap();
    let booked = settle(&store, (1..2_000).map(settlement).collect()).await.unwrap();
    assert_eq!(booked.new, 1_999);
}

#[tokio::test]
async fn a_read_only_store_is_said_clearly() {
    let (_dir, path) = directory();
    let store = SqliteStore::open(&path).unwrap();
    store.write(|books| Ok(books.pragma_update(None, "query_only", true)?)).await.unwrap();
    let error = settle(&store, vec![settlement(1)]).await.unwrap_err();
    assert!(matches!(error, StoreError::ReadOnly(_)), "{error:?}");
    assert_eq!(store.cursor("n").await.unwrap(), Cursor(0), "reading goes on");
}

#[tokio::test]
async fn an_error_of_one_caller_does_not_touch_the_others_in_its_group() {
    let (_dir, path) = directory();
    let store = SqliteStore::open(&path).unwrap();
    let jobs = (1..=200_u64).map(|number| {
        let amount = if number % 10 == 0 { Msat::new(u64::MAX) } else { Msat::new(number) };
        settle(&store, vec![Settlement { amount, ..settlement(number) }])
    });
    let outcomes = futures_util::future::join_all(jobs).await;
    for (number, outcome) in (1..).zip(outcomes) {
        assert_eq!(outcome.is_err(), number % 10 == 0, "{number}: {outcome:?}");
        let row = store.purchase(settlement(number).hash).await.unwrap();
        assert_eq!(row.is_none(), number % 10 == 0, "{number}");
    }
}

/// The books as the first format left them, with a sale, money that nobody explained, and a cursor.
const FIRST_FORMAT: &str = "
    INSERT INTO mint_secret VALUES ('0123456789abcdef', 5, NULL);
    INSERT INTO node_cursor VALUES ('n', 2);
    INSERT INTO settlement VALUES ('n', 1, zeroblob(32), 1000, 7), ('n', 2, unhex(hex(zeroblob(31)) || '02'), 500, 8);
    INSERT INTO purchase (hash, token_id, identifier_hash, service, tier, terms, price_msat, presented_at, paid_msat, payments,
        settled_at, surplus_msat) VALUES
        (zeroblob(32), zeroblob(32), zeroblob(32), 'weather', 0, 'v1;offer=forever;msat=900', 900, 9, 1000, 1, 7, 100);
    INSERT INTO purchase (hash, paid_msat, payments, settled_at) VALUES (unhex(hex(zeroblob(31)) || '02'), 500, 1, 8);
    PRAGMA user_version = 1;
    PRAGMA application_id = 0x66617265;";

#[tokio::test]
async fn books_of_the_first_format_are_brought_up_to_date_and_go_on() {
    let (_dir, path) = directory();
    file::create_private(&path).unwrap();
    let old = file::connect(&path).unwrap();
    old.execute_batch(include_str!("../../../migrations/0001_books.sql")).unwrap();
    old.execute_batch(FIRST_FORMAT).unwrap();
    drop(old);
    assert!(SqliteStore::open_for_revocation(&path).is_err(), "only a gateway changes the tables");

    let store = SqliteStore::open(&path).unwrap();
    assert_eq!(store.cursor("n").await.unwrap(), Cursor(2));
    let rows = store.purchases(Page { after: None, rows_max: 10 }).await.unwrap();
    let [unexplained, sale] = rows.as_slice() else { panic!("{rows:?}") };
    assert!(rows.iter().all(|row| row.is_balanced() && row.claimed.is_none()), "{rows:?}");
    assert_eq!((sale.paid, sale.surplus, sale.sold.is_some()), (Msat::new(1_000), Msat::new(100), true));

    // And a payment that begins in one format may go on in the next.
    let claimed = Label { service: "weather".parse().unwrap(), offer: Offer::Forever, price: Msat::new(500) };
    let settlement = Settlement { hash: unexplained.hash, ..settlement(3) };
    let arrival = Arrival { settlement, claimed: Some(claimed.clone()) };
    store.settle("n", vec![arrival], Cursor(3)).await.unwrap();
    let row = store.purchase(unexplained.hash).await.unwrap().unwrap();
    assert_eq!((row.paid, row.payments, row.claimed), (Msat::new(1_500), 2, Some(claimed)));

    drop(store);
    drop(SqliteStore::open(&path).unwrap());
}

/// The process may be killed, or the disk fail, at any point of a commit: here it fails between the rows and the cursor.
#[tokio::test]
async fn the_cursor_never_moves_without_its_rows_nor_they_without_it() {
    let (_dir, path) = directory();
    let store = SqliteStore::open(&path).unwrap();
    settle(&store, vec![settlement(1)]).await.unwrap();
    let trip = |sql: &'static str| store.write(move |books| Ok(books.execute_batch(sql)?));
    for (place, breach) in [
        (
            "between",
            "CREATE TRIGGER trip BEFORE UPDATE ON node_cursor BEGIN SELECT RAISE(ABORT, 'trip'); END",
        ),
        ("before", "CREATE TRIGGER trip BEFORE INSERT ON purchase BEGIN SELECT RAISE(ABORT, 'trip'); END"),
    ] {
        trip(breach).await.unwrap();
        settle(&store, vec![settlement(2), settlement(3)]).await.unwrap_err();
        trip("DROP TRIGGER trip").await.unwrap();
        assert_eq!(store.cursor("n").await.unwrap(), Cursor(1), "{place}");
        assert_eq!(store.purchase(settlement(2).hash).await.unwrap(), None, "{place}");
    }
    // Told again from the cursor, as a node does, it is all there, once.
    assert_eq!(settle(&store, vec![settlement(2), settlement(3)]).await.unwrap().new, 2);
    assert_eq!(store.cursor("n").await.unwrap(), Cursor(3));
}

#[tokio::test]
async fn the_table_itself_refuses_a_row_that_breaks_the_law() {
    let (_dir, path) = directory();
    let store = SqliteStore::open(&path).unwrap();
    settle(&store, vec![settlement(1)]).await.unwrap();
    for breach in [
        "UPDATE purchase SET paid_msat = -1",
        "UPDATE purchase SET surplus_msat = 5",
        "UPDATE purchase SET payments = 0",
        "UPDATE purchase SET claimed_service = 'a'",
        "UPDATE purchase SET claimed_service = 'a', claimed_offer = 'offer=forever', claimed_msat = 0",
        "UPDATE purchase SET terms = 'v1;offer=forever;msat=900', price_msat = 900, service = 'a'",
    ] {
        let done = store.write(move |books| Ok(books.execute(breach, [])?)).await;
        assert!(
            matches!(&done, Err(StoreError::Failed(text)) if text.contains("CHECK")),
            "{breach}: {done:?}"
        );
    }
}
