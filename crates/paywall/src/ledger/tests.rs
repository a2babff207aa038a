use std::{
    sync::{Arc, Barrier},
    thread,
};

use bytes::Bytes;
use farebox_lightning::clock::ManualClock;
use farebox_protocol::{IdentifierHash, Msat, Offer, Terms, Timestamp, TokenId};
use proptest::prelude::*;
use tokio_util::sync::CancellationToken;

use super::{cache::SHARDS, *};
use crate::store::{
    Sold, Store,
    accounts::{RefundId, RefundOf, RefundOrder, RequestDigest, StoredAnswer, Unit},
    conformance::{Fault, Faulty},
    sqlite::SqliteStore,
};

mod faults;
mod groups;
mod killed;
#[path = "../../../../fuzz/laws/ledger.rs"]
mod laws;
mod months;

const START: Timestamp = Timestamp::from_secs(1_700_000_000);

fn hash(number: u8) -> PaymentHash {
    PaymentHash::from_bytes([number; 32])
}

fn requests(units: u64) -> Allotment {
    Allotment { unit: Unit::Request, units }
}

fn presentation(number: u8) -> Presentation {
    let sold = Sold {
        token_id: TokenId::from_bytes([number; 32]),
        identifier_hash: IdentifierHash::from_bytes([number; 32]),
        service: "weather".parse().unwrap(),
        tier: 0,
        terms: Terms { offer: Offer::Forever, price: Msat::new(1_000) },
        valid_until: None,
    };
    Presentation { hash: hash(number), sold, at: START }
}

fn units(number: u64) -> NonZeroU64 {
    NonZeroU64::new(number).unwrap()
}

/// A ledger over books in memory that fail when told to.
struct Books {
    sound: Arc<SqliteStore>,
    store: Arc<Faulty>,
    ledger: Arc<Ledger>,
}

impl Books {
    async fn open() -> Self {
        Self::open_with(LedgerConfig::new()).await
    }

    async fn open_with(config: LedgerConfig) -> Self {
        let sound = Arc::new(SqliteStore::in_memory().unwrap());
        let store = Arc::new(Faulty::new(sound.clone()));
        let ledger = Ledger::open(config, store.clone(), Arc::new(ManualClock::new(START))).await.unwrap();
        Self { sound, store, ledger }
    }

    /// After a crash: nothing but the books is left.
    async fn reopen(&self) -> Self {
        let ledger = Ledger::open(LedgerConfig::new(), self.store.clone(), Arc::new(ManualClock::new(START)));
        Self { sound: self.sound.clone(), store: self.store.clone(), ledger: ledger.await.unwrap() }
    }

    /// One unit of an account of so many.
    async fn take(&self, number: u8, of: u64) -> Result<Reservation, Refused> {
        let reserved = self.ledger.reserve(presentation(number), requests(of), NonZeroU64::MIN).await;
        reserved.map(|reserved| reserved.reservation)
    }

    async fn spent(&self, number: u8) -> u64 {
        let account = Accounts::account(&*self.sound, hash(number)).await.unwrap();
        account.map_or(0, |account| account.balance.spent())
    }
}

#[tokio::test]
async fn what_was_bought_can_be_used_so_often_and_no_more() {
    let books = Books::open().await;
    for _ in 0..3 {
        books.take(1, 3).await.unwrap().commit(1);
    }
    assert_eq!(books.take(1, 3).await.unwrap_err(), Refused::UsedUp { left: 0 });
    books.ledger.flush().await.unwrap();
    assert_eq!(books.reopen().await.take(1, 3).await.unwrap_err(), Refused::UsedUp { left: 0 });
}

#[tokio::test]
async fn the_last_unit_has_one_winner_and_the_others_are_told_to_wait() {
    let books = Books::open().await;
    let winner = books.take(1, 1).await.unwrap();
    assert_eq!(books.take(1, 1).await.unwrap_err(), Refused::InFlight);
    winner.release();
    books.take(1, 1).await.unwrap().commit(1);
    assert_eq!(books.take(1, 1).await.unwrap_err(), Refused::UsedUp { left: 0 });
}

#[tokio::test]
async fn a_dropped_reservation_charges_what_is_due_and_otherwise_nothing() {
    let books = Books::open().await;
    drop(books.take(1, 5).await.unwrap());
    assert_eq!(books.ledger.balance(&hash(1)).unwrap().left(), 5);
    let mut reservation = books.take(1, 5).await.unwrap();
    reservation.due(1);
    let panicked = thread::spawn(move || {
        let _held = reservation;
        panic!("in the middle of a request");
    });
    panicked.join().unwrap_err();
    assert_eq!(books.ledger.balance(&hash(1)).unwrap().spent(), 1);
}

#[tokio::test]
async fn of_many_threads_as_many_win_as_there_are_units() {
    for round in 0..20 {
        let books = Books::open().await;
        let units_left = 10;
        drop(books.take(1, units_left).await.unwrap());
        let (threads, start) = (16, Barrier::new(16));
        let won: u64 = thread::scope(|scope| {
            let tries = (0..threads).map(|number: u64| {
                let (ledger, start) = (books.ledger.clone(), &start);
                scope.spawn(move || {
                    start.wait();
                    let mut won = 0;
                    for turn in 0..50 {
                        match ledger.reserve_at_once(&hash(1), NonZeroU64::MIN).expect("in memory") {
                            // Some of them come to nothing.
                            Ok(reservation) if (number + turn + round).is_multiple_of(3) => {
                                reservation.release()
                            }
                            Ok(reservation) => won += reservation.commit(1).spent,
                            Err(refused) => {
                                assert!(matches!(refused, Refused::InFlight | Refused::UsedUp { .. }));
                            }
                        }
                    }
                    won
                })
            });
            tries.collect::<Vec<_>>().into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(won, units_left);
        assert_eq!(books.take(1, units_left).await.unwrap_err(), Refused::UsedUp { left: 0 });
        books.ledger.flush().await.unwrap();
        assert_eq!(books.spent(1).await, units_left);
    }
}

#[tokio::test]
async fn an_account_is_read_once_by_however_many_want_it_at_once() {
    let books = Books::open().await;
    let all = (0..64).map(|_| books.take(1, 10));
    let outcomes = futures_util::future::join_all(all).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 10);
    assert!(
        outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).all(|error| *error == Refused::InFlight)
    );
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_reading_an_account_keeps_nobody_from_it() {
    let books = Books::open().await;
    books.store.next.lock().push_back(Fault::Hangs);
    let mut first = Box::pin(books.take(1, 1));
    assert!(futures_util::poll!(&mut first).is_pending());
    let mut second = Box::pin(books.take(1, 1));
    assert!(futures_util::poll!(&mut second).is_pending(), "it waits for the first");
    drop(first);
    second.await.unwrap().release();
}

#[tokio::test]
async fn an_account_that_is_in_use_is_never_forgotten_and_a_newcomer_is_refused_instead() {
    // One place for each lock: those whose hashes begin alike share one.
    let books = Books::open_with(LedgerConfig { accounts_max: 1, ..LedgerConfig::new() }).await;
    let (one, other) = (1, 1 + u8::try_from(SHARDS).unwrap());
    let held = books.take(one, 2).await.unwrap();
    let full = Refused::Unavailable(Unavailable::Full);
    assert_eq!(books.take(other, 2).await.unwrap_err(), full);
    held.commit(1);
    assert_eq!(books.take(other, 2).await.unwrap_err(), full, "not written yet");
    books.ledger.flush().await.unwrap();
    books.take(other, 2).await.unwrap().commit(1);
    books.ledger.flush().await.unwrap();
    assert_eq!(books.ledger.balance(&hash(one)), None, "forgotten");
    books.take(one, 2).await.unwrap().commit(1);
    assert_eq!(books.take(one, 2).await.unwrap_err(), Refused::UsedUp { left: 0 }, "and read again");
}

#[tokio::test]
async fn a_payment_that_bought_something_else_opens_no_account() {
    let books = Books::open().await;
    books.sound.present(vec![presentation(1)]).await.unwrap();
    let mut forged = presentation(1);
    forged.sold.terms.price = Msat::new(5_000_000);
    let refused = books.ledger.reserve(forged.clone(), requests(5_000), NonZeroU64::MIN).await.unwrap_err();
    assert_eq!(refused, Refused::OtherSale);
    books.take(1, 5).await.unwrap().release();
    drop(books.ledger.reserve_at_once(&hash(1), NonZeroU64::MIN).unwrap());
    let again = books.reopen().await;
    let refused = again.ledger.reserve(forged, requests(5_000), NonZeroU64::MIN).await.unwrap_err();
    assert_eq!(refused, Refused::OtherSale);
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_is_full_read_only_or_busy_loses_and_doubles_nothing() {
    let text = || "test".to_owned();
    for fault in [
        Fault::Fails(StoreError::Full(text())),
        Fault::Fails(StoreError::ReadOnly(text())),
        Fault::Fails(StoreError::Busy(text())),
        Fault::FailsAfterwards(StoreError::Failed(text())),
        Fault::Hangs,
        Fault::HangsAfterwards,
    ] {
        let books = Books::open().await;
        let (before, during) = (books.take(1, 100).await.unwrap(), books.take(1, 100).await.unwrap());
        *books.store.always.lock() = fault;
        let stop = CancellationToken::new();
        let test = async {
            before.commit(1);
            until(|| books.ledger.health().writing.is_some()).await;
            let refused = books.take(1, 100).await.unwrap_err();
            assert_eq!(refused, Refused::Unavailable(Unavailable::NotWriting));
            during.commit(2);
            assert_eq!(books.ledger.health().unwritten, 2);
            books.store.repair();
            until(|| books.ledger.health().unwritten == 0).await;
            assert_eq!(books.spent(1).await, 3);
            books.take(1, 100).await.unwrap().commit(4);
            stop.cancel();
        };
        tokio::join!(books.ledger.run(&stop), test);
        assert_eq!(books.spent(1).await, 7);
        assert!(books.sound.epochs(1).await.unwrap()[0].ended_at.is_some());
        assert_eq!(books.sound.audit().await.unwrap().breaches, [""; 0]);
    }
}

async fn until(so: impl Fn() -> bool) {
    while !so() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_crash_gives_reservations_back_and_what_was_not_written() {
    let books = Books::open().await;
    books.take(1, 10).await.unwrap().commit(1);
    books.ledger.flush().await.unwrap();
    books.take(1, 10).await.unwrap().commit(1);
    let _held = books.take(1, 10).await.unwrap();
    let again = books.reopen().await;
    again.take(1, 10).await.unwrap().release();
    assert_eq!(again.ledger.balance(&hash(1)).unwrap().left(), 9);
    let epochs = again.sound.epochs(2).await.unwrap();
    assert_eq!(epochs[1].ended_at, None, "it was cut off");
}

#[tokio::test]
async fn a_ledger_that_was_taken_over_serves_nobody() {
    let books = Books::open().await;
    books.take(1, 10).await.unwrap().commit(1);
    let successor = books.reopen().await;
    books.ledger.flush().await.unwrap_err();
    assert_eq!(books.take(1, 10).await.unwrap_err(), Refused::Unavailable(Unavailable::Ended));
    assert_eq!(books.ledger.close().await, 1, "what it could not write");
    successor.take(1, 10).await.unwrap().commit(1);
    successor.ledger.flush().await.unwrap();
    assert_eq!(books.spent(1).await, 1);
}

#[tokio::test]
async fn more_than_can_be_lost_is_not_begun() {
    let books = Books::open_with(LedgerConfig { unwritten_max: 2, ..LedgerConfig::new() }).await;
    books.take(1, 10).await.unwrap().commit(1);
    books.take(1, 10).await.unwrap().commit(1);
    assert_eq!(books.take(1, 10).await.unwrap_err(), Refused::Unavailable(Unavailable::NotWriting));
    books.ledger.flush().await.unwrap();
    books.take(1, 10).await.unwrap().release();
}

fn request(what: u8) -> RequestDigest {
    RequestDigest::new("POST", "/orders", [what; 32])
}

fn answer(body: usize) -> StoredAnswer {
    StoredAnswer { status: 201, headers: Bytes::from_static(b"a: b\r\n"), body: vec![b'x'; body].into() }
}

#[tokio::test]
async fn a_repeated_request_is_answered_again_and_charged_once() {
    let books = Books::open().await;
    let ask = async |ledger: &Arc<Ledger>, what| {
        ledger.begin_answer(&hash(1), b"key", request(what)).await.unwrap()
    };
    let Repeat::First(first) = ask(&books.ledger, 1).await else { panic!("not the first") };
    assert!(matches!(ask(&books.ledger, 1).await, Repeat::UnderWay));
    assert!(matches!(ask(&books.ledger, 2).await, Repeat::Different));
    let other = books.ledger.begin_answer(&hash(2), b"key", request(1)).await.unwrap();
    assert!(matches!(other, Repeat::First(_)), "another payment's key is another key");
    drop(first);

    let Repeat::First(first) = ask(&books.ledger, 1).await else { panic!("it came to nothing") };
    books.take(1, 5).await.unwrap().commit_answered(1, first, Some(answer(9)));
    for written in [false, true] {
        assert!(
            matches!(ask(&books.ledger, 1).await, Repeat::Replay(again) if *again == answer(9)),
            "{written}"
        );
        assert!(matches!(ask(&books.ledger, 2).await, Repeat::Different));
        books.ledger.flush().await.unwrap();
    }
    let again = books.reopen().await;
    assert!(matches!(ask(&again.ledger, 1).await, Repeat::Replay(again) if *again == answer(9)));
    assert_eq!(books.spent(1).await, 1);
}

#[tokio::test]
async fn an_answer_that_was_too_large_is_neither_replayed_nor_charged_again() {
    let tight = LedgerConfig { answers_bytes_max: 100_000, ..LedgerConfig::new() };
    let books = Books::open_with(tight).await;
    let ask = async |key: &[u8]| books.ledger.begin_answer(&hash(1), key, request(1)).await.unwrap();
    for (key, size, kept) in [
        (b"a", ANSWER_BYTES_MAX, true),
        (b"b", ANSWER_BYTES_MAX + 1, false),
        // There is no room for a second one until the first is written.
        (b"c", ANSWER_BYTES_MAX, false),
    ] {
        let Repeat::First(first) = ask(key).await else { panic!("not the first") };
        books.take(1, 5).await.unwrap().commit_answered(1, first, Some(answer(size)));
        assert_eq!(matches!(ask(key).await, Repeat::Replay(_)), kept);
        assert_eq!(matches!(ask(key).await, Repeat::NotKept), !kept);
    }
    books.ledger.flush().await.unwrap();
    assert!(matches!(ask(b"b").await, Repeat::NotKept));
    let Repeat::First(first) = ask(b"d").await else { panic!("not the first") };
    books.take(1, 5).await.unwrap().commit_answered(1, first, Some(answer(ANSWER_BYTES_MAX)));
    assert!(matches!(ask(b"d").await, Repeat::Replay(_)), "there is room again");
}

fn order(id: u8, amount: u64) -> RefundOrder {
    let (of, amount) = (RefundOf::Credit, Msat::new(amount));
    RefundOrder { id: RefundId([id; 16]), hash: hash(1), of, amount, at: START }
}

#[tokio::test]
async fn what_is_left_can_be_asked_and_nothing_is_taken_for_it() {
    let books = Books::open().await;
    let left = async || books.ledger.left(presentation(1), requests(10)).await.map(|(left, _)| left);
    assert_eq!(left().await, Ok(10), "it opens the account");
    let held = books.take(1, 10).await.unwrap();
    books.take(1, 10).await.unwrap().commit(2);
    assert_eq!(left().await, Ok(7));
    held.release();
    assert_eq!(left().await, Ok(8));
    books.take(1, 10).await.unwrap().commit(8);
    assert_eq!(left().await, Ok(0));
    let other = books.ledger.left(presentation(1), requests(11)).await;
    assert_eq!(other.unwrap_err(), Refused::OtherSale);
    assert_eq!(books.ledger.balance(&hash(1)).unwrap().reserved(), 0);
}

async fn credit(books: &Books) {
    let credit = Allotment { unit: Unit::Msat, units: 1_000 };
    let reserved = books.ledger.reserve(presentation(1), credit, units(100)).await.unwrap();
    reserved.reservation.commit(100);
}

#[tokio::test(start_paused = true)]
async fn credit_that_is_on_its_way_back_can_not_be_spent() {
    let books = Books::open().await;
    credit(&books).await;
    books.ledger.begin_refund(order(1, 850)).await.unwrap();
    books.ledger.begin_refund(order(1, 850)).await.unwrap();
    let refused = books.ledger.reserve_at_once(&hash(1), units(51)).unwrap().unwrap_err();
    assert_eq!(refused, Refused::UsedUp { left: 50 });
    assert!(books.ledger.begin_refund(order(2, 51)).await.is_err());
    books.ledger.end_refund(RefundId([1; 16]), law::Refund::Failed).await.unwrap();
    books.ledger.end_refund(RefundId([1; 16]), law::Refund::Failed).await.unwrap();
    books.ledger.begin_refund(order(3, 900)).await.unwrap();
    books.ledger.end_refund(RefundId([3; 16]), law::Refund::Paid).await.unwrap();
    let balance = books.ledger.balance(&hash(1)).unwrap();
    assert_eq!((balance.left(), balance.refunded(), balance.refunding()), (0, 900, 0));
    books.ledger.flush().await.unwrap();
    assert_eq!(books.sound.audit().await.unwrap().breaches, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_refund_whose_beginning_nobody_confirmed_is_begun_once() {
    let books = Books::open().await;
    credit(&books).await;
    // The first is the look whether it is known.
    for fault in
        [Fault::None, Fault::HangsAfterwards, Fault::Hangs, Fault::Fails(StoreError::Busy(String::new()))]
    {
        books.store.next.lock().push_back(fault);
    }
    let under_way = books.ledger.begin_refund(order(1, 500)).await;
    assert_eq!(under_way, Err(RefundError::UnderWay));
    assert_eq!(books.ledger.balance(&hash(1)).unwrap().left(), 400, "whatever comes of it");
    books.store.repair();
    until(|| books.ledger.balance(&hash(1)).unwrap().refunding() == 500).await;
    books.ledger.begin_refund(order(1, 500)).await.unwrap();
    assert_eq!(books.ledger.balance(&hash(1)).unwrap().left(), 400);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]
    #[test]
    fn no_story_breaks_the_law(story in proptest::collection::vec(any::<u8>(), 0..400)) {
        laws::check(&story);
    }
}

/// Reads the bytes of a story that the fuzzer or a random one broke the law with.
#[test]
#[ignore = "for a story in `STORY`, in hexadecimal"]
fn a_story_from_the_environment() {
    let story = std::env::var("STORY").expect("`STORY`");
    let bytes: Vec<u8> =
        (0..story.len() / 2).map(|at| u8::from_str_radix(&story[at * 2..][..2], 16).unwrap()).collect();
    laws::check(&bytes);
}

#[test]
fn stories_come_as_far_as_every_kind_of_end() {
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut told = [0; 6];
    for _ in 0..300 {
        let story: Vec<u8> = (0..600)
            .map(|_| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random.to_le_bytes()[3]
            })
            .collect();
        let hex: String = story.iter().map(|byte| format!("{byte:02x}")).collect();
        let ends = std::panic::catch_unwind(|| laws::check(&story)).unwrap_or_else(|_| panic!("STORY={hex}"));
        told.iter_mut().zip(ends).for_each(|(sum, more)| *sum += more);
    }
    assert!(
        told.iter().all(|units| *units > 100),
        "spent, refunded, written off, given away, taken of limits, limits reached: {told:?}"
    );
}
