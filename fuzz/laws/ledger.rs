//! What holds of every account, whatever buyers, upstreams, disks and clocks do.
//!
//! The bytes are a story: payments, requests that reserve, commit, release or are dropped, many at once, stores that fail or
//! only say so, crashes, restarts, refunds, limits by the month and clocks that go over its end and back. A model beside it
//! counts every unit by hand; after each step the ledger must agree with it, and whenever the books are opened again they must
//! be somewhere between what was acknowledged and what was used, never on the buyer's cost.
//!
//! Here are the story, the model and what one request does; beside it, what is drawn from limits, paid back and lost.

use std::{
    collections::HashMap,
    future::Future,
    num::NonZeroU64,
    pin::pin,
    sync::Arc,
    task::{Context, Waker},
};

use bytes::Bytes;
use farebox_lightning::{Cursor, Settlement, clock::ManualClock};
use farebox_paywall::{
    ledger::{
        FirstTime, Ledger, LedgerConfig, RefundError, Refused, Repeat, Reservation, Unavailable,
        law::Refund,
        month::{Draw, Month, Taken},
    },
    store::{
        Presentation, Sold, Store, StoreError,
        accounts::{
            Accounts, Allotment, MonthlyUse, RefundId, RefundOf, RefundOrder, RequestDigest, StoredAnswer,
            Unit,
        },
        conformance::{Fault, Faulty},
        sqlite::SqliteStore,
    },
};
use farebox_protocol::{CapabilityName, IdentifierHash, Msat, Offer, PaymentHash, Terms, Timestamp, TokenId};
use tokio::runtime::Runtime;

#[path = "ledger/disk.rs"]
mod disk;
#[path = "ledger/limits.rs"]
mod limits;
#[path = "ledger/refunds.rs"]
mod refunds;

/// How many purchases there are; the ledger has room for fewer.
const TOKENS: usize = 6;
const PRICE: u64 = 40;
const START: u64 = 1_700_000_000;

/// Panics when a law is broken. Tells how many units were spent, refunded, written off and given away by crashes, what was
/// taken of limits by the month, and how often one was reached.
pub(crate) fn check(data: &[u8]) -> [u64; 6] {
    let mut world = World::new();
    let mut story = Story(data);
    while let Some(action) = story.next() {
        world.act(action, &mut story);
        world.hold_to_the_law();
    }
    world.act(CRASH, &mut story);
    world.audit();
    world.told
}

const CRASH: u8 = 7;

struct Story<'a>(&'a [u8]);

impl Story<'_> {
    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn byte(&mut self) -> u8 {
        self.next().unwrap_or_default()
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::from(self.byte()) % bound
    }

    fn units(&mut self) -> u64 {
        u64::from(self.byte() % 16)
    }
}

/// What is known of one purchase, counted by hand.
#[derive(Clone, Debug, Default)]
struct Token {
    spent: u64,
    written_off: u64,
    /// What of it is on the disk for certain.
    acked: (u64, u64),
    refunding: u64,
    refunded: u64,
    paid: u64,
    opened: bool,
}

struct Held {
    token: usize,
    due: u64,
    reservation: Reservation,
    /// What of it is limited, and since which month.
    drawn: Vec<(Tally, u64, Taken)>,
}

/// A purchase, a month, one of two capabilities, and whether money is counted.
type Tally = (usize, Month, bool, bool);

/// What has been used of a tally, and what of it is on the disk for certain.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    used: u64,
    acked: u64,
}

struct World {
    /// One process: dropped, all its tasks are gone.
    process: Option<Runtime>,
    store: Arc<Faulty>,
    sound: Arc<SqliteStore>,
    clock: Arc<ManualClock>,
    ledger: Arc<Ledger>,
    tokens: Vec<Token>,
    tallies: HashMap<Tally, Used>,
    /// The latest month of this process.
    month: Month,
    held: Vec<Held>,
    /// Keys under way, and answers that were given.
    first: Vec<(usize, u8, FirstTime)>,
    answers: HashMap<(usize, u8), (u8, bool)>,
    refunds: HashMap<u8, (usize, u64, Option<Refund>)>,
    /// Whether a group may be on the disk that nobody knows of.
    in_doubt: bool,
    settled: u64,
    told: [u64; 6],
}

fn process() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime")
}

fn config() -> LedgerConfig {
    LedgerConfig { accounts_max: 4, unwritten_max: 40, answers_bytes_max: 64, ..LedgerConfig::new() }
}

fn hash(token: usize) -> PaymentHash {
    let mut bytes = [7; 32];
    // Two of each shard, and more of each than there is room for.
    bytes[0] = u8::try_from(token % 2).expect("small");
    bytes[1] = u8::try_from(token).expect("small");
    PaymentHash::from_bytes(bytes)
}

/// Half of them are requests, half of them credit.
fn allotment(token: usize) -> Allotment {
    match token % 3 {
        0 => Allotment { unit: Unit::Request, units: 7 },
        _ => Allotment { unit: Unit::Msat, units: PRICE },
    }
}

fn presentation(token: usize) -> Presentation {
    let number = u8::try_from(token).expect("small");
    let sold = Sold {
        token_id: TokenId::from_bytes([number; 32]),
        identifier_hash: IdentifierHash::from_bytes([number; 32]),
        service: if token.is_multiple_of(2) { "weather" } else { "maps" }.parse().expect("a name"),
        tier: 0,
        terms: Terms { offer: Offer::Forever, price: Msat::new(PRICE) },
        valid_until: None,
    };
    Presentation { hash: hash(token), sold, at: Timestamp::from_secs(START) }
}

fn name(write: bool) -> CapabilityName {
    if write { "write" } else { "read" }.parse().expect("a name")
}

impl World {
    fn new() -> Self {
        let sound = Arc::new(SqliteStore::in_memory().expect("memory"));
        let store = Arc::new(Faulty::new(sound.clone()));
        let clock = Arc::new(ManualClock::new(Timestamp::from_secs(START)));
        let process = process();
        let ledger = process.block_on(Ledger::open(config(), store.clone(), clock.clone())).expect("opens");
        Self {
            process: Some(process),
            store,
            sound,
            clock,
            ledger,
            tokens: vec![Token::default(); TOKENS],
            tallies: HashMap::new(),
            month: Month(0),
            held: Vec::new(),
            first: Vec::new(),
            answers: HashMap::new(),
            refunds: HashMap::new(),
            in_doubt: false,
            settled: 0,
            told: [0; 6],
        }
    }

    fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.process.as_ref().expect("a process").block_on(work)
    }

    fn act(&mut self, action: u8, story: &mut Story<'_>) {
        match action % 17 {
            0 => self.reserve(story.below(TOKENS), story.units() + 1),
            1 => self.reserve_at_once(story.below(TOKENS), story.units() + 1),
            2 => self.commit(story),
            3 => {
                if let Some(held) = self.take_held(story) {
                    held.reservation.release();
                }
            }
            4 => self.drop_one(story),
            5 => self.many_at_once(story),
            6 => self.flush(),
            CRASH => self.crash(),
            8 => self.restart(story),
            9 => {
                let away = u64::from(story.byte()) * 7_000;
                let now = if away.is_multiple_of(2) { START + away } else { START - away };
                self.clock.set(Timestamp::from_secs(now));
            }
            10 => self.begin_refund(story),
            11 => self.end_refund(story),
            12 => self.settle(story),
            13 => self.break_the_store(story),
            14 => self.ask_under_a_key(story),
            15 => self.draw(story),
            _ => self.store.repair(),
        }
    }

    fn reserve(&mut self, token: usize, units: u64) {
        let units = NonZeroU64::new(units).expect("above zero");
        let outcome = self.run(self.ledger.reserve(presentation(token), allotment(token), units));
        self.judge(token, units.get(), outcome.map(|reserved| reserved.reservation));
    }

    fn reserve_at_once(&mut self, token: usize, units: u64) {
        let units = NonZeroU64::new(units).expect("above zero");
        if let Some(outcome) = self.ledger.reserve_at_once(&hash(token), units) {
            self.judge(token, units.get(), outcome);
        }
    }

    /// Refusals are as binding as permissions.
    fn judge(&mut self, token: usize, units: u64, outcome: Result<Reservation, Refused>) {
        let (left, reserved) = (self.left(token), self.reserved(token));
        match outcome {
            Ok(reservation) => {
                assert!(units <= left, "{units} of {left}");
                self.tokens[token].opened = true;
                self.held.push(Held { token, due: 0, reservation, drawn: Vec::new() });
            }
            Err(Refused::InFlight) => assert!(units > left && units <= left + reserved),
            Err(Refused::UsedUp { left: told }) => assert!(units > left + reserved && told == left),
            Err(Refused::Unavailable(_)) => {}
            Err(other) => panic!("{other}"),
        }
    }

    fn left(&self, token: usize) -> u64 {
        let Token { spent, refunding, refunded, .. } = self.tokens[token];
        let used = spent + refunding + refunded + self.reserved(token);
        allotment(token).units.checked_sub(used).expect("never more than was sold")
    }

    fn reserved(&self, token: usize) -> u64 {
        let of_account = |held: &&Held| held.token == token && held.reservation.is_of_account();
        self.held.iter().filter(of_account).map(|held| held.reservation.units()).sum()
    }

    fn take_held(&mut self, story: &mut Story<'_>) -> Option<Held> {
        match self.held.len() {
            0 => None,
            len => Some(self.held.swap_remove(story.below(len))),
        }
    }

    fn charge(&mut self, token: usize, units: u64) -> (u64, u64) {
        let spent = units.min(self.left(token));
        self.tokens[token].spent += spent;
        self.tokens[token].written_off += units - spent;
        self.told[0] += spent;
        self.told[2] += units - spent;
        (spent, units - spent)
    }

    fn charge_held(&mut self, held: &Held, units: u64) -> (u64, u64) {
        match held.reservation.is_of_account() {
            true => {
                let (spent, written_off) = self.charge(held.token, units);
                self.count(&held.drawn, spent);
                (spent, written_off)
            }
            false => {
                self.count(&held.drawn, units);
                (0, 0)
            }
        }
    }

    fn commit(&mut self, story: &mut Story<'_>) {
        let Some(held) = self.take_held(story) else { return };
        let units = story.units() * u64::from(story.byte() % 5);
        let want = self.charge_held(&held, units);
        let key = self.first.iter().position(|(token, ..)| *token == held.token);
        let charged = match key {
            None => held.reservation.commit(units),
            Some(at) => {
                let (token, key, first) = self.first.swap_remove(at);
                let body = vec![b'x'; usize::from(story.byte())];
                let kept = self.answers.get_mut(&(token, key)).expect("under way");
                kept.1 = true;
                let headers = Bytes::new();
                let answer = StoredAnswer { status: u16::from(kept.0), headers, body: body.into() };
                held.reservation.commit_answered(units, first, Some(answer))
            }
        };
        assert_eq!((charged.spent, charged.written_off), want);
    }

    fn drop_one(&mut self, story: &mut Story<'_>) {
        let Some(mut held) = self.take_held(story) else { return };
        if story.byte().is_multiple_of(2) {
            // It stays, with a charge that is due from now on.
            held.due = story.units();
            held.reservation.due(held.due);
            self.held.push(held);
            return;
        }
        if held.due > 0 {
            self.charge_held(&held, held.due);
        }
        drop(held);
    }

    /// Several want an account at once, and some of them don't wait for it.
    fn many_at_once(&mut self, story: &mut Story<'_>) {
        let wants: Vec<(usize, NonZeroU64, bool)> = (0..story.below(6))
            .map(|_| {
                let token = story.below(TOKENS);
                (
                    token,
                    NonZeroU64::new(story.units() + 1).expect("above zero"),
                    story.byte().is_multiple_of(3),
                )
            })
            .collect();
        let ledger = self.ledger.clone();
        let outcomes = self.run(async {
            let asked = wants.iter().map(|&(token, units, gives_up)| {
                let asked = ledger.reserve(presentation(token), allotment(token), units);
                async move {
                    let mut asked = pin!(asked);
                    if gives_up {
                        // Whatever had been begun is dropped right away.
                        return match asked.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                            std::task::Poll::Ready(outcome) => Some(outcome),
                            std::task::Poll::Pending => None,
                        };
                    }
                    Some(asked.await)
                }
            });
            futures_util::future::join_all(asked).await
        });
        for ((token, units, _), outcome) in wants.into_iter().zip(outcomes) {
            match outcome {
                // Others may have had it all, and it may have been opened without anything being reserved.
                Some(Ok(reserved)) => {
                    self.judge(token, units.get(), Ok(reserved.reservation));
                }
                Some(Err(Refused::OtherSale)) => panic!("it is the same sale"),
                Some(Err(_)) | None => {}
            }
        }
    }

    /// Once, twice, late, too much, too little.
    fn settle(&mut self, story: &mut Story<'_>) {
        let (token, amount) = (story.below(TOKENS), u64::from(story.byte() % 3) * (PRICE / 2));
        let told = 1 + u64::from(story.byte() % 2);
        self.settled += 1;
        for _ in 0..told {
            let settlement = Settlement {
                cursor: Cursor(self.settled),
                hash: hash(token),
                amount: Msat::new(amount),
                at: Timestamp::from_secs(START),
                description: None,
            };
            let to = settlement.cursor;
            self.run(self.sound.settle("node", vec![settlement.into()], to)).expect("settles");
        }
        self.tokens[token].paid += amount;
        let purchase = self.run(self.sound.purchase(hash(token))).expect("reads").expect("a row");
        assert_eq!(purchase.paid.get(), self.tokens[token].paid, "each payment counts once");
        assert!(purchase.is_balanced());
    }

    fn ask_under_a_key(&mut self, story: &mut Story<'_>) {
        let (token, key, what) = (story.below(2), story.byte() % 3, story.byte() % 2);
        let request = RequestDigest([what; 32]);
        let Ok(repeat) = self.run(self.ledger.begin_answer(&hash(token), &[key], request)) else { return };
        let known = self.answers.get(&(token, key)).copied();
        match (repeat, known) {
            (Repeat::First(first), known) => {
                assert!(known.is_none_or(|(_, answered)| answered), "two first ones at once");
                // It may have been answered so long ago that it is forgotten.
                self.answers.insert((token, key), (what, false));
                self.first.push((token, key, first));
            }
            (Repeat::UnderWay, Some((asked, answered))) => assert!(!answered && asked == what),
            (Repeat::Different, Some((asked, _))) => assert_ne!(asked, what),
            (Repeat::Replay(answer), Some((asked, answered))) => {
                assert!(answered && asked == what && answer.status == u16::from(what));
            }
            (Repeat::NotKept, Some((asked, answered))) => assert!(answered && asked == what),
            // From before a crash.
            (Repeat::Replay(_) | Repeat::NotKept | Repeat::Different, None) => {}
            (other, None) => panic!("{other:?}"),
        }
    }

    /// What is in memory is what was counted by hand.
    fn hold_to_the_law(&mut self) {
        assert!(self.ledger.health().accounts <= 16, "bounded");
        for number in 0..TOKENS {
            let Some(balance) = self.ledger.balance(&hash(number)) else {
                assert_eq!(self.reserved(number), 0, "forgotten with a reservation");
                continue;
            };
            assert!(balance.holds(), "{balance:?}");
            let token = &mut self.tokens[number];
            token.opened = true;
            let counted = (token.spent, token.written_off, token.refunding, token.refunded);
            let have = (balance.spent(), balance.written_off(), balance.refunding(), balance.refunded());
            assert_eq!(have, counted);
            assert_eq!((balance.reserved(), balance.left()), (self.reserved(number), self.left(number)));
        }
        let month = self.ledger.month();
        for number in 0..TOKENS {
            for (write, money) in [(false, false), (false, true), (true, false), (true, true)] {
                let (tally, unit) =
                    ((number, month, write, money), if money { Unit::Msat } else { Unit::Request });
                let want = (self.used(&tally), self.drawn(&tally));
                match self.ledger.used(&hash(number), &name(write), unit) {
                    Some(found) => assert_eq!(found, want),
                    None => assert_eq!(want.1, 0, "forgotten with a reservation"),
                }
            }
        }
    }

    fn audit(&self) {
        let audit = self.run(self.sound.audit()).expect("reads");
        assert!(audit.breaches.is_empty(), "{:#?}", audit.breaches);
    }
}
