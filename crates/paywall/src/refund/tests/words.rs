//! Refunds that nobody can explain: counted and told, ended by a person's word and by nothing else, and never paid twice.

use super::{cut_off::way, *};
use crate::ledger::law::Refund;

/// One process, whose waits take no time: dropped, all its tasks are gone.
pub(super) fn process() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

/// The buyer's payment of all these tests.
fn payment() -> PaymentHash {
    Preimage::from_bytes([1; 32]).payment_hash()
}

fn id_in(told: &Value) -> RefundId {
    let mut id = [0; 16];
    hex::decode_to_slice(told["id"].as_str().unwrap(), &mut id).unwrap();
    RefundId(id)
}

fn records(disk: &Disk) -> Records {
    Records::open(&disk.dir.path().join("refunds.sqlite"), None).unwrap()
}

fn word(verdict: Verdict) -> Word {
    Word { verdict, note: "looked at the node".to_owned(), said_at: START }
}

const PAID: Verdict = Verdict::Paid { fee: Msat::new(700) };

pub(super) async fn until(what: impl Fn() -> bool) {
    let waiting = async {
        while !what() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(3_600), waiting).await.unwrap();
}

/// Until a refund has ended. Unlike [`Desk::ended`], it lets time pass.
pub(super) async fn over(desk: &Desk, token: &Token, id: &Value) -> Value {
    let query = format!("id={}", id.as_str().unwrap());
    let waiting = async {
        loop {
            let (_, told) = desk.send(&Method::GET, Some(&query), &token.headers(), "").await;
            if told["state"] != "open" {
                return told;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let told = tokio::time::timeout(Duration::from_secs(3_600), waiting).await.unwrap();
    until(|| desk.refunds.health() == RefundHealth::default()).await;
    told
}

const STUCK: RefundHealth = RefundHealth { open: 1, stuck: 1 };

/// A refund of 50 sat whose wallet knows nothing of it any more, and can't prove that it never did.
async fn stuck(disk: &Arc<Disk>) -> (Desk, Token, Value) {
    *disk.wallet.mood.lock() = Mood::Unclear;
    *disk.wallet.is_plain.lock() = true;
    let desk = disk.open().await;
    let token = desk.credit(1).await;
    let (status, told) = desk.refund(&token, Bill::new(1, 50_000)).await;
    assert_eq!(status, StatusCode::ACCEPTED, "{told}");
    disk.wallet.known.lock().clear();
    until(|| desk.refunds.health() == STUCK).await;
    (desk, token, told["id"].clone())
}

/// What a word given while the process runs, or while none does, makes of it.
#[track_caller]
fn check(verdict: Verdict, state: &str, refunded: u64) {
    for is_running in [true, false] {
        let disk = Disk::new();
        let first = process();
        let (token, id) = first.block_on(async {
            let (desk, token, id) = stuck(&disk).await;
            let record = records(&disk).last(Which::Open, 10).unwrap().remove(0);
            assert_eq!((record.state, record.sending, record.word), ("open", Some("unknown"), None));
            assert_eq!(disk.balance(&token).await.refunding(), 55_500);
            if is_running {
                records(&disk).say(record.id, &word(verdict)).unwrap();
                until(|| desk.refunds.health() == RefundHealth::default()).await;
            }
            (token, id)
        });
        drop(first);
        process().block_on(async {
            if !is_running {
                let id = records(&disk).last(Which::Open, 10).unwrap()[0].id;
                records(&disk).say(id, &word(verdict)).unwrap();
            }
            let desk = disk.open().await;
            assert_eq!(over(&desk, &token, &id).await["state"], state, "running: {is_running}");
            let balance = disk.balance(&token).await;
            assert_eq!((balance.refunded(), balance.refunding()), (refunded, 0));
            assert_eq!(balance.left(), 100_000 - refunded);
            let record = records(&disk).last(Which::All, 10).unwrap().remove(0);
            assert_eq!((record.state, record.word), (state_name(state), Some(word(verdict))));
            desk.lawful().await;
        });
        assert_eq!(disk.wallet.paid(), 1, "never a second time");
    }
}

fn state_name(state: &str) -> &'static str {
    if state == "paid" { "paid" } else { "failed" }
}

#[test]
fn a_word_that_it_was_not_paid_gives_everything_back() {
    check(Verdict::NotPaid, "failed", 0);
}

#[test]
fn a_word_that_it_was_paid_takes_what_it_says() {
    check(PAID, "paid", 50_700);
}

#[tokio::test(start_paused = true)]
async fn what_the_wallet_says_outweighs_a_word() {
    let disk = Disk::new();
    *disk.wallet.mood.lock() = Mood::Unclear;
    *disk.wallet.is_plain.lock() = true;
    let desk = disk.open().await;
    let token = desk.credit(1).await;
    let (_, told) = desk.refund(&token, Bill::new(1, 50_000)).await;
    records(&disk).say(id_in(&told), &word(Verdict::NotPaid)).unwrap();
    // On its way, for all the wallet says: nothing is given back for days.
    tokio::time::sleep(Duration::from_secs(200_000)).await;
    assert_eq!(desk.refunds.health(), RefundHealth { open: 1, stuck: 0 });
    assert_eq!(disk.balance(&token).await.refunding(), 55_500);
    let preimage = Preimage::from_bytes([1; 32]);
    disk.wallet.know(payment(), Outcome::Settled { preimage, fee: Msat::new(500) });
    assert_eq!(over(&desk, &token, &told["id"]).await["state"], "paid");
    assert_eq!(disk.balance(&token).await.refunded(), 50_500);
    desk.lawful().await;
}

#[tokio::test(start_paused = true)]
async fn a_word_is_said_once_of_what_is_open_and_within_what_was_set_aside() {
    let disk = Disk::new();
    let (desk, token, id) = stuck(&disk).await;
    let records = records(&disk);
    let (name, id) = (id.clone(), id_in(&json!({ "id": id })));
    let dear = Verdict::Paid { fee: Msat::new(5_501) };
    assert!(matches!(records.say(id, &word(dear)), Err(WordError::Fee { .. })));
    records.say(id, &word(Verdict::NotPaid)).unwrap();
    records.say(id, &word(Verdict::NotPaid)).unwrap();
    assert!(matches!(records.say(id, &word(PAID)), Err(WordError::Said(_))));
    assert_eq!(over(&desk, &token, &name).await["state"], "failed");
    assert!(matches!(records.say(id, &word(PAID)), Err(WordError::Ended { state: "failed", .. })));
    assert_eq!(disk.balance(&token).await.left(), 100_000);
    // The invoice was tried, and is not tried again.
    *disk.wallet.mood.lock() = Mood::Pays(0);
    assert_eq!(desk.refund(&token, Bill::new(1, 50_000)).await.1["state"], "failed");
    assert_eq!(desk.refund(&token, Bill::new(2, 50_000)).await.1["state"], "paid");
    assert_eq!(disk.wallet.paid(), 2);
}

/// A process that ended between two writes of a word that it took.
#[test]
fn a_word_that_was_taken_half_is_taken_whole_after_a_crash() {
    for (verdict, state, refunded) in [(Verdict::NotPaid, "failed", 0), (PAID, "paid", 50_700)] {
        for is_booked in [false, true] {
            let disk = Disk::new();
            let first = process();
            let (token, id) = first.block_on(async {
                let (_desk, token, id) = stuck(&disk).await;
                (token, id)
            });
            drop(first);
            process().block_on(async {
                let desk = disk.start(1_000_000_000).await;
                let refund = id_in(&json!({ "id": id }));
                records(&disk).say(refund, &word(verdict)).unwrap();
                if verdict == Verdict::NotPaid {
                    use farebox_lightning::outgoing::{Failure, Intents as _};
                    let row = desk.refunds.intents.find(&payment()).unwrap().unwrap();
                    let failure = Failure { reason: "said".to_owned(), unsent: false };
                    desk.refunds.intents.fail(&row, &failure, START).unwrap();
                }
                if is_booked {
                    let end = if refunded > 0 { Refund::Part(Msat::new(refunded)) } else { Refund::Failed };
                    desk.paywall.ledger().end_refund(refund, end).await.unwrap();
                }
            });
            process().block_on(async {
                let desk = disk.open().await;
                assert_eq!(over(&desk, &token, &id).await["state"], state, "{verdict:?} {is_booked}");
                let balance = disk.balance(&token).await;
                assert_eq!((balance.refunded(), balance.left()), (refunded, 100_000 - refunded));
                desk.lawful().await;
            });
            assert_eq!(disk.wallet.paid(), 1);
        }
    }
}

/// Money that the books hold for a refund, and what the journal, which is another one by now, knows of it.
async fn held_alone(disk: &Arc<Disk>, desk: &Desk, known: Option<State>) -> (Token, RefundId) {
    let token = desk.credit(1).await;
    desk.refunds.bought(&desk.refunds.holder(&token.headers()).unwrap()).await.unwrap();
    let (amount, fee_max) = (Msat::new(50_000), Msat::new(5_500));
    let (id, purchase) = (id_of(&token.hash(), payment().as_bytes()), token.hash());
    let wanted = Wanted { id, purchase, of: RefundOf::Credit, amount, fee_max, payment: payment() };
    let held = Msat::new(55_500);
    let order =
        crate::store::accounts::RefundOrder { id, hash: purchase, of: wanted.of, amount: held, at: START };
    desk.paywall.ledger().begin_refund(order).await.unwrap();
    if let Some(state) = known {
        desk.refunds.journal.record(&wanted, &way(), Msat::MAX, START).unwrap();
        desk.refunds.journal.end(id, &state, START).unwrap();
    }
    assert_eq!(disk.balance(&token).await.refunding(), 55_500);
    (token, id)
}

#[test]
fn what_has_ended_here_and_is_open_in_the_books_is_booked_and_not_paid_again() {
    for (known, refunded) in
        [(State::Paid { fee: Msat::new(300) }, 50_300), (State::Failed { why: "no route".to_owned() }, 0)]
    {
        let disk = Disk::new();
        let token = process().block_on(async {
            let desk = disk.start(1_000_000_000).await;
            held_alone(&disk, &desk, Some(known)).await.0
        });
        process().block_on(async {
            let desk = disk.open().await;
            let waiting = async {
                while disk.balance(&token).await.refunding() > 0 {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(60), waiting).await.unwrap();
            let balance = disk.balance(&token).await;
            assert_eq!((balance.refunded(), balance.left()), (refunded, 100_000 - refunded));
            assert_eq!(desk.refunds.health(), RefundHealth::default());
            desk.lawful().await;
        });
        assert_eq!(disk.wallet.paid(), 0);
    }
}

#[test]
fn what_stands_in_the_books_alone_is_not_paid_to_who_asks_for_it_again() {
    for end in [None, Some(Refund::Failed), Some(Refund::Paid)] {
        let disk = Disk::new();
        let (token, id) = process().block_on(async {
            let desk = disk.start(1_000_000_000).await;
            let token = desk.credit(1).await;
            desk.refunds.bought(&desk.refunds.holder(&token.headers()).unwrap()).await.unwrap();
            let (hash, amount) = (token.hash(), Msat::new(45_400));
            let (id, of) = (id_of(&hash, payment().as_bytes()), RefundOf::Credit);
            let order = crate::store::accounts::RefundOrder { id, hash, of, amount, at: START };
            desk.paywall.ledger().begin_refund(order).await.unwrap();
            (token, id)
        });
        process().block_on(async {
            let desk = disk.open().await;
            if let Some(end) = end {
                desk.paywall.ledger().end_refund(id, end).await.unwrap();
            }
            let before = disk.balance(&token).await;
            let code = if end.is_some() { "refund_malformed" } else { "refund_under_way" };
            Desk::refused(&desk.refund(&token, Bill::new(1, 40_000)).await, code);
            assert_eq!(disk.balance(&token).await, before);
        });
        assert_eq!(disk.wallet.paid(), 0, "{end:?}");
    }
}

#[test]
fn what_was_sent_and_the_books_do_not_know_is_taken_of_them() {
    let disk = Disk::new();
    *disk.wallet.mood.lock() = Mood::Hangs;
    let first = process();
    let (token, id) = first.block_on(async {
        let desk = disk.open().await;
        let token = desk.credit(1).await;
        let (_, told) = desk.refund(&token, Bill::new(1, 50_000)).await;
        disk.wallet.sent.notified().await;
        (token, told["id"].clone())
    });
    drop(first);
    let preimage = Preimage::from_bytes([1; 32]);
    disk.wallet.know(payment(), Outcome::Settled { preimage, fee: Msat::new(500) });
    // Books from a backup: the money has come, and nothing was paid back.
    let store = Arc::new(SqliteStore::in_memory().unwrap());
    let disk = Arc::new(Disk { store, settled: Mutex::new(0), ..Arc::into_inner(disk).unwrap() });
    process().block_on(async {
        let desk = disk.start(1_000_000_000).await;
        desk.credit(1).await;
        desk.refunds.bought(&desk.refunds.holder(&token.headers()).unwrap()).await.unwrap();
        desk.refunds.pay_from(disk.wallet.clone()).await.unwrap();
        assert_eq!(over(&desk, &token, &id).await["state"], "paid");
        let balance = disk.balance(&token).await;
        assert_eq!((balance.refunded(), balance.left()), (50_500, 49_500));
        desk.lawful().await;
    });
    assert_eq!(disk.wallet.paid(), 1);
}

#[test]
fn what_stands_in_the_books_alone_waits_for_a_word_and_is_never_given_back_without() {
    for (verdict, refunded) in [(Verdict::NotPaid, 0), (PAID, 55_500)] {
        let disk = Disk::new();
        let (token, id) = process().block_on(async {
            let desk = disk.start(1_000_000_000).await;
            held_alone(&disk, &desk, None).await
        });
        process().block_on(async {
            let desk = disk.open().await;
            until(|| desk.refunds.health() == STUCK).await;
            tokio::time::sleep(Duration::from_secs(200_000)).await;
            assert_eq!(disk.balance(&token).await.refunding(), 55_500);
            // `Records` looks at books in a file.
            desk.refunds.journal.say(id, &word(verdict)).unwrap();
            until(|| desk.refunds.health() == RefundHealth::default()).await;
            let balance = disk.balance(&token).await;
            assert_eq!((balance.refunded(), balance.left()), (refunded, 100_000 - refunded));
            desk.lawful().await;
        });
        assert_eq!(disk.wallet.paid(), 0);
    }
}
