//! What holds of every account, whatever buyers, upstreams, disks and clocks do.
//!
//! The bytes are a story: payments, requests that reserve, commit, release or are dropped, many at once, stores that fail or
//! only say so, crashes, restarts, refunds, limits by the month and clocks that go over its end and back. A model beside it
//! counts every unit by hand; after each step the ledger must agree with it, and whenever the books are opened again they must be somewhere between what was acknowledged and what was
//! used, never on the buyer's cost.

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

    /// One more request, of an account or with a pass, that is limited in one or two ways.
    fn draw(&mut self, story: &mut Story<'_>) {
        let (token, units) = (story.below(TOKENS), NonZeroU64::new(story.units() + 1).expect("above zero"));
        let how = story.byte();
        let reservation = match how % 3 {
            0 => self.ledger.of_pass(hash(token), units).ok(),
            _ => match self.ledger.reserve_at_once(&hash(token), units) {
                Some(Ok(reservation)) => Some(reservation),
                _ => None,
            },
        };
        let Some(reservation) = reservation else { return };
        let month = self.ledger.month();
        assert!(month >= self.month, "a month has begun again");
        self.month = month;
        let draws: Vec<(Draw, Tally)> = (0..=how % 2)
            .map(|second| {
                let (write, money) = ((how & 4 > 0) ^ (second > 0), how & 8 > 0);
                let (unit, takes, taken) = match money {
                    true => (Unit::Msat, units.get(), Taken::AsCharged),
                    false => (Unit::Request, 1, Taken::All),
                };
                let (capability, most) = (name(write), u64::from(story.byte() % 24));
                (Draw { capability, unit, most, takes, taken }, (token, month, write, money))
            })
            .collect();
        let asked: Vec<Draw> = draws.iter().map(|(draw, _)| draw.clone()).collect();
        let outcome = match how & 16 > 0 {
            true => self.ledger.limit_at_once(reservation, &asked),
            false => Some(self.run(self.ledger.limit(reservation, &asked))),
        };
        let beside = |of: &Tally| (self.used(of), self.drawn(of));
        match outcome {
            None | Some(Err(Refused::Unavailable(_))) => {}
            Some(Ok(reservation)) => {
                for (draw, tally) in &draws {
                    let (used, reserved) = beside(tally);
                    assert!(used + reserved + draw.takes <= draw.most, "{used}, {reserved}: {draw:?}");
                }
                let drawn = draws.iter().map(|(draw, tally)| (*tally, draw.takes, draw.taken)).collect();
                self.tokens[token].opened |= reservation.is_of_account();
                self.held.push(Held { token, due: 0, reservation, drawn });
            }
            Some(Err(Refused::InFlight)) => {
                assert!(draws.iter().all(|(draw, tally)| beside(tally).0 + draw.takes <= draw.most));
                let is_short = |(draw, tally): &(Draw, Tally)| {
                    let (used, reserved) = beside(tally);
                    used + reserved + draw.takes > draw.most
                };
                assert!(draws.iter().any(is_short));
            }
            Some(Err(Refused::Limited(reached))) => {
                let is_it = |(draw, tally): &&(Draw, Tally)| {
                    draw.capability == reached.capability && beside(tally).0 == reached.used
                };
                let (draw, _) = draws.iter().find(is_it).expect("one of those that were asked for");
                assert!(reached.used + draw.takes > draw.most && reached.ends_at == month.ends_at());
                self.told[5] += 1;
            }
            Some(Err(other)) => panic!("{other}"),
        }
    }

    fn used(&self, tally: &Tally) -> u64 {
        self.tallies.get(tally).map_or(0, |tally| tally.used)
    }

    fn drawn(&self, tally: &Tally) -> u64 {
        let drawn = self.held.iter().flat_map(|held| &held.drawn);
        drawn.filter(|(of, ..)| of == tally).map(|(_, takes, _)| takes).sum()
    }

    /// What a charge has taken of limits.
    fn count(&mut self, drawn: &[(Tally, u64, Taken)], charged: u64) {
        for (tally, takes, taken) in drawn {
            let used = if *taken == Taken::All { *takes } else { charged };
            self.tallies.entry(*tally).or_default().used += used;
            self.told[4] += used;
        }
    }

    fn on_the_disk(&self, &(token, month, write, money): &Tally) -> u64 {
        let uses = self.run(self.sound.uses(hash(token), month)).expect("reads");
        let unit = if money { Unit::Msat } else { Unit::Request };
        let of = |used: &&MonthlyUse| used.capability == name(write) && used.unit == unit;
        uses.iter().find(of).map_or(0, |used| used.used)
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

    fn flush(&mut self) {
        match self.run(self.ledger.flush()) {
            Ok(()) => self.acknowledge(),
            Err(_) => self.in_doubt = true,
        }
    }

    fn acknowledge(&mut self) {
        assert_eq!(self.ledger.health().unwritten, 0);
        self.in_doubt = false;
        for token in &mut self.tokens {
            token.acked = (token.spent, token.written_off);
        }
        for tally in self.tallies.values_mut() {
            tally.acked = tally.used;
        }
        for (tally, used) in &self.tallies {
            assert_eq!(self.on_the_disk(tally), used.acked, "{tally:?}");
        }
        for (token, at) in (0..).zip(&self.tokens) {
            if at.opened {
                let account = self.run(Accounts::account(&*self.sound, hash(token))).expect("reads");
                let balance = account.expect("an account").balance;
                assert_eq!((balance.spent(), balance.written_off()), at.acked);
            }
        }
        self.audit();
    }

    /// The process is gone: what it held in memory, and whatever its tasks were about.
    fn crash(&mut self) {
        drop(self.process.take());
        // They belong to a ledger that nobody writes for any more.
        self.held.clear();
        self.first.clear();
        self.open_again(false);
    }

    /// What is under way ends, and everything is written; unless the store won't.
    fn restart(&mut self, story: &mut Story<'_>) {
        let works = !story.byte().is_multiple_of(4);
        if works {
            self.store.repair();
        }
        while let Some(held) = self.held.pop() {
            if held.due > 0 {
                self.charge_held(&held, held.due);
            }
            drop(held);
        }
        for (token, key, first) in std::mem::take(&mut self.first) {
            self.answers.remove(&(token, key));
            drop(first);
        }
        let lost = self.run(self.ledger.close());
        let refused = self.ledger.reserve_at_once(&hash(0), NonZeroU64::MIN);
        assert!(matches!(refused, None | Some(Err(Refused::Unavailable(Unavailable::Ended)))));
        match lost {
            0 => self.acknowledge(),
            _ => self.in_doubt = true,
        }
        assert!(!works || lost == 0, "{lost} commits were lost by a store that works");
        drop(self.process.take());
        self.open_again(works);
    }

    fn open_again(&mut self, closed: bool) {
        self.store.repair();
        self.process = Some(process());
        let last = self.run(self.sound.epochs(1)).expect("reads")[0];
        assert!(!closed || last.ended_at.is_some(), "{last:?}");
        self.ledger =
            self.run(Ledger::open(config(), self.store.clone(), self.clock.clone())).expect("opens");
        for number in 0..TOKENS {
            let account = self.run(Accounts::account(&*self.sound, hash(number))).expect("reads");
            let token = &mut self.tokens[number];
            let Some(account) = account else {
                assert!(!token.opened, "an account is gone");
                continue;
            };
            let (spent, written_off) = (account.balance.spent(), account.balance.written_off());
            assert!((token.acked.0..=token.spent).contains(&spent), "{spent} of {token:?}");
            assert!((token.acked.1..=token.written_off).contains(&written_off));
            assert!(self.in_doubt || (spent, written_off) == token.acked);
            self.told[3] += token.spent - spent;
            (token.spent, token.written_off) = (spent, written_off);
            token.acked = (spent, written_off);
            // Refunds are on the disk before anything else happens; what was in doubt is read back.
            (token.refunding, token.refunded) = (account.balance.refunding(), account.balance.refunded());
            token.opened = true;
        }
        self.month = Month(0);
        let tallies: Vec<Tally> = self.tallies.keys().copied().collect();
        for tally in tallies {
            let found = self.on_the_disk(&tally);
            let used = self.tallies.get_mut(&tally).expect("one of them");
            assert!((used.acked..=used.used).contains(&found), "{found} of {used:?}");
            assert!(self.in_doubt || found == used.acked);
            *used = Used { used: found, acked: found };
        }
        for (id, (_, amount, end)) in &mut self.refunds {
            let row =
                self.process.as_ref().expect("a process").block_on(self.sound.refund(RefundId([*id; 16])));
            let row = row.expect("reads");
            let found = row.and_then(|row| row.ended).map(|(end, _)| end);
            assert!(end.is_none() || *end == found, "a refund that had ended");
            (*amount, *end) = (row.map_or(*amount, |row| row.order.amount.get()), found);
        }
        // An answer is there with its debit or not at all.
        self.answers.clear();
        self.in_doubt = false;
    }

    fn begin_refund(&mut self, story: &mut Story<'_>) {
        let (id, token, amount) = (story.byte() % 8, story.below(TOKENS), story.units());
        let order = RefundOrder {
            id: RefundId([id; 16]),
            hash: hash(token),
            of: RefundOf::Credit,
            amount: Msat::new(amount),
            at: Timestamp::from_secs(START),
        };
        let known = self.refunds.get(&id).copied();
        let outcome = self.run(self.ledger.begin_refund(order));
        let is_credit = allotment(token).unit == Unit::Msat;
        match outcome {
            Ok(()) => match known {
                Some((of, was, _)) => assert_eq!((of, was), (token, amount), "begun as something else"),
                None => {
                    assert!(is_credit && amount > 0 && amount <= self.left(token));
                    self.tokens[token].refunding += amount;
                    self.refunds.insert(id, (token, amount, None));
                }
            },
            Err(RefundError::Store(StoreError::OtherRefund)) => {
                assert!(known.is_some_and(|(of, was, _)| (of, was) != (token, amount)));
            }
            Err(RefundError::Store(StoreError::NotThere)) => {
                assert!(!is_credit || amount == 0 || !self.tokens[token].opened);
            }
            Err(RefundError::UnderWay) => self.wait_or_crash(story, order),
            Err(RefundError::Refused(_) | RefundError::Store(_)) => {}
            Err(other) => panic!("{other}"),
        }
    }

    /// Nobody knows what has become of a refund; it is asked for again until somebody does, or the process ends.
    fn wait_or_crash(&mut self, story: &mut Story<'_>, order: RefundOrder) {
        let before = self.refunds.len();
        let id = order.id.0[0];
        let token = (0..TOKENS).find(|token| hash(*token) == order.hash).expect("one of ours");
        if story.byte().is_multiple_of(2) {
            self.crash();
        } else {
            self.store.repair();
            self.run(async { tokio::time::sleep(std::time::Duration::from_secs(10)).await });
        }
        let row = self.run(self.sound.refund(order.id)).expect("reads");
        if let (Some(row), false) = (row, self.refunds.contains_key(&id)) {
            assert_eq!(row.order.amount, order.amount);
            self.refunds.insert(id, (token, order.amount.get(), None));
            let balance = self.run(Accounts::account(&*self.sound, order.hash)).expect("reads");
            self.tokens[token].refunding = balance.expect("an account").balance.refunding();
        }
        assert!(self.refunds.len() - before <= 1);
    }

    fn end_refund(&mut self, story: &mut Story<'_>) {
        let id = story.byte() % 8;
        let end = match story.byte() {
            part if part.is_multiple_of(3) => Refund::Part(Msat::new(u64::from(part % 16) + 1)),
            whole if whole.is_multiple_of(2) => Refund::Paid,
            _ => Refund::Failed,
        };
        let mut outcome = self.run(self.ledger.end_refund(RefundId([id; 16]), end));
        while outcome == Err(RefundError::UnderWay) {
            self.store.repair();
            self.run(async { tokio::time::sleep(std::time::Duration::from_secs(10)).await });
            outcome = self.run(self.ledger.end_refund(RefundId([id; 16]), end));
        }
        match (outcome, self.refunds.get_mut(&id)) {
            (Ok(row), Some((token, amount, ended))) => {
                let (found, _) = row.ended.expect("it has ended");
                if let Some(ended) = ended {
                    assert_eq!(found, *ended, "the first end stays");
                    return;
                }
                let (want, refunded) = match end {
                    Refund::Paid => (Refund::Paid, *amount),
                    Refund::Part(part) => (Refund::Paid, part.get().min(*amount)),
                    Refund::Failed => (Refund::Failed, 0),
                };
                assert_eq!(found, want);
                *ended = Some(want);
                let token = &mut self.tokens[*token];
                token.refunding -= *amount;
                token.refunded += refunded;
                self.told[1] += refunded;
                if let Refund::Part(_) = end {
                    // From now on the books say that it was asked for so much.
                    *amount = refunded;
                }
            }
            (Ok(row), None) => panic!("{row:?} from nowhere"),
            (Err(RefundError::Store(StoreError::NotThere)), known) => assert!(known.is_none()),
            (Err(RefundError::Refused(_) | RefundError::Store(_)), _) => {}
            (Err(other), _) => panic!("{other}"),
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

    fn break_the_store(&mut self, story: &mut Story<'_>) {
        let text = String::new();
        let errors =
            [StoreError::Full(text.clone()), StoreError::Busy(text.clone()), StoreError::ReadOnly(text)];
        for _ in 0..=story.below(5) {
            let error = errors[story.below(3)].clone();
            let fault = match story.byte() % 5 {
                0 => Fault::None,
                1 => Fault::Fails(error),
                2 => Fault::FailsAfterwards(error),
                3 => Fault::Hangs,
                _ => Fault::HangsAfterwards,
            };
            self.store.next.lock().push_back(fault);
        }
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
