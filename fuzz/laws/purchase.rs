//! What holds of every purchase, whatever servers, journals and wallets answer.
//!
//! The bytes are a story: the rules of the purchase, the credentials at hand, then what happens, one byte each. Mostly an
//! event answers the command that was given; now and then it is any event at all.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use farebox_client::policy::{Policy, Verdict};
use farebox_client::purchase::{
    Answer, Command, Event, Order, Purchase, Refusal, Reservation, Rules, Stop, judge,
};
use farebox_client::{Limits, Money, Origin, Pass, Scope};
use farebox_lightning::outgoing::{Ended, Failure, Paid};
use farebox_lightning::{FeeControl, PayFacts, WalletId};
use farebox_protocol::{Msat, Network, OfferedChallenge, PaymentHash, RootKey, Scheme, Timestamp};
use http::StatusCode;

#[path = "../../crates/client/tests/support/mint.rs"]
mod mint;
use mint::Draft;

const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);
const SERVICES: [&str; 3] = ["", "a", "b"];
/// So many commands are enough for any purchase that ends.
const COMMANDS_MAX: usize = 60;

/// Panics when a law is broken. Tells whether the story came as far as a payment that settled.
pub(crate) fn check(data: &[u8]) -> bool {
    let mut story = Story(data);
    let rules = rules(&mut story);
    let candidates: Vec<_> = (0..story.next() % 4).map(|_| pass(&mut story)).collect();
    let mut books = Books {
        rules: rules.clone(),
        held: candidates.iter().map(Pass::payment_hash).collect(),
        bought: HashSet::new(),
        paid: 0,
        recorded: false,
        approved: Msat::ZERO,
        spent: false,
    };
    let (mut purchase, mut command) = Purchase::new(shop(), rules, candidates);
    for _ in 0..COMMANDS_MAX {
        books.allow(&command, &purchase);
        if story.0.is_empty() {
            return books.spent;
        }
        let event = if story.next().is_multiple_of(16) {
            any_event(&mut story)
        } else {
            match answer_to(&command, &mut story) {
                Some(event) => event,
                None => return books.spent,
            }
        };
        let over = matches!(command, Command::Deliver | Command::Stop(_));
        books.happened(&command, &event);
        command = purchase.on(event);
        // What has ended stays ended.
        assert!(!over || matches!(command, Command::Stop(Stop::Confused)), "{command:?}");
    }
    assert!(story.0.is_empty() || matches!(command, Command::Stop(_)), "a purchase without end");
    books.spent
}

struct Story<'a>(&'a [u8]);

impl Story<'_> {
    fn next(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 1 };
        self.0 = rest;
        *first
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[usize::from(self.next()) % from.len()].clone()
    }
}

/// What an honest bookkeeper knows.
struct Books {
    rules: Rules,
    held: HashSet<PaymentHash>,
    bought: HashSet<PaymentHash>,
    paid: usize,
    recorded: bool,
    /// The most that a person has agreed to.
    approved: Msat,
    spent: bool,
}

impl Books {
    fn happened(&mut self, command: &Command, event: &Event) {
        match (command, event) {
            (Command::Record(_), Event::Recorded) => self.recorded = true,
            (Command::Approve(order), Event::Approved(_)) => self.approved = self.approved.max(order.price),
            (_, Event::Reserved(Reservation::Pass(pass), _)) => _ = self.held.insert(pass.payment_hash()),
            (Command::Pay(order) | Command::Resume(order), Event::Ended(Ended::Settled(paid)))
                if paid.preimage.pays(&order.payment_hash()) =>
            {
                self.bought.insert(order.payment_hash());
                self.spent = true;
            }
            _ => {}
        }
    }

    fn allow(&mut self, command: &Command, purchase: &Purchase) {
        match command {
            Command::Pay(order) => {
                self.paid += 1;
                assert_eq!(self.paid, 1, "paid twice");
                assert!(self.recorded, "paid before it was recorded");
                assert!(!self.spent, "paid after it was paid for");
                self.allow_order(order);
            }
            Command::Record(order) => {
                self.recorded = false;
                assert!(!self.spent && self.paid == 0);
                self.allow_order(order);
            }
            Command::Send(Some(pass)) => {
                assert_eq!(pass.scope.origin, shop(), "a credential went astray");
                assert!(self.held.contains(&pass.payment_hash()));
                assert!(!self.spent, "another credential than the one that was just bought");
            }
            Command::Retry(pass, after) => {
                assert!(self.bought.contains(&pass.payment_hash()), "a credential that was not paid for");
                assert!(*after < Duration::from_secs(10));
            }
            Command::Send(None) | Command::Reserve(_) | Command::Resume(_) => assert!(!self.spent),
            Command::Approve(order) => {
                assert!(!self.spent && order.judgement.verdict == Verdict::Ask);
                assert!(order.price > self.approved, "asked again for what was agreed to");
            }
            Command::Deliver | Command::Stop(_) => {}
        }
        // Money that has left stays told.
        assert_eq!(self.spent, matches!(purchase.money(), Money::Spent { .. }));
        if let Command::Stop(Stop::Refused(_)) = command {
            assert_eq!(*purchase.money(), Money::None);
        }
    }

    fn allow_order(&self, order: &Order) {
        let wallet = self.rules.wallet.as_ref().expect("paid without a wallet");
        let limits = self.rules.limits;
        assert!(order.price > Msat::ZERO && order.price <= limits.per_payment);
        assert_eq!(order.invoice.amount(), Some(order.price));
        assert!(wallet.fee_control.fee_max(order.price, order.fee_max) <= limits.fee_max);
        assert_eq!(order.invoice.network(), wallet.network);
        assert_eq!(order.scope.origin, shop());
        assert!(!self.rules.authorization_taken && !self.rules.has_bought);
        let Policy { new_origins, otherwise, .. } = &*self.rules.policy;
        let verdict = if self.rules.is_known { *otherwise } else { *new_origins.max(otherwise) };
        assert!(verdict < Verdict::Deny, "paid what the policy denies");
        assert!(verdict == Verdict::Allow || order.price <= self.approved, "paid what nobody has agreed to");
    }
}

fn shop() -> Origin {
    "https://shop.example".parse().expect("an origin")
}

fn rules(story: &mut Story<'_>) -> Rules {
    let sat = |sat: u64| Msat::new(sat * 1_000);
    let worst = FeeControl::WorstCase { base: sat(4), parts_per_million: 4_000 };
    let wallet = PayFacts {
        wallet: WalletId("w".to_owned()),
        network: story.pick(&[Network::Regtest, Network::Regtest, Network::Regtest, Network::Mainnet]),
        proves_unsent: false,
        refuses_paid_hash: false,
        fee_control: story.pick(&[FeeControl::Exact, worst]),
    };
    let (flags, hindrance) = (story.next(), story.next() % 8);
    Rules {
        limits: Limits {
            per_payment: story.pick(&[sat(1_000), sat(1_000), sat(100), sat(99), Msat::ZERO]),
            fee_max: story.pick(&[sat(10), sat(10), sat(10), sat(4), Msat::ZERO]),
        },
        wallet: (hindrance != 0).then_some(wallet),
        in_the_clear: flags & 4 != 0,
        authorization_taken: hindrance == 1,
        has_bought: hindrance == 2,
        buy_again: flags & 0x80 != 0,
        policy: Arc::new(Policy {
            new_origins: verdict(story),
            otherwise: verdict(story),
            ..Policy::unlimited()
        }),
        request: Arc::default(),
        is_known: flags & 1 != 0,
    }
}

/// Mostly to allow.
fn verdict(story: &mut Story<'_>) -> Verdict {
    story.pick(&[Verdict::Allow, Verdict::Allow, Verdict::Allow, Verdict::Allow, Verdict::Ask, Verdict::Deny])
}

fn pass(story: &mut Story<'_>) -> Pass {
    Pass {
        scope: Scope { origin: shop(), service: story.pick(&SERVICES).to_owned() },
        scheme: Scheme::L402,
        token: "token".to_owned(),
        preimage: draft(story).preimage(),
        honoured: story.next().is_multiple_of(2),
    }
}

/// Some invoices; a purchase meets the same one again now and then.
fn draft(story: &mut Story<'_>) -> Draft {
    let number = u64::from(story.next() % 8);
    Draft::new(number, if number < 6 { 100 } else { 5_000 }, NOW)
}

/// The header values of all challenges there are, made once: signing is slow.
fn challenge(story: &mut Story<'_>) -> Vec<OfferedChallenge> {
    static ALL: OnceLock<Vec<Vec<String>>> = OnceLock::new();
    let all = ALL.get_or_init(|| {
        let key = RootKey::from_bytes([3; 32]);
        let mut all = Vec::new();
        for number in 0..8 {
            let drafted = draft(&mut Story(&[number]));
            for service in SERVICES {
                all.push(drafted.challenge(&key, service).header_values().to_vec());
            }
            let short = Draft { expiry: Duration::from_secs(3), ..drafted };
            let any = Draft { amount: None, ..drafted };
            let mainnet = Draft { network: Network::Mainnet, ..drafted };
            all.extend(
                [short, any, mainnet].map(|draft| draft.challenge(&key, "a").header_values().to_vec()),
            );
            all.push(vec![format!("L402 token=\"opaque\", invoice=\"{}\"", drafted.invoice())]);
            all.push(vec![format!("L402 token=\"opaque\", invoice=\"{}x\"", drafted.invoice())]);
            let other = Draft { number: 99, ..drafted };
            let token = other.macaroon(&key, &[]).to_base64();
            all.push(vec![format!("L402 token=\"{token}\", invoice=\"{}\"", drafted.invoice())]);
        }
        all.push(vec!["L402".to_owned(), "Payment id=\"x\"".to_owned()]);
        all
    });
    let picked = story.pick(all);
    OfferedChallenge::read_all(picked.iter().map(|value| value.as_bytes()))
}

fn answer(story: &mut Story<'_>) -> Answer {
    let statuses = [402, 402, 402, 402, 402, 402, 401, 200, 404, 503, 302];
    let stranger = || "https://stranger.example".parse().expect("an origin");
    Answer {
        status: StatusCode::from_u16(story.pick(&statuses)).expect("a status"),
        origin: if story.next().is_multiple_of(32) { stranger() } else { shop() },
        offered: match story.next() % 8 {
            0 => Vec::new(),
            1 | 2 => challenge(story),
            // The one that may be paid, mostly.
            _ => challenge(&mut Story(&[1])),
        },
        names_scheme: story.next() % 4 != 3,
        names_other: false,
        is_too_little: false,
        now: now(story),
    }
}

fn now(story: &mut Story<'_>) -> Timestamp {
    NOW.saturating_add(Duration::from_secs(story.pick(&[0, 0, 0, 0, 0, 0, 594, 595, 10_000])))
}

/// An order as an earlier process, with other limits, may have left it.
fn earlier(story: &mut Story<'_>) -> Box<Order> {
    let wallet = PayFacts {
        wallet: WalletId("w".to_owned()),
        network: Network::Regtest,
        proves_unsent: false,
        refuses_paid_hash: false,
        fee_control: FeeControl::Exact,
    };
    let rules = Rules {
        limits: Limits { per_payment: Msat::MAX, fee_max: Msat::MAX },
        wallet: Some(wallet),
        in_the_clear: false,
        authorization_taken: false,
        has_bought: false,
        buy_again: false,
        policy: Arc::new(Policy::unlimited()),
        request: Arc::default(),
        is_known: true,
    };
    let values = draft(story).challenge(&RootKey::from_bytes([3; 32]), "a").header_values();
    let answer = Answer {
        status: StatusCode::PAYMENT_REQUIRED,
        origin: shop(),
        offered: OfferedChallenge::read_all(values.iter().map(|value| value.as_bytes())),
        names_scheme: true,
        names_other: false,
        is_too_little: false,
        now: NOW,
    };
    Box::new(judge(&shop(), &answer, &rules).expect("it may be paid"))
}

fn reservation(story: &mut Story<'_>) -> Reservation {
    match story.next() % 8 {
        0 => Reservation::Pass(pass(story)),
        1 => Reservation::Unsettled(earlier(story)),
        2 => Reservation::NeverHonoured(draft(story).payment_hash()),
        _ => Reservation::Ours,
    }
}

fn ended(story: &mut Story<'_>, draft: Option<&Draft>) -> Ended {
    match (story.next() % 8, draft) {
        (0, _) => Ended::NotPaid(Failure { reason: "no route".to_owned(), unsent: false }),
        (1, _) => Ended::Unknown { reason: "silence".to_owned() },
        // A wallet that lies.
        (2, _) | (_, None) => settled(&self::draft(story)),
        (_, Some(draft)) => settled(draft),
    }
}

fn settled(draft: &Draft) -> Ended {
    Ended::Settled(Paid { preimage: draft.preimage(), fee: Msat::new(1), on_disk: true })
}

fn of(order: &Order) -> Option<Draft> {
    (0..8)
        .map(|number| draft(&mut Story(&[number])))
        .find(|draft| draft.payment_hash() == order.payment_hash())
}

/// An event that answers the command; `None` when there is nothing to answer.
fn answer_to(command: &Command, story: &mut Story<'_>) -> Option<Event> {
    Some(match command {
        Command::Send(_) | Command::Retry(..) => Event::Answered(answer(story)),
        Command::Reserve(_) => Event::Reserved(reservation(story), now(story)),
        Command::Record(_) => match story.next() % 8 {
            0 => Event::RecordedBefore,
            1 => Event::LeaseLost,
            2 => Event::OverBudget(Refusal::NoWallet { price: Msat::ZERO }),
            _ => Event::Recorded,
        },
        Command::Approve(_) => match story.next() % 4 {
            0 => Event::NotApproved(None),
            _ => Event::Approved(now(story)),
        },
        Command::Pay(_) if story.next().is_multiple_of(8) => Event::LeaseLost,
        Command::Pay(order) | Command::Resume(order) => Event::Ended(ended(story, of(order).as_ref())),
        Command::Deliver | Command::Stop(_) => return None,
    })
}

fn any_event(story: &mut Story<'_>) -> Event {
    match story.next() % 8 {
        0 => Event::Answered(answer(story)),
        1 => Event::Reserved(reservation(story), now(story)),
        2 => Event::Recorded,
        3 => Event::RecordedBefore,
        4 => Event::LeaseLost,
        5 => Event::Approved(now(story)),
        6 => Event::NotApproved(None),
        _ => Event::Ended(ended(story, None)),
    }
}
