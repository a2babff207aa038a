//! What the seller sees of refunds that only the books know, and of those that the books couldn't take.

use super::*;
use crate::store::{
    Presentation, Sold,
    accounts::{RefundOrder, RefundRow, Unit},
    sqlite::Inspector,
};

struct Files {
    dir: TempDir,
    store: SqliteStore,
}

impl Files {
    /// Books with one account of 10 sat.
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("books.sqlite")).unwrap();
        let sold = Sold {
            token_id: TokenId::from_bytes([1; 32]),
            identifier_hash: farebox_protocol::IdentifierHash::from_bytes([2; 32]),
            service: "weather".parse().unwrap(),
            tier: 0,
            terms: Terms { offer: Offer::Credit, price: Msat::new(10_000) },
            valid_until: None,
        };
        let credit = Allotment { unit: Unit::Msat, units: 10_000 };
        store.open_account(Presentation { hash: purchase(), sold, at: START }, credit).await.unwrap();
        Self { dir, store }
    }

    /// As a gateway's first start leaves it.
    fn with_journal(self) -> Self {
        drop(Journal::open(&SqliteIntents::open(&self.journal()).unwrap()).unwrap());
        self
    }

    fn journal(&self) -> std::path::PathBuf {
        self.dir.path().join("refunds.sqlite")
    }

    fn inspect(&self) -> Inspector {
        SqliteStore::open_to_inspect(&self.dir.path().join("books.sqlite")).unwrap()
    }

    fn records(&self) -> Records {
        Records::open(&self.journal(), Some(self.inspect())).unwrap()
    }

    async fn hold(&self, number: u8, msat: u64) -> RefundId {
        let order = order(number, msat);
        self.store.begin_refund(order).await.unwrap();
        order.id
    }
}

fn purchase() -> PaymentHash {
    PaymentHash::from_bytes([7; 32])
}

fn order(number: u8, msat: u64) -> RefundOrder {
    let at = START.saturating_add(Duration::from_secs(number.into()));
    let (id, amount) = (RefundId([number; 16]), Msat::new(msat));
    RefundOrder { id, hash: purchase(), of: RefundOf::Credit, amount, at }
}

fn word(verdict: Verdict) -> Word {
    Word { verdict, note: "asked the buyer".to_owned(), said_at: START }
}

#[tokio::test]
async fn what_only_the_books_know_is_listed_and_can_be_spoken_of() {
    use crate::ledger::law::Refund;

    let files = Files::new().await.with_journal();
    let (held, ended) = (files.hold(1, 3_000).await, files.hold(2, 2_000).await);
    files.store.end_refund(ended, Refund::Paid, START).await.unwrap();
    let records = files.records();
    let ids = |which| records.last(which, 10).unwrap().iter().map(|record| record.id).collect::<Vec<_>>();
    assert_eq!((ids(Which::Open), ids(Which::All)), (vec![held], vec![ended, held]), "newest first");
    assert_eq!(records.last(Which::All, 1).unwrap().len(), 1);
    let orphan = records.find(held).unwrap().unwrap();
    assert!(orphan.is_orphan() && orphan.why.is_some() && orphan.fee_max.is_none());
    assert_eq!((orphan.amount, orphan.state, orphan.purchase), (Msat::new(3_000), "open", purchase()));

    let dear = Verdict::Paid { fee: Msat::new(1) };
    assert!(matches!(records.say(held, &word(dear)), Err(WordError::FeeOfOrphan(_))));
    assert!(matches!(
        records.say(ended, &word(Verdict::NotPaid)),
        Err(WordError::Ended { state: "paid", .. })
    ));
    let nobody = RefundId([9; 16]);
    assert!(matches!(records.say(nobody, &word(Verdict::NotPaid)), Err(WordError::Unknown(_))));
    records.say(held, &word(Verdict::NotPaid)).unwrap();
    records.say(held, &word(Verdict::NotPaid)).unwrap();
    let paid = word(Verdict::Paid { fee: Msat::ZERO });
    assert!(matches!(records.say(held, &paid), Err(WordError::Said(_))), "the first word counts");
    assert_eq!(records.find(held).unwrap().unwrap().word, Some(word(Verdict::NotPaid)));
}

#[tokio::test]
async fn without_a_journal_they_are_listed_and_no_word_is_lost() {
    let files = Files::new().await;
    let held = files.hold(1, 3_000).await;
    let records = files.records();
    assert_eq!(records.last(Which::Open, 10).unwrap()[0].id, held);
    assert!(matches!(records.say(held, &word(Verdict::NotPaid)), Err(WordError::NoJournal)));
    assert!(!files.journal().exists(), "looking makes no file");
    // And without books nobody can know what a word is about.
    let blind = Records::open(&files.journal(), None).unwrap();
    assert_eq!(blind.last(Which::All, 10).unwrap(), []);
    assert!(matches!(blind.say(held, &word(Verdict::NotPaid)), Err(WordError::Unknown(_))));
}

#[tokio::test]
async fn what_books_could_not_take_is_among_the_open_ones_though_it_was_paid() {
    let files = Files::new().await.with_journal();
    let limit = Some(Msat::new(10_000));
    let row = files.store.add_refund(order(1, 12_000), Some(START), limit).await.unwrap().unwrap();
    assert_eq!((row.order.amount, row.missing), (Msat::new(10_000), Msat::new(2_000)));
    let known = |row: &RefundRow| (row.order.amount, row.missing);
    let record = files.records().last(Which::Open, 10).unwrap().remove(0);
    assert_eq!((record.state, record.missing()), ("paid", Msat::new(2_000)));
    assert_eq!(record.booked.as_ref().map(known), Some((Msat::new(10_000), Msat::new(2_000))));
    assert!(files.inspect().verify().unwrap().audit.breaches.is_empty());
    assert!(files.inspect().verify().unwrap().totals.hold());
}
