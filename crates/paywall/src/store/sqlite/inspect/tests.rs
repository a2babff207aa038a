use std::sync::Arc;

use farebox_lightning::Settlement;
use farebox_protocol::{IdentifierHash, Label, Offer, ServiceName, TokenId};

use super::*;
use crate::{
    ledger::law::Refund,
    store::{
        Arrival, Presentation, Revocation, Sold, Store, StoreError,
        accounts::{Accounts, Allotment, Debit, Group, RefundId, RefundOf, RefundOrder},
        entry::Totals,
        sqlite::SqliteStore,
    },
};

const DAY: u64 = 86_400;
const NOW: Timestamp = Timestamp::from_secs(100 * DAY);

struct Books {
    _dir: tempfile::TempDir,
    path: PathBuf,
    store: Option<SqliteStore>,
}

fn hash(number: u8) -> PaymentHash {
    PaymentHash::from_bytes([number; 32])
}

fn name(service: &str) -> ServiceName {
    service.parse().unwrap()
}

impl Books {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("books.sqlite");
        let store = SqliteStore::open(&path).unwrap();
        Self { _dir: dir, path, store: Some(store) }
    }

    fn store(&self) -> &SqliteStore {
        self.store.as_ref().unwrap()
    }

    fn inspect(&self) -> Inspector {
        SqliteStore::open_to_inspect(&self.path).unwrap()
    }

    async fn pay(&self, cursor: u64, number: u8, msat: u64, day: u64) {
        self.pay_for(cursor, number, msat, day, None).await;
    }

    async fn pay_for(&self, cursor: u64, number: u8, msat: u64, day: u64, claimed: Option<Label>) {
        let at = Timestamp::from_secs(day * DAY + cursor);
        let cursor = Cursor(cursor);
        let settlement =
            Settlement { cursor, hash: hash(number), amount: Msat::new(msat), at, description: None };
        self.store().settle("node", vec![Arrival { settlement, claimed }], cursor).await.unwrap();
    }

    async fn present(&self, number: u8, service: &str, terms: &str, valid_until: Option<u64>) {
        let sold = Sold {
            token_id: TokenId::from_bytes([number; 32]),
            identifier_hash: IdentifierHash::from_bytes([number + 100; 32]),
            service: name(service),
            tier: 0,
            terms: terms.parse().unwrap(),
            valid_until: valid_until.map(Timestamp::from_secs),
        };
        let presentation = Presentation { hash: hash(number), sold, at: Timestamp::from_secs(3 * DAY) };
        match Allotment::of(&presentation.sold.terms) {
            Some(allotment) => drop(self.store().open_account(presentation, allotment).await.unwrap()),
            None => drop(self.store().present(vec![presentation]).await.unwrap()),
        }
    }

    async fn revoke(&self, number: u8, reason: &str) {
        let identifier_hash = IdentifierHash::from_bytes([number + 100; 32]);
        let at = Timestamp::from_secs(9 * DAY);
        self.store().revoke(Revocation { identifier_hash, at, reason: reason.to_owned() }).await.unwrap();
    }

    async fn refund(&self, id: u8, of: RefundOf, number: u8, msat: u64, end: Option<Refund>) {
        let at = Timestamp::from_secs(8 * DAY);
        let order =
            RefundOrder { id: RefundId([id; 16]), hash: hash(number), of, amount: Msat::new(msat), at };
        self.store().begin_refund(order).await.unwrap();
        if let Some(end) = end {
            self.store().end_refund(RefundId([id; 16]), end, at).await.unwrap();
        }
    }

    /// One purchase of every kind there is.
    async fn of_every_kind() -> Self {
        let books = Self::new();
        books.present(1, "weather", "v1;offer=forever;msat=10000", None).await;
        books.pay(1, 1, 10_000, 1).await;
        books.present(2, "weather", "v1;offer=requests;count=3;msat=10000", None).await;
        books.pay(2, 2, 10_000, 1).await;
        books.present(3, "model", "v1;offer=credit;unit=msat;msat=10000", None).await;
        books.pay(3, 3, 10_000, 1).await;
        let offer = Offer::Forever;
        let claim = Label { service: name("model"), offer, price: Msat::new(5_000) };
        books.pay_for(4, 4, 5_000, 2, Some(claim)).await;
        books.present(5, "weather", "v1;offer=forever;msat=10000", None).await;
        books.present(6, "weather", "v1;offer=forever;msat=10000", None).await;
        books.pay(6, 6, 10_000, 1).await;
        books.pay(7, 6, 10_000, 2).await;
        books.present(7, "weather", "v1;offer=forever;msat=10000", None).await;
        books.pay(8, 7, 6_000, 2).await;
        books.present(8, "weather", "v1;offer=forever;msat=10000", None).await;
        books.pay(9, 8, 10_000, 2).await;
        books.present(9, "model", "v1;offer=credit;unit=msat;msat=1000", None).await;
        books.pay(10, 9, 1_000, 2).await;
        books.present(10, "weather", "v1;offer=duration;secs=60;msat=1", Some(NOW.secs())).await;
        books.pay(11, 10, 1, 2).await;

        let epoch = books.store().begin_epoch(Timestamp::from_secs(DAY)).await.unwrap();
        let debit = |number, service, requests, units, written_off| Debit {
            place: None,
            hash: hash(number),
            service: name(service),
            requests,
            units,
            written_off,
        };
        let debits = vec![
            debit(2, "weather", 2, 2, 0),
            debit(3, "model", 5, 4_000, 0),
            debit(9, "model", 1, 1_000, 70),
        ];
        let at = Timestamp::from_secs(5 * DAY);
        let group = Group { epoch, number: 1, at, debits, uses: Vec::new(), answers: Vec::new() };
        books.store().debit(Arc::new(group)).await.unwrap();
        books.refund(1, RefundOf::Credit, 3, 2_000, Some(Refund::Paid)).await;
        books.refund(2, RefundOf::Credit, 3, 1_000, None).await;
        books.refund(3, RefundOf::Surplus, 6, 4_000, Some(Refund::Paid)).await;
        books.refund(4, RefundOf::Surplus, 6, 500, Some(Refund::Failed)).await;
        books.revoke(8, "leaked, =1+1").await;
        books
    }
}

fn all(inspector: &Inspector, select: &Select, order: Order, rows_max: u16) -> Vec<Entry> {
    let mut found: Vec<Entry> = Vec::new();
    loop {
        let after = found.last().map(|entry| entry.purchase.hash);
        let page = inspector.entries(select, order, after, rows_max, NOW).unwrap();
        if page.is_empty() {
            return found;
        }
        found.extend(page);
    }
}

fn numbers(entries: &[Entry]) -> Vec<u8> {
    entries.iter().map(|entry| entry.purchase.hash.as_bytes()[0]).collect()
}

fn told(entry: &Entry) -> String {
    entry.states(NOW).map(State::as_str).collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn each_purchase_says_all_that_is_true_of_it() {
    let books = Books::of_every_kind().await;
    let inspector = books.inspect();
    let said = |number| told(&inspector.entry(hash(number)).unwrap().unwrap());
    let all: Vec<String> = (1..=10).map(said).collect();
    assert_eq!(
        all,
        [
            "open",
            "open",
            "open refunding refunded",
            "unattributed",
            "open unsettled",
            "open surplus refunded",
            "open short",
            "revoked",
            "used-up",
            "ended",
        ]
    );
}

#[tokio::test]
async fn a_state_finds_what_it_is_said_of() {
    let books = Books::of_every_kind().await;
    let inspector = books.inspect();
    let everything = all(&inspector, &Select::default(), Order::OldestFirst, 1_000);
    assert_eq!(everything.len(), 10);
    for state in State::ALL {
        let select = Select { state: Some(state), ..Select::default() };
        let want: Vec<u8> =
            numbers(&everything.iter().filter(|entry| entry.is(state, NOW)).cloned().collect::<Vec<_>>());
        assert!(!want.is_empty(), "the books have one that is {state}");
        assert_eq!(numbers(&all(&inspector, &select, Order::OldestFirst, 1_000)), want, "{state}");
        assert_eq!(state.as_str().parse(), Ok(state));
    }
}

#[tokio::test]
async fn purchases_are_found_by_service_and_time_in_pages_of_any_size_and_both_orders() {
    let books = Books::of_every_kind().await;
    let inspector = books.inspect();
    let model = Select { service: Some(name("model")), ..Select::default() };
    assert_eq!(numbers(&all(&inspector, &model, Order::OldestFirst, 1)), [3, 4, 9], "by its claim, too");
    let second_day = Select {
        since: Some(Timestamp::from_secs(2 * DAY)),
        until: Some(Timestamp::from_secs(2 * DAY + 10)),
        ..Select::default()
    };
    assert_eq!(numbers(&all(&inspector, &second_day, Order::OldestFirst, 2)), [4, 7, 8]);
    let every = numbers(&all(&inspector, &Select::default(), Order::OldestFirst, 1_000));
    for rows_max in [1, 3, 10] {
        let mut newest = numbers(&all(&inspector, &Select::default(), Order::NewestFirst, rows_max));
        newest.reverse();
        assert_eq!(newest, every);
    }
}

#[tokio::test]
async fn a_purchase_is_found_by_the_beginning_of_its_hash_and_by_its_tokens() {
    let books = Books::of_every_kind().await;
    let inspector = books.inspect();
    let found = |text: &str| inspector.find(text).map(|entry| entry.purchase.hash);
    assert_eq!(found(&hash(3).to_string()), Ok(hash(3)));
    assert_eq!(found("030303030"), Ok(hash(3)), "an odd number of digits, too");
    assert_eq!(found("0A0A0A0A"), Ok(hash(10)));
    assert_eq!(found(&"67".repeat(32)), Ok(hash(3)), "identifier hash");
    assert!(matches!(found("03030304"), Err(FindError::Unknown(_))));
    for text in ["0303030", "", "0303030g", &"03".repeat(33), "%3030303"] {
        assert!(matches!(found(text), Err(FindError::NotAHash(_))), "{text}");
    }
}

#[tokio::test]
async fn two_hashes_that_begin_alike_are_told_apart() {
    let books = Books::new();
    let mut twin = [3; 32];
    twin[31] = 4;
    let settlement = |cursor, hash| Settlement {
        cursor: Cursor(cursor),
        hash,
        amount: Msat::new(1),
        at: NOW,
        description: None,
    };
    let twins = [settlement(1, hash(3)), settlement(2, PaymentHash::from_bytes(twin))].map(Arrival::from);
    books.store().settle("node", twins.into(), Cursor(2)).await.unwrap();
    let found = |digits: usize| books.inspect().find(&hash(3).to_string()[..digits]);
    assert!(matches!(found(63), Err(FindError::Ambiguous(_))));
    assert_eq!(found(64).unwrap().purchase.hash, hash(3));
}

#[tokio::test]
async fn a_purchase_shows_its_account_its_payments_and_its_refunds() {
    let books = Books::of_every_kind().await;
    let inspector = books.inspect();
    let credit = inspector.entry(hash(3)).unwrap().unwrap();
    assert_eq!(credit.account, books.store().account(hash(3)).await.unwrap(), "as the ledger has it");
    assert_eq!(credit.refunded(), Msat::new(2_000));
    assert_eq!(inspector.refunds(hash(3)).unwrap().len(), 2);
    let twice = inspector.payments(hash(6)).unwrap();
    assert_eq!(twice.iter().map(|payment| payment.cursor).collect::<Vec<_>>(), [Cursor(6), Cursor(7)]);
    let surplus = inspector.entry(hash(6)).unwrap().unwrap();
    assert_eq!((surplus.surplus_refunded, surplus.surplus_refunding), (Msat::new(4_000), Msat::ZERO));
    let revoked = inspector.entry(hash(8)).unwrap().unwrap().revoked.unwrap();
    assert_eq!(revoked.reason, "leaked, =1+1");
}

#[tokio::test]
async fn days_list_and_audit_count_the_same_money_before_and_after_a_revocation() {
    let books = Books::of_every_kind().await;
    for revoked in [1, 3, 9] {
        let inspector = books.inspect();
        let verified = inspector.verify().unwrap();
        assert_eq!(verified.audit.breaches, [""; 0]);
        let days = inspector.days(0, u64::MAX).unwrap();
        let of_days = |part: fn(&Day) -> Msat| days.iter().map(|day| part(day).get()).sum::<u64>();
        let entries = all(&inspector, &Select::default(), Order::OldestFirst, 1_000);
        let of_rows = |part: fn(&Entry) -> Msat| entries.iter().map(|entry| part(entry).get()).sum::<u64>();
        assert_eq!(verified.audit.paid.get(), 72_001);
        assert_eq!(of_days(|day| day.paid), 72_001);
        assert_eq!(of_rows(|entry| entry.purchase.paid), 72_001);
        assert_eq!(of_days(|day| day.surplus), of_rows(|entry| entry.purchase.surplus));
        assert_eq!(of_days(|day| day.refunded), of_rows(Entry::refunded));
        books.revoke(revoked, "").await;
    }
}

#[tokio::test]
async fn each_day_has_its_own_money_and_surplus_falls_on_the_day_on_which_it_came() {
    let books = Books::of_every_kind().await;
    let days = books.inspect().days(0, 90).unwrap();
    let told: Vec<String> = days
        .iter()
        .map(|day| {
            let service = day.service.as_ref().map_or("-", |service| service.as_str());
            format!(
                "{} {service}: {} paid {} over {} back {}, {} requests {} + {} off {}",
                day.day,
                day.payments,
                day.paid.get(),
                day.surplus.get(),
                day.refunded.get(),
                day.requests,
                day.used_requests,
                day.used.get(),
                day.written_off.get()
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            "1 model: 1 paid 10000 over 0 back 0, 0 requests 0 + 0 off 0",
            "1 weather: 3 paid 30000 over 0 back 0, 0 requests 0 + 0 off 0",
            "2 -: 1 paid 5000 over 0 back 0, 0 requests 0 + 0 off 0",
            "2 model: 1 paid 1000 over 0 back 0, 0 requests 0 + 0 off 0",
            "2 weather: 4 paid 26001 over 10000 back 0, 0 requests 0 + 0 off 0",
            "5 model: 0 paid 0 over 0 back 0, 6 requests 0 + 5000 off 70",
            "5 weather: 0 paid 0 over 0 back 0, 2 requests 2 + 0 off 0",
            "8 model: 0 paid 0 over 0 back 2000, 0 requests 0 + 0 off 0",
            "8 weather: 0 paid 0 over 0 back 4000, 0 requests 0 + 0 off 0",
        ]
    );
    assert_eq!(books.inspect().days(2, 5).unwrap(), days[2..7]);
}

#[tokio::test]
async fn what_came_in_is_what_became_of_it() {
    let books = Books::of_every_kind().await;
    let totals = books.inspect().verify().unwrap().totals;
    let want = Totals {
        paid: Msat::new(72_001),
        missing: Msat::new(4_000),
        awaited: Msat::new(10_000),
        passes: Msat::new(50_001),
        // Two of three requests for 10,000, 4,000 and 1,000 of credit.
        spent: Msat::new(6_666 + 5_000),
        refunding: Msat::new(1_000),
        refunded: Msat::new(2_000),
        left: Msat::new(3_334 + 3_000),
        surplus: Msat::new(10_000),
        surplus_refunding: Msat::ZERO,
        surplus_refunded: Msat::new(4_000),
        unattributed: Msat::new(5_000),
    };
    assert_eq!(totals, want);
    assert!(totals.hold());
}

#[tokio::test]
async fn broken_books_are_named_by_row_and_by_sum() {
    let mut books = Books::of_every_kind().await;
    books.store = None;
    let broken = file::connect(&books.path).unwrap();
    broken
        .execute_batch(
            "PRAGMA ignore_check_constraints = ON;
             UPDATE account SET spent = 11000 WHERE unit = 'msat' AND sold = 10000;
             UPDATE purchase SET paid_msat = 10001 WHERE hex(hash) LIKE '0101%';",
        )
        .unwrap();
    let verified = books.inspect().verify().unwrap();
    let told = verified.audit.breaches.join("\n");
    for part in [
        &format!("what was sold: not so of {}", hash(3)),
        &format!("payment by payment: not so of {}", hash(1)),
        "use by day adds up",
        "not so of the sum of the books",
    ] {
        assert!(told.contains(part), "{part} in {told}");
    }
}

#[tokio::test]
async fn a_damaged_file_is_noticed() {
    let mut books = Books::of_every_kind().await;
    books.store = None;
    let mut bytes = std::fs::read(&books.path).unwrap();
    let page = usize::from(u16::from_be_bytes([bytes[16], bytes[17]]));
    // The first page is the one that says what the others are.
    for at in 1..bytes.len() / page {
        let mut damaged = bytes.clone();
        damaged[at * page..(at + 1) * page].fill(0xa5);
        std::fs::write(&books.path, damaged).unwrap();
        let verified = SqliteStore::open_to_inspect(&books.path).and_then(|inspector| inspector.verify());
        assert!(
            verified.is_err() || verified.is_ok_and(|found| !found.audit.breaches.is_empty()),
            "page {at}"
        );
    }
    bytes.truncate(3 * page);
    std::fs::write(&books.path, bytes).unwrap();
    let verified = SqliteStore::open_to_inspect(&books.path).and_then(|inspector| inspector.verify());
    assert!(matches!(verified, Err(StoreError::Damaged(_))), "{verified:?}");
}

#[tokio::test]
async fn it_looks_while_a_gateway_runs_and_when_none_does_and_leaves_its_lock_alone() {
    let mut books = Books::of_every_kind().await;
    let inspector = books.inspect();
    assert!(inspector.verify().unwrap().is_running);
    books.pay(50, 50, 1, 50).await;
    assert_eq!(inspector.count().unwrap(), 11, "what is written meanwhile is seen");
    books.store = None;
    assert!(!inspector.verify().unwrap().is_running);
    let reopened = SqliteStore::open(&books.path).unwrap();
    assert!(inspector.verify().unwrap().is_running);
    drop((reopened, inspector));
    assert_eq!(books.inspect().count().unwrap(), 11);
}

#[test]
fn it_makes_no_books_where_there_are_none_and_reads_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("books.sqlite");
    assert_eq!(SqliteStore::open_to_inspect(&path).err(), Some(StoreError::NotReady(path.clone())));
    assert!(!path.exists());
    std::fs::write(&path, "not a database, but long enough to be looked at as one").unwrap();
    assert!(matches!(SqliteStore::open_to_inspect(&path).err(), Some(StoreError::Damaged(_))));
}

#[tokio::test]
async fn nothing_can_be_written_through_it() {
    let books = Books::of_every_kind().await;
    let inspector = books.inspect();
    assert!(inspector.connection.execute("DELETE FROM purchase", []).is_err());
}

#[test]
fn a_sum_that_is_off_by_one_does_not_hold() {
    let totals = Totals { paid: Msat::new(3), spent: Msat::new(2), left: Msat::new(1), ..Totals::default() };
    assert!(totals.hold());
    assert!(!Totals { left: Msat::ZERO, ..totals }.hold());
}
