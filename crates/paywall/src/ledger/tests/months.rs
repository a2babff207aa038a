//! Limits by the month: as hard as the account itself, over any number of tokens, threads, crashes and clocks.

use crate::{
    ledger::month::{Draw, Month, Reached, Taken},
    store::accounts::MonthlyUse,
};

use super::*;

/// The last moments of November 2023.
const LATE: Timestamp = Timestamp::from_secs(1_701_388_790);
/// December has begun.
const NEXT: Timestamp = Timestamp::from_secs(1_701_388_800);

struct Limited {
    books: Books,
    clock: Arc<ManualClock>,
}

fn at_most(most: u64) -> Vec<Draw> {
    let capability = "read".parse().unwrap();
    vec![Draw { capability, unit: Unit::Request, most, takes: 1, taken: Taken::All }]
}

impl Limited {
    async fn open() -> Self {
        Self::open_with(LedgerConfig::new(), Arc::new(SqliteStore::in_memory().unwrap()), LATE).await
    }

    async fn open_with(config: LedgerConfig, sound: Arc<SqliteStore>, now: Timestamp) -> Self {
        let clock = Arc::new(ManualClock::new(now));
        let store = Arc::new(Faulty::new(sound.clone()));
        let ledger = Ledger::open(config, store.clone(), clock.clone()).await.unwrap();
        Self { books: Books { sound, store, ledger }, clock }
    }

    /// After a crash.
    async fn reopen(&self) -> Self {
        Self::open_with(LedgerConfig::new(), self.books.sound.clone(), self.clock.now()).await
    }

    /// One request with a pass.
    async fn pass(&self, number: u8, most: u64) -> Result<Reservation, Refused> {
        let ledger = &self.books.ledger;
        ledger.limit(ledger.of_pass(hash(number), NonZeroU64::MIN)?, &at_most(most)).await
    }

    /// One of a thousand requests.
    async fn one(&self, number: u8, most: u64) -> Result<Reservation, Refused> {
        self.books.ledger.limit(self.books.take(number, 1_000).await?, &at_most(most)).await
    }

    async fn serve(&self, number: u8, most: u64, times: u64) {
        for _ in 0..times {
            self.pass(number, most).await.unwrap().commit(1);
        }
    }

    async fn written(&self, number: u8, month: Month) -> u64 {
        let uses = self.books.sound.uses(hash(number), month).await.unwrap();
        uses.iter().map(|of| of.used).sum()
    }
}

#[track_caller]
fn used_up(refused: Result<Reservation, Refused>) -> Box<Reached> {
    match refused.unwrap_err() {
        Refused::Limited(reached) => reached,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn so_much_is_served_in_a_month_and_more_in_the_next() {
    let limited = Limited::open().await;
    limited.serve(1, 3, 3).await;
    let reached = used_up(limited.pass(1, 3).await);
    assert_eq!((reached.used, reached.most, reached.needed, reached.ends_at), (3, 3, 1, NEXT));
    limited.serve(2, 3, 1).await;
    limited.clock.set(NEXT);
    limited.serve(1, 3, 3).await;
    used_up(limited.pass(1, 3).await);
    limited.books.ledger.flush().await.unwrap();
    let (november, december) = (Month::of(LATE), Month::of(NEXT));
    assert_eq!((limited.written(1, november).await, limited.written(1, december).await), (3, 3));
    assert_eq!(limited.books.ledger.health().unwritten, 0);
}

#[tokio::test]
async fn an_account_and_a_limit_are_both_kept_or_nothing_is_taken_of_either() {
    let limited = Limited::open().await;
    limited.one(1, 2).await.unwrap().commit(1);
    let held = limited.one(1, 2).await.unwrap();
    assert_eq!(limited.one(1, 2).await.unwrap_err(), Refused::InFlight);
    held.release();
    drop(limited.one(1, 2).await.unwrap());
    limited.one(1, 2).await.unwrap().commit(1);
    used_up(limited.one(1, 2).await);
    let balance = limited.books.ledger.balance(&hash(1)).unwrap();
    assert_eq!((balance.spent(), balance.reserved()), (2, 0), "what the limit refuses isn't taken");
    let mut due = limited.one(1, 3).await.unwrap();
    due.due(1);
    drop(due);
    used_up(limited.one(1, 3).await);
    // Nothing of the account is left: nothing of the limit is taken.
    drop(limited.books.ledger.reserve_at_once(&hash(1), units(997)).unwrap().unwrap());
    limited.books.ledger.reserve_at_once(&hash(1), units(997)).unwrap().unwrap().commit(997);
    assert_eq!(limited.one(1, 9).await.unwrap_err(), Refused::UsedUp { left: 0 });
    let read = "read".parse().unwrap();
    assert_eq!(limited.books.ledger.used(&hash(1), &read, Unit::Request), Some((3, 0)));
}

#[tokio::test]
async fn money_counts_as_it_is_charged_and_a_stricter_token_sees_what_others_used() {
    let limited = Limited::open().await;
    let ledger = &limited.books.ledger;
    let spending = |most| {
        let (capability, taken) = ("write".parse().unwrap(), Taken::AsCharged);
        [Draw { capability, unit: Unit::Msat, most, takes: 100, taken }]
    };
    let ask = async |most| ledger.limit(ledger.of_pass(hash(1), units(100)).unwrap(), &spending(most)).await;
    // Less than was set aside, and more: it is counted as it was.
    for charge in [30, 0, 500] {
        ask(1_000).await.unwrap().commit(charge);
    }
    assert_eq!(used_up(ask(600).await).used, 530);
    drop(ask(630).await.unwrap());
    let (first, second) = (ask(1_000).await.unwrap(), ask(1_000).await.unwrap());
    assert_eq!(ask(700).await.unwrap_err(), Refused::InFlight);
    used_up(ask(629).await);
    drop((first, second));
    ask(630).await.unwrap().commit(100);
    used_up(ask(630).await);
}

#[tokio::test]
async fn what_a_request_takes_beyond_its_reserve_stays_within_its_limits() {
    let limited = Limited::open().await;
    let ledger = &limited.books.ledger;
    let write = "write".parse().unwrap();
    let spending = |most| {
        let (capability, taken) = ("write".parse().unwrap(), Taken::AsCharged);
        [Draw { capability, unit: Unit::Msat, most, takes: 1, taken }]
    };
    let ask = async |most| ledger.limit(limited.books.take(1, 1_000).await.unwrap(), &spending(most)).await;
    let (mut one, mut other) = (ask(100).await.unwrap(), ask(100).await.unwrap());
    assert_eq!((one.extend(50), other.extend(900), one.extend(1)), (50, 48, 0));
    assert_eq!(ledger.used(&hash(1), &write, Unit::Msat), Some((0, 100)));
    assert_eq!(ledger.balance(&hash(1)).unwrap().reserved(), 100);
    one.commit(51);
    other.release();
    assert_eq!(ledger.used(&hash(1), &write, Unit::Msat), Some((51, 0)));
    // Nor does it take of a limit what its account doesn't have.
    let mut all = ask(10_000).await.unwrap();
    assert_eq!(all.extend(10_000), 948);
    assert_eq!(ledger.used(&hash(1), &write, Unit::Msat), Some((51, 949)));
    drop(all);
    let pass = ledger.of_pass(hash(1), NonZeroU64::MIN).unwrap();
    let mut pass = ledger.limit(pass, &spending(60)).await.unwrap();
    assert_eq!((pass.extend(100), pass.units()), (8, 9));
    pass.commit(9);
    assert_eq!(used_up(ask(60).await).used, 60);
    assert_eq!(ledger.balance(&hash(1)).unwrap().left(), 949);
}

#[tokio::test]
async fn a_clock_that_is_set_back_opens_no_month_again() {
    let limited = Limited::open().await;
    limited.clock.set(NEXT);
    limited.serve(1, 2, 2).await;
    for back in [LATE, START, Timestamp::default()] {
        limited.clock.set(back);
        used_up(limited.pass(1, 2).await);
        limited.clock.set(NEXT);
        used_up(limited.pass(1, 2).await);
    }
    // What is under way over the end of a month belongs to the one in which it began.
    let held = limited.pass(2, 2).await.unwrap();
    limited.clock.set(Month::of(NEXT).ends_at());
    held.commit(1);
    limited.serve(2, 2, 2).await;
    limited.books.ledger.flush().await.unwrap();
    assert_eq!(limited.written(2, Month::of(NEXT)).await, 1);
    // Another life, with the clock put right: the month goes on as it was.
    let again = limited.reopen().await;
    again.clock.set(NEXT);
    let again = again.reopen().await;
    used_up(again.pass(1, 2).await);
    again.serve(2, 2, 1).await;
    used_up(again.pass(2, 2).await);
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_was_far_ahead_heals_within_an_hour_and_gives_no_month_twice() {
    const MINUTE: Duration = Duration::from_secs(60);
    let far = Timestamp::from_secs(4_070_908_800);
    let limited = Limited::open().await;
    limited.serve(1, 2, 2).await;
    // It jumps to 2099 and is used up there, too.
    limited.clock.set(far);
    limited.serve(1, 2, 2).await;
    used_up(limited.pass(1, 2).await);
    // Set right, it is believed after an hour, and the month goes on as it was left.
    limited.clock.set(LATE);
    assert_eq!(used_up(limited.pass(1, 2).await).ends_at, Month::of(far).ends_at());
    time::advance(59 * MINUTE).await;
    drop(limited.pass(2, 2).await.unwrap());
    assert_eq!(limited.books.ledger.month(), Month::of(far));
    time::advance(MINUTE).await;
    assert_eq!(used_up(limited.pass(1, 2).await).ends_at, NEXT);
    limited.serve(2, 2, 1).await;
    for (shown, waits) in [(far, 0), (LATE, 61), (far, 0)] {
        limited.clock.set(shown);
        drop(limited.pass(3, 1).await.unwrap());
        time::advance(waits * MINUTE).await;
        assert_eq!(limited.books.ledger.month(), Month::of(shown));
        used_up(limited.pass(1, 2).await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_back_by_a_little_over_the_end_of_a_month_changes_nothing() {
    let limited = Limited::open().await;
    limited.serve(1, 2, 1).await;
    limited.clock.set(NEXT);
    limited.serve(1, 2, 2).await;
    for _ in 0..3 {
        // What November had left is not to be had, nor is December begun anew.
        limited.clock.set(LATE);
        used_up(limited.pass(1, 2).await);
        time::advance(Duration::from_secs(3_540)).await;
        used_up(limited.pass(1, 2).await);
        limited.clock.set(NEXT);
        used_up(limited.pass(1, 2).await);
    }
}

#[tokio::test]
async fn a_crash_gives_back_what_was_not_written_of_a_limit() {
    let limited = Limited::open().await;
    limited.serve(1, 5, 2).await;
    limited.books.ledger.flush().await.unwrap();
    limited.serve(1, 5, 2).await;
    let _under_way = limited.pass(1, 5).await.unwrap();
    let again = limited.reopen().await;
    again.serve(1, 5, 3).await;
    used_up(again.pass(1, 5).await);
}

#[tokio::test]
async fn of_many_threads_as_many_win_as_a_limit_leaves() {
    for round in 0..10 {
        let limited = Limited::open().await;
        drop(limited.pass(1, 10).await.unwrap());
        let (ledger, start) = (&limited.books.ledger, Barrier::new(16));
        let won: u64 = thread::scope(|scope| {
            let tries = (0..16).map(|number: u64| {
                let start = &start;
                scope.spawn(move || {
                    start.wait();
                    let mut won = 0;
                    for turn in 0..50 {
                        let pass = ledger.of_pass(hash(1), NonZeroU64::MIN).unwrap();
                        match ledger.limit_at_once(pass, &at_most(10)).expect("in memory") {
                            Ok(held) if (number + turn + round).is_multiple_of(3) => held.release(),
                            Ok(held) => {
                                held.commit(1);
                                won += 1;
                            }
                            Err(refused) => {
                                assert!(matches!(refused, Refused::InFlight | Refused::Limited(_)));
                            }
                        }
                    }
                    won
                })
            });
            tries.collect::<Vec<_>>().into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(won, 10);
        used_up(limited.pass(1, 10).await);
        limited.books.ledger.flush().await.unwrap();
        assert_eq!(limited.written(1, Month::of(LATE)).await, 10);
    }
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_cannot_be_read_or_written_refuses_and_a_full_memory_too() {
    let sound = Arc::new(SqliteStore::in_memory().unwrap());
    let config = LedgerConfig { accounts_max: 1, ..LedgerConfig::new() };
    let limited = Limited::open_with(config, sound, LATE).await;
    for fault in [Fault::Fails(StoreError::Busy(String::new())), Fault::Hangs] {
        limited.books.store.next.lock().push_back(fault);
        assert!(matches!(limited.pass(1, 9).await, Err(Refused::Unavailable(_))));
    }
    let held = limited.pass(1, 9).await.unwrap();
    // One place for each lock: those whose hashes begin alike share one.
    assert!(matches!(limited.pass(17, 9).await, Err(Refused::Unavailable(Unavailable::Full))));
    held.commit(1);
    *limited.books.store.always.lock() = Fault::Fails(StoreError::Full(String::new()));
    limited.books.ledger.flush().await.unwrap_err();
    assert!(matches!(limited.pass(1, 9).await, Err(Refused::Unavailable(Unavailable::NotWriting))));
    limited.books.store.repair();
    limited.books.ledger.flush().await.unwrap();
    limited.serve(17, 9, 1).await;
    limited.books.ledger.flush().await.unwrap();
    limited.serve(1, 2, 1).await;
    used_up(limited.pass(1, 2).await);
}

#[tokio::test]
async fn an_answer_to_a_limited_pass_is_kept_with_what_it_took() {
    let limited = Limited::open().await;
    let ledger = &limited.books.ledger;
    let Ok(Repeat::First(first)) = ledger.begin_answer(&hash(1), b"key", request(1)).await else { panic!() };
    limited.pass(1, 1).await.unwrap().commit_answered(1, first, Some(answer(3)));
    for _ in 0..2 {
        let again = ledger.begin_answer(&hash(1), b"key", request(1)).await.unwrap();
        assert!(matches!(again, Repeat::Replay(_)), "{again:?}");
        ledger.flush().await.unwrap();
    }
    let november = Month::of(LATE);
    let uses = limited.books.sound.uses(hash(1), november).await.unwrap();
    let (capability, unit) = ("read".parse().unwrap(), Unit::Request);
    assert_eq!(uses, [MonthlyUse { hash: hash(1), month: november, capability, unit, used: 1 }]);
}
